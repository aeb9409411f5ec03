"""Rows out of a damaged database. What cannot be read is counted, what might be wrong is not taken.

The damaged file is copied, and each page that is not what was written is overwritten with a mark in the copy: a tree
page then is unreadable, and a value that runs over such a page holds the mark. No guess is made at either.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from ..errors import StoreError
from .examining import Found, require_read
from .pages import PAGE_BYTES

#: Table -> its key.
_KEYS: Final = {
    "meta": ("key",),
    "batches": ("no",),
    "tasks": ("no",),
    "attempts": ("task", "n"),
    "evaluations": ("task", "n"),
    "facts": ("scope", "key"),
    "events": ("seq_first",),
}
#: Where the way through is broken, these are searched number by number.
_NUMBERED: Final = frozenset({"batches", "tasks", "events"})
#: Where the end cannot be read, so many numbers more are tried.
_BEYOND: Final = 200_000


@dataclass(slots=True)
class Salvage:
    """The rows that could be read, in the order of their keys, and whether each table was whole."""

    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  #: tables with a place that cannot be read


def salvage(found: Found, work: Path) -> Salvage:
    """Read what can be read, over a copy in ``work``; the file itself is not touched.

    Raises:
        StoreError: nothing can be read.  OSError: no room for the copy.
    """
    mark = token_hex(16).encode()
    copy = work / "damaged.db"
    shutil.copyfile(found.path, copy)
    wal = Path(f"{found.path}-wal")
    if wal.exists():
        shutil.copyfile(wal, f"{copy}-wal")
    with copy.open("r+b") as file:
        for page in found.bad_pages:
            file.seek((page - 1) * PAGE_BYTES)
            file.write(mark * (PAGE_BYTES // len(mark)))
    try:
        db = sqlite3.connect(copy, isolation_level=None)
        try:
            have = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            out = Salvage()
            for table, key in _KEYS.items():
                if table in have:
                    out.rows[table] = _read(db, table, key, mark, out)
            return out
        finally:
            db.close()
    except sqlite3.DatabaseError as e:
        require_read(e)
        raise StoreError(
            f"{found.path}: {e}; nothing of it can be read. Put a backup back (`rigbus restore`), or move the state "
            "folder aside"
        ) from None


def _read(
    db: sqlite3.Connection, table: str, key: tuple[str, ...], mark: bytes, out: Salvage
) -> list[tuple[Any, ...]]:
    names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    at = [names.index(column) for column in key]
    rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    broken = False
    up = ",".join(key)
    for row in _until_broken(db, f"SELECT * FROM {table} ORDER BY {up}"):
        if row is None:
            broken = True
        else:
            rows[tuple(row[i] for i in at)] = row
    if broken:
        last, first = max(rows, default=None), None
        down = ",".join(f"{column} DESC" for column in key)
        for row in _until_broken(db, f"SELECT * FROM {table} ORDER BY {down}"):
            if row is None:
                break
            first = tuple(row[i] for i in at)
            if first in rows:
                break
            rows[first] = row
        if table in _NUMBERED:
            low = last[0] if last else 0
            between = range(low + 1, first[0] if first else low + _BEYOND)
            for row in _one_by_one(db, f"SELECT * FROM {table} WHERE {up}=?", ((n,) for n in between)):
                rows[row[at[0]],] = row
        else:
            # Those between two broken ones, as far as they can be found: the keys stand in front of what is long.
            keys = {
                k for sql in (up, down) for k in _until_broken(db, f"SELECT {up} FROM {table} ORDER BY {sql}")
            }
            which = " AND ".join(f"{column}=?" for column in key)
            missing = (k for k in sorted(k for k in keys if k is not None) if k not in rows)
            for row in _one_by_one(db, f"SELECT * FROM {table} WHERE {which}", missing):
                rows[tuple(row[i] for i in at)] = row
    whole = {k: row for k, row in sorted(rows.items()) if not _marked(row, mark)}
    if broken or len(whole) < len(rows):
        out.broken.append(table)
    return list(whole.values())


def _until_broken(db: sqlite3.Connection, sql: str) -> Iterator[tuple[Any, ...] | None]:
    """Rows, and None at the end where it came too early."""
    n = 0
    try:
        for row in db.execute(sql):
            n += 1
            yield row
        return
    except sqlite3.DatabaseError as e:
        require_read(e)
    try:  # a cursor reads ahead: the row before the broken one was lost with it
        yield from db.execute(f"{sql} LIMIT 1 OFFSET {n}")
    except sqlite3.DatabaseError as e:
        require_read(e)
    yield None


def _one_by_one(
    db: sqlite3.Connection, sql: str, keys: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    for key in keys:
        try:
            yield from db.execute(sql, key)
        except sqlite3.DatabaseError as e:
            require_read(e)  # else it is on the page that is lost


def _marked(row: tuple[Any, ...], mark: bytes) -> bool:
    return any(
        mark in (value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
        for value in row
        if isinstance(value, (bytes, str))
    )
