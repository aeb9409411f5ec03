"""Two trees never meet on one card: what a lost worker may still run keeps the others off it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from harness import Harness, Peer, spec

from rigbus.bus.core.fencing import FENCE_S
from rigbus.bus.core.model import Task
from rigbus.bus.states import TaskState
from rigbus.bus.timing import absence_s
from rigbus.bus.wire import LEASE_S, Verb


class Cards:
    """A worker on card 0 that runs a task, and others on cards of the test's choice."""

    def __init__(self, shared: str = "0", **lost: Any) -> None:
        self.rig = Harness()
        self.old = self.rig.worker(name="old", info={"cards": "0"}, **lost)
        (self.task,) = self.rig.client().tasks(spec("a"))
        self.lease = self.old.lease()
        self.old.started(self.lease)
        self.other = self.rig.worker(name="other", info={"cards": shared})

    def silence(self) -> None:
        """The old worker says nothing for so long that its lease is lost; the other one renews."""
        self.rig.wait(LEASE_S + 1.0, (self.other, []))

    def pass_(self, seconds: float) -> None:
        self.rig.wait(seconds, (self.other, []))

    @property
    def waits(self) -> bool:
        return self.task.state is TaskState.READY

    @property
    def moved(self) -> bool:
        return self.task.state is TaskState.LEASED and self.task.worker == "other"


def topics(rig: Harness) -> list[str]:
    return [t for t in rig.topics("p") if t.endswith("fenced")]


def test_a_lease_lost_by_silence_is_not_leased_again_on_its_card_before_the_old_tree_is_dead() -> None:
    cards = Cards()
    cards.silence()
    assert cards.waits and topics(cards.rig) == ["worker.old.fenced"]
    supervisor = cards.rig.peer("supervisor")
    supervisor.ask(Verb.GONE, {"session": cards.old.id, "why": "killed"})
    assert cards.moved and topics(cards.rig) == ["worker.old.fenced", "worker.old.unfenced"]


@pytest.mark.parametrize("shared", ["1", ""])
def test_a_worker_with_other_cards_or_with_none_gets_it_at_once(shared: str) -> None:
    cards = Cards(shared)
    cards.silence()
    assert cards.moved


def test_a_pair_that_shares_one_card_is_kept_off() -> None:
    cards = Cards("0,1")
    cards.silence()
    assert cards.waits


def test_why_and_status_name_the_card_and_the_way_out() -> None:
    cards = Cards()
    cards.silence()
    client = cards.rig.client()
    (row,) = [w for w in client.ask(Verb.QUERY, {"what": "status"}).header["workers"] if w["id"] == "other"]
    assert row["state"] == "fenced" and "card 0: old was lost" in row["fenced"]
    why = client.ask(Verb.QUERY, {"what": "why", "id": "other"}).header
    assert "card 0" in why["summary"] and "old was lost" in why["summary"]
    of_task = client.ask(Verb.QUERY, {"what": "why", "id": cards.task.id}).header
    assert "card 0: old was lost" in str(of_task) and "rigbus resume other" in str(of_task)


def test_a_person_who_knows_better_lifts_it() -> None:
    cards = Cards()
    cards.silence()
    cards.rig.client().ask(Verb.CONTROL, {"action": "resume", "worker": "other"})
    cards.rig.settle()
    assert cards.moved


def test_the_worker_that_was_lost_says_itself_that_its_tree_is_dead() -> None:
    cards = Cards()
    cards.silence()
    cards.old.offer(credit=0)
    assert cards.old.renew(cards.lease)["stale"] == [cards.lease["token"]]
    assert cards.other.leases() == [], "it has heard that it must kill it, no more"
    cards.old.renew()
    assert cards.moved


def test_its_bye_says_so_too() -> None:
    cards = Cards()
    cards.silence()
    cards.old.say(Verb.BYE, {"reason": "drained"})
    assert cards.moved


def test_where_nobody_can_know_the_card_is_free_after_the_fence() -> None:
    cards = Cards()
    cards.silence()
    cards.pass_(max(absence_s(LEASE_S), FENCE_S - 10.0))
    assert cards.waits
    cards.pass_(10.0)
    assert cards.moved


def test_a_new_process_of_the_same_name_waits_too_until_the_old_one_is_known_dead() -> None:
    cards = Cards()
    heir = cards.rig.worker(name="old", info={"cards": "0"})
    assert cards.waits, "superseded is not dead: it may be stopped, and its tree runs"
    cards.rig.peer("supervisor").ask(Verb.GONE, {"session": cards.old.id, "why": "killed"})
    (lease,) = [*heir.leases(), *cards.other.leases()]
    assert lease["id"] == cards.task.id


def test_what_cannot_be_killed_drains_its_card_until_it_has_ended() -> None:
    cards = Cards()
    supervisor = cards.rig.peer("supervisor")
    supervisor.ask(Verb.GONE, {"session": cards.old.id, "why": "pid 7 is in state D", "undying": True})
    cards.pass_(10 * FENCE_S)
    assert cards.waits
    cards.rig.peer("supervisor").ask(Verb.GONE, {"session": cards.old.id, "why": "it has ended"})
    assert cards.moved


def test_a_living_worker_with_a_process_that_cannot_be_killed_keeps_the_others_off_its_card() -> None:
    cards = Cards()
    cards.old.result(cards.lease)
    cards.old.offer(credit=0, info={"cards": "0"}, unkillable=["pid 7 (state D)"])
    (task,) = cards.rig.client().tasks(spec("b"))
    assert task.state is TaskState.READY
    cards.old.say(Verb.BYE, {"reason": "drained"})
    cards.pass_(10 * FENCE_S)
    assert task.state is TaskState.READY, "it left, and its process is still there"
    cards.rig.peer("supervisor").ask(Verb.GONE, {"session": cards.old.id})
    assert task.state is TaskState.LEASED


def test_what_was_only_fetched_ahead_fences_nothing() -> None:
    rig = Harness()
    old = rig.worker(credit=2, slots=1, name="old", info={"cards": "0"})
    client = rig.client()
    client.tasks(spec("a"), spec("b"))
    first, _ = old.leases()
    old.result(first)
    other = rig.worker(name="other", info={"cards": "0"})
    rig.wait(0.1)
    assert topics(rig) == []
    del other


def test_a_fence_outlives_the_broker() -> None:
    cards = Cards()
    cards.silence()
    facts = {key: fact for key, fact in cards.rig.core.facts.items() if key[0] == "fence"}
    assert len(facts) == 1
    again = Harness(now=50.0, wall=cards.rig.wall + 10.0)
    again.numbers = itertools.count(1000)
    again.core.facts = facts
    again.core.load_fences()
    other: Peer = again.worker(name="other", info={"cards": "0"})
    tasks: list[Task] = again.client().tasks(spec("a"))
    assert tasks[0].state is TaskState.READY
    again.wait(FENCE_S - 10.0, (other, []))
    assert tasks[0].state is TaskState.LEASED
    assert "fence" not in [scope for scope, _ in again.core.facts]


def test_a_rig_that_starts_anew_and_has_found_nothing_left_of_before_fences_nothing() -> None:
    cards = Cards()
    supervisor = cards.rig.peer("supervisor")
    supervisor.ask(Verb.GONE, {"session": cards.old.id, "why": "pid 7 is in state D", "undying": True})
    assert cards.waits
    supervisor.ask(Verb.GONE, {"swept": True, "why": "no process of an earlier run is left"})
    assert cards.moved
