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


def test_a_part_for_each_card_counts_as_the_configuration_divides_it() -> None:
    uneven = {"big": Entry("big", {"tensor_split": [3, 1]}, vram_mb=5000)}
    both = seat("1,2")
    cards = [Neighbour("worker-1", ("1",), 4800), Neighbour("worker-2", ("2",), 4800)]
    (_, told) = share([Place(both, "big", ASK)], [both], cards, uneven)
    assert told == [Reserve("worker-1", 3750), Reserve("worker-2", 1250)]


def test_a_split_model_waits_for_the_commands_of_each_of_its_cards() -> None:
    both = seat("0,3")
    place = Place(both, "big", ASK)
    ready = Neighbour("worker-1", ("0",), 2300, beside_mb=2500)
    crowded = Neighbour("worker-2", ("3",), 2300, leased_mb=2400, beside_mb=2500)
    assert share([place], [both], [ready, crowded], CATALOGUE) == ([], [])
    assert share([place], [both], [ready, Neighbour("worker-2", ("3",), 2300, 2300, 2500)], CATALOGUE)[0] == [
        place
    ]


def test_of_a_workers_two_cards_the_fuller_one_counts() -> None:
    one, other = seat("0"), Seat("model-2", "pcie-0", Chosen(1, "m", "old"), 1, "hot", "m", cards=("3",))
    both = Neighbour("worker-1", ("0", "3"), 4800)
    assert share([Place(one, "m", ASK)], [one, other], [both], CATALOGUE)[1] == [Reserve("worker-1", 3000)]


def test_while_one_that_shares_its_card_goes_both_have_their_part() -> None:
    pair = Seat("model-cards-0-3", "pcie-0", Chosen(1, "big", "a"), 0, cards=("0", "3"), split=("0", "3"))
    (_, told) = share([], [hot("unloading", wanted=None), pair], [neighbour()], CATALOGUE)
    assert told == [Reserve("worker-1", 5500)]
