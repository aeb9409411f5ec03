"""A short chaos campaign: a real rig under work, its processes killed and stopped by a seed, and the judge over its history.

`make chaos ARGS="--seed N --rounds 1000 --tasks 100000"` plays long ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chaos.campaign import Campaign, Options
from chaos.figures import summary
from chaos.history import read
from chaos.judge import judge_seen
from chaos.seen import sort

SEED, ROUNDS, TASKS = 6468, 16, 600


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
