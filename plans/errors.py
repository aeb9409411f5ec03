"""How a plan is wrong: one fault a place, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class PlanFault:
    """One thing that is wrong (or odd) in a plan.

    ``line`` is 1-based, 0 where the fault has no line (a configuration value, say). ``source_line`` is the
    text of that line, cut at 200 characters, so that a receipt can show it without reading the plan again.
    """

    file: str
    line: int
    what: str
    fix: str
    severity: Severity = "error"
    source_line: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.what}; {self.fix}"


class PlanInvalid(Exception):
    """The plan cannot run. ``faults`` holds every fault found, errors and warnings, in line order."""

    def __init__(self, faults: Iterable[PlanFault]) -> None:
        self.faults: list[PlanFault] = sorted(faults, key=lambda fault: fault.line)
        super().__init__("\n".join(str(fault) for fault in self.errors))

    @property
    def errors(self) -> list[PlanFault]:
        """The faults that refuse the plan, without the warnings."""
        return [fault for fault in self.faults if fault.severity == "error"]


class FaultList:
    """Collects the faults of one file; knows its lines, so that each fault carries the text it is about.

    At most ``limit`` faults are kept: a page of rubbish must not become a megabyte of messages.
    """

    def __init__(self, file: str, lines: list[str], limit: int = 100) -> None:
        self.file = file
        self.lines = lines
        self.limit = limit
        self.faults: list[PlanFault] = []
        self.left_out = 0

    def error(self, line: int, what: str, fix: str) -> None:
        """Record a fault that refuses the plan; ``line`` is 1-based."""
        self._add(line, what, fix, "error")

    def warning(self, line: int, what: str, fix: str) -> None:
        """Record something that a person should know; the plan still runs."""
        self._add(line, what, fix, "warning")

    def nearest(self, name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
        """The one of ``names`` most like ``name``, or nothing; looked for only while faults are still kept."""
        if self.full or len(name) > 100:
            return ""
        near = get_close_matches(name, list(names), 1, cutoff)
        return near[0] if near else ""

    def all(self) -> list[PlanFault]:
        """What was kept, in line order, and how many were not."""
        kept = sorted(self.faults, key=lambda fault: fault.line)
        if self.left_out:
            what = f"{self.left_out} more faults are not shown"
            kept.append(PlanFault(self.file, len(self.lines), what, "mend these first", "warning"))
        return kept

    @property
    def full(self) -> bool:
        """Whether no more faults are kept."""
        return len(self.faults) >= self.limit

    @property
    def failed(self) -> bool:
        """Whether any fault is an error."""
        return any(fault.severity == "error" for fault in self.faults)

    def _add(self, line: int, what: str, fix: str, severity: Severity) -> None:
        # Errors are never crowded out by warnings: a plan must not pass because its faults were too many.
        if self.full and (severity == "warning" or self.failed):
            self.left_out += 1
            return
        text = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        self.faults.append(PlanFault(self.file, line, what, fix, severity, text.strip()[:200]))
