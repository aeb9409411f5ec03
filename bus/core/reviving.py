"""A person's REQUEUE: what ended badly runs again, and what was skipped for it waits again. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ..states import ENDED_BADLY, TaskEvent, TaskState
from .lifecycle import Lifecycle
from .model import PLACEMENT_ASKS, Batch, Revised, Task


class Reviving(Lifecycle):
    """The only way out of a terminal state."""

    def requeue(self, tasks: Iterable[Task], batch: Batch | None = None) -> tuple[int, int]:
        """DEAD, EXPIRED and CANCELLED of ``tasks`` start anew, with their SKIPPED descendants: (requeued, revived).

        A task goes to READY; one that has something live before it (because that is requeued too) waits for it. An
        edge that a task outside this request has broken no longer holds a requeued task: the person wants it to run.
        A join runs nothing, so it only comes back with what feeds it. The calls of a requeued handler that ended badly
        are requeued with it: their recorded ends would be its answers. A ``batch`` whose plan was not planned to its end
        is planned, whatever it has of tasks.

        One that is being cancelled comes back when its tree is dead, unless it ended well: the later word counts, and
        its batch does not end in between. Its calls are made anew then.
        """
        tasks = list(tasks)
        spared = sum(self._spare(task) for task in tasks)
        chosen = self._with_calls(tasks)
        coming = self._coming(chosen)
        self._bring_back(coming)
        batches = {t.batch.no: t.batch for t in coming.values()}
        if batch is not None and not batch.closed and (batch.cancelled or batch.error is not None):
            batches[batch.no] = batch
        self._reopen(batches.values())
        requeued = sum(no in chosen for no in coming)
        return requeued + spared, len(coming) - requeued

    def run_again(self, task: Task, run: tuple[int, int], reason: str) -> bool:
        """End what runs under this token and begin the task anew, in one step, so that its batch does not end in between;
        whether.

        LEASED comes back when its tree is dead, unless it ended well; REVIEW at once. Left as it is: another run, what
        has ended, what judges, and what is to end with its batch or its caller.
        """
        if task.token != run or task.policy.aside or task.dropped:
            return False
        if task.state is TaskState.REVIEW:
            self.close_attempt(task, "task", reason)
            self.drop_judges(task)
            self.move(task, TaskEvent.REJECT)
            task.counts, task.error, task.silences = (0, 0, 0), None, 0
            self.forget_crashes(task)
            self.forget_calls(task)
            self._leave_to_person(task)
            self.await_again(task, "requeued", by_edges=False)
            return True
        if task.state is not TaskState.LEASED:
            return False
        if task.ending:
            return Revised.GOES_ON in task.revised or self._spare(task)
        self.cancel_task(task, reason)
        self._come_back_later(task)
        return True

    def _spare(self, task: Task) -> bool:
        """Whether the task is being cancelled by itself, and not with its batch or its caller: then it is to come back."""
        whole = task.batch.cancelled or task.batch.error is not None
        if task.ended or task.ending != 1 or task.dropped or task.policy.aside or whole:
            return False
        caller = self.tasks.get(task.parent)
        if caller is not None and (caller.ended or caller.ending):
            return False
        self._come_back_later(task)
        return True

    def _come_back_later(self, task: Task) -> None:
        self._leave_to_person(task)
        self.mark_revised(task, task.revised | Revised.GOES_ON)

    def _leave_to_person(self, task: Task) -> None:
        """A person is there now: as of a task that has ended, neither its client's session nor its time counts."""
        self.disown(task)
        task.deadline, task.owner = 0.0, ""

    def judges_of(self, task: Task) -> list[Task]:
        """The tasks that judge a result of ``task`` and have not ended."""
        return [child for child in task.children or () if child.policy.aside and not child.ended]

    def drop_judges(self, task: Task) -> None:
        """The result is judged otherwise: what still judges it is not wanted."""
        for judge in self.judges_of(task):
            self.cancel_task(judge, f"the result of {task.key} has a verdict already")

    def _coming(self, chosen: dict[int, Task], *, by_edges: bool = False) -> dict[int, Task]:
        """The chosen that can come back, and what was skipped for them. ``by_edges``: a broken one keeps the chosen down,
        too."""
        coming = {**chosen, **self._skipped_after(chosen)}
        self._drop_blocked(coming, {} if by_edges else chosen)
        return coming

    def _bring_back(self, coming: dict[int, Task]) -> None:
        """Tasks that ended badly begin anew, each where its edges have it."""
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
            if task.revised:
                self.mark_revised(task, Revised.NO)
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

    def _with_calls(self, tasks: Iterable[Task]) -> dict[int, Task]:
        """Those of ``tasks`` that a person can requeue, and such calls of their handlers."""
        found: dict[int, Task] = {}
        todo = list(tasks)
        while todo:
            task = todo.pop()
            if task.no in found or task.state not in ENDED_BADLY or task.state is TaskState.SKIPPED:
                continue
            if task.dropped:
                continue  # its plan has it no more
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
                skipped = other.state is TaskState.SKIPPED and not other.dropped
                if skipped and other.no not in found and other.no in self.tasks:
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
        return not on_end and no not in coming and self._is_broken(no)

    def _open(self, no: int, coming: dict[int, Task]) -> bool:
        """Whether an edge's source is still to end."""
        return no in coming or self._is_open(no)

    @staticmethod
    def _wait_again(task: Task, coming: dict[int, Task]) -> None:
        """Who still waits counted the end of this task as one of its edges: that edge is open again."""
        for other, _ in task.dependents or ():
            if other.state is TaskState.WAITING and other.no not in coming:
                other.unmet += 1

    def _reopen(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            batch.cancelled = False
            batch.error = None
            self.keep_batch(batch)
            self.touch_batch(batch)
            if batch.kind == "plan":  # a plan, or a foreach, that was cut off half-way goes on
                data = {"name": batch.name, "unplanned": not batch.closed}
                self.emit("a", "batch.plan.reopened", "", batch.id, data)
