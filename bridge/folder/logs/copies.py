"""Copies of task logs into the batch folders: while a task runs, to the end when it has ended, and again when somebody
has removed one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..contract.rows import ENDED, Transition, log_name
from ..share.ops import Entry, Op, Result, copy_out

AT_ONCE: Final = 32  #: logs of one go; many running tasks take turns
SHOWN_ATTEMPTS: Final = 3
REMEMBERED: Final = 4000  #: finished copies that are looked after


@dataclass(slots=True)
class _Copy:
    source: str
    path: str
    offset: int = 0


class LogCopies:
    """Which logs grow, and how far each was copied. ``logs`` is the rig's log folder."""

    def __init__(self, logs: str) -> None:
        self._logs = logs
        self._running: dict[str, _Copy] = {}  #: task -> the log of its present attempt
        self._unfinished: dict[
            str, _Copy
        ] = {}  #: path -> an ended one that is larger than one operation copies
        self._finished: dict[str, str] = {}  #: path -> source, of the newest copies that are whole

    def waiting(self) -> bool:
        """There is something to copy."""
        return bool(self._running or self._unfinished)

    def follow(self, task: str, row: Mapping[str, Any], plan: str | None) -> None:
        """The task runs: its log is copied as it grows."""
        copy = self._copy(row, int(row["attempt"]), plan)
        if copy is not None:
            old = self._running.get(task)
            if old is None or old.path != copy.path:
                self._running[task] = copy

    def task(
        self, task: str, row: Mapping[str, Any], steps: Sequence[Transition], plan: str | None
    ) -> list[Op]:
        """The task has changed: follow it, or copy the rest of the attempts that ended."""
        attempt = int(row["attempt"] or 0)
        if row["state"] == "leased" and row["started"]:
            ended = {step.attempt for step in steps if step.state in ("ready", *ENDED)} - {attempt}
        elif row["state"] in ENDED and not steps:  # found by a comparison: which attempts are new is unknown
            ended = set(range(max(1, attempt - SHOWN_ATTEMPTS + 1), attempt + 1))
        else:
            ended = {step.attempt for step in steps if step.state in ("ready", "review", "failed", *ENDED)}
        before = self._running.pop(task, None)
        out: list[Op] = []
        for n in sorted(one for one in ended if one):
            copy = self._copy(row, n, plan)
            if copy is None:
                continue
            if before is not None and before.path == copy.path:
                copy.offset = before.offset
            self._unfinished[copy.path] = copy
            out.append(copy_out(copy.source, copy.path, copy.offset))
        if row["state"] == "leased" and row["started"]:
            if before is not None:
                self._running[task] = before
            self.follow(task, row, plan)
        return out

    def ops(self) -> list[Op]:
        """The next piece of each log that grows or is not finished, of the longest waiting first."""
        tasks = list(self._running)[:AT_ONCE]
        for task in tasks:  # to the end of the row
            self._running[task] = self._running.pop(task)
        copies = [*(self._running[task] for task in tasks), *list(self._unfinished.values())[:AT_ONCE]]
        return [copy_out(copy.source, copy.path, copy.offset) for copy in copies]

    def done(self, ops: Sequence[Op], results: Sequence[Result]) -> None:
        """What was copied. A log that is not there (a task that wrote none) is no fault."""
        growing = {copy.path: copy for copy in self._running.values()}
        for op, result in zip(ops, results, strict=True):
            path = op["path"]
            copy = growing.get(path) or self._unfinished.get(path)
            if copy is not None and result["ok"]:
                copy.offset = result["offset"]
            if not result["ok"] or not result["more"]:
                whole = self._unfinished.pop(path, None)
                if whole is not None and result["ok"]:
                    self._remember(path, whole.source)

    # -- copies that somebody removes ------------------------------------------------------------------------

    def ended(self, row: Mapping[str, Any], plan: str | None) -> None:
        """A comparison found the task's file as it should be: its last log is taken to be copied."""
        copy = self._copy(row, int(row["attempt"] or 0), plan) if row["attempt"] else None
        if copy is not None:
            self._remember(copy.path, copy.source)

    def paths(self) -> list[str]:
        """The copies that should stand."""
        return list(self._finished)

    def compare(self, path: str, entry: Entry | None) -> None:
        """``entry`` is what stands there; one that is not there is copied again."""
        if entry is None and (source := self._finished.pop(path, None)) is not None:
            self._unfinished[path] = _Copy(source, path)

    def _remember(self, path: str, source: str) -> None:
        self._finished.pop(path, None)
        self._finished[path] = source
        while len(self._finished) > REMEMBERED:
            del self._finished[next(iter(self._finished))]

    def _copy(self, row: Mapping[str, Any], attempt: int, plan: str | None) -> _Copy | None:
        name = log_name(self._logs, row, attempt) if plan else None
        if name is None:
            return None
        file = name.rpartition("/")[2]
        return _Copy(f"{self._logs}/{name}", f"plans/{plan}/batches/{row['batch']}/logs/{file}")
