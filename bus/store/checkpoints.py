"""When the write-ahead log is copied into the database, and what is written beside it: tail and page sums.

SQLite would checkpoint by itself, and say nothing. Here the sums of the pages have to be on the disk before the log is
written from its start again, so whoever made the commit that filled it does both, as SQLite would have done.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from .pages import FRAME_BYTES, WAL_HEADER_BYTES, PageSums, WalFile
from .tail import Tail, TailFile, tail_path

log = logging.getLogger(__name__)

#: Frames in the log before it is copied into the database and written from its start again.
WAL_FRAMES: Final = 4000
#: A reader (a backup) can keep the log from being begun anew: it is tried again after so many more.
_AGAIN_FRAMES: Final = 1000
#: The log's length from the start: a commit can go past the frame at which it is full.
_WAL_BYTES: Final = WAL_HEADER_BYTES + (WAL_FRAMES + 200) * FRAME_BYTES


class Checkpoints:
    """The log, the tail and the sums of one open database. Of one thread, as the connection is."""

    def __init__(self, db: sqlite3.Connection, path: Path, sums: PageSums) -> None:
        self.db = db
        self.path = path
        self._sums: PageSums | None = sums
        self._tail = TailFile(tail_path(path))
        try:
            self._wal = WalFile(path)
        except OSError:
            self._tail.close()
            raise
        self._due = WAL_FRAMES
        self._frames = 0  #: in the log at the last checkpoint
        self._copied = b""  #: its salts, when all of it was copied then
        self._silent = True

    def made(self, tail: Tail) -> None:
        """A commit has returned."""
        try:
            self._tail.write(tail)
            self._silent = True
        except OSError as e:
            if self._silent:  # the commit stands; only its witness is behind
                self._silent = False
                log.warning(
                    "%s: %s; a loss of commits from here on might not be noticed", tail_path(self.path), e
                )
        try:
            if not self._wal.reaches(self._due):
                return
            salts = self._wal.salts()
        except OSError as e:
            log.warning("%s: %s; the write-ahead log grows until it can be looked at", self.path, e.strerror)
            return
        if self._copied == salts:
            # all of it was copied, but a reader still needs it, so SQLite could not begin it anew
            self._copied = b""
            self._due = self._frames + _AGAIN_FRAMES
        else:
            self.run()

    def run(self) -> bool:
        """Copy the log into the database and write the sums of what it held; False when a reader is in the way.

        Nothing that fails here takes a commit back: the log keeps what was not copied.
        """
        try:
            _, frames, copied = self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as e:
            self._due += _AGAIN_FRAMES
            log.warning("%s: no checkpoint: %s; the write-ahead log grows", self.path, e)
            return False
        if frames != copied:
            self._due = frames + _AGAIN_FRAMES
            size = frames * FRAME_BYTES >> 20
            log.warning(
                "%s: a reader holds the write-ahead log, %d MiB now; it goes on growing", self.path, size
            )
            return False
        self._due, self._frames = WAL_FRAMES, frames
        try:
            self._copied = self._wal.salts()
        except OSError:
            self._copied = b""  # it is copied once more
        self._write_sums(frames)
        with suppress(OSError):
            self._tail.sync()
        return True

    def _write_sums(self, frames: int) -> None:
        if self._sums is None or frames <= 0:
            return
        try:
            self._sums.update(self._wal.sums(frames))
        except OSError as e:
            log.warning("%s: %s; without it until the next start", self._sums.path, e)
            self._forget_sums()

    def _forget_sums(self) -> None:
        """No sums rather than old ones: the next start makes them anew."""
        if self._sums is not None:
            with suppress(OSError):
                self._sums.path.unlink()
            self._sums = None

    def close(self) -> None:
        """The last checkpoint, then the connection, which has nothing left to copy."""
        if not self.run():
            self._forget_sums()
        self.db.close()
        self._wal.close()
        self._tail.close()


def reserve_wal(path: Path) -> None:
    """Give the WAL its full length now: to sync what overwrites a file costs half of what to sync what makes it
    longer does (110 and 220 µs on ext4), since no metadata has to be journaled.

    Zeros after the last frame are no frames: SQLite stops at a wrong salt. Its locks are on other files, so that
    closing this descriptor releases none. Without room the WAL grows as it always did.
    """
    try:
        fd = os.open(f"{path}-wal", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    size = os.fstat(fd).st_size
    try:
        disk = os.fstatvfs(fd)
        if disk.f_bavail * disk.f_frsize < 4 * _WAL_BYTES:
            return  # the last room is for the tasks
        at = size
        while at < _WAL_BYTES:
            at += os.pwrite(fd, bytes(min(1 << 20, _WAL_BYTES - at)), at)
        os.fsync(fd)
    except OSError as e:
        log.warning("no room to reserve %d bytes for %s-wal: %s", _WAL_BYTES, path, e.strerror)
        with suppress(OSError):
            os.ftruncate(fd, size)
    finally:
        os.close(fd)
