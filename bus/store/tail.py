"""The last commit, said twice: in the database and in a small file beside it, so that one knows what the other lost.

SQLite takes a write-ahead log up to its first bad frame and calls that the database: commits that were answered are
gone without a word. So each commit has a number and a rolling hash. Both are a row of the commit itself, and after it
returned they are written to ``rigbus.tail``, which is never synced on the way: in order of time it can only be behind
the database. Where it is ahead, commits are gone (ADR 0021).
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from ..paths import sync_path

_LAYOUT: Final = struct.Struct("<8sQQQ16s")  # magic, commits, seq, incarnation, chain; then its crc32
_MAGIC: Final = b"RIGTAIL1"
PACKED_BYTES: Final = _LAYOUT.size + 4
#: Two slots, taken in turn, each in a block of its own: a write that a power loss tears leaves the other one whole.
_SLOT_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a database ends."""

    commits: int = 0  #: made since it was created
    seq: int = 0  #: of the last event
    incarnation: int = 0  #: the last broker's
    chain: bytes = bytes(16)  #: hash over the commits, each with the one before it

    def after(self, events: bytes, seq: int | None = None, incarnation: int | None = None) -> Tail:
        """The tail when one more commit is made, with the packed ``events`` that it writes."""
        n = self.commits + 1
        # Two lives of one rig are to be told apart, nobody deceived: of the events their crc is enough, at a
        # quarter of the time.
        link = struct.pack("<16sQII", self.chain, n, len(events), zlib.crc32(events))
        chain = blake2b(link, digest_size=16).digest()
        return Tail(
            n,
            self.seq if seq is None else seq,
            self.incarnation if incarnation is None else incarnation,
            chain,
        )

    def pack(self) -> bytes:
        """The bytes of the row and of a slot."""
        head = _LAYOUT.pack(_MAGIC, self.commits, self.seq, self.incarnation, self.chain)
        return head + zlib.crc32(head).to_bytes(4, "little")

    @classmethod
    def unpack(cls, data: bytes) -> Tail | None:
        """What :meth:`pack` made, None for anything else."""
        head, crc = data[: _LAYOUT.size], data[_LAYOUT.size : PACKED_BYTES]
        if len(data) < PACKED_BYTES or zlib.crc32(head).to_bytes(4, "little") != crc:
            return None
        magic, commits, seq, incarnation, chain = _LAYOUT.unpack(head)
        return cls(commits, seq, incarnation, chain) if magic == _MAGIC else None


def tail_path(db: Path) -> Path:
    """``rigbus.tail`` of ``rigbus.db``."""
    return db.with_suffix(".tail")


def read_tail(path: Path) -> Tail | None:
    """The newest tail that the file holds; None when there is no file or nothing whole in it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    slots = (Tail.unpack(data[at : at + PACKED_BYTES]) for at in (0, _SLOT_BYTES))
    return max((t for t in slots if t is not None), key=lambda t: t.commits, default=None)


class TailFile:
    """``rigbus.tail``, open for writing."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    @staticmethod
    def make(path: Path, tail: Tail) -> None:
        """A new file with this tail, durable."""
        slot = tail.commits & 1
        write_durably(path, bytes(slot * _SLOT_BYTES) + tail.pack().ljust((2 - slot) * _SLOT_BYTES, b"\0"))

    def write(self, tail: Tail) -> None:
        """Say that this commit was made. Not synced: a tail that is behind accuses nobody."""
        os.pwrite(self.fd, tail.pack(), (tail.commits & 1) * _SLOT_BYTES)

    def sync(self) -> None:
        """Bring it to the disk; the kernel does so within half a minute by itself."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def write_durably(path: Path, data: bytes) -> None:
    """Put a whole file in place: temp beside it, fsync, rename, fsync of the folder."""
    temp = path.with_name(f".{path.name}.tmp")
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temp, path)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from None  # a failed write or sync does not say of what
    finally:
        with suppress(OSError):
            temp.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    sync_path(folder)
