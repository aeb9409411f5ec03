"""What the system says of the broker's process and of the connections that libzmq has accepted; and the end of one.

libzmq owns the descriptors and may close each at any moment, from its own thread.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import logging
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

CONNECTIONS: Final = 16_384
_FEWEST: Final = 64  #: connections that are allowed however few files may be opened
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Connection:
    """An accepted connection: its descriptor belongs to libzmq; ``inode`` tells whether it is still the same."""

    fd: int
    inode: int
    socket: str
    peer: str
    pid: int


class Process:
    """What the system says of this process and its connections, over descriptors that are kept for it.

    When connections have taken all there are (those over TCP can), it is here that some are given back: none is asked for.
    """

    def __init__(self) -> None:
        self._nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._borrowed = os.dup(self._nothing)
        self._size = 0
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._statm = -1

    def size_bytes(self) -> int:
        """The memory of this process (RSS, bytes); 0 where the system does not say."""
        if self._statm >= 0:
            with suppress(OSError, IndexError, ValueError):
                self._size = int(os.pread(self._statm, 64, 0).split()[1]) * _PAGE
        return self._size

    def accepted(self, fd: int, name: str) -> Connection:
        """Who is at the other end.

        Raises:
            OSError: nobody any more.
        """
        with self._held(fd) as s:
            inode = os.fstat(s.fileno()).st_ino
            if s.family != socket.AF_UNIX:
                host, port, *_ = s.getpeername()
                return Connection(fd, inode, name, f"{host}:{port}", 0)
            pid = _peer_pid(s)
        return Connection(fd, inode, name, _named(pid) if pid else "a local process", pid)

    def shut_down(self, connection: Connection) -> bool:
        """End a connection under libzmq: it reads an end of file, and drops what had not ended. False: it was gone."""
        try:
            with self._held(connection.fd) as s:
                if os.fstat(s.fileno()).st_ino != connection.inode:
                    return False
                s.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self._nothing, self._borrowed, self._statm):
            if fd >= 0:
                os.close(fd)

    @contextmanager
    def _held(self, fd: int) -> Iterator[socket.socket]:
        """A descriptor of libzmq's, which may close it at any moment, as a socket that stays what it is."""
        os.dup2(fd, self._borrowed, inheritable=False)
        try:
            s = socket.socket(fileno=self._borrowed)
            try:
                yield s
            finally:
                s.detach()
        finally:
            os.dup2(self._nothing, self._borrowed, inheritable=False)


def _peer_pid(s: socket.socket) -> int:
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0
    pid, _uid, _gid = struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return int(pid)


def _named(pid: int) -> str:
    """``pid 12 (python3)``."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"pid {pid} ({file.read(32).strip()})"
    except OSError:
        return f"pid {pid}"


def unread_bytes(fd: int) -> int:
    """Bytes that a connection's peer has sent and libzmq has not read."""
    n = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, n)
    return n[0]


def trim() -> None:
    """Give back what was freed, so that it can be told from what was not (glibc; elsewhere it comes back or not)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def allowed(connections: int | None) -> int:
    """How many connections there may be: as many as are wanted, unless the system lets the process open fewer files.

    Half of the descriptors stay free: a burst beyond the bound holds some until libzmq has seen their end.
    """
    wanted = CONNECTIONS if connections is None else connections
    files = _descriptors(2 * wanted)
    most = max(_FEWEST, files // 2)
    if connections is not None and most < connections:
        log.warning(
            "limits.connections is %d, but the system lets this process open %d files, which is enough for %d "
            "connections; raise that limit (ulimit -Hn)",
            *(connections, files, most),
        )
    return min(wanted, most)


def _descriptors(wanted: int) -> int:
    """How many this process may open, when it has asked for as many as are wanted."""
    try:
        import resource
    except ImportError:
        return 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft
