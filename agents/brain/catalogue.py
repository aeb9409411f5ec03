"""The catalogue of a rig's settings, as placement sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .placing import Entry


def entries_of(settings: Mapping[str, Any]) -> tuple[dict[str, Entry], str]:
    """Every model by its name, and the one that is meant where a task names none."""
    entries: dict[str, Entry] = {}
    default = ""
    if settings.get("model"):
        file = Path(settings["model"])
        default = file.stem
        entries[default] = Entry(default, {"path": str(file.absolute())})
    for name, given in (settings.get("models") or {}).items():
        spec = {
            "path": str(given["path"]),
            "ctx": given["context"],
            "gpu_layers": given["gpu_layers"],
        }
        entries[name] = Entry(name, spec)
        default = default or name
    return entries, default
