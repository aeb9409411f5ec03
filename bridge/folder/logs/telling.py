"""The lines that are to be appended to ``logs/brain_decisions.log``, in the order of their events. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ....bus.client.follow import Event
from ..contract import rows
from .decisions import (
    Decision,
    batch_decision,
    decision_line,
    ending_decision,
    escalation_decision,
    task_decision,
    worker_decision,
)

MAX_STATES: Final = 5000  #: of batches; beyond, those that have ended are forgotten
MAX_LINES: Final = 10_000
MAX_APPEND: Final = 256 << 10

#: task -> its batch, and what was heard of it
Heard = dict[str, tuple[str, list[rows.Transition]]]


_ENDED: Final = frozenset({"complete", "failed", "cancelled"})


class Telling:
    """Lines about tasks wait for the tasks' rows, those about batches for the lines of their tasks."""

    def __init__(self, utc_offset_s: Callable[[float], float]) -> None:
        self._utc_offset_s = utc_offset_s
        self._states: dict[str, str] = {}  #: of plans' batches
        self._batches: list[tuple[int, bytes]] = []
        self._lines: list[tuple[int, bytes]] = []
        self._stand: set[int] = set()  #: events whose line stands in the log already

    def waiting(self) -> bool:
        """There is something to append."""
        return bool(self._batches or self._lines)

    def begin(self, states: Mapping[str, str]) -> None:
        """The states of the plans' batches before the first event that will come."""
        self._states = dict(states)

    def states(self) -> dict[str, str]:
        """The same, of the batches that go on, as told now."""
        return {batch: state for batch, state in self._states.items() if state not in _ENDED}

    def stands(self, tail: bytes) -> None:
        """The end of the log: what it tells is not told again."""
        for line in tail.split(b"\n"):
            try:
                seq = json.loads(line)["seq"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(seq, int):
                self._stand.add(seq)

    def untold(self) -> int | None:
        """The first event whose line has not been appended; None when there is none."""
        return min((seq for seq, _ in (*self._lines, *self._batches) if seq), default=None)

    def batch(self, event: Event) -> None:
        """An event about a batch."""
        told = rows.batch_told(event)
        if told is None:
            return
        state, row = told
        before = self._states.get(row["id"])
        if state != "revised":  # that is no state: what it was, it is
            self._states[row["id"]] = state
        if len(self._states) > MAX_STATES:
            self._states = self.states()
        decision = batch_decision({"state": before} if before else None, row)
        self._tell(event, decision)

    def ending(self, event: Event) -> None:
        """A running task was told to end."""
        self._tell(event, ending_decision(event))

    def worker(self, event: Event) -> None:
        """An event about a worker."""
        self._tell(event, worker_decision(event))

    def _tell(self, event: Event, decision: Decision | None) -> None:
        if decision is not None and event.seq not in self._stand:
            self._batches.append((event.seq, self._line(event.at, decision, event.seq)))

    def escalation(self, event: Event) -> None:
        """An event about an escalation."""
        self._tell(event, escalation_decision(event))

    def tasks(self, heard: Heard, found: Mapping[str, Mapping[str, Any]]) -> None:
        """What was heard of tasks, with their rows as they are now."""
        told, self._batches = self._batches, []
        for task, (batch, steps) in heard.items():
            for step in steps:
                before = None if step.before is None else {"state": step.before, "started": False}
                decision = task_decision(before, rows.row_then(step, task, batch, found.get(task)))
                if decision is not None and step.seq not in self._stand:
                    told.append((step.seq, self._line(step.at, decision, step.seq)))
        self._lines += sorted(told)
        if len(self._lines) > MAX_LINES:  # the share is away for long
            del self._lines[: len(self._lines) - MAX_LINES]

    def kept_aside(self, at: float, paths: Iterable[str]) -> None:
        """Somebody had changed a mirrored file; his content stands at ``paths`` now."""
        for path in paths:
            text = f"{path.partition('.conflict')[0]} was changed by somebody and is restored; see {path}"
            self.say(at, Decision("MIRROR_CONFLICT", text, {"kept": path}))

    def say(self, at: float, decision: Decision) -> None:
        """A line that no event tells."""
        self._lines.append((0, self._line(at, decision, None)))

    def some(self) -> tuple[bytes, int]:
        """The lines of one append, and their number."""
        total = count = 0
        for _, line in self._lines:
            if count and total + len(line) > MAX_APPEND:
                break
            total, count = total + len(line), count + 1
        return b"".join(line for _, line in self._lines[:count]), count

    def written(self, count: int) -> None:
        """The first ``count`` lines stand in the log."""
        del self._lines[:count]

    def _line(self, at: float, decision: Decision, seq: int | None) -> bytes:
        return decision_line(at, decision, self._utc_offset_s(at), seq)
