"""The machine has slept, or somebody has set its wall clock: what must follow. Pure.

Monotonic time stands still in a sleep, so nothing has run out by it; but who was asked before may need time to answer.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ..wire import GRACE_S
from .model import Task
from .operating import Operating

#: rows that are written anew in one second at most: a commit of more would hold up the others
_AT_ONCE = 5_000


class Waking(Operating):
    """What the shell's look at the clocks means to the core (clocks.py)."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._to_date: deque[Task] = deque()

    def woke(self, slept_s: float, now: float, wall: float) -> None:
        """The machine has slept: a grace as after a start, for workers to say again what they hold, and for sessions.

        Deadlines are points in time, so the sleep counts for them, as it does over a restart. What is a duration (a
        back-off, the time in the queue, a quarantine) goes on where it was.
        """
        self.now, self.wall = now, wall
        self.emit("p", "rig.slept", "", "", {"for_s": round(slept_s, 3)})
        for task in self.leases.values():
            task.lease_deadline = max(task.lease_deadline, now + self.lease_s + GRACE_S)
        for session in self.sessions.values():
            session.last_seen = now
        for task in self._dated():
            task.deadline = max(now, task.deadline - slept_s)
            self.timer(task.deadline, "deadline", task)

    def wall_jumped(self, by_s: float, now: float, wall: float) -> None:
        """The wall clock was set: for people only, but deadlines lie on the disk by it, and are written anew."""
        self.now, self.wall = now, wall
        self.emit("p", "rig.clock", "", "", {"by_s": round(by_s, 3)})
        self._to_date = deque(self._dated())
        self.date_rows()

    def date_rows(self) -> None:
        """Write anew some of the rows whose times were kept by another wall clock. Once a second."""
        for _ in range(min(len(self._to_date), _AT_ONCE)):
            task = self._to_date.popleft()
            if not task.ended:
                self.dirty(task)

    def _dated(self) -> list[Task]:
        return [t for t in self.tasks.values() if t.deadline and not t.ended]
