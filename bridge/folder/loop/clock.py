"""Where the bridge gets its times from; tests give their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def local_offset_s(at: float) -> float:
    """The rig's offset from UTC at a moment, in seconds."""
    return float(time.localtime(at).tm_gmtoff)


@dataclass(frozen=True, slots=True)
class Clock:
    """``now`` is monotonic, ``wall`` unix seconds for people."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    utc_offset_s: Callable[[float], float] = local_offset_s
