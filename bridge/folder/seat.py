"""One bridge a rig: a lock on the rig's local disk, held by the kernel and gone with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ...bus.errors import ConfigError


class Seat:
    """The lock ``<state>/bridge.lock``. Who has it writes its pid into it, for the others to say."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """This process has it."""
        return self._fd is not None

    def take(self) -> bool:
        """Try, without waiting; whether this process has it now.

        Raises:
            ConfigError: the state folder refuses.
        """
        if self._fd is not None:
            return True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise ConfigError(
                f"{self._path}: {e.strerror}; choose a state folder of yours with --state DIR or RIGBUS_STATE"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError as e:
            os.close(fd)
            raise ConfigError(
                f"{self._path}: no locks there ({e.strerror}); the state folder must be on a local disk"
            ) from None
        self._fd = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return True

    def holder(self) -> str:
        """The pid of the one that has it, as it wrote it; "?" where it has not yet."""
        try:
            return self._path.read_text("ascii", "replace").strip() or "?"
        except OSError:
            return "?"

    def leave(self) -> None:
        """Give it up; a second time does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
