"""What a rig says of itself, and which conditions that is."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.bus.alerting.core import Condition
from rigbus.bus.alerting.rules import RULES, Policy
from rigbus.bus.alerting.watching import Watch, escalation_conditions, share_conditions

WALL = 1_770_000_000.0


def worker(name: str = "worker-1", state: str = "idle", **more: Any) -> dict[str, Any]:
    return {"id": name, "state": state, **more}


def batch(state: str = "running", **more: Any) -> dict[str, Any]:
    row = {"id": "b1", "plan": "census", "kind": "plan", "state": state, "created_at": WALL, "ended_at": 0.0}
    return {**row, "tasks": {}, **more}


def status(**more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"as_of": WALL, "broker": {"incarnation": 1, "paused": False}}
    row |= {"brain": {"state": "seated"}, "workers": [worker()], "tasks": {}, "batches": [], "unrunnable": []}
    return {**row, **more}


def keys(found: Any) -> list[str]:
    return sorted(c.key for c in found.conditions)


GPU = {"index": 0, "temperature_c": 90.0}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, []),
        ({"tasks": {"ready": 3}}, []),
        ({"tasks": {"ready": 3}, "workers": []}, ["no-worker"]),
        (
            {"tasks": {"ready": 3}, "workers": [worker(state="held", held="hot")]},
            ["no-worker", "thermal-hold.worker-1"],
        ),
        ({"tasks": {"ready": 3}, "workers": [worker(state="paused")]}, []),
        ({"workers": [worker(held="pid 7 hangs", unkillable=["pid 7 hangs"])]}, ["worker-hung.worker-1"]),
        (
            {"workers": [worker(held="GPU 0 is hot", unkillable=["pid 7 hangs"])]},
            ["thermal-hold.worker-1", "worker-hung.worker-1"],
        ),
        ({"tasks": {"ready": 0}, "workers": []}, []),
        ({"unrunnable": [{"type": "shell", "class": "llm"}]}, ["unrunnable"]),
        ({"brain": {"state": "absent"}}, ["brain-away"]),
        ({"workers": [worker(quarantine={"why": "crashes"})]}, ["worker-quarantined.worker-1"]),
        ({"workers": [worker(placement={"phase": "failed", "model": "m"})]}, ["model-failing.worker-1"]),
        ({"workers": [worker(placement={"phase": "loading", "model": "m"})]}, []),
        ({"workers": [worker(gpu={"cards": [GPU]})]}, ["card-hot.worker-1.0"]),
        ({"workers": [worker(gpu=GPU)]}, ["card-hot.worker-1.0"]),
        ({"disk": {"level": "ample"}}, []),
        ({"disk": {"level": "low", "folder": "/s"}}, ["disk-low"]),
        ({"disk": {"level": "full", "folder": "/s"}}, ["disk-full"]),
        ({"batches": [batch("failed", ended_at=WALL, error="x")]}, ["batch-failed.b1"]),
        ({"batches": [batch("failed", ended_at=WALL, tasks={"dead": 1})]}, ["batch-failed.b1"]),
        ({"batches": [batch(tasks={"dead": 2})]}, ["task-dead.b1"]),
        ({"batches": [batch("complete", ended_at=WALL, tasks={"dead": 2})]}, ["task-dead.b1"]),
        ({"batches": [batch("failed", kind="calls", tasks={"dead": 2})]}, []),
        ({"batches": [batch("cancelled")]}, []),
    ],
)
def test_what_is_seen_in_a_status(said: dict[str, Any], expected: list[str]) -> None:
    assert keys(Watch().look(status(**said), 1.0, WALL)) == expected


def test_without_a_broker_only_that_is_known() -> None:
    found = Watch().look(None, 1.0, WALL)
    assert keys(found) == ["broker-away"]
    assert "batch-failed" not in found.known


def test_a_batch_that_runs_again_is_made_good() -> None:
    watch = Watch()
    watch.look(status(batches=[batch("failed", ended_at=WALL)]), 1.0, WALL)
    assert "batch-failed.b1" in watch.look(status(batches=[batch()]), 2.0, WALL).good


def test_a_card_stays_hot_until_it_is_cool() -> None:
    watch = Watch(Policy(hot_c=85.0, cool_c=80.0))
    seen = []
    for degrees in (84.9, 85.0, 80.1, 84.0, 79.9, 84.0):
        row = status(workers=[worker(gpu={"index": 0, "temperature_c": degrees})])
        seen.append(bool(watch.look(row, 1.0, WALL).conditions))
    assert seen == [False, True, True, True, False, False]


class TestAWorkerThatGoes:
    def test_without_a_word_is_lost_until_it_is_back(self) -> None:
        watch = Watch()
        watch.look(status(workers=[worker("a"), worker("b")]), 1.0, WALL)
        gone = watch.look(status(workers=[worker("a")]), 2.0, WALL)
        assert keys(gone) == ["worker-lost.b"]
        assert keys(watch.look(status(workers=[worker("a")]), 3.0, WALL)) == ["worker-lost.b"]
        back = watch.look(status(workers=[worker("a"), worker("b")]), 4.0, WALL)
        assert keys(back) == [] and "worker-lost.b" in back.good

    def test_in_order_is_not(self) -> None:
        watch = Watch()
        watch.look(status(workers=[worker("a"), worker("b")]), 1.0, WALL)
        watch.event("worker.b.left", {"why": "drained", "bye": True}, WALL, 7)
        assert keys(watch.look(status(workers=[worker("a")]), 2.0, WALL)) == []

    def test_a_broker_that_was_started_anew_has_lost_nobody_yet(self) -> None:
        watch = Watch()
        watch.look(status(workers=[worker("a")]), 1.0, WALL)
        anew = status(broker={"incarnation": 2}, workers=[])
        assert keys(watch.look(anew, 2.0, WALL)) == []
        assert keys(watch.look(anew, 3.0, WALL)) == ["worker-lost.a"]


class TestABacklog:
    def test_that_does_not_move_for_long_is_stuck(self) -> None:
        watch = Watch(Policy(backlog_s=100.0))
        row = status(tasks={"ready": 5, "leased": 1, "done": 3})
        assert not watch.look(row, 0.0, WALL).conditions
        assert not watch.look(row, 99.0, WALL).conditions
        assert keys(watch.look(row, 100.0, WALL)) == ["backlog-stuck"]
        assert not watch.look(status(tasks={"ready": 5, "leased": 1, "done": 4}), 101.0, WALL).conditions

    def test_that_somebody_has_paused_is_not(self) -> None:
        watch = Watch(Policy(backlog_s=100.0))
        row = status(tasks={"ready": 5}, broker={"incarnation": 1, "paused": True})
        watch.look(row, 0.0, WALL)
        assert not watch.look(row, 500.0, WALL).conditions


@pytest.mark.parametrize("topic", ["rig.lost", "rig.repaired", "rig.restored", "rig.rebuilt"])
def test_a_database_that_lost_something_is_told_once(topic: str) -> None:
    watch = Watch()
    watch.event(topic, {"commits": 3, "odd": [1]}, WALL, 9)
    watch.event(topic, {"commits": 3}, WALL, 9)
    (told,) = watch.look(status(), 1.0, WALL).conditions
    assert (told.rule, told.mark) == ("rig-lost", "9")


@pytest.mark.parametrize(
    ("record", "since", "expected"),
    [
        ({"status": "human", "title": "t"}, WALL, True),
        ({"status": "pending"}, WALL - 3599, False),
        ({"status": "pending"}, WALL - 3600, True),
        ({"status": "answered"}, 0.0, False),
        ({"status": "applied"}, 0.0, False),
        ({"status": "closed"}, 0.0, False),
        ({"status": 7}, 0.0, False),
        ({}, 0.0, False),
    ],
)
def test_which_escalations_wait_for_a_person(record: dict[str, Any], since: float, expected: bool) -> None:
    found = list(escalation_conditions([("20260101_000000_aaaaaaaa", record, since)], WALL, Policy()))
    assert bool(found) is expected


def test_a_share_that_is_away() -> None:
    assert not list(share_conditions(True, ""))
    assert [c.rule for c in share_conditions(False, "hung")] == ["share-away"]


CELLS = ("gpu", "placement", "quarantine", "held", "unkillable", "state")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(status())), JSON, max_size=8), JSON)
def test_no_odd_status_is_an_error(odd: dict[str, Any], cell: Any) -> None:
    watch = Watch()
    odd.setdefault(
        "workers", [{"id": "w", **dict.fromkeys(CELLS, cell)}, {"id": "v", "gpu": {"cards": [cell]}}, cell]
    )
    odd.setdefault("tasks", {"ready": 3})
    odd.setdefault("batches", [{"id": "b", "tasks": cell, "state": "failed", "ended_at": cell}, cell])
    for found in (watch.look(status(**odd), 1.0, WALL), watch.look(odd, 2.0, WALL)):
        assert all(isinstance(c, Condition) and c.key for c in found.conditions)


def test_the_page_has_every_rule_as_it_is() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text("utf-8")
    for rule in RULES.values():
        ends = "until seen" if rule.happening else f"{rule.clear_after_s:g}"
        assert f"| `{rule.name}` | {rule.severity} | {rule.what} | {rule.raise_after_s:g} | {ends} |" in page
