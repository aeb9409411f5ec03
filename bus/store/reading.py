"""What the broker reads from its database: everything at a start, then payloads, results, attempts, events by number."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgpack

from ..core.model import Batch, Fact, Task
from ..errors import RigbusError, StoreError
from .examining import WAY_OUT
from .records import batch_from, meta_of, task_from

CACHE: Final = -6000  # KiB of pages; the file system has the rest
#: Judgements of one task that are shown; a task has few attempts.
_EVALUATIONS: Final = 20
_SELECT_TASKS: Final = (
    "SELECT no,batch,key,state,seq,priority,hold,ending,attempt,n_task,n_crash,n_infra,inc,tok,session,worker,leased_at,"
    "started_at,not_before_at,deadline_at,created_at,ended_at,owner,parent,error,spec,revised FROM tasks ORDER BY no"
)
#: What :meth:`Store.load` gives: batches, tasks with their edges, facts, last event seq, last seq by channel.
Loaded = tuple[
    list[Batch], list[Task], dict[int, dict[str, Any]], dict[tuple[str, str], Fact], int, dict[str, int]
]


class Reading:
    """The reading half of the store. Every method may raise :class:`StoreError`."""

    path: Path
    db: sqlite3.Connection

    def meta(self, key: str) -> Any:
        """One value of the meta table, None when absent."""
        row = self.db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    def load(self, now: float, wall: float) -> Loaded:
        """Everything for :meth:`Core.load`: batches, tasks, their edges by number, facts, last event seq, last seq by channel.

        Raises:
            StoreError: a row cannot be read.
        """
        try:
            return self._load(now, wall)
        except (sqlite3.Error, LookupError, ValueError, TypeError, RigbusError) as e:
            raise StoreError(f"{self.path}: damaged: {e!r:.200}; {WAY_OUT}") from None

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
        seq = self.last_seq()
        self.db.execute(f"PRAGMA cache_size={CACHE}")
        return list(batches.values()), tasks, edges, facts, seq, self._channels()

    def last_seq(self) -> int:
        """The number of the last event, 0 before the first."""
        row = self.db.execute(
            "SELECT seq_first + n - 1 FROM events ORDER BY seq_first DESC LIMIT 1"
        ).fetchone()
        return int(row[0]) if row else 0

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


def _chunks(items: list[int], size: int) -> Iterable[list[int]]:
    return (items[i : i + size] for i in range(0, len(items), size))
