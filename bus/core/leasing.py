"""Leases: granted, renewed, lost, answered. Pure.

A lease is a fencing token ``(incarnation, seq)``. It is durable, with its attempt count, before it is sent; a result
that does not carry the current token is STALE: logged, never applied.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from ..errors import Refused
from ..states import TaskEvent, TaskState
from ..timing import LOOK_S
from ..wire import LEASE_S, Envelope, Token, Verb
from .bounds import WORKER_LEASES
from .checks import (
    MAX_INT,
    MAX_REASON_CHARS,
    MAX_VRAM_MB,
    Outcome,
    number,
    outcomes,
    text,
    texts,
    token,
    tokens,
    whole,
)
from .fencing import CARDS
from .lifecycle import DEADLINE_PASSED
from .model import Doubt, Revised, Send, Session, Task
from .reviving import Reviving

_REMEMBERED: Final = 20_000
_TOLD: Final = -1  #: in place of the hash of a result that was contradicted; no hash is -1
_UNKILLABLE_SHOWN: Final = 64
#: payloads are at most 256 KiB, so a message stays in the low megabytes even at worst
_LEASES_A_MESSAGE: Final = 250


class Leasing(Reviving):
    """Matching, and the worker's verbs."""

    def __init__(
        self, *, incarnation: int, state_id: str, lease_s: float = LEASE_S, age_s: float = 60.0
    ) -> None:
        super().__init__(incarnation=incarnation, state_id=state_id, age_s=age_s)
        self.lease_s = lease_s
        self.token_seq = 0
        self.leases: dict[Token, Task] = {}
        #: results that may be sent again: the number of their task, and a hash of what was recorded (None: not known)
        self.recorded: OrderedDict[Token, tuple[int, int | None]] = OrderedDict()
        self.stale_results = 0
        self.contradictions = 0  #: results that were not those recorded under their token

    # -- granting --------------------------------------------------------------------------------------------

    def match(self) -> None:
        """Give ready tasks to workers with free credit: first every slot, one by one, then prefetch in small turns."""
        if not self.ready.shapes or self.paused("all") or not self.room.starts_tasks:
            return
        grants: dict[str, list[Task]] = {}
        for prefetch in (False, True):
            turn = 8 if prefetch else 1
            open_ = [w for w in self.workers() if self.may_lease(w)]
            open_.sort(key=lambda w: (len(w.leases) / w.slots, w.order))
            while open_ and self.ready.shapes:
                again = []
                for worker in open_:
                    room = (worker.credit if prefetch else min(worker.slots, worker.credit)) - len(
                        worker.leases
                    )
                    took = self._take_turn(worker, min(turn, room), grants)
                    if 0 < took < room and took == turn:
                        again.append(worker)
                open_ = again
        for sid, tasks in grants.items():
            self._send_leases(self.sessions[sid], tasks)

    def _take_turn(self, worker: Session, n: int, grants: dict[str, list[Task]]) -> int:
        """Grant up to ``n`` tasks to a worker; how many there were."""
        for i in range(n):
            # A lent slot is for calls: their answers let somebody go on, a new conversation would only wait as well.
            calls_only = len(worker.leases) >= worker.credit - worker.lent
            task = self.ready.take(worker, self.now, calls_only=calls_only, kept_off=self.kept_off)
            if task is None:
                return i
            self._grant(task, worker)
            grants.setdefault(worker.id, []).append(task)
        return max(n, 0)

    def may_lease(self, worker: Session) -> bool:
        """Whether a worker may get leases at all right now (the last predicates of `why`)."""
        return len(worker.leases) < worker.credit and self.is_open(worker)

    def only_held(self, task: Task) -> bool:
        """Whether a task waits only for workers that are held: at least one could run it, and no other can."""
        able = [w for w in self.workers() if w.accepts(task.shape)]
        return bool(able) and all(w.held for w in able)

    def _grant(self, task: Task, worker: Session) -> None:
        self.move(task, TaskEvent.LEASE)
        self.token_seq += 1
        task.token_inc, task.token_seq = self.incarnation, self.token_seq
        task.attempt += 1
        task.session = worker.id
        task.worker = worker.name
        task.leased_at = self.wall
        task.lease_deadline = self.now + self.lease_s
        task.hold_reason = ""
        self.note_cards(worker)
        self.leases[task.token] = task
        worker.leases[task.token] = task
        self.watch(worker)
        worker.order = self.now
        self.announce(task)

    def _send_leases(self, worker: Session, tasks: list[Task]) -> None:
        for i in range(0, len(tasks), _LEASES_A_MESSAGE):
            part = tasks[i : i + _LEASES_A_MESSAGE]
            header = {"leases": [self._lease_header(t) for t in part], "lease_s": self.lease_s}
            self.fx.sends.append(Send(worker.peer, Verb.LEASE, header, payload_of=[t.no for t in part]))

    def _lease_header(self, task: Task) -> dict[str, Any]:
        shape, policy = task.shape, task.policy
        lease: dict[str, Any] = {
            "token": [task.token_inc, task.token_seq],
            "id": task.id,
            "batch": task.batch.id,
            "key": task.key,
            "type": shape.type,
            "class": shape.cls,
            "attempt": task.attempt,
            "priority": task.priority,
        }
        if policy.timeout_s is not None:
            lease["timeout_s"] = policy.timeout_s
        if policy.no_progress_s is not None:
            lease["no_progress_s"] = policy.no_progress_s
        if task.deadline:
            lease["deadline_s"] = max(0.0, task.deadline - self.now)
        if policy.review:
            lease["feedback"] = ""  # of an attempt that was rejected the shell puts it in
        if task.parent and task.parent in self.tasks:
            lease["parent"] = self.tasks[task.parent].id
        return lease

    # -- the worker's verbs ----------------------------------------------------------------------------------

    def on_offer(self, worker: Session, env: Envelope) -> None:
        """OFFER: what the worker runs and how many leases it holds at once."""
        h = env.header
        credit = whole(h, "credit", 0, MAX_INT, 0)
        slots = whole(h, "slots", 1, MAX_INT, 1)
        offered = tuple(frozenset(texts(h, name)) for name in ("types", "classes", "needs", "pools"))
        vram_mb = whole(h, "vram_mb", 0, MAX_VRAM_MB, 0) if h.get("vram_mb") is not None else None
        unkillable = texts(h, "unkillable")
        before = (worker.types, worker.classes, worker.needs, worker.pools, worker.state_id, worker.vram_mb)
        worker.credit, worker.slots = min(credit, WORKER_LEASES), slots
        worker.lent = min(whole(h, "lent", 0, MAX_INT, 0), worker.credit)
        worker.types, worker.classes, worker.needs, worker.pools = offered
        worker.state_id = str(h.get("state_id") or "")
        worker.vram_mb = vram_mb
        self._hold(worker, str(h.get("held") or "")[:MAX_REASON_CHARS])
        self._lose_slots(worker, unkillable)
        if isinstance(h.get("info"), dict):
            worker.info = h["info"]
        if before != (*offered, worker.state_id, vram_mb):
            worker.shapes.clear()

    def _hold(self, worker: Session, reason: str) -> None:
        """A worker says that it asks for no work, or that it does again: an event tells of the change only."""
        if bool(reason) != bool(worker.held):
            what = "held" if reason else "released"
            self.emit("p", f"worker.{worker.name}.{what}", "", "", {"why": reason or worker.held})
        worker.held = reason

    def _lose_slots(self, worker: Session, named: list[str]) -> None:
        """A worker names processes that cannot be killed: an event tells of each change."""
        unkillable = tuple(text[:MAX_REASON_CHARS] for text in named[:_UNKILLABLE_SHOWN])
        if unkillable != worker.unkillable:
            self.emit("p", f"worker.{worker.name}.unkillable", "", "", {"processes": list(unkillable)})
        (self.hanging.add if unkillable else self.hanging.discard)(worker.id)
        worker.unkillable = unkillable

    def held(self, worker: Session, shown: Any) -> tuple[list[Task], list[list[int]]]:
        """The tasks behind a worker's current tokens, and the tokens that are not current."""
        tasks: list[Task] = []
        stale: list[list[int]] = []
        for held in tokens(shown):
            task = self.leases.get(held)
            if task is None or task.session != worker.id:
                stale.append(list(held))
            else:
                tasks.append(task)
        return tasks, stale

    def on_started(self, worker: Session, env: Envelope) -> None:
        """STARTED: for people and clocks."""
        tasks, _ = self.held(worker, env.header.get("tokens"))
        for task in tasks:
            if not task.started_at:
                task.started_at = self.wall
                self.dirty(task)
                self.announce(task, "started")

    def renew_leases(self, worker: Session, shown: Any) -> dict[str, Any]:
        """RENEW of a worker: the header of RENEWED."""
        worker.greeted = False
        tasks, stale = self.held(worker, shown)
        if self.fences:
            self.still_runs(worker, tokens(shown))
        deadline = self.now + self.lease_s
        cancel = []
        for task in tasks:
            task.lease_deadline = deadline
            if task.ending:
                cancel.append(list(task.token))
        return {"cancel": cancel, "stale": stale, "credit": worker.credit}

    def on_result(self, sender: Session, env: Envelope) -> None:
        """RESULT: record what is current, in this transaction; answer RECORDED or STALE.

        Results of a dead process come with its ``session`` from the supervisor, or from the next worker of its name.
        """
        if sender.role not in ("worker", "supervisor"):
            raise Refused(f"RESULT is for workers and supervisors, this session is a {sender.role}")
        holder = text(env.header, "session") or sender.id
        recorded: list[list[int]] = []
        stale: list[list[int]] = []
        for out in outcomes(env.header, env.body):
            task = self.leases.get(out.token)
            if task is not None and self._may_answer(sender, holder, task):
                self._record(task, out)
            elif out.token in self.recorded:
                self._compare(sender, out)
            else:
                self.stale_results += 1
                self.emit("p", f"worker.{sender.name}.stale", "", "", {"token": list(out.token)})
                stale.append(list(out.token))
                continue
            recorded.append(list(out.token))
        self._answer(env, recorded, stale)

    @staticmethod
    def _may_answer(sender: Session, holder: str, task: Task) -> bool:
        """The fence beside the token: the lease was given to this session, and a worker speaks for its own name only."""
        return task.session == holder and (
            holder == sender.id or sender.role == "supervisor" or task.worker == sender.name
        )

    def _compare(self, sender: Session, out: Outcome) -> None:
        """The result of an attempt that is recorded already: the first stays; another content is told once."""
        no, digest = self.recorded[out.token]
        if digest == _TOLD or digest == _digest(out):
            return
        task = self.tasks.get(no)
        id_ = task.id if task is not None else ""
        ref = out.ref[0] if out.ref is not None else None
        doubt = Doubt(no, id_, out.token, sender.name, out.ok, out.value, ref)
        if digest is None:  # recorded before this start: the store knows what was
            self.recorded[out.token] = (no, _digest(out))
            self.fx.doubts.append(doubt)
        else:
            self.contradicted(doubt)

    def contradicted(self, doubt: Doubt) -> None:
        """A result is not the one that is recorded under its token."""
        if doubt.token in self.recorded:
            self.recorded[doubt.token] = (doubt.no, _TOLD)
        self.contradictions += 1
        data = {
            "token": list(doubt.token),
            "task": doubt.task,
            "why": "another result of a recorded attempt; the first stays",
        }
        self.emit("p", f"worker.{doubt.worker}.nondeterministic", "", "", data)

    def _record(self, task: Task, out: Outcome) -> None:
        self.release(task)
        self.remember(out.token, task.no, _digest(out))
        if out.wrong:
            self.fail(task, "definition", out.wrong, None)
        elif task.void:  # whatever it says, it was another task's work
            self.fail(task, "infra", task.error or "its plan was revised", None)
        elif out.ok:
            # Nobody judges what is to end: rejected, it would run again after its cancel was answered.
            ends = task.ending if task.policy.review and Revised.GOES_ON not in task.revised else 0
            reason = task.error or "cancelled"
            task.error = None
            task.ending = 0
            if task.revised and not ends:
                self.mark_revised(task, Revised.NO)
            ran = self.wall - task.started_at if task.started_at else None
            self.durations.learn(task, out.extra.get("duration_s", ran))
            self.changes.results[task.no] = out.value
            if out.ref is not None:
                self.changes.refs[task.no] = out.ref
            if ends:
                self.move(task, TaskEvent.OK_REVIEW)
                self.cancel_task(task, reason, expired=ends == 2)
            elif task.policy.review:
                self.move(task, TaskEvent.OK_REVIEW)
                self.timer(self.now + self.verdict_s, "verdict", (task, task.attempt, task.state))
                self.announce(task, **out.extra)
                if task.deadline and task.deadline <= self.now:
                    self.cancel_task(task, DEADLINE_PASSED, expired=True)  # a verdict would come too late
            else:
                self.move(task, TaskEvent.OK)
                self.conclude(task, out.value, **out.extra)
        else:
            # ended by its worker for a cancel that nobody asked for: it runs again
            error_class = "infra" if out.cancelled and not task.ending else out.error_class
            self.fail(task, error_class, out.error, out.value, **out.extra)

    def on_return(self, worker: Session, env: Envelope) -> None:
        """RETURN: handed back without a run; counts no attempt."""
        tasks, stale = self.held(worker, env.header.get("tokens"))
        reason = str(env.header.get("reason") or "returned")[:MAX_REASON_CHARS]
        delay = min(number(env.header, "not_before_s", 0, float("inf")) or 0.0, 3600.0)
        returned = [list(t.token) for t in tasks]
        for task in tasks:
            self.hand_back(task, reason, delay)
        self._answer(env, returned, stale)

    def _answer(self, env: Envelope, recorded: list[list[int]], stale: list[list[int]]) -> None:
        for verb, answered in ((Verb.RECORDED, recorded), (Verb.STALE, stale)):
            if answered:
                self.fx.sends.append(Send(env.peer, verb, {"tokens": answered}, corr=env.corr))

    def on_progress(self, worker: Session, env: Envelope) -> None:
        """PROGRESS: not durable, passed on to who waits and to the topic."""
        task = self.leases.get(token(env.header.get("token")))
        if task is None or task.session != worker.id:
            return
        header: dict[str, Any] = {k: env.header[k] for k in ("n", "pct", "note") if k in env.header}
        header["id"] = task.id
        header["attempt"] = task.attempt
        body = list(env.body)
        for sid in task.waiters or ():
            self.send(self.sessions.get(sid), Verb.PROGRESS, header, body)
        self.fx.progress.append((task.id, header, body))

    # -- the end of a lease ----------------------------------------------------------------------------------

    def release(self, task: Task) -> None:
        """Take a task's lease away, whatever follows; a later result of it is STALE."""
        self.leases.pop(task.token, None)
        worker = self.sessions.get(task.session)
        if worker is not None:
            worker.leases.pop(task.token, None)

    def remember(self, answered: Token, no: int, digest: int | None) -> None:
        """A result is recorded: the same again is answered RECORDED, not STALE."""
        self.recorded[answered] = (no, digest)
        if len(self.recorded) > _REMEMBERED:
            self.recorded.popitem(last=False)

    def remember_recorded(self, tasks: list[Task]) -> None:
        """After a restart: the newest results in the store, which their workers may send again."""
        done = [
            (t.token, t.no) for t in tasks if t.token_seq and t.state in (TaskState.DONE, TaskState.REVIEW)
        ]
        for answered, no in sorted(done)[-_REMEMBERED:]:
            self.remember(answered, no, None)

    def hand_back(self, task: Task, reason: str, delay_s: float = 0.0) -> None:
        """LEASED -> READY without counting an attempt (or to its end, if one was asked for)."""
        self.release(task)
        if task.ending:
            self.finish_ending(task, None)
            return
        self.move(task, TaskEvent.RETURN)
        task.attempt -= 1  # nothing ran: the next lease is the same attempt, under a new token
        task.hold_reason = reason
        self.ready_again(task, delay_s)
        self.announce(task, "returned", reason=reason)

    def lose(self, task: Task, why: str, *, ran: bool = True, stuck: bool = False) -> None:
        """A lease is lost, its worker is gone or silent: class ``infra``, or handed back where it cannot have run.

        ``stuck``: the worker lived but did not answer, as one does whose interpreter a handler holds. What ran there
        when that happened for the second time counts as a crash: it may be the cause.
        """
        if not ran and not task.started_at:
            self.hand_back(task, why)
            return
        error_class = "infra"
        if stuck:
            task.silences += 1
            if task.silences > 1:
                error_class = "crash"
                why += (
                    f"; that was time {task.silences} while this ran: a handler that holds the interpreter's lock stops "
                    "its whole agent, mark it isolated=True"
                )
        self.release(task)
        self.fail(task, error_class, why, None)

    def lose_leases(self, worker: Session, lost: list[Task], why: str, *, stuck: bool = False) -> None:
        """Lose some of a worker's leases. What stood behind its slots was only prefetched: that has not run, and the
        task before it that kills workers must not take it along."""
        oldest = sorted(worker.leases)[: worker.slots]
        for task in lost:
            self.lose(task, why, ran=task.token in oldest, stuck=stuck)

    def lose_absent(self, sid: str, why: str, *, dead: bool = False, overdue: bool = False) -> int:
        """Lose the leases of a session that this broker has never seen, or not since; how many.

        What it had begun is not known for sure: STARTED takes a moment, and a task that ends its whole machine takes less.
        So the oldest counts as run: one that does that every time comes to its cap. ``dead``: its tree is. ``overdue``:
        only the leases whose time is over.
        """
        lost = [t for t in self.leases.values() if t.session == sid]
        if overdue:
            lost = [t for t in lost if t.lease_deadline <= self.heard]
        if not lost:
            return 0
        oldest = min(t.token for t in lost)
        ran = [t.token for t in lost if t.started_at or t.token == oldest]
        if not dead:
            self.fence(sid, lost[0].worker or "", ran, why)
        for task in lost:
            self.lose(task, why, ran=task.token == oldest)
        return len(lost)

    def end_worker_leases(self, worker: Session, why: str, *, stuck: bool = False, dead: bool = False) -> int:
        """All leases of a worker end now; how many. ``dead``: its tree is, so that its cards are free."""
        tasks = list(worker.leases.values())
        if dead:
            self.unfence([worker.id], why)
        else:
            self._fence_lost(worker, tasks, why)
        if worker.unkillable:
            self.fence(worker.id, worker.name, (), "; ".join(worker.unkillable), undying=True)
        self.drop_fact(CARDS, worker.id)
        self.hanging.discard(worker.id)
        self.lose_leases(worker, tasks, why, stuck=stuck)
        return len(tasks)

    def _fence_lost(self, worker: Session, lost: list[Task], why: str) -> None:
        """What it may have begun of these may go on, on its cards."""
        oldest = sorted(worker.leases)[: worker.slots]
        ran = [t.token for t in lost if t.started_at or t.token in oldest]
        self.fence(worker.id, worker.name, ran, why)

    def watch(self, worker: Session) -> None:
        """See to it that one timer looks after the worker's leases."""
        if not worker.watched:
            worker.watched = True
            soonest = min(t.lease_deadline for t in worker.leases.values())
            self.timer(max(soonest, self.now + LOOK_S), "lease", worker)

    def check_leases(self, worker: Session) -> None:
        """Timer: lose what was not renewed in time; look again while anything is held."""
        worker.watched = False
        lost = [t for t in worker.leases.values() if t.lease_deadline <= self.heard]
        if lost:
            worker.suspect = True
            why = f"lease lost: {worker.name} was silent for {self.lease_s:g} s"
            self._fence_lost(worker, lost, why)
            self.lose_leases(worker, lost, why, stuck=True)
        if worker.leases:
            self.watch(worker)


def _digest(out: Outcome) -> int:
    """A hash of what a result says, good while this process lives: how long it took is no part of it."""
    return hash((out.ok, out.value, out.ref, out.error_class, out.error, out.cancelled))
