"""What one sink has still to be told. Pure; times are monotonic seconds.

A delivery is owed as long as what the sink was told last of an alert is not how the alert stands. So nothing has to be
queued: what is owed follows from the alerts and from what was told, a restart in the middle repeats at most one delivery, and
a sink that was away for a day hears how things are, not all that they have been.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ...bus.alerting.core import Alert, State
from ...bus.alerting.rules import Severity

MAX_TOLD: Final = 2000
PAUSES_S: Final = (1.0, 300.0)
GAP_S: Final = 1.0  #: between two deliveries of a sink
MAX_REFUSALS: Final = 5  #: a delivery that is refused for itself so often is given up


@dataclass(frozen=True, slots=True)
class Wants:
    """Which alerts a sink gets."""

    min_severity: Severity = Severity.WARNING
    rules: frozenset[str] = frozenset()
    not_rules: frozenset[str] = frozenset()
    states: frozenset[State] = field(default_factory=lambda: frozenset(State))

    def __call__(self, alert: Alert) -> bool:
        """Whether it is one of its. A test reaches every sink that does not leave it out."""
        if alert.rule in self.not_rules or (self.rules and alert.rule not in self.rules):
            return False
        return alert.rule == "test" or alert.severity.rank >= self.min_severity.rank


def version_of(alert: Alert) -> str:
    """Another one is another piece of news."""
    return f"{alert.state.value} {alert.severity.value} {alert.times} {alert.raised_at:.3f}"


class Outbox:
    """The deliveries of one sink."""

    def __init__(self, wants: Wants, told: Mapping[str, Any] | None = None) -> None:
        """``told`` is what :meth:`plain` gave before; None the very first time, when what is over already is no news."""
        self._wants = wants
        self._fresh = told is None
        self._told = {str(k): str(v) for k, v in (told or {}).items()}
        self._owed: list[Alert] = []
        self._not_before = 0.0
        self._pause_s = 0.0
        self._refused: tuple[str, int] = ("", 0)  #: which delivery was refused, and how often

    def plain(self) -> dict[str, str]:
        """What was told last, by key."""
        return dict(self._told)

    def offer(self, alerts: Iterable[Alert]) -> None:
        """How all alerts stand now."""
        wanted = [a for a in alerts if self._wants(a)]
        if self._fresh:
            self._told |= {a.key: version_of(a) for a in wanted if not a.live}
            self._fresh = False
        for alert in wanted:
            if self._no_news(alert):
                self._enter(alert)
        owed = [a for a in wanted if self._told.get(a.key) != version_of(a)]
        self._owed = sorted(owed, key=lambda a: (-a.severity.rank, a.raised_at, a.key))

    def _no_news(self, alert: Alert) -> bool:
        """A state that this sink does not tell, or an end that a person has made himself."""
        if alert.state not in self._wants.states:
            return True
        mine = State.ACKED not in self._wants.states
        return mine and alert.state is State.CLEARED and (alert.why == "acked" or alert.acked_at > 0)

    def due(self, now: float) -> Alert | None:
        """The next delivery, if one is due."""
        return self._owed[0] if self._owed and now >= self._not_before else None

    def wait_s(self, now: float) -> float | None:
        """Until the next one is due; None when none is owed."""
        return max(0.0, self._not_before - now) if self._owed else None

    def owed(self) -> list[Alert]:
        """All that is to be told."""
        return list(self._owed)

    def done(self, alert: Alert, now: float) -> None:
        """It has arrived."""
        self._enter(alert)
        self._owed = [a for a in self._owed if a.key != alert.key]
        self._pause_s, self._refused, self._not_before = 0.0, ("", 0), now + GAP_S

    def failed(self, alert: Alert, now: float, *, retry_after_s: float = 0.0, refused: bool = False) -> bool:
        """It has not; True when it is given up, since the other side will never take it."""
        if refused:
            which = f"{alert.key} {version_of(alert)}"
            self._refused = (which, self._refused[1] + 1 if self._refused[0] == which else 1)
            if self._refused[1] >= MAX_REFUSALS:
                self.done(alert, now)
                return True
        self._pause_s = min(max(PAUSES_S[0], self._pause_s * 2), PAUSES_S[1])
        self._not_before = now + max(self._pause_s, min(retry_after_s, PAUSES_S[1]))
        return False

    def _enter(self, alert: Alert) -> None:
        self._told.pop(alert.key, None)
        self._told[alert.key] = version_of(alert)
        while len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]
