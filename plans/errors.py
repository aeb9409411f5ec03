"""How a plan is wrong: one fault a place, all of them at once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Final, Literal

Severity = Literal["error", "warning"]

#: Characters of a source line that a fault keeps; of a longer line, those around its column.
MAX_SOURCE_CHARS: Final = 200
_INDENT: Final = "    "
_CUT: Final = "…"


@dataclass(frozen=True, slots=True)
class PlanFault:
    """One thing that is wrong (or odd) in a plan.

    ``line`` is 1-based, 0 where the fault has no line (a configuration value, say). ``column`` is 1-based and
    counts the characters of the file's line, a tab as one; 0 where only the line is known. ``width`` is the
    number of characters that the fault is about. ``source_line`` is the line as it stands in the file, without
    blanks at its end, at most ``MAX_SOURCE_CHARS`` characters of it from the column ``source_from`` on, so that
    a receipt can show it without reading the plan again.
    """

    file: str
    line: int
    what: str
    fix: str
    severity: Severity = "error"
    source_line: str = ""
    column: int = 0
    width: int = 0
    source_from: int = 1

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.what}; {self.fix}"

    def excerpt(self, cells: int = 100) -> list[str]:
        """The source line and, where the column is known, a line with ``^~~`` below what the fault is about.

        Both start with four blanks in place of the line's own indentation. Of a long line at most ``cells``
        columns of a terminal are shown, those around the fault; wide characters (CJK) count two, control
        characters show as ``·``. Empty where the fault has no line.
        """
        text = self.source_line
        if not text.strip():
            return []
        start = len(text) - len(text.lstrip())
        at = self.column - self.source_from
        pointed = self.column > 0 and start <= at <= len(text)
        if not pointed:
            at = start
        first, end = _window(text, start, at, cells)
        head = _CUT if first > start or self.source_from > 1 else ""
        shown = _INDENT + head + _visible(text[first:end]) + (_CUT if end < len(text) else "")
        if not pointed:
            return [shown]
        pad = _INDENT + " " * (len(head) + _cells(_visible(text[first:at])))
        marked = _cells(_visible(text[at : min(at + max(self.width, 1), end)]))
        return [shown, pad + "^" + "~" * (marked - 1)]

    def as_dict(self) -> dict[str, str | int]:
        """The fault as JSON carries it (``plan lint --json``); ``line`` and ``column`` are 0 where unknown."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "severity": self.severity,
            "what": self.what,
            "fix": self.fix,
            "source_line": self.source_line,
        }


def _visible(text: str) -> str:
    """Tabs as four blanks, other control characters (and halves of surrogate pairs) as a dot."""
    return "".join(
        _INDENT if sign == "\t" else "·" if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") else sign
        for sign in text
    )


def _cells(text: str) -> int:
    """Columns of a terminal that ``text`` takes: combining marks none, wide characters two."""
    return sum(
        0
        if unicodedata.combining(sign) or unicodedata.category(sign) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(sign) in "WF"
        else 1
        for sign in text
    )


def _window(text: str, start: int, at: int, cells: int) -> tuple[int, int]:
    """(first, end) of the part of ``text`` to show: all of it where it fits, else what is around ``at``."""
    if _cells(_visible(text[start:])) <= cells:
        return start, len(text)
    first = at
    while first > start and _cells(_visible(text[first - 1 : at])) <= cells // 2:
        first -= 1
    end = first
    while end < len(text) and _cells(_visible(text[first : end + 1])) <= cells:
        end += 1
    return first, end


class PlanInvalid(Exception):
    """The plan cannot run. ``faults`` holds every fault found, errors and warnings, in line order."""

    def __init__(self, faults: Iterable[PlanFault]) -> None:
        self.faults: list[PlanFault] = sorted(faults, key=_place)
        super().__init__("\n".join(str(fault) for fault in self.errors))

    @property
    def errors(self) -> list[PlanFault]:
        """The faults that refuse the plan, without the warnings."""
        return [fault for fault in self.faults if fault.severity == "error"]


def _place(fault: PlanFault) -> tuple[int, int]:
    return fault.line, fault.column


#: Names that the faults of one plan are compared with: each costs up to a millisecond, of the bridge's loop where the plan
#: was dropped. In a plan of thousands of tasks, all with one mistake, it would be minutes.
COMPARED: Final = 2000


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
        self._compares = COMPARED
        self._errors = 0

    def error(self, line: int, what: str, fix: str, *, mark: str = "", column: int = 0) -> None:
        """Record a fault that refuses the plan; ``line`` is 1-based.

        ``mark`` is the text that the fault is about: looked for in that line as a whole word, behind the
        field's colon where it can be. ``column`` (1-based) says where it starts, where that is known.
        """
        self._add(line, what, fix, "error", mark, column)

    def warning(self, line: int, what: str, fix: str, *, mark: str = "", column: int = 0) -> None:
        """Record something that a person should know; the plan still runs. See ``error``."""
        self._add(line, what, fix, "warning", mark, column)

    def nearest(self, name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
        """The one of ``names`` most like ``name``, or nothing; looked for only while faults are still kept, and among
        :data:`COMPARED` names for the whole plan."""
        if self.full or len(name) > 100:
            return ""
        some = list(islice(names, self._compares))
        self._compares -= len(some)
        near = get_close_matches(name, some, 1, cutoff)
        return near[0] if near else ""

    def all(self) -> list[PlanFault]:
        """What was kept, in line order, and how many were not."""
        kept = sorted(self.faults, key=_place)
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
        return self._errors > 0

    def _add(self, line: int, what: str, fix: str, severity: Severity, mark: str, column: int) -> None:
        # Errors are never crowded out by warnings: a plan must not pass because its faults were too many.
        if self.full and (severity == "warning" or self.failed):
            self.left_out += 1
            return
        self._errors += severity == "error"
        text = self.lines[line - 1].rstrip() if 0 < line <= len(self.lines) else ""
        width = len(mark) if column else 0
        if mark and not column:
            column, width = find_mark(text, mark)
        if column > len(text) + 1:
            column = width = 0
        # Of a long line the part around the column, so that an excerpt can still show it.
        start = max(column - MAX_SOURCE_CHARS // 2, 0) if column > MAX_SOURCE_CHARS * 3 // 4 else 0
        shown = text[start : start + MAX_SOURCE_CHARS]
        self.faults.append(PlanFault(self.file, line, what, fix, severity, shown, column, width, start + 1))


def find_mark(line: str, mark: str) -> tuple[int, int]:
    """(column from 1, width) of ``mark`` in ``line``; (0, 0) where it does not stand there.

    Whole words behind the first colon come first: in ``- **depends_on**: on`` the name is not in the field.
    """
    mark = mark[:MAX_SOURCE_CHARS]
    if mark.startswith("{"):
        word = re.compile(rf"(?<![{{$]){re.escape(mark)}(?!\}})")
    else:
        word = re.compile(rf"(?<![\w.-]){re.escape(mark)}(?![\w-])")
    behind = line.find(":") + 1
    found = word.search(line, behind) or word.search(line)
    if found is not None:
        return found.start() + 1, len(mark)
    start = line.find(mark, behind)
    if start < 0:
        start = line.find(mark)
    return (start + 1, len(mark)) if start >= 0 else (0, 0)
