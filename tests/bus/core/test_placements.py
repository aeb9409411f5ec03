"""The broker's part in placing models: who is told what, and what it says of the work that waits."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness, error_of, spec

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


# -- the brain's own asks ------------------------------------------------------------------------------------

OWN = {"key": "placement/1.1", "kind": "calls", "name": "placement"}


def ask(key: str) -> dict[str, Any]:
    return {"key": key, "type": "load_llm", "class": "meta", "meta": {"model": "m", "automatic": True}}


def view_rows(rig: Harness) -> dict[str, bool]:
    rows = rig.client().ask(Verb.QUERY, {"what": "placement"}).header["rows"]
    return {row["key"]: row["own"] for row in rows}


def test_nobody_but_the_seated_brain_puts_an_ask_into_its_batches(rig: Harness) -> None:
    brain, client, standby = rig.brain(), rig.client(), rig.brain()
    own = brain.ask(Verb.SUBMIT, {"batch": OWN, "tasks": [ask("a")]})
    assert own.verb is Verb.ACCEPTED
    for peer in (client, standby, rig.worker()):
        for batch in (
            OWN,
            {**OWN, "key": "placement/9.9"},
            {**OWN, "key": "placement"},
            {"id": own.header["batch"]},
        ):
            answer = peer.ask(Verb.SUBMIT, {"batch": batch, "tasks": [ask("b")]})
            assert error_of(answer) == "refused" and "brain's own" in answer.header["message"]
    client.ask(Verb.SUBMIT, {"batch": {"key": "placements", "kind": "client"}, "tasks": [ask("c")]})
    assert view_rows(rig) == {"a": True, "c": False}, "whatever its meta says"


def test_a_full_batch_is_closed_by_its_last_ask(rig: Harness) -> None:
    brain = rig.brain()
    for n, more in enumerate(({}, {"open": False})):
        answer = brain.ask(Verb.SUBMIT, {"batch": {**OWN, **more}, "tasks": [ask(f"{n}")]})
    again = brain.ask(Verb.SUBMIT, {"batch": {**OWN, "open": False}, "tasks": [ask("1")]})
    assert again.header["ids"] == answer.header["ids"], "its answer was lost: the same submit again"
    assert brain.ask(Verb.SUBMIT, {"batch": OWN, "tasks": [ask("2")]}).verb is Verb.CONFLICT
    (batch,) = rig.core.batches.values()
    assert not batch.ended_at
    ids = [task.id for task in batch.keys.values()]
    brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "release": ids, "notes": dict.fromkeys(ids, "hot")})
    assert (batch.state.name, batch.total) == ("COMPLETE", 2) and batch.ended_at


def test_what_an_earlier_brain_left_open_ends_and_retention_takes_it(rig: Harness) -> None:
    rig = Harness(retain_tasks=1)
    first = rig.brain()
    first.ask(Verb.SUBMIT, {"batch": OWN, "tasks": [ask("a"), ask("b")]})
    client = rig.client()
    calls = {"key": "calls:x", "kind": "calls", "name": "calls"}
    client.ask(Verb.SUBMIT, {"batch": calls, "tasks": [spec("c")]})
    rig.wait(20)  # the first brain is gone
    second = rig.brain()
    (batch,) = (b for b in rig.core.batches.values() if b.own)
    assert batch.closed and not batch.ended_at and not rig.core.batch_keys["calls:x"].closed
    ids = [task.id for task in batch.keys.values()]
    second.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "release": ids, "notes": dict.fromkeys(ids, "hot")})
    assert batch.ended_at
    rig.wait(3, (second, []))
    assert batch.no not in rig.core.batches and not set(ids) & set(rig.core.ids)
    rig.check()


def test_the_view_says_what_has_become_of_the_ask_of_a_placement(rig: Harness) -> None:
    brain, client = rig.brain(), rig.client()
    (task,) = client.tasks({"key": "x", "type": "load_llm", "class": "meta"})
    values = [{"generation": 1, "model": "m", "ask": task.id}, {"generation": 1, "ask": "gone"}, {"why": "…"}]
    facts = [{"scope": "placement", "key": f"{n}", "rev": 0, "value": v} for n, v in enumerate(values)]
    brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "facts": facts})

    def states() -> list[str | None]:
        return [f["ask_state"] for f in client.ask(Verb.QUERY, {"what": "placement"}).header["facts"]]

    assert states() == ["waiting", None, None]
    client.ask(Verb.CANCEL, {"ids": [task.id], "reason": "enough"})
    assert states() == ["cancelled", None, None]


def test_an_ask_that_a_person_makes_live_again_is_seen_again(rig: Harness) -> None:
    rig.brain()
    client = rig.client()
    (task,) = client.tasks({"key": "x", "type": "load_llm", "class": "meta"})
    client.ask(Verb.CANCEL, {"ids": [task.id], "reason": "enough"})
    assert view_rows(rig) == {}
    client.ask(Verb.REQUEUE, {"ids": [task.id]})
    assert view_rows(rig) == {"x": False}


def test_an_ask_is_seen_when_what_it_waits_for_has_ended(rig: Harness) -> None:
    rig.brain()
    client, worker = rig.client(), rig.worker()
    client.tasks({"key": "first", "type": "noop"}, {**ask("then"), "after": ["first"]})
    assert view_rows(rig) == {}
    worker.result(worker.lease())
    assert view_rows(rig) == {"then": False}


def test_a_model_worker_shows_its_state_and_what_its_cards_say(rig: Harness) -> None:
    client = rig.client()
    rig.worker(name="model-1", info={"seat": True, "cards": "GPU-1"})
    client.ask(Verb.CONTROL, {"action": "pause", "worker": "model-1"})
    rig.core.heartbeats["model-1"] = (0.0, {"gpu": {"index": 0, "vram_used_mb": 1}})
    (row,) = client.ask(Verb.QUERY, {"what": "placement"}).header["workers"]
    assert (row["word"], row["willing"], row["gpu"]) == ("paused", False, {"index": 0, "vram_used_mb": 1})
