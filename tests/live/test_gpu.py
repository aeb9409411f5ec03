"""A worker whose driver hangs: it goes on working, beats, and ends; its tool ends with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from gpu_drivers import FakeSmi, two_cards
from helpers import Processes, slack, wait_for

from rigbus import Client, Task
from rigbus.bus.paths import endpoints, rig_paths

pytestmark = pytest.mark.live


def test_a_driver_that_hangs_holds_up_neither_tasks_nor_heartbeats_nor_the_end(
    rig_dir: Path, processes: Processes
) -> None:
    state = rig_dir / "state"
    state.mkdir(mode=0o700)
    driver = two_cards()
    smi = FakeSmi(rig_dir / "bin", driver)
    env = {"RIGBUS_STATE": str(state), "RIGBUS_GPU_SOURCE": "nvidia-smi"}
    env["PATH"] = f"{smi.folder}:{os.environ['PATH']}"
    processes.python("-P", "-m", "rigbus", "broker", env=env)
    worker = processes.python("-P", "-m", "rigbus", "worker", "--name", "w", "--gpu", "1", env=env)
    with Client(endpoints(rig_paths(state))["commands"], state, timeout_s=20) as bus:

        def field() -> dict[str, object]:
            rows = bus.query("status")["workers"]
            return dict(rows[0]["gpu"] or {}) if rows else {}

        seen = wait_for(field, timeout_s=20, what="the worker's card in its heartbeat")
        assert (seen["source"], seen["index"], seen["temperature_c"]) == ("nvidia-smi", 1, 44.0)
        driver.hangs = True
        smi.show()
        mark = smi.folder / "hung.pid"
        wait_for(mark.exists, timeout_s=15, what="a tool that hangs")

        def works_beside_it() -> bool:
            """Whether one tool hung, until its deadline of 5 s, all the time that tasks were done and heartbeats came."""
            pid = wait_for(lambda: int(mark.read_text() or 0), what="its pid")
            tasks = [Task(type="shell", payload={"command": "true"}) for _ in range(10)]
            assert all(result.ok for result in bus.results(bus.submit(tasks), timeout_s=20))
            assert bus.query("status")["workers"][0]["heartbeat_age_s"] < 2.5 * slack()
            return not _gone(pid)

        assert any(works_beside_it() for _ in range(20)), "the tasks waited for the tool"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    wait_for(lambda: _gone(int(mark.read_text())), what="the end of the tool")


def _gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"
