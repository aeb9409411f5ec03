"""The core's memory: tasks, batches, facts, sessions, the event counter, timers. Pure; no policy lives here."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, Final

from ..errors import NotFound
from ..states import (
    BATCH_ENDED,
    BATCH_STATE_NAMES,
    ENDED_BADLY,
    STATE_NAMES,
    TERMINAL,
    TaskEvent,
    TaskState,
    after,
)
from ..store.room import UNKNOWN, Room
from ..why.durations import ENDED_KEEP_S, KEEP_S, SCOPE, Durations
from ..wire import Verb
from .bounds import Bounds, Busy
from .model import PLACEMENT_ASKS, Batch, Changes, Effects, Fact, Revised, Send, Session, Task
from .refusals import Refusals

MIN_PREFIX: Final = 6


class Ledger:
    """State and the bookkeeping that every change of it needs."""

    def __init__(self, *, incarnation: int, state_id: str) -> None:
        self.incarnation = incarnation
        self.state_id = state_id
        self.now = 0.0
        self.heard = 0.0  #: by when all that was said had been read: silence is judged by it
        self.wall = 0.0
        self.tasks: dict[int, Task] = {}
        self.ids: dict[str, Task] = {}
        self.batches: dict[int, Batch] = {}
        self.batch_ids: dict[str, Batch] = {}
        self.batch_keys: dict[str, Batch] = {}
        self.facts: dict[tuple[str, str], Fact] = {}
        self.sessions: dict[str, Session] = {}
        self.peers: dict[bytes, Session] = {}
        self.counts = [0] * len(TaskState)
        self.owned: dict[str, dict[int, Task]] = {}  #: live tasks that end with a client's session
        self.asks: dict[int, Task] = {}  #: of :data:`PLACEMENT_ASKS`; ended ones may still stand here
        self.next_no = 1
        self.next_batch = 1
        self.seq = 0
        self.channel_seq = {"p": 0, "c": 0, "a": 0}
        self.bounds = Bounds()
        self.refusals = Refusals()  #: who was turned away of late
        self.room = UNKNOWN  #: on the state folder's disk; the shell looks
        self.durations = Durations()
        self._durations_at = float("-inf")
        self._durations_wait_s = KEEP_S
        self.timers: list[tuple[float, int, str, Any]] = []
        self._timer_n = 0
        self.fx = Effects()

    # -- effects ---------------------------------------------------------------------------------------------

    def take_effects(self) -> Effects:
        """What happened since the last call; the shell commits, sends and publishes it, in that order."""
        fx, self.fx = self.fx, Effects()
        return fx

    @property
    def changes(self) -> Changes:
        """What the next commit writes."""
        return self.fx.changes

    def send(
        self, session: Session | None, verb: Verb, header: dict[str, Any], body: list[bytes] | None = None
    ) -> None:
        """Queue a push to a session; a session that is away hears it by asking again."""
        if session is not None and session.peer:
            self.fx.sends.append(Send(session.peer, verb, header, body or []))

    def emit(self, channel: str, topic: str, id_: str, batch: str, data: dict[str, Any]) -> int:
        """Append an event to the numbered log; returns its seq."""
        self.seq += 1
        self.fx.changes.events.append(
            [self.seq, self.channel_seq[channel], self.wall, channel, topic, id_, batch, data]
        )
        self.channel_seq[channel] = self.seq
        return self.seq

    def found_room(self, room: Room) -> None:
        """The shell has looked at the disk; an event tells of another level."""
        if room.level is not self.room.level:
            self.emit("p", "rig.disk", "", "", {**room.row(), "was": self.room.level.value})
        self.room = room

    def timer(self, at: float, kind: str, ref: Any) -> None:
        """Wake :meth:`on_timer` at monotonic ``at``; what it finds there decides (timers are never taken back)."""
        self._timer_n += 1
        heapq.heappush(self.timers, (at, self._timer_n, kind, ref))

    def next_timer(self) -> float | None:
        """Monotonic time of the next timer, None if there is none."""
        return self.timers[0][0] if self.timers else None

    # -- tasks -----------------------------------------------------------------------------------------------

    def move(self, task: Task, event: TaskEvent) -> TaskState:
        """The only place where a task's state changes: table, counts, batch, dirty mark.

        Raises:
            IllegalTransition: a bug of the caller; nothing changed.
        """
        old = task.state
        new = after(old, event)
        task.state = new
        if not task.policy.aside:
            counts = task.batch.counts
            counts[old] -= 1
            counts[new] += 1
            if task.dropped:
                self._recount_dropped(task, old)
        self.counts[old] -= 1
        self.counts[new] += 1
        if new in TERMINAL:
            task.ended_at = self.wall
            task.hold_reason = ""
        elif old in TERMINAL:
            task.ended_at = 0.0
        self.dirty(task)
        return new

    @staticmethod
    def _recount_dropped(task: Task, old: TaskState) -> None:
        """What was dropped leaves the counts with its end, and comes back into them when it lives again."""
        batch = task.batch
        if old in TERMINAL:
            batch.counts[old] += 1
            batch.total += 1
        if task.state in TERMINAL:
            batch.counts[task.state] -= 1
            batch.total -= 1

    def dirty(self, task: Task) -> None:
        """Its row is written by the next commit."""
        changes = self.fx.changes
        if task.no not in changes.new_tasks:
            changes.tasks[task.no] = task

    def announce(self, task: Task, what: str | None = None, **data: Any) -> None:
        """Event of a task's new state (or of ``what``), to its channel and, where the brain must act, to ``a``."""
        state = what or STATE_NAMES[task.state]
        batch = task.batch
        topic = f"task.{task.shape.type}.{state}"
        data["key"] = task.key
        if task.attempt:
            data["attempt"] = task.attempt
        if task.worker:
            data["worker"] = task.worker
        channel = batch.channel
        if task.policy.aside:  # not mirrored: the tasks that it is about show what came of it
            channel = "c"
            if task.parent:
                judged = self.tasks.get(task.parent)
                data["judges"] = judged.id if judged is not None else ""
            else:
                data["asks"] = True
        task.seq = self.emit(channel, topic, task.id, batch.id, data)
        # of other batches only what waits for a verdict: their tasks have no policy beside what stands on them
        awaited = task.policy.aside or task.state in (TaskState.REVIEW, TaskState.FAILED)
        # a question whose time is over has no answer, though whoever has it is not dead yet
        told = what is None or (what == "ending" and task.policy.aside)
        if told and (awaited or batch.kind == "plan") and self.wants_brain(task):
            self.emit("a", topic, task.id, batch.id, data)

    def wants_brain(self, task: Task) -> bool:
        """Whether a plan's task is in a state that the brain has to act on."""
        if task.dropped:
            return False
        if task.policy.aside and not task.parent:
            batch = task.batch
            over = batch.closed or batch.cancelled or batch.error is not None
            return (task.ended or task.ending > 0) and not over
        if task.policy.aside:
            judged = self.tasks.get(task.parent)
            return task.ended and judged is not None and judged.state is TaskState.REVIEW
        return (
            task.state in (TaskState.REVIEW, TaskState.FAILED)
            or task.state in ENDED_BADLY
            or (task.shape.type == "expand" and task.state is TaskState.DONE)
        )

    def touch_batch(self, batch: Batch) -> None:
        """After a change of its counts or flags: derive its state, announce a new one."""
        state = batch.derive()
        if state is not batch.state:
            batch.state = state
            batch.ended_at = self.wall if state in BATCH_ENDED else 0.0
            self.announce_batch(batch)
            if batch.ended_at:
                self._durations_wait_s = ENDED_KEEP_S
                self.keep_durations()

    def keep_batch(self, batch: Batch) -> None:
        """Its row is written by the next commit (counts are not in it)."""
        self.changes.batches[batch.no] = batch

    def announce_batch(self, batch: Batch, what: str | None = None, **more: Any) -> None:
        """Event of a batch's state, on ``p`` for every kind but ``calls``, and on ``a`` for plans."""
        self.keep_batch(batch)
        data = {"name": batch.name, "total": batch.total, "error": batch.error, **more}
        topic = f"batch.{batch.kind}.{what or BATCH_STATE_NAMES[batch.state]}"
        if batch.kind != "calls":
            batch.seq = self.emit("p", topic, "", batch.id, data)
        if batch.kind == "plan":
            self.emit("a", topic, "", batch.id, data)

    def add_task(self, task: Task) -> None:
        """Index a new or loaded task."""
        self.tasks[task.no] = task
        self.ids[task.id] = task
        task.batch.keys[task.key] = task
        if task.counted:
            task.batch.counts[task.state] += 1
            task.batch.total += 1
        self.counts[task.state] += 1
        if task.shape.type in PLACEMENT_ASKS:
            self.asks[task.no] = task

    def drop_task(self, task: Task) -> None:
        """Take an ended task out of the index; its row goes with this commit."""
        batch = task.batch
        del self.tasks[task.no], self.ids[task.id], batch.keys[task.key]
        if task.counted:
            batch.counts[task.state] -= 1
            batch.total -= 1
        self.counts[task.state] -= 1
        for changed in (self.changes.tasks, self.changes.new_tasks, self.changes.respecs):
            changed.pop(task.no, None)
        self.changes.purge_tasks.append(task.no)

    def mark_revised(self, task: Task, mark: Revised) -> None:
        """What the last revision means to it; a dropped one that has ended leaves the counts, and may come back."""
        batch = task.batch
        batch.counts[task.state] -= task.counted
        batch.total -= task.counted
        task.revised = mark
        batch.counts[task.state] += task.counted
        batch.total += task.counted
        self.dirty(task)

    def add_batch(self, batch: Batch) -> None:
        """Index a new or loaded batch."""
        self.batches[batch.no] = batch
        self.batch_ids[batch.id] = batch
        self.batch_keys[batch.key] = batch

    def find_task(self, ref: Any) -> Task:
        """By public id, or an unambiguous prefix of at least 6 characters.

        Raises:
            NotFound: unknown, or the prefix fits several.
        """
        if not isinstance(ref, str):
            raise NotFound(f"a task id is text, not {type(ref).__name__}")
        task = self.ids.get(ref)
        if task is None:
            task = self._by_prefix(ref, self.ids, "task")
        return task

    def find_batch(self, ref: Any) -> Batch:
        """By id, or an unambiguous prefix of at least 6 characters.

        Raises:
            NotFound: unknown, or the prefix fits several.
        """
        if not isinstance(ref, str):
            raise NotFound(f"a batch id is text, not {type(ref).__name__}")
        batch = self.batch_ids.get(ref)
        if batch is None:
            batch = self._by_prefix(ref, self.batch_ids, "batch")
        return batch

    @staticmethod
    def _by_prefix(ref: str, index: dict[str, Any], what: str) -> Any:
        if len(ref) >= MIN_PREFIX:
            hits = [k for k in index if k.startswith(ref)]
            if len(hits) == 1:
                return index[hits[0]]
            if hits:
                raise NotFound(f"{what} {ref!r} fits {len(hits)}: give more characters")
        given = " or BATCH/NAME" if what == "task" else ""
        raise NotFound(
            f"no {what} {ref!r}; give {MIN_PREFIX} or more characters of its id{given}: `rigbus {what} list` shows them"
        )

    def worker_named(self, name: str) -> Session | None:
        """The live worker session with this name."""
        for s in self.sessions.values():
            if s.role == "worker" and s.name == name:
                return s
        return None

    def workers(self) -> Iterable[Session]:
        """Live worker sessions."""
        return [s for s in self.sessions.values() if s.role == "worker"]

    # -- facts -----------------------------------------------------------------------------------------------

    def set_fact(self, scope: str, key: str, value: Any, epoch: int = 0) -> Fact:
        """Write a fact without compare (the broker's own: pause, tokens)."""
        old = self.facts.get((scope, key))
        fact = self.facts[scope, key] = Fact((old.rev if old else 0) + 1, epoch, value)
        self.changes.facts[scope, key] = fact
        return fact

    def check_facts_fit(self, fresh: int) -> None:
        """Before so many new facts of peers are written.

        Raises:
            Busy: there would be too many.
        """
        if fresh and len(self.facts) + fresh > self.bounds.facts:
            raise Busy("facts", f"{len(self.facts)} facts are kept, the bound is {self.bounds.facts}", 5.0)

    def drop_fact(self, scope: str, key: str) -> None:
        """Delete a fact."""
        if self.facts.pop((scope, key), None) is not None:
            self.changes.facts[scope, key] = None

    def keep_durations(self) -> None:
        """Put what was learned of durations into this commit, unless that was done a moment ago."""
        if self.durations.dirty and self.now - self._durations_at >= self._durations_wait_s:
            self._durations_at, self._durations_wait_s = self.now, KEEP_S
            for group, value in self.durations.take_changed().items():
                if value is None:
                    self.drop_fact(SCOPE, group)
                else:
                    self.set_fact(SCOPE, group, value)

    def paused(self, worker: str) -> bool:
        """Whether a worker (or ``all``) is paused by a person."""
        return ("pause", worker) in self.facts
