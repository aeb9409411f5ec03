"""The lifeline: a pipe that tells the rig's processes that their supervisor is gone.

The supervisor keeps the write end and never writes; every process it starts inherits the read end. When
the supervisor ends, however it ends, the kernel closes the write end and the read end becomes readable.
"""

from __future__ import annotations

import os

from ...bus.lifeline import ALIVE_VARIABLE, LIFELINE_VARIABLE, alive_fd, lifeline_fd

__all__ = ["ALIVE_VARIABLE", "LIFELINE_VARIABLE", "Lifeline", "alive_fd", "lifeline_fd"]


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
