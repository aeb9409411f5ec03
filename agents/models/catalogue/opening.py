"""A placement's spec, as the brain wrote it, made into a model and into what its worker offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ....bus.errors import BadFrame, DefinitionError
from ....bus.tags import offered_tags, offered_types
from ...gpu.readings import GpuReading
from ..gguf.model import read_gguf
from ..gguf.vram import check_fits, estimate_vram_mb
from ..host import ModelHost
from ..protocol import Model
from ..remote import RemoteModel
from .entries import Entry


def open_model(
    spec: Mapping[str, Any], log_path: Path | None, cards: Sequence[GpuReading] | None = None
) -> Model:
    """The back end of a spec (``Entry.to_map``); not started.

    ``cards``: those of this worker as read now; empty: it computes on the machine; None: nothing is known of them.

    Raises:
        DefinitionError: the spec is no model's, its file cannot be used, or there is not the memory for its context.
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
    if cards is not None:
        check_memory(entry, cards)
    return ModelHost(
        Path(options.path),
        name=entry.name,
        ctx=options.ctx,
        gpu_layers=options.gpu_layers,
        threads=options.threads,
        parallel=options.parallel,
        tensor_split=options.tensor_split,
        log_path=log_path,
    )


def check_memory(entry: Entry, cards: Sequence[GpuReading], free_mb: float | None = None) -> None:
    """Is there the memory for its context? ``free_mb``: of the machine, asked for where it is None.

    On cards everything must fit, by what it was measured to take before or by an estimate. On the machine the weights are a
    mapped file, which needs no memory of its own.

    Raises:
        DefinitionError: there is not, with the largest context that there would be; or the file cannot be used.
    """
    info = read_gguf(Path(entry.path or ""))
    estimate = estimate_vram_mb(info, entry.ctx, entry.parallel, entry.gpu_layers, gpu=bool(cards))
    if not cards:
        free_mb = available_mb() if free_mb is None else free_mb
        if free_mb is not None:
            check_fits(replace(estimate, weights_mb=0.0), free_mb, model=entry.name, place="this machine")
        return
    free = [
        c.memory_total_mb - c.memory_used_mb
        for c in cards
        if c.memory_total_mb and c.memory_used_mb is not None
    ]
    if len(free) == len(cards) and not (entry.vram_source == "measured" and entry.vram_mb <= sum(free)):
        place = f"card {', '.join(str(c.index) for c in cards)}"
        check_fits(estimate, sum(free), model=entry.name, place=place)


def available_mb(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        lines = meminfo.read_text("ascii", "replace").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


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
    tags = offered_tags(
        entry.name, tier=entry.tier, placement=entry.placement, role=entry.role, also=also_of(spec)
    )
    return types, tags


def also_of(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The other names that mean this model."""
    given = spec.get("also")
    return tuple(str(name) for name in given) if isinstance(given, list | tuple) else ()
