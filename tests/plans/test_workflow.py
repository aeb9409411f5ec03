"""The seed's form: available scripts, and a workflow that names them."""

from __future__ import annotations

import pytest

from rigbus.plans import PlanInvalid, parse_plan

SCRIPTS = """\
# Plan: videos

## Goal
Transcribe them all.

## Available Scripts

### scripts/init.py
**Purpose**: make the folders
**GPU**: No
**Run command**: `python3 {PLAN_PATH}/scripts/init.py --out {BATCH_PATH}`

### `scripts/transcribe.py` — whisper
- **GPU**: Yes
- **VRAM estimate**: ~2 GB
- **Run command**:
  ```bash
  python3 {PLAN_PATH}/scripts/transcribe.py
  ```

### scripts/frames.py
- **GPU**: no
- **Run command:** `python3 {PLAN_PATH}/scripts/frames.py`

### scripts/aggregate.sh
- **GPU**: no
- **Run command**: `bash {PLAN_PATH}/scripts/aggregate.sh`

## Workflow

"""
DIAMOND = {"init": [], "transcribe": ["init"], "frames": ["init"], "aggregate": ["transcribe", "frames"]}


def edges(workflow: str) -> dict[str, list[str]]:
    plan = parse_plan(SCRIPTS + workflow, name="videos")
    return {task.id: task.depends_on for task in plan.tasks}


@pytest.mark.parametrize(
    "workflow",
    [
        "init → transcribe, frames → aggregate",
        "init -> transcribe + frames -> aggregate",
        "Runs in this order:\n\n```\ninit → transcribe & frames → aggregate\n```\n",
        "1. init\n2. transcribe, frames\n3. aggregate",
        "- `scripts/init.py`\n- `transcribe.py` and `frames.py`\n- `aggregate`",
        "1. Run `init.py` to make the folders\n2. Then `transcribe.py` and `frames.py`\n   side by side\n3. `aggregate.sh`",
        "1. **Init**: the folders\n   - no GPU needed\n2. scripts/transcribe.py and scripts/frames.py\n3. Aggregate everything",
    ],
)  # fmt: skip
def test_every_form_of_a_workflow_gives_the_same_order(workflow):
    assert edges(workflow) == DIAMOND


def test_a_step_is_a_shell_task_with_the_scripts_run_command():
    plan = parse_plan(SCRIPTS + "init → transcribe", name="videos")
    init, transcribe = plan.tasks
    assert (init.type, init.command) == ("shell", "python3 {PLAN_PATH}/scripts/init.py --out {BATCH_PATH}")
    assert (init.task_class, transcribe.task_class, transcribe.vram_estimate_mb) == ("cpu", "script", 2048)
    assert transcribe.command == "python3 {PLAN_PATH}/scripts/transcribe.py"
    assert plan.warnings == []


def test_a_script_named_twice_runs_twice():
    assert edges("init → frames → init") == {"init": [], "frames": ["init"], "init-2": ["frames"]}


def test_scripts_may_be_bullets():
    text = (
        "## Available Scripts\n- `a.py`: first. Run command: `python3 a.py`\n- **b.py**\n  - **Run command**: `python3 b.py`\n"
        "## Workflow\na → b\n"
    )
    plan = parse_plan(text, name="p")
    assert [(task.id, task.command) for task in plan.tasks] == [("a", "python3 a.py"), ("b", "python3 b.py")]


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        ("1. init\n2. transcibe\n", "plan.md:32: the workflow names 'transcibe', which is no available script; did you"),
        ("1. `other.py`\n", "plan.md:31: the workflow names 'other.py'"),
        ("init → unknown → frames", "plan.md:31: the workflow names 'unknown'"),
        ("Do it well.", "the workflow has no steps"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_its_line(workflow, words):
    with pytest.raises(PlanInvalid) as caught:
        parse_plan(SCRIPTS + workflow, name="videos")
    assert words in str(caught.value)


def test_one_stem_for_two_scripts_must_be_written_as_a_path():
    text = "## Available Scripts\n### a/run.py\n- **Run command**: `1`\n### b/run.py\n- **Run command**: `2`\n## Workflow\n"
    with pytest.raises(PlanInvalid, match=r"write the path: a/run\.py, b/run\.py"):
        parse_plan(text + "- run\n", name="p")
    assert [task.id for task in parse_plan(text + "- a/run.py\n- b/run.py\n", name="p").tasks] == [
        "run",
        "run-2",
    ]


def test_a_workflow_without_scripts_or_without_a_command_is_refused():
    with pytest.raises(PlanInvalid, match="a workflow but no scripts"):
        parse_plan("## Workflow\n1. init\n", name="p")
    with pytest.raises(PlanInvalid, match=r"plan\.md:2: the script 'a\.py' has no run command"):
        parse_plan("## Available Scripts\n### a.py\nProse.\n## Workflow\n1. a\n", name="p")


def test_tasks_win_over_a_workflow():
    plan = parse_plan(SCRIPTS + "init\n\n## Tasks\n### only\n- **command**: `x`\n", name="videos")
    assert [task.id for task in plan.tasks] == ["only"]
