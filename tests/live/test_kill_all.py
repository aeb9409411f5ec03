"""kill -9 of every process of a rig at one instant, again and again: the same batches go on to the right report.

Three times by default; ``RIGBUS_TEST_CUTS=10`` (`make power-cuts`) does it ten times, over more work.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, wait_for
from rigs import SOURCE, LiveRig, expected_report

from rigbus import Task
from rigbus.bus.errors import Unreachable

CUTS = int(os.environ.get("RIGBUS_TEST_CUTS", "3"))
LIMIT = 4 * CUTS


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return expected_report(tmp_path_factory.mktemp("expected"), LIMIT)


def _progress(rig: LiveRig, batches: list[str], ids: list[str]) -> tuple[int, bool]:
    """(tasks that have ended, whether everything has)."""
    with rig.client() as client:
        rows = [rig.batch(b, client) for b in batches]
        mine = [
            r for i in range(0, len(ids), 500) for r in client.query("rows", ids=ids[i : i + 500])["rows"]
        ]
    ended = sum(r["tasks"]["done"] for r in rows) + sum(r["state"] == "done" for r in mine)
    return ended, all(r["state"] == "complete" for r in rows) and all(r["state"] == "done" for r in mine)


@pytest.mark.timeout(300)
def test_power_cuts_lose_nothing(rig_dir: Path, processes: Processes, wanted: dict[str, Any]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rig = LiveRig(rig_dir, processes)
    rig.start()
    receipts = [rig.drop(name, limit=LIMIT, source=SOURCE) for name in ("one", "two")]
    with rig.client() as client:
        tasks = [Task(type="shell", payload={"command": f"echo {n}; sleep 0.1"}) for n in range(4 * CUTS)]
        ids = list(client.submit(tasks))
    batches = [rig.receipt(r)["batch_id"] for r in receipts]
    cuts = 0
    while cuts < CUTS:
        had, finished = _progress(rig, batches, ids)
        if not finished:
            step = chance.randrange(1, 5)
            wait_for(lambda: _moved(rig, batches, ids, had + step), timeout_s=60, what="progress")  # noqa: B023
        rig.kill_everything()
        cuts += 1
        rig.start()
    with rig.client() as client:
        for batch in batches:
            row = rig.wait_batch(batch, client, timeout_s=90)
            assert row["state"] == "complete", row
        results = {r.id: r for r in client.results(ids, timeout_s=60)}
    assert [results[i].value["output"] for i in ids] == [f"{n}\n" for n in range(4 * CUTS)]
    for name, batch in zip(("one", "two"), batches, strict=True):
        assert rig.report(name, batch) == wanted
    assert rig.stop() == 0
    rig.check_log()


def _moved(rig: LiveRig, batches: list[str], ids: list[str], goal: int) -> bool:
    try:
        ended, finished = _progress(rig, batches, ids)
    except Unreachable:
        return False
    return finished or ended >= goal
