"""Ended tasks leave: because there are too many (retention), or because a person has given them up. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ..errors import DefinitionError
from ..states import BATCH_ENDED, STATE_NAMES, TaskState
from ..wire import MAX_BATCH
from .checks import texts
from .model import Batch, Session, Task
from .seating import Seating

_KEPT_SHOWN: Final = 100  #: of the tasks that could not go, in the answer


class Forgetting(Seating):
    """The end of a task's row."""

    def forget(self, session: Session, header: dict[str, Any]) -> dict[str, Any]:
        """CONTROL `forget`: ``{forgotten, kept: [{id, key, why}…]}``. With ``batch`` its dead tasks.

        What was SKIPPED for a task of the same batch goes with it. A task stays while somebody still needs it, and why
        is said.

        Raises:
            DefinitionError: neither ids nor batch, or too many.  NotFound: an unknown id. Nothing was forgotten.
        """
        if header.get("batch"):
            batch = self.find_batch(header["batch"])
            chosen = [t for t in batch.keys.values() if t.state is TaskState.DEAD][:MAX_BATCH]
        else:
            ids = texts(header, "ids")
            if not 0 < len(ids) <= MAX_BATCH:
                raise DefinitionError(
                    f"forget names a batch, or 1 to {MAX_BATCH} ids of tasks, not {len(ids)}; ask more than once"
                )
            chosen = list({t.no: t for t in map(self.find_task, ids)}.values())
        kept: list[dict[str, Any]] = []
        going: dict[Task, None] = {}
        stays: dict[Task, str] = {}  # what is needed, and whatever would have taken that along
        for task in chosen:
            along = _with_skipped(task, going, stays)
            why = next((text for t in along if (text := stays.get(t) or _needed(t, along, going))), "")
            if why:
                stays.update(dict.fromkeys(along, why))
                kept.append({"id": task.id, "key": task.key, "why": why})
            else:
                going |= along
        for batch, tasks in _by_batch(going):
            self._give_up(session, batch, tasks)
        return {"forgotten": len(going), "kept": kept[:_KEPT_SHOWN], "kept_total": len(kept)}

    def _give_up(self, session: Session, batch: Batch, tasks: Sequence[Task]) -> None:
        """Forget what a person names; its batch ended badly, and stays so without them."""
        said = f"{len(tasks)} of its tasks were dropped by {session.name} after they ended badly"
        self.emit("p", "rig.forgot", "", batch.id, {"tasks": len(tasks), "by": session.name})
        if batch.kind != "calls" and not batch.cancelled:
            batch.error = batch.error or said
            self.keep_batch(batch)
        self.forget_tasks(batch, tasks)

    def forget_tasks(self, batch: Batch, gone: Iterable[Task]) -> None:
        """Delete ended tasks of a batch, and the batch with its last one."""
        for task in gone:
            self.drop_task(task)
            if batch.kind == "calls":  # it may never be gone as a whole
                self.changes.purge_logs.append((batch.id, task.key, task.attempt))
        if not batch.keys and (batch.ended_at or batch.kind == "calls"):
            del self.batches[batch.no], self.batch_ids[batch.id], self.batch_keys[batch.key]
            self.changes.batches.pop(batch.no, None)
            self.changes.purge_batches.append(batch.no)
            self.drop_fact("plan", batch.id)
            self.forget_escalations(batch.id)


def _with_skipped(task: Task, going: dict[Task, None], stays: dict[Task, str]) -> dict[Task, None]:
    """The task, and what of its batch was skipped for it: that will never run without it. No further than is known."""
    found: dict[Task, None] = {task: None}
    todo = [task]
    while todo:
        last = todo.pop()
        for other, _ in (last.dependents or ()) if last not in stays else ():
            mine = other.batch is task.batch and other.state is TaskState.SKIPPED
            if mine and other not in found and other not in going and _is_there(other):
                found[other] = None
                todo.append(other)
    return found


def _needed(task: Task, along: dict[Task, None], going: dict[Task, None]) -> str:
    """Why a task must stay; empty when it may go with ``along``, after ``going``."""
    batch = task.batch
    if not task.ended or task.state is TaskState.DONE:
        return f"{task.key} is {STATE_NAMES[task.state]}: only what ended badly can be dropped"
    if batch.kind == "plan" and batch.state not in BATCH_ENDED:
        return f"its batch {batch.id} still runs: wait for its end, or rigbus cancel {batch.id}"
    for other in [o for o, _ in task.dependents or ()] + list(task.children or ()):
        if other in along or other in going or not _is_there(other):
            continue
        if not other.ended:
            return f"{other.key} of batch {other.batch.id} waits for it: rigbus cancel {other.id[:8]}"
        if other.state is TaskState.SKIPPED:
            return f"{other.key} of batch {other.batch.id} was skipped for it: drop that first"
    return ""


def _is_there(task: Task) -> bool:
    """A task that was forgotten may still stand in the list of one that was not."""
    return task.batch.keys.get(task.key) is task


def _by_batch(tasks: Iterable[Task]) -> list[tuple[Batch, list[Task]]]:
    found: dict[int, tuple[Batch, list[Task]]] = {}
    for task in tasks:
        found.setdefault(task.batch.no, (task.batch, []))[1].append(task)
    return list(found.values())
