"""The lines that are to be appended to ``logs/brain_decisions.log``, in the order of their events. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ...bus.follow import Event
from . import rows
from .decisions import batch_decision, decision_line, task_decision

MAX_LINES: Final = 10_000
MAX_APPEND: Final = 256 << 10

#: task -> its batch, and what was heard of it
Heard = dict[str, tuple[str, list[rows.Transition]]]


class Telling:
    """Lines about tasks wait for the tasks' rows, those about batches for the lines of their tasks."""

    def __init__(self, utc_offset_s: Callable[[float], float]) -> None:
        self._utc_offset_s = utc_offset_s
        self._states: dict[str, str] = {}  #: of plans' batches
        self._batches: list[tuple[int, bytes]] = []
        self._lines: list[bytes] = []

    def waiting(self) -> bool:
        """There is something to append."""
        return bool(self._batches or self._lines)

    def begin(self, batches: Mapping[str, Mapping[str, Any]]) -> None:
        """The states of the batches that were there before the first event."""
        self._states = {b["id"]: b["state"] for b in batches.values() if b["kind"] == "plan"}

    def batch(self, event: Event) -> None:
        """An event about a batch."""
        told = rows.batch_told(event)
        if told is None:
            return
        state, row = told
        before = self._states.get(row["id"])
        self._states[row["id"]] = state
        decision = batch_decision({"state": before} if before else None, row)
        if decision is not None:
            line = decision_line(event.at, decision, self._utc_offset_s(event.at))
            self._batches.append((event.seq, line))

    def tasks(self, heard: Heard, found: Mapping[str, Mapping[str, Any]]) -> None:
        """What was heard of tasks, with their rows as they are now."""
        told, self._batches = self._batches, []
        for task, (batch, steps) in heard.items():
            for step in steps:
                before = None if step.before is None else {"state": step.before, "started": False}
                decision = task_decision(before, rows.row_then(step, task, batch, found.get(task)))
                if decision is not None:
                    line = decision_line(step.at, decision, self._utc_offset_s(step.at))
                    told.append((step.seq, line))
        self._lines += [line for _, line in sorted(told)]
        if len(self._lines) > MAX_LINES:  # the share is away for long
            del self._lines[: len(self._lines) - MAX_LINES]

    def some(self) -> tuple[bytes, int]:
        """The lines of one append, and their number."""
        total = count = 0
        for line in self._lines:
            if count and total + len(line) > MAX_APPEND:
                break
            total, count = total + len(line), count + 1
        return b"".join(self._lines[:count]), count

    def written(self, count: int) -> None:
        """The first ``count`` lines stand in the log."""
        del self._lines[:count]
