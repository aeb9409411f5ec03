"""Plans with a model on one real rig: the shipped example, those of PLAN_FORMAT.md, and the types over the bus.

The model is tiny and talks noise; its JSON is real JSON, for llama.cpp's own grammar keeps it in shape.
"""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import own_rig, run_plan, say, tasks_of
from helpers import ROOT, wait_for
from rigs import LiveRig

from rigbus import Task
from rigbus.bus.errors import TaskFailed

pytestmark = pytest.mark.llm
EXAMPLE = ROOT / "plans" / "examples" / "docstring_digest"
LABEL = json.loads((EXAMPLE / "label.json").read_text())["properties"]
write_tiny_gguf = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
page = runpy.run_path(str(ROOT / "tests/plans/test_plan_format.py"))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    model = write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
    # One thread: two wait for each other at every step, for long where other processes want the cores.
    env = {"RIGBUS_MODELS": json.dumps({"tiny": {"path": str(model), "threads": 1}})}
    with own_rig(tmp_path_factory, env=env) as rig:
        yield rig


def submit(rig: LiveRig, plan: Path, *words: str) -> Path:
    """Submit a copy of a plan in the share and wait; the folder of its run."""
    folder = rig.shared / "plans" / plan.name
    shutil.copytree(plan, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    code, out, err = say(rig, "submit", str(folder), "--json", "--wait", *words)
    assert code in (0, 6), err
    batch = json.loads(out.splitlines()[0])["batch_id"]
    return folder / "batches" / str(batch)


def test_the_example_with_a_model_ends_with_a_report_of_what_the_model_said(rig: LiveRig) -> None:
    batch = submit(rig, EXAMPLE, "--set", "COUNT=2", "--set", "MODEL=tiny")
    report = json.loads((batch / "report.json").read_text())
    tasks = tasks_of(rig, batch.name)
    errors = {name: one["error"] for name, one in tasks.items() if one["error"]}
    assert (len(report["entries"]), report["missing"]) == (2, []), errors
    for entry in report["entries"]:
        described = tasks[f"describe_{entry['id']}"]["result"]
        assert entry["summary"] == " ".join(described["text"].split())
        assert described["usage"]["completion_tokens"] == 80
        assert described["usage"]["prompt_tokens"] > entry["chars"]  # a token a byte: the docstring was read
        assert entry["topic"] in LABEL["topic"]["enum"]
        assert entry["clear"] in range(1, 6)
        assert tasks[f"classify_{entry['id']}"]["result"]["json"]["traits"] == entry["traits"]
    text = (batch / "report.md").read_text()
    assert text.count("\n## ") == 2


@pytest.mark.parametrize("example", page["examples"]("runs with a model"), ids=lambda one: one.title)
def test_a_plan_of_the_page_that_needs_a_model_ends_well(rig: LiveRig, example: Any) -> None:
    batch = run_plan(rig, example.name, example.text)
    with rig.client() as client:
        ended = rig.wait_batch(batch, client, timeout_s=60)
    tasks = tasks_of(rig, batch)
    assert ended["state"] == "complete", {name: (one["state"], one["error"]) for name, one in tasks.items()}
    assert tasks["urgent"]["result"]["decision"] in ("Anna", "Ben")
    folder = rig.shared / "plans" / example.name / "batches" / batch
    assert set(json.loads((folder / "read" / "ben.json").read_text())) == {"wants", "friendly"}


def test_a_plan_for_a_model_that_there_is_not_ends_and_names_those_that_there_are(rig: LiveRig) -> None:
    text = "# Plan: p\n## Tasks\n### a\n- prompt: x\n- type: generate\n- llm_model: tony\n- llm_min_tier: 1\n"
    batch = run_plan(rig, "gone", text)
    with rig.client() as client:
        ended = rig.wait_batch(batch, client)
    assert ended["state"] == "failed"
    assert "plan.md:6: task 'a': llm_model 'tony' is not configured; did you mean 'tiny'?" in ended["error"]


def test_a_request_for_a_model_that_there_is_not_waits_and_why_names_those_that_there_are(
    rig: LiveRig,
) -> None:
    with rig.client() as client:
        ids = client.submit([Task(type="generate", payload={"prompt": "x", "model": "tony"})])
        wait_for(
            lambda: "did you mean 'tiny'?" in client.query("why", id=ids[0])["summary"],
            what="the brain's word",
        )
        client.cancel(ids[0])


def test_an_answer_that_no_grammar_keeps_in_shape_fails_with_its_place(rig: LiveRig) -> None:
    three = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3, "uniqueItems": True}
    with rig.client() as client, pytest.raises(TaskFailed, match=r"/[12]: (true|false) stands at") as caught:
        client.call("parse", {"text": "yes and no", "json_schema": three}, timeout_s=60)
    assert caught.value.error_class == "task"
    assert "(the first one: /" in str(caught.value)


def test_the_types_answer_over_the_bus(rig: LiveRig) -> None:
    with rig.client() as client:
        said = client.call(
            "decide", {"prompt": "left?", "choices": ["yes", "no"], "temperature": 1, "seed": 1}, timeout_s=60
        )
        assert said["decision"] in ("yes", "no")
        assert isinstance(said["reason"], str)
        schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
        parsed = client.call("parse", {"text": "one", "json_schema": schema}, timeout_s=60)
        assert parsed["json"]["n"] in (1, 2)
        assert parsed["repaired"] is False
        assert parsed["model"] == "tiny"
