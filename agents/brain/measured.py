"""What models were measured to take of their cards, as their workers report it, in place of what was estimated. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .placing_asks import MATTERS
from .placing_view import Entry, Seat


def with_measures(catalogue: Mapping[str, Entry], seats: Iterable[Seat]) -> Mapping[str, Entry]:
    """The catalogue with the memory that hot models were measured to take; ``catalogue`` itself where that is nothing new.

    A number of the configuration stays. Of several measures the largest counts, and none of a model that was loaded in another
    way than the configuration says now.
    """
    found = dict(catalogue)
    for seat in seats:
        entry = found.get(seat.model or "")
        if entry is None or not seat.vram_mb or not seat.hot or entry.vram_source == "config":
            continue
        held = seat.chosen.spec or {}
        known_mb = entry.vram_mb if entry.vram_source == "measured" else 0
        if seat.vram_mb > known_mb and all(held.get(key) == entry.spec.get(key) for key in MATTERS):
            found[entry.name] = replace(entry, vram_mb=seat.vram_mb, vram_source="measured")
    return found if found != catalogue else catalogue
