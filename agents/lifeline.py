"""The lifeline: a pipe that tells the rig's processes that their supervisor is gone.

The supervisor keeps the write end and never writes; every process it starts inherits the read end. When
the supervisor ends, however it ends, the kernel closes the write end and the read end becomes readable.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

LIFELINE_VARIABLE = "RIGBUS_LIFELINE_FD"


class Lifeline:
    """The supervisor's end. Give ``read_fd`` as ``Spawn.pass_fds`` and ``env`` to every child."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()  # not inherited unless passed on

    @property
    def env(self) -> dict[str, str]:
        return {LIFELINE_VARIABLE: str(self.read_fd)}

    def close(self) -> None:
        """Lets go on purpose: every holder of the read end sees the end now."""
        for fd in (self._write_fd, self.read_fd):
            if fd >= 0:
                os.close(fd)
        self.read_fd = self._write_fd = -1


def lifeline_fd(environ: Mapping[str, str] | None = None) -> int | None:
    """The inherited read end, or None when nobody supervises this process.

    Register it in the poller: readable means that the supervisor is dead. The descriptor is not passed on
    to this process's own children. A number that is no open pipe (a stale variable) counts as none.
    """
    text = (os.environ if environ is None else environ).get(LIFELINE_VARIABLE, "")
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
