"""A worker under which every command crashes, on a real rig: its tasks run elsewhere, it gets no work, the broker's
death changes nothing of that, and a person trusts it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import own_rig, say
from helpers import wait_for
from rigs import LiveRig

from rigbus import Task


@pytest.fixture
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


def worker(rig: LiveRig, name: str) -> dict[str, Any]:
    code, out, err = say(rig, "status", "--json")
    assert code == 0, err
    return next((w for w in json.loads(out)["workers"] if w["id"] == name), {})


def test_a_worker_that_everything_crashes_on_is_quarantined_until_somebody_trusts_it(
    rig: LiveRig, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.write_text(str(rig.pids()["worker-1"]))
    command = f"[ $PPID = $(cat {bad}) ] && kill -SEGV $$; true"
    with rig.client() as client:
        ids = client.submit(
            [Task(type="shell", payload={"command": command}, policy={"backoff_s": 0.1}) for _ in range(24)]
        )
        results = client.results(ids, timeout_s=20)
        assert {r.state for r in results} == {"done"}
        rows = client.query("rows", ids=ids)["rows"]
        assert {row["worker"] for row in rows} == {"worker-2"}
        crashed = sum(row["attempts"]["crash"] for row in rows)
        assert 3 <= crashed <= 6  # what it held when the third one crashed, and no more
        assert worker(rig, "worker-1")["state"] == "quarantined"

        old = rig.kill("broker")
        wait_for(lambda: rig.pids()["broker"] != old, what="the broker to be started again")
        wait_for(lambda: worker(rig, "worker-1").get("state") == "quarantined", what="worker-1 to be back")
        assert len(worker(rig, "worker-1")["quarantine"]["tasks"]) >= 3
        _, out, _ = say(rig, "status")
        assert "worker-1 is quarantined for 1" in out and "`rigbus resume worker-1` trusts it" in out
        _, out, _ = say(rig, "why", "worker-1")
        assert "different tasks crashed there in a row" in out and "-> rigbus resume worker-1" in out

        bad.write_text("none")
        assert say(rig, "resume", "worker-1")[0] == 0
        assert worker(rig, "worker-1")["quarantine"] is None
        again = client.submit([Task(type="shell", payload={"command": "sleep 0.3"}) for _ in range(4)])
        assert all(r.ok for r in client.results(again, timeout_s=20))
        assert {row["worker"] for row in client.query("rows", ids=again)["rows"]} == {"worker-1", "worker-2"}
