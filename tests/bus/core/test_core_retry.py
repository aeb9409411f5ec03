"""Retry policy as data: a cap for each error class, back-off, escalation, verdicts."""

from __future__ import annotations

import itertools

import pytest
from harness import STATE_ID, Harness, Peer, error_of, spec

from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Policy, Task
from rigbus.bus.states import TaskState
from rigbus.bus.wire import VERDICT_S, Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def run_until_over(worker: Peer, error_class: str) -> int:
    """Fail every attempt; how many there were."""
    n = 0
    while (lease := worker.next_lease()) is not None:
        worker.fail(lease, error_class)
        n += 1
    return n


@pytest.mark.parametrize(
    ("error_class", "attempts"),
    [("task", 3), ("crash", 2), ("infra", 10), ("definition", 1), ("unheard of", 3)],
)
def test_each_class_has_its_own_cap(rig: Harness, error_class: str, attempts: int) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    assert run_until_over(worker, error_class) == attempts
    assert task.state is TaskState.DEAD and task.attempt == attempts
    rig.check()


def test_the_policy_of_the_task_is_the_cap(rig: Harness) -> None:
    worker = rig.worker()
    rig.client().tasks(spec("a", policy={"task": 1, "backoff_s": 0}))
    assert run_until_over(worker, "task") == 1


def test_classes_are_counted_apart(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a", policy={"backoff_s": 0}))
    for error_class in ("task", "crash", "task", "infra"):
        worker.fail(worker.lease(), error_class)
    assert task.counts == (2, 1, 1) and task.state is TaskState.LEASED
    worker.fail(worker.lease(), "crash")
    assert task.state is TaskState.DEAD


def test_every_failed_attempt_leaves_its_row(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a", policy={"task": 2, "backoff_s": 0}))
    worker.fail(worker.lease())
    worker.fail(worker.lease())
    rows = [row for changes in rig.changes for row in changes.attempts]
    assert [(no, n, cls, error) for no, n, _, _, _, cls, error in rows] == [
        (task.no, 1, "task", "no"),
        (task.no, 2, "task", "no"),
    ]


def test_back_off_doubles_and_is_capped() -> None:
    policy = Policy(backoff_s=2, backoff_max_s=10)
    assert [policy.backoff(n) for n in (1, 2, 3, 4, 1000)] == [2, 4, 8, 10, 10]


def test_the_next_attempt_waits_for_its_back_off(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a", policy={"backoff_s": 8}))
    worker.fail(worker.lease())
    rig.wait(7.5, (worker, []))
    assert task.state is TaskState.READY and not worker.leases()
    rig.wait(2.6, (worker, []))
    assert worker.lease()["attempt"] == 2


def test_back_offs_of_tasks_that_failed_together_are_spread_by_a_hash() -> None:
    policy = Policy(backoff_s=2, backoff_max_s=10)
    waits = [policy.backoff(2, f"task-{n}/2") for n in range(200)]
    assert waits == [policy.backoff(2, f"task-{n}/2") for n in range(200)]  # no dice: a replay waits as long
    assert 4 <= min(waits) < 4.1 and 4.9 < max(waits) <= 5
    assert len({round(w, 2) for w in waits}) > 50
    assert Policy(backoff_s=0).backoff(3, "a/1") == 0


def test_the_first_loss_of_a_worker_costs_no_back_off(rig: Harness) -> None:
    first = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    first.lease()
    second = rig.worker()
    rig.peer("supervisor").ask(Verb.GONE, {"session": first.id})
    assert second.lease()["id"] == task.id


def test_a_cancel_and_requeue_does_not_jump_over_a_later_back_off(rig: Harness) -> None:
    client = rig.client()
    (task,) = client.tasks(spec("a", policy={"backoff_s": 50}))
    client.ask(Verb.CANCEL, {"ids": [task.id]})
    client.ask(Verb.REQUEUE, {"ids": [task.id]})  # it now stands in the queue twice
    worker = rig.worker()
    worker.fail(worker.lease())
    assert not worker.leases() and task.not_before > rig.now
    again = worker.next_lease()
    assert again is not None and again["attempt"] == 2


def test_a_cancel_that_nobody_asked_for_counts_as_infra(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    worker.fail(worker.lease(), cancelled=True)
    assert task.counts == (0, 0, 1) and not task.ended


def test_what_a_failed_command_said_is_kept_with_its_end(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a", policy={"task": 1}))
    lease = worker.lease()
    worker.result(lease, {"exit": 3}, ok=False, error="exit 3", exit=3, **{"class": "task"})
    assert task.no in rig.changes[-1].results
    (ended,) = client.take(Verb.ENDED)
    assert not ended["ok"] and ended["error"] == "exit 3" and ended["class"] == "task"


# -- escalation and review -----------------------------------------------------------------------------------


def plan_task(rig: Harness, brain: Peer, **fields: object) -> Task:
    """One task of a plan's batch, declared by the brain."""
    batch = rig.client().submit(kind="plan", plan={"name": "p"}).header["batch"]
    header = {"epoch": rig.core.epoch, "batch": batch, "tasks": [spec("t", **fields)], "close": [batch]}
    answer = brain.ask(Verb.BRAIN, header)
    assert answer.verb is Verb.OK, answer.header
    return rig.core.ids[answer.header["ids"][0]]


def verdict(brain: Peer, task: Task, word: str, note: str = "") -> None:
    header = {"epoch": brain.rig.core.epoch, "verdicts": [{"id": task.id, "verdict": word, "note": note}]}
    assert brain.ask(Verb.BRAIN, header).verb is Verb.OK


def test_an_escalated_task_waits_for_a_verdict_and_the_brain_hears_of_it(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker()
    task = plan_task(rig, brain, escalate=True, policy={"task": 1})
    worker.fail(worker.lease())
    assert task.state is TaskState.FAILED and "task.noop.failed" in rig.topics("a")
    verdict(brain, task, "retry")
    worker.fail(worker.lease())
    verdict(brain, task, "dead", "hopeless")
    assert task.state is TaskState.DEAD and task.batch.state.name == "FAILED"
    rig.check()


def test_a_lost_worker_is_nothing_to_escalate(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker()
    task = plan_task(rig, brain, escalate=True, policy={"infra": 1})
    worker.fail(worker.lease(), "infra")
    assert task.state is TaskState.DEAD


def test_a_judged_task_that_ends_well_after_its_cancel_is_cancelled_and_never_runs_again(
    rig: Harness,
) -> None:
    worker, brain = rig.worker(), rig.brain()
    task = plan_task(rig, brain, review=True, policy={"task": 2})
    lease = worker.lease()
    worker.started(lease)
    assert rig.client().ask(Verb.CANCEL, {"ids": [task.id], "reason": "enough"}).header["ending"] == 1
    worker.result(lease)
    assert (task.state, task.error) == (TaskState.CANCELLED, "enough")
    assert "task.noop.review" not in rig.topics("a"), "nobody is asked to judge it"
    verdict(brain, task, "reject", "late")
    assert task.state is TaskState.CANCELLED
    rig.check()


def test_a_reviewed_task_is_accepted_or_done_again_or_rejected(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker()
    task = plan_task(rig, brain, review=True, policy={"task": 2})
    worker.result(worker.lease(), "poor")
    assert task.state is TaskState.REVIEW and "task.noop.review" in rig.topics("a")
    verdict(brain, task, "reject", "too short")
    assert "task.noop.rework" in rig.topics()
    worker.result(worker.lease(), "better")
    verdict(brain, task, "accept")
    assert task.state is TaskState.DONE and task.batch.state.name == "COMPLETE"

    again = plan_task(rig, brain, review=True, policy={"task": 1})
    worker.result(worker.lease(), "poor")
    verdict(brain, again, "reject", "too short")
    assert again.state is TaskState.DEAD and again.error == "too short"
    rig.check()


def test_a_rejected_task_that_escalates_waits_for_a_second_verdict(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker()
    task = plan_task(rig, brain, review=True, escalate=True, policy={"task": 1})
    worker.result(worker.lease())
    rig.wait(VERDICT_S - 10, (brain, []), (worker, []))
    verdict(brain, task, "reject")
    assert task.state is TaskState.FAILED
    rig.wait(20, (brain, []), (worker, []))
    assert task.state is TaskState.FAILED  # its deadline runs from its own beginning
    verdict(brain, task, "retry")
    assert task.state is TaskState.LEASED


def test_verdicts_that_come_too_late_change_nothing(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker()
    task = plan_task(rig, brain, review=True)
    verdict(brain, task, "accept")
    assert task.state is TaskState.LEASED
    worker.result(worker.lease())
    verdict(brain, task, "accept")
    verdict(brain, task, "dead")
    assert task.state is TaskState.DONE
    header = {"epoch": rig.core.epoch, "verdicts": [{"id": task.id, "verdict": "perhaps"}]}
    assert error_of(brain.ask(Verb.BRAIN, header)) == "definition"


@pytest.mark.parametrize(("review", "end"), [(True, TaskState.DONE), (False, TaskState.DEAD)])
def test_without_a_verdict_its_deadline_decides_while_a_brain_is_attached(
    rig: Harness, review: bool, end: TaskState
) -> None:
    brain, worker = rig.brain(), rig.worker()
    task = plan_task(rig, brain, review=review, escalate=True, policy={"task": 1})
    lease = worker.lease()
    worker.result(lease) if review else worker.fail(lease)
    waiting = task.state
    brain.say(Verb.BYE)
    rig.wait(VERDICT_S + 100)
    assert task.state is waiting  # nobody could have judged it
    brain = rig.brain()
    rig.wait(VERDICT_S + 5, (brain, []))
    assert task.state is end
    assert not task.batch.live


def test_a_batch_that_is_still_being_ended_is_not_requeued_before_it_is_dead(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    first, last = client.tasks(spec("a"), spec("b", "a"), key="k")
    lease = worker.lease()
    worker.started(lease)
    client.ask(Verb.CANCEL, {"batch": first.batch.id})
    assert error_of(client.ask(Verb.REQUEUE, {"batch": first.batch.id})) == "refused"
    assert first.batch.cancelled
    worker.result(lease, ok=False, cancelled=True)
    assert client.ask(Verb.REQUEUE, {"batch": first.batch.id}).header["requeued"] == 2
    assert rig.states([first, last]) == ["LEASED", "WAITING"]
    rig.check()


def test_a_task_that_takes_the_machine_down_at_once_comes_to_its_cap() -> None:
    """STARTED comes after some milliseconds; nobody ever hears it, and the broker is started anew each time."""
    rig = Harness()
    worker = rig.worker(credit=3)
    client = rig.client()
    poison, second, third = client.tasks(*(spec(k, policy={"infra": 4, "backoff_s": 0.0}) for k in "abc"))
    batch = poison.batch
    for power_cut in range(4):
        assert [t.state.name for t in (poison, second, third)] == ["LEASED"] * 3
        batch.counts, batch.total = [0] * len(TaskState), 0  # counted anew by the next broker
        core = Core(incarnation=2 + power_cut, state_id=STATE_ID)
        core.load([batch], [poison, second, third], {}, {}, rig.now, rig.wall)
        rig = Harness(core, now=rig.now, wall=rig.wall)
        rig.numbers = itertools.count(1000 * (power_cut + 1))
        rig.peer("supervisor").ask(Verb.GONE, {"session": worker.id, "why": "of an earlier run is gone"})
        rig.wait(5.0)
        worker = rig.worker(credit=3)
    assert poison.state is TaskState.DEAD and poison.counts == (0, 0, 4)
    assert (second.counts, third.counts) == ((0, 0, 0), (0, 0, 0)), "they were fetched ahead"
