"""Writing the mirror: one batch of the mirror helper at a time, and what is done about what fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from ..contract import layout
from ..logs.appending import TAIL_BYTES
from ..logs.batchlog import BatchLogs
from ..logs.copies import LogCopies
from ..logs.telling import Telling
from ..loop.clock import Clock
from ..loop.flows import Flow, ShareAway, share
from ..share.ops import Entry, Op, Result, append, read, stat
from .counting import Counts
from .findings import Findings
from .lanes import Lanes
from .others import Others

log = logging.getLogger(__name__)

BACKOFF_S: Final = (
    1.0,
    10.0,
)  #: while everything fails; a share that comes back shows the present within 30 s
WRITE_S: Final = 30.0
EVENTS_S: Final = 1.0  #: between two appends to the log of a batch, which nobody follows as it grows
#: What stands in one file's place is in the way: no reason to think that the share takes nothing.
OF_A_PLACE: Final = frozenset({"EISDIR", "ENOTDIR", "ENOTSUP", "ELOOP", "ENAMETOOLONG"})
SAID_S: Final = 60.0  #: the same trouble is told so often


class Drawing:
    """What stands in the share, what is wanted there, and the way from one to the other."""

    def __init__(
        self,
        lanes: Lanes,
        logs: LogCopies,
        telling: Telling,
        clock: Clock,
        batchlogs: BatchLogs | None = None,
        findings: Findings | None = None,
    ) -> None:
        self.lanes, self.logs, self.telling, self._clock = lanes, logs, telling, clock
        self.batchlogs = batchlogs or BatchLogs()
        self.others = Others()
        self.findings = findings  #: None: nobody reads what others have written, it is only put aside
        if findings is not None:
            findings.attach(self.others)
        self.counts = Counts()
        self.failed: set[str] = set()  #: tasks whose file could not be written
        self.not_before = 0.0  #: monotonic; while everything fails
        self.retry = False  #: what failed may succeed now
        self._backoff_s = self._append_at = 0.0
        self._said: dict[str, float] = {}  #: when a trouble was last told, by its errno
        self.events_at = 0.0  #: monotonic; when the logs of batches are written to next
        self._log_end: int | None = None  #: of the decisions log, after our last append
        self._log_doubt: int | None = None  #: the same, while it is unknown whether the next one was done

    def may_append(self) -> bool:
        """There are lines, and the logs take them."""
        return self.waiting() and self._clock.now() >= self._append_at

    def waiting(self) -> bool:
        """There are lines for a log."""
        return self.telling.waiting() or self._events_due()

    def _events_due(self) -> bool:
        return self.batchlogs.waiting() and self._clock.now() >= self.events_at

    def now(self) -> float:
        """Monotonic seconds of the mirror's clock."""
        return self._clock.now()

    @property
    def append_at(self) -> float:
        """When a log that refused lines is tried again."""
        return self._append_at

    def write(
        self, wanted: Mapping[str, layout.File], copies: Sequence[Op], events: Mapping[str, float]
    ) -> Flow[None]:
        """One batch: logs before the task's end shows, then the lanes, other files and lines.

        ``events``: of the tasks in ``wanted`` that have changed, when their newest event was (unix seconds).
        """
        looks = self._events_due() and self.may_append()
        if looks:
            yield from self._look_at_batch_logs()
            self.events_at = self._clock.now() + EVENTS_S
        lanes, others = self.lanes.ops(wanted), self.others.ops()
        lines, size = self.telling.some() if self.may_append() else (b"", 0)
        said = [append(layout.DECISIONS_LOG, lines, self._log_doubt)] if lines else []
        events_of, counts = self.batchlogs.ops() if looks else ([], [])
        ops = [*copies, *lanes, *others, *said, *events_of]
        try:
            results = yield from share("mirror", ops, WRITE_S)
        except ShareAway:
            self._log_doubt = self._log_end if said else None
            self.batchlogs.lost_sight(op["path"] for op in events_of)
            raise
        self.counts.done(ops, results)
        parts = iter(results)
        self.logs.done(copies, [next(parts) for _ in copies])
        self._lanes_done(wanted, lanes, [next(parts) for _ in lanes], events)
        before = self.others.changed
        done = [next(parts) for _ in others]
        self.others.done(others, done, self._clock.now())
        for op, result in zip(others, done, strict=True):
            if self.findings is not None and result["ok"]:
                self.findings.written(op["path"], op["data"], self._clock.now())
        self.counts.changes += self.others.changed - before
        if said:
            self._appended(next(parts), size)
        if not self.batchlogs.done(events_of, counts, [next(parts) for _ in events_of]):
            # One file that takes no line must not hold up the log of decisions, which people follow.
            self.events_at = self._clock.now() + BACKOFF_S[1]
        self._keep_aside(results)
        self._judge(results)

    def _lanes_done(
        self,
        wanted: Mapping[str, layout.File],
        ops: Sequence[Op],
        results: Sequence[Result],
        events: Mapping[str, float],
    ) -> None:
        bad = set(self.lanes.done(ops, results))
        self.failed |= {self.lanes.task_of(path) for path in bad}
        done = {op["path"] for op in ops if op["op"] == "write"} - bad
        drawn = [task for task in events if task in wanted and wanted[task].path in done]
        self.counts.changes += len(drawn)
        wall = self._clock.wall()
        self.counts.drawn(wall - events[task] for task in drawn)

    def archive(self) -> Flow[None]:
        """Old files of ended tasks leave their lanes."""
        ops = self.lanes.over(round(self._clock.wall() * 1e9))
        if not ops:
            return
        results = yield from share("mirror", ops, WRITE_S)
        self.counts.done(ops, results)
        self.lanes.done(ops, results)  # what failed stands where it stood, and is chosen again
        self._judge(results)

    def remove(self, ops: Sequence[Op]) -> Flow[None]:
        """Copies of our own files that stand where they should not. What is not our own there is to be read."""
        results = yield from share("mirror", ops)
        self.counts.done(ops, results)
        for op, result in zip(ops, results, strict=True):
            if self.findings is not None and result["ok"] and not result["was"]:
                self.findings.stray(op["path"], self.lanes.task_of(op["path"]), "")

    def adopt(self) -> Flow[None]:
        """Files that stand as they should, from before: they are not written again."""
        paths = self.others.unseen()
        results = yield from share("mirror", [stat(path) for path in paths])
        for path, result in zip(paths, results, strict=True):
            self.others.adopt(path, entry_of(result), self._clock.now())

    def _appended(self, result: Result, count: int) -> None:
        # Only a repeat after a fault names its place: else lines that others append meanwhile would be overwritten.
        self._log_doubt = None
        if result["ok"]:
            self._log_end = result["size"]
            self.telling.written(count)
        else:
            self._append_at = self._clock.now() + BACKOFF_S[1]

    def _look_at_batch_logs(self) -> Flow[None]:
        """What the files end with that lines wait for, where that is unknown."""
        paths = self.batchlogs.doubtful()
        listed = yield from share("mirror", [read(path, 0) for path in paths])
        known = [(path, result["size"]) for path, result in zip(paths, listed, strict=True) if result["ok"]]
        # Of one that cannot be read, to append to it fails as well, and says why.
        tails = dict.fromkeys(paths, b"")
        ops = [read(path, TAIL_BYTES, max(0, size - TAIL_BYTES)) for path, size in known]
        for (path, _), result in zip(known, (yield from share("mirror", ops)), strict=True):
            if result["ok"]:
                tails[path] = result["data"]
        for path, tail in tails.items():
            self.batchlogs.stands(path, tail)

    def _keep_aside(self, results: Sequence[Result]) -> None:
        kept = [path for result in results for path in result.get("kept", ())]
        for path in kept:
            log.warning("somebody had changed a mirrored file: it is restored, his content is %s", path)
        self.telling.kept_aside(self._clock.wall(), kept)
        if self.findings is not None:
            self.findings.put_aside(kept)
            lines, self.findings.lines = self.findings.lines, []
            self.telling.kept_aside(self._clock.wall(), lines)
            self.counts.conflicts += len(lines)

    def _judge(self, results: Sequence[Result]) -> None:
        """What failed is tried again in a while; where all fails, everything waits a little, and all is tried again as
        soon as something succeeds."""
        if any(result.get("errno") == "EAGAIN" for result in results):
            self.retry = True  # the batch's time was up; what was left out is not at fault
        bad = [r for r in results if not r["ok"] and r["errno"] not in ("ENOENT", "EAGAIN", "EEDITED")]
        now = self._clock.now()
        for result in bad:
            if now - self._said.get(result["errno"], -SAID_S) >= SAID_S:
                self._said[result["errno"]] = now
                log.warning("the mirror cannot be written: %s; trying again", result["what"])
        if bad and len(bad) == len(results) and any(r["errno"] not in OF_A_PLACE for r in bad):
            self._backoff_s = min(max(BACKOFF_S[0], self._backoff_s * 2), BACKOFF_S[1])
            self.not_before = self._clock.now() + self._backoff_s
        elif results:
            if self._backoff_s:
                self.retry, self._append_at, self.events_at = True, 0.0, 0.0
            self._backoff_s = 0.0


def entry_of(result: Result) -> Entry | None:
    """What a `stat` has found."""
    found = result.get("entry") if result["ok"] else None
    return Entry(*found) if found is not None else None
