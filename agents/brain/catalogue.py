"""The catalogue of a rig's settings, as placement sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models.catalogue.catalogue import Catalogue
from .placing import Entry


def entries_of(settings: Mapping[str, Any], state: Path | None = None) -> tuple[dict[str, Entry], str]:
    """Every model by its name, and the one that is meant where a task names none ("": the least that will do).

    It reads the headers of the models' files. ``state``: where the memory that they took before is remembered.
    """
    catalogue = Catalogue.from_settings(settings).probed(state)
    judged = any(e.role == "brain" for e in catalogue)
    entries = {
        e.name: Entry(
            name=e.name,
            spec=e.to_map() | {"brain_elsewhere": judged and e.role != "brain"},
            tier=e.tier,
            placement=e.placement,
            role=e.role,
            pinned=e.pinned,
            load_s=catalogue.load_s(e, *(e.split or ("0",))),
            vram_mb=e.vram_mb,
            vram_source=e.vram_source,
        )
        for e in catalogue
    }
    usable = [entries[e.name] for e in catalogue if not e.problem]
    workers = [e for e in usable if e.role == "worker"] or usable
    least = min(workers, key=lambda e: (e.tier, e.vram_mb, e.name), default=None)
    return entries, catalogue.default or (least.name if least is not None else "")
