"""Attempts that are processes: started, watched, ended and swept by the loop's thread, which never waits.

An attempt is over when its process has exited *and* its whole tree is dead; only then is Ended posted. What the
process was for is the subclass's: ``shell.py`` runs commands, ``spawned.py`` Python functions.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from ...bus.wire import Token
from ..process.api import (
    ENTER_TIMEOUT_S,
    UNKILLABLE_S,
    Child,
    ExitStatus,
    Processes,
    Spawn,
    SpawnError,
    Sweep,
    unkillable,
)
from ..worker import events as ev
from ..worker.events import Outcome
from .output import OutputSummary

log = logging.getLogger(__name__)

SWEEP_S = 0.05
#: From when on a process is followed, its output and its entry into its folder: a short one has ended by then and woke
#: the loop once, by its end; what it wrote is taken then, and what the pipe does not hold waits so long.
FOLLOW_S = 0.02
HANGING_STEP_S = 1.0  #: between two looks at what cannot be killed: it may take days
_ACTIVE_S = 0.5


class Host(Protocol):
    """What an attempt needs of the loop."""

    def post(self, event: ev.Event, wake: bool = True) -> None: ...
    def watch(self, fd: int, ready: Callable[[], None]) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def mark(self, token: Token) -> str: ...


@dataclass(slots=True)
class Attempt:
    """One running process and what becomes of it. ``job`` is the subclass's own."""

    key: Any
    child: Child
    job: Any
    enter_by: float
    watched: set[int]
    look_at: float | None = None  #: from then on it is followed
    sweep: Sweep | None = None
    next_step_at: float = 0.0
    unkillable_at: float | None = (
        None  #: from then on its tree counts as one that cannot be killed; None: said
    )
    entered: bool = False
    late: bool = False  #: it did not enter its folder in time
    summary: OutputSummary | None = None
    active_at: float = 0.0


class ProcessRunner(ABC):
    """The part that all attempts share. Keys are lease tokens, or anything else for helpers of the worker itself."""

    unkillable_s = UNKILLABLE_S

    def __init__(self, host: Host, procs: Processes) -> None:
        self._host = host
        self._procs = procs
        self._live: dict[Any, Attempt] = {}

    # ------------------------------------------------------------ for subclasses

    def _launch(self, key: Any, spec: Spawn, job: Any) -> Attempt | Outcome:
        """Start a process; an Outcome says why it could not be."""
        try:
            child = self._procs.spawn(spec)
        except SpawnError as e:
            return ev.failed(e.error_class, str(e))
        now = monotonic()
        attempt = Attempt(key, child, job, now + ENTER_TIMEOUT_S, set(), now + FOLLOW_S)
        self._live[key] = attempt
        if child.exit_fd is not None:
            self._watch(attempt, child.exit_fd, self._on_exit)
        return attempt

    def _entered(self, attempt: Attempt) -> None:  # noqa: B027 - a hook that may stay empty
        """The command itself begins now."""

    def _wrote(self, attempt: Attempt) -> None:  # noqa: B027 - a hook that may stay empty
        """The process printed something (said at most twice a second)."""

    @abstractmethod
    def _hangs(self, attempt: Attempt, said: str) -> None:
        """Its tree does not die; ``_over`` follows if it does after all."""

    @abstractmethod
    def _over(self, attempt: Attempt, status: ExitStatus, summary: OutputSummary) -> None:
        """The tree is dead."""

    # ------------------------------------------------------------ Runner

    def recall(self, tokens: Sequence[Token]) -> list[Token]:
        return []

    def terminate(self, token: Token) -> None:
        attempt = self._live.get(token)
        if attempt is not None and attempt.sweep is None:
            self._procs.terminate(attempt.child)

    def kill(self, token: Any) -> None:
        attempt = self._live.get(token)
        if attempt is not None:
            self._begin_sweep(attempt)

    def tick(self, now: float) -> float | None:
        due: float | None = None
        for attempt in list(self._live.values()):
            at = self._look(attempt, now)
            if at is not None:
                due = at if due is None else min(due, at)
        return due

    def close(self) -> None:
        """The direct children die with this process (parent death signal); the supervisor sweeps the rest."""
        for attempt in list(self._live.values()):
            self._procs.kill_tree(attempt.child).step()
            self._unwatch(attempt)
            attempt.child.close()
        self._live.clear()

    # ------------------------------------------------------------ inside

    def _watch(self, attempt: Attempt, fd: int, act: Callable[[Attempt], None]) -> None:
        attempt.watched.add(fd)
        self._host.watch(fd, lambda: act(attempt))

    def _unwatch(self, attempt: Attempt, keep: Collection[int] = ()) -> None:
        for fd in attempt.watched - set(keep):
            self._host.unwatch(fd)
            attempt.watched.discard(fd)

    def _on_entry(self, attempt: Attempt) -> None:
        attempt.child.read_entry()
        self._unwatch(attempt, attempt.child.fds)
        if attempt.child.entered and not attempt.entered:
            attempt.entered = True
            self._entered(attempt)
        fd = attempt.child.entered_fd
        if fd is not None and fd not in attempt.watched:
            self._watch(attempt, fd, self._on_entry)

    def _follow(self, attempt: Attempt) -> None:
        """It is no short one: take its output as it comes, and see it enter its folder."""
        attempt.child.open_log()
        if attempt.child.output_fd is not None:
            self._watch(attempt, attempt.child.output_fd, self._on_output)
        self._on_entry(attempt)

    def _on_output(self, attempt: Attempt) -> None:
        attempt.child.read_output()
        self._unwatch(attempt, attempt.child.fds)
        now = monotonic()
        if now >= attempt.active_at + _ACTIVE_S:
            attempt.active_at = now
            self._wrote(attempt)

    def _on_exit(self, attempt: Attempt) -> None:
        if attempt.child.poll_exit() is not None:
            if not attempt.entered and attempt.child.entered_fd is not None:
                self._on_entry(attempt)
            self._begin_sweep(attempt)
            self._look(attempt, monotonic())

    def _begin_sweep(self, attempt: Attempt) -> None:
        if attempt.sweep is None:
            attempt.sweep = self._procs.kill_tree(attempt.child)
            attempt.next_step_at = 0.0
            attempt.unkillable_at = monotonic() + self.unkillable_s

    def _look(self, attempt: Attempt, now: float) -> float | None:
        """Do what is due for one attempt; when to look again."""
        if attempt.sweep is not None:
            if now >= attempt.next_step_at:
                attempt.next_step_at = now + SWEEP_S
                if attempt.sweep.step():
                    self._finish(attempt)
                    return None
                if attempt.child.exit_fd in attempt.watched and attempt.child.poll_exit() is not None:
                    # Readable until it is buried: it would wake the loop all the time that its tree takes to die.
                    self._unwatch(attempt, attempt.watched - {attempt.child.exit_fd})
                if attempt.unkillable_at is not None and now >= attempt.unkillable_at:
                    attempt.unkillable_at = None
                    attempt.sweep.give_up()
                    said = unkillable(attempt.sweep.survivors)
                    log.warning("%s: it keeps its slot until it ends", said)
                    self._hangs(attempt, said)
                if attempt.unkillable_at is None:
                    attempt.next_step_at = now + HANGING_STEP_S
            return attempt.next_step_at
        if not attempt.entered:
            if now >= attempt.enter_by:
                attempt.late = True
                self._begin_sweep(attempt)
                return now
            if attempt.look_at is not None and now >= attempt.look_at:
                attempt.look_at = None
                self._follow(attempt)
            if self._procs.poll_s is None and not attempt.entered:
                return attempt.look_at or attempt.enter_by
        if self._procs.poll_s is None:
            return None
        self._on_exit(attempt)  # no descriptor tells us the end on this platform
        return now + self._procs.poll_s

    def _finish(self, attempt: Attempt) -> None:
        if self._live.pop(attempt.key, None) is None:
            return
        self._unwatch(attempt)
        child = attempt.child
        # What a leftover printed while it died is taken too: the pipe is closed only now, and never awaited.
        summary = child.finish_output()
        status = child.poll_exit() or ExitStatus(
            None, None, True, 0.0, attempt.entered, "its end was not seen"
        )
        child.close()
        self._over(attempt, status, summary)
