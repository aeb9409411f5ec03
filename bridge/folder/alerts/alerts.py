"""The bridge's alerts: three flows that never wait for each other.

`look` asks the broker how it is and what escalations wait; `judge` steps the pure core with the last look, also when there is
none, and makes what has changed durable; `draw` brings the share to what is durable. So a broker that is dead and a share
that hangs are both told, and an ack needs neither.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from ....bus.alerting.core import Alert, Alerts, State
from ....bus.alerting.rules import Policy, Severity, is_key
from ....bus.alerting.watching import LOSSES, Watch, escalation_conditions, share_conditions
from ....bus.client.follow import Event, event_of
from ....bus.errors import BadFrame, RigbusError
from ....bus.wire import Verb
from ..contract.receipts import Invalid, Problem
from ..logs.decisions import Decision
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ShareAway, ask, share
from ..mirror.others import Others
from ..share.ops import Entry, entries, read, scan, stat, unlink
from ..share.port import FolderPort
from .files import FOLDER, Book, alert_fields, alert_file

log = logging.getLogger(__name__)

LOOK, JUDGE, DRAW = "alerts-look", "alerts", "alerts-draw"
NAMES: Final = (LOOK, JUDGE, DRAW)
LOOK_S: Final = 5.0
SOON_S: Final = 2.0  #: after an event that may matter
JUDGE_S: Final = 1.0
OLD_S: Final = 20.0  #: an older look says nothing any more
COMPARE_S: Final = 60.0
AGAIN_S: Final = 10.0
PAGE: Final = 1000
MAX_ESCALATIONS: Final = 50
#: As `bus.escalation` has them, whose models would load pydantic (a test compares).
ESCALATIONS: Final = "brain/escalations"
NO_RECORDS: Final = (".answer.json", ".answer.receipt.json")
_WORDS: Final = {State.RAISED: "ALERT_RAISED", State.ACKED: "ALERT_ACKED", State.CLEARED: "ALERT_CLEARED"}


class BridgeAlerts:
    """See the module. The service tells it what it hears (:meth:`event`, :meth:`welcomed`)."""

    def __init__(
        self,
        port: FolderPort,
        book: Book,
        clock: Clock,
        policy: Policy | None = None,
        *,
        attached: Callable[[], bool] = lambda: True,
        say: Callable[[float, Decision], None] = lambda at, decision: None,
    ) -> None:
        """``attached``: there is a session with the broker; ``say`` appends a line to the log of decisions."""
        self._port, self._book, self._clock, self._attached, self._say = port, book, clock, attached, say
        policy = policy or Policy()
        self.core = Alerts(policy, book.load(), clock.wall())
        self._watch = Watch(policy)
        self._status: Mapping[str, Any] | None = None
        self._looked_at: float | None = None
        self._began_at = clock.now()
        self._escalations: list[tuple[str, Mapping[str, Any], float | None]] | None = None
        self._read: dict[str, tuple[tuple[int, int], Mapping[str, Any]]] = {}
        self._new_session = True
        self._soon = False
        self._others = Others()
        self._compare_at = self._again_at = 0.0
        self._drawn: set[str] = set()
        self._told_of_disk = False

    def flows(self) -> dict[str, Callable[[], Flow[None]]]:
        """Flow name -> what starts it."""
        return dict(zip(NAMES, (self.look, self.judge, self.draw), strict=True))

    # -- what the service tells ------------------------------------------------------------------------------

    def welcomed(self) -> None:
        """A new session: ask at once, and for what the log begins with."""
        self._new_session = self._soon = True

    def event(self, event: Event) -> bool:
        """An event as it came; True when it may matter, so that `look` is to be poked."""
        kind = event.topic.partition(".")[0]
        if kind not in ("worker", "rig", "batch") and not event.topic.endswith(".dead"):
            return False
        self._watch.event(event.topic, event.data, event.at, event.seq)
        self._soon = True
        return True

    def counts(self) -> dict[str, int]:
        """For the heartbeat of the bridge."""
        return self.core.counts()

    # -- asking ----------------------------------------------------------------------------------------------

    def look(self) -> Flow[None]:
        """Ask, for ever. Poke it when something was heard."""
        asked_at = -LOOK_S
        while not self.core.policy.enabled:
            yield Idle()
        while True:
            wait = (SOON_S if self._soon else LOOK_S) - (self._clock.now() - asked_at)
            if wait > 0:
                yield Idle(wait)
                continue
            asked_at, self._soon = self._clock.now(), False
            try:
                if self._new_session and self._attached():
                    self._new_session = False
                    yield from self._beginning_of_the_log()
                if self._attached():
                    answer = yield from ask(Verb.QUERY, {"what": "status"})
                    self._status, self._looked_at = answer.header, self._clock.now()
                if self._port.state.available:
                    yield from self._look_at_escalations()
            except (RigbusError, ShareAway) as e:
                log.info("alerts: a look failed (%s); again in %g s", e, LOOK_S)

    def _beginning_of_the_log(self) -> Flow[None]:
        """A database that lost something begins its log anew with an event that says so."""
        since = 0
        for _ in range(2):
            answer = yield from ask(Verb.EVENTS, {"since": since, "channel": "p", "limit": 1})
            if answer.verb is not Verb.RESNAPSHOT:
                for raw in answer.header.get("events") or ():
                    try:
                        event = event_of(raw)
                    except BadFrame:
                        continue
                    if event.topic in LOSSES:
                        self._watch.event(event.topic, event.data, event.at, event.seq)
                return
            oldest = answer.header.get("oldest")
            since = oldest - 1 if isinstance(oldest, int) and not isinstance(oldest, bool) else 0

    def _look_at_escalations(self) -> Flow[None]:
        """The records in the share, each read once as long as it does not change."""
        listed: list[Entry] = []
        after = ""
        while True:
            (found,) = yield from share("mirror", [scan(ESCALATIONS, budget=PAGE, after=after)])
            if not found["ok"]:
                self._escalations = [] if found["errno"] == "ENOENT" else None
                return
            listed += entries(found)
            if not (after := str(found["next"])):
                break
        named = [e for e in listed if e.type == "file" and e.path.endswith(".json")]
        named = [e for e in named if not e.path.endswith(NO_RECORDS) and e.path[0] != "."]
        newest = sorted(named, key=lambda e: e.mtime_ns)[-MAX_ESCALATIONS:]
        wanted = {e.path: (e.size, e.mtime_ns) for e in newest}
        self._read = {p: kept for p, kept in self._read.items() if wanted.get(p) == kept[0]}
        missing = [p for p in wanted if p not in self._read]
        results = yield from share("mirror", [read(f"{ESCALATIONS}/{p}", 1 << 20) for p in missing])
        for path, result in zip(missing, results, strict=True):
            if result["ok"]:
                try:
                    record = json.loads(result["data"])
                except (ValueError, RecursionError):
                    continue
                # A copy, an edit that was put aside, or whatever else stands there, is no record.
                if isinstance(record, dict) and f"{record.get('escalation_id')}.json" == path:
                    self._read[path] = (wanted[path], record)
        self._escalations = [
            (path.removesuffix(".json"), record, stamp[1] / 1e9)
            for path, (stamp, record) in sorted(self._read.items())
        ]

    # -- judging ---------------------------------------------------------------------------------------------

    def judge(self) -> Flow[None]:
        """Step the core once a second."""
        while True:
            self.turn()
            yield Idle(JUDGE_S)

    def turn(self) -> None:
        """One look at everything that is known; what changes is durable when this returns."""
        now, wall = self._clock.now(), self._clock.wall()
        changed = self._carry_out(wall)
        fresh = self._looked_at is not None and now - self._looked_at < OLD_S
        if fresh or now - self._began_at >= OLD_S:  # a bridge that has just begun knows nothing yet
            seen = self._watch.look(self._status if fresh else None, now, wall)
            more = list(share_conditions(self._port.state.available, str(self._port.state.reason or "")))
            known = seen.known | {"share-away"}
            if self._escalations is not None and self._port.state.available:
                more += escalation_conditions(self._escalations, wall, self.core.policy)
                known |= {"escalation-human"}
            seen = type(seen)((*seen.conditions, *more), known, seen.good)
            changed += self.core.step(seen, now, wall)
        self._keep()
        for alert in changed:
            self._told(alert)

    def _keep(self) -> None:
        try:
            self._book.save(self.core.plain())
            self._told_of_disk = False
        except OSError as e:
            if not self._told_of_disk:
                log.warning("alerts cannot be kept (%s): they are shown, and raised again after a restart", e)
            self._told_of_disk = True

    def _told(self, alert: Alert) -> None:
        log.warning("alert %s is %s: %s", alert.key, alert.state.value, alert.title)
        details = {"key": alert.key, "severity": alert.severity.value, "by": alert.by or None}
        at = alert.changed_at
        self._say(at, Decision(_WORDS[alert.state], f"{alert.key}: {alert.title}", details))

    # -- orders ----------------------------------------------------------------------------------------------

    def _carry_out(self, wall: float) -> list[Alert]:
        """What `rigbus alerts` on this machine has asked for."""
        changed: list[Alert] = []
        for id_, order in list(self._book.orders()):
            try:
                changed += self._do(order["verb"], order["args"], wall)
            except Invalid as e:
                log.info("order %s for alerts: %s", id_, "; ".join(p.what for p in e.problems))
            self._keep()
            self._book.done(id_)
        return changed

    def asked(self, verb: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """A request file of the share: `ack` and `alert-test`; the answer for its receipt. Durable when this returns.

        Raises:
            Invalid: there is no such alert, or the arguments are wrong.
        """
        wall = self._clock.wall()
        changed = self._do(verb, args, wall)
        self._keep()
        for alert in changed:
            self._told(alert)
        if verb != "ack":
            return {"key": "test"}
        acked = self.core.get(str(args["key"]))
        return {} if acked is None else alert_fields(acked, self._clock.utc_offset_s(wall))

    def _do(self, verb: str, args: Mapping[str, Any], wall: float) -> list[Alert]:
        by, note = (str(args.get(k) or "") for k in ("by", "note"))
        if verb == "alert-test":
            severity = args.get("severity", "info")
            if severity not in list(Severity):
                raise Invalid(Problem("severity is wrong", "args", "one of info, warning, critical"))
            self._watch.test(wall, by[:100], Severity(severity))
            return []
        key = args.get("key")
        if verb != "ack" or not isinstance(key, str) or not is_key(key):
            raise Invalid(Problem("key is no key of an alert", "args", "`rigbus alerts list` shows them"))
        before = self.core.get(key)
        if before is None:
            raise Invalid(Problem(f"there is no alert {key}", "args", "`rigbus alerts list` shows them"))
        after = self.core.ack(key, wall, by, note)
        return [after] if after is not None and after is not before else []

    # -- drawing ---------------------------------------------------------------------------------------------

    def draw(self) -> Flow[None]:
        """Bring the share to what is known, for ever."""
        while True:
            if self._port.state.available:
                try:
                    yield from self._draw()
                except ShareAway as e:
                    log.info("alerts cannot be drawn: %s", e)
                    self._compare_at = 0.0
            else:
                self._compare_at = 0.0
            yield Idle(JUDGE_S)

    def _draw(self) -> Flow[None]:
        now = self._clock.now()
        alerts = self.core.all()
        for alert in alerts:
            self._others.want(alert_file(alert, self._clock.utc_offset_s(alert.changed_at)), now)
        paths = {f"{FOLDER}/{alert.key}.json" for alert in alerts}
        if unseen := self._others.unseen():
            results = yield from share("mirror", [stat(path) for path in unseen])
            for path, result in zip(unseen, results, strict=True):
                found = result.get("entry") if result["ok"] else None
                self._others.adopt(path, Entry(*found) if found is not None else None, now)
        gone = self._drawn - paths
        if now >= self._compare_at:
            self._compare_at = now + COMPARE_S
            gone |= (yield from self._compare()) - paths
        if now >= self._again_at:
            self._again_at = now + AGAIN_S
            self._others.again()
        if ops := self._others.ops():
            self._others.done(ops, (yield from share("mirror", ops)), now)
        for path in sorted(gone):
            self._others.forget(path)
        yield from share("mirror", [unlink(path, only_sealed=True) for path in sorted(gone)])
        self._drawn = paths

    def _compare(self) -> Flow[set[str]]:
        """What somebody has removed or altered is drawn again; the files that stand."""
        (found,) = yield from share("mirror", [scan(FOLDER, budget=2000)])
        if not found["ok"]:
            return set()
        there = {f"{FOLDER}/{e.path}": e for e in entries(found)}
        for path in self._others.paths():
            self._others.compare(path, there.get(path))
        return {path for path, e in there.items() if e.type == "file" and path.endswith(".json")}
