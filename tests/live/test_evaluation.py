"""Evaluation on a whole rig: a model that a test plays judges, in the wire's own way; and once a real one."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import own_rig, run_plan, say
from helpers import ROOT, wait_for
from playedmodel import HeldModel, serving
from rigs import LiveRig

from rigbus.agents.models.protocol import ModelCrashed
from rigbus.agents.models.scripted import ScriptedModel

pytestmark = pytest.mark.live

SHELL = """\
# Plan: p

## Goal
a greeting

## Tasks

### greet
- command: `echo "hello, told [$RIGBUS_FEEDBACK]"`
- evaluate: friendly

### after
- command: `true`
- depends_on: greet
"""
WRITE = "# Plan: p\n\n## Tasks\n\n### write\n- prompt: name a bird\n- evaluate: yes\n- max_attempts: 2\n"


def verdict(score: Any, feedback: str = "", *issues: str) -> str:
    return json.dumps({"issues": issues, "feedback": feedback, "score": score})


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


@pytest.fixture
def model(rig: LiveRig) -> Iterator[HeldModel]:
    with serving(rig, HeldModel) as model:
        yield model


def ended(rig: LiveRig, batch: str, state: str) -> None:
    with rig.client() as client:
        row = rig.wait_batch(batch, client)
        assert row["state"] == state, client.query("why", id=batch)


def task(rig: LiveRig, batch: str, name: str) -> dict[str, Any]:
    code, out, err = say(rig, "task", "show", f"{batch}/{name}", "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def samples(rig: LiveRig, batch: str) -> list[dict[str, Any]]:
    try:
        lines = (rig.shared / "logs/training_samples.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = [json.loads(line) for line in lines]
    return [line for line in found if line["metadata"]["batch_id"] == batch]


def asked(model: ScriptedModel, n: int) -> str:
    """The whole text of request number ``n``."""
    request = model.asked[n]
    return request.prompt or "\n".join(m["content"] for m in request.messages or ())


def test_a_poor_output_is_done_again_with_the_feedback_and_both_judgements_are_shown(
    rig: LiveRig, model: HeldModel
) -> None:
    model.add(verdict(2, "greet by name", "too short"), verdict(4, "nice"))
    batch = run_plan(rig, "greeting", SHELL)
    ended(rig, batch, "complete")
    assert "hello, told []" in asked(model, 0)
    assert "Judge by this:\nfriendly" in asked(model, 0) and "a greeting" in asked(model, 0)
    assert "hello, told [judged 2 of 5: greet by name\n- too short]" in asked(model, 1)

    shown = task(rig, batch, "greet")
    assert shown["evaluation"] | {"tokens": 0, "seconds": 0, "at": 0, "judge": ""} == {
        "attempt": 2, "score": 4, "feedback": "nice", "issues": [], "model": "scripted", "tokens": 0, "seconds": 0,
        "verdict": "accept", "note": "judged 4 of 5: nice", "at": 0, "judge": "",
    }  # fmt: skip
    assert shown["evaluation"]["tokens"] > 50
    assert [(a["n"], a["outcome"]) for a in shown["attempts"]] == [(1, "task"), (2, "done")]
    assert shown["attempts"][0]["error"].startswith("judged 2 of 5")
    for verb in (("task", "show"), ("why",)):
        code, out, _ = say(rig, *verb, f"{batch}/greet")
        assert code == 0
        assert "judged 4 of 5 (attempt 2, " in out

    file = rig.shared / f"tasks/complete/{shown['id']}.json"
    evaluation = wait_for(lambda: file.exists() and json.loads(file.read_text()).get("evaluation"))
    assert (evaluation["score"], evaluation["attempt"], evaluation["model"]) == (4, 2, "scripted")
    both = wait_for(lambda: len(samples(rig, batch)) == 2 and samples(rig, batch))
    assert [(s["outcome"], s["metadata"]["brain_rating"]) for s in both] == [("bad", 2), ("good", 4)]
    assert both[0]["response"] == "hello, told []\n"
    assert both[0]["metadata"]["issues"] == ["too short"]
    lane_files = [f.name for lane in ("complete", "failed") for f in (rig.shared / "tasks" / lane).iterdir()]
    with rig.client() as bus:
        judges = [r for r in bus.query("tasks", batch=batch)["rows"] if r["aside"]]
        assert [r["key"] for r in judges] == ["greet:judge.1", "greet:judge.2"]
        assert bus.query("batch", id=batch)["total"] == 2
    assert not {f"{r['id']}.json" for r in judges} & set(lane_files)


def test_a_prompt_gets_the_feedback_and_low_scores_until_the_attempts_end_fail_the_task(
    rig: LiveRig, model: HeldModel
) -> None:
    model.add("a dog", verdict(1, "a dog is no bird"), "a cat", verdict(2, "nor is a cat"))
    batch = run_plan(rig, "birds", WRITE)
    ended(rig, batch, "failed")
    assert model.asked[0].prompt == "name a bird"
    assert (model.asked[2].prompt or "").startswith("name a bird\n\nAn earlier answer")
    assert "judged 1 of 5: a dog is no bird" in (model.asked[2].prompt or "")
    shown = task(rig, batch, "write")
    assert (shown["state"], shown["error"]) == ("dead", "judged 2 of 5: nor is a cat")
    file = rig.shared / f"tasks/failed/{shown['id']}.json"
    fields = wait_for(lambda: file.exists() and json.loads(file.read_text()))
    assert fields["result"]["error"] == "judged 2 of 5: nor is a cat"
    assert fields["evaluation"]["verdict"] == "reject"
    assert fields["prompt"] == "name a bird"
    wait_for(lambda: [s["response"] for s in samples(rig, batch)] == ["a dog", "a cat"])


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        pytest.param(["nonsense", "[]"], "greet:judge.1.again answered is no judgement", id="garbage"),
        pytest.param(
            [ModelCrashed("the model's process ended by signal 9")] * 4,
            "greet:judge.1.again ended dead (generate: the model's process ended by signal 9)",
            id="dies",
        ),
    ],
)  # fmt: skip
def test_a_judge_that_gives_no_judgement_is_said(
    rig: LiveRig, model: HeldModel, answers: list[Any], says: str, request: pytest.FixtureRequest
) -> None:
    model.add(*answers)
    batch = run_plan(rig, f"no-{request.node.callspec.id}", SHELL)
    ended(rig, batch, "complete")
    evaluation = task(rig, batch, "greet")["evaluation"]
    assert "score" not in evaluation
    assert evaluation["note"].startswith("accepted unjudged: ")
    assert says in evaluation["note"]
    assert samples(rig, batch) == []


def test_without_a_model_it_is_accepted_and_said_everywhere(rig: LiveRig) -> None:
    batch = run_plan(rig, "nobody", SHELL)
    ended(rig, batch, "complete")
    assert task(rig, batch, "greet")["evaluation"]["note"].startswith(
        "accepted unjudged: no model is configured"
    )
    code, out, _ = say(rig, "why", f"{batch}/greet")
    assert code == 0
    assert "accepted unjudged: no model is configured" in " ".join(out.split())
    log = rig.shared / "logs/brain_decisions.log"
    wait_for(
        lambda: any(batch in line and "accepted unjudged" in line for line in log.read_text().splitlines())
    )


def test_a_brain_and_a_bridge_killed_between_judgement_and_verdict_lose_and_repeat_nothing(
    rig: LiveRig, model: HeldModel
) -> None:
    model.add(verdict(5, "fine"))
    model.open.clear()
    batch = run_plan(rig, "killed", SHELL)
    wait_for(lambda: model.asked, what="the judge to be asked")
    rig.kill("brain")
    rig.kill("bridge")
    model.open.set()
    ended(rig, batch, "complete")
    shown = task(rig, batch, "greet")
    assert (shown["state"], shown["evaluation"]["score"], len(model.asked)) == ("done", 5, 1)
    wait_for(lambda: len(samples(rig, batch)) == 1, timeout_s=30, what="the sample")
    pid = rig.kill("bridge")
    wait_for(lambda: rig.pids().get("bridge") not in (None, pid), timeout_s=20, what="a new bridge")
    model.add(verdict(5))
    last = run_plan(rig, "thereafter", SHELL)
    ended(rig, last, "complete")
    wait_for(lambda: samples(rig, last), timeout_s=30)
    ids = [
        json.loads(line)["id"]
        for line in (rig.shared / "logs/training_samples.jsonl").read_text().splitlines()
    ]
    assert len(ids) == len(set(ids))


@pytest.mark.llm
@pytest.mark.parametrize("template", [{}, {"template": None}], ids=["chat template", "none"])
def test_a_real_model_of_noise_gives_a_judgement_in_the_schemas_form(
    rig: LiveRig, tmp_path: Path, template: dict[str, None]
) -> None:
    from rigbus.agents.models.host import ModelHost

    write = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
    file = write(tmp_path / "tiny.gguf", **template)
    with serving(rig, lambda: ModelHost(file, ctx=8192)):
        batch = run_plan(
            rig, "noise", SHELL.replace("evaluate: friendly", "evaluate: yes\n- max_attempts: 1")
        )
        with rig.client() as client:
            rig.wait_batch(batch, client)
            judged = client.query("task", id=f"{task(rig, batch, 'greet')['id']}")["rows"][0]["evaluation"]
    assert judged["score"] in (1, 2, 3, 4, 5), judged
    assert judged["model"] == "tiny"
    assert judged["tokens"] > 500
