"""The tables of rigbus.toml about models and cards, and the rules between them. Part of ``config.py``.

A card is named by its index, as nvidia-smi counts (the order on the PCI bus), or by its UUID. MB are of 2^20 bytes.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from .urls import shown_url

MAX_TOKENS: Final = 2**31 - 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CARD: Final = re.compile(r"0|[1-9][0-9]{0,2}|(?:GPU|MIG)-[0-9A-Za-z/-]{4,80}")
#: What only a model of our own has: for one behind a url its server decides.
_OF_FILES: Final = ("gpu_layers", "split", "tensor_split", "threads", "placement", "pinned", "vram_mb")


class Table(BaseModel):
    """A table of the configuration: no key that it does not know, and nobody changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _card(value: Any) -> Any:
    """A card's name; ``0`` is taken for ``"0"``."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and not _CARD.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is no card; give its index ('0') or UUID ('GPU-…') as nvidia-smi -L has it"
        )
    return text


Card = Annotated[str, BeforeValidator(_card)]


def _distinct(cards: Sequence[str]) -> None:
    for card in cards:
        if cards.count(card) > 1:
            raise ValueError(f"card {card} is named twice; name each once")


class Model(Table):
    """A model under ``[models.NAME]``: a GGUF file of this machine, or one behind an OpenAI-compatible server."""

    path: Path | None = Field(default=None, description="the GGUF file (of a split one the first)")
    url: str | None = Field(default=None, description="an OpenAI-compatible server instead of a file")
    remote_model: str | None = Field(
        default=None, min_length=1, max_length=256, description="its name there; NAME when not set"
    )
    api_key_env: str | None = Field(
        default=None, pattern="^[A-Za-z_][A-Za-z0-9_]*$", description="the variable that holds its key"
    )
    api_key_file: Path | None = Field(default=None, description="the file that holds its key")
    ctx: int = Field(
        default=0,
        ge=0,
        le=MAX_TOKENS,
        description="tokens of prompt and answer; 0: the model's, at most 4096",
    )
    gpu_layers: int = Field(default=-1, ge=-1, le=MAX_TOKENS, description="layers on the GPU; -1: all")
    split: list[Card] = Field(default_factory=list, description="the cards that it is split over")
    tensor_split: list[Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]] = Field(
        default_factory=list, description="shares of the layers by card of split; by free memory when not set"
    )
    parallel: int = Field(default=8, ge=1, le=64, description="requests at once; they share the context")
    threads: int = Field(default=0, ge=0, le=4096, description="CPU threads; 0: by the machine's cores")
    tier: int = Field(default=1, ge=1, le=100, description="how able it is; a task may ask for a least tier")
    placement: Literal["single_gpu", "split_gpu"] | None = Field(
        default=None, description="split_gpu where split has cards, else single_gpu"
    )
    role: Literal["worker", "brain"] = Field(
        default="worker", description="brain: it judges and decides, and makes no texts for plans"
    )
    pinned: bool = Field(default=False, description="never unloaded to make room")
    vram_mb: int | None = Field(
        default=None, ge=1, description="what it takes; measured or estimated when not set"
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="of an answer, where a request names no number; by its type when not set",
    )

    @field_validator("split")
    @classmethod
    def _pair(cls, value: list[str]) -> list[str]:
        _distinct(value)
        if len(value) == 1:
            raise ValueError(f"one card ({value[0]}) is no split; name two or more, or leave it out")
        return value

    @field_validator("url")
    @classmethod
    def _server(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
        except ValueError:  # brackets that are no IPv6 address; its words would repeat the address
            usable = False
        if not usable:
            raise ValueError(f"{shown_url(value)[:80]!r} is no address; write it as http://host:port/v1")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a key does not belong into an address; use api_key_env or api_key_file")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Model:
        if (self.path is None) == (self.url is None):
            raise ValueError("give a path (a GGUF file) or a url (a server), one of them")
        if self.url is not None:
            for key in _OF_FILES:
                if key in self.model_fields_set:
                    raise ValueError(f"{key} says nothing about a model behind a url; leave it out")
        else:
            for key in ("remote_model", "api_key_env", "api_key_file"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key} belongs to a url; this model is a file, leave it out")
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given; keep one of them")
        if 0 < self.ctx < 64:
            raise ValueError(f"ctx = {self.ctx} holds no conversation; at least 64, or 0 for the model's own")
        if self.placement == "single_gpu" and self.split:
            raise ValueError("placement is single_gpu, but split names cards; keep one of them")
        if self.tensor_split and self.split and len(self.tensor_split) != len(self.split):
            raise ValueError(
                f"tensor_split has {len(self.tensor_split)} shares for {len(self.split)} cards of split; one each"
            )
        return self


class Gpu(Table):
    """A card under ``[gpus.NAME]``, named by index or UUID."""

    pcie_group: str = Field(
        default="pcie-0",
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="one load at a time in each",
    )
    link_mb_per_s: float = Field(
        default=3000.0, gt=0, le=1e6, allow_inf_nan=False, description="how fast a model gets onto the card"
    )
    vram_mb: int | None = Field(default=None, ge=1, description="its memory; the driver's word when not set")
    reserve_mb: int = Field(default=300, ge=0, description="kept free: the driver's own, a desktop")


class Thermal(Table):
    """When a card is too hot, in degrees Celsius."""

    warn_c: float = Field(default=83.0, ge=30, le=120, description="from here on it gets no new work")
    critical_c: float = Field(default=90.0, ge=30, le=120, description="from here on its work is ended")
    hysteresis_c: float = Field(default=4.0, gt=0, le=40, description="below warn_c by it, work goes on")

    @model_validator(mode="after")
    def _order(self) -> Thermal:
        if self.critical_c <= self.warn_c:
            raise ValueError(
                f"critical_c = {self.critical_c:g} is not above warn_c = {self.warn_c:g}; raise it, or lower warn_c"
            )
        return self


class Placement(Table):
    """When models are loaded and unloaded."""

    seats: int = Field(
        default=1, ge=1, le=256, description="model workers where there is no card; else one for each"
    )
    default_model: str | None = Field(
        default=None, description="for tasks that name none; the least that will do"
    )
    hot_at_start: int = Field(default=1, ge=0, le=256, description="workers that load a model at once")
    max_hot: int | None = Field(
        default=None, ge=0, le=256, description="workers with a model; all when not set"
    )
    heat_after_s: float = Field(default=2.0, ge=0, le=86_400, description="work waits so long before a load")
    cool_after_s: float = Field(
        default=60.0, ge=0, le=86_400, description="idle so long before it makes room for other work"
    )
    min_hot_s: float = Field(default=120.0, ge=0, le=86_400, description="a model stays at least so long")

    @model_validator(mode="after")
    def _order(self) -> Placement:
        if self.max_hot is not None and self.hot_at_start > self.max_hot:
            raise ValueError(
                f"hot_at_start = {self.hot_at_start} is more than max_hot = {self.max_hot}; lower one or raise the other"
            )
        return self


# -- rules between tables ------------------------------------------------------------------------------------


def brain_cards(given: Sequence[str] | None, models: Mapping[str, Model]) -> tuple[str, ...]:
    """The cards of the brain's model: those of ``brain_gpus``, else those that it is split over."""
    if given is not None:
        return tuple(given)
    return next((tuple(m.split) for m in models.values() if m.role == "brain" and m.split), ())


def problems(
    models: Mapping[str, Model],
    gpus: Mapping[str, Gpu],
    placement: Placement,
    worker_gpus: Sequence[str] | None,
    brain_gpus: Sequence[str] | None,
    *,
    share_gpus: bool,
) -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong; the fix) for what no table can see alone."""
    for name in models:
        if not _NAME.fullmatch(name):
            yield (
                f"models.{name}",
                "no plain name; letters, digits and . _ - (64 at most), a letter or digit first",
            )
    for name in gpus:
        if not _CARD.fullmatch(name):
            yield f"gpus.{name}", 'no card; name it by its index, [gpus.0], or by UUID, [gpus."GPU-…"]'
    yield from _cards_taken(worker_gpus, brain_cards(brain_gpus, models), share_gpus=share_gpus)
    for card in dict.fromkeys(brain_gpus or ()):
        if list(brain_gpus or ()).count(card) > 1:
            yield "brain_gpus", f"card {card} is named twice; name each once"
    if brain_gpus is not None:
        yield from _outside(models, brain_gpus)
    if not share_gpus:
        yield from _inside(models, brain_cards(brain_gpus, models))
    yield from _placements(models, brain_cards(brain_gpus, models))
    default = placement.default_model
    if default is not None and default not in models:
        near = difflib.get_close_matches(default, models, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(models) or 'none'}"
        yield "placement.default_model", f"there is no [models.{default}]; {known}"


def _cards_taken(
    workers: Sequence[str] | None, brain: Sequence[str], *, share_gpus: bool
) -> Iterator[tuple[str, str]]:
    fix = "give each a card of its own, or say share_gpus = true"
    if share_gpus:
        return
    for card in dict.fromkeys(workers or ()):
        at = [f"worker-{n}" for n, other in enumerate(workers or (), 1) if other == card]
        if len(at) > 1:
            yield "worker_gpus", f"{' and '.join(at)} are both on card {card}; {fix}"
        if card in brain:
            yield (
                "worker_gpus",
                f"{at[0]} is on card {card}, which is the brain's ({', '.join(brain)}); {fix}",
            )


def _inside(models: Mapping[str, Model], brain: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A worker's model on a card of the brain."""
    for name, model in models.items():
        taken = [card for card in model.split if card in brain]
        if model.role == "worker" and taken:
            said = f"card {taken[0]} is the brain's ({', '.join(brain)})"
            yield f"models.{name}.split", f"{said}; name others, or say share_gpus = true"


def _outside(models: Mapping[str, Model], brain: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The brain's model on a card that is not the brain's."""
    for name, model in models.items():
        outside = [card for card in model.split if card not in brain]
        if model.role == "brain" and outside:
            said = f"card {outside[0]} is none of the brain_gpus ({', '.join(brain) or 'none'})"
            yield f"models.{name}.split", f"{said}; correct one of them, or leave brain_gpus out"


def _placements(models: Mapping[str, Model], brain: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, model in models.items():
        cards = model.split or (brain if model.role == "brain" else ())
        if model.placement == "split_gpu" and len(cards) < 2:
            yield f"models.{name}.placement", "split_gpu needs cards; add split = ['0', '3'] with yours"
        if model.tensor_split and len(model.tensor_split) != len(cards):
            said = f"{len(model.tensor_split)} shares for {len(cards)} cards"
            yield f"models.{name}.tensor_split", f"{said}; give split, and a share for each card of it"


def twice(models: Mapping[str, Model], single: Path | None = None) -> Iterator[str]:
    """A warning for each file that has two names, or name that has two files. ``single``: the setting ``model``."""
    seen: dict[str, str] = {}
    for name, model in models.items():
        file = os.path.abspath(model.path) if model.path is not None else None
        if file in seen:
            yield f"the models {seen[file]} and {name} are one file, {file}: it may be loaded twice; drop one of them"
        elif file is not None:
            seen[file] = name
    other = models.get(single.stem) if single is not None else None
    if single is not None and other is not None and os.path.abspath(single) not in seen:
        yield f"model = {single} has the name of [models.{single.stem}], which is another model; rename one of them"
