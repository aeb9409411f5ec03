"""What a sink has still to be told: at least once over restarts, in order of gravity, with growing pauses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.bridge.pi.outbox import GAP_S, MAX_REFUSALS, MAX_TOLD, PAUSES_S, Outbox, Wants
from rigbus.bus.alerting.core import Alert, State
from rigbus.bus.alerting.rules import Severity

PHONE = Wants(states=frozenset({State.RAISED, State.CLEARED}))


def alert(key: str = "disk-low", state: str = "raised", severity: str = "warning", **more: Any) -> Alert:
    more.setdefault("raised_at", 5.0)
    return Alert(key, key.partition(".")[0], Severity(severity), State(state), key, **more)


def told(box: Outbox, *alerts: Alert, now: float = 0.0) -> list[str]:
    """Everything that is due is delivered."""
    out = []
    box.offer(alerts)
    while (wait_s := box.wait_s(now)) is not None:
        now += wait_s
        due = box.due(now)
        assert due is not None
        out.append(f"{due.key} {due.state.value}")
        box.done(due, now)
        box.offer(alerts)
    return out


def test_an_alert_is_told_once_and_its_end_once() -> None:
    box = Outbox(Wants())
    assert told(box, alert()) == ["disk-low raised"]
    assert told(box, alert()) == []
    assert told(box, alert(state="acked")) == ["disk-low acked"]
    assert told(box, alert(state="cleared")) == ["disk-low cleared"]
    assert told(box, alert(times=2, raised_at=9.0)) == ["disk-low raised"]


def test_a_restart_repeats_nothing_that_was_delivered() -> None:
    box = Outbox(Wants())
    told(box, alert())
    again = Outbox(Wants(), json.loads(json.dumps(box.plain())))
    assert told(again, alert(), alert("disk-full", severity="critical")) == ["disk-full raised"]


def test_what_was_over_before_the_very_first_look_is_no_news_but_later_it_is() -> None:
    box = Outbox(Wants())
    assert told(box, alert(state="cleared")) == []
    assert told(box, alert(state="cleared"), alert("brain-away", state="cleared")) == ["brain-away cleared"]


def test_the_gravest_comes_first_then_the_oldest() -> None:
    box = Outbox(Wants())
    rows = [alert("disk-low", raised_at=3.0), alert("brain-away", raised_at=1.0)]
    assert told(box, *rows, alert("disk-full", severity="critical", raised_at=9.0)) == [
        "disk-full raised",
        "brain-away raised",
        "disk-low raised",
    ]


@pytest.mark.parametrize(
    ("wants", "expected"),
    [
        (Wants(), ["disk-full", "disk-low", "test"]),
        (Wants(Severity.CRITICAL), ["disk-full", "test"]),
        (Wants(Severity.INFO), ["clocks-apart", "disk-full", "disk-low", "test"]),
        (Wants(rules=frozenset({"disk-low"})), ["disk-low"]),
        (Wants(not_rules=frozenset({"disk-low", "test"})), ["disk-full"]),
    ],
)
def test_each_sink_gets_what_it_wants(wants: Wants, expected: list[str]) -> None:
    rows = [alert("disk-low"), alert("disk-full", severity="critical")]
    rows += [alert("clocks-apart", severity="info"), alert("test", severity="info")]
    assert sorted(line.split()[0] for line in told(Outbox(wants), *rows)) == expected


def test_a_phone_does_not_ring_because_somebody_has_seen_it() -> None:
    box = Outbox(PHONE)
    assert told(box, alert()) == ["disk-low raised"]
    assert told(box, alert(state="acked", acked_at=6.0)) == []
    assert told(box, alert(state="cleared", acked_at=6.0, cleared_at=7.0)) == []


def test_a_failure_is_tried_again_with_growing_pauses_up_to_a_bound() -> None:
    box, now, waits = Outbox(Wants()), 0.0, []
    box.offer([alert()])
    for _ in range(12):
        assert not box.failed(alert(), now)
        wait_s = box.wait_s(now)
        assert wait_s is not None and box.due(now) is None
        waits.append(wait_s)
        now += wait_s
        assert box.due(now) is not None
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0] and waits[-1] == PAUSES_S[1]
    box.done(alert(), now)
    box.offer([alert("disk-full")])
    assert box.wait_s(now) == GAP_S


def test_what_the_other_side_asks_for_is_waited() -> None:
    box = Outbox(Wants())
    box.offer([alert()])
    box.failed(alert(), 0.0, retry_after_s=42.0)
    assert box.wait_s(0.0) == 42.0
    box.failed(alert(), 0.0, retry_after_s=1e9)
    assert box.wait_s(0.0) == PAUSES_S[1]


def test_one_that_is_refused_for_itself_holds_up_the_others_for_a_while_only() -> None:
    box = Outbox(Wants())
    box.offer([alert(), alert("brain-away", raised_at=9.0)])
    given_up = [box.failed(alert(), float(n), refused=True) for n in range(MAX_REFUSALS)]
    assert given_up == [False] * (MAX_REFUSALS - 1) + [True]
    assert [a.key for a in box.owed()] == ["brain-away"]


def test_refusals_of_one_are_not_counted_against_another() -> None:
    box = Outbox(Wants())
    box.offer([alert()])
    for n in range(MAX_REFUSALS - 1):
        assert not box.failed(alert(), float(n), refused=True)
    assert not box.failed(alert("disk-full"), 9.0, refused=True)


def test_what_was_told_is_bounded() -> None:
    box = Outbox(Wants())
    for n in range(MAX_TOLD + 50):
        box.offer([alert(f"task-dead.{n}")])
        box.done(alert(f"task-dead.{n}"), 0.0)
    assert len(box.plain()) == MAX_TOLD


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(list(State)), st.sampled_from(["ok", "fail", "die"]))
    )
)
def test_whatever_fails_in_the_end_every_sink_knows_how_things_stand(steps: list[Any]) -> None:
    box, now = Outbox(Wants(), {}), 0.0
    stand: dict[str, Alert] = {}
    heard: dict[str, Alert] = {}
    for times, (n, state, how) in enumerate(steps, 1):
        key = f"task-dead.{n}"
        stand[key] = alert(key, state.value, raised_at=float(n), times=times)
        box.offer(stand.values())
        now += box.wait_s(now) or 0.0
        due = box.due(now)
        if due is not None and how != "fail":
            heard[due.key] = due
            if how == "ok":
                box.done(due, now)
            else:  # it arrived, and nobody could write that down
                box = Outbox(Wants(), box.plain())
        elif due is not None:
            box.failed(due, now)
    box.offer(stand.values())
    for _ in range(100):
        now += box.wait_s(now) or 0.0
        if (due := box.due(now)) is None:
            break
        heard[due.key] = due
        box.done(due, now)
    assert heard == stand
