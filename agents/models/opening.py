"""A placement's spec, as the brain wrote it, made into a model and into what its worker offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...bus.errors import BadFrame, DefinitionError
from .entries import Entry
from .host import ModelHost
from .protocol import Model


def open_model(spec: Mapping[str, Any], log_path: Path | None) -> Model:
    """The back end of a spec (``Entry.to_map``); not started.

    Raises:
        DefinitionError: the spec is no model's, or it cannot be opened here.
    """
    entry = entry_of(spec)
    options = entry.load_options()
    return ModelHost(
        Path(options.path),
        name=entry.name,
        ctx=options.ctx,
        gpu_layers=options.gpu_layers,
        threads=options.threads,
        parallel=options.parallel,
        log_path=log_path,
    )


def entry_of(spec: Mapping[str, Any]) -> Entry:
    """The catalogue's entry in a placement.

    Raises:
        DefinitionError: it is none.
    """
    try:
        return Entry.from_map(spec)
    except BadFrame as e:
        raise DefinitionError(f"a placement that is no model's: {e}") from None


def tags(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """What tasks may need of a worker that holds this model: ``model:NAME``, ``tier:1`` up to its own, its placement and role."""
    entry = entry_of(spec)
    tiers = [f"tier:{n}" for n in range(1, entry.tier + 1)]
    return (f"model:{entry.name}", *tiers, f"placement:{entry.placement}", f"role:{entry.role}")
