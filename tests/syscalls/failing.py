"""Fail at N: a scene is run once for each of its system calls on files, and that call fails. SQLite's method.

A program of its own: ``python -m syscalls.failing SCENE [STEP|all]``; the last line is its figures. Each call that
changes something fails in one of :data:`WAYS` in turn, with ``all`` each call in each of them. What must hold: the scene goes on,
or ends with an error of ours that says what to do; and when the disk is well again, everything that was answered is there, once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from rigbus.bus.store import checkpoints

from .lives import Backups, Brokers, Examines, FirstStart, Life, Repairs, Spools
from .plans import Drops, Stages
from .prefixes import memory_folder, void
from .tracing import CHANGING, ROOM, Call, FailAt, Watcher, traced

#: Checkpoints within a few commits, and a log that is not reserved.
SMALL_LOG: Final = 14


SCENES: Final[dict[str, type[Life]]] = {
    "broker": Brokers,
    "examine": Examines,
    "first": FirstStart,
    "backup": Backups,
    "repair": Repairs,
    "spool": Spools,
    "stage": Stages,
    "drop": Drops,
}


class Way(NamedTuple):
    """How a call fails: once, or with all that come after it."""

    name: str
    error: int
    on: bool = False


WAYS: Final = (
    Way("an error of the disk", errno.EIO),
    Way("no room", errno.ENOSPC),
    Way("errors from there on", errno.EIO, on=True),
)


def changes(call: Call) -> bool:
    """The calls that write, sync, name or open."""
    return call.name in CHANGING or call.name in ("open", "openat")


def any_call(call: Call) -> bool:
    """Reads and looks as well."""
    return call.name != "getdents64" or call.pid > 0


def fitting(way: Way, call: Call) -> int:
    """The errno of this way for this call: what cannot want room has an error of the disk."""
    wants_room = call.name in ROOM or call.creates
    return way.error if way.error != errno.ENOSPC or wants_room else errno.EIO


class Failing(FailAt):
    """As its way says."""

    def __init__(self, root: Path, nth: int, way: Way, fits: Callable[[Call], bool]) -> None:
        super().__init__(root, nth, way.error, fits, on=way.on)
        self.way = way

    def enter(self, call: Call) -> int | None:
        return None if super().enter(call) is None else fitting(self.way, call)


class Counting(Watcher):
    """How many calls there are when nothing fails."""

    def __init__(self, root: Path, fits: Callable[[Call], bool]) -> None:
        super().__init__(root)
        self.fits = fits

    def enter(self, call: Call) -> int | None:
        self.count += self.fits(call)
        return None


def run(life: Life, rig: Path, says: Path, watcher: Watcher) -> tuple[int, list[tuple[str, Any]]]:
    """One run in a child; its exit code and what it said."""
    says.write_bytes(b"")

    def child() -> None:
        fd = os.open(says, os.O_WRONLY | os.O_APPEND)

        def say(what: str, value: Any) -> None:
            void(os.write(fd, json.dumps([what, value]).encode() + b"\n"))

        try:
            life.run(rig, say)
        except life.errors as e:
            say("ended", f"{type(e).__name__}: {e}")
        except Exception:
            say("crashed", traceback.format_exc(limit=-4))

    code = traced(child, watcher)
    return code, [tuple(json.loads(line)) for line in says.read_text().splitlines()]


def one(life: Life, folder: Path, nth: int, way: Way, fits: Callable[[Call], bool]) -> tuple[str, str]:
    """The ``nth`` call fails: what came of it (``went on``, ``ended``), and what is wrong with that, if anything."""
    rig = folder / "rig"
    shutil.copytree(folder / "before", rig, symlinks=True)
    watcher = Failing(rig, nth, way, fits)
    try:
        code, said = run(life, rig, folder / "says", watcher)
        call = watcher.failed
        where = "not reached" if call is None else f"{call.name} {Path(call.paths[0]).name}"
        words = [value for what, value in said if what in ("ended", "crashed")]
        if code or any(what == "crashed" for what, _ in said):
            return "crashed", f"{where}: exit {code} {words}"
        try:
            if words:
                life.require_words(words[-1], rig)
            life.judge(rig, said)
        except Exception as e:
            return "wrong", f"{where}: {type(e).__name__}: {e} (it said: {words})"
        return "ended" if words else "went on", ""
    finally:
        life.clear(rig)


def main(name: str, how: str = "1") -> dict[str, Any]:
    """The scene ``name``: ``how`` is ``all``, or of how many calls that change something one is failed."""
    logging.disable()
    checkpoints.WAL_FRAMES, checkpoints._WAL_BYTES = SMALL_LOG, 0  # type: ignore[misc]
    life, fits = SCENES[name](), any_call if how == "all" else changes
    came: Counter[str] = Counter()
    wrong: list[str] = []
    with memory_folder() as folder:
        rig = folder / "rig"
        (folder / "before").mkdir()
        life.prepare(folder / "before")
        shutil.copytree(folder / "before", rig, symlinks=True)
        counting = Counting(rig, fits)
        code, said = run(life, rig, folder / "says", counting)
        assert code == 0 and not any(w in ("ended", "crashed") for w, _ in said), said
        life.judge(rig, said)
        life.clear(rig)
        for turn, nth in enumerate(range(1, counting.count + 1, 1 if how == "all" else int(how))):
            for way in WAYS if how == "all" else (WAYS[turn % len(WAYS)],):
                what, why = one(life, folder, nth, way, fits)
                came[what] += 1
                if why:
                    wrong.append(f"call {nth} of {counting.count}, {way.name}: {why}"[:700])
    return {
        "calls": counting.count,
        "runs": sum(came.values()),
        "by": dict(came),
        "failures": len(wrong),
        "first": wrong[:12],
    }


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        print(json.dumps(main(*sys.argv[1:])))
