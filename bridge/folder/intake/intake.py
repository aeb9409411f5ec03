"""The intake: looks at the inbox, and starts what is due: drops and request files become batches, each exactly once,
each with a receipt.

Polled, since no notification tells what another machine wrote. The top level is looked at often, which costs one
listing; what lies below only where something is new, or has to lie still.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..contract.receipts import Invalid, Problem, Receipt
from ..loop.clock import Clock
from ..loop.flows import Flow, Flows, Idle, ShareAway, share
from ..share.ops import Entry, entries, mkdirs, scan, shown
from ..share.port import FolderPort
from . import core
from .moves import KIND, Later, Stuck
from .taking import INBOX, Declined, Taker

log = logging.getLogger(__name__)

NAME: Final = "intake"
LOOK_S: Final = (0.2, 0.4)  #: between two looks: something has just come, or not
MAX_LOOK_S: Final = 5.0
SCAN_BUDGET: Final = 20_000
HOT_S: Final = 1.0  #: after a change deep looks go on: times of files are coarse
DEEP_S: Final = 0.5
FULL_S: Final = 20.0  #: between looks into drops that lie there unchanged
AGAIN_S: Final = 2.0
STUCK_S: Final = 5.0


class Intake:
    """See the module. ``settle_s``: how long a drop without READY must lie still; ``requests`` answers the request
    file at a path of the inbox. ``told`` hears what lies at the top of the inbox whenever that was looked at as a whole."""

    def __init__(
        self,
        port: FolderPort,
        flows: Flows,
        taker: Taker,
        requests: Callable[[str], Flow[None]],
        clock: Clock,
        *,
        settle_s: float,
        told: Callable[[Sequence[Entry]], None] | None = None,
    ) -> None:
        self._port, self._flows, self._taker, self._requests = port, flows, taker, requests
        self._told = told
        self._clock, self._settle_s = clock, settle_s
        self._state = core.IntakeState()
        self._top: list[Any] | None = None
        self._hot_until = self._deep_at = self._full_at = 0.0
        self._resume_at: float | None = 0.0  #: when the journal is looked at; None: nothing waits there
        self._opened = False
        self._active: set[str] = set()  #: names and request paths that a flow is at
        self._tries: dict[str, int] = {}

    def run(self) -> Flow[None]:
        """Look at the inbox, for ever."""
        while True:
            if not self._port.state.available:
                yield Idle()
                continue
            try:
                if not self._opened:
                    self._taker.journal.open()
                    self._opened = True
                yield from share(KIND, [mkdirs(f"{INBOX}/{core.REQUESTS}"), mkdirs(f"{INBOX}/.refused")])
                self._resume_at = self._clock.now()
                while self._port.state.available:
                    self._resume_due()
                    took = yield from self._look()
                    # An inbox with thousands of receipts, or a slow share, is looked at less often.
                    pause = LOOK_S[self._clock.now() > self._hot_until]
                    yield Idle(max(pause, min(30 * took, MAX_LOOK_S)))
            except ShareAway as e:
                log.warning("the intake stops: %s; it goes on when the share answers", e)
                yield Idle(AGAIN_S)
            except OSError as e:
                log.warning("the intake waits: the state folder refuses: %s; make room there", e)
                yield Idle(AGAIN_S)

    # -- looking ---------------------------------------------------------------------------------------------

    def _look(self) -> Flow[float]:
        """One look; the seconds that the share itself took for it."""
        now = self._clock.now()
        (result,) = yield from share(KIND, [scan(INBOX, budget=SCAN_BUDGET)])
        if not result["ok"]:
            log.warning("the inbox cannot be read: %s", result["what"])
            yield Idle(AGAIN_S)
            return 0.0
        took = float(result["took_s"])
        # Not receipts and growing results: what the rig writes itself is no sign of a drop.
        top = [row for row in result["entries"] if not core.grows(Entry(*row))]
        if top != self._top:
            self._top, self._hot_until, self._deep_at = top, now + HOT_S, 0.0
        unsettled = any(drop.handled != drop.signature for drop in self._state.drops.values())
        if not unsettled and now > self._hot_until and now < self._full_at:
            return float(took)
        if now >= self._deep_at:
            took += yield from self._look_deep(now)
        return float(took)

    def _look_deep(self, now: float) -> Flow[float]:
        found: list[Entry] = []
        cut: set[str] = set()
        after, took = "", 0.0
        while True:
            op = scan(INBOX, depth=32, budget=SCAN_BUDGET, after=after, enter=(core.REQUESTS,))
            (result,) = yield from share(KIND, [op], 30.0)
            if not result["ok"]:
                self._deep_at = now + DEEP_S
                return float(took)
            took += result["took_s"]
            found += entries(result)
            cut.update(result["cut"])
            after = result["next"]
            if not after:
                break
        # A large inbox, or a slow share, is looked into less often; waiting for the helper does not count.
        self._deep_at = self._clock.now() + max(DEEP_S, 10 * took)
        self._full_at = self._clock.now() + max(FULL_S, 100 * took)
        if self._told is not None:
            self._told([entry for entry in found if "/" not in entry.path])
        seen = core.Scan(tuple(found), frozenset(cut))
        self._state, decisions = core.step(self._state, seen, now, self._settle_s)
        for i, decision in enumerate(decisions):
            try:
                yield from self._decide(decision)
            except ShareAway:
                for undone in decisions[i:]:
                    self._again(undone.path if isinstance(undone, core.Request) else undone.name)
                raise
        return float(took)

    def _decide(self, decision: core.Decision) -> Flow[None]:
        if isinstance(decision, core.WriteReceipt):
            receipt = Receipt(decision.name, decision.state, self._clock.wall(), note=decision.note)
            yield from self._taker.answer(receipt)
        elif isinstance(decision, core.Refuse):
            yield from self._taker.refuse(decision.name, (decision.problem,), move=decision.move)
        elif isinstance(decision, core.Request):
            self._start(decision.path, lambda: self._request(decision.path))
        else:
            self._start(decision.name, lambda: self._take(decision))

    def _start(self, mark: str, flow: Callable[[], Flow[None]]) -> None:
        """One flow at a time for each name; what asks for a second is decided anew."""
        if mark in self._active:
            self._again(mark)
            return
        self._active.add(mark)
        self._flows.start(f"intake of {shown(mark)}", self._marked(mark, flow()))

    def _marked(self, mark: str, flow: Flow[None]) -> Flow[None]:
        try:
            yield from flow
        finally:
            self._active.discard(mark)

    def _again(self, mark: str) -> None:
        self._state = core.again(self._state, mark)

    # -- what is started -------------------------------------------------------------------------------------

    def _take(self, start: core.StartIntake) -> Flow[None]:
        """A drop from the inbox, to its receipt."""
        name = start.name
        plan = name if start.is_folder else name.removesuffix(".md")
        log.info("taking in %s (%s)", shown(name), start.why)
        tries = self._tries.pop(name, 0)
        try:
            path = f"{INBOX}/{name}"
            yield from self._taker.take_in(path, plan, start.is_folder, start.listing, name, tries=tries)
        except ShareAway as e:
            self._waits(name, e)
        except Stuck as e:
            self._stuck(name, e)
            yield from self._tell(Receipt(name, "waiting", self._clock.wall(), note=e.note))
        except (Later, OSError) as e:
            note = e.note if isinstance(e, Later) else _disk(e)
            log.warning("%s waits: %s", shown(name), note)
            self._tries = {**dict(list(self._tries.items())[-1000:]), name: tries + 1}
            yield from self._tell(Receipt(name, "waiting", self._clock.wall(), note=note))
            yield Idle(AGAIN_S)
            self._again(name)
        except Declined as e:
            yield from self._declined(name, e)
        except Invalid as e:
            yield from self._refuse(name, e.problems)
        except Exception:
            log.exception("%s is refused because of a fault in rigbus", shown(name))
            fix = "see bridge.log in the rig's log folder, and report it"
            yield from self._refuse(name, (Problem("rigbus itself failed on it", path, fix),))

    def _request(self, path: str) -> Flow[None]:
        try:
            yield from self._requests(path)
        except ShareAway as e:
            self._waits(path, e)
        except Stuck as e:
            self._stuck(path, e)
        except (Later, OSError) as e:
            log.warning("%s waits: %s", path, e.note if isinstance(e, Later) else _disk(e))
            yield Idle(AGAIN_S)
            self._again(path)

    def _resume_due(self) -> None:
        """Go on with what is in the journal and at which no flow is."""
        if self._resume_at is None or self._clock.now() < self._resume_at:
            return
        self._resume_at = None
        found = self._taker.journal.entries()
        if self._taker.journal.unread:
            self._resume_at = self._clock.now() + STUCK_S
        for drop_id, entry in found.items():
            if drop_id not in self._taker.active:
                mark = f"drop {drop_id[:16]}"
                if mark not in self._active:
                    self._start(mark, lambda entry=entry: self._resume(entry))  # type: ignore[misc]

    def _resume(self, entry: dict[str, Any]) -> Flow[None]:
        name = str(entry.get("called"))
        try:
            yield from self._taker.resume(entry)
        except ShareAway as e:
            self._waits(name, e)
        except (Stuck, OSError) as e:
            self._stuck(name, e if isinstance(e, Stuck) else Stuck(_disk(e)))
        except Declined as e:
            yield from self._declined(name, e, str(entry.get("request") or ""))
        except (KeyError, TypeError, ValueError) as e:
            log.warning("the journal's entry of %s is unusable (%r): drop that plan again", shown(name), e)
            self._taker.journal.leave(str(entry["drop_id"]))

    def _stuck(self, name: str, e: Stuck) -> None:
        log.warning("%s waits: %s", shown(name), e.note)
        self._resume_at = self._clock.now() + STUCK_S

    def _waits(self, name: str, e: ShareAway) -> None:
        log.warning("%s waits: %s", shown(name), e)
        self._again(name)
        self._resume_at = self._clock.now() + AGAIN_S

    def _declined(self, name: str, e: Declined, request: str = "") -> Flow[None]:
        """Say what the broker refuses; only then is it out of the journal."""
        try:
            if request:
                receipt = Receipt("submit", "refused", self._clock.wall(), problems=e.problems)
                told = yield from self._taker.answer(receipt, request)
            else:
                told = yield from self._taker.refuse(name, e.problems, lies=e.lies)
        except ShareAway as away:
            self._waits(name, away)
            return
        if told:
            self._taker.journal.leave(e.drop_id)
        else:
            self._stuck(name, Stuck("it is refused; its receipt is written when the share can be"))

    def _refuse(self, name: str, problems: tuple[Problem, ...]) -> Flow[None]:
        try:
            yield from self._taker.refuse(name, problems)
        except ShareAway as e:
            self._waits(name, e)

    def _tell(self, receipt: Receipt, request: str = "") -> Flow[None]:
        try:
            yield from self._taker.answer(receipt, request)
        except ShareAway as e:
            log.warning("no receipt for %s: %s", shown(receipt.name), e)


def _disk(e: OSError) -> str:
    return f"the rig's own disk refuses ({e.strerror or e}); it is taken in when that is mended"
