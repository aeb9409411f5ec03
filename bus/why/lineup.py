"""The queue as it will be served, and how long that takes: plain functions on numbers and tasks. Pure."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from ..core.matching import ReadyTasks
from ..core.model import Batch, Shape, Task
from ..states import TaskState

ONE_BY_ONE: Final = 5_000  #: jobs that are put into slots one by one; more are taken as one amount of work


@dataclass(slots=True)
class Line:
    """Who is served before a task: groups of (how many, tasks of which the first ones are meant)."""

    ahead: list[tuple[int, Sequence[Task]]]

    @property
    def position(self) -> int:
        """1 for the next one."""
        return 1 + sum(n for n, _ in self.ahead)


def due(queue: Iterable[Task]) -> list[Task]:
    """Of a queue's entries those that count: an entry of an earlier time may still stand there."""
    ready = TaskState.READY
    return [t for t in queue if t.state is ready and not t.not_before]


def line_before(
    task: Task,
    ready: ReadyTasks,
    competes: Callable[[Shape], bool],
    now: float,
    due: Callable[[deque[Task]], list[Task]] = due,
) -> Line:
    """The ready tasks that the scheduler serves before this READY one, in its order: the aged priority, then the
    batch with the least service (each task served is one more), then who came first. A task that backs off is put
    behind those of its own batch. ``due`` may remember what it has found of a queue."""
    mine = task.priority
    levels = []
    for shape, by_priority in ready.shapes.items():
        if shape != task.shape and not competes(shape):
            continue
        for priority, level in by_priority.items():
            aged = priority + int(max(0.0, now - level.oldest_at()) / ready.age_s)
            if shape == task.shape and priority == task.priority:
                mine = aged
            levels.append((aged, level))
    out = Line([])
    before: list[Task] = []  # of its own batch
    same: dict[int, list[Task]] = {}  # of others, at its own level
    served: dict[int, int] = {}  # of each batch, at higher levels
    batches: dict[int, Batch] = {}
    for aged, level in levels:
        for no, queue in level.queues.items():
            tasks = due(queue) if aged >= mine else []
            if not tasks:
                continue
            batches[no] = tasks[0].batch
            if aged > mine:
                served[no] = served.get(no, 0) + len(tasks)
                out.ahead.append((len(tasks), tasks))
            elif no != task.batch.no:
                same.setdefault(no, []).extend(tasks)
            elif task.not_before:
                before += tasks
            elif tasks[0].shape == task.shape and tasks[0].priority == task.priority:
                before += takewhile(lambda t: t is not task, tasks)
            else:
                before += [t for t in tasks if t.no < task.no]
    if before:
        out.ahead.append((len(before), before))
    turn = task.batch.vtime + served.get(task.batch.no, 0) + len(before)
    for no, tasks in same.items():
        lead = turn - batches[no].vtime - served.get(no, 0)
        n = min(len(tasks), max(0, math.ceil(lead)))
        if n < len(tasks) and n == lead and no < task.batch.no:
            n += 1  # the same service: the older batch is first
        if n:
            out.ahead.append((n, tasks))
    return out


def first_free(slots: Sequence[float], jobs: Iterable[tuple[int, float]]) -> tuple[float, bool]:
    """When a slot is free for the next one: (seconds, whether it is only about so).

    ``slots``: seconds until each is free. ``jobs``: (how many, seconds each), served before, each by the first slot
    that is free.
    """
    jobs = list(jobs)
    if sum(n for n, _ in jobs) > ONE_BY_ONE:
        return max(min(slots), (sum(slots) + sum(n * s for n, s in jobs)) / len(slots)), True
    free = list(slots)
    heapq.heapify(free)
    for n, seconds in jobs:
        for _ in range(n):
            heapq.heapreplace(free, free[0] + seconds)
    return free[0], False


def longest_path(tasks: Mapping[int, Task], cost: Mapping[int, float]) -> float:
    """Seconds of the longest chain of tasks that wait for each other; what is not in ``cost`` costs and waits nothing."""
    done: dict[int, float] = {}
    waiting = TaskState.WAITING
    for root in tasks.values():
        stack = [root]
        while stack:
            task = stack[-1]
            if task.no in done:
                stack.pop()
                continue
            after = [no for no, _ in task.after if no in cost] if task.state is waiting else ()
            left = [tasks[no] for no in after if no not in done]
            if left:
                stack += left
                continue
            stack.pop()
            done[task.no] = cost[task.no] + max((done[no] for no in after), default=0.0)
    return max(done.values(), default=0.0)
