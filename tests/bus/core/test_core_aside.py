"""A question of the brain about a plan: it counts in nothing, its end is told to the brain, and so is the end of its time."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness, Peer, error_of, spec

from rigbus.bus.core.model import Task
from rigbus.bus.wire import Verb, pack

KEY = "plan:classes.1"


class Asked:
    """A plan whose brain has asked something."""

    def __init__(self, **fields: Any) -> None:
        self.rig = Harness()
        self.brain = self.rig.brain()
        self.model = self.rig.worker(types=["decide"], classes=["llm"])
        self.client = self.rig.client()
        self.batch = self.client.submit(kind="plan", plan={"name": "p"}).header["batch"]
        question = spec(KEY, type="decide", aside=True, **{"class": "llm"}, **fields)
        answer = self.tell(batch=self.batch, tasks=[question])
        assert answer.verb is Verb.OK, answer.header
        self.task: Task = self.rig.core.ids[answer.header["ids"][0]]

    def tell(self, **header: Any) -> Any:
        body = [pack({})] * len(header.get("tasks") or [])
        return self.brain.ask(Verb.BRAIN, {"epoch": self.rig.core.epoch, "upto_seq": 0, **header}, body)

    def told(self) -> list[str]:
        """What the brain heard of it."""
        return [e[4] for e in self.rig.events if e[3] == "a" and e[7].get("asks")]

    def away(self, seconds: float, *leases: dict[str, Any]) -> None:
        self.rig.wait(seconds, (self.brain, []), (self.model, list(leases)), (self.client, []))


def test_a_question_counts_in_no_total_and_the_plan_stays_in_planning() -> None:
    asked = Asked()
    batch = asked.task.batch
    assert (batch.total, batch.state.name, sum(batch.counts)) == (0, "PLANNING", 0)
    asked.model.result(asked.model.lease(), {"json": {}})
    assert (batch.total, batch.state.name) == (0, "PLANNING")
    asked.tell(batch=asked.batch, tasks=[spec("one")], close=[asked.batch])
    assert (batch.total, batch.state.name) == (1, "RUNNING")
    worker = asked.rig.worker()
    worker.result(worker.lease())
    assert batch.state.name == "COMPLETE"
    asked.rig.check()


def test_its_end_is_told_to_the_brain_and_its_life_to_no_mirror() -> None:
    asked = Asked()
    asked.model.result(asked.model.lease(), {"json": {}})
    assert asked.told() == ["task.decide.done"]
    assert not [e for e in asked.rig.events if e[3] == "p" and e[4].startswith("task.")]


def test_it_dies_when_nobody_takes_it_in_time() -> None:
    asked = Asked(deadline_s=30)
    asked.model.offer(credit=0, types=["decide"], classes=["llm"])
    lease = asked.model.lease()  # it was there first
    asked.model.say(Verb.RETURN, {"tokens": [lease["token"]], "reason": "changed its mind"})
    asked.away(29)
    assert asked.told() == []
    asked.away(2)
    assert (asked.task.state.name, asked.told()) == ("EXPIRED", ["task.decide.expired"])


def test_the_end_of_its_time_is_told_while_somebody_still_holds_it() -> None:
    asked = Asked(deadline_s=30)
    lease = asked.model.lease()
    asked.away(31, lease)
    assert (asked.task.state.name, asked.told()) == ("LEASED", ["task.decide.ending"])
    assert asked.task.row()["ending"]
    page = asked.brain.ask(Verb.SNAPSHOT, {"attn": True}).header  # a brain that missed it
    assert [b["id"] for b in page["batches"]] == [asked.batch]
    asked.tell(batch=asked.batch, tasks=[spec("one")], close=[asked.batch])
    asked.model.result(lease, {"json": {}})
    assert asked.told() == ["task.decide.ending"], "nobody waits for it any more"
    asked.rig.check()


def test_cancelling_the_plan_ends_its_question() -> None:
    asked = Asked()
    asked.client.ask(Verb.CANCEL, {"batch": asked.batch, "reason": "enough"})
    assert asked.task.batch.state.name == "CANCELLED"
    asked.model.fail(asked.model.lease(), cancelled=True)
    assert (asked.task.state.name, asked.told()) == ("CANCELLED", [])
    asked.rig.check()


def test_nobody_requeues_a_question() -> None:
    asked = Asked()
    asked.model.fail(asked.model.lease(), "definition")
    answer = asked.client.ask(Verb.REQUEUE, {"ids": [asked.task.id]})
    assert answer.header == {"requeued": 0, "revived": 0}


def test_why_says_what_the_plan_waits_for() -> None:
    asked = Asked()
    why = asked.client.ask(Verb.QUERY, {"what": "why", "id": asked.batch}).header
    assert why["summary"] == "the brain has not declared its tasks yet: it asks a model for their classes"
    assert any(KEY in reason for reason in why["reasons"])


@pytest.mark.parametrize("kind", ["client", "plan"])
def test_only_the_brain_asks_and_only_about_a_plan(kind: str) -> None:
    rig = Harness()
    client: Peer = rig.client()
    brain = rig.brain()
    question = spec("q", aside=True)
    assert error_of(client.submit(question, kind=kind, plan={})) == "definition"
    batch = client.submit(kind="client", open=True).header["batch"]
    header = {"epoch": rig.core.epoch, "upto_seq": 0, "batch": batch, "tasks": [question]}
    assert error_of(brain.ask(Verb.BRAIN, header, [b""])) == "definition"
