"""Which files of the inbox are batch files, and which of them are due: the READY and settle rules. Pure.

``NAME.jsonl`` starts at once when ``NAME.jsonl.READY`` stands beside it, else when it has looked the same for
``settle_s``. What belongs to it bears its name: ``NAME.results.jsonl``, ``NAME.errors.jsonl``, both with ``.part`` while
it runs. Times of files are only ever compared for equality.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

SUFFIX: Final = ".jsonl"
READY: Final = ".READY"
RESULTS: Final = ".results.jsonl"
ERRORS: Final = ".errors.jsonl"
PART: Final = ".part"
MAX_NAME_BYTES: Final = 200

Look = tuple[str, int, int, int]  #: type, size, mtime_ns, inode


def belongs(name: str) -> bool:
    """Whether a file of this name is a batch file, or belongs to one."""
    return name.endswith(SUFFIX) or f"{SUFFIX}." in name


def is_input(name: str) -> bool:
    """Whether a file of this name is one to run."""
    mine = name.endswith(SUFFIX) and not name.endswith((RESULTS, ERRORS))
    return mine and not name.startswith(".") and name != SUFFIX


def results_of(name: str) -> str:
    """``x.jsonl`` -> ``x.results.jsonl``."""
    return name.removesuffix(SUFFIX) + RESULTS


def errors_of(name: str) -> str:
    """``x.jsonl`` -> ``x.errors.jsonl``."""
    return name.removesuffix(SUFFIX) + ERRORS


@dataclass(frozen=True, slots=True)
class Known:
    """One batch file: how it looks, since when, and how it looked when it was last dealt with."""

    look: Look
    ready: Look | None
    since_s: float
    told: bool = False
    handled: Look | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """To be read now. ``ready``: it was said to be whole."""

    name: str
    look: Look
    ready: bool


@dataclass(frozen=True, slots=True)
class Settling:
    """Seen for the first time: it starts by itself."""

    name: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """A link, FIFO or the like in the place of a file, or a name that has no room for its results'."""

    name: str
    what: str
    fix: str


Decision = Due | Settling | Unusable


@dataclass(frozen=True, slots=True)
class Watch:
    """All that is remembered of the inbox's batch files."""

    known: Mapping[str, Known] = field(default_factory=dict)

    def handled(self, looks: Mapping[str, Look]) -> Watch:
        """Those files, looking so, were dealt with (before this process began, perhaps)."""
        known = {name: self.known.get(name) or Known(look, None, 0.0) for name, look in looks.items()}
        done = {n: replace(known[n], handled=look, told=False) for n, look in looks.items()}
        return Watch({**self.known, **done})

    def again(self, names: Iterable[str]) -> Watch:
        """They could not be dealt with now."""
        undone = {n: replace(self.known[n], handled=None) for n in names if n in self.known}
        return Watch({**self.known, **undone}) if undone else self


def step(
    watch: Watch, looks: Mapping[str, Look], now_s: float, settle_s: float
) -> tuple[Watch, list[Decision], float | None]:
    """One look at the inbox: what is due, in name order, each once; and in how many seconds something may be.

    ``looks``: name -> how it looks, of everything that :func:`belongs`. ``now_s`` is monotonic.
    """
    known: dict[str, Known] = {}
    decisions: list[Decision] = []
    waits: list[float] = []
    for name in sorted(n for n in looks if is_input(n)):
        look, ready = looks[name], looks.get(name + READY)
        before = watch.known.get(name)
        if before is None or before.look != look or before.ready != ready:
            handled = before.handled if before else None
            same = before is not None and before.look == look
            told = before.told if before is not None else False
            since = before.since_s if before is not None and same else now_s
            before = Known(look, ready, since, told, handled)
            if ready is not None and not _was_ready(watch, name, ready):
                before = replace(before, handled=None)  # said anew to be whole: dealt with anew
        known[name], decision = _judge(name, before, now_s, settle_s)
        if decision is not None:
            decisions.append(decision)
        if known[name].handled != look:
            waits.append(max(0.0, known[name].since_s + settle_s - now_s))
    return Watch(known), decisions, min(waits, default=None)


def _judge(name: str, file: Known, now_s: float, settle_s: float) -> tuple[Known, Decision | None]:
    if file.handled == file.look:
        return file, None
    done = replace(file, handled=file.look, told=False)
    if file.look[0] != "file":
        return done, Unusable(name, f"it is a {file.look[0]}, not a file", "copy the file itself")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        what = f"its name has over {MAX_NAME_BYTES} bytes"
        return done, Unusable(name, what, "give it a shorter one: its results bear it, too")
    if file.ready is not None or now_s - file.since_s >= settle_s:
        return done, Due(name, file.look, file.ready is not None)
    return (file, None) if file.told else (replace(file, told=True), Settling(name))


def _was_ready(watch: Watch, name: str, ready: Look) -> bool:
    before = watch.known.get(name)
    return before is not None and before.ready == ready


def looks_of(rows: Iterable[tuple[str, str, int, int, int]]) -> dict[str, Look]:
    """``(name, type, size, mtime_ns, inode)`` of the inbox -> what :func:`step` looks at."""
    return {
        name: (kind, size, mtime_ns, inode)
        for name, kind, size, mtime_ns, inode in rows
        if kind != "dir" and belongs(name)
    }
