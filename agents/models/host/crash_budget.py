"""When to give a model up: it crashes and crashes, and nobody gets an answer between. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

CRASHES: Final = 5
WINDOW_S: Final = 600.0


class CrashBudget:
    """``CRASHES`` within ``WINDOW_S`` seconds without a good answer spend it; ``now`` is monotonic seconds."""

    def __init__(self, crashes: int = CRASHES, window_s: float = WINDOW_S) -> None:
        self._crashes, self._window_s = crashes, window_s
        self._times: deque[float] = deque(maxlen=crashes)
        self.in_a_row = 0  #: crashes since the last good answer

    def crashed(self, now: float) -> bool:
        """Count a crash; True when the budget is spent with it."""
        self._times.append(now)
        self.in_a_row += 1
        return len(self._times) == self._crashes and now - self._times[0] <= self._window_s

    def answered(self) -> None:
        """A good answer: all is forgiven."""
        self._times.clear()
        self.in_a_row = 0
