"""A Pi that says what it wants by changing the rig's own files, with its old scripts, and a bridge that dies between
their steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import HEAD, own_rig, run_plan, task
from helpers import wait_for, written
from pi_scripts import (
    CpuAgent,
    archive_tasks,
    delete_files,
    kill_plan_1,
    read_state,
    reset,
    write_state,
)
from rigs import LiveRig

from rigbus import Client

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    env = {"RIGBUS_BRIDGE__RECONCILE_S": "0.5"}
    with own_rig(tmp_path_factory, workers=2, env=env) as made:
        wait_for((made.shared / "tasks/queue").is_dir, what="the lanes")
        yield made


@pytest.fixture
def client(rig: LiveRig) -> Iterator[Client]:
    with rig.client() as found:
        yield found


def lane(rig: LiveRig, name: str, batch: str) -> dict[str, dict[str, Any]]:
    """Task name -> file, of a batch in a lane."""
    found = {}
    for path in (rig.shared / name).glob("*.json"):
        try:
            task = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            continue
        if task.get("batch_id") == batch:
            found[task["name"]] = task
    return found


def answer(rig: LiveRig, pattern: str) -> dict[str, Any]:
    """The answer in the inbox whose name fits."""
    (path,) = wait_for(
        lambda: list((rig.shared / "inbox").glob(f"{pattern}.receipt.json")), timeout_s=20, what=pattern
    )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def gated(rig: LiveRig, name: str, gate: Path, *, then: str = "") -> str:
    """A plan whose first task waits for a file, and whose second one waits for the first; its batch, once it runs."""
    said = f"until [ -e {gate} ]; do sleep 0.02; done"
    batch = run_plan(rig, name, HEAD + task("a", said + then) + task("b", "true", depends_on="a"))
    wait_for(lambda: "a" in lane(rig, "tasks/processing", batch), timeout_s=20, what="the task to run")
    wait_for(lambda: batch in read_state(rig.shared)["active_batches"], what="the batch to be shown")
    return batch


def counts(client: Client, batch: str) -> dict[str, int]:
    found: dict[str, int] = client.query("batch", id=batch)["tasks"]
    return {state: n for state, n in found.items() if n}


def test_kill_plan_of_the_first_generation_cancels_that_batch_and_no_other(
    rig: LiveRig, client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    one, other = gated(rig, "one", gate), gated(rig, "other", gate)
    kill_plan_1(rig.shared, one)  # removes the files of both
    assert rig.wait_batch(one, client)["state"] == "cancelled"
    assert counts(client, one) == {"cancelled": 2}
    said = answer(rig, f"kill-{one}")
    assert (said["state"], said["batch_id"]) == ("accepted", one)
    wait_for(
        lambda: set(lane(rig, "tasks/failed", one)) == {"a", "b"}, timeout_s=20, what="its end in the lane"
    )
    assert lane(rig, "tasks/failed", one)["a"]["status"] == "abandoned"
    wait_for(lambda: "a" in lane(rig, "tasks/processing", other), timeout_s=20, what="the other's file again")
    wait_for(lambda: list(read_state(rig.shared)["active_batches"]) == [other], what="our truth again")
    gate.touch()
    assert rig.wait_batch(other, client)["state"] == "complete"


def test_of_the_second_generation_with_the_bridge_killed_between_its_steps_and_then_archive_tasks(
    rig: LiveRig, client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    one = gated(rig, "scoped", gate)
    state = read_state(rig.shared)
    rig.kill("bridge")
    delete_files(rig.shared, one)
    later = gated(rig, "later", gate)  # by the next bridge: the script has not heard of it
    rig.kill("bridge")
    write_state(rig.shared, state, one)
    assert rig.wait_batch(one, client)["state"] == "cancelled"
    assert answer(rig, f"kill-{one}")["state"] == "accepted"
    wait_for(
        lambda: list(read_state(rig.shared)["active_batches"]) == [later], timeout_s=20, what="our truth"
    )
    rig.kill("bridge")
    gate.touch()
    assert rig.wait_batch(later, client)["state"] == "complete"
    assert counts(client, one) == {"cancelled": 2}
    for name, batch in (("tasks/failed", one), ("tasks/complete", later)):
        wait_for(lambda n=name, b=batch: len(lane(rig, n, b)) == 2, timeout_s=20, what=f"its end in {name}")  # type: ignore[misc]
    moved = archive_tasks(rig.shared)
    rig.kill("bridge")
    last = run_plan(rig, "last", HEAD + task("a", "true"))
    rig.wait_batch(last, client)
    wait_for(lambda: lane(rig, "tasks/complete", last), timeout_s=20, what="the next bridge to draw")
    assert not lane(rig, "tasks/failed", one)
    assert not lane(rig, "tasks/complete", later)
    assert {path.stem for path in (rig.shared / "tasks/archive").rglob("*.json")} == set(moved)


def test_a_reset_of_the_dashboard_runs_that_attempt_again_once(
    rig: LiveRig, client: Client, tmp_path: Path
) -> None:
    gate, runs = tmp_path / "gate", tmp_path / "runs"
    said = f"echo $$ >> {runs}; until [ -e {gate} ]; do sleep 0.02; done"
    batch = run_plan(rig, "reset", HEAD + task("a", said) + task("b", "true", depends_on="a"))
    wait_for(lambda: "a" in lane(rig, "tasks/processing", batch), timeout_s=20, what="the task to run")
    wait_for(lambda: written(runs), what="its first run")
    (moved,) = reset(rig.shared)
    rig.kill("bridge")
    wait_for(lambda: len(runs.read_text().split()) == 2, timeout_s=30, what="its second run")
    assert answer(rig, f"reset-{moved}")["state"] == "accepted"
    gate.touch()
    assert rig.wait_batch(batch, client)["state"] == "complete"
    assert len(runs.read_text().split()) == 2
    assert counts(client, batch) == {"done": 2}
    wait_for(lambda: set(lane(rig, "tasks/complete", batch)) == {"a", "b"}, timeout_s=20, what="the files")


def test_a_pi_worker_that_claims_a_file_is_refused_and_its_result_changes_nothing(
    rig: LiveRig, client: Client, tmp_path: Path
) -> None:
    gate, runs = tmp_path / "gate", tmp_path / "runs"
    held = [gated(rig, f"held-{n}", gate) for n in range(2)]  # both workers are busy
    batch = run_plan(rig, "wanted", HEAD + task("a", f"echo rig >> {runs}"))
    wait_for(lambda: "a" in lane(rig, "tasks/queue", batch), timeout_s=20, what="it to be claimable")
    pi = CpuAgent(rig.shared)
    claimed = pi.claim(lane(rig, "tasks/queue", batch)["a"]["task_id"])
    assert claimed is not None
    id_ = claimed["task_id"]
    said = answer(rig, f"claim-{id_}")
    assert (said["state"], "pi-cpu has taken" in said["problems"][0]["what"]) == ("refused", True)
    wait_for(lambda: "a" in lane(rig, "brain/private_tasks", batch), timeout_s=20, what="it to be put back")
    wait_for(lambda: not lane(rig, "tasks/queue", batch), what="it to leave the queue")
    assert pi.claim(id_) is None, "it cannot be claimed again"
    pi.finish(claimed, "done on the Pi")
    complete = rig.shared / "tasks/complete"
    wait_for(lambda: list(complete.glob(f"{id_}.json.conflict-*")), timeout_s=20, what="its result put aside")
    assert client.query("batch", id=batch)["state"] == "running"
    gate.touch()
    for one in (*held, batch):
        assert rig.wait_batch(one, client)["state"] == "complete"
    assert runs.read_text() == "rig\n"
    wait_for((complete / f"{id_}.json").exists, timeout_s=20, what="the rig's own result")
    assert json.loads((complete / f"{id_}.json").read_text())["result"]["output"] == ""
