"""A database is looked at before it is opened: is all of it there, and is it what was written?

Everything happens over a read-only connection, which never checkpoints: what is refused is left as it was found.
"""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import StoreError
from .pages import PageSums, WalFile, frames_in_use, sums_path
from .tail import Tail, read_tail, tail_path

SCHEMA_VERSION: Final = 4
#: From this version on a database says where it ends.
_HAS_TAIL: Final = 3
#: Tables that every version has: what lacks them is another program's.
_OURS: Final = frozenset({"meta", "batches", "tasks"})
#: Up to this size SQLite's own check of the structure costs less than a second.
_QUICK_BYTES: Final = 64 << 20
#: A finished repair whose files are being put in place: a start in between would see half of each.
READY: Final = "repair.ready"
#: SQLite's codes (their lowest byte) for a file that could not be read just now; they say nothing of what is in it.
_UNREAD: Final = frozenset(
    {
        *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM),
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL),
        *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY),
    }
)
_SHORT_READ: Final = 522  # SQLITE_IOERR_SHORT_READ: the file is cut off, which is a damage
#: A check of the structure does not fail where a page cannot be read: it lists that among the damages.
_CODE: Final = re.compile(r"error code=(\d+)")
WAY_OUT: Final = (
    "nothing was changed. `rigbus repair` says what is lost and makes a database to go on with; or put a backup back "
    "(`rigbus restore`), or move the state folder aside"
)


@dataclass(slots=True)
class Found:
    """What there is. ``problems`` is empty when the database can be used as it is."""

    path: Path
    there: bool = False  #: False: no database yet
    version: int = 0
    tail: Tail = field(default_factory=Tail)  #: the database's own
    witness: Tail | None = None  #: rigbus.tail's; None: no such file, or nothing whole in it
    sums: PageSums | None = None
    bad_pages: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Commits that were made and are not in the database."""
        return max(0, self.witness.commits - self.tail.commits) if self.witness is not None else 0

    def refusal(self) -> StoreError:
        """The error that says all of it."""
        return StoreError(f"{self.path}: {'; '.join(self.problems)}; {WAY_OUT}")


def examine(path: Path, *, durability: str = "full") -> Found:
    """Look at the database of a rig that is down; the caller holds the broker's lock.

    Raises:
        StoreError: it is another program's, or a newer rigbus', or cannot be opened at all.
        sqlite3.Error, OSError: the disk does not give it, which says nothing of what is on it.
    """
    found = _look(path, durability)
    # SQLite calls some reads that failed just now "malformed"; what is damaged is so at the second look, too.
    return _look(path, durability) if found.problems else found


def _look(path: Path, durability: str) -> Found:
    found = Found(path)
    ready = path.with_name(READY)
    if ready.exists():
        found.problems.append(
            f"{ready.name} is there: a repair was interrupted while it put its files in place"
        )
        return found
    found.witness = read_tail(tail_path(path))
    try:
        found.there = path.stat().st_size > 0
    except FileNotFoundError:
        pass
    frames = _look_inside(found) if found.there else 0
    if found.there:
        if not found.problems:
            _compare(found, durability)
        _check_pages(found, frames)
    elif found.witness is not None and found.witness.commits:
        found.problems.append(f"the database is gone, {_commits(found.witness.commits)} with it")
    return found


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing, closed at the end."""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as e:
        raise StoreError(f"{path}: {e}; check the folder and its permissions") from None
    try:
        yield db
    finally:
        db.close()


def _look_inside(found: Found) -> int:
    """Version, tail and structure; returns how many frames of the write-ahead log belong to it."""
    path, frames = found.path, 0
    with reading(path) as db:
        try:
            found.version = db.execute("PRAGMA user_version").fetchone()[0]
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            if not tables and not found.version:
                found.there = False  # made, and nothing ever written to it
                return 0
            _require_ours(path, found.version, tables)
            frames = frames_in_use(path)
            if found.version >= _HAS_TAIL:
                found.tail = _tail_of(db) or found.tail
            if path.stat().st_size < _QUICK_BYTES and (wrong := structure_fault(db, path)):
                found.problems.append(f"damaged: {wrong}")
        except sqlite3.DatabaseError as e:
            require_read(e)
            found.problems.append(f"damaged: {e}")
    return frames


def structure_fault(db: sqlite3.Connection, path: Path) -> str:
    """What SQLite's own check finds first in the structure of ``path``; empty when all is well.

    Raises:
        sqlite3.Error, OSError: it could not be read.
    """
    said = " ".join(db.execute("PRAGMA quick_check(1)").fetchone()[0].split())
    if any(_is_unread(int(code)) for code in _CODE.findall(said)):
        raise OSError(errno.EIO, said, str(path))
    return "" if said == "ok" else said


def require_read(error: sqlite3.DatabaseError) -> None:
    """A page that could not be read at this moment is no damaged one: nothing is left out for it, or called lost.

    Raises:
        sqlite3.DatabaseError: the same, where that was it.
    """
    if _is_unread(int(getattr(error, "sqlite_errorcode", None) or 0)):
        raise error


def _is_unread(code: int) -> bool:
    return code != _SHORT_READ and code & 0xFF in _UNREAD


def _tail_of(db: sqlite3.Connection) -> Tail | None:
    """The newest of the two places where a commit may have written it."""
    rows = db.execute("SELECT value FROM meta WHERE key='tail'").fetchall()
    rows += db.execute("SELECT tail FROM events ORDER BY seq_first DESC LIMIT 1").fetchall()
    tails = (Tail.unpack(row[0]) for row in rows if isinstance(row[0], bytes))
    return max((t for t in tails if t is not None), key=lambda t: t.commits, default=None)


def _require_ours(path: Path, version: int, tables: set[str]) -> None:
    if not (version and tables >= _OURS):
        raise StoreError(f"{path}: this is no rigbus database; move it aside or choose another --state")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: written by a newer rigbus (schema {version}, this one knows {SCHEMA_VERSION}); "
            "install that version"
        )


def _compare(found: Found, durability: str) -> None:
    """The database's tail with the file's."""
    tail, witness = found.tail, found.witness
    name = tail_path(found.path).name
    if witness is None:
        if found.version >= _HAS_TAIL:
            found.problems.append(
                f"{name} is missing or damaged, so that nobody knows whether the last commits are here"
            )
    elif witness.commits > tail.commits and durability == "full":
        found.problems.append(
            f"the last {_commits(found.lost)} are gone: {name} counts {witness.commits} (event {witness.seq}), "
            f"the database holds {tail.commits} (event {tail.seq})"
        )
    elif witness.commits == tail.commits and witness.chain != tail.chain:
        found.problems.append(
            f"commit {tail.commits} of the database is another than that of {name}: the two are not of one rig's life"
        )


def _check_pages(found: Found, frames: int) -> None:
    found.sums = PageSums.read(sums_path(found.path))
    if found.sums is None:
        return
    inside: dict[int, int] = {}
    if frames:
        wal = WalFile(found.path)
        try:
            inside = wal.pages(frames)
        finally:
            wal.close()
    found.bad_pages = found.sums.wrong(found.path, inside)
    if found.bad_pages:
        n = len(found.bad_pages)
        some = ", ".join(map(str, found.bad_pages[:5])) + (", …" if n > 5 else "")
        found.problems.append(
            f"damaged: {n} page{'s'[: n > 1]} ({some}) {'is' if n == 1 else 'are'} not what was written there"
        )


def _commits(n: int) -> str:
    return f"{n} commit{'s'[: n != 1]}"
