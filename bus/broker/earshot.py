"""Until when the broker has heard what was said to it: nobody is called silent for words that lie unread. Pure.

A broker that was stopped, had no processor or waited for its disk finds the RENEWs of that time in its sockets. It
reads them in bounded rounds, and libzmq's own thread, which stood still too, brings them over some time.
"""

from __future__ import annotations

from ..timing import guard_s


class Earshot:
    """:attr:`until` is the time by which silence is judged. All times are monotonic seconds."""

    def __init__(self, lease_s: float, now: float) -> None:
        self.until = now
        self._lease_s = lease_s
        self._stall_s = guard_s(lease_s)
        self._settled_at = now
        self._held_at: float | None = None  #: since when judgement is held up

    def turned(self, now: float, late_s: float, drained: bool) -> float:
        """A round has read: ``drained``, nothing was left to read; ``late_s``, how much later than it wanted it began.

        A flood that is never read to its end holds up judgement for a lease at most, and then it is a lease behind.
        """
        if late_s > self._stall_s:
            self._settled_at = now + self._stall_s
        if drained and now >= self._settled_at:
            self.until, self._held_at = now, None
            return now
        self._held_at = now if self._held_at is None else self._held_at
        if now - self._held_at > self._lease_s:
            self.until = max(self.until, now - self._lease_s)
        return self.until
