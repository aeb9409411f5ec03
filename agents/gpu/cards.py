"""Readings as rows of JSON, and which of them are a worker's. Pure.

A row has the keys of ``bus.telemetry.GpuReading``: percent where a reading has 0 to 1, and nothing where the card says
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .readings import GpuReading

#: Reading's field, row's key, factor.
_NUMBERS: Final = (
    ("temperature_c", "temperature_c", 1),
    ("utilization", "utilization_pct", 100),
    ("memory_used_mb", "vram_used_mb", 1),
    ("memory_total_mb", "vram_total_mb", 1),
    ("power_w", "power_w", 1),
    ("power_limit_w", "power_limit_w", 1),
    ("fan", "fan_pct", 100),
    ("clock_mhz", "clock_mhz", 1),
)
_WHOLE: Final = frozenset({"memory_used_mb", "memory_total_mb", "clock_mhz"})
_TEXTS: Final = ("uuid", "name", "pci_bus", "error")
#: The least of a UUID that names a card: "GPU-" alone would name the first.
_UUID_CHARS: Final = 6


def row_of(reading: GpuReading) -> dict[str, Any]:
    """The row of a reading; what the card does not tell is not in it."""
    row: dict[str, Any] = {"index": reading.index}
    row |= {key: value for key in _TEXTS if (value := getattr(reading, key))}
    for field, key, factor in _NUMBERS:
        value = getattr(reading, field)
        if value is not None:
            row[key] = value if factor == 1 else round(value * factor, 1)
    if not reading.error:
        row["throttle"] = list(reading.throttle)
    if reading.pids:
        row["pids"] = list(reading.pids)
    if reading.process_mb:
        row["processes"] = [{"pid": pid, "vram_used_mb": mb} for pid, mb in reading.process_mb]
    return row


def reading_of(row: Mapping[str, Any]) -> GpuReading:
    """The reading of a row that somebody else has written; fields of a wrong kind are as if they were not there.

    Raises:
        ValueError: it has no index, so it is no card's row.
    """
    index = row.get("index")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ValueError(f"a card's row needs `index`, a number from 0, not {index!r}")
    fields: dict[str, Any] = {key: row[key] for key in _TEXTS if isinstance(row.get(key), str)}
    for field, key, factor in _NUMBERS:
        value = row.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            fields[field] = round(value) if field in _WHOLE else value / factor
    fields["throttle"] = tuple(t for t in _list(row.get("throttle")) if isinstance(t, str))
    fields["pids"] = tuple(p for p in _list(row.get("pids")) if isinstance(p, int))
    fields["process_mb"] = tuple(
        (one["pid"], one["vram_used_mb"])
        for one in _list(row.get("processes"))
        if isinstance(one, Mapping) and all(_is_count(one.get(key)) for key in ("pid", "vram_used_mb"))
    )
    return GpuReading(index=index, **fields)


def visible(readings: Sequence[GpuReading], devices: str | None) -> list[GpuReading]:
    """The cards that a process with this CUDA_VISIBLE_DEVICES may use, in its order, by CUDA's rules.

    None (not set): all. Otherwise indexes and UUIDs (or the start of one), by commas; the first that names no card ends
    the list. Indexes are the driver's, which CUDA counts by too when CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    if devices is None:
        return list(readings)
    # A card that has failed keeps its last index, which the driver may have given to another one since.
    by_index = {r.index: r for r in sorted(readings, key=lambda r: not r.error)}
    chosen: list[GpuReading] = []
    for word in (part.strip() for part in devices.split(",")):
        if word.isdecimal():
            found = by_index.get(int(word))
        else:
            fits = [r for r in readings if r.uuid.lower().startswith(word.lower())]
            found = fits[0] if len(word) >= _UUID_CHARS and len(fits) == 1 else None
        if found is None:
            break
        if found not in chosen:
            chosen.append(found)
    return chosen


def gpu_field(
    cards: Sequence[GpuReading], *, source: str, age_s: float, stale: bool = False
) -> dict[str, Any] | None:
    """The field ``gpu`` of a heartbeat; None for a worker without a card.

    It is the row of the worker's first card (that which CUDA calls 0) with ``cards``, the rows of all; ``age_s`` is how
    long ago they were read. ``stale``: the driver has not answered since.
    """
    if not cards:
        return None
    rows = [row_of(card) for card in cards]
    field = {**rows[0], "cards": rows, "source": source, "age_s": round(age_s, 1)}
    if stale:
        field["stale"] = True
    return field


def rows_in(field: Any) -> list[dict[str, Any]]:
    """The rows of the cards in a heartbeat's field ``gpu``, whoever wrote it; empty without a card."""
    if not isinstance(field, Mapping):
        return []
    rows = [dict(row) for row in _list(field.get("cards")) if isinstance(row, Mapping)]
    return rows or [dict(field)]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()
