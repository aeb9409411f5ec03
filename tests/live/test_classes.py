"""Classes that a plan leaves open, on a whole rig: a model that a test plays says them, and once a real one."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import own_rig, run_plan, say, tasks_of
from helpers import ROOT, wait_for
from playedmodel import HeldModel, serving
from rigs import LiveRig

from rigbus.agents.models.scripted import ScriptedModel

pytestmark = pytest.mark.live

write_tiny_gguf = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]

PLAN = """\
# Plan: p

## Tasks

### list
- command: `echo '{"items": [{"id": "a"}, {"id": "b"}]}' > items.json`

### speak
- command: `bash {PLAN_PATH}/scripts/speak.sh {ITEM.id}`
- foreach: items.json:items
- depends_on: list
"""
FILES = {"scripts/speak.sh": "# loads a speech model\necho spoken $1\n"}


def said(task_class: str, reason: str) -> str:
    return json.dumps({"1": {"reason": reason, "task_class": task_class}})


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


def ended(rig: LiveRig, batch: str) -> dict[str, dict[str, Any]]:
    with rig.client() as client:
        row = rig.wait_batch(batch, client, timeout_s=30)
    tasks = tasks_of(rig, batch)
    assert row["state"] == "complete", {name: (one["state"], one["error"]) for name, one in tasks.items()}
    return tasks


def test_a_model_reads_the_script_and_its_class_is_that_of_every_item(rig: LiveRig) -> None:
    with serving(rig, lambda: ScriptedModel([said("script", "it loads a speech model")])) as model:
        batch = run_plan(rig, "speak", PLAN, files=FILES)
        tasks = ended(rig, batch)
        (request,) = model.asked
    assert "# loads a speech model" in request.messages[-1]["content"]
    for name in ("speak_a", "speak_b"):
        assert (tasks[name]["class"], tasks[name]["result"]["output"]) == ("script", f"spoken {name[-1]}\n")
        why = "inferred task_class='script' by the model scripted: it loads a speech model"
        assert tasks[name]["fix_applied"] == why
    assert [name for name, one in tasks.items() if one.get("aside")] == ["plan:classes.1"]
    code, out, err = say(rig, "task", "show", f"{batch}/speak_a")
    assert (code, why in out) == (0, True), err
    log = rig.shared / "logs" / "brain_decisions.log"
    wait_for(lambda: f"speak_a (script), {why}" in log.read_text(), what="the line of the log")


def test_a_brain_that_is_killed_while_the_model_thinks_asks_no_second_time(rig: LiveRig) -> None:
    with serving(rig, HeldModel) as model:
        model.open.clear()
        model.add(said("script", "a card"))
        batch = run_plan(rig, "killed", PLAN, files=FILES)
        wait_for(lambda: model.asked, what="the model to be asked")
        why = json.loads(say(rig, "why", batch, "--json")[1])
        assert "it asks a model for their classes" in why["summary"]
        rig.kill("brain")
        model.open.set()
        tasks = ended(rig, batch)
        assert len(model.asked) == 1
    assert {tasks[name]["class"] for name in ("speak_a", "speak_b")} == {"script"}


def test_without_a_model_nothing_waits_and_the_task_says_so(rig: LiveRig) -> None:
    tasks = ended(rig, run_plan(rig, "alone", PLAN, files=FILES))
    assert tasks["speak_a"]["class"] == "cpu"
    assert tasks["speak_a"]["fix_applied"].endswith(
        "unsure: no model is configured, and no worker offers one"
    )


@pytest.mark.llm
def test_a_real_model_says_one_of_the_classes(tmp_path_factory: pytest.TempPathFactory) -> None:
    file: Path = write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
    # its noise is long, and a machine with other things to do takes its time
    patient = {"RIGBUS_BRAIN__INFER_WAIT_S": "600"}
    with own_rig(tmp_path_factory, model=file, env=patient) as rig:
        batch = run_plan(rig, "noise", PLAN, files=FILES)
        with rig.client() as client:
            wait_for(lambda: "speak_b" in tasks_of(rig, batch), timeout_s=60, what="the items to be declared")
            client.cancel(batch=batch)
        tasks = tasks_of(rig, batch)
    one = tasks["speak_a"]
    assert one["fix_applied"].startswith(f"inferred task_class='{one['class']}' by the model tiny"), one[
        "fix_applied"
    ]
