"""A worker of commands whose card is a file: its text is the temperature. ``python hot_worker.py STATE NAME FILE``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rigbus.agents.gpu.guard import ThermalLimits
from rigbus.agents.gpu.guarding import keeper_of
from rigbus.agents.gpu.readings import GpuReading
from rigbus.agents.process.linux import processes
from rigbus.agents.worker.main import Worker, WorkerOptions, place_of


@dataclass(frozen=True)
class Read:
    readings: Sequence[GpuReading]
    age_s: float | None


@dataclass(frozen=True)
class FileCard:
    file: Path
    devices: str | None = "0"

    def latest(self) -> Read:
        degrees = float(self.file.read_text())
        return Read([GpuReading(index=0, temperature_c=degrees, memory_total_mb=6144)], 0.0)


def main(state: str, name: str, file: str) -> int:
    """Serve until drained."""
    logging.basicConfig(level=logging.INFO)
    processes().become_subreaper()
    worker = Worker(place_of(name, Path(state)), WorkerOptions(classes=("cpu", "script"), kill_grace_s=1.0))
    keeper = keeper_of(worker.loop, FileCard(Path(file)), limits=ThermalLimits(min_pause_s=0.0))
    assert keeper is not None
    worker.loop.add((), keeper)
    return worker.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
