"""A plan drawn: the graph, its layout, and the three forms. What a picture must not do is checked on the picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.plans.graph import Edge, Graph, Node, as_text, graph_of, longest_paths, look_alikes, mermaid
from rigbus.plans.layout import Layout, Link, Rect, best_layout, lay_out
from rigbus.plans.parser import parse_plan
from rigbus.plans.svg import ALIKE, svg

SVG = "{http://www.w3.org/2000/svg}"
EVIL = (
    '"]; click n0 "javascript:alert(1)" <script>&amp;&lt; #quot; `x` {{a}} --> n9 %% \x1b[31m \ud800 ends ]]>'
)

PLAN = """# Plan: Briefing
## Settings
- on_failure: abort
## Tasks
### split
- task_class: cpu
- command: `true`
### hear
- task_class: script
- foreach: `{BATCH_PATH}/m.json:items`
- batch_size: 4
- command: `true {ITEM.id}`
- depends_on: split
- on_failure: continue
### tell
- task_class: llm
- foreach: `{BATCH_PATH}/m.json:items`
- command: `true {ITEM.id}`
- depends_on: split
### join
- executor: brain
- command: `true`
- depends_on: hear, tell
"""


def dag(count: int, pairs: set[tuple[int, int]], kind: str = "cpu") -> Graph:
    """A graph of tasks t0, t1, …; ``pairs`` of (earlier, later)."""
    nodes = tuple(Node(f"t{at}", kind, tip=f"t{at}") for at in range(count))
    return Graph("p", "a plan", nodes, tuple(Edge(f"t{a}", f"t{b}") for a, b in sorted(pairs)))


@st.composite
def links(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[Link]]:
    """Sizes of boxes, and links that make no circle."""
    count = draw(st.integers(1, 24))
    sizes = draw(
        st.lists(st.tuples(st.integers(20, 300), st.integers(20, 120)), min_size=count, max_size=count)
    )
    pairs = draw(
        st.sets(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(
                lambda two: two[0] < two[1]
            )
        )
    )
    kinds = st.sampled_from(["success", "end", "item"])
    return [(float(w), float(h)) for w, h in sizes], [Link(a, b, draw(kinds)) for a, b in sorted(pairs)]


def overlap(one: Rect, other: Rect) -> bool:
    """Whether two boxes share more than a border."""
    return (
        one.x + one.width > other.x + 0.01
        and other.x + other.width > one.x + 0.01
        and one.y + one.height > other.y + 0.01
        and other.y + other.height > one.y + 0.01
    )


def assert_good(layout: Layout, links: list[Link]) -> None:
    for one, other in combinations(layout.boxes, 2):
        assert not overlap(one, other)
    for box in layout.boxes:
        assert box.x > -0.01 and box.x + box.width <= layout.width + 0.01
        assert box.y > -0.01 and box.y + box.height <= layout.height + 0.01
    for link, path in zip(links, layout.paths, strict=True):
        source, target = layout.boxes[link.source], layout.boxes[link.target]
        if layout.rightwards:
            assert path[0] == pytest.approx((source.x + source.width, source.y + source.height / 2))
            assert path[-1] == pytest.approx((target.x, target.y + target.height / 2))
        else:
            assert path[0] == pytest.approx((source.x + source.width / 2, source.y + source.height))
            assert path[-1] == pytest.approx((target.x + target.width / 2, target.y))
        for one, other in pairwise(path):
            # A curve stays within the box of its ends, so this holds for what is drawn between them.
            x, y = min(one.x, other.x), min(one.y, other.y)
            piece = Rect(x, y, abs(one.x - other.x), abs(one.y - other.y))
            assert not any(overlap(piece, box) for box in layout.boxes)


# -- the graph ---------------------------------------------------------------------------------------------------


def test_a_plan_becomes_nodes_and_edges_that_know_how_they_wait():
    graph = graph_of(parse_plan(PLAN, name="briefing"))
    assert [(node.id, node.task_class, node.source) for node in graph.nodes] == [
        ("split", "cpu", ""),
        ("hear", "script", "{BATCH_PATH}/m.json:items"),
        ("tell", "llm", "{BATCH_PATH}/m.json:items"),
        ("join", "brain", ""),
    ]
    kinds = {(edge.source, edge.target): edge.kind for edge in graph.edges}
    assert kinds == {
        ("split", "hear"): "success",
        ("split", "tell"): "success",
        ("hear", "join"): "end",
        ("tell", "join"): "success",
    }
    assert [[node.id for node in step] for step in graph.steps()] == [["split"], ["hear", "tell"], ["join"]]


def test_an_items_own_dependency_is_an_edge_of_its_own_kind():
    text = PLAN.replace("- batch_size: 4\n", "").replace(
        "### tell", "### tell\n- depends_on: hear_{ITEM.id}", 1
    )
    text = text.replace(
        "- command: `true {ITEM.id}`\n- depends_on: split\n### join", "- command: `true {ITEM.id}`\n### join"
    )
    graph = graph_of(parse_plan(text, name="briefing"))
    edge = next(one for one in graph.edges if (one.source, one.target) == ("hear", "tell"))
    assert (edge.kind, edge.any_end) == ("item", True)
    assert "after the same item of hear" in as_text(graph)
    assert 'n1 -.->|"waits for the same item, even if it fails"| n2' in mermaid(graph)


def test_a_step_is_the_longest_way_from_a_start():
    assert longest_paths(4, [(0, 1), (1, 2), (0, 2), (2, 3)]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="circle"):
        longest_paths(2, [(0, 1), (1, 0)])


def test_tasks_that_differ_by_their_command_only_are_found():
    graph = dag(6, {(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4), (3, 5)})
    assert look_alikes(graph, 2) == [["t1", "t2"]]


# -- the layout --------------------------------------------------------------------------------------------------


@given(links(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_no_two_boxes_overlap_and_no_line_runs_through_a_box(drawn, rightwards):
    sizes, edges = drawn
    assert_good(lay_out(sizes, edges, rightwards=rightwards), edges)


def test_the_same_graph_is_laid_out_the_same_way():
    sizes, edges = [(100.0, 40.0)] * 9, [Link(a, b, "success") for a in range(4) for b in range(4, 9)]
    assert best_layout(sizes, edges) == best_layout(sizes, edges)


def test_a_chain_is_straight_and_crossings_that_need_not_be_are_not():
    chain = lay_out([(100.0, 40.0)] * 5, [Link(a, a + 1, "success") for a in range(4)], rightwards=False)
    assert len({box.x for box in chain.boxes}) == 1
    # Two pairs that cross in the order of the file.
    crossed = [Link(0, 3, "success"), Link(1, 2, "success")]
    places = lay_out([(100.0, 40.0)] * 4, crossed, rightwards=False).boxes
    assert (places[0].x < places[1].x) == (places[3].x < places[2].x)


def test_of_too_many_bends_the_longest_lines_go_straight():
    count = 160
    edges = [Link(a, b, f"k{a}-{b}") for a in range(count) for b in range(a + 1, count)]
    layout = lay_out([(60.0, 20.0)] * count, edges, rightwards=True)
    assert not any(overlap(one, other) for one, other in combinations(layout.boxes, 2))
    assert any(len(path) > 2 for path in layout.paths)
    assert [point.x for point in layout.paths[count - 2]] == sorted(
        point.x for point in layout.paths[count - 2]
    )


# -- SVG ---------------------------------------------------------------------------------------------------------


def read(text: str) -> ET.Element:
    """The picture as elements; it is our own."""
    return ET.fromstring(text)  # noqa: S314


def rects_of(text: str) -> list[Rect]:
    """Where the boxes of a picture lie (those of a group's members are inside it)."""
    root = read(text)
    found = []
    for group in root.iterfind(f"{SVG}g/{SVG}g"):
        x, y = map(float, re.findall(r"-?[\d.]+", group.get("transform")))
        cards = group.findall(f"{SVG}rect[@class='card']")
        width = max(float(card.get("x")) + float(card.get("width")) for card in cards)
        height = max(float(card.get("y")) + float(card.get("height")) for card in cards)
        found.append(Rect(x, y, width, height))
    return found


@pytest.mark.parametrize("count", [1, 3, 40, 200])
def test_a_picture_of_any_size_is_well_formed_and_shows_each_task_once(count):
    pairs = {(at // 2, at) for at in range(1, count)} | {(max(0, at - 7), at) for at in range(2, count, 3)}
    text = svg(dag(count, {(a, b) for a, b in pairs if a < b}))
    root = read(text)
    titles = [one.text for one in root.iter(f"{SVG}title")][1:]
    assert sorted(titles) == sorted(f"t{at}" for at in range(count))
    boxes = rects_of(text)
    assert not any(overlap(one, other) for one, other in combinations(boxes, 2))
    assert len(boxes) == count
    width, height = float(root.get("width")), float(root.get("height"))
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert all(box.x + box.width < width and box.y + box.height < height for box in boxes)


def test_a_picture_says_in_words_what_it_shows_and_has_colours_for_light_and_dark():
    root = read(svg(graph_of(parse_plan(PLAN, name="briefing"))))
    assert root.get("role") == "img"
    title, about = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby").split() == [title.get("id"), about.get("id")]
    assert title.text == "Plan Briefing"
    assert "3  join   brain; after tell; after any end of hear" in about.text
    assert "prefers-color-scheme:dark" in root.find(f"{SVG}style").text
    shown = [one.text for one in root.iter(f"{SVG}text")]
    assert "4 tasks · 3 steps · on failure: abort" in shown
    assert {
        "split",
        "script · 4 items a task",
        "for each of {BATCH_PATH}/m.json:items",
        "on failure: continue",
    } <= set(shown)
    assert {"cpu", "script", "llm", "brain", "waits for success", "waits for the end, good or bad"} <= set(
        shown
    )
    assert "waits for the same item" not in shown


def test_a_foreach_is_a_stack_and_an_edge_shows_what_it_waits_for():
    root = read(svg(graph_of(parse_plan(PLAN, name="briefing"))))
    cards = {
        group.find(f"{SVG}text").text: len(group.findall(f"{SVG}rect[@class='card']"))
        for group in root.iterfind(f"{SVG}g/{SVG}g")
    }
    assert cards == {"split": 1, "hear": 3, "tell": 3, "join": 1}
    drawn = sorted(path.get("class") for path in root.iterfind(f"{SVG}g/{SVG}path"))
    assert drawn == sorted(
        ["edge success"] * 3 + ["edge end"] + ["edge end", "edge success"]
    )  # and the legend


def test_many_tasks_alike_are_one_box_with_all_their_names():
    wide = {(0, at) for at in range(1, 61)} | {(at, 61) for at in range(1, 61)}
    text = svg(dag(62, wide))
    root = read(text)
    group = root.find(f"{SVG}g/{SVG}g[@class='group']")
    frame = rects_of(text)[1]
    cells = []
    for cell in group.iterfind(f"{SVG}g"):
        x, y = map(float, re.findall(r"-?[\d.]+", cell.get("transform")))
        rect = cell.find(f"{SVG}rect")
        cells.append(Rect(x, y, float(rect.get("width")), float(rect.get("height"))))
    assert len(cells) == 60
    assert not any(overlap(one, other) for one, other in combinations(cells, 2))
    assert all(cell.x + cell.width < frame.width and cell.y + cell.height < frame.height for cell in cells)
    assert len(root.findall(f"{SVG}g/{SVG}path[@class='edge success']")) == 3  # in, out, and the legend's
    assert len(rects_of(svg(dag(ALIKE + 1, {(0, at) for at in range(1, ALIKE)})))) == ALIKE + 1


def test_the_same_plan_gives_the_same_bytes():
    graph = graph_of(parse_plan(PLAN, name="briefing"))
    assert (svg(graph), mermaid(graph), as_text(graph)) == (svg(graph), mermaid(graph), as_text(graph))


def evil_graph() -> Graph:
    nodes = (
        Node("a", "cpu", type=EVIL, tip=EVIL),
        Node("b" * 64, "llm", source=f"{EVIL}:items", on_failure="continue", tip="x"),
        Node("漢字" * 30, "script", source="漢字" * 60, tip="x"),
    )
    return Graph(
        "plan", EVIL, nodes, (Edge("a", "b" * 64, per_item=True), Edge("b" * 64, "漢字" * 30, any_end=True))
    )


def test_no_text_of_a_plan_becomes_part_of_the_picture():
    root = read(svg(evil_graph()))
    assert not list(root.iter(f"{SVG}script"))
    assert not list(root.iter(f"{SVG}a"))
    assert "<script>" in root.find(f"{SVG}title").text
    assert "\x1b" not in "".join(root.itertext())


# -- Mermaid and text --------------------------------------------------------------------------------------------

_LABEL = r'"[\w ./:,+()…×·#;-]*(?:<br/>[\w ./:,+()…×·#;-]*)*"'
_MERMAID_LINES = re.compile(
    rf"---|title: \"(?:[^\"\\]|\\.)*\"|flowchart (?:LR|TD)|    n\d+(?:\[{_LABEL}\]|\[\[{_LABEL}\]\])"
    rf"|    n\d+ (?:-->|-\.->)(?:\|{_LABEL}\|)? n\d+|    classDef [a-z]+ stroke:#[0-9a-f]{{6}},stroke-width:2px"
    r"|    class n\d+(?:,n\d+)* [a-z]+"
)


@pytest.mark.parametrize("graph", [evil_graph(), graph_of(parse_plan(PLAN, name="p")), dag(1, set())])
def test_mermaid_has_lines_of_its_grammar_only_whatever_the_plan_says(graph):
    lines = mermaid(graph).splitlines()
    assert [line for line in lines if not _MERMAID_LINES.fullmatch(line)] == []
    assert sum(re.match(r"    n\d+ -", line) is not None for line in lines) == len(graph.edges)


def test_mermaid_draws_a_foreach_as_a_subroutine_and_names_a_bad_end():
    text = mermaid(graph_of(parse_plan(PLAN, name="briefing")))
    assert (
        '    n1[["hear<br/>script · 4 items a task<br/>for each of #123;BATCH_PATH#125;/m.json:items' in text
    )
    assert '    n1 -->|"even if it fails"| n3' in text
    assert "    n2 --> n3" in text


def test_the_text_lists_the_tasks_step_by_step():
    assert as_text(graph_of(parse_plan(PLAN, name="briefing"))).splitlines()[0:2] == [
        "Briefing: 4 tasks in 3 steps",
        "1  split  cpu",
    ]
    assert as_text(dag(1, set())).startswith("a plan: 1 task in 1 step\n")
