"""Every system call that a piece of code makes on a folder: counted, recorded, or failed at the Nth one.

:func:`traced` forks, runs a function in the child under ptrace and shows each of its calls on files below a root to a
:class:`Watcher`, at entry and at exit. A watcher that answers an entry with an errno makes the kernel skip the call and
the child see the failure: SQLite's own calls fail like ours, with nothing patched. :class:`FailAt` does that at the Nth
call, :class:`Recorder` keeps what every write, sync, rename … did, byte for byte.

For x86-64 Linux, one thread, one child; fork from a process without threads (see :func:`alone`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from helpers import ROOT

#: Why nothing can be traced here; empty where it can.
UNABLE: Final = (
    ""
    if sys.platform == "linux" and platform.machine() == "x86_64"
    else "system calls are traced on x86-64 Linux only"
)

_TRACEME, _POKEUSER, _GETREGS, _SYSCALL, _SETOPTIONS = 0, 6, 12, 24, 0x4200
_SYSGOOD, _EXITKILL = 1, 0x100000
_TRAP: Final = signal.SIGTRAP | 0x80
#: Of ``user_regs_struct``: the call's number, its result, its six arguments.
_NUMBER, _RESULT, _ARGS = 15, 10, (14, 13, 12, 7, 9, 8)
_AT_FDCWD: Final = -100

#: Calls by number: the name, and where the paths are ("fd0": a descriptor in argument 0; "at0": a folder's descriptor
#: in argument 0 and a name in argument 1; "path0": a name).
_CALLS: Final[dict[int, tuple[str, tuple[str, ...]]]] = {
    0: ("read", ("fd0",)),
    1: ("write", ("fd0",)),
    2: ("open", ("path0",)),
    4: ("stat", ("path0",)),
    5: ("fstat", ("fd0",)),
    6: ("lstat", ("path0",)),
    17: ("pread64", ("fd0",)),
    18: ("pwrite64", ("fd0",)),
    20: ("writev", ("fd0",)),
    40: ("sendfile", ("fd0",)),
    74: ("fsync", ("fd0",)),
    75: ("fdatasync", ("fd0",)),
    76: ("truncate", ("path0",)),
    77: ("ftruncate", ("fd0",)),
    82: ("rename", ("path0", "path1")),
    83: ("mkdir", ("path0",)),
    84: ("rmdir", ("path0",)),
    86: ("link", ("path0", "path1")),
    87: ("unlink", ("path0",)),
    88: ("symlink", ("path1",)),
    90: ("chmod", ("path0",)),
    91: ("fchmod", ("fd0",)),
    137: ("statfs", ("path0",)),
    138: ("fstatfs", ("fd0",)),
    217: ("getdents64", ("fd0",)),
    257: ("openat", ("at0",)),
    258: ("mkdirat", ("at0",)),
    262: ("newfstatat", ("at0",)),
    263: ("unlinkat", ("at0",)),
    264: ("renameat", ("at0", "at2")),
    265: ("linkat", ("at0", "at2")),
    285: ("fallocate", ("fd0",)),
    316: ("renameat2", ("at0", "at2")),
    326: ("copy_file_range", ("fd2",)),
    332: ("statx", ("at0",)),
}
#: Those that change something on the disk, or make it last.
CHANGING: Final = frozenset(
    {
        *("write", "pwrite64", "writev", "sendfile", "copy_file_range", "fallocate", "ftruncate", "truncate"),
        *("fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "symlink"),
        *("unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
    }
)
#: Those that find no room on a full disk.
ROOM: Final = frozenset(
    {
        *("write", "pwrite64", "writev", "sendfile", "copy_file_range", "fallocate"),
        *("mkdir", "mkdirat", "link", "linkat", "symlink", "rename", "renameat", "renameat2"),
    }
)


class Call(NamedTuple):
    """One call on a file below the root; ``paths`` are absolute, one or two."""

    name: str
    paths: tuple[str, ...]
    args: tuple[int, ...]
    pid: int

    @property
    def creates(self) -> bool:
        """An open that may make the file."""
        return self.name in ("open", "openat") and bool(self.flags & os.O_CREAT)

    @property
    def flags(self) -> int:
        return self.args[1] if self.name == "open" else self.args[2]


class Watcher:
    """Sees every call; the base only counts."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.count = 0

    def enter(self, call: Call) -> int | None:
        """The errno that the call is to fail with, None to let it happen."""
        self.count += 1
        return None

    def leave(self, call: Call, result: int) -> None:
        """It returned ``result``, an errno negated."""


class FailAt(Watcher):
    """The ``nth`` call (from 1) of those that ``fits`` fails with ``error``; with ``on`` all that come after it, too."""

    def __init__(
        self, root: Path, nth: int, error: int, fits: Callable[[Call], bool], *, on: bool = False
    ) -> None:
        super().__init__(root)
        self.nth, self.error, self.fits, self.on = nth, error, fits, on
        self.failed: Call | None = None

    def enter(self, call: Call) -> int | None:
        if not self.fits(call):
            return None
        self.count += 1
        if self.count == self.nth:
            self.failed = call
        return self.error if self.count == self.nth or (self.on and self.count > self.nth) else None


class Op(NamedTuple):
    """What one call did to the files: ``kind`` is write, size, make, sync, move, link, gone, folder, or say."""

    kind: str
    path: str
    at: int = 0  #: the offset of a write, the length for size
    data: bytes = b""
    to: str = ""  #: of a move or link


class Recorder(Watcher):
    """Keeps what happened below ``folder``, in order, and among it what was written to ``says``: the program's answers."""

    def __init__(self, folder: Path, says: Path) -> None:
        super().__init__(folder.parent)
        self.folder, self.says = str(folder), str(says)
        self.ops: list[Op] = []
        self._was_there = True

    def enter(self, call: Call) -> int | None:
        self.count += 1
        self._was_there = os.path.lexists(call.paths[0])
        return None

    def leave(self, call: Call, result: int) -> None:
        path = call.paths[0]
        if result < 0:
            return
        if path == self.says:
            if call.name == "write":
                self.ops.append(Op("say", path, data=_content(call.pid, call.args[0], result)[1]))
            return
        if not path.startswith(self.folder) or path.endswith("-shm"):
            return  # the index of the log is made anew by whoever opens it first
        name, add = call.name, self.ops.append
        if name in ("open", "openat"):
            if not self._was_there:
                add(Op("make", path))
            elif call.flags & os.O_TRUNC:
                add(Op("size", path, 0))
        elif name == "pwrite64":
            at = call.args[3]
            add(Op("write", path, at, _read(path, at, result)))
        elif name in ("write", "writev", "sendfile") and result:
            at, data = _content(call.pid, call.args[0], result)
            add(Op("write", path, at, data))
        elif name == "copy_file_range" and result:
            at, data = _content(call.pid, call.args[2], result)
            add(Op("write", path, at, data))
        elif name in ("ftruncate", "truncate", "fallocate"):
            add(Op("size", path, os.stat(path).st_size))
        elif name in ("fsync", "fdatasync"):
            add(Op("sync", path))
        elif name.startswith("rename"):
            add(Op("move", path, to=call.paths[1]))
        elif name.startswith("link"):
            add(Op("link", path, to=call.paths[1]))
        elif name in ("unlink", "unlinkat", "rmdir"):
            add(Op("gone", path))
        elif name.startswith("mkdir"):
            add(Op("folder", path))


def _read(path: str, at: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, at)
    finally:
        os.close(fd)


def _content(pid: int, fd: int, size: int) -> tuple[int, bytes]:
    """Where the last ``size`` bytes went that the child wrote at the position of ``fd``, and what they are."""
    info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
    at = int(info.split("pos:")[1].split()[0]) - size
    return at, _read(f"/proc/{pid}/fd/{fd}", at, size)


def traced(run: Callable[[], None], watcher: Watcher) -> int:
    """Run it in a child under ``watcher``; its exit code: 0, 1 with a traceback on stderr, or a signal negated.

    Raises:
        OSError: this machine lets nobody trace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _as_child(run, libc)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise OSError(errno.EPERM, "this machine lets no process be traced")
    libc.ptrace(_SETOPTIONS, pid, None, _SYSGOOD | _EXITKILL)
    return _Loop(libc, pid, watcher).run()


def _as_child(run: Callable[[], None], libc: Any) -> None:
    code = 1
    try:
        if libc.ptrace(_TRACEME, 0, None, None) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            run()
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class _Loop:
    """The child from stop to stop."""

    def __init__(self, libc: Any, pid: int, watcher: Watcher) -> None:
        self.libc, self.pid, self.watcher = libc, pid, watcher
        self._regs = (ctypes.c_ulonglong * 27)()
        self._root = watcher.root
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> int:
        try:
            inside, call, error, deliver = False, None, None, 0
            while True:
                self.libc.ptrace(_SYSCALL, self.pid, None, deliver)
                _, status = os.waitpid(self.pid, 0)
                deliver = 0
                if os.WIFEXITED(status):
                    return os.WEXITSTATUS(status)
                if os.WIFSIGNALED(status):
                    return -os.WTERMSIG(status)
                if os.WSTOPSIG(status) != _TRAP:
                    deliver = os.WSTOPSIG(status)
                    continue
                if not inside:
                    call, error = self._enter()
                elif call is not None:
                    self._leave(call, error)
                inside = not inside
        finally:
            os.close(self._memory)

    def _enter(self) -> tuple[Call | None, int | None]:
        self.libc.ptrace(_GETREGS, self.pid, None, self._regs)
        known = _CALLS.get(self._regs[_NUMBER])
        if known is None:
            return None, None
        args = tuple(ctypes.c_longlong(self._regs[i]).value for i in _ARGS)
        paths = tuple(self._path(how, args) for how in known[1])
        if not any(path.startswith(self._root) for path in paths):
            return None, None
        call = Call(known[0], paths, args, self.pid)
        error = self.watcher.enter(call)
        if error is not None:
            self._poke(_NUMBER, -1)  # no such call: the kernel does nothing
        return call, error

    def _leave(self, call: Call, error: int | None) -> None:
        if error is not None:
            self._poke(_RESULT, -error)
            self.watcher.leave(call, -error)
            return
        self.libc.ptrace(_GETREGS, self.pid, None, self._regs)
        self.watcher.leave(call, ctypes.c_longlong(self._regs[_RESULT]).value)

    def _poke(self, register: int, value: int) -> None:
        self.libc.ptrace(_POKEUSER, self.pid, 8 * register, value & 0xFFFFFFFFFFFFFFFF)

    def _path(self, how: str, args: tuple[int, ...]) -> str:
        n = int(how[-1])
        if how.startswith("fd"):
            return self._of(args[n])
        name, folder = (self._text(args[n]), _AT_FDCWD) if how.startswith("path") else self._at(args, n)
        if name.startswith("/"):
            return os.path.normpath(name)
        base = os.readlink(f"/proc/{self.pid}/cwd") if folder == _AT_FDCWD else self._of(folder)
        return os.path.normpath(os.path.join(base, name))

    def _at(self, args: tuple[int, ...], n: int) -> tuple[str, int]:
        return self._text(args[n + 1]), ctypes.c_int(args[n] & 0xFFFFFFFF).value

    def _of(self, fd: int) -> str:
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{fd & 0xFFFFFFFF}")
        except OSError:
            return ""

    def _text(self, at: int) -> str:
        """The string at an address; paths may end shortly before an unmapped page."""
        if not at:
            return ""
        found = b""
        while b"\0" not in found and len(found) < 4096:
            step = 256 - (at + len(found)) % 256
            found += os.pread(self._memory, step, at + len(found))
        return os.fsdecode(found.split(b"\0", 1)[0])


def alone(module: str, *words: str | int | Path, timeout_s: float = 110.0) -> dict[str, Any]:
    """Run a module of the tests as a program of its own, without threads; the JSON object on its last line.

    What it writes to stderr is in the error of one that fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
