"""A finding, and how findings are shown. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..render import clean, colour

Status = Literal["ok", "info", "warn", "fail"]

GROUPS: Final = (
    "Software",
    "State folder",
    "Sockets",
    "Rig",
    "Shared folder",
    "Leftovers",
    "Limits",
    "GPU",
    "Models",
)
STATUSES: Final[tuple[Status, ...]] = ("ok", "info", "warn", "fail")
WIDTH: Final = 100
_CHECK: Final = 16
_INDENT: Final = 2 + 5 + 1 + _CHECK + 1
_COLOUR: Final = {"ok": "done", "warn": "cancelled", "fail": "dead"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``value`` is what was found, ``fix`` one line, "" where nothing is to do."""

    group: str
    check: str
    status: Status
    value: str
    fix: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """1 when something fails, else 0."""
    return int(any(finding.status == "fail" for finding in findings))


def report(findings: Sequence[Finding], head: Mapping[str, Any]) -> dict[str, Any]:
    """``rigbus.doctor/1``; ``head`` adds keys such as ``mode`` and ``state``."""
    counts = Counter(finding.status for finding in findings)
    return {
        "schema": "rigbus.doctor/1",
        **head,
        "ok": not counts["fail"],
        "counts": {status: counts[status] for status in STATUSES},
        "findings": [
            {"group": f.group, "check": f.check, "status": f.status, "value": f.value, "fix": f.fix or None}
            for f in findings
        ],
    }


def lines_of(findings: Sequence[Finding]) -> list[str]:
    """The findings for people: in groups, aligned, at most 100 columns."""
    lines: list[str] = []
    for group in GROUPS:
        members = [finding for finding in findings if finding.group == group]
        if members:
            lines += ["", group]
        for finding in members:
            lines += _lines_of_one(finding)
    counts = Counter(finding.status for finding in findings)
    said = ", ".join(f"{counts[status]} {status}" for status in reversed(STATUSES) if counts[status])
    return [*lines[1:], "", said or "nothing was looked at"]


def _lines_of_one(finding: Finding) -> list[str]:
    first, *rest = _wrapped(finding.value, "")
    word = colour(_COLOUR.get(finding.status, ""), f"{finding.status:<5}")
    lines = [f"  {word} {finding.check:<{_CHECK}} {first}".rstrip()]
    rest += _wrapped(finding.fix, "fix: ") if finding.fix else []
    return [*lines, *(" " * _INDENT + line for line in rest)]


def _wrapped(text: str, lead: str) -> list[str]:
    found = textwrap.wrap(
        lead + clean(text), WIDTH - _INDENT, break_on_hyphens=False, subsequent_indent=" " * len(lead)
    )
    return found or [""]


def size(count: float) -> str:
    """Bytes for people: ``512 B``, ``3.4 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
