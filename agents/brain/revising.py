"""A batch whose plan was revised -> the messages that say what each of its tasks is now, one a turn.

Kept here is only how far this process is. Whoever begins again says the same from the first message: the broker leaves
what is so already, and leases nothing of the batch before the last message. A message of a revision that is the last no
more does nothing (docs/adr/0030).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...bus.core.model import task_id
from ...bus.wire import MAX_BATCH
from ...plans.model import Plan
from . import planner
from .core import ExpandTemplate
from .expanding import Expanding
from .messages import Message, Run
from .revision import difference, kept_lists

log = logging.getLogger(__name__)


class Bus(Protocol):
    """What the brain's process offers to this part of it."""

    def tell(
        self, header: dict[str, Any], message: Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        """One atomic BRAIN message; the broker's answer."""

    def batch_rows(self, batch_id: str) -> list[dict[str, Any]]:
        """All tasks of a batch, without what is in the store only."""

    def value(self, task: str) -> Any:
        """A recorded result."""


@dataclass(slots=True)
class _Walk:
    """One revision's planning by this process. ``pending`` was not answered yet."""

    revision: int
    messages: Iterator[tuple[dict[str, Any], Message | None]]
    lists: deque[ExpandTemplate] = field(default_factory=deque)
    pending: tuple[dict[str, Any], Message | None] | None = None


class Revising:
    """The revisions that are under way."""

    def __init__(self, bus: Bus, expanding: Expanding) -> None:
        self._bus = bus
        self._expanding = expanding
        self._under_way: dict[str, _Walk] = {}

    def clear(self) -> None:
        """Forget them: another snapshot tells what is due."""
        self._under_way.clear()

    def is_at(self, run: Run) -> bool:
        """Whether this process is planning that revision."""
        walk = self._under_way.get(run.batch)
        return walk is not None and walk.revision == run.revision

    def step(self, run: Run, plan: Plan, facts: list[dict[str, Any]]) -> bool:
        """Say some more of a revision; whether there is more to say. ``facts`` go with the first of its tasks.

        Raises:
            Unplannable: the plan cannot become tasks.
        """
        walk = self._under_way.get(run.batch)
        if walk is None or walk.revision != run.revision:
            walk = self._under_way[run.batch] = self._begin(run, plan, facts)
        walk.pending = walk.pending or next(walk.messages, None)
        if walk.pending is not None:
            header, message = walk.pending
            answer = self._bus.tell({**header, "revision": run.revision}, message, run.batch)
            walk.pending = None
            return self._goes_on(run, answer)
        if walk.lists:
            if walk.lists[0] not in self._expanding.step(walk.lists[0], planning=True):
                walk.lists.popleft()
            return True
        self._bus.tell({"close": [run.batch], "revision": run.revision}, None, run.batch)
        del self._under_way[run.batch]
        log.info(
            "planned revision %d of %s: %s, %d tasks", run.revision, run.batch, plan.name, len(plan.tasks)
        )
        return False

    def _goes_on(self, run: Run, answer: dict[str, Any]) -> bool:
        """False where another REVISE has come: its event brings the batch back."""
        if answer.get("superseded"):
            log.info("revision %d of %s is the last no more", run.revision, run.batch)
            self._under_way.pop(run.batch, None)
            return False
        return True

    def _begin(self, run: Run, plan: Plan, facts: list[dict[str, Any]]) -> _Walk:
        """What there is beside what the plan says.

        Raises:
            Unplannable: a value is missing or cannot be put where the plan wants it.
        """
        self._expanding.forget(run.batch)
        messages = planner.declare(plan, run)
        specs = [spec for message in messages for spec in message.specs]
        rows = {row["key"]: row for row in self._bus.batch_rows(run.batch)}
        kept = kept_lists(plan, specs, rows)
        items = {name: self._bus.value(rows[f"{name}:expand"]["id"])["items"] for name in kept}
        found = difference(plan, specs, rows, items)
        for spec in specs:
            if spec["type"] == "expand" or spec["key"] in found.again:
                spec["again"] = True
        walk = _Walk(run.revision, _messages(found.drop, messages, facts))
        for name in kept:
            if name in found.again:
                key = f"{name}:expand"
                walk.lists.append(ExpandTemplate(run.batch, task_id(run.batch, key), key))
        log.info("revision %d of %s: %d tasks are dropped", run.revision, run.batch, len(found.drop))
        return walk


def _messages(
    drop: list[str], messages: list[Message], facts: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Message | None]]:
    """First what goes, so that no list which is read meanwhile has items that go later."""
    for first in range(0, len(drop), MAX_BATCH):
        yield {"drop": drop[first : first + MAX_BATCH]}, None
    for number, message in enumerate(messages):
        yield {"facts": facts} if facts and not number else {}, message
