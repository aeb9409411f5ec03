"""How the bus fails: one tree. Read it and you know what can go wrong.

Every message of these errors says what, where and the fix.
"""

from __future__ import annotations

from collections.abc import Sequence


class RigbusError(Exception):
    """Base of everything that rigbus raises on purpose. ``exit_code`` is the CLI's (INTERFACE: exit codes)."""

    exit_code = 1


class BadFrame(RigbusError):
    """The peer broke PROTOCOL.md; ``rule`` names the paragraph. Drop the message, keep the loop."""

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule


class ConfigError(RigbusError):
    """A configuration value is unusable; the message names the file or variable and the fix."""

    exit_code = 2


class NotFound(RigbusError):
    """No such task, batch, worker or plan."""

    exit_code = 3


class Unreachable(RigbusError):
    """No broker answers (it is down, or the rig was never started)."""

    exit_code = 4


class PlanError(RigbusError):
    """A plan is invalid; ``problems`` hold one ``file:line: what; fix`` each."""

    exit_code = 5

    def __init__(self, message: str, problems: list[str] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or [message]


class TaskFailed(RigbusError):
    """Awaited work ended badly. ``state`` is DEAD, CANCELLED, EXPIRED or SKIPPED, ``error_class`` that of its last attempt."""

    exit_code = 6

    def __init__(
        self, message: str, *, task_id: str = "", state: str = "dead", error_class: str | None = None
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.state = state
        self.error_class = error_class


class WaitTimeout(RigbusError):
    """The wait ended first; the work goes on. ``ids`` are the tasks that had not ended."""

    exit_code = 7

    def __init__(self, message: str, *, ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.ids = list(ids)


class Refused(RigbusError):
    """Locked, busy, corrupt or not allowed."""

    exit_code = 8


class Busy(Refused):
    """A bound was reached; try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Conflict(Refused):
    """The same key was submitted with another payload."""


class StoreError(Refused):
    """The database is locked, damaged, of a newer schema, or on a file system that cannot hold it."""


class DiskFull(StoreError):
    """The state folder's disk has no room left. What was accepted is safe; another start works once there is room."""

    exit_code = 74  # EX_IOERR of sysexits.h: unlike 8, worth another start


class DefinitionError(RigbusError):
    """A task that can never run as it is written (wrong payload, value too long). Never retried."""


class LeaseLost(RigbusError):
    """The attempt that asks no longer holds its task: another attempt may run. Stop; nothing it does will count."""


class WrongThread(RigbusError):
    """A connection was used from two threads; sockets belong to the thread that opened them. Open one a thread."""
