"""Figures: medians with their range, beside a target and a limit of the machine; and how people read them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA: Final = "rigbus.bench/1"
WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds and their range."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1], len(found))

    def as_dict(self, digits: int = 3) -> dict[str, float]:
        return {
            "median": round(self.median, digits),
            "min": round(self.low, digits),
            "max": round(self.high, digits),
        }


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured.

    ``target`` is ours (``at_least`` says on which side it lies), ``ratio`` what part of ``limit`` was reached: a limit
    of the machine, measured in the same run.
    """

    name: str
    unit: str
    spread: Spread
    target: float | None = None
    at_least: bool = False
    ratio: float | None = None
    limit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        if self.target is None:
            return None
        m = self.spread.median
        return m >= self.target if self.at_least else m <= self.target

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            **self.spread.as_dict(),
            "rounds": self.spread.rounds,
            "target": self.target,
            "target_is": "at_least" if self.at_least else "at_most",
            "met": self.met,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "ratio_to": self.limit or None,
        }


@dataclass(slots=True)
class Outcome:
    """What one bench found. ``cpu`` is µs a task by kind of process, None where the system does not tell."""

    bench: str
    figures: list[Figure]
    settings: dict[str, Any]
    fsync_p50_us: float
    cpu: dict[str, float | None] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)  #: of this machine, name with unit -> median
    more: dict[str, Any] = field(default_factory=dict)  #: further keys of the JSON form
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "bench": self.bench,
            **self.more,
            "figures": [f.as_dict() for f in self.figures],
            "cpu_us_per_task": self.cpu,
            "limits": {name: round(value, 3) for name, value in self.limits.items()},
            "fsync_p50_us": round(self.fsync_p50_us, 1),
            "notes": self.notes,
            "settings": self.settings,
        }


def cpu_a_task(
    before: Mapping[str, float], after: Mapping[str, float], tasks: int
) -> dict[str, float | None]:
    """CPU µs a task of each kind of process in two readings in seconds, and their ``sum``."""
    used: dict[str, float | None] = {
        kind: round((after[kind] - before[kind]) / tasks * 1e6, 1) if kind in before else None
        for kind in after
    }
    known = [value for value in used.values() if value is not None]
    used["sum"] = round(sum(known), 1) if known and len(known) == len(used) else None
    return used


def number(value: float) -> str:
    """A figure with three or four digits that mean something: ``6,012``, ``12.3``, ``0.87``."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 or not size else f"{value:.3f}"


def lines_of(outcome: Outcome) -> list[str]:
    """The figures for people, each line at most 100 columns."""
    head = ("", "MEDIAN", "RANGE", "TARGET", "OF THE LIMIT")
    rows = [head, *(_row(f) for f in outcome.figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if outcome.cpu:
        parts = [f"{kind} {_us(value)}" for kind, value in outcome.cpu.items() if kind != "sum"]
        total = outcome.cpu.get("sum")
        lines += _wrapped("CPU µs a task: ", parts, f" = {_us(total)}" if total is not None else "")
    limits = [f"{name} {number(value)}" for name, value in outcome.limits.items()]
    lines += _wrapped("limits of this machine: ", [*limits, f"fsync p50 {outcome.fsync_p50_us:.0f} µs"])
    for note in [*outcome.notes, *busy(outcome.settings)]:
        lines += _wrapped("", note.split(" "), joint=" ")
    return [*lines, *_wrapped("", said_settings(outcome.settings))]


def busy(settings: Mapping[str, Any]) -> list[str]:
    """A warning where the machine had other things to do."""
    load, cores = settings.get("load_before") or 0.0, settings.get("cores") or 1
    if load <= cores / 2:
        return []
    return [
        f"The machine was busy before ({load:.1f} on {cores} cores): rates and times mean little, the CPU a task more."
    ]


def _row(f: Figure) -> tuple[str, str, str, str, str]:
    s = f.spread
    span = f"{number(s.low)} to {number(s.high)}" if s.rounds > 1 else "one round"
    target = ""
    if f.target is not None:
        verdict = "ok" if f.met else "MISSED"
        target = f"{'≥' if f.at_least else '≤'} {number(f.target)} {verdict}"
    ratio = f"{number(f.ratio)} {f.limit}" if f.ratio is not None else ""
    return f.name, f"{number(s.median)} {f.unit}", span, target, ratio


def _us(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def said_settings(settings: Mapping[str, Any]) -> list[str]:
    """``name value`` of each setting, in its order."""
    return [f"{name} {value}" for name, value in settings.items() if value is not None and name != "platform"]


def _wrapped(lead: str, parts: Sequence[str], tail: str = "", *, joint: str = ", ") -> list[str]:
    """Parts in lines of at most 100 columns, broken between parts only."""
    lines, line = [], lead
    for n, part in enumerate(parts):
        piece = part + (joint if n + 1 < len(parts) else tail)
        if len(line) + len(piece.rstrip()) > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = "  "
        line += piece
    return [*lines, line.rstrip()] if line.strip() else lines
