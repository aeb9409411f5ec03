"""`why`, `watch` and the estimates on a real rig: what people see while a plan runs, waits, and cannot run."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import HEAD, own_rig, run_plan, say, task
from helpers import slack, wait_for
from rigs import LiveRig

from rigbus import Client

pytestmark = pytest.mark.live


def timed(gate: Path | None = None) -> str:
    """Eight tasks of 0.4 s; with a gate each first waits until it is open. It is the same plan by its name."""
    wait = f"until [ -e {gate} ]; do sleep 0.02; done; " if gate else ""
    return HEAD + "".join(task(f"t{i}", f"{wait}sleep 0.4", task_class="cpu") for i in range(8))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


def why(rig: LiveRig, ref: str = "all") -> dict[str, Any]:
    code, out, err = say(rig, "why", ref, "--json")
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def kept(client: Client) -> dict[str, Any]:
    """What the facts hold of the plan `timed`."""
    facts = client.query("facts", scope="durations", key="plan:timed")["facts"]
    return dict(facts[0]["value"]) if facts else {}


def test_a_second_run_is_estimated_from_the_first_though_the_broker_was_killed_between(
    rig: LiveRig, tmp_path: Path
) -> None:
    with rig.client() as client:
        first = run_plan(rig, "timed", timed())
        answer = why(rig, first)
        if answer["state"] == "running" and answer["eta_s"] is None:
            assert "has been timed yet" in answer["eta"]["why"]
        assert rig.wait_batch(first, client)["state"] == "complete"
        wait_for(lambda: len(kept(client)) == 8, what="what was learned to be kept")
    rig.kill("broker")
    with rig.client() as client:
        wait_for(lambda: len(client.query("workers")["workers"]) >= 3, timeout_s=20, what="the workers")
        gate = tmp_path / "gate"
        second = run_plan(rig, "timed", timed(gate))
        row = wait_for(
            lambda: r if (r := rig.batch(second, client))["tasks"]["leased"] == 2 else None, what="its start"
        )
        said = why(rig, second)
        assert said["position"] == 1
        assert "all 2 workers that can run it are busy" in said["reasons"][0]
        gate.touch()
        began = time.monotonic()
        assert rig.wait_batch(second, client)["state"] == "complete"
        took = time.monotonic() - began
    assert row["eta_s"] == pytest.approx(took, rel=0.5 * slack(), abs=1.0)


def test_a_plan_whose_own_copy_was_removed_says_so_and_how_to_go_on(rig: LiveRig) -> None:
    with rig.client() as client:
        assert say(rig, "pause", "all")[0] == 0
        batch = run_plan(rig, "robbed", HEAD + task("a", "true"))
        wait_for(lambda: why(rig, batch)["reasons"][:1] == ["`a` ready: the rig is paused"], poll_s=0.2)
        for folder in (rig.paths.staged, rig.paths.views):
            for path in (folder, *folder.rglob("*")):
                if path.is_dir():
                    path.chmod(0o700)
            shutil.rmtree(folder)
        assert say(rig, "resume", "all")[0] == 0
        # It is tried again each few seconds, and for those moments it is under way.
        missing = "copy of its plan is missing"
        wait_for(lambda: any(missing in reason for reason in why(rig, batch)["reasons"]), poll_s=0.2)
        way = f"rigbus cancel {batch}, then submit the plan again"
        text = wait_for(
            lambda: text if way in " ".join((text := say(rig, "why", batch)[1]).split()) else "",
            timeout_s=20,
            what="the way out",
        )
        assert max(map(len, text.splitlines())) <= 100
        wait_for(lambda: batch in {s["id"] for s in why(rig)["stuck"]}, timeout_s=20, what="it to be stuck")
        assert say(rig, "cancel", batch)[0] == 0
        again = run_plan(rig, "robbed-again", HEAD + task("a", "true"))
        assert rig.wait_batch(again, client)["state"] == "complete"


def test_a_class_that_nobody_offers_is_told_with_the_command_that_gives_it(rig: LiveRig) -> None:
    batch = run_plan(rig, "thinks", HEAD + task("a", "true", task_class="llm"))
    wanted = "somebody runs shell (class llm)"
    row = wait_for(
        lambda: next((p for p in why(rig)["predicates"] if p["name"] == wanted), None),
        timeout_s=20,
        poll_s=0.2,
    )
    assert not row["ok"]
    assert "pip install 'rigbus[llm]'" in row["fix"]
    assert why(rig, "worker-1")["summary"].startswith("idle: 0 of 1 ready task fit, 1 wants")
    say(rig, "cancel", batch)


def test_watch_follows_a_plan_that_fails_and_ends_with_6(rig: LiveRig, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    plan = task("one", f"until [ -e {gate} ]; do sleep 0.02; done") + task(
        "two", "exit 3", depends_on="one", max_attempts=1
    )
    batch = run_plan(rig, "watched", HEAD + plan)
    watch = rig.processes.start([sys.executable, "-u", "-m", "rigbus", "watch", batch], env=rig.env)
    wait_for(lambda: "running" in rig.processes.output(watch), what="its first line")
    gate.touch()
    assert watch.wait(30) == 6
    lines = [line for line in rig.processes.output(watch).splitlines() if batch in line]
    assert any(line.endswith("2/2 100%  1 failed") for line in lines)
