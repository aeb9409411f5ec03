"""The machine's clocks against each other: has it slept, was the wall clock set? The sources can be injected.

Every duration of the rig is monotonic, and that clock stands still while the machine sleeps (ADR 0024). What must know
of the sleep all the same, and of a wall clock that somebody set, is told by :meth:`Clocks.look`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SLEPT_S: Final = 1.0  #: the boot clock has gained so much on the monotonic one: the machine has slept
JUMP_S: Final = 5.0  #: the wall clock has moved by so much more, or less, than time went by between two looks
#: Two readings that lie so far apart cannot be compared: the process was without the processor between them.
_APART_S: Final = 0.05


def boottime() -> float:
    """Seconds since the machine started, its sleep included; where the system has no such clock, without it."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Glance:
    """The clocks at one moment, in seconds, and what has become of them since the last look."""

    now: float  #: monotonic
    wall: float
    slept_s: float = 0.0  #: how long the machine has slept; 0: it has not
    jumped_s: float = 0.0  #: by how much the wall clock was set forward, or back (negative)


class Clocks:
    """Remembers how the clocks stood to each other."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        boot: Callable[[], float] = boottime,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic, self._boot, self._wall = monotonic, boot, wall
        at, since_boot, date = monotonic(), boot(), wall()
        self._asleep = since_boot - at
        self._offset = date - since_boot

    def look(self) -> Glance:
        """Read all three; each sleep and each jump is told once."""
        before, since_boot, date = self._monotonic(), self._boot(), self._wall()
        now = self._monotonic()
        if now - before > _APART_S:
            return Glance(now, date)
        slept_s = since_boot - before - self._asleep
        jumped_s = date - since_boot - self._offset
        # slewing moves the wall clock slowly, for ever: a jump is what happens between two looks
        self._offset = date - since_boot
        if slept_s < SLEPT_S:
            slept_s = 0.0
        else:
            self._asleep = since_boot - before
        return Glance(now, date, slept_s, jumped_s if abs(jumped_s) > JUMP_S else 0.0)
