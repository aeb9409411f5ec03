"""A plan as a graph: what there is to draw, and the two forms that are text, Mermaid and plain lines. Pure.

The picture is ``svg.py``; where its boxes lie is ``layout.py``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .model import Plan, PlanTask

#: Characters of a command that a tip shows.
MAX_TIP_CHARS: Final = 400
_MERMAID_PLAIN: Final = re.compile(r"[^\w ./:,+()…×·-]")


@dataclass(frozen=True, slots=True)
class Node:
    """One task. ``source`` is the list of a foreach, empty for a single task; ``batch_size`` its items a task.

    ``tip`` has what a reader may want to know besides, one fact a line. ``on_failure`` is the task's own wish.
    """

    id: str
    task_class: str
    type: str = "shell"
    source: str = ""
    batch_size: int = 1
    on_failure: str = ""
    tip: str = ""

    def remarks(self) -> list[str]:
        """The lines below the id: class and type, the list, what its failure does."""
        kind = self.task_class if self.type == "shell" else f"{self.task_class} · {self.type}"
        lines = [kind]
        if self.source:
            lines.append(f"for each of {self.source}")
        if self.batch_size > 1:
            lines[0] += f" · {self.batch_size} items a task"
        if self.on_failure:
            lines.append(f"on failure: {self.on_failure}")
        return lines


@dataclass(frozen=True, slots=True)
class Edge:
    """``target`` waits for ``source``. ``per_item``: each item for the task of the same item only.

    ``any_end``: the source says on_failure: continue, so that its bad end releases the target too.
    """

    source: str
    target: str
    per_item: bool = False
    any_end: bool = False

    @property
    def kind(self) -> str:
        """``success``, ``end`` or ``item``: how the edge is drawn."""
        return "item" if self.per_item else "end" if self.any_end else "success"


#: What the kinds of edges mean, in the words of the legends.
EDGE_WORDS: Final[Mapping[str, str]] = {
    "success": "waits for success",
    "end": "waits for the end, good or bad",
    "item": "waits for the same item",
}


@dataclass(frozen=True, slots=True)
class Graph:
    """``nodes`` stand in the plan's order, ``edges`` in the order of their targets."""

    name: str
    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    on_failure: str = ""

    def steps(self) -> list[list[Node]]:
        """The nodes by the longest way from a start: what stands in step n waits for something in step n - 1."""
        number = {node.id: at for at, node in enumerate(self.nodes)}
        pairs = [(number[edge.source], number[edge.target]) for edge in self.edges]
        ranks = longest_paths(len(self.nodes), pairs)
        steps: list[list[Node]] = [[] for _ in range(max(ranks, default=-1) + 1)]
        for node, rank in zip(self.nodes, ranks, strict=True):
            steps[rank].append(node)
        return steps


def graph_of(plan: Plan) -> Graph:
    """The graph of a parsed plan; the parser has refused cycles and unknown names."""
    by_id = plan.by_id()
    edges: dict[tuple[str, str], Edge] = {}
    for task in plan.tasks:
        for dependency in task.item_depends_on:
            name = dependency.template
            any_end = by_id[name].on_failure == "continue"
            edges[name, task.id] = Edge(name, task.id, per_item=True, any_end=any_end)
        for name in task.depends_on:
            # All of a template includes the same item's task.
            edges[name, task.id] = Edge(name, task.id, any_end=by_id[name].on_failure == "continue")
    return Graph(
        name=plan.name,
        title=plan.title or plan.name,
        nodes=tuple(_node(plan, task) for task in plan.tasks),
        edges=tuple(edges.values()),
        on_failure=plan.settings.on_failure or "",
    )


def _node(plan: Plan, task: PlanTask) -> Node:
    words = json.dumps(task.argv, ensure_ascii=False) if task.argv else task.prompt or task.text or task.input
    what = task.command or words or ""
    facts = [f"{task.id} (line {task.line})", what[:MAX_TIP_CHARS]]
    waits = [*task.depends_on, *(f"{one.template} of the same item" for one in task.item_depends_on)]
    facts.append(f"after: {', '.join(waits)}" if waits else "starts at once")
    facts.append(f"timeout: {plan.timeout_s(task):g} s")
    return Node(
        id=task.id,
        task_class="brain" if task.executor == "brain" else task.task_class,
        type=task.type,
        source=f"{task.foreach.source}:{task.foreach.json_path}" if task.foreach else "",
        batch_size=task.batch_size if task.foreach else 1,
        on_failure=task.on_failure or "",
        tip="\n".join(fact for fact in facts if fact),
    )


def longest_paths(count: int, edges: Iterable[tuple[int, int]]) -> list[int]:
    """For each of ``count`` nodes the number of edges of the longest way to it.

    Raises:
        ValueError: the edges make a circle.
    """
    after: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for source, target in edges:
        after[source].append(target)
        missing[target] += 1
    ranks = [0] * count
    ready = [node for node in range(count) if not missing[node]]
    for node in ready:  # grows while it is walked
        for target in after[node]:
            ranks[target] = max(ranks[target], ranks[node] + 1)
            missing[target] -= 1
            if not missing[target]:
                ready.append(target)
    if len(ready) < count:
        raise ValueError("the edges make a circle")
    return ranks


def look_alikes(graph: Graph, at_least: int) -> list[list[str]]:
    """Groups of at least so many single tasks that differ by their command only: same class, the same before and after.

    A picture shows such a group as one box with its members, not as a fan of crossing lines.
    """
    before: dict[str, list[tuple[str, str]]] = {node.id: [] for node in graph.nodes}
    after: dict[str, list[tuple[str, str]]] = {node.id: [] for node in graph.nodes}
    for edge in graph.edges:
        before[edge.target].append((edge.source, edge.kind))
        after[edge.source].append((edge.target, edge.kind))
    groups: dict[object, list[str]] = {}
    for node in graph.nodes:
        if not node.source:
            ways = tuple(sorted(before[node.id])), tuple(sorted(after[node.id]))
            groups.setdefault((node.remarks()[0], node.on_failure, *ways), []).append(node.id)
    return [members for members in groups.values() if len(members) >= at_least]


def printable(text: str) -> str:
    """``text`` on one line, with a mark in place of what no document may hold: control characters, lone surrogates."""
    return "".join(
        " " if sign in "\n\t\r" else "�" if unicodedata.category(sign) in ("Cc", "Cs", "Cn") else sign
        for sign in text
    )


# -- Mermaid -----------------------------------------------------------------------------------------------------

_MERMAID_CLASSES: Final = {
    "cpu": "#57606a",
    "script": "#bf5700",
    "llm": "#8250df",
    "brain": "#0969da",
    "meta": "#1a7f37",
}


def mermaid(graph: Graph) -> str:
    """A Mermaid flowchart (https://mermaid.js.org); nothing of the plan's text can act as its syntax.

    A foreach is a subroutine box. Dashed arrows mean the same item, labelled ones any end of the source.
    """
    number = {node.id: f"n{at}" for at, node in enumerate(graph.nodes)}
    steps = graph.steps()
    across = max((len(step) for step in steps), default=1) >= len(steps)
    lines = [
        "---",
        f"title: {json.dumps(printable(graph.title)[:200], ensure_ascii=False)}",
        "---",
        f"flowchart {'LR' if across else 'TD'}",
    ]
    for node in graph.nodes:
        label = "<br/>".join(_mermaid_text(line[:120]) for line in [node.id, *node.remarks()])
        opened, closed = ('[["', '"]]') if node.source else ('["', '"]')
        lines.append(f"    {number[node.id]}{opened}{label}{closed}")
    for edge in graph.edges:
        words = [EDGE_WORDS["item"]] if edge.per_item else []
        words += ["even if it fails"] if edge.any_end else []
        arrow = "-.->" if edge.per_item else "-->"
        label = f'|"{", ".join(words)}"|' if words else ""
        lines.append(f"    {number[edge.source]} {arrow}{label} {number[edge.target]}")
    for task_class, colour in _MERMAID_CLASSES.items():
        members = [number[node.id] for node in graph.nodes if node.task_class == task_class]
        if members:
            lines.append(f"    classDef {task_class} stroke:{colour},stroke-width:2px")
            lines.append(f"    class {','.join(members)} {task_class}")
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """Text inside a quoted label: every sign that Mermaid, Markdown or HTML could read is written as its number."""
    return _MERMAID_PLAIN.sub(lambda match: f"#{ord(match.group())};", printable(text))


# -- plain lines -------------------------------------------------------------------------------------------------


def as_text(graph: Graph) -> str:
    """The plan step by step, for a terminal and for those who cannot see the picture."""
    before: dict[str, list[Edge]] = {node.id: [] for node in graph.nodes}
    for edge in graph.edges:
        before[edge.target].append(edge)
    steps = graph.steps()
    rows = []
    for number, step in enumerate(steps, start=1):
        for node in step:
            facts = [*node.remarks(), *_after(before[node.id])]
            rows.append((str(number), printable(node.id), printable("; ".join(facts))))
    head = f"{printable(graph.title)}: {_count(len(graph.nodes), 'task')} in {_count(len(steps), 'step')}"
    widths = [max((len(row[at]) for row in rows), default=0) for at in (0, 1)]
    lines = [f"{number:>{widths[0]}}  {name:<{widths[1]}}  {facts}".rstrip() for number, name, facts in rows]
    return "\n".join([head, *lines]) + "\n"


def _after(edges: Sequence[Edge]) -> list[str]:
    words = {
        "success": "after {}",
        "end": "after any end of {}",
        "item": "after the same item of {}",
    }
    facts = []
    for kind, text in words.items():
        names = [edge.source for edge in edges if edge.kind == kind]
        if names:
            facts.append(text.format(", ".join(names)))
    return facts


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
