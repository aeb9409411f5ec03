"""Sums of the database's pages: what SQLite itself does not notice, a flipped bit in a payload, is found at a start.

``rigbus.sums`` holds a crc32 for each page of ``rigbus.db``. Pages change in the write-ahead log first, so their sums
are written when a checkpoint has copied them, before the log is written from its start again: a page is either in the
log, whose frames SQLite checks, or has a sum (ADR 0021). Formats: sqlite.org/walformat.html.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from array import array
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from ..errors import StoreError
from .tail import write_durably

log = logging.getLogger(__name__)

PAGE_BYTES: Final = 4096
FRAME_BYTES: Final = PAGE_BYTES + 24
WAL_HEADER_BYTES: Final = 32
_MAGIC: Final = b"RIGSUMS1"
_BLOCK: Final = 1024  # sums written in one go: a block of the disk
#: Of a page that was never written: a hole in the file, as where SQLite keeps its lock byte.
_EMPTY: Final = zlib.crc32(bytes(PAGE_BYTES))
_CHUNK_PAGES: Final = 256
#: Version, unused, change counter, initialised, byte order, page size, frames: twice, then they are equal.
_INDEX: Final = struct.Struct("=IIIBBHI")
_INDEX_BYTES: Final = 48


class PageSums:
    """The sums of one database, in memory and in its file. Page numbers start at 1, as SQLite's."""

    def __init__(self, path: Path, sums: array[int]) -> None:
        self.path = path
        self.sums = sums

    @classmethod
    def read(cls, path: Path) -> PageSums | None:
        """The sums in a file; None when there is none or it is no such file."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if data[:8] != _MAGIC or len(data) % 4:
            return None
        return cls(path, array("I", data[8:]))

    @classmethod
    def make(cls, path: Path, db: Path) -> PageSums:
        """The sums of ``db`` as it is now; no connection of this process may be open on it.

        To close any descriptor of a file drops all locks that the process has on it, SQLite's too.
        """
        sums = array("I")
        with db.open("rb") as file:
            while chunk := file.read(PAGE_BYTES * _CHUNK_PAGES):
                sums.extend(zlib.crc32(page) for page in _pages(chunk))
        made = cls(path, sums)
        write_durably(path, _MAGIC + sums.tobytes())
        return made

    def wrong(self, db: Path, but: Collection[int]) -> list[int]:
        """Pages of ``db`` that are not what was written, those in ``but`` (of the log) left out.

        As in :meth:`make`, no connection of this process may be open on it.
        """
        found, sums, n = [], self.sums, 0
        with db.open("rb") as file:
            while chunk := file.read(PAGE_BYTES * _CHUNK_PAGES):
                for page in _pages(chunk):
                    wanted = sums[n] if n < len(sums) else _EMPTY
                    n += 1
                    if zlib.crc32(page) != wanted and n not in but:
                        found.append(n)
        found += (page for page in range(n + 1, len(sums) + 1) if page not in but)
        return found

    def update(self, pages: Mapping[int, int]) -> None:
        """Write the sums of these pages, durable when it returns.

        Raises:
            OSError: the file may be half new; it must not be believed any more.
        """
        if not pages:
            return
        last = max(pages)
        if last > len(self.sums):
            grown = range(len(self.sums) // _BLOCK, last // _BLOCK + 1)
            self.sums.extend([_EMPTY] * (last - len(self.sums)))
        else:
            grown = range(0)
        for page, crc in pages.items():
            self.sums[page - 1] = crc
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for block in sorted({(page - 1) // _BLOCK for page in pages}.union(grown)):
                data = self.sums[block * _BLOCK : (block + 1) * _BLOCK].tobytes()
                if os.pwrite(fd, data, len(_MAGIC) + 4 * block * _BLOCK) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(fd)
        finally:
            os.close(fd)


class WalFile:
    """The write-ahead log, looked at while SQLite writes it. Its locks are on other files: closing this drops none."""

    def __init__(self, db: Path) -> None:
        self.fd = os.open(f"{db}-wal", os.O_RDONLY | os.O_CLOEXEC)

    def salts(self) -> bytes:
        """What its frames are marked with: others each time that it is begun anew."""
        return os.pread(self.fd, 8, 16)

    def reaches(self, frame: int) -> bool:
        """Has the log ``frame`` frames since it was begun anew? Two reads of 8 bytes: its salts, and that frame's."""
        salts = self.salts()
        at = WAL_HEADER_BYTES + (frame - 1) * FRAME_BYTES + 8
        return len(salts) == 8 and os.pread(self.fd, 8, at) == salts

    def pages(self, frames: int) -> dict[int, int]:
        """``page -> where its newest content begins`` in the first ``frames`` frames."""
        # Read, not mapped: 16 MiB of a mapped log would count as the broker's memory.
        return {
            int.from_bytes(os.pread(self.fd, 4, at), "big"): at + 24
            for at in range(WAL_HEADER_BYTES, WAL_HEADER_BYTES + frames * FRAME_BYTES, FRAME_BYTES)
        }

    def sums(self, frames: int) -> dict[int, int]:
        """``page -> crc32`` of the newest content in the first ``frames`` frames."""
        return {
            page: zlib.crc32(os.pread(self.fd, PAGE_BYTES, at)) for page, at in self.pages(frames).items()
        }

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def sums_path(db: Path) -> Path:
    """``rigbus.sums`` of ``rigbus.db``."""
    return db.with_suffix(".sums")


def frames_in_use(db: Path) -> int:
    """How many frames of the log SQLite takes as part of the database: what its index of the log says.

    An open connection must have read from the database, and must still be open: it made the index.

    Raises:
        StoreError: the index is not of the form that is known.
    """
    try:
        data = Path(f"{db}-shm").read_bytes()[: 2 * _INDEX_BYTES]
    except FileNotFoundError:
        return 0
    if len(data) < 2 * _INDEX_BYTES or data[:_INDEX_BYTES] != data[_INDEX_BYTES:]:
        raise StoreError(f"{db}-shm: no index of the write-ahead log; is another program using the database?")
    version, _, _, ready, _, page_bytes, frames = _INDEX.unpack_from(data)
    if version == 3_007_000 and not frames:
        return 0
    if version != 3_007_000 or not ready or page_bytes != PAGE_BYTES:
        raise StoreError(
            f"{db}-shm: pages of {page_bytes} bytes, index {version}: not a database that rigbus made"
        )
    return int(frames)


def _pages(chunk: bytes) -> list[bytes]:
    return [chunk[at : at + PAGE_BYTES] for at in range(0, len(chunk), PAGE_BYTES)]
