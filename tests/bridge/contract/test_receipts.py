"""Receipts: what a person who dropped a plan reads."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bridge.folder.contract.receipts import (
    PLAIN_NAME,
    Problem,
    Receipt,
    problem_from,
    receipt_json,
    receipt_md,
    receipt_stem,
)

T = 1_770_576_370.25


def test_an_accepted_drop_names_its_batch_and_the_next_command() -> None:
    receipt = Receipt("census", "accepted", T, batch_id="b1", plan="census", tasks=12, next="rigbus watch b1")
    fields = json.loads(receipt_json(receipt, 0))
    assert fields["schema"] == "rigbus.receipt/1"
    assert (fields["batch_id"], fields["tasks"], fields["next"]) == ("b1", 12, "rigbus watch b1")
    page = receipt_md(receipt, 0).decode()
    assert page.startswith("# census: accepted\n")
    assert "Batch `b1`, 12 tasks" in page
    assert "    rigbus watch b1\n" in page


def test_a_refusal_shows_file_line_the_line_itself_and_the_fix() -> None:
    problem = Problem(
        "unknown variable {X}", "plan.md", "declare it", line=12, text="- **command**: echo {X}"
    )
    receipt = Receipt("census", "refused", T, problems=(problem,))
    fields = json.loads(receipt_json(receipt, 0))
    assert fields["problems"] == [
        {
            "file": "plan.md",
            "line": 12,
            "text": "- **command**: echo {X}",
            "what": "unknown variable {X}",
            "fix": "declare it",
        }
    ]
    page = receipt_md(receipt, 0).decode()
    assert "**plan.md:12** unknown variable {X}" in page
    assert "      - **command**: echo {X}" in page
    assert "Fix: declare it" in page


def test_a_parser_s_line_becomes_a_problem() -> None:
    assert problem_from("plan.md:3: no tasks; add a section ## Tasks") == Problem(
        "no tasks", "plan.md", "add a section ## Tasks", 3
    )
    assert problem_from("it broke", "x").what == "it broke"


@pytest.mark.parametrize("name", ["a b", "-rf", "$(x)", "\x1b[2J", "..", "é" * 200, "a\nb", "bad\udcff.md"])
def test_an_evil_name_gives_a_harmless_file_name_and_page(name: str) -> None:
    assert PLAIN_NAME.match(receipt_stem(name))
    receipt = Receipt(name, "refused", T, problems=(Problem("its name", name, "rename it"),))
    page = receipt_md(receipt, 0).decode()
    assert all(c.isprintable() or c == "\n" for c in page)
    assert page.count("\n# ") == 0
    assert json.loads(receipt_json(receipt, 0))["state"] == "refused"


def test_different_evil_names_do_not_share_a_receipt() -> None:
    assert len({receipt_stem(n) for n in ("a b", "a  b", "a\tb", "a-b ")}) == 4
    assert receipt_stem("census.md") == receipt_stem("census") == "census"


@given(st.text())
def test_no_name_brings_markup_of_its_own(name: str) -> None:
    page = receipt_md(Receipt(name, "settling", T), 0).decode()
    assert not re.search(r"(?<!\\)[<>|*`]", page.splitlines()[0])
