"""One model of the catalogue and one card, as data: what is configured, and what the model's file adds.

Pure but for :func:`estimate`, :func:`key_of` and :func:`probed`, which read the file's header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from ....bus.config.urls import shown_url
from ....bus.errors import BadFrame, DefinitionError
from ..gguf.model import read_gguf
from ..gguf.vram import Estimate, estimate_vram_mb
from ..protocol import PARALLEL, LoadOptions
from .peaks import known_peak, peak_key

PlacementKind = Literal["single_gpu", "split_gpu"]
Role = Literal["worker", "brain"]
VramSource = Literal["config", "measured", "estimate", "unknown"]
SINGLE: Final[PlacementKind] = "single_gpu"
SPLIT: Final[PlacementKind] = "split_gpu"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model. ``path`` or ``url`` is set, the other None; the fields of ``[models.NAME]`` have its meaning.

    ``split``: the cards that it needs together (empty: any one card). ``vram_mb`` (2^20 bytes, all cards together) is by
    ``vram_source``: the configuration, the largest measured peak, an estimate, or 0 where it is unknown. ``size_bytes`` is
    what is moved to load it. ``max_tokens`` of an answer where a request names no number; None: by the type of the
    task. ``problem``: why it cannot be loaded as it is, "" where nothing is known against it.
    """

    name: str
    path: str | None = None
    url: str | None = None
    remote_model: str = ""
    api_key_env: str | None = None
    api_key_file: str | None = None
    ctx: int = 0
    gpu_layers: int = -1
    split: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    parallel: int = PARALLEL
    threads: int = 0
    tier: int = 1
    placement: PlacementKind = SINGLE
    role: Role = "worker"
    pinned: bool = False
    max_tokens: int | None = None
    vram_mb: int = 0
    vram_source: VramSource = "unknown"
    size_bytes: int = 0
    description: str = ""
    problem: str = ""

    @property
    def local(self) -> bool:
        """It is a file that this machine loads."""
        return self.path is not None

    def shares(self) -> tuple[float, ...]:
        """The part (0 to 1) of its layers on each card of ``split``; ``(1.0,)`` for a single card."""
        if len(self.split) < 2:
            return (1.0,)
        weights = self.tensor_split or (1.0,) * len(self.split)
        return tuple(weight / sum(weights) for weight in weights)

    def load_options(self) -> LoadOptions:
        """What the model host takes.

        Raises:
            DefinitionError: it is behind a url.
        """
        if self.path is None:
            raise DefinitionError(
                f"model {self.name} is behind {shown_url(self.url or '')}; there is nothing to load"
            )
        return LoadOptions(
            path=self.path,
            name=self.name,
            ctx=self.ctx,
            gpu_layers=self.gpu_layers,
            threads=self.threads,
            parallel=self.parallel,
            tensor_split=self.tensor_split,
        )

    def to_map(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "split": list(self.split), "tensor_split": list(self.tensor_split)}

    @classmethod
    def from_map(cls, value: Any) -> Entry:
        """The way back; keys that are not known (a newer rigbus) are left out.

        Raises:
            BadFrame: it is no map of an entry; what is wrong is named.
        """
        entry = _checked(cls, value, "model")
        if (entry.path is None) == (entry.url is None):
            raise BadFrame(f"model {entry.name[:64]!r}: a path or a url, one of them")
        if entry.tensor_split and len(entry.tensor_split) != len(entry.split):
            raise BadFrame(
                f"model {entry.name[:64]!r}: {len(entry.tensor_split)} shares, {len(entry.split)} cards"
            )
        if not all(0 < share < math.inf for share in entry.tensor_split):
            raise BadFrame(f"model {entry.name[:64]!r}: a share of its layers is not above 0")
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card as configured. ``vram_mb`` None: ask the driver. ``pcie_group``: its cards load one after the other."""

    name: str
    pcie_group: str = "pcie-0"
    link_mb_per_s: float = 3000.0
    vram_mb: int | None = None
    reserve_mb: int = 300

    @classmethod
    def from_map(cls, value: Any) -> Card:
        """From plain data.

        Raises:
            BadFrame: it is no map of a card; what is wrong is named.
        """
        card = _checked(cls, value, "card")
        if not 0 < card.link_mb_per_s < math.inf:
            raise BadFrame(f"card {card.name[:64]!r}: a link of {card.link_mb_per_s} MB/s")
        return card


def estimate(entry: Entry) -> Estimate:
    """What its file's header says that it takes on its cards. Reads the file.

    Raises:
        DefinitionError: the file cannot be used, or ``entry`` has none.
    """
    if entry.path is None:
        raise DefinitionError(
            f"model {entry.name} is behind {shown_url(entry.url or '')}; its memory is its server's"
        )
    return estimate_vram_mb(read_gguf(Path(entry.path)), entry.ctx, entry.parallel, entry.gpu_layers)


def key_of(entry: Entry) -> str:
    """Under which a measured peak of this entry is remembered (see ``peaks.py``).

    Raises:
        OSError: the file cannot be read. DefinitionError: ``entry`` has none.
    """
    if entry.path is None:
        raise DefinitionError(f"model {entry.name} has no file")
    return peak_key(
        Path(entry.path),
        ctx=entry.ctx,
        parallel=entry.parallel,
        gpu_layers=entry.gpu_layers,
        cards=len(entry.shares()),
    )


def probed(entry: Entry, state: Path | None) -> Entry:
    try:
        info = read_gguf(Path(entry.path or ""))
        measured = known_peak(state, key_of(entry)) if state is not None else None
    except DefinitionError as e:
        return replace(entry, problem=str(e))
    except OSError as e:
        return replace(entry, problem=f"model {entry.path}: {e.strerror or e}; see that it can be read")
    size = f"{info.parameters / 1e9:.1f}B" if info.parameters >= 1e8 else f"{info.parameters / 1e6:.1f}M"
    found = replace(
        entry,
        size_bytes=info.tensor_bytes,
        description=f"{info.architecture} {size} {info.quantization}".strip(),
    )
    if found.vram_source == "config":
        return found
    if measured is not None:
        return replace(found, vram_mb=measured, vram_source="measured")
    guess = estimate_vram_mb(info, entry.ctx, entry.parallel, entry.gpu_layers)
    cards = sum(guess.on_card_mb(share) for share in entry.shares())
    return replace(found, vram_mb=cards, vram_source="estimate")


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "bool": (bool,),
    "PlacementKind": (str,),
    "Role": (str,),
    "VramSource": (str,),
    "tuple[str, ...]": (list, tuple),
    "tuple[float, ...]": (list, tuple),
}
_WORDS: Final = {
    "placement": (SINGLE, SPLIT),
    "role": ("worker", "brain"),
    "vram_source": ("config", "measured", "estimate", "unknown"),
}


def _checked(cls: type[T], value: Any, what: str) -> T:
    """An object of plain data that a peer sent.

    Raises:
        BadFrame: a field is missing or of another type.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise BadFrame(f"a {what} is a map with a name")
    given: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name not in value:
            continue
        said, kind = value[f.name], str(f.type)
        right = isinstance(said, _TYPES[kind]) and (kind == "bool" or not isinstance(said, bool))
        if right and kind.startswith("tuple"):
            item = (str,) if "str" in kind else (int, float)
            right = all(isinstance(each, item) and not isinstance(each, bool) for each in said)
            said = tuple(said)
        if not right or (f.name in _WORDS and said not in _WORDS[f.name]):
            raise BadFrame(f"{what} {value['name'][:64]!r}: field {f.name!r} is {said!r:.80}")
        given[f.name] = said
    return cls(**given)
