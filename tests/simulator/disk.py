"""The store without a file: the same rows, in memory; a power loss takes the commits that were not synced.

A second implementation of the broker's ``Store`` for the simulator's speed; `tests/sim/test_disk.py` runs one suite over
both, and some seeds run on the real one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgpack

from rigbus.bus.core.model import Changes, Fact
from rigbus.bus.store.reading import Loaded
from rigbus.bus.store.records import batch_from, batch_row, insert_row, meta_of, task_from, update_row

#: Columns of a task's row that `update_row` gives, in its order (schema.sql).
_UPDATED: Final = (3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 24, 30)
_SHOWN: Final = 26  #: the columns that a start reads
_PRIORITY, _SPEC, _PAYLOAD, _RESULT, _REVISED = 5, 25, 26, 27, 30
_GONE: Final = object()


class Disk:
    """Rows by table and key. ``syncs`` False: commits wait for :meth:`sync`, as with ``durability = normal``."""

    def __init__(self, *, syncs: bool = True) -> None:
        self.syncs = syncs
        self.tables: dict[str, dict[Any, Any]] = {
            name: {} for name in ("meta", "batches", "tasks", "attempts", "evaluations", "facts", "events")
        }
        self._undo: list[list[tuple[str, Any, Any]]] = []  #: of each commit since the last sync

    # -- durability ------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Everything that was committed is on the disk."""
        self._undo.clear()

    @property
    def unsynced(self) -> int:
        """Commits that a power loss may take."""
        return len(self._undo)

    def power_loss(self, lost: int) -> None:
        """The last ``lost`` commits that were not synced are gone."""
        for _ in range(min(lost, len(self._undo))):
            for table, key, old in reversed(self._undo.pop()):
                if old is _GONE:
                    self.tables[table].pop(key, None)
                else:
                    self.tables[table][key] = old

    def _put(self, table: str, key: Any, value: Any) -> None:
        rows = self.tables[table]
        self._undo[-1].append((table, key, rows.get(key, _GONE)))
        rows[key] = value

    def _delete(self, table: str, key: Any) -> None:
        rows = self.tables[table]
        if key in rows:
            self._undo[-1].append((table, key, rows.pop(key)))

    # -- the Store's methods ---------------------------------------------------------------------------------

    def next_incarnation(self) -> int:
        self._undo.append([])
        number = int(self.meta("incarnation") or 0) + 1
        self._put("meta", "incarnation", number)
        self.sync()
        return number

    def meta(self, key: str) -> Any:
        return self.tables["meta"].get(key)

    def commit(self, changes: Changes, now: float, wall: float) -> None:
        offset = wall - now
        self._undo.append([])
        tasks = self.tables["tasks"]
        for task, spec, payload, _ in changes.new_tasks.values():
            self._put(
                "tasks", task.no, insert_row(task, spec, payload, changes.results, changes.refs, offset)
            )
        for no, task in changes.tasks.items():
            row = list(tasks[no])
            for column, value in zip(_UPDATED, update_row(task, offset), strict=False):
                row[column] = value
            if no in changes.results:
                row[_RESULT:_REVISED] = [changes.results[no], *changes.refs.get(no, (None, None))]
            if no in changes.respecs:
                row[_SPEC], row[_PAYLOAD], row[_PRIORITY] = changes.respecs[no]
            self._put("tasks", no, tuple(row))
        for attempt in changes.attempts:
            self._put("attempts", attempt[:2], attempt)
        for evaluation in changes.evaluations:
            self._put("evaluations", evaluation[:2], evaluation)
        for batch in changes.batches.values():
            self._put("batches", batch.no, batch_row(batch))
        for key, fact in changes.facts.items():
            if fact is None:
                self._delete("facts", key)
            else:
                self._put("facts", key, (fact.rev, fact.epoch, msgpack.packb(fact.value, use_bin_type=True)))
        for name, value in changes.meta.items():
            self._put("meta", name, value)
        for event in changes.events:
            self._put("events", event[0], msgpack.packb(event, use_bin_type=True))
        self._forget(changes)
        if self.syncs:
            self.sync()

    def _forget(self, changes: Changes) -> None:
        for no in changes.purge_tasks:
            self._delete("tasks", no)
            for table in ("attempts", "evaluations"):
                for key in [k for k in self.tables[table] if k[0] == no]:
                    self._delete(table, key)
        for no in changes.purge_batches:
            self._delete("batches", no)

    def load(self, now: float, wall: float) -> Loaded:
        batches = {no: batch_from(row) for no, row in sorted(self.tables["batches"].items())}
        tasks, edges = [], {}
        for no, row in sorted(self.tables["tasks"].items()):
            task, its = task_from((*row[:_SHOWN], row[_REVISED]), batches[row[1]], now, wall)
            tasks.append(task)
            if its:
                edges[no] = its
        facts = {
            key: Fact(rev, epoch, msgpack.unpackb(value, raw=False))
            for key, (rev, epoch, value) in self.tables["facts"].items()
        }
        events = self.tables["events"]
        seq = max(events, default=0)
        channels = {"p": 0, "c": 0, "a": 0}
        for blob in events.values():
            event = msgpack.unpackb(blob, raw=False)
            channels[event[3]] = max(channels[event[3]], event[0])
        return list(batches.values()), tasks, edges, facts, seq, channels

    def payloads(self, nos: Iterable[int]) -> dict[int, tuple[Any, bytes]]:
        tasks = self.tables["tasks"]
        return {no: (meta_of(tasks[no][_SPEC]), tasks[no][_PAYLOAD]) for no in nos if no in tasks}

    def details(self, nos: Iterable[int]) -> dict[int, tuple[Any, bytes | None, str | None, int | None]]:
        tasks = self.tables["tasks"]
        return {no: (meta_of(tasks[no][_SPEC]), *tasks[no][_RESULT:_REVISED]) for no in nos if no in tasks}

    def attempts(self, no: int) -> list[dict[str, Any]]:
        names = ("n", "worker", "started_at", "ended_at", "class", "error")
        rows = [row for key, row in sorted(self.tables["attempts"].items()) if key[0] == no]
        return [dict(zip(names, row[1:], strict=True)) for row in rows[-100:]]

    def evaluations(self, no: int) -> list[dict[str, Any]]:
        rows = [row for key, row in sorted(self.tables["evaluations"].items()) if key[0] == no]
        return [
            {
                **msgpack.unpackb(value, raw=False),
                "verdict": verdict,
                "at": at,
                "sample": msgpack.unpackb(sample, raw=False),
            }
            for _, _, verdict, at, value, sample in rows[-20:]
        ]

    def last_evaluations(self, nos: Iterable[int]) -> dict[int, dict[str, Any]]:
        found = {}
        for no in nos:
            for evaluation in self.evaluations(no)[-1:]:
                found[no] = {k: v for k, v in evaluation.items() if k != "sample"}
        return found

    def events(self, since: int, channel: str | None, limit: int) -> tuple[list[Any], int | None, bool]:
        events = self.tables["events"]
        if not events or since + 1 < min(events):
            return [], min(events) if events else None, False
        out: list[Any] = []
        for seq in range(since + 1, max(events) + 1):
            event = msgpack.unpackb(events[seq], raw=False)
            if channel is None or event[3] == channel:
                if len(out) >= limit:
                    return out, None, True
                out.append(event)
        return out, None, False

    def refs(self) -> list[tuple[int, str]]:
        return [(no, row[_RESULT + 1]) for no, row in self.tables["tasks"].items() if row[_RESULT + 1]]

    def close(self) -> None:
        pass
