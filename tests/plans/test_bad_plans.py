"""Bad input: what people and programs write by mistake is a plan or a refusal with lines, soon, never a crash."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigbus.plans import Plan, PlanFault, PlanInvalid, check_plan, parse_plan, same_plan, write_plan
from rigbus.plans.blocks import _blocks, _tokens, read_blocks, split_lines

HEAD = "# Plan: demo\n\n## Tasks\n\n"
RUN = "- **command**: `x`\n- **task_class**: cpu\n"
EXAMPLES = sorted((Path(__file__).parents[2] / "plans" / "examples").glob("*/plan.md"))


def read(text: str | bytes) -> Plan:
    return parse_plan(text, name="demo")


def outcome(text: str | bytes) -> tuple[Plan | None, list[PlanFault]]:
    """The plan, or its faults; anything else is raised."""
    try:
        plan = read(text)
    except PlanInvalid as error:
        if not error.errors:
            pytest.fail("a refusal without an error")
        return None, error.faults
    return plan, [*plan.warnings, *check_plan(plan, {"SOURCE": "x"})[1]]


def errors_of(text: str | bytes) -> list[PlanFault]:
    with pytest.raises(PlanInvalid) as caught:
        read(text)
    return caught.value.errors


# --- faults and their places ------------------------------------------------------------------------------


def fault(line: str, mark: str = "", column: int = 0) -> PlanFault:
    from rigbus.plans.errors import FaultList

    found = FaultList("plan.md", [line])
    found.error(1, "what", "fix", mark=mark, column=column)
    return found.faults[0]


@pytest.mark.parametrize(
    ("line", "mark", "column", "excerpt"),
    [
        (
            "    - **depends_on**: a, bb",
            "bb",
            26,
            ["    - **depends_on**: a, bb", "                         ^~"],
        ),
        ("- **depends_on**: on, o", "on", 19, ["    - **depends_on**: on, o", "                      ^~"]),
        ("- **a**: bbb, bb", "bb", 15, ["    - **a**: bbb, bb", "                  ^~"]),
        ("\t- x:\ta", "a", 7, ["    - x:    a", "            ^"]),
        ("- 日本: 中文 x", "x", 10, ["    - 日本: 中文 x", "                 ^"]),
        ("- 日本: 中文 x", "中文", 7, ["    - 日本: 中文 x", "            ^~~~"]),
        ("- e\u0301: x", "x", 7, ["    - e\u0301: x", "         ^"]),
        ("- a: \x1b[31mx", "x", 11, ["    - a: ·[31mx", "              ^"]),
        ("- {{X}} {X}", "{X}", 9, ["    - {{X}} {X}", "            ^~~"]),
        ("- a", "gone", 0, ["    - a"]),
        ("", "", 0, []),
    ],
)
def test_an_excerpt_points_at_the_place(line, mark, column, excerpt):
    found = fault(line, mark)
    assert (found.column, found.excerpt()) == (column, excerpt)


def test_an_excerpt_of_a_long_line_shows_the_part_around_the_place():
    found = fault("- a: " + "y" * 5000 + " here " + "z" * 5000, "here")
    source, caret = found.excerpt(60)
    assert (found.column, len(found.source_line), len(source)) == (5007, 200, 4 + 60 + 2)
    assert source[caret.index("^") :].startswith("here ")
    assert caret.count("~") == 3


@given(st.text(max_size=300), st.integers(0, 300), st.integers(8, 120))
@settings(max_examples=100, deadline=None)
def test_an_excerpt_of_any_line_is_at_most_two_printable_lines(line, column, cells):
    shown = fault(line.replace("\n", ""), "abc", column).excerpt(cells)
    assert len(shown) <= 2
    assert not any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for text in shown for sign in text)


def test_a_fault_as_json_has_the_names_of_the_contract():
    assert fault("- a: b", "b").as_dict() == {
        "file": "plan.md", "line": 1, "column": 6, "severity": "error", "what": "what", "fix": "fix",
        "source_line": "- a: b",
    }  # fmt: skip


# --- near misses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["comand", "commnd", "Commando", "Run command", "cmmand"])
def test_a_near_miss_of_command_is_named(name):
    found = errors_of(f"{HEAD}### a\n- **task_class**: cpu\n- **{name}**: `x`\n")
    assert [str(one) for one in found] == [
        f"plan.md:7: task 'a' has no command, but a field {name!r}; write `- **command**: …`"
    ]
    assert found[0].column == 5


def test_a_dependency_in_a_list_below_points_at_its_own_line():
    found = errors_of(f"{HEAD}### scan\n{RUN}### b\n{RUN}- **depends_on**:\n  - scan\n  - scann\n")
    assert [(one.line, one.column, one.fix) for one in found] == [(13, 5, "did you mean 'scan'?")]


def test_a_value_points_at_itself():
    found = errors_of(f"{HEAD}### a\n{RUN}- **timeout_s**: 3 weeks\n- **batch_size**: `no`\n")
    assert [(one.line, one.column, one.width) for one in found] == [(8, 18, 7), (9, 19, 4)]


def test_a_placeholder_in_a_fence_points_at_its_line_and_column():
    plan = read(
        f"{HEAD}### a\n- **task_class**: cpu\n- **command**:\n  ```\n  echo 1\n    echo {{{{X}}}} {{X}}\n  ```\n"
    )
    found = check_plan(plan, {})[1][0]
    assert (found.line, found.column, found.width) == (10, 16, 3)


# --- settings and front matter ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words", "place"),
    [
        ("---\ntimeout: 5\n---\n{}", "warning plan.md:2: unknown setting 'timeout', not read; did you mean timeout_s?", 1),
        ("---\npriority: hgih\n---\n{}", "error plan.md:2: priority is 'hgih'; did you mean high?", 11),
        ("---\npriority: high\n\n{}", "warning plan.md:2: the setting 'priority' is not read: this is no front matter", 1),
        ("---\npriority: high\nSome prose.\n---\n{}", "plan.md:2: the setting 'priority' is not read", 1),
        ("## Settings\n- max_atempts: 3\n\n{}", "warning plan.md:2: unknown setting 'max_atempts', not read; did you", 3),
        ("## Settings\n- colour: 3\n\n{}", "warning plan.md:2: unknown setting 'colour', not read; known: max_", 3),
        ("## Settings\n- **max_attempts**: 0\n\n{}", "error plan.md:2: max_attempts is '0', not a whole", 21),
        ("---\npriority: low\n---\n## Settings\n- priority: high\n\n{}", "priority stands twice (first in line 2)", 3),
    ],
)  # fmt: skip
def test_a_bad_setting_is_said_with_its_place(text, words, place):
    found = outcome(text.format(f"## Tasks\n### a\n{RUN}"))[1]
    assert words in "\n".join(f"{one.severity} {one}" for one in found)
    assert found[0].column == place


# --- headings ---------------------------------------------------------------------------------------------


def test_underlined_headings_are_sections():
    plan = read(
        "Plan: videos\n====\n\nGoal\n----\nCount.\n\nOther things\n---\n- **command**: `no`\n\n"
        f"Tasks\n-----\n\n### a\n{RUN}\n\nMore\n----\n- **command**: `no`\n"
    )
    assert (plan.title, plan.goal) == ("videos", "Count.")
    assert [(task.id, task.command) for task in plan.tasks] == [("a", "x")]


def test_a_rule_below_prose_ends_no_section():
    plan = read(f"{HEAD}### a\n{RUN}\nSome prose\n---\n### b\n{RUN}")
    assert [task.id for task in plan.tasks] == ["a", "b"]


def test_an_underlined_line_in_a_fence_is_text():
    plan = read(
        f"{HEAD}### a\n- **task_class**: cpu\n- **command**:\n  ```\n  cat <<E\n  Tasks\n  -----\n  E\n  ```\n### b\n{RUN}"
    )
    assert plan.tasks[0].command == "cat <<E\nTasks\n-----\nE"


@pytest.mark.parametrize("name", ["1.5b", "2.0", "3", "1.", "10-b.c"])
def test_a_numeric_id_stays_whole(name):
    assert read(f"{HEAD}### {name}\n{RUN}").tasks[0].id == name


# --- bytes, forms and sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_ids_are_plain_so_that_no_two_forms_of_one_name_can_meet(form):
    name = unicodedata.normalize(form, "café")
    found = errors_of(f"{HEAD}### {name}\n{RUN}### b\n{RUN}- **depends_on**: {name}\n")
    assert "is no task id" in found[0].what
    assert "rename it, for example to 'caf" in found[0].fix


def test_text_in_either_form_stays_as_it_was_written():
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "echo é")
        assert read(f"{HEAD}### a\n- **task_class**: cpu\n- **command**: `{text}`\n").tasks[0].command == text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (HEAD.encode() + b"### a\0\n", "plan.md:5: the plan is binary: it holds a NUL byte"),
        (HEAD.encode() + b"### \xe9\n", "plan.md:5: byte 28 is not UTF-8"),
        ((HEAD + "x").encode("utf-16"), "save it as UTF-8"),
        ((HEAD + "x").encode("utf-32"), "NUL byte"),
        (b"\xef\xbb\xbf", "the plan is empty"),
        (b"PK\x03\x04\xff", "is not UTF-8"),
        (b"%PDF-1.7\n", "the plan has no tasks"),
        (b'{"tasks": []}', "the plan has no tasks"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_text_is_refused_with_words(raw, words):
    assert words in str(errors_of(raw)[0])


@pytest.mark.parametrize(
    "change",
    [str, lambda t: t.replace("\n", "\r\n"), lambda t: t.replace("\n", "\r"), lambda t: "\ufeff" + t],
)
def test_the_line_numbers_are_those_of_the_file(change):
    found = errors_of(change(f"{HEAD}### a\n{RUN}- **batch_size**: x\n"))
    assert [(one.line, one.column) for one in found] == [(8, 19)]


def test_tabs_count_one_column():
    found = errors_of(f"{HEAD}### a\n{RUN}\t-\t**batch_size**:\tx\n")
    assert (found[0].line, found[0].column) == (8, 20)


def test_a_long_cycle_is_shown_whole_and_a_very_long_one_from_both_ends():
    def ring(count: int) -> str:
        tasks = (f"### t{n}\n{RUN}- **depends_on**: t{(n + 1) % count}\n" for n in range(count))
        return errors_of(HEAD + "".join(tasks))[0].what

    assert ring(30).endswith("t28 → t29 → t0")
    assert ring(30).count("→") == 30
    assert "t19 → … 961 more … → " in ring(1000)


def big(tasks: int) -> str:
    return HEAD + "".join(
        f"### t{n}\n- **executor**: worker\n{RUN}- **depends_on**: {f't{n - 1}' if n else 'none'}\n\n"
        for n in range(tasks)
    )


def test_a_plan_of_twelve_thousand_lines_is_read_soon():
    started = time.process_time()
    plan = read(big(2000))
    assert len(plan.tasks) == 2000
    assert time.process_time() - started < 1.5, "0.15 s where it was measured"


def test_a_workflow_of_thousands_of_steps_keeps_them_all():
    scripts = "".join(f"### s{n}.py\n- **Run command**: `x {n}`\n" for n in range(3000))
    plan = read(f"## Available Scripts\n{scripts}## Workflow\n" + "".join(f"1. s{n}\n" for n in range(3000)))
    assert len(plan.tasks) == 3000
    assert plan.warnings[-1].what == "2900 more faults are not shown"


RUBBISH = {
    "bullets": "- x\n" * 59_000,
    "more lines than a plan may have": "- x\n" * 260_000,
    "headings": "### a\n" * 59_000,
    "quotes": "> - x\n" * 20_000,
    "links": "[a]: b\n" * 40_000,
    "one line": "x" * 1_000_000,
    "nested bullets in one line": "- " * 500_000,
    "nested quotes": ">" * 1_000_000,
    "deep lists": "".join(" " * (2 * n) + "- x\n" for n in range(700)),
    "brackets": "[" * 1_000_000,
    "backticks": "`" * 1_000_000,
    "fences": "```\n" * 59_000,
    "fences over headings": "```\n### a\n" * 10_000,
    "html over headings": "<div>\n### a\n" * 10_000,
    "unknown fields": "### a\n" + "".join(f"- com{n}: x\n" for n in range(30_000)),
    "a megabyte of defaults": "## Inputs\n- **A**: " + "(default: " * 90_000 + f"\n{HEAD}### a\n{RUN}",
    "blanks before a bracket": f"### a\n{RUN}- **pool**: x" + " " * 900_000 + "(",
    "a cycle of thousands": "".join(
        f"### t{n}\n{RUN}- **depends_on**: t{(n + 1) % 9000}\n" for n in range(9000)
    ),
    "dependencies": f"### a\n{RUN}- **depends_on**: " + "".join(f"b{n}," for n in range(120_000)),
    "a megabyte of arrows": "## Available Scripts\n### a.py\n- **Run command**: `x`\n## Workflow\n"
    + "a -> b " * 140_000,
}


@pytest.mark.parametrize("text", RUBBISH.values(), ids=RUBBISH)
def test_a_megabyte_of_rubbish_is_read_soon_and_refused_briefly(text):
    started = time.process_time()
    _, faults = outcome((HEAD + text)[: 1024 * 1024])
    assert len(faults) <= 210
    assert sum(len(str(one)) for one in faults) < 100_000
    assert time.process_time() - started < 4, "at most 1 s where it was measured"


# --- whatever the text ------------------------------------------------------------------------------------

PIECES = [
    "# Plan: x", "## Tasks", "## Inputs", "## Settings", "## Goal", "## Workflow", "## Available Scripts", "## Notes",
    "### a", "### b.py", "#### c", "Tasks", "-----", "=====", "---", "```", "~~~", "  ```", "<!--", "-->", "<div>", "",
    "", "- **command**: `x {Y}`", "- command: y", "**command**: z", "- **depends_on**: a, [b]", "  - nested", "1. a → b",
    "- **A**: (default: `1`)", "- B = 2", "> quote", "    code", "\ttab", "- ", "prose", "prose (with) `code`", "[a]: b",
    "- **foreach**: /x:y", "- **argv**: [\"x\"]", "- **prompt**:", "- **timeout_s**: 1", "#", "### a #", "* x", "+ y", "2) z",
]  # fmt: skip
fragments = st.sampled_from(PIECES) | st.text(max_size=12)


def slow_blocks(lines: list[str]) -> list[object]:
    return list(_blocks(_tokens(lines), lines, 0))


@settings(max_examples=300, deadline=None)
@given(st.lists(fragments, max_size=25))
def test_the_quick_way_to_blocks_gives_what_the_commonmark_parser_gives(pieces):
    lines = split_lines("\n".join(pieces).replace("\0", ""))
    assert read_blocks(lines) == slow_blocks(lines)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(fragments, max_size=40), st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
def test_any_text_is_a_plan_or_a_refusal_and_a_plan_can_be_written_again(pieces, ending):
    plan, faults = outcome(ending.join(pieces))
    for one in faults:
        assert one.what and one.fix and one.excerpt() is not None and one.as_dict()["line"] == one.line
    if plan is not None:
        assert same_plan(read(write_plan(plan)), plan), write_plan(plan)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(EXAMPLES), st.data())
def test_a_real_plan_with_a_change_is_a_plan_or_a_refusal(file, data):
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(at, min(len(raw), at + 60)))
        raw[at:end] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\n", b"`", b"### a\n", b"---", b"\r", b"[", b"{X}"])
        )
    plan, _ = outcome(bytes(raw))
    if plan is not None:
        assert same_plan(read(write_plan(plan)), plan), write_plan(plan)
