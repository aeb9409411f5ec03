"""PLAN_FORMAT.md is true: its plans parse or are refused as it says, its commands exist, its tables are complete."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import ROOT
from markdown_it import MarkdownIt

from rigbus.plans.check import check_plan
from rigbus.plans.errors import PlanFault, PlanInvalid
from rigbus.plans.fields import SETTING_FIELDS, TASK_FIELDS
from rigbus.plans.parser import parse_plan
from rigbus.plans.placeholders import ValueFault
from rigbus.plans.values import rewrite_command
from rigbus.tools.cli import run

PAGE = ROOT / "plans" / "PLAN_FORMAT.md"
TEXT = PAGE.read_text(encoding="utf-8")
TOKENS = MarkdownIt("commonmark").enable("table").parse(TEXT)


KINDS = ("runs", "runs with a model", "parsed", "refused")


@dataclass(frozen=True)
class Example:
    """A fenced plan of the page; ``mark`` is the remark before it, one of KINDS; ``refused: …`` has the words."""

    line: int
    mark: str
    text: str

    @property
    def kind(self) -> str:
        return self.mark.partition(":")[0]

    @property
    def title(self) -> str:
        return re.search(r"^# Plan: (.+)$", self.text, re.MULTILINE)[1]

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "-", self.title)


def examples(kind: str) -> list[Example]:
    """The plans of the page of one kind."""
    found = []
    for before, fence in pairwise(TOKENS):
        if fence.type == "fence" and fence.info == "markdown":
            mark = re.fullmatch(r"<!-- (.*) -->\s*", before.content)
            assert mark, f"line {fence.map[0] + 1}: a plan without a remark before it"
            found.append(Example(fence.map[0] + 1, mark[1], fence.content))
    assert {one.kind for one in found} == set(KINDS)
    return [one for one in found if one.kind == kind]


def commands() -> list[list[str]]:
    """The words of each ``$ rigbus …`` of the page."""
    lines = [
        line
        for token in TOKENS
        if token.type == "fence" and token.info == "console"
        for line in token.content.splitlines()
    ]
    assert all(line.startswith("$ rigbus ") for line in lines)
    return [shlex.split(line)[2:] for line in lines]


def table(*head: str) -> list[list[str]]:
    """The rows of the table with this head, cells as they are written."""
    rows: list[list[str]] = []
    for token in TOKENS:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level >= 3:
            rows[-1].append(token.content)
        elif token.type == "table_close":
            if rows[0] == list(head):
                return rows[1:]
            rows = []
    raise AssertionError(f"no table {head}")


def faults_of(text: str) -> list[PlanFault]:
    """Everything that is said of a plan without a configuration."""
    try:
        plan = parse_plan(text)
    except PlanInvalid as invalid:
        return invalid.faults
    return [*plan.warnings, *check_plan(plan, {})[1]]


@pytest.mark.parametrize(
    "example", [one for kind in KINDS[:3] for one in examples(kind)], ids=lambda one: one.title
)
def test_a_plan_of_the_page_has_neither_errors_nor_warnings(example):
    assert [str(fault) for fault in faults_of(example.text)] == []


@pytest.mark.parametrize("example", examples("refused"), ids=lambda one: one.title)
def test_a_plan_of_the_page_is_refused_as_the_page_says(example):
    said = [
        f"{fault.line}: {fault.what}; {fault.fix}"
        for fault in faults_of(example.text)
        if fault.severity == "error"
    ]
    assert len(said) == 1
    assert said[0].startswith(example.mark.removeprefix("refused: "))


def test_the_page_has_plans_of_each_kind():
    assert len(examples("runs")) >= 4
    assert len(examples("refused")) >= 8


CODE = re.compile(r"(`+) ?(.*?) ?\1", re.DOTALL)


@pytest.mark.parametrize(("refused", "instead"), table("Refused", "Write"), ids=lambda cell: cell)
def test_a_refused_place_is_refused_and_what_to_write_is_not(refused, instead):
    with pytest.raises(ValueFault):
        rewrite_command(CODE.fullmatch(refused)[2].strip(), str.isupper)
    made = rewrite_command(CODE.fullmatch(instead)[2].strip(), str.isupper)
    assert made.variables
    assert not made.warnings


def names_in(rows: list[list[str]]) -> set[str]:
    return {name for row in rows for name in re.findall(r"`([a-z_]+)`", row[0])}


def test_every_field_of_a_task_is_on_the_page():
    assert names_in(table("Field", "Values", "Default", "Meaning")) == TASK_FIELDS


def test_every_setting_of_a_plan_is_on_the_page():
    assert names_in(table("Setting", "Values", "Default", "Meaning")) == SETTING_FIELDS


def test_every_link_on_the_page_leads_to_one_of_its_headings():
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^(`{3,}).*?^\1$", "", TEXT, flags=re.S | re.M), re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "state"))
    for words in commands():
        # What needs a rig is asked for its help; its options must be there.
        alone = words[0] == "plan" or "--dry-run" in words
        assert run(words if alone else [words[0], "--help"]) == 0, words
        said = capsys.readouterr().out
        assert alone or all(word in said for word in words if word.startswith("--")), words
    assert {path.name for path in tmp_path.iterdir()} >= {"hello", "words", "numbers", "numbers.svg"}
