"""The tasks of a plan that a model answers: their payload, what they need, and who may take them."""

from __future__ import annotations

from typing import Any

import pytest

from rigbus.agents.brain import messages, planner
from rigbus.agents.brain.children import Children
from rigbus.bus.wire import unpack
from rigbus.plans import parse_plan

HEAD = "# Plan: p\n## Inputs\n- **MODEL**: which (default: ``)\n- **WHO**: whom (default: `me`)\n## Tasks\n### a\n"
RUN = messages.Run(
    batch="b",
    name="p",
    state_id="s" * 32,
    sha256="0" * 64,
    staged="/state/staged/0",
    original="/share/plans/p",
    view="/state/views/b",
    batch_path="/share/plans/p/batches/b",
    config={},
)


def one(fields: str, config: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(spec, payload) of the plan's only task."""
    plan = parse_plan(HEAD + fields, name="p")
    run = messages.Run(**{**{name: getattr(RUN, name) for name in RUN.__slots__}, "config": config or {}})
    (message,) = planner.declare(plan, run)
    return message.specs[0], unpack(message.payloads[0])


def test_a_models_task_is_of_class_llm_and_needs_nothing_that_it_does_not_say() -> None:
    spec, payload = one("- type: generate\n- prompt: greet {WHO}\n")
    assert (spec["type"], spec["class"], spec.get("needs"), spec.get("view")) == (
        "generate",
        "llm",
        None,
        None,
    )
    assert payload == {"prompt": "greet me"}
    assert spec["meta"]["prompt"] == "greet me"
    assert "fix_applied" not in spec["meta"]


def test_model_tier_and_placement_are_needs_beside_those_that_are_written() -> None:
    spec, payload = one(
        "- type: parse\n- text: x\n- json_schema: {}\n- llm_model: qwen\n- llm_min_tier: 2\n"
        "- llm_placement: split_gpu\n- needs: quiet\n"
    )
    assert spec["needs"] == ["quiet", "model:qwen", "tier:2", "placement:split_gpu"]
    assert payload["model"] == "qwen"
    assert spec["meta"]["llm_min_tier"] == 2


def test_a_command_of_class_llm_has_the_same_needs_and_others_have_none() -> None:
    assert one("- command: `x`\n- task_class: llm\n- llm_min_tier: 3\n")[0]["needs"] == ["tier:3"]
    assert "needs" not in one("- command: `x`\n- task_class: cpu\n- llm_min_tier: 3\n")[0]


def test_a_model_may_be_a_value_and_an_empty_one_is_any() -> None:
    fields = "- type: generate\n- prompt: x\n- llm_model: {MODEL}\n"
    spec, payload = one(fields)
    assert ("needs" in spec, "model" in payload) == (False, False)
    spec, payload = one(fields, {"MODEL": "tiny"})
    assert (spec["needs"], payload["model"]) == (["model:tiny"], "tiny")


def test_decide_goes_to_whoever_offers_it_and_the_brain_only_where_it_is_named() -> None:
    assert "needs" not in one("- type: decide\n- prompt: x\n")[0]
    spec, _ = one("- type: generate\n- prompt: x\n- executor: brain\n")
    assert (spec["class"], spec["needs"]) == ("llm", ["role:brain"])


def test_files_are_named_as_in_a_command_and_reading_one_needs_the_rigs_folders() -> None:
    spec, payload = one("- type: generate\n- prompt: x\n- input: in.txt\n- output: out.txt\n")
    assert payload["input"] == "/share/plans/p/batches/b/in.txt"
    assert payload["output"] == "/share/plans/p/batches/b/out.txt"
    assert payload["plan"] == RUN.plan_part()
    assert spec["view"] == RUN.state_id
    assert one("- type: embed\n- input: {PLAN_PATH}/data/x.txt\n")[1]["input"] == "/state/views/b/data/x.txt"
    assert "view" not in one("- type: generate\n- prompt: x\n- output: out.txt\n")[0]


def test_values_stand_in_texts_and_choices_as_plain_text_and_lists_as_json() -> None:
    fields = '- type: decide\n- prompt: {WHO} or {{WHO}}\n- choices: ["{WHO}", "{LIST}"]\n'
    _, payload = one(fields, {"WHO": "`$(x)`", "LIST": ["a", 1]})
    assert payload["prompt"] == "`$(x)` or {WHO}"
    assert payload["choices"] == ["`$(x)`", '["a",1]']


def test_numbers_and_stops_are_passed_on() -> None:
    _, payload = one(
        '- type: generate\n- prompt: x\n- max_tokens: 9\n- temperature: 0\n- seed: 3\n- stop: ["."]\n'
    )
    assert payload == {"prompt": "x", "max_tokens": 9, "temperature": 0.0, "seed": 3, "stop": ["."]}


def test_each_item_gets_its_own_texts() -> None:
    plan = parse_plan(
        HEAD + "- type: parse\n- foreach: m.json:items\n- input: {ITEM.id}.txt\n- prompt: about {ITEM.name}\n"
        "- json_schema: {}\n- output: {ITEM.id}.json\n",
        name="p",
    )
    assert planner.item_fields(plan.tasks[0]) == ["name", "id"]
    made = list(Children(plan, RUN, "a", [{"id": "x", "name": "X y"}]))
    ((spec, payload, _),) = made
    assert (spec["key"], spec["class"]) == ("a_x", "llm")
    assert payload["input"].endswith("/b/x.txt")
    assert payload["prompt"] == "about X y"


def test_a_field_that_an_item_lacks_is_said_with_the_line() -> None:
    plan = parse_plan(HEAD + "- type: generate\n- prompt: {ITEM.x}\n- foreach: m.json:items\n", name="p")
    with pytest.raises(messages.Unplannable, match=r"plan\.md:8: task 'a': \{ITEM\.x\}: ITEM has no x"):
        list(Children(plan, RUN, "a", [{"id": "y"}]))
