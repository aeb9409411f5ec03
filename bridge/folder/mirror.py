"""The mirror: the broker's state drawn into the share. A projection: delete it and it comes back.

One flow does what is due, one batch of the mirror helper at a time. Events only mark tasks as changed; what is written
are rows asked afterwards, so any number of events about a task in a short time is one file. After a gap, a new session
or an absence of the share the whole is compared anew (`surveying`).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from ...bus.errors import NotFound, RigbusError
from ...bus.follow import Cursor, Event, event_of
from ...bus.paths import RigPaths
from ...bus.wire import Verb
from . import layout, rows
from .clock import Clock
from .flows import Flow, Idle, ShareAway, ask, share
from .lanes import KEPT, Lanes
from .logcopies import LogCopies
from .ops import Op, Result, append, stat, write
from .port import FolderPort
from .survey import Survey, make_folders, scan_lanes, survey
from .telling import Heard, Telling
from .workers import Workers

log = logging.getLogger(__name__)

NAME: Final = "mirror"
ROWS: Final = 200  #: tasks asked and written in one go
ROWS_S: Final = 0.08  #: between two such goes
BATCHES_S: Final = 1.0
LOGS_S: Final = 2.0
BEATS_S: Final = (2.0, 5.0)  #: heartbeat files: something runs, or not; readers call 60 s stale
RECONCILE_S: Final = 10.0
MAX_DIRTY: Final = 100_000
BACKOFF_S: Final = (1.0, 30.0)

Beats = Callable[[], list[tuple[str, dict[str, Any]]]]


class Mirror:
    """See the module. The service tells it what it hears (:meth:`event`, :meth:`tick`, :meth:`welcomed`)."""

    def __init__(
        self,
        paths: RigPaths,
        port: FolderPort,
        beats: Beats,
        clock: Clock | None = None,
        *,
        reconcile_s: float = RECONCILE_S,
        kept: int = KEPT,
    ) -> None:
        self._port, self._beats, self._clock = port, beats, clock or Clock()
        self._reconcile_s, self._kept = reconcile_s, kept
        self._lanes = Lanes(kept)
        self._logs = LogCopies(str(paths.logs))
        self._attached = self._behind = False
        self._stale = True
        self._cursor: Cursor | None = None
        self._dirty: Heard = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._batches_dirty = self._workers_dirty = True
        self._client_seq = 0
        self._workers = Workers()
        self._files: dict[str, layout.File] = {}  #: to be written: all but the lanes
        self._standing: dict[str, str] = {}
        self._telling = Telling(self._clock.utc_offset_s)
        self._log_end: int | None = None  #: of the decisions log, after our last append
        self._log_doubt: int | None = None  #: the same, while it is unknown whether the next one was done
        self._started_at = self._clock.wall()
        self._due = dict.fromkeys(("rows", "batches", "logs", "beats", "reconcile"), 0.0)
        self._backoff_s = self._not_before = self._append_at = 0.0
        self._trouble = ""
        self._failed: set[str] = set()
        self._failed_files: dict[str, layout.File] = {}

    # -- what the service tells ------------------------------------------------------------------------------

    def welcomed(self) -> None:
        """A new session: what was missed is unknown."""
        self._attached = self._stale = True

    def share_is_back(self) -> None:
        """What stands in the share is unknown."""
        self._stale = True

    def event(self, event: Event) -> None:
        """An event as it came from the events socket."""
        if self._cursor is None or self._behind or not self._cursor.fresh(event):
            return
        if self._cursor.see(event):
            self._behind = True
        else:
            self._take(event)

    def tick(self, channels: Mapping[str, int]) -> None:
        """The broker's last number of each channel, once a second."""
        if self._cursor is not None and self._cursor.behind(channels):
            self._behind = True
        client = int(channels.get("c") or 0)
        if client != self._client_seq:
            self._client_seq, self._batches_dirty = client, True

    def has_work(self) -> bool:
        """Something that was told has not been drawn yet."""
        return self._has_lines() or self._batches_dirty or self._workers_dirty or self._behind

    def _has_lines(self) -> bool:
        return bool(self._dirty) or self._may_append()

    def _may_append(self) -> bool:
        return self._telling.waiting() and self._clock.now() >= self._append_at

    def _take(self, event: Event) -> None:
        step = rows.transition(event)
        if step is not None and event.id is not None:
            self._dirty.setdefault(event.id, (event.batch or "", []))[1].append(step)
            self._batches_dirty = True
            if len(self._dirty) > MAX_DIRTY:
                self._dirty.clear()  # the share is away for long: it is compared anew when it is back
                self._stale = True
        elif event.topic.startswith("worker.") or event.topic.startswith("rig."):
            self._workers_dirty = True
        elif event.topic.startswith("batch."):
            self._batches_dirty = True
            self._telling.batch(event)

    # -- the flow --------------------------------------------------------------------------------------------

    def run(self) -> Flow[None]:
        """What the mirror does, for ever. Poke it when something was told."""
        while True:
            if not self._attached or not self._port.state.available:
                yield Idle()
                continue
            if (rest := self._not_before - self._clock.now()) > 0:
                yield Idle(rest)
                continue
            pause = 0.0
            try:
                if self._stale:
                    yield from self._survey()
                yield from self._do_due()
                pause = self._pause()
            except ShareAway as e:
                log.warning("the mirror stops: %s; it is drawn anew when the share answers", e)
                self._stale, self._not_before = True, self._clock.now() + BACKOFF_S[0]
            except RigbusError as e:
                log.warning("the mirror stops: %s; it is drawn anew", e)
                self._stale, self._not_before = True, self._clock.now() + BACKOFF_S[0]
            yield Idle(pause)

    def _do_due(self) -> Flow[None]:
        now = self._clock.now()
        if self._behind:
            yield from self._catch_up()
        if self._has_lines() and now >= self._due["rows"]:
            self._due["rows"] = now + ROWS_S
            yield from self._draw_rows()
        if self._batches_dirty and now >= self._due["batches"]:
            self._due["batches"] = now + BATCHES_S
            yield from self._draw_batches()
        if now >= self._due["beats"]:
            yield from self._draw_workers()
            self._due["beats"] = now + BEATS_S[not self._workers.busy()]
        if now >= self._due["logs"] and self._logs.waiting():
            self._due["logs"] = now + LOGS_S
            yield from self._copy_logs(self._logs.ops())
        if self._files:
            yield from self._write({}, [])
        if now >= self._due["reconcile"]:
            yield from self._reconcile()

    def _pause(self) -> float:
        due = [self._due["beats"], self._due["reconcile"]]
        due += [self._due["rows"]] if self._dirty else []
        due += [max(self._append_at, self._due["rows"])] if self._telling.waiting() else []
        due += [self._due["batches"]] if self._batches_dirty else []
        due += [self._due["logs"]] if self._logs.waiting() else []
        return max(0.0, min(due) - self._clock.now())

    def _survey(self) -> Flow[None]:
        """Compare everything anew, and follow the events from here on."""
        self._stale = False  # what happens meanwhile asks for the next comparison
        yield from make_folders()
        found = yield from scan_lanes()
        seen: Survey = yield from survey(found, self._kept)
        self._behind = False
        self._cursor = Cursor(("p",), seen.seq)
        self._lanes, self._batches = Lanes(self._kept), seen.batches
        self._telling.begin(seen.batches)
        for path, mtime_ns in seen.known.items():
            self._lanes.adopt(path, mtime_ns)
        for task, batch in seen.changed.items():
            self._dirty.setdefault(task, (batch, []))
        for task, row in seen.running.items():
            self._logs.follow(task, row, self._plan_of(row))
        self._standing.clear()
        self._workers.draw_again()
        self._batches_dirty = self._workers_dirty = True
        self._due = dict.fromkeys(self._due, 0.0)
        self._due["reconcile"] = self._clock.now() + self._reconcile_s
        log.info(
            "mirror compared: %d files stand, %d tasks to draw, from event %d on",
            len(self._lanes),
            len(seen.changed),
            seen.seq,
        )

    def _catch_up(self) -> Flow[None]:
        """Events were missed: read them from the log; where that is trimmed, compare anew."""
        while self._cursor is not None:
            answer = yield from ask(Verb.EVENTS, {"since": self._cursor.since, "channel": "p"})
            if answer.verb is Verb.RESNAPSHOT:
                log.info("events were missed and are trimmed; comparing the mirror anew")
                self._stale = True
                return
            for raw in answer.header["events"]:
                event = event_of(raw)
                self._cursor.read(event)
                self._take(event)
            if not answer.header["more"]:
                self._cursor.caught_up(int(answer.header["last"]))
                self._behind = False
                return

    # -- tasks -----------------------------------------------------------------------------------------------

    def _draw_rows(self) -> Flow[None]:
        """Ask for the changed tasks, write their files, their logs and the lines about them."""
        ids = list(self._dirty)[:ROWS]
        heard = {task: self._dirty.pop(task) for task in ids}
        try:
            wanted, copies = yield from self._rows_of(heard)
        except RigbusError:
            self._hear_again(heard)
            raise
        yield from self._write(wanted, copies)

    def _hear_again(self, heard: Heard) -> None:
        for task, (batch, steps) in heard.items():
            later = self._dirty.pop(task, (batch, []))[1]
            self._dirty[task] = (batch, steps + later)

    def _rows_of(self, heard: Heard) -> Flow[tuple[dict[str, layout.File], list[Op]]]:
        wanted: dict[str, layout.File] = {}
        copies: list[Op] = []
        found: dict[str, dict[str, Any]] = {}
        if heard:
            answer = yield from ask(Verb.QUERY, {"what": "rows", "ids": list(heard)})
            for raw, body in zip(answer.header["rows"], answer.body, strict=False):
                batch = yield from self._batch(raw["batch"])
                steps = heard[raw["id"]][1]
                row = rows.task_row(raw, body, batch, steps[-1] if steps else None)
                found[raw["id"]] = row
                file = layout.task_file(row, self._clock.utc_offset_s(row["changed_at"]))
                if file is not None:
                    wanted[raw["id"]] = file
                copies += self._logs.task(raw["id"], row, steps, self._plan_of(row))
            if answer.header.get("cursor") is not None:  # large results: the rest of them next time
                left = {task: heard.pop(task) for task in list(heard) if task not in found}
                self._hear_again(left)
        self._telling.tasks(heard, found)
        return wanted, copies

    def _batch(self, batch: str) -> Flow[dict[str, Any] | None]:
        """A batch's row, asked once."""
        if batch not in self._batches:
            try:
                answer = yield from ask(Verb.QUERY, {"what": "batch", "id": batch})
            except NotFound:  # purged meanwhile
                return None
            self._batches[batch] = rows.batch_row(answer.header)
        return self._batches[batch]

    def _plan_of(self, row: Mapping[str, Any]) -> str | None:
        batch = self._batches.get(row["batch"])
        return batch["plan"] if batch else None

    # -- batches, workers, logs ------------------------------------------------------------------------------

    def _draw_batches(self) -> Flow[None]:
        """``brain/state.json`` and the ``batch.json`` of each plan's batch that is shown."""
        self._batches_dirty = False
        answer = yield from ask(Verb.QUERY, {"what": "batches"})
        shown = [rows.batch_row(raw) for raw in answer.header["batches"]]
        wall = self._clock.wall()
        offset = self._clock.utc_offset_s(wall)
        for row in shown:
            self._batches[row["id"]] = row
            file = layout.batch_file(row, offset)
            if file is not None:
                self._want(file if rows.batch_ended(row) else file._replace(mtime_ns=layout.mtime_ns(wall)))
        state = layout.state_file(
            shown,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=self._started_at,
            changed_at=wall,
            utc_offset_s=offset,
        )
        self._want(state)

    def _draw_workers(self) -> Flow[None]:
        wall = self._clock.wall()
        self._workers.heard(self._beats(), wall)
        if self._workers_dirty:
            self._workers_dirty = False
            answer = yield from ask(Verb.QUERY, {"what": "workers"})
            self._workers.told(answer.header["workers"])
        for file in self._workers.files(wall, self._clock.utc_offset_s(wall)):
            self._want(file)

    def _copy_logs(self, ops: list[Op]) -> Flow[None]:
        self._logs.done(ops, (yield from share("mirror", ops)))

    def _want(self, file: layout.File) -> None:
        if self._standing.get(file.path) != layout.digest(file.data):
            self._files[file.path] = file
        else:
            self._files.pop(file.path, None)

    # -- writing ---------------------------------------------------------------------------------------------

    def _write(self, wanted: Mapping[str, layout.File], copies: list[Op]) -> Flow[None]:
        """One batch: logs before the task's end shows, then the lanes, other files and lines."""
        lanes = self._lanes.ops(wanted) + self._lanes.over()
        files = list(self._files.values())
        others = [write(f.path, f.data, mtime_ns=f.mtime_ns) for f in files]
        lines, size = self._telling.some() if self._may_append() else (b"", 0)
        said = [append(layout.DECISIONS_LOG, lines, self._log_doubt)] if lines else []
        self._files = {}
        try:
            results = yield from share("mirror", [*copies, *lanes, *others, *said], 30.0)
        except ShareAway:
            self._log_doubt = self._log_end if said else None
            raise
        parts = iter(results)
        self._logs.done(copies, [next(parts) for _ in copies])
        self._failed.update(self._lanes.done(lanes, [next(parts) for _ in lanes]))
        other_results = [next(parts) for _ in others]
        layout.acknowledge(self._standing, others, other_results)
        self._failed_files |= {
            f.path: f for f, result in zip(files, other_results, strict=True) if not result["ok"]
        }
        if said:
            self._appended(next(parts), size)
        if any(result.get("errno") == "EAGAIN" for result in results):
            self._try_again()  # the batch's time was up; what was left out is not at fault
        self._judge(results)

    def _try_again(self) -> None:
        for task in self._failed:
            self._dirty.setdefault(task, ("", []))
        self._files = {**self._failed_files, **self._files}
        self._failed.clear()
        self._failed_files.clear()

    def _appended(self, result: Result, count: int) -> None:
        # Only a repeat after a fault names its place: else lines that others append meanwhile would be overwritten.
        self._log_doubt = None
        if result["ok"]:
            self._log_end = result["size"]
            self._telling.written(count)
        else:
            self._append_at = self._clock.now() + BACKOFF_S[1]

    def _judge(self, results: list[Result]) -> None:
        """What failed is tried again with the next comparison; where all fails, everything waits a little."""
        bad = [r for r in results if not r["ok"] and r["errno"] not in ("ENOENT", "EAGAIN")]
        if not bad:
            self._backoff_s, self._trouble = 0.0, ""
            return
        if bad[0]["errno"] != self._trouble:
            self._trouble = bad[0]["errno"]
            log.warning("the mirror cannot be written: %s; trying again", bad[0]["what"])
        if len(bad) == len(results):
            self._backoff_s = min(max(BACKOFF_S[0], self._backoff_s * 2), BACKOFF_S[1])
            self._not_before = self._clock.now() + self._backoff_s

    def _reconcile(self) -> Flow[None]:
        """Draw again what somebody has removed, and what could not be written."""
        start = self._clock.now()
        yield from make_folders()
        there = yield from scan_lanes()
        self._failed.update(self._lanes.lost(there))
        self._try_again()
        known = list(self._standing)
        results = yield from share("mirror", [stat(path) for path in known])
        for path, result in zip(known, results, strict=True):
            if result["ok"] and result["entry"] is None:
                del self._standing[path]
                self._batches_dirty = True
                self._workers.draw_again()
        # A large mirror, or a slow share, is compared less often: this must not become the rig's work.
        took = self._clock.now() - start
        self._due["reconcile"] = self._clock.now() + max(self._reconcile_s, 100 * took)
