"""A whole rig whose card is played: a model's memory is measured, shared by it, remembered, and waited for when it goes."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, Processes, processes_of, wait_for
from rigs import LiveRig

from rigbus import Client, Task

pytestmark = [pytest.mark.live, pytest.mark.llm]
write_tiny_gguf: Callable[..., Path] = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))[
    "write_tiny_gguf"
]


class Card:
    """Card 0 of the machine, in the log that every process of the rig reads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.show(300)

    def show(self, used_mb: int, pid: int | None = None, pid_mb: int = 0) -> None:
        row: dict[str, Any] = {"index": 0, "uuid": "GPU-0000", "vram_used_mb": used_mb, "vram_total_mb": 8192}
        if pid is not None:
            row |= {"pids": [pid], "processes": [{"pid": pid, "vram_used_mb": pid_mb}]}
        with self._file.open("a") as file:
            file.write(json.dumps({"schema": "rigbus.gpu/1", "cards": [row]}) + "\n")


def placement(bus: Client) -> dict[str, Any]:
    rows = bus.query("workers")["workers"]
    return next((w["placement"] for w in rows if w["id"] == "model-1" and w.get("placement")), {})


def host(folder: Path) -> list[int]:
    """The process that holds the model."""
    return [pid for pid, line in processes_of(folder).items() if "models.engine.child" in line]


def budget(bus: Client) -> int | None:
    """MiB of the card that commands may take."""
    found: int | None = next(w["vram_mb"] for w in bus.query("workers")["workers"] if w["id"] == "worker-1")
    return found


def test_what_a_model_takes_of_a_card_is_measured_until_it_is_back(
    rig_dir: Path, processes: Processes
) -> None:
    model = write_tiny_gguf(rig_dir / "small.gguf")
    config = rig_dir / "xdg" / "rigbus"
    config.mkdir(parents=True)
    (config / "config.toml").write_text(
        f'worker_gpus = ["0"]\n[models.small]\npath = "{model}"\nctx = 1024\n[placement]\nhot_at_start = 0\n'
    )
    card = Card(rig_dir / "card.jsonl")
    env = {"XDG_CONFIG_HOME": str(rig_dir / "xdg"), "RIGBUS_GPU_SOURCE": f"file:{rig_dir / 'card.jsonl'}"}
    rig = LiveRig(rig_dir, processes, workers=1, env=env)
    rig.start()
    with rig.client() as bus:
        whole = wait_for(lambda: budget(bus), timeout_s=20, what="the size of the card")
        assert whole is not None

        (load,) = bus.submit([Task(type="load_llm", cls="meta", meta={"model": "small"})])
        assert next(iter(bus.results([load], timeout_s=30))).ok
        (pid,) = host(rig_dir)
        card.show(2300, pid, 2000)
        wait_for(lambda: placement(bus).get("vram_mb") == 2000, timeout_s=10, what="the measure")
        wait_for(lambda: budget(bus) == whole - 2000, timeout_s=10, what="placement to believe the measure")
        (peak,) = json.loads((rig.state / "models.json").read_text())["peaks"].values()
        assert (peak["mb"], peak["model"]) == (2000, "small")

        (gone,) = bus.submit([Task(type="unload_llm", cls="meta", meta={"model": "small"})])
        wait_for(lambda: not host(rig_dir), timeout_s=20, what="the model's process to be gone")
        assert bus.query("task", id=gone)["rows"][0]["state"] == "waiting", "its memory is not back"
        card.show(310)
        (done,) = bus.results([gone], timeout_s=20)
        assert done.value["note"] == "model-1 is cold, 2000 MB of its cards are back"
        wait_for(lambda: budget(bus) == whole, timeout_s=10, what="the place to be given back")
    assert rig.stop() == 0
    wait_for(lambda: not processes_of(rig_dir), what="every process of the rig to end")
