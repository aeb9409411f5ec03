"""The tables of PLAN_DIALECTS 2.2, 2.3, 2.5 and 2.6, row by row: what is written there, and what ours does."""

from __future__ import annotations

from typing import Any

import pytest

from rigbus.plans import Plan, PlanFault, PlanInvalid, check_plan, parse_plan
from rigbus.plans.variables import substitute

HEAD = "# Plan: demo\n\n## Tasks\n\n"
SCRIPTS = (
    "## Available Scripts\n"
    "### scripts/init.py\n- **GPU**: no\n- **Run command**: `python3 {PLAN_PATH}/scripts/init.py`\n"
    "### scripts/work.py\n- **GPU**: yes\n- **Run command**: `python3 {PLAN_PATH}/scripts/work.py`\n"
    "### scripts/end.py\n- **GPU**: no\n- **Run command**: `python3 {PLAN_PATH}/scripts/end.py`\n\n## Workflow\n\n"
)


def read(text: str) -> Plan:
    return parse_plan(text, name="demo")


def task_of(*bullets: str, heading: str = "a", before: str = "") -> dict[str, Any]:
    """The last task of a plan with these bullets, as data."""
    text = HEAD + before + f"### {heading}\n" + "\n".join(bullets) + "\n"
    return read(text).tasks[-1].model_dump()


def faults_of(text: str) -> list[PlanFault]:
    try:
        return read(text).warnings
    except PlanInvalid as error:
        return error.errors


def said(text: str) -> str:
    return "\n".join(f"{fault.severity} {fault}" for fault in faults_of(text))


RUN = "- **command**: `x`"
CPU = "- **task_class**: cpu"
SCRIPT = "- **task_class**: script"
LLM = "- **task_class**: llm"

# --- 2.2 Fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bullets", "wanted"),
    [
        pytest.param([RUN, CPU], {"executor": "worker"}, id="executor default worker"),
        pytest.param([RUN, "- **executor**: brain"], {"executor": "brain", "task_class": "brain"}, id="executor brain"),
        pytest.param([RUN, CPU, "- **executor**: my box"], {"executor": "worker"}, id="executor free text accepted"),
        *(
            pytest.param([RUN, f"- **task_class**: {name}"], {"task_class": name}, id=f"task_class {name}")
            for name in ("cpu", "script", "llm", "meta", "brain")
        ),
        pytest.param([RUN, "- **task_class**: resource"], {"task_class": "meta"}, id="meta replaces resource"),
        pytest.param([RUN], {"task_class": "cpu", "task_class_inferred": True}, id="task_class none is inferred"),
        pytest.param([RUN, "- **task_class**: brain"], {"executor": "brain"}, id="task_class brain is executor brain"),
        pytest.param([CPU, "- **command**: `a b`"], {"command": "a b"}, id="command backticked"),
        pytest.param([RUN], {"depends_on": []}, id="depends_on default []"),
        pytest.param([RUN, "- **depends_on**: x, y"], {"depends_on": ["x", "y"]}, id="depends_on comma list"),
        pytest.param([RUN, "- **depends_on**: NONE"], {"depends_on": []}, id="depends_on none"),
        pytest.param(
            [RUN, "- **foreach**: {BATCH_PATH}/a:b.json:data.items", "- **depends_on**: x"],
            {"foreach": {"source": "{BATCH_PATH}/a:b.json", "json_path": "data.items"}},
            id="foreach split at the last colon; dotted path",
        ),
        pytest.param(
            [RUN, "- **foreach**: /m.json:items", "- **depends_on**: x, tmpl_{ITEM.id}"],
            {"depends_on": ["x"], "item_depends_on": [{"template": "tmpl", "path": "id"}]},
            id="per-item deps",
        ),
        pytest.param([RUN, "- **foreach**: /m.json:items"], {"batch_size": 1}, id="batch_size default 1"),
        pytest.param([RUN, "- **foreach**: /m.json:i", "- **batch_size**: 8"], {"batch_size": 8}, id="batch_size int >= 1"),
        *(
            pytest.param([RUN, SCRIPT, f"- **vram_policy**: {name}"], {"vram_policy": name}, id=f"vram_policy {name}")
            for name in ("default", "infer", "fixed")
        ),
        pytest.param(
            [RUN, SCRIPT, "- **vram_estimate_mb**: 2048"],
            {"vram_estimate_mb": 2048, "vram_policy": "fixed"},
            id="vram_policy becomes fixed if estimate set and policy unset",
        ),
        pytest.param(
            [RUN, SCRIPT, "- **vram_estimate_mb**: 2048", "- **vram_policy**: default"],
            {"vram_policy": "fixed"},
            id="vram_policy becomes fixed if estimate set and policy default",
        ),
        pytest.param(
            [RUN, SCRIPT, "- **vram_estimate_mb**: 2048", "- **vram_policy**: infer"],
            {"vram_policy": "infer"},
            id="vram_policy infer stays with an estimate",
        ),
        pytest.param([RUN, SCRIPT], {"vram_estimate_mb": None, "vram_policy": None}, id="vram default is the worker's"),
        pytest.param(
            [RUN, CPU, "- **requires**: `in/a.csv`, b", "- **produces**: {BATCH_PATH}/out.json"],
            {"requires": ["in/a.csv", "b"], "produces": ["{BATCH_PATH}/out.json"]},
            id="requires, produces comma paths",
        ),
        pytest.param([RUN, LLM, "- **llm_min_tier**: 2"], {"llm_min_tier": 2}, id="llm_min_tier int >= 1"),
        pytest.param([RUN, LLM, "- **llm_model**: `qwen2.5:7b`"], {"llm_model": "qwen2.5:7b"}, id="llm_model catalog id"),
        *(
            pytest.param([RUN, LLM, f"- **llm_placement**: {name}"], {"llm_placement": name}, id=f"llm_placement {name}")
            for name in ("single_gpu", "split_gpu")
        ),
    ],
)  # fmt: skip
def test_a_field_is_read_as_its_row_says(bullets, wanted):
    others = "".join(f"### {name}\n{RUN}\n{CPU}\n" for name in "xy")
    others += f"### tmpl\n{RUN}\n{CPU}\n- **foreach**: /m.json:items\n"
    task = task_of(*bullets, before=others)
    assert {name: task[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("bullets", "words", "line"),
    [
        pytest.param([RUN, "- **executor**: my box"], "unknown executor 'my box', taken as worker", 7, id="executor"),
        pytest.param([RUN, "- **task_class**: gpuu"], "taken as cpu (the default)", 7, id="task_class"),
        pytest.param(["- **depends_on**: none"], "error plan.md:5: task 'a' has no command", 5, id="section dropped"),
        pytest.param([RUN, "- **batch_size**: 0"], "not a whole number from 1", 7, id="batch_size bad"),
        pytest.param([RUN, CPU, "- **vram_policy**: fixed"], "no effect on a cpu task", 8, id="vram_* for non-script"),
        pytest.param([RUN, CPU, "- **llm_min_tier**: 1"], "no effect on a cpu task", 8, id="llm_* for non-llm"),
        pytest.param([RUN, LLM, "- **llm_placement**: both"], "write one of: single_gpu", 8, id="llm_placement bad"),
        pytest.param([RUN, LLM, "- **llm_min_tier**: 0"], "not a whole number from 1", 8, id="llm_min_tier bad"),
        pytest.param([RUN, SCRIPT, "- **vram_estimate_mb**: 2GB"], "not a whole number", 8, id="vram_estimate_mb bad"),
        pytest.param(
            [RUN, SCRIPT, "- **vram_estimate_mb**: 99999999"], "more than any card has", 8, id="vram_estimate_mb huge"
        ),
        pytest.param([RUN, SCRIPT, "- **vram_policy**: infer"], "taken to need 1024 MiB", 8, id="vram_policy infer"),
        pytest.param(
            [RUN, SCRIPT, "- **vram_estimate_mb**: 2048", "- **vram_policy**: infer"],
            "taken to need 2048 MiB; drop vram_policy", 9, id="vram_policy infer beside an estimate"
        ),
        pytest.param(
            [RUN, SCRIPT, "- **vram_policy**: fixed"], "fixed without a number", 8, id="vram_policy fixed alone"
        ),
    ],
)  # fmt: skip
def test_a_bad_field_is_said_with_its_line(bullets, words, line):
    text = f"{HEAD}### a\n" + "\n".join(bullets) + "\n"
    assert words in said(text)
    assert any(fault.line == line for fault in faults_of(text))


def test_an_unknown_field_is_a_warning_with_the_nearest_name_and_its_place():
    fault = faults_of(f"{HEAD}### a\n{RUN}\n{CPU}\n  - **depend_on**: x\n")[0]
    assert (fault.severity, fault.line, fault.column, fault.width) == ("warning", 8, 7, 9)
    assert fault.fix == "did you mean depends_on?"
    assert fault.excerpt() == ["    - **depend_on**: x", "        ^~~~~~~~~"]


# --- 2.3 Variables ----------------------------------------------------------------------------------------

BUILT_INS = {"PLAN_PATH": "/view", "BATCH_ID": "20260101_000000_abcdef", "BATCH_PATH": "/view/batches/x"}


def errors_of(command: str, config: dict[str, Any] | None = None, more: str = "") -> list[str]:
    plan = read(f"{HEAD}### a\n{CPU}\n- **command**: `{command}`\n{more}\n")
    return [str(fault) for fault in check_plan(plan, config or {}, BUILT_INS)[1] if fault.severity == "error"]


@pytest.mark.parametrize(
    "name", ["PLAN_PATH", "BATCH_ID", "BATCH_PATH", "PRIORITY", "PREEMPTIBLE", "RUN_MODE"]
)
def test_a_variable_that_rigbus_sets_is_known(name):
    assert errors_of(f"x {{{name}}}") == []


def test_every_key_of_the_configuration_is_a_variable():
    assert errors_of("x {KEY} {other_2}", {"KEY": 1, "other_2": "b"}) == []


@pytest.mark.parametrize("name", ["ITEM", "ITEM.id", "ITEM.a.b", "ITEM.0"])
def test_item_is_known_in_a_foreach_only(name):
    assert errors_of(f"x {{{name}}}", more="- **foreach**: /m.json:items") == []
    assert "but has no foreach" in errors_of(f"x {{{name}}}")[0]


@pytest.mark.parametrize(
    "command",
    ["x ${HOME}", "awk '{print}'", "x {a,b}", "x {1..3}", "x {}", "x { X }", "x {{MISSING}}", "x '${{ M }}'",
     "docker -f '{{.State}}'", "printf '{%s}' x", 'jq "{name}"', "x {$HOME}"],
)  # fmt: skip
def test_other_braces_are_no_variables(command):
    assert errors_of(command) == []


def test_a_name_that_nothing_sets_is_refused_and_not_run_as_text():
    plan = read(f"{HEAD}### a\n{CPU}\n{RUN}\n- **produces**: a, x{{MISSING}}y\n")
    fault = check_plan(plan, {})[1][0]
    assert (fault.line, fault.column, fault.width) == (8, 21, 9)
    assert fault.excerpt()[1] == "    " + " " * 20 + "^~~~~~~~~"


@pytest.mark.parametrize("field", ["command", "foreach"])
def test_variables_are_looked_for_in_command_and_foreach(field):
    bullets = {
        "command": "- **command**: `x {GONE}`",
        "foreach": "- **command**: `x`\n- **foreach**: {GONE}/x:items",
    }
    plan = read(f"{HEAD}### a\n{CPU}\n{bullets[field]}\n")
    assert "{GONE}, which nothing sets" in str(check_plan(plan, {})[1][0])


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{A}", "1"),
        ("{{A}}", "{A}"),
        ("{{{A}}}", "{{A}}"),
        ("{{A}", "{1"),
        ("{A}}", "1}"),
        ("${A}", "${A}"),
        ("${{A}}", "${{A}}"),
        ("{{end}}", "{{end}}"),
        ("{{LOUD}}", "{LOUD}"),
        ("{LOUD}", "{LOUD}"),
    ],
)
def test_braces_mean_the_same_in_a_command_and_in_other_texts(text, filled):
    from rigbus.plans.placeholders import find_holes

    assert substitute(text, {"A": "1"}) == filled
    parts, at = [], 0
    for hole in find_holes(text, {"A"}.__contains__):
        parts += [text[at : hole.start], "1" if hole.filled else hole.text]
        at = hole.end
    assert "".join([*parts, text[at:]]) == filled


# --- 2.5 Goal section -------------------------------------------------------------------------------------

GOAL_FIELDS = [
    "tracked_task", "target", "tolerance", "max_attempts_multiplier", "discovery_tasks", "discovery_round_multiplier",
    "discovery_prefill_divisor", "discovery_pool_multiplier", "discovery_pool_cap", "discovery_refill_divisor",
    "max_validations_per_cycle",
]  # fmt: skip


@pytest.mark.parametrize("field", GOAL_FIELDS)
def test_a_goal_with_a_field_of_the_table_is_told_from_prose(field):
    bullets = {"type": "target_count", "tracked_task": "a", "target": "5"} | {
        field: "a" if "task" in field else "3"
    }
    goal = "\n".join(f"- **{name}**: {value}" for name, value in bullets.items())
    plan = read(f"# Plan: demo\n\n## Goal\n\n{goal}\n\n## Tasks\n### a\n{RUN}\n{CPU}\n")
    assert plan.goal == goal
    assert [str(fault)[:64] for fault in plan.warnings] == [
        "plan.md:3: the plan has a machine goal (tracked_task 'a'), which"
    ]


@pytest.mark.parametrize("missing", ["type", "tracked_task"])
def test_a_goal_without_its_required_field_is_prose_and_said(missing):
    bullets = {"type": "target_count", "tracked_task": "a", "target": "5"}
    del bullets[missing]
    goal = "\n".join(f"- **{name}**: {value}" for name, value in bullets.items())
    plan = read(f"## Goal\n{goal}\n\n## Tasks\n### a\n{RUN}\n{CPU}\n")
    assert f"but no {missing}: it is kept as text only" in str(plan.warnings[0])


@pytest.mark.parametrize(
    "goal",
    [
        "Count all of them.",
        "- Count them\n- **Note**: twice",
        "- type: a report",
        "**Target audience**: people",
        "",
    ],
)
def test_a_prose_goal_is_harmless(goal):
    plan = read(f"## Goal\n{goal}\n\n## Tasks\n### a\n{RUN}\n{CPU}\n")
    assert (plan.goal, plan.warnings) == (goal, [])


def test_a_goal_that_tracks_no_task_of_the_plan_is_said():
    plan = read(
        f"## Goal\n- **type**: target_count\n- **tracked_task**: gone\n\n## Tasks\n### a\n{RUN}\n{CPU}\n"
    )
    assert "plan.md:3: the goal's tracked_task 'gone' is no task" in str(plan.warnings[1])


def test_the_virtual_dependency_on_the_goal_is_refused_with_words():
    assert "goals do not run" in said(f"{HEAD}### a\n{RUN}\n{CPU}\n- **depends_on**: _goal_complete\n")


def test_prose_stands_in_objective_where_the_goal_is_missing():
    assert read(f"## Objective\nWhy.\n\n## Tasks\n### a\n{RUN}\n{CPU}\n").goal == "Why."


# --- 2.6 Accepted variations ------------------------------------------------------------------------------

OTHERS = "".join(f"### {name}\n{RUN}\n{CPU}\n" for name in ("b", "c"))


@pytest.mark.parametrize(
    ("heading", "bullets", "wanted"),
    [
        pytest.param("a", [RUN, CPU, "- **executor**: worker"], {"executor": "worker"}, id="- **executor**: worker"),
        pytest.param("a", [RUN, CPU, "- executor: worker"], {"executor": "worker"}, id="- executor: worker"),
        pytest.param("a", ["- command: `x`", "- executor: brain"], {"executor": "brain"}, id="- executor: brain"),
        pytest.param("Task: a", [RUN], {"id": "a"}, id="### Task: x"),
        pytest.param("a (the first one)", [RUN], {"id": "a"}, id="### x (comment)"),
        pytest.param("a", [RUN, "- **depends_on**: `[]`"], {"depends_on": []}, id="depends_on `[]`"),
        pytest.param("a", [RUN, "- **depends_on**: []"], {"depends_on": []}, id="depends_on []"),
        pytest.param("a", [RUN, '- **depends_on**: ["b","c"]'], {"depends_on": ["b", "c"]}, id='depends_on ["a","b"]'),
        pytest.param("a", [RUN, "- **depends_on**: `b`"], {"depends_on": ["b"]}, id="depends_on `a`"),
        pytest.param("a", [RUN, "- **depends_on**: 'b', \"c\""], {"depends_on": ["b", "c"]}, id="depends_on quotes"),
        pytest.param("a", [RUN, "- **depends_on**: none"], {"depends_on": []}, id="depends_on none"),
        pytest.param("a", [RUN, "- **depends_on**: None"], {"depends_on": []}, id="depends_on None"),
        pytest.param("a", [RUN, "- **depends_on**:"], {"depends_on": []}, id="depends_on empty"),
        pytest.param("a", [RUN], {"depends_on": []}, id="depends_on missing"),
        pytest.param("a", ["- **command**: echo a b"], {"command": "echo a b"}, id="command without backticks"),
        pytest.param("a", ["- **command**: `echo `date` x`"], {"command": "echo `date` x"}, id="inner backticks"),
        pytest.param("a", [r"- **command**: `echo \`date\` x`"], {"command": r"echo \`date\` x"}, id=r"inner \`"),
        pytest.param("a", ["- **command**: ``echo `date` ``"], {"command": "echo `date`"}, id="double backticks"),
        pytest.param("a", ["- **command**:", "  ```bash", "  a", "   b", "  ```"], {"command": "a\n b"}, id="fenced multi-line"),
        pytest.param("a", ["* **command**: `y`", "* **task_class**: llm"], {"command": "y", "task_class": "llm"}, id="* bullet"),
        pytest.param("a", ["   - **command**: `y`", "\t- **pool**: p"], {"command": "y", "pool": "p"}, id="indented"),
        pytest.param("a", [RUN, "- **task_class**: CPU"], {"task_class": "cpu", "task_class_inferred": False}, id="CPU"),
        pytest.param("a", [RUN, "- **task_class**: gpu"], {"task_class": "cpu", "task_class_inferred": True}, id="unknown class"),
    ],
)  # fmt: skip
def test_a_variation_is_accepted_as_its_row_says(heading, bullets, wanted):
    task = task_of(*bullets, heading=heading, before=OTHERS)
    assert {name: task[name] for name in wanted} == wanted


@pytest.mark.parametrize("ending", ["\r\n", "\r"], ids=["CRLF", "lone CR"])
def test_the_line_ends_of_other_systems_are_read(ending):
    text = HEAD + OTHERS + f"### a\n{RUN}\n- **depends_on**: b, c\n"
    assert read(text.replace("\n", ending)).model_dump() == read(text).model_dump()


def test_row_four_hashes_are_not_a_task():
    assert [task.id for task in read(f"{HEAD}### a\n{RUN}\n#### b\n{RUN}\n").tasks] == ["a"]


def test_row_a_command_outside_tasks_is_ignored_and_said():
    plan = read(f"## Extra\n### b\n{RUN}\n{HEAD}### a\n{RUN}\n")
    assert [task.id for task in plan.tasks] == ["a"]
    assert plan.warnings[0].line == 2
    assert "stands in ## extra, so it is no task" in plan.warnings[0].what


def test_row_a_command_in_notes_overwrites_nothing():
    assert read(f"{HEAD}### a\n{RUN}\n\n## Notes\n- **command**: `rm -rf /`\n").tasks[0].command == "x"


@pytest.mark.parametrize(
    "workflow",
    [
        pytest.param("1. init\n2. work\n3. end", id="ordered items"),
        pytest.param("- init\n- work\n- end", id="bulleted items"),
        pytest.param("init → work → end", id="one line a → b → c"),
        pytest.param("1. scripts/init.py\n2. scripts/work.py\n3. scripts/end.py", id="by path"),
        pytest.param("1. init.py\n2. work.py\n3. end.py", id="by file name"),
        pytest.param("1. `init.py`\n2. `work`\n3. `scripts/end.py`", id="in backticks"),
    ],
)
def test_row_a_workflow_without_tasks_is_a_chain_of_its_scripts(workflow):
    tasks = read(SCRIPTS + workflow).tasks
    assert {task.id: task.depends_on for task in tasks} == {"init": [], "work": ["init"], "end": ["work"]}
    assert {task.type for task in tasks} == {"shell"}
    assert tasks[1].command == "python3 {PLAN_PATH}/scripts/work.py"


def test_row_several_names_on_one_line_run_side_by_side():
    tasks = read(SCRIPTS + "1. init, work\n2. end").tasks
    assert {task.id: task.depends_on for task in tasks} == {"init": [], "work": [], "end": ["init", "work"]}


def test_row_an_unknown_name_in_a_workflow_is_an_error_with_its_line():
    fault = faults_of(SCRIPTS + "1. init\n2. wrok\n")[0]
    assert (fault.severity, fault.line, fault.column) == ("error", 15, 4)
    assert fault.fix == "did you mean 'work'?"


@pytest.mark.parametrize(
    ("tasks", "words", "place"),
    [
        pytest.param(f"### a\n{RUN}\n- **depends_on**: none, bb\n", "unknown task 'bb'", (7, 25), id="unknown dependency"),
        pytest.param(
            f"### a\n{RUN}\n- **depends_on**: b\n### b\n{RUN}\n- **depends_on**: a\n", "a → b → a", (7, 19), id="cycle"
        ),
        pytest.param(f"### a\n{RUN}\n### a\n{RUN}\n", "'a' stands twice (first in line 5)", (7, 5), id="duplicate id"),
        pytest.param(
            "### a\n- **task_class**: llm\n- **llm_placement**: split_gpu\n- **command**: `r --a-model m1 --b-model m2`\n",
            "several models for one GPU pair: m1, m2", (8, 42), id="mixed --*-model on split task",
        ),
    ],
)  # fmt: skip
def test_row_what_could_never_end_is_refused_at_submit(tasks, words, place):
    with pytest.raises(PlanInvalid) as caught:
        read(HEAD + tasks)
    fault = next(one for one in caught.value.errors if words in one.what)
    assert (fault.line, fault.column) == place


@pytest.mark.parametrize(
    ("bullets", "mixed"),
    [
        (["- **command**: `r --a-model m1 --b-model m1`"], False),
        (["- **command**: `r --a-model=m1 --b-model 'm1' --model \"m1\"`"], False),
        (["- **command**: `r --a-model {A} --b-model {B}`"], False),
        (["- **command**: `r --a-model m1`", "- **llm_model**: m2"], True),
        (["- **command**: `r --a-model m1`", "- **llm_model**: m1"], False),
        (['- **argv**: ["r", "--a-model", "m1", "--b-model=m2"]'], True),
        (["- **command**:", "  ```", "  r --a-model m1 \\", "    --b-model m2", "  ```"], True),
    ],
)
def test_a_gpu_pair_holds_one_model(bullets, mixed):
    text = f"{HEAD}### a\n{LLM}\n- **llm_placement**: split_gpu\n" + "\n".join(bullets)
    assert ("several models" in said(text)) is mixed
    assert "several models" not in said(text.replace("split_gpu", "single_gpu"))
