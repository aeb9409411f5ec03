"""Expansion against the broker's own core: chunks, a brain killed between them, items that depend on items."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from brainparts import BrainPart
from harness import STATE_ID, Harness, Peer

from rigbus.agents.brain import core, messages, planner
from rigbus.agents.brain.expanding import FIRST_CHUNK, Expanding
from rigbus.bus.core.model import Task
from rigbus.bus.errors import Unreachable
from rigbus.bus.states import TaskState
from rigbus.bus.wire import Verb
from rigbus.plans import parse_plan
from rigbus.plans.model import Plan

HEAD = "# Plan: p\n\n## Tasks\n\n"
INIT = "### init\n- command: `true`\n"
ONE = "### one\n- foreach: /m.json:\n- command: `x {ITEM.id}`\n- depends_on: init\n"
TWO = "### two\n- foreach: /n.json:\n- command: `y {ITEM.id}`\n- depends_on: init, one_{ITEM.id}\n"
END = "### end\n- command: `true`\n- depends_on: two\n"
CHAIN = INIT + ONE + TWO + END
SHELL = ["shell", "expand"]


class Brain(BrainPart):
    """The brain's expansion over the harness; ``kill`` forgets what a process would forget."""

    def __init__(self, rig: Harness, tasks: str, lists: dict[str, list[Any]], settings: str = "") -> None:
        self.rig, self.lists = rig, lists
        self.plan = parse_plan(HEAD.replace("## Tasks", f"{settings}## Tasks") + tasks, name="p")
        self.brain: Peer = rig.brain()
        self.worker = rig.worker(credit=10_000, slots=10_000, types=SHELL, state_id=STATE_ID)
        self.batch = rig.client().submit(kind="plan", plan={"name": "p"}).header["batch"]
        self.lose_answer = False
        self.kill()
        messages = planner.declare(self.plan, self.run)
        for message in messages:
            self.tell({"close": [self.batch]} if message is messages[-1] else {}, message, self.batch)
        self.held: list[dict[str, Any]] = []
        self.ran: list[str] = []

    # -- what the process offers -----------------------------------------------------------------------------

    @property
    def run(self) -> messages.Run:
        return messages.Run(self.batch, "p", STATE_ID, "0" * 64, "/s", "/o", "/v", "/b", {})

    def tell(
        self, header: dict[str, Any], message: messages.Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        answer = super().tell(header, message, batch)
        if self.lose_answer:
            self.lose_answer = False
            raise Unreachable("the answer was lost")
        return answer

    def value(self, task: str) -> Any:
        return {"items": self.lists[core.template_of(self.rig.core.ids[task].key)]}

    def run_of(self, row: dict[str, Any]) -> tuple[messages.Run, Plan]:
        return self.run, self.plan

    # -- its life --------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Another process: it knows what a snapshot says."""
        self.expanding = Expanding(self)
        self.begin()
        others = (core.PlanBatch, core.CheckAbort)  # another part of it looks at what ended badly
        self.work = deque(work for work in self.work if not isinstance(work, others))

    def do_work(self, work: core.Work) -> None:
        try:
            if isinstance(work, core.ExpandTemplate):
                self.work.extend(self.expanding.step(work))
            elif isinstance(work, core.Unblock):
                self.work.extend(self.expanding.unblocked(work))
        except Unreachable:
            self.work.appendleft(work)

    # -- the worker ------------------------------------------------------------------------------------------

    def take(self) -> list[str]:
        """The keys of what is leased now and not answered."""
        self.held += self.worker.leases()
        return [lease["key"] for lease in self.held]

    def finish(self, *keys: str, fails: bool = False) -> None:
        self.take()
        for key in keys:
            (lease,) = [one for one in self.held if one["key"] == key]
            self.held.remove(lease)
            self.ran.append(key)
            if fails:
                self.worker.fail(lease, "definition")
            else:
                self.worker.result(lease)

    def finish_all(self) -> None:
        while self.settle() or self.take():
            self.finish(*self.take())

    def task(self, key: str) -> Task:
        return self.rig.core.batch_ids[self.batch].keys[key]

    def state(self, key: str) -> str:
        return self.task(key).state.name


@pytest.fixture
def rig() -> Harness:
    return Harness()


def ids(*names: Any) -> list[Any]:
    return [{"id": name} for name in names]


def test_workers_begin_with_the_first_message_and_the_join_is_held_to_the_last(rig: Harness) -> None:
    brain = Brain(rig, INIT + ONE, {"one": ids(*range(FIRST_CHUNK + 10))})
    brain.finish("init")
    brain.finish("one:expand")
    brain.turn()
    assert len(brain.take()) == FIRST_CHUNK
    brain.finish(*brain.take())
    assert (brain.state("one"), brain.task("one").hold) == ("WAITING", True)
    brain.finish_all()
    assert brain.state("one") == "DONE"
    assert brain.task("one").batch.state.name == "COMPLETE"
    rig.check()


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_brain_killed_between_two_messages_declares_the_same_tasks(rig: Harness, turns: int) -> None:
    lists = {"one": ids(*range(130)), "two": ids(*reversed(range(130)))}
    brain = Brain(rig, CHAIN, lists)
    brain.finish("init")
    brain.finish("one:expand", "two:expand")
    for _ in range(turns):
        brain.turn()
    brain.kill()
    brain.finish_all()
    assert sorted(brain.ran) == sorted(
        ["init", "end", "one:expand", "two:expand", *(f"{t}_{n}" for t in ("one", "two") for n in range(130))]
    )
    assert brain.task("end").batch.state.name == "COMPLETE"
    rig.check()


def test_a_lost_answer_sends_the_same_message_again(rig: Harness) -> None:
    brain = Brain(rig, INIT + ONE, {"one": ids(*range(120))})
    brain.finish("init")
    brain.finish("one:expand")
    brain.lose_answer = True
    brain.finish_all()
    assert len(brain.ran) == len(set(brain.ran)) == 122
    assert brain.state("one") == "DONE"


def test_a_batch_goes_on_while_its_foreach_is_half_expanded_though_all_that_is_declared_has_ended(
    rig: Harness,
) -> None:
    brain = Brain(rig, INIT + ONE + END.replace("two", "one"), {"one": ids(*range(FIRST_CHUNK + 30))})
    brain.finish("init")
    brain.finish("one:expand")
    brain.turn()
    first, *others = brain.take()
    brain.finish(first, fails=True)
    brain.finish(*others)
    batch = brain.task("one").batch
    assert (brain.state("one"), brain.state("end"), batch.live) == ("SKIPPED", "SKIPPED", 0)
    assert batch.state.name == "RUNNING"
    assert "waits for the brain to expand its foreach" in rig.core.why(batch.id)["reasons"][0]
    brain.kill()  # whoever comes next finds it
    brain.finish_all()
    assert len(brain.ran) == FIRST_CHUNK + 30 + 2
    assert (batch.counts[TaskState.DONE], batch.state.name) == (FIRST_CHUNK + 31, "FAILED")
    rig.check()


@pytest.mark.parametrize("failed_first", [False, True])
def test_a_foreach_that_fails_between_two_messages_ends_its_batch(rig: Harness, failed_first: bool) -> None:
    lists = {"one": [*ids(*range(FIRST_CHUNK)), {"id": "x" * 300_000}]}
    brain = Brain(rig, INIT + ONE, lists)
    brain.finish("init")
    brain.finish("one:expand")
    brain.turn()
    first, *others = brain.take()
    brain.finish(first, fails=failed_first)
    brain.finish(*others)
    batch = brain.task("one").batch
    assert batch.state.name == "RUNNING"
    brain.finish_all()
    assert batch.state.name == "FAILED"
    brain.kill()
    assert not brain.turn()
    rig.check()


def test_an_item_waits_for_its_own_counterpart_and_for_nothing_else(rig: Harness) -> None:
    brain = Brain(rig, CHAIN, {"one": ids("a", "b"), "two": ids("b", "a")})
    brain.finish("init")
    brain.finish("two:expand")
    brain.settle()
    assert brain.take() == ["one:expand"]  # the first list is not there yet: its items are not known
    brain.finish("one:expand")
    brain.settle()
    assert sorted(brain.take()) == ["one_a", "one_b"]
    brain.finish("one_b")
    assert sorted(brain.take()) == ["one_a", "two_b"]
    brain.finish("two_b")
    assert brain.state("end") == "WAITING"
    brain.finish("one_a")
    brain.finish("two_a")
    assert brain.take() == ["end"]


@pytest.mark.parametrize(("policy", "two_b"), [("", "SKIPPED"), ("- on_failure: continue\n", "LEASED")])
def test_the_failure_of_an_item_reaches_only_what_waits_for_that_item(
    rig: Harness, policy: str, two_b: str
) -> None:
    brain = Brain(rig, INIT + ONE + policy + TWO + END, {"one": ids("a", "b"), "two": ids("a", "b")})
    brain.finish("init")
    brain.finish("one:expand", "two:expand")
    brain.settle()
    brain.finish("one_b", fails=True)
    brain.finish("one_a")
    brain.take()
    assert (brain.state("two_a"), brain.state("two_b")) == ("LEASED", two_b)
    brain.finish_all()
    assert brain.state("two") == ("DONE" if policy else "SKIPPED")
    assert brain.state("end") == ("DONE" if policy else "SKIPPED")
    rig.check()


def test_a_micro_batch_waits_for_the_micro_batches_of_its_items(rig: Harness) -> None:
    sized = INIT + ONE + "- batch_size: 2\n" + TWO + "- batch_size: 3\n"
    brain = Brain(rig, sized, {"one": ids(*range(6)), "two": ids(*range(6))})
    brain.finish("init")
    brain.finish("one:expand", "two:expand")
    brain.settle()
    brain.finish("one_batch_0001_0002")
    assert brain.state("two_batch_0001_0003") == "WAITING"
    brain.finish("one_batch_0003_0004")
    assert brain.state("two_batch_0001_0003") == "LEASED"
    assert brain.state("two_batch_0004_0006") == "WAITING"
    brain.finish_all()
    assert brain.state("two") == "DONE"


def test_an_item_without_a_counterpart_ends_its_template_and_not_the_batch(rig: Harness) -> None:
    brain = Brain(
        rig, CHAIN + "### other\n- command: `z`\n- depends_on: one\n", {"one": ids("a"), "two": ids("a", "x")}
    )
    brain.finish("init")
    brain.finish("one:expand", "two:expand")
    brain.finish_all()
    two = brain.task("two")
    assert two.state is TaskState.DEAD
    assert two.error is not None
    assert "element 1 ('x') has no counterpart: 'one' has no task for 'x'" in two.error
    assert (brain.state("end"), brain.state("other")) == ("SKIPPED", "DONE")
    assert brain.task("two").batch.state.name == "FAILED"
    assert "two_a" not in brain.ran
    brain.kill()
    brain.settle()  # a new brain finds nothing to do
    rig.check()


@pytest.mark.parametrize("policy", ["", "- on_failure: continue\n"])
def test_a_list_that_cannot_be_read_ends_or_frees_what_depends_on_its_items(
    rig: Harness, policy: str
) -> None:
    brain = Brain(rig, INIT + ONE + policy + TWO + END, {"two": ids("a", "b")})
    brain.finish("init")
    brain.finish("two:expand")
    brain.settle()
    brain.finish("one:expand", fails=True)
    brain.finish_all()
    assert brain.state("one") == "SKIPPED"
    if policy:
        assert {"two_a", "two_b", "end"} <= set(brain.ran)
    else:
        assert (brain.state("two"), brain.state("end")) == ("SKIPPED", "SKIPPED")
    assert brain.task("two").batch.state.name == "FAILED"
    rig.check()


def test_three_templates_in_a_row_end_with_the_first_that_cannot_be_expanded(rig: Harness) -> None:
    three = "### three\n- foreach: /o.json:\n- command: `z {ITEM.id}`\n- depends_on: two_{ITEM.id}\n"
    brain = Brain(rig, INIT + ONE + TWO + three, {"one": ids("a"), "two": ids("x"), "three": ids("x")})
    brain.finish("init")
    brain.finish("one:expand", "two:expand", "three:expand")
    brain.finish_all()
    assert [brain.state(t) for t in ("one", "two", "three")] == ["DONE", "DEAD", "DEAD"]
    assert brain.task("three").batch.state.name == "FAILED"


def test_a_child_that_fails_before_the_last_message_stops_no_other_item(rig: Harness) -> None:
    brain = Brain(rig, INIT + ONE + TWO, {"one": ids(*range(120)), "two": ids(*range(120))})
    brain.finish("init")
    brain.finish("one:expand", "two:expand")
    brain.turn()
    brain.finish("one_0", fails=True)
    assert (brain.state("one"), brain.task("one").hold) == ("SKIPPED", True)
    brain.kill()
    brain.finish_all()
    assert sum(key.startswith("one_") for key in brain.ran) == 120
    assert sum(key.startswith("two_") for key in brain.ran) == 119
    assert brain.state("two_0") == "SKIPPED"
    rig.check()


def test_a_batch_that_was_cancelled_gets_no_more_tasks_and_a_retry_goes_on(rig: Harness) -> None:
    brain = Brain(rig, INIT + ONE, {"one": ids(*range(120))})
    brain.finish("init")
    brain.finish("one:expand")
    brain.turn()
    client = rig.client()
    client.ask(Verb.CANCEL, {"batch": brain.batch, "reason": "enough"})
    for lease in brain.held + brain.worker.leases():
        brain.worker.fail(lease, cancelled=True)
    brain.held.clear()
    brain.settle()
    assert brain.task("one").batch.total == 3 + FIRST_CHUNK
    assert brain.task("one").batch.state.name == "CANCELLED"
    client.ask(Verb.REQUEUE, {"batch": brain.batch})
    assert core.work_of_event(*[e for e in rig.events if e[3] == "a"][-1][4:]) == [
        core.LookAgain(brain.batch)
    ]
    brain.kill()
    brain.finish_all()
    assert brain.task("one").batch.state.name == "COMPLETE"
    assert len([key for key in brain.ran if key.startswith("one_")]) == 120
    rig.check()


def test_an_empty_list_is_a_success_that_says_so(rig: Harness) -> None:
    brain = Brain(rig, CHAIN, {"one": [], "two": []})
    brain.finish("init")
    brain.finish("one:expand", "two:expand")
    brain.finish_all()
    assert [brain.state(t) for t in ("one", "two", "end")] == ["DONE"] * 3
    notes = [e[7].get("note", "") for e in rig.events if e[4] == "task.join.done" and e[3] == "p"]
    assert all(note.startswith("FOREACH_EMPTY") for note in notes)
    assert len(notes) == 2


def test_a_plan_may_have_more_tasks_than_the_bound_of_a_clients_batch(rig: Harness) -> None:
    rig.core.max_batch_tasks = 30  # as 100,000 elements beside the plan's own tasks
    brain = Brain(rig, CHAIN, {"one": ids(*range(100)), "two": ids(*range(100))})
    brain.finish("init")
    brain.finish_all()
    assert brain.task("end").batch.state.name == "COMPLETE"
