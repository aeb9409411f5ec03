"""What the pages promise is held by tests that exist; the README leads to the pages."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

TESTS = ROOT / "tests"
PAGES = ("docs/GUARANTEES.md", "docs/fault-matrix.md")
WHAT_HURT = "docs/what-hurt.md"
_NAMED = re.compile(r"`([^`\s]*::[^`\s]*)`")
NOT_INJECTED = "## What is not injected"  #: its rows have a reason and a need in place of tests


@cache
def names_in(path: Path) -> frozenset[str]:
    """``test_name`` and ``Class::test_name`` of a file, without importing it."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return frozenset(name for name in names if name.rpartition("::")[2].startswith("test_"))


def fault_of(named: str) -> str:
    """Why pytest would not find it below tests/; empty when it would."""
    file, _, test = named.partition("::")
    path = TESTS / file
    if not path.is_file():
        return f"{named}: there is no tests/{file}"
    return "" if test in names_in(path) else f"{named}: no such test in tests/{file}"


def promises(page: str) -> list[str]:
    """Each table row and each paragraph of the sections; what was not injected promises nothing."""
    found = []
    _, *sections = re.split(r"^(?=## )", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE)
    for section in sections:
        heading, _, text = section.partition("\n")
        for block in text.strip().split("\n\n"):
            if not block.startswith("|"):
                found.append(block)
            elif heading != NOT_INJECTED:
                found += block.splitlines()[2:]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = _NAMED.findall((ROOT / page).read_text("utf-8"))
    assert named
    assert [fault for name in sorted(set(named)) if (fault := fault_of(name))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_of_a_page_names_a_test(page: str) -> None:
    promised = promises(page)
    assert len(promised) > 40
    assert [line[:80] for line in promised if not _NAMED.search(line)] == []


def test_each_thing_that_hurt_before_is_shown_by_tests_that_exist() -> None:
    rows = [
        line.split(" | ") for line in (ROOT / WHAT_HURT).read_text("utf-8").splitlines() if line[:2] == "| "
    ]
    _, *told = rows
    assert [row[0].strip("| ") for row in told] == [str(n) for n in range(1, 35)]
    for row in told:
        named = _NAMED.findall(row[-1])
        assert len(row) == 4 and named, row[1]
        assert [fault for name in named if (fault := fault_of(name))] == []


def test_what_is_not_injected_says_why_and_what_it_needs() -> None:
    _, _, section = (ROOT / PAGES[1]).read_text("utf-8").partition(NOT_INJECTED)
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    assert cells
    assert [row for row in cells if len(row) != 3 or not all(row)] == []


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ("test_guarantees.py::test_that_is_not_there", "no such test in tests/test_guarantees.py"),
        ("test_guarantees.py::names_in", "no such test in tests/test_guarantees.py"),
        ("nowhere/test_nothing.py::test_x", "there is no tests/nowhere/test_nothing.py"),
        ("::", "there is no tests/"),
    ],
)
def test_a_name_that_is_none_is_found_out(named: str, fault: str) -> None:
    assert fault_of(named) == f"{named}: {fault}"


def test_functions_and_methods_are_tests() -> None:
    assert fault_of("test_guarantees.py::test_functions_and_methods_are_tests") == ""
    assert any("::" in name for name in names_in(TESTS / "agents/brain/test_placing.py"))


@pytest.mark.parametrize("page", PAGES)
def test_the_readme_leads_to_the_page(page: str) -> None:
    assert f"({page})" in (ROOT / "README.md").read_text("utf-8")
