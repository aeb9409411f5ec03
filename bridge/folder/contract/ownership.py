"""Who writes what in the shared folder, and what becomes of what somebody else writes there. Pure; one table.

``docs/control.md`` shows it, a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Final


class Owner(StrEnum):
    """Who may write a path."""

    BRIDGE = "the bridge"
    PEOPLE = "people and their scripts"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Rule:
    """``path``: ``<name>`` is one name, ``**`` whatever lies below. ``edit``: what a write by the other side does."""

    path: str
    owner: Owner
    edit: str


#: The first that fits counts.
RULES: Final = (
    Rule(
        ".rigbus-<name>",
        Owner.BRIDGE,
        "tells whose folder this is; removed, the folder counts as not mounted",
    ),
    Rule(
        "tasks/queue/<new>.json",
        Owner.PEOPLE,
        "an order: it becomes a task or a run, once; while one of its file name is open, shown under its `task_id`",
    ),
    Rule(
        "tasks/<lane>/<task>.json",
        Owner.BRIDGE,
        "put aside, answered, drawn again; two moves are commands, see below",
    ),
    Rule("brain/private_tasks/<task>.json", Owner.BRIDGE, "put aside, answered, drawn again"),
    Rule("tasks/<lane>/<name>.conflict-<number>", Owner.BOTH, "what was put aside; remove it when you like"),
    Rule("tasks/archive/**", Owner.BOTH, "a file moved here leaves the mirror and is not drawn again"),
    Rule("tasks/<lane>/<name>", Owner.PEOPLE, "locks and sidecars of others: neither read nor removed"),
    Rule(
        "brain/state.json", Owner.BRIDGE, "a batch taken out of active_batches is cancelled; then drawn again"
    ),
    Rule("brain/heartbeat.json", Owner.BRIDGE, "put aside, answered, drawn again"),
    Rule("heartbeats/brain.json", Owner.BRIDGE, "put aside, answered, drawn again"),
    Rule("brain/escalations/archive/**", Owner.BOTH, "of records that are gone; remove it when you like"),
    Rule("brain/escalations/<name>.answer.receipt.json", Owner.BRIDGE, "an answer; remove it when you like"),
    Rule("brain/escalations/<name>.answer.json", Owner.PEOPLE, "answers an escalation, once"),
    Rule("brain/escalations/HUMAN_<name>.md", Owner.BOTH, "a page for people; once you wrote into it, yours"),
    Rule("brain/escalations/<name>.json", Owner.BRIDGE, "put aside, answered, drawn again"),
    Rule("alerts/<name>.json", Owner.BRIDGE, "put aside, drawn again"),
    Rule("schemas/<name>", Owner.BRIDGE, "written anew when the bridge begins"),
    Rule("config.json", Owner.BOTH, "drawn where nothing stands; a file of your own stays"),
    Rule("agents/config.json", Owner.BOTH, "drawn where nothing stands; a file of your own stays"),
    Rule("plans/<plan>/batches/<batch>/batch.json", Owner.BRIDGE, "put aside, answered, drawn again"),
    Rule(
        "plans/<plan>/batches/<batch>/RUN_SUMMARY.<name>",
        Owner.BOTH,
        "drawn where nothing stands; a file of your own stays",
    ),
    Rule(
        "plans/<plan>/batches/<batch>/batch_meta.json",
        Owner.BOTH,
        "drawn where nothing stands; a file of your own stays",
    ),
    Rule(
        "plans/<plan>/batches/<batch>/execution_stats.json",
        Owner.BOTH,
        "drawn where nothing stands; a file of your own stays",
    ),
    Rule(
        "plans/<plan>/batches/<batch>/logs/batch_events.jsonl",
        Owner.BOTH,
        "the bridge appends; removed, it goes on with what happens from then on",
    ),
    Rule(
        "plans/<plan>/batches/<batch>/logs/<name>",
        Owner.BRIDGE,
        "a copy of a task's log; removed, it is copied again",
    ),
    Rule(
        "plans/<plan>/.rigbus-revisions/**",
        Owner.BOTH,
        "what the answers to escalations have replaced; remove it when you like",
    ),
    Rule(
        "plans/**",
        Owner.PEOPLE,
        "plans, their data and results; a batch that runs has its own copy of the scripts",
    ),
    Rule("workers/<worker>/heartbeat.json", Owner.BRIDGE, "put aside, answered, drawn again"),
    Rule("workers/<worker>/status.json", Owner.BRIDGE, "put aside, answered, drawn again"),
    Rule("gpus/<worker>/heartbeat.json", Owner.BOTH, "drawn where the folder is; a file of your own stays"),
    Rule("cpus/<worker>/heartbeat.json", Owner.BOTH, "drawn where the folder is; a file of your own stays"),
    Rule("logs/<name>", Owner.BOTH, "the bridge appends; other lines stay, ratings of samples are theirs"),
    Rule("signals/<name>.receipt.json", Owner.BRIDGE, "an answer; remove it when you like"),
    Rule("signals/<name>", Owner.PEOPLE, "stop, abort or kill, honoured once"),
    Rule("inbox/<name>.receipt.json", Owner.BRIDGE, "an answer; remove it when you like"),
    Rule("inbox/<name>.receipt.md", Owner.BRIDGE, "the same for people"),
    Rule(
        "inbox/<name>.jsonl.part", Owner.BRIDGE, "grows while a batch file runs; changed, it is written again"
    ),
    Rule(
        "inbox/<name>.results.jsonl",
        Owner.BOTH,
        "results of a batch file; yours when they are there, written anew when you drop it again",
    ),
    Rule("inbox/<name>.errors.jsonl", Owner.BOTH, "the same for the lines that have no result"),
    Rule(
        "inbox/**", Owner.PEOPLE, "plans and requests are moved away when they are taken in, batch files stay"
    ),
)


def rule_of(path: str, *, new: bool = False) -> Rule | None:
    """The rule for a path of the share; None where nobody of ours reads or writes. ``new``: of a task file, that no task
    of the rig has this name."""
    for rule in RULES:
        if rule.path == "tasks/queue/<new>.json" and not new:
            continue
        if _pattern(rule.path).fullmatch(path):
            return rule
    return None


def may_write(path: str) -> bool:
    """The bridge may write there."""
    rule = rule_of(path)
    return rule is not None and rule.owner is not Owner.PEOPLE


@cache
def _pattern(path: str) -> re.Pattern[str]:
    special = {"<lane>": "(queue|processing|complete|failed)", "<number>": "[0-9]+", "<plan>": ".+"}
    parts = re.split(r"(<[a-z]+>|\*\*)", path)
    return re.compile(
        "".join(
            ".+" if p == "**" else special.get(p, "[^/]+") if p.startswith("<") else re.escape(p)
            for p in parts
        ),
        re.DOTALL,
    )
