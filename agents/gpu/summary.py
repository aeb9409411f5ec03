"""What a log of readings says in a few numbers a card. Pure: rows in, rows out.

Times are weighed by how long a sample held, which is until the next one. A gap that is much longer than the log's rhythm
(the monitor was stopped) counts for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Final

from .cards import reading_of
from .readings import GpuReading

GAP_INTERVALS: Final = 5
#: Field of a reading, key of its spread, factor.
_SPREADS: Final = (
    ("temperature_c", "temperature_c", 1),
    ("utilization", "utilization_pct", 100),
    ("memory_used_mb", "vram_used_mb", 1),
    ("power_w", "power_w", 1),
    ("clock_mhz", "clock_mhz", 1),
)


@dataclass(slots=True)
class _Seen:
    """One card through the log: (unix seconds, reading), by time."""

    samples: list[tuple[float, GpuReading]] = field(default_factory=list)


def summarise(lines: Iterable[Mapping[str, Any]], warn_c: float) -> list[dict[str, Any]]:
    """One row a card, by index, of the samples (``rigbus.gpu/1``) of a log.

    ``{index, uuid, name, samples, covered_s, temperature_c: {min, median, max}, utilization_pct, vram_used_mb, power_w,
    clock_mhz, vram_total_mb, power_limit_w, energy_wh, above_warn_s, throttled_share, throttled: {reason: share},
    errors}``. Shares are of ``covered_s``, 0 to 1, None when nothing is covered; a spread is None where the card never
    told. A card is known by its UUID, else by its index.
    """
    seen: dict[str, _Seen] = {}
    for line in lines:
        at, rows = line.get("at"), line.get("cards")
        if not isinstance(at, (int, float)) or isinstance(at, bool) or not isinstance(rows, list):
            continue
        # A stale sample is an old one told again.
        if line.get("stale") is True:
            continue
        for row in rows:
            try:
                reading = reading_of(row)
            except (ValueError, AttributeError):
                continue
            key = reading.uuid or f"index {reading.index}"
            seen.setdefault(key, _Seen()).samples.append((float(at), reading))
    return sorted((_card(one.samples, warn_c) for one in seen.values()), key=lambda row: row["index"])


def _card(samples: list[tuple[float, GpuReading]], warn_c: float) -> dict[str, Any]:
    samples.sort(key=lambda sample: sample[0])
    held = _held([at for at, _ in samples])
    last = samples[-1][1]
    covered = above = energy = throttled = 0.0
    reasons: dict[str, float] = {}
    for seconds, (_, reading) in zip(held, samples, strict=True):
        if reading.error:
            continue
        covered += seconds
        above += seconds * (reading.temperature_c is not None and reading.temperature_c > warn_c)
        energy += seconds * (reading.power_w or 0.0) / 3600
        throttled += seconds * bool(reading.throttle)
        for reason in reading.throttle:
            reasons[reason] = reasons.get(reason, 0.0) + seconds
    readings = [reading for _, reading in samples]
    told_power = any(reading.power_w is not None for reading in readings)
    return {
        "index": last.index,
        "uuid": last.uuid or None,
        "name": last.name or None,
        "samples": len(samples),
        "covered_s": round(covered, 1),
        **{key: _spread(readings, name, factor) for name, key, factor in _SPREADS},
        "vram_total_mb": last.memory_total_mb,
        "power_limit_w": last.power_limit_w,
        "energy_wh": round(energy, 3) if told_power else None,
        "above_warn_s": round(above, 1),
        "throttled_share": _share(throttled, covered),
        "throttled": {reason: _share(seconds, covered) for reason, seconds in sorted(reasons.items())},
        "errors": sum(bool(reading.error) for reading in readings),
    }


def _held(times: Sequence[float]) -> list[float]:
    """How long each sample held, in seconds; the last one, and one before a gap, held for nothing."""
    steps = [later - earlier for earlier, later in pairwise(times)]
    longest = GAP_INTERVALS * median(steps) if steps else 0.0
    return [*(step if step <= longest else 0.0 for step in steps), 0.0]


def _spread(readings: Sequence[GpuReading], name: str, factor: int) -> dict[str, float] | None:
    values = [value * factor for reading in readings if (value := getattr(reading, name)) is not None]
    if not values:
        return None
    return {"min": round(min(values), 2), "median": round(median(values), 2), "max": round(max(values), 2)}


def _share(seconds: float, covered: float) -> float | None:
    return round(seconds / covered, 4) if covered else None
