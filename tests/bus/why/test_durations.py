"""Learned durations: under which name, how robust, how bounded, and that they outlive the broker."""

from __future__ import annotations

import time
from typing import Any

import pytest
from harness import STATE_ID, Harness, Peer, spec
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Batch, Fact, Task, intern_policy, intern_shape
from rigbus.bus.why.durations import KEEP_S, SCOPE, Durations, Timing, template_of
from rigbus.bus.wire import MAX_FACT_BYTES, Verb, pack


@pytest.fixture
def rig() -> Harness:
    return Harness()


def run(worker: Peer, seconds: float, n: int = 1) -> None:
    """End the next ``n`` leases well, after ``seconds`` each."""
    for _ in range(n):
        (lease,) = worker.leases()
        worker.result(lease, duration_s=seconds)


def facts(rig: Harness) -> dict[str, Any]:
    """What is kept of durations, by group."""
    return {key: fact.value for (scope, key), fact in rig.core.facts.items() if scope == SCOPE}


def written(rig: Harness) -> list[str]:
    """The groups that commits have written so far, one after the other."""
    return [key for changes in rig.changes for scope, key in changes.facts if scope == SCOPE]


def task_of(key: str, type_: str = "noop", plan: str | None = None) -> Task:
    batch = Batch(1, "b", "b", "plan" if plan else "client", plan or "b", 0.0)
    batch.plan = {"name": plan} if plan else None
    return Task(1, batch, key, intern_shape(type_), intern_policy(), 0.0)


# ---------------------------------------------------------------- under which name


def test_a_clients_task_is_learned_under_its_type(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("a"), spec("b"))
    run(worker, 2.0, 2)
    assert facts(rig) == {"types": {"noop": [2.0, 0.0, 2]}}


def test_a_plans_task_is_learned_under_its_plan_and_key_and_a_foreach_under_its_template(
    rig: Harness,
) -> None:
    brain, worker, client = rig.brain(), rig.worker(), rig.client()
    batch = client.submit(kind="plan", plan={"name": "census"}).header["batch"]
    items = [spec(f"measure_{i}", feeds=["measure"]) for i in range(2)]
    tasks = [spec("scan"), spec("measure", join=True), *items]
    brain.ask(Verb.BRAIN, {"epoch": 1, "batch": batch, "tasks": tasks, "close": [batch]})
    run(worker, 1.0)
    run(worker, 4.0, 2)
    assert facts(rig) == {"plan:census": {"scan": [1.0, 0.0, 1], "measure": [4.0, 0.0, 2]}}
    # noop is a type of its own, so a client's is not known by it; shell and expand never are
    assert rig.core.durations.of(task_of("x", "noop")) is None


def test_another_plans_task_is_estimated_by_its_handlers_type_but_not_a_command() -> None:
    known = Durations()
    known.learn(task_of("1", "shout"), 3.0)
    known.learn(task_of("2", "shell"), 3.0)
    assert known.of(task_of("say", "shout", "p")) is not None
    assert known.of(task_of("run", "shell", "p")) is None


def test_a_task_beside_a_foreach_is_not_taken_for_one_of_its_items() -> None:
    batch = Batch(1, "b", "b", "plan", "p", 0.0)
    join = Task(2, batch, "m", intern_shape("join"), intern_policy(), 0.0)
    join.join = True
    for key, name in (("m_1", "m"), ("m_batch_0001_0008", "m"), ("m:expand", "m:expand"), ("mm", "mm")):
        task = Task(1, batch, key, intern_shape("shell"), intern_policy(), 0.0)
        task.dependents = [(join, False)]
        assert template_of(task) == name


def test_what_failed_teaches_nothing(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("a", policy={"task": 1}))
    worker.fail(worker.lease(), duration_s=9.0)
    assert facts(rig) == {} and not rig.core.durations.known


@pytest.mark.parametrize("seconds", [None, -1.0, float("nan"), float("inf"), 1e12])
def test_a_time_that_none_can_be_is_ignored(seconds: float | None) -> None:
    known = Durations()
    known.learn(task_of("a"), seconds)
    assert not known.known


# ---------------------------------------------------------------- mean and spread


def test_the_first_runs_weigh_the_same_later_ones_a_fifth() -> None:
    timing = Timing(1.0)
    for seconds in (2.0, 3.0, 4.0, 5.0):
        timing.add(seconds)
    assert timing.mean == pytest.approx(3.0)
    timing.add(4.0)
    assert timing.mean == pytest.approx(3.2)
    assert (timing.n, timing.spread > 0) == (6, True)


def test_one_odd_run_changes_little_and_a_slower_plan_is_believed_soon() -> None:
    timing = Timing(1.0)
    for _ in range(20):
        timing.add(1.0)
    timing.add(3600.0)
    assert timing.mean < 1.2
    for _ in range(20):
        timing.add(10.0)
    assert timing.mean == pytest.approx(10.0, rel=0.2)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_the_mean_lies_between_the_shortest_and_the_longest_run(runs: list[float]) -> None:
    timing = Timing(runs[0])
    for seconds in runs[1:]:
        timing.add(seconds)
    assert min(runs) - 1e-6 <= timing.mean <= max(runs) + 1e-6
    assert timing.spread >= 0


# ---------------------------------------------------------------- bounds


def test_the_names_least_recently_seen_are_forgotten() -> None:
    known = Durations(most=3)
    for name in ("a", "b", "c", "a", "d"):
        known.learn(task_of(name, plan="p"), 1.0)
    assert [name for _, name in known.known] == ["c", "a", "d"]


def test_a_group_that_was_forgotten_is_deleted_from_the_facts() -> None:
    known = Durations(most=1)
    known.learn(task_of("a", plan="p"), 1.0)
    assert known.take_changed() == {"plan:p": {"a": [1.0, 0.0, 1]}}
    known.learn(task_of("a", plan="q"), 1.0)
    assert known.take_changed() == {"plan:p": None, "plan:q": {"a": [1.0, 0.0, 1]}}


def test_a_fact_stays_within_its_bound_and_keeps_the_newest() -> None:
    known = Durations()
    for i in range(4000):
        known.learn(task_of(f"{i:>150}", plan="p"), 1.0)
    value = known.take_changed()["plan:p"]
    assert value is not None and 100 < len(value) < 4000
    assert len(pack(value)) <= MAX_FACT_BYTES
    assert f"{3999:>150}" in value


def test_learning_costs_about_a_microsecond_a_task() -> None:
    known, task = Durations(), task_of("measure_1", plan="p")
    best = 1.0
    for _ in range(5):
        began = time.process_time()
        for _ in range(5_000):
            known.learn(task, 0.5)
        best = min(best, (time.process_time() - began) / 5_000)
    assert best < 5e-6  # 1 µs on a quiet machine


# ---------------------------------------------------------------- keeping


def test_they_are_written_with_the_end_of_the_batch_and_not_per_task(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (a, _) = client.tasks(spec("a"), spec("b"))
    run(worker, 1.0)
    assert written(rig) == []
    run(worker, 1.0)
    (changes,) = [c for c in rig.changes if (SCOPE, "types") in c.facts]
    assert a.batch.no in changes.batches  # the commit that records the batch's end
    for n in range(5):
        client.tasks(spec(f"c{n}"))
        run(worker, 1.0)
    assert written(rig) == ["types"]
    rig.wait(2.5, (worker, []), (client, []))
    assert written(rig) == ["types", "types"], "the last ones a second later"
    assert facts(rig)["types"]["noop"][2] == 7


def test_a_batch_that_never_ends_is_kept_too(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("a"), open=True)
    run(worker, 1.0)
    rig.wait(1.5, (worker, []))
    assert facts(rig)["types"]["noop"][2] == 1
    client.tasks(spec("b"), open=True)
    run(worker, 1.0)
    rig.wait(KEEP_S + 1.5, (worker, []))
    assert facts(rig)["types"]["noop"][2] == 2
    n = len(written(rig))
    rig.wait(3 * KEEP_S, (worker, []))
    assert len(written(rig)) == n, "nothing new was learned, so nothing is written"


def test_a_broker_that_starts_again_knows_them(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("a"))
    run(worker, 2.5)
    again = Core(incarnation=2, state_id=STATE_ID)
    again.load([], [], {}, rig.core.facts, 0.0, 0.0)
    known = again.durations.of(task_of("x"))
    assert known is not None and (known.mean, known.n) == (2.5, 1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        {"a": 1},
        {"a": [1]},
        {"a": [-1, 0, 1]},
        {"a": ["x", 0, 1]},
        {"a": [float("nan"), 0, 1]},
        {1: [1, 0, 1]},
    ],
)
def test_a_fact_that_is_not_ours_is_left_out(value: Any) -> None:
    known = Durations()
    known.load({(SCOPE, "types"): Fact(1, 0, value)})
    assert not known.known
