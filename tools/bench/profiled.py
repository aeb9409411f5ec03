"""Runs a module under cProfile: ``python -m rigbus.tools.bench.profiled FILE MODULE [WORD…]``; and reads what it wrote.

The profile is written when the process ends, in whatever way short of kill -9. Every thread is in it, for handlers run
in threads: since Python 3.12 one profile sees all of them; before, each thread started by `threading` has its own.
"""

from __future__ import annotations

import cProfile
import marshal
import os
import pstats
import runpy
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from ...bus.errors import ConfigError

TOP: Final = 15
#: What only waits, and what only starts the process, is no work of a task.
_NO_WORK: Final = (
    "sugar/poll.py",
    "selectors.py",
    "acquire",
    "time.sleep",
    "builtins.compile",
    "builtins.exec",
    "builtins.__import__",
    "marshal.loads",
    "_imp.",
    "importlib",
    "posix.stat",
)
_OTHERS: list[cProfile.Profile] = []


class Row(NamedTuple):
    """One function of a profile: how often it was called, and the seconds spent in itself."""

    function: str
    calls: int
    own_s: float


def main() -> None:
    """The entry of the child process."""
    file, module, *words = sys.argv[1:]
    sys.argv = [module, *words]
    profile = cProfile.Profile()
    leave = os._exit

    def write_and_leave(status: int) -> NoReturn:
        _write(profile, Path(file))
        leave(status)

    # A worker whose handlers' threads may hang ends without the interpreter's own end.
    os._exit = write_and_leave
    if sys.version_info < (3, 12):
        threading.setprofile(_begin_thread)
    try:
        profile.runcall(runpy.run_module, module, run_name="__main__", alter_sys=True)
    finally:
        _write(profile, Path(file))


def _begin_thread(frame: Any, event: str, argument: Any) -> None:
    """Called by a new thread's first call: from there on it has a profile of its own."""
    own = cProfile.Profile()
    _OTHERS.append(own)
    sys.setprofile(None)
    own.enable()


def _write(profile: cProfile.Profile, file: Path) -> None:
    profile.disable()
    stats = pstats.Stats(profile)
    for other in list(_OTHERS):
        try:
            stats.add(other)
        except TypeError:
            continue  # a thread that has made no call yet
    part = file.with_suffix(".part")
    stats.dump_stats(part)
    part.replace(file)


def tops(folder: Path, count: int = TOP) -> dict[str, list[Row]]:
    """Of each process that has left a profile: the functions with the most time of their own."""
    return {file.stem: top(file, count) for file in sorted(folder.glob("*.pstats"))}


def top(file: Path, count: int = TOP) -> list[Row]:
    """The functions of one profile with the most time of their own, without waits and imports.

    Raises:
        ConfigError: the file is no profile.
    """
    try:
        with file.open("rb") as stream:
            raw = marshal.load(stream)  # noqa: S302 - marshal holds no code here, and our own child has written it
        rows = [Row(_shown(*key), int(value[1]), round(float(value[2]), 6)) for key, value in raw.items()]
    except (OSError, ValueError, EOFError, TypeError, AttributeError, LookupError) as e:
        raise ConfigError(f"{file}: is no profile ({e}); remove it") from None
    worked = [row for row in rows if not any(name in row.function for name in _NO_WORK)]
    return sorted(worked, key=lambda row: -row.own_s)[:count]


def _shown(file: str, line: int, function: str) -> str:
    if file == "~":
        return function
    path = Path(file)
    return f"{path.parent.name}/{path.name}:{line} {function}"


def lines_of_tops(found: Mapping[str, Sequence[Row]], folder: Path) -> list[str]:
    """The tops for people."""
    lines = []
    for name, rows in found.items():
        lines.append(f"{name}: own time of the first {len(rows)} functions, in ms")
        lines += [f"  {row.own_s * 1000:9.1f}  {row.calls:9,}×  {row.function[:74]}" for row in rows]
    return [*lines, f"the whole of them: python3 -m pstats {folder}/NAME.pstats"]


if __name__ == "__main__":
    main()
