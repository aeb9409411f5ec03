"""Process control as its callers see it: what to start, how it ended, and the two protocols.

The caller is one long-lived thread with one poller. It makes every fork (the parent death signal follows
the *thread* that forked), and nothing here blocks it: a child is three descriptors to register (``fds``),
the end of an attempt is a ``Sweep`` to step. ``linux.py`` and ``portable.py`` implement it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...bus.errors import RigbusError
from ..attempts.output import HEAD_BYTES, MAX_LOG_BYTES, TAIL_BYTES, OutputSummary

TOKEN_VARIABLE = "RIGBUS_TOKEN"  # noqa: S105 - the name of a variable
#: A tree that still lives so long after SIGKILL hangs in the kernel (state D): nothing that we do will end it.
UNKILLABLE_S = 30.0
ENTER_TIMEOUT_S = 10.0  # DESIGN 5: a child that has not entered its folder by then is killed, class infra


class SpawnError(RigbusError):
    """The process could not be started. ``error_class`` is ``definition`` or ``infra`` (DESIGN 3)."""

    def __init__(self, message: str, error_class: str = "infra") -> None:
        super().__init__(message)
        self.error_class = error_class


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """What to start.

    argv: the program (looked up in ``env``'s PATH) and its arguments, passed on byte by byte.
    env: the whole environment (see ``task_environment``); RIGBUS_TOKEN is added.
    token: marks the process and all its descendants, ``<state id>:<worker session>:<inc>.<seq>``.
    cwd: the local folder where it starts. enter: the folder (absolute, often on the share) that it makes
    and enters *itself*, so that a hung mount holds the child and never the caller. enter_needs: a folder
    that must be there first, so that nothing is made in the empty mount point of a share that is away.
    capture: True reads its stdout and stderr through one pipe (``read_output``); False lets it append to
    ``log_path`` itself (/dev/null without one), for children that must outlive their reader's attention.
    pass_fds: descriptors it inherits under the same numbers. umask: -1 keeps ours.
    subreaper: it gathers its own orphans, so none that we adopt while it lives can be its.
    death_signal: it dies at once when this process is killed. False where a supervisor then sweeps its token: the
    program that arms the signal costs 0.8 ms a start.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    token: str
    cwd: Path
    enter: Path | None = None
    enter_needs: Path | None = None
    log_path: Path | None = None
    max_log_bytes: int = MAX_LOG_BYTES
    head_bytes: int = HEAD_BYTES
    tail_bytes: int = TAIL_BYTES
    pass_fds: tuple[int, ...] = ()
    umask: int = -1
    capture: bool = True
    subreaper: bool = False
    death_signal: bool = True


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How the direct child ended: ``code`` (0…255) or ``signal``; both None when another waiter took it.

    ``sent_by_us``: we had signalled it before. ``entered``: its own start-up (folder made and entered) was
    over; if not, ``message`` says why. ``duration_s`` runs from the fork.
    """

    code: int | None
    signal: int | None
    sent_by_us: bool
    duration_s: float
    entered: bool = True
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0 and self.entered

    @property
    def error_class(self) -> str:
        """``""`` (ok), ``killed`` (by us: the caller knows why), or DESIGN 3's ``task crash infra``."""
        if self.ok:
            return ""
        if not self.entered or (self.code is None and self.signal is None):
            return "infra"
        if self.signal is None:
            return "task"
        return "killed" if self.sent_by_us else "crash"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A living process that bears a token of ours, or that we adopted (then ``token`` may be empty).

    ``state``: the kernel's letter for what it does (D: it cannot be interrupted); "" where nobody says.
    """

    pid: int
    cmdline: str
    token: str
    state: str = ""


def unkillable(survivors: Sequence[Orphan]) -> str:
    """What does not die, in words: ``pid 4711 (cat /mnt/x, state D) cannot be killed``."""
    named = [
        f"pid {left.pid} ({left.cmdline[:80] or 'no command line'}"
        + (f", state {left.state})" if left.state else ")")
        for left in survivors[:3]
    ]
    rest = f" and {len(survivors) - 3} more" if len(survivors) > 3 else ""
    return f"{', '.join(named) or 'a process of it'}{rest} cannot be killed"


@dataclass(frozen=True, slots=True)
class SweepReport:
    """``killed`` processes were signalled; ``survivors`` still live (uninterruptible sleep, another user)."""

    killed: int
    survivors: tuple[Orphan, ...]


class Child(Protocol):
    """A direct child. Descriptors that are None are closed already or unknown to the platform."""

    pid: int
    token: str
    exit_fd: int | None  # readable: it has ended; call poll_exit
    output_fd: int | None  # readable: call read_output
    entered_fd: int | None  # readable: call read_entry
    entered: bool
    entry_message: str
    status: ExitStatus | None

    @property
    def fds(self) -> list[int]:
        """The open ones of the three, to register in a poller (level-triggered)."""

    def open_log(self) -> None:
        """Makes the log file, if it is not there: whoever follows it need not wait for the first byte."""

    def read_output(self) -> bool:
        """Drains the pipe, bounded, never blocks. False: the stream has ended and output_fd is None."""

    def read_entry(self) -> bool:
        """True once the child has made and entered its folder. A failure ends it and is in ``status``."""

    def poll_exit(self) -> ExitStatus | None:
        """The end of the process, not of its output: a grandchild may hold the pipe. Never blocks."""

    def finish_output(self) -> OutputSummary:
        """Takes what the pipe holds now, closes it and the log. Call it after the exit or the sweep."""

    def close(self) -> None:
        """Closes every descriptor; idempotent. Kills nothing."""


class Sweep(Protocol):
    """The end of one attempt, a step at a time."""

    done: bool

    @property
    def survivors(self) -> tuple[Orphan, ...]:
        """What still lived at the last step, its own process first; empty when done, except processes we may not signal."""

    def step(self) -> bool:
        """Kills what is left and reaps what is dead, without waiting. True: the tree is dead.

        Step again when the poller wakes, at the latest after 50 ms.
        """

    def give_up(self) -> None:
        """What lives still hangs in the kernel: no other sweep waits for it. This one goes on, step by step."""


class Processes(Protocol):
    """Process control of one process: one instance each (``processes()``), used from one thread."""

    poll_s: float | None  # the longest sleep while children live; None: exit_fd wakes the poller

    def become_subreaper(self) -> bool:
        """Orphans of our children become ours. False where the platform has no such thing."""

    def spawn(self, spec: Spawn) -> Child:
        """Starts ``spec`` in a session of its own with stdin /dev/null.

        Raises:
            SpawnError: not startable; ``error_class`` says whose fault it is.
        """

    def terminate(self, child: Child) -> None:
        """SIGTERM to its process group: the polite first step of a cancel."""

    def kill_tree(self, child: Child) -> Sweep:
        """The end of an attempt, also after a normal exit: SIGKILL to the group, then to all that is left."""

    def release(self, child: Child) -> None:
        """Forgets an ended child without a sweep: reaps it and closes its descriptors."""

    def adopted_children(self) -> list[Orphan]:
        """Children of ours that we did not start: living orphans of attempts."""

    def reap_adopted(self) -> int:
        """Buries dead adopted children one by one, by pid; their number. Call it every second or so."""

    def orphans(self, prefix: str) -> list[Orphan]:
        """Every living process of this user whose token starts with ``prefix``, except ourselves."""

    def sweep_token(self, token: str, timeout_s: float = 5.0) -> SweepReport:
        """Kills all bearers of ``token`` and their descendants. Blocks, at most ``timeout_s``."""

    def sweep_prefix(self, prefix: str, timeout_s: float = 5.0) -> SweepReport:
        """As sweep_token, for every token that starts with ``prefix`` (a worker's, or a rig's)."""


def shell_argv(command: str) -> list[str]:
    """``command`` for ``Spawn.argv``. It stays one argument: no second shell reads its text."""
    return ["bash", "-c", command]
