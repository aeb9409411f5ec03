"""Defects that the checkers must find. Each puts one known mistake into the real cores of one history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rigbus.agents.brain.expanding import Expanding
from rigbus.agents.worker.core import WorkerCore
from rigbus.agents.worker.outbox import Outbox
from rigbus.bus.core.checks import outcomes
from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Batch, Revised, Session, Task
from rigbus.bus.states import TaskState
from rigbus.bus.wire import Envelope, Token

from .history import History, Work

Arm = Callable[[History], None]


def _core(cls: type[Core]) -> Arm:
    def arm(history: History) -> None:
        history.broker.make_core = cls

    return arm


def _worker(cls: type[WorkerCore]) -> Arm:
    def arm(history: History) -> None:
        for worker in history.workers:
            worker.make_core = cls

    return arm


class NoFence(Core):
    """A result is believed whoever sends it: the token is not compared with the current lease."""

    def on_result(self, worker: Session, env: Envelope) -> None:
        for out in outcomes(env.header, env.body):
            if out.token not in self.leases:
                task = self._ever.get(out.token)
                if task is not None and task.token_seq and not task.ended and task.token in self.leases:
                    out.token = task.token
                    self._record(task, out)
        super().on_result(worker, env)

    def _grant(self, task: Task, worker: Session) -> None:
        super()._grant(task, worker)
        self._ever[task.token] = task

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._ever: dict[Token, Task] = {}


class PlainCounter(Core):
    """Tokens have no incarnation: they begin with 1 after each start."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how | {"incarnation": 1})


class NotIdempotent(Core):
    """A result that is sent again is not recognized."""

    def remember(self, answered: Token, no: int, digest: int | None) -> None:
        pass


class LeaseNeverExpires(Core):
    """A silent worker keeps what it holds."""

    def check_leases(self, worker: Session) -> None:
        worker.watched = False

    def _on_second(self, _: None) -> None:
        self.timer(self.now + 1.0, "second", None)


class CardsAtOnce(Core):
    """A card is given to the next one while a lost tree may still run there."""

    def fence(self, *lost: Any, **how: Any) -> None:
        pass


def _cards_at_once(history: History) -> None:
    """With workers that are stopped in the midst of their work, one after the other."""
    _core(CardsAtOnce)(history)
    world = history.world
    for n, worker in enumerate(history.workers):
        world.at(world.now + 4.0 + 3.0 * n, worker.stop)
        world.at(world.now + 9.0 + 3.0 * n, worker.go_on)


class NoOrphans(Core):
    """A lease found at start whose worker never comes back is never given to another."""

    def _on_orphan(self, task: Task) -> None:
        pass


class BeforeDependencies(Core):
    """A task is released when one of the tasks before it has ended."""

    def settle(self, task: Task, **data: Any) -> None:
        if 0 < task.unmet < len(task.after):
            task.unmet = 0
        super().settle(task, **data)

    def add_edge(self, src: Task | None, dst: Task, no: int, on_end: bool) -> None:
        super().add_edge(src, dst, no, on_end)
        if dst.unmet > 1:
            dst.unmet -= 1


class EdgesForgotten(Core):
    """After a restart nobody waits for anybody."""

    def link(self, task: Task, edges: dict[str, Any] | None) -> None:
        known = self.timers == [] and self.now  # while it loads
        super().link(task, None if known and not self.sessions else edges)


class CancelForgotten(Core):
    """The wish that a running task ends is only in memory, and a requeue forgets it."""

    def _ask_end(self, task: Task, reason: str, ending: int) -> None:
        super()._ask_end(task, reason, ending)
        task.ending = 0


class CountsNothing(Core):
    """Attempts that end with their worker are not counted: a task that kills workers is leased for ever."""

    def lose(self, task: Task, why: str, *, ran: bool = True, stuck: bool = False) -> None:
        self.hand_back(task, why)
        task.attempt += 1


class BatchTwice(Core):
    """A batch is made anew when it is submitted again."""

    def _batch_for(self, head: dict[str, Any], specs: list[Any]) -> tuple[Batch, bool]:
        key = head.get("key")
        if key and not head.get("id") and key in self.batch_keys:
            return super()._batch_for({**head, "key": f"{key} again {self.next_batch}"}, specs)
        return super()._batch_for(head, specs)


class ResumesAll(Core):
    """A worker that comes back is believed whatever it says it holds."""

    def _resume_worker(self, session: Session, resume: list[Token]) -> dict[str, Any]:
        for task in [t for t in self.leases.values() if t.session == session.id and t.token not in resume]:
            task.lease_deadline = float("inf")
            session.leases[task.token_seq] = task
        return {"kept": [list(t) for t in resume], "stale": []}


class ReadyInMemory(Core):
    """A retry is not written: after a restart the task has its old lease."""

    def enter_ready(self, task: Task, delay_s: float = 0.0) -> None:
        super().enter_ready(task, delay_s)
        if task.no not in self.changes.new_tasks and task.attempt:
            self.changes.tasks.pop(task.no, None)


class OldResults(Core):
    """What ran when its plan was revised is recorded as if it were the new plan's."""

    def _record(self, task: Task, out: Any) -> None:
        task.revised &= ~Revised.VOID
        super()._record(task, out)


class LeasesOn(Core):
    """Leases are given before a new plan is planned."""

    def revise(self, session: Session, env: Envelope) -> dict[str, Any]:
        answer = super().revise(session, env)
        self.batch_ids[answer["batch"]].revising = False
        return answer


class DoneAgain(Core):
    """What is done is done again, because its plan was revised."""

    def number_of(self, known: Task, spec: dict[str, Any], digest: int, fresh: int) -> int:
        return super().number_of(known, {**spec, "again": True, "join": True}, digest, fresh)


class KeepsAll(Core):
    """What a plan has no more goes on."""

    def drop(self, batch: Batch, tasks: list[Task]) -> None:
        pass


class OffersOnce(WorkerCore):
    """It believes that every OFFER arrives."""

    def _renewed(self, e: Any, now: float) -> list[Any]:
        e.credit = None
        return super()._renewed(e, now)


class ForgetsResults(WorkerCore):
    """A result that could not be sent is gone."""

    def _disconnected(self, e: Any, now: float) -> list[Any]:
        self.outbox = Outbox()
        return super()._disconnected(e, now)

    def _welcome(self, e: Any, now: float) -> list[Any]:
        self.outbox = Outbox()
        return super()._welcome(e, now)


class NeverFences(WorkerCore):
    """It runs on when it has heard nothing for as long as its leases last."""

    def _fence_at(self, run: Any) -> float:
        return float("inf")


class BeginsAgain(WorkerCore):
    """A lease that arrives twice begins twice."""

    def _leases(self, e: Any, now: float) -> list[Any]:
        for lease in e.leases:
            if lease.token in self.runs:
                del self.runs[lease.token]
        return super()._leases(e, now)


class KeepsStale(WorkerCore):
    """What the broker calls stale runs on."""

    def _forget(self, tokens: Any) -> list[Any]:
        return []


class KeepsCancelled(WorkerCore):
    """SIGTERM, and nothing more: what ignores it runs on."""

    def _sharpen(self, run: Any, now: float) -> list[Any]:
        run.kill_at = None
        return []


def _answers_first(history: History) -> None:
    history.broker.answers_first = True


def _never_synced(history: History) -> None:
    history.disk.syncs = False


class LastTokenOnDisk(Core):
    """Tokens go on from the last one on disk, without an incarnation."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how | {"incarnation": 1})

    def load(self, batches: Any, tasks: Any, *rest: Any) -> None:
        self.token_seq = max((t.token_seq for t in tasks), default=0)
        super().load(batches, tasks, *rest)


def _grants_not_synced(history: History) -> None:
    """Leases are sent before they are on the disk, and numbered by what is there."""
    disk, commit = history.disk, history.disk.commit

    def lazy(changes: Any, now: float, wall: float) -> None:
        acked = changes.new_tasks or changes.results or changes.batches or changes.meta
        disk.syncs = bool(acked)
        commit(changes, now, wall)

    disk.commit = lazy  # type: ignore[method-assign]
    history.broker.make_core = LastTokenOnDisk


class EndsWhatRuns(Core):
    """A batch's cancel ends what runs; what waits goes on."""

    def cancel_batch(self, batch: Batch, reason: str, *, failed: bool = False) -> dict[str, int]:
        batch.cancelled = True
        self.keep_batch(batch)
        for task in [t for t in batch.keys.values() if t.state is TaskState.LEASED]:
            self.cancel_task(task, reason)
        self.touch_batch(batch)
        return {"cancelled": 0, "ending": 0, "already": 0}


class CutOff(Core):
    """A plan that is cancelled before it is planned to its end counts as planned."""

    def cancel_batch(self, batch: Batch, reason: str, *, failed: bool = False) -> dict[str, int]:
        tally = super().cancel_batch(batch, reason, failed=failed)
        batch.closed = True
        return tally


class EndsForGood(Core):
    """What is ended to run again is only ended."""

    def run_again(self, task: Task, run: tuple[int, int], reason: str) -> bool:
        return task.token == run and self.cancel_task(task, reason) == "ending"


class _TwiceExpanding(Expanding):
    """Keys of its children are not derived from the list: an expansion that is done again declares others."""

    rounds = 0

    def _begin(self, work: Any, *, planning: bool) -> Any:
        progress = super()._begin(work, planning=planning)
        if progress is not None:
            type(self).rounds += 1
            n = self.rounds
            progress.children = (
                ({**spec, "key": f"{spec['key']}.{n}"}, payload, size)
                for spec, payload, size in progress.children
            )
        return progress


def _double_expansion(history: History) -> None:
    _TwiceExpanding.rounds = 0
    for brain in history.brains:
        brain.make_expanding = _TwiceExpanding
        brain.clumsy = 0.1


class OldBrains(Core):
    """Whoever says that it is the brain may act, and each expands by its own count."""

    def brain_message(self, session: Session, env: Envelope) -> dict[str, Any]:
        if session.role == "brain":
            self.brain, env.header["epoch"] = session.id, self.epoch
        return super().brain_message(session, env)


def _two_brains(history: History) -> None:
    _core(OldBrains)(history)
    _double_expansion(history)


_LISTS: Final = Work(plans=1.0, items=(60,))  # more than one message takes
_REVISED: Final = Work(plans=1.0, revises=1.0, items=(3, 8))
_CANCELS: Final = Work(plans=0.0, cancels=0.5)
_AGAINS: Final = Work(plans=0.5, agains=0.7)
_STOPS: Final = Work(plans=1.0, revises=1.0, stops=1.0, items=(3, 8))
_TASKS: Final = Work(plans=0.0)
_LONG: Final = Work(plans=0.0, took_s=(1.0, 2.0, 3.0))
_DEAF: Final = Work(plans=0.0, took_s=(0.1, 0.5), fences=0.0, losses=(0.3,))
_FENCED: Final = Work(plans=0.0, took_s=(2.0, 6.0), fences=1.0)
_CARDS: Final = Work(plans=0.0, took_s=(2.0, 6.0), cards=1.0, fences=0.0)
_POISON: Final = Work(plans=0.0, poison=0.2)

#: Name -> how to put it in, and the work that gives it occasions.
MUTANTS: Final[dict[str, tuple[Arm, Work]]] = {
    "no fence": (_core(NoFence), _LONG),
    "answers before the commit": (_answers_first, _TASKS),
    "commits are not synced": (_never_synced, _TASKS),
    "tokens without an incarnation": (_core(PlainCounter), _TASKS),
    "grants are not synced, tokens have no incarnation": (_grants_not_synced, _TASKS),
    "a repeated result is stale": (_core(NotIdempotent), _TASKS),
    "a lease never expires": (_core(LeaseNeverExpires), _TASKS),
    "orphaned leases stay": (_core(NoOrphans), _TASKS),
    "released before its dependencies": (_core(BeforeDependencies), _TASKS),
    "edges are forgotten at a restart": (_core(EdgesForgotten), _TASKS),
    "a cancel is forgotten": (_core(CancelForgotten), _CANCELS),
    "attempts are not counted": (_core(CountsNothing), _POISON),
    "a batch is made twice": (_core(BatchTwice), _TASKS),
    "a lost lease is kept for its worker": (_core(ResumesAll), _TASKS),
    "a retry is not written": (_core(ReadyInMemory), _TASKS),
    "a worker forgets its results": (_worker(ForgetsResults), _TASKS),
    "a worker does not offer again": (_worker(OffersOnce), _DEAF),
    "a worker is not fenced": (_worker(NeverFences), _FENCED),
    "a card is not fenced": (_cards_at_once, _CARDS),
    "a lease begins twice": (_worker(BeginsAgain), _TASKS),
    "a stale attempt runs on": (_worker(KeepsStale), _FENCED),
    "a cancelled attempt runs on": (_worker(KeepsCancelled), _CANCELS),
    "an older plan's result is recorded": (_core(OldResults), _REVISED),
    "leases go on under the older plan": (_core(LeasesOn), _REVISED),
    "what is done is done again": (_core(DoneAgain), _REVISED),
    "what a plan has no more goes on": (_core(KeepsAll), _REVISED),
    "what waits in a cancelled batch goes on": (_core(EndsWhatRuns), _STOPS),
    "a plan that was cut off is not planned when it is retried": (_core(CutOff), _STOPS),
    "what is to run again is only ended": (_core(EndsForGood), _AGAINS),
    "a list is expanded twice": (_double_expansion, _LISTS),
    "two brains act": (_two_brains, _LISTS),
}


#: Seeds that find a mutant as the cores are now. After a change of theirs another seed may, and the search begins at the first.
FOUND_BY: Final[dict[str, int]] = {
    "a stale attempt runs on": 342,
    "an older plan's result is recorded": 208,
    "no fence": 53,
    "grants are not synced, tokens have no incarnation": 25,
    "a lease never expires": 14,
    "a lost lease is kept for its worker": 18,
    "a worker does not offer again": 17,
    "a worker is not fenced": 244,
    "a cancelled attempt runs on": 12,
    "what waits in a cancelled batch goes on": 15,
    "a list is expanded twice": 28,
}


def seeds_to_kill(name: str, most: int, first: int = 1) -> tuple[int, str]:
    """How many seeds until the checkers find a mutant, and what they say; (0, "") where they do not."""
    arm, work = MUTANTS[name]
    known = [FOUND_BY[name]] if name in FOUND_BY else []
    for tried, seed in enumerate([*known, *range(first, first + most)], 1):
        verdict = History(seed, arm, work=work).run()
        if verdict.wrong:
            return tried, verdict.wrong
    return 0, ""
