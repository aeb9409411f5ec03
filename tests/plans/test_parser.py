"""The standard dialect: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.plans import Plan, PlanFault, PlanInvalid, check_plan, load_plan, parse_plan

HEAD = "# Plan: demo\n\n## Tasks\n\n"


def plan_of(tasks: str, **kwargs: str) -> Plan:
    return parse_plan(HEAD + tasks, name="demo", **kwargs)


def faults_of(text: str | bytes) -> list[str]:
    with pytest.raises(PlanInvalid) as caught:
        parse_plan(text, name="demo")
    return [str(fault) for fault in caught.value.errors]


def outcome(text: str | bytes) -> list[PlanFault]:
    """The faults of a plan, read or refused; a refusal without an error, or another exception, is a bug."""
    try:
        plan = parse_plan(text, name="demo")
        return [*plan.warnings, *check_plan(plan, {"SOURCE": "x", "X": [1]})[1]]
    except PlanInvalid as error:
        if not error.errors:
            raise
        return error.faults


def only_task(*bullets: str) -> Plan:
    return plan_of("### a\n- **task_class**: cpu\n" + "\n".join(bullets) + "\n")


FULL = """\
---
priority: high
on-failure: continue  # per-item work
---
# Plan: census

## Goal
Count the lines.

## Inputs
- **LIMIT**: how many files (default: `160`)
- **SOURCE**: which folder

## Tasks

### scan
- **executor**: worker
- **task_class**: cpu
- **command**: `python3 {PLAN_PATH}/scan.py --limit {LIMIT} {SOURCE}`
- **depends_on**: none

### measure
- **task_class**: cpu
- **foreach**: {BATCH_PATH}/manifest.json:data.items
- **batch_size**: 8
- **depends_on**: scan
- **command**: `measure {ITEM.path}`
- **timeout_s**: 2 min

### report
- **task_class**: llm
- **depends_on**: measure, scan
- **argv**: ["report", "{BATCH_PATH}"]
- **llm_min_tier**: 2

## Notes
- **command**: `rm -rf /`
"""


def test_a_whole_plan_is_read():
    plan = parse_plan(FULL, name="census")
    scan, measure, report = plan.tasks
    assert (plan.name, plan.title, plan.goal) == ("census", "census", "Count the lines.")
    assert (plan.settings.priority, plan.settings.on_failure) == ("high", "continue")
    assert (plan.inputs["LIMIT"].default, plan.inputs["SOURCE"].default) == ("160", None)
    assert scan.command == "python3 {PLAN_PATH}/scan.py --limit {LIMIT} {SOURCE}"
    assert (scan.line, scan.line_of("command"), scan.line_of("pool")) == (16, 19, 16)
    assert measure.foreach is not None
    assert (measure.foreach.source, measure.foreach.json_path) == ("{BATCH_PATH}/manifest.json", "data.items")
    assert (measure.batch_size, measure.depends_on, measure.timeout_s) == (8, ["scan"], 120.0)
    assert (report.argv, report.depends_on) == (["report", "{BATCH_PATH}"], ["measure", "scan"])
    assert plan.warnings == []
    assert plan.timeout_s(scan) == 1800.0
    assert plan.priority_of(scan) == "high"


@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t, str.encode])
def test_line_ends_and_byte_order_marks_change_nothing(change):
    changed = parse_plan(change(FULL), name="census")
    assert changed.model_dump() == parse_plan(FULL, name="census").model_dump()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("none", []),
        ("None", []),
        ("", []),
        ("[]", []),
        ("`[]`", []),
        ("`none` (first)", []),
        ("x", ["x"]),
        ("`x`", ["x"]),
        ("x, y", ["x", "y"]),
        ("`x`, `y`", ["x", "y"]),
        ('["x","y"]', ["x", "y"]),
        ("`[\"x\", 'y']`", ["x", "y"]),
        ("[x, y, x]", ["x", "y"]),
        ("x, y (both)", ["x", "y"]),
        ("\n  - x\n  - `y`", ["x", "y"]),
    ],
)
def test_every_form_of_depends_on_is_read(written, read):
    others = "".join(f"### {name}\n- **task_class**: cpu\n- **command**: `true`\n" for name in "xy")
    plan = plan_of(f"{others}### a\n- **command**: `true`\n- **depends_on**: {written}\n")
    assert plan.by_id()["a"].depends_on == read


@pytest.mark.parametrize(
    ("written", "command"),
    [
        ("`echo hi`", "echo hi"),
        ("echo hi there", "echo hi there"),
        ("`echo `date` now`", "echo `date` now"),
        ("``echo `date` ``", "echo `date`"),
        ("`echo *a* _b_ <c> &amp;`", "echo *a* _b_ <c> &amp;"),
        ("\n  ```bash\n  echo one\n    two\n  ```", "echo one\n  two"),
        ("\n```\necho out\n```", "echo out"),
        ("\n\n  ~~~\n  echo `x`\n  ~~~", "echo `x`"),
        ("`echo one \\\n  two`", "echo one  two"),
        ("`echo ### no heading`", "echo ### no heading"),
    ],
)
def test_every_form_of_a_command_is_read(written, command):
    assert only_task(f"- **command**: {written}").tasks[0].command == command


@pytest.mark.parametrize(
    "bullets",
    [
        "- **executor**: brain\n- **command**: `x`",
        "- executor: brain\n- command: `x`",
        "* **executor**: brain\n* **command**: `x`",
        "+ **Executor:** brain\n+ **Command:** `x`",
        "    - **executor**: brain\n    - **command**: `x`",
        "\t- **executor**: brain\n\t- **command**: `x`",
        "1. **executor**: `brain`\n2. **command**: `x`",
        "- **executor**: brain\n  - **command**: `x`",
        "- __executor__: brain\n\n- **command**: `x`",
        "**executor**: brain\n**command**: `x`",
    ],
)
def test_every_form_of_a_bullet_is_read(bullets):
    task = plan_of(f"### a\n{bullets}\n").tasks[0]
    assert (task.command, task.executor, task.task_class) == ("x", "brain", "brain")


@pytest.mark.parametrize("heading", ["a", "Task: a", "`a`", "a (first)", "Task 1: a", "1. a", "**a**"])
def test_a_heading_gives_the_plain_id(heading):
    assert plan_of(f"### {heading}\n- **command**: `x`\n").tasks[0].id == "a"


def test_deeper_headings_and_fenced_headings_are_no_tasks():
    plan = plan_of("### a\n- **command**:\n  ```\n  ### b\n  ```\n#### c\n- **command**: `no`\n")
    assert [task.command for task in plan.tasks] == ["### b"]
    assert any("####" in str(fault) for fault in plan.warnings)


def test_a_command_outside_tasks_is_left_out_and_said():
    plan = parse_plan(f"## Extra\n### b\n- **command**: `x`\n{HEAD}### a\n- **command**: `y`\n", name="demo")
    assert [task.id for task in plan.tasks] == ["a"]
    assert "'b' has a command but stands in ## extra" in str(plan.warnings[0])


def test_front_matter_and_a_settings_section_are_one():
    text = "---\npriority: urgent\ntags: [x]\n---\n## Settings\n- **timeout_s**: 60\n- max_attempts: 5\n"
    plan = parse_plan(f"{text}{HEAD}### a\n- **command**: `x`\n", name="demo")
    assert plan.settings.model_dump() == {
        "on_failure": None,
        "priority": "urgent",
        "timeout_s": 60.0,
        "max_attempts": 5,
    }


def test_a_rule_at_the_start_is_no_front_matter():
    assert parse_plan(f"---\nJust prose here.\n---\n{HEAD}### a\n- **command**: `x`\n", name="demo").tasks


def test_unknown_fields_and_settings_are_named_with_the_nearest():
    plan = plan_of("### a\n- **command**: `x`\n- **task_clas**: cpu\n- timeout: 5\n- Note: prose\n")
    said = "\n".join(str(fault) for fault in plan.warnings)
    assert "did you mean task_class?" in said
    assert "did you mean timeout_s?" in said
    assert "prose" not in said


@pytest.mark.parametrize(
    ("command", "inferred"),
    [("python transcribe.py", "script"), ("ollama run x", "llm"), ("llama-cli", "llm"), ("sort x", "cpu")],
)
def test_a_missing_class_is_inferred_and_said(command, inferred):
    plan = plan_of(f"### a\n- **command**: `{command}`\n")
    assert (plan.tasks[0].task_class, plan.tasks[0].task_class_inferred) == (inferred, True)
    assert f"taken as {inferred}" in str(plan.warnings[0])


def test_an_unknown_class_is_inferred_and_said():
    plan = plan_of("### a\n- **command**: `x`\n- **task_class**: gpuu\n")
    assert plan.tasks[0].task_class == "cpu"
    assert "unknown task_class 'gpuu'" in str(plan.warnings[0])


def test_the_earlier_class_name_resource_is_meta():
    assert plan_of("### a\n- **command**: `x`\n- **task_class**: Resource\n").tasks[0].task_class == "meta"


def test_a_per_item_dependency_is_kept_apart():
    text = "### {}\n- **task_class**: cpu\n- **command**: `{{ITEM.id}}`\n- **foreach**: /x.json:items\n{}"
    plan = plan_of(text.format("one", "") + text.format("two", "- **depends_on**: one_{ITEM.id}\n"))
    assert plan.tasks[1].depends_on == []
    assert [one.model_dump() for one in plan.tasks[1].item_depends_on] == [{"template": "one", "path": "id"}]


def test_a_prompt_and_a_schema_are_read():
    plan = only_task(
        "- **type**: parse",
        "- **prompt**:\n  ```\n  Find {WHAT}\n  there\n  ```",
        '- **json_schema**: {"type": "object"}',
        "- **evaluate**: yes",
        "- **needs**: cuda, `big`",
        "- **priority**: 10",
    )
    task = plan.tasks[0]
    assert (task.prompt, task.json_schema) == ("Find {WHAT}\nthere", {"type": "object"})
    assert (task.evaluate, task.needs, task.priority) == (True, ["cuda", "big"], "urgent")


@pytest.mark.parametrize(
    ("bullet", "words"),
    [
        ("- **batch_size**: many", "batch_size is 'many', not a whole number"),
        ("- **timeout_s**: -4", "timeout_s is '-4'"),
        ("- **timeout_s**: 3 weeks", "timeout_s is '3 weeks'"),
        ("- **on_failure**: abor", "did you mean abort?"),
        ("- **foreach**: /x.json", "has no JSON path"),
        ("- **argv**: python3 x", "argv is no JSON list"),
        ("- **argv**: [1]", "argv is no list of texts"),
        ("- **pool**: a b", "is no plain name"),
        ("- **llm_placement**: both", "write one of: single_gpu, split_gpu"),
        ("- **json_schema**: [1]", "is no JSON object"),
        ("- **command**: `y`", "command stands twice in task 'a' (first in line 7)"),
        ("- **depends_on**: a", "tasks wait for each other: a → a"),
    ],
)
def test_a_bad_value_is_refused_with_its_line_and_fix(bullet, words):
    found = faults_of(f"{HEAD}### a\n- **task_class**: cpu\n- **command**: `x`\n{bullet}\n")
    assert any(words in fault and fault.startswith("plan.md:8: ") and "; " in fault for fault in found), found


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("### a\n- **depends_on**: none\n", "plan.md:5: task 'a' has no command"),
        ("### a\n- **command**: `x\n", "backtick is never closed"),
        ("### a\n- **command**:\n  ```\n  x\n", "plan.md:7: this fenced block is never closed"),
        ("### a\n- **command**:\n", "the command is empty"),
        ("### a\n- **command**: x\n  y\n", "several lines without backticks"),
        ("### a\n- **command**: `x`\n- **argv**: [\"x\"]\n", "both a command and an argv"),
        ("### a\n- **type**: generate\n", "of type generate has no prompt"),
        ("### a\n- **type**: expand\n", "rigbus's own"),
        ("### a b\n- **command**: `x`\n", "for example to 'a-b'"),
        ("### ../x\n- **command**: `x`\n", "is no task id"),
        ("### a\n- **command**: `x --a-model=p --b-model q`\n- **task_class**: llm\n- **llm_placement**: split_gpu\n",
         "several models"),
        ("### a\n- **command**: `x`\n- **depends_on**: t_{ITEM.id}\n", "without a foreach"),
        (f"### a\n- **command**: `{'x' * 70_000}`\n", "longer than 65536 bytes"),
    ],
)  # fmt: skip
def test_a_broken_task_is_refused_with_words(tasks, words):
    found = faults_of(HEAD + tasks)
    assert any(words in fault for fault in found), found


def test_thousands_of_unknown_dependencies_are_refused_at_once():
    """Each compared with each task, it would take minutes: of the bridge, where the plan was dropped."""
    tasks = "".join(
        f"### measure_number_{n:05d}_of_the_long_night\n\n- **command**: `true`\n- **task_class**: cpu\n"
        f"- **depends_on**: measure_nomber_{n:05d}_of_the_lang_night\n\n"
        for n in range(1500)
    )
    begun = time.process_time()
    with pytest.raises(PlanInvalid) as caught:
        parse_plan(HEAD + tasks, name="demo")
    assert time.process_time() - begun < 15.0
    assert "did you mean 'measure_number_00000_of_the_long_night'" in str(caught.value.errors[0])


def test_an_unknown_dependency_names_the_nearest_task():
    found = faults_of(
        f"{HEAD}### scan\n- **command**: `x`\n### b\n- **command**: `x`\n- **depends_on**: scann\n"
    )
    assert found == ["plan.md:9: task 'b' depends on the unknown task 'scann'; did you mean 'scan'?"]


def test_duplicate_ids_and_all_other_faults_come_at_once():
    found = faults_of(
        f"{HEAD}### a\n- **command**: `x`\n### a\n- **command**: `y`\n### c\n- **batch_size**: 0\n"
    )
    assert len(found) == 3
    assert "plan.md:7: the task id 'a' stands twice (first in line 5)" in found[0]


def test_a_cycle_is_shown_as_its_path():
    task = "### {}\n- **command**: `x`\n- **depends_on**: {}\n"
    found = faults_of(
        HEAD + task.format("a", "b") + task.format("b", "c") + task.format("c", "a") + task.format("d", "a")
    )
    assert found == ["plan.md:7: tasks wait for each other: a → b → c → a; remove one of these dependencies"]


def test_the_fault_carries_the_line_itself():
    with pytest.raises(PlanInvalid) as caught:
        plan_of("### a\n- **command**: `x`\n- **batch_size**: x  \n", file="inbox/p/plan.md")
    fault = caught.value.errors[0]
    assert (fault.file, fault.line, fault.source_line) == ("inbox/p/plan.md", 7, "- **batch_size**: x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the plan is empty"),
        (b" \n\n", "the plan is empty"),
        (b"# Plan: x\n\x00", "plan.md:2: the plan is binary"),
        ("# Plan: x".encode("utf-16"), "save it as UTF-8"),
        (b"# Plan\n\n\xff\xfe\n", "plan.md:3: byte 8 is not UTF-8"),
        ("# \ud800", "is not UTF-8"),
        (b"x" * (1024 * 1024 + 1), "the limit is 1048576"),
        ("# Plan: x\n", "the plan has no tasks"),
        ("# Plan: x\n## Tasks\n", "plan.md:2: the plan has no tasks"),
        ("### a\n- **command**: `x`\n", "the plan has no tasks"),
    ],
)
def test_what_is_no_plan_is_refused_with_words(text, words):
    found = faults_of(text)
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "x.tmp", "ü", "a" * 65, "x.receipt.md"])
def test_a_plan_with_an_evil_name_is_refused(name):
    with pytest.raises(PlanInvalid, match="rename it, for example to"):
        parse_plan(FULL, name=name)


def test_every_cut_of_a_plan_is_read_or_refused_with_lines():
    for end in range(len(FULL)):
        faults = outcome(FULL[:end])
        assert all(fault.fix and fault.what for fault in faults)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*FULL.splitlines(), "```", "- ", "> ", "`", "### ", "## Workflow", "## Available Scripts", "{X}"]
        )
        | st.text(max_size=30),
        max_size=40,
    ),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\u2028"]),
)
def test_no_text_makes_the_parser_raise_anything_else(lines, ending):
    outcome(ending.join(lines))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_raise_anything_else(raw):
    with pytest.raises(PlanInvalid):
        parse_plan(raw, name="demo")


@pytest.mark.parametrize(
    "tasks",
    [
        "".join(f"### t{n}\n- **command**: `x`\n- **depends_on**: u{n}\n" for n in range(3000)),
        "### a\n" + "- commanx: x\n" * 20_000,
        "### a\n- **command**: `x`\n- **depends_on**: " + "a," * 100_000,
        "- " * 100_000,
    ],
)
def test_a_page_of_rubbish_is_refused_soon_and_briefly(tasks):
    started = time.monotonic()
    with pytest.raises(PlanInvalid) as caught:
        parse_plan(HEAD + tasks, name="demo")
    assert len(caught.value.faults) <= 102
    assert time.monotonic() - started < 20, "quadratic work on a plan of 200 KB"


@pytest.mark.parametrize("form", ["folder", "plan.md", "single"])
def test_a_plan_is_loaded_from_each_of_its_forms(tmp_path: Path, form: str):
    folder = tmp_path / "census"
    folder.mkdir()
    (folder / "plan.md").write_text(FULL)
    (tmp_path / "other.md").write_text(FULL)
    path = {"folder": folder, "plan.md": folder / "plan.md", "single": tmp_path / "other.md"}[form]
    plan, source = load_plan(path)
    assert (plan.name, source) == (("other", path) if form == "single" else ("census", folder))
    assert plan.file.endswith(".md")


def test_what_cannot_be_loaded_is_refused_without_waiting(tmp_path: Path):
    (tmp_path / "p").mkdir()
    os.mkfifo(tmp_path / "p" / "plan.md")
    (tmp_path / "big.md").write_bytes(b"x" * (1024 * 1024 + 1))
    (tmp_path / "empty").mkdir()
    for path, words in [
        ("p", "no regular file"),
        ("big.md", "limit"),
        ("empty", "No such file"),
        ("none.md", "No such"),
    ]:
        with pytest.raises(PlanInvalid, match=words):
            load_plan(tmp_path / path)
