"""When a task will start and end, and a batch: from learned durations, the queue and the slots. Pure.

Estimates, never promises: they know of no task that is not submitted yet and of no failure. An :class:`Eta` without
a time says why. Up to :data:`EXACT` tasks are looked at one by one; of more a sample is, and the answer says ``about``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from ..core.matching import ReadyTasks
from ..core.model import Batch, Session, Shape, Task
from ..states import TaskState
from .durations import Durations, Timing, name_of, template_of
from .lineup import Line, due, first_free, line_before, longest_path

EXACT: Final = 5_000
_SAMPLE: Final = 1_000
_STEPS: Final = 5_000  #: of one chain that is walked in a batch with more tasks than that
#: A rig ends at most some thousand tasks a second, however short they are.
_LEAST_S: Final = 0.0002

_LIVE: Final = frozenset(
    {TaskState.WAITING, TaskState.READY, TaskState.LEASED, TaskState.REVIEW, TaskState.FAILED}
)


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds from now to the expected start and end; None where nothing can be said, and then ``why``."""

    start_s: float | None = None
    end_s: float | None = None
    about: bool = False  #: sampled, or something may come in between
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the wire, times to the millisecond."""
        return {
            "start_s": None if self.start_s is None else round(self.start_s, 3),
            "end_s": None if self.end_s is None else round(self.end_s, 3),
            "about": self.about,
            "why": self.why,
        }


class Estimator:
    """Estimates at one moment; it remembers what it has found out while it is asked."""

    def __init__(
        self,
        tasks: Mapping[int, Task],
        ready: ReadyTasks,
        workers: Sequence[Session],
        durations: Durations,
        now: float,
        wall: float,
    ) -> None:
        """``workers`` are those that get leases at present: neither paused nor draining nor silent."""
        self.tasks = tasks
        self.ready = ready
        self.workers = workers
        self.durations = durations
        self.now = now
        self.wall = wall
        self._queues: dict[int, list[Task]] = {}
        self._timings: dict[tuple[str, str, str], Timing | None] = {}
        self._ready_shapes: dict[Shape, int] | None = None

    # -- one task --------------------------------------------------------------------------------------------

    def expected(self, task: Task) -> float | None:
        """Seconds that an attempt takes; None when no run of it has been timed."""
        if task.join:
            return 0.0
        key = (*name_of(task), task.shape.type)
        if key not in self._timings:
            self._timings[key] = self.durations.of(task)
        timing = self._timings[key]
        return None if timing is None else max(timing.mean, _LEAST_S)

    def remaining(self, task: Task) -> float | None:
        """Seconds of work left in a task, by its state; None when no run of it has been timed."""
        if task.state in (TaskState.REVIEW, TaskState.FAILED) or task.join:
            return 0.0
        seconds = self.expected(task)
        if seconds is not None and task.state is TaskState.LEASED and task.started_at:
            return max(0.0, seconds - max(0.0, self.wall - task.started_at))
        return seconds

    def pool(self, shape: Shape) -> list[Session]:
        """The workers that can get tasks of a shape."""
        return [w for w in self.workers if w.accepts(shape)]

    def competes(self, pool: Sequence[Session]) -> Callable[[Shape], bool]:
        """Whether a worker of the pool also takes another shape."""
        return lambda shape: any(w.accepts(shape) for w in pool)

    def line(self, task: Task) -> Line:
        """The queue before a READY task."""
        return line_before(task, self.ready, self.competes(self.pool(task.shape)), self.now, self._due)

    def _due(self, queue: deque[Task]) -> list[Task]:
        """What counts of a queue: looked at once for one answer."""
        found = self._queues.get(id(queue))
        if found is None:
            found = self._queues[id(queue)] = due(queue)
        return found

    def ready_shapes(self) -> dict[Shape, int]:
        """How many ready tasks there are of each shape."""
        if self._ready_shapes is None:
            found = {
                shape: sum(len(self._due(q)) for level in levels.values() for q in level.queues.values())
                for shape, levels in self.ready.shapes.items()
            }
            self._ready_shapes = {shape: n for shape, n in found.items() if n}
        return self._ready_shapes

    def task(self, task: Task) -> Eta:
        """When a task starts and ends."""
        if task.ended:
            return Eta()
        if task.state is TaskState.WAITING:
            return self._waiting(task)
        if task.state in (TaskState.REVIEW, TaskState.FAILED):
            return Eta(why="its verdict is awaited")
        own = self.expected(task)
        if task.state is TaskState.LEASED:
            left = self.remaining(task)
            return Eta(0.0, left) if left is not None else Eta(0.0, None, why=untimed([task]))
        start = self._start(task)
        if start.start_s is None or own is not None:
            end = None if start.start_s is None or own is None else start.start_s + own
            return Eta(start.start_s, end, start.about, start.why)
        return Eta(start.start_s, None, start.about, untimed([task]))

    def _start(self, task: Task) -> Eta:
        pool = self.pool(task.shape)
        if not pool:
            return Eta(why="no worker can take it at present")
        slots, jobs = self._slots(pool)
        unknown: list[Task] = []
        about = False
        for n, tasks in self.line(task).ahead:
            some, each = _spread(tasks, n, _SAMPLE)
            about = about or each > 1.0
            for other in some:
                seconds = self.expected(other)
                if seconds is None:
                    unknown.append(other)
                else:
                    jobs.append((round(each), seconds))
        if 0.0 in slots and not jobs and not unknown:
            return Eta(self._back_off(task))
        if None in slots or unknown:
            held = [t for w in pool for t in w.leases.values() if self.expected(t) is None]
            return Eta(why=untimed(unknown or held))
        start, rough = first_free([s for s in slots if s is not None], jobs)
        return Eta(max(start, self._back_off(task)), None, about or rough)

    def _back_off(self, task: Task) -> float:
        return max(0.0, task.not_before - self.now) if task.not_before else 0.0

    def _slots(self, pool: Sequence[Session]) -> tuple[list[float | None], list[tuple[int, float]]]:
        """Seconds until each slot of the pool is free (None: not known), and the jobs fetched ahead of them."""
        slots: list[float | None] = []
        ahead: list[tuple[int, float]] = []
        for worker in pool:
            room = min(worker.slots, worker.credit)
            held = list(worker.leases.values())
            slots += [self.remaining(t) for t in held[:room]] + [0.0] * (room - len(held[:room]))
            for task in held[room:]:
                ahead.append((1, self.expected(task) or 0.0))
        return slots, ahead

    # -- many tasks ------------------------------------------------------------------------------------------

    def batch(self, batch: Batch, exact: int = EXACT) -> Eta:
        """When a batch ends: the work left by the slots that take it, at least its longest chain."""
        if not batch.live:
            return Eta(0.0, 0.0) if batch.closed else Eta(why="its tasks are not declared yet")
        if batch.total <= exact:
            return self.work([t for t in batch.keys.values() if t.state in _LIVE], batch)
        step = max(1, batch.total // _SAMPLE)
        some = [t for t in islice(batch.keys.values(), 0, None, step) if t.state in _LIVE]
        if not some:  # a few are left of many
            some = list(islice((t for t in batch.keys.values() if t.state in _LIVE), _SAMPLE))
        return self.work(some, batch, scale=batch.live / len(some))

    def work(self, tasks: Sequence[Task], batch: Batch, scale: float = 1.0) -> Eta:
        """When these tasks of a batch have ended; with ``scale`` they stand for so many each."""
        held = next((t for t in tasks if t.hold), None)
        if held is not None:
            return Eta(why=f"the list of `{held.key}` is not known yet")
        cost: dict[int, float] = {}
        by_shape: dict[Shape, float] = {}
        unknown: list[Task] = []
        delay = 0.0
        judged = False
        for task in tasks:
            left = self.remaining(task)
            if left is None:
                unknown.append(task)
                continue
            cost[task.no] = left
            if task.join:
                continue
            judged = judged or task.state in (TaskState.REVIEW, TaskState.FAILED)
            by_shape[task.shape] = by_shape.get(task.shape, 0.0) + left * scale
            if task.not_before and task.state is TaskState.READY:
                cost[task.no] += self._back_off(task)
                delay = max(delay, cost[task.no])
        if unknown:
            return Eta(why=untimed(unknown))
        spent = self._spent(by_shape, batch)
        if isinstance(spent, str):
            return Eta(why=spent)
        path = longest_path({t.no: t for t in tasks}, cost) if scale == 1.0 else self._one_chain(batch)
        return Eta(0.0, max(spent, path, delay), about=scale > 1.0 or judged)

    def _spent(self, by_shape: Mapping[Shape, float], batch: Batch) -> float | str:
        """Seconds that the slots need for the work of each shape, and of all; or why there is no saying."""
        everybody: dict[str, Session] = {}
        longest = 0.0
        for shape, seconds in by_shape.items():
            pool = self.pool(shape)
            room = sum(min(w.slots, w.credit) for w in pool)
            if not room:
                return f"no worker can take `{shape.type}` at present"
            longest = max(longest, seconds / room)
            everybody.update((w.id, w) for w in pool)
        room = sum(min(w.slots, w.credit) for w in everybody.values())
        if not room:
            return longest
        own = sum(by_shape.values())
        return max(longest, (own + self._others(batch, list(everybody.values()), own)) / room)

    def _others(self, batch: Batch, pool: Sequence[Session], own: float) -> float:
        """Seconds of other batches' work that the pool does in the meantime: all of a higher priority, of the same
        as much as of this one."""
        competes = self.competes(pool)
        total = sum(self.remaining(t) or 0.0 for w in pool for t in w.leases.values() if t.batch is not batch)
        for shape, levels in self.ready.shapes.items():
            if not competes(shape):
                continue
            for priority, level in levels.items():
                for no, queue in level.queues.items():
                    if no == batch.no or priority < batch.priority:
                        continue
                    tasks = self._due(queue) if len(queue) <= EXACT else queue
                    seconds = len(tasks) * (self.expected(tasks[0]) or 0.0) if tasks else 0.0
                    total += seconds if priority > batch.priority else min(seconds, own)
        return total

    def _one_chain(self, batch: Batch) -> float:
        """Seconds of the chain before the last live task of a large batch: a lower bound, walked back one by one."""
        task = next((t for t in reversed(batch.keys.values()) if t.state in _LIVE), None)
        total = 0.0
        for _ in range(_STEPS):
            if task is None:
                break
            total += self.remaining(task) or 0.0
            task = next(self._open(task), None)
        return total

    def _open(self, task: Task) -> Iterator[Task]:
        if task.state is TaskState.WAITING:
            for no, _ in task.after:
                other = self.tasks.get(no)
                if other is not None and not other.ended:
                    yield other

    def _waiting(self, task: Task) -> Eta:
        """A WAITING task starts when everything before it has ended."""
        if task.hold:
            return Eta(why=f"the list of `{task.key}` is not known yet")
        before: dict[int, Task] = {}
        todo = list(self._open(task))
        while todo and len(before) < EXACT:
            other = todo.pop()
            if other.no not in before:
                before[other.no] = other
                todo += self._open(other)
        # of more tasks than are looked at the whole batch stands for what is before this one
        found = self._in_line(before.values(), task.batch) if not todo else self.batch(task.batch)
        own = self.expected(task)
        if found.end_s is None:
            return found
        end = None if own is None else found.end_s + own
        return Eta(found.end_s, end, True, "" if own is not None else untimed([task]))

    def _in_line(self, tasks: Collection[Task], batch: Batch) -> Eta:
        """When these tasks of a batch have ended, though others of it stand before them in the queue: their work begins
        with the first of them, and the last one must have had its turn."""
        found = self.work(list(tasks), batch)
        ready = sorted((t for t in tasks if t.state is TaskState.READY), key=lambda t: (-t.priority, t.no))
        if found.end_s is None or not ready:
            return found
        first, last = self.task(ready[0]), self.task(ready[-1])
        if first.start_s is None or last.end_s is None:
            return Eta(why=first.why or last.why)
        return Eta(0.0, max(first.start_s + found.end_s, last.end_s), True)


def _spread(tasks: Sequence[Task], n: int, most: int) -> tuple[Sequence[Task], float]:
    """Of the first n tasks at most about ``most``, evenly; and how many each stands for."""
    if n <= most:
        return tasks[:n], 1.0
    step = n // most + 1
    some = tasks[:n:step]
    return some, n / len(some)


def untimed(tasks: Sequence[Task]) -> str:
    """Why nothing can be said: the names that no run was timed of."""
    names = list(dict.fromkeys(template_of(t) if t.batch.plan else t.shape.type for t in tasks[:_SAMPLE]))
    shown = ", ".join(f"`{name}`" for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"no run of {shown} has been timed yet"
