"""The tasks that a batch has, beside what a new revision of its plan says: what is dropped, read again, kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...plans.keys import ItemsError, task_keys
from ...plans.model import Plan
from .children import Children, other_ids
from .core import template_of
from .messages import Run, Unplannable
from .planner import batch_size, declare

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """``drop``: ids of tasks that the plan has no more. ``again``: templates that are not through with their items."""

    drop: list[str] = field(default_factory=list)
    again: frozenset[str] = frozenset()


def kept_lists(plan: Plan, specs: Iterable[Row], rows: Mapping[str, Row]) -> list[str]:
    """The templates whose items are known: the list is recorded, and is read from where it was; so are those that its
    items depend on. ``specs`` have dependencies before dependents, ``rows`` are by key."""
    kept: list[str] = []
    templates = plan.by_id()
    for spec in specs:
        row = rows.get(spec["key"])
        if spec["type"] != "expand" or row is None or row["type"] != "expand":
            continue
        template = template_of(spec["key"])
        same = row["state"] == "done" and row["definition"] == spec["definition"]
        if same and all(d.template in kept for d in templates[template].item_depends_on):
            kept.append(template)
    return kept


def difference(
    plan: Plan, specs: Sequence[Row], rows: Mapping[str, Row], items: Mapping[str, Sequence[Any]]
) -> Difference:
    """``specs`` of all tasks that the plan has before a list is expanded, ``items`` of the lists that are kept.

    Items of a list that will be read again are not known yet: what was declared of it is dropped, and comes back.
    """
    wanted = {str(spec["key"]) for spec in specs}
    again = {str(spec["key"]) for spec in specs if spec["type"] == "join"}
    for template, elements in items.items():
        keys = keys_of(plan, template, elements)
        wanted.update(keys)
        if _is_done(rows.get(template)) and all(_is_done(rows.get(key)) for key in keys):
            again.discard(template)
    drop = [row["id"] for key, row in rows.items() if key not in wanted and is_left(row)]
    return Difference(drop, frozenset(again))


def keys_of(plan: Plan, template: str, elements: Sequence[Any]) -> list[str]:
    """The keys of a template's tasks for its list, each once; none where the list is faulty."""
    try:
        keys = task_keys(template, elements, batch_size(plan.by_id()[template]), other_ids(plan, template))
    except ItemsError:
        return []  # said when the list is expanded
    return list(dict.fromkeys(keys))


def specs_of(plan: Plan, run: Run) -> list[dict[str, Any]]:
    """Of all tasks that a plan has before a list is expanded.

    Raises:
        Unplannable: a value is missing or cannot be put where the plan wants it.
    """
    return [spec for message in declare(plan, run) for spec in message.specs]


def outcomes(
    plan: Plan, run: Run, specs: Sequence[Row], rows: Mapping[str, Row], items: Mapping[str, Sequence[Any]]
) -> list[tuple[str, str]]:
    """What a revision would make of each task: (key, in a few words). For people; nothing is decided by it."""
    definitions = {str(spec["key"]): str(spec["definition"]) for spec in specs}
    for template, elements in items.items():
        with suppress(Unplannable):
            definitions |= {s["key"]: s["definition"] for s, _, _ in Children(plan, run, template, elements)}
    lists = {str(spec["key"]) for spec in specs if spec["type"] == "expand"}
    found = [
        (key, _becomes(rows.get(key), wanted, is_list=key in lists)) for key, wanted in definitions.items()
    ]
    gone = set(difference(plan, specs, rows, items).drop)
    found += [(key, "dropped") for key, row in rows.items() if row["id"] in gone]
    kept = [key for key, row in rows.items() if key not in definitions and row["id"] not in gone]
    return found + [
        (key, "stays done") for key in kept if rows[key]["state"] == "done" and not rows[key]["aside"]
    ]


def _becomes(row: Row | None, definition: str, *, is_list: bool) -> str:
    if row is None:
        return "new"
    same = row["definition"] == definition
    if row["state"] == "done":
        return "list is read again" if is_list and not same else "stays done"
    if row["dropped"] or row["state"] in ("dead", "expired", "cancelled", "skipped"):
        return "runs again" if same else "changed, runs again"
    if row["state"] == "leased":
        return "runs on" if same else "changed, is ended and runs anew"
    return "goes on" if same else "changed"


def is_left(row: Row) -> bool:
    """A task of a plan that is not done: what asks for the brain, or is called by a handler, is none."""
    return not (row["state"] == "done" or row["dropped"] or row["call"] or row["aside"])


def _is_done(row: Row | None) -> bool:
    return row is not None and row["state"] == "done"
