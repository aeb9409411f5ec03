"""Process control on Linux: nothing that an attempt starts outlives it, and no exit status is mistaken.

What is known about it (DESIGN 5, "Killing"), and where it is here:
- The parent death signal reaches only the direct child and follows the forking thread: one thread forks.
  It is set by ``setpriv`` in front of the command. Measured with 300 MB resident: 0.6 ms a start in the
  parent and 620 starts/s of ``bash -c :`` on two cores (550/s from spawn to swept, four at a time); a
  preexec_fn costs 10 ms and 90/s, since it forbids vfork. Without setpriv a few lines of Python arm it.
- killpg misses what called setsid: this process becomes a subreaper, so every orphan becomes its child,
  and each step of a sweep looks among these. An orphan is this attempt's by its token, its session or
  group, or because it was seen below the command; one without any mark (cleared environment, own
  session) as soon as no other running child is old enough to be its maker.
- waitpid(-1) takes other people's exit statuses: every wait here names a pid.
- A pid may be reused: a command stays unreaped until its sweep is over (which also pins its group), and
  other processes are signalled through a pidfd after a look at their start time.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property

from .api import (
    ENTER_TIMEOUT_S,
    TOKEN_VARIABLE,
    Child,
    ExitStatus,
    Orphan,
    Processes,
    Spawn,
    SpawnError,
    Sweep,
    SweepReport,
    shell_argv,
)
from .child import BaseChild
from .portable import PortableProcesses
from .tree import (
    Proc,
    as_orphan,
    bearers,
    children_of,
    descendants,
    kill_exactly,
    read_proc,
    read_token,
    sweep_bearers,
)

__all__ = [
    "ENTER_TIMEOUT_S",
    "TOKEN_VARIABLE",
    "Child",
    "ExitStatus",
    "LinuxProcesses",
    "Orphan",
    "PortableProcesses",
    "Processes",
    "Spawn",
    "SpawnError",
    "Sweep",
    "SweepReport",
    "processes",
    "shell_argv",
]

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_UNWATCHED_SWEEP_S = 1.0


@cache
def processes() -> Processes:
    """The process control of this process: one instance, since the kernel knows one parent."""
    if sys.platform.startswith("linux") and hasattr(os, "pidfd_open") and _pidfd_works():
        return LinuxProcesses()
    return PortableProcesses()


def _pidfd_works() -> bool:
    """Linux before 5.3, and some sandboxes, refuse the call."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


class LinuxChild(BaseChild):
    """A child whose end shows on a pidfd, and that stays a zombie until it is swept or released."""

    def __init__(self, spec: Spawn, wrapper: list[str]) -> None:
        super().__init__(spec, wrapper)
        self.reaped = False
        self.sweeping = False
        try:
            self.exit_fd = os.pidfd_open(self.pid)
        except OSError as error:  # out of descriptors: nothing that we could not watch stays running
            os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()
            self.close()
            with suppress(OSError):  # what has left its group meanwhile
                sweep_bearers(lambda token: token == spec.token, _UNWATCHED_SWEEP_S, lambda: None)
            raise SpawnError(f"cannot watch {spec.argv[0]!r}: {error}; raise the open-files limit") from error

    @cached_property
    def start(self) -> int:
        """When it began, in ticks since boot. Asked for while it is not reaped."""
        proc = read_proc(self.pid)
        return proc.start if proc is not None else 0

    def poll_exit(self) -> ExitStatus | None:
        if self.status is not None:
            return self.status
        try:
            # WNOWAIT: only a look. The zombie keeps pid and group from being reused until the sweep's end.
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return self._ended(None, None, "its exit status was taken by another waiter in this process")
        if info is None:
            return None
        if info.si_code == os.CLD_EXITED:
            return self._ended(info.si_status, None)
        return self._ended(None, info.si_status)

    def signal_group(self, number: int) -> None:
        if self.reaped:
            return
        self.signalled = self.signalled or self.poll_exit() is None
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # No member is left, or only members of another user: the sweep sees and names them.
            pass

    def reap(self) -> None:
        """Buries the zombie. Popen does it, so that it never polls this pid again by itself."""
        if not self.reaped and self.poll_exit() is not None:
            self._popen.poll()
            self.reaped = True


class LinuxSweep:
    """The end of one attempt (see the file's head). ``done`` when all of it is dead and reaped."""

    def __init__(self, owner: LinuxProcesses, child: LinuxChild) -> None:
        self.done = False
        self._owner = owner
        self._child = child
        self._known: set[tuple[int, int]] = set()
        self._left: list[Proc] = []
        self._said: set[str] = set()
        child.sweeping = True

    @property
    def survivors(self) -> tuple[Orphan, ...]:
        try:
            main = None if self.done or self._child.poll_exit() is not None else read_proc(self._child.pid)
        except OSError:
            main = None
        return tuple(map(as_orphan, [*([main] if main is not None else []), *self._left]))

    def give_up(self) -> None:
        hanging = {(proc.pid, proc.start) for proc in self._left}
        self._known |= hanging
        self._owner.hanging |= hanging

    def step(self) -> bool:
        try:
            return self.done or self._step()
        except OSError as error:
            # Out of descriptors or memory: nobody is taken for dead that could not be seen.
            self._say("a look at the processes of an attempt failed (%s); looking again", error)
            return False

    def _step(self) -> bool:
        child = self._child
        if child.poll_exit() is None:
            # Seen now they are known to be its own, also when they have no mark and lose their parent.
            main = read_proc(child.pid)
            if main is not None:
                self._known.update((proc.pid, proc.start) for proc in descendants([main]))
        child.signal_group(signal.SIGKILL)
        # Asked before the look: only when it had ended by then are all its orphans among our children.
        ended = child.poll_exit() is not None
        adopted = self._owner.adopted()
        self._left = [proc for proc in self._find(adopted, ended) if proc.alive]
        out_of_reach = sum(not self._kill(proc) for proc in self._left)
        if adopted or self._left:
            self._owner.reap_adopted()
        if ended and out_of_reach == len(self._left):
            self._owner.forget(child)
            self._owner.hanging -= self._known
            self.done = True
        return self.done

    def _find(self, adopted: list[Proc], ended: bool) -> list[Proc]:
        owner, child = self._owner, self._child
        roots = [proc for proc in adopted if proc.alive and self._belongs(proc)]
        main = None if ended else read_proc(child.pid)
        if main is not None and main.alive:
            roots += [proc for proc in descendants([main]) if proc.pid != child.pid]
        if not owner.is_subreaper:
            roots += bearers(lambda token: token == child.token)
        return descendants(roots)

    def _belongs(self, proc: Proc) -> bool:
        pid = self._child.pid
        if (proc.pid, proc.start) in self._known or pid in (proc.session, proc.pgrp):
            return True
        token = read_token(proc.pid)
        return token == self._child.token or self._owner.is_stray(proc, token)

    def _kill(self, proc: Proc) -> bool:
        """False for a process of another user (sudo in a command): only a person can end that."""
        try:
            fd = kill_exactly(proc)
        except PermissionError:
            return False
        except OSError as error:
            self._say("a process of an attempt could not be killed (%s); trying again", error)
            return True
        if fd is not None:
            os.close(fd)
        return True

    def _say(self, text: str, error: OSError) -> None:
        """Once a sweep: it steps twenty times a second."""
        if text not in self._said:
            self._said.add(text)
            log.warning(text, error.strerror)


class LinuxProcesses:
    """Process control with pidfds, a subreaper and parent death signals. One instance, one thread.

    Once it is a subreaper, new children in the main thread's list that it did not start, in a session
    that is not ours, count as orphans of attempts. Processes that this program's other threads start, or
    that carry its own RIGBUS_TOKEN, or that were there before, are left alone.
    """

    poll_s: float | None = None

    def __init__(self, launcher: list[str] | None = None) -> None:
        """``launcher``: the words in front of each command that arm its death signal; found by default."""
        self.is_subreaper = False
        self._launcher = launcher if launcher is not None else default_launcher()
        self._live: dict[int, LinuxChild] = {}
        self._foreign: set[tuple[int, int]] = set()
        self.hanging: set[tuple[int, int]] = set()  #: of sweeps that were given up: nobody else's to wait for
        self._own_token = os.environ.get(TOKEN_VARIABLE, "")
        self._pid = os.getpid()
        self._session = os.getsid(0)

    def become_subreaper(self) -> bool:
        if not self.is_subreaper:
            self._foreign = {(proc.pid, proc.start) for proc in self.adopted()}
            self.is_subreaper = _prctl()(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        return self.is_subreaper

    def spawn(self, spec: Spawn) -> LinuxChild:
        child = LinuxChild(spec, self._launcher if spec.death_signal else [])
        self._live[child.pid] = child
        return child

    def terminate(self, child: Child) -> None:
        self._mine(child).signal_group(signal.SIGTERM)

    def kill_tree(self, child: Child) -> LinuxSweep:
        return LinuxSweep(self, self._mine(child))

    def release(self, child: Child) -> None:
        mine = self._mine(child)
        if mine.poll_exit() is None:
            raise ValueError(f"process {child.pid} still runs; end it with kill_tree before it is released")
        self.forget(mine)
        mine.close()

    def forget(self, child: LinuxChild) -> None:
        child.reap()
        self._live.pop(child.pid, None)

    def adopted(self) -> list[Proc]:
        """Direct children, dead or alive, that we did not start (see the class)."""
        return [
            proc
            for proc in children_of(self._pid, main_thread_only=True, but=self._live)
            if proc.session != self._session
            and (proc.pid, proc.start) not in self._foreign
            and not (self._own_token and proc.alive and read_token(proc.pid) == self._own_token)
        ]

    def adopted_children(self) -> list[Orphan]:
        return [as_orphan(proc) for proc in self.adopted() if proc.alive]

    def reap_adopted(self) -> int:
        if not self.is_subreaper:
            return 0
        buried = 0
        try:
            adopted = self.adopted()
        except OSError:  # out of descriptors or memory: they wait
            return 0
        for proc in adopted:
            if not proc.alive:
                try:
                    buried += os.waitid(os.P_PID, proc.pid, os.WEXITED | os.WNOHANG) is not None
                except ChildProcessError:
                    continue
        return buried

    def is_stray(self, proc: Proc, token: str) -> bool:
        """No running attempt can be the maker of this adopted process.

        An attempt under a sweep of its own counts as ended, but what bears its token is that sweep's; a child that is a
        subreaper keeps its orphans.
        """
        if not self.is_subreaper or (proc.pid, proc.start) in self.hanging:
            return False
        if any(child.token == token for child in self._live.values()):
            return False
        running = [child for child in self._live.values() if not child.sweeping]
        if any(child.pid in (proc.session, proc.pgrp) for child in running):
            return False
        return not any(child.start <= proc.start and not child.gathers_orphans for child in running)

    def orphans(self, prefix: str) -> list[Orphan]:
        return [as_orphan(proc) for proc in bearers(_starts_with(prefix))]

    def sweep_token(self, token: str, timeout_s: float = 5.0) -> SweepReport:
        if not token:
            raise ValueError("an empty token names no process")
        return sweep_bearers(lambda other: other == token, timeout_s, self.reap_adopted)

    def sweep_prefix(self, prefix: str, timeout_s: float = 5.0) -> SweepReport:
        return sweep_bearers(_starts_with(prefix), timeout_s, self.reap_adopted)

    @staticmethod
    def _mine(child: Child) -> LinuxChild:
        if not isinstance(child, LinuxChild):
            raise TypeError("this child was started by another implementation of process control")
        return child


def _starts_with(prefix: str) -> Callable[[str], bool]:
    if not prefix:
        raise ValueError("an empty prefix would match every rig of this user")
    return lambda token: token.startswith(prefix)


@cache
def _prctl() -> Callable[..., int]:
    function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return function


@cache
def default_launcher() -> list[str]:
    """setpriv where it works (tried once), else ``PYTHON_LAUNCHER``."""
    program = shutil.which("setpriv")
    if program is not None:
        words = [program, "--pdeathsig", "KILL", "--"]
        trial = subprocess.run(
            [*words, "/bin/sh", "-c", ":"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if trial.returncode == 0:
            return words
    return PYTHON_LAUNCHER


# Where setpriv is missing (some minimal images): 15 ms a start, but the same guarantee. Python ignores
# SIGPIPE and SIGXFSZ for itself; a command must not inherit that.
_ARM = f"""\
import ctypes, os, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
PYTHON_LAUNCHER = [sys.executable, "-I", "-S", "-c", _ARM]
