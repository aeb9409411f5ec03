"""Rigs whose workers load models when they are asked for: how one is started, and who holds what."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers import ROOT, Processes
from rigs import LiveRig

from rigbus import Client

write_tiny_gguf = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]

CONFIG = """\
[models.small]
path = "{small}"
ctx = 1024

[models.large]
path = "{large}"
ctx = 1024

[models.broken]
path = "{broken}"

[placement]
default_model = "small"
seats = {seats}
hot_at_start = {hot}
heat_after_s = 0.2
cool_after_s = 0.5
min_hot_s = {min_hot}
max_hot = 2
"""


def write_models(folder: Path) -> dict[str, Path]:
    """Two that can be loaded and one that cannot: {name: file}."""
    small: Path = write_tiny_gguf(folder / "small.gguf")
    large: Path = write_tiny_gguf(folder / "large.gguf")
    broken = folder / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    return {"small": small, "large": large, "broken": broken}


def start(
    folder: Path,
    processes: Processes,
    models: dict[str, Path],
    *,
    seats: int = 2,
    hot: int = 1,
    min_hot: float = 0.5,
) -> LiveRig:
    """A rig with ``seats`` model workers, of which ``hot`` load the small one at once."""
    config = folder / "xdg" / "rigbus"
    config.mkdir(parents=True)
    (config / "config.toml").write_text(CONFIG.format(seats=seats, hot=hot, min_hot=min_hot, **models))
    rig = LiveRig(folder, processes, workers=1, env={"XDG_CONFIG_HOME": str(folder / "xdg")})
    rig.start()
    return rig


def seats(bus: Client) -> dict[str, dict[str, Any]]:
    return {w["id"]: w["placement"] for w in bus.query("workers")["workers"] if w.get("placement")}


def hot(bus: Client) -> dict[str, str]:
    return {name: p["model"] for name, p in seats(bus).items() if p["phase"] == "hot"}


def first(bus: Client) -> str:
    """The worker that was hot at start: whichever joined the rig first."""
    return next(name for name, model in hot(bus).items() if model == "small")


def others(bus: Client) -> list[str]:
    return sorted(set(seats(bus)) - {first(bus)})


def rigbus(rig: LiveRig, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rigbus", *words],
        env={**os.environ, **rig.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def asks(bus: Client) -> list[dict[str, Any]]:
    batches = [b for b in bus.query("batches", all=True)["batches"] if b["name"] == "placement"]
    return [row for b in batches for row in bus.query("tasks", batch=b["id"])["rows"]]
