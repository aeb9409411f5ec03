"""What the brain has to do next, from a snapshot and the events after it. Pure.

The brain remembers nothing: each piece of work is derived from the broker's rows, and doing it twice is harmless
(keys are deterministic, closes and releases idempotent). The queue below is the order of work, not a memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PlanBatch:
    """Declare the tasks of a batch in state ``planning``, or go on with it when a question about them has ended."""

    batch: str


@dataclass(frozen=True, slots=True)
class ExpandTemplate:
    """Declare the children of a foreach whose list is recorded."""

    batch: str
    expand_id: str
    expand_key: str


@dataclass(frozen=True, slots=True)
class Judge:
    """A task is in REVIEW, maybe with the end of what judges it, or in FAILED."""

    batch: str
    task: str
    state: str


@dataclass(frozen=True, slots=True)
class CheckAbort:
    """A task of a plan ended badly: its failure policy may abort the batch, and others may have to hear of it."""

    batch: str
    task: str
    key: str
    state: str


@dataclass(frozen=True, slots=True)
class Unblock:
    """The list of a template is expanded, or never will be: templates whose items depend on its items may go on."""

    batch: str
    template: str


@dataclass(frozen=True, slots=True)
class LookAgain:
    """A person has brought a batch back: what is due in it stands in a snapshot only."""

    batch: str


@dataclass(frozen=True, slots=True)
class PlaceModels:
    """Look which worker should hold which model. Of no batch."""

    batch: str = ""


@dataclass(frozen=True, slots=True)
class LookAtWorkers:
    """Look whether one of them is in order. Of no batch."""

    batch: str = ""


Work = PlanBatch | ExpandTemplate | Judge | CheckAbort | Unblock | LookAgain | PlaceModels | LookAtWorkers

_ABORTING = frozenset({"dead", "expired"})
_BAD = frozenset({"dead", "expired", "cancelled", "skipped"})


def work_of_snapshot(batches: list[Mapping[str, Any]], rows: list[Mapping[str, Any]]) -> list[Work]:
    """Everything that is due in a snapshot of what the brain acts on (SNAPSHOT ``attn``)."""
    work: list[Work] = [PlanBatch(b["id"]) for b in batches if not b["closed"]]
    held = {(r["batch"], r["key"]) for r in rows if r["join"] and r["hold"]}
    for row in rows:
        batch, key, state = row["batch"], row["key"], row["state"]
        if row.get("aside"):
            continue  # what it judges, or the batch that it is about, is in the snapshot, too
        if row["type"] == "expand" and state == "done":
            if (batch, template_of(key)) in held:
                work.append(ExpandTemplate(batch, row["id"], key))
        elif state in ("review", "failed"):
            work.append(Judge(batch, row["id"], state))
        elif state in _ABORTING:
            work.append(CheckAbort(batch, row["id"], key, state))
    return work


def work_of_event(topic: str, id_: str, batch: str, data: Mapping[str, Any]) -> list[Work]:
    """What one event of channel ``a`` asks for."""
    kind, _, rest = topic.partition(".")
    _, _, state = rest.rpartition(".")
    key = str(data.get("key"))
    if kind == "batch":
        if state == "reopened":
            return [PlanBatch(batch)] if data.get("unplanned") else [LookAgain(batch)]
        return [PlanBatch(batch)] if state in ("planning", "revised") else []
    if data.get("asks"):
        return [PlanBatch(batch)]
    if data.get("judges"):
        return [Judge(batch, str(data["judges"]), "review")]
    if rest == "expand.done":
        return [ExpandTemplate(batch, id_, key)]
    if rest.partition(".")[0] in ("expand", "join") and state in _BAD:
        work: list[Work] = [CheckAbort(batch, id_, key, state)] if state in _ABORTING else []
        return [*work, Unblock(batch, template_of(key))]
    if state in ("review", "failed"):
        return [Judge(batch, id_, state)]
    if state in _ABORTING:
        return [CheckAbort(batch, id_, key, state)]
    return []


def template_of(expand_key: str) -> str:
    """The template of an expand task's key."""
    return expand_key.removesuffix(":expand")


def aborts(meta: Mapping[str, Any]) -> bool:
    """Whether a task's failure aborts its batch."""
    return meta.get("on_failure") == "abort"
