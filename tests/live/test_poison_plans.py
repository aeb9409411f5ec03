"""A plan that ends the brain each time is failed, with the reason, and the rig's other plans go on.

The part of the plan that the brain would die of is a FIFO that nobody writes: the brain stands in the midst of its
work, and is killed there.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import own_rig, run_plan
from helpers import wait_for
from rigs import LiveRig

from rigbus import Client
from rigbus.bus.client.link import Connection
from rigbus.bus.paths import find_rig
from rigbus.bus.wire import Verb

HEAD = "# Plan: p\n\n## Tasks\n\n"


@pytest.fixture
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


def doing(client: Client) -> list[dict[str, Any]]:
    """What brains have begun and not ended."""
    return [fact["value"] for fact in client.query("facts", scope="brain.doing")["facts"]]


def kill_in_the_midst(rig: LiveRig, client: Client, batch: str, first: int = 1) -> None:
    """Kill three brains, each as soon as it has begun with the batch."""
    for n in range(first, 4):
        wait_for(
            lambda n=n: [v for v in doing(client) if v.get("batch") == batch and v["tries"] == n],
            what=f"try {n}",
            poll_s=0.02,
        )
        rig.kill("brain")


def other_plans_run(rig: LiveRig, client: Client, name: str) -> None:
    batch = run_plan(rig, name, HEAD + "### fine\n- **command**: `true`\n", files={})
    assert rig.wait_batch(batch, client, timeout_s=20)["state"] == "complete"
    assert doing(client) == []


def test_a_plan_that_ends_the_brain_while_it_is_planned_fails(rig: LiveRig) -> None:
    sha = "ab" * 32
    staged = rig.paths.staged / sha
    staged.mkdir(parents=True)
    os.mkfifo(staged / "plan.md")
    with rig.client() as client:
        link = Connection(find_rig(rig.state).endpoints["commands"], role="client", name="other")
        try:
            link.connect()
            head = {"key": "poison", "kind": "plan", "name": "p", "plan": {"name": "p", "sha256": sha}}
            batch = link.request(Verb.SUBMIT, {"batch": head, "tasks": []}).header["batch"]
        finally:
            link.close()
        kill_in_the_midst(rig, client, batch)
        row = rig.wait_batch(batch, client, timeout_s=20)
        assert row["state"] == "failed"
        assert row["error"].startswith("its plan ended the brain 3 times while it was planned: ")
        other_plans_run(rig, client, "after-planning")


def test_a_list_that_ends_the_brain_while_it_is_expanded_fails_its_plan(rig: LiveRig, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    plan = (
        HEAD
        + f"### wait\n- **command**: `while [ ! -e {gate} ]; do sleep 0.02; done`\n\n"
        + "### each\n- **foreach**: {PLAN_PATH}/input/m.json:\n- **command**: `true {ITEM.id}`\n- **depends_on**: wait\n"
    )
    items = [
        {"id": n, "pad": "x" * 300} for n in range(1500)
    ]  # more than goes inline: a file that can be replaced
    batch = run_plan(rig, "list", plan, files={"input/m.json": json.dumps(items)})
    with rig.client() as client:
        wait_for(lambda: rig.batch(batch, client)["closed"], what="the plan to be declared")
        os.kill(rig.pids()["brain"], signal.SIGSTOP)  # the list is recorded behind its back
        gate.touch()

        def recorded() -> dict[str, Any] | None:
            rows = client.query("tasks", batch=batch, states=["done"], full=True)["rows"]
            return next((r["ref"] for r in rows if r["key"] == "each:expand" and r.get("ref")), None)

        ref = wait_for(recorded, what="the list to be recorded", poll_s=0.02)
        file = rig.paths.results / ref["sha256"][:2] / ref["sha256"]
        file.unlink()
        os.mkfifo(file)
        rig.kill("brain")
        kill_in_the_midst(rig, client, batch)
        row = rig.wait_batch(batch, client, timeout_s=20)
        assert row["state"] == "failed"
        assert row["error"].startswith("its plan ended the brain 3 times while it was expanded (each): ")
        other_plans_run(rig, client, "after-expanding")
