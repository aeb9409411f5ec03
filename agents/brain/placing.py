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

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .exclusion import entangled, least_shared
from .placing_asks import FAILED_RETRY_S, NOBODY
from .placing_turn import Turn, overruled
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
from .placing_why import AGAIN_S, Explaining

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


@dataclass(slots=True)
class Placing(Explaining):
    """See the module's laws."""

    def step(self, view: View, now: float) -> list[Action]:
        """What is to be done now. ``now`` in monotonic seconds."""
        self._note(view, now)
        view = replace(view, asks=[self._meant(ask) for ask in view.asks])
        turn = self._turn(view, now)
        actions = overruled(turn)
        for gone in entangled(turn.seats, self.catalogue):
            turn.taken.add(gone.worker)
            actions.append(Place(gone, None, NOBODY))
        actions += self._take_back(turn)
        for ask in turn.view.asks:
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

    def _note(self, view: View, now: float) -> None:
        """Since when things are as they are."""
        _since(self._idle_at, (s.worker for s in view.seats if s.hot and not s.leases), now)
        _since(self._seen_at, (ask.id for ask in view.asks), now)
        _since(self._absent_at, (worker for worker, c in view.chosen.items() if c.model is not None), now)
        for seat in view.seats:
            if seat.phase == "failed" and seat.settled and seat.chosen.model is not None:
                self._failed_at[seat.chosen.model, seat.worker] = now - min(seat.since_s, FAILED_RETRY_S)
            elif seat.hot and seat.model is not None:
                self._failed_at.pop((seat.model, seat.worker), None)
        self._failed_at = {key: at for key, at in self._failed_at.items() if now < at + FAILED_RETRY_S}

    # ------------------------------------------------------------ automation

    def _renew(self, view: View) -> Request | None:
        """What is held as the configuration says no more: a changed model is loaded anew, one that is gone gives way."""
        for seat in view.seats:
            if not seat.settled or seat.leases or not seat.willing or not self._changed(seat):
                continue
            held = self.catalogue.get(seat.chosen.model or "")
            if held is not None and held.problem:
                continue  # as long as it works
            if held is not None and seat in self._fitting(held.name, [seat]):
                return self._request(LOAD, held.name, seat, "its configuration has changed")
            why = "its model is configured no more" if held is None else "its model is for other cards now"
            if self._usable(self.default) and seat in self._fitting(self.default, [seat]):
                return self._request(LOAD, self.default, seat, why)
            return self._request(UNLOAD, seat.chosen.model or "", seat, why)
        return None

    def _start(self, turn: Turn) -> Request | None:
        """What is hot from the beginning, where nobody has decided anything yet."""
        view = turn.view
        new = [s for s in view.seats if s.chosen.generation == 0]
        for entry in self.catalogue.values():
            if entry.problem or not (entry.pinned or entry.role == "brain"):
                continue
            free = [s for s in self._fitting(entry.name, new) if self._pin(s, entry.name, turn) is None]
            seat = least_shared(free, turn.seats)
            held = any(s.chosen.model == entry.name and s.phase != "failed" for s in view.seats)
            if seat is not None and not held:
                return self._request(LOAD, entry.name, seat, "pinned" if entry.pinned else "the brain's")
        used = [
            s for s in view.seats if s.chosen.generation > 0 and s.role != "brain" and s.phase != "failed"
        ]
        if not self._usable(self.default) or len(used) >= self.settings.hot_at_start:
            return None
        seat = self._cold(self._own(self.default), turn)
        if seat not in new:
            return None
        return self._request(LOAD, self.default, seat, "hot at start") if seat is not None else None

    def _heat(self, turn: Turn) -> Request | None:
        """Load for work that no hot model takes, or that waits behind all that do."""
        view = turn.view
        hot = [s for s in view.seats if s.chosen.model is not None and s.phase != "failed"]
        for want in sorted((w for w in view.wants if w.of_model), key=lambda w: -w.waits_s):
            if want.waits_s < self.settings.heat_after_s:
                continue
            model = self._model_for(want)
            if model is None:
                continue
            serve = [s for s in hot if want.needs <= self.catalogue_tags(s)]
            if serve and any(not s.settled for s in serve):
                continue  # on its way
            free = self._cold(self._own(model), turn)
            why = f"{want.n} {'task waits' if want.n == 1 else 'tasks wait'} for it"
            if free is not None and self._room(view):
                return self._request(LOAD, model, free, why)
            may = [s for s in self._fitting(model, view.seats) if not self._pinned(s)]
            may = [s for s in may if self._pin(s, model, turn) is None and self._promises(s, model)]
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

    def _promises(self, seat: Seat, model: str) -> bool:
        """Is it worth a try? Nothing that works is lost for a model that has just failed, wherever that was."""
        failed = [worker for name, worker in self._failed_at if name == model]
        return not failed or (seat.phase == "failed" and seat.worker not in failed)

    def _usable(self, model: str) -> bool:
        entry = self.catalogue.get(model)
        return entry is not None and not entry.problem

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
