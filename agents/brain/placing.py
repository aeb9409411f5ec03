"""Which worker holds which model, decided from what the broker shows. Pure: a view and the time in, actions out.

What was decided is a fact of the broker; what is asked for is a held join (``load_llm``, ``unload_llm``) that ends when it is
so, whoever asked: a person, a file in the share, a plan, or this module's own automation. So there is one authority, and a
brain that begins anew goes on from the same rows. What is kept here are only times: how long work has waited, how long a
model was idle. A new brain waits that long again.

Laws
- One model at a time is on its way in a group of cards.
- Nothing that is used is unloaded; nothing pinned gives way to automation.
- A model goes to a cold worker before it takes the place of another.
- Automation heats when work waits that no hot model takes, and cools when only ``script`` work waits and the model has been
  idle for longer than its way back would cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ...bus.tags import MODEL_TYPES, offered_tags

LOAD: Final = "load_llm"
UNLOAD: Final = "unload_llm"
MOVING: Final = frozenset({"asking", "loading", "emptying", "unloading"})
FAILED_RETRY_S: Final = 300.0  #: before automation tries a model again that could not be loaded


@dataclass(frozen=True, slots=True)
class Settings:
    """``[placement]``. ``max_hot`` None: as many as there are workers."""

    hot_at_start: int = 1
    max_hot: int | None = None
    heat_after_s: float = 1.0
    cool_after_s: float = 60.0
    min_hot_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the catalogue. ``spec`` is what its worker needs; ``load_s`` what its way over the link costs."""

    name: str
    spec: Mapping[str, Any]
    tier: int = 1
    placement: str = "single_gpu"
    role: str = "worker"
    pinned: bool = False
    load_s: float = 0.0
    vram_mb: int = 0

    @property
    def tags(self) -> frozenset[str]:
        """What its worker offers."""
        return frozenset(offered_tags(self.name, tier=self.tier, placement=self.placement, role=self.role))


@dataclass(frozen=True, slots=True)
class Chosen:
    """A placement as the fact holds it. ``model`` None: none. ``ask``: the task that asked for it."""

    generation: int = 0
    model: str | None = None
    ask: str = ""


@dataclass(frozen=True, slots=True)
class Seat:
    """A model worker: what was decided for it, and what it says. ``leases``: live ones."""

    worker: str
    group: str
    chosen: Chosen
    generation: int = 0
    phase: str = "cold"
    model: str | None = None
    share: float = 0.0
    since_s: float = 0.0
    message: str = ""
    leases: int = 0
    willing: bool = True
    role: str = "worker"
    cards: tuple[str, ...] = ()

    @property
    def settled(self) -> bool:
        """It has heard what was decided, and done it or failed."""
        return self.generation == self.chosen.generation and self.phase not in MOVING

    @property
    def hot(self) -> bool:
        return self.settled and self.phase == "hot"


@dataclass(frozen=True, slots=True)
class Ask:
    """A live ``load_llm`` or ``unload_llm``. ``worker``/``model`` "": any."""

    id: str
    batch: str
    op: str
    model: str = ""
    worker: str = ""
    automatic: bool = False


@dataclass(frozen=True, slots=True)
class Want:
    """Ready tasks of one kind. ``waits_s``: how long the oldest of them has been ready."""

    type: str
    cls: str | None
    needs: frozenset[str]
    n: int
    waits_s: float = 0.0

    @property
    def of_model(self) -> bool:
        return self.cls == "llm" or self.type in MODEL_TYPES


@dataclass(frozen=True, slots=True)
class View:
    """Everything at one moment."""

    seats: Sequence[Seat]
    asks: Sequence[Ask]
    wants: Sequence[Want] = ()


# -- actions


@dataclass(frozen=True, slots=True)
class Place:
    """Decide: this worker holds this model (None: none)."""

    seat: Seat
    model: str | None
    ask: Ask


@dataclass(frozen=True, slots=True)
class Done:
    """The ask is fulfilled."""

    ask: Ask
    note: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The ask never will be."""

    ask: Ask
    error: str


@dataclass(frozen=True, slots=True)
class Request:
    """Make an ask of our own; ``key`` names it once."""

    key: str
    op: str
    model: str
    worker: str
    why: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Models beside this worker of commands take so many MiB of its cards."""

    worker: str
    mb: int


Action = Place | Done | Failed | Request | Reserve


@dataclass(slots=True)
class Placing:
    """See the module's laws."""

    catalogue: Mapping[str, Entry]
    settings: Settings = field(default_factory=Settings)
    default: str = ""  #: the model that is meant where a task names none
    _idle_at: dict[str, float] = field(
        default_factory=dict
    )  # worker -> since when it holds a model and no lease

    def step(self, view: View, now: float) -> list[Action]:
        """What is to be done now. ``now`` in monotonic seconds."""
        self._note_idle(view.seats, now)
        moving = {s.group for s in view.seats if not s.settled}
        taken: set[str] = set()
        actions: list[Action] = []
        for given in view.asks:
            ask = replace(given, model=given.model or self.default) if given.op == LOAD else given
            action = self._answer(ask, view, moving, taken)
            if action is None:
                continue
            actions.append(action)
            if isinstance(action, Place):
                moving.add(action.seat.group)
                taken.add(action.seat.worker)
        if any(ask.automatic for ask in view.asks):
            return actions  # one at a time, so that its effect is seen before the next
        request = self._start(view) or self._heat(view) or self._cool(view, now)
        return [*actions, request] if request is not None else actions

    def why(self, view: View) -> str:
        """One line for people about work that waits for a model; "" where nothing is to be said."""
        if not self.catalogue:
            return "no model is configured: rigbus up --model FILE.gguf, or [models.NAME] in rigbus.toml"
        if not view.seats:
            return "no worker can hold a model: pip install 'rigbus[llm]', then rigbus up"
        said = [_words(s) for s in view.seats if s.phase != "cold" or not s.settled]
        return "; ".join(said[:8]) or f"{len(view.seats)} model workers, all cold"

    def _note_idle(self, seats: Iterable[Seat], now: float) -> None:
        idle = {s.worker for s in seats if s.hot and not s.leases}
        self._idle_at = {w: at for w, at in self._idle_at.items() if w in idle}
        for worker in idle:
            self._idle_at.setdefault(worker, now)

    # ------------------------------------------------------------ asks

    def _answer(self, ask: Ask, view: View, moving: set[str], taken: set[str]) -> Action | None:
        """What to do about one ask; None: wait."""
        mine = next((s for s in view.seats if s.chosen.ask == ask.id), None)
        if mine is not None:
            return _ended(ask, mine)
        error = self._impossible(ask, view)
        if error:
            return Failed(ask, error)
        if ask.automatic and not ask.worker and not any(w.of_model for w in view.wants):
            return Done(ask, "nothing waits for it any more")
        seat = self._seat_to_load(ask, view) if ask.op == LOAD else _seat_to_unload(ask, view)
        if seat is None:
            return Done(ask, "no worker holds it") if ask.op == UNLOAD else None
        if ask.op == LOAD and seat.chosen.model == ask.model:
            if seat.hot:
                return Done(ask, f"{seat.worker} holds {ask.model} already")
            if seat.settled and seat.phase != "failed":
                return Place(seat, ask.model, ask)
            if not seat.settled:
                return None  # on its way
        if seat.worker in taken or seat.group in moving:
            return None
        return Place(seat, ask.model if ask.op == LOAD else None, ask)

    def _impossible(self, ask: Ask, view: View) -> str:
        """Why an ask can never be fulfilled; "" where it can."""
        workers = sorted(s.worker for s in view.seats)
        if ask.worker and ask.worker not in workers:
            return f"there is no model worker {ask.worker!r}; there are: {', '.join(workers) or 'none'}"
        if ask.op == LOAD and ask.model not in self.catalogue:
            known = ", ".join(sorted(self.catalogue)) or "none"
            return f"there is no model {ask.model!r}; there are: {known} ([models.NAME] in rigbus.toml)"
        if ask.op == LOAD and not self._fitting(ask.model, view.seats):
            return f"no worker can hold {ask.model!r}: there is no model worker for its role and placement"
        return ""

    def _fitting(self, model: str, seats: Iterable[Seat]) -> list[Seat]:
        """The workers that a model may go to: the brain's model to the brain's cards, where it has some."""
        entry = self.catalogue[model]
        several = entry.placement == "split_gpu"
        seats = [s for s in seats if not s.cards or not several or len(s.cards) > 1]
        if entry.role == "brain" and any(s.role == "brain" for s in seats):
            return [s for s in seats if s.role == "brain"]
        return [s for s in seats if s.role != "brain"] if entry.role != "brain" else seats

    def _seat_to_load(self, ask: Ask, view: View) -> Seat | None:
        seats = [s for s in self._fitting(ask.model, view.seats) if ask.worker in ("", s.worker)]
        if ask.worker and not seats:
            seats = [s for s in view.seats if s.worker == ask.worker]  # a person says so
        here = [s for s in seats if s.chosen.model == ask.model and s.phase != "failed"]
        if here and (ask.worker or not ask.automatic):
            return here[0]
        cold = [s for s in seats if s.chosen.model is None and s.willing]
        if cold and (self._room(view) or not ask.automatic):
            return cold[0]
        if ask.worker:
            return seats[0] if seats else None  # it empties itself first
        gone = [s for s in seats if s.settled and (s.phase == "failed" or not s.leases) and s.willing]
        gone = [s for s in gone if not self._pinned(s)]
        if ask.automatic:
            gone = [s for s in gone if s.phase == "failed" or s.since_s >= self.settings.min_hot_s]
        return min(gone, key=lambda s: (s.phase != "failed", self._idle_at.get(s.worker, 0.0)), default=None)

    def _pinned(self, seat: Seat) -> bool:
        entry = self.catalogue.get(seat.chosen.model or "")
        return entry is not None and entry.pinned

    # ------------------------------------------------------------ automation

    def _start(self, view: View) -> Request | None:
        """What is hot from the beginning, where nobody has decided anything yet."""
        seats = [s for s in view.seats if s.chosen.generation == 0]
        for entry in self.catalogue.values():
            free = self._fitting(entry.name, seats)
            here = any(s.chosen.model == entry.name for s in view.seats)
            if (entry.pinned or entry.role == "brain") and free and not here:
                return self._request(LOAD, entry.name, free[0], "pinned" if entry.pinned else "the brain's")
        used = [s for s in view.seats if s.chosen.generation > 0 and s.role != "brain"]
        free = self._fitting(self.default, seats) if self.default in self.catalogue else []
        if free and len(used) < self.settings.hot_at_start:
            return self._request(LOAD, self.default, free[0], "hot at start")
        return None

    def _heat(self, view: View) -> Request | None:
        """Load for work that no hot model takes, or that waits behind all that do."""
        hot = [s for s in view.seats if s.chosen.model is not None and s.phase != "failed"]
        for want in sorted((w for w in view.wants if w.of_model), key=lambda w: -w.waits_s):
            if want.waits_s < self.settings.heat_after_s:
                continue
            model = self._model_for(want)
            if model is None or self._has_failed(model, view):
                continue
            serve = [s for s in hot if want.needs <= self.catalogue_tags(s)]
            if serve and any(not s.settled for s in serve):
                continue  # on its way
            free = [s for s in self._fitting(model, view.seats) if s.chosen.model is None and s.willing]
            why = f"{want.n} {'task waits' if want.n == 1 else 'tasks wait'} for it"
            if free and self._room(view):
                return self._request(LOAD, model, free[0], why)
            if not serve:  # another model gives way, whichever is idle by then
                return Request(self._key(view, model), LOAD, model, "", why)
        return None

    def _cool(self, view: View, now: float) -> Request | None:
        """Give a card back to the commands that wait for one."""
        if any(w.of_model for w in view.wants) or not any(w.cls == "script" for w in view.wants):
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

    def _room(self, view: View) -> bool:
        """May one more worker be hot?"""
        hot = sum(s.chosen.model is not None and s.phase != "failed" for s in view.seats)
        return self.settings.max_hot is None or hot < self.settings.max_hot

    def _has_failed(self, model: str, view: View) -> bool:
        """Was it tried not long ago, and could not be loaded?"""
        return any(
            s.phase == "failed" and s.chosen.model == model and s.since_s < FAILED_RETRY_S for s in view.seats
        )

    def catalogue_tags(self, seat: Seat) -> frozenset[str]:
        """What the model that was decided for a worker offers."""
        entry = self.catalogue.get(seat.chosen.model or "")
        return entry.tags if entry is not None else frozenset()

    def _model_for(self, want: Want) -> str | None:
        """The model that work wants: the default where that does, else the smallest that has what it needs."""
        fits = [e for e in self.catalogue.values() if want.needs <= e.tags]
        if any(e.name == self.default for e in fits):
            return self.default
        return min(fits, key=lambda e: (e.tier, e.load_s, e.name)).name if fits else None

    def _request(self, op: str, model: str, seat: Seat, why: str) -> Request:
        return Request(f"{seat.worker}:{seat.chosen.generation + 1}", op, model, seat.worker, why)

    def _key(self, view: View, model: str) -> str:
        return f"{model}:{sum(s.chosen.generation for s in view.seats) + 1}"


def _ended(ask: Ask, seat: Seat) -> Action | None:
    """An ask that was decided: is it so by now?"""
    if not seat.settled:
        return None
    if seat.phase == "failed" and ask.op == LOAD:
        return Failed(ask, f"{seat.worker}: {seat.message or 'the model cannot be loaded'}")
    if ask.op == LOAD:
        return Done(ask, f"{ask.model} is hot on {seat.worker}") if seat.phase == "hot" else None
    return Done(ask, f"{seat.worker} is cold")


def _seat_to_unload(ask: Ask, view: View) -> Seat | None:
    seats = [
        s for s in view.seats if ask.worker in ("", s.worker) and ask.model in ("", s.chosen.model or "")
    ]
    seats = [s for s in seats if s.chosen.model is not None]
    return min(seats, key=lambda s: (s.leases, s.worker), default=None)


def _words(seat: Seat) -> str:
    model = seat.model or seat.chosen.model or "nothing"
    if seat.phase == "loading":
        return f"{seat.worker} loads {model}"
    if seat.phase == "failed":
        return f"{seat.worker} could not load {model}: {seat.message}"
    if not seat.settled and seat.phase == "cold":
        return f"{seat.worker} is to load {model}"
    return f"{seat.worker} is {seat.phase} ({model})" + (f": {seat.message}" if seat.message else "")
