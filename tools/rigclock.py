"""The rig's time, for a machine that has only the folder, and a clock that may be hours wrong (a Pi has no battery for one).

What stands in the folder is stamped by the rig's clock. A stamp that cannot be of now, because it is in the future or too old to
be believed, means that the rig is silent or that the clocks differ; which of them, only a change can tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

Stamps = list[
    tuple[float, float]
]  #: (as of when by the rig's clock, for how many seconds that may be believed)

AHEAD_S: Final = 5.0  #: in the future, and still of now: two clocks never agree to the second
WATCH_S: Final = 7.0  #: a rig that lives renews a file within 5 s (the bridge's heartbeats)
LOOK_S: Final = 0.25


class RigClock:
    """``stamps`` reads the folder. What was found out stays until the stamps say otherwise."""

    def __init__(self, stamps: Callable[[], Stamps], say: Callable[[str], None] | None = None) -> None:
        self._stamps, self._say = stamps, say or (lambda _: None)
        self._skew_s = 0.0
        self._silent: Stamps | None = None  #: stamps that did not change while they were watched

    def now(self) -> float:
        """Unix seconds by the rig's clock, as far as one can know. Waits up to WATCH_S where the stamps leave it open.

        Of a rig that is silent, at least so late that its stamps are too old to be believed.
        """
        stamps = self._stamps()
        if not stamps or self._fits(stamps):
            return time.time() - self._skew_s
        if stamps != self._silent:
            alive = self._silent is not None or self._changes(stamps)
            stamps = self._stamps()
            self._silent = None if alive else stamps
            self._skew_s = time.time() - _newest(stamps) if alive else 0.0
        if self._silent is None:
            return time.time() - self._skew_s
        return max(time.time(), max(at + limit for at, limit in stamps) + 1.0)

    def _fits(self, stamps: Stamps) -> bool:
        now = time.time() - self._skew_s
        return any(now - at <= limit for at, limit in stamps) and _newest(stamps) - now <= AHEAD_S

    def _changes(self, stamps: Stamps) -> bool:
        self._say(
            f"the folder's newest sign is {_age(time.time() - _newest(stamps))} by this machine's clock; looking "
            f"for {WATCH_S:.0f} s whether the rig writes"
        )
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(LOOK_S)  # nobody tells of a change on a mount
            if self._stamps() != stamps:
                return True
        return False


def _newest(stamps: Stamps) -> float:
    return max(at for at, _ in stamps)


def _age(age_s: float) -> str:
    return f"{-age_s:.0f} s in the future" if age_s < 0 else f"{age_s:.0f} s old"
