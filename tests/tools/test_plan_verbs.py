"""`rigbus plan lint|graph|new`: what a person who writes plans sees. No rig runs here."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT

from rigbus.plans.parser import load_plan
from rigbus.tools.plan_new import FORMS

GOOD = """# Plan: good

## Tasks

### one
- **task_class**: cpu
- **command**: `echo hi`
- **timeout_s**: 5

### two
- **task_class**: cpu
- **command**: `python3 {PLAN_PATH}/scripts/two.py`
- **depends_on**: one
- **timeout_s**: 5
"""
BAD = GOOD.replace("depends_on**: one", "depends_on**: on").replace("timeout_s**: 5", "timeout_s**: soon", 1)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed in an empty folder, and find no rig."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("RIGBUS_SHARED", str(tmp_path / "share"))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Path]:
    """Make a plan folder: ``plan(text, **{"scripts/two.py": ""})``."""

    def make(text: str = GOOD, name: str = "good", **files: str) -> Path:
        folder = tmp_path / "work" / name
        for path, content in {"scripts/two.py": "", **files, "plan.md": text}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
        return folder

    return make


# -- lint --------------------------------------------------------------------------------------------------------


def test_a_good_plan_lints_with_0_and_one_line(say, plan):
    plan()
    said = say("plan", "lint", "good")
    assert (said.code, said.out) == (0, "good: 2 tasks, no errors, no warnings\n")


def test_each_fault_has_its_place_its_line_a_mark_and_the_fix(say, plan):
    plan(BAD)
    said = say("plan", "lint", "good")
    assert said.code == 5
    lines = said.out.splitlines()
    at = next(i for i, line in enumerate(lines) if "depends on" in line)
    assert lines[at].startswith(
        "good/plan.md:13:19: error: task 'two' depends on the unknown task 'on'; did you mean"
    )
    assert lines[at + 1 : at + 3] == ["    - **depends_on**: on", "                      ^~"]
    assert any(line.startswith("good/plan.md:8:") and "error: timeout_s is 'soon'" in line for line in lines)
    assert lines[-1] == "good: not read, 2 errors, no warnings"


def test_the_json_has_every_fault_with_its_place(say, plan):
    plan(BAD)
    report = say("plan", "lint", "good", "--json").json
    assert (report["schema"], report["ok"], report["errors"], report["warnings"]) == (
        "rigbus.lint/1",
        False,
        2,
        0,
    )
    [one] = report["plans"]
    assert {key: one[key] for key in ("plan", "file", "ok", "tasks")} == {
        "plan": "good",
        "file": "good/plan.md",
        "ok": False,
        "tasks": 0,
    }
    assert set(one["faults"][0]) >= {"file", "line", "column", "severity", "what", "fix", "source_line"}
    assert [fault["line"] for fault in one["faults"]] == [8, 13]


def test_warnings_pass_unless_it_is_strict(say, plan):
    plan(GOOD.replace("- **task_class**: cpu\n", "", 1))
    said = say("plan", "lint", "good")
    assert said.code == 0
    assert "warning: task 'one' has no task_class: taken as cpu" in said.out
    assert said.out.endswith("good: 2 tasks, no errors, 1 warning\n")
    assert say("plan", "lint", "good", "--strict").code == 5


def test_what_is_inferred_is_said(say, plan):
    plan(GOOD.replace("- **timeout_s**: 5\n", "").replace("- **task_class**: cpu\n", "", 1))
    said = say("plan", "lint", "good")
    assert "good: note: timeout_s is 1800 (the default) for one, two" in said.out
    [one] = say("plan", "lint", "good", "--json").json["plans"]
    assert [(row["task"], row["field"], row["value"]) for row in one["inferred"]] == [
        ("one", "task_class", "cpu"),
        ("one", "timeout_s", 1800.0),
        ("two", "timeout_s", 1800.0),
    ]


def test_a_class_that_is_not_sure_is_the_rules_here_and_a_models_on_a_rig(say, plan):
    plan(GOOD.replace("echo hi", "python3 train.py").replace("- **task_class**: cpu\n", "", 1))
    asked = "unsure: a model of the rig is asked, where there is one"
    assert f"has no task_class: taken as cpu (the default), {asked}" in say("plan", "lint", "good").out
    [one] = say("plan", "lint", "good", "--json").json["plans"]
    assert one["inferred"][0]["rule"].endswith(asked)


def test_values_come_from_the_options_and_from_config_json(say, plan):
    text = GOOD.replace("echo hi", "echo {WHO}") + "\n## Inputs\n\n- **WHO**: whom\n"
    plan(text)
    assert say("plan", "lint", "good").code == 5
    assert say("plan", "lint", "good", "--set", "WHO=you").code == 0
    assert say("plan", "lint", "good", "--config", '{"WHO": "you"}').code == 0
    assert say("plan", "lint", "good", "--config", "{").code == 2
    plan(text, **{"config.json": '{"config": {"WHO": "you"}}'})
    assert say("plan", "lint", "good").code == 0
    plan(text, **{"config.json": '{"WHO": '})
    said = say("plan", "lint", "good", "--set", "WHO=you")
    assert said.code == 5
    assert "good/config.json:1: error: it is no valid JSON" in said.out


def test_a_place_where_bash_would_parse_a_value_is_an_error_with_its_line(say, plan):
    plan(GOOD.replace("`echo hi`", "`echo $(( {N} ))`") + "\n## Inputs\n\n- **N**: n (default: `1`)\n")
    said = say("plan", "lint", "good")
    assert said.code == 5
    assert "good/plan.md:7" in said.out


def test_a_long_fault_has_its_fix_on_a_line_of_its_own(say, plan):
    plan(GOOD.replace("`echo hi`", "`echo hi >& {BATCH_ID}.log`"))
    lines = say("plan", "lint", "good").out.splitlines()
    assert any(line.startswith("    fix: write > {BATCH_ID} 2>&1 or < {BATCH_ID}") for line in lines)
    assert max(len(line) for line in lines if "error:" not in line) <= 100
    plan(GOOD.replace("one\n- **task", "one\n- **tusk"), "s")
    short = say("plan", "lint", "s")
    assert "unknown field 'tusk_class' in task 'one', not read; did you mean task_class?\n" in short.out


def test_a_script_named_without_the_plans_folder_is_a_warning_with_the_name_to_write(say, plan):
    plan(GOOD.replace("{PLAN_PATH}/scripts", "scripts"))
    said = say("plan", "lint", "good")
    assert "task 'two' names scripts/two.py, but runs in {BATCH_PATH}, where it is not" in said.out
    assert "write {PLAN_PATH}/scripts/two.py" in said.out
    plan(GOOD.replace("python3 {PLAN_PATH}/scripts", "cd {PLAN_PATH} && python3 scripts"), "goes")
    plan(GOOD.replace("{PLAN_PATH}/scripts/two.py", "scripts/made_by_one.py"), "makes")
    for name in ("goes", "makes"):
        assert "no warnings" in say("plan", "lint", name).out


USES_LANG = """# Plan: good
## Inputs
- **LANG**: the language (default: `de`)
## Tasks
### one
- **task_class**: cpu
- **command**: `echo {LANG}`
- **timeout_s**: 5
"""


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (("--set", "LAGN=en"), "did you mean LANG?"),
        (("--set", "lang=en"), "did you mean LANG?"),
        (("--config", '{"COLOUR": "red"}'), "drop it, or use {COLOUR} in a task"),
    ],
)
def test_a_variable_that_the_plan_does_not_use_is_a_warning(say, plan, given, fix):
    plan(USES_LANG)
    linted = say("plan", "lint", "good", *given)
    assert (linted.code, "1 warning" in linted.out, fix in linted.out) == (0, True, True)
    tried = say("submit", "good", "--dry-run", *given)
    assert "which the plan does not use" in tried.err
    assert fix in tried.err


def test_known_variables_and_a_config_json_with_other_keys_are_not_remarked_on(say, plan):
    plan(USES_LANG, **{"config.json": '{"RETRIES_OF_MY_SCRIPT": 3}'})
    said = say("plan", "lint", "good", "--set", "LANG=en", "--set", "PRIORITY=high", "--set", "QUERY=x")
    assert "no warnings" in said.out
    plan(USES_LANG, **{"config.json": '{"LANGS": "en"}'})
    assert "did you mean LANG?" in say("plan", "lint", "good").out


def test_a_script_that_is_not_there_is_a_warning_with_the_nearest_name(say, plan):
    folder = plan(**{"scripts/tow.py": ""})
    (folder / "scripts/two.py").unlink()
    said = say("plan", "lint", "good")
    assert said.code == 0
    assert "task 'two' runs scripts/two.py, which the plan does not have\n" in said.out
    assert "\n    fix: did you mean scripts/tow.py?\n" in said.out
    single = folder / "single.md"
    single.write_text(GOOD)
    assert "a single file has none" in say("plan", "lint", single).out


def test_what_the_rig_would_refuse_to_copy_is_an_error(say, plan, tmp_path):
    folder = plan()
    (folder / "scripts" / "out.py").symlink_to(tmp_path)
    said = say("plan", "lint", "good")
    assert said.code == 5
    assert "error: is a link that leaves the plan" in said.out
    (folder / "scripts" / "out.py").unlink()
    os.mkfifo(folder / "scripts" / "pipe")
    assert "is a FIFO" in say("plan", "lint", "good").out


def test_several_plans_are_checked_and_counted(say, plan):
    plan()
    plan(BAD, "other")
    said = say("plan", "lint", "good", "other/plan.md")
    assert said.code == 5
    assert said.out.splitlines()[0] == "good: 2 tasks, no errors, no warnings"
    assert said.out.splitlines()[-1] == "2 plans: 2 errors, no warnings"


def test_a_plan_of_the_share_is_found_by_its_name(say, plan, tmp_path):
    folder = plan()
    (tmp_path / "share" / "plans").mkdir(parents=True)
    folder.rename(tmp_path / "share" / "plans" / "kept")
    assert say("plan", "lint", "kept").out == "kept: 2 tasks, no errors, no warnings\n"
    said = say("plan", "lint", "kep")
    assert (said.code, "did you mean 'kept'?" in said.err) == (3, True)


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x01", b"\xff\xfe#", b"# Plan: x\n```\n", b"[" * 100_000], ids=repr
)
def test_rubbish_is_refused_and_never_crashes(say, plan, data):
    (plan() / "plan.md").write_bytes(data)
    assert say("plan", "lint", "good").code == 5
    assert say("plan", "graph", "good").code == 5


def test_what_a_plan_says_cannot_reach_the_terminal_as_control_codes(say, plan):
    plan(GOOD.replace("- **timeout_s**: 5", "- **timeout_s**: \x1b[31msoon", 1))
    assert "\x1b" not in say("plan", "lint", "good").out


# -- graph -------------------------------------------------------------------------------------------------------


def test_a_graph_is_mermaid_on_stdout_where_nothing_else_is_said(say, plan):
    plan()
    said = say("plan", "graph", "good")
    assert said.code == 0
    assert "flowchart TD" in said.out
    assert "    n0 --> n1" in said.out
    assert say("plan", "graph", "good", "--format", "text").out.startswith("good: 2 tasks in 2 steps\n")


@pytest.mark.parametrize(
    ("file", "start"), [("p.svg", "<svg "), ("p.txt", "good: 2"), ("p.mmd", "---\n"), ("p.x", "---\n")]
)
def test_the_form_follows_the_files_name(say, plan, file, start):
    plan()
    said = say("plan", "graph", "good/plan.md", "--output", file)
    assert (said.code, said.out) == (0, "")
    assert f"wrote {file}" in said.err
    assert Path(file).read_text(encoding="utf-8").startswith(start)
    assert sorted(os.listdir()) == ["good", file]


def test_an_svg_on_stdout_is_well_formed(say, plan):
    plan()
    out = say("plan", "graph", "good", "--format", "svg", "--output", "-").out
    assert ET.fromstring(out).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314


def test_the_graph_as_json(say, plan):
    plan(GOOD.replace("timeout_s**: 5", "on_failure**: continue", 1))
    graph = say("plan", "graph", "good", "--json").json
    assert (graph["schema"], graph["plan"]) == ("rigbus.graph/1", "good")
    assert [(task["id"], task["step"], task["on_failure"]) for task in graph["tasks"]] == [
        ("one", 1, "continue"),
        ("two", 2, None),
    ]
    assert graph["edges"] == [{"from": "one", "to": "two", "per_item": False, "any_end": True}]


def test_a_graph_never_overwrites_the_plan(say, plan):
    folder = plan()
    said = say("plan", "graph", "good", "--output", "good/plan.md")
    assert said.code == 8
    assert "is the plan itself" in said.err
    assert (folder / "plan.md").read_text() == GOOD
    assert say("plan", "graph", "good", "--output", "good").code == 8
    nowhere = say("plan", "graph", "good", "--output", "nowhere/x.svg")
    assert (nowhere.code, nowhere.err.startswith("rigbus: nowhere/x.svg: No such file")) == (1, True)


def test_a_picture_that_nobody_draws_is_refused_and_not_written_as_text(say, plan):
    folder = plan()
    said = say("plan", "graph", "good", "--output", "good/plan.png")
    assert said.code == 2
    assert "write an .svg" in said.err
    assert not (folder / "plan.png").exists()


def test_an_invalid_plan_is_not_drawn_but_refused_with_its_lines(say, plan):
    plan(BAD)
    said = say("plan", "graph", "good")
    assert (said.code, said.out) == (5, "")
    assert "good/plan.md:13: task 'two' depends on the unknown task 'on'" in said.err


# -- new ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_new_plan_lints_clean_and_has_its_folders_name(say, form):
    said = say("plan", "new", "mine", "--form", form)
    assert said.code == 0
    assert "rigbus plan lint mine" in said.err
    assert said.out.splitlines()[0] == "mine/plan.md"
    assert all(Path(line).is_file() for line in said.out.splitlines())
    assert load_plan(Path("mine"))[0].title == "mine"
    assert say("plan", "lint", "mine", "--strict").code == 0
    assert say("submit", "mine", "--dry-run").code == 0


@pytest.mark.parametrize("there", ["file", "folder"])
def test_nothing_is_ever_overwritten(say, there):
    mine = Path("mine")
    (mine if there == "file" else mine / "notes.txt").parent.mkdir(exist_ok=True)
    (mine if there == "file" else mine / "notes.txt").write_text("mine")
    said = say("plan", "new", "mine")
    assert said.code == 8
    assert "mine is there already; give a new folder" in said.err
    assert (mine if there == "file" else mine / "notes.txt").read_text() == "mine"
    assert os.listdir() == ["mine"]


@pytest.mark.parametrize("name", [".hidden", "a b", "x.part", "nowhere/x"])
def test_a_name_that_no_plan_may_have_is_a_usage_error(say, name):
    said = say("plan", "new", name)
    assert said.code == 2
    assert ";" in said.err
    assert os.listdir() == []


def test_the_files_of_a_new_plan_as_json(say):
    said = say("plan", "new", "mine", "--json").json
    assert said == {
        "schema": "rigbus.plan.new/1",
        "plan": "mine",
        "path": "mine",
        "files": ["plan.md", "scripts/collect.py", "scripts/page.py"],
    }


# -- all ---------------------------------------------------------------------------------------------------------


def test_the_shipped_examples_lint_clean_and_can_be_drawn(say):
    examples = sorted((ROOT / "plans" / "examples").glob("*/plan.md"))
    assert len(examples) >= 4
    assert say("plan", "lint", "--strict", *examples).code == 0
    assert all(say("plan", "graph", one, "--format", "svg").code == 0 for one in examples)


def test_no_verb_for_plans_loads_what_a_machine_without_a_rig_lacks(plan):
    plan()
    lines = [
        "import sys",
        "from rigbus.tools.cli import run",
        "codes = [run(['plan', *words]) for words in (['lint', 'good'], ['graph', 'good', '--format', 'svg'], ['new', 'x'])]",
        "print([name for name in ('zmq', 'msgpack', 'rich') if name in sys.modules], codes, file=sys.stderr)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "[] [0, 0, 0]"


def test_the_group_names_its_verbs_and_no_line_of_help_is_cut(say):
    for group, verbs in {
        "plan": ["graph", "lint", "new"],
        "batch": ["list", "show"],
        "task": ["list", "show"],
    }.items():
        said = say(group, "--help").out
        assert all(f"\n  {verb} " in said for verb in verbs)
        assert "..." not in said.partition("Commands:")[2]
