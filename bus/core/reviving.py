"""A person's REQUEUE: what ended badly runs again, and what was skipped for it waits again. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ..states import ENDED_BADLY, TaskEvent, TaskState
from .lifecycle import Lifecycle
from .model import PLACEMENT_ASKS, Task


class Reviving(Lifecycle):
    """The only way out of a terminal state."""

    def requeue(self, tasks: Iterable[Task]) -> tuple[int, int]:
        """DEAD, EXPIRED and CANCELLED of ``tasks`` start anew, with their SKIPPED descendants: (requeued, revived).

        A task goes to READY; one that has something live before it (because that is requeued too) waits for it. An
        edge that a task outside this request has broken no longer holds a requeued task: the person wants it to run.
        A join runs nothing, so it only comes back with what feeds it. The calls of a requeued handler that ended badly
        are requeued with it: their recorded ends would be its answers.
        """
        chosen = self._with_calls(tasks)
        coming = {**chosen, **self._skipped_after(chosen)}
        self._drop_blocked(coming, chosen)
        for task in coming.values():
            self._wait_again(task, coming)
        waiting = []
        for task in coming.values():
            task.counts = (0, 0, 0)
            self.forget_crashes(task)
            task.silences = 0
            task.error = None
            task.deadline = 0.0  # times start anew, and the old one may be over
            task.ending = 0
            task.owner = ""  # its client may be gone; the person is there
            if task.shape.type in PLACEMENT_ASKS:
                self.asks[task.no] = task
            task.unmet = int(task.hold) + sum(self._open(no, coming) for no, _ in task.after)
            if task.unmet or task.join or task.state is TaskState.SKIPPED:
                waiting.append(task)
            else:
                self.move(task, TaskEvent.REQUEUE)
                self.enter_ready(task)
                self.announce(task, requeued=True)
        for task in waiting:
            self.move(task, TaskEvent.REVIVE)
        for task in waiting:
            if task.unmet:
                self.announce(task, revived=True)
            else:
                self.settle(task)
        self._reopen(coming.values())
        requeued = sum(no in chosen for no in coming)
        return requeued, len(coming) - requeued

    def _with_calls(self, tasks: Iterable[Task]) -> dict[int, Task]:
        """Those of ``tasks`` that a person can requeue, and such calls of their handlers."""
        found: dict[int, Task] = {}
        todo = list(tasks)
        while todo:
            task = todo.pop()
            if task.no in found or task.state not in ENDED_BADLY or task.state is TaskState.SKIPPED:
                continue
            if task.policy.aside:
                continue  # it judged a result that is over: the next one gets a judge of its own
            if task.no not in self.tasks:
                continue  # purged: it runs anew when it is asked for
            found[task.no] = task
            todo += task.children or ()
        return dict(sorted(found.items()))

    def _skipped_after(self, chosen: dict[int, Task]) -> dict[int, Task]:
        """The SKIPPED descendants."""
        found: dict[int, Task] = {}
        todo = list(chosen.values())
        while todo:
            for other, _ in todo.pop().dependents or ():
                # a purged task may still stand in the list of one that was not
                if other.state is TaskState.SKIPPED and other.no not in found and other.no in self.tasks:
                    found[other.no] = other
                    todo.append(other)
        return found

    def _drop_blocked(self, coming: dict[int, Task], chosen: dict[int, Task]) -> None:
        """Leave where they are those SKIPPED ones and joins that a task which does not come back keeps down."""
        todo = list(coming.values())
        while todo:
            task = todo.pop()
            if task.no not in coming or (task.no in chosen and not task.join):
                continue
            if any(self._broken(no, on_end, coming) for no, on_end in task.after):
                del coming[task.no]
                todo += [other for other, _ in task.dependents or ()]

    def _broken(self, no: int, on_end: bool, coming: dict[int, Task]) -> bool:
        src = self.tasks.get(no)
        return src is not None and no not in coming and not on_end and src.state in ENDED_BADLY

    def _open(self, no: int, coming: dict[int, Task]) -> bool:
        """Whether an edge's source is still to end."""
        src = self.tasks.get(no)
        return src is not None and (no in coming or not src.ended)

    @staticmethod
    def _wait_again(task: Task, coming: dict[int, Task]) -> None:
        """Who still waits counted the end of this task as one of its edges: that edge is open again."""
        for other, _ in task.dependents or ():
            if other.state is TaskState.WAITING and other.no not in coming:
                other.unmet += 1

    def _reopen(self, tasks: Iterable[Task]) -> None:
        for batch in {t.batch.no: t.batch for t in tasks}.values():
            batch.cancelled = False
            batch.error = None
            self.keep_batch(batch)
            self.touch_batch(batch)
            if batch.kind == "plan":  # a foreach that was cut off half-way goes on
                self.emit("a", "batch.plan.reopened", "", batch.id, {"name": batch.name})
