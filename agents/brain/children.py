"""The recorded list of a foreach -> the tasks of its items. Pure, and lazy: the first tasks are there before the last
is made, because a list may have 100,000 elements and workers wait for the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ...bus.wire import pack
from ...plans.items import Counterparts
from ...plans.keys import ItemsError, item_groups, item_id, task_keys
from ...plans.model import Plan, PlanTask
from ...plans.values import Rewritten
from .definitions import definition
from .messages import Message, Run, Unplannable
from .planner import batch_size, cut, payload_of, rewritten, show_prompt, spec_of, values_of

_ID_BYTES: Final = 200  #: of one id in a task's meta
_IDS_BYTES: Final = 4000  #: of all ids of a micro-batch; a thousand long ones would not go into a meta


def other_ids(plan: Plan, template: str) -> list[str]:
    """The ids of the other tasks, which the keys of a template's children must not be taken for."""
    return [task.id for task in plan.tasks if task.id != template]


class Children:
    """The tasks of one template for its recorded list, in the list's order.

    ``before`` has, for each template that the items depend on, which of its tasks holds which element; None where that
    template has no tasks because its list could not be read and its failure does not matter (`on_failure: continue`).
    Everything that an element can have wrong is said before the first task: a template fails as a whole.

    Raises:
        Unplannable: two elements with one id, an element without a counterpart, a field that is not there.
    """

    def __init__(
        self,
        plan: Plan,
        run: Run,
        template: str,
        items: Sequence[Any],
        before: Mapping[str, Counterparts | None] | None = None,
    ) -> None:
        self.task: PlanTask = plan.by_id()[template]
        self.items = items
        self._plan, self._run = plan, run
        self._values = values_of(plan, run)
        self._made: dict[int, Rewritten] = {}
        try:
            self._keys = task_keys(template, items, batch_size(self.task), other_ids(plan, template))
            self._after = self._edges(before or {})
        except ItemsError as e:
            raise self._bad_list(e) from None
        spec = spec_of(plan, self.task, run, template, self._values)
        spec["feeds"] = [[template, "end" if self.task.on_failure == "continue" else "success"]]
        spec["meta"]["template"] = template
        self._spec = spec
        self._head = len(pack(spec)) + 96

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], int]]:
        """(spec, payload, about the packed bytes of the spec) of each task."""
        size = batch_size(self.task)
        for group in item_groups(len(self.items), size):
            chosen = [self.items[i] for i in group]
            key = self._keys[group[0]]
            ids = [cut(item_id(self.items[i], i), _ID_BYTES) for i in group]
            own = {"name": key, "item_id": ids[0]} if size == 1 else {"name": key, **_batch_meta(ids)}
            spec = {**self._spec, "key": key, "meta": {**self._spec["meta"], **own}}
            head = self._head + 4 * len(key) + sum(map(len, ids)) * 4
            if self._after:
                refs = dict.fromkeys(edge for i in group for edge in self._after[i])
                spec["after"] = [list(edge) for edge in refs]
                head += sum(len(ref) + 8 for ref, _ in refs)
            payload = self._payload(chosen)
            if "prompt" in spec["meta"]:
                show_prompt(spec["meta"], payload)
                head += len(spec["meta"]["prompt"]) * 4
            yield spec | {"definition": definition(spec, payload, self._run)}, payload, head

    def _payload(self, chosen: list[Any]) -> dict[str, Any]:
        made = None
        if self.task.type == "shell" and self.task.argv is None:
            made = self._made.get(len(chosen))
            if made is None:
                made = self._made[len(chosen)] = rewritten(self.task, self._values, len(chosen))
        return payload_of(self.task, self._run, self._values, chosen, made)

    def _edges(self, before: Mapping[str, Counterparts | None]) -> list[list[tuple[str, str]]]:
        """For each element what its task waits for, as (key, on); empty where no element depends on another's."""
        by_id = self._plan.by_id()
        waits = []
        for dependency in self.task.item_depends_on:
            counterparts = before.get(dependency.template)
            if counterparts is not None:
                on = "end" if by_id[dependency.template].on_failure == "continue" else "success"
                waits.append((dependency.path, counterparts, on))
        if not waits:
            return []
        return [
            [(counterparts.key_of(item, i, path), on) for path, counterparts, on in waits]
            for i, item in enumerate(self.items)
        ]

    def _bad_list(self, error: ItemsError) -> Unplannable:
        field = "depends_on" if "counterpart" in error.what else "foreach"
        return Unplannable(
            f"{self._plan.file}:{self.task.line_of(field)}: the list of {self.task.id!r}: {error}"
        )


def _batch_meta(ids: list[str]) -> dict[str, Any]:
    """How many items a micro-batch holds, and which; of very many or very long ids the first ones."""
    room, shown = _IDS_BYTES, []
    for one in ids:
        room -= len(one.encode()) + 3
        if room < 0:
            break
        shown.append(one)
    left_out = {"item_ids_left_out": len(ids) - len(shown)} if len(shown) < len(ids) else {}
    return {"batch_size": len(ids), "item_ids": shown, **left_out}


def next_message(
    children: Iterator[tuple[dict[str, Any], dict[str, Any], int]], most: int
) -> tuple[Message, bool]:
    """At most ``most`` tasks as one message, and whether there may be more.

    Raises:
        Unplannable: a value that cannot be passed.
    """
    message = Message()
    for spec, payload, head in children:
        message.add(spec, payload, head)
        if len(message.specs) >= most or message.full:
            return message, True
    return message, False
