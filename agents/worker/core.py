"""The worker's mind: ``step(event, now) -> [action]``. No socket, no clock, no process.

Laws
- A result or return is owed until RECORDED or STALE (``outbox.py``); duplicate and late messages do nothing. A result
  that is old or in danger lies on disk, too: it outlives this process.
- Leases come in the order of their tokens: one that came before, or that a younger one has overtaken, does not begin.
- RENEW names every lease that is held, in one message; what the broker calls stale is killed and forgotten.
- A cancelled attempt is reported when its tree is dead: Terminate, ``kill_grace_s``, Kill, Ended, RESULT.
- A lease that has not begun never waits behind a long task: after ``busy_s`` without movement it is returned.
- A handler's thread cannot be killed: past its end it is *stuck*, the worker takes no more work and asks for
  a new process (exit 75) when everything else is done; it goes on if the thread ends after all.
- What cannot be killed is reported without being dead, keeps its slot (its worker, where it may hold a card) and gives it
  back when it ends after all.
- A held worker (a hot card) takes no work and gives back what has not begun; held critically, it ends what runs and
  gives that back, too. Neither burns an attempt, and every control command passes.
- While the broker is away running work goes on. With ``fence`` (over tcp) it ends before its lease can be another's:
  processes are killed, threads are told and, if they go on, end with this process. A sleep of the machine counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from ...bus.timing import quiet_s
from ...bus.wire import Token, Verb
from . import events as ev
from .events import Action, Event
from .holds import WorkerHolds
from .outbox import SPOOL_S, Outbox
from .run import Phase, Run, Why, WorkerConfig

#: What a handler has, when its time is over, to see `self.task.cancelled` and return (or its wait to end).
LISTEN_S: Final = 1.0


class WorkerCore(WorkerHolds):
    """See the module's laws."""

    def __init__(self, config: WorkerConfig, now: float) -> None:
        super().__init__(config, now)
        self._steps: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            ev.Welcome: self._welcome,
            ev.Leases: self._leases,
            ev.Renewed: self._renewed,
            ev.Control: self._control,
            ev.Recorded: self._settled,
            ev.Stale: self._stale,
            ev.Started: self._started,
            ev.Ended: self._ended,
            ev.Recalled: self._recalled,
            ev.Progress: self._progressed,
            ev.Active: self._active,
            ev.Lent: self._lends,
            ev.Tick: self._tick,
            ev.Slept: self._slept,
            ev.Flush: self._flush,
            ev.Disconnected: self._disconnected,
            ev.Drain: self._drain,
            ev.Serve: self._serve,
            ev.Held: self._hold,
            ev.Released: self._release,
            ev.VramBudget: self._budget,
            ev.ModelVram: self._model_takes,
            ev.Inherited: self._inherit,
            ev.NotSpooled: self._not_spooled,
            ev.Unkillable: self._cannot_kill,
            ev.Superseded: self._superseded,
        }

    def step(self, event: Event, now: float) -> list[Action]:
        """What to do about ``event``. An unknown token is never an error: messages come late and twice."""
        return self._steps[type(event)](event, now)

    # ------------------------------------------------------------ the broker speaks

    def _welcome(self, e: ev.Welcome, now: float) -> list[Action]:
        self.connected = True
        self._renew_s, self._lease_s = e.renew_s, e.lease_s
        self._renew_at = now + e.renew_s
        self._heard_at = now
        self._renewals.welcomed(now if e.greeted_at is None else e.greeted_at, e.lease_s)
        self._prolong(e.kept)
        if 0 < e.incarnation < self._newest[0]:
            self._newest = (0, 0)  # another database: its tokens begin anew
        self._offered = None
        self._offer_now = True
        for run in self.runs.values():
            run.announced = False
        actions = self._settle(e.stale) + self._forget(e.stale)
        self.outbox.resend_all()
        return [*actions, *self._pump(now)]

    def _leases(self, e: ev.Leases, now: float) -> list[Action]:
        self._heard_at = now
        refuse: list[Token] = []
        old: list[Token] = []
        newest = self._newest
        for lease in e.leases:
            if lease.token in self.runs or lease.token in self.outbox or lease.token in self.stuck:
                continue
            if lease.token in self.unkillable:
                continue
            if lease.token <= newest:
                old.append(lease.token)
                continue
            self._newest = max(self._newest, lease.token)
            if self.refusing or self.stuck or self._unserved(lease):
                refuse.append(lease.token)
                continue
            own = lease.timeout_s if lease.timeout_s is not None else self.config.timeouts.get(lease.type)
            timeout_s = own if own is not None else self.config.default_timeout_s
            threaded = lease.type in self.config.threaded
            self.runs[lease.token] = Run(lease, threaded, timeout_s, held_until=self._renewals.until)
            self._queue.append(lease.token)
            if self._is_doubtful(self.runs[lease.token], now):
                # The first word after a long silence: it begins when the broker has said that it still stands.
                self._renew_at = self._moved_at = now
        if old:
            self.outbox.give_back(old, "a younger lease came before it")
        if refuse:
            self.outbox.give_back(
                refuse, self.refusing or ("worker busy" if self.stuck else "not offered any more")
            )
        return self._pump(now)

    def _unserved(self, lease: ev.Lease) -> bool:
        """Is this a lease on what was offered until a moment ago?"""
        return self._changed and lease.type not in self.config.types

    def _serve(self, e: ev.Serve, now: float) -> list[Action]:
        self._changed = True
        self.config = replace(self.config, types=e.types, classes=e.classes, needs=e.needs)
        self._offered = None  # said again, whatever the credit is
        return [] if e.types else self._return_waiting("not offered any more")

    def _renewed(self, e: ev.Renewed, now: float) -> list[Action]:
        self._heard_at = now
        self._prolong(self._renewals.answered(e.corr))
        actions = self._forget(e.stale) + self._settle(e.stale)
        if e.credit is not None and self._offered is not None and e.credit != self._renew_offered:
            self._offered = None  # that OFFER is lost: without another one nothing would ever be leased here
        for token in e.cancel:
            run = self.runs.get(token)
            if run is None or run.why is not None:
                continue
            if run.phase is Phase.QUEUED:
                del self.runs[token]
                self.outbox.add(token, ev.failed("infra", "cancelled before it began"), cancelled=True)
            elif run.phase is Phase.HANDED and run.threaded:
                # It may begin at any moment: end it as if it ran; the runner answers in either case.
                actions += self._end(run, Why.CANCEL, "cancelled", now)
                actions.append(ev.Recall([token]))
            else:
                actions += self._end(run, Why.CANCEL, "cancelled", now)
        return actions + self._pump(now)

    def _control(self, e: ev.Control, now: float) -> list[Action]:
        self._heard_at = now
        if e.action in {"pause", "drain"}:
            self.paused = True
            self._offer_now = True
            return self._return_waiting("paused")
        if e.action == "hand_back":
            return self._return_waiting(e.reason or "asked back")
        if e.action == "resume":
            self.paused = False
            self._offer_now = True
        return []

    def _settled(self, e: ev.Recorded, now: float) -> list[Action]:
        self._heard_at = now
        return self._settle(e.tokens) + self._maybe_exit(now)

    def _stale(self, e: ev.Stale, now: float) -> list[Action]:
        self._heard_at = now
        return self._settle(e.tokens) + self._forget(e.tokens) + self._maybe_exit(now)

    def _superseded(self, e: ev.Superseded, now: float) -> list[Action]:
        if self.exit_code == ev.EXIT_SUPERSEDED:
            return []
        self.leaving, self.exit_code = "superseded by another worker of this name", ev.EXIT_SUPERSEDED
        self._leave_by = now + self.config.drain_s
        self.connected = False
        self.outbox = Outbox()
        for token in [t for t, r in self.runs.items() if r.threaded]:
            self._unlend(self.runs.pop(token))  # a thread ends with this process
        return self._forget(list(self.runs)) + self._maybe_exit(now)

    def _disconnected(self, e: ev.Disconnected, now: float) -> list[Action]:
        self.connected = False
        return []

    # ------------------------------------------------------------ the disk

    def _inherit(self, e: ev.Inherited, now: float) -> list[Action]:
        self.outbox.inherit(e.session, e.rows, e.body)
        return []

    def _not_spooled(self, e: ev.NotSpooled, now: float) -> list[Action]:
        self.outbox.not_spooled(e.tokens)
        self._spool_at = now + self._renew_s
        return []

    # ------------------------------------------------------------ the runners speak

    def _started(self, e: ev.Started, now: float) -> list[Action]:
        run = self.runs.get(e.token)
        if run is None:
            return []
        self._moved_at = now
        run.started_at = run.active_at = e.at
        if run.phase is Phase.HANDED:
            run.phase = Phase.RUNNING
        return []

    def _ended(self, e: ev.Ended, now: float) -> list[Action]:
        self._moved_at = now
        late = self.stuck.pop(e.token, None)
        if late is not None:
            if not late.reported:
                self._report(late, e.outcome)
            if not self.stuck and self.exit_code == ev.EXIT_RESTART:
                self.leaving, self.exit_code, self._leave_by = None, ev.EXIT_OK, None
            self._offer_now = True
            return [*self._pump(now), *self._maybe_exit(now)]
        if self.unkillable.pop(e.token, None) is not None:
            self._offer_now = True
            return self._pump(now)
        run = self.runs.pop(e.token, None)
        if run is None:
            return []
        self._unlend(run)
        sends: list[Action] = [*self._progress.end(e.token, now)] if run.why is not Why.STALE else []
        self._report(run, e.outcome)
        if e.outcome.ok and run.why is None:
            self._prefetch.ran(e.outcome.duration_s)
        return [*sends, *self._pump(now), *self._maybe_exit(now)]

    def _recalled(self, e: ev.Recalled, now: float) -> list[Action]:
        for token in e.tokens:
            run = self.runs.get(token)
            if run is None or run.phase is Phase.RUNNING:
                continue
            self._unlend(self.runs.pop(token))
            if run.why is Why.CANCEL:
                self.outbox.add(token, ev.failed("infra", "cancelled before it began"), cancelled=True)
            elif run.why is not Why.STALE:
                self.outbox.give_back([token], self.refusing or "worker busy")
        return [*self._pump(now), *self._maybe_exit(now)]

    def _progressed(self, e: ev.Progress, now: float) -> list[Action]:
        run = self.runs.get(e.token)
        if run is None or run.why is Why.STALE:
            return []
        run.active_at = now
        return [*self._progress.add(e, now)]

    def _active(self, e: ev.Active, now: float) -> list[Action]:
        run = self.runs.get(e.token)
        if run is not None:
            run.active_at = now
        return []

    def _lends(self, e: ev.Lent, now: float) -> list[Action]:
        run = self.runs.get(e.token)
        if run is None or run.waiting == e.waiting or run.phase not in {Phase.RUNNING, Phase.ENDING}:
            return []
        self._moved_at = now
        run.active_at = now
        if not e.waiting:
            self._unlend(run)
            return []
        run.waiting = True
        self._lent += 1
        self._offer_now = True
        return self._pump(now)

    # ------------------------------------------------------------ time passes

    def _tick(self, e: ev.Tick, now: float) -> list[Action]:
        actions: list[Action] = [*self._progress.due(now)]
        for run in list(self.runs.values()):
            if run.phase is Phase.RUNNING:
                actions += self._time_out(run, now)
            elif run.kill_at is not None and now >= run.kill_at:
                actions += self._sharpen(run, now)
        for run in self._unfenced():
            if now >= self._fence_at(run):
                actions += self._fence(run, now)
        actions += self._return_late(now)
        if now >= self._renew_at:
            actions += self._renew(now)
        if self._leave_by is not None and now >= self._leave_by:
            actions += self._leave_now(now)
        return [*actions, *self._pump(now), *self._maybe_exit(now)]

    def _slept(self, e: ev.Slept, now: float) -> list[Action]:
        """The sleep counts for leases, which are the broker's; what is a duration of ours goes on where it was."""
        self._renewals.slept(e.for_s)
        for run in [*self.runs.values(), *self.stuck.values()]:
            run.held_until -= e.for_s
        return self._tick(ev.Tick(), now)

    def _time_out(self, run: Run, now: float) -> list[Action]:
        if now >= run.started_at + run.timeout_s:
            said = f"timed out after {run.timeout_s:g} s"
        elif run.lease.no_progress_s is not None and now >= run.active_at + run.lease.no_progress_s:
            said = f"no progress for {run.lease.no_progress_s:g} s"
        else:
            return []
        actions = self._end(run, Why.TIMEOUT, said, now)
        if run.threaded:
            run.kill_at = now + min(self.config.kill_grace_s, LISTEN_S)
        return actions

    def _sharpen(self, run: Run, now: float) -> list[Action]:
        """The grace is over: kill the tree; a thread cannot be killed, so this process must go."""
        run.kill_at = None
        if run.fenced and run.threaded:
            # Its lease is about to be another's, and only the end of this process ends a thread: no waiting for the rest.
            return [*self._set_stuck(run, now, report=False), *self._exit()]
        if run.threaded and run.why in {Why.TIMEOUT, Why.HEAT}:
            run.error += "; its thread cannot be killed: use isolated=True"
            return self._set_stuck(run, now, report=True)
        if run.threaded:
            # Not reported: the broker learns of its end when this process has gone.
            return self._set_stuck(run, run.active_at, report=False)
        return [ev.Kill(run.lease.token)]

    def _return_late(self, now: float) -> list[Action]:
        """No slot has moved for ``busy_s``: what waits may run elsewhere at once."""
        if now < self._moved_at + self.config.busy_s:
            return []
        if not any(r.waits for r in self.runs.values()):
            return []
        self._prefetch.busy(now - self._moved_at)
        self._moved_at = now
        self._offer_now = True
        return self._return_waiting("worker busy")

    def _renew(self, now: float) -> list[Action]:
        self._renew_at = now + self._renew_s
        actions: list[Action] = []
        if self.connected:
            if now - self._heard_at > quiet_s(self._lease_s, self._renew_s):
                # Three RENEWs without an answer: what this socket holds must not reach a restarted broker.
                self._heard_at = now
                self.connected = False
                return [ev.Reconnect()]
            tokens = self.resume()
            corr = self._renewals.sent(tokens, now)
            self._renew_offered = self._offered
            actions.append(ev.Send(Verb.RENEW, {"tokens": tokens}, corr=corr))
            self.outbox.resend_old(now)
            actions += self.outbox.spool(now - SPOOL_S)
            if self._offered is not None and self.credit < self._offered:
                self._offer_now = True
        return actions

    def _flush(self, e: ev.Flush, now: float) -> list[Action]:
        if not self.connected:
            return [*self.outbox.spool()] if now >= self._spool_at else []
        actions: list[Action] = []
        begun_by = now - self.config.announce_s
        started = [
            t
            for t, r in self.runs.items()
            if not r.announced and r.phase is Phase.RUNNING and r.started_at <= begun_by
        ]
        if started:
            for token in started:
                self.runs[token].announced = True
            actions.append(ev.Send(Verb.STARTED, {"tokens": started}))
        credit = self.credit
        # A lower credit can wait for the next RENEW; a higher one is work.
        offer = (
            self._offered is None
            or credit > self._offered
            or (self._offer_now and (credit, *self._offer_with) != (self._offered, *self._offered_with))
        )
        if offer and credit == 0:
            actions.append(self._offer(credit))  # before the RETURN, or the same lease comes straight back
        actions += self.outbox.flush(now)
        if offer and credit:
            actions.append(self._offer(credit))
        self._offer_now = False
        return actions

    # ------------------------------------------------------------ leaving

    def _drain(self, e: ev.Drain, now: float) -> list[Action]:
        self.leaving = self.leaving or "worker drains"
        if self.exit_code == ev.EXIT_RESTART:
            self.exit_code = ev.EXIT_OK  # a person asked for the end: no new process
        self._offer_now = True
        actions = self._return_waiting("worker drains")
        if e.fast:
            self._leave_by, self._leave_patience_s = now, e.patience_s
            actions += self._leave_now(now)
        elif self._leave_by is None:
            self._leave_by = now + self.config.drain_s
        return [*actions, *self._maybe_exit(now)]

    def _leave_now(self, now: float) -> list[Action]:
        """The time to drain is over: end what runs, then wait shortly for RECORDED."""
        actions: list[Action] = []
        for run in list(self.runs.values()):
            token = run.lease.token
            if run.threaded and run.phase is not Phase.QUEUED:
                run.why, run.error = run.why or Why.DRAIN, run.error or "the worker was stopped"
                actions.append(ev.Terminate(token))
                actions += self._set_stuck(run, now, report=run.why is not Why.CANCEL)
            elif run.phase is not Phase.QUEUED:
                run.why, run.error = run.why or Why.DRAIN, run.error or "the worker was stopped"
                run.phase, run.kill_at = Phase.ENDING, None
                actions.append(ev.Kill(token))
        self._leave_rounds += 1
        if (not self.runs and not actions) or self._leave_rounds > 3:
            # Nothing runs and still the results are not answered: the broker is away. They go to the disk.
            # Or a process cannot be killed (it hangs in the kernel): the supervisor sweeps it.
            return self._exit()
        self._leave_by = now + self._leave_patience_s
        return actions
