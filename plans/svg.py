"""A plan's graph as one SVG file, without any program beside Python. Pure.

The file stands alone: its own colours for light and dark, tips on every box, the whole graph in words for those
who cannot see it, no script and nothing from the network. All text of the plan is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, sqrt
from typing import Final
from unicodedata import east_asian_width
from xml.sax.saxutils import escape, quoteattr

from .graph import EDGE_WORDS, Graph, Node, as_text, look_alikes, printable
from .layout import Layout, Link, Point, Rect, best_layout

#: So many tasks that differ by their command only are drawn as one box with their names in it.
ALIKE: Final = 7
_MAX_ID: Final = 34
_MAX_REMARK: Final = 44
_ID_PX: Final = 7.9  # a sign of 13 px monospace
_REMARK_PX: Final = 6.1  # of 11 px sans-serif, rather too wide
_STACK: Final = 5.0
_MARGIN: Final = 28.0
_HEAD: Final = 78.0
_FOOT: Final = 52.0
_CELL: Final = (22.0, 6.0)  # height of a name in a group, space between two
_MAX_DESCRIPTION: Final = 20_000

#: class -> (colour on light, colour on dark)
COLOURS: Final[Mapping[str, tuple[str, str]]] = {
    "cpu": ("#6e7781", "#8b949e"),
    "script": ("#bc4c00", "#f0883e"),
    "llm": ("#8250df", "#a371f7"),
    "brain": ("#0969da", "#58a6ff"),
    "meta": ("#1a7f37", "#3fb950"),
}
_LIGHT: Final = {
    "paper": "#ffffff",
    "card": "#f6f8fa",
    "rim": "#d0d7de",
    "ink": "#1f2328",
    "soft": "#59636e",
    "line": "#848d97",
}
_DARK: Final = {
    "paper": "#0d1117",
    "card": "#161b22",
    "rim": "#3d444d",
    "ink": "#e6edf3",
    "soft": "#9198a1",
    "line": "#768390",
}


@dataclass(frozen=True, slots=True)
class _Box:
    """One box of the picture: a task, or several that are alike."""

    nodes: tuple[Node, ...]
    width: float
    height: float
    columns: int = 1

    @property
    def node(self) -> Node:
        return self.nodes[0]


def svg(graph: Graph) -> str:
    """The picture as text of an SVG 1.1 document; the same graph gives the same bytes."""
    boxes, number = _boxes(graph)
    links = _links(graph, number)
    layout = best_layout([(box.width, box.height) for box in boxes], links)
    legend = _legend(graph)
    width = max(layout.width, _title_width(graph), _legend_width(legend)) + 2 * _MARGIN
    height = layout.height + _HEAD + _FOOT
    left, top = (width - layout.width) / 2, _HEAD
    parts = [*_opening(graph, width, height), f'<g transform="translate({_n(left)} {_n(top)})">']
    parts += [_path(points, link, layout) for points, link in zip(layout.paths, links, strict=True)]
    for box, rect in zip(boxes, layout.boxes, strict=True):
        parts += _group(box, rect) if len(box.nodes) > 1 else _task(box, rect)
    parts.append("</g>")
    parts += _legend_row(legend, height - 26)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


# -- what is drawn -----------------------------------------------------------------------------------------------


def _boxes(graph: Graph) -> tuple[list[_Box], dict[str, int]]:
    """The boxes in the plan's order, and for each task the number of its box."""
    by_id = {node.id: node for node in graph.nodes}
    first = {members[0]: members for members in look_alikes(graph, ALIKE)}
    inside = {name for members in first.values() for name in members}
    boxes: list[_Box] = []
    number: dict[str, int] = {}
    for node in graph.nodes:
        if node.id in inside and node.id not in first:
            continue
        members = first.get(node.id, [node.id])
        number.update((name, len(boxes)) for name in members)
        nodes = tuple(by_id[name] for name in members)
        boxes.append(_group_box(nodes) if len(nodes) > 1 else _task_box(node))
    return boxes, number


def _task_box(node: Node) -> _Box:
    remarks = node.remarks()
    widths = [_cells(_cut(node.id, _MAX_ID)) * _ID_PX]
    widths += [_cells(_cut(line, _MAX_REMARK)) * _REMARK_PX for line in remarks]
    extra = _STACK if node.source else 0.0
    return _Box((node,), max(112.0, max(widths) + 30) + extra, 31.0 + 15 * len(remarks) + extra)


def _group_box(nodes: tuple[Node, ...]) -> _Box:
    """A frame with a grid of names, about as wide as it is high."""
    cell = max(_cells(_cut(node.id, _MAX_ID)) for node in nodes) * 7.0 + 16
    height, space = _CELL
    columns = max(1, min(len(nodes), round(sqrt(len(nodes) * (height + space) * 1.5 / (cell + space)))))
    rows = ceil(len(nodes) / columns)
    columns = ceil(len(nodes) / rows)
    width = max(columns * (cell + space) - space + 28, 150.0)
    return _Box(nodes, width, 42.0 + rows * (height + space) + 8, columns)


def _links(graph: Graph, number: Mapping[str, int]) -> list[Link]:
    """One link for all edges of a kind between two boxes."""
    links = {Link(number[edge.source], number[edge.target], edge.kind): None for edge in graph.edges}
    return list(links)


# -- parts of the document ---------------------------------------------------------------------------------------


def _opening(graph: Graph, width: float, height: float) -> list[str]:
    tasks, steps = len(graph.nodes), len(graph.steps())
    facts = [f"{tasks} task{'s' * (tasks != 1)}", f"{steps} step{'s' * (steps != 1)}"]
    if graph.on_failure:
        facts.append(f"on failure: {graph.on_failure}")
    about = as_text(graph)
    if len(about) > _MAX_DESCRIPTION:
        about = about[:_MAX_DESCRIPTION] + "…"
    name = printable(graph.name).replace(" ", "-")
    markers = [_marker(kind) for kind in EDGE_WORDS]
    size = f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}"'
    labelled = f"aria-labelledby={quoteattr(f'{name}-title {name}-about')}"
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {labelled}>',
        f"<title id={quoteattr(f'{name}-title')}>Plan {_text(graph.title)}</title>",
        f"<desc id={quoteattr(f'{name}-about')}>{_lines(about)}</desc>",
        f"<style>{_style()}</style>",
        f"<defs>{''.join(markers)}</defs>",
        '<rect class="paper" width="100%" height="100%"/>',
        f'<text class="title" x="{_n(_MARGIN)}" y="36">{_text(_cut(printable(graph.title), 90))}</text>',
        f'<text class="remark" x="{_n(_MARGIN)}" y="56">{_text(" · ".join(facts))}</text>',
    ]


def _style() -> str:
    rules = [
        "text{font:11px ui-sans-serif,system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}",
        "text.title{font-size:18px;font-weight:600}",
        "text.id{font:600 13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}",
        "text.cell{font:11px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}",
        ".edge{fill:none;stroke-width:1.4}.item{stroke-dasharray:5 4}.end{stroke-dasharray:8 3 1.5 3}",
        "marker path{stroke-width:0}marker .open{stroke-width:1.3}",
        _theme(_LIGHT, 0),
        f"@media (prefers-color-scheme:dark){{{_theme(_DARK, 1)}}}",
    ]
    return "".join(rules)


def _theme(colours: Mapping[str, str], which: int) -> str:
    rules = [
        ".paper,.open{{fill:{paper}}}.card{{fill:{card};stroke:{rim}}}.cellbox{{fill:{paper};stroke:{rim}}}",
        "text{{fill:{ink}}}text.remark{{fill:{soft}}}.edge,.open{{stroke:{line}}}.head{{fill:{line}}}",
    ]
    classes = [f".c-{name}{{fill:{pair[which]}}}" for name, pair in COLOURS.items()]
    return "".join([*(rule.format(**colours) for rule in rules), *classes])


def _marker(kind: str) -> str:
    shape = "open" if kind == "end" else "head"
    return (
        f'<marker id="tip-{kind}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7.5" markerHeight="7.5" '
        f'orient="auto-start-reverse"><path class="{shape}" d="M.7 1 9 5 .7 9z"/></marker>'
    )


def _path(points: Sequence[Point], link: Link, layout: Layout) -> str:
    """Straight along inside a layer, curves that leave and arrive along the way between two."""
    words = [f"M{_n(points[0].x)} {_n(points[0].y)}"]
    for one, other in pairwise(points):
        flat = one.y == other.y if layout.rightwards else one.x == other.x
        if flat:
            words.append(f"L{_n(other.x)} {_n(other.y)}")
        elif layout.rightwards:
            middle = _n((one.x + other.x) / 2)
            words.append(f"C{middle} {_n(one.y)} {middle} {_n(other.y)} {_n(other.x)} {_n(other.y)}")
        else:
            middle = _n((one.y + other.y) / 2)
            words.append(f"C{_n(one.x)} {middle} {_n(other.x)} {middle} {_n(other.x)} {_n(other.y)}")
    return f'<path class="edge {link.kind}" d="{"".join(words)}" marker-end="url(#tip-{link.kind})"/>'


def _task(box: _Box, rect: Rect) -> list[str]:
    node, stacked = box.node, bool(box.node.source)
    extra = _STACK if stacked else 0.0
    width, height = rect.width - extra, rect.height - extra
    parts = [
        f'<g class="task" transform="translate({_n(rect.x)} {_n(rect.y)})"><title>{_lines(node.tip)}</title>'
    ]
    for shift in (extra, extra / 2) if stacked else ():
        parts.append(_card(shift, shift, width, height))
    parts += [_card(0, 0, width, height), _stripe(node.task_class, height)]
    parts.append(f'<text class="id" x="15" y="20">{_text(_cut(node.id, _MAX_ID))}</text>')
    for at, line in enumerate(node.remarks()):
        parts.append(
            f'<text class="remark" x="15" y="{_n(36 + 15 * at)}">{_text(_cut(line, _MAX_REMARK))}</text>'
        )
    return [*parts, "</g>"]


def _group(box: _Box, rect: Rect) -> list[str]:
    height, space = _CELL
    cell = (rect.width - 28 + space) / box.columns - space
    parts = [
        f'<g class="group" transform="translate({_n(rect.x)} {_n(rect.y)})">',
        _card(0, 0, rect.width, rect.height),
        _stripe(box.node.task_class, rect.height),
        f'<text class="id" x="15" y="20">{len(box.nodes)} tasks side by side</text>',
        f'<text class="remark" x="15" y="35">{_text(_cut("; ".join(box.node.remarks()), 60))}</text>',
    ]
    for at, node in enumerate(box.nodes):
        row, column = divmod(at, box.columns)
        x, y = 15 + column * (cell + space), 44 + row * (height + space)
        parts += [
            f'<g class="task" transform="translate({_n(x)} {_n(y)})"><title>{_lines(node.tip)}</title>',
            f'<rect class="cellbox" width="{_n(cell)}" height="{_n(height)}" rx="4"/>',
            f'<text class="cell" x="8" y="15">{_text(_cut(node.id, _MAX_ID))}</text></g>',
        ]
    return [*parts, "</g>"]


def _card(x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="card" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" '
        'rx="6" stroke-width="1"/>'
    )


def _stripe(task_class: str, height: float) -> str:
    """The colour of the class, down the left side inside the round corners."""
    return f'<rect class="c-{task_class}" x="5" y="7" width="3.5" height="{_n(height - 14)}" rx="1.75"/>'


# -- the legend --------------------------------------------------------------------------------------------------


def _legend(graph: Graph) -> list[tuple[str, str, str]]:
    """(what, which, words) of all that occurs: classes and kinds of edges; a plan of one kind needs none."""
    classes = {node.task_class for node in graph.nodes}
    kinds = {edge.kind for edge in graph.edges}
    rows = [("class", name, name) for name in COLOURS if name in classes]
    return rows + [("edge", kind, words) for kind, words in EDGE_WORDS.items() if kind in kinds]


def _legend_width(rows: Iterable[tuple[str, str, str]]) -> float:
    return sum(_legend_step(what, words) for what, _, words in rows)


def _legend_step(what: str, words: str) -> float:
    return (34.0 if what == "edge" else 16.0) + _cells(words) * _REMARK_PX + 22


def _legend_row(rows: Iterable[tuple[str, str, str]], y: float) -> list[str]:
    parts = ['<g class="legend">']
    x = _MARGIN
    for what, which, words in rows:
        if what == "class":
            parts.append(f'<rect class="c-{which}" x="{_n(x)}" y="{_n(y - 8)}" width="9" height="9" rx="2"/>')
        else:
            parts.append(
                f'<path class="edge {which}" d="M{_n(x)} {_n(y - 4)}h28" marker-end="url(#tip-{which})"/>'
            )
        indent = 16 if what == "class" else 34
        parts.append(f'<text class="remark" x="{_n(x + indent)}" y="{_n(y)}">{_text(words)}</text>')
        x += _legend_step(what, words)
    return [*parts, "</g>"]


# -- text --------------------------------------------------------------------------------------------------------


def _title_width(graph: Graph) -> float:
    return _cells(_cut(printable(graph.title), 90)) * 10.5


def _text(text: str) -> str:
    return escape(printable(text))


def _lines(text: str) -> str:
    """Escaped text in which lines stay lines."""
    return "\n".join(escape(printable(line)) for line in text.split("\n"))


def _cells(text: str) -> int:
    """The width of a text in signs; Chinese, Japanese and Korean ones count two."""
    return sum(2 if east_asian_width(sign) in "WF" else 1 for sign in text)


def _cut(text: str, limit: int) -> str:
    """At most ``limit`` signs wide: the middle goes, since ids and paths differ at their ends."""
    if _cells(text) <= limit:
        return text
    head: list[str] = []
    tail: list[str] = []
    used = 1
    left, right = 0, len(text) - 1
    while used < limit:
        sign = text[left] if len(head) <= len(tail) else text[right]
        used += _cells(sign)
        if used > limit:
            break
        if len(head) <= len(tail):
            head.append(sign)
            left += 1
        else:
            tail.append(sign)
            right -= 1
    return "".join([*head, "…", *reversed(tail)])


def _n(value: float) -> str:
    """A number with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
