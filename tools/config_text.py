"""A ``rigbus.toml`` as text, of settings that were read from elsewhere. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .common import escaped

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HEAD: Final = (
    "# Made by `rigbus config import`; `rigbus config show` prints every setting, `rigbus doctor` tries them."
)


@dataclass(slots=True)
class ModelEntry:
    """A table ``[models.NAME]``. Without a ``path`` it is a comment, to be filled in; ``was`` is its name elsewhere."""

    name: str
    path: str | None = None
    role: str = "worker"
    tier: int | None = None
    placement: str | None = None
    split: list[str] = field(default_factory=list)
    was: str = ""


def text_of(
    values: Mapping[str, Any],
    models: Iterable[ModelEntry],
    brain_cards: Sequence[str],
    tables: Mapping[str, Mapping[str, Any]],
) -> str:
    """The file: settings, models, then the other tables."""
    return "\n".join(_lines(values, models, brain_cards, tables)) + "\n"


def _lines(
    values: Mapping[str, Any],
    models: Iterable[ModelEntry],
    brain_cards: Sequence[str],
    tables: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    yield HEAD
    yield ""
    yield from (f"{key} = {toml(value)}" for key, value in values.items())
    for model in models:
        yield ""
        yield from _model_lines(model, brain_cards)
    for name, table in tables.items():
        if table:
            yield ""
            yield f"[{name}]"
            yield from (f"{key} = {toml(value)}" for key, value in table.items())


def _model_lines(model: ModelEntry, brain_cards: Sequence[str]) -> Iterator[str]:
    mark = "" if model.path is not None else "# "
    if mark:
        yield f"# {_comment(model.was)} was a name only: put the path of its GGUF file in and take away the #."
    yield f"{mark}[models.{key_of(model.name)}]"
    yield f"{mark}path = {toml(model.path or f'models/{model.name}.gguf')}"
    split = model.split or (list(brain_cards) if model.role == "brain" and len(brain_cards) > 1 else None)
    if model.role != "worker":
        yield f"{mark}role = {toml(model.role)}"
    if model.tier is not None:
        yield f"{mark}tier = {model.tier}"
    if split:
        yield f"{mark}split = {toml(split)}"
    elif model.placement == "single_gpu":
        yield f"{mark}placement = {toml(model.placement)}"


def toml(value: Any) -> str:
    """A value of ours as TOML has it: texts, numbers, lists of texts."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        # JSON's escapes are TOML's; but a pair of surrogates for one character is not
        return escaped(json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False))
    return f"{value:g}" if isinstance(value, float) else str(value)


def key_of(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def plain(name: str) -> str:
    made = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64]
    return made if _NAME.fullmatch(made) else "model"


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:100]
