"""Lines and tables for people. Pure; what comes from tasks or peers passes :func:`clean` on its way to a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from ..bridge.folder.share.ops import shown as clean

__all__ = [
    "age",
    "bar",
    "clean",
    "clean_lines",
    "clock",
    "colour",
    "counts",
    "duration",
    "marks",
    "table",
    "width",
    "wrap",
]

#: Columns that text for people may have.
WIDEST: Final = 100
_COLOURS: Final = {
    "done": "green",
    "complete": "green",
    "leased": "cyan",
    "running": "cyan",
    "busy": "cyan",
    "planning": "cyan",
    "dead": "red",
    "failed": "red",
    "expired": "red",
    "suspect": "red",
    "gone": "red",
    "cancelled": "yellow",
    "skipped": "yellow",
    "paused": "yellow",
    "held": "yellow",
    "quarantined": "red",
    "fenced": "red",
    "draining": "yellow",
    "review": "magenta",
}
_CELL: Final = 60
_UNIT: Final = re.compile(r"(\d) (s|min|h|d|of)\b")
_ORDER: Final = (
    "leased",
    "ready",
    "waiting",
    "review",
    "done",
    "failed",
    "dead",
    "expired",
    "cancelled",
    "skipped",
)


def clean_lines(text: str) -> str:
    """As :func:`clean`, but lines stay lines and tabs stay tabs."""
    return "\n".join("\t".join(clean(part) for part in row.split("\t")) for row in text.split("\n"))


def colourful() -> bool:
    """Whether stdout is a terminal that wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colour(word: str, text: str | None = None) -> str:
    """``text`` (default: the word itself) in the colour of a state's word; plain where nobody wants colours."""
    found = _COLOURS.get(word)
    shown = word if text is None else text
    return click.style(shown, fg=found) if found and colourful() else shown


def width() -> int:
    """Columns that text may have: the terminal's, at most 100; 100 when piped."""
    if not sys.stdout.isatty():
        return WIDEST
    return max(40, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))


def marks() -> tuple[str, str]:
    """The signs of a test that holds and of one that does not; ascii where nobody looks, or the terminal has no more."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    return ("✓", "✗") if sys.stdout.isatty() and encoding == "utf8" else ("ok", "NO")


def wrap(text: str, columns: int, indent: int = 2) -> list[str]:
    """Lines of at most so many columns; the second and later ones are indented. A number keeps its unit, a word that is
    longer than a line is broken."""
    kept = _UNIT.sub("\\1\u00a0\\2", text)
    lines = textwrap.wrap(kept, columns, subsequent_indent=" " * indent, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines] or [""]


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``42 s``, ``3 min 10 s``, ``2 h 5 min``, ``3 d 4 h``; ``-`` for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for unit, next_unit, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {next_unit}" if rest else "")
    return f"{whole} s"


def age(at: float | None, now: float) -> str:
    """How long ago a moment was; ``-`` when it never was."""
    return duration(now - at) if at else "-"


def clock(at: float | None) -> str:
    """Local time of day; with the date when that is not today's."""
    if not at:
        return "-"
    moment = datetime.fromtimestamp(at)
    return moment.strftime("%H:%M:%S" if moment.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S")


def counts(tasks: Mapping[str, int]) -> str:
    """``3 leased, 12 done``; states without tasks are left out."""
    return ", ".join(f"{tasks[s]} {s}" for s in _ORDER if tasks.get(s)) or "no tasks"


def counted(number: int, word: str) -> str:
    """``1 task``, ``3 tasks``, ``no tasks``."""
    return f"{number} {word}" if number == 1 else f"{number or 'no'} {word}s"


def bar(progress: float, width: int = 20) -> str:
    """``[#####...............]``."""
    full = round(min(1.0, max(0.0, progress)) * width)
    return f"[{'#' * full}{'.' * (width - full)}]"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, state: int | None = None) -> list[str]:
    """Aligned columns; cells are cut at 60 characters. ``state`` is the column that is coloured by its word."""
    cells = [[_cell(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    lines = ["  ".join(name.ljust(width) for name, width in zip(head, widths, strict=True)).rstrip()]
    for row in cells:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        if state is not None:
            padded[state] = colour(row[state], padded[state])
        lines.append("  ".join(padded).rstrip())
    return lines


def _cell(value: Any) -> str:
    text = clean("-" if value is None or value == "" else str(value))
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
