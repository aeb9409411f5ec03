"""The parts of ``rigbus bench recovery``, one after the other, and their sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from .. import limits
from ..figures import Figure, Outcome
from ..machine import machine
from . import PARTS, flood, folder, hung, kills, outage, stopped


@dataclass(frozen=True, slots=True)
class Options:
    """How much of each: enough for a p99, and for the sizes that the targets name."""

    kills: int = 100  #: of workers under `up`
    kills_alone: int = 100
    in_flight: int = 10_000
    outages: int = 5
    output_bytes: int = 10_000_000_000
    share_pairs: int = 8
    share_turn_s: float = 8.0
    subscriber_pairs: int = 10
    subscriber_tasks: int = 10_000
    files: int = 100_000
    file_starts: int = 5
    file_sweeps: int = 3


FULL: Final = Options()
#: Whether it works at all: a figure of it says little, and none is held to a target.
QUICK: Final = Options(3, 1, 200, 1, 100_000_000, 1, 0.5, 1, 500, 300, 1, 0)
#: A lease of workers that run alone, so that a quick run need not wait for the default one.
QUICK_LEASE_S: Final = 1.0


def measure(say: Callable[[str], None], *, quick: bool = False, only: Sequence[str] = ()) -> Outcome:
    """Each part on rigs of its own; ``only`` names some of :data:`PARTS`."""
    o = QUICK if quick else FULL
    lease_s = QUICK_LEASE_S if quick else None
    measured: dict[str, Callable[[], tuple[list[Figure], str]]] = {
        "workers": lambda: kills.measure(o.kills, o.kills_alone, say, lease_s=lease_s),
        "broker": lambda: outage.measure(o.in_flight, o.outages, say),
        "output": lambda: flood.measure(o.output_bytes, say),
        "share": lambda: hung.measure(o.share_pairs, o.share_turn_s, say),
        "subscriber": lambda: stopped.measure(o.subscriber_pairs, o.subscriber_tasks, say),
        "folder": lambda: folder.measure(o.files, o.file_starts, o.file_sweeps, say),
    }
    settings = {"durability": "full", **asdict(o), **machine()}
    with tempfile.TemporaryDirectory(prefix="rigbus-bench-") as here:
        fsync_us = limits.fsync_p50_us(Path(here))
    figures: list[Figure] = []
    notes: list[str] = []
    for part in PARTS:
        if only and part not in only:
            continue
        say(f"-- {part}")
        found, note = measured[part]()
        figures += [replace(f, target=None) for f in found] if quick else found
        notes.append(note)
    return Outcome("recovery", figures, settings, fsync_us, notes=notes)
