"""A card that a model and commands share: who makes room for whom."""

from __future__ import annotations

from typing import Any

from rigbus.agents.brain.placing import LOAD, Ask, Chosen, Entry, Place, Reserve, Seat
from rigbus.agents.brain.sharing import Neighbour, share

CATALOGUE = {"m": Entry("m", {}, vram_mb=3000), "big": Entry("big", {}, vram_mb=5000, placement="split_gpu")}
ASK = Ask("a", "b", LOAD, "m")


def seat(cards: str = "0", **more: Any) -> Seat:
    return Seat("model-1", "pcie-0", more.pop("chosen", Chosen()), cards=tuple(cards.split(",")), **more)


def hot(phase: str = "hot", wanted: str | None = "m") -> Seat:
    return seat(chosen=Chosen(1, wanted, "old"), generation=1, phase=phase, model="m")


def neighbour(*, budget: int | None = 4800, leased: int = 0, beside: int = 0, card: str = "0") -> Neighbour:
    return Neighbour("worker-1", (card,), budget, leased, beside)


def test_the_budget_shrinks_before_the_model_is_placed() -> None:
    place = Place(seat(), "m", ASK)
    assert share([place], [seat()], [neighbour()], CATALOGUE) == ([], [Reserve("worker-1", 3000)])
    told = neighbour(budget=1800, beside=3000)
    assert share([place], [seat()], [told], CATALOGUE) == ([place], [])


def test_it_waits_for_commands_that_are_too_many() -> None:
    place = Place(seat(), "m", ASK)
    busy = neighbour(budget=1800, leased=2000, beside=3000)
    assert share([place], [seat()], [busy], CATALOGUE) == ([], [])
    done = neighbour(budget=1800, leased=1800, beside=3000)
    assert share([place], [seat()], [done], CATALOGUE) == ([place], [])


def test_a_place_that_nobody_wants_any_more_is_given_back() -> None:
    assert share([], [seat()], [neighbour(budget=1800, beside=3000)], CATALOGUE) == (
        [],
        [Reserve("worker-1", 0)],
    )


def test_the_memory_is_kept_until_the_process_is_gone() -> None:
    leaving = hot("unloading", wanted=None)
    assert share([], [leaving], [neighbour(budget=1800, beside=3000)], CATALOGUE) == ([], [])
    gone = seat(chosen=Chosen(2, None, "u"), generation=2)
    assert share([], [gone], [neighbour(budget=1800, beside=3000)], CATALOGUE) == (
        [],
        [Reserve("worker-1", 0)],
    )


def test_another_card_is_not_asked_and_unlimited_workers_are_told_only() -> None:
    place = Place(seat(), "m", ASK)
    assert share([place], [seat()], [neighbour(card="1")], CATALOGUE) == ([place], [])
    told = neighbour(budget=None, beside=3000, leased=99999)
    assert share([place], [seat()], [told], CATALOGUE) == ([place], [])


def test_a_split_model_takes_its_part_of_each_card() -> None:
    both = seat("0,3")
    place = Place(both, "big", ASK)
    (_, told) = share([place], [both], [neighbour(), Neighbour("worker-2", ("3",), 4800)], CATALOGUE)
    assert told == [Reserve("worker-1", 2500), Reserve("worker-2", 2500)]


def test_unloading_needs_no_room() -> None:
    place = Place(hot(), None, ASK)
    assert share([place], [hot()], [neighbour(budget=1800, beside=3000, leased=1800)], CATALOGUE)[0] == [
        place
    ]
