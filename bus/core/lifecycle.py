"""What follows when a task becomes ready, ends, fails, is cancelled or revived. Pure.

The recording of an end counts down its dependents' edges, moves the batch on and tells who waits, all in the same
step and so in the same transaction.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from ..states import BATCH_ENDED, STATE_NAMES, TaskEvent, TaskState
from ..wire import VERDICT_S, Verb
from .matching import ReadyTasks
from .model import CLASSES, Batch, Revised, Send, Session, Task
from .quarantining import Quarantining

DEADLINE_PASSED: Final = "its deadline passed"


class Lifecycle(Quarantining):
    """Transitions with their consequences."""

    def __init__(self, *, incarnation: int, state_id: str, age_s: float = 60.0) -> None:
        super().__init__(incarnation=incarnation, state_id=state_id)
        self.ready = ReadyTasks(age_s)
        self.verdict_s = VERDICT_S

    # -- becoming ready --------------------------------------------------------------------------------------

    def settle(self, task: Task, **data: Any) -> None:
        """A WAITING task whose edges may all be met: make it READY, or DONE if it is a join. ``data`` for its event."""
        if task.state is not TaskState.WAITING or task.unmet > 0:
            return
        if task.join:
            self.move(task, TaskEvent.JOIN)
            self.conclude(task, None)
        else:
            self.move(task, TaskEvent.MET)
            self.enter_ready(task)
            self.announce(task, **data)

    def enter_ready(self, task: Task, delay_s: float = 0.0) -> None:
        """Put a READY task where workers find it, after ``delay_s`` seconds."""
        task.token_seq = 0
        task.started_at = 0.0
        task.ready_at = self.now + delay_s if delay_s else self.now
        if delay_s > 0:
            task.not_before = self.now + delay_s
            self.timer(task.not_before, "not_before", task)
        else:
            task.not_before = 0.0
            self.ready.push(task)
        if task.policy.queue_timeout_s:
            self.timer(task.ready_at + task.policy.queue_timeout_s, "queue", (task, task.ready_at))

    def ready_again(self, task: Task, delay_s: float = 0.0) -> None:
        """A READY task whose attempt is over, after ``delay_s`` seconds; or when what it waits for again has ended, which
        a revision has put before it meanwhile, or a person lets run once more."""
        task.unmet = int(task.hold) + sum(self._is_open(no) for no, _ in task.after)
        if task.unmet:
            self.move(task, TaskEvent.AWAIT)
        else:
            self.enter_ready(task, delay_s)

    # -- ending ----------------------------------------------------------------------------------------------

    def conclude(self, task: Task, value: bytes | None, **data: Any) -> None:
        """Everything that follows a terminal state, in the transaction that records it. Iterative: chains are long."""
        if self.quarantine.watched and task.state is TaskState.DONE and task.worker:
            self.note_result(task.worker)
        self._told(task, value, data)
        self._go_on(self._followers(task))

    def _go_on(self, moved: list[tuple[Task, bool]]) -> None:
        """What follows from tasks that were moved: True for those that have ended, False for whose turn it may be."""
        todo = deque(moved)
        while todo:
            other, has_ended = todo.popleft()  # in order: what was submitted first is ready first
            if has_ended:
                self._told(other, None, {"upstream": other.error})
            elif other.state is not TaskState.WAITING or other.unmet > 0:
                continue
            elif other.join:
                self.move(other, TaskEvent.JOIN)
                self._told(other, None, {})
            else:
                self.settle(other)
                continue
            todo += self._followers(other)

    def _followers(self, task: Task) -> list[tuple[Task, bool]]:
        """Meet or break the edges from an ended task, end its children; the tasks to go on with."""
        moved: list[tuple[Task, bool]] = []
        for other, on_end in task.dependents or ():
            if other.state is not TaskState.WAITING:
                continue
            if task.breaks and not on_end:
                other.error = f"skipped: {task.key} ended {STATE_NAMES[task.state]}"
                self.move(other, TaskEvent.SKIP)
                moved.append((other, True))
            else:
                other.unmet -= 1
                if other.unmet <= 0:
                    moved.append((other, False))
        moved += self._end_children(task, f"its parent {task.key} ended {STATE_NAMES[task.state]}")
        return moved

    def _told(self, task: Task, value: bytes | None, data: dict[str, Any]) -> None:
        """Event, waiters, owner and batch of a task that has just ended."""
        self.forget_crashes(task)
        if task.error:
            data["error"] = task.error[:2000]
        self.announce(task, **data)
        if task.waiters:
            header = self.ended_header(task, data)
            for sid in task.waiters:
                session = self.sessions.get(sid)
                if session is not None and task.policy.review and value is None:
                    self._send_from_store(session, task, header)
                elif session is not None:
                    self.send(session, Verb.ENDED, header, [value or b""])
            task.waiters = None
        self.disown(task)
        self.touch_batch(task.batch)

    def disown(self, task: Task) -> None:
        """The end of its client's session is not its end."""
        owned = self.owned.get(task.owner)
        if owned is not None:
            owned.pop(task.no, None)
            if not owned:
                del self.owned[task.owner]

    def _send_from_store(self, session: Session, task: Task, header: dict[str, Any]) -> None:
        """ENDED of a task whose value was recorded before, when its result went to its judge."""
        if session.peer:
            send = Send(session.peer, Verb.ENDED, {**header, "rows": [{"no": task.no}]}, [b""])
            send.rows_of = [task.no]
            self.fx.sends.append(send)

    @staticmethod
    def ended_header(task: Task, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """The header of ENDED (PROTOCOL §5)."""
        header: dict[str, Any] = {
            "id": task.id,
            "state": STATE_NAMES[task.state],
            "ok": task.state is TaskState.DONE,
            "error": task.error,
            "attempts": task.attempt,
            "worker": task.worker,
        }
        for name in ("class", "ref", "duration_s"):
            if data and data.get(name) is not None:
                header[name] = data[name]
        return header

    def listen(self, task: Task, session: Session) -> None:
        """A session wants to hear how a task ends. Sessions that are over are forgotten here, not when they end."""
        task.waiters = frozenset(s for s in task.waiters or () if s in self.sessions) | {session.id}

    # -- failing ---------------------------------------------------------------------------------------------

    def fail(self, task: Task, error_class: str, error: str, value: bytes | None, **data: Any) -> None:
        """A LEASED attempt ended badly: back to READY, to FAILED, or DEAD, by the policy on the task."""
        self.close_attempt(task, error_class, error)
        if task.ending:
            self.finish_ending(task, value)
            return
        task.error = error
        data["class"] = error_class
        if error_class in CLASSES:
            i = CLASSES.index(error_class)
            counts = list(task.counts)
            counts[i] += 1
            task.counts = (counts[0], counts[1], counts[2])
            failures = counts[i]
            over = failures >= task.policy.cap(error_class)
            if error_class == "crash":
                over, error = self.note_crash(task, error, over=over)
                task.error = error
            if not over:
                self.move(task, TaskEvent.RETRY)
                # the first loss of a worker is nobody's fault: again at once
                failures -= error_class == "infra"
                delay = task.policy.backoff(failures, f"{task.id}/{task.attempt}") if failures else 0.0
                self.ready_again(task, delay)
                self.announce(task, "retry", error=error[:2000], delay_s=delay, **data)
                return
            if task.policy.escalate and error_class != "infra":
                self.move(task, TaskEvent.ESCALATE)
                self.timer(self.now + self.verdict_s, "verdict", (task, task.attempt, task.state))
                self.announce(task, error=error[:2000], **data)
                return
        self.move(task, TaskEvent.BURY)
        if value is not None:
            self.changes.results[task.no] = value
        self.conclude(task, value, **data)

    def close_attempt(self, task: Task, error_class: str, error: str | None) -> None:
        """Keep what is known of an attempt that did not end well; the last good one stands in the task's row."""
        self.changes.attempts.append(
            (
                task.no,
                task.attempt,
                task.worker,
                task.started_at or task.leased_at,
                self.wall,
                error_class,
                (error or "")[:4000],
            )
        )

    def finish_ending(self, task: Task, value: bytes | None) -> None:
        """The tree of a task that is to be cancelled or has expired is dead: its state follows, with that reason."""
        expired, task.ending = task.ending == 2, 0
        if Revised.GOES_ON in task.revised:
            self._come_back(task)
            return
        task.revised &= ~Revised.VOID
        self.move(task, TaskEvent.EXPIRE if expired else TaskEvent.CANCEL)
        if value:
            self.changes.results[task.no] = value
        self.conclude(task, value)

    def _come_back(self, task: Task) -> None:
        """What ran of it is over, and meanwhile its plan was revised, or a person wanted it again: it begins anew."""
        why = "revised" if task.batch.revisions else "requeued"
        other = Revised.VOID in task.revised  #: another definition, whose edges may be broken
        task.revised = Revised.NO
        task.error = None
        task.counts = (0, 0, 0)
        task.silences = 0
        self.forget_crashes(task)
        self.forget_calls(task)
        self.move(task, TaskEvent.RETURN)
        self.await_again(task, why, by_edges=other)

    def forget_calls(self, task: Task, *, done: bool = False) -> None:
        """A handler begins anew, or is dropped: how its calls have ended is no answer any more, but for what is done.

        ``done``: nor is that, as the handler is another one by a revised plan.
        """
        todo = list(task.children or ())
        while todo:
            child = todo.pop()
            if child.policy.aside or child.no not in self.tasks:
                continue
            todo += child.children or ()
            if child.state is TaskState.DONE and not done:
                continue
            void = Revised.VOID if done and child.state is TaskState.LEASED else child.revised & Revised.VOID
            self.mark_revised(child, Revised.DROPPED | void)
            self.cancel_task(child, f"{task.key}, which called it, begins anew or is dropped"[:500])

    def await_again(self, task: Task, why: str = "revised", *, by_edges: bool = True) -> None:
        """Where a READY task that begins anew belongs by its edges, as they are now. ``why`` is for its event.

        Without ``by_edges`` a broken one does not count: it has run before, in spite of it.
        """
        task.unmet = int(task.hold) + sum(self._is_open(no) for no, _ in task.after)
        broken = [no for no, on_end in task.after if by_edges and not on_end and self._is_broken(no)]
        if not (task.unmet or task.join or broken):
            self.enter_ready(task)
            self.announce(task, None, **{why: True})
            return
        self.move(task, TaskEvent.AWAIT)
        if broken:
            self.skip(task, broken[0])
        elif task.unmet:
            self.announce(task, None, **{why: True})
        else:
            self.settle(task)

    def skip(self, task: Task, no: int) -> None:
        """A WAITING task ends here: what it waits for has ended badly."""
        src = self.tasks[no]
        task.error = f"skipped: {src.key} ended {STATE_NAMES[src.state]}"
        self.move(task, TaskEvent.SKIP)
        self.conclude(task, None)

    def _is_open(self, no: int) -> bool:
        src = self.tasks.get(no)
        return src is not None and not src.ended

    def _is_broken(self, no: int) -> bool:
        src = self.tasks.get(no)
        return src is not None and src.breaks

    # -- cancelling, expiring --------------------------------------------------------------------------------

    def cancel_task(self, task: Task, reason: str, *, expired: bool = False) -> str:
        """Cancel (or expire) one task: ``cancelled`` now, ``ending`` when its tree is dead, ``already`` ended."""
        if task.ended:
            return "already"
        if task.state is TaskState.LEASED:
            if Revised.GOES_ON in task.revised:  # the later word counts
                task.ending = 0
                task.revised &= ~Revised.GOES_ON
            self._ask_end(task, reason, 2 if expired else 1)
            self._go_on(self._end_children(task, f"its parent {task.key} is to end: {reason}"[:500]))
            return "ending"
        task.error = reason
        self.move(task, TaskEvent.EXPIRE if expired else TaskEvent.CANCEL)
        self.conclude(task, None)
        return "cancelled"

    def _ask_end(self, task: Task, reason: str, ending: int) -> None:
        """The durable wish that a LEASED task ends; its worker is told, and again with each RENEWED."""
        if task.ending:
            return
        task.ending = ending
        task.error = reason
        self.dirty(task)
        worker = self.sessions.get(task.session)
        self.send(worker, Verb.CONTROL, {"action": "cancel", "tokens": [list(task.token)]})
        self.announce(task, "ending", reason=reason)

    def _end_children(self, task: Task, reason: str) -> list[tuple[Task, bool]]:
        """End what a handler has called, and what that has called, of a task that has ended or is to end.

        At once: a handler that waits for an answer would hear of its own cancel only then. The tasks to go on with.
        """
        moved: list[tuple[Task, bool]] = []
        todo = [(child, reason) for child in task.children or ()]
        while todo:
            child, why = todo.pop()
            if child.ended or child.ending:
                if Revised.GOES_ON in child.revised:  # nobody waits for its answer any more
                    self.mark_revised(child, child.revised & ~Revised.GOES_ON)
                continue
            if child.state is TaskState.LEASED:
                self._ask_end(child, why, 1)
                below = f"its parent {child.key} is to end: {why}"[:500]
                todo += [(grandchild, below) for grandchild in child.children or ()]
            else:  # its own children follow when it is told
                child.error = why
                self.move(child, TaskEvent.CANCEL)
                moved.append((child, True))
        return moved

    def cancel_batch(self, batch: Batch, reason: str, *, failed: bool = False) -> dict[str, int]:
        """Cancel what is left of a batch. With ``failed`` it ends ``failed`` (a plan aborted by its own policy)."""
        tally = {"cancelled": 0, "ending": 0, "already": 0}
        if batch.kind != "calls":
            # a plan that was not planned to its end is, should a person bring the batch back
            batch.closed = batch.closed or batch.kind != "plan"
            if batch.state not in BATCH_ENDED:
                if failed:
                    batch.error = batch.error or reason
                else:
                    batch.cancelled = True
            self.keep_batch(batch)
        # from the end: a dependent cancelled first is not skipped by its dependency's cancel
        for task in reversed(list(batch.keys.values())):
            tally[self.cancel_task(task, reason)] += 1
        self.touch_batch(batch)
        return tally
