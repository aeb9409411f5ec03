"""Which ended tasks may be forgotten, and how many at a time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from ..states import ENDED_BADLY, TaskState
from .model import Batch, Task

STEP_S: Final = 0.1  #: between two steps while there is too much
#: Of what is too much a tenth goes with each step: whatever the rig's rate, it is soon no more than one second's ends.
_PART: Final = 10
#: Tasks forgotten with one step: a commit that deletes more would hold up the others.
_LEAST, _MOST = 500, 2_000


class Retention:
    """Keeps so many ended tasks: past the bound a twentieth is made free, the oldest ended batches first."""

    def __init__(self) -> None:
        self.purging = False
        self._pass: list[Batch] = []  #: ended batches that this pass has not come to, the oldest last
        self._forgot = 0  #: by this pass

    def step(
        self,
        bound: int,
        ended: int,
        batches: Callable[[], Iterable[Batch]],
        age: Callable[[Batch], float],
        purge: Callable[[Batch, int], int],
    ) -> None:
        """Of ``ended`` tasks, more than ``bound``, forget the next by ``purge(batch, most)``, which says how many it could.

        A pass goes over all batches once; one that found nothing to forget is the last until the next time.
        """
        low = bound * 19 // 20
        self.purging = self.purging or ended > bound
        if not self.purging:
            return
        left = min(ended - low, max(_LEAST, min((ended - low) // _PART, _MOST)))
        if not self._pass:
            # sorted once a pass: there may be as many batches as tasks
            self._pass, self._forgot = sorted(batches(), key=age, reverse=True), 0
        while left > 0 and self._pass:
            batch = self._pass[-1]
            gone = purge(batch, left)
            self._forgot += gone
            ended -= gone
            left -= gone
            if left > 0:
                self._pass.pop()  # it has no more to give
        if ended <= low or not (self._pass or self._forgot):
            self.purging = False
            self._pass = []


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
