"""A broker that has no room for new tasks does not keep the brain from its other work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from busparts import ScriptedBroker
from helpers import free_endpoint

from rigbus.agents.brain import core
from rigbus.agents.brain.service import Brain
from rigbus.bus.paths import rig_paths
from rigbus.bus.wire import Envelope, Verb


@pytest.fixture
def broker(rig_dir: Path) -> Iterator[ScriptedBroker]:
    broker = ScriptedBroker(free_endpoint(rig_dir))
    yield broker
    broker.stop()


def test_what_is_busy_waits_behind_what_is_not(
    broker: ScriptedBroker, rig_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def answer(env: Envelope) -> list[tuple[Verb, dict[str, object], list[bytes]]]:
        batch = str(env.header["fail"][0]["batch"])
        told.append(batch)
        if batch == "one" and told.count("one") == 1:
            busy = {"bound": "disk", "message": "disk full", "retry_after_s": 0.01}
            return [(Verb.BUSY, busy, [])]
        return [(Verb.OK, {"seq": 1, "ids": []}, [])]

    broker.answers[Verb.BRAIN] = answer
    brain = Brain(rig_paths(rig_dir / "state"), broker.endpoint)
    try:
        brain.link.connect(5)
        brain.epoch = 1
        # what each piece of work says does not matter here, only the order in which it is said
        monkeypatch.setattr(brain, "_act", lambda work: brain.tell({"fail": [{"batch": work.batch}]}))
        brain.work.extend([core.PlanBatch("one"), core.PlanBatch("two")])
        while brain.work:
            brain.do(brain.work.popleft())
    finally:
        brain.close()
    assert told == ["one", "two", "one"]
