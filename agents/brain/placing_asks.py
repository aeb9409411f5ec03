"""What becomes of the asks for models: which worker takes one, and who makes room for it. Pure; the laws stand in ``placing``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .exclusion import has_room, in_the_way, least_shared
from .naming import resolved
from .placing_turn import Turn, ended, instead, seat_to_unload
from .placing_view import (
    LOAD,
    UNLOAD,
    Action,
    Ask,
    Done,
    Entry,
    Failed,
    Keep,
    Place,
    Seat,
    Settings,
    View,
    Want,
)

ABSENT_S: Final = 15.0  #: a worker that was there may be away so long while it is started again
FAILED_RETRY_S: Final = 300.0  #: before a model is tried again by itself where it could not be loaded
STARVED_S: Final = 60.0  #: work waits so long for a model before one that is always in use gives way
#: Of a model's spec: what its worker must load or offer anew when it changes.
MATTERS: Final = (
    "path",
    "url",
    "remote_model",
    "api_key_env",
    "api_key_file",
    "ctx",
    "gpu_layers",
    "parallel",
    "threads",
    "split",
    "tensor_split",
    "tier",
    "placement",
    "role",
    "max_tokens",
    "brain_elsewhere",
    "also",
)
NO_MODEL: Final = "no model is configured: rigbus up --model FILE.gguf, or [models.NAME] in rigbus.toml"
NOBODY: Final = Ask("", "", UNLOAD)  #: for what is decided without an ask


@dataclass(slots=True)
class Answering:
    """Models, their workers, and since when things are as they are."""

    catalogue: Mapping[str, Entry]
    settings: Settings = field(default_factory=Settings)
    default: str = ""  #: the model that is meant where a task names none
    looked_at: float = (
        math.inf
    )  #: when the models' files were looked at last; inf: what is known of them is so
    _idle_at: dict[str, float] = field(
        default_factory=dict
    )  # worker -> since when it holds a model and no lease
    _seen_at: dict[str, float] = field(default_factory=dict)  # ask -> when it was first seen
    _failed_at: dict[tuple[str, str], float] = field(
        default_factory=dict
    )  # (model, worker) -> when it could not be loaded there
    _absent_at: dict[str, float] = field(
        default_factory=dict
    )  # worker with a decision -> since when it is away
    _asked_at: dict[tuple[str, str, str], float] = field(
        default_factory=dict
    )  # requests that led to nothing yet

    # ------------------------------------------------------------ asks

    def _meant(self, ask: Ask) -> Ask:
        """The ask with the model that its words mean."""
        model = ask.model or (self.default if ask.op == LOAD else "")
        return replace(ask, model=resolved(model, self.catalogue))

    def _take_back(self, turn: Turn) -> list[Action]:
        """The decisions whose asks were cancelled before they were fulfilled."""
        found: list[Action] = []
        for seat in turn.view.seats:
            what = seat.chosen
            if not what.taken_back or seat.worker in turn.taken:
                continue
            if seat.hot and what.model is not None:
                turn.taken.add(seat.worker)
                found.append(Keep(seat))  # a load of it later on, after a crash, is no business of the cancel
                continue
            still = seat.model if seat.phase in ("hot", "emptying") and seat.model in self.catalogue else None
            if still == what.model:
                still = None  # it was to be loaded anew
            if what.model is None and (seat.settled or still is None):
                continue
            turn.taken.add(seat.worker)
            found.append(Place(seat, still, NOBODY))
            if what.automatic and what.model is not None:  # not at once again
                self._asked_at.update({(LOAD, what.model, worker): turn.now for worker in ("", seat.worker)})
        return found

    def _answer(self, ask: Ask, turn: Turn) -> list[Action]:
        """What to do about one ask; nothing: wait."""
        view, now = turn.view, turn.now
        mine = next((s for s in view.seats if s.chosen.ask == ask.id), None)
        if mine is not None:
            ends = ended(ask, mine)
            if ends and isinstance(ends[0], Failed) and not ask.worker and self._cold(ask, turn):
                ends = [Keep(mine)]  # what it does not get there it may get on another card
            return [a for a in ends if not isinstance(a, Keep)] if mine.worker in turn.taken else ends
        gone = next((w for w, c in view.chosen.items() if c.ask == ask.id or w == ask.worker), None)
        if gone is not None and now < self._absent_at.get(gone, -ABSENT_S) + ABSENT_S:
            return []  # its worker is started again
        if self._problem(ask, view) and self.looked_at < self._seen_at[ask.id]:
            return []  # its file may have been repaired: it is looked at first
        error = self._impossible(ask, turn)
        if error:
            return [Failed(ask, error)]
        if ask.automatic and not ask.worker and not any(self._wants_model(w) for w in view.wants):
            return [Done(ask, "nothing waits for it any more")]
        if ask.op == UNLOAD:
            seat = seat_to_unload(ask, view)
            if seat is None:
                return [Done(ask, "no worker holds it")]
            return instead(Place(seat, None, ask), turn) if seat.worker not in turn.taken else []
        return self._load(ask, turn)

    def _load(self, ask: Ask, turn: Turn) -> list[Action]:
        """Load it, or first unload what is in its way on the same cards."""
        seat = self._seat_to_load(ask, turn)
        if seat is None or seat.worker in turn.taken:
            return []
        if seat.chosen.model == ask.model and not self._changed(seat) and seat.phase != "failed":
            return [Done(ask, f"{seat.worker} holds {ask.model} already")] if seat.hot else []
        if ask.automatic and ask.worker and seat.chosen.model is not None and not self._changed(seat):
            return [Done(ask, f"{seat.worker} is to hold {seat.chosen.model} by now")]
        local = not self.catalogue[ask.model].spec.get("url")
        others = [s for s in turn.view.seats if s.worker != seat.worker]
        if local and any(s.group == seat.group and (s.loads or s.worker in turn.taken) for s in others):
            return []
        if not seat.settled and ask.worker != seat.worker:
            return []  # a person who names the worker may take it out of a load
        if not turn.free(seat):
            return []
        turn.kept.append(seat)
        blocking = self._blocking(seat, ask.model, turn)
        if blocking:
            gone = [o for o in blocking if o.chosen.model is not None and o.worker not in turn.taken]
            return [Place(other, None, NOBODY) for other in gone]
        return instead(Place(seat, ask.model, ask), turn)

    def _impossible(self, ask: Ask, turn: Turn) -> str:
        """Why an ask can never be fulfilled; "" where it can."""
        view = turn.view
        workers = sorted({s.worker for s in view.seats})
        if ask.worker and ask.worker not in workers:
            return f"there is no model worker {ask.worker!r}; there are: {', '.join(workers) or 'none'}"
        if ask.op == UNLOAD:
            named = ask.model or ask.worker
            return "" if named else "an unload names a model or a worker (rigbus status has both)"
        if not self.catalogue:
            return NO_MODEL
        if ask.model not in self.catalogue:
            known = ", ".join(sorted(self.catalogue)) or "none"
            return f"there is no model {ask.model!r}; there are: {known} ([models.NAME] in rigbus.toml)"
        if problem := self._problem(ask, view):
            return f"{ask.model} cannot be loaded: {problem}"
        fitting = self._fitting(ask.model, view.seats)
        if not fitting and not self._some_return(turn.now):
            return f"no worker can hold {ask.model!r}: there is no model worker for its role and placement"
        seats = [s for s in view.seats if s.worker == ask.worker] if ask.worker else fitting
        pins = [self._pin(seat, ask.model, turn) for seat in seats]
        if pins and all(pins) and pins[0] is not None:
            pin = pins[0]
            return (
                f"{pin.worker} holds {pin.chosen.model}, which is pinned, on a card that {ask.model} needs; "
                f"`rigbus unload --worker {pin.worker}` makes room"
            )
        return ""

    def _problem(self, ask: Ask, view: View) -> str:
        """What is wrong with the file of a model that is to be loaded; "" where nothing is, or it is hot all the same."""
        entry = self.catalogue.get(ask.model) if ask.op == LOAD else None
        if entry is None or any(s.hot and s.chosen.model == ask.model for s in view.seats):
            return ""
        return entry.problem

    # ------------------------------------------------------------ workers

    def _fitting(self, model: str, seats: Iterable[Seat]) -> list[Seat]:
        """The workers that a model may go to: the brain's to the brain's cards, where it has some; a split one to its cards."""
        entry = self.catalogue[model]
        several = entry.placement == "split_gpu"
        seats = [s for s in seats if not s.cards or not several or len(s.cards) > 1]
        if entry.role == "brain" and any(s.role == "brain" for s in seats):
            return [s for s in seats if s.role == "brain"]
        # one that a person has started for several cards, without their names, takes what needs so many
        return [
            s
            for s in seats
            if (s.role != "brain" or entry.role == "brain")
            and (s.split == entry.split or (not s.split and len(s.cards) == len(entry.split)))
        ]

    def _blocking(self, seat: Seat, model: str, turn: Turn) -> list[Seat]:
        """The workers whose models must be gone before this one gets ``model``."""
        if self.catalogue[model].spec.get("url"):
            return []
        return in_the_way(seat, turn.seats, self.catalogue)

    def _pin(self, seat: Seat, model: str, turn: Turn) -> Seat | None:
        """Another worker that holds a pinned model on a card of this one."""
        return next((other for other in self._blocking(seat, model, turn) if self._pinned(other)), None)

    def _seat_to_load(self, ask: Ask, turn: Turn) -> Seat | None:
        view = turn.view
        seats = [s for s in self._fitting(ask.model, view.seats) if ask.worker in ("", s.worker)]
        if ask.worker and not seats:
            seats = [s for s in view.seats if s.worker == ask.worker]  # a person says so
        here = [s for s in seats if s.chosen.model == ask.model and s.phase != "failed"]
        if here and (ask.worker or not ask.automatic):
            return here[0]
        seats = [s for s in seats if turn.free(s)]
        room = self._room(view) or not ask.automatic
        if not ask.worker:
            good = [s for s in seats if (ask.model, s.worker) not in self._failed_at]
            seats = good if ask.automatic else good or seats
        cold = [s for s in seats if s.chosen.model is None and s.willing]
        cold = [s for s in cold if not self._blocking(s, ask.model, turn)]
        if cold and room:
            return self._roomiest(cold, ask.model, turn)
        found = [(s, self._to_give_way(s, ask, turn)) for s in seats]
        able = [(s, gone) for s, gone in found if gone is not None]
        # one that has failed is not hot: nothing is won by its end
        able = [(s, gone) for s, gone in able if room or any(o.phase != "failed" for o in gone)]
        return min(able, key=lambda each: self._loss(each[1], turn.now), default=(None, ()))[0]

    def _cold(self, ask: Ask, turn: Turn) -> Seat | None:
        """A worker that can take a model without taking one from another that is here, and where it has not just failed."""
        free = [
            s
            for s in self._fitting(ask.model, turn.view.seats)
            if s.chosen.model is None and s.willing and turn.free(s)
        ]
        for seat in list(free):
            blocking = self._blocking(seat, ask.model, turn)
            failed = (ask.model, seat.worker) in self._failed_at
            if failed or any(o.here or not o.willing or self._pinned(o) for o in blocking):
                free.remove(seat)
        return self._roomiest(free, ask.model, turn)

    def _roomiest(self, seats: Sequence[Seat], model: str, turn: Turn) -> Seat | None:
        """Of workers that could take a model one whose cards have the memory free, as far as they say so."""
        entry = self.catalogue[model]
        roomy = [s for s in seats if has_room(entry, s)]
        return least_shared(roomy or seats, turn.seats)

    def _to_give_way(self, seat: Seat, ask: Ask, turn: Turn) -> list[Seat] | None:
        """The workers whose models must go for this ask, ``seat`` among them; None where one of them does not give way."""
        named = bool(ask.worker)  # it empties itself first
        if not named and not (
            seat.willing if seat.chosen.model is None else self._gives_way(seat, ask, turn)
        ):
            return None
        blocking = self._blocking(seat, ask.model, turn)
        if not all(o.chosen.model is None or self._gives_way(o, ask, turn) for o in blocking):
            return None
        return [o for o in (seat, *blocking) if o.chosen.model is not None]

    def _gives_way(self, seat: Seat, ask: Ask, turn: Turn) -> bool:
        """May its model be unloaded for this ask?"""
        if self._pinned(seat):
            return False
        if not seat.settled:
            return False  # what somebody has asked for comes to its end
        if ask.worker and not ask.automatic and seat.here:
            return True  # a person has named the worker that needs its cards
        if not seat.willing:
            return False
        if seat.phase == "failed":
            return True
        # a model that is always in use gives way in the end: its worker takes no more and ends what runs
        patience_s = max(self.settings.min_hot_s, STARVED_S)
        starves = turn.now >= self._seen_at.get(ask.id, turn.now) + patience_s
        if seat.leases and not starves:
            return False
        return not ask.automatic or seat.since_s >= self.settings.min_hot_s

    def _loss(self, gone: Sequence[Seat], now: float) -> tuple[bool, float]:
        """The less, the better: a model that works is lost; when one of them was used last."""
        used = [s for s in gone if s.phase != "failed" and s.here]
        return bool(used), max((self._idle_at.get(s.worker, now) for s in used), default=0.0)

    # ------------------------------------------------------------ what is so

    def _changed(self, seat: Seat) -> bool:
        """Is what it holds not what the configuration says any more?"""
        entry = self.catalogue.get(seat.chosen.model or "")
        if entry is None or seat.chosen.spec is None:
            return seat.chosen.model is not None and entry is None
        return any(entry.spec.get(key) != seat.chosen.spec.get(key) for key in MATTERS)

    def _pinned(self, seat: Seat) -> bool:
        entry = self.catalogue.get(seat.chosen.model or "")
        return entry is not None and entry.pinned

    def _some_return(self, now: float) -> bool:
        """Are workers being started again? One that is away for longer was taken out of the configuration."""
        return any(now < at + ABSENT_S for at in self._absent_at.values())

    def _room(self, view: View) -> bool:
        """May one more worker be hot?"""
        hot = sum(s.chosen.model is not None and s.phase != "failed" for s in view.seats)
        return self.settings.max_hot is None or hot < self.settings.max_hot

    def _wants_model(self, want: Want) -> bool:
        """Does it wait for a model that there is?"""
        return want.of_model and self._model_for(want) is not None

    def _model_for(self, want: Want) -> str | None:
        """The model that work wants: the default where that does, else the smallest that has what it needs."""
        fits = [e for e in self.catalogue.values() if want.needs <= e.tags and not e.problem]
        if any(e.name == self.default for e in fits):
            return self.default
        return min(fits, key=lambda e: (e.tier, e.load_s, e.name)).name if fits else None
