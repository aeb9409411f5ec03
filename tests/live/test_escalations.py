"""The escalation ladder on a real rig: what it cannot settle is a file, and a file beside it brings the batch back."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import own_rig, run_plan, say
from helpers import wait_for
from rigs import LiveRig

from rigbus import Task
from rigbus.bus.client.link import Connection
from rigbus.bus.escalation import FOLDER, Escalation
from rigbus.bus.paths import find_rig
from rigbus.bus.wire import Verb

PLAN = """# Plan: p

## Tasks

### first

- **command**: `echo ran >> {PLAN_PATH}/output/first.txt`

### second

- **command**: `python3 {PLAN_PATH}/scripts/second.py`
- **depends_on**: first
- **max_attempts**: 1

### third

- **command**: `echo done`
- **depends_on**: second
"""
#: Fails until somebody has mended the world.
SECOND = """import pathlib, sys
here = pathlib.Path(__file__).resolve().parents[1]
print("looking for the mount")
sys.exit(0 if (here / "output" / "mended").exists() else 3)
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory, env={"RIGBUS_ESCALATION__COOLDOWN_S": "0"}) as rig:
        yield rig


def raised(rig: LiveRig, batch: str) -> dict[str, Any]:
    """The file about a batch, when it stands."""

    def found() -> dict[str, Any] | None:
        for path in (rig.shared / FOLDER).glob("*_????????.json"):
            value: dict[str, Any] = json.loads(path.read_text())
            if value["source_task"].get("batch_id") == batch:
                Escalation.model_validate(value)
                return value
        return None

    return wait_for(found, what=f"an escalation about {batch}", timeout_s=30)  # type: ignore[return-value]


def answer(rig: LiveRig, one: dict[str, Any], action: str, **fields: Any) -> None:
    """By temp and rename, as docs/escalations.md has it."""
    path = rig.shared / one["answer_to"]
    temp = path.with_name(f".{path.name}.tmp")
    temp.write_text(json.dumps({"escalation_id": one["escalation_id"], "action": action, **fields}))
    os.replace(temp, path)


def receipt(rig: LiveRig, one: dict[str, Any]) -> dict[str, Any]:
    path = Path(rig.shared / one["answer_to"].replace(".answer.json", ".answer.receipt.json"))
    wait_for(path.exists, what=f"{path.name}", timeout_s=30)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def status_of(rig: LiveRig, one: dict[str, Any], wanted: str) -> None:
    path = rig.shared / FOLDER / f"{one['escalation_id']}.json"
    # An event is a hint: one that was lost is made good by the bridge's next look, 10 s later.
    wait_for(
        lambda: json.loads(path.read_text())["status"] == wanted,
        timeout_s=30,
        what=f"{path.name} to be {wanted}",
    )


def failed(rig: LiveRig, name: str, plan: str = PLAN) -> tuple[str, dict[str, Any]]:
    batch = run_plan(rig, name, plan, files={"scripts/second.py": SECOND})
    with rig.client() as client:
        assert rig.wait_batch(batch, client, timeout_s=30)["state"] == "failed"
    return batch, raised(rig, batch)


def test_an_answer_that_came_while_the_bridge_was_dead_brings_the_batch_to_its_end(rig: LiveRig) -> None:
    batch, one = failed(rig, "mended")
    assert (one["status"], one["cause"]) == ("pending", "repeated_failures")
    assert one["source_task"]["name"] == "second" and "retry" in one["actions"]
    assert one["attempts"][0]["log_tail"][-1] == "looking for the mount"
    code, out, _ = say(rig, "why", batch)
    assert code == 0 and one["answer_to"] in out.replace("\n", "").replace(" ", "")
    _, out, _ = say(rig, "status", "--json")
    assert next(b for b in json.loads(out)["batches"] if b["id"] == batch)["escalations"] == 1
    assert f"{batch} is escalated: `rigbus why {batch}`" in say(rig, "status")[1]

    (rig.shared / "plans/mended/output/mended").write_text("")
    old = rig.kill("bridge")
    answer(rig, one, "retry", by="ann", note="mounted it")
    said = receipt(rig, one)
    assert said["state"] == "accepted" and rig.pids()["bridge"] != old
    with rig.client() as client:
        assert rig.wait_batch(batch, client, timeout_s=30)["state"] == "complete"
    assert (rig.shared / "plans/mended/output/first.txt").read_text() == "ran\n"  # done stays done
    status_of(rig, one, "applied")
    log = rig.shared / "logs/brain_decisions.log"
    wait_for(lambda: "ESCALATION_ANSWERED" in log.read_text(), what="the log to say so")
    assert log.read_text().count(f'"ESCALATION", "message": "{one["title"]}"') == 1


def kill_both(rig: LiveRig) -> None:
    """Brain and broker at once; until both are back."""
    old = {name: rig.kill(name) for name in ("brain", "broker")}
    wait_for(
        lambda: all(rig.pids().get(name) not in (None, pid) for name, pid in old.items()),
        what="both to be back",
        timeout_s=30,
    )


def test_what_failed_while_brain_and_broker_were_killed_is_raised_once(rig: LiveRig, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    plan = "# Plan: p\n\n## Tasks\n\n### one\n\n- **max_attempts**: 1\n- **command**: "
    batch = run_plan(rig, "killed", f"{plan}`while [ ! -e {gate} ]; do sleep 0.02; done; exit 3`\n")
    with rig.client() as client:
        wait_for(
            lambda: client.query("tasks", batch=batch, states=["leased"])["rows"], what="the task to run"
        )
    os.kill(rig.pids()["brain"], signal.SIGSTOP)  # it ends behind the brain's back
    gate.touch()
    with rig.client() as client:
        assert rig.wait_batch(batch, client, timeout_s=30)["state"] == "failed"
    for _ in range(2):
        kill_both(rig)
        one = raised(rig, batch)
        with rig.client() as client:
            (record,) = client.query("escalations", batch=batch)["escalations"]
        assert record["id"] == one["escalation_id"] and record["tasks"][0]["key"] == "one"


def test_an_abandoned_one_is_closed_and_a_second_answer_refused(rig: LiveRig) -> None:
    batch, one = failed(rig, "given_up")
    answer(rig, one, "abandon", by="ann")
    assert receipt(rig, one)["state"] == "accepted"
    status_of(rig, one, "closed")
    answer(rig, one, "retry", by="bob")
    wait_for(lambda: receipt(rig, one)["state"] == "refused", timeout_s=30, what="the second one refused")
    assert "closed by ann" in receipt(rig, one)["problems"][0]["what"]
    with rig.client() as client:
        assert rig.batch(batch, client)["state"] == "failed"


def test_a_plan_that_cannot_be_planned_is_raised_with_its_end(rig: LiveRig) -> None:
    link = Connection(find_rig(rig.state).endpoints["commands"], role="client", name="test")
    try:
        plan = {"name": "lost", "sha256": "0" * 64, "path": str(rig.shared / "plans/lost")}
        head = {"key": "lost", "kind": "plan", "name": "lost", "plan": {**plan, "config": {}}}
        batch = str(link.request(Verb.SUBMIT, {"batch": head, "tasks": []}, timeout_s=10).header["batch"])
    finally:
        link.close()
    one = raised(rig, batch)
    assert one["cause"] == "plan_fault" and "lost cannot be planned" in one["title"]
    assert one["actions"] == ["patch", "config", "abandon", "human"]
    answer(rig, one, "human", note="where is it?")
    assert receipt(rig, one)["state"] == "accepted"
    page = rig.shared / FOLDER / f"HUMAN_{one['escalation_id']}.md"
    wait_for(page.exists, what="the page for people")
    assert "where is it?" in page.read_text()


def test_a_mended_script_brings_the_batch_to_its_end_and_what_is_done_is_not_run_again(rig: LiveRig) -> None:
    batch, one = failed(rig, "patched")
    broken = "# Plan: p\n\n## Tasks\n\n### second\n\n- **command**: `true`\n- **depends_on**: nobody\n"
    answer(rig, one, "patch", files={"plan.md": broken})
    said = receipt(rig, one)
    assert said["state"] == "refused" and said["problems"][0]["file"] == "plan.md"
    (rig.shared / FOLDER / f"{one['escalation_id']}.answer.receipt.json").unlink()

    answer(
        rig, one, "patch", files={"scripts/second.py": "print('mended')\n"}, plan_sha256=one["plan_sha256"]
    )
    said = receipt(rig, one)
    assert said["state"] == "accepted" and "revision 2" in said["note"], said
    with rig.client() as client:
        row = rig.wait_batch(batch, client, timeout_s=30)
        assert row["state"] == "complete" and row["tasks"]["done"] == 3
    home = rig.shared / "plans/patched"
    assert (home / "output/first.txt").read_text() == "ran\n"
    assert (home / "scripts/second.py").read_text() == "print('mended')\n"
    status_of(rig, one, "applied")


def test_other_values_bring_a_batch_to_its_end(rig: LiveRig) -> None:
    inputs = "## Inputs\n\n- **CODE**: how it ends (default: `3`)\n"
    plan = PLAN.replace("`python3 {PLAN_PATH}/scripts/second.py`", "`exit {CODE}`") + inputs
    batch, one = failed(rig, "configured", plan)
    answer(rig, one, "config", config={"CODE": "0"})
    assert receipt(rig, one)["state"] == "accepted"
    with rig.client() as client:
        assert rig.wait_batch(batch, client, timeout_s=30)["state"] == "complete"
    assert (rig.shared / "plans/configured/output/first.txt").read_text() == "ran\n"


def test_a_rig_without_a_worker_in_order_is_raised_until_one_comes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    env = {"RIGBUS_ESCALATION__WORKERS_AFTER_S": "0.5"}
    with own_rig(tmp_path_factory, workers=0, env=env) as rig, rig.client() as client:
        ids = client.submit([Task(type="shell", payload={"command": "true"})])
        found = lambda: client.query("escalations", batch="")["escalations"]  # noqa: E731
        (record,) = wait_for(found, what="the question about the rig", timeout_s=30)  # type: ignore[misc]
        assert record["title"] == "no worker is in order while 1 task waits: none is attached"
        path = rig.shared / FOLDER / f"{record['id']}.json"
        wait_for(path.exists, what="its file")
        assert json.loads(path.read_text())["actions"] == ["abandon", "human"]
        rig.processes.start([sys.executable, "-m", "rigbus", "worker"], env=rig.env)
        wait_for(lambda: found()[0]["status"] == "closed", what="it to be settled", timeout_s=30)
        assert "is in order again" in found()[0]["note"]
        assert [r.ok for r in client.results(ids, timeout_s=20)] == [True]
