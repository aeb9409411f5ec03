"""A plan and its values become task specs: keys, edges, commands whose values travel as environment."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from rigbus.agents.brain import core, planner
from rigbus.bus.model import task_id
from rigbus.bus.wire import unpack
from rigbus.plans import parse_plan

HEAD = "# Plan: p\n\n## Inputs\n- **N**: how many (default: `3`)\n\n## Tasks\n"


def run_of(**more: Any) -> planner.Run:
    base: dict[str, Any] = {
        "batch": "20260101_000000_abcdef",
        "name": "p",
        "state_id": "s" * 32,
        "sha256": "0" * 64,
        "staged": "/state/staged/0",
        "original": "/share/plans/p",
        "view": "/state/views/b",
        "batch_path": "/share/plans/p/batches/b",
        "config": {},
    }
    return planner.Run(**{**base, **more})


def declared(tasks: str, head: str = HEAD, **run: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    plan = parse_plan(head + tasks, name="p")
    specs: dict[str, dict[str, Any]] = {}
    payloads: dict[str, Any] = {}
    for message in planner.declare(plan, run_of(**run)):
        for spec, payload in zip(message.specs, message.payloads, strict=True):
            specs[spec["key"]] = spec
            payloads[spec["key"]] = unpack(payload)
    return specs, payloads


def test_dependencies_are_declared_before_their_dependents() -> None:
    specs, _ = declared("### b\n- command: `true`\n- depends_on: a\n### a\n- command: `true`\n")
    assert list(specs) == ["a", "b"]
    assert specs["b"]["after"] == ["a"]


def test_a_value_reaches_the_command_as_environment() -> None:
    _, payloads = declared(
        '### a\n- command: `echo {N} "{BATCH_PATH}"`\n', config={"N": "$(touch /tmp/evil); x"}
    )
    made = payloads["a"]
    assert "touch" not in made["command"]
    out = subprocess.run(
        ["bash", "-c", made["command"]], env=made["env"], capture_output=True, text=True, check=True
    )
    assert out.stdout == "$(touch /tmp/evil); x /share/plans/p/batches/b\n"


def test_an_argv_gets_its_values_as_words() -> None:
    _, payloads = declared(
        '### a\n- argv: ["echo", "{N}", "{PLAN_PATH}/x.py"]\n', config={"N": "a b; rm -rf x"}
    )
    assert payloads["a"]["argv"] == ["echo", "a b; rm -rf x", "/state/views/b/x.py"]


def test_a_foreach_is_an_expand_task_and_a_held_join() -> None:
    specs, payloads = declared(
        "### scan\n- command: `true`\n"
        "### each\n- foreach: {BATCH_PATH}/m.json:items\n- command: `echo {ITEM.id}`\n- depends_on: scan\n"
        "### end\n- command: `true`\n- depends_on: each\n"
    )
    assert specs["each:expand"]["type"] == "expand"
    assert specs["each:expand"]["after"] == ["scan"]
    assert specs["each"]["join"]
    assert specs["each"]["hold"]
    assert specs["each"]["after"] == ["each:expand"]
    assert specs["end"]["after"] == ["each"]
    assert payloads["each:expand"]["source"] == "/share/plans/p/batches/b/m.json"


def expanded(tasks: str, items: list[Any], template: str = "each") -> tuple[list[dict[str, Any]], list[Any]]:
    plan = parse_plan(HEAD + tasks, name="p")
    specs, payloads = [], []
    for message in planner.expand(plan, run_of(), template, items):
        specs += message.specs
        payloads += [unpack(p) for p in message.payloads]
    return specs, payloads


EACH = "### each\n- foreach: m.json:items\n- command: `echo {ITEM.id}`\n"


def test_children_feed_their_join_and_have_names_of_their_items() -> None:
    specs, payloads = expanded(EACH, [{"id": "one"}, {"id": "a b; rm -rf x"}])
    assert specs[0]["key"] == "each_one"
    assert all(s["feeds"] == [["each", "success"]] for s in specs)
    assert specs[1]["key"].startswith("each_a-b-rm-rf-x_")
    assert payloads[1]["env"] == {"RIGBUS_V_ITEM_id": "a b; rm -rf x"}


def test_the_same_list_makes_the_same_keys_and_payloads() -> None:
    items = [{"id": n} for n in range(1200)]
    assert expanded(EACH, items) == expanded(EACH, items)


def test_no_chunk_is_larger_than_the_broker_takes_well() -> None:
    plan = parse_plan(HEAD + EACH, name="p")
    sizes = [len(m.specs) for m in planner.expand(plan, run_of(), "each", [{"id": n} for n in range(1200)])]
    assert sizes == [500, 500, 200]


def test_an_empty_list_is_one_empty_message() -> None:
    plan = parse_plan(HEAD + EACH, name="p")
    assert [m.specs for m in planner.expand(plan, run_of(), "each", [])] == [[]]


def test_a_batch_runs_its_items_one_after_the_other() -> None:
    specs, payloads = expanded(EACH + "- batch_size: 2\n", [{"id": n} for n in range(3)])
    assert [s["key"] for s in specs] == ["each_batch_0001_0002", "each_batch_0003_0003"]
    out = subprocess.run(
        ["bash", "-c", payloads[0]["command"]],
        env=payloads[0]["env"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "0\n1\n"


@pytest.mark.parametrize(
    ("items", "says"),
    [([{"id": 1}, {"id": 1}], "twice"), ([{"name": "x"}], "no id"), ([{"id": "a\0b"}], "NUL")],
)
def test_a_bad_list_fails_with_the_plans_line(items: list[Any], says: str) -> None:
    with pytest.raises(planner.Unplannable, match=says) as e:
        expanded(EACH, items)
    assert "plan.md:" in str(e.value)


def test_a_missing_value_is_named() -> None:
    plan = parse_plan("# Plan: p\n## Tasks\n### a\n- command: `echo {MISSING}`\n", name="p")
    with pytest.raises(planner.Unplannable, match="MISSING"):
        planner.declare(plan, run_of())


def test_failure_policies_become_edges_and_marks() -> None:
    settings = "# Plan: p\n## Settings\n- on_failure: abort\n## Tasks\n"
    tasks = "### a\n- command: `true`\n- on_failure: continue\n### b\n- command: `true`\n- depends_on: a\n"
    specs, _ = declared(tasks, head=settings)
    assert specs["b"]["after"] == [["a", "end"]]
    assert specs["a"]["meta"].get("on_failure") == "continue"
    assert specs["b"]["meta"]["on_failure"] == "abort"


# -- what is due -------------------------------------------------------------------------------------------------


def _row(**more: Any) -> dict[str, Any]:
    return {
        "id": "t",
        "batch": "b",
        "key": "k",
        "type": "shell",
        "state": "ready",
        "join": False,
        "hold": False,
        **more,
    }


def test_a_snapshot_gives_all_that_is_due_and_nothing_else() -> None:
    rows = [
        _row(id="e1", key="each:expand", type="expand", state="done"),
        _row(id="j1", key="each", type="join", join=True, hold=True, state="waiting"),
        _row(id="e2", key="other:expand", type="expand", state="done"),  # its join was released
        _row(id="r", state="review"),
        _row(id="d", state="dead"),
        _row(id="x", state="skipped"),
    ]
    work = core.work_of_snapshot([{"id": "b", "closed": True}, {"id": "c", "closed": False}], rows)
    assert work == [
        core.PlanBatch("c"),
        core.ExpandTemplate("b", "e1", "each:expand"),
        core.Judge("b", "r", "review"),
        core.CheckAbort("b", "d", "k", "dead"),
    ]


@pytest.mark.parametrize(
    ("topic", "work"),
    [
        ("batch.plan.planning", [core.PlanBatch("b")]),
        ("batch.plan.running", []),
        ("task.expand.done", [core.ExpandTemplate("b", "t", "k")]),
        ("task.shell.review", [core.Judge("b", "t", "review")]),
        ("task.shell.dead", [core.CheckAbort("b", "t", "k", "dead")]),
        ("task.expand.expired", [core.CheckAbort("b", "t", "k", "expired")]),
        ("task.shell.skipped", []),
        ("task.my.done.done", []),
    ],
)
def test_an_event_gives_what_it_asks_for(topic: str, work: list[core.Work]) -> None:
    assert core.work_of_event(topic, "t", "b", {"key": "k"}) == work


def test_a_join_is_found_by_its_key() -> None:
    assert task_id("b", core.template_of("each:expand")) == task_id("b", "each")
