"""How much room the state folder's disk has, and what the rig does about it. Pure.

*ample*: all is taken. *low*: no new tasks (BUSY, bound ``disk``), all else goes on. *full*: nothing new is started
either, since a command would fail for the same disk; results are recorded, in the room that the ballast had.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MIB: Final = 1 << 20
LOW_MB: Final = 512
BALLAST_MB: Final = 64
#: Of a small file system (a test's, a RAM disk) the defaults are at most such a part.
_LOW_PART: Final = 20
_BALLAST_PART: Final = 40
RETRY_S: Final = 5.0  #: when a peer may ask again


class Level(StrEnum):
    """How much room there is."""

    AMPLE = "ample"
    LOW = "low"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Bars:
    """Below ``low_bytes`` of free room no new tasks are taken; ``ballast_bytes`` are kept for results."""

    low_bytes: int
    ballast_bytes: int


def bars(total_bytes: int, low_mb: int | None, ballast_mb: int | None) -> Bars:
    """The bars of a file system of this size, in bytes; what is configured (MiB) is taken as it is."""
    low = low_mb * MIB if low_mb is not None else min(LOW_MB * MIB, total_bytes // _LOW_PART)
    ballast = (
        ballast_mb * MIB if ballast_mb is not None else min(BALLAST_MB * MIB, total_bytes // _BALLAST_PART)
    )
    return Bars(low, ballast)


def level_of(before: Level, free_bytes: int, wanted: Bars, *, has_ballast: bool) -> Level:
    """The level now. A level is left upwards only with some room to spare, so that it does not flap."""
    if not has_ballast or free_bytes < wanted.ballast_bytes:
        return Level.FULL
    if before is Level.FULL and free_bytes < 2 * wanted.ballast_bytes:
        return Level.FULL
    enough = wanted.low_bytes if before is Level.AMPLE else wanted.low_bytes * 9 // 8
    return Level.AMPLE if free_bytes >= enough else Level.LOW


@dataclass(frozen=True, slots=True)
class Room:
    """What was found at the last look. ``ballast_bytes`` is 0 while the ballast is given up."""

    level: Level
    free_bytes: int
    low_bytes: int
    ballast_bytes: int
    folder: str

    def row(self) -> dict[str, Any]:
        """For QUERY ``status``."""
        return {
            "level": self.level.value,
            "free_bytes": self.free_bytes,
            "low_bytes": self.low_bytes,
            "ballast_bytes": self.ballast_bytes,
            "folder": self.folder,
        }

    @property
    def takes_tasks(self) -> bool:
        """Whether new tasks are accepted."""
        return self.level is Level.AMPLE

    @property
    def starts_tasks(self) -> bool:
        """Whether accepted tasks are leased."""
        return self.level is not Level.FULL

    @property
    def value(self) -> str:
        """``disk full: 3 MiB free in /var/rig, 512 MiB are wanted``."""
        head = {Level.AMPLE: "room", Level.LOW: "disk nearly full", Level.FULL: "disk full"}[self.level]
        free, low = self.free_bytes / MIB, self.low_bytes / MIB
        return f"{head}: {free:,.0f} MiB free in {self.folder}, {low:,.0f} MiB are wanted"

    @property
    def meaning(self) -> str:
        """What the rig does while it is so."""
        if self.level is Level.AMPLE:
            return "everything is taken"
        started = "" if self.starts_tasks else " and no task is started"
        return f"no new tasks are taken{started}, results are recorded"

    @property
    def fix(self) -> str:
        """What a person can do."""
        return f"free some space on the disk of {self.folder} (`rigbus doctor` names what is large); it goes on by itself"


#: Until the shell has looked, and for a core without a disk.
UNKNOWN: Final = Room(Level.AMPLE, 0, 0, 0, "")
