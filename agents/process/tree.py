"""Reading Linux's /proc: who lives, whose child, which token; and signals that cannot hit a reused pid.

Every function takes a process that vanishes meanwhile as an answer, not as an error. That *we* have no descriptor or
memory left to look is no answer: it is raised, for whoever took it for one would let processes live.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from time import monotonic

from .api import TOKEN_VARIABLE, Orphan, SweepReport

_TOKEN_MARK = f"{TOKEN_VARIABLE}=".encode()
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_RESCAN_MS = 50.0
_MAX_WATCHED = 64  # pidfds held at once while waiting for deaths; a fork bomb must not exhaust descriptors


@dataclass(frozen=True, slots=True)
class Proc:
    """One line of /proc/<pid>/stat. ``start`` is in ticks (10 ms) since boot; with the pid it is unique."""

    pid: int
    ppid: int
    pgrp: int
    session: int
    state: str
    start: int

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


def read_proc(pid: int) -> Proc | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError as error:
        _require_means(error)
        return None
    fields = line.rpartition(b")")[2].split()  # the name before it may hold spaces and parentheses
    if len(fields) < 20:
        return None
    return Proc(pid, int(fields[1]), int(fields[2]), int(fields[3]), fields[0].decode(), int(fields[19]))


def _require_means(error: OSError) -> None:
    """Raise an error that says nothing of the process that was looked for."""
    if error.errno in _SHORT:
        raise error


def peak_rss_bytes(pid: int) -> int | None:
    """The most memory that a living process has held at once; None where the kernel does not say."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    peaks = [line.split() for line in lines if line.startswith(b"VmHWM:")]  # "VmHWM:   1234 kB"
    return int(peaks[0][1]) * 1024 if peaks else None


def all_procs() -> list[Proc]:
    found = (read_proc(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [proc for proc in found if proc is not None]


def children_of(pid: int, *, main_thread_only: bool = False, but: Container[int] = ()) -> list[Proc]:
    """The direct children of ``pid``, dead ones not yet reaped included, ``but`` those that are known.

    The kernel keeps them by *thread*: those that a thread forked are in its list, orphans that the process
    adopts are in its first living thread's. So ``main_thread_only`` leaves out what other threads started.
    """
    try:
        threads = [str(pid)] if main_thread_only else os.listdir(f"/proc/{pid}/task")
        pids: list[int] = []
        for thread in threads:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                pids += map(int, file.read().split())
    except FileNotFoundError:
        # The process is gone, or the kernel was built without CONFIG_PROC_CHILDREN.
        if not os.path.exists(f"/proc/{pid}"):
            return []
        return [proc for proc in all_procs() if proc.ppid == pid and proc.pid not in but]
    except OSError as error:
        _require_means(error)
        return []
    found = (read_proc(child) for child in pids if child not in but)
    return [proc for proc in found if proc is not None and proc.ppid == pid]


def descendants(roots: Iterable[Proc]) -> list[Proc]:
    """``roots`` and everything below them, each once."""
    seen: dict[int, Proc] = {}
    todo = list(roots)
    while todo:
        proc = todo.pop()
        if proc.pid not in seen:
            seen[proc.pid] = proc
            if proc.alive:
                todo += children_of(proc.pid)
    return list(seen.values())


#: In the midst of its exec a program shows an empty environment for some microseconds; one started with `env -i` always.
_LOOKS = 50


def read_token(pid: int) -> str:
    """RIGBUS_TOKEN in the environment that ``pid`` was started with; "" without one or when not readable."""
    environment = b""
    for _ in range(_LOOKS):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
            if environment or not os.readlink(f"/proc/{pid}/exe"):
                break
        except OSError as error:
            _require_means(error)
            return ""  # gone, another user's, or of the kernel
        os.sched_yield()
    for entry in environment.split(b"\0"):
        if entry.startswith(_TOKEN_MARK):
            return entry[len(_TOKEN_MARK) :].decode("utf-8", "replace")
    return ""


def as_orphan(proc: Proc) -> Orphan:
    try:
        with open(f"/proc/{proc.pid}/cmdline", "rb") as file:
            words = file.read(4096).rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    command = b" ".join(words).decode("utf-8", "replace")
    try:
        token = read_token(proc.pid)
    except OSError:
        token = ""
    return Orphan(proc.pid, command, token, proc.state)


def bearers(match: Callable[[str], bool]) -> list[Proc]:
    """Living processes of this user whose token matches; never ourselves or those that we descend from."""
    spared = _ancestry()
    me = os.geteuid()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spared or _owner(name) != me:
            continue
        token = read_token(int(name))
        if token and match(token) and (proc := read_proc(int(name))) is not None and proc.alive:
            found.append(proc)
    return found


def kill_exactly(proc: Proc, number: int = signal.SIGKILL) -> int | None:
    """Signals this very process, never a later one with its pid.

    Returns its pidfd, readable when it has ended (the caller closes it), or None when it is gone already.

    Raises:
        PermissionError: it belongs to another user.  OSError: we have no descriptor or memory for it.
    """
    try:
        fd = os.pidfd_open(proc.pid)
    except ProcessLookupError:
        return None
    try:
        now = read_proc(proc.pid)  # the pidfd pins the pid: what we read now is what we signal
        if now is not None and now.start == proc.start:
            signal.pidfd_send_signal(fd, number)
            return fd
    except ProcessLookupError:
        pass
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None


def sweep_bearers(
    match: Callable[[str], bool], timeout_s: float, after_pass: Callable[[], object]
) -> SweepReport:
    """Kills all bearers and their descendants until none is left or ``timeout_s`` has passed (blocking).

    Raises:
        OSError: at the end of that time there was still no descriptor or memory to look.
    """
    deadline = monotonic() + timeout_s
    killed: set[tuple[int, int]] = set()
    clean_passes = 0  # two: a pid that wrapped around may be born behind the first look
    while True:
        try:
            victims = _kill_bearers(match, killed, deadline)
        except OSError as error:
            if error.errno not in _SHORT or monotonic() >= deadline:
                raise
            clean_passes = 0
            _await_deaths([], deadline - monotonic())  # others give some back meanwhile
            continue
        after_pass()
        clean_passes = 0 if victims else clean_passes + 1
        if clean_passes == 2 or monotonic() >= deadline:
            return SweepReport(len(killed), tuple(as_orphan(proc) for proc in victims))


def _kill_bearers(match: Callable[[str], bool], killed: set[tuple[int, int]], deadline: float) -> list[Proc]:
    """One pass: those that lived, killed now, added to ``killed``, and waited for a moment."""
    spared = _ancestry()
    victims = [proc for proc in descendants(bearers(match)) if proc.alive and proc.pid not in spared]
    watched: list[int] = []
    try:
        for proc in victims:
            killed.add((proc.pid, proc.start))
            try:
                fd = kill_exactly(proc)
            except PermissionError:
                continue
            if fd is not None and len(watched) < _MAX_WATCHED:
                watched.append(fd)
            elif fd is not None:
                os.close(fd)
        left_s = deadline - monotonic()
        if victims and left_s > 0:
            _await_deaths(watched, left_s)
    finally:
        for fd in watched:
            os.close(fd)
    return victims


def _await_deaths(pidfds: list[int], timeout_s: float) -> None:
    """Returns when all have ended, or soon enough for another look at those that do not."""
    poller = select.poll()
    for fd in pidfds:
        poller.register(fd, select.POLLIN)
    waiting = len(pidfds)
    deadline = monotonic() + min(timeout_s, _RESCAN_MS / 1000)
    while (left_s := deadline - monotonic()) > 0:
        for fd, _ in poller.poll(left_s * 1000):
            poller.unregister(fd)
            waiting -= 1
        if pidfds and not waiting:
            return


def _ancestry() -> set[int]:
    """This process and all above it."""
    pids: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        proc = read_proc(pid)
        pid = proc.ppid if proc is not None else 0
    return pids


def _owner(name: str) -> int:
    try:
        return os.stat(f"/proc/{name}").st_uid
    except OSError:
        return -1
