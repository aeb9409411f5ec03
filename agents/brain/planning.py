"""A batch in state ``planning`` -> the tasks of its plan, and what is kept of it: the fact ``plan/<batch>``.

The fact is written with the first tasks: what was decided about the plan then holds for all of its batch's life, whoever
goes on with it. Its value: ``tasks`` (how many), ``title``, ``warnings``, and ``classes`` where some were not sure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from ...plans.model import Plan
from . import inferring, planner
from .asking import model_faults
from .class_questions import Classes, classes_from
from .inferring import Asking, Inferring
from .messages import Run, Unplannable
from .placing_view import Entry
from .revising import Revising

log = logging.getLogger(__name__)

SCOPE: Final = "plan"
_WARNINGS: Final = 50
_FAULTS: Final = 5
_WARNING_BYTES: Final = 600


class Bus(inferring.Bus, Protocol):
    """What the brain's process offers to this part of it."""

    def batch_row(self, batch_id: str) -> dict[str, Any]:
        """A batch as QUERY shows it."""

    def run_of(self, row: dict[str, Any]) -> tuple[Run, Plan]:
        """The run and the plan of a batch, its classes settled."""

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        """The header of QUERY's answer."""


class Planning:
    """Declares plans."""

    def __init__(
        self,
        bus: Bus,
        revising: Revising,
        asking: Asking | None = None,
        models: Callable[[], Mapping[str, Entry]] = dict,
    ) -> None:
        self._bus = bus
        self.revising = revising
        self._models = models
        self._inferring = Inferring(bus, asking)

    def step(self, batch_id: str) -> bool:
        """Declare a batch's tasks, then close it; the last message does both. Or ask a model for what the plan leaves open.

        Whether there is more to do: a revision is planned a message at a time.

        Raises:
            Unplannable: the plan cannot become tasks.
        """
        row = self._bus.batch_row(batch_id)
        if row["closed"] or row["kind"] != "plan" or row["cancelled"] or row["error"]:
            return False
        run, plan = self._bus.run_of(row)
        facts: list[dict[str, Any]] = []
        rev, kept = self._fact(batch_id)
        if kept is None or kept.get("revision", 1) != run.revision:
            values = planner.values_of(plan, run)  # a plan that cannot run is not asked about
            self._check_models(plan, values)
            classes = self._inferring.step(row, run, plan)
            if classes is None:
                return False  # the end of the question brings the batch back
            plan = classes.settle(plan)
            value = _kept(plan, classes) | ({"revision": run.revision} if run.revision > 1 else {})
            facts = [{"scope": SCOPE, "key": batch_id, "rev": rev, "value": value}]
        if run.revision > 1:
            return self.revising.step(run, plan, facts)
        messages = planner.declare(plan, run)
        for number, message in enumerate(messages, 1):
            header: dict[str, Any] = {"facts": facts} if number == 1 else {}
            header["revision"] = run.revision
            if number == len(messages):
                header["close"] = [batch_id]
            self._bus.tell(header, message, batch_id)
        log.info("planned %s: %s, %d tasks", batch_id, plan.name, len(plan.tasks))
        return False

    def _check_models(self, plan: Plan, values: Mapping[str, Any]) -> None:
        """Every model that the plan asks for must be in the catalogue, or with a worker that somebody has started by hand.

        Without a catalogue a task may wait for such a worker.

        Raises:
            Unplannable: there is none; what there is, is named.
        """
        faults = model_faults(plan, values, self._models())
        if not faults:
            return
        offered = [frozenset(w.get("needs") or ()) for w in self._bus.workers()]
        left = [f"{where}: {what}" for where, what, needs in faults if not any(needs <= o for o in offered)]
        if left:
            raise Unplannable("; ".join(left[:_FAULTS]))

    def settled(self, plan: Plan, batch_id: str) -> Plan:
        """The plan with the classes that were found for this batch."""
        if not any(task.task_class_unsure for task in plan.tasks):
            return plan
        return settled_by(plan, self._fact(batch_id)[1])

    def _fact(self, batch_id: str) -> tuple[int, dict[str, Any] | None]:
        """(its revision as a fact, its value)."""
        facts = self._bus.query("facts", scope=SCOPE, key=batch_id)["facts"]
        return (int(facts[0]["rev"]), facts[0]["value"]) if facts else (0, None)


def settled_by(plan: Plan, kept: Mapping[str, Any] | None) -> Plan:
    """The plan with the classes that the fact of its batch has."""
    return classes_from(kept.get("classes")).settle(plan) if kept and kept.get("classes") else plan


def _kept(plan: Plan, classes: Classes) -> dict[str, Any]:
    said = [*classes.sentences(plan), *map(str, plan.warnings)]
    value = {
        "tasks": len(plan.tasks),
        "title": plan.title,
        "warnings": [planner.cut(text, _WARNING_BYTES) for text in said[:_WARNINGS]],
    }
    for sentence in classes.sentences(plan)[:_WARNINGS]:
        log.info("%s: %s", plan.name, sentence)
    return value | ({"classes": classes.to_map()} if classes.answers or classes.rest else {})
