"""The durable queue: one SQLite connection, WAL, one commit a round.

``commit(changes)`` writes everything that a round of the core changed in one transaction; with ``full`` it returns
after the WAL is synced (the ack points of PROTOCOL §8), with ``normal`` a power loss may take the last commits (a
kill -9 of everything does not). The file is on a local disk: WAL needs shared memory, a network share has none.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgpack

from .ballast import lacks_room, told
from .errors import RigbusError, StoreError
from .model import Batch, Changes, Fact, Task
from .records import batch_from, batch_row, insert_row, meta_of, task_from, update_row

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 2
_SCHEMA: Final = Path(__file__).with_name("schema.sql")
#: Pages in the WAL before it is copied into the database and written from its start again.
_WAL_PAGES: Final = 4000
_PAGE_BYTES: Final = 4096
_CACHE: Final = -6000  # KiB of pages; the file system has the rest
_WAL_BYTES: Final = 32 + (_WAL_PAGES + 200) * (
    _PAGE_BYTES + 24
)  #: its header, and each page with a header of its own
#: Tables that every version has: what lacks them is another program's.
_OURS: Final = frozenset({"meta", "batches", "tasks"})
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
) WITHOUT ROWID;"""
}
#: Judgements of one task that are shown; a task has few attempts.
_EVALUATIONS: Final = 20

_INSERT_TASK: Final = "INSERT INTO tasks VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_COLUMNS: Final = (
    "state=?,seq=?,hold=?,ending=?,attempt=?,n_task=?,n_crash=?,n_infra=?,inc=?,tok=?,session=?,"
    "worker=?,leased_at=?,started_at=?,not_before_at=?,deadline_at=?,ended_at=?,owner=?,error=? WHERE no=?"
)
_UPDATE_TASK: Final = f"UPDATE tasks SET {_COLUMNS}"
_UPDATE_RESULT: Final = f"UPDATE tasks SET result=?,ref=?,ref_bytes=?,{_COLUMNS}"
_PUT_BATCH: Final = "INSERT OR REPLACE INTO batches VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_SELECT_TASKS: Final = (
    "SELECT no,batch,key,state,seq,priority,hold,ending,attempt,n_task,n_crash,n_infra,inc,tok,session,worker,leased_at,"
    "started_at,not_before_at,deadline_at,created_at,ended_at,owner,parent,error,spec FROM tasks ORDER BY no"
)
#: What :meth:`Store.load` gives: batches, tasks with their edges, facts, last event seq, last seq by channel.
Loaded = tuple[
    list[Batch], list[Task], dict[int, dict[str, Any]], dict[tuple[str, str], Fact], int, dict[str, int]
]


class Store:
    """The database of one rig. Every method may raise :class:`StoreError`."""

    def __init__(self, path: Path, *, durability: str = "full") -> None:
        self.path = path
        self.durability = durability
        #: Asked when a commit finds no room; True: there is some now, the same commit is tried again.
        self.make_room: Callable[[], bool] | None = None
        try:
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=True)
        except sqlite3.Error as e:
            raise StoreError(f"{path}: {e}; check the folder and its permissions") from None
        try:
            self._open()
        except StoreError:
            self.db.close()
            raise
        except sqlite3.DatabaseError as e:
            self.db.close()
            raise StoreError(
                f"{path}: {e}; the database cannot be used. Nothing was changed. Keep the file, restore a backup or "
                "move the state folder aside"
            ) from None

    def _open(self) -> None:
        db = self.db
        # looked at before anything is written: another program's database stays as it is
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if tables and not (version and tables >= _OURS):
            raise StoreError(
                f"{self.path}: this is no rigbus database; move it aside or choose another --state"
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: written by a newer rigbus (schema {version}, this one knows {SCHEMA_VERSION}); "
                "install that version"
            )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if self.durability == 'full' else 'NORMAL'}")
        db.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute(f"PRAGMA cache_size={_CACHE}")
        if not tables:
            db.executescript(
                f"BEGIN;{_SCHEMA.read_text(encoding='utf-8')}PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
            )
            self._sync_folder()
        while tables and version < SCHEMA_VERSION:
            db.executescript(f"BEGIN;{MIGRATIONS[version]}PRAGMA user_version={version + 1};COMMIT;")
            version += 1
        check = (
            db.execute("PRAGMA quick_check(1)").fetchone()[0] if self.path.stat().st_size < 64 << 20 else "ok"
        )
        if check != "ok":
            raise sqlite3.DatabaseError(f"damaged: {' '.join(check.split())}")

    def _sync_folder(self) -> None:
        fd = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Checkpoint and close."""
        self.db.close()

    # -- identity --------------------------------------------------------------------------------------------

    def next_incarnation(self) -> int:
        """Bump the broker incarnation and sync it, whatever the durability: tokens must never repeat."""
        old = self.meta("incarnation") or 0
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('incarnation', ?)", (old + 1,))
        if self.durability != "full":
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.db.execute("PRAGMA synchronous=NORMAL")
        else:
            self._reserve_wal()
        return int(old) + 1

    def _reserve_wal(self) -> None:
        """Give the WAL its full length now: to sync what overwrites a file costs half of what to sync what makes it
        longer does (110 and 220 µs on ext4), since no metadata has to be journaled.

        Zeros after the last frame are no frames: SQLite stops at a wrong salt. Its locks are on other files, so that
        closing this descriptor releases none. Without room the WAL grows as it always did.
        """
        try:
            fd = os.open(f"{self.path}-wal", os.O_WRONLY | os.O_CLOEXEC)
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
            log.warning("no room to reserve %d bytes for %s-wal: %s", _WAL_BYTES, self.path, e.strerror)
            with suppress(OSError):
                os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def meta(self, key: str) -> Any:
        """One value of the meta table, None when absent."""
        row = self.db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

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
            self._write_rest(changes)
            db.execute("COMMIT")
        except (sqlite3.Error, OverflowError):
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

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
        if changes.attempts:
            db.executemany("INSERT OR REPLACE INTO attempts VALUES (?,?,?,?,?,?,?)", changes.attempts)
        if changes.evaluations:
            db.executemany("INSERT OR REPLACE INTO evaluations VALUES (?,?,?,?,?,?)", changes.evaluations)

    def _write_rest(self, changes: Changes) -> None:
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
            db.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (key, value))
        if changes.events:
            blob = msgpack.packb(changes.events, use_bin_type=True)
            db.execute("INSERT INTO events VALUES (?,?,?)", (changes.events[0][0], len(changes.events), blob))
        if changes.purge_tasks:
            db.executemany("DELETE FROM tasks WHERE no=?", ((n,) for n in changes.purge_tasks))
            db.executemany("DELETE FROM attempts WHERE task=?", ((n,) for n in changes.purge_tasks))
            db.executemany("DELETE FROM evaluations WHERE task=?", ((n,) for n in changes.purge_tasks))
        if changes.purge_batches:
            db.executemany("DELETE FROM batches WHERE no=?", ((n,) for n in changes.purge_batches))
        if changes.trim_events_below:
            db.execute("DELETE FROM events WHERE seq_first + n <= ?", (changes.trim_events_below,))

    # -- reading ---------------------------------------------------------------------------------------------

    def load(self, now: float, wall: float) -> Loaded:
        """Everything for :meth:`Core.load`: batches, tasks, their edges by number, facts, last event seq, last seq by channel.

        Raises:
            StoreError: a row cannot be read.
        """
        try:
            return self._load(now, wall)
        except (sqlite3.Error, LookupError, ValueError, TypeError, RigbusError) as e:
            raise StoreError(
                f"{self.path}: damaged: {e!r:.200}; nothing was changed. Keep the file, restore a backup or move the "
                "state folder aside"
            ) from None

    def _load(self, now: float, wall: float) -> Loaded:
        # All rows are read this once: their pages would only keep the process large.
        self.db.execute("PRAGMA cache_size=-500")
        batches = {b.no: b for b in map(batch_from, self.db.execute("SELECT * FROM batches ORDER BY no"))}
        tasks, edges = [], {}
        for row in self.db.execute(_SELECT_TASKS):
            task, its = task_from(row, batches[row[1]], now, wall)
            tasks.append(task)
            if its:
                edges[task.no] = its
        facts = {
            (s, k): Fact(rev, epoch, msgpack.unpackb(value, raw=False))
            for s, k, rev, epoch, value in self.db.execute("SELECT * FROM facts")
        }
        row = self.db.execute(
            "SELECT seq_first + n - 1 FROM events ORDER BY seq_first DESC LIMIT 1"
        ).fetchone()
        seq = row[0] if row else 0
        self.db.execute(f"PRAGMA cache_size={_CACHE}")
        return list(batches.values()), tasks, edges, facts, seq, self._channels()

    def _channels(self) -> dict[str, int]:
        """The last seq of each event channel: from the newest events, at most back to where :func:`mark` noted them."""
        blob = self.meta("channels")
        noted = msgpack.unpackb(blob, raw=False) if blob else {}
        channels = {channel: int(noted.get(channel, 0)) for channel in ("p", "c", "a")}
        missing = set(channels)
        for (blob,) in self.db.execute(
            "SELECT blob FROM events WHERE seq_first >= ? ORDER BY seq_first DESC", (max(channels.values()),)
        ):
            for event in reversed(msgpack.unpackb(blob, raw=False)):
                if event[3] in missing:
                    channels[event[3]] = max(event[0], channels[event[3]])
                    missing.discard(event[3])
            if not missing:
                break
        return channels

    def refs(self) -> list[tuple[int, str]]:
        """Numbers of the tasks whose result is in a file, with its sha256."""
        return self.db.execute("SELECT no,ref FROM tasks WHERE ref IS NOT NULL").fetchall()

    def payloads(self, nos: Iterable[int]) -> dict[int, tuple[Any, bytes]]:
        """``no -> (meta or None, payload)`` of tasks to be leased."""
        out: dict[int, tuple[Any, bytes]] = {}
        for chunk in _chunks(list(nos), 500):
            marks = ",".join("?" * len(chunk))
            for no, spec, payload in self.db.execute(
                f"SELECT no,spec,payload FROM tasks WHERE no IN ({marks})", chunk
            ):
                out[no] = (meta_of(spec), payload)
        return out

    def details(self, nos: Iterable[int]) -> dict[int, tuple[Any, bytes | None, str | None, int | None]]:
        """``no -> (meta, result, ref sha256, ref bytes)`` of tasks to be shown."""
        out: dict[int, tuple[Any, bytes | None, str | None, int | None]] = {}
        for chunk in _chunks(list(nos), 500):
            marks = ",".join("?" * len(chunk))
            for no, spec, result, ref, n in self.db.execute(
                f"SELECT no,spec,result,ref,ref_bytes FROM tasks WHERE no IN ({marks})", chunk
            ):
                out[no] = (meta_of(spec), result, ref, n)
        return out

    def attempts(self, no: int) -> list[dict[str, Any]]:
        """The last 100 attempts of a task that did not end well, oldest first."""
        names = ("n", "worker", "started_at", "ended_at", "class", "error")
        rows = self.db.execute(
            "SELECT n,worker,started_at,ended_at,class,error FROM attempts WHERE task=? ORDER BY n DESC LIMIT 100",
            (no,),
        )
        return [dict(zip(names, row, strict=True)) for row in rows][::-1]

    def evaluations(self, no: int) -> list[dict[str, Any]]:
        """The last judgements of a task's results, oldest first, each with what was judged (``sample``)."""
        rows = self.db.execute(
            "SELECT verdict,at,value,sample FROM evaluations WHERE task=? ORDER BY n DESC LIMIT ?",
            (no, _EVALUATIONS),
        )
        return [
            {
                **msgpack.unpackb(value, raw=False),
                "verdict": verdict,
                "at": at,
                "sample": msgpack.unpackb(sample, raw=False),
            }
            for verdict, at, value, sample in rows
        ][::-1]

    def last_evaluations(self, nos: Iterable[int]) -> dict[int, dict[str, Any]]:
        """``no -> {attempt, verdict, at, note, score?, …}``: the newest judgement of each task that has one."""
        out: dict[int, dict[str, Any]] = {}
        for no in nos:
            row = self.db.execute(
                "SELECT verdict,at,value FROM evaluations WHERE task=? ORDER BY n DESC LIMIT 1", (no,)
            ).fetchone()
            if row is not None:
                out[no] = {**msgpack.unpackb(row[2], raw=False), "verdict": row[0], "at": row[1]}
        return out

    def events(self, since: int, channel: str | None, limit: int) -> tuple[list[Any], int | None, bool]:
        """Events after ``since``: (events, None, more), or ([], oldest seq, False) when ``since`` was trimmed."""
        oldest = self.db.execute("SELECT min(seq_first) FROM events").fetchone()[0]
        if oldest is None or since + 1 < oldest:
            # with nothing lost there is nothing before the oldest
            return [], oldest, False
        # the row that holds since + 1, found by the primary key
        first = self.db.execute(
            "SELECT max(seq_first) FROM events WHERE seq_first <= ?", (since + 1,)
        ).fetchone()[0]
        out: list[Any] = []
        for (blob,) in self.db.execute(
            "SELECT blob FROM events WHERE seq_first >= ? ORDER BY seq_first", (first,)
        ):
            for event in msgpack.unpackb(blob, raw=False):
                if event[0] > since and (channel is None or event[3] == channel):
                    if len(out) >= limit:
                        return out, None, True
                    out.append(event)
        return out, None, False

    def oldest_event(self) -> int:
        """The first seq that is still in the log, 0 when it is empty."""
        return int(self.db.execute("SELECT min(seq_first) FROM events").fetchone()[0] or 0)


def mark(changes: Changes, channels: dict[str, int]) -> None:
    """Note the last seq of each event channel with this commit, so that a start need not look further back."""
    changes.meta["channels"] = msgpack.packb(channels)


def state_id(folder: Path) -> str:
    """The id of a state folder: 32 hex digits in ``<folder>/id``, made once, durable."""
    path = folder / "id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    temp = folder / f".id.{os.getpid()}.tmp"
    temp.write_text(uuid.uuid4().hex + "\n")
    try:
        os.link(temp, path)  # never replaces: two starters agree on the first
    except FileExistsError:
        pass
    finally:
        temp.unlink()
    return path.read_text().strip()


def _chunks(items: list[int], size: int) -> Iterable[list[int]]:
    return (items[i : i + size] for i in range(0, len(items), size))
