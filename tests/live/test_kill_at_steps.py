"""kill -9 of a real process at a named step: everything that was accepted ends, once. `make kill-at-steps` takes all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, Processes
from rigs import LiveRig

pytestmark = pytest.mark.live

#: A process is not killed twice in a row, since `up` waits longer each time.
BASE = [
    ("bridge", "after send SUBMIT", 1),  # the plan is submitted, no answer has come
    ("broker", "after commit", 4),  # what was said is on the disk, nobody is told
    ("worker-", "after recv LEASE", 1),
    ("brain", "after request BRAIN", 1),  # between two declarations
    ("worker-", "before send RESULT", 1),  # it has run, nobody knows
    ("broker", "before commit", 2),
]
#: Every step of each kind of process, and the times at which it dies there.
ALL = {
    "broker": (["before commit", "after commit", "before answer", "after answer"], (1, 2, 3, 5, 8, 13)),
    "worker-": (
        [
            *("after recv LEASE", "before send STARTED", "after send STARTED"),
            *("before send RESULT", "after send RESULT", "after recv RECORDED"),
        ],
        (1, 2),
    ),
    "brain": (["before request BRAIN", "after send BRAIN", "after request BRAIN"], (1, 2, 3)),
    "bridge": (
        [
            *("before request", "before enter", "after enter", "before send SUBMIT", "after send SUBMIT"),
            *("after recv ACCEPTED", "before leave", "after leave"),
        ],
        (1,),
    ),
}
POINTS = [(role, step, n) for role, (steps, times) in ALL.items() for step in steps for n in times]
WHOLE = os.environ.get("RIGBUS_TEST_STEPS") == "all"

PLAN = """\
# Plan: steps

## Tasks

### list

- **executor**: worker
- **task_class**: cpu
- **argv**: ["python3", "{PLAN_PATH}/scripts/list.py", "{BATCH_PATH}/list.json"]

### each

- **executor**: worker
- **task_class**: cpu
- **depends_on**: list
- **foreach**: `{BATCH_PATH}/list.json:items`
- **argv**: ["echo", "{ITEM.id}"]

### end

- **executor**: worker
- **task_class**: cpu
- **depends_on**: each
- **argv**: ["echo", "end"]
"""
LIST = """\
import json, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(json.dumps({"items": [{"id": "a"}, {"id": "b"}]}))
"""


class Steps:
    """A rig whose processes may die at steps, and a plan for it."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder / "dying"
        self.folder.mkdir()
        self.plan = folder / "plan"
        self.plan.mkdir()
        (self.plan / "scripts").mkdir()
        (self.plan / "plan.md").write_text(PLAN)
        (self.plan / "scripts/list.py").write_text(LIST)
        env = {"RIGBUS_TEST_DYING": str(self.folder), "PYTHONPATH": str(ROOT / "tests/dying")}
        self.rig = LiveRig(folder, processes, env=env)
        self._n = 0

    def arm(self, role: str, step: str, nth: int) -> None:
        """Each process reads it when it next passes a step."""
        (self.folder / "died").unlink(missing_ok=True)
        temp = self.folder / "armed.tmp"
        temp.write_text(f"{role}\t{step}\t{nth}")
        temp.rename(self.folder / "armed")

    def drop(self, client: Any) -> dict[str, Any]:
        """One plan, from its drop to its end."""
        self._n += 1
        receipt = self.rig.receipt(self.rig.drop(f"steps{self._n}", plan=self.plan), timeout_s=60)
        assert receipt["state"] == "accepted", receipt
        return self.rig.wait_batch(receipt["batch_id"], client, timeout_s=90)

    @property
    def died(self) -> bool:
        return (self.folder / "died").exists()


def check(steps: Steps, role: str, step: str, nth: int) -> bool:
    """Die there while a plan runs; whether it came to that."""
    steps.arm(role, step, nth)
    with steps.rig.client() as client:
        row = steps.drop(client)
    where = f"kill -9 of {role} {step}, time {nth}"
    assert row["state"] == "complete", f"{where}: {row}"
    assert row["tasks"]["done"] == row["total"] == 6, f"{where}: {row}"
    return steps.died


@pytest.mark.timeout(300)
def test_a_plan_ends_once_whatever_dies_at_a_named_step(rig_dir: Path, processes: Processes) -> None:
    steps = Steps(rig_dir, processes)
    steps.rig.start()
    missed = [point for point in BASE if not check(steps, *point)]
    assert not missed, f"never passed: {missed}"
    assert steps.rig.stop() == 0
    steps.rig.check_log()


@pytest.mark.timeout(600)
@pytest.mark.skipif(not WHOLE, reason="`make kill-at-steps` dies at every step")
@pytest.mark.parametrize("first", range(0, len(POINTS), 4), ids=lambda n: "-".join(map(str, POINTS[n])))
def test_a_plan_ends_once_whatever_dies_at_any_step(rig_dir: Path, processes: Processes, first: int) -> None:
    """Four steps a rig."""
    steps = Steps(rig_dir, processes)
    steps.rig.start()
    died = [check(steps, *point) for point in POINTS[first : first + 4]]
    print(
        f"\n{sum(died)} of {len(died)} came to it: {list(zip(POINTS[first : first + 4], died, strict=True))}"
    )
    assert steps.rig.stop() == 0
    steps.rig.check_log()
