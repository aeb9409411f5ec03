"""A small file system of a test's own, which it can fill to the last byte."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CHUNK = 64 << 10


class SmallDisk:
    """``point`` is where it is mounted; ``fill`` leaves nothing, ``free`` takes the filling away."""

    def __init__(self, point: Path) -> None:
        self.point = point
        self._filler = point / "filler"

    @property
    def free_bytes(self) -> int:
        disk = os.statvfs(self.point)
        return disk.f_bavail * disk.f_frsize

    def fill(self) -> None:
        """As another program does that fills the disk.

        It takes what was free when it began and no more: a broker that gives up its ballast meanwhile keeps that room.
        """
        room = self.free_bytes
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while room > 0:
                room -= os.write(fd, bytes(min(_CHUNK, room)))
        except OSError as e:
            if e.errno != errno.ENOSPC:  # that is somebody else who wrote meanwhile
                raise
        finally:
            os.close(fd)

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(point: Path, size_mb: int) -> Iterator[SmallDisk]:
    """A tmpfs of this size; the test is skipped, with the reason, where nothing may be mounted."""
    point.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", "tmpfs", str(point)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        why = done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as e:
        why = str(e)
    if why:
        pytest.skip(f"a full disk was not tried: no small file system can be mounted here ({why})")
    try:
        yield SmallDisk(point)
    finally:
        subprocess.run(["umount", "-l", str(point)], capture_output=True, timeout=20, check=False)
