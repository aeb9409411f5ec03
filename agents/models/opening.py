"""A placement's spec, as the brain wrote it, made into a model and into what its worker offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...bus.errors import BadFrame, DefinitionError
from ...bus.tags import offered_tags, offered_types
from .entries import Entry
from .host import ModelHost
from .protocol import Model
from .remote import RemoteModel


def open_model(spec: Mapping[str, Any], log_path: Path | None) -> Model:
    """The back end of a spec (``Entry.to_map``); not started.

    Raises:
        DefinitionError: the spec is no model's, or it cannot be opened here.
    """
    entry = entry_of(spec)
    if entry.url is not None:
        return RemoteModel(
            entry.url,
            entry.remote_model or entry.name,
            name=entry.name,
            key_env=entry.api_key_env or "",
            key_file=Path(entry.api_key_file) if entry.api_key_file else None,
            ctx=entry.ctx,
            parallel=entry.parallel,
        )
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


def offer_of(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a worker that holds this model offers: task types, and what tasks may need of it."""
    entry = entry_of(spec)
    types = offered_types(entry.role, brain_elsewhere=bool(spec.get("brain_elsewhere")))
    return types, offered_tags(entry.name, tier=entry.tier, placement=entry.placement, role=entry.role)
