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
ABSENT_S: Final = 15.0  #: a worker that was there may be away so long while it is started again
AGAIN_S: Final = 60.0  #: before a request that came to nothing is made again
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
    "brain_elsewhere",
)
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
    """A model of the catalogue. ``spec`` is what its worker needs; ``load_s`` what its way over the link costs.

    ``vram_mb``: MiB of all its cards, by ``vram_source``: config, measured, estimate or unknown.
    """

    name: str
    spec: Mapping[str, Any]
    tier: int = 1
    placement: str = "single_gpu"
    role: str = "worker"
    pinned: bool = False
    load_s: float = 0.0
    vram_mb: int = 0
    vram_source: str = "unknown"

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
    spec: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """A model worker: what was decided for it, and what it says. ``leases``: live ones.

    In MiB of its cards: ``vram_mb``, which its hot model was measured to take at most, and ``freed_mb``, which were measured
    to be back when the last one went; 0: not measured.
    """

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
    vram_mb: int = 0
    freed_mb: int = 0

    @property
    def settled(self) -> bool:
        """It has heard what was decided, and done it or failed."""
        return self.generation == self.chosen.generation and self.phase not in MOVING

    @property
    def loads(self) -> bool:
        """It moves a model over its link, or is about to."""
        heard = self.generation == self.chosen.generation
        local = not (self.chosen.spec or {}).get("url")
        return self.chosen.model is not None and local and (not heard or self.phase in ("asking", "loading"))

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
    """Everything at one moment. ``chosen``: what was decided for workers that are not there now."""

    seats: Sequence[Seat]
    asks: Sequence[Ask]
    wants: Sequence[Want] = ()
    chosen: Mapping[str, Chosen] = field(default_factory=dict)


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
    """Make an ask of our own."""

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
    _seen_at: dict[str, float] = field(default_factory=dict)  # ask -> when it was first seen
    _failed_at: dict[str, float] = field(default_factory=dict)  # model -> when it could not be loaded
    _absent_at: dict[str, float] = field(
        default_factory=dict
    )  # worker with a decision -> since when it is away
    _asked_at: dict[tuple[str, str, str], float] = field(
        default_factory=dict
    )  # requests that led to nothing yet

    def step(self, view: View, now: float) -> list[Action]:
        """What is to be done now. ``now`` in monotonic seconds."""
        self._note(view, now)
        taken: set[str] = set()
        actions: list[Action] = []
        for given in view.asks:
            ask = replace(given, model=given.model or self.default) if given.op == LOAD else given
            action = self._answer(ask, view, taken, now)
            if action is None:
                continue
            actions.append(action)
            if isinstance(action, Place):
                taken.add(action.seat.worker)
                self._asked_at.pop((ask.op, ask.model, ask.worker), None)
        # one at a time, so that its effect is seen before the next; and not on half a view
        if any(ask.automatic for ask in view.asks) or self._some_return(now):
            return actions
        request = self._renew(view) or self._start(view) or self._heat(view) or self._cool(view, now)
        if request is None or request.worker in taken:
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

    # ------------------------------------------------------------ asks

    def _answer(self, ask: Ask, view: View, taken: set[str], now: float) -> Action | None:
        """What to do about one ask; None: wait."""
        mine = next((s for s in view.seats if s.chosen.ask == ask.id), None)
        if mine is not None:
            return _ended(ask, mine)
        away = next((w for w, c in view.chosen.items() if c.ask == ask.id or w == ask.worker), None)
        if away is not None and now < self._absent_at.get(away, -ABSENT_S) + ABSENT_S:
            return None  # its worker is started again
        error = self._impossible(ask, view, now)
        if error:
            return Failed(ask, error)
        if ask.automatic and not ask.worker and not any(self._wants_model(w) for w in view.wants):
            return Done(ask, "nothing waits for it any more")
        seat = self._seat_to_load(ask, view, now) if ask.op == LOAD else _seat_to_unload(ask, view)
        if seat is None:
            return Done(ask, "no worker holds it") if ask.op == UNLOAD else None
        if seat.worker in taken:
            return None
        if ask.op == UNLOAD:
            return Place(seat, None, ask)
        if seat.chosen.model == ask.model and not self._changed(seat) and seat.phase != "failed":
            return Done(ask, f"{seat.worker} holds {ask.model} already") if seat.hot else None
        busy = {s.group for s in view.seats if (s.loads or s.worker in taken) and s.worker != seat.worker}
        local = not self.catalogue[ask.model].spec.get("url")
        if local and seat.group in busy:
            return None
        if not seat.settled and ask.worker != seat.worker:
            return None  # a person who names the worker may take it out of a load
        return Place(seat, ask.model, ask)

    def _changed(self, seat: Seat) -> bool:
        """Is what it holds not what the configuration says any more?"""
        entry = self.catalogue.get(seat.chosen.model or "")
        if entry is None or seat.chosen.spec is None:
            return seat.chosen.model is not None and entry is None
        return any(entry.spec.get(key) != seat.chosen.spec.get(key) for key in MATTERS)

    def _wants_model(self, want: Want) -> bool:
        """Does it wait for a model that there is?"""
        return want.of_model and self._model_for(want) is not None

    def _impossible(self, ask: Ask, view: View, now: float) -> str:
        """Why an ask can never be fulfilled; "" where it can."""
        workers = sorted({s.worker for s in view.seats})
        if ask.worker and ask.worker not in workers:
            return f"there is no model worker {ask.worker!r}; there are: {', '.join(workers) or 'none'}"
        if ask.op == LOAD and ask.model not in self.catalogue:
            known = ", ".join(sorted(self.catalogue)) or "none"
            return f"there is no model {ask.model!r}; there are: {known} ([models.NAME] in rigbus.toml)"
        if ask.op == LOAD and not self._fitting(ask.model, view.seats) and not self._some_return(now):
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

    def _seat_to_load(self, ask: Ask, view: View, now: float) -> Seat | None:
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
        # a model that is always in use gives way in the end: its worker takes no more and ends what runs
        patience_s = max(self.settings.min_hot_s, STARVED_S)
        starves = now >= self._seen_at.get(ask.id, now) + patience_s
        gone = [s for s in seats if s.settled and s.willing and s.chosen.model is not None]
        gone = [s for s in gone if s.phase == "failed" or not s.leases or starves]
        gone = [s for s in gone if not self._pinned(s)]
        if ask.automatic:
            gone = [s for s in gone if s.phase == "failed" or s.since_s >= self.settings.min_hot_s]
        return min(gone, key=lambda s: (s.phase != "failed", self._idle_at.get(s.worker, 0.0)), default=None)

    def _pinned(self, seat: Seat) -> bool:
        entry = self.catalogue.get(seat.chosen.model or "")
        return entry is not None and entry.pinned

    # ------------------------------------------------------------ automation

    def _some_return(self, now: float) -> bool:
        """Are workers being started again? One that is away for longer was taken out of the configuration."""
        return any(now < at + ABSENT_S for at in self._absent_at.values())

    def _renew(self, view: View) -> Request | None:
        """What is held as the configuration says no more: a changed model is loaded anew, one that is gone gives way."""
        for seat in view.seats:
            if not seat.settled or seat.leases or not seat.willing or not self._changed(seat):
                continue
            entry = self.catalogue.get(seat.chosen.model or "")
            if entry is not None:
                return self._request(LOAD, entry.name, seat, "its configuration has changed")
            if self.default in self.catalogue and seat in self._fitting(self.default, [seat]):
                return self._request(LOAD, self.default, seat, "its model is configured no more")
            return self._request(UNLOAD, seat.chosen.model or "", seat, "its model is configured no more")
        return None

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
            if model is None or model in self._failed_at:
                continue
            serve = [s for s in hot if want.needs <= self.catalogue_tags(s)]
            if serve and any(not s.settled for s in serve):
                continue  # on its way
            free = [s for s in self._fitting(model, view.seats) if s.chosen.model is None and s.willing]
            why = f"{want.n} {'task waits' if want.n == 1 else 'tasks wait'} for it"
            if free and self._room(view):
                return self._request(LOAD, model, free[0], why)
            if not serve:  # another model gives way, whichever is idle by then
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

    def _room(self, view: View) -> bool:
        """May one more worker be hot?"""
        hot = sum(s.chosen.model is not None and s.phase != "failed" for s in view.seats)
        return self.settings.max_hot is None or hot < self.settings.max_hot

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
        return Request(op, model, seat.worker, why)


def _since(at: dict[str, float], now_so: Iterable[str], now: float) -> None:
    """Keep in ``at`` since when each of ``now_so`` is so."""
    names = set(now_so)
    for name in [name for name in at if name not in names]:
        del at[name]
    for name in names:
        at.setdefault(name, now)


def _ended(ask: Ask, seat: Seat) -> Action | None:
    """An ask that was decided: is it so by now?"""
    if not seat.settled:
        return None
    if seat.phase == "failed" and ask.op == LOAD:
        return Failed(ask, f"{seat.worker}: {seat.message or 'the model cannot be loaded'}")
    if ask.op == LOAD:
        return Done(ask, f"{ask.model} is hot on {seat.worker}") if seat.phase == "hot" else None
    freed = f", {seat.freed_mb} MB of its cards are back" if seat.freed_mb else ""
    return Done(ask, f"{seat.worker} is cold{freed}" + (f"; {seat.message}" if seat.message else ""))


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
        return f"{seat.worker} is to load {model}" + (f": {seat.message}" if seat.message else "")
    if seat.phase == "cold":
        return f"{seat.worker} is cold: {seat.message}"
    return f"{seat.worker} is {seat.phase} ({model})" + (f": {seat.message}" if seat.message else "")
