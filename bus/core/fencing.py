"""Cards on which the processes of a lost lease may still run: nobody else gets work there before they are dead. Pure.

A lease that ends by silence says nothing of the tree behind it. On a CPU an old tree beside a new one costs time; a card
would have two that each count on all of its memory. So the card is *fenced*, for workers other than the one that was
lost, until one of these: its supervisor says GONE, the worker itself says BYE or renews without that lease, a person
says `resume`, or, where nobody can know, :data:`FENCE_S` are over. Fences are facts: they outlive a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..wire import Token
from .ledger import Ledger
from .model import Session

SCOPE: Final = "fence"  #: of the facts, one a lost session: its cards, and until when
CARDS: Final = (
    "cards"  #: of the facts, one a session that got work for its cards: which they are, for the next broker
)
#: Twice of what a supervisor gives a tree to die, and six times of what a worker does that hears it is lost.
FENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Fence:
    """What one lost worker process may still run. ``until`` (monotonic) is 0 where only a word of its end lifts it."""

    worker: str
    cards: tuple[str, ...]
    tokens: tuple[Token, ...]
    until: float
    why: str


class Fencing(Ledger):
    """Fences, and who is kept off by them."""

    def __init__(self, *, incarnation: int, state_id: str) -> None:
        super().__init__(incarnation=incarnation, state_id=state_id)
        self.fences: dict[str, Fence] = {}  #: by the session that was lost
        self.hanging: set[str] = set()  #: sessions of workers that hold what cannot be killed

    def load_fences(self) -> None:
        """Take over what the facts say, after a start."""
        for (scope, sid), fact in self.facts.items():
            if scope == SCOPE:
                value = fact.value
                until_at = float(value["until_at"])
                # a wall clock that was set back must not hold it for longer
                until = self.now + min(max(0.001, until_at - self.wall), FENCE_S) if until_at else 0.0
                tokens = tuple((int(inc), int(seq)) for inc, seq in value["tokens"])
                self._put(sid, Fence(value["worker"], tuple(value["cards"]), tokens, until, value["why"]))

    # -- asking ----------------------------------------------------------------------------------------------

    def fenced(self, worker: Session) -> str:
        """Why a worker gets no work for what another one may still run on its card; empty where there is nothing."""
        for sid in self.hanging:
            other = self.sessions.get(sid)
            if other is not None and other is not worker and _share(other, worker.places):
                return f"{', '.join(other.places)}: {other.name} has a process there that cannot be killed"
        for sid, fence in self.fences.items():
            if sid != worker.id and _share(worker, fence.cards):
                left = f"; freed in {fence.until - self.now:.0f} s at the latest" if fence.until else ""
                return f"{', '.join(fence.cards)}: {fence.why}{left}"
        return ""

    @property
    def any_fenced(self) -> bool:
        """Whether a card of the rig is fenced at all."""
        return bool(self.fences or self.hanging)

    # -- beginning, ending -----------------------------------------------------------------------------------

    def note_cards(self, worker: Session) -> None:
        """A worker gets work: its cards must be known also after a restart, though it may not come back."""
        if _has_cards(worker) and (CARDS, worker.id) not in self.facts:
            self.set_fact(CARDS, worker.id, list(worker.places))

    def forget_cards(self, *, but: Iterable[str]) -> None:
        """What was noted of sessions that are over, ``but`` of those."""
        kept = set(but)
        for scope, sid in [key for key in self.facts if key[0] == CARDS]:
            if sid not in kept:
                self.drop_fact(scope, sid)

    def fence(self, sid: str, name: str, ran: Sequence[Token], why: str, *, undying: bool = False) -> None:
        """Leases of a session of worker ``name`` were lost that it may still run. ``undying``: it is known that it does."""
        noted = self.facts.get((CARDS, sid))
        session = self.sessions.get(sid)
        cards = tuple(noted.value) if noted else session.places if session and _has_cards(session) else ()
        if not cards or not (ran or undying):
            return
        before = self.fences.get(sid)
        name = name or (before.worker if before else "a worker")
        tokens = tuple(dict.fromkeys([*(before.tokens if before else ()), *ran]))
        held = undying or (before is not None and not before.until)
        until = 0.0 if held else self.now + FENCE_S
        said = f"{name} was lost, and what it ran may still be there ({why})"[:500]
        made = Fence(name, cards, tokens, until, said)
        self._put(sid, made)
        value: dict[str, Any] = {
            "worker": made.worker,
            "cards": list(cards),
            "tokens": [list(t) for t in tokens],
        }
        value |= {"until_at": self.wall + FENCE_S if until else 0.0, "why": said}
        self.set_fact(SCOPE, sid, value)
        if before is None:
            self.emit("p", f"worker.{name}.fenced", "", "", {"cards": list(cards), "why": said})

    def unfence(self, sessions: Iterable[str], why: str) -> None:
        """What these processes ran is dead."""
        for sid in [s for s in sessions if s in self.fences]:
            fence = self.fences.pop(sid)
            self.drop_fact(SCOPE, sid)
            data = {"cards": list(fence.cards), "why": why}
            self.emit("p", f"worker.{fence.worker}.unfenced", "", "", data)

    def fences_of(self, worker: str) -> list[str]:
        """The sessions of a worker's name (or of ``all``) that are fenced."""
        return [sid for sid, fence in self.fences.items() if worker in ("all", fence.worker)]

    def fences_on(self, worker: str) -> list[str]:
        """The fences that a person means by a worker's name: those of its own, and those that keep it off."""
        session = self.worker_named(worker)
        keep_off = [s for s, f in self.fences.items() if session is not None and _share(session, f.cards)]
        return list(dict.fromkeys([*self.fences_of(worker), *keep_off]))

    def still_runs(self, worker: Session, shown: Iterable[Token]) -> None:
        """A lost worker is heard again: what it does not name any more has ended."""
        fence = self.fences.get(worker.id)
        if fence is not None and set(fence.tokens).isdisjoint(shown):
            self.unfence([worker.id], f"{worker.name} is back, and what it ran has ended")

    def _put(self, sid: str, fence: Fence) -> None:
        self.fences[sid] = fence
        if fence.until:
            self.timer(fence.until, "fence", sid)

    def _on_fence(self, sid: str) -> None:
        """Timer: nobody has said anything about what a lost worker ran."""
        fence = self.fences.get(sid)
        if fence is not None and fence.until and fence.until <= self.now:
            self.unfence([sid], "nobody could say that it has ended, and its time is over")


def _has_cards(worker: Session) -> bool:
    return worker.places != (worker.name,)


def _share(worker: Session, places: Iterable[str]) -> bool:
    """Whether a worker has one of these cards."""
    return _has_cards(worker) and not set(places).isdisjoint(worker.places)
