"""The broker's part in placing models: who is told what, and what it says of the work that waits."""

from __future__ import annotations

import pytest
from harness import Harness

from rigbus.bus.wire import Verb

GENERATE = {"type": "generate", "class": "llm"}


@pytest.fixture
def rig() -> Harness:
    return Harness()


def demand(rig: Harness) -> list[tuple[str, int]]:
    answer = rig.client().ask(Verb.QUERY, {"what": "placement"}).header
    return [(row["type"], row["n"]) for row in answer["demand"]]


def test_what_waits_for_a_model_is_counted_and_what_was_cancelled_is_not(rig: Harness) -> None:
    client = rig.client()
    one, two = client.tasks({"key": "a", **GENERATE}, {"key": "b", **GENERATE})
    client.tasks({"key": "c", "type": "noop"})
    assert demand(rig) == [("generate", 2)], "work for other workers is not its business"
    client.ask(Verb.CANCEL, {"ids": [one.id, two.id], "reason": "enough"})
    assert demand(rig) == []


def test_a_placement_is_handed_to_its_worker_when_it_is_decided_and_when_it_comes_back(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker(name="model-1", info={"seat": True})
    epoch = rig.core.epoch
    value = {"generation": 1, "model": "m", "spec": {"path": "/m"}}
    fact = {"scope": "placement", "key": "model-1", "rev": 0, "value": value}
    assert brain.ask(Verb.BRAIN, {"epoch": epoch, "facts": [fact]}).verb is Verb.OK
    assert worker.take(Verb.CONTROL) == [{**value, "action": "place"}]
    worker.reconnect()
    assert worker.take(Verb.CONTROL) == [{**value, "action": "place"}]


def test_an_ask_for_a_model_is_held_until_the_brain_ends_it_and_its_asker_hears_why(rig: Harness) -> None:
    brain, client, worker = rig.brain(), rig.client(), rig.worker(types=["load_llm"], classes=["meta"])
    (ask,) = client.tasks({"key": "x", "type": "load_llm", "class": "meta", "meta": {"model": "m"}})
    assert worker.take(Verb.LEASE) == [], "nobody runs it"
    view = client.ask(Verb.QUERY, {"what": "placement"}).header
    assert [row["id"] for row in view["rows"]] == [ask.id]
    brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "release": [ask.id], "notes": {ask.id: "m is hot"}})
    assert ask.ended
    assert client.ask(Verb.QUERY, {"what": "placement"}).header["rows"] == []
