"""Calls from a handler: children under the parent's token, recorded answers for a rerun, the end with the parent."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness, Peer, error_of, spec

from rigbus.bus.states import TaskState
from rigbus.bus.wire import Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def child_of(lease: dict[str, Any], n: int, **fields: Any) -> dict[str, Any]:
    """The spec of a handler's n-th call: key ``<task>/<n>``, under the parent's token."""
    return spec(f"{lease['key']}/{n}", parent={"id": lease["id"], "token": lease["token"]}, **fields)


def lend(worker: Peer) -> None:
    """The handler waits: its slot is lent."""
    worker.offer(credit=4, slots=4)


def test_a_child_inherits_batch_priority_and_deadline(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (parent,) = client.tasks(spec("p", priority=8, deadline_s=100))
    lease = worker.lease()
    plain, sooner, later = worker.tasks(
        child_of(lease, 1), child_of(lease, 2, deadline_s=10), child_of(lease, 3, deadline_s=1000, priority=1)
    )
    assert {t.batch for t in (plain, sooner, later)} == {parent.batch}
    assert {t.priority for t in (plain, sooner, later)} == {8}
    assert plain.deadline == parent.deadline == later.deadline and sooner.deadline == rig.now + 10
    lend(worker)
    assert [lease["parent"] for lease in worker.leases()] == [parent.id] * 3
    rig.check()


def test_the_batch_lives_until_parent_and_children_have_ended(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (parent,) = client.tasks(spec("p"))
    lease = worker.lease()
    worker.submit(child_of(lease, 1))
    lend(worker)
    child = worker.lease()
    worker.result(child, 5)
    assert parent.batch.state.name == "RUNNING"
    worker.result(lease)
    assert parent.batch.state.name == "COMPLETE" and parent.batch.total == 2


def test_only_the_holder_of_the_current_token_makes_children(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (parent,) = client.tasks(spec("p", policy={"backoff_s": 0}))
    old = worker.lease()
    worker.fail(old)
    new = worker.lease()
    answer = worker.submit(child_of(old, 1))
    assert error_of(answer) == "stale_token" and "not held" in answer.header["message"]
    assert worker.submit(child_of(new, 1)).verb is Verb.ACCEPTED
    worker.result(new)
    assert error_of(worker.submit(child_of(new, 2))) == "stale_token"
    assert parent.batch.total == 2
    rig.check()


def test_a_rerun_gets_the_recorded_answer_instead_of_a_second_execution(rig: Harness) -> None:
    worker, client, handler = rig.worker(), rig.client(), rig.client()
    (parent,) = client.tasks(spec("p", policy={"backoff_s": 0}))
    first = worker.lease()
    (child,) = handler.tasks(child_of(first, 1))
    lend(worker)
    worker.result(worker.lease(), "answer")
    worker.fail(first, "infra")
    again = worker.lease()
    assert again["id"] == parent.id and again["attempt"] == 2
    answer = handler.submit(child_of(again, 1))
    assert answer.header["ids"] == [child.id] and answer.header["states"] == ["done"]
    assert child.attempt == 1 and parent.batch.total == 2
    handler.take(Verb.ENDED)
    handler.ask(Verb.QUERY, {"what": "wait", "ids": [child.id]})
    assert handler.take(Verb.ENDED)[0]["ok"]


def test_another_payload_under_a_calls_key_is_a_conflict(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("p", policy={"backoff_s": 0}))
    first = worker.lease()
    assert worker.submit(child_of(first, 1), payloads=[b"x"]).verb is Verb.ACCEPTED
    lend(worker)
    worker.fail(first, "infra")
    (again,) = [lease for lease in worker.leases() if lease["key"] == "p"]
    answer = worker.submit(child_of(again, 1), payloads=[b"y"])
    assert answer.verb is Verb.CONFLICT and answer.header["key"] == "p/1"


def test_children_go_on_while_their_parent_runs_again(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("p", policy={"backoff_s": 60}))
    first = worker.lease()
    (child,) = worker.tasks(child_of(first, 1))
    worker.fail(first, "task")
    assert child.state is TaskState.LEASED
    rig.check()


@pytest.mark.parametrize("end", ["done", "dead", "cancelled", "expired"])
def test_children_that_nobody_waits_for_end_with_their_parent(rig: Harness, end: str) -> None:
    worker, client = rig.worker(credit=2, slots=2), rig.client()
    (parent,) = client.tasks(spec("p", deadline_s=50))
    lease = worker.lease()
    running, ready = worker.tasks(child_of(lease, 1), child_of(lease, 2))
    (held,) = worker.leases()
    (dependent,) = client.tasks(spec("after", running.id))
    if end == "done":
        worker.result(lease)
    elif end == "dead":
        worker.fail(lease, "definition")
    elif end == "cancelled":
        client.ask(Verb.CANCEL, {"ids": [parent.id]})
        worker.fail(lease, cancelled=True)
    else:
        running.deadline = ready.deadline = 0.0
        rig.wait(51, (worker, [lease, held]))
        worker.fail(lease, cancelled=True)
    assert parent.state.name.lower() == end
    reason = {"cancelled": "is to end: cancelled by", "expired": "is to end: its deadline passed"}.get(
        end, f"ended {end}"
    )
    assert ready.state is TaskState.CANCELLED and f"its parent p {reason}" in str(ready.error)
    assert running.state is TaskState.LEASED and running.ending == 1
    assert held["token"] in worker.renew(held)["cancel"]
    worker.fail(held, cancelled=True)
    assert running.state is TaskState.CANCELLED and dependent.state is TaskState.SKIPPED
    assert not parent.batch.live
    rig.check()


def test_a_grandchild_ends_with_its_grandparent(rig: Harness) -> None:
    worker, client = rig.worker(credit=3, slots=3), rig.client()
    (parent,) = client.tasks(spec("p"))
    lease = worker.lease()
    (child,) = worker.tasks(child_of(lease, 1))
    below = worker.lease()
    worker.offer(credit=2, slots=2)
    (grandchild,) = worker.tasks(child_of(below, 1))
    worker.ask(Verb.RETURN, {"tokens": [below["token"]], "not_before_s": 60})
    worker.result(lease)
    assert parent.state is TaskState.DONE
    assert child.state is TaskState.CANCELLED
    assert grandchild.state is TaskState.CANCELLED or grandchild.ending == 1
    rig.check()


def test_a_child_of_a_deadlined_parent_whose_session_is_lost_is_found_again(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("p"))
    lease = worker.lease()
    handler = rig.client()
    (child,) = handler.tasks(child_of(lease, 1))
    handler.say(Verb.BYE)
    assert not child.ended  # it belongs to its parent, not to a session
    other = rig.client()
    assert other.submit(child_of(lease, 1)).header["ids"] == [child.id]
    lend(worker)
    worker.result(worker.lease())
    assert other.take(Verb.ENDED)[0]["id"] == child.id
