"""The earlier system's scripts over the share of a whole rig, while it works and while its bridge is killed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from drops import HEAD, run_plan, task
from helpers import ROOT, Processes, wait_for
from rigs import LiveRig

sys.path.insert(0, str(ROOT / "tests" / "bridge"))

from pi import BrainTail, CompleteTail, Dashboard, audit_decisions, status, status_tasks, watch_once

pytestmark = pytest.mark.live


def _plan() -> str:
    items = json.dumps({"items": [{"id": f"i{n}"} for n in range(40)]})
    first = f"### list\n\n- **argv**: {json.dumps(['bash', '-c', 'echo $1 > list.json', '-', items])}\n\n"
    each = task(
        "each", "echo {ITEM.id}; sleep 0.05", foreach="{BATCH_PATH}/list.json:items", depends_on="list"
    )
    flaky = task("flaky", "test -e once || { touch once; exit 3; }", max_attempts=2, backoff_s="0.1")
    bad = task("bad", "echo oh no; exit 4", max_attempts=1, on_failure="continue")
    last = task("last", "mkdir -p output; echo done > output/report.txt", depends_on="each, flaky")
    return HEAD + first + each + flaky + bad + last


def _events(file: Path) -> list[dict[str, Any]]:
    """Its whole lines: the last one may be on its way."""
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def test_every_script_reads_on_and_each_event_is_told_once_over_a_killed_bridge(
    rig_dir: Path, processes: Processes
) -> None:
    rig = LiveRig(rig_dir, processes, workers=2)
    rig.start()
    share = rig.shared
    config = share / "config.json"
    wait_for(config.exists, what="config.json")
    (share / "logs").mkdir(exist_ok=True)
    brain, tail = BrainTail(config), CompleteTail(config)
    batch = run_plan(rig, "day", _plan())
    folder = share / f"plans/day/batches/{batch}"
    log = folder / "logs/batch_events.jsonl"
    wait_for(lambda: len(_events(log)) > 20, timeout_s=30, what="the first events")
    rig.kill("bridge")
    with rig.client() as client:
        row = rig.wait_batch(batch, client)
    done = row["tasks"]["done"]
    assert (done, row["tasks"]["dead"]) == (45, 1), row  # with the expansion and its template
    summary = folder / "RUN_SUMMARY.json"
    wait_for(
        (folder / "execution_stats.json").exists,
        timeout_s=30,
        what="the summary, and what is written behind it",
    )
    found = _events(log)
    counts = Counter(line["event"] for line in found)
    assert len({line["seq"] for line in found}) == len(found)
    assert counts["task_succeeded"] == done, counts
    assert counts["task_retried"] == counts["task_failed"] == 1
    assert sum(counts[name] for name in ("batch_completed", "batch_aborted")) == 1
    said = json.loads(summary.read_text())
    assert said["event_counts"] == dict(counts)
    assert said["failure"]["source_task"] == "bad"
    assert said["important_artifacts"][0]["path"] == "output/report.txt"
    # a file may go between two looks of a reader: their own crash, which only a retry of the person's mends
    assert any(line.startswith("failed ") and "exit 4" in line for line in watch_once(config))
    assert sum(line.startswith("complete ") for line in status_tasks(config)) >= done
    assert any("worker-1" in line for line in status(config))
    assert len(tail.look()) >= done
    words = [text.split("[")[1].split("]")[0] for _, text in brain.look()]
    assert words.count("SHELL_COMPLETE") >= 42 and words.count("RETRY") == 1
    assert len(audit_decisions(config)) >= len(words)
    board = Dashboard(config)
    assert board.brain()["state"] == "ok"
    assert "exit 4" in board.failures()["bad"]
    assert board.ended("day", batch).endswith(tuple("0123456789"))
    flaky = next(
        json.loads(p.read_text())
        for p in share.glob("tasks/complete/*.json")
        if '"name": "flaky"' in p.read_text()
    )
    assert (flaky["attempts"], flaky["requeue_reason"][:6]) == (2, "exit 3")
    assert flaky["first_attempted_at"] < flaky["requeued_at"] < flaky["last_attempt_at"]
    brain.close()
    assert rig.stop() == 0
    assert json.loads((share / "heartbeats/brain.json").read_text())["state"] == "stopped"
