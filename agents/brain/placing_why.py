"""What holds up a placement: for each worker that might take a model, why it does not, and what would change that. Pure.

It asks what ``placing_asks`` asks, in the same order, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from .exclusion import away
from .naming import listed, no_model_for
from .placing_asks import ABSENT_S, FAILED_RETRY_S, NO_MODEL, STARVED_S, Answering
from .placing_turn import Turn
from .placing_view import LOAD, UNLOAD, Ask, Seat, View, Want

AGAIN_S: Final = 60.0  #: before a request that came to nothing is made again
_SEEN_S: Final = 3.0  #: after it an ask that was made stands in the view
_MESSAGE: Final = 200  #: of what a worker or a file's reader says
_STATES: Final = {
    "paused": ("is paused", "rigbus resume {0}"),
    "draining": ("is draining", "rigbus resume {0}"),
    "suspect": ("is silent", "rigbus status"),
}


@dataclass(frozen=True, slots=True)
class Why:
    """Why one worker does not take a model. ``left_s``: "in so many seconds" belongs to the end of ``text``."""

    worker: str
    text: str
    fix: str = ""
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class HeldUp:
    """An ask, or a kind of work, that waits for a model: ``of`` is the one. ``text`` "": the workers' reasons say it."""

    of: Ask | Want
    model: str
    text: str = ""
    fix: str = ""
    left_s: float | None = None
    workers: tuple[Why, ...] = ()


class Explaining(Answering):
    """See the module."""

    __slots__ = ()

    def why(self, view: View) -> str:
        """One line for people about work that waits for a model; "" where nothing is to be said."""
        if not self.catalogue:
            return NO_MODEL
        if not view.seats:
            return "no worker can hold a model: pip install 'rigbus[llm]', then rigbus up"
        said = [_words(s) for s in view.seats if s.phase != "cold" or not s.settled or s.message]
        return "; ".join(said[:8]) or f"{len(view.seats)} model workers, all cold"

    def held_up(self, view: View, now: float, crowded: Collection[str] = ()) -> list[HeldUp]:
        """What each open ask and each kind of waiting work waits for. ``crowded``: workers whose cards commands still fill."""
        if not self.catalogue or not view.seats:
            return []
        turn = self._turn(view, now)
        asks = [self._meant(ask) for ask in view.asks]
        found = [self._of_ask(given, ask, turn, crowded) for given, ask in zip(view.asks, asks, strict=True)]
        own = {ask.model: ask for ask in asks if ask.automatic and ask.op == LOAD}
        return found + [self._of_want(want, own, turn, crowded) for want in view.wants if want.of_model]

    def _turn(self, view: View, now: float) -> Turn:
        absent_s = {worker: now - at for worker, at in self._absent_at.items()}
        return Turn(view, [*view.seats, *away(view.chosen, absent_s, ABSENT_S)], now)

    @staticmethod
    def _own(model: str) -> Ask:
        """As automation would ask for it."""
        return Ask("", "", LOAD, model, automatic=True)

    def _of_ask(self, given: Ask, ask: Ask, turn: Turn, crowded: Collection[str]) -> HeldUp:
        if ask.op == UNLOAD:
            seats = [
                s
                for s in turn.view.seats
                if s.chosen.ask == ask.id or (ask.worker or ask.model) in (s.worker, s.chosen.model)
            ]
            said = [Why(s.worker, f"is {s.phase} ({s.model or 'nothing'})") for s in seats]
            used = [Why(s.worker, f"ends what uses {s.model}") for s in seats if s.leases]
            return HeldUp(given, ask.model, workers=tuple(used or said))
        if ask.model not in self.catalogue:
            return HeldUp(given, ask.model)  # it is refused in a moment
        return self._of_model(given, ask, turn, crowded)

    def _of_want(self, want: Want, own: dict[str, Ask], turn: Turn, crowded: Collection[str]) -> HeldUp:
        model = self._model_for(want)
        if model is None:
            broken = next((e for e in self.catalogue.values() if want.needs <= e.tags), None)
            if broken is not None:
                text = f"{broken.name} cannot be loaded: {broken.problem[:_MESSAGE]}"
                return HeldUp(want, broken.name, text, "repair the file; it is looked at again by itself")
            lack = no_model_for(want.needs, self.catalogue) or f"there are: {listed(self.catalogue)}"
            fix = "change the task, or add such a model under [models.NAME] and start the rig again"
            return HeldUp(want, "", lack, fix)
        if model in own:
            return self._of_model(want, own[model], turn, crowded)
        left_s = self.settings.heat_after_s - want.waits_s
        if left_s > 0:
            return HeldUp(want, model, f"{model} is asked for", left_s=left_s)
        asked = [at for (op, name, _), at in self._asked_at.items() if (op, name) == (LOAD, model)]
        held = self._of_model(want, self._own(model), turn, crowded)
        made_at = max(asked, default=turn.now)
        if made_at + _SEEN_S <= turn.now < made_at + AGAIN_S and not any(
            s.chosen.model == model for s in turn.seats
        ):
            left_s = made_at + AGAIN_S - turn.now
            text = f"the rig's last ask for {model} came to nothing, it asks again"
            return HeldUp(want, model, text, f"rigbus load {model}", left_s, held.workers)
        return held

    def _of_model(self, of: Ask | Want, ask: Ask, turn: Turn, crowded: Collection[str]) -> HeldUp:
        seats = self._fitting(ask.model, turn.view.seats)
        if ask.worker:
            seats = [s for s in turn.view.seats if s.worker == ask.worker] or seats
        if not seats:
            return HeldUp(of, ask.model, f"no worker can hold {ask.model}: none has its role and cards")
        said = tuple(self._why_not(seat, ask, turn, crowded) for seat in seats)
        fix = next((why.fix for why in said if why.fix), "")
        if not fix and isinstance(of, Want) and not any(s.chosen.model == ask.model for s in seats):
            fix = f"rigbus load {ask.model}"
        return HeldUp(of, ask.model, fix=fix, workers=said)

    # ------------------------------------------------------------ one worker

    def _why_not(self, seat: Seat, ask: Ask, turn: Turn, crowded: Collection[str]) -> Why:
        """Why a worker has not taken a model yet."""
        name, model = seat.worker, ask.model
        if seat.chosen.model == model and seat.phase != "failed":
            if seat.hot:
                return Why(name, f"holds {model}")
            return Why(
                name, f"is to load {model}" if seat.phase == "cold" else f"is {seat.phase} ({seat.model})"
            )
        failed_at = self._failed_at.get((model, name))
        if failed_at is not None and not ask.worker:
            text = f"could not load {model}" + (
                f": {seat.message[:_MESSAGE]}" if seat.phase == "failed" else ""
            )
            fix = f"rigbus load {model} --worker {name}"
            return Why(name, f"{text}; tried again", fix, failed_at + FAILED_RETRY_S - turn.now)
        by_name = bool(ask.worker) and not ask.automatic
        if not seat.willing and not by_name:
            text, fix = _STATES.get(seat.word, ("takes no work", "rigbus status"))
            return Why(name, text, fix.format(name))
        stays = None if by_name else self._stays(seat, ask, turn)
        if stays is not None:
            return stays
        for other in self._blocking(seat, model, turn):
            held = "the memory of its last model is not back"
            inner = self._stays(other, ask, turn) or Why(
                other.worker, f"holds {other.chosen.model}" if other.chosen.model else held
            )
            return Why(
                name, f"shares a card with {other.worker}, which {inner.text}", inner.fix, inner.left_s
            )
        return self._not_now(seat, ask, turn, crowded)

    def _not_now(self, seat: Seat, ask: Ask, turn: Turn, crowded: Collection[str]) -> Why:
        """Why a worker that is free does not take it at this moment."""
        name, most = seat.worker, self.settings.max_hot
        if not seat.settled and ask.worker != name:
            return Why(name, f"is {seat.phase} ({seat.model or 'nothing'})")
        local = not self.catalogue[ask.model].spec.get("url")
        for other in turn.view.seats:
            if local and other.worker != name and other.group == seat.group and other.loads:
                return Why(name, f"waits while {other.worker} loads {other.chosen.model} over the same link")
        if ask.automatic and seat.chosen.model is None and not self._room(turn.view):
            return Why(
                name,
                f"is cold, but as many are hot as may be (max_hot = {most})",
                "raise max_hot in [placement]",
            )
        if name in crowded:
            return Why(name, "waits until commands on its card have ended, they fill its memory")
        return Why(name, "can take it")

    def _stays(self, seat: Seat, ask: Ask, turn: Turn) -> Why | None:
        """Why the model that a worker holds does not give way; None: it holds none, or it does."""
        name, held, now = seat.worker, seat.chosen.model, turn.now
        if held is None or (seat.phase == "failed" and seat.settled):
            return None
        if self._pinned(seat):
            return Why(name, f"holds {held}, which is pinned", f"rigbus unload --worker {name}")
        if not seat.here:
            return None if seat.willing else Why(name, f"is to hold {held}, and is away")
        if not seat.settled:
            return Why(name, f"is {seat.phase} ({held})")
        if not seat.willing:
            text, fix = _STATES.get(seat.word, ("takes no work", "rigbus status"))
            return Why(name, f"holds {held} and {text}", fix.format(name))
        least_s = self.settings.min_hot_s
        if seat.leases:
            left_s = max(least_s, STARVED_S) + self._seen_at.get(ask.id, now) - now
            if left_s > 0:
                return Why(name, f"holds {held}, which is in use, and gives way at the latest", "", left_s)
        if ask.automatic and seat.since_s < least_s:
            fix = f"rigbus load {ask.model} --worker {name}"
            return Why(name, f"holds {held}, which may give way (min_hot_s)", fix, least_s - seat.since_s)
        return None


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
