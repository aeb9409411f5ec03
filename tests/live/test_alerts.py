"""A whole rig: a task that dies is a file in `alerts/` and a line of `status`, and a person's ack clears it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, wait_for
from rigs import LiveRig

pytestmark = pytest.mark.live
PLAN = (
    "# Plan: doomed\n\n## Settings\n\n- max_attempts: 1\n\n## Tasks\n\n### one\n\n- **command**: `exit 3`\n"
)


@pytest.fixture
def rig(rig_dir: Path, processes: Processes) -> Iterator[LiveRig]:
    made = LiveRig(rig_dir, processes, workers=1)
    made.start()
    yield made
    made.stop()


def cli(rig: LiveRig, *words: str, state: Path | None = None) -> Any:
    command = [sys.executable, "-m", "rigbus", *words, "--json", "--state", str(state or rig.state)]
    command += ["--shared", str(rig.shared)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def alerts(rig: LiveRig) -> dict[str, dict[str, Any]]:
    return {p.stem: json.loads(p.read_text()) for p in (rig.shared / "alerts").glob("*.json")}


def test_a_task_that_dies_raises_an_alert_and_an_ack_clears_it(rig: LiveRig, tmp_path: Path) -> None:
    drop = rig.shared / "inbox" / "doomed"
    wait_for(drop.parent.is_dir, timeout_s=30, what="the inbox")
    drop.mkdir()
    (drop / "plan.md").write_text(PLAN)
    (drop / "READY").write_text("{}")
    key = wait_for(
        lambda: next((k for k, a in alerts(rig).items() if a["state"] == "raised"), None),
        timeout_s=60,
        what="an alert",
    )
    said = alerts(rig)[key]
    assert said["rule"] == "batch-failed" and said["severity"] == "critical"
    wait_for(
        lambda: (cli(rig, "status")["alerts"] or {}).get("raised") == 1,
        timeout_s=30,
        what="status to count it",
    )
    assert [a["key"] for a in cli(rig, "alerts", "list")["alerts"]] == [key]

    # in file mode, as from a machine that has the folder only
    assert [a["key"] for a in cli(rig, "alerts", "list", state=tmp_path / "none")["alerts"]] == [key]
    assert cli(rig, "alerts", "ack", key, "--timeout", "30", state=tmp_path / "none")["state"] == "cleared"
    wait_for(lambda: alerts(rig)[key]["state"] == "cleared", timeout_s=30, what="the file to say so")

    # and over the bus
    assert cli(rig, "alerts", "test", "--timeout", "30")["key"] == "test"
    assert cli(rig, "alerts", "ack", "test", "--timeout", "30")["state"] == "cleared"
    log = (rig.shared / "logs" / "brain_decisions.log").read_text()
    assert "ALERT_RAISED" in log and f"{key}: doomed" in log
