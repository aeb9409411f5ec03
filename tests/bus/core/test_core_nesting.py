"""Handlers that wait for each other share few slots; handlers that make their workers fall silent are named."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness, Peer, spec

from rigbus.bus.states import TaskState
from rigbus.bus.wire import LEASE_S, Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def child_of(lease: dict[str, Any], n: int, **fields: Any) -> dict[str, Any]:
    return spec(f"{lease['key']}/{n}", parent={"id": lease["id"], "token": lease["token"]}, **fields)


def lent(worker: Peer, n: int) -> None:
    """``n`` handlers of this worker with one slot wait for answers."""
    worker.offer(credit=1 + n, slots=1, lent=n)


def keys(leases: list[dict[str, Any]]) -> list[str]:
    return [lease["key"] for lease in leases]


# ---------------------------------------------------------------- lent slots


def test_a_lent_slot_takes_the_call_that_was_waited_for_not_the_next_conversation(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("a"), spec("b"), spec("c"))
    first = worker.lease()
    worker.tasks(child_of(first, 1))
    lent(worker, 1)
    assert keys(worker.leases()) == ["a/1"]
    lent(worker, 2)
    assert worker.leases() == []
    rig.check()


def test_the_most_deeply_nested_call_goes_first(rig: Harness) -> None:
    worker, other, client = rig.worker(), rig.worker(types=["t2"]), rig.client()
    client.tasks(spec("a", type="t2"))
    top = other.lease()
    other.tasks(child_of(top, 1), child_of(top, 2), child_of(top, 3))
    deep = worker.lease()
    worker.tasks(child_of(deep, 1))
    lent(worker, 1)
    assert keys(worker.leases()) == ["a/1/1"], "its answer lets a/1 go on; a/2 would only wait as well"
    rig.check()


def test_a_lent_slot_is_given_back_to_everybody(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("a"), spec("b"))
    first = worker.lease()
    (child,) = worker.tasks(child_of(first, 1))
    lent(worker, 1)
    worker.result(worker.lease())
    worker.offer(credit=1, slots=1)
    worker.result(first)
    assert child.state is TaskState.DONE
    assert keys(worker.leases()) == ["b"]


def test_why_tells_of_credit_that_is_only_for_calls(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    _, waits = client.tasks(spec("a"), spec("b"))
    worker.lease()
    lent(worker, 1)
    why = client.ask(Verb.QUERY, {"what": "why", "id": waits.id}).header
    (credit,) = [p for p in why["workers"][0]["predicates"] if p["name"] == "free credit"]
    assert not credit["ok"]
    assert "1 of them for calls of handlers" in credit["value"]


# ---------------------------------------------------------------- workers that fall silent


def test_the_second_worker_that_falls_silent_under_a_task_is_a_crash_of_it(rig: Harness) -> None:
    client = rig.client()
    workers = [rig.worker(name="w1")]
    (task,) = client.tasks(spec("lock", policy={"crash": 1}))
    workers[0].lease()
    rig.wait(LEASE_S + 0.1)
    assert (task.state, task.counts) == (TaskState.READY, (0, 0, 1))
    rig.worker(name="w2").lease()
    rig.wait(LEASE_S + 0.1)
    assert task.state is TaskState.DEAD
    assert task.counts == (0, 1, 1)
    assert "mark it isolated=True" in str(task.error)
    rig.check()


def test_a_supervisor_says_that_the_worker_it_killed_did_not_answer(rig: Harness) -> None:
    client, supervisor = rig.client(), rig.peer("supervisor")
    (task,) = client.tasks(spec("lock", policy={"backoff_s": 0}))
    for name in ("w1", "w2"):
        rig.worker(name=name).lease()
        supervisor.ask(Verb.GONE, {"name": name, "why": "killed", "stuck": True})
    assert task.counts == (0, 1, 1)


def test_a_worker_that_is_only_gone_is_no_crash_however_often(rig: Harness) -> None:
    client, supervisor = rig.client(), rig.peer("supervisor")
    (task,) = client.tasks(spec("poor", policy={"backoff_s": 0}))
    for n in range(3):
        rig.worker(name=f"w{n}").lease()
        supervisor.ask(Verb.GONE, {"name": f"w{n}", "why": "killed"})
    assert task.counts == (0, 0, 3)


def test_what_was_only_fetched_ahead_is_not_blamed(rig: Harness) -> None:
    client = rig.client()
    for n in range(2):
        worker = rig.worker(credit=3, slots=1, name=f"w{n}")
        if n == 0:
            lock, behind = client.tasks(spec("lock"), spec("behind"))
        worker.leases()
        rig.wait(LEASE_S + 0.1)
    assert sum(lock.counts) == 2
    assert behind.counts == (0, 0, 0)


# ---------------------------------------------------------------- cancels


def test_a_cancel_ends_what_the_handler_waits_for_at_once_however_deep(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (top,) = client.tasks(spec("a"))
    chain = [worker.lease()]
    for n in range(1, 40):
        worker.tasks(child_of(chain[-1], 1))
        lent(worker, n)
        chain.append(worker.lease())
    (last,) = worker.tasks(child_of(chain[-1], 1))
    client.ask(Verb.CANCEL, {"ids": [top.id]})
    assert last.state is TaskState.CANCELLED
    told = worker.renew(*chain)["cancel"]
    assert sorted(told) == sorted(lease["token"] for lease in chain)
    for lease in reversed(chain):
        worker.fail(lease, cancelled=True)
    assert top.state is TaskState.CANCELLED
    assert not top.batch.live
    rig.check()


def test_a_handler_that_is_requeued_does_not_get_the_cancel_of_its_call_as_an_answer(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (top,) = client.tasks(spec("a"))
    lease = worker.lease()
    answered, cancelled = worker.tasks(child_of(lease, 1), child_of(lease, 2))
    lent(worker, 1)
    worker.result(worker.lease(), "kept")
    worker.lease()
    client.ask(Verb.CANCEL, {"ids": [top.id]})
    worker.say(Verb.BYE, {})
    assert (top.state, cancelled.state) == (TaskState.CANCELLED, TaskState.CANCELLED)
    done = client.ask(Verb.REQUEUE, {"ids": [top.id]}).header
    assert done == {"requeued": 2, "revived": 0}
    assert (answered.state, answered.attempt) == (TaskState.DONE, 1)
    assert top.state is TaskState.READY
    assert cancelled.state is TaskState.READY
    rig.check()


def test_nor_does_one_that_is_requeued_while_it_is_being_cancelled(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (top,) = client.tasks(spec("a"))
    lease = worker.lease()
    answered, runs, waits = worker.tasks(*(child_of(lease, n) for n in (1, 2, 3)))
    lent(worker, 1)
    worker.result(worker.lease(), "kept")
    assert worker.lease()["id"] == runs.id
    client.ask(Verb.CANCEL, {"ids": [top.id]})
    assert client.ask(Verb.REQUEUE, {"ids": [top.id]}).header["requeued"] == 1
    worker.say(Verb.BYE, {})
    assert rig.states([top, answered, runs, waits]) == ["READY", "DONE", "CANCELLED", "CANCELLED"]
    again = rig.worker()
    lease = again.lease()
    made = again.tasks(*(child_of(lease, n) for n in (1, 2, 3)))
    assert made[0] is answered
    assert rig.states(made) == ["DONE", "READY", "READY"], "their cancel is no answer: they are made anew"
    rig.check()


def test_a_call_does_not_come_back_while_its_handler_is_to_end(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (top,) = client.tasks(spec("a"))
    lease = worker.lease()
    (call,) = worker.tasks(child_of(lease, 1))
    lent(worker, 1)
    worker.lease()
    client.ask(Verb.CANCEL, {"ids": [top.id]})
    assert call.ending
    assert client.ask(Verb.REQUEUE, {"ids": [call.id]}).header["requeued"] == 0
    worker.say(Verb.BYE, {})
    assert rig.states([top, call]) == ["CANCELLED", "CANCELLED"]
    rig.check()
