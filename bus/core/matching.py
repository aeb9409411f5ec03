"""Which task goes to which worker, and why not: pure.

Order: priority level first, raised by one for every ``age_s`` that the level's oldest task has waited (so
nothing starves); inside a level the batch that has had the least service (a 500-task plan does not starve a
3-task one); inside a batch first come, first served. :func:`predicates` are the same tests one by one, with values
and fixes: `why` prints them.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..states import TaskState
from ..tags import MODEL_TYPES, is_model_tag, tags_fix
from .model import Batch, Session, Shape, Task, apart
from .quarantine import APART_S

AGE_S = 60.0
FREE_CREDIT: Final = "free credit"  #: the last predicate
FREE_VRAM: Final = "free VRAM"
ROOM: Final = frozenset({FREE_VRAM, FREE_CREDIT})  #: the worker fits, only has no room at this moment
NOT_HELD: Final = "not held"
NOT_QUARANTINED: Final = "not quarantined"
CARD_IS_FREE: Final = "its card is free"
NO_CRASH: Final = "not where it crashed"
OFFERED: Final = (
    "type",
    "class",
    "pool",
    "needs",
    "view",
    "VRAM",
)  #: the first predicates: what its OFFER covers
_LLM: Final = "rigbus up --model FILE.gguf (without llama.cpp first pip install 'rigbus[llm]')"
_TYPE_FIX: Final = {**dict.fromkeys(MODEL_TYPES, _LLM), "shell": "rigbus up, or rigbus worker"}
_CLASS_FIX: Final = {"llm": _LLM, "brain": "rigbus up starts the brain-worker"}


@dataclass(frozen=True, slots=True)
class Predicate:
    """One test of the scheduler: its name, whether it holds, what it saw and wanted, and what would change it."""

    name: str
    ok: bool
    value: str
    wanted: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the wire."""
        return {
            "name": self.name,
            "ok": self.ok,
            "value": self.value,
            "wanted": self.wanted,
            "fix": self.fix,
        }


def _is_due(task: Task) -> bool:
    """READY and not backing off: an entry of an earlier time may still stand in a queue when a task is READY again.

    Nor of a batch whose new plan is not planned yet; but what is asked about that plan, and what a handler waits for, is.
    """
    if task.state is not TaskState.READY or task.not_before:
        return False
    return not task.batch.revising or task.policy.aside or bool(task.parent)


class _Level:
    """The ready tasks of one shape and priority."""

    __slots__ = ("fifo", "heap", "priority", "queues", "shape")

    def __init__(self, shape: Shape, priority: int) -> None:
        self.shape = apart(shape, ())
        self.priority = priority
        self.queues: dict[int, deque[Task]] = {}  # by batch no
        self.heap: list[tuple[float, int, Batch]] = []  # (service, batch no, batch), lazily refreshed
        self.fifo: deque[Task] = deque()  # all of the level in order of arrival, for ageing

    def push(self, task: Task) -> None:
        batch = task.batch
        queue = self.queues.get(batch.no)
        if queue is None:
            queue = self.queues[batch.no] = deque()
            heapq.heappush(self.heap, (batch.vtime, batch.no, batch))
        queue.append(task)
        self.fifo.append(task)

    def _has(self, task: Task) -> bool:
        """Whether an entry is due and still stands where it belongs: a revision of its plan may have moved it."""
        if task.priority != self.priority or not _is_due(task):
            return False
        return task.shape is self.shape or apart(task.shape, ()) == self.shape

    def head(self) -> Task | None:
        """The next task, or None; drops what is no longer ready."""
        while self.heap:
            vtime, no, batch = self.heap[0]
            queue = self.queues.get(no)
            while queue and not self._has(queue[0]):
                queue.popleft()
            if not queue:
                heapq.heappop(self.heap)
                self.queues.pop(no, None)
            elif vtime < batch.vtime:
                heapq.heapreplace(self.heap, (batch.vtime, no, batch))
            else:
                return queue[0]
        self.fifo.clear()
        return None

    def oldest_at(self) -> float:
        while self.fifo and not self._has(self.fifo[0]):
            self.fifo.popleft()
        return self.fifo[0].ready_at if self.fifo else float("inf")


class ReadyTasks:
    """All READY tasks whose time has come, by shape."""

    def __init__(self, age_s: float = AGE_S) -> None:
        self.age_s = age_s
        self.shapes: dict[Shape, dict[int, _Level]] = {}
        self.vtime = 0.0

    def push(self, task: Task) -> None:
        """A task became READY. A batch that comes back from rest does not get paid for the time it was away."""
        levels = self.shapes.setdefault(task.shape, {})
        level = levels.get(task.priority)
        if level is None:
            level = levels[task.priority] = _Level(task.shape, task.priority)
        task.batch.vtime = max(task.batch.vtime, self.vtime)
        level.push(task)

    def _best(self, shape: Shape, now: float) -> tuple[float, float, int, Task] | None:
        best: tuple[float, float, int, Task] | None = None
        levels = self.shapes[shape]
        for priority in list(levels):
            level = levels[priority]
            task = level.head()
            if task is None:
                del levels[priority]
                continue
            aged = priority + int(max(0.0, now - level.oldest_at()) / self.age_s)
            rank = (-aged, task.batch.vtime, task.no, task)
            if best is None or rank[:3] < best[:3]:
                best = rank
        if not levels:
            del self.shapes[shape]
        return best

    def take(
        self,
        worker: Session,
        now: float,
        *,
        calls_only: bool = False,
        kept_off: Callable[[Session, Shape, float], bool] | None = None,
    ) -> Task | None:
        """The next task for this worker, charged to its batch; None if it offers nothing that is ready.

        ``calls_only``: what a handler waits for, the most deeply nested first: it cannot be held up by others that
        have to wait in their turn. ``kept_off`` is asked where a shape avoids places: whether the worker must leave its
        tasks, which have waited since that moment, to others.
        """
        found: Shape | None = None
        best: tuple[float, float, int, Task] | None = None
        depth = 1 if calls_only else 0
        kept_for = self._waits_for_vram(worker, now) if worker.vram_mb is not None else None
        for shape in list(self.shapes):
            if shape.depth >= depth and worker.accepts(shape) and worker.has_vram(shape):
                rank = self._best(shape, now)
                if rank is None or (kept_for is not None and shape.vram_mb and kept_for[:3] < rank[:3]):
                    continue
                if shape.avoid and kept_off is not None and kept_off(worker, shape, rank[3].ready_at):
                    continue
                deeper = calls_only and shape.depth > depth
                if best is None or deeper or rank[:3] < best[:3]:
                    best, found = rank, shape
                    depth = shape.depth if calls_only else 0
        if best is None or found is None:
            return None
        task = best[3]
        batch = task.batch
        self.vtime = max(self.vtime, batch.vtime)
        batch.vtime += 1.0
        # where it was found: an entry from before its crash may still stand under the shape that it had then
        self.shapes[found][task.priority].queues[batch.no].popleft()
        return task

    def _waits_for_vram(self, worker: Session, now: float) -> tuple[float, float, int, Task] | None:
        """The first task whose age has raised it and for which this worker's memory is only not free: smaller ones
        would take every piece of it that falls free, so what is ranked behind it and wants memory waits as well."""
        first: tuple[float, float, int, Task] | None = None
        for shape in list(self.shapes):
            if shape.vram_mb and worker.accepts(shape) and not worker.has_vram(shape):
                rank = self._best(shape, now)
                aged = rank is not None and -rank[0] > rank[3].priority
                if rank is not None and aged and (first is None or rank[:3] < first[:3]):
                    first = rank
        return first

    def waiting_shapes(self) -> Iterator[Shape]:
        """Shapes that have ready tasks."""
        for shape, levels in self.shapes.items():
            if any(level.head() is not None for level in levels.values()):
                yield shape


def predicates(
    shape: Shape,
    worker: Session,
    *,
    paused: bool,
    rig_paused: bool,
    quarantined: str = "",
    fenced: str | None = None,
    kept_off: bool = False,
) -> list[Predicate]:
    """Every test that stands between a task of this shape and this worker, in the scheduler's own order.

    ``quarantined`` and ``fenced`` (None: no card of the rig is) say why the worker is, ``kept_off`` that a task which
    crashed there waits for another one.
    """
    return [
        *_offered(shape, worker),
        *_trusted(shape, worker, quarantined, kept_off=kept_off),
        *_card_is_free(worker, fenced),
        *_willing(shape, worker, paused, rig_paused),
    ]


def _card_is_free(worker: Session, fenced: str | None) -> list[Predicate]:
    """What a worker that was lost may still run on the same card; asked only while something is fenced."""
    if fenced is None:
        return []
    value = f"fenced: {fenced}" if fenced else "nothing lost runs there"
    return [Predicate(CARD_IS_FREE, not fenced, value, "nothing lost", f"rigbus resume {worker.name}")]


def _trusted(shape: Shape, worker: Session, quarantined: str, *, kept_off: bool) -> list[Predicate]:
    """What crashes keep apart; the second only of a task that has crashed."""
    trust = Predicate(
        NOT_QUARANTINED,
        not quarantined,
        f"quarantined: {quarantined}" if quarantined else "not quarantined",
        "not quarantined",
        f"rigbus resume {worker.name}",
    )
    if not shape.avoid:
        return [trust]
    return [
        trust,
        Predicate(
            NO_CRASH,
            not kept_off,
            "where it crashed" if kept_off else "another one",
            "another one",
            f"wait: others come first for {APART_S:g} s",
        ),
    ]


def _offered(shape: Shape, worker: Session) -> list[Predicate]:
    """What the worker's OFFER has to cover."""
    name = worker.name
    fits_class = (shape.cls in worker.classes) if shape.cls else "brain" not in worker.classes
    return [
        Predicate(
            "type",
            shape.type in worker.types,
            f"{name} runs {_words(worker.types) or 'nothing'}",
            f"runs {shape.type}",
            _TYPE_FIX.get(shape.type) or f"start an agent with a handler for {shape.type!r}",
        ),
        Predicate(
            "class",
            fits_class,
            f"{name} offers {_words(worker.classes) or 'no class'}",
            f"offers {shape.cls}" if shape.cls else "is no brain-worker",
            class_fix(shape.cls) if shape.cls else "",
        ),
        Predicate(
            "pool",
            shape.pool is None or shape.pool in worker.pools,
            f"{name} is in {_words(worker.pools) or 'no pool'}",
            f"is in {shape.pool}" if shape.pool else "any",
            f"rigbus worker --pool {shape.pool}",
        ),
        Predicate(
            "needs",
            worker.needs.issuperset(shape.needs),
            f"{name} has {_words(worker.needs) or 'no capabilities'}",
            f"has {_words(shape.needs)}" if shape.needs else "any",
            _needs_fix(shape.needs),
        ),
        Predicate(
            "view",
            shape.view is None or shape.view == worker.state_id,
            f"{name} sees state folder {worker.state_id[:8] or '(none)'}",
            f"sees state folder {shape.view[:8]}" if shape.view else "any",
            "run a worker on the rig's own machine (plan tasks need its state folder)",
        ),
        Predicate(
            "VRAM",
            worker.vram_mb is None or shape.vram_mb <= worker.vram_mb,
            f"{name} has no VRAM budget"
            if worker.vram_mb is None
            else f"{name} may use {worker.vram_mb} MiB",
            f"may use {shape.vram_mb} MiB of VRAM" if shape.vram_mb else "any",
            f"lower vram_estimate_mb of the task (now {shape.vram_mb}), unload the worker's model, or add a larger card",
        ),
    ]


def _willing(shape: Shape, worker: Session, paused: bool, rig_paused: bool) -> list[Predicate]:
    """Whether the worker gets leases at present, and has room."""
    name = worker.name
    lent = f", {worker.lent} of them for calls of handlers" if worker.lent else ""
    silent = f"rigbus status; the supervisor restarts {name} if it is dead"
    return [
        Predicate(
            "rig not paused",
            not rig_paused,
            "paused" if rig_paused else "running",
            "running",
            "rigbus resume all",
        ),
        Predicate(
            "worker not paused",
            not paused,
            "paused" if paused else "running",
            "running",
            f"rigbus resume {name}",
        ),
        Predicate(
            "not draining",
            not worker.draining,
            "draining" if worker.draining else "running",
            "running",
            f"rigbus resume {name}",
        ),
        Predicate(
            NOT_HELD,
            not worker.held,
            f"held: {worker.held}" if worker.held else "not held",
            "not held",
            "find what the process waits for (a share that hangs?); only a new start of the machine ends it for sure"
            if worker.unkillable
            else "wait: it goes on by itself when the card has cooled; else look at its fan and power limit",
        ),
        Predicate(
            "connected", bool(worker.peer), "connected" if worker.peer else "cut off", "connected", silent
        ),
        Predicate(
            "heard of lately", not worker.suspect, "silent" if worker.suspect else "alive", "alive", silent
        ),
        Predicate(
            FREE_VRAM,
            worker.has_vram(shape) or shape.vram_mb > (worker.vram_mb or 0),  # too large: said above
            _vram_words(worker),
            f"{shape.vram_mb} MiB free" if shape.vram_mb else "any",
            "wait until one of its tasks has ended",
        ),
        Predicate(
            FREE_CREDIT,
            len(worker.leases) < worker.credit - (0 if shape.depth else worker.lent),
            f"{name} holds {len(worker.leases)} of {worker.credit}{lent}",
            "room for one more",
            "wait, or start more workers: rigbus up --workers N"
            if shape.type == "shell"
            else "wait, or start another worker that runs it",
        ),
    ]


def _needs_fix(needs: Iterable[str]) -> str:
    """What would give the rig a worker with all of these capabilities; those of a model come with the model."""
    own = "".join(f" --need {need}" for need in sorted(needs) if not is_model_tag(need))
    of_model = [need for need in needs if is_model_tag(need)]
    parts = [f"rigbus worker{own}"] if own or not of_model else []
    return "; ".join([*parts, *([tags_fix(of_model)] if of_model else [])])


def class_fix(cls: str) -> str:
    """What gives the rig a worker of a class."""
    return _CLASS_FIX.get(cls) or f"rigbus worker --class {cls}"


def _vram_words(worker: Session) -> str:
    if worker.vram_mb is None:
        return f"{worker.name} has no VRAM budget"
    return f"{worker.name}'s leases take {worker.vram_leased_mb} of {worker.vram_mb} MiB"


def _words(items: Iterable[str]) -> str:
    return ", ".join(sorted(items))
