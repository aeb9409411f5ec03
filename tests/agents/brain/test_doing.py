"""What a brain has begun: tries are counted against the broker's own core, by processes that end in the midst."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness

from rigbus.agents.brain.core import ExpandTemplate, PlaceModels, PlanBatch, Work
from rigbus.agents.brain.doing import SCOPE, TRIES, Doing
from rigbus.agents.brain.messages import Unplannable
from rigbus.bus.errors import Refused, Unreachable
from rigbus.bus.wire import Verb

PLAN = PlanBatch("20260101_000000_abcdef")
EXPAND = ExpandTemplate(PLAN.batch, "e" * 36, "each:expand")


class Process:
    """One brain process over the harness: what it says rides on BRAIN as in the service."""

    def __init__(self, rig: Harness) -> None:
        self.rig = rig
        self.peer = rig.brain()
        self.epoch = rig.core.epoch
        self.away = False
        self.doing = Doing(self)

    def die(self) -> Process:
        self.peer.say(Verb.BYE, {"reason": "killed"})
        return Process(self.rig)

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        return self.peer.ask(Verb.QUERY, {"what": what, **more}).header

    def write_facts(self, facts: list[dict[str, Any]]) -> None:
        answer = self.peer.ask(Verb.BRAIN, {"epoch": self.epoch, "facts": facts})
        if answer.verb is Verb.ERROR:
            raise Refused(f"{answer.header['code']}: {answer.header['message']}")
        assert answer.verb is Verb.OK, answer.header
        if self.away:
            self.away = False
            raise Unreachable("the answer was lost")

    def tell(self, declared: int, *, over: bool = False) -> None:
        facts = self.doing.riding(declared, over=over)
        if facts:
            self.write_facts(facts)
        self.doing.rode(facts, declared, over=over)

    def fact(self, key: str = PLAN.batch) -> dict[str, Any] | None:
        fact = self.rig.core.facts.get((SCOPE, key))
        return fact.value if fact else None


@pytest.fixture
def brain() -> Process:
    return Process(Harness())


@pytest.mark.parametrize(("work", "words"), [(PLAN, "planned"), (EXPAND, "expanded (each)")])
def test_work_that_ended_three_brains_is_begun_no_fourth_time(brain: Process, work: Work, words: str) -> None:
    for n in range(TRIES):
        brain.doing.begin(work)
        assert [f.value["tries"] for f in brain.rig.core.facts.values()] == [n + 1]
        brain = brain.die()
    with pytest.raises(
        Unplannable, match="ended the brain 3 times while it was " + words.replace("(", r"\(")[:8]
    ):
        brain.doing.begin(work)
    brain.tell(0, over=True)  # the message that fails the batch
    assert not brain.rig.core.facts  # a person's retry begins anew


def test_what_ends_well_leaves_nothing(brain: Process) -> None:
    brain.doing.begin(PLAN)
    brain.tell(30)
    brain.tell(30, over=True)
    brain.doing.end(PLAN)
    assert brain.fact() is None
    brain.doing.begin(EXPAND)  # nothing was to be done: no message took it along
    brain.doing.end(EXPAND)
    assert not brain.rig.core.facts


def test_brains_that_come_further_each_time_are_not_counted(brain: Process) -> None:
    for n in range(1, 6):
        brain.doing.begin(EXPAND)
        for _ in range(n):  # what the one before had declared, and a message more
            brain.tell(50)
        about = {"batch": EXPAND.batch, "what": "expanded (each)"}
        assert brain.fact(EXPAND.expand_id) == {"tries": 1, "at": 50 * n, **about}
        brain = brain.die()


def test_declaring_the_same_part_again_is_no_progress(brain: Process) -> None:
    for n in range(TRIES):
        brain.doing.begin(EXPAND)
        brain.tell(50)
        fact = brain.fact(EXPAND.expand_id)
        assert fact is not None and (fact["tries"], fact["at"]) == (max(1, n + 1), 50)
        brain = brain.die()
    with pytest.raises(Unplannable):
        brain.doing.begin(EXPAND)


def test_a_brain_that_lost_its_broker_has_not_died(brain: Process) -> None:
    for _ in range(2 * TRIES):
        brain.doing.begin(PLAN)
        brain.doing.forget()  # a WELCOME: it begins again with a snapshot
    fact = brain.fact()
    assert fact is not None and fact["tries"] == 1
    brain.doing.begin(PLAN)
    brain.tell(5, over=True)
    assert brain.fact() is None


def test_a_lost_answer_leaves_the_revision_to_be_read(brain: Process) -> None:
    brain.away = True
    with pytest.raises(Unreachable):
        brain.doing.begin(EXPAND)
    brain.doing.begin(EXPAND)
    fact = brain.fact(EXPAND.expand_id)
    assert fact is not None and fact["tries"] == 1
    brain.away = True
    with pytest.raises(Unreachable):
        brain.tell(50)
    brain.doing.begin(EXPAND)
    brain.tell(50)
    brain.tell(50, over=True)
    assert brain.fact(EXPAND.expand_id) is None


def test_a_message_that_was_refused_does_not_keep_the_fact_from_going_with_the_next(brain: Process) -> None:
    brain.doing.begin(PLAN)
    assert brain.doing.riding(5, over=False)  # which the broker refuses: the batch is failed instead
    brain.tell(0, over=True)
    assert brain.fact() is None


def test_a_brain_that_is_not_seated_any_more_counts_nothing(brain: Process) -> None:
    brain.doing.begin(PLAN)
    brain.epoch -= 1
    with pytest.raises(Refused, match="stale_epoch"):
        brain.doing.begin(EXPAND)
    assert brain.fact(EXPAND.expand_id) is None


def test_other_work_counts_nothing(brain: Process) -> None:
    brain.doing.begin(PLAN)
    brain.doing.begin(PlaceModels())
    brain.tell(0, over=True)
    fact = brain.fact()
    assert fact is not None and fact["tries"] == 1
