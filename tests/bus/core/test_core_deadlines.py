"""Deadlines and cancelling: in the queue, waiting, running; ends that wait for a dead tree."""

from __future__ import annotations

import time

import pytest
from harness import Harness, error_of, spec

from rigbus.bus.states import TaskState
from rigbus.bus.wire import LEASE_S, Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def test_a_deadline_expires_what_waits_and_skips_what_waits_for_it(rig: Harness) -> None:
    client = rig.client()
    ready, waiting, after = client.tasks(
        spec("ready", deadline_s=5), spec("waiting", "ready", deadline_s=3), spec("after", "ready")
    )
    rig.wait(4, (client, []))
    assert rig.states([ready, waiting, after]) == ["READY", "EXPIRED", "WAITING"]
    rig.wait(2, (client, []))
    assert ready.state is TaskState.EXPIRED and ready.error == "its deadline passed"
    assert after.state is TaskState.SKIPPED and not ready.batch.live
    rig.check()


def test_a_deadline_holds_for_a_task_whose_turn_came_while_its_own_message_was_read(rig: Harness) -> None:
    client = rig.client()
    (dead,) = client.tasks(spec("dead"), key="b", open=True)
    client.ask(Verb.CANCEL, {"ids": [dead.id]})
    broken, then = client.tasks(
        spec("broken", "dead"), spec("then", ["broken", "end"], deadline_s=5), key="b", open=True
    )
    assert rig.states([broken, then]) == ["SKIPPED", "READY"]
    rig.wait(6, (client, []))
    assert then.state is TaskState.EXPIRED and then.error == "its deadline passed"
    rig.check()


def test_a_deadline_of_a_running_task_waits_until_its_tree_is_dead(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a", deadline_s=3))
    lease = worker.lease()
    rig.wait(4, (worker, [lease]), (client, []))
    assert task.state is TaskState.LEASED and task.ending == 2
    assert worker.take(Verb.CONTROL) == [{"action": "cancel", "tokens": [lease["token"]]}]
    assert worker.renew(lease)["cancel"] == [lease["token"]]
    worker.fail(lease, cancelled=True)
    assert task.state is TaskState.EXPIRED and task.error == "its deadline passed"
    assert client.take(Verb.ENDED)[0]["state"] == "expired"
    rig.check()


def test_a_result_that_comes_before_the_tree_is_dead_wins(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a"))
    client.ask(Verb.CANCEL, {"ids": [task.id]})
    worker.result(worker.lease(), "just in time")
    assert task.state is TaskState.DONE and task.ending == 0
    rig.check()


def test_a_result_to_be_judged_that_comes_after_the_deadline_is_too_late(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a", deadline_s=3, review=True))
    lease = worker.lease()
    rig.wait(4, (worker, [lease]), (client, []))
    assert worker.result(lease, "late").verb is Verb.RECORDED
    assert task.state is TaskState.EXPIRED and task.error == "its deadline passed"
    assert task.no in rig.changes[-1].results
    rig.check()


def test_a_queue_timeout_counts_the_wait_for_a_worker_only(rig: Harness) -> None:
    client = rig.client()
    a, b = client.tasks(spec("a"), spec("b", "a", queue_timeout_s=5))
    rig.wait(10, (client, []))
    assert b.state is TaskState.WAITING
    worker = rig.worker()
    worker.result(worker.lease())
    lease = worker.lease()
    rig.wait(10, (worker, [lease]), (client, []))
    assert b.state is TaskState.LEASED and a.state is TaskState.DONE


def test_a_queue_timeout_expires_what_nobody_takes(rig: Harness) -> None:
    client = rig.client()
    (task,) = client.tasks(spec("a", queue_timeout_s=5))
    rig.wait(4.9, (client, []))
    assert task.state is TaskState.READY
    rig.wait(0.2, (client, []))
    assert task.state is TaskState.EXPIRED and "waited over 5 s" in str(task.error)


def test_a_queue_timeout_begins_anew_after_a_back_off(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a", queue_timeout_s=5, policy={"backoff_s": 20}))
    worker.fail(worker.lease())
    worker.offer(credit=0)
    rig.wait(24, (worker, []), (client, []))
    assert task.state is TaskState.READY
    rig.wait(7, (worker, []), (client, []))
    assert task.state is TaskState.EXPIRED
    rig.check()


def test_cancel_ends_each_state_in_its_way(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    tasks = client.tasks(spec("done"), spec("running"), spec("ready"), spec("waiting", "ready"))
    worker.result(worker.lease())
    lease = worker.lease()
    batch = tasks[0].batch
    answer = client.ask(Verb.CANCEL, {"batch": batch.id, "reason": "enough"})
    assert answer.header == {"cancelled": 2, "ending": 1, "already": 1}
    assert rig.states(tasks) == ["DONE", "LEASED", "CANCELLED", "CANCELLED"]
    assert {t.error for t in tasks[1:]} == {"enough"} and batch.state.name == "RUNNING"
    assert tasks[1].row()["cancel_requested"]
    assert client.ask(Verb.CANCEL, {"batch": batch.id}).header == {"cancelled": 0, "ending": 1, "already": 3}
    worker.result(lease, "its last words", ok=False, error="killed by signal 15", cancelled=True)
    assert rig.states(tasks)[1] == "CANCELLED" and tasks[1].error == "enough"
    assert tasks[1].no in rig.changes[-1].results
    assert batch.state.name == "CANCELLED"
    rig.check()


def test_a_cancel_is_durable_before_the_worker_is_told(rig: Harness) -> None:
    rig.worker()
    client = rig.client()
    (task,) = client.tasks(spec("a"))
    client.ask(Verb.CANCEL, {"ids": [task.id]})
    assert rig.changes[-1].tasks[task.no].ending == 1


def test_a_cancel_of_a_worker_that_is_gone_ends_with_its_lease(rig: Harness) -> None:
    rig.worker()
    client = rig.client()
    (task,) = client.tasks(spec("a"))
    client.ask(Verb.CANCEL, {"ids": [task.id], "reason": "enough"})
    rig.wait(LEASE_S + 0.5, (client, []))
    assert task.state is TaskState.CANCELLED and task.error == "enough"
    rig.check()


def test_cancel_of_what_is_unknown_applies_nothing(rig: Harness) -> None:
    client = rig.client()
    (task,) = client.tasks(spec("a"))
    for header in (
        {"ids": [task.id, "nobody"]},
        {"batch": "nobody"},
        {"ids": [5]},
        {"ids": task.id},
        {"batch": 5},
    ):
        assert error_of(client.ask(Verb.CANCEL, header)) in ("not_found", "bad_frame")
    assert task.state is TaskState.READY
    assert client.ask(Verb.CANCEL, {"ids": [task.id[:8]]}).header["cancelled"] == 1


def test_a_batch_of_twenty_thousand_is_cancelled_and_requeued_quickly(rig: Harness) -> None:
    client = rig.client()
    for start in range(0, 20_000, 1000):
        specs = [spec(f"t{i}", *([f"t{i % 100}"] if i >= 1000 else [])) for i in range(start, start + 1000)]
        answer = client.submit(*specs, key="big", open=True)
    before = time.process_time()
    client.ask(Verb.CANCEL, {"batch": answer.header["batch"]})
    cancelled = time.process_time()
    assert rig.core.batch_keys["big"].state.name == "CANCELLED"
    client.ask(Verb.REQUEUE, {"batch": answer.header["batch"]})
    assert rig.core.counts[TaskState.READY] == 1000
    assert cancelled - before < 1.5 and time.process_time() - cancelled < 2.0
    rig.check()
