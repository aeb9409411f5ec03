"""The shape of an escalation's answer: what acts is checked to the last field."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rigbus.bus.escalation import Answer, Escalation, answer_path

ID = "20261122_101500_0badcafe"


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "retry"},
        {"action": "retry", "tasks": ["measure", "tell"]},
        {"action": "patch", "files": {"plan.md": "# Plan: x\n", "scripts/deep/er.py": ""}},
        {"action": "patch", "files": {"plan.md": "x"}, "config": {"N": 3}, "plan_sha256": "ab"},
        {"action": "config", "config": {"N": 3}},
        {"action": "abandon", "note": "not worth it", "by": "ann"},
        {"action": "human"},
    ],
)
def test_answers_that_are_taken(fields: dict[str, Any]) -> None:
    answer = Answer.model_validate({"schema": "rigbus.answer/1", "escalation_id": ID, **fields})
    assert answer.model_dump(by_alias=True, exclude_defaults=True, exclude={"escalation_id"}) == fields


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"action": "patch"}, "`patch` has `files`"),
        ({"action": "retry", "files": {"a": ""}}, "`files` belongs to `patch`"),
        ({"action": "config"}, "`config` has `config`"),
        ({"action": "abandon", "config": {"N": 1}}, "`config` belongs to"),
        ({"action": "abandon", "tasks": ["a"]}, "`tasks` belongs to `retry`"),
        ({"action": "retry", "tasks": ["a/b"]}, "names of the plan's tasks"),
        ({"action": "reboot"}, "action"),
        ({"action": "retry", "sudo": True}, "sudo"),
        ({"action": "retry", "schema": "rigbus.answer/2"}, "schema"),
        *[
            ({"action": "patch", "files": {path: ""}}, "files")
            for path in (
                "/etc/passwd",
                "../x",
                "a/../b",
                "",
                "a//b",
                ".git/x",
                "a/.hidden",
                "a\\b",
                "a\nb",
                "x" * 256,
            )
        ],
        ({"action": "patch", "files": {f"f{i}": "" for i in range(65)}}, "files"),
    ],
)
def test_answers_that_are_refused_name_the_field(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Answer.model_validate({"escalation_id": ID, **fields})


def test_an_escalation_of_a_newer_rig_is_read() -> None:
    given = {"escalation_id": ID, "created_at": "2026-11-22T10:15:00.000001", "status": "pending"}
    given |= {"type": "execute_plan_failure", "title": "x", "colour": "red"}
    assert Escalation.model_validate(given).model_dump()["colour"] == "red"
    assert answer_path(ID) == f"brain/escalations/{ID}.answer.json"
