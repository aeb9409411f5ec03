"""From conditions to alerts: hysteresis, dedupe, ack, and how many are kept. Pure: `now` is monotonic, `wall` Unix seconds.

    (none) --true for raise_after_s--> RAISED --ack--> ACKED         of a happening: RAISED --ack--> CLEARED
    RAISED, ACKED --over for clear_after_s--> CLEARED --true again--> RAISED (the same alert, `times` + 1)

A condition that comes and goes is one alert: while it is quicker than ``clear_after_s`` nothing changes, and each time that it
comes back soon after it was cleared it has to be over for twice as long. A severity that rises raises an acked alert anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from .rules import RULES, Policy, Rule, Severity, is_key, key_of

FLAP_S: Final = 3600.0  #: raised again sooner than this after it was cleared: it flaps
MAX_DOUBLINGS: Final = 4
RESERVED: Final = 20  #: alerts for critical ones when all others are taken
BEFORE_S: Final = 3600.0  #: what happened so long before the very first look is told; what is older is not


class State(StrEnum):
    """Where an alert stands. Who moves it on: the rig raises and clears, a person acks."""

    RAISED = "raised"
    ACKED = "acked"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is so now, or (of a happening) that happened ``at`` Unix seconds.

    ``mark`` tells one happening from the next about the same subject; of two whole numbers only the higher one is news.
    """

    rule: str
    subject: str = ""
    title: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    fix: str = ""
    mark: str = ""
    at: float = 0.0
    severity: Severity | None = None

    @property
    def key(self) -> str:
        """What its alert is known by."""
        return key_of(self.rule, self.subject)


@dataclass(frozen=True, slots=True)
class Observation:
    """One look. ``known`` are the rules that it could judge: what is missing of others is unknown, not over.

    ``good`` are keys of happenings that have been made good.
    """

    conditions: tuple[Condition, ...] = ()
    known: frozenset[str] = frozenset(RULES)
    good: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. Times are Unix seconds; 0: it has not happened. ``times``: how often it was raised."""

    key: str
    rule: str
    severity: Severity
    state: State
    title: str
    subject: str = ""
    fix: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    mark: str = ""
    times: int = 1
    first_at: float = 0.0
    raised_at: float = 0.0
    acked_at: float = 0.0
    cleared_at: float = 0.0
    changed_at: float = 0.0
    by: str = ""
    note: str = ""
    why: str = ""
    doublings: int = 0

    @property
    def live(self) -> bool:
        """It is not over."""
        return self.state is not State.CLEARED

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Alert:
        """From :meth:`plain`; unknown fields are left out.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        known = {k: v for k, v in fields.items() if k in cls.__dataclass_fields__}
        known |= {"severity": Severity(fields["severity"]), "state": State(fields["state"])}
        alert = cls(**known)
        if not isinstance(alert.key, str) or not is_key(alert.key) or alert.rule not in RULES:
            raise ValueError("no alert of ours")
        texts = (alert.title, alert.subject, alert.fix, alert.mark, alert.by, alert.note, alert.why)
        times = (alert.first_at, alert.raised_at, alert.acked_at, alert.cleared_at, alert.changed_at)
        numbers = (*times, alert.times, alert.doublings)
        if not all(isinstance(t, str) for t in texts) or not isinstance(alert.details, Mapping):
            raise TypeError("a text is none")
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            raise TypeError("a number is none")
        return alert


@dataclass(slots=True)
class _Timer:
    true_since: float | None = None
    false_since: float | None = None


class Alerts:
    """All alerts of one rig, and what is on its way to become one."""

    def __init__(
        self, policy: Policy | None = None, kept: Mapping[str, Any] | None = None, wall: float = 0.0
    ) -> None:
        """``kept`` is what :meth:`plain` gave before (None: the very first time)."""
        self.policy = policy or Policy()
        self.floor_at = max(0.0, wall - BEFORE_S)  #: happenings before this are not raised any more
        self.suppressed = 0  #: conditions that found no room
        self._timers: dict[str, _Timer] = {}
        self._alerts: dict[str, Alert] = {}
        self._load(kept or {})

    def all(self) -> list[Alert]:
        """Every alert, those that are over too."""
        return list(self._alerts.values())

    def get(self, key: str) -> Alert | None:
        """The alert of this key."""
        return self._alerts.get(key)

    def counts(self) -> dict[str, int]:
        """Live ones by state, and the raised ones by severity."""
        raised = [a for a in self._alerts.values() if a.state is State.RAISED]
        out = {"raised": len(raised), "acked": sum(a.state is State.ACKED for a in self._alerts.values())}
        return out | {s.value: sum(a.severity is s for a in raised) for s in Severity}

    def plain(self) -> dict[str, Any]:
        """What has to be kept over a restart."""
        return {"floor_at": self.floor_at, "alerts": [a.plain() for a in self._alerts.values()]}

    # -- what happens ----------------------------------------------------------------------------------------

    def step(self, seen: Observation, now: float, wall: float) -> list[Alert]:
        """One look; the alerts that have changed."""
        changed: dict[str, Alert] = {}
        present: set[str] = set()
        # A clock that stood in the future when all began is right by now: what happens from here on is news.
        self.floor_at = min(self.floor_at, wall)
        for condition in seen.conditions:
            rule = self.policy.rule(condition.rule)
            if rule is not None and condition.key not in present:
                present.add(condition.key)
                self._is_so(rule, condition, now, wall, changed)
        for key in [*self._alerts, *(k for k in self._timers if k not in self._alerts)]:
            if key not in present:
                self._is_not_so(key, seen, now, wall, changed)
        self._forget(wall)
        return list(changed.values())

    def ack(self, key: str, wall: float, by: str = "", note: str = "") -> Alert | None:
        """A person has seen it; None where there is no live alert of this key. A second ack changes nothing."""
        alert = self._alerts.get(key)
        if alert is None or not alert.live:
            return None
        if alert.state is State.RAISED:
            said = replace(alert, acked_at=wall, changed_at=wall, by=by[:100], note=note[:500])
            over = RULES[alert.rule].happening
            said = replace(said, state=State.CLEARED, cleared_at=wall, why="acked") if over else said
            alert = self._alerts[key] = said if over else replace(said, state=State.ACKED)
        return alert

    def _is_so(self, rule: Rule, c: Condition, now: float, wall: float, changed: dict[str, Alert]) -> None:
        timer = self._timers.setdefault(c.key, _Timer())
        timer.false_since = None
        if timer.true_since is None:
            timer.true_since = now
        alert = self._alerts.get(c.key)
        if alert is not None and alert.live:
            self._goes_on(rule, alert, c, wall, changed)
            return
        if rule.happening and alert is not None and not _is_news(alert.mark, c.mark):
            self._alerts[c.key] = replace(alert, mark=c.mark)  # it was seen
            return
        if rule.happening and c.at <= self.floor_at:
            return  # too old to be news
        if now - timer.true_since >= rule.raise_after_s and self._room(rule, c, alert):
            severity = c.severity or rule.severity
            flaps = alert is not None and wall - alert.cleared_at < FLAP_S and not rule.happening
            raised = Alert(
                c.key, rule.name, severity, State.RAISED, c.title or rule.what, c.subject, c.fix or rule.fix,
                c.details, c.mark, 1, wall, wall, changed_at=wall,
            )  # fmt: skip
            if alert is not None:
                doublings = min(alert.doublings + 1, MAX_DOUBLINGS) if flaps else 0
                raised = replace(raised, times=alert.times + 1, first_at=alert.first_at, doublings=doublings)
            changed[c.key] = self._alerts[c.key] = raised

    def _goes_on(
        self, rule: Rule, alert: Alert, c: Condition, wall: float, changed: dict[str, Alert]
    ) -> None:
        """It is still so. Another severity or happening is news, another title is not worth a new time."""
        severity = c.severity or rule.severity
        title, fix = c.title or rule.what, c.fix or rule.fix
        new = replace(alert, severity=severity, title=title, fix=fix, details=c.details, mark=c.mark)
        again = rule.happening and _is_news(alert.mark, c.mark)
        if severity.rank > alert.severity.rank and alert.state is State.ACKED:
            new = replace(new, state=State.RAISED, raised_at=wall, times=alert.times + 1)
            new = replace(new, acked_at=0.0, by="", note="")
        elif again:
            new = replace(new, times=alert.times + 1)
        if (new.severity, new.state, new.title, new.mark) != (
            alert.severity,
            alert.state,
            alert.title,
            alert.mark,
        ):
            changed[alert.key] = self._alerts[alert.key] = replace(new, changed_at=wall)

    def _is_not_so(
        self, key: str, seen: Observation, now: float, wall: float, changed: dict[str, Alert]
    ) -> None:
        alert, timer = self._alerts.get(key), self._timers.get(key)
        name = alert.rule if alert is not None else key.partition(".")[0]
        rule = self.policy.rule(name)
        if rule is None:  # turned off: nobody will clear it otherwise
            self._timers.pop(key, None)
            if alert is not None and alert.live:
                self._clear(alert, wall, "the rule is turned off", changed)
            return
        if name not in seen.known:
            if timer is not None:
                timer.false_since = None
            return
        if alert is None or not alert.live:
            self._timers.pop(key, None)
            if alert is not None and key in seen.good:
                self._alerts[key] = replace(alert, mark="")  # whatever happens next is another one
            return
        if rule.happening:
            if key in seen.good:
                self._clear(replace(alert, mark=""), wall, "made good", changed)
            elif wall - alert.raised_at > self.policy.keep_s:
                self._clear(alert, wall, "nobody has looked at it", changed)
            return
        timer = self._timers.setdefault(key, _Timer())
        timer.true_since = None
        if timer.false_since is None:
            timer.false_since = now
        if now - timer.false_since >= rule.clear_after_s * 2**alert.doublings:
            self._clear(alert, wall, "over", changed)

    def _clear(self, alert: Alert, wall: float, why: str, changed: dict[str, Alert]) -> None:
        self._timers.pop(alert.key, None)
        done = replace(alert, state=State.CLEARED, cleared_at=wall, changed_at=wall, why=why)
        changed[alert.key] = self._alerts[alert.key] = done

    # -- how many --------------------------------------------------------------------------------------------

    def _room(self, rule: Rule, c: Condition, old: Alert | None) -> bool:
        """Whether another one may be raised; those that are over make room. None that is live ever does."""
        most = self.policy.most
        severity = c.severity or rule.severity
        bound = most if severity is Severity.CRITICAL else max(1, most - RESERVED)
        if old is not None:
            return True
        if sum(a.live for a in self._alerts.values()) >= bound:
            self.suppressed += 1
            return False
        over = sorted((a for a in self._alerts.values() if not a.live), key=lambda a: a.cleared_at)
        while over and len(self._alerts) >= bound:
            self._drop(over.pop(0))
        return True

    def _forget(self, wall: float) -> None:
        for alert in [a for a in self._alerts.values() if not a.live]:
            if wall - alert.cleared_at > self.policy.keep_s:
                self._drop(alert)

    def _drop(self, alert: Alert) -> None:
        del self._alerts[alert.key]
        if RULES[alert.rule].happening:  # what the rig still tells of it is not raised a second time
            self.floor_at = max(self.floor_at, alert.raised_at)

    def _load(self, kept: Mapping[str, Any]) -> None:
        floor = kept.get("floor_at")
        if isinstance(floor, int | float) and not isinstance(floor, bool):
            self.floor_at = float(floor)
        alerts = kept.get("alerts")
        for fields in alerts if isinstance(alerts, list) else ():
            try:
                alert = Alert.of(fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # of another version, or damaged: what is still so is raised again
            self._alerts[alert.key] = alert


def _is_news(old: str, new: str) -> bool:
    """Whether the happening of mark ``new`` is another one than that of ``old``, and not only less of it."""
    if old.isdecimal() and new.isdecimal():
        return int(new[:20]) > int(old[:20])
    return old != new
