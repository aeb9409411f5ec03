"""The state folder's disk: how much is free, and the ballast, a file that is given up so that results find room.

A full disk refuses SQLite even a DELETE, and the results of running tasks cannot be asked for again. So a file of real
blocks is kept, truncated when a commit finds no room (the same commit is then tried again), and made anew once
twice its size is free.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..errors import DiskFull, StoreError
from .room import Level, Room, bars, level_of

log = logging.getLogger(__name__)

NAME: Final = "ballast"
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_FALLOCATE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
#: What SQLite makes of ENOSPC (FULL), of EDQUOT and of a WAL index that cannot grow (IOERR), of a file that cannot be
#: made (CANTOPEN). The latter two have other causes as well: whether the disk is full is asked of the disk.
_SUSPECT: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_PROBE_BYTES: Final = 64 << 10
_CHUNK: Final = 1 << 20
_FLAGS: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Disk:
    """The disk of one state folder. ``room`` is what the last look found.

    Args:
        folder: where the ballast lies.
        low_mb, ballast_mb: as ``limits`` of the configuration, MiB; None: by the size of the file system.

    Raises:
        StoreError: the disk gives no answer.
    """

    def __init__(self, folder: Path, *, low_mb: int | None = None, ballast_mb: int | None = None) -> None:
        self.folder = folder
        self.path = folder / NAME
        self._refused = False  #: the ballast is given up, or the disk (a quota) has no blocks for it
        self._complained = False
        try:
            self._wanted = bars(_total(folder), low_mb, ballast_mb)
            # until the first look, which makes the ballast
            self.room = replace(self._seen(Level.AMPLE), level=Level.AMPLE)
        except OSError as e:
            raise StoreError(
                f"{folder}: its disk cannot be asked for its room: {e.strerror}; check that disk, or choose another "
                "folder with --state"
            ) from None

    def look(self) -> Room:
        """Measure again; the ballast is made where it is missing and there is room for it twice."""
        ballast = self._wanted.ballast_bytes
        try:
            if self._held() < ballast and _free(self.folder) >= 2 * ballast:
                self._make(ballast)
            room = self._seen(self.room.level)
        except OSError as e:  # somebody took the folder away: what was open goes on
            if not self._complained:
                log.warning("%s cannot be looked at: %s", self.folder, e.strerror)
            self._complained = True
            return self.room
        if room.level is not self.room.level:
            tell = log.info if room.level is Level.AMPLE else log.warning
            tell("%s: %s", room.value, room.meaning)
        self.room = room
        return room

    def give_up(self) -> bool:
        """Free the ballast's blocks; whether there were any. The level is *full* from here on."""
        held = self._held()
        if not held:
            return False
        try:
            _empty(self.path)  # some file systems want blocks for an unlink, none for this
            self.path.unlink()
        except OSError as e:
            log.error("the ballast %s cannot be given up: %s", self.path, e.strerror)
            return False
        self._refused = True
        try:
            self.room = self._seen(Level.FULL)
        except OSError:
            self.room = replace(self.room, level=Level.FULL, ballast_bytes=0)
        log.warning(
            "%s; %d MiB of ballast are given up for what must be recorded", self.room.value, held >> 20
        )
        return True

    def _seen(self, before: Level) -> Room:
        held, free = self._held(), _free(self.folder)
        has = held >= self._wanted.ballast_bytes
        level = level_of(before, free, self._wanted, has_ballast=has or not self._refused)
        return Room(level, free, self._wanted.low_bytes, held if has else 0, str(self.folder))

    def _held(self) -> int:
        """Bytes of real blocks: a file that was cut short by a crash holds fewer."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return 0
        if not stat.S_ISREG(found.st_mode):
            return 0
        return min(found.st_size, found.st_blocks * 512)

    def _make(self, size: int) -> None:
        try:
            fd = os.open(self.path, _FLAGS | os.O_CREAT, 0o600)
            try:
                _fill(fd, size)
            finally:
                os.close(fd)
        except OSError as e:
            if not self._complained:
                log.warning("no ballast of %d bytes in %s: %s", size, self.path, e.strerror)
            self._complained = True
            self._refused = e.errno in _NO_ROOM
            with suppress(OSError):
                _empty(self.path)
        else:
            self._complained = self._refused = False


def is_full(folder: Path) -> bool:
    """Whether the disk, or a quota, refuses some blocks right now. It asks for them, since quotas show nowhere."""
    path = folder / f".room-{os.getpid()}.tmp"
    try:
        path.write_bytes(os.urandom(_PROBE_BYTES))
    except OSError as e:
        return e.errno in _NO_ROOM
    finally:
        with suppress(OSError):
            path.unlink()
    return False


def lacks_room(error: sqlite3.Error) -> bool:
    """Whether SQLite may have failed for want of room."""
    return _code(error) in _SUSPECT


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error of Python's module itself."""
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def told(error: sqlite3.Error | OverflowError, path: Path) -> StoreError:
    """The error of a commit that failed for good; nothing of it was recorded or answered."""
    if isinstance(error, sqlite3.Error) and (
        _code(error) == sqlite3.SQLITE_FULL or (lacks_room(error) and is_full(path.parent))
    ):
        return full_disk(path, f"{error}, nothing of this round was recorded or answered")
    return StoreError(
        f"{path}: {error}; nothing of this round was recorded or answered. Free disk space or repair, then "
        "start again"
    )


def full_disk(path: Path, what: str) -> DiskFull:
    """What is said of a disk on which not even the ballast's room is left; ``what`` could not be done."""
    return DiskFull(
        f"{path}: the disk is full: {what}; nothing accepted is lost. Free some space on it: a rig that is up goes on "
        "by itself, a broker alone is to be started again"
    )


def _empty(path: Path) -> None:
    fd = os.open(path, _FLAGS | os.O_TRUNC)
    os.close(fd)


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _total(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_blocks * disk.f_frsize


def _fill(fd: int, size: int) -> None:
    """Give the file real blocks.

    Raises:
        OSError: there is no room for them.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as e:
            if e.errno not in _NO_FALLOCATE:
                raise
    at = 0
    while at < size:  # noise: a file system that compresses would keep nothing for zeros
        at += os.pwrite(fd, os.urandom(min(_CHUNK, size - at)), at)
