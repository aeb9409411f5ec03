"""Workers that share a card: one at a time holds a model there. Pure.

A model that is split over two cards has a worker of its own, whose cards have their single workers, too. The memory of a card
is one, so while one of these workers holds a model, or is on its way to one, the others have none. The brain's cards are
shared with a worker only where the configuration says so (``share_gpus``): then both fit, by its word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, inf

from .placing_view import Chosen, Entry, Seat

_MEMORY = frozenset(
    {"loading", "hot", "emptying", "unloading", "failed"}
)  # failed: its process may still be ending


def exclude(one: Seat, other: Seat) -> bool:
    """May only one of the two hold a model of its own cards?"""
    if one.worker == other.worker or "brain" in (one.role, other.role):
        return False
    return bool(set(one.cards) & set(other.cards))


def in_the_way(seat: Seat, seats: Iterable[Seat], catalogue: Mapping[str, Entry]) -> list[Seat]:
    """The workers that must be without a model before ``seat`` may load one: those that are to hold one, and those that
    still have the memory of one."""
    return [s for s in seats if exclude(seat, s) and (s.chosen.takes_cards or _has_memory(s, catalogue))]


def _has_memory(seat: Seat, catalogue: Mapping[str, Entry]) -> bool:
    """Is a model in its cards' memory, or may it be? A worker that has not heard the last word may just obey an older one."""
    if not seat.here or seat.generation != seat.chosen.generation:
        return seat.here
    entry = catalogue.get(seat.model or "")
    return seat.phase in _MEMORY and not (entry is not None and entry.spec.get("url"))


def away(chosen: Mapping[str, Chosen], absent_s: Mapping[str, float], patience_s: float) -> list[Seat]:
    """The workers that are not here and are to hold a model when they come back. ``absent_s``: how long each is away.

    ``willing``: away for so long that it may lose its model to another.
    """
    return [
        Seat(
            worker,
            group="",
            chosen=what,
            generation=what.generation,
            since_s=inf,
            willing=absent_s.get(worker, 0.0) >= patience_s,
            cards=what.cards,
            here=False,
        )
        for worker, what in chosen.items()
        if what.takes_cards and what.cards
    ]


def entangled(seats: Sequence[Seat], catalogue: Mapping[str, Entry]) -> list[Seat]:
    """Those of workers that exclude each other that are to give way although both are to hold a model.

    So it can only be where the configuration has given them other cards. What is pinned, hot or in use stays.
    """

    def worth(seat: Seat) -> tuple[bool, bool, bool, int]:
        entry = catalogue.get(seat.chosen.model or "")
        return (seat.here, entry is not None and entry.pinned, seat.hot, seat.leases)

    stay: list[Seat] = []
    gone: list[Seat] = []
    for seat in sorted((s for s in seats if s.chosen.takes_cards), key=worth, reverse=True):
        (gone if any(exclude(seat, other) for other in stay) else stay).append(seat)
    return gone


def least_shared(seats: Iterable[Seat], others: Sequence[Seat]) -> Seat | None:
    """The first of those whose cards the fewest other workers have: it leaves the pairs free for what needs a pair."""
    return min(seats, key=lambda s: sum(exclude(s, other) for other in others), default=None)


def on_card(entry: Entry | None, seat: Seat, card: str) -> int:
    """MiB that a model takes of one card of its worker: by its ``tensor_split``, else the same of each."""
    if entry is None or card not in seat.cards:
        return 0
    weights: tuple[float, ...] = tuple(entry.spec.get("tensor_split") or ())
    if len(weights) != len(seat.cards):
        weights = (1.0,) * len(seat.cards)
    return ceil(entry.vram_mb * weights[seat.cards.index(card)] / sum(weights))


def has_room(entry: Entry, seat: Seat) -> bool:
    """Have the worker's cards as much memory free as a model takes? Where nobody says, they have."""
    if entry.spec.get("url") or len(seat.free_mb) != len(seat.cards):
        return True
    return all(
        free >= on_card(entry, seat, card) for card, free in zip(seat.cards, seat.free_mb, strict=True)
    )
