"""``## Goal``: prose for people, or the bullets of the earlier system's goal-driven plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .errors import FaultList
from .markdown import Field, read_fields, unquote
from .model import PlanTask
from .sections import Section, section_text

#: The fields of a machine goal (PLAN_DIALECTS 2.5).
GOAL_FIELDS: Final = frozenset(
    {"type", "tracked_task", "target", "tolerance", "max_attempts_multiplier", "discovery_tasks"}
    | {"discovery_round_multiplier", "discovery_prefill_divisor", "discovery_pool_multiplier"}
    | {"discovery_pool_cap", "discovery_refill_divisor", "max_validations_per_cycle"}
)


def read_goal(
    sections: Sequence[Section], lines: Sequence[str], tasks: Sequence[PlanTask], faults: FaultList
) -> str:
    """The text of ``## Goal``, else of ``## Objective``, as it stands in the file.

    Whether a goal is meant for a machine is told by its content: a bullet with one of ``GOAL_FIELDS``. Such a
    goal is kept as text and does not run: every task runs once, as written, and a warning says so. Where its
    ``type`` or ``tracked_task`` is missing, the earlier system took it for prose; the warning says that too.
    """
    for wanted in ("goal", "objective"):
        for section in sections:
            if section.name == wanted:
                if wanted == "goal":
                    _say_machine_goal(section, tasks, faults)
                return section_text(section, lines)
    return ""


def _say_machine_goal(section: Section, tasks: Sequence[PlanTask], faults: FaultList) -> None:
    found: dict[str, Field] = {}
    for one in read_fields(section.blocks, GOAL_FIELDS):
        if one.name in GOAL_FIELDS:
            found.setdefault(one.name, one)
    # "type: …" alone is what a person may write about anything.
    if not found or set(found) == {"type"}:
        return
    missing = [name for name in ("type", "tracked_task") if name not in found]
    if missing:
        first = min(found.values(), key=lambda one: one.line)
        faults.warning(
            first.line,
            f"the goal names {first.name} but no {' and no '.join(missing)}: it is kept as text only",
            "every task runs once, as written; write the goal in words",
            mark=first.written,
        )
        return
    tracked = found["tracked_task"]
    name = unquote(tracked.text)
    faults.warning(
        section.line,
        f"the plan has a machine goal (tracked_task {name[:60]!r}), which is kept as text and does not run",
        "every task runs once, as written: put as many items into the list of the foreach as are wanted",
    )
    if name not in {task.id for task in tasks}:
        faults.warning(
            tracked.line,
            f"the goal's tracked_task {name[:60]!r} is no task of this plan",
            "nothing: the goal does not run",
            mark=name,
        )
