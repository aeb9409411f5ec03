"""``rigbus repair``: from a database that was refused to one that a rig can go on with, and what was lost on the way.

Never in place: a new database is made beside it from the rows that can be believed, and put in its place when it is
whole and on the disk; the damaged files are kept. What a batch has lost cannot be guessed, so a batch that misses
tasks ends `failed`, with the reason, and `rigbus retry` runs what is left of it. No token and no event number is given
out twice.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

from ..core.core import Core
from ..core.model import Batch, Changes, task_id
from ..errors import Refused, RigbusError, StoreError
from ..states import BATCH_ENDED, STATE_NAMES, TERMINAL, TaskState
from .examining import READY, Found, examine
from .pages import PageSums, sums_path
from .records import batch_from, task_from, whole_row
from .salvaging import Salvage, salvage
from .store import Store, create, mark, state_id
from .tail import Tail, sync_folder, tail_path, write_durably

SCHEMA: Final = "rigbus.repair/1"
#: Where what was given out last is not known, or where an older life is taken up again: nobody came so far meanwhile.
LEAP: Final = 1_000_000
_WORK: Final = "repair.new"
_DONE: Final = "repair.done"
_REPORT: Final = "report.json"
_SHOWN: Final = 20  # ids of a batch in the report
_ENDED: Final = frozenset(STATE_NAMES[state] for state in TERMINAL)
#: What reading a row that makes no sense can raise, and putting it in; a disk that refuses is another matter.
_NONSENSE: Final = (
    *(sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError),
    *(LookupError, ValueError, TypeError, AttributeError, RigbusError),
    msgpack.UnpackException,
)
#: Every rig has its own: of a new database, or written anew.
_OWN_META: Final = frozenset({"tail", "incarnation", "channels"})


@dataclass(slots=True)
class Wounded:
    """What one batch has lost."""

    id: str
    name: str = ""
    kind: str = ""
    lost: set[str] = field(default_factory=set)  #: public ids of tasks
    whole_row: bool = True  #: False: the batch's own row is lost, and with it its plan

    def row(self, cancelled: int) -> dict[str, Any]:
        """Its line of the report."""
        return {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "lost_tasks": len(self.lost),
            "ids": sorted(self.lost)[:_SHOWN],
            "row_lost": not self.whole_row,
            "cancelled": cancelled,
        }


def repair(state: Path, db: Path, *, dry_run: bool = False) -> dict[str, Any]:
    """Repair the database of a state folder whose broker's lock the caller holds; the report, schema ``rigbus.repair/1``.

    Raises:
        StoreError: nothing of it can be read, or the disk refuses.  Refused: no room for the copies.
    """
    with _told(state, "nothing was changed"):
        is_made = (state / READY).exists()
    if is_made:
        with _told(state, "what it has made waits in repair.ready and the next `rigbus repair` goes on"):
            return _put_in_place(state, db)
    with _told(state, "nothing was changed"):
        found = examine(db)
    if not found.problems:
        return {"schema": SCHEMA, "state": str(state), "needed": False, "repaired": False, "problems": []}
    if not found.there:
        raise found.refusal()
    work = state / _WORK
    shutil.rmtree(work, ignore_errors=True)
    try:
        with _told(state, "nothing was changed"):
            _require_room(db, state)
            work.mkdir(mode=0o700)
            report = _rebuild(found, work, state_id(state))
            report["state"] = str(state)
            if not dry_run:
                report["repaired"] = True
                write_durably(work / _REPORT, json.dumps(report).encode())
                work.rename(state / READY)
                sync_folder(state)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if dry_run:
        return report
    with _told(state, "what it has made waits in repair.ready and the next `rigbus repair` goes on"):
        return _put_in_place(state, db)


@contextmanager
def _told(state: Path, so_far: str) -> Iterator[None]:
    """A disk that refuses something, as an error of ours."""
    try:
        yield
    except (OSError, sqlite3.Error) as e:
        raise StoreError(
            f"{state}: the repair could not be finished: {e}; {so_far}. Check the disk and the room on it, then "
            "repair again"
        ) from e


def _require_room(db: Path, state: Path) -> None:
    wal = Path(f"{db}-wal")
    wanted = 3 * db.stat().st_size + 2 * (wal.stat().st_size if wal.exists() else 0) + (1 << 20)
    free = shutil.disk_usage(state).free
    if free < wanted:
        raise Refused(
            f"{state}: a repair needs {wanted >> 20} MiB beside the damaged file, {free >> 20} MiB are free; make room"
        )


# -- the new database ----------------------------------------------------------------------------------------


def _rebuild(found: Found, work: Path, id_: str) -> dict[str, Any]:
    """A new database in ``work``, complete and closed; the report."""
    got = salvage(found, work)
    tail = _next_tail(found, got)
    new = work / found.path.name
    create(new, tail)
    rows = len(got.rows.get("batches", []))
    batches = _sensible_batches(got)
    wounded = _look_for_lost(got, batches)
    unreadable = rows - len(batches) + _fill(new, got, batches, wounded)
    store = Store(new)
    try:
        cancelled, back, kept = take_up(store, wounded, id_)
        store.leap({"commits": found.lost, "problems": found.problems}, "rig.repaired")
        seq = store.last_seq()
    finally:
        store.close()
    _require_alone(new)
    return {
        "schema": SCHEMA,
        "needed": True,
        "repaired": False,
        "problems": found.problems,
        "lost_commits": found.lost if found.witness is not None else None,
        "lost_events": [found.tail.seq + 1, found.witness.seq] if found.lost and found.witness else None,
        "bad_pages": len(found.bad_pages),
        "broken_tables": got.broken,
        "unreadable_rows": unreadable,
        "kept": kept,
        "leases_back": back,
        "batches": [w.row(cancelled.get(w.id, 0)) for w in sorted(wounded.values(), key=lambda w: w.id)],
        "incarnation": tail.incarnation + 1,
        "seq": seq,
        "stamp": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
    }


def _require_alone(new: Path) -> None:
    """The file is all of the database, and has its sums: a store that a disk refuses something closes without a word.

    Raises:
        OSError, sqlite3.Error: it is not so, and cannot be made so.
    """
    wal = Path(f"{new}-wal")
    if wal.exists() and wal.stat().st_size:
        raise sqlite3.OperationalError(f"{wal}: it could not be copied into the new database")
    if not sums_path(new).exists():
        PageSums.make(sums_path(new), new)


def _next_tail(found: Found, got: Salvage) -> Tail:
    """Past everything that was given out, by all that is known of it."""
    known = [found.tail, *([found.witness] if found.witness is not None else [])]
    meta = {row[0]: row[1] for row in got.rows.get("meta", [])}
    tokens = [row[12] for row in got.rows.get("tasks", [])]
    incarnation = max([*(t.incarnation for t in known), int(meta.get("incarnation") or 0), *tokens])
    seq = max([*(t.seq for t in known), *(row[0] + row[1] - 1 for row in got.rows.get("events", []))])
    leap = LEAP if found.witness is None else 0
    last = max(known, key=lambda t: t.commits)
    return Tail(last.commits + 1 + leap, seq + leap, incarnation + leap, last.after(b"repair").chain)


def _sensible_batches(got: Salvage) -> dict[int, Batch]:
    """The batches by number; rows that make no sense are taken out."""
    batches, rows = {}, []
    for row in got.rows.get("batches", []):
        with suppress(*_NONSENSE):
            batches[row[0]] = batch_from(row)
            rows.append(row)
    got.rows["batches"] = rows
    return batches


def _look_for_lost(got: Salvage, batches: dict[int, Batch]) -> dict[str, Wounded]:
    """Tasks that the event log or another task names and that are not there, by batch.

    A task that has ended may be gone because it was old; one that has not ended never goes, nor one of a live batch.
    """
    names = {b.id: b for b in batches.values()}
    tasks = {row[0]: row for row in got.rows.get("tasks", []) if row[1] in batches}
    have = {task_id(batches[row[1]].id, row[2]) for row in tasks.values()}
    wounded: dict[str, Wounded] = {}

    def miss(batch: str, what: str) -> None:
        known = names.get(batch)
        wounded.setdefault(
            batch, Wounded(batch, known.name, known.kind) if known else Wounded(batch, whole_row=False)
        ).lost.add(what)

    for id_, (batch, state) in _last_said(got).items():
        live = batch in names and names[batch].kind != "calls" and names[batch].state not in BATCH_ENDED
        if id_ not in have and (live or state not in _ENDED):
            miss(batch, id_)
    for row in tasks.values():
        after, feeds = _edges(row)
        for no in (after if row[3] == TaskState.WAITING else []) + (feeds if row[3] < TaskState.DONE else []):
            if no not in tasks:
                miss(batches[row[1]].id, f"number {no}")
    return wounded


def _last_said(got: Salvage) -> dict[str, tuple[str, str]]:
    """Public id of each task in the event log -> (batch, the last that was said of it)."""
    last = {}
    for row in got.rows.get("events", []):
        with suppress(*_NONSENSE):
            for _, _, _, channel, topic, id_, batch, _ in msgpack.unpackb(row[2], raw=False):
                if topic.startswith("task.") and channel != "a":
                    last[id_] = (batch, topic.rpartition(".")[2])
    return last


def _edges(row: tuple[Any, ...]) -> tuple[list[int], list[int]]:
    """Numbers of the tasks that this one waits for, and of the joins that it feeds."""
    with suppress(*_NONSENSE):
        edges = msgpack.unpackb(row[25], raw=False)[1]
        return [no for no, _ in edges["after"]], [no for no, _ in edges["feeds"]]
    return [], []


def _fill(new: Path, got: Salvage, batches: dict[int, Batch], wounded: dict[str, Wounded]) -> int:
    """Put in the rows that make sense; how many did not. Events stay in the damaged file."""
    dropped = 0
    db = sqlite3.connect(new, isolation_level=None)
    try:
        db.execute("BEGIN")
        for table in ("batches", "tasks", "attempts", "evaluations", "facts", "meta"):
            for row in (whole_row(table, row) for row in got.rows.get(table, [])):
                if table == "meta" and row[0] in _OWN_META:
                    continue
                try:
                    if table == "tasks":
                        task_from((*row[:26], row[30]), batches[row[1]], 0.0, 0.0)
                    elif table == "facts":
                        msgpack.unpackb(row[4], raw=False)
                    db.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
                except _NONSENSE:
                    dropped += 1
                    if table == "tasks" and row[1] in batches:
                        batch = batches[row[1]]
                        lost = wounded.setdefault(batch.id, Wounded(batch.id, batch.name, batch.kind)).lost
                        lost.add(task_id(batch.id, str(row[2])))
        db.execute("COMMIT")
    finally:
        db.close()
    # what this connection wrote went past the sums
    sums_path(new).unlink()
    return dropped


def take_up(
    store: Store, wounded: dict[str, Wounded], id_: str
) -> tuple[dict[str, int], int, dict[str, int]]:
    """End what misses tasks, take every lease back; by the core's own rules. (cancelled by batch, leases, rows kept)"""
    now, wall = time.monotonic(), time.time()
    batches, tasks, edges, facts, seq, channels = store.load(now, wall)
    epoch = int(store.meta("epoch") or 0)
    core = Core(incarnation=store.tail.incarnation, state_id=id_, epoch=epoch)
    core.seq, core.channel_seq = max(seq, store.tail.seq), dict.fromkeys(channels, store.tail.seq)
    core.load(batches, tasks, edges, facts, now, wall)
    leased = [task for task in tasks if task.state is TaskState.LEASED]
    for task in leased:
        core.lose(task, "an older database was taken up: what ran then is not known to have ended", ran=False)
    cancelled = {}
    for batch in batches:
        lost = wounded.get(batch.id)
        if lost is not None and batch.state not in BATCH_ENDED:
            why = f"{len(lost.lost)} tasks of it were lost with a damaged database; `rigbus retry {batch.id}` runs the rest"
            cancelled[batch.id] = core.cancel_batch(batch, why, failed=True)["cancelled"]
    changes: Changes = core.take_effects().changes
    # a brain of a life that is lost may have had the next epochs
    changes.meta["epoch"] = epoch + LEAP
    mark(changes, core.channel_seq)
    store.commit(changes, now, wall)
    return cancelled, len(leased), {"batches": len(batches), "tasks": len(tasks), "facts": len(facts)}


# -- into its place ------------------------------------------------------------------------------------------


def _put_in_place(state: Path, db: Path) -> dict[str, Any]:
    """Swap the files; interrupted at any point, the next call goes on. Until the end no broker starts here."""
    ready = state / READY
    try:
        report: dict[str, Any] = json.loads((ready / _REPORT).read_bytes())
    except (OSError, ValueError) as e:
        raise StoreError(f"{ready}: {e}; move this folder aside and repair again") from None
    suffix = f".damaged-{report['stamp']}"
    for name in (f"{db.name}-wal", f"{db.name}-shm"):
        with suppress(FileNotFoundError):
            os.rename(state / name, state / f"{name}{suffix}")
    for path in (tail_path(db), sums_path(db), db):
        new = ready / path.name
        if not new.exists():
            continue  # already there
        with suppress(FileNotFoundError):
            os.rename(path, path.with_name(f"{path.name}{suffix}"))
        os.rename(new, path)
    sync_folder(state)
    report["damaged"] = str(db.with_name(f"{db.name}{suffix}"))
    _discard(ready, state)
    return report


def _discard(ready: Path, state: Path) -> None:
    """Remove what is left of a swap that is complete: under another name first, since half of it would say that it is not."""
    done = state / _DONE
    shutil.rmtree(done, ignore_errors=True)
    ready.rename(done)
    sync_folder(state)
    shutil.rmtree(done, ignore_errors=True)
