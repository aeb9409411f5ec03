"""Which worker holds which model, decided from what the broker shows. Pure: a view and the time in, actions out.

What was decided is a fact of the broker; what is asked for is a held join (``load_llm``, ``unload_llm``) that ends when it is
so, whoever asked: a person, a file in the share, a plan, or this module's own automation. So there is one authority, and a
brain that begins anew goes on from the same rows. What is kept here are only times: how long work has waited, how long a
model was idle. A new brain waits that long again.

Laws
- One model at a time is on its way in a group of cards.
- Nothing that is used is unloaded; nothing pinned gives way to automation.
- A model goes to a cold worker before it takes the place of another.
- Of the workers that share a card one holds a model (see ``exclusion``); the others give way by the same rules, and the model
  is loaded when theirs are gone.
- An ask that is cancelled before it is fulfilled is taken back: its load ends, and what its worker still holds stays.
- Automation heats when work waits that no hot model takes, and cools when only ``script`` work waits and the model has been
  idle for longer than its way back would cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .exclusion import away, entangled, least_shared
from .placing_asks import ABSENT_S, NOBODY, Answering, Turn
from .placing_view import (
    LOAD,
    MOVING,
    UNLOAD,
    Action,
    Ask,
    Chosen,
    Done,
    Entry,
    Failed,
    Keep,
    Place,
    Request,
    Reserve,
    Seat,
    Settings,
    View,
    Want,
)

__all__ = [
    "LOAD",
    "MOVING",
    "UNLOAD",
    "Action",
    "Ask",
    "Chosen",
    "Done",
    "Entry",
    "Failed",
    "Keep",
    "Place",
    "Placing",
    "Request",
    "Reserve",
    "Seat",
    "Settings",
    "View",
    "Want",
]

AGAIN_S: Final = 60.0  #: before a request that came to nothing is made again
FAILED_RETRY_S: Final = 300.0  #: before automation tries a model again that could not be loaded


@dataclass(slots=True)
class Placing(Answering):
    """See the module's laws."""

    def step(self, view: View, now: float) -> list[Action]:
        """What is to be done now. ``now`` in monotonic seconds."""
        self._note(view, now)
        absent_s = {worker: now - at for worker, at in self._absent_at.items()}
        turn = Turn(view, [*view.seats, *away(view.chosen, absent_s, ABSENT_S)], now)
        actions: list[Action] = []
        for gone in entangled(turn.seats, self.catalogue):
            turn.taken.add(gone.worker)
            actions.append(Place(gone, None, NOBODY))
        actions += self._take_back(turn)
        for given in view.asks:
            ask = replace(given, model=given.model or self.default) if given.op == LOAD else given
            for action in self._answer(ask, turn):
                actions.append(action)
                if isinstance(action, Place | Keep):
                    turn.taken.add(action.seat.worker)
                if isinstance(action, Place):
                    self._asked_at.pop((ask.op, ask.model, ask.worker), None)
        # one at a time, so that its effect is seen before the next; and not on half a view
        if any(ask.automatic for ask in view.asks) or self._some_return(now):
            return actions
        request = self._renew(view) or self._start(turn) or self._heat(turn) or self._cool(view, now)
        if request is None or request.worker in turn.taken:
            return actions
        asked = (request.op, request.model, request.worker)
        if now < self._asked_at.get(asked, -AGAIN_S) + AGAIN_S:
            return actions  # somebody has cancelled it, or it was of no use
        self._asked_at[asked] = now
        return [*actions, request]

    def why(self, view: View) -> str:
        """One line for people about work that waits for a model; "" where nothing is to be said."""
        if not self.catalogue:
            return "no model is configured: rigbus up --model FILE.gguf, or [models.NAME] in rigbus.toml"
        if not view.seats:
            return "no worker can hold a model: pip install 'rigbus[llm]', then rigbus up"
        said = [_words(s) for s in view.seats if s.phase != "cold" or not s.settled or s.message]
        return "; ".join(said[:8]) or f"{len(view.seats)} model workers, all cold"

    def _note(self, view: View, now: float) -> None:
        """Since when things are as they are."""
        _since(self._idle_at, (s.worker for s in view.seats if s.hot and not s.leases), now)
        _since(self._seen_at, (ask.id for ask in view.asks), now)
        _since(self._absent_at, (worker for worker, c in view.chosen.items() if c.model is not None), now)
        for seat in view.seats:
            if seat.phase == "failed" and seat.chosen.model is not None:
                self._failed_at.setdefault(seat.chosen.model, now - min(seat.since_s, FAILED_RETRY_S))
            elif seat.hot and seat.model is not None:
                self._failed_at.pop(seat.model, None)
        self._failed_at = {m: at for m, at in self._failed_at.items() if now < at + FAILED_RETRY_S}

    # ------------------------------------------------------------ automation

    def _renew(self, view: View) -> Request | None:
        """What is held as the configuration says no more: a changed model is loaded anew, one that is gone gives way."""
        for seat in view.seats:
            if not seat.settled or seat.leases or not seat.willing or not self._changed(seat):
                continue
            held = self.catalogue.get(seat.chosen.model or "")
            if held is not None and seat in self._fitting(held.name, [seat]):
                return self._request(LOAD, held.name, seat, "its configuration has changed")
            why = "its model is configured no more" if held is None else "its model is for other cards now"
            if self.default in self.catalogue and seat in self._fitting(self.default, [seat]):
                return self._request(LOAD, self.default, seat, why)
            return self._request(UNLOAD, seat.chosen.model or "", seat, why)
        return None

    def _start(self, turn: Turn) -> Request | None:
        """What is hot from the beginning, where nobody has decided anything yet."""
        view = turn.view
        new = [s for s in view.seats if s.chosen.generation == 0]
        for entry in self.catalogue.values():
            if not entry.pinned and entry.role != "brain":
                continue
            free = [s for s in self._fitting(entry.name, new) if self._pin(s, entry.name, turn) is None]
            seat = least_shared(free, turn.seats)
            if seat is not None and not any(s.chosen.model == entry.name for s in view.seats):
                return self._request(LOAD, entry.name, seat, "pinned" if entry.pinned else "the brain's")
        used = [s for s in view.seats if s.chosen.generation > 0 and s.role != "brain"]
        if self.default not in self.catalogue or len(used) >= self.settings.hot_at_start:
            return None
        seat = self._cold(self.default, new, turn)
        return self._request(LOAD, self.default, seat, "hot at start") if seat is not None else None

    def _cold(self, model: str, seats: Sequence[Seat], turn: Turn) -> Seat | None:
        """A worker that can take a model without taking one from another that is here."""
        free = [
            s for s in self._fitting(model, seats) if s.chosen.model is None and s.willing and turn.free(s)
        ]
        for seat in list(free):
            blocking = self._blocking(seat, model, turn)
            if any(o.here or not o.willing or self._pinned(o) for o in blocking):
                free.remove(seat)
        return least_shared(free, turn.seats)

    def _heat(self, turn: Turn) -> Request | None:
        """Load for work that no hot model takes, or that waits behind all that do."""
        view = turn.view
        hot = [s for s in view.seats if s.chosen.model is not None and s.phase != "failed"]
        for want in sorted((w for w in view.wants if w.of_model), key=lambda w: -w.waits_s):
            if want.waits_s < self.settings.heat_after_s:
                continue
            model = self._model_for(want)
            if model is None or model in self._failed_at:
                continue
            serve = [s for s in hot if want.needs <= self.catalogue_tags(s)]
            if serve and any(not s.settled for s in serve):
                continue  # on its way
            free = self._cold(model, view.seats, turn)
            why = f"{want.n} {'task waits' if want.n == 1 else 'tasks wait'} for it"
            if free is not None and self._room(view):
                return self._request(LOAD, model, free, why)
            may = [s for s in self._fitting(model, view.seats) if not self._pinned(s)]
            may = [s for s in may if self._pin(s, model, turn) is None]
            if may and not serve:  # another model gives way, whichever is idle by then
                return Request(LOAD, model, "", why)
        return None

    def _cool(self, view: View, now: float) -> Request | None:
        """Give a card back to the commands that wait for one."""
        if any(self._wants_model(w) for w in view.wants) or not any(w.cls == "script" for w in view.wants):
            return None
        for seat in view.seats:
            entry = self.catalogue.get(seat.chosen.model or "")
            if entry is None or entry.pinned or seat.role == "brain" or not seat.hot or seat.leases:
                continue
            idle_s = now - self._idle_at.get(seat.worker, now)
            if seat.since_s >= self.settings.min_hot_s and idle_s >= max(
                self.settings.cool_after_s, 2 * entry.load_s
            ):
                return self._request(UNLOAD, entry.name, seat, "only script work waits")
        return None

    def catalogue_tags(self, seat: Seat) -> frozenset[str]:
        """What the model that was decided for a worker offers."""
        entry = self.catalogue.get(seat.chosen.model or "")
        return entry.tags if entry is not None else frozenset()

    def _request(self, op: str, model: str, seat: Seat, why: str) -> Request:
        return Request(op, model, seat.worker, why)


def _since(at: dict[str, float], now_so: Iterable[str], now: float) -> None:
    """Keep in ``at`` since when each of ``now_so`` is so."""
    names = set(now_so)
    for name in [name for name in at if name not in names]:
        del at[name]
    for name in names:
        at.setdefault(name, now)


def _words(seat: Seat) -> str:
    model = seat.model or seat.chosen.model or "nothing"
    if seat.phase == "loading":
        return f"{seat.worker} loads {model}"
    if seat.phase == "failed":
        return f"{seat.worker} could not load {model}: {seat.message}"
    if not seat.settled and seat.phase == "cold":
        return f"{seat.worker} is to load {model}" + (f": {seat.message}" if seat.message else "")
    if seat.phase == "cold":
        return f"{seat.worker} is cold: {seat.message}"
    return f"{seat.worker} is {seat.phase} ({model})" + (f": {seat.message}" if seat.message else "")
