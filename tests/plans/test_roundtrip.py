"""A plan written as Markdown and read again is the same plan, whatever dialect it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigbus.plans import (
    Foreach,
    InputSpec,
    ItemDependency,
    Plan,
    PlanInvalid,
    PlanTask,
    Settings,
    load_plan,
    parse_plan,
    same_plan,
    write_plan,
)
from rigbus.plans.markdown import unquote
from rigbus.plans.model_tasks import MODEL_TYPES

EXAMPLES = sorted((Path(__file__).parents[2] / "plans" / "examples").glob("*/plan.md"))

CORPUS = {
    "standard": (
        "---\npriority: 9\n---\n# Plan: a title\n\n## Goal\nCount.\n\n### Really\nAll of them.\n\n"
        "## Inputs\n- **A**: x (default: `1 2`)\n- B = `y`\n- **C** — in words, defaults to `z`.\n- **D**: (default: ``)\n"
        "- **E**: nothing\n- **F**: text [default: 3], more\n- **G**:\n  - default: 7\n- `H` = 9\n\n"
        "## Settings\n- on_failure: continue\n- timeout_s: 1.1 h\n- max_attempts: 2\n\n"
        "## Tasks\n### Task 1: a\n- command: `echo {A}`\n- timeout_s: 0.1 min\n"
        "### b (second)\n* **command**: echo `date` `x`\n* **depends_on**: [\"a\"]\n* **produces**: `a b`, c\n"
    ),
    "values": (
        "## Tasks\n### a\n- **command**:\n  ```\n    one\n\n\ttwo ```` x\n  three  \n  ```\n"
        "- **evaluate**: is it (really) good?\n"
        "### b\n- **prompt**: `tell`\n- **type**: decide\n- **json_schema**: `s/x.json`\n- **output**: \"o ut\"\n"
        "### c\n- **type**: parse\n- **prompt**:\n  ~~~\n\n  in\n  ```\n  x\n  ```\n  ~~~\n"
        "- **json_schema**: {\"a\": [1, \"ü\"]}\n"
        "### ca\n- **type**: decide\n- prompt: which\n- choices: `yes`\n- stop:\n  - `END`\n  - \"two  blanks\"\n- seed: 0\n"
        "### cb\n- **type**: decide\n- prompt: which\n- choices: [\"a, b\", \"c\"]\n- temperature: 0\n- max_tokens: 1_000\n"
        "### cc\n- **type**: embed\n- **text**:\n  ```\n  one\n\n  two\n  ```\n- **output**: v.json\n"
        "### cd\n- **type**: generate\n- **prompt**: x\n- **input**: `{PLAN_PATH}/a b.txt`\n- **llm_model**: {M}\n"
        "### d\n- **argv**:\n  - echo\n  - `a  b`\n  - \"c\"\n- **task_class**: Script\n"
        "- **vram_estimate_mb**: 2_048\n- **priority**: 9\n"
        "- **needs**: x, `y`\n### e\n- **type**: shout\n- **command**: `not used`\n- **pool**: `p`\n- **evaluate**: yes\n"
    ),
    "foreach": (
        "## Tasks\n### a\n- **command**: `x {ITEM}`\n- **foreach**: `/m.json:a.b`\n"
        "### b\n- **argv**: [\"{ITEM.id}\", \"\\u0001\\n`\"]\n- **foreach**: {BATCH_PATH}/x.json:\n"
        "- **depends_on**: a_{ITEM.id}, c, a_{ITEM}\n"
        "- **on_failure**: Continue\n- **batch_size**: 1\n### c\n- executor: brain\n- command: ``echo `date` ``\n"
    ),
    "workflow": (
        "# videos\n\n## Available Scripts\n### a.py\n**GPU**: Yes\n**VRAM estimate**: ~2 GB\n**Run command**: `python3 a.py`\n"
        "### b.py\n- **Run command**:\n  ```\n  python3 b.py \\\n    --x\n  ```\n## Workflow\na, b → a → b\n"
    ),
    "underlined": "demo\n====\n\nInputs\n------\n- **A**: x (default 5)\n\nTasks\n-----\n\n### a\n- command: x {A}\n",
}  # fmt: skip


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS)
def test_every_dialect_is_written_in_the_standard_form_as_the_same_plan(text):
    plan = parse_plan(text, name="demo")
    written = write_plan(plan)
    again = parse_plan(written, name="demo")
    assert same_plan(again, plan), written
    assert write_plan(again) == written


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.parent.name)
def test_every_example_is_written_as_the_same_plan(file):
    plan, _ = load_plan(file)
    assert same_plan(parse_plan(write_plan(plan), name=plan.name), plan)


def test_a_value_that_no_plan_file_can_say_is_named():
    plan = parse_plan(CORPUS["foreach"], name="demo")
    broken = plan.tasks[0].model_copy(update={"output": "two\nlines"})
    with pytest.raises(ValueError, match=r"a: output .* cannot be written"):
        write_plan(plan.model_copy(update={"tasks": [broken]}))


# A plan as the parser could have made it: texts without line ends or blanks around them where a bullet holds them.
PLAIN = "abcXYZ019"
signs = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")
lines = st.text(signs, min_size=1, max_size=12).map(lambda text: text.replace("\n", " ").strip()).filter(bool)
names = st.builds(str.__add__, st.sampled_from(PLAIN), st.text(PLAIN + "._-", max_size=6))
words = st.text(PLAIN + "/{}. ()_:-", min_size=1, max_size=12).filter(lambda text: unquote(text) == text)
paths = st.builds(str.__add__, st.sampled_from(PLAIN), st.text(PLAIN + "/{}._-", max_size=8))
lists = st.lists(paths, max_size=3, unique=True)
titles = st.builds(str.__add__, st.sampled_from(PLAIN), st.text(PLAIN + " .-", max_size=9)).map(str.strip)
texts = st.lists(st.sampled_from(["how", "many", "files,", "at most."]), max_size=4).map(" ".join)
variables = st.builds(str.__add__, st.sampled_from("ABC"), st.text("XYZ_09", max_size=4))
times = st.none() | st.integers(1, 10**7).map(lambda n: n / 1000)
counts = st.none() | st.integers(1, 9999)
blocks = st.text(signs, min_size=1, max_size=30).filter(lambda text: text.strip())
commands = lines | blocks.map(lambda text: text.rstrip()).filter(bool)
prompts = blocks.map(lambda text: text.strip("\n")).filter(lambda text: text.strip())
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(signs, max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(signs, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
schemas = st.none() | st.dictionaries(st.text(signs, max_size=5), json_values, max_size=3)


@st.composite
def model_fields(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Fields of a task that a model answers, with one of those that would exclude each other."""
    values: dict[str, Any] = {
        "prompt": draw(prompts),
        "json_schema": draw(st.just({"a": 1}) if kind == "parse" else schemas),
        "max_tokens": draw(counts),
        "temperature": draw(st.none() | st.integers(0, 10**5).map(lambda n: n / 1000)),
        "seed": draw(st.none() | st.integers(0, 2**32 - 2)),
        "stop": draw(
            st.none() | st.lists(st.text(signs, min_size=1, max_size=5).filter(str.strip), min_size=1)
        ),
        draw(st.sampled_from(["text", "input"])): draw(words),
    }
    values["stop"] = values["stop"] and values["stop"][:16]
    if values["json_schema"] is None:
        values["choices"] = draw(st.none() | st.lists(words, min_size=1, max_size=3, unique=True))
    return values


@st.composite
def tasks(draw: st.DrawFn, name: str, before: list[PlanTask]) -> PlanTask:
    kind = draw(st.sampled_from(["shell", "shell", "argv", "generate", "parse", "decide", "embed", "shout"]))
    values: dict[str, Any] = {"id": name, "type": "shell" if kind == "argv" else kind}
    if kind == "shell":
        values["command"] = draw(commands)
    elif kind == "argv":
        values["argv"] = draw(st.lists(st.text(signs, min_size=1, max_size=9), min_size=1, max_size=3))
    else:
        values |= draw(model_fields(kind))
    classes = ["llm", "brain"] if kind in MODEL_TYPES else ["cpu", "script", "llm", "brain", "meta"]
    values["task_class"] = draw(st.sampled_from(classes))
    values["executor"] = "brain" if values["task_class"] == "brain" else "worker"
    if values["task_class"] == "script" and (estimate := draw(counts)) is not None:
        values |= {"vram_estimate_mb": estimate, "vram_policy": draw(st.sampled_from(["infer", "fixed"]))}
    if draw(st.booleans()):
        values["foreach"] = Foreach(source=draw(paths), json_path=draw(st.sampled_from(["", "items", "a.b"])))
        templates = [one.id for one in before if one.foreach is not None]
        if templates:
            path = draw(st.sampled_from(["", "id", "a.b"]))
            values["item_depends_on"] = [ItemDependency(template=draw(st.sampled_from(templates)), path=path)]
        elif kind == "shell":
            values["batch_size"] = draw(st.integers(1, 9))
    ids = [one.id for one in before]
    values["depends_on"] = draw(st.lists(st.sampled_from(ids), max_size=3, unique=True)) if ids else []
    for field in ("timeout_s", "queue_timeout_s", "no_progress_s", "backoff_s"):
        values[field] = draw(times)
    values |= {
        "max_attempts": draw(counts),
        "on_failure": draw(st.sampled_from([None, "abort", "continue"])),
        "priority": draw(st.sampled_from([None, "low", "normal", "high", "urgent"])),
        "evaluate": draw(st.booleans() | words.filter(lambda text: len(text) > 1)),
        "pool": draw(st.none() | names),
        "output": draw(st.none() | words),
        "llm_model": draw(st.none() | words),
        "requires": draw(lists),
        "produces": draw(lists),
        "needs": draw(lists),
    }
    return PlanTask(**values)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    made: list[PlanTask] = []
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        made.append(draw(tasks(name, made)))
    inputs = {}
    for name in draw(st.lists(variables, max_size=3, unique=True)):
        inputs[name] = InputSpec(name=name, text=draw(texts), default=draw(st.none() | lines | st.just("")))
    own = Settings(
        on_failure=draw(st.sampled_from([None, "abort", "continue"])),
        priority=draw(st.sampled_from([None, "low", "urgent"])),
        timeout_s=draw(times),
        max_attempts=draw(counts),
    )
    goal = draw(st.sampled_from(["", "Count them.", "One\n\n- two\n\n### three\n\n```\n## four\n```"]))
    return Plan(name="demo", title=draw(titles), goal=goal, inputs=inputs, tasks=made, settings=own)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans())
def test_any_plan_is_read_back_as_it_was_written(plan):
    written = write_plan(plan)
    try:
        again = parse_plan(written, name="demo")
    except PlanInvalid as error:
        pytest.fail(f"{error}\n{written}")
    assert same_plan(again, plan), written
