"""Alerts: hysteresis, dedupe, ack, restarts and bounds, by tables and by whatever hypothesis thinks of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.bus.alerting.core import MAX_DOUBLINGS, RESERVED, Alert, Alerts, Condition, Observation, State
from rigbus.bus.alerting.rules import KEY_CHARS, RULES, Policy, Severity, is_key, key_of

WALL = 1_770_000_000.0
LASTING = "disk-low"
DELAYED = Policy(raise_after_s={LASTING: 10.0}, clear_after_s={LASTING: 30.0})


class Rig:
    """Alerts under a clock of the test's own."""

    def __init__(
        self, policy: Policy | None = None, kept: dict[str, Any] | None = None, at: float = 0.0
    ) -> None:
        self.policy, self.now = policy or DELAYED, at
        self.alerts = Alerts(self.policy, kept, WALL)

    def see(self, *found: Condition, later_s: float = 1.0, **how: Any) -> list[str]:
        """``later_s`` later; what changed, as ``key state``."""
        self.now += later_s
        changed = self.alerts.step(Observation(tuple(found), **how), self.now, WALL + self.now)
        return [f"{a.key} {a.state.value}" for a in changed]

    def restart(self, later_s: float = 0.0) -> None:
        """Another process, another monotonic clock."""
        kept = json.loads(json.dumps(self.alerts.plain()))
        self.alerts = Alerts(self.policy, kept, WALL + self.now)
        self.now += later_s

    def state(self, key: str) -> str | None:
        alert = self.alerts.get(key)
        return alert.state.value if alert else None


LOW = Condition(LASTING)


def failed(batch: str = "b1", mark: str = "1", at: float = WALL + 1) -> Condition:
    return Condition("batch-failed", batch, f"{batch} has failed", mark=mark, at=at)


class TestAConditionThatLasts:
    def test_it_is_an_alert_only_after_a_while(self) -> None:
        rig = Rig()
        assert rig.see(LOW) == []
        assert rig.see(LOW, later_s=9.0) == []
        assert rig.see(LOW, later_s=1.0) == ["disk-low raised"]
        assert rig.see(LOW, later_s=100.0) == []

    def test_one_that_ends_before_is_none(self) -> None:
        rig = Rig()
        rig.see(LOW)
        rig.see(later_s=5.0)
        assert rig.see(LOW, later_s=5.0) == []
        assert rig.see(LOW, later_s=9.0) == []
        assert rig.state(LASTING) is None

    def test_it_is_over_only_after_a_while(self) -> None:
        rig = self.raised()
        assert rig.see() == []
        assert rig.see(later_s=29.0) == []
        assert rig.see(later_s=1.0) == ["disk-low cleared"]

    def test_one_that_flaps_quickly_is_one_alert_that_never_changes(self) -> None:
        rig = self.raised()
        for _ in range(50):
            assert rig.see(later_s=20.0) == []
            assert rig.see(LOW, later_s=9.0) == []
        assert len(rig.alerts.all()) == 1

    def test_one_that_flaps_slowly_has_to_be_over_for_longer_and_longer(self) -> None:
        rig = self.raised()
        waited = []
        for _ in range(MAX_DOUBLINGS + 2):
            rig.see()
            since = rig.now
            while not rig.see(later_s=1.0):
                pass
            waited.append(rig.now - since)
            while not rig.see(LOW, later_s=1.0):
                pass
        assert waited == [30.0 * 2 ** min(n, MAX_DOUBLINGS) for n in range(MAX_DOUBLINGS + 2)]
        assert [a.times for a in rig.alerts.all()] == [MAX_DOUBLINGS + 3]

    def test_an_ack_keeps_it_until_it_is_over(self) -> None:
        rig = self.raised()
        alert = rig.alerts.ack(LASTING, WALL + rig.now, "ana", "on my way")
        assert alert is not None
        assert (alert.state, alert.by, alert.note) == (State.ACKED, "ana", "on my way")
        assert rig.see(LOW, later_s=100.0) == []
        rig.see()
        assert rig.see(later_s=30.0) == ["disk-low cleared"]
        assert rig.alerts.get(LASTING).by == "ana"  # type: ignore[union-attr]

    def test_a_severity_that_rises_is_news_again(self) -> None:
        rig = self.raised()
        rig.alerts.ack(LASTING, WALL)
        worse = Condition(LASTING, severity=Severity.CRITICAL)
        assert rig.see(worse) == ["disk-low raised"]
        assert rig.alerts.counts()["critical"] == 1

    def test_what_could_not_be_judged_is_not_over(self) -> None:
        rig = self.raised()
        rig.see(later_s=20.0)
        assert rig.see(later_s=500.0, known=frozenset({"broker-away"})) == []
        assert rig.see(later_s=1.0) == []  # its time begins anew
        assert rig.see(later_s=30.0) == ["disk-low cleared"]

    def test_a_rule_that_is_turned_off_clears_what_stands(self) -> None:
        rig = self.raised()
        rig.policy = Policy(off=frozenset({LASTING}))
        rig.restart()
        assert rig.see(LOW) == ["disk-low cleared"]
        assert rig.see(LOW, later_s=100.0) == []

    def test_after_a_restart_it_stands_and_is_not_told_twice(self) -> None:
        rig = self.raised()
        rig.alerts.ack(LASTING, WALL + rig.now, "ana")
        rig.restart(later_s=60.0)
        assert rig.state(LASTING) == "acked"
        assert rig.see(LOW) == []
        rig.see()
        assert rig.see(later_s=30.0) == ["disk-low cleared"]

    @staticmethod
    def raised() -> Rig:
        rig = Rig()
        rig.see(LOW)
        assert rig.see(LOW, later_s=10.0) == ["disk-low raised"]
        return rig


class TestAHappening:
    def test_it_stays_until_somebody_has_seen_it_and_is_not_raised_again(self) -> None:
        rig = Rig()
        assert rig.see(failed()) == ["batch-failed.b1 raised"]
        assert rig.see(later_s=5000.0) == []  # nobody speaks of it any more
        alert = rig.alerts.ack("batch-failed.b1", WALL + rig.now, "ana")
        assert alert is not None and alert.state is State.CLEARED
        assert rig.see(failed()) == []
        rig.restart()
        assert rig.see(failed()) == []

    def test_the_next_one_about_the_same_is_news(self) -> None:
        rig = Rig()
        rig.see(failed())
        rig.alerts.ack("batch-failed.b1", WALL)
        assert rig.see(failed(mark="2")) == ["batch-failed.b1 raised"]
        assert rig.alerts.get("batch-failed.b1").times == 2  # type: ignore[union-attr]

    def test_what_is_made_good_is_cleared(self) -> None:
        rig = Rig()
        rig.see(failed())
        assert rig.see(good=frozenset({"batch-failed.b1"})) == ["batch-failed.b1 cleared"]

    def test_one_that_nobody_looks_at_ends_after_a_long_while(self) -> None:
        rig = Rig(Policy(keep_s=100.0))
        rig.see(failed())
        assert rig.see(later_s=99.0) == []
        assert rig.see(later_s=2.0) == ["batch-failed.b1 cleared"]

    def test_what_happened_long_before_the_first_look_is_no_news(self) -> None:
        rig = Rig()
        assert rig.see(failed(at=WALL - 4000)) == []
        assert rig.see(failed(at=WALL - 3000)) == ["batch-failed.b1 raised"]

    def test_one_that_was_forgotten_is_not_raised_again(self) -> None:
        rig = Rig(Policy(keep_s=100.0))
        rig.see(failed())
        rig.alerts.ack("batch-failed.b1", WALL + rig.now)
        rig.see(failed(), later_s=200.0)
        assert rig.alerts.all() == []
        rig.restart()
        assert rig.see(failed()) == []

    def test_that_is_made_good_and_happens_again_is_another_one(self) -> None:
        rig = Rig()
        dead = Condition("task-dead", "b1", "1 task failed for good", mark="1", at=WALL + 1)
        assert rig.see(dead) == ["task-dead.b1 raised"]
        rig.alerts.ack("task-dead.b1", WALL + 2, "ann")
        assert rig.see(dead) == [], "it was seen"
        assert rig.see(good=frozenset({"task-dead.b1"})) == [], "it runs again"
        rig.restart()
        assert rig.see(dead) == ["task-dead.b1 raised"], "and has failed again"
        assert rig.see(good=frozenset({"task-dead.b1"})) == ["task-dead.b1 cleared"]
        assert rig.see(dead) == ["task-dead.b1 raised"]

    def test_of_which_there_is_less_is_no_news(self) -> None:
        rig = Rig()
        dead = [Condition("task-dead", "b1", f"{n} dead", mark=str(n), at=WALL + 1) for n in range(4)]
        rig.see(dead[3])
        rig.alerts.ack("task-dead.b1", WALL + 2, "ann")
        assert rig.see(dead[2]) == [], "one of them runs again"
        assert rig.see(dead[3]) == ["task-dead.b1 raised"], "and has failed again"


class TestHowMany:
    def test_a_flood_is_bounded_and_leaves_room_for_what_is_critical(self) -> None:
        rig = Rig(Policy(most=50))
        dead = [Condition("task-dead", f"b{n}", mark="1", at=WALL + n) for n in range(300)]
        rig.see(*dead)
        assert len(rig.alerts.all()) == 50 - RESERVED
        assert rig.alerts.suppressed
        assert rig.see(*dead, failed()) == ["batch-failed.b1 raised"]
        assert len(rig.alerts.all()) <= 50

    def test_those_that_are_over_make_room_the_oldest_first(self) -> None:
        rig = Rig(Policy(most=25))
        for n in range(40):
            rig.see(failed(f"b{n}", at=WALL + rig.now + 1))
            rig.alerts.ack(f"batch-failed.b{n}", WALL + rig.now)
        assert [a.subject for a in rig.alerts.all()] == [f"b{n}" for n in range(15, 40)]

    def test_a_damaged_journal_costs_what_is_damaged_only(self) -> None:
        rig = Rig()
        rig.see(failed())
        kept = rig.alerts.plain()
        good = kept["alerts"][0]
        kept["alerts"] = [good, {}, 7, {**good, "key": "../x"}, {**good, "rule": "?"}, {**good, "times": "x"}]
        assert [a.key for a in Alerts(DELAYED, kept, WALL).all()] == ["batch-failed.b1"]


class TestKeys:
    @pytest.mark.parametrize("subject", ["a/b", "../x", "ä", "x" * 500, ".hidden", "a\x00b", "a b", "-"])
    def test_a_key_is_always_a_plain_file_name(self, subject: str) -> None:
        assert is_key(key_of("task-dead", subject))
        assert len(key_of("task-dead", subject)) <= KEY_CHARS

    def test_keys_of_different_subjects_differ(self) -> None:
        assert key_of("task-dead", "a/b") != key_of("task-dead", "a/c")

    @pytest.mark.parametrize("text", ["", "../x", "a/b", ".x", "a" * 101, "a\n"])
    def test_what_is_no_key(self, text: str) -> None:
        assert not is_key(text)

    def test_every_rule_is_a_key_and_says_what_to_do(self) -> None:
        assert all(is_key(name) and rule.what and rule.fix for name, rule in RULES.items())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["see", "see", "see", "ack", "restart", "unknown"]),
        st.booleans(),
        st.integers(0, 3),
        st.floats(0.1, 50.0),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_whatever_happens_one_subject_is_one_alert_and_no_change_comes_without_a_reason(
    steps: list[Any],
) -> None:
    rig = Rig()
    before: dict[str, Alert] = {}
    for do, low, mark, later_s in steps:
        found = [LOW] if low else []
        found += [failed(mark=str(mark))] if mark else []
        if do == "ack":
            rig.alerts.ack(LASTING, WALL + rig.now)
            rig.alerts.ack("batch-failed.b1", WALL + rig.now)
        elif do == "restart":
            plain = rig.alerts.plain()
            rig.restart(later_s)
            assert rig.alerts.plain() == plain
        else:
            known = frozenset({"broker-away"}) if do == "unknown" else frozenset(RULES)
            told = set(rig.see(*found, later_s=later_s, known=known))
            for alert in rig.alerts.all():
                old = before.get(alert.key)
                moved = old is None or old.state is not alert.state
                assert moved <= (f"{alert.key} {alert.state.value}" in told)
                if old is not None and old.live and not alert.live and alert.rule == LASTING:
                    assert not low and do == "see"
        keys = [a.key for a in rig.alerts.all()]
        assert sorted(keys) == sorted(set(keys)) and len(keys) <= 2
        for alert in rig.alerts.all():
            assert (alert.state is State.CLEARED) == (alert.cleared_at > 0 and not alert.live)
        before = {a.key: a for a in rig.alerts.all()}


def test_a_clock_that_stood_in_the_future_at_first_hides_nothing_for_ever() -> None:
    alerts = Alerts(DELAYED, None, WALL + 1e8)
    alerts.step(Observation(), 1.0, WALL)
    kept = json.loads(json.dumps(alerts.plain()))
    alerts = Alerts(DELAYED, kept, WALL + 10.0)
    seen = Observation((failed(at=WALL + 5.0),))
    assert [a.key for a in alerts.step(seen, 1.0, WALL + 10.0)] == ["batch-failed.b1"]
