"""The runnable plans of PLAN_FORMAT.md, and those that `rigbus plan new` writes, on one real rig."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import util
from types import ModuleType
from typing import Any

import pytest
from drops import HEAD, own_rig, receipt, run_plan, say, task, tasks_of
from helpers import ROOT
from rigs import LiveRig

from rigbus.tools.plan_new import FORMS, write_plan

pytestmark = pytest.mark.live


def _page() -> ModuleType:
    """The module of the page's quick tests: it knows the examples."""
    name = "plan_format_examples"
    spec = util.spec_from_file_location(name, ROOT / "tests" / "plans" / "test_plan_format.py")
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


EXAMPLES = _page().examples("runs")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


@pytest.fixture(scope="module")
def batches(rig: LiveRig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All plans dropped one after the other, running at the same time; their batches by name."""
    found = {one.name: run_plan(rig, one.name, one.text) for one in EXAMPLES}
    for form in FORMS:
        folder = tmp_path_factory.mktemp("new") / f"new-{form}"
        write_plan(folder, folder.name, form)
        files = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        found[folder.name] = run_plan(rig, folder.name, files.pop("plan.md").decode(), files=files)
    return found


def ended(rig: LiveRig, batch: str) -> dict[str, Any]:
    """The batch's row when it has ended."""
    with rig.client() as client:
        return rig.wait_batch(batch, client, timeout_s=30)


def output_of(rig: LiveRig, batch: str, task: str) -> str:
    text: str = tasks_of(rig, batch)[task]["result"]["output"]
    return text


@pytest.mark.parametrize("name", [*(one.name for one in EXAMPLES), *(f"new-{form}" for form in FORMS)])
def test_a_plan_that_the_page_calls_runnable_ends_well(rig, batches, name):
    assert ended(rig, batches[name])["state"] == "complete", {
        task: (one["state"], one["error"]) for task, one in tasks_of(rig, batches[name]).items()
    }


def test_a_default_of_an_input_reaches_the_command(rig, batches):
    ended(rig, batches["two-forms-of-a-command"])
    folder = rig.shared / "plans" / "two-forms-of-a-command" / "batches" / batches["two-forms-of-a-command"]
    assert (folder / "greeting.txt").read_text() == "Hello, the world!\n" * 2


def test_the_tasks_of_a_list_are_called_and_counted_as_the_page_says(rig, batches):
    ended(rig, batches["lists"])
    tasks = tasks_of(rig, batches["lists"])
    assert {
        "square_a",
        "square_b",
        "square_c",
        "show_a",
        "bundle_batch_0001_0002",
        "bundle_batch_0003_0003",
    } <= set(tasks)
    assert output_of(rig, batches["lists"], "show_b").strip() == "4"
    assert output_of(rig, batches["lists"], "sum").strip() == "14"


def test_a_step_of_a_workflow_sees_what_the_one_before_has_written(rig, batches):
    ended(rig, batches["in-order"])
    assert output_of(rig, batches["in-order"], "last").split() == ["one", "one"]


def test_a_new_plan_leaves_its_result_where_it_says(rig, batches):
    ended(rig, batches["new-tasks"])
    ended(rig, batches["new-foreach"])
    folder = rig.shared / "plans" / "new-tasks" / "batches" / batches["new-tasks"]
    assert (folder / "page.md").read_text().startswith("# What this machine has\n\n- system: ")
    assert "9991 = 97 · 103" in output_of(rig, batches["new-foreach"], "collect")


def test_a_plan_that_the_page_calls_refused_gets_the_same_words_in_its_receipt(rig):
    example = _page().examples("refused")[0]
    folder = rig.shared / "inbox" / example.name
    folder.mkdir()
    (folder / "plan.md").write_text(example.text)
    (folder / "READY").touch()
    said = receipt(rig, example.name)
    assert said["state"] == "refused"
    words = example.mark.removeprefix("refused: ").partition(": ")[2]
    assert words.partition(";")[0] in str(said)


def test_lint_says_of_a_plan_in_the_share_what_it_says_of_a_folder(rig, batches):
    code, out, err = say(rig, "plan", "lint", "lists")
    assert code == 0, err
    assert out.endswith("lists: 5 tasks, no errors, no warnings\n")


@pytest.mark.parametrize(
    ("policy", "dependent", "other"),
    [("", "skipped", "done"), ("continue", "done", "done"), ("abort", "skipped", "cancelled")],
    ids=["no on_failure", "on_failure: continue", "on_failure: abort"],
)
def test_a_task_that_fails_for_good_does_to_others_what_the_table_says(rig, policy, dependent, other):
    fields = {"on_failure": policy} if policy else {}
    text = HEAD + task("bad", "exit 1", max_attempts=1, **fields) + task("after", "true", depends_on="bad")
    # For `abort` the other task must still run when the bad one ends, else it must simply end well.
    text += task("other", "sleep 20" if policy == "abort" else "true")
    batch = run_plan(rig, f"policy-{policy or 'none'}", text)
    assert ended(rig, batch)["state"] == "failed"
    states = {name: one["state"] for name, one in tasks_of(rig, batch).items()}
    assert states == {"bad": "dead", "after": dependent, "other": other}
