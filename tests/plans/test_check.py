"""Variables before a run: resolved, defaulted, refused; and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from rigbus.plans import Plan, check_plan, find_variables, parse_plan
from rigbus.plans.variables import substitute

BUILT_INS = {"PLAN_PATH": "/view", "BATCH_ID": "20260101_000000_abcdef", "BATCH_PATH": "/b"}


def plan_of(command: str, inputs: str = "", more: str = "") -> Plan:
    return parse_plan(
        f"## Inputs\n{inputs}\n\n## Tasks\n### a\n- **task_class**: cpu\n- **command**: `{command}`\n{more}\n",
        name="demo",
    )


def errors(plan: Plan, config: dict[str, Any] | None = None) -> list[str]:
    return [str(fault) for fault in check_plan(plan, config or {})[1] if fault.severity == "error"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{A} {ITEM} {ITEM.a.b}", ["A", "ITEM", "ITEM.a.b"]),
        ("${HOME} {a,b} {1..3} { X } {print $1} {}", []),
        ("{{A}} {{ITEM.x}}", []),
        ("x{A}{B}y", ["A", "B"]),
        ("docker -f '{{.State}}'", []),
        ("awk '{print}'", ["print"]),
    ],
)
def test_placeholders_are_told_from_other_braces(text, names):
    found = find_variables(text)
    assert [name for name, _ in found] == names
    assert all(text[at] == "{" for _, at in found)


def test_plain_texts_are_filled_and_unescaped():
    assert substitute("{A}{{A}} ${A} {{end}} {B} {print}", {"A": "1"}) == "1{A} ${A} {{end}} {B} {print}"


def test_built_ins_config_and_defaults_resolve():
    plan = plan_of(
        "echo {PLAN_PATH} {BATCH_ID} {BATCH_PATH} {LIMIT} {X} {OUT}",
        "- **LIMIT**: n (default: `160`)\n- **OUT**: d (default: `{PLAN_PATH}/out`)",
    )
    values, faults = check_plan(plan, {"X": [1, 2]}, BUILT_INS)
    assert faults == []
    assert (values["LIMIT"], values["X"], values["OUT"], values["BATCH_PATH"]) == (
        "160",
        [1, 2],
        "/view/out",
        "/b",
    )
    assert check_plan(plan, {"X": 1, "LIMIT": 3})[0]["LIMIT"] == 3


@pytest.mark.parametrize(
    ("line", "default"),
    [
        ("- **A**: text (default: `x y`)", "x y"),
        ("- **A**: text (optional, default: x)", "x"),
        ("- **A**: text, defaults to `x`.", "x"),
        ("- **A** — text [default=`x`] and `more`", "x"),
        ("- `A`: text (default: ``)", ""),
        ("- {A}: text (default: \"x\")", "x"),
        ("- **A**: text (default: none)", None),
        ("- **A**: the default is in the other file", None),
        ("- **A**: text\n  - default: `x`", "x"),
        ("- **A**: text\n  over lines (default: `x`)", "x"),
        ("- **A**: text (default x)", "x"),
        ("- **A**: text (default `x`)", "x"),
        ("- **A**: text (defaults to x, else y)", "x"),
        ("- **A**: text [default = 'x']", "x"),
        ("- **A**: text; default: x y.", "x y"),
        ("- **A**: text. Default: x", "x"),
        ("- **A**: default x", "x"),
        ("- **A**: text, default value is `x`", "x"),
        ("- **A**: (DEFAULT: x)", "x"),
        ("- **A** = x", "x"),
        ("- A = `x y`", "x y"),
        ("- A=x", "x"),
        ("- **A**: text (default: {BATCH_PATH}/x)", "{BATCH_PATH}/x"),
        ("- **A**: text (default: `` a`b ``)", "a`b"),
        ("- **A**: text (default: \"\")", ""),
        ("- **A**: text [x]", None),
        ("- **A**: text (optional)", None),
        ("- **A**: text, e.g. `x`", None),
        ("- **A**: by default all of them", None),
        ("- **A**: defaults to all of them", None),
        ("- **A**: which mode (the default)", None),
        ("- **A**: (default is the folder)", None),
        ("- **A**: (default: the folder)", "the folder"),
        ("- **A**: text (default: `x", None),
        ("- **A** = the number of files", None),
    ],
)  # fmt: skip
def test_every_form_of_a_default_is_read(line, default):
    assert plan_of("x", line).inputs["A"].default == default


def test_the_standard_form_of_a_default_is_no_part_of_the_text():
    assert plan_of("x", "- **A**: how many (default: `5`)").inputs["A"].text == "how many"
    assert plan_of("x", "- **A**: how many, default `5`").inputs["A"].text == "how many, default `5`"


def test_a_default_is_used_where_the_configuration_says_nothing():
    plan = plan_of("x {A}", "- **A**: n (default 5)")
    assert check_plan(plan, {})[0]["A"] == "5"
    assert check_plan(plan, {"A": 6})[0]["A"] == 6
    assert errors(plan) == []


def test_an_input_without_value_that_no_task_uses_is_said():
    faults = check_plan(plan_of("x", "- **QUERY**: what\n- **files**: mp4 files in the folder"), {})[1]
    assert [(str(one)[:48], one.severity) for one in faults] == [
        ("plan.md:2: the input QUERY has no value and no t", "warning")
    ]


def test_prose_in_inputs_is_no_input():
    assert plan_of("x", "- The files are listed here\n\nSome prose").inputs == {}


def test_an_unresolved_name_is_refused_with_line_and_flag():
    assert errors(plan_of("echo {MISSING}")) == [
        (
            "plan.md:7: task 'a' uses {MISSING}, which nothing sets; "
            "pass --set MISSING=… or put it into config.json, or write {{MISSING}} for the literal text"
        )
    ]
    assert errors(plan_of("echo {MISSING}"), {"MISSING": ""}) == []
    assert errors(plan_of("echo {BATCHPATH}"))[0].count("did you mean {BATCH_PATH}?") == 1


def test_a_declared_input_without_a_value_is_refused_in_any_case():
    assert "which has no value; pass --set query=…" in errors(plan_of("x {query}", "- **query**: q"))[0]


def test_the_braces_of_other_languages_pass():
    assert errors(plan_of("awk '{print}' {{MISSING}} ${HOME} {a,b} {end.x}")) == []


def test_a_near_miss_in_small_letters_is_a_warning():
    _, faults = check_plan(plan_of("x {limti}"), {"limit": 1})
    assert [(fault.severity, fault.fix) for fault in faults] == [("warning", "did you mean {limit}?")]


def test_every_text_of_a_task_is_looked_at():
    plan = plan_of("x", more="- **produces**: `{GONE}/x`\n- **foreach**: {GONE2}/x.json:items\n")
    assert [fault[:10] for fault in errors(plan)] == ["plan.md:8:", "plan.md:9:"]


def test_item_needs_a_foreach_and_is_no_source():
    assert "but has no foreach" in errors(plan_of("x {ITEM.id}"))[0]
    assert errors(plan_of("x {ITEM.id} {ITEM}", more="- **foreach**: /x.json:items")) == []
    assert "exists only in its tasks" in errors(plan_of("x", more="- **foreach**: /{ITEM.id}.json:items"))[0]


def test_only_items_have_fields():
    assert "only ITEM has fields" in errors(plan_of("x {CFG.a}"), {"CFG": {"a": 1}})[0]


def test_a_default_may_name_built_ins_only():
    assert (
        "the default of A names {B}"
        in errors(plan_of("{A}", "- **A**: t (default: `{B}`)\n- **B**: u (default: `1`)"))[0]
    )


def test_config_cannot_change_what_rigbus_sets():
    values, faults = check_plan(plan_of("x"), {"BATCH_ID": "../x", "a-b": 1}, BUILT_INS)
    assert values["BATCH_ID"] == BUILT_INS["BATCH_ID"]
    assert [fault.severity for fault in faults] == ["warning", "warning"]
    assert "ITEM" in errors(plan_of("x"), {"ITEM": 1})[0]


def test_the_earlier_control_keys_have_their_defaults():
    assert errors(plan_of("x {PRIORITY} {RUN_MODE} {PREEMPTIBLE}")) == []


def test_a_place_where_bash_would_parse_a_value_is_refused_with_its_line():
    text = "## Tasks\n### a\n- **task_class**: cpu\n- **command**:\n  ```bash\n  # {NOT_ME}\n  echo hi\n  echo `x {X}`\n  ```\n"
    found = errors(parse_plan(text, name="demo"), {"X": 1})
    assert len(found) == 1
    assert found[0].startswith(
        "plan.md:8: task 'a': {X}: a placeholder inside backticks; write $(command {X})"
    )


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_item_as_program_text_is_refused_and_a_config_value_only_said(batch_size):
    def plan(name: str) -> Plan:
        return plan_of(f"bash -c 'x {name}'", more=f"- **foreach**: /x:\n- **batch_size**: {batch_size}")

    assert "plan.md:7: task 'a': {ITEM.id}: bash would parse the value" in errors(plan("{ITEM.id}"))[0]
    _, faults = check_plan(plan("{X}"), {"X": 1})
    assert [(fault.severity, fault.line) for fault in faults] == [("warning", 7)]
    assert faults[0].fix.startswith("pass the value as an argument")


def test_an_item_may_not_choose_the_program():
    plan = parse_plan('## Tasks\n### a\n- **argv**: ["{ITEM}"]\n- **foreach**: /x:\n', name="demo")
    assert errors(plan)[0].startswith("plan.md:3: task 'a': {ITEM}")
