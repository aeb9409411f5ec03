"""One batch file that was accepted: its requests go to the broker in slices, its results come back into the spool, and
what is there is shown in the share until all of it is.

Every step may be repeated: tasks bear the number of their line as key, in a batch whose key is the file's content.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from ....bus.client.work import HEADER_BYTES, MESSAGE_BYTES
from ....bus.errors import BadFrame, Conflict, NotFound, RigbusError
from ....bus.states import BATCH_ENDED, BATCH_STATE_NAMES
from ....bus.wire import Verb, pack
from ..intake.moves import Later
from ..intake.taking import submit_whole
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ShareAway, ask
from ..share.ops import shown
from .results import Results, spec_of
from .shown import Shown
from .spool import Run, Spool

log = logging.getLogger(__name__)

SLICE: Final = 500  #: tasks in one SUBMIT
#: Lines of one file that are with the broker and have not ended: a million lines in the inbox at night must not make it
#: BUSY for a plan. A worker prefetches some hundred at most.
WINDOW: Final = 20_000
LOOK_S: Final = 0.5
SAVE_S: Final = 5.0
AGAIN_S: Final = 5.0
_ENDED: Final = frozenset(BATCH_STATE_NAMES[state] for state in BATCH_ENDED)


class BatchRun:
    """See the module."""

    def __init__(self, run: Run, spool: Spool, show: Shown, clock: Clock, *, window: int = WINDOW) -> None:
        self.run = run
        self._spool, self._show, self._clock, self._window = spool, show, clock, window
        self._all_sent = False
        self._live = 0  #: tasks that have not ended, as far as is known
        self._saved_at = 0.0

    def go(self) -> Flow[None]:
        """To its end, whatever is away meanwhile."""
        name = shown(self.run.name)
        while True:
            try:
                yield from self._whole()
                log.info("%s: %d results, %d errors", name, self.run.done, self.run.failed)
                return
            except ShareAway as e:
                log.warning("%s: its results wait: %s", name, e)
            except Later as e:
                log.warning("%s: its results wait: %s", name, e.note)
                yield from self._tell_why(e.note)
            except OSError as e:
                log.warning("%s waits: the rig's own disk refuses: %s; make room there", name, e)
            except NotFound as e:
                log.warning("%s: %s; what has no result runs again", name, e)
            except RigbusError as e:
                log.warning("%s waits: %s", name, e)
            yield Idle(AGAIN_S)

    def _whole(self) -> Flow[None]:
        run = self.run
        if run.phase == "running":
            results = Results(run, self._spool)
            yield from self._attach()
            yield from self._until_ended(results)
            yield from results.write_errors()
            run.state = str(results.row.get("state") or ("failed" if run.failed else "complete"))
            run.phase = "publishing"
            self._spool.save(run)
        yield from self._show.publish(run)
        self._spool.close(run)

    def _attach(self) -> Flow[None]:
        """What the broker knows of it from before. A batch that it has forgotten is made anew, of what has no result."""
        run = self.run
        self._all_sent, self._live = False, 0
        if not run.batch:
            return
        try:
            row = (yield from ask(Verb.QUERY, {"what": "batch", "id": run.batch})).header
            self._live = _live(row)
        except NotFound:
            log.info("%s: the broker has no batch %s any more", shown(run.name), run.batch)
            run.batch, run.submitted, run.refused = "", 0, ""

    def _until_ended(self, results: Results) -> Flow[None]:
        """Submit and collect until its batch has ended and every result is in the spool."""
        due_at = 0.0
        while True:
            sends = not self._all_sent and self._live < self._window
            if sends:
                yield from self._send(results)
            if self.run.batch and (results.more or self._clock.now() >= due_at):
                yield from results.collect()
                due_at = self._clock.now() + LOOK_S
                yield from self._tell(results)
                if not results.more:
                    self._live = _live(results.row)
                    if results.row.get("state") in _ENDED:
                        if results.missing:
                            yield from results.look_at_all()
                        return
            if self._all_sent and not self.run.batch:
                return  # there was nothing that the broker took
            yield Idle(0 if sends or results.more else LOOK_S)

    def _tell(self, results: Results) -> Flow[None]:
        counts = results.row.get("tasks") or {}
        bad = sum(int(counts.get(state) or 0) for state in ("dead", "cancelled", "expired", "skipped"))
        try:
            yield from self._show.progress(self.run, results.books.count, self.run.bad + bad)
        except ShareAway as e:
            log.info("%s goes on without the share: %s", shown(self.run.name), e)

    def _tell_why(self, why: str) -> Flow[None]:
        try:
            yield from self._show.waits(self.run, why)
        except ShareAway as e:
            log.info("no receipt for %s: %s", shown(self.run.name), e)

    # -- submitting ------------------------------------------------------------------------------------------

    def _send(self, results: Results) -> Flow[None]:
        """The next slice; with the last one the batch is closed."""
        run = self.run
        specs, body, behind, last = self._slice(results)
        if specs or run.batch:
            head: dict[str, Any] = {"key": run.key, "kind": "client", "priority": run.priority}
            head["name"] = shown(run.name)[:64]
            if not last:
                head["open"] = True
            try:
                answer = yield from submit_whole({"batch": head, "tasks": specs}, body)
            except BadFrame:
                raise
            except RigbusError as e:
                yield from self._refuse(head, e)
                return
            first = not run.batch
            run.batch = str(answer["batch"])
            if first:
                self._saved_at = 0.0
                log.info("%s is batch %s, %d requests", shown(run.name), run.batch, run.requests)
        run.submitted = behind
        self._live += len(specs)
        self._all_sent = last
        if last or self._clock.now() - self._saved_at > SAVE_S:
            self._spool.save(run)
            self._saved_at = self._clock.now()

    def _slice(self, results: Results) -> tuple[list[dict[str, Any]], list[bytes], int, bool]:
        """(specs, payloads, the offset behind them, whether they are the last). What has its result is left out."""
        specs: list[dict[str, Any]] = []
        body: list[bytes] = []
        behind, room, space = self.run.submitted, MESSAGE_BYTES, HEADER_BYTES
        for seen, (request, after) in enumerate(self._spool.requests(self.run, behind)):
            spec = spec_of(request.line, request.custom_id, request.type, request.shape, request.model)
            room -= len(request.payload)
            space -= len(pack(spec)) + 16
            if seen and (len(specs) >= SLICE or seen >= 4 * SLICE or room < 0 or space < 0):
                return specs, body, behind, False
            if request.line not in results.books:
                specs.append(spec)
                body.append(request.payload)
            behind = after
        return specs, body, behind, True

    def _refuse(self, head: dict[str, Any], why: RigbusError) -> Flow[None]:
        """The broker takes no more of it (it was cancelled, or is over a bound): what it has runs to its end."""
        run = self.run
        log.warning("%s: the broker takes no more of it: %s", shown(run.name), why)
        run.refused, self._all_sent = str(why), True
        if run.batch or isinstance(why, Conflict):  # its key is known: closed, it ends
            try:
                answer = yield from submit_whole({"batch": {**head, "open": False}, "tasks": []})
                run.batch = str(answer["batch"])
            except RigbusError as e:
                log.info("%s: %s", shown(run.name), e)
        self._spool.save(run)


def _live(row: Any) -> int:
    counts = row.get("tasks") or {}
    ended = ("done", "dead", "cancelled", "expired", "skipped")
    return int(row.get("total") or 0) - sum(int(counts.get(state) or 0) for state in ended)
