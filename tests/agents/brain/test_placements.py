"""What the brain writes and asks for when it places models, with a bus that remembers it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rigbus.agents.brain.placements import ASKS_A_BATCH, Placements, view_of
from rigbus.agents.brain.placing import Entry, Placing, Settings

SMALL = Entry("small", {"path": "/s"})


class Bus:
    """One cold worker, and work that a model is wanted for in every view; what is told and submitted is kept."""

    def __init__(self, **fact: Any) -> None:
        self.epoch = 3
        self.told: list[dict[str, Any]] = []
        self.submitted: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.fact = fact
        self.placement: dict[str, Any] = {"generation": 0, "phase": "cold"}

    def tell(self, header: dict[str, Any]) -> dict[str, Any]:
        self.told.append(header)
        return {}

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        info = {"seat": True, "cards": "GPU-1,GPU-2", "group": "left", "split": "1,2"}
        worker = {"id": "model-1", "info": info, "placement": self.placement, "leases": 0, "willing": True}
        return {
            "workers": [worker],
            "neighbours": [],
            "facts": [{"key": "model-1", "rev": 7, **self.fact}] if self.fact else [],
            "rows": [],
            "demand": [{"type": "generate", "class": "llm", "needs": [], "n": 1, "waits_s": 99.0}],
        }

    def submit(self, batch: dict[str, Any], specs: list[dict[str, Any]], payloads: list[bytes]) -> None:
        self.submitted += [(batch, spec) for spec in specs]

    def why(self) -> list[dict[str, Any]]:
        return [f["value"] for header in self.told for f in header.get("facts", ()) if not f["key"]]

    def facts(self) -> list[dict[str, Any]]:
        return [fact for header in self.told for fact in header.get("facts", ()) if fact["key"]]


def test_its_own_asks_come_in_batches_that_are_closed_when_they_are_full() -> None:
    bus = Bus()
    part = Placements(
        bus, Placing({"small": Entry("small", {"path": "/s", "split": ["1", "2"]})}, Settings(), "small")
    )
    for n in range(250):
        part.turn(1000.0 * n)  # so long after the last one that it is asked for again
    assert len(bus.submitted) == 250
    keys = [batch["key"] for batch, _ in bus.submitted]
    assert Counter(keys) == {
        "placement/3.1": ASKS_A_BATCH,
        "placement/3.2": ASKS_A_BATCH,
        "placement/3.3": 250 - 2 * ASKS_A_BATCH,
    }
    closing = [n for n, (batch, _) in enumerate(bus.submitted, 1) if batch.get("open") is False]
    assert closing == [ASKS_A_BATCH, 2 * ASKS_A_BATCH]
    assert {batch["kind"] for batch, _ in bus.submitted} == {"calls"}
    assert len({spec["key"] for _, spec in bus.submitted}) == 250


def value(**more: Any) -> dict[str, Any]:
    return {"generation": 4, "model": "small", "spec": {"path": "/s"}, "ask": "t", "automatic": False, **more}


def test_a_load_whose_ask_was_cancelled_is_decided_anew() -> None:
    bus = Bus(value=value(), ask_state="cancelled")
    bus.placement = {"generation": 4, "phase": "loading", "model": "small"}
    Placements(bus, Placing({"small": SMALL}, Settings(), "small")).turn(0.0)
    (fact,) = bus.facts()
    assert (fact["rev"], fact["value"]["generation"], fact["value"]["model"]) == (7, 5, None)


def test_one_that_is_hot_already_is_kept_and_its_ask_forgotten() -> None:
    bus = Bus(value=value(cards=["GPU-1"]), ask_state="cancelled")
    bus.placement = {"generation": 4, "phase": "hot", "model": "small"}
    Placements(bus, Placing({"small": SMALL}, Settings(), "small")).turn(0.0)
    (fact,) = bus.facts()
    kept = {k: fact["value"][k] for k in ("generation", "model", "spec", "ask", "cards")}
    assert kept == {"generation": 4, "model": "small", "spec": {"path": "/s"}, "ask": "", "cards": ["GPU-1"]}


def test_what_holds_up_a_model_is_said_once_and_again_when_it_is_something_else() -> None:
    bus = Bus(value=value(model="pin", ask="", spec={"path": "/p"}), rev=7)
    bus.placement = {"generation": 4, "phase": "hot", "model": "pin", "since_s": 500.0}
    models = {"small": SMALL, "pin": Entry("pin", {"path": "/p"}, pinned=True, role="brain")}
    part = Placements(bus, Placing(models, Settings(hot_at_start=0), "small"))
    part.turn(0.0)
    (said,) = bus.why()
    (row,) = said["held"]
    assert (row["type"], row["model"]) == ("generate", "small")
    for now in (1.0, 2.0, 3.0):
        part.turn(now)
    assert len(bus.why()) == 1
    bus.placement["phase"] = "emptying"
    part.turn(4.0)
    assert len(bus.why()) == 2


@pytest.mark.parametrize(
    ("gpu", "free"),
    [
        (None, ()),
        ({"vram_used_mb": 1000, "vram_total_mb": 6000.0}, (5000,)),
        (
            {"cards": [{"vram_used_mb": 1, "vram_total_mb": 3}, {"vram_used_mb": 0, "vram_total_mb": 7}]},
            (2, 7),
        ),
        ({"cards": [{"vram_used_mb": 1, "vram_total_mb": 3}, {"error": "lost"}]}, ()),
        ({"vram_used_mb": 1000, "vram_total_mb": 6000, "stale": True}, ()),
        ("odd", ()),
    ],
)
def test_the_free_memory_of_a_workers_cards(gpu: Any, free: tuple[int, ...]) -> None:
    row = {"id": "model-1", "info": {}, "leases": 0, "willing": True, "gpu": gpu}
    (seat,) = view_of({"workers": [row], "facts": [], "rows": [], "demand": []})[0].seats
    assert seat.free_mb == free
