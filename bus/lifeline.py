"""The two pipes between the supervisor and the rig's processes, as those processes hold them. Standard library only.

The *lifeline* is read: it ends with the supervisor, whose end is in `agents/supervisor/lifeline.py`. The *alive pipe* is
written: a process whose loop turns says so once a second; one that lives and says nothing is killed and started again.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

LIFELINE_VARIABLE: Final = "RIGBUS_LIFELINE_FD"
ALIVE_VARIABLE: Final = "RIGBUS_ALIVE_FD"
ALIVE_S: Final = 1.0  #: between two signs of life


def lifeline_fd(environ: Mapping[str, str] | None = None) -> int | None:
    """The inherited read end, or None when nobody supervises this process.

    Register it in the poller: readable means that the supervisor is dead. The descriptor is not passed on
    to this process's own children. A number that is no open pipe (a stale variable) counts as none.
    """
    return _inherited_pipe(LIFELINE_VARIABLE, os.environ if environ is None else environ)


def alive_fd(environ: Mapping[str, str] | None = None) -> int | None:
    """The inherited write end of the alive pipe, not passed on to children; None when nobody watches this process.

    Only the main thread gets it: whatever else runs in this process, its life is that loop's.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    fd = _inherited_pipe(ALIVE_VARIABLE, os.environ if environ is None else environ)
    if fd is not None:
        os.set_blocking(fd, False)
    return fd


def _inherited_pipe(variable: str, environ: Mapping[str, str]) -> int | None:
    text = environ.get(variable, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        return None
    fd = int(text)
    try:
        if fd <= 2 or not stat.S_ISFIFO(os.fstat(fd).st_mode):
            return None
        os.set_inheritable(fd, False)
    except OSError:
        return None
    return fd


class Alive:
    """The sign of life of a loop: call :meth:`say` in each turn, it writes a byte when :data:`ALIVE_S` have passed.

    Not from a thread of its own: that would live on beside a loop that hangs.
    """

    def __init__(self, fd: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """``fd``: as :func:`alive_fd` gives it; with None nothing is ever written."""
        self._fd = fd
        self._clock = clock
        self._due_at = 0.0

    def say(self) -> None:
        """Never waits; a pipe that is full or closed is the supervisor's matter."""
        if self._fd is None or (now := self._clock()) < self._due_at:
            return
        self._due_at = now + ALIVE_S
        try:
            os.write(self._fd, b"\n")
        except OSError:
            pass  # its lifeline says whether it is gone
