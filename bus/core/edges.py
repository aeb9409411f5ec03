"""Finding cycles among tasks. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from .model import Task


def find_cycle(graph: dict[int, list[int]]) -> list[int]:
    """One cycle of ``node -> what it waits for``, as a path that returns to its start; empty if there is none."""
    done: set[int] = set()
    for root in graph:
        if root in done:
            continue
        path: list[int] = []
        on_path: set[int] = set()
        stack: list[tuple[int, int]] = [(root, 0)]
        while stack:
            node, i = stack.pop()
            if i == 0:
                if node in done:
                    continue
                path.append(node)
                on_path.add(node)
            nexts = graph.get(node, [])
            if i < len(nexts):
                stack.append((node, i + 1))
                if nexts[i] in on_path:
                    return [*path[path.index(nexts[i]) :], nexts[i]]
                if nexts[i] not in done:
                    stack.append((nexts[i], 0))
            else:
                path.pop()
                on_path.discard(node)
                done.add(node)
    return []


def behind(joins: Iterable[Task], wanted: set[int]) -> dict[int, list[int]]:
    """Which accepted tasks of ``wanted`` (by no) wait, over others, for one of these joins: ``no -> join nos``.

    New tasks can close a cycle over accepted ones only so: they wait for one and feed a join before it.
    """
    found: dict[int, list[int]] = {}
    for join in joins:
        seen = {join.no}
        todo = [join]
        while todo:
            task = todo.pop()
            if task.no in wanted:
                found.setdefault(task.no, []).append(join.no)
            for other, _ in task.dependents or ():
                if other.no not in seen and not other.ended:
                    seen.add(other.no)
                    todo.append(other)
    return found
