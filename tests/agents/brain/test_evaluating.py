"""Evaluation against the broker's own core: who judges, what follows, a brain killed at any moment, models that fail."""

from __future__ import annotations

from typing import Any

import pytest
from brainparts import BrainPart
from harness import STATE_ID, Harness, Peer, error_of

from rigbus.agents.brain import core, messages, planner
from rigbus.agents.brain.evaluating import NO_MODEL, Evaluating, Judging, judge_keys, judging_of
from rigbus.agents.brain.judgement import OUTPUT_CHARS
from rigbus.agents.brain.placing import Entry
from rigbus.bus.core.model import Task
from rigbus.bus.states import TaskState
from rigbus.bus.wire import MAX_KEY_BYTES, Verb, pack, unpack
from rigbus.plans import parse_plan

PLAN = """\
# Plan: p

## Goal
a list of birds

## Tasks

### list
- command: `birds`
- max_attempts: 3
- evaluate: names three birds

### after
- command: `true`
- depends_on: list
"""
BIRDS = {"exit": 0, "output": "wren\nowl\n"}


class Rig(BrainPart):
    """A core with a worker of commands, maybe a model, and the brain's evaluation over it."""

    def __init__(self, *, model: bool = True, expects_model: bool = False, **harness: Any) -> None:
        self.rig = Harness(**harness)
        self.brain: Peer = self.rig.brain()
        self.worker = self.rig.worker(types=["shell"], state_id=STATE_ID)
        self.model = self.add_model() if model else None
        self.expects_model = expects_model
        self.plan = parse_plan(PLAN, name="p")
        self.batch = self.rig.client().submit(kind="plan", plan={"name": "p"}).header["batch"]
        self.rows_asked = 0
        self.told: list[dict[str, Any]] = []
        (message,) = planner.declare(self.plan, self.run)
        self.tell({"close": [self.batch]}, message, self.batch)
        self.kill()

    def add_model(self) -> Peer:
        return self.rig.worker(name="model-1", types=["generate"], classes=["llm"])

    @property
    def run(self) -> messages.Run:
        return messages.Run(self.batch, "p", STATE_ID, "0" * 64, "/s", "/o", "/v", "/b", {})

    # -- what the process offers -----------------------------------------------------------------------------

    def tell(
        self, header: dict[str, Any], message: messages.Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        self.told.append(header | {"tasks": message.specs if message else []})
        return super().tell(header, message, batch)

    def run_of(self, row: dict[str, Any]) -> tuple[messages.Run, Any]:
        return self.run, self.plan

    # -- its life --------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Another process: it knows what a snapshot says."""
        self.evaluating = Evaluating(self, Judging(expected=self.expects_model))
        self.begin()

    def do_work(self, work: core.Work) -> None:
        if isinstance(work, core.Judge):
            self.evaluating.step(work)

    # -- the others ------------------------------------------------------------------------------------------

    def do(self, value: Any = BIRDS) -> None:
        """The worker does the step, after whatever back-off."""
        lease = self.worker.next_lease()
        assert lease is not None
        assert lease["key"] == "list"
        self.worker.result(lease, value)

    def judge(self, value: Any = None, *, fails: str = "", **answer: Any) -> dict[str, Any]:
        """The model answers what it is asked; the lease that it had."""
        assert self.model is not None
        lease = self.model.lease()
        if fails:
            self.model.fail(lease, fails)
        else:
            body = {"score": 4, "feedback": "", "issues": [], **answer}
            self.model.result(lease, {"json": body, "model": "m"} if value is None else value)
        return lease

    def prompt(self, key: str) -> str:
        """The text that a judge was sent."""
        no = self.task(key).no
        payload = next(c.new_tasks[no][2] for c in self.rig.changes if no in c.new_tasks)
        return str(unpack(payload)["messages"][1]["content"])

    def task(self, key: str) -> Task:
        return self.rig.core.batch_ids[self.batch].keys[key]

    def state(self, key: str) -> str:
        return self.task(key).state.name

    def evaluations(self, key: str) -> list[tuple[str, dict[str, Any]]]:
        no = self.task(key).no
        return [(e[2], unpack(e[4])) for c in self.rig.changes for e in c.evaluations if e[0] == no]


def test_a_good_result_is_accepted_and_its_dependents_go_on() -> None:
    rig = Rig()
    rig.do()
    assert rig.state("list") == "REVIEW"
    rig.settle()
    assert rig.judge(score=4, feedback="nice")["key"] == "list:judge.1"
    rig.settle()
    assert (rig.state("list"), rig.state("after")) == ("DONE", "LEASED")
    ((word, kept),) = rig.evaluations("list")
    assert word == "accept"
    assert (kept["score"], kept["feedback"], kept["model"], kept["attempt"]) == (4, "nice", "m", 1)
    assert kept["judge"] == rig.task("list:judge.1").id


def test_the_judge_is_asked_about_the_goal_the_command_the_criteria_and_the_output() -> None:
    rig = Rig()
    rig.do()
    rig.settle()
    prompt = rig.prompt("list:judge.1")
    for text in ("a list of birds", "`birds`".strip("`"), "names three birds", "wren\nowl"):
        assert text in prompt


def test_a_poor_result_is_done_again_and_judged_again() -> None:
    rig = Rig()
    rig.do()
    rig.settle()
    rig.judge(score=2, feedback="one bird is missing", issues=["two only"])
    rig.settle()
    task = rig.task("list")
    assert task.error == "judged 2 of 5: one bird is missing\n- two only"
    assert task.counts == (1, 0, 0)
    rig.do({"exit": 0, "output": "wren\nowl\ntit\n"})
    rig.settle()
    assert "tit" in rig.prompt("list:judge.2")
    rig.judge(score=5)
    rig.settle()
    assert rig.state("list") == "DONE"
    assert [(word, e["attempt"], e["score"]) for word, e in rig.evaluations("list")] == [
        ("reject", 1, 2),
        ("accept", 2, 5),
    ]


def test_low_scores_until_the_attempts_end_are_the_tasks_death() -> None:
    rig = Rig()
    for _ in range(3):
        rig.do()
        rig.settle()
        rig.judge(score=1, feedback="no birds")
        rig.settle()
    assert (rig.state("list"), rig.state("after")) == ("DEAD", "SKIPPED")
    assert rig.task("list").error == "judged 1 of 5: no birds"
    assert rig.task("list").batch.state.name == "FAILED"
    attempts = [a for c in rig.rig.changes for a in c.attempts if a[0] == rig.task("list").no]
    assert [(a[1], a[5]) for a in attempts] == [(1, "task"), (2, "task"), (3, "task")]


@pytest.mark.parametrize(
    "answer", [{"text": "4"}, {"json": {"score": 9}}, "?", None, {"json": {"feedback": "x"}}]
)
def test_garbage_is_asked_again_with_less_text_and_then_said(answer: Any) -> None:
    rig = Rig()
    rig.do({"exit": 0, "output": "word " * 5000})
    rig.settle()
    garbage = answer if answer is not None else [None]
    rig.judge(garbage)
    rig.settle()
    assert rig.judge(garbage)["key"] == "list:judge.1.again"
    rig.settle()
    lengths = [len(rig.prompt(key)) for key in ("list:judge.1", "list:judge.1.again")]
    assert lengths[0] - lengths[1] > (OUTPUT_CHARS[0] - OUTPUT_CHARS[1]) * 0.9
    ((word, kept),) = rig.evaluations("list")
    assert (rig.state("list"), word, "score" in kept) == ("DONE", "accept", False)
    assert kept["note"] == "accepted unjudged: what list:judge.1.again answered is no judgement"


def test_a_prompt_that_the_model_refuses_is_asked_again_with_less_text() -> None:
    rig = Rig()
    rig.do()
    rig.settle()
    rig.judge(fails="definition")
    rig.settle()
    rig.judge(score=3)
    rig.settle()
    assert rig.state("list") == "DONE"
    assert rig.evaluations("list")[0][1]["score"] == 3


def test_a_judge_that_dies_twice_is_named_and_the_batch_is_none_the_worse() -> None:
    rig = Rig()
    rig.do()
    rig.settle()
    for _ in range(2):
        rig.judge(fails="task")
        rig.settle()
    ((_, kept),) = rig.evaluations("list")
    assert kept["note"] == "accepted unjudged: list:judge.1.again ended dead (no)"
    rig.worker.result(rig.worker.lease())
    batch = rig.task("list").batch
    assert (batch.state.name, batch.total) == ("COMPLETE", 2)
    rig.rig.check()


def test_without_a_model_it_is_accepted_at_once_and_said() -> None:
    rig = Rig(model=False)
    rig.do()
    rig.settle()
    assert rig.state("list") == "DONE"
    assert [(word, e["note"]) for word, e in rig.evaluations("list")] == [("accept", NO_MODEL)]
    assert "list:judge.1" not in rig.task("list").batch.keys


def test_a_model_that_is_to_come_is_waited_for_but_not_for_ever() -> None:
    rig = Rig(model=False, expects_model=True)
    rig.do()
    rig.settle()
    assert (rig.state("list"), rig.state("list:judge.1")) == ("REVIEW", "READY")
    rig.rig.wait(590.0, (rig.brain, []), (rig.worker, []))
    assert rig.state("list") == "REVIEW"
    rig.rig.wait(11.0, (rig.brain, []), (rig.worker, []))
    assert (rig.state("list"), rig.state("list:judge.1")) == ("DONE", "CANCELLED")
    note = rig.evaluations("list")[0][1]["note"]
    assert note == ("accepted unjudged: for 600 s no worker has offered `generate`, which list:judge.1 needs")
    rig.settle()
    assert rig.state("list") == "DONE"


def test_a_slow_model_is_waited_for() -> None:
    rig = Rig()
    assert rig.model is not None
    rig.do()
    rig.settle()
    lease = rig.model.lease()
    rig.rig.wait(2000.0, (rig.brain, []), (rig.worker, []), (rig.model, [lease]))
    assert rig.state("list") == "REVIEW"
    rig.model.result(lease, {"json": {"score": 2, "feedback": "", "issues": []}})
    rig.settle()
    assert rig.evaluations("list")[0][0] == "reject"


@pytest.mark.parametrize("at", range(5))
def test_a_brain_killed_anywhere_gives_one_verdict(at: int) -> None:
    rig = Rig()
    kill = iter(range(5))

    def maybe_kill() -> None:
        if next(kill) == at:
            rig.kill()

    maybe_kill()
    rig.do()
    maybe_kill()  # between the result and the judge
    rig.settle()
    maybe_kill()  # while it is judged
    rig.judge(score=5)
    maybe_kill()  # between the judgement and the verdict
    rig.settle()
    maybe_kill()
    rig.settle()
    assert rig.state("list") == "DONE"
    assert [e["score"] for _, e in rig.evaluations("list")] == [5]
    verdicts = [v for header in rig.told for v in header.get("verdicts", [])]
    assert len(verdicts) == 1
    assert rig.rig.core.batch_ids[rig.batch].total == 2


def test_the_same_work_twice_asks_once() -> None:
    rig = Rig()
    rig.do()
    work = core.Judge(rig.batch, rig.task("list").id, "review")
    rig.evaluating.step(work)
    rig.evaluating.step(work)
    rig.settle()
    assert sum(bool(header["tasks"]) for header in rig.told[1:]) == 1


def test_a_cancelled_batch_ends_its_judges() -> None:
    rig = Rig()
    assert rig.model is not None
    rig.do()
    rig.settle()
    lease = rig.model.lease()
    rig.rig.client().ask(Verb.CANCEL, {"batch": rig.batch, "reason": "enough"})
    assert rig.state("list") == "CANCELLED"
    assert rig.model.renew(lease)["cancel"] == [lease["token"]]
    rig.model.result(lease, ok=False, cancelled=True, error="cancelled")
    rig.settle()
    assert rig.state("list:judge.1") == "CANCELLED"
    assert not rig.evaluations("list")


def test_a_judge_that_a_person_cancels_is_named() -> None:
    rig = Rig(model=False, expects_model=True)
    rig.do()
    rig.settle()
    rig.rig.client().ask(Verb.CANCEL, {"ids": [rig.task("list:judge.1").id], "reason": "enough"})
    rig.settle()
    assert rig.evaluations("list")[0][1]["note"] == "accepted unjudged: list:judge.1 ended cancelled (enough)"


def test_retrying_a_dead_task_asks_for_a_new_judgement_and_revives_no_old_judge() -> None:
    rig = Rig()
    for _ in range(3):
        rig.do()
        rig.settle()
        rig.judge(score=1)
        rig.settle()
    answer = rig.rig.client().ask(Verb.REQUEUE, {"batch": rig.batch}).header
    assert (answer["requeued"], answer["revived"]) == (1, 1)
    rig.do()
    rig.settle()
    assert rig.judge(score=5)["key"] == "list:judge.4"
    rig.settle()
    assert rig.state("list") == "DONE"


def test_judges_are_not_in_the_mirror_nor_in_the_batchs_count() -> None:
    rig = Rig()
    rig.do()
    rig.settle()
    page = rig.rig.client().ask(Verb.SNAPSHOT, {}).header
    assert [row["key"] for row in page["rows"]] == ["list", "after"]
    assert not [e for e in rig.rig.events if e[3] == "p" and e[7].get("key") == "list:judge.1"]
    assert rig.batch_row(rig.batch)["total"] == 2
    keys = [
        row["key"] for row in rig.brain.ask(Verb.QUERY, {"what": "tasks", "batch": rig.batch}).header["rows"]
    ]
    assert "list:judge.1" in keys


def test_why_names_the_judge_and_what_it_waits_for() -> None:
    rig = Rig(model=False, expects_model=True)
    rig.do()
    rig.settle()
    why = rig.rig.client().ask(Verb.QUERY, {"what": "why", "id": rig.task("list").id}).header
    assert "list:judge.1" in why["summary"]
    assert any("without one it is accepted in 10 min" in reason for reason in why["reasons"])


def test_only_the_brain_lets_a_task_judge_another_and_only_what_is_in_review() -> None:
    rig = Rig()
    client = rig.rig.client()
    spec = {"key": "x", "type": "generate", "judges": "list"}
    assert error_of(client.submit(spec)) == "definition"
    header = {"epoch": rig.rig.core.epoch, "batch": rig.batch, "tasks": [spec]}
    assert error_of(rig.brain.ask(Verb.BRAIN, header, [pack({})])) == "not_found"
    rig.rig.check()


@pytest.mark.parametrize("name", ["evaluation", "sample"])
@pytest.mark.parametrize("value", [7, "x", [1], {"a": "x" * 100_000}])
def test_a_verdict_with_more_than_is_kept_is_refused_whole(name: str, value: Any) -> None:
    rig = Rig()
    rig.do()
    verdict = {"id": rig.task("list").id, "verdict": "accept", name: value}
    header = {"epoch": rig.rig.core.epoch, "verdicts": [verdict]}
    assert error_of(rig.brain.ask(Verb.BRAIN, header)) == "definition"
    assert rig.state("list") == "REVIEW"


def test_a_clients_reviewed_task_is_judged_too_and_its_client_gets_the_value() -> None:
    rig = Rig()
    assert rig.model is not None
    client = rig.rig.client()
    (task,) = client.tasks({"key": "mine", "type": "noop", "review": True})
    worker = rig.rig.worker()
    worker.result(worker.lease(), "a bird")
    assert task.state is TaskState.REVIEW
    rig.settle()
    rig.judge(score=5)
    rig.settle()
    assert task.state is TaskState.DONE
    (ended,) = [send for send in client.inbox if send.verb is Verb.ENDED]
    assert ended.rows_of == [task.no]  # the shell takes the value from the store


def test_a_verdict_on_an_earlier_attempt_changes_nothing() -> None:
    rig = Rig()
    rig.do()
    rig.tell({"verdicts": [{"id": rig.task("list").id, "verdict": "reject", "attempt": 1}]})
    rig.do()
    for word in ("accept", "reject", "dead"):
        rig.tell({"verdicts": [{"id": rig.task("list").id, "verdict": word, "attempt": 1}]})
    assert (rig.state("list"), rig.task("list").counts) == ("REVIEW", (1, 0, 0))
    rig.tell({"verdicts": [{"id": rig.task("list").id, "verdict": "accept", "attempt": 2}]})
    assert rig.state("list") == "DONE"


@pytest.mark.parametrize(
    ("roles", "judging"),
    [
        ((), Judging()),
        (("worker",), Judging(expected=True)),
        (("worker", "brain"), Judging(True, ("role:brain",))),
    ],
)
def test_the_brains_own_model_judges_where_the_catalogue_has_one(
    roles: tuple[str, ...], judging: Judging
) -> None:
    assert judging_of([Entry(role, {}, role=role) for role in roles]) == judging
    rig = Rig(model=False)
    rig.evaluating = Evaluating(rig, judging)
    rig.do()
    rig.settle()
    keys = rig.task("list").batch.keys
    assert ("list:judge.1" in keys) == judging.expected
    if judging.expected:
        assert rig.task("list:judge.1").shape.needs == judging.needs


def test_a_long_key_leaves_room_for_its_judges() -> None:
    row = {"key": "k" * MAX_KEY_BYTES, "id": "5" * 36, "attempt": 1000}
    assert all(len(key.encode()) <= MAX_KEY_BYTES for key in judge_keys(row))
    assert judge_keys({**row, "key": "k"}) == ("k:judge.1000", "k:judge.1000.again")


def test_a_key_that_somebody_else_has_is_said() -> None:
    rig = Rig()
    client = rig.rig.client()
    mine, _ = client.tasks(
        {"key": "a", "type": "noop", "review": True}, {"key": "a:judge.1", "type": "noop", "hold": True}
    )
    worker = rig.rig.worker()
    worker.result(worker.lease(), 1)
    rig.settle()
    assert mine.state is TaskState.DONE
    notes = [unpack(e[4])["note"] for c in rig.rig.changes for e in c.evaluations]
    assert notes == ["accepted unjudged: a task of its batch has the key 'a:judge.1', which its judge needs"]
