"""Process control without Linux: process groups and waits by pid, nothing else.

Good enough for macOS, where client, CLI, demo and workers must run. What it cannot do: find a leftover
that called setsid, adopt orphans, kill a child when this process is killed (children watch the lifeline
for that), or wake a poller on an exit: look every ``poll_s``.
"""

from __future__ import annotations

import os
import signal
from time import monotonic

from .api import Child, ExitStatus, Orphan, Spawn, SweepReport
from .child import BaseChild

_GIVE_UP_S = 2.0


class PortableChild(BaseChild):
    """A child that is waited for by pid; its end is seen when somebody polls."""

    def poll_exit(self) -> ExitStatus | None:
        if self.status is not None:
            return self.status
        code = self._popen.poll()
        if code is None:
            return None
        return self._ended(code, None) if code >= 0 else self._ended(None, -code)

    def signal_group(self, number: int) -> bool:
        """False when the group has no member left that we may signal."""
        self.signalled = self.signalled or self.poll_exit() is None
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            return False
        return True


class PortableSweep:
    """SIGKILL to the group until it is empty.

    The wait has freed the leader's pid, but no pid is given away that is a living group's number, and an
    empty group ends the sweep. Dead members that nobody buries (a container without an init) keep a group
    too; nothing portable tells them from living ones, so after ``_GIVE_UP_S`` they count as dead.
    """

    def __init__(self, child: PortableChild) -> None:
        self.done = False
        self._child = child
        self._give_up_at = monotonic() + _GIVE_UP_S

    @property
    def survivors(self) -> tuple[Orphan, ...]:
        return () if self.done else (Orphan(self._child.pid, "process group", self._child.token),)

    def give_up(self) -> None:
        """Groups are told apart by their numbers: no other sweep sees this one's."""

    def step(self) -> bool:
        if not self.done:
            members = self._child.signal_group(signal.SIGKILL)
            late = monotonic() >= self._give_up_at
            self.done = self._child.poll_exit() is not None and (late or not members)
        return self.done


class PortableProcesses:
    """The small common denominator of every POSIX system."""

    poll_s: float | None = 0.02

    def become_subreaper(self) -> bool:
        return False

    def spawn(self, spec: Spawn) -> PortableChild:
        return PortableChild(spec, [])

    def terminate(self, child: Child) -> None:
        self._mine(child).signal_group(signal.SIGTERM)

    def kill_tree(self, child: Child) -> PortableSweep:
        return PortableSweep(self._mine(child))

    def release(self, child: Child) -> None:
        if child.poll_exit() is None:
            raise ValueError(f"process {child.pid} still runs; end it with kill_tree before it is released")
        child.close()

    def adopted_children(self) -> list[Orphan]:
        return []

    def reap_adopted(self) -> int:
        return 0

    def orphans(self, prefix: str) -> list[Orphan]:
        """Other processes' environments cannot be read portably: always empty."""
        if not prefix:
            raise ValueError("an empty prefix would match every rig of this user")
        return []

    def sweep_token(self, token: str, timeout_s: float = 5.0) -> SweepReport:
        """As ``orphans``: finds nothing here."""
        return SweepReport(0, ())

    def sweep_prefix(self, prefix: str, timeout_s: float = 5.0) -> SweepReport:
        """As ``orphans``: finds nothing here."""
        return SweepReport(0, tuple(self.orphans(prefix)))

    @staticmethod
    def _mine(child: Child) -> PortableChild:
        if not isinstance(child, PortableChild):
            raise TypeError("this child was started by another implementation of process control")
        return child
