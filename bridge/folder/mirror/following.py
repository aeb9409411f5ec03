"""What the broker's events say to the mirror: which tasks have changed, and the lines of the log, each told once.

Events are a hint; a hole is read from the broker's log. Where that is trimmed, or too much has come while nothing could
be drawn, only a comparison of everything helps (:attr:`Following.stale`), and the log of decisions leaves out what was
between. Otherwise its lines go on where the last one stood, also after a time without a bridge.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from ....bus.client.follow import Cursor, Event, event_of
from ....bus.wire import Verb
from ..contract import layout, rows
from ..logs.batchlog import BatchLogs
from ..logs.said import Said
from ..logs.samples import Samples
from ..logs.telling import Heard, Telling
from ..loop.flows import Flow, ask, share
from ..share.ops import read
from .survey import Survey

log = logging.getLogger(__name__)

MAX_DIRTY: Final = 100_000
MAX_HEARD: Final = 20_000  #: tasks that wait to be drawn while the log is read
MAX_BEHIND: Final = 200_000  #: events of which lines are made up for
TAIL_BYTES: Final = 256 << 10


class Following:
    """See the module. ``dirty`` are tasks with what was heard of them, ``redraw`` those whose file may be another."""

    def __init__(
        self,
        telling: Telling,
        said: Said,
        samples: Samples | None = None,
        batchlogs: BatchLogs | None = None,
    ) -> None:
        self._telling, self._said = telling, said
        self._samples, self._batchlogs = samples or Samples(), batchlogs or BatchLogs()
        self._cursor: Cursor | None = None
        self._begun = False
        self._surveyed_seq = 0
        self._client_seq = 0
        self.stale = True
        self.behind = False
        self.dirty: Heard = {}
        self.redraw: set[str] = set()
        self.batches_changed = self.workers_changed = True

    def seq(self) -> int | None:
        """The last event that was read; None before the first comparison."""
        return self._cursor.since if self._cursor is not None else None

    def draw(self, task: str, batch: str = "") -> None:
        """The task's file may be another one, though nothing was heard."""
        self.dirty.setdefault(task, (batch, []))
        self.redraw.add(task)

    def event(self, event: Event) -> None:
        """An event as it came from the events socket."""
        if self._cursor is None or self.behind or not self._cursor.fresh(event):
            return
        if self._cursor.see(event):
            self.behind = True
        else:
            self._take(event)

    def tick(self, channels: Mapping[str, int]) -> None:
        """The broker's last number of each channel, once a second."""
        if self._cursor is not None and self._cursor.behind(channels):
            self.behind = True
        client = int(channels.get("c") or 0)
        if client != self._client_seq:
            self._client_seq, self.batches_changed = client, True

    def _take(self, event: Event) -> None:
        step = rows.transition(event)
        if step is not None and event.id is not None:
            self.dirty.setdefault(event.id, (event.batch or "", []))[1].append(step)
            if event.seq > self._surveyed_seq:
                self.redraw.add(event.id)
                self.batches_changed = True
            if len(self.dirty) > MAX_DIRTY:  # the share is away for long: it is compared anew when it is back
                log.warning("too much has happened while nothing could be drawn: the log leaves it out")
                self.dirty.clear()
                self.redraw.clear()
                self.stale, self._cursor = True, None
        elif event.topic.startswith("task."):
            self._telling.ending(event)
        elif event.topic.startswith("worker."):
            self.workers_changed = True
            self._telling.worker(event)
        elif event.topic.startswith("rig."):
            self.workers_changed = True
        elif event.topic.startswith("escalation."):
            self.batches_changed = True
            self._telling.escalation(event)
        elif event.topic.startswith("batch."):
            self.batches_changed = True
            self._telling.batch(event)
            self._batchlogs.batch(event)

    def waiting_batches(self) -> set[str]:
        """Batches with tasks that have changed and are not drawn yet."""
        return {batch for batch, _ in self.dirty.values()}

    def go_on_from(self, seen: Survey, before: int | None) -> Flow[None]:
        """Set the cursor: at what was compared, or before it, where lines are still to be told."""
        told: dict[str, str] | None = None
        since = self._cursor.since if self._cursor is not None else None
        if not self._begun:
            since, told = self._said.load()
            before = since
        if before is None or since is None or before > seen.seq:
            # Nothing to go on from, or the numbers of another rig.
            since = seen.seq
            told = {b["id"]: b["state"] for b in seen.batches.values() if b["kind"] == "plan"}
        elif not self._begun:
            yield from self._read_tail()
        if told is not None:
            self._telling.begin(told)
        since = max(since, seen.seq - MAX_BEHIND)
        self._surveyed_seq = seen.seq
        self._begun = True
        self._cursor = Cursor(("p",), since)
        self.behind = self.behind or since < seen.seq

    def _read_tail(self) -> Flow[None]:
        """What the end of the log tells already, from before our last word about it."""
        (listed,) = yield from share("mirror", [read(layout.DECISIONS_LOG, 0)])
        if listed["ok"]:
            offset = max(0, listed["size"] - TAIL_BYTES)
            (end,) = yield from share("mirror", [read(layout.DECISIONS_LOG, TAIL_BYTES, offset)])
            if end["ok"]:
                self._telling.stands(end["data"])

    def catch_up(self) -> Flow[None]:
        """Events were missed: read them from the log; where that is trimmed, compare anew."""
        while (cursor := self._cursor) is not None and len(self.dirty) < MAX_HEARD:
            answer = yield from ask(Verb.EVENTS, {"since": cursor.since, "channel": "p"})
            if answer.verb is Verb.RESNAPSHOT:
                log.info("events were missed and are trimmed; comparing the mirror anew")
                self.stale, self._cursor = True, None
                return
            for raw in answer.header["events"]:
                event = event_of(raw)
                cursor.read(event)
                self._take(event)
            if not answer.header["more"]:
                cursor.caught_up(int(answer.header["last"]))
                self.behind = False
                return

    def keep_said(self) -> None:
        """Remember how far the log tells the events: everything before what still waits."""
        if self._cursor is None:
            return
        waiting = [step.seq for _, steps in self.dirty.values() for step in steps[:1]]
        tellers = (self._telling, self._samples, self._batchlogs)
        untold = [seq for one in tellers if (seq := one.untold()) is not None]
        first = min([*waiting, *untold], default=self._cursor.since + 1)
        self._said.save(first - 1, self._telling.states())

    def hear_again(self, heard: Heard, redraw: set[str]) -> None:
        """These tasks could not be asked about: they wait again, before what has come meanwhile."""
        for task, (batch, steps) in heard.items():
            later = self.dirty.pop(task, (batch, []))[1]
            self.dirty[task] = (batch, steps + later)
        self.redraw |= redraw & heard.keys()
