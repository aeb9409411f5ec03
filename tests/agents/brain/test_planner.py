"""A plan and its values become task specs: keys, edges, commands whose values travel as environment."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from rigbus.agents.brain import children, core, messages, planner
from rigbus.agents.brain.asking import model_faults
from rigbus.agents.brain.placing import Entry
from rigbus.bus.core.model import task_id
from rigbus.bus.wire import MAX_FRAME_BYTES, MAX_META_BYTES, pack, unpack
from rigbus.plans import parse_plan
from rigbus.plans.items import Counterparts

HEAD = "# Plan: p\n\n## Inputs\n- **N**: how many (default: `3`)\n\n## Tasks\n"


def run_of(**more: Any) -> messages.Run:
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
    return messages.Run(**{**base, **more})


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


def children_of(
    tasks: str, items: list[Any], template: str = "each", before: Any = None
) -> children.Children:
    return children.Children(parse_plan(HEAD + tasks, name="p"), run_of(), template, items, before)


def expanded(tasks: str, items: list[Any], **more: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    made = list(children_of(tasks, items, **more))
    return [spec for spec, _, _ in made], [payload for _, payload, _ in made]


EACH = "### each\n- foreach: m.json:items\n- command: `echo {ITEM.id}`\n"


def test_a_list_by_its_name_is_in_the_folder_of_the_batch() -> None:
    _, payloads = declared(EACH)
    assert payloads["each:expand"]["source"] == "/share/plans/p/batches/b/m.json"
    _, payloads = declared(EACH.replace("m.json", "{PLAN_PATH}/data/m.json"))
    assert payloads["each:expand"]["source"] == "/state/views/b/data/m.json"


def test_children_feed_their_join_and_have_names_of_their_items() -> None:
    specs, payloads = expanded(EACH, [{"id": "one"}, {"id": "a b; rm -rf x"}])
    assert specs[0]["key"] == "each_one"
    assert all(s["feeds"] == [["each", "success"]] for s in specs)
    assert specs[1]["key"].startswith("each_a-b-rm-rf-x_")
    assert payloads[1]["env"] == {"RIGBUS_V_ITEM_id": "a b; rm -rf x"}
    assert [s["meta"]["item_id"] for s in specs] == ["one", "a b; rm -rf x"]


def test_the_same_list_makes_the_same_keys_and_payloads() -> None:
    items = [{"id": n} for n in range(1200)]
    assert expanded(EACH, items) == expanded(EACH, items)


def messages_of(made: Any, most: int = 500) -> list[messages.Message]:
    source, messages, more = iter(made), [], True
    while more:
        message, more = children.next_message(source, most)
        messages.append(message)
    return messages


def test_no_message_is_larger_than_the_broker_takes_well() -> None:
    made = messages_of(children_of(EACH, [{"id": n} for n in range(1200)]))
    assert [len(m.specs) for m in made] == [500, 500, 200]


def test_no_header_is_larger_than_a_frame_however_long_the_command_and_the_ids() -> None:
    long = EACH.replace("echo {ITEM.id}", "echo {ITEM.id} " + "é" * 30_000)
    plan = parse_plan(HEAD + long + "- batch_size: 3\n", name="p")
    items = [{"id": f"{n:06d}" + "日" * 3_000} for n in range(600)]
    for message in messages_of(children.Children(plan, run_of(), "each", items)):
        assert message.specs
        assert len(pack(message.specs)) < MAX_FRAME_BYTES - 4096
        assert all(len(pack(s["meta"])) < MAX_META_BYTES for s in message.specs)


def test_many_tasks_with_long_commands_go_in_several_messages() -> None:
    tasks = "".join(f"### t{n}\n- command: `true {'x' * 2400}`\n" for n in range(400))
    plan = parse_plan(HEAD + tasks, name="p")
    made = planner.declare(plan, run_of())
    assert sum(len(m.specs) for m in made) == 400
    assert all(len(pack(m.specs)) < MAX_FRAME_BYTES - 4096 for m in made)


def test_an_empty_list_is_one_empty_message() -> None:
    assert [m.specs for m in messages_of(children_of(EACH, []))] == [[]]


@pytest.mark.parametrize("form", ["command: `echo {ITEM.id}`", 'argv: ["echo", "{ITEM.id}"]'])
def test_a_batch_runs_its_items_one_after_the_other_and_stops_at_the_first_failure(form: str) -> None:
    batched = EACH.replace("command: `echo {ITEM.id}`", form) + "- batch_size: 2\n"
    specs, payloads = expanded(batched, [{"id": "a b"}, {"id": "$(x)"}, {"id": 2}])
    assert [s["key"] for s in specs] == ["each_batch_0001_0002", "each_batch_0003_0003"]
    assert [s["meta"]["item_ids"] for s in specs] == [["a b", "$(x)"], ["2"]]
    assert payloads[0]["command"].splitlines()[0] == "set -e"
    out = subprocess.run(
        ["bash", "-c", payloads[0]["command"]],
        env=payloads[0]["env"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "a b\n$(x)\n"


def test_a_handler_takes_one_item_at_a_time_whatever_the_batch_size() -> None:
    tasks = "### each\n- foreach: m.json:items\n- type: shout\n- prompt: say {ITEM}\n- batch_size: 8\n"
    specs, payloads = expanded(tasks, ["a", "b"])
    assert [s["key"] for s in specs] == ["each_0", "each_1"]
    assert [p["prompt"] for p in payloads] == ["say a", "say b"]


def test_what_a_model_writes_is_in_the_folder_of_the_batch_and_its_schema_with_the_plan() -> None:
    tasks = (
        "### each\n- foreach: m.json:items\n- type: generate\n- prompt: say {ITEM}\n- output: out/{ITEM}.txt\n"
        "- json_schema: word.json\n"
    )
    _, payloads = expanded(tasks, ["a", "b"])
    assert [p["output"] for p in payloads] == [f"/share/plans/p/batches/b/out/{x}.txt" for x in "ab"]
    assert payloads[0]["json_schema"] == "/state/staged/0/word.json"
    _, payloads = declared('### a\n- prompt: x\n- output: {BATCH_PATH}/a.txt\n- json_schema: {"enum": [1]}\n')
    assert payloads["a"]["output"] == "/share/plans/p/batches/b/a.txt"
    assert payloads["a"]["json_schema"] == {"enum": [1]}


@pytest.mark.parametrize(
    ("items", "says"),
    [([{"id": 1}, {"id": 1}], "twice"), ([{"name": "x"}], "no id"), ([{"id": "a\0b"}], "NUL")],
)
def test_a_bad_list_fails_with_the_plans_line(items: list[Any], says: str) -> None:
    with pytest.raises(messages.Unplannable, match=says) as e:
        expanded(EACH, items)
    assert "plan.md:" in str(e.value)


def test_an_expand_task_has_the_plans_attempts_and_the_fields_that_the_template_asks_for() -> None:
    settings = "# Plan: p\n## Settings\n- on_failure: abort\n- max_attempts: 5\n## Tasks\n"
    tasks = (
        EACH.replace("{ITEM.id}", "{ITEM.path} # {ITEM.no}")
        + "- timeout_s: 7\n- requires: a\n- produces: b\n"
    )
    specs, payloads = declared(tasks, head=settings)
    assert specs["each:expand"]["policy"] == {"task": 5}
    assert specs["each:expand"]["timeout_s"] == planner.EXPAND_TIMEOUT_S
    assert specs["each:expand"]["meta"]["on_failure"] == specs["each"]["meta"]["on_failure"] == "abort"
    assert payloads["each:expand"]["fields"] == ["path"]
    (child,), _ = expanded(tasks, [{"path": "x"}])
    assert child["timeout_s"] == 7


NEXT = "### next\n- foreach: n.json:items\n- command: `echo {ITEM.id}`\n- depends_on: init, each_{ITEM.id}\n"
INIT = "### init\n- command: `true`\n"


def test_plain_dependencies_gate_the_list_and_item_dependencies_its_tasks() -> None:
    specs, payloads = declared(INIT + EACH + NEXT)
    assert specs["next:expand"]["after"] == ["init"]
    assert specs["next"]["after"] == ["next:expand", "each:expand"]
    assert specs["next"]["meta"]["depends_on"] == ["init", "each_{ITEM.id}"]
    assert payloads["next:expand"]["fields"] == ["id"]


@pytest.mark.parametrize(("policy", "on"), [("", "success"), ("- on_failure: continue\n", "end")])
def test_the_task_of_an_item_waits_for_that_items_task_only(policy: str, on: str) -> None:
    before = {"each": Counterparts("each", [{"id": "b"}, {"id": "a"}])}
    specs, _ = expanded(
        INIT + EACH + policy + NEXT, [{"id": "a"}, {"id": "b"}], template="next", before=before
    )
    assert [s["after"] for s in specs] == [[["each_a", on]], [["each_b", on]]]
    specs, _ = expanded(
        INIT + EACH + policy + NEXT + "- batch_size: 2\n",
        [{"id": "a"}, {"id": "b"}],
        template="next",
        before=before,
    )
    assert [s["after"] for s in specs] == [[["each_a", on], ["each_b", on]]]


def test_an_item_without_a_counterpart_is_named_with_its_template_and_line() -> None:
    with pytest.raises(
        messages.Unplannable, match=r"plan\.md:\d+: the list of 'next': element 0 \('x'\) has no counter"
    ):
        expanded(
            INIT + EACH + NEXT,
            [{"id": "x"}],
            template="next",
            before={"each": Counterparts("each", [{"id": "a"}])},
        )


@pytest.mark.parametrize(
    ("fields", "vram_mb", "source"),
    [
        ("- **task_class**: script", 1024, None),
        ("- **task_class**: script\n- **vram_policy**: infer", 1024, None),
        ("- **task_class**: script\n- **vram_policy**: fixed", 1024, None),
        ("- **task_class**: script\n- **vram_estimate_mb**: 2_048", 2048, "plan:explicit"),
        (
            "- **task_class**: script\n- **vram_estimate_mb**: 300\n- **vram_policy**: infer",
            300,
            "plan:explicit",
        ),
        ("- **task_class**: cpu", None, None),
        ("- **task_class**: cpu\n- **vram_estimate_mb**: 2048", None, None),
        ("- **executor**: brain", None, None),
    ],
)
def test_a_script_says_what_memory_of_a_card_it_needs(
    fields: str, vram_mb: int | None, source: str | None
) -> None:
    specs, _ = declared(f"### a\n- **command**: `x`\n{fields}\n")
    assert specs["a"].get("vram_mb") == vram_mb
    assert specs["a"]["meta"].get("vram_estimate_source") == source


def test_every_item_of_a_list_needs_the_memory_of_its_template_and_the_list_none() -> None:
    template = f"{EACH}- task_class: script\n- vram_estimate_mb: 2048\n"
    specs, _ = declared(template)
    assert [specs[key].get("vram_mb") for key in ("each:expand", "each")] == [None, None]
    items, _ = expanded(template, [{"id": "p"}, {"id": "q"}])
    assert [spec["vram_mb"] for spec in items] == [2048, 2048]


def test_a_handlers_task_needs_memory_only_where_the_plan_says_script() -> None:
    specs, _ = declared("### a\n- **type**: shout\n### b\n- **type**: shout\n- **task_class**: script\n")
    assert (specs["a"].get("vram_mb"), specs["b"].get("vram_mb")) == (None, 1024)


def test_a_missing_value_is_named() -> None:
    plan = parse_plan("# Plan: p\n## Tasks\n### a\n- command: `echo {MISSING}`\n", name="p")
    with pytest.raises(messages.Unplannable, match="MISSING"):
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
        ("task.expand.expired", [core.CheckAbort("b", "t", "k", "expired"), core.Unblock("b", "k")]),
        ("task.expand.skipped", [core.Unblock("b", "k")]),
        ("task.join.cancelled", [core.Unblock("b", "k")]),
        ("batch.plan.reopened", [core.LookAgain("b")]),
        ("task.shell.skipped", []),
        ("task.my.done.done", []),
    ],
)
def test_an_event_gives_what_it_asks_for(topic: str, work: list[core.Work]) -> None:
    assert core.work_of_event(topic, "t", "b", {"key": "k"}) == work


def test_a_join_is_found_by_its_key() -> None:
    assert task_id("b", core.template_of("each:expand")) == task_id("b", "each")


@pytest.mark.parametrize("kind", ["load_llm", "unload_llm"])
def test_a_task_for_a_models_place_names_its_model_and_is_of_class_meta(kind: str) -> None:
    head = "# Plan: p\n\n## Inputs\n- **M**: which (default: `small`)\n\n## Tasks\n"
    specs, _ = declared(f"### warm\n- type: {kind}\n- llm_model: {{M}}\n", head)
    assert specs["warm"]["class"] == "meta"
    assert specs["warm"]["meta"]["model"] == "small"
    assert "needs" not in specs["warm"], "nobody runs it"
    specs, _ = declared("### warm\n- type: load_llm\n")
    assert specs["warm"]["meta"]["model"] == "", "the default one is meant"


MODELS = {
    "small": Entry("small", {"also": ["qwen-7b"]}),
    "large": Entry("large", {}, tier=2, placement="split_gpu"),
}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            "- llm_model: smal\n",
            "plan.md:5: task 'a': llm_model 'smal' is not configured; did you mean 'small'?",
        ),
        (
            "- llm_min_tier: 3\n",
            "plan.md:5: task 'a': no model is of tier 3 or more (llm_min_tier); there are: small",
        ),
        ("- llm_model: small\n- llm_min_tier: 2\n", "the model small is of tier 1"),
        ("- llm_model: qwen-7b\n", ""),
        ("- llm_min_tier: 2\n- llm_placement: split_gpu\n", ""),
        ("- executor: brain\n", ""),
        ("", ""),
    ],
)
def test_a_model_that_the_catalogue_does_not_have_is_a_fault_of_the_plan(fields: str, says: str) -> None:
    plan = parse_plan("# Plan: p\n## Tasks\n### a\n- prompt: x\n" + fields + "- type: generate\n", name="p")
    assert model_faults(plan, {}, {}) == [], "without a catalogue any model may come"
    found = model_faults(plan, {}, MODELS)
    assert len(found) == bool(says)
    assert all(says in f"{where}: {what}" for where, what, _ in found)


def test_a_load_of_a_model_that_there_is_not_is_one_too() -> None:
    plan = parse_plan("# Plan: p\n## Tasks\n### a\n- type: load_llm\n- llm_model: zzz\n", name="p")
    ((where, what, _),) = model_faults(plan, {}, MODELS)
    assert where == "plan.md:5" and "'zzz' is not configured" in what
