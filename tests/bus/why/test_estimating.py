"""Positions and ETAs on exact numbers, against the scheduler itself, and what they cost for 100,000 tasks."""

from __future__ import annotations

import time
from typing import Any

import pytest
from harness import Harness, Peer, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.bus.core.model import Task
from rigbus.bus.states import TaskState
from rigbus.bus.why.lineup import first_free
from rigbus.bus.wire import Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def teach(rig: Harness, **seconds: float) -> None:
    """Let one run of each type be timed."""
    for name, value in seconds.items():
        worker, client = rig.worker(types=[name]), rig.client()
        client.tasks(spec("t", type=name))
        worker.result(worker.lease(), duration_s=value)
        worker.say(Verb.BYE)


def eta(rig: Harness, task: Task) -> tuple[float | None, float | None, bool]:
    found = rig.core.estimator().task(task)
    return found.start_s, found.end_s, found.about


def position(rig: Harness, task: Task) -> int:
    return rig.core.estimator().line(task).position


# ---------------------------------------------------------------- plain numbers


@pytest.mark.parametrize(
    ("slots", "jobs", "free"),
    [
        ([0.0], [], (0.0, False)),
        ([3.0, 1.0], [], (1.0, False)),
        ([3.0, 1.0], [(1, 4.0)], (3.0, False)),
        ([0.0, 0.0], [(3, 2.0)], (2.0, False)),
        ([0.0, 0.0], [(4, 2.0)], (4.0, False)),
        ([0.0, 0.0], [(1, 5.0), (2, 1.0)], (2.0, False)),
        ([0.0, 0.0], [(10_000, 2.0)], (10_000.0, True)),
    ],
)
def test_a_slot_is_free_when_those_before_are_served(
    slots: list[float], jobs: list[tuple[int, float]], free: tuple[float, bool]
) -> None:
    assert first_free(slots, jobs) == free


def test_a_task_starts_when_those_before_it_are_done(rig: Harness) -> None:
    teach(rig, noop=10.0)
    worker = rig.worker(credit=2, slots=2)
    tasks = rig.client().tasks(*[spec(f"t{i}") for i in range(7)])
    leases = worker.leases()
    worker.started(*leases)
    rig.wait(4.0, (worker, leases))
    assert [eta(rig, t) for t in tasks] == [
        (0.0, 6.0, False),
        (0.0, 6.0, False),
        (6.0, 16.0, False),
        (6.0, 16.0, False),
        (16.0, 26.0, False),
        (16.0, 26.0, False),
        (26.0, 36.0, False),
    ]
    assert [position(rig, t) for t in tasks[2:]] == [1, 2, 3, 4, 5]
    found = rig.core.estimator().batch(tasks[0].batch)
    assert found.end_s == pytest.approx((2 * 6.0 + 5 * 10.0) / 2)


def test_a_run_that_is_late_has_nothing_left(rig: Harness) -> None:
    teach(rig, noop=2.0)
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    leases = worker.leases()
    worker.started(*leases)
    rig.wait(5.0, (worker, leases))
    assert eta(rig, task) == (0.0, 0.0, False)


def test_a_free_slot_takes_the_next_one_now_though_no_run_was_timed(rig: Harness) -> None:
    rig.worker()
    rig.matching = False
    (task,) = rig.client().tasks(spec("a"))
    found = rig.core.estimator().task(task)
    assert (found.start_s, found.end_s) == (0.0, None)
    assert found.why == "no run of `noop` has been timed yet"


def test_back_off_is_waited_for(rig: Harness) -> None:
    teach(rig, noop=1.0)
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a", policy={"backoff_s": 30.0}))
    worker.fail(worker.lease())
    left = task.not_before - rig.now  # lengthened by a hash of the task
    assert 30.0 <= left <= 37.5 and eta(rig, task) == (left, left + 1.0, False)


def test_a_chain_takes_as_long_as_all_of_it_and_a_fan_as_long_as_its_slots(rig: Harness) -> None:
    teach(rig, noop=3.0)
    rig.worker(credit=4, slots=4)
    rig.matching = False
    chain = rig.client().tasks(spec("a"), spec("b", "a"), spec("c", "b"), spec("d", "c"))
    assert rig.core.estimator().batch(chain[0].batch).end_s == 12.0
    assert eta(rig, chain[3]) == (9.0, 12.0, True)
    rig.client().ask(Verb.CANCEL, {"batch": chain[0].batch.id})
    fan = rig.client().tasks(*[spec(f"t{i}") for i in range(8)], spec("end", *[f"t{i}" for i in range(8)]))
    found = rig.core.estimator().batch(fan[0].batch)
    assert found.end_s == pytest.approx(27.0 / 4)
    assert eta(rig, fan[-1]) == (6.0, 9.0, True)


def test_an_item_behind_one_far_back_in_the_queue_waits_for_that_ones_turn(rig: Harness) -> None:
    teach(rig, noop=10.0)
    worker = rig.worker(credit=2, slots=2)
    items = [spec(f"a{i}") for i in range(20)]
    *_, b0, b19, c19 = rig.client().tasks(*items, spec("b0", "a0"), spec("b19", "a19"), spec("c19", "b19"))
    worker.started(*worker.leases())
    assert eta(rig, b0)[0] == pytest.approx(10.0)
    assert eta(rig, b19)[0] == pytest.approx(100.0)
    assert eta(rig, c19)[0] == pytest.approx(110.0)


def test_each_kind_of_task_has_only_the_slots_that_take_it(rig: Harness) -> None:
    teach(rig, fast=1.0, slow=10.0)
    rig.worker(credit=4, slots=4, types=["fast"])
    rig.worker(credit=1, slots=1, types=["slow"])
    rig.matching = False
    tasks = rig.client().tasks(
        *[spec(f"f{i}", type="fast") for i in range(4)], *[spec(f"s{i}", type="slow") for i in range(3)]
    )
    assert rig.core.estimator().batch(tasks[0].batch).end_s == 30.0


@pytest.mark.parametrize("what", ["pause", "drain"])
def test_a_worker_that_gets_nothing_is_no_slot(rig: Harness, what: str) -> None:
    teach(rig, noop=1.0)
    rig.worker(name="w1")
    person = rig.client()
    if what == "pause":
        person.ask(Verb.CONTROL, {"action": "pause", "worker": "w1"})
    else:
        person.ask(Verb.DRAIN, {"worker": "w1"})
    (task,) = person.tasks(spec("a"))
    found = rig.core.estimator().task(task)
    assert (found.start_s, found.why) == (None, "no worker can take it at present")
    assert "no worker can take `noop`" in rig.core.estimator().batch(task.batch).why


def test_other_batches_share_the_slots(rig: Harness) -> None:
    teach(rig, noop=1.0)
    rig.worker()
    rig.matching = False
    client = rig.client()
    mine = client.tasks(*[spec(f"a{i}") for i in range(4)])
    client.tasks(*[spec(f"b{i}") for i in range(100)])  # served in turns: 4 of them by then
    client.tasks(*[spec(f"c{i}") for i in range(3)], priority=9)  # all of them first
    client.tasks(*[spec(f"d{i}") for i in range(50)], priority=1)  # none
    assert rig.core.estimator().batch(mine[0].batch).end_s == 4 + 4 + 3


def test_a_list_that_is_not_known_yet_gives_no_estimate(rig: Harness) -> None:
    teach(rig, noop=1.0)
    rig.worker()
    (join,) = rig.client().tasks(spec("measure", join=True, hold=True))
    assert rig.core.estimator().batch(join.batch).why == "the list of `measure` is not known yet"
    assert rig.core.estimator().task(join).why == "the list of `measure` is not known yet"


def test_status_and_the_batch_carry_the_estimate(rig: Harness) -> None:
    teach(rig, noop=5.0)
    rig.worker()
    rig.matching = False
    client = rig.client()
    (task, _) = client.tasks(spec("a"), spec("b"))
    row = client.ask(Verb.QUERY, {"what": "batch", "id": task.batch.id}).header
    assert row["eta_s"] == 10.0
    rows = client.ask(Verb.QUERY, {"what": "status"}).header["batches"]
    assert [r.get("eta_s") for r in rows] == [None, 10.0]


# ---------------------------------------------------------------- the scheduler's own order


def serve(rig: Harness, worker: Peer) -> list[str]:
    """The keys in the order in which one slot is given to them."""
    order = []
    rig.matching = True
    rig.settle()
    while leases := worker.leases():
        order += [lease["key"] for lease in leases]
        for lease in leases:
            worker.result(lease, duration_s=1.0)
    return order


batches = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([3, 5, 5, 8]), st.sampled_from(["noop", "other"])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(batches)
def test_a_position_is_the_turn_that_the_scheduler_gives(made: list[tuple[int, int, str]]) -> None:
    rig = Harness()
    worker = rig.worker(types=["noop", "other"])
    rig.matching = False
    client = rig.client()
    tasks = []
    for b, (n, priority, type_) in enumerate(made):
        tasks += client.tasks(*[spec(f"{b}-{i}", type=type_) for i in range(n)], priority=priority)
    places = {t.key: position(rig, t) for t in tasks}
    assert sorted(places, key=places.__getitem__) == serve(rig, worker)
    assert sorted(places.values()) == list(range(1, len(tasks) + 1))


def test_a_task_that_has_waited_a_minute_is_before_younger_ones_of_the_next_priority(rig: Harness) -> None:
    worker = rig.worker()
    rig.matching = False
    client = rig.client()
    (old,) = client.tasks(spec("old"), priority=5)
    rig.wait(70.0, (worker, []), (client, []))
    (young, _) = client.tasks(spec("young"), spec("younger"), priority=6)
    assert [position(rig, t) for t in (old, young)] == [1, 2]
    assert serve(rig, worker)[:2] == ["old", "young"]


# ---------------------------------------------------------------- 100,000


def test_a_hundred_thousand_tasks_are_estimated_in_bounded_time_and_said_to_be_about(rig: Harness) -> None:
    teach(rig, noop=1.0)
    client = rig.client()
    for start in range(0, 100_000, 1000):
        specs: list[Any] = [
            spec(f"t{i}", *([f"t{i - 1}"] if i >= 90_000 else [])) for i in range(start, start + 1000)
        ]
        answer = client.submit(*specs, key="big", open=True)
    rig.worker(credit=2, slots=2)
    batch = rig.core.batch_ids[answer.header["batch"]]
    found = rig.core.estimator().batch(batch)
    assert found.about and found.end_s == pytest.approx(50_000, rel=0.05)
    last = rig.core.estimator().task(batch.keys["t89999"])
    assert last.about and last.start_s == pytest.approx(45_000, rel=0.05)

    def cost(ref: str | None) -> float:
        took = []
        for _ in range(3):
            began = time.process_time()
            rig.core.why(ref)
            took.append(time.process_time() - began)
        return min(took)

    end = batch.keys["t99999"]
    assert end.state is TaskState.WAITING
    refs = (batch.id, batch.keys["t80000"].id, end.id, None)
    assert max(map(cost, refs)) < 0.15  # 10 to 35 ms on a quiet machine
