"""What follows a crash: who else may run the task, and which worker or card gets no work for a while. Pure.

The decisions are those of :mod:`.quarantine`; here they meet sessions, facts, events and timers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..why.durations import template_of
from ..wire import Verb
from .fencing import Fencing
from .model import Session, Shape, Task, apart, of_model
from .quarantine import APART_S, CRASHED, SCOPE, Crash, Place, Places, Quarantine


class Quarantining(Fencing):
    """Crashes and their consequences."""

    def __init__(self, *, incarnation: int, state_id: str) -> None:
        super().__init__(incarnation=incarnation, state_id=state_id)
        self.quarantine = Quarantine()

    def load_quarantine(self) -> None:
        """Take over what the facts say, after a start; tasks and facts are loaded."""
        kept = [(key, fact.value) for (scope, key), fact in self.facts.items() if scope == SCOPE]
        self.quarantine.load(kept, self.now, self.wall)
        for (scope, key), fact in list(self.facts.items()):
            if scope != CRASHED:
                continue
            task = self.ids.get(key)
            if task is None or task.ended:
                self.drop_fact(scope, key)
            else:
                task.shape = apart(task.shape, _flat(fact.value))
        self._await_end()

    # -- asking ----------------------------------------------------------------------------------------------

    def quarantined(self, worker: Session) -> Place | None:
        """The quarantine that a worker is under."""
        return self.quarantine.holds(worker.places) if self.quarantine.places else None

    def is_open(self, worker: Session) -> bool:
        """Whether a worker gets leases at present, room apart."""
        return (
            bool(worker.peer)
            and worker.credit > 0
            and not worker.draining
            and not worker.held
            and not worker.suspect
            and not self.paused(worker.name)
            and self.quarantined(worker) is None
            and not self.fenced(worker)
        )

    def elsewhere(self, shape: Shape, places: Places) -> bool:
        """Whether a worker at none of these places could run tasks of a shape."""
        return any(
            w.accepts(shape) and self.is_open(w) and not set(places).intersection(w.places)
            for w in self.workers()
        )

    def kept_off(self, worker: Session, shape: Shape, ready_at: float) -> bool:
        """Whether a worker has to leave tasks that crashed at its place to another one, which is there."""
        return (
            self.now - ready_at < APART_S
            and not set(shape.avoid).isdisjoint(worker.places)
            and self.elsewhere(shape, shape.avoid)
        )

    # -- a crash ---------------------------------------------------------------------------------------------

    def note_crash(self, task: Task, error: str, *, over: bool) -> tuple[bool, str]:
        """An attempt crashed: whether it was the last one (``over``: by its policy), and what is said of it.

        A task that has crashed on two workers that share no card is at fault itself and is not tried again; one that
        was only ever tried on one is, once, when another worker is there.
        """
        session = self.sessions.get(task.session)
        name = task.worker or ""
        places = session.places if session is not None else (name,)
        fact = self.facts.get((CRASHED, task.id))
        before = [(str(w), tuple(p)) for w, p in fact.value] if fact else []
        kind = f"{task.batch.id}/{template_of(task) if task.batch.plan else task.shape.type}"
        may_hold = of_model(task.shape) or self.elsewhere(apart(task.shape, ()), places)
        changed, held, acquitted = self.quarantine.crashed(
            Crash(task.id, kind, name, self.now), places, self.wall, may_hold=may_hold
        )
        self._keep(changed)
        self._released(acquitted, "its tasks crash elsewhere, too")
        for place in sorted(held):
            self._hold_place(place)
        self._await_end()
        others = [w for w, p in before if not set(p).intersection(places)]
        if others:
            said = f"it crashed on {others[-1]} and on {name}, so it is not tried again; {error}"
            return True, said
        crashes = [*before, (name, places)]
        avoid = tuple(sorted({p for _, at in crashes for p in at}))
        if over and (task.counts[1] != task.policy.crash or task.policy.crash < 2):
            return True, error
        if over and not self.elsewhere(task.shape, avoid):
            return True, error
        self.set_fact(CRASHED, task.id, [[w, list(p)] for w, p in crashes])
        task.shape = apart(task.shape, avoid)
        return False, error

    def forget_crashes(self, task: Task) -> None:
        """It has ended, or begins anew: where it crashed does not matter any more."""
        if task.shape.avoid:
            task.shape = apart(task.shape, ())
            self.drop_fact(CRASHED, task.id)

    def note_result(self, worker: str) -> None:
        """A result came from a worker."""
        self._keep(self.quarantine.went_well(worker))

    # -- its end ---------------------------------------------------------------------------------------------

    def lift_quarantine(self, worker: str, by: str) -> None:
        """A person trusts a worker (or ``all``) again; its crashes so far are forgotten."""
        if worker == "all":
            places = set(self.quarantine.places)
        else:
            session = self.worker_named(worker)
            places = self.quarantine.names_of(worker, session.places if session else (worker,))
        held = {p for p in places if self.quarantine.places[p].until}
        self._released(held, f"resumed by {by}")
        self.quarantine.lift(places)
        self._keep(places)

    def knows_quarantined(self, worker: str) -> bool:
        """Whether a worker that is not here is in the book."""
        return bool(self.quarantine.names_of(worker, (worker,)))

    def _on_quarantine(self, _: None) -> None:
        """Timer: what has been quarantined for long enough is tried again."""
        due = {n for n, p in self.quarantine.places.items() if p.until and p.until <= self.now}
        self._released(due, "its time is over")
        self._keep(self.quarantine.expire(self.now))
        self._await_end()

    # -- inside ----------------------------------------------------------------------------------------------

    def _hold_place(self, place: str) -> None:
        """Workers there hand back what they have not begun; people are told."""
        book = self.quarantine.places[place]
        data: dict[str, Any] = {"why": book.why, "until_at": self.wall + book.until - self.now}
        data["tasks"] = list(dict.fromkeys(c.task for c in book.crashes if not c.past))
        for worker in self._at({place}):
            self.emit("p", f"worker.{worker.name}.quarantined", "", "", data)
            self.send(worker, Verb.CONTROL, {"action": "hand_back", "reason": f"quarantined: {book.why}"})

    def _released(self, places: Iterable[str], why: str) -> None:
        for worker in self._at(set(places)):
            self.emit("p", f"worker.{worker.name}.trusted", "", "", {"why": why})

    def _at(self, places: set[str]) -> list[Session]:
        return [w for w in self.workers() if not places.isdisjoint(w.places)] if places else []

    def _keep(self, places: Iterable[str]) -> None:
        """What changed of these places goes into this commit."""
        for place in places:
            value = self.quarantine.fact(place, self.now, self.wall)
            if value is None:
                self.drop_fact(SCOPE, place)
            else:
                self.set_fact(SCOPE, place, value)

    def _await_end(self) -> None:
        end = self.quarantine.next_end()
        if end is not None:
            self.timer(end, "quarantine", None)


def _flat(crashes: Any) -> Places:
    """The places of a task's fact, as :meth:`Quarantining.note_crash` writes it."""
    return tuple(sorted({str(place) for _, places in crashes for place in places}))
