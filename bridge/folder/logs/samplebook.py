"""The rig's own copy of the training samples, with the ratings that people gave them: SQLite in the state folder.

The file in the share is rewritten as a whole by people's scripts, who lose lines in doing so, and may be removed. So a line is
kept here before it is written there, and a rating as soon as it was read: from here the file can be made again.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

log = logging.getLogger(__name__)

MAX_ROWS: Final = 100_000  #: samples; of more, the oldest stay in the share's file only
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS samples (
    no INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    line BLOB NOT NULL,
    written INTEGER NOT NULL DEFAULT 0,
    human_rating INTEGER CHECK (human_rating BETWEEN 1 AND 5),
    human_feedback TEXT,
    preferred_response TEXT
);
CREATE INDEX IF NOT EXISTS unwritten ON samples (no) WHERE NOT written;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TEMP TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
RATED: Final = ("human_rating", "human_feedback", "preferred_response")

Signature = tuple[int, int, int]  #: inode, size and mtime_ns of the file; () where there is none


class Rating(NamedTuple):
    """What a person said of a sample; None where he said nothing."""

    human_rating: int | None = None
    human_feedback: str | None = None
    preferred_response: str | None = None


class SampleBook:
    """Samples by id, in the order in which they came. ``path`` None: in memory.

    Every method may raise sqlite3.Error: a disk that is full, or gone. Nothing is half done then.
    """

    def __init__(self, path: Path | None = None, max_rows: int = MAX_ROWS) -> None:
        self._path, self._max_rows = path, max_rows
        self._open: sqlite3.Connection | None = None
        self._unwritten: int | None = None
        self._room = 0  #: for lines of the file that the book lacks

    @property
    def _db(self) -> sqlite3.Connection:
        if self._open is None:
            try:
                self._open = _opened(self._path)
            except sqlite3.DatabaseError as e:
                if self._path is None or isinstance(e, sqlite3.OperationalError):
                    raise
                aside = self._path.with_name(f"{self._path.name}.damaged")
                log.warning("%s is damaged (%s): a new one is begun, the old is %s", self._path, e, aside)
                for end in ("-wal", "-shm"):
                    self._path.with_name(self._path.name + end).unlink(missing_ok=True)
                self._path.replace(aside)
                self._open = _opened(self._path)
        return self._open

    def close(self) -> None:
        """Give the file free."""
        if self._open is not None:
            self._open.close()
            self._open = None

    # -- lines -----------------------------------------------------------------------------------------------

    def keep(self, samples: Iterable[tuple[str, bytes]]) -> None:
        """(id, line) of new samples; one that is known stays as it is. Durable when it returns."""
        with self._db as db:
            db.executemany("INSERT OR IGNORE INTO samples (id, line) VALUES (?, ?)", samples)
            self._trim(db)
        self._unwritten = None

    def knows(self, id_: str) -> bool:
        """There is a sample of this id."""
        return self._db.execute("SELECT 1 FROM samples WHERE id = ?", (id_,)).fetchone() is not None

    def unwritten(self) -> int:
        """How many samples the file lacks."""
        if self._unwritten is None:
            row = self._db.execute("SELECT count(*) FROM samples WHERE NOT written").fetchone()
            self._unwritten = int(row[0])
        return self._unwritten

    def some(self, most_bytes: int) -> tuple[bytes, list[str]]:
        """The next lines that the file lacks, with their ratings, and their ids."""
        query = (
            "SELECT id, line, human_rating, human_feedback, preferred_response FROM samples WHERE NOT written"
        )
        out: list[bytes] = []
        ids: list[str] = []
        total = 0
        for id_, line, *rating in self._db.execute(f"{query} ORDER BY no"):
            whole = _with(line, Rating(*rating))
            if ids and total + len(whole) > most_bytes:
                break
            out.append(whole)
            ids.append(id_)
            total += len(whole)
        return b"".join(out), ids

    def written(self, ids: Iterable[str], signature: Signature | None) -> None:
        """These stand in the file, which has this signature now."""
        with self._db as db:
            db.executemany("UPDATE samples SET written = 1 WHERE id = ?", ((id_,) for id_ in ids))
            _sign(db, signature)
        self._unwritten = None

    # -- what a reading of the file shows ----------------------------------------------------------------------

    def signature(self) -> Signature | tuple[()] | None:
        """Of the file when it was last read or written to; () there was none, None unknown."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'signature'").fetchone()
        found = json.loads(row[0]) if row is not None else None
        return tuple(found) if isinstance(found, list) else None

    def forget_signature(self) -> None:
        """It is unknown what stands: the file is to be read."""
        with self._db as db:
            _sign(db, None)

    def begin_reading(self) -> None:
        """The file is read from its beginning."""
        with self._db as db:
            db.execute("DELETE FROM seen")
            (count,) = db.execute("SELECT count(*) FROM samples").fetchone()
        # What a file has more than a full book is older than that: it must not push out what is newer. A new book takes
        # all, and keeps the newest of them.
        self._room = self._max_rows - count if count else 1 << 62

    def saw(self, lines: Iterable[tuple[str, bytes | None, Rating]]) -> int:
        """(id, the line where it is one of ours, rating) as they stand in the file; how many ratings are news."""
        changed = 0
        with self._db as db:
            for id_, line, rating in lines:
                db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (id_,))
                if line is not None and self._room > 0:
                    query = "INSERT OR IGNORE INTO samples (id, line, written) VALUES (?, ?, 1)"
                    self._room -= db.execute(query, (id_, line)).rowcount
                if any(value is not None for value in rating):
                    # What a person said is replaced by what he says, never by silence.
                    sets = ", ".join(f"{name} = coalesce(?, {name})" for name in RATED)
                    news = " OR ".join(f"{name} IS NOT coalesce(?, {name})" for name in RATED)
                    query = f"UPDATE samples SET {sets} WHERE id = ? AND ({news})"
                    changed += db.execute(query, (*rating, id_, *rating)).rowcount
        return changed

    def end_reading(self, signature: Signature | tuple[()]) -> int:
        """The file was read to its end; how many of our lines it has lost, which are to be written again."""
        with self._db as db:
            lost = db.execute(
                "UPDATE samples SET written = 0 WHERE written AND id NOT IN (SELECT id FROM seen)"
            ).rowcount
            db.execute("UPDATE samples SET written = 1 WHERE NOT written AND id IN (SELECT id FROM seen)")
            db.execute("DELETE FROM seen")
            _sign(db, signature)
            self._trim(db)
        self._unwritten = None
        return lost

    def rating(self, id_: str) -> Rating | None:
        """What a person said of a sample; None where there is no such sample."""
        row = self._db.execute(f"SELECT {', '.join(RATED)} FROM samples WHERE id = ?", (id_,)).fetchone()
        return Rating(*row) if row is not None else None

    def _trim(self, db: sqlite3.Connection) -> None:
        newest = db.execute("SELECT max(no) FROM samples").fetchone()[0] or 0
        db.execute("DELETE FROM samples WHERE no <= ?", (newest - self._max_rows,))


def _opened(path: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:" if path is None else path, timeout=1.0)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _sign(db: sqlite3.Connection, signature: Signature | tuple[()] | None) -> None:
    value = json.dumps(signature)
    db.execute("INSERT OR REPLACE INTO meta VALUES ('signature', ?)", (value,))


def _with(line: bytes, rating: Rating) -> bytes:
    if not any(value is not None for value in rating):
        return line
    given = {name: value for name, value in zip(RATED, rating, strict=True) if value is not None}
    return json.dumps(json.loads(line) | given).encode("ascii") + b"\n"


def rating_of(sample: Mapping[str, Any]) -> Rating | None:
    """What a person wrote into a line; None where something of it cannot be a rating.

    ``human_rating`` is 1 to 5; the texts have at most 64 Ki characters.
    """
    number, *texts = (sample.get(name) for name in RATED)
    if number is not None and (
        isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 5
    ):
        return None
    if not all(text is None or (isinstance(text, str) and len(text) <= 65_536) for text in texts):
        return None
    # A lone surrogate is text to JSON, and none to the book.
    feedback, preferred = (text.encode("utf-8", "replace").decode() if text else None for text in texts)
    return Rating(number, feedback, preferred)
