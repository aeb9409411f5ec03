"""Expansion at run time: recorded lists become tasks, one message a turn, so that the brain hears other things between.

What is kept here is only how far this process is. Another one begins again from the broker's rows: keys that exist are
skipped, and the hold of the join says whether the last message has been sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ...bus.core.model import task_id
from ...bus.errors import NotFound
from ...plans.items import Counterparts
from ...plans.keys import ItemsError
from ...plans.model import Plan, PlanTask
from .children import Children, next_message, other_ids
from .core import ExpandTemplate, Unblock, Work, template_of
from .messages import Message, Run, Unplannable
from .planner import batch_size

log = logging.getLogger(__name__)

#: Tasks in the first message, so that workers begin at once, and in any.
FIRST_CHUNK: Final = 50
MAX_CHUNK: Final = 300
#: Seconds that the broker may take for one message before the next is made smaller, or below which it grows.
SLOW_S: Final = 0.1
FAST_S: Final = 0.05
_BAD_ENDS: Final = frozenset({"dead", "expired", "cancelled", "skipped"})
#: Of a join whose items may yet be declared; leased: until its plan was revised it was a task, which is being ended.
_OPEN: Final = frozenset({"waiting", "skipped", "leased"})
EMPTY_NOTE: Final = "FOREACH_EMPTY: the list is empty, nothing was to be done"


class Bus(Protocol):
    """What the brain's process offers to this part of it."""

    def tell(
        self, header: dict[str, Any], message: Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        """One atomic BRAIN message; the broker's answer."""

    def batch_row(self, batch_id: str) -> dict[str, Any]:
        """A batch as QUERY shows it."""

    def rows(self, ids: list[str]) -> list[dict[str, Any]]:
        """Tasks as QUERY shows them."""

    def value(self, task: str) -> Any:
        """A recorded result."""

    def run_of(self, row: dict[str, Any]) -> tuple[Run, Plan]:
        """The run and the plan of a batch."""


@dataclass(slots=True)
class _Progress:
    """One expansion of this process. ``pending`` was not answered yet."""

    join: str
    count: int
    children: Iterator[tuple[dict[str, Any], dict[str, Any], int]]
    revision: int = 1
    most: int = FIRST_CHUNK
    pending: tuple[Message, bool] | None = None


class Expanding:
    """The expansions that are under way. ``clock``: monotonic seconds."""

    def __init__(self, bus: Bus, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._clock = clock
        self._under_way: dict[ExpandTemplate, _Progress] = {}
        self._revision = 0  #: of the plan by which the last list was begun

    def forget(self, batch: str) -> None:
        """Its plan was revised: lists are expanded by the new one, from the first element."""
        for work in [work for work in self._under_way if work.batch == batch]:
            del self._under_way[work]

    def clear(self) -> None:
        """Forget them: another snapshot tells what is due."""
        self._under_way.clear()

    def step(self, work: ExpandTemplate, *, planning: bool = False) -> list[Work]:
        """Declare some more children of a foreach; what is to be done after other work.

        ``planning``: for the planning of a revision, by which lists of that batch wait for it otherwise.

        The last message releases the join. A list that cannot become tasks ends its join, not the batch.
        """
        self._revision = 0
        try:
            progress = self._under_way.get(work) or self._begin(work, planning=planning)
            if progress is None:
                return []
            self._revision = progress.revision
            if progress.pending is None:
                progress.pending = next_message(progress.children, progress.most)
        except Unplannable as e:
            return self._fail(work, str(e))
        message, more = progress.pending
        sent_at = self._clock()
        header = {} if more else self._last(work, progress)
        answer = self._bus.tell({**header, "revision": progress.revision}, message, work.batch)
        progress.pending = None
        if answer.get("superseded"):
            self._under_way.pop(work, None)
            return []  # the new revision's planning expands it anew
        if more and answer.get("ids"):
            progress.most = _paced(progress.most, self._clock() - sent_at)
            return [work]
        del self._under_way[work]
        if message.specs and not answer.get("ids"):
            log.info("%s of %s is expanded no further: its batch has ended", work.expand_key, work.batch)
            return []
        log.info("expanded %s of %s: %d items", template_of(work.expand_key), work.batch, progress.count)
        return [Unblock(work.batch, template_of(work.expand_key))]

    def unblocked(self, work: Unblock) -> list[Work]:
        """The expansions of a batch that may have waited for a template's."""
        _, plan = self._bus.run_of(self._bus.batch_row(work.batch))
        keys = [f"{name}:expand" for name in _behind(plan, work.template)]
        return [ExpandTemplate(work.batch, task_id(work.batch, key), key) for key in keys]

    # -- beginning -------------------------------------------------------------------------------------------

    def _begin(self, work: ExpandTemplate, *, planning: bool) -> _Progress | None:
        """Everything that the children need; None when there is nothing to do, or not yet.

        Raises:
            Unplannable: the list cannot become tasks.
        """
        template = template_of(work.expand_key)
        join = task_id(work.batch, template)
        rows = {row["id"]: row for row in self._bus.rows([join, work.expand_id])}
        if join not in rows or work.expand_id not in rows or not _due(rows[join], rows[work.expand_id]):
            return None
        batch = self._bus.batch_row(work.batch)
        if batch["state"] not in ("planning", "running") or (batch["revising"] and not planning):
            return None
        run, plan = self._bus.run_of(batch)
        self._revision = run.revision
        task = plan.by_id().get(template)
        if task is None or task.foreach is None:
            return None  # the plan has it no more
        before = self._before(work.batch, plan, task)
        if before is None:
            return None
        items = self._bus.value(work.expand_id)["items"]
        children = Children(plan, run, template, items, before)
        progress = self._under_way[work] = _Progress(join, len(items), iter(children), run.revision)
        return progress

    def _before(self, batch: str, plan: Plan, task: PlanTask) -> Mapping[str, Counterparts | None] | None:
        """The tasks that the items of ``task`` depend on; None while one of these templates is not expanded.

        Raises:
            Unplannable: one of them never will be.
        """
        found: dict[str, Counterparts | None] = {}
        for name in dict.fromkeys(d.template for d in task.item_depends_on):
            source = plan.by_id()[name]
            join, expand = self._rows_of(batch, name)
            if join["hold"]:
                why = self._never(batch, plan, source)
                if not why:
                    return None
                if source.on_failure != "continue":
                    raise Unplannable(f"{name!r}, which its items depend on, has no tasks: {why}")
                found[name] = None
                continue
            items = self._bus.value(expand["id"])["items"]
            try:
                found[name] = Counterparts(name, items, batch_size(source), other_ids(plan, name))
            except ItemsError as e:
                raise Unplannable(f"the list of {name!r}: {e}") from None
        return found

    def _never(self, batch: str, plan: Plan, task: PlanTask) -> str:
        """Why a template will not be expanded; empty where it will be."""
        join, expand = self._rows_of(batch, task.id)
        for row in (expand, join):
            # a join is skipped for a child of its first part too, and then goes on
            if row["state"] in _BAD_ENDS and not (row is join and row["state"] == "skipped"):
                return f"{row['key']} ended {row['state']} ({row.get('error') or 'no reason given'})"
        for name in dict.fromkeys(d.template for d in task.item_depends_on):
            source = plan.by_id()[name]
            if source.on_failure != "continue" and (why := self._never(batch, plan, source)):
                return why
        return ""

    def _rows_of(self, batch: str, template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The join and the expand task of a template.

        Raises:
            NotFound: they are gone.
        """
        ids = [task_id(batch, template), task_id(batch, f"{template}:expand")]
        rows = {row["id"]: row for row in self._bus.rows(ids)}
        if len(rows) < 2:
            raise NotFound(f"{template} of batch {batch} is gone")
        return rows[ids[0]], rows[ids[1]]

    # -- ending ----------------------------------------------------------------------------------------------

    def _last(self, work: ExpandTemplate, progress: _Progress) -> dict[str, Any]:
        """The header of the message that releases the join."""
        if progress.count:
            return {"release": [progress.join]}
        log.info("%s of %s: %s", work.expand_key, work.batch, EMPTY_NOTE)
        return {"release": [progress.join], "notes": {progress.join: EMPTY_NOTE}}

    def _fail(self, work: ExpandTemplate, error: str) -> list[Work]:
        """End a template whose list cannot become tasks; one that depends on its items learns it next.

        Where some of its tasks are declared already, nobody could tell from the rows that no more will come: those that
        depend on its items end with it.
        """
        template = template_of(work.expand_key)
        log.warning("%s of %s fails: %s", template, work.batch, error)
        fails = [(template, error)]
        if self._under_way.pop(work, None) is not None:
            _, plan = self._bus.run_of(self._bus.batch_row(work.batch))
            why = f"{template!r}, which its items depend on, has not all of its tasks: {error}"
            todo = _behind(plan, template)
            while todo:
                name = todo.pop()
                if name not in dict(fails):
                    fails.append((name, why))
                    todo += _behind(plan, name)
        told = [{"task": task_id(work.batch, name), "error": e} for name, e in fails]
        self._bus.tell({"fail": told, "revision": self._revision}, None, work.batch)
        return [Unblock(work.batch, template)]


def _behind(plan: Plan, template: str) -> list[str]:
    """The templates whose items depend on items of ``template``."""
    return [t.id for t in plan.tasks if any(d.template == template for d in t.item_depends_on)]


def _due(join: Mapping[str, Any], expand: Mapping[str, Any]) -> bool:
    """Whether a template's list is recorded and not all of its tasks are declared.

    A join may be skipped before that, for a failed child of the part that came first; its other items still run.
    """
    return bool(join["hold"]) and join["state"] in _OPEN and expand["state"] == "done"


def _paced(most: int, took_s: float) -> int:
    """How many tasks the next message has, after one that took the broker so long."""
    if took_s > SLOW_S:
        return max(FIRST_CHUNK, most // 2)
    return min(MAX_CHUNK, most * 2) if took_s < FAST_S else most
