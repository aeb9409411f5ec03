"""The tasks of models in a plan: what is read, what is warned of, and what is refused with its line and fix."""

from __future__ import annotations

from typing import Any

import pytest

from rigbus.plans import PlanInvalid, PlanTask, parse_plan
from rigbus.plans.check import check_plan

HEAD = "# Plan: p\n## Tasks\n### a\n"  # the first field stands in line 4


def read(fields: str) -> tuple[PlanTask, list[str]]:
    """The task and the warnings."""
    plan = parse_plan(HEAD + fields, name="p")
    return plan.tasks[0], [str(one) for one in plan.warnings]


def faults(fields: str) -> list[str]:
    with pytest.raises(PlanInvalid) as caught:
        parse_plan(HEAD + fields, name="p")
    return [str(one) for one in caught.value.faults if one.severity == "error"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("- type: generate\n- prompt: x\n- max_tokens: 40\n- temperature: 0.25\n- seed: 0\n",
         {"max_tokens": 40, "temperature": 0.25, "seed": 0}),
        ("- type: generate\n- prompt: x\n- stop: [\"\\n\\n\", \"END\"]\n", {"stop": ["\n\n", "END"]}),
        ("- type: generate\n- prompt: x\n- stop: `END, of it`\n", {"stop": ["END, of it"]}),
        ("- type: generate\n- prompt: x\n- input: `texts/{ITEM.id}.txt`\n- foreach: m.json:items\n",
         {"input": "texts/{ITEM.id}.txt"}),
        ("- type: decide\n- prompt: x\n- choices:\n  - yes, at once\n  - `no`\n", {"choices": ["yes, at once", "no"]}),
        ("- type: parse\n- text: 3 apples\n- json_schema: {\"type\": \"integer\"}\n",
         {"text": "3 apples", "json_schema": {"type": "integer"}}),
        ("- type: embed\n- text:\n  ```\n  one\n\n  two\n  ```\n", {"text": "one\n\ntwo"}),
        ("- type: generate\n- prompt: x\n- llm_model: qwen2.5:7b\n- llm_min_tier: 2\n- llm_placement: Split_GPU\n",
         {"llm_model": "qwen2.5:7b", "llm_min_tier": 2, "llm_placement": "split_gpu"}),
    ],
)  # fmt: skip
def test_the_fields_of_a_models_task_are_read(fields: str, expected: dict[str, Any]) -> None:
    task, warnings = read(fields)
    assert {name: getattr(task, name) for name in expected} == expected
    assert (task.task_class, task.executor, warnings) == ("llm", "worker", [])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("- type: generate\n", "plan.md:3: task 'a' of type generate has no prompt; add `- **prompt**: …`"),
        ("- type: decide\n", "of type decide has no prompt"),
        ("- type: parse\n- json_schema: x.json\n", "has nothing to read; add `- **text**: …`, or `- **input**:`"),
        ("- type: parse\n- text: x\n", "of type parse has no json_schema"),
        ("- type: embed\n", "of type embed has no text"),
        ("- type: embed\n- text: x\n- input: y.txt\n", "plan.md:6: task 'a' has both text and input; keep one"),
        ("- type: decide\n- prompt: x\n- choices: [\"a\"]\n- json_schema: x.json\n", "both choices and json_schema"),
        ("- type: decide\n- prompt: x\n- choices: [\"a\", \"a\"]\n", "choices: 'a' stands twice"),
        ("- type: decide\n- prompt: x\n- choices: [\"a\", 1]\n", "plan.md:6: choices is no list of texts; write a JSON"),
        ("- type: decide\n- prompt: x\n- choices: [\"a\"\n", "choices is no list of texts"),
        ("- type: generate\n- prompt: x\n- stop: [" + ", ".join(['"x"'] * 17) + "]\n", "stop has 17 texts"),
        ("- type: generate\n- prompt: x\n- temperature: hot\n", "plan.md:6: temperature is 'hot', not a number"),
        ("- type: generate\n- prompt: x\n- temperature: 101\n", "from 0 to 100"),
        ("- type: generate\n- prompt: x\n- max_tokens: 0\n", "max_tokens is '0', not a whole number from 1"),
        ("- type: generate\n- prompt: x\n- seed: -1\n", "seed is '-1', not a whole number from 0 to 4294967294"),
        ("- type: generate\n- prompt: x\n- seed: 4294967295\n", "seed is"),
        ("- type: generate\n- prompt: x\n- llm_min_tier: low\n", "plan.md:6: llm_min_tier is 'low', not a whole number"),
        ("- type: generate\n- prompt: x\n- llm_placement: spilt_gpu\n", "did you mean split_gpu?"),
        ("- type: generate\n- prompt: x\n- llm_model: m-{ITEM.id}\n", "llm_model names {ITEM…}"),
        ("- type: generate\n- prompt: x\n- llm_model:\n", "llm_model is empty"),
        ("- command: `x`\n- llm_placement: pair\n- task_class: llm\n", "llm_placement is 'pair'; write one of: single_gpu"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_line(fields: str, words: str) -> None:
    found = faults(fields)
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("- type: generate\n- prompt: x\n- choices: [\"a\"]\n", "plan.md:6: choices has no effect on the type generate; drop"),
        ("- type: embed\n- text: x\n- temperature: 0\n", "temperature has no effect on the type embed"),
        ("- command: `x`\n- task_class: cpu\n- prompt: y\n", "prompt has no effect on the type shell"),
        ("- type: parse\n- text: x\n- json_schema: {}\n- task_class: cpu\n", "is of class llm, not 'cpu'"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_said(fields: str, words: str) -> None:
    task, warnings = read(fields)
    assert len(warnings) == 1
    assert words in warnings[0]
    assert task.type == "shell" or task.task_class == "llm"


def test_the_brain_may_be_asked_for() -> None:
    task, warnings = read("- type: decide\n- prompt: x\n- executor: brain\n- llm_min_tier: 2\n")
    assert (task.executor, warnings) == ("brain", [])


def test_a_type_of_ones_own_takes_any_of_these_fields_without_a_word() -> None:
    task, warnings = read('- type: shout\n- text: hello\n- choices: ["a"]\n- max_tokens: 3\n')
    assert (task.text, task.choices, task.max_tokens, warnings) == ("hello", ["a"], 3, [])


def test_a_variable_in_any_text_is_checked() -> None:
    plan = parse_plan(
        HEAD + "- type: decide\n- prompt: x\n- choices: [\"{YES}\", \"no\"]\n- input: {WHERE}/x.txt\n- llm_model: {M}\n",
        name="p",
    )  # fmt: skip
    _, found = check_plan(plan, {"WHERE": "/x"})
    assert {fault.line: fault.what for fault in found} == {
        6: "task 'a' uses {YES}, which nothing sets",
        8: "task 'a' uses {M}, which nothing sets",
    }


def test_which_model_is_loaded_may_be_said_and_its_class_need_not() -> None:
    for fields in (
        "- type: load_llm\n",
        "- type: load_llm\n- llm_model: m\n",
        "- type: unload_llm\n- llm_model: {M}\n",
    ):
        task, warnings = read(fields)
        assert (task.executor, task.task_class, warnings) == ("brain", "meta", [])
    task, warnings = read("- type: load_llm\n- llm_model: m\n- task_class: meta\n- llm_min_tier: 2\n")
    assert task.task_class == "meta"
    (said,) = warnings
    assert "llm_min_tier has no effect on a meta task" in said


def test_an_unload_without_a_model_is_refused() -> None:
    (found,) = faults("- type: unload_llm\n")
    assert "unloads no model; add `- **llm_model**" in found
