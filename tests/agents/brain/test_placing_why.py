"""What is said of a placement that waits: each worker's reason, what changes it, and when it is over by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rigbus.agents.brain.held import held_map, same
from rigbus.agents.brain.naming import no_model_for, resolved
from rigbus.agents.brain.placing import (
    LOAD,
    UNLOAD,
    Ask,
    Chosen,
    Entry,
    Place,
    Placing,
    Seat,
    Settings,
    View,
    Want,
)
from rigbus.bus.wire import pack

SMALL = Entry("small", {"path": "/m/small.gguf"})
LARGE = Entry("large", {"path": "/m/large.gguf", "also": ["llama-70b"]}, tier=2)
BIG = Entry("big", {"path": "/b", "split": ["1", "2"]}, tier=3, placement="split_gpu")
MODELS = {e.name: e for e in (SMALL, LARGE, BIG)}
WANT = Want("generate", "llm", frozenset({"model:large"}), 1, waits_s=9.0)


def seat(model: str | None = None, n: int = 1, **more: Any) -> Seat:
    """Cold, or hot for long."""
    if model is None:
        return Seat(f"model-{n}", "pcie-0", **{"chosen": Chosen(), **more})
    known = {"generation": 1, "phase": "hot", "model": model, "since_s": 1000.0}
    return Seat(f"model-{n}", "pcie-0", **{"chosen": Chosen(1, model, "old"), **known, **more})


def said(
    *seats: Seat, ask: Ask | None = None, want: Want = WANT, crowded: tuple[str, ...] = (), **settings: Any
) -> list[tuple[str, str, float | None]]:
    """(reason, fix, seconds) of the workers, of an ask or of work that waits, as a brain says them in its first look."""
    placing = Placing(MODELS, Settings(**{"hot_at_start": 0, **settings}), "small")
    view = View(seats, [ask] if ask else [], () if ask else (want,))
    placing.step(view, 0.0)
    (held,) = placing.held_up(view, 0.0, crowded)
    return [(f"{w.worker} {w.text}", w.fix, w.left_s) for w in held.workers]


PERSONS = Ask("a", "b", LOAD, "large")
PINNED = replace(SMALL, name="pin", pinned=True)
LOADS = seat("small", 2, chosen=Chosen(2, "small", "x"), generation=2, phase="loading")


@pytest.mark.parametrize(
    ("seats", "text", "fix", "left_s"),
    [
        ([seat("pin")], "model-1 holds pin, which is pinned", "rigbus unload --worker model-1", None),
        ([seat(willing=False, word="paused")], "model-1 is paused", "rigbus resume model-1", None),
        ([seat(willing=False, word="draining")], "model-1 is draining", "rigbus resume model-1", None),
        ([seat(willing=False, word="suspect")], "model-1 is silent", "rigbus status", None),
        (
            [seat("small", leases=2)],
            "model-1 holds small, which is in use, and gives way at the latest",
            "",
            120.0,
        ),
        (
            [seat("small", since_s=20.0)],
            "model-1 holds small, which may give way (min_hot_s)",
            "rigbus load large --worker model-1",
            100.0,
        ),
        (
            [seat("large", phase="failed", message="the card is full", since_s=60.0)],
            "model-1 could not load large: the card is full; tried again",
            "rigbus load large --worker model-1",
            240.0,
        ),
        ([LOADS, seat()], "model-1 waits while model-2 loads small over the same link", "", None),
        (
            [seat(chosen=Chosen(2, None, "u"), generation=2, phase="unloading", model="small")],
            "model-1 is unloading (small)",
            "",
            None,
        ),
        ([seat("small", phase="emptying", generation=1)], "model-1 is emptying (small)", "", None),
        (
            [seat(n=1, cards=("1",)), seat("big", 2, cards=("1", "2"), split=("1", "2"), since_s=10.0)],
            "model-1 shares a card with model-2, which holds big, which may give way (min_hot_s)",
            "rigbus load large --worker model-2",
            110.0,
        ),
        ([seat("large", phase="hot")], "model-1 holds large", "", None),
    ],
)
def test_each_worker_says_why_it_does_not_take_the_model(
    seats: list[Seat], text: str, fix: str, left_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "pin", PINNED)
    assert (text, fix, left_s) in said(*seats)


def test_no_more_may_be_hot() -> None:
    hot = seat("small", 2, leases=1)
    assert (
        "model-1 is cold, but as many are hot as may be (max_hot = 1)",
        "raise max_hot in [placement]",
        None,
    ) in said(seat(), hot, max_hot=1)


def test_commands_that_fill_its_card() -> None:
    assert said(seat(), crowded=("model-1",))[0][0].startswith("model-1 waits until commands on its card")


def test_what_a_person_asks_for_by_name_waits_for_no_hysteresis() -> None:
    assert (
        said(seat("small", since_s=1.0), ask=replace(PERSONS, worker="model-1"))[0][0]
        == "model-1 can take it"
    )
    assert "min_hot_s" not in said(seat("small", since_s=1.0, leases=1), ask=PERSONS)[0][0]


def test_an_unload_says_what_it_waits_for() -> None:
    ask = Ask("u", "b", UNLOAD, "small")
    assert said(seat("small", leases=1), ask=ask) == [("model-1 ends what uses small", "", None)]


def test_a_reason_is_given_exactly_where_nothing_is_done() -> None:
    """What is said to be able to take it takes it, and what takes it is not said to be held up."""
    kinds = [
        seat(),
        seat("small"),
        seat("small", leases=1),
        seat("small", since_s=1.0),
        seat("pin"),
        seat(willing=False, word="paused"),
        seat("large", phase="failed"),
        seat("small", phase="failed"),
        seat("small", phase="loading"),
        seat(chosen=Chosen(2, None, "u"), generation=2, phase="unloading", model="small"),
    ]
    models = MODELS | {"pin": PINNED}
    for kind in kinds:
        for ask in (PERSONS, replace(PERSONS, worker="model-1"), replace(PERSONS, automatic=True)):
            placing = Placing(models, Settings(hot_at_start=0), "small")
            view = View((kind,), [ask], (WANT,))
            placed = any(isinstance(a, Place) for a in placing.step(view, 0.0))
            held = placing.held_up(view, 0.0)[0]
            assert placed is (held.workers[0].text == "can take it"), (kind, ask, held)


# ---------------------------------------------------------------- models that there are not


@pytest.mark.parametrize(
    ("needs", "text"),
    [
        (
            {"model:smal"},
            "llm_model 'smal' is not configured; did you mean 'small'? there are: small (worker, tier 1",
        ),
        ({"model:zzz"}, "llm_model 'zzz' is not configured; there are: small"),
        ({"tier:9"}, "no model is of tier 9 or more (llm_min_tier); there are: small"),
        (
            {"tier:2", "placement:split_gpu", "model:llama-70b"},
            "the model large is of tier 2, placed as single_gpu",
        ),
        ({"tier:3", "placement:single_gpu"}, "of tier 3 or more (llm_min_tier) and placed as single_gpu"),
        ({"model:llama-70b", "tier:2"}, ""),
        ({"role:brain"}, ""),
        ({"cuda"}, ""),
        (set(), ""),
    ],
)
def test_what_nothing_has_is_named_with_what_there_is(needs: set[str], text: str) -> None:
    found = no_model_for(needs, MODELS)
    assert found.startswith(text) or text in found
    assert bool(found) is bool(text)


def test_a_name_means_one_model() -> None:
    assert [resolved(name, MODELS) for name in ("small", "llama-70b", "x")] == ["small", "large", "x"]


def held(want: Want, *entries: Entry, now: float = 0.0) -> Any:
    placing = Placing({e.name: e for e in entries or MODELS.values()}, Settings(hot_at_start=0), "small")
    view = View((seat(),), (), (want,))
    placing.step(view, 0.0)
    (found,) = placing.held_up(view, now)
    return found


def test_work_for_a_model_that_there_is_not_says_so() -> None:
    found = held(replace(WANT, needs=frozenset({"model:smal"})))
    assert "did you mean 'small'?" in found.text and "[models.NAME]" in found.fix


def test_work_for_a_model_whose_file_is_unusable_says_so() -> None:
    found = held(WANT, SMALL, replace(LARGE, problem="model /m/large.gguf: no such file"))
    assert "large cannot be loaded: model /m/large.gguf: no such file" in found.text
    assert "repair the file" in found.fix


def test_work_that_has_just_come_and_an_ask_that_came_to_nothing() -> None:
    young = held(replace(WANT, waits_s=0.4))
    assert (young.text, round(young.left_s, 1)) == ("large is asked for", 0.6)
    assert not held(WANT, now=1.0).text, "it has just been made"
    asked = held(WANT, now=20.0)
    assert asked.left_s == 40.0 and asked.fix == "rigbus load large"


def test_the_fact_is_bounded_and_not_written_for_a_clock() -> None:
    placing = Placing(MODELS, Settings(hot_at_start=0), "small")
    seats = [seat("small", n, message="x" * 500, phase="failed") for n in range(40)]
    wants = [replace(WANT, needs=frozenset({"y" * 200, f"model:{n}"})) for n in range(200)]
    rows = held_map(placing.held_up(View(seats, (), wants), 0.0), 1e9)
    assert len(pack(rows)) < 40_000
    (one,) = held_map([held(replace(WANT, waits_s=0.4))], 1e9)
    assert same([one], [one | {"until_at": one["until_at"] + 0.7}])
    assert not same([one], [one | {"until_at": one["until_at"] + 9.0}])
    assert not same([one], [one | {"text": "other"}]) and not same([one], [])
