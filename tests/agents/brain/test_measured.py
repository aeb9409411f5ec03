"""What placement believes of a model's memory, once a worker has measured it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rigbus.agents.brain.measured import with_measures
from rigbus.agents.brain.placements import view_of
from rigbus.agents.brain.placing import UNLOAD, Ask, Chosen, Done, Entry, Placing, Seat, View
from rigbus.agents.brain.sharing import Neighbour, share

SPEC = {"path": "/m.gguf", "ctx": 4096}
ENTRY = Entry("m", SPEC, vram_mb=3000, vram_source="estimate")


def hot(mb: int, worker: str = "model-1", **more: Any) -> Seat:
    chosen = Chosen(1, "m", "a", more.pop("spec", SPEC))
    return Seat(worker, "pcie-0", chosen, 1, more.pop("phase", "hot"), "m", vram_mb=mb, cards=("0",), **more)


@pytest.mark.parametrize(
    ("entry", "seats", "found"),
    [
        (ENTRY, [hot(2400)], (2400, "measured")),
        (ENTRY, [hot(3600)], (3600, "measured")),
        (ENTRY, [hot(2400), hot(2500, "model-2"), hot(2300, "model-3")], (2500, "measured")),
        (replace(ENTRY, vram_source="measured"), [hot(2400)], (3000, "measured")),
        (replace(ENTRY, vram_source="measured"), [hot(3100)], (3100, "measured")),
        (replace(ENTRY, vram_source="config"), [hot(3100)], (3000, "config")),
        (ENTRY, [hot(0)], (3000, "estimate")),
        (ENTRY, [hot(2400, phase="loading")], (3000, "estimate")),
        (ENTRY, [hot(2400, spec={**SPEC, "ctx": 512})], (3000, "estimate")),
        (replace(ENTRY, name="other"), [hot(2400)], (3000, "estimate")),
    ],
    ids=[
        "less than estimated",
        "more than estimated",
        "the largest of several",
        "what was remembered is larger",
        "more than was remembered",
        "the configuration is believed",
        "not measured",
        "not yet hot",
        "loaded in another way than configured now",
        "another model",
    ],
)
def test_a_measure_takes_the_place_of_an_estimate(
    entry: Entry, seats: list[Seat], found: tuple[int, str]
) -> None:
    catalogue = {entry.name: entry}
    now = with_measures(catalogue, seats)[entry.name]
    assert (now.vram_mb, now.vram_source) == found
    assert with_measures({entry.name: now}, seats)[entry.name] == now, "the same view says nothing new"
    assert catalogue == {entry.name: entry}


def test_what_was_measured_is_kept_for_the_model_on_its_card() -> None:
    catalogue = with_measures({"m": ENTRY}, [hot(2400)])
    _, told = share([], [hot(2400)], [Neighbour("worker-1", ("0",), 4000, 0, 3000)], catalogue)
    assert [(one.worker, one.mb) for one in told] == [("worker-1", 2400)]


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ({}, "model-1 is cold"),
        ({"freed_mb": 2000}, "model-1 is cold, 2000 MB of its cards are back"),
        (
            {"freed_mb": 200, "message": "card 1: …"},
            "model-1 is cold, 200 MB of its cards are back; card 1: …",
        ),
        ({"message": "card 1: …"}, "model-1 is cold; card 1: …"),
    ],
)
def test_the_end_of_an_unload_says_what_is_back(more: dict[str, Any], note: str) -> None:
    ask = Ask("a", "b", UNLOAD, "m")
    cold = Seat("model-1", "pcie-0", Chosen(2, None, "a"), 2, "cold", **more)
    placing = Placing({"m": ENTRY})
    assert placing.step(View([cold], [ask]), 0.0) == [Done(ask, note)]


def test_a_cold_worker_whose_memory_is_missing_is_shown_to_whoever_asks_why() -> None:
    placing = Placing({"m": ENTRY})
    cold = Seat("model-1", "pcie-0", Chosen(2, None, "a"), 2, "cold", message="card 1: 1700 MB …")
    assert placing.why(View([cold], [])) == "model-1 is cold: card 1: 1700 MB …"
    assert placing.why(View([replace(cold, message="")], [])) == "1 model workers, all cold"
    due = replace(cold, chosen=Chosen(3, "m", "a"))
    assert placing.why(View([due], [])) == "model-1 is to load m: card 1: 1700 MB …"


def test_a_seat_is_read_from_its_heartbeat() -> None:
    row = {"id": "model-1", "info": {"seat": True}, "leases": 0, "willing": True}
    said = {"generation": 1, "phase": "hot", "model": "m", "vram_mb": 2400, "freed_mb": None}
    odd = {**row, "id": "model-2", "placement": {**said, "vram_mb": float("inf")}}
    answer = {"workers": [{**row, "placement": said}, odd], "facts": [], "rows": [], "demand": []}
    (seat,) = view_of(answer)[0].seats
    assert (seat.vram_mb, seat.freed_mb) == (2400, 0)
