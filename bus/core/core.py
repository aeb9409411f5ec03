"""The broker's pure core: ``step(message, now, wall)`` and ``tick(now, wall)``, then ``take_effects()``.

No socket, no disk, no clock, no randomness. The layers, each one file: ``ledger`` (memory) < ``fencing`` (lost cards) <
``quarantining`` (crashes) < ``lifecycle`` (transitions) < ``reviving`` (a person's requeue) < ``leasing`` (workers) <
``submitting`` (tasks) < ``revising`` (new plans) < ``escalating`` (open questions) < ``judging`` (the brain) < ``asking``
(queries) < ``seating`` (sessions) < ``forgetting`` (ended tasks) < ``operating`` (people) < ``waking`` (clocks) < this
(start, dispatch, timers).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import BadFrame, Conflict, DefinitionError, NotFound, Refused
from ..states import TaskState
from ..timing import LOOK_S, absence_s, beat_s, renewal_s, suspicion_s
from ..wire import CLIENT_SESSION_S, GRACE_S, LEASE_S, MAX_REQUESTS, Envelope, Verb
from .bounds import Busy
from .judging import Verdict
from .lifecycle import DEADLINE_PASSED
from .model import Batch, Fact, Send, Session, Task, called_from
from .retaining import STEP_S, Retention, purgeable
from .submitting import KeyConflict
from .waking import Waking

_CODES = frozenset({"stale_epoch", "stale_token", "version"})
_ANSWERS = {Verb.SUBMIT: Verb.ACCEPTED, Verb.RENEW: Verb.RENEWED, Verb.SNAPSHOT: Verb.SNAPSHOT}


class Core(Waking):
    """The whole broker but its I/O."""

    def __init__(
        self,
        *,
        incarnation: int,
        state_id: str,
        epoch: int = 0,
        lease_s: float = LEASE_S,
        renew_s: float | None = None,
        age_s: float = 60.0,
        retain_tasks: int = 200_000,
        build: str = "",
        schema: int = 1,
        endpoints: dict[str, str] | None = None,
    ) -> None:
        super().__init__(incarnation=incarnation, state_id=state_id, lease_s=lease_s, age_s=age_s)
        self.epoch = epoch
        self.renew_s = renewal_s(lease_s) if renew_s is None else renew_s
        self.retain_tasks = retain_tasks
        self.build = build
        self.durability = "full"
        self.schema = schema
        self.endpoints = endpoints or {}
        self._retention = Retention()
        self.round = 0  #: of messages, between two ticks
        self._verbs: dict[Verb, Callable[[Session, Envelope], dict[str, Any] | None]] = {
            Verb.RENEW: self.renew,
            Verb.OFFER: self.only_workers(self.on_offer),
            Verb.STARTED: self.only_workers(self.on_started),
            Verb.RESULT: self.on_result,
            Verb.RETURN: self.only_workers(self.on_return),
            Verb.PROGRESS: self.only_workers(self.on_progress),
            Verb.SUBMIT: self.submit,
            Verb.CANCEL: self.cancel,
            Verb.REQUEUE: self.requeue_asked,
            Verb.REVISE: self.revise,
            Verb.QUERY: self._query,
            Verb.SNAPSHOT: self._snapshot,
            Verb.CONTROL: self.control,
            Verb.DRAIN: self.drain,
            Verb.GONE: self.gone,
            Verb.TOKEN: self.token_asked,
            Verb.BYE: self.bye,
            Verb.BRAIN: self.brain_message,
        }

    # -- starting --------------------------------------------------------------------------------------------

    def load(
        self,
        batches: list[Batch],
        tasks: list[Task],
        edges: dict[int, dict[str, Any]],
        facts: dict[tuple[str, str], Fact],
        now: float,
        wall: float,
    ) -> None:
        """Take over what the store holds; ``edges`` are by a task's number.

        Leases found get ``lease_s`` + 5 s of grace: nothing runs twice for a restart.
        """
        self.now, self.wall, self.heard = now, wall, now
        self.facts = facts
        self.durations.load(facts)
        for batch in batches:
            self.add_batch(batch)
            self.next_batch = max(self.next_batch, batch.no + 1)
        for task in tasks:
            self.add_task(task)
            self.next_no = max(self.next_no, task.no + 1)
        for task in tasks:
            self.link(task, edges.get(task.no))
            if not task.parent:
                continue
            parent = self.tasks.get(task.parent)
            task.shape = called_from(task.shape, parent.shape if parent is not None else None)
            if parent is not None:
                parent.children = parent.children or []
                parent.children.append(task)
        self.load_fences()
        self.load_quarantine()
        self.load_escalations()
        for task in tasks:
            self._resume(task)
        self.remember_recorded(tasks)
        grace_until = now + self.lease_s + GRACE_S
        self.timer(grace_until, "grace", grace_until)
        self.timer(now + 1.0, "second", None)
        self.timer(now + beat_s(self.lease_s), "silence", None)

    def _resume(self, task: Task) -> None:
        """Put one loaded task where its state wants it."""
        if task.ended:
            return
        if task.owner:
            self.owned.setdefault(task.owner, {})[task.no] = task
        if task.deadline:
            self.timer(task.deadline, "deadline", task)
        if task.state is TaskState.READY:
            self.enter_ready(task, max(0.0, task.not_before - self.now))
        elif task.state is TaskState.LEASED:
            task.lease_deadline = self.now + self.lease_s + GRACE_S
            self.leases[task.token] = task
            self.timer(task.lease_deadline, "orphan", task)
        elif task.state in (TaskState.REVIEW, TaskState.FAILED):
            self.timer(self.now + self.verdict_s, "verdict", (task, task.attempt, task.state))

    # -- stepping --------------------------------------------------------------------------------------------

    def step(self, env: Envelope, now: float, wall: float) -> None:
        """One message. What a peer sent can be refused, never crash the loop: errors become its answer.

        A refused message has changed nothing: every handler checks the whole of it first.
        """
        self.now, self.wall = now, wall
        try:
            self._dispatch(env)
        except Busy as e:
            header = {"retry_after_s": e.retry_after_s, "bound": e.bound, "message": str(e), "verb": env.verb}
            self.fx.sends.append(Send(env.peer, Verb.BUSY, header, corr=env.corr))
        except Conflict as e:
            header = {"message": str(e), "key": e.key if isinstance(e, KeyConflict) else ""}
            self.fx.sends.append(Send(env.peer, Verb.CONFLICT, header, corr=env.corr))
        except NotFound as e:
            self._error(env, "not_found", str(e))
        except DefinitionError as e:
            self._error(env, "definition", str(e))
        except Refused as e:
            code, _, rest = str(e).partition(": ")
            known = code in _CODES
            self._error(env, code if known else "refused", rest if known else str(e))
        except BadFrame as e:
            self._error(env, "bad_frame", f"{env.verb}: {e}")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
            # a header whose fields are missing or of another kind: PROTOCOL §2 says ERROR and go on
            self._error(env, "bad_frame", f"{env.verb}: a field is missing or of the wrong kind: {e!r:.300}")

    def _dispatch(self, env: Envelope) -> None:
        if env.verb is Verb.HELLO:
            self.hello(env)
            return
        session = self.peers.get(env.peer)
        if session is None:
            self._error(env, "no_session", "say HELLO first: this broker does not know the connection")
            return
        session.last_seen = self.now
        self.admit(session)
        handler = self._verbs.get(env.verb)
        if handler is None:
            self._error(env, "unsupported", f"{env.verb} is not for the broker")
            return
        answer = handler(session, env)
        if answer is not None:
            send = Send(env.peer, _ANSWERS.get(env.verb, Verb.OK), answer, corr=env.corr)
            self._fill(send)
            self.fx.sends.append(send)

    def admit(self, session: Session) -> None:
        """One question more of a session in this round.

        Raises:
            Busy: a client asks more at once than may be unanswered; other roles say what must not be refused.
        """
        round_, n = session.requests
        n = n + 1 if round_ == self.round else 1
        session.requests = (self.round, n)
        if n > MAX_REQUESTS and session.role == "client":
            raise Busy(
                "requests",
                f"{n} questions of this client at once, {MAX_REQUESTS} are allowed: wait for answers",
            )

    def _error(self, env: Envelope, code: str, message: str) -> None:
        header = {"code": code, "message": message, "verb": env.verb.value}
        self.fx.sends.append(Send(env.peer, Verb.ERROR, header, corr=env.corr))

    @staticmethod
    def _fill(send: Send) -> None:
        """Queries name the rows that the shell completes from the store."""
        rows = send.header.get("rows")
        if send.header.pop("_fill", False) and rows:
            send.rows_of = [r["no"] for r in rows]
        send.history = bool(send.header.pop("_history", False))
        send.attempts_of = send.header.pop("_attempts", 0)
        send.evaluations_of = send.header.pop("_evaluations", 0)

    def tick(self, now: float, wall: float, heard: float | None = None) -> None:
        """Fire the timers that are due. Call it before each commit and when ``next_timer`` passes.

        ``heard``: until then all that peers had said has been read, so silence is judged by it; None: until now.
        """
        self.now, self.wall = now, wall
        self.heard = now if heard is None else heard
        self.round += 1
        while self.timers and self.timers[0][0] <= now:
            _, _, kind, ref = heapq.heappop(self.timers)
            getattr(self, f"_on_{kind}")(ref)

    # -- timers ----------------------------------------------------------------------------------------------

    def _on_not_before(self, task: Task) -> None:
        if task.state is TaskState.READY and 0 < task.not_before <= self.now:
            task.not_before = 0.0
            self.ready.push(task)

    def _on_deadline(self, task: Task) -> None:
        if not (task.ended or task.ending) and task.deadline and task.deadline <= self.now:
            self.cancel_task(task, DEADLINE_PASSED, expired=True)

    def _on_queue(self, ref: tuple[Task, float]) -> None:
        task, ready_at = ref
        if task.state is TaskState.READY and task.ready_at == ready_at:
            # a hot card, or a full disk, is not its fault: the time to wait begins anew
            if self.only_held(task) or not self.room.starts_tasks or task.batch.revising:
                self.timer(self.now + (task.policy.queue_timeout_s or 0.0), "queue", ref)
                return
            self.cancel_task(
                task, f"waited over {task.policy.queue_timeout_s:g} s for a worker", expired=True
            )

    def _on_verdict(self, ref: tuple[Task, int, TaskState]) -> None:
        task, attempt, state = ref
        if task.attempt != attempt or task.state is not state:
            return
        # the verdict deadline runs while a brain is attached, and does not overtake a slow model
        if not self.brain or (state is TaskState.REVIEW and self.is_being_judged(task)):
            self.timer(self.now + self.verdict_s, "verdict", ref)
        elif state is TaskState.REVIEW:
            self.apply_verdict(Verdict(task, "accept", self.why_unjudged(task)))
        else:
            self.apply_verdict(Verdict(task, "dead", "no verdict came in time"))

    def _on_lease(self, worker: Session) -> None:
        if self.sessions.get(worker.id) is worker:
            self.check_leases(worker)

    def _on_orphan(self, task: Task) -> None:
        """A lease found at start whose worker never came back."""
        away = task.session not in self.sessions
        if task.state is not TaskState.LEASED or not away:
            return
        if task.lease_deadline > self.heard:
            self.timer(max(task.lease_deadline, self.now + LOOK_S), "orphan", task)
            return
        # not those whose result a successor owes: these have the time that its HELLO gave them
        self.lose_absent(
            task.session, "its worker did not come back after the broker's restart", overdue=True
        )

    def _on_owed(self, task: Task) -> None:
        """A lease of a dead process whose successor said that it has the result."""
        away = task.session not in self.sessions
        if task.state is not TaskState.LEASED or not away:
            return
        if task.lease_deadline > self.heard:
            self.timer(max(task.lease_deadline, self.now + LOOK_S), "owed", task)
            return
        self.fence(task.session, task.worker or "", [task.token], "its former process was lost")
        self.lose(task, f"lease lost: {task.worker} has not sent the result that its former process left")

    def _on_session(self, session: Session) -> None:
        if self.sessions.get(session.id) is not session:
            return
        if self.heard - session.last_seen >= CLIENT_SESSION_S:
            self.end_session(session, f"silent for {CLIENT_SESSION_S:g} s")
        else:
            self.timer(max(session.last_seen + CLIENT_SESSION_S, self.now + LOOK_S), "session", session)

    def _on_grace(self, until: float) -> None:
        """The grace after a start is over: what belonged to sessions that did not come back ends."""
        if self.heard < until:
            self.timer(self.now + LOOK_S, "grace", until)
            return
        self.forget_cards(but={*self.sessions, *self.fences, *(t.session for t in self.leases.values())})
        for (scope, key), fact in list(self.facts.items()):
            if scope == "token" and fact.value not in self.sessions:
                self.drop_fact(scope, key)
        for sid in [s for s in self.owned if s not in self.sessions]:
            self.cancel_orphans(
                sid, "its client did not come back after the broker's restart (orphan: cancel)"
            )

    def _on_second(self, _: None) -> None:
        """Once a second: retention."""
        if not self._retention.purging:
            self._retain()
        self.date_rows()
        self.keep_durations()
        self.timer(self.now + 1.0, "second", None)

    def _on_silence(self, _: None) -> None:
        """A few times in a lease: suspicion, and the sessions of idle workers that are gone."""
        for worker in list(self.workers()):
            silent = self.heard - worker.last_seen
            worker.suspect = worker.suspect or silent > suspicion_s(self.lease_s)
            if not worker.leases and silent > absence_s(self.lease_s):
                self.end_session(worker, f"silent for {absence_s(self.lease_s):g} s")
        self.timer(self.now + beat_s(self.lease_s), "silence", None)

    # -- retention -------------------------------------------------------------------------------------------

    def _retain(self) -> None:
        """Forget the oldest ended tasks when more are kept than the bound; none that somebody waits for."""
        ended = len(self.tasks) - self.live
        self._retention.step(self.retain_tasks, ended, self._ended_batches, self._ended_at, self._purge)
        if self._retention.purging:
            self.timer(self.now + STEP_S, "retain", None)

    def _on_retain(self, _: None) -> None:
        self._retain()

    def _ended_batches(self) -> Iterator[Batch]:
        return (b for b in self.batches.values() if b.ended_at or b.kind == "calls")

    def _ended_at(self, batch: Batch) -> float:
        return batch.ended_at or self.wall

    def _purge(self, batch: Batch, most: int) -> int:
        """Forget at most so many ended tasks of a batch that nobody needs any more; how many."""
        if self.batches.get(batch.no) is not batch or not (batch.ended_at or batch.kind == "calls"):
            return 0  # gone, or reopened, since the pass began
        gone = purgeable(batch, most)
        if gone and batch.plan is not None and "forgotten" not in batch.plan:
            batch.plan = {**batch.plan, "forgotten": True}  # a new plan for it would do done work again
            self.keep_batch(batch)
        self.forget_tasks(batch, gone)
        return len(gone)
