"""Memory of cards that a model and commands share. Pure.

A model worker and a worker of commands are on the same card. The latter's budget is the card's less what the model takes, or
is about to take: first the budget shrinks, then commands that are too many end by themselves, then the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .exclusion import on_card
from .placing import Entry, Place, Reserve, Seat


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A worker of commands with cards. ``budget_mb``: what it offers now (None: not limited), ``beside_mb`` less than its cards
    have, for the models beside it; ``leased_mb``: what its leases take. All in MiB."""

    worker: str
    cards: tuple[str, ...]
    budget_mb: int | None = None
    leased_mb: int = 0
    beside_mb: int = 0

    def fits(self, beside_mb: int) -> bool:
        """Is there room for models of so much beside what its leases take?"""
        if self.budget_mb is None:
            return True
        return self.leased_mb <= max(0, self.budget_mb + self.beside_mb - beside_mb)


def beside(
    neighbour: Neighbour, seats: Iterable[Seat], meant: Mapping[str, str], catalogue: Mapping[str, Entry]
) -> int:
    """MiB that models beside a worker take or are to take; ``meant``: worker -> the model that is to be placed there next.

    Of several cards the one that they take most of counts, as the worker's budget is that of one card.
    """
    total = dict.fromkeys(neighbour.cards, 0)
    for seat in seats:
        held = seat.model if seat.phase != "cold" else None  # until its process is gone
        models = {held, seat.chosen.model, meant.get(seat.worker)}
        for card in set(seat.cards) & set(neighbour.cards):
            total[card] += max(on_card(catalogue.get(model or ""), seat, card) for model in models)
    return max(total.values(), default=0)


def share(
    places: Sequence[Place],
    seats: Sequence[Seat],
    neighbours: Iterable[Neighbour],
    catalogue: Mapping[str, Entry],
) -> tuple[list[Place], list[Reserve]]:
    """Those placements that may be made now, and what workers beside models are to be told.

    A model that has no room yet waits: its place is kept, so that no more commands take it.
    """
    meant = {place.seat.worker: place.model for place in places if place.model is not None}
    crowded: set[str] = set()
    told: list[Reserve] = []
    for neighbour in neighbours:
        wanted_mb = beside(neighbour, seats, meant, catalogue)
        if wanted_mb != neighbour.beside_mb:
            told.append(Reserve(neighbour.worker, wanted_mb))
        if not neighbour.fits(wanted_mb) or wanted_mb > neighbour.beside_mb:
            near = [s.worker for s in seats if set(s.cards) & set(neighbour.cards)]
            crowded.update(worker for worker in near if worker in meant)
    return [p for p in places if p.seat.worker not in crowded], told
