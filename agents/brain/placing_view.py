"""What placing is given and what it says: models, their workers, what is asked for, and what is to be done. Pure data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...bus.tags import MODEL_TYPES, offered_tags

LOAD: Final = "load_llm"
UNLOAD: Final = "unload_llm"
MOVING: Final = frozenset({"asking", "loading", "emptying", "unloading"})


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

    ``vram_mb``: MiB of all its cards, by ``vram_source``: config, measured, estimate or unknown. ``problem``: why its file
    cannot be loaded, "" where nothing is known against it.
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
    problem: str = ""

    @property
    def tags(self) -> frozenset[str]:
        """What its worker offers."""
        return frozenset(
            offered_tags(self.name, tier=self.tier, placement=self.placement, role=self.role, also=self.also)
        )

    @property
    def also(self) -> tuple[str, ...]:
        """Other names that mean it."""
        return tuple(self.spec.get("also") or ())

    @property
    def split(self) -> tuple[str, ...]:
        """The cards that it needs together, as the configuration names them; () for any one card."""
        return tuple(self.spec.get("split") or ())


@dataclass(frozen=True, slots=True)
class Chosen:
    """A placement as the fact holds it. ``model`` None: none. ``ask``: the task that asked for it, "" where none is open.

    ``cards``: those that it takes from the other workers; ``taken_back``: its ask was cancelled, or ran out of time.
    """

    generation: int = 0
    model: str | None = None
    ask: str = ""
    spec: Mapping[str, Any] | None = None
    cards: tuple[str, ...] = ()
    automatic: bool = False
    taken_back: bool = False

    @property
    def takes_cards(self) -> bool:
        """A model on the worker's own cards, not one behind a url."""
        return self.model is not None and not (self.spec or {}).get("url")


@dataclass(frozen=True, slots=True)
class Seat:
    """A model worker: what was decided for it, and what it says. ``leases``: live ones.

    ``cards``: as CUDA knows them; ``split``: of a worker of several cards, as the configuration names them. ``here`` False: it
    is away, and only what was decided for it is known. In MiB of its cards: ``vram_mb``, which its hot model was measured to take
    at most, and ``freed_mb``, which were measured to be back when the last one went; 0: not measured. ``free_mb``: MiB that each
    of its cards has free now, () where nobody says. ``word``: the worker's state, why it is not ``willing``.
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
    split: tuple[str, ...] = ()
    here: bool = True
    vram_mb: int = 0
    freed_mb: int = 0
    free_mb: tuple[int, ...] = ()
    word: str = ""

    @property
    def settled(self) -> bool:
        """It has heard what was decided, and done it or failed."""
        return self.generation == self.chosen.generation and self.phase not in MOVING

    @property
    def loads(self) -> bool:
        """It moves a model over its link, or is about to."""
        heard = self.generation == self.chosen.generation
        return self.chosen.takes_cards and (not heard or self.phase in ("asking", "loading"))

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
class Keep:
    """What was decided stands, but no ask belongs to it any more: it failed, or was cancelled when it was fulfilled already."""

    seat: Seat


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


Action = Place | Keep | Done | Failed | Request | Reserve
