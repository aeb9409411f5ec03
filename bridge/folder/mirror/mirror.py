"""The mirror: the broker's state drawn into the share. A projection: delete it and it comes back.

One flow does what is due, one batch of the mirror helper at a time. Events only mark tasks as changed; what is written
are rows asked afterwards, so any number of events about a task in a short time is one file. After a gap, a new session
or an absence of the share the whole is compared anew (`survey`), and all the time a slice at a time (`sweep`). The
lines of the log are told from the events themselves, each once, also those of a time when there was no bridge.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ....bus.errors import NotFound, RigbusError
from ....bus.paths import RigPaths
from ....bus.wire import Verb
from ..contract import layout, oldconfig, rows
from ..logs.batchlog import BatchLogs
from ..logs.copies import LogCopies
from ..logs.decisions import Decision
from ..logs.said import Said
from ..logs.samplebook import SampleBook
from ..logs.samples import Samples
from ..logs.sampling import Sampling
from ..logs.telling import Heard, Telling
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ShareAway, ask, share
from ..share.ops import Op, unlink
from ..share.port import FolderPort
from .drawing import BACKOFF_S, Drawing
from .findings import Findings
from .following import Following
from .lanes import KEPT, KEPT_S, Author, Known, Lanes, nobody
from .summing import Summing
from .survey import (
    STATS,
    Survey,
    later_folders,
    make_folders,
    scan_lanes,
    scan_workers,
    survey,
    unsealed,
)
from .sweep import Sweep
from .workers import Scene, Workers

log = logging.getLogger(__name__)

NAME: Final = "mirror"
ROWS: Final = 200  #: tasks asked and written in one go
ROWS_S: Final = 0.08  #: between two such goes
BATCHES_S: Final = 1.0
LOGS_S: Final = 2.0
BEATS_S: Final = (2.0, 5.0)  #: heartbeat files: something runs, or not
FRESH_S: Final = layout.STALE_AFTER_S / 3  #: state.json and the workers' files are at most so old
ARCHIVE_S: Final = 2.0
AGAIN_S: Final = 10.0  #: what one file's fault left undone
SAID_S: Final = 1.0
RECONCILE_S: Final = 10.0
SLICE_S: Final = 0.05  #: between two slices of a comparison
SHARE_OF_TIME: Final = 0.1  #: that comparing may take, so that it does not become the rig's work
MAX_BATCHES: Final = 4000  #: rows of batches that are kept
ADOPTED: Final = 5000  #: files taken over before others get their turn

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
        kept_s: float = KEPT_S,
        author: Author = nobody,
        path_map: Sequence[str] = (),
        findings: Findings | None = None,
    ) -> None:
        self._port, self._beats, self._clock = port, beats, clock or Clock()
        self._reconcile_s, self._kept, self._kept_s = reconcile_s, kept, kept_s
        self._author, self._findings, self._withheld = author, findings, False
        self._logs = LogCopies(str(paths.logs))
        self._telling = Telling(self._clock.utc_offset_s)
        samples = Samples(self._clock.utc_offset_s, SampleBook(paths.state / "samples.db"))
        self._sampling = Sampling(samples, self._telling, self._clock)
        told = BatchLogs(self._clock.utc_offset_s)
        lanes = self._new_lanes()
        self._drawing = Drawing(lanes, self._logs, self._telling, self._clock, told, findings)
        self._summing = Summing(told, self._drawing, self._clock.utc_offset_s)
        self._sweep = Sweep(self._drawing)
        self._news = Following(self._telling, Said(paths.state / "mirror.json"), samples, told)
        self.event, self.tick = self._news.event, self._news.tick
        self._attached = False
        self._first = True
        self._batches: dict[str, dict[str, Any]] = {}
        self._workers = Workers(oldconfig.shared_path(str(paths.shared), path_map))
        self._active = 0  #: batches of plans that go on
        self._started_at = self._clock.wall()
        self._ending = self._ended = False
        self._swept_at: float | None = None  #: since when a comparison goes on
        self._sweeping_s = 0.0
        names = (
            "rows",
            "batches",
            "state",
            "logs",
            "beats",
            "brain",
            "ends",
            "archive",
            "again",
            "said",
            "reconcile",
        )
        self._due = dict.fromkeys(names, 0.0)

    # -- what the service tells ------------------------------------------------------------------------------

    def welcomed(self) -> None:
        """A new session: what was missed is unknown."""
        self._attached = self._news.stale = True

    def share_is_back(self) -> None:
        """What stands in the share is unknown."""
        self._news.stale = True

    def has_work(self) -> bool:
        """Something that was told has not been drawn yet."""
        return (
            self._has_lines() or self._news.batches_changed or self._news.workers_changed or self._news.behind
        )

    def want(self, file: layout.File) -> None:
        """Keep a file that is drawn elsewhere; poke the mirror then."""
        self._drawing.others.want(file, self._clock.now())

    def forget(self, path: str) -> None:
        """A file that was wanted so is to be drawn no more."""
        self._drawing.others.forget(path)

    def counts(self) -> dict[str, Any]:
        """What was done so far, and the lag (`counting.Counts`)."""
        return self._drawing.counts.shown()

    def stop(self) -> None:
        """The bridge ends: show it, and who has gone before it."""
        self._ending = self._news.workers_changed = True
        self._drawing.events_at = 0.0
        self._due |= {"rows": 0.0, "state": 0.0, "beats": 0.0, "brain": 0.0}

    def stopped(self) -> bool:
        """The end is shown, or nothing can be."""
        return self._ended or not self._attached or not self._port.state.available

    def say(self, at: float, decision: Decision) -> None:
        """Append a line to the log of decisions that no event tells; ``at`` is unix seconds."""
        self._telling.say(at, decision)

    def drawn(self, path: str) -> bool:
        """The mirror keeps a task's file at this path of the share: nobody need ask whose it is."""
        return self._drawing.lanes.stands(path)

    def _new_lanes(self) -> Lanes:
        strays = self._findings.strays if self._findings is not None else ()
        return Lanes(self._kept, self._kept_s, self._author, strays)

    def _has_lines(self) -> bool:
        return bool(self._news.dirty) or self._drawing.may_append()

    # -- the flow --------------------------------------------------------------------------------------------

    def run(self) -> Flow[None]:
        """What the mirror does, for ever. Poke it when something was told."""
        while True:
            if not self._attached or not self._port.state.available:
                yield Idle()
                continue
            if (rest := self._drawing.not_before - self._clock.now()) > 0:
                yield Idle(rest)
                continue
            pause = 0.0
            try:
                if self._news.stale:
                    yield from self._survey()
                yield from self._do_due()
                pause = self._pause()
            except (ShareAway, RigbusError) as e:
                log.warning("the mirror stops: %s; it is compared anew", e)
                self._news.stale = True
                self._drawing.not_before = self._clock.now() + BACKOFF_S[0]
            yield Idle(pause)

    def _do_due(self) -> Flow[None]:
        now = self._clock.now()
        self._heed_findings(now)
        if self._news.behind:
            yield from self._news.catch_up()
        if self._has_lines() and now >= self._due["rows"]:
            self._due["rows"] = now + ROWS_S
            yield from self._draw_rows()
        if (self._news.batches_changed and now >= self._due["batches"]) or now >= self._due["state"]:
            self._due["batches"], self._due["state"] = now + BATCHES_S, now + FRESH_S
            yield from self._draw_batches()
        if now >= self._due["beats"]:
            yield from self._draw_workers()
            self._due["beats"] = now + BEATS_S[not self._workers.busy()]
        if now >= self._due["brain"]:
            self._due["brain"] = now + FRESH_S
            self._draw_brain()
        if now >= self._due["logs"] and self._logs.waiting():
            self._due["logs"] = now + LOGS_S
            yield from self._copy_logs(self._logs.ops())
        if self._drawing.retry or now >= self._due["again"]:
            self._due["again"] = now + AGAIN_S
            self._try_again()
        if self._drawing.others.waiting():
            yield from self._drawing.write({}, [], {})
        if self._summing.waiting() and now >= self._due["ends"]:
            self._due["ends"] = now + BATCHES_S
            yield from self._summing.step(self._news.waiting_batches())
        if now >= self._sampling.due:
            yield from self._sampling.step()
        if now >= self._due["archive"]:
            self._due["archive"] = now + ARCHIVE_S
            yield from self._drawing.archive()
        if now >= self._due["reconcile"]:
            yield from self._reconcile()
        if now >= self._due["said"] or self._ending:
            self._due["said"] = now + SAID_S
            self._news.keep_said()
        self._ended = self._ending and not self._has_lines()

    def _heed_findings(self, now: float) -> None:
        """What the door for edited files has decided since."""
        if self._findings is None:
            return
        redraw, self._findings.redraw = self._findings.redraw, {}
        for task, batch in redraw.items():
            self._news.draw(task, batch)
        if self._withheld != (now < self._findings.withheld_until):
            self._news.stale = True

    def _pause(self) -> float:
        due = [self._due[name] for name in ("beats", "brain", "state", "archive", "again", "reconcile")]
        due += [self._due["rows"]] if self._news.dirty else []
        due += [max(self._drawing.append_at, self._due["rows"])] if self._drawing.waiting() else []
        due += [self._due["batches"]] if self._news.batches_changed else []
        due += [self._due["logs"]] if self._logs.waiting() else []
        due.append(self._sampling.due)
        if self._drawing.batchlogs.waiting():
            due.append(max(self._drawing.events_at, self._drawing.append_at, self._due["rows"]))
        due += [self._due["ends"]] if self._summing.waiting() else []
        return max(0.0, min(due) - self._clock.now())

    # -- comparing -------------------------------------------------------------------------------------------

    def _survey(self) -> Flow[None]:
        """Compare everything anew, and follow the events from here on."""
        self._news.stale = False  # what happens meanwhile asks for the next comparison
        before = self._news.seq()
        yield from make_folders()
        found = yield from scan_lanes()
        oldest = self._clock.wall() - self._kept_s
        if self._findings is not None:
            self._withheld = self._clock.now() < self._findings.withheld_until
        seen: Survey = yield from survey(found, self._kept, oldest, self._withheld)
        yield from self._news.go_on_from(seen, before)
        foreign = yield from self._foreign(seen, found)
        lanes = self._drawing.lanes = self._new_lanes()
        for n, (path, (task, batch)) in enumerate(seen.known.items()):
            if path in foreign:
                continue
            lanes.adopt(path, found[path], batch, task)
            if task in seen.changed:
                lanes.doubt(path)  # an older drawing of ours, or somebody's edit: its seal will tell
            if n % ADOPTED == ADOPTED - 1:
                yield Idle(0.0)
        self._batches = seen.batches
        for task, batch in seen.changed.items():
            self._news.draw(task, batch)
        for task, row in seen.running.items():
            self._logs.follow(task, row, self._plan_of(row))
        for row in seen.ended:
            self._logs.ended(row, self._plan_of(row))
        self._due = dict.fromkeys(self._due, 0.0)
        self._due["reconcile"] = self._clock.now() + (self._reconcile_s if self._first else 0.0)
        yield from self._draw_batches()
        self._workers.folders = yield from later_folders()
        yield from self._draw_workers((yield from scan_workers()))
        yield from self._drawing.adopt()
        for i in range(0, len(seen.strange), STATS):
            part = seen.strange[i : i + STATS]
            yield from self._drawing.remove([unlink(path, only_sealed=True) for path in part])
        self._first, self._swept_at = False, None
        log.info(
            "mirror compared: %d files stand, %d tasks to draw, from event %d on",
            len(lanes),
            len(seen.changed),
            seen.seq,
        )

    def _foreign(self, seen: Survey, found: Mapping[str, Known]) -> Flow[set[str]]:
        """Files that somebody has written where their task does not stand: read before anything is drawn over them.

        The one that an author's task was made of is none: the task began before it was drawn for the first time.
        """
        if self._findings is None:
            return set()
        foreign = yield from unsealed(p for p in seen.displaced if self._author(p) != found[p])
        for path in foreign:
            self._findings.stray(path, *seen.known[path])
        return foreign

    def _reconcile(self) -> Flow[None]:
        """The next slice of the comparison; what somebody has removed or altered is drawn again."""
        start = self._clock.now()
        if self._swept_at is None:
            self._swept_at, self._sweeping_s = start, 0.0
            self._sweep.begin()
        more = yield from self._sweep.step()
        for task in self._sweep.lost:
            self._news.draw(task)
        self._sweep.lost.clear()
        now = self._clock.now()
        self._sweeping_s += now - start
        if more:
            self._due["reconcile"] = now + SLICE_S
            return
        self._due["reconcile"] = now + max(self._reconcile_s, self._sweeping_s / SHARE_OF_TIME)
        self._swept_at = None

    def _try_again(self) -> None:
        """What could not be written."""
        self._drawing.retry = False
        for task in self._drawing.failed:
            self._news.draw(task)
        self._drawing.failed.clear()
        self._drawing.others.again()

    # -- tasks -----------------------------------------------------------------------------------------------

    def _draw_rows(self) -> Flow[None]:
        """Ask for the changed tasks, write their files, their logs and the lines about them."""
        ids = list(self._news.dirty)[:ROWS]
        heard = {task: self._news.dirty.pop(task) for task in ids}
        redraw = {task for task in ids if task in self._news.redraw}
        self._news.redraw -= redraw
        try:
            wanted, copies = yield from self._rows_of(heard, redraw)
        except RigbusError:
            self._news.hear_again(heard, redraw)
            raise
        events = {task: steps[-1].at for task, (_, steps) in heard.items() if steps}
        yield from self._drawing.write(wanted, copies, events)

    def _rows_of(self, heard: Heard, redraw: set[str]) -> Flow[tuple[dict[str, layout.File], list[Op]]]:
        wanted: dict[str, layout.File] = {}
        copies: list[Op] = []
        found: dict[str, dict[str, Any]] = {}
        if heard:
            answer = yield from ask(Verb.QUERY, {"what": "rows", "ids": list(heard), "history": True})
            for raw, body in zip(answer.header["rows"], answer.body, strict=False):
                batch = yield from self._batch(raw["batch"])
                steps = heard[raw["id"]][1]
                row = rows.task_row(raw, body, batch, steps[-1] if steps else None)
                found[raw["id"]] = row
                offset = self._clock.utc_offset_s(row["changed_at"])
                file = layout.task_file(row, offset, self._withheld)
                if file is not None and raw["id"] in redraw:
                    wanted[raw["id"]] = file
                copies += self._logs.task(raw["id"], row, steps, self._plan_of(row))
            if answer.header.get("cursor") is not None:  # large results: the rest of them next time
                left = {task: heard.pop(task) for task in list(heard) if task not in found}
                self._news.hear_again(left, redraw)
        yield from self._sampling.judgements(heard)
        self._telling.tasks(heard, found)
        self._drawing.batchlogs.tasks(heard, found, self._folder_of)
        return wanted, copies

    def _batch(self, batch: str) -> Flow[dict[str, Any] | None]:
        """A batch's row, asked once."""
        if batch not in self._batches:
            try:
                answer = yield from ask(Verb.QUERY, {"what": "batch", "id": batch})
            except NotFound:  # purged meanwhile
                return None
            self._batches[batch] = rows.batch_row(answer.header)
            self._forget_batches()
        return self._batches[batch]

    def _forget_batches(self) -> None:
        """Each file of the queue is a batch: those that came first are asked for again, should they be wanted."""
        if len(self._batches) > MAX_BATCHES:
            for id_ in list(self._batches)[: -MAX_BATCHES // 2]:
                del self._batches[id_]

    def _plan_of(self, row: Mapping[str, Any]) -> str | None:
        batch = self._batches.get(row["batch"])
        return batch["plan"] if batch else None

    def _folder_of(self, batch: str) -> str | None:
        row = self._batches.get(batch)
        return f"plans/{row['plan']}/batches/{batch}" if row is not None and row["plan"] else None

    # -- batches, workers, logs ------------------------------------------------------------------------------

    def _seq(self) -> int:
        return self._news.seq() or 0

    def _draw_batches(self) -> Flow[None]:
        """``brain/state.json`` and the ``batch.json`` of each plan's batch that is shown."""
        self._news.batches_changed = False
        answer = yield from ask(Verb.QUERY, {"what": "batches"})
        shown = [rows.batch_row(raw) for raw in answer.header["batches"]]
        wall, now = self._clock.wall(), self._clock.now()
        offset = self._clock.utc_offset_s(wall)
        self._batches |= {row["id"]: row for row in shown}
        self._active = sum(row["kind"] == "plan" and not row["ended_at"] for row in shown)
        self._forget_batches()
        for row in shown:
            file = layout.batch_file(row, offset, wall)
            if file is not None:
                self._drawing.others.want(file, now, None if row["ended_at"] else layout.BATCH_STALE_S / 3)
        active = [row["id"] for row in shown if layout.is_active(row)]
        state = layout.state_file(
            shown,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=self._started_at,
            changed_at=wall,
            utc_offset_s=offset,
            seq=self._seq(),
            status="stopped" if self._ending else "active",
            listing=self._findings.show(active) if self._findings is not None else "",
        )
        self._drawing.others.want(state, now, FRESH_S / 2)

    def _draw_workers(self, folders: list[str] | None = None) -> Flow[None]:
        """``folders``: names that have one in the share; whoever of them is not there any more is gone."""
        wall, now = self._clock.wall(), self._clock.now()
        self._workers.heard(self._beats(), wall)
        if self._news.workers_changed or folders is not None:
            self._news.workers_changed = False
            answer = yield from ask(Verb.QUERY, {"what": "workers"})
            self._workers.told(answer.header["workers"])
            self._workers.missing(folders or ())
        for file in self._workers.files(wall, self._clock.utc_offset_s(wall), self._seq()):
            self._drawing.others.want(file, now, FRESH_S - BEATS_S[1])

    def _draw_brain(self) -> None:
        """The brain's heartbeat, and what readers take for the configuration."""
        wall, now = self._clock.wall(), self._clock.now()
        scene = Scene(socket.gethostname(), wall, self._clock.utc_offset_s(wall), self._seq())
        for file in self._workers.portrait(scene, self._active, ending=self._ending):
            self._drawing.others.want(file, now)

    def _copy_logs(self, ops: list[Op]) -> Flow[None]:
        self._logs.done(ops, (yield from share("mirror", ops)))
