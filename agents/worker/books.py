"""The worker's books: which leases it holds, where each one is, and the moves between. Pure.

``core.py`` is told what happens and decides; here is what it decides with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from ...bus.timing import guard_s
from ...bus.wire import LEASE_S, RENEW_S, Token, Verb
from . import events as ev
from .events import Action, Outcome
from .outbox import FULL_AT, Outbox, Prefetch, ProgressBook
from .renewals import Renewals
from .run import Phase, Run, Why, WorkerConfig


def heat(held: ev.Held) -> str:
    """Why something goes back that a held worker does not run."""
    return f"thermal: {held.reason}"


class WorkerBooks:
    """The state of one worker. ``now`` never goes back; all times are monotonic seconds."""

    def __init__(self, config: WorkerConfig, now: float) -> None:
        self.config = config
        self.runs: dict[Token, Run] = {}
        #: Threads that went on after their attempt was reported (or must not be): they hold a slot for ever.
        self.stuck: dict[Token, Run] = {}
        #: What of attempts that were reported cannot be killed, in words: each keeps its slot until Ended.
        self.unkillable: dict[Token, str] = {}
        self.outbox = Outbox()
        self.state_id = config.state_id
        self.connected = False
        self.paused = False
        self.held: ev.Held | None = None  #: why it takes no work at present: a hot card
        self.leaving: str | None = None  #: why the worker exits when idle
        self.exit_code = ev.EXIT_OK
        self._queue: deque[Token] = deque()
        self._progress = ProgressBook()
        self._prefetch = Prefetch(config.slots, config.max_prefetch)
        self._offered: int | None = None
        self._renew_offered: int | None = None  #: what was offered before the last RENEW
        self._offered_with: tuple[Any, ...] = ()  #: what else the last OFFER said that may change
        self._vram_mb, self._model_mb = config.vram_mb, 0
        self._offer_now = False
        self._changed = False  #: what is offered is not what it was at first
        self._lent = 0
        self._moved_at = now  #: when a slot last took or ended something
        self._renew_s, self._lease_s = RENEW_S, LEASE_S
        self._renew_at = now
        self._renewals = Renewals(now)
        self._newest: Token = (0, 0)  #: the youngest lease that came
        self._heard_at = now
        self._spool_at = now  #: not before then, after the disk has refused
        self._leave_by: float | None = None
        self._leave_rounds = 0
        self._leave_patience_s = 1.0
        self._exited = False

    # ------------------------------------------------------------ what the shell asks

    def resume(self) -> list[Token]:
        """The tokens that HELLO names: attempts that still run and results that are not RECORDED."""
        held = [t for t, r in self.stuck.items() if not r.reported and r.why is not Why.STALE]
        return [*self.runs, *held, *self.outbox.tokens()]

    def owes(self) -> dict[str, list[Token]]:
        """What HELLO says of the results that dead processes of this worker left, by their sessions."""
        return self.outbox.inherited()

    @property
    def slots(self) -> int:
        """Slots that can be used: what cannot be killed keeps its own, and where it may hold a card, all of them."""
        if self.unkillable and (self._vram_mb is not None or self.config.info.get("cards")):
            return 0
        return max(0, self.config.slots - len(self.unkillable))

    @property
    def credit(self) -> int:
        """Leases that this worker is ready to hold at once, prefetch included."""
        if self.refusing or self.stuck or not self.slots or len(self.outbox) >= FULL_AT:
            return 0
        # Nothing is fetched ahead while a slot is lent: it could take the lent one from an answer.
        return self.slots + (self._lent or self._prefetch.depth)

    @property
    def vram_mb(self) -> int | None:
        """MiB that tasks may take beside the loaded model; None: not limited."""
        return None if self._vram_mb is None else max(0, self._vram_mb - self._model_mb)

    @property
    def refusing(self) -> str:
        """Why new leases go back at once; empty while they are welcome."""
        if self.leaving or self.paused:
            return self.leaving or "paused"
        if self.held is not None:
            return heat(self.held)
        return self.hangs

    @property
    def hangs(self) -> str:
        """Why no slot is left; empty while one is."""
        return "; ".join(self.unkillable.values()) if not self.slots else ""

    @property
    def running(self) -> list[Run]:
        return [r for r in self.runs.values() if r.phase in {Phase.RUNNING, Phase.ENDING}]

    def next_due(self, now: float) -> float:
        """The time at which the next Tick is needed."""
        due = self._renew_at
        waits = False
        for r in self.runs.values():
            if r.phase is Phase.RUNNING:
                announces = not r.announced and self.connected
                end = r.started_at + (self.config.announce_s if announces else r.timeout_s)
                if r.lease.no_progress_s is not None:
                    end = min(end, r.active_at + r.lease.no_progress_s)
                due = min(due, end)
            elif r.kill_at is not None:
                due = min(due, r.kill_at)
            else:
                waits = waits or r.waits
        if waits:
            due = min(due, self._moved_at + self.config.busy_s)
        if self._leave_by is not None:
            due = min(due, self._leave_by)
        for run in self._unfenced():
            due = min(due, self._fence_at(run))
        streams = self._progress.next_at()
        return max(now, due if streams is None else min(due, streams))

    def _fence_at(self, run: Run) -> float:
        return run.held_until - guard_s(self._lease_s)

    def _unfenced(self) -> list[Run]:
        """What runs, or may begin at any moment, on leases that the broker could give away; nothing where no fence is
        needed. What only waits here does no harm: it does not begin before its lease is renewed."""
        if not self.config.fence or not (self.runs or self.stuck):
            return []
        runs = [*self.runs.values(), *(r for r in self.stuck.values() if not r.reported)]
        return [r for r in runs if not r.fenced and r.why is not Why.STALE and r.phase is not Phase.QUEUED]

    def _is_doubtful(self, run: Run, now: float) -> bool:
        """Could its lease be another's by now? Where a card may be another's with it, or a network lies between, it does not
        begin before the broker has said that it still stands."""
        careful = self.config.fence or self.config.info.get("cards")
        return bool(careful) and now >= self._fence_at(run)

    # ------------------------------------------------------------ moves

    def _pump(self, now: float) -> list[Action]:
        """Hand queued leases to their runners: threads queue by themselves, the others need a free slot."""
        if not self._queue or not self.slots:
            return []
        actions: list[Action] = []
        slots = self.slots
        others = sum(1 for r in self.runs.values() if not r.threaded and r.phase is not Phase.QUEUED)
        taken = others + sum(1 for r in self.runs.values() if r.threaded and r.phase is not Phase.QUEUED)
        taken += len(self.stuck) - self._lent
        while self._queue:
            run = self.runs.get(self._queue[0])
            if run is None or run.phase is not Phase.QUEUED:
                self._queue.popleft()  # cancelled or returned meanwhile
                continue
            if taken >= slots and (not run.threaded or others):
                break
            if self._is_doubtful(run, now):
                break
            self._queue.popleft()
            run.phase = Phase.HANDED
            if taken < slots:
                self._moved_at = now
            taken += 1
            others += not run.threaded
            actions.append(ev.Start(run.lease))
        return actions

    def _end(self, run: Run, why: Why, error: str, now: float) -> list[Action]:
        run.why, run.error, run.phase = why, error, Phase.ENDING
        run.kill_at = now + self.config.kill_grace_s
        return [ev.Terminate(run.lease.token)]

    def _forget(self, tokens: Sequence[Token]) -> list[Action]:
        """Stale: kill what runs and never report it."""
        actions: list[Action] = []
        for token in tokens:
            run = self.runs.get(token) or self.stuck.get(token)
            if run is not None and token in self.stuck:
                run.why = Why.STALE
            if run is None or run.why is Why.STALE:
                continue
            if run.phase is Phase.QUEUED:
                del self.runs[token]
                continue
            handed = run.phase is Phase.HANDED
            run.why, run.phase = Why.STALE, Phase.ENDING
            if run.threaded:
                run.kill_at = self._heard_at + self.config.kill_grace_s
                actions.append(ev.Terminate(token))
                if handed:
                    actions.append(ev.Recall([token]))
            else:
                run.kill_at = None
                actions.append(ev.Kill(token))
        return actions

    def _prolong(self, tokens: Sequence[Token]) -> None:
        """The broker renewed these."""
        for token in tokens:
            run = self.runs.get(token) or self.stuck.get(token)
            if run is not None:
                run.held_until = self._renewals.until

    def _fence(self, run: Run, now: float) -> list[Action]:
        """The broker did not renew it in time: it ends now, and goes back when it is dead."""
        token = run.lease.token
        run.fenced = True
        if token in self.stuck:
            return self._exit()  # only the end of this process ends a thread
        reason = f"fence: no word from the broker for {now - run.held_until + self._lease_s:.1f} s"
        handed = run.phase is Phase.HANDED
        # A cancel or a timeout that was already under way keeps its own end.
        run.why, run.error, run.phase = run.why or Why.FENCE, run.error or reason, Phase.ENDING
        if not run.threaded:
            run.kill_at = None
            return [ev.Kill(token)]
        run.kill_at = now + guard_s(self._lease_s) / 2
        return [ev.Terminate(token), *([ev.Recall([token])] if handed else [])]

    def _return_waiting(self, reason: str) -> list[Action]:
        """Give back what has not begun: at once what waits here, and what the runners still can take back."""
        waiting = [t for t, r in self.runs.items() if r.phase is Phase.QUEUED]
        for token in waiting:
            del self.runs[token]
        self.outbox.give_back(waiting, reason)
        handed = [t for t, r in self.runs.items() if r.phase is Phase.HANDED and r.threaded]
        return [ev.Recall(handed)] if handed else []

    def _set_stuck(self, run: Run, now: float, *, report: bool) -> list[Action]:
        token = run.lease.token
        del self.runs[token]
        self._unlend(run)
        self.stuck[token] = run
        self._offer_now = True
        if report:
            self._report(run, Outcome(False, duration_s=max(0.0, now - run.started_at)))
        if self.leaving is None:
            self.leaving, self.exit_code = f"handler {run.lease.type} hangs", ev.EXIT_RESTART
        return self._return_waiting(self.leaving)

    def _report(self, run: Run, outcome: Outcome) -> None:
        token, run.reported = run.lease.token, True
        if run.why is Why.STALE:
            return
        if run.why is Why.HEAT:
            self.outbox.give_back([token], run.error)
        elif run.why is Why.FENCE and outcome.ok:
            self.outbox.add(token, outcome)  # done after all; its token says whether it still counts
        elif run.why is Why.FENCE:
            self.outbox.give_back([token], run.error)
        elif run.why is Why.CANCEL:
            ended = ev.failed("infra", run.error, body=outcome.body, duration_s=outcome.duration_s)
            self.outbox.add(token, ended, cancelled=True)
        elif run.why is not None:
            cls = "task" if run.why is Why.TIMEOUT else "infra"
            self.outbox.add(
                token, ev.failed(cls, run.error, body=outcome.body, duration_s=outcome.duration_s)
            )
        elif outcome.returned:
            self.outbox.give_back([token], outcome.error or "returned", outcome.not_before_s)
        else:
            self.outbox.add(token, outcome)

    def _settle(self, tokens: Sequence[Token]) -> list[Action]:
        """RECORDED or STALE: nothing is owed any more."""
        spooled = self.outbox.settle(tokens)
        return [ev.Unspool(spooled)] if spooled else []

    def _unlend(self, run: Run) -> None:
        if run.waiting:
            run.waiting = False
            self._lent -= 1

    # ------------------------------------------------------------ words for the broker, and the last one

    @property
    def _offer_with(self) -> tuple[Any, ...]:
        """What an OFFER says beside the credit that changes while the worker runs."""
        held = self.held.reason if self.held is not None else self.hangs
        return (self._lent, self.vram_mb, held, tuple(self.unkillable.values()))

    def _offer(self, credit: int) -> Action:
        c = self.config
        self._offered, self._offered_with = credit, self._offer_with
        header: dict[str, Any] = {
            "credit": credit,
            "slots": self.slots or c.slots,
            "types": list(c.types),
            "classes": list(c.classes),
            "needs": list(c.needs),
            "pools": list(c.pools),
        }
        if self._lent:
            header["lent"] = self._lent
        if self.vram_mb is not None:
            header["vram_mb"] = self.vram_mb
        if self.held is not None or self.hangs:
            header["held"] = self.held.reason if self.held is not None else self.hangs
        if self.unkillable:
            header["unkillable"] = list(self.unkillable.values())
        if self.state_id is not None:
            header["state_id"] = self.state_id
        if c.info:
            header["info"] = dict(c.info)
        return ev.Send(Verb.OFFER, header)

    def _maybe_exit(self, now: float) -> list[Action]:
        if self.leaving is None or self.runs or len(self.outbox):
            return []
        return self._exit()

    def _exit(self) -> list[Action]:
        if self._exited:
            return []
        self._exited = True
        # What is not answered yet goes on in the name of this process, by whoever comes after it.
        return [*self.outbox.spool(), ev.Exit(self.exit_code, self.leaving or "stopped")]
