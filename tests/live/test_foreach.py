"""Foreach on a real rig: each row of "Foreach rules", items that depend on items, a brain killed while it expands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from drops import own_rig, run_plan, tasks_of
from helpers import wait_for
from rigs import LiveRig

from rigbus.bus.client.link import Connection
from rigbus.bus.paths import find_rig
from rigbus.bus.wire import Verb

pytestmark = pytest.mark.live

HEAD = "# Plan: p\n\n## Settings\n- max_attempts: 1\n\n## Tasks\n\n"
OUT = '"{BATCH_PATH}/results"'
EACH = HEAD + "### each\n- **foreach**: {PLAN_PATH}/input/m.json:items\n- **command**: `echo {ITEM}`\n\n"
END = "### end\n- **command**: `true`\n- **depends_on**: each\n\n### beside\n- **command**: `true`\n"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


def run(
    rig: LiveRig, name: str, plan: str, manifest: Any, *, timeout_s: float = 30.0
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The ended batch and its tasks by name."""
    files = {} if manifest is None else {"input/m.json": _text(manifest)}
    batch = run_plan(rig, name, plan, files=files)
    with rig.client() as client:
        row = rig.wait_batch(batch, client, timeout_s=timeout_s)
    return row, tasks_of(rig, batch)


def _text(manifest: Any) -> str:
    return manifest if isinstance(manifest, str) else json.dumps(manifest)


# -- the table, row by row ---------------------------------------------------------------------------------------


def test_expansion_moment_is_when_the_templates_plain_dependencies_are_met(rig: LiveRig) -> None:
    plan = (
        HEAD
        + '### scan\n- **command**: `mkdir -p "{PLAN_PATH}/data" && echo \'[1, 2]\' > "{PLAN_PATH}/data/list.json"`\n\n'
        + "### each\n- **foreach**: {PLAN_PATH}/data/list.json:\n- **command**: `echo {ITEM}`\n- **depends_on**: scan\n"
    )
    row, tasks = run(rig, "moment", plan, None)
    assert row["state"] == "complete", tasks
    assert {"each_0", "each_1"} <= set(tasks)


@pytest.mark.parametrize(
    ("items", "names"),
    [
        pytest.param(["x y", 7, None, [1]], ["each_0", "each_1", "each_2", "each_3"], id="item not a dict"),
        pytest.param(
            [{"a": 1}, {"id": "b"}, {"id": None}], ["each_0", "each_b", "each_2"], id="dict without `id`"
        ),
    ],
)
def test_names_of_items(rig: LiveRig, items: list[Any], names: list[str]) -> None:
    row, tasks = run(rig, f"names{len(items)}", EACH + END, {"items": items})
    assert row["state"] == "complete", tasks
    assert set(names) <= set(tasks)
    assert tasks["end"]["state"] == "done"


def test_expanded_tasks_wait_for_all_dependencies_and_dependents_for_all_expanded_tasks(rig: LiveRig) -> None:
    plan = EACH.replace("### each", "### gate\n- **command**: `true`\n\n### each").replace(
        "`echo {ITEM}`", "`echo {ITEM}`\n- **depends_on**: gate"
    )
    row, tasks = run(rig, "waits", plan + END, {"items": [1, 2, 3]})
    assert row["state"] == "complete", tasks
    begun, ended = ({n: t[key] for n, t in tasks.items()} for key in ("started_at", "ended_at"))
    items = [f"each_{n}" for n in range(3)]
    assert all(begun[name] >= ended["gate"] for name in items)
    assert all(begun["end"] >= ended[name] for name in items)


def test_0_items_is_a_success_that_says_so(rig: LiveRig) -> None:
    row, tasks = run(rig, "empty", EACH + END, {"items": []})
    assert row["state"] == "complete", tasks
    with rig.client() as client:
        join = client.query("task", id=tasks["each"]["id"])["rows"][0]
    assert join["state"] == "done"
    assert tasks["each:expand"]["result"]["note"] == "the list is empty: no tasks, a success"
    assert "FOREACH_EMPTY" in tasks["each"]["result"]["note"]


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        pytest.param(None, "{PLAN_PATH}/input/m.json is not there; let an earlier task write it", id="unreadable file"),
        pytest.param("{", "is no JSON", id="no JSON"),
        pytest.param({"items": {"a": 1}}, "'items' is an object, not a list", id="not a list"),
        pytest.param({"itmes": [1]}, "nothing at 'items': $ has no 'items'; the lists there are: itmes",
                     id="json path not found"),
        pytest.param({"items": [{"id": 1}, {"id": 1}]}, "'1' (elements 0 and 1)", id="duplicate ids"),
        pytest.param('{"items": [NaN]}', "NaN is no JSON number", id="NaN"),
    ],
)  # fmt: skip
def test_a_bad_source_fails_the_template_once_and_nothing_beside_it(
    rig: LiveRig, manifest: Any, says: str, request: pytest.FixtureRequest
) -> None:
    name = "bad-" + "".join(c if c.isalnum() else "-" for c in request.node.callspec.id)
    row, tasks = run(rig, name, EACH + END, manifest)
    assert row["state"] == "failed"
    expand = tasks["each:expand"]
    assert (expand["state"], len(expand["attempts"])) == ("dead", 1)
    assert says in expand["error"]
    assert {n: tasks[n]["state"] for n in ("each", "end", "beside")} == {
        "each": "skipped",
        "end": "skipped",
        "beside": "done",
    }


def test_batch_size_over_1_is_one_task_with_set_e_and_one_line_per_item(rig: LiveRig) -> None:
    plan = EACH.replace("`echo {ITEM}`", "`echo {ITEM.id} && test {ITEM.id} != 3`\n- **batch_size**: 2")
    row, tasks = run(rig, "batches", plan, {"items": [{"id": n} for n in range(1, 6)]})
    assert row["state"] == "failed"
    states = {n: t["state"] for n, t in tasks.items() if "_batch_" in n}
    assert states == {
        "each_batch_0001_0002": "done",
        "each_batch_0003_0004": "dead",
        "each_batch_0005_0005": "done",
    }
    assert tasks["each_batch_0001_0002"]["result"]["output"] == "1\n2\n"
    with rig.client() as client:
        shown = client.query("task", id=tasks["each_batch_0003_0004"]["id"])["rows"][0]
    assert shown["meta"]["item_ids"] == ["3", "4"]


# -- items that depend on items ----------------------------------------------------------------------------------


def test_an_item_runs_when_its_own_predecessor_is_done_and_is_skipped_with_it(rig: LiveRig) -> None:
    write = f"mkdir -p {OUT} && test {{ITEM.id}} != bad && echo {{ITEM.id}} > {OUT}/{{ITEM.id}}"
    plan = (
        HEAD
        + "### init\n- **command**: `true`\n\n"
        + f"### make\n- **foreach**: {{PLAN_PATH}}/input/m.json:items\n- **command**: `{write}`\n\n"
        + f"### use\n- **foreach**: {{PLAN_PATH}}/input/m.json:items\n- **command**: `cat {OUT}/{{ITEM.id}}`\n"
        + "- **depends_on**: init, make_{ITEM.id}\n"
    )
    row, tasks = run(rig, "per-item", plan, {"items": [{"id": i} for i in ("a", "bad", "c d")]})
    assert row["state"] == "failed"
    states = {n: t["state"] for n, t in tasks.items() if n.startswith("use_")}
    assert [states[n] for n in ("use_a", "use_bad")] == ["done", "skipped"]
    assert sorted(states.values()) == ["done", "done", "skipped"]
    assert tasks["use_a"]["result"]["output"] == "a\n"
    assert tasks["use_bad"]["error"] == "skipped: make_bad ended dead"


def test_an_item_without_a_counterpart_is_named(rig: LiveRig) -> None:
    plan = EACH + (
        "### then\n- **foreach**: {PLAN_PATH}/input/m.json:more\n- **command**: `echo {ITEM.id}`\n"
        "- **depends_on**: each_{ITEM.id}\n"
    )
    row, tasks = run(rig, "lonely", plan, {"items": [{"id": "a"}], "more": [{"id": "a"}, {"id": "zz"}]})
    assert row["state"] == "failed"
    assert tasks["then"]["state"] == "dead"
    assert "element 1 ('zz') has no counterpart: 'each' has no task for 'zz'" in tasks["then"]["error"]
    assert tasks["each_a"]["state"] == "done"


# -- faults while it expands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["brain", "broker"])
def test_a_process_killed_while_a_long_list_is_expanded_changes_nothing(rig: LiveRig, victim: str) -> None:
    n = 2000
    plan = (
        "# Plan: p\n\n## Tasks\n\n### each\n- **foreach**: {PLAN_PATH}/input/m.json:items\n"
        "- **command**: `true {ITEM.id}`\n- **batch_size**: 2\n"
    )
    batch = run_plan(
        rig,
        f"long-{victim}",
        plan,
        files={"input/m.json": json.dumps({"items": [{"id": i} for i in range(n)]})},
    )
    with rig.client() as client:
        wait_for(
            lambda: sum(rig.batch(batch, client)["tasks"].values()) > 52,
            what="the first message",
            poll_s=0.002,
        )
        old = rig.kill(victim)
        wait_for(lambda: rig.pids().get(victim) not in (None, old), what=f"{victim} to be started again")

        def declared() -> bool:
            rows = client.query("tasks", batch=batch, states=["waiting", "done"], limit=10)["rows"]
            return any(r["key"] == "each" and not r["hold"] for r in rows)

        wait_for(declared, timeout_s=20, what="the last message")
        assert sum(rig.batch(batch, client)["tasks"].values()) == n // 2 + 2
        client.cancel(batch=batch)


def test_a_batch_that_the_brain_cannot_read_fails_alone(rig: LiveRig) -> None:
    before = rig.pids()["brain"]
    plan = {"name": "p", "sha256": "no\0file"}
    with rig.client() as client:
        link = Connection(find_rig(rig.state).endpoints["commands"], role="client", name="other")
        try:
            link.connect()
            head = {"key": "unreadable", "kind": "plan", "name": "p", "plan": plan}
            batch = link.request(Verb.SUBMIT, {"batch": head, "tasks": []}).header["batch"]
        finally:
            link.close()
        row = rig.wait_batch(batch, client)
    assert row["state"] == "failed"
    assert "the brain cannot go on with it" in row["error"]
    assert rig.pids()["brain"] == before
