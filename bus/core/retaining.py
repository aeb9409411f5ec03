"""Which ended tasks may be forgotten. Pure."""

from __future__ import annotations

from itertools import islice

from ..states import ENDED_BADLY, TaskState
from .model import Batch, Task


def purgeable(batch: Batch, most: int) -> list[Task]:
    """At most ``most`` ended tasks of a batch, oldest first, that no other task needs any more.

    A task is needed while one that has not ended waits for it; and one that ended badly while a task that was
    skipped for it is kept: without it a later REQUEUE of another could wake the skipped one too early.
    """
    gone = {t.no: t for t in islice((t for t in batch.keys.values() if t.ended and _free(t)), most)}
    todo = list(gone.values())
    while todo:
        task = todo.pop()
        if task.no in gone and task.state in ENDED_BADLY and _keeps_down(task, gone):
            del gone[task.no]
            # what stays may have been skipped for another that was to go
            todo += [t for no, _ in task.after if (t := gone.get(no)) is not None]
    return list(gone.values())


def _free(task: Task) -> bool:
    return all(other.ended for other, _ in task.dependents or ()) and all(
        child.ended for child in task.children or ()
    )


def _keeps_down(task: Task, gone: dict[int, Task]) -> bool:
    return any(
        other.state is TaskState.SKIPPED and other.no not in gone and other.batch.keys.get(other.key) is other
        for other, _ in task.dependents or ()
    )
