"""The benches that do harm or take long: each fault is done and measured, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from benched import bench
from helpers import Processes, processes_of, wait_for

from rigbus.tools.bench.recovery import hung

pytestmark = pytest.mark.live


#: Of each part of `bench recovery` a figure, and what it must be at least for the part to have done what it says.
RECOVERY = {
    "workers": ("worker killed under up, its task leased again", 0.0),
    "broker": ("broker killed, 200 in flight: leases again", 0.2),
    "output": ("its log file", 64.0),
    "share": ("no-op tasks, share hung", 1.0),
    "subscriber": ("answer p99, subscriber stopped", 0.0),
    "folder": ("bridge starts over 300 files: 1 % that were taken stand again", 0.0),
}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc of Linux")
@pytest.mark.parametrize("part", RECOVERY)
def test_each_part_of_recovery_does_its_fault_and_leaves_nothing(part):
    said = bench("recovery", "--quick", "--json", "--only", part, timeout_s=120)
    assert said.returncode == 0, said.stderr
    outcome = json.loads(said.stdout)
    found = {f["name"]: f for f in outcome["figures"]}
    name, least = RECOVERY[part]
    assert found[name]["median"] >= least
    assert all(f["target"] is None for f in found.values()), "a quick run says little"
    assert len(outcome["notes"]) == 1
    if part == "broker":
        assert found["what ran through it and was executed again"]["max"] == 0
    assert not [p for p in Path(tempfile.gettempdir()).iterdir() if p.name.startswith("rigbus-bench-")]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc of Linux")
def test_without_root_the_helpers_of_the_bridge_are_stopped_instead(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    seen: set[str] = set()
    turn = hung._turn

    def watched(rig: Any, client: Any, for_s: float) -> Any:
        helpers = [
            pid for pid, said in processes_of(Path(tempfile.gettempdir())).items() if "helper.py" in said
        ]
        seen.update(hung._state(pid) for pid in helpers)
        return turn(rig, client, for_s)

    monkeypatch.setattr(hung, "_turn", watched)
    figures_, note = hung.measure(1, 0.2, lambda text: None)
    assert "helper processes stopped" in note
    assert "T" in seen
    assert all(f.spread.median > 0 for f in figures_)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc of Linux")
def test_a_soak_samples_every_process_after_each_round():
    said = bench("soak", "--json", "--tasks", "1000", "--part", "250")
    assert said.returncode == 0, said.stderr
    outcome = json.loads(said.stdout)
    assert [s["tasks"] for s in outcome["samples"]] == [250, 500, 750, 1000]
    assert all(s["database_mib"] > 0 for s in outcome["samples"])
    assert {name for s in outcome["samples"] for name in s["rss_mib"]} == {
        "broker",
        "brain",
        "bridge",
        "agent-1",
        "agent-2",
    }
    assert outcome["cpu_us_per_task"]["broker"] > 0


def test_ctrl_c_ends_a_bench_and_all_that_it_started(processes: Processes):
    going = processes.start(
        [sys.executable, "-m", "rigbus", "bench", "bus", "--repeats", "100", "--tasks", "200"]
    )
    wait_for(lambda: "round 1 of 100" in processes.output(going), timeout_s=30, what="the first round")
    os.kill(going.pid, signal.SIGINT)
    assert going.wait(20) == 130
    wait_for(
        lambda: not [p for p in Path(tempfile.gettempdir()).iterdir() if p.name.startswith("rigbus-bench-")],
        what="its folder to be removed",
    )
