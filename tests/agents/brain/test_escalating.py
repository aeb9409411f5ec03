"""What the brain raises: each end of work once, whoever looks at it and however often it dies in between."""

from __future__ import annotations

from typing import Any

import pytest
from brainparts import BrainPart
from harness import Harness, Peer, spec

from rigbus.agents.brain import core, raising
from rigbus.agents.brain.core import CheckAbort, Work
from rigbus.agents.brain.escalating import Escalating
from rigbus.bus.errors import NotFound
from rigbus.bus.states import TaskState
from rigbus.bus.wire import Envelope, Verb, pack

PLAN = {"name": "p", "sha256": "ab" * 32}
ONCE = {"task": 1, "crash": 1, "infra": 1, "backoff_s": 0}


class Brain(BrainPart):
    """The part of a brain that looks at ends, over the core; it can be killed."""

    def __init__(self, rig: Harness) -> None:
        self.rig = rig
        self.brain: Peer = rig.brain()
        self.raising = Escalating(self, after_s=60.0)
        self.messages = 0
        self.begin()

    def die(self) -> Brain:
        self.brain.say(Verb.BYE, {"reason": "killed"})
        return Brain(self.rig)

    def do_work(self, work: Work) -> None:
        if isinstance(work, CheckAbort):
            rows = self.brain.ask(Verb.QUERY, {"what": "rows", "ids": [work.task]}).header["rows"]
            if rows and (raised := self.raising.of_task(rows[0])):
                self.tell({"escalate": raised})

    def tell(self, header: dict[str, Any]) -> dict[str, Any]:
        self.messages += 1
        answer = self.brain.ask(Verb.BRAIN, {"epoch": self.rig.core.epoch, "upto_seq": 0, **header})
        assert answer.verb is Verb.OK, answer.header
        return answer.header

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        answer = self.brain.ask(Verb.QUERY, {"what": what, **more})
        if answer.verb is Verb.ERROR:
            raise NotFound(answer.header["message"])
        if what == "task":  # the shell adds them
            no = self.rig.core.ids[more["id"]].no
            found = [a for changes in self.rig.changes for a in changes.attempts if a[0] == no]
            answer.header["attempts"] = [{"n": a[1], "worker": a[2], "class": a[5]} for a in found]
        return answer.header

    def batch_row(self, batch_id: str) -> dict[str, Any]:
        return self.query("batch", id=batch_id)

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.query("workers")["workers"]
        return found

    def records(self) -> list[dict[str, Any]]:
        return [r.row() for r in self.rig.core.escalations.records.values()]

    def batch(self, *specs: dict[str, Any], key: str = "b") -> str:
        head = {"key": key, "kind": "plan", "name": "p", "plan": PLAN}
        id_ = str(self.rig.client().ask(Verb.SUBMIT, {"batch": head, "tasks": []}).header["batch"])
        self.tell({"batch": id_, "tasks": list(specs), "close": [id_]})
        return id_


@pytest.fixture
def brain() -> Brain:
    return Brain(Harness())


def fail(brain: Brain, error_class: str = "task", times: int = 1) -> None:
    worker = brain.rig.worker(name="w1")
    for _ in range(times):
        worker.fail(worker.lease(), error_class)


# -- which ends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error_class", "cause", "type_"),
    [
        ("task", "repeated_failures", "execute_plan_failure"),
        ("crash", "repeated_failures", "execute_plan_failure"),
        ("infra", "repeated_failures", "infrastructure_failure"),
        ("definition", "unfixable_definition", "execute_plan_failure"),
    ],
)
def test_a_dead_task_is_raised_with_its_cause(brain: Brain, error_class: str, cause: str, type_: str) -> None:
    batch = brain.batch(spec("a", policy=ONCE))
    fail(brain, error_class)
    brain.settle()
    (record,) = brain.records()
    assert (record["cause"], record["type"], record["batch"]) == (cause, type_, batch)
    assert record["tasks"] == [{"id": record["task"], "key": "a", "attempt": 1}]
    assert "a " in record["title"] and record["details"]["error_class"] == error_class


def test_a_result_that_was_rejected_is_a_verification_failure(brain: Brain) -> None:
    brain.batch(spec("a", policy=ONCE, review=True))
    worker = brain.rig.worker()
    worker.result(worker.lease(), "poor")
    task = next(iter(brain.rig.core.tasks.values()))
    brain.tell({"verdicts": [{"id": task.id, "verdict": "reject", "note": "poor"}]})
    row = brain.query("rows", ids=[task.id])["rows"][0]
    row["evaluation"] = {"verdict": "reject", "attempt": 1}  # as the shell fills it in
    assert brain.raising.of_task(row)[0]["type"] == "verification_failure"


@pytest.mark.parametrize("end", ["retried", "expired", "cancelled", "skipped"])
def test_ends_that_are_no_matter_for_others_are_not_raised(brain: Brain, end: str) -> None:
    policy = {"task": 2, "backoff_s": 0} if end == "retried" else ONCE
    more = {"queue_timeout_s": 0.5} if end == "expired" else {}
    batch = brain.batch(spec("a", policy=policy, **more))
    if end == "expired":
        brain.rig.wait(1.0)
    elif end == "cancelled":
        brain.rig.client().ask(Verb.CANCEL, {"batch": batch})
    elif end == "retried":
        fail(brain)
    brain.settle()
    assert brain.records() == []


@pytest.mark.parametrize("on_failure", [None, "abort", "continue"])
def test_what_may_fail_by_its_plan_is_not_raised(brain: Brain, on_failure: str | None) -> None:
    brain.batch(spec("a", policy=ONCE))
    fail(brain)
    task = next(iter(brain.rig.core.tasks.values()))
    row = brain.query("rows", ids=[task.id])["rows"][0]
    row["meta"] = {"on_failure": on_failure}  # as the shell fills it in
    assert bool(brain.raising.of_task(row)) == (on_failure != "continue")


def test_a_task_of_a_client_is_the_clients_matter(brain: Brain) -> None:
    brain.rig.client().tasks(spec("a", policy=ONCE))
    fail(brain)
    brain.settle()
    assert brain.records() == []


def test_a_batch_that_cannot_be_planned_is_raised_with_its_end(brain: Brain) -> None:
    head = {"key": "x", "kind": "plan", "name": "p", "plan": PLAN}
    client = brain.rig.client()
    batch = client.ask(Verb.SUBMIT, {"batch": head, "tasks": []}).header["batch"]
    (one,) = brain.raising.of_plan(batch, "plan.md:7: no such model\nat all")
    brain.tell({"fail": [{"batch": batch, "error": "no such model"}], "escalate": [one]})
    (record,) = brain.records()
    assert (record["cause"], record["status"]) == ("plan_fault", "pending")
    assert record["title"] == "p cannot be planned: plan.md:7: no such model at all"
    assert brain.raising.of_plan("20260101_000000_gone00", "x") == []
    made = client.submit(spec("a"))
    assert brain.raising.of_plan(made.header["batch"], "x") == []


def test_many_dead_of_one_cause_are_one_question_and_few_messages(brain: Brain) -> None:
    brain.batch(*(spec(f"t{n}", policy=ONCE) for n in range(60)))
    fail(brain, times=60)
    brain.messages = 0
    brain.settle()
    (record,) = brain.records()
    assert len(record["tasks"]) == 20 and brain.messages == 20


def test_words_of_any_length_and_kind_fit_the_message() -> None:
    row = {"id": "i" * 36, "key": "k" * 200, "batch": "b" * 64, "seq": 2**53, "error": "\ud800ü" * 9000}
    made = raising.of_task({**row, "attempt": 1}, [{"n": 1, "worker": "w" * 64, "class": "task"}])
    harness = Harness()
    seat = harness.brain()
    del made["batch"], made["task"]
    answer = seat.ask(Verb.BRAIN, {"epoch": harness.core.epoch, "upto_seq": 0, "escalate": [made]})
    assert answer.verb is Verb.OK, answer.header


# -- once ----------------------------------------------------------------------------------------------------


def test_looking_again_raises_nothing_again(brain: Brain) -> None:
    brain.batch(spec("a", policy=ONCE), spec("b", "a"), spec("c"))
    fail(brain)
    for _ in range(3):
        brain.settle()
        brain = brain.die()
    brain.settle()
    assert len(brain.records()) == 1


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_died_while_no_brain_was_there_is_raised_by_the_next(brain: Brain, goes_on: bool) -> None:
    more = [spec("b", pool="nobody")] if goes_on else []
    batch = brain.batch(spec("a", policy=ONCE), *more)
    fail(brain)  # the event was not looked at
    assert (brain.rig.core.batch_ids[batch].state.name == "RUNNING") == goes_on
    brain = brain.die()
    brain.settle()
    (record,) = brain.records()
    assert record["tasks"][0]["key"] == "a"
    brain = brain.die()
    brain.settle()
    assert len(brain.records()) == 1 and brain.messages == (1 if goes_on else 0)


def test_what_was_settled_is_left_alone_by_the_next_brain(brain: Brain) -> None:
    brain.batch(spec("a", policy=ONCE))
    fail(brain)
    brain.settle()
    control = {"action": "escalation", "id": brain.records()[0]["id"], "state": "closed"}
    brain.rig.client().ask(Verb.CONTROL, control)
    brain = brain.die()
    brain.settle()
    assert [r["status"] for r in brain.records()] == ["closed"] and not brain.work


def test_what_failed_before_this_build_is_not_asked_about(brain: Brain) -> None:
    brain.batch(spec("a", policy=ONCE))
    fail(brain)
    brain.rig.core.escalations.since = brain.rig.wall + 1
    brain = brain.die()
    brain.settle()
    assert brain.records() == []


def test_the_same_task_that_dies_after_an_answer_is_raised_anew(brain: Brain) -> None:
    batch = brain.batch(spec("a", policy=ONCE))
    fail(brain)
    brain.settle()
    client = brain.rig.client()
    id_ = brain.records()[0]["id"]
    client.ask(Verb.CONTROL, {"action": "escalation", "id": id_, "state": "answered", "answer": "d"})
    client.ask(Verb.REQUEUE, {"batch": batch, "escalation": id_, "answer": "d"})
    brain.settle()
    brain.rig.wall += 61
    worker = brain.rig.core.worker_named("w1")
    assert worker is not None and brain.rig.core.batch_ids[batch].keys["a"].state is TaskState.LEASED
    peer = next(p for p in brain.rig.inboxes if p == worker.peer)
    brain = brain.die()  # it was not there for that
    token = list(brain.rig.core.batch_ids[batch].keys["a"].token)
    result = {"token": token, "ok": False, "class": "task", "error": "again"}
    brain.rig.step(Envelope(Verb.RESULT, {"results": [result]}, [pack(None)], b"", peer))
    brain = brain.die()
    brain.settle()
    assert [r["status"] for r in brain.records()] == ["applied", "pending"]


# -- workers -------------------------------------------------------------------------------------------------


class Watch(Brain):
    """A brain that looks at workers which the test makes up."""

    def __init__(self, rig: Harness) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ready = 1
        super().__init__(rig)
        self.now = 1000.0
        self.raising.due(self.now)

    def workers(self) -> list[dict[str, Any]]:
        return self.rows

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        return {"tasks": {"ready": self.ready}} if what == "status" else super().query(what, **more)

    def are(self, *states: str, for_s: float = 0.0) -> list[str]:
        """Workers in these states for so long; the states of the records."""
        self.rows = [{"id": f"w{n}", "state": s, "classes": ["cpu"]} for n, s in enumerate(states)]
        self.rows.append({"id": "brain-worker", "state": "idle", "classes": ["brain"]})
        end = self.now + for_s
        while self.now < end:
            self.now += 5.0
            assert self.raising.due(self.now)
            self.raising.look(self.now)
            assert not self.raising.due(self.now + 1)
        return [r["status"] for r in self.records()]


@pytest.fixture
def watch() -> Watch:
    return Watch(Harness())


def test_no_worker_in_order_for_a_while_is_raised_once_until_one_is_again(watch: Watch) -> None:
    assert watch.are("quarantined", "fenced", for_s=55) == []
    assert watch.are("quarantined", "suspect", for_s=600) == ["pending"]
    (record,) = watch.records()
    assert (
        "w0 is quarantined; w1 is suspect" in record["title"] and record["type"] == "infrastructure_failure"
    )
    assert watch.are("quarantined", "idle", for_s=30) == ["pending"]
    assert watch.are("quarantined", "quarantined", for_s=30) == ["pending"]  # it flaps: not again, not over
    assert watch.are("quarantined", "idle", for_s=100) == ["closed"]
    watch.rig.wall += 3600
    assert watch.are("quarantined", for_s=120) == ["closed", "pending"]


def test_a_rig_without_a_worker_while_work_waits_is_not_in_order(watch: Watch) -> None:
    watch.ready = 0
    assert watch.are(for_s=300) == []
    watch.ready = 7
    assert watch.are(for_s=10) == ["pending"]
    assert watch.records()[0]["title"] == "no worker is in order while 7 tasks wait: none is attached"


@pytest.mark.parametrize("state", ["busy", "idle", "paused", "draining", "held"])
def test_a_worker_that_works_or_will_is_enough(watch: Watch, state: str) -> None:
    assert watch.are("quarantined", state, for_s=600) == []


def test_the_next_brain_knows_that_it_was_raised(watch: Watch) -> None:
    watch.are("fenced", for_s=120)
    watch.brain.say(Verb.BYE, {"reason": "killed"})
    again = Watch(watch.rig)
    assert again.are("fenced", for_s=300) == ["pending"]
    assert again.are("idle", for_s=120) == ["closed"]


def test_events_ask_for_a_look_at_ends_only() -> None:
    assert core.work_of_event("escalation.x.pending", "", "b", {"cause": "c"}) == []
