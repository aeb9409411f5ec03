"""What a model takes of a card, and whether it is back: by readings alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rigbus.agents.gpu.readings import GpuReading
from rigbus.agents.models.card_memory import TOLERANCE_MB, CardMemory, Returned

OURS, OTHER, HOSTS = (
    100,
    7,
    41_000,
)  # our model's process, somebody else's, and ours as a container's host counts it


def card(used: int | None, told: dict[int, int | None] | None = None, index: int = 0) -> GpuReading:
    """A reading; ``told``: the processes on it, with their MB where the driver tells them."""
    told = told or {}
    return GpuReading(
        index=index,
        uuid=f"GPU-{index}",
        memory_used_mb=used,
        memory_total_mb=6144,
        pids=tuple(sorted(told)),
        process_mb=tuple((pid, mb) for pid, mb in sorted(told.items()) if mb is not None),
        error="" if used is not None else "GPU is lost",
    )


EMPTY = card(300)
SHARED = card(1300, {OTHER: 1000})
SILENT = card(1300, {OTHER: None})

TAKES = {
    "by its process, whatever else happens": (EMPTY, card(4000, {OURS: 2000, OTHER: 1500}), False, 2000),
    "by its process, with nothing known from before": (None, card(2300, {OURS: 2000}), False, 2000),
    "by the difference, alone on the card": (EMPTY, card(2300, {OURS: None}), False, 2000),
    "by the difference, beside one that stays": (SILENT, card(3300, {OURS: None, OTHER: None}), False, 2000),
    "by the difference, less what the other has grown by": (
        SHARED,
        card(3700, {OURS: None, OTHER: 1400}),
        False,
        2000,
    ),
    "by the difference, plus what one that left had": (SHARED, card(2300, {OURS: None}), False, 2000),
    "not while somebody came": (EMPTY, card(2300, {OURS: None, OTHER: None}), False, 0),
    "not while somebody left": (SILENT, card(2300, {OURS: None}), False, 0),
    "not with nothing known from before": (None, card(2300, {OURS: None}), False, 0),
    "not where a card that it does not use fills up": (EMPTY, card(2300), False, 0),
    "by the difference where no process is listed": (EMPTY, card(2300), True, 2000),
    "as the only new one, by another number": (EMPTY, card(2300, {HOSTS: None}), True, 2000),
    "as the only new one, by what that one is told to take": (EMPTY, card(2400, {HOSTS: 1900}), True, 1900),
    "not as one of two new ones": (EMPTY, card(2300, {HOSTS: None, OTHER: None}), True, 0),
    "not from a card that says nothing": (EMPTY, card(None), True, 0),
    "nothing within what moves by itself": (EMPTY, card(300 + TOLERANCE_MB), True, 0),
}


@pytest.mark.parametrize(("before", "now", "on_card", "mb"), TAKES.values(), ids=TAKES)
def test_what_a_model_takes(before: GpuReading | None, now: GpuReading, on_card: bool, mb: int) -> None:
    memory = CardMemory("m", [before] if before else [])
    memory.note([now], OURS, on_card=on_card, hot=True)
    assert (memory.takes_mb, memory.peak_mb) == (mb, mb)


def test_the_peak_is_of_the_time_when_it_is_hot_and_of_all_cards_together() -> None:
    memory = CardMemory("m", [card(300), card(200, index=1)])
    memory.note([card(5000, {OURS: 4000}), card(200, index=1)], OURS)
    assert (memory.takes_mb, memory.peak_mb) == (4000, 0), "while it loads"
    for one, two in ((2000, 900), (2100, 1000), (1500, 1200)):
        memory.note([card(one + 300, {OURS: one}), card(two + 200, {OURS: two}, 1)], OURS, hot=True)
    assert (memory.takes_mb, memory.peak_mb) == (2700, 3100)
    memory.note([card(9000, {OURS: 9000}), card(None, index=1)], OURS, hot=True)
    assert memory.peak_mb == 3100, "half of its cards tell no peak"
    memory.note([card(300), card(200, index=1)], None, hot=True)
    assert memory.takes_mb == 10_200, "while its process is started again"


def test_a_card_that_it_is_not_on_does_not_count() -> None:
    memory = CardMemory("m", [card(300), card(200, index=1)])
    memory.note([card(2300, {OURS: None}), card(5000, index=1)], OURS, on_card=True, hot=True)
    assert memory.peak_mb == 2000


TOLD = card(2300, {OURS: 2000})
NOT_TOLD = card(2300, {OURS: None})
BACK = {
    "all of it": (EMPTY, TOLD, card(300), Returned(2000)),
    "as before, within what moves by itself": (EMPTY, TOLD, card(300 + TOLERANCE_MB), Returned(2000)),
    "nearly all, and its process has left": (EMPTY, TOLD, card(490), Returned(2000)),
    "nearly all, but its process is there": (
        EMPTY,
        TOLD,
        card(490, {OURS: 190}),
        Returned(
            1810,
            "card 0: 190 of 2000 MB of m are not back (490 MB used, 300 before it was loaded, by process 100); nvidia-smi "
            "shows who holds them",
        ),
    ),
    "a third of it": (
        EMPTY,
        TOLD,
        card(1633),
        Returned(
            667,
            "card 0: 1333 of 2000 MB of m are not back (1633 MB used, 300 before it was loaded); nvidia-smi shows who holds "
            "them",
        ),
    ),
    "nothing, with nothing known from before": (
        None,
        TOLD,
        card(2300),
        Returned(0, "card 0: 2000 of 2000 MB of m are not back (2300 MB used); nvidia-smi shows who holds them"),
    ),
    "a stranger has come, who is told": (EMPTY, TOLD, card(2100, {OTHER: 1800}), Returned(2000)),
    "a stranger has come, who is not": (
        EMPTY,
        TOLD,
        card(2100, {OTHER: None}),
        Returned(
            unknown="card 0: others came onto it or left, and the driver does not say what they take"
        ),
    ),
    "by the difference": (EMPTY, NOT_TOLD, card(300), Returned(2000)),
    "a stranger has left meanwhile": (
        SHARED,
        card(3300, {OURS: 2000, OTHER: 1000}),
        card(300),
        Returned(2000),
    ),
    "its card is lost": (EMPTY, TOLD, card(None), Returned(unknown="card 0: GPU is lost")),
}  # fmt: skip


@pytest.mark.parametrize(("before", "held", "after", "found"), BACK.values(), ids=BACK)
def test_what_is_back(
    before: GpuReading | None, held: GpuReading, after: GpuReading, found: Returned
) -> None:
    memory = CardMemory("m", [before] if before else [])
    memory.note([held], OURS)
    assert memory.returned([after]) == found


def test_each_card_is_judged_and_named() -> None:
    memory = CardMemory("m", [card(300), card(200, index=1)])
    memory.note([card(2300, {OURS: 2000}), card(1200, {OURS: 1000}, 1)], OURS)
    found = memory.returned([card(300), card(1200, index=1)])
    assert found.back_mb == 2000
    assert found.missing.startswith("card 1: 1000 of 1000 MB of m are not back")
    gone = memory.returned([card(300)])
    assert (gone.back_mb, gone.missing, gone.unknown) == (2000, "", "card 1: it tells nothing")


def test_a_model_that_was_never_measured_is_not_waited_for() -> None:
    memory = CardMemory("m", [EMPTY])
    memory.note([replace(EMPTY, memory_used_mb=5000)], OURS)
    assert (memory.takes_mb, memory.returned([card(5000)])) == (0, Returned())
