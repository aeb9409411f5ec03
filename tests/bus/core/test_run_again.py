"""CANCEL with `again`: what runs is ended, and its task begins anew, in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from durable import Durable
from harness import Harness, Peer, spec

from rigbus.bus.core.model import Revised, Task
from rigbus.bus.states import TaskState
from rigbus.bus.wire import Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def planned(rig: Harness, brain: Peer, *specs: dict[str, Any]) -> list[Task]:
    """The tasks of a plan's batch."""
    batch = rig.client().submit(kind="plan", plan={"name": "p"}).header["batch"]
    tell = {"epoch": rig.core.epoch, "batch": batch, "tasks": list(specs), "close": [batch]}
    answer = brain.ask(Verb.BRAIN, tell)
    assert answer.verb is Verb.OK, answer.header
    return [rig.core.ids[id_] for id_ in answer.header["ids"]]


def call(lease: dict[str, Any], key: str) -> dict[str, Any]:
    return spec(key, parent={"id": lease["id"], "token": lease["token"]})


def again(client: Peer, *tasks: Task) -> list[str]:
    """Ask for what runs of them now; which are to run again."""
    said = client.ask(Verb.CANCEL, {"again": {t.id: list(t.token) for t in tasks}, "reason": "anew"}).header
    assert sorted(said["again"] + said["left"]) == sorted(t.id for t in tasks), said
    back: list[str] = said["again"]
    return back


def test_it_comes_back_when_its_tree_is_dead_and_its_batch_never_ends(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (a,) = client.tasks(spec("a", deadline_s=50, orphan="cancel"))
    first = worker.lease()
    for _ in range(2):  # asked twice it is asked once
        assert again(client, a) == [a.id]
    rig.check()
    assert not worker.leases(), "what runs of it is not dead yet"
    worker.fail(first, cancelled=True)
    assert (a.state.name, a.attempt, a.counts, a.deadline) == ("LEASED", 2, (0, 0, 0), 0.0)
    assert not [event for event in rig.events if event[4].startswith("batch.") and "failed" in event[4]]
    worker.result(worker.lease())
    assert again(client, a) == [] and a.state is TaskState.DONE
    rig.check()


def test_it_is_one_run_that_is_ended_never_a_later_one(rig: Harness) -> None:
    """What is given back counts no attempt: the next run has its number, and another token."""
    worker, client = rig.worker(), rig.client()
    (a,) = client.tasks(spec("a"))
    lease = worker.lease()
    worker.started(lease)
    worker.ask(Verb.RETURN, {"tokens": [lease["token"]], "reason": "thermal: 95 C"})
    later = worker.lease()
    assert later["attempt"] == lease["attempt"]
    said = client.ask(Verb.CANCEL, {"again": {a.id: lease["token"]}}).header
    assert (said["left"], a.ending) == ([a.id], 0)


def test_a_good_end_counts(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (a,) = client.tasks(spec("a"))
    lease = worker.lease()
    assert again(client, a) == [a.id]
    worker.result(lease, "in time")
    assert a.state is TaskState.DONE
    rig.check()


def test_a_result_that_waits_for_its_verdict_is_thrown_away(rig: Harness) -> None:
    brain, worker, client = rig.brain(), rig.worker(), rig.client()
    (task,) = planned(rig, brain, spec("a", review=True))
    worker.result(worker.lease(), "poor")
    assert task.state is TaskState.REVIEW
    assert again(client, task) == [task.id]
    assert (task.attempt, task.state) == (2, TaskState.LEASED)
    assert [kept[:2] for changes in rig.changes for kept in changes.attempts] == [(task.no, 1)]
    worker.result(worker.lease(), "better")
    verdict = {"id": task.id, "attempt": 1, "verdict": "accept"}
    brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "verdicts": [verdict]})
    assert task.state is TaskState.REVIEW, "the verdict is about the result that was thrown away"
    rig.check()


@pytest.mark.parametrize("how", ["batch", "task"])
def test_what_is_to_end_with_its_batch_does_not_run_again(rig: Harness, how: str) -> None:
    worker, client = rig.worker(), rig.client()
    (a,) = client.tasks(spec("a"))
    lease = worker.lease()
    client.ask(Verb.CANCEL, {"batch": a.batch.id} if how == "batch" else {"ids": [a.id]})
    assert again(client, a) == ([] if how == "batch" else [a.id]), (
        "of two words about one task the later counts"
    )
    worker.fail(lease, cancelled=True)
    assert a.state is (TaskState.CANCELLED if how == "batch" else TaskState.LEASED)
    rig.check()


@pytest.mark.parametrize("how", ["cancelled", "dead", "expired", "again"])
def test_a_call_does_not_run_again_when_its_caller_ends(rig: Harness, how: str) -> None:
    worker, client = rig.worker(credit=4, slots=4), rig.client()
    (parent,) = client.tasks(spec("p", deadline_s=50))
    called = worker.lease()
    (child,) = worker.tasks(call(called, "p/1"))
    lease = worker.lease()
    assert again(client, child) == [child.id]
    if how == "cancelled":
        client.ask(Verb.CANCEL, {"ids": [parent.id]})
    elif how == "again":
        again(client, parent)
    elif how == "dead":
        worker.fail(called, "definition")
    else:
        rig.wait(55, (worker, [called, lease]), (client, []))
    worker.fail(lease, cancelled=True)
    assert child.state is TaskState.CANCELLED and not worker.leases()
    if how != "dead":
        worker.fail(called, cancelled=True)
    assert [new["key"] for new in worker.leases()] == (["p"] if how == "again" else [])
    rig.check()


@pytest.mark.parametrize("review", [False, True])
def test_an_edge_that_a_person_has_overruled_does_not_hold_it(rig: Harness, review: bool) -> None:
    brain, worker, client = rig.brain(), rig.worker(), rig.client()
    a, b = planned(rig, brain, spec("a"), spec("b", "a", review=review))
    client.ask(Verb.CANCEL, {"batch": a.batch.id})
    worker.fail(worker.lease(), cancelled=True)
    client.ask(Verb.REQUEUE, {"ids": [b.id]})
    lease = worker.lease()
    assert lease["key"] == "b"
    if review:
        worker.result(lease, "poor")
    assert again(client, b) == [b.id]
    if not review:
        worker.fail(lease, cancelled=True)
    assert b.state is TaskState.LEASED
    rig.check()


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    rig = Durable(tmp_path / "db")
    worker, client = rig.worker(), rig.client()
    (a,) = client.tasks(spec("a", deadline_s=50, orphan="cancel"))
    worker.started(worker.lease())
    assert again(client, a) == [a.id]
    rig = rig.restart()
    task = rig.core.ids[a.id]
    assert (task.ending, task.revised, task.deadline, task.owner) == (1, Revised.GOES_ON, 0.0, "")
    worker, client = rig.worker(), rig.client()
    for _ in range(120):
        rig.wait(1, (worker, []), (client, []))
        if leases := worker.leases():
            break
    (lease,) = leases
    assert (lease["id"], lease["attempt"], task.revised) == (a.id, 2, Revised.NO)
    worker.result(lease)
    assert task.batch.state.name == "COMPLETE"
    rig.check()


@pytest.mark.parametrize("value", [["t"], {"t": "1"}, {"t": [1]}, {1: [1, 1]}, "t"])
def test_it_is_a_map_of_ids_to_tokens(rig: Harness, value: object) -> None:
    client = rig.client()
    (task,) = client.tasks(spec("a"))
    answer = client.ask(Verb.CANCEL, {"again": value})
    assert answer.verb is Verb.ERROR and "token" in answer.header["message"]
    assert client.ask(Verb.CANCEL, {"again": {task.id: [0, 0]}}).header["left"] == [task.id]
    unknown = client.ask(Verb.CANCEL, {"again": {task.id: [0, 0], "none": [1, 1]}})
    assert unknown.header["code"] == "not_found"
