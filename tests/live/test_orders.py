"""Broker, brain, worker and bridge, each started alone, in any order: a plan that lay in the inbox before ends done.

Six of the 24 orders by default, in which each process is first, and each is last; ``RIGBUS_TEST_ORDERS=24`` (`make
orders`) takes all. Several rigs start at once, so that the whole is quick.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest
from helpers import Processes, wait_for

pytestmark = pytest.mark.live

PARTS = ("broker", "brain", "worker", "bridge")
#: Each is first and last at least once; broker and bridge, which hold what others need, are late in most.
FEW = (
    ("bridge", "worker", "brain", "broker"),
    ("worker", "brain", "broker", "bridge"),
    ("brain", "bridge", "broker", "worker"),
    ("broker", "bridge", "worker", "brain"),
    ("worker", "bridge", "broker", "brain"),
    ("brain", "worker", "bridge", "broker"),
)
AT_ONCE = 3
GAP_S = 0.3
PLAN = "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo run >> {BATCH_PATH}/ran`\n"


def orders() -> list[tuple[str, ...]]:
    wanted = int(os.environ.get("RIGBUS_TEST_ORDERS", "0"))
    return list(permutations(PARTS)) if wanted >= 24 else list(FEW)


class Started:
    """One rig whose processes are started one by one."""

    def __init__(self, folder: Path, order: tuple[str, ...], processes: Processes) -> None:
        self.order, self.state, self.share = order, folder / "s", folder / "share"
        self.processes = processes
        plan = self.share / "inbox" / "p"
        plan.mkdir(parents=True)
        (plan / "plan.md").write_text(PLAN)
        (plan / "READY").touch()
        self.took = 0.0

    def start(self, part: str) -> None:
        words = [part, "--state", str(self.state)]
        words += ["--name", "w-1", "--slots", "1"] if part == "worker" else []
        words += ["--shared", str(self.share)] if part == "bridge" else []
        env = {"RIGBUS_STATE": str(self.state), "RIGBUS_SHARED": str(self.share)}
        self.processes.python("-m", "rigbus", *words, env=env)
        self.began = time.monotonic()

    def done(self) -> bool:
        for file in self.share.glob("plans/p/batches/*/batch.json"):
            try:
                ended = json.loads(file.read_text())["status"] == "complete"
            except (OSError, ValueError):
                continue
            if ended:
                self.took = self.took or time.monotonic() - self.began
        return self.took > 0


@pytest.mark.parametrize(
    "few", [orders()[i : i + AT_ONCE] for i in range(0, len(orders()), AT_ONCE)], ids=str
)
def test_whatever_is_started_first_a_dropped_plan_ends_done(
    rig_dir: Path, processes: Processes, few: list[tuple[str, ...]]
) -> None:
    gaps = random.Random(repr(few))
    rigs = [Started(rig_dir / str(n), order, processes) for n, order in enumerate(few)]
    for step in range(len(PARTS)):
        for rig in rigs:
            rig.start(rig.order[step])
            gap_s = gaps.uniform(0, GAP_S / AT_ONCE)
            time.sleep(gap_s)  # nothing is waited for: a gap between two starts is what is tested
    left = list(rigs)

    def all_done() -> bool:
        left[:] = [rig for rig in left if not rig.done()]
        return not left

    wait_for(all_done, timeout_s=60, what="the plan of each order", poll_s=0.02)
    for rig in rigs:
        (ran,) = rig.share.glob("plans/p/batches/*/ran")
        assert ran.read_text() == "run\n", rig.order
    seconds = [rig.took for rig in rigs]
    print(f"from the last start to the end: {statistics.median(seconds):.2f} s of {few}", file=sys.stderr)
