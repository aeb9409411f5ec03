"""One look at the models and their workers, and what becomes in it of an ask that was decided or overruled. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .exclusion import exclude
from .placing_view import LOAD, UNLOAD, Action, Ask, Done, Failed, Keep, Place, Seat, View


@dataclass(slots=True)
class Turn:
    """One look: every worker that counts, and what this look has decided about them already."""

    view: View
    seats: Sequence[Seat]
    now: float
    taken: set[str] = field(default_factory=set)
    kept: list[Seat] = field(default_factory=list)  # for an ask that was first, with the cards that they have

    def free(self, seat: Seat) -> bool:
        """Nobody was before in this look."""
        return seat.worker not in self.taken and not any(
            seat.worker == other.worker or exclude(seat, other) for other in self.kept
        )


def overruled(turn: Turn) -> list[Action]:
    """Asks for a load end where a person has asked for the unload since then; they are in the view no more."""
    asks = turn.view.asks
    found: list[Action] = []
    left: list[Ask] = []
    for n, ask in enumerate(asks):
        later = next((u for u in asks[n + 1 :] if _ends(u, ask, turn)), None)
        if later is None:
            left.append(ask)
        else:
            found.append(Failed(ask, f"it was asked to be unloaded since then ({later.id[:12]})"))
    if found:
        turn.view = replace(turn.view, asks=left)
    return found


def _ends(unload: Ask, ask: Ask, turn: Turn) -> bool:
    """Does an unload end an older ask for a load?"""
    if unload.op != UNLOAD or unload.automatic or ask.op != LOAD or not (unload.model or unload.worker):
        return False
    there = next((s.worker for s in turn.view.seats if s.chosen.ask == ask.id), ask.worker)
    if unload.model and unload.worker:
        return unload.model == ask.model and there in ("", unload.worker)
    return unload.model == ask.model if unload.model else unload.worker == there


def instead(place: Place, turn: Turn) -> list[Action]:
    """A decision that may take the place of one that is on its way: the ask that came last counts, the other ends."""
    ids = [ask.id for ask in turn.view.asks]
    before = place.seat.chosen.ask
    if place.seat.settled or before not in ids:
        return [place]
    if ids.index(before) > ids.index(place.ask.id):
        return []
    other = turn.view.asks[ids.index(before)]
    return [place, Failed(other, f"{place.seat.worker} was asked for something else before it was done")]


def ended(ask: Ask, seat: Seat) -> list[Action]:
    """An ask that was decided: is it so by now?"""
    if not seat.settled:
        return []
    if seat.phase == "failed" and ask.op == LOAD:
        why = f"{seat.worker}: {seat.message or 'the model cannot be loaded'}"
        return [
            Failed(ask, why),
            Keep(seat),
        ]  # a person's retry of it is to be tried, not to hear this once more
    if ask.op == LOAD:
        return [Done(ask, f"{ask.model} is hot on {seat.worker}")] if seat.phase == "hot" else []
    freed = f", {seat.freed_mb} MB of its cards are back" if seat.freed_mb else ""
    return [Done(ask, f"{seat.worker} is cold{freed}" + (f"; {seat.message}" if seat.message else ""))]


def seat_to_unload(ask: Ask, view: View) -> Seat | None:
    """The worker that an unload means: one whose load would only begin, else the one whose model is used least."""
    seats = [
        s for s in view.seats if ask.worker in ("", s.worker) and ask.model in ("", s.chosen.model or "")
    ]
    seats = [s for s in seats if s.chosen.model is not None]
    return min(seats, key=lambda s: (s.settled, s.phase == "failed", s.leases, s.worker), default=None)
