"""A short chaos campaign: a real rig under work, its processes killed and stopped by a seed, and the judge over its history.

`make chaos ARGS="--seed N --rounds 1000 --tasks 100000"` plays long ones.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from chaos.campaign import Campaign, Options
from chaos.figures import summary
from chaos.history import read
from chaos.judge import judge_seen
from chaos.seen import sort
from helpers import ROOT, Processes, processes_of, wait_for

SEED, ROUNDS, TASKS = 23857, 12, 400
QUICK_SEED = 14784  #: its first jobs hold nothing that takes long


@pytest.mark.timeout(300)
def test_under_random_kills_and_stops_nothing_is_lost_recorded_twice_or_left(rig_dir: Path) -> None:
    print(f"seed {SEED}, {ROUNDS} rounds, {TASKS} tasks")
    campaign = Campaign(Options(SEED, ROUNDS, TASKS, rig_dir, workers=2, room=300), print)
    campaign.run()
    seen = sort(read(campaign.path))
    violations = judge_seen(seen)
    found = summary(seen, violations)
    print(json.dumps(found, indent=1))
    assert found["first_violations"] == []
    assert found["rounds"] >= ROUNDS and found["tasks"] >= TASKS
    assert found["executions"] >= found["tasks_by_state"]["done"] - found["batches"].get("complete", 0)
    assert found["interrupted"] > 0, "no kill hit a command: this campaign has shown nothing"


@pytest.mark.timeout(300)
def test_a_campaign_that_is_killed_leaves_no_process_and_is_gone_on_with(
    rig_dir: Path, processes: Processes
) -> None:
    def play(rounds: int) -> subprocess.Popen[bytes]:
        words = ["--folder", rig_dir, "--seed", str(QUICK_SEED), "--rounds", str(rounds), "--tasks", "100"]
        few = ["--workers", "1", "--room", "60"]
        return processes.python("-m", "chaos", *words, *few, env={"PYTHONPATH": str(ROOT / "tests")})

    history = rig_dir / "history.jsonl"
    first = play(1000)
    wait_for(lambda: _has(history, b'"k": "accepted"'), timeout_s=60, what="an answer")
    processes.kill(first)
    wait_for(lambda: not processes_of(rig_dir), timeout_s=30, what="the rig of a killed campaign to end")
    before = sum(r["k"] == "accepted" for r in read(history))
    second = play(2)
    assert second.wait(200) == 0, processes.output(second)
    assert sum(r["k"] == "accepted" for r in read(history)) >= before > 0
    assert sum(r["k"] == "campaign" for r in read(history)) == 1


def _has(file: Path, what: bytes) -> bool:
    return file.exists() and what in file.read_bytes()
