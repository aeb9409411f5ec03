"""The durable queue: one SQLite connection, WAL, one commit a round.

``commit(changes)`` writes everything that a round of the core changed in one transaction; with ``full`` it returns
after the WAL is synced (the ack points of PROTOCOL §8), with ``normal`` a power loss may take the last commits (a
kill -9 of everything does not). The file is on a local disk: WAL needs shared memory, a network share has none.
What is lost of it is noticed at the next start, by ``rigbus.tail`` and ``rigbus.sums`` beside it (ADR 0021).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgpack

from ..core.model import Changes
from ..errors import StoreError
from .ballast import lacks_room, told
from .checkpoints import Checkpoints, reserve_wal
from .examining import SCHEMA_VERSION, WAY_OUT, Found, examine, reading
from .pages import PageSums, sums_path
from .reading import CACHE, Reading
from .records import batch_row, insert_row, update_row
from .tail import Tail, TailFile, sync_folder, tail_path

__all__ = ["MIGRATIONS", "SCHEMA_VERSION", "Store", "create", "mark", "state_id"]

log = logging.getLogger(__name__)

_SCHEMA: Final = Path(__file__).with_name("schema.sql")
#: ``MIGRATIONS[n]`` takes a database of version n to n + 1.
MIGRATIONS: Final[dict[int, str]] = {
    1: """CREATE TABLE evaluations (
    task    INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('accept', 'reject', 'dead')),
    at      REAL NOT NULL,
    value   BLOB NOT NULL,
    sample  BLOB NOT NULL,
    PRIMARY KEY (task, n)
) WITHOUT ROWID;""",
    2: "ALTER TABLE events ADD COLUMN tail BLOB;",
    3: """ALTER TABLE batches ADD COLUMN revisions BLOB;
ALTER TABLE tasks ADD COLUMN revised INTEGER NOT NULL DEFAULT 0 CHECK (revised BETWEEN 0 AND 7);""",
}

_INSERT_TASK: Final = (
    "INSERT INTO tasks VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_COLUMNS: Final = (
    "state=?,seq=?,hold=?,ending=?,attempt=?,n_task=?,n_crash=?,n_infra=?,inc=?,tok=?,session=?,"
    "worker=?,leased_at=?,started_at=?,not_before_at=?,deadline_at=?,ended_at=?,owner=?,error=?,revised=? WHERE no=?"
)
_UPDATE_TASK: Final = f"UPDATE tasks SET {_COLUMNS}"
_UPDATE_RESULT: Final = f"UPDATE tasks SET result=?,ref=?,ref_bytes=?,{_COLUMNS}"
_PUT_BATCH: Final = "INSERT OR REPLACE INTO batches VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_PUT_META: Final = "INSERT OR REPLACE INTO meta VALUES (?,?)"


class Store(Reading):
    """The database of one rig. Every method may raise :class:`StoreError`."""

    def __init__(self, path: Path, *, durability: str = "full") -> None:
        self.path = path
        self.durability = durability
        #: Asked when a commit finds no room; True: there is some now, the same commit is tried again.
        self.make_room: Callable[[], bool] | None = None
        try:
            found = examine(path, durability=durability)
            if found.problems:
                raise found.refusal()
            if not found.there:
                create(path)
                found = examine(path)
                if found.problems:
                    raise found.refusal()
            sums = found.sums or PageSums.make(sums_path(path), path)
            if found.witness is None:  # of an older rigbus
                TailFile.make(tail_path(path), found.tail)
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=True)
        except (sqlite3.Error, OSError) as e:
            raise StoreError(
                f"{path}: {e}; check the disk, the folder and its permissions, then try again"
            ) from None
        self.tail = found.tail
        try:
            self._configure(found.version)
            self._checkpoints = Checkpoints(self.db, path, sums)
        except (sqlite3.Error, OSError) as e:
            _abandon(self.db, path)
            raise StoreError(f"{path}: {e}; the database cannot be used; {WAY_OUT}") from None
        # A connection that is merely dropped would checkpoint by itself, past the sums.
        self._end = weakref.finalize(self, self._checkpoints.close)
        if found.lost and found.witness is not None:
            self._go_on(found, found.witness)

    def _configure(self, version: int) -> None:
        """Settings and migrations of the open database."""
        db = self.db
        _require_wal(db)
        db.execute(f"PRAGMA synchronous={'FULL' if self.durability == 'full' else 'NORMAL'}")
        db.execute("PRAGMA wal_autocheckpoint=0")  # ours, so that the sums of the pages come first
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute(f"PRAGMA cache_size={CACHE}")
        while version < SCHEMA_VERSION:
            db.executescript(f"BEGIN;{MIGRATIONS[version]}PRAGMA user_version={version + 1};COMMIT;")
            version += 1

    def _go_on(self, found: Found, witness: Tail) -> None:
        """With ``normal`` a power loss takes commits: say how many, and repeat no number that they had given out."""
        log.warning(
            '%s: %d commits lost (event %d to %d): the price of `durability = "normal"` at a power loss',
            *(self.path, found.lost, found.tail.seq + 1, witness.seq),
        )
        self.tail = witness
        self.leap({"commits": found.lost}, "rig.lost")

    def leap(self, data: dict[str, Any], topic: str) -> None:
        """Go on at event numbers that nobody has seen, with an event that says why; whoever follows takes a snapshot.

        The log before it is cut off: who stands anywhere in it, or in what is lost, is told so (RESNAPSHOT).
        """
        seen = max(self.tail.seq, self.last_seq()) + 1
        event = [seen + 1, seen, time.time(), "p", topic, "", "", data]
        channels = dict.fromkeys(("p", "c", "a"), seen)
        changes = Changes(events=[event], trim_events_below=seen + 1)
        mark(changes, channels)
        self.commit(changes, 0.0, 0.0)

    def close(self) -> None:
        """Checkpoint and close; a second time does nothing."""
        self._end()

    # -- identity --------------------------------------------------------------------------------------------

    def next_incarnation(self) -> int:
        """Bump the broker incarnation and sync it, whatever the durability: tokens must never repeat."""
        new = max(self.meta("incarnation") or 0, self.tail.incarnation) + 1
        tail = self.tail.after(b"", incarnation=new)
        db = self.db
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN IMMEDIATE")
        db.execute(_PUT_META, ("incarnation", new))
        db.execute(_PUT_META, ("tail", tail.pack()))
        db.execute("COMMIT")
        self._made(tail)
        if self.durability == "full":
            reserve_wal(self.path)
        else:
            self._checkpoints.run()
            db.execute("PRAGMA synchronous=NORMAL")
        return int(new)

    # -- writing ---------------------------------------------------------------------------------------------

    def commit(self, changes: Changes, now: float, wall: float) -> None:
        """One transaction with all of ``changes``; durable (by the durability) when it returns.

        Raises:
            StoreError: nothing was written (DiskFull: for want of room). The core is then ahead of the disk: the
                broker must stop.
        """
        try:
            try:
                self._transact(changes, wall - now)
            except sqlite3.Error as e:
                if not (lacks_room(e) and self.make_room is not None and self.make_room()):
                    raise
                self._transact(changes, wall - now)
        except (sqlite3.Error, OverflowError) as e:
            raise told(e, self.path) from e

    def _transact(self, changes: Changes, offset: float) -> None:
        db = self.db
        try:
            db.execute("BEGIN IMMEDIATE")
            self._write_tasks(changes, offset)
            tail = self._write_rest(changes)
            db.execute("COMMIT")
        except (sqlite3.Error, OverflowError):
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._made(tail)

    def _made(self, tail: Tail) -> None:
        """A commit has returned: now, not before, it may be said beside the database that it was made."""
        self.tail = tail
        self._checkpoints.made(tail)

    def _write_tasks(self, changes: Changes, offset: float) -> None:
        db = self.db
        results, refs = changes.results, changes.refs
        if changes.new_tasks:
            db.executemany(
                _INSERT_TASK,
                (
                    insert_row(t, spec, payload, results, refs, offset)
                    for t, spec, payload, _ in changes.new_tasks.values()
                ),
            )
        if changes.tasks:
            rows = (update_row(t, offset) for no, t in changes.tasks.items() if no not in results)
            db.executemany(_UPDATE_TASK, rows)
        # a result never comes alone: its task has moved
        ended = [t for no, t in changes.tasks.items() if no in results]
        if ended:
            rows = ((results[t.no], *refs.get(t.no, (None, None)), *update_row(t, offset)) for t in ended)
            db.executemany(_UPDATE_RESULT, rows)
        if changes.respecs:
            rows = ((*respec, no) for no, respec in changes.respecs.items())
            db.executemany("UPDATE tasks SET spec=?,payload=?,priority=? WHERE no=?", rows)
        if changes.attempts:
            db.executemany("INSERT OR REPLACE INTO attempts VALUES (?,?,?,?,?,?,?)", changes.attempts)
        if changes.evaluations:
            db.executemany("INSERT OR REPLACE INTO evaluations VALUES (?,?,?,?,?,?)", changes.evaluations)

    def _write_rest(self, changes: Changes) -> Tail:
        db = self.db
        for batch in changes.batches.values():
            db.execute(_PUT_BATCH, batch_row(batch))
        for (scope, key), fact in changes.facts.items():
            if fact is None:
                db.execute("DELETE FROM facts WHERE scope=? AND key=?", (scope, key))
            else:
                value = msgpack.packb(fact.value, use_bin_type=True)
                db.execute(
                    "INSERT OR REPLACE INTO facts VALUES (?,?,?,?,?)",
                    (scope, key, fact.rev, fact.epoch, value),
                )
        for key, value in changes.meta.items():
            db.execute(_PUT_META, (key, value))
        if changes.events:
            blob = msgpack.packb(changes.events, use_bin_type=True)
            tail = self.tail.after(blob, changes.events[-1][0])
            row = (changes.events[0][0], len(changes.events), blob, tail.pack())
            db.execute("INSERT INTO events VALUES (?,?,?,?)", row)
        else:
            tail = self.tail.after(b"")
            db.execute(_PUT_META, ("tail", tail.pack()))
        if changes.purge_tasks:
            db.executemany("DELETE FROM tasks WHERE no=?", ((n,) for n in changes.purge_tasks))
            db.executemany("DELETE FROM attempts WHERE task=?", ((n,) for n in changes.purge_tasks))
            db.executemany("DELETE FROM evaluations WHERE task=?", ((n,) for n in changes.purge_tasks))
        if changes.purge_batches:
            db.executemany("DELETE FROM batches WHERE no=?", ((n,) for n in changes.purge_batches))
        if changes.trim_events_below:
            db.execute("DELETE FROM events WHERE seq_first + n <= ?", (changes.trim_events_below,))
        return tail


def create(path: Path, tail: Tail | None = None) -> None:
    """A new, empty database at ``path`` with its tail and sums: complete under its name, or not there.

    Raises:
        sqlite3.Error, OSError: it cannot be made.
    """
    tail = tail or Tail()
    new = path.with_name(f".{path.name}.new")
    for left in (new, Path(f"{new}-wal"), Path(f"{new}-shm"), Path(f"{new}-journal")):
        left.unlink(missing_ok=True)
    db = sqlite3.connect(new, isolation_level=None)
    try:
        db.execute("PRAGMA page_size=4096")
        _require_wal(db)
        script = _SCHEMA.read_text(encoding="utf-8")
        db.executescript(f"BEGIN;{script}PRAGMA user_version={SCHEMA_VERSION};")
        db.execute(_PUT_META, ("tail", tail.pack()))
        db.execute("COMMIT")
        _copy_log(db)
    finally:
        db.close()  # the last connection removes the log
    PageSums.make(sums_path(path), new)
    TailFile.make(tail_path(path), tail)
    new.rename(path)
    sync_folder(path.parent)


def _copy_log(db: sqlite3.Connection) -> None:
    """The whole log into the database, synced. (A close would do so as well, and not say when it could not.)

    Raises:
        sqlite3.OperationalError: not all of it could be copied.
    """
    busy, frames, copied = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy or frames != copied:
        raise sqlite3.OperationalError(f"{copied} of {frames} frames of the write-ahead log could be copied")


def _abandon(db: sqlite3.Connection, path: Path) -> None:
    """Close a connection that cannot be used, and leave the files as they are.

    The last one to go copies the log into the database, past the sums: as long as a reader is there it is not the last.
    Where none can be had, no sums are better than old ones.
    """
    try:
        with reading(path) as other:
            other.execute("SELECT count(*) FROM sqlite_master").fetchone()
            db.close()
    except (sqlite3.Error, StoreError):
        with suppress(OSError):
            sums_path(path).unlink()
        db.close()


def _require_wal(db: sqlite3.Connection) -> None:
    """Where the disk refuses it SQLite goes on with another journal, and says so here only.

    Raises:
        sqlite3.OperationalError: it does so.
    """
    mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.OperationalError(f"no write-ahead log can be kept here: the journal is {mode!r}")


def mark(changes: Changes, channels: dict[str, int]) -> None:
    """Note the last seq of each event channel with this commit, so that a start need not look further back."""
    changes.meta["channels"] = msgpack.packb(channels)


def state_id(folder: Path) -> str:
    """The id of a state folder: 32 hex digits in ``<folder>/id``, made once, on the disk when it is returned.

    Raises:
        OSError: it can neither be read nor made.
    """
    path = folder / "id"
    with suppress(FileNotFoundError):
        if found := path.read_text().strip():
            return found
        path.unlink()  # of an older rigbus, which did not sync it: a power loss has left the name alone
    temp = folder / f".id.{os.getpid()}.tmp"
    try:
        with temp.open("w") as file:
            file.write(uuid.uuid4().hex + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temp, path)  # never replaces: two starters agree on the first
        sync_folder(folder)
    finally:
        temp.unlink(missing_ok=True)
    return path.read_text().strip()
