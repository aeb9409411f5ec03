"""The table ``[alerts]``: what raises an alert, and how soon."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from ..alerting.rules import KEEP_S, MAX_ALERTS, RULES, Severity
from .models import Table


def known_rule(name: str) -> str:
    """The name of a rule.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in RULES:
        near = get_close_matches(name, RULES, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(RULES)}"
        raise ValueError(f"there is no rule {name[:60]!r}; {fix}")
    return name


RuleName = Annotated[str, AfterValidator(known_rule)]
Delay = Annotated[float, Field(ge=0, le=86_400)]


class Alerts(Table):
    """When a rig says that it needs a person (docs/alerts.md)."""

    enabled: bool = Field(
        default=True, description="false: no alert is raised, and all that stand are cleared"
    )
    off: list[RuleName] = Field(default_factory=list, description="rules that are not looked for")
    severity: dict[RuleName, Severity] = Field(default_factory=dict, description="of single rules, by name")
    raise_after_s: dict[RuleName, Delay] = Field(
        default_factory=dict, description="how long a condition lasts before it is one, by rule"
    )
    clear_after_s: dict[RuleName, Delay] = Field(
        default_factory=dict, description="how long it has been over before it is cleared, by rule"
    )
    hot_c: float = Field(default=85.0, ge=20, le=150, description="a card is hot from here on")
    cool_c: float = Field(default=80.0, ge=10, le=150, description="and until it is below this")
    backlog_s: float = Field(
        default=3600.0, ge=1, le=604_800, description="tasks are ready, and so long none has begun or ended"
    )
    pending_s: float = Field(
        default=3600.0, ge=1, le=604_800, description="nobody has answered an escalation for so long"
    )
    keep_s: float = Field(
        default=KEEP_S, ge=60, le=31_536_000, description="an alert that is over stays so long"
    )
    most: int = Field(
        default=MAX_ALERTS, ge=25, le=1000, description="files in alerts/, those that are over included"
    )

    @field_validator("cool_c")
    @classmethod
    def _below(cls, value: float, info: ValidationInfo) -> float:
        hot: Any = info.data.get("hot_c")
        if hot is not None and value > hot:
            raise ValueError(f"{value:g} is above hot_c = {hot:g}; give at most that")
        return value
