"""A placement's spec, as the brain wrote it, made into a model and into what its worker offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...bus.errors import DefinitionError
from .host import ModelHost
from .protocol import PARALLEL, Model

MAX_TIER: Final = 100


def open_model(name: str, spec: Mapping[str, Any], log_path: Path | None) -> Model:
    """The back end of a spec ``{path, ctx?, gpu_layers?, threads?, parallel?}``; not started.

    Raises:
        DefinitionError: the spec has no file, or a number is out of its range.
    """
    path = spec.get("path")
    if not isinstance(path, str) or not path:
        raise DefinitionError(f"model {name}: it has no path; give it one under [models.{name}]")
    return ModelHost(
        Path(path),
        name=name,
        ctx=_whole(name, spec, "ctx", 0),
        gpu_layers=_whole(name, spec, "gpu_layers", -1),
        threads=_whole(name, spec, "threads", 0),
        parallel=_whole(name, spec, "parallel", PARALLEL),
        log_path=log_path,
    )


def tags(name: str, spec: Mapping[str, Any]) -> tuple[str, ...]:
    """What tasks may need of a worker that holds this model: ``model:NAME``, ``tier:1`` up to its own, its placement and role."""
    tier = min(max(1, _whole(name, spec, "tier", 1)), MAX_TIER)
    found = [f"model:{name}", *(f"tier:{n}" for n in range(1, tier + 1))]
    found += [f"{field}:{spec[field]}" for field in ("placement", "role") if isinstance(spec.get(field), str)]
    return tuple(found)


def _whole(name: str, spec: Mapping[str, Any], field: str, default: int) -> int:
    value = spec.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DefinitionError(f"model {name}: {field} is {value!r:.40}; give a whole number")
    return value
