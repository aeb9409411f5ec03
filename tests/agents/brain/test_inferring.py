"""Classes that a plan leaves open, against the broker's own core: who is asked, what holds, a brain killed at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from brainparts import BrainPart
from harness import STATE_ID, Harness, Peer

from rigbus.agents.brain import core, messages, planner
from rigbus.agents.brain.class_questions import (
    ASKED_AT_ONCE,
    MAX_ASKS,
    SCRIPT_BYTES,
    Classes,
    classes_from,
    questions_of,
    schema_of,
)
from rigbus.agents.brain.expanding import Expanding
from rigbus.agents.brain.inferring import MORE, NO_MODEL, OFF, Asking, script_head
from rigbus.agents.brain.placing import Entry
from rigbus.agents.brain.planning import Planning
from rigbus.agents.brain.revising import Revising
from rigbus.agents.models.grammar.schema import to_gbnf
from rigbus.agents.models.tasks.validation import Schema
from rigbus.bus.core.model import Batch, Task
from rigbus.bus.wire import Verb, unpack
from rigbus.plans import parse_plan
from rigbus.plans.model import Plan

HEAD = "# Plan: p\n\n## Goal\nspeech as text\n\n## Tasks\n"
ONE = HEAD + "### train\n- command: `python3 {PLAN_PATH}/scripts/train.py`\n\n### list\n- command: `ls`\n"
KEY = "plan:classes.1"


class Rig(BrainPart):
    """A core with a client's plan in it, maybe a model, and the brain's planning over it."""

    def __init__(
        self, text: str = ONE, *, model: bool = True, asking: Asking | None = None, staged: Path | None = None
    ) -> None:
        self.rig = Harness()
        self.brain: Peer = self.rig.brain()
        self.model = self.rig.worker(credit=8, slots=8, types=["decide"], classes=["llm"]) if model else None
        self.client = self.rig.client()
        self.plan = parse_plan(text, name="p")
        self.staged = staged or Path("/nowhere")
        self.asking = asking or Asking(wait_s=30.0)
        self.batch = self.client.submit(kind="plan", plan={"name": "p"}).header["batch"]
        self.told: list[dict[str, Any]] = []
        self.kill()
        self.settle()

    # -- what the process offers -----------------------------------------------------------------------------

    def tell(
        self, header: dict[str, Any], message: messages.Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        self.told.append(header | {"tasks": message.specs if message else []})
        return super().tell(header, message, batch)

    def run_of(self, row: dict[str, Any]) -> tuple[messages.Run, Plan]:
        run = messages.Run(row["id"], "p", STATE_ID, "0" * 64, str(self.staged), "/o", "/v", "/b", {})
        return run, self.planning.settled(self.plan, row["id"])

    # -- its life --------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Another process: it knows what a snapshot says."""
        self.planning = Planning(self, Revising(self, Expanding(self)), self.asking)
        self.begin()

    def do_work(self, work: core.Work) -> None:
        if isinstance(work, core.PlanBatch):
            self.planning.step(work.batch)

    def away(self, seconds: float, *leases: dict[str, Any]) -> None:
        peers = [(self.brain, []), (self.client, [])]
        if self.model is not None:
            peers.append((self.model, list(leases)))
        self.rig.wait(seconds, *peers)

    def answer(self, *classes: tuple[str, str], value: Any = None) -> None:
        """The model answers all that it is asked: each command with a class and a reason."""
        assert self.model is not None
        for lease in self.model.leases():
            said = {str(n): {"reason": why, "task_class": name} for n, (name, why) in enumerate(classes, 1)}
            self.model.result(lease, {"json": said, "model": "judge"} if value is None else value)
        self.settle()

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def row(self) -> Batch:
        return self.rig.core.batch_ids[self.batch]

    @property
    def questions(self) -> list[Task]:
        return [task for task in self.row.keys.values() if task.policy.aside]

    def prompt(self, key: str = KEY) -> str:
        payload = unpack(self.new(self.row.keys[key].no)[2])
        return str(payload["messages"][1]["content"])

    def class_of(self, key: str = "train") -> tuple[str, str]:
        """The class that a task was declared with, and how that is explained."""
        task = self.row.keys[key]
        return task.shape.cls, str(self.new(task.no)[3].get("fix_applied"))

    def fact(self) -> dict[str, Any]:
        (fact,) = self.query("facts", scope="plan", key=self.batch)["facts"]
        value: dict[str, Any] = fact["value"]
        return value


def test_the_model_is_asked_before_anything_is_declared_and_its_class_holds() -> None:
    rig = Rig()
    assert (rig.row.total, rig.row.state.name, [t.key for t in rig.questions]) == (0, "PLANNING", [KEY])
    rig.answer(("script", "it trains\na network"))
    assert rig.class_of() == (
        "script",
        "inferred task_class='script' by the model judge: it trains a network",
    )
    assert rig.class_of("list") == ("cpu", "inferred task_class='cpu' from command")
    assert (rig.row.total, rig.row.closed) == (2, True)
    assert (
        "task 'train': inferred task_class='script' by the model judge: it trains a network"
        in rig.fact()["warnings"]
    )


def test_a_class_of_the_model_is_that_of_a_template_whose_list_comes_much_later() -> None:
    rig = Rig(HEAD + "### train\n- command: `train {ITEM.id}`\n- foreach: /l.json:items\n")
    rig.answer(("script", "it trains"))
    rig.kill()
    _, plan = rig.run_of(rig.batch_row(rig.batch))
    assert plan.tasks[0].task_class == "script"
    made = planner.spec_of(plan, plan.tasks[0], rig.run_of(rig.batch_row(rig.batch))[0], "train_1", {})
    assert (made["class"], made["vram_mb"]) == ("script", 1024)
    assert made["meta"]["fix_applied"].endswith("by the model judge: it trains")


@pytest.mark.parametrize(
    "value",
    [
        {"json": {"1": {"reason": "x", "task_class": "gpu"}}},
        {"json": {"1": {"reason": "x", "task_class": ["cpu"]}}},
        {"json": {"1": "script"}},
        {"json": {"2": {"task_class": "script"}}},
        {"json": [1]},
        {"text": "script"},
        "script",
        [None],
    ],
)
def test_an_answer_that_is_none_leaves_the_class_to_the_rule_and_is_said(value: Any) -> None:
    rig = Rig()
    rig.answer(value=value)
    assert rig.class_of() == (
        "cpu",
        "inferred task_class='cpu' from command, unsure: what the model answered is no class",
    )


def test_a_model_that_fails_leaves_the_class_to_the_rule_with_its_words() -> None:
    rig = Rig()
    assert rig.model is not None
    rig.model.fail(rig.model.lease(), "definition")
    rig.settle()
    assert rig.class_of()[1].endswith("unsure: the question to the model ended dead (no)")


def test_a_model_that_does_not_come_is_waited_for_but_not_for_ever() -> None:
    rig = Rig(model=False, asking=Asking(expected=True, wait_s=30.0))
    rig.away(29)
    rig.settle()
    assert (rig.row.total, rig.questions[0].state.name) == (0, "READY")
    rig.away(2)
    rig.settle()
    assert rig.class_of() == (
        "cpu",
        "inferred task_class='cpu' from command, unsure: no model answered in 30 s",
    )


def test_a_model_that_is_stuck_with_the_question_holds_up_no_plan_and_changes_nothing_later() -> None:
    rig = Rig()
    assert rig.model is not None
    lease = rig.model.lease()
    rig.away(31, lease)
    rig.settle()
    assert rig.questions[0].state.name == "LEASED"
    assert rig.class_of()[1].endswith("unsure: no model answered in 30 s")
    before = rig.fact()
    rig.model.result(lease, {"json": {"1": {"reason": "late", "task_class": "llm"}}})
    rig.kill()
    rig.settle()
    assert rig.fact() == before
    assert rig.run_of(rig.batch_row(rig.batch))[1].by_id()["train"].task_class == "cpu"


@pytest.mark.parametrize(
    ("asking", "why"), [(Asking(wait_s=30.0), NO_MODEL), (Asking(expected=True, wait_s=0), OFF)]
)
def test_without_a_model_or_with_no_time_for_it_nothing_waits(asking: Asking, why: str) -> None:
    rig = Rig(model=False, asking=asking)
    assert (rig.row.closed, rig.questions) == (True, [])
    assert rig.class_of() == ("cpu", f"inferred task_class='cpu' from command, unsure: {why}")


@pytest.mark.parametrize(
    "task",
    [
        "- command: `ls`",
        "- command: `train`\n- task_class: cpu",
        "- command: `ollama run x`",
        "- type: shout",
    ],
)
def test_where_the_class_is_sure_nobody_is_asked(task: str) -> None:
    rig = Rig(f"{HEAD}### a\n{task}\n")
    assert (rig.row.closed, rig.questions) == (True, [])
    assert "classes" not in rig.fact()


@pytest.mark.parametrize("at", range(4))
def test_a_brain_killed_anywhere_asks_once_and_declares_once(at: int) -> None:
    rig = Rig()
    if at == 0:
        rig.kill()  # while the question waits
        rig.settle()
    assert rig.model is not None
    lease = rig.model.lease()
    if at == 1:
        rig.kill()  # while it is answered
        rig.settle()
    rig.model.result(lease, {"json": {"1": {"reason": "gpu", "task_class": "script"}}, "model": "judge"})
    if at == 2:
        rig.kill()  # between the answer and the tasks
    rig.settle()
    if at == 3:
        rig.kill()
        rig.settle()
    assert rig.class_of()[0] == "script"
    assert (len(rig.questions), rig.row.total, rig.row.closed) == (1, 2, True)
    declared = [spec["key"] for header in rig.told for spec in header["tasks"]]
    assert sorted(declared) == ["list", KEY, "train"]


def test_a_brain_killed_between_two_messages_of_a_plan_goes_on_with_the_same_classes() -> None:
    many = "".join(f"### n{i}\n- command: `ls`\n" for i in range(1500))
    rig = Rig(ONE + many)
    assert rig.model is not None
    first = rig.tell

    def once(header: dict[str, Any], message: Any = None, batch: str | None = None) -> dict[str, Any]:
        rig.tell = killed  # type: ignore[method-assign]
        return first(header, message, batch)

    def killed(*_: Any) -> dict[str, Any]:
        raise InterruptedError

    rig.tell = once  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        rig.answer(("llm", "it asks"))
    rig.tell = first  # type: ignore[method-assign]
    assert not rig.row.closed
    rig.asking = Asking(wait_s=0)  # what the next one would decide anew
    rig.kill()
    rig.settle()
    assert (rig.row.total, rig.row.closed) == (1502, True)
    assert (rig.class_of()[0], rig.fact()["classes"]["rest"]) == ("llm", NO_MODEL)


def test_a_thousand_tasks_with_one_command_are_one_question() -> None:
    rig = Rig(HEAD + "".join(f"### t{i}\n- command: `./run.sh`\n" for i in range(1000)))
    assert "Step 1: t0, t1, t2, t3, t4 and 995 more" in rig.prompt()
    rig.answer(("llm", "it asks"))
    assert {task.shape.cls for task in rig.row.keys.values()} == {"llm"}
    assert len(rig.questions) == 1


def test_many_commands_are_few_questions_and_the_rest_is_the_rules() -> None:
    rig = Rig(HEAD + "".join(f"### t{i}\n- command: `./run{i}.sh`\n" for i in range(50)))
    assert [t.key for t in rig.questions] == [f"plan:classes.{n}" for n in range(1, MAX_ASKS + 1)]
    rig.answer(*[("script", "gpu")] * ASKED_AT_ONCE)
    asked = ASKED_AT_ONCE * MAX_ASKS
    assert [rig.class_of(f"t{i}")[0] for i in range(50)] == ["script"] * asked + ["cpu"] * (50 - asked)
    assert rig.class_of("t49")[1].endswith(f"unsure: {MORE}")


def test_half_of_the_questions_may_be_answered() -> None:
    rig = Rig(HEAD + "".join(f"### t{i}\n- command: `./run{i}.sh`\n" for i in range(ASKED_AT_ONCE + 1)))
    assert rig.model is not None
    first, second = rig.model.leases()
    said = {str(n): {"reason": "", "task_class": "llm"} for n in range(1, ASKED_AT_ONCE + 1)}
    rig.model.result(first, {"json": said, "model": "judge"})
    rig.settle()
    assert not rig.row.closed
    rig.away(31, second)
    rig.settle()
    assert rig.class_of("t0") == ("llm", "inferred task_class='llm' by the model judge")
    assert rig.class_of(f"t{ASKED_AT_ONCE}")[1].endswith("no model answered in 30 s")


def test_a_plan_that_is_cancelled_meanwhile_has_no_tasks() -> None:
    rig = Rig()
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch, "reason": "enough"})
    rig.answer(("script", "gpu"))
    assert (rig.row.state.name, rig.row.total) == ("CANCELLED", 0)


def test_a_plan_that_cannot_run_is_not_asked_about() -> None:
    with pytest.raises(messages.Unplannable, match="WIDTH"):
        Rig(HEAD + "### a\n- command: `./run.sh {WIDTH}`\n")


# -- what is asked -------------------------------------------------------------------------------------------


def staged(folder: Path, script: str | bytes) -> Path:
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "train.py").write_bytes(script if isinstance(script, bytes) else script.encode())
    return folder


def test_the_question_has_the_goal_the_names_the_command_and_the_beginning_of_its_script(
    tmp_path: Path,
) -> None:
    rig = Rig(staged=staged(tmp_path / "s", "import torch\n" + "x" * 9000))
    prompt = rig.prompt()
    for text in ("speech as text", "Step 1: train", "python3 {PLAN_PATH}/scripts/train.py", "import torch"):
        assert text in prompt
    assert len(prompt) < SCRIPT_BYTES + 500


def test_all_questions_of_an_ask_share_its_room(tmp_path: Path) -> None:
    text = "".join(
        f"### t{i}\n- command: `./run {{PLAN_PATH}}/scripts/train.py {i} {'y' * 5000}`\n" for i in range(8)
    )
    rig = Rig(HEAD + text, staged=staged(tmp_path / "s", "x" * 9000))
    assert 8 * 400 < len(rig.prompt()) < 6000
    assert "Step 8: t7" in rig.prompt()


def test_only_text_inside_the_staged_plan_is_read(tmp_path: Path) -> None:
    folder = staged(tmp_path / "s", b"\x7fELF\0\0")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    for name in ("scripts/train.py", "link", "../secret", "scripts", "none", "a" * 5000):
        assert script_head(folder, name) == ""
    (folder / "latin").write_bytes("grün".encode("latin-1"))
    assert script_head(folder, "latin") == "gr\ufffdn"


def test_the_schema_is_one_that_a_grammar_takes_and_that_is_checked() -> None:
    assert "reason" in to_gbnf(schema_of(8))
    checked = Schema(schema_of(2))
    one = {"reason": "", "task_class": "cpu"}
    assert not list(checked.faults({"1": one, "2": one}))
    assert list(checked.faults({"1": one}))
    assert list(checked.faults({"1": one, "2": one | {"task_class": "meta"}}))


def test_a_fact_of_another_build_is_read_as_far_as_it_is_understood() -> None:
    plan = parse_plan(ONE, name="p")
    key = questions_of(plan)[0].key
    for given in (None, [], {"answers": {key: 1}}, {"answers": {key: {"task_class": "gpu", "by": "model"}}}):
        found = classes_from(given)
        assert found.settle(plan).by_id()["train"].task_class == "cpu"
    kept = {"answers": {key: {"task_class": "llm", "by": "model", "more": 1}}, "more": 2}
    assert classes_from(kept).settle(plan).by_id()["train"].task_class == "llm"
    assert classes_from(Classes({}, "why").to_map()) == Classes({}, "why")


def names(questions: Sequence[Any]) -> list[tuple[str, ...]]:
    return [question.tasks for question in questions]


def test_an_argv_and_a_command_are_questions_by_what_they_run() -> None:
    text = '### a\n- argv: ["./run", "x"]\n### b\n- command: `./run x`\n### c\n- command: `./run y`\n### d\n- command: `ls`\n'
    assert names(questions_of(parse_plan(HEAD + text, name="p"))) == [("a", "b"), ("c",)]


def test_a_plan_that_names_a_model_which_there_is_not_ends_unless_a_worker_has_it() -> None:
    text = HEAD + "### a\n- type: generate\n- prompt: x\n- llm_model: smal\n"
    rig = Rig(text, model=False)
    planning = Planning(rig, Revising(rig, Expanding(rig)), None, lambda: {"small": Entry("small", {})})
    rig.rig.worker(name="by-hand", types=["generate"], classes=["llm"], needs=["model:other"])
    fresh = rig.client.submit(key="second", kind="plan", plan={"name": "p"}).header["batch"]
    with pytest.raises(
        messages.Unplannable, match=r"llm_model 'smal' is not configured; did you mean 'small'\?"
    ):
        planning.step(fresh)
    rig.rig.worker(name="by-hand-too", types=["generate"], classes=["llm"], needs=["model:smal"])
    planning.step(fresh)
    assert [t.key for t in rig.rig.core.batch_ids[fresh].keys.values()] == ["a"]
