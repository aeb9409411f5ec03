"""Crashes, and who gets no work because of them: a worker or card under which different tasks crash. Pure.

A **place** is a card (``card 0``) or, for a worker without cards, the worker itself: workers on one card crash for the
same reason. A place is quarantined after :data:`CRASHES` crashes of different tasks within :data:`WINDOW_S` with no
result of that worker between. Tasks of one kind (a plan's template, a type) that crash at two places are at fault
themselves: they count against no place, and what they had quarantined is lifted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

SCOPE: Final = (
    "quarantine"  #: of the facts, one a place: its crashes and, while it is quarantined, until when
)
CRASHED: Final = "crashed"  #: of the facts, one a live task that has crashed: by its id, where
CRASHES: Final = 3
WINDOW_S: Final = 600.0
QUARANTINE_S: Final = 900.0
#: A task that has crashed waits for another worker so long; then any may take it, so that it cannot wait for ever.
APART_S: Final = 60.0
_CARDS_CHARS: Final = 1000  #: of what a worker says of its cards; a longer one is believed to have none
_KEPT: Final = 32  #: crashes of one place; a fact has room for many more

Places = tuple[str, ...]


def places_of(worker: str, info: Mapping[str, Any]) -> Places:
    """The places of a worker; ``info`` is that of its OFFER, ``cards`` in it a list with commas."""
    cards = info.get("cards")
    if not isinstance(cards, str) or len(cards) > _CARDS_CHARS:
        return (worker,)
    return tuple(f"card {c.strip()}" for c in cards.split(",") if c.strip()) or (worker,)


@dataclass(frozen=True, slots=True)
class Crash:
    """One attempt that crashed. ``at`` is monotonic seconds; ``past``: a result of that worker came after it."""

    task: str
    kind: str
    worker: str
    at: float
    past: bool = False


@dataclass(slots=True)
class Place:
    """What is known of a place. ``until`` (monotonic) is 0 while it is not quarantined; ``since_at`` is wall clock."""

    crashes: list[Crash] = field(default_factory=list)
    until: float = 0.0
    since_at: float = 0.0
    why: str = ""

    @property
    def workers(self) -> list[str]:
        """Whose crashes these were."""
        return sorted({c.worker for c in self.crashes})


class Quarantine:
    """The book of all places. Each method that changes something names the places whose facts are to be written."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.watched: set[str] = set()  #: workers with a crash that no result has followed

    # -- facts -----------------------------------------------------------------------------------------------

    def load(self, facts: Iterable[tuple[str, Any]], now: float, wall: float) -> None:
        """Take over what a restart has found: (place, value of its fact)."""
        for name, value in facts:
            place = self.places[name] = Place(why=str(value["why"]), since_at=float(value["since_at"]))
            for task, kind, worker, at, past in value["crashes"]:
                place.crashes.append(Crash(task, kind, worker, now - max(0.0, wall - at), bool(past)))
            if value["until_at"]:  # a wall clock that was set back must not hold it for longer
                place.until = now + min(max(0.001, value["until_at"] - wall), QUARANTINE_S)
        self._watch()

    def fact(self, name: str, now: float, wall: float) -> dict[str, Any] | None:
        """The fact of a place, times as wall clock; None when there is nothing to remember."""
        place = self.places.get(name)
        if place is None:
            return None
        return {
            "crashes": [[c.task, c.kind, c.worker, wall + c.at - now, c.past] for c in place.crashes],
            "until_at": wall + place.until - now if place.until else 0.0,
            "since_at": place.since_at,
            "why": place.why,
        }

    # -- what happens ----------------------------------------------------------------------------------------

    def crashed(
        self, crash: Crash, places: Places, wall: float, *, may_hold: bool
    ) -> tuple[set[str], set[str], set[str]]:
        """A crash at a worker's places: (places whose facts change, of these the newly quarantined, the acquitted).

        ``may_hold`` False: it is noted, but quarantines nobody.
        """
        changed = self._forget_old(crash.at) | set(places)
        for name in places:
            place = self.places.setdefault(name, Place())
            place.crashes = [*place.crashes, crash][-_KEPT:]
        self.watched.add(crash.worker)
        acquitted = self._acquit(crash.kind)
        held = set()
        for name in places if may_hold else ():
            place = self.places[name]
            tasks = {c.task for c in place.crashes if not c.past and not self._wandering(c.kind)}
            if place.until or len(tasks) < CRASHES:
                continue
            place.until, place.since_at = crash.at + QUARANTINE_S, wall
            place.why = f"{len(tasks)} different tasks crashed there in a row"
            if name != crash.worker:
                place.why += f" ({name})"
            held.add(name)
        return changed | acquitted, held, acquitted

    def went_well(self, worker: str) -> set[str]:
        """A result came from a worker: its crashes so far were not in a row. Cheap where it has none.

        What still runs under a quarantine and ends well does not lift it.
        """
        if worker not in self.watched:
            return set()
        self.watched.discard(worker)
        changed = set()
        for name, place in self.places.items():
            if not place.until and any(c.worker == worker and not c.past for c in place.crashes):
                place.crashes = [replace(c, past=c.past or c.worker == worker) for c in place.crashes]
                changed.add(name)
        return changed

    def expire(self, now: float) -> set[str]:
        """The places whose quarantine is over; they begin anew, so that three more crashes are needed."""
        over = {name for name, place in self.places.items() if place.until and place.until <= now}
        self.lift(over)
        return over

    def lift(self, names: Iterable[str]) -> None:
        """These places are trusted again, and what happened there is forgotten."""
        for name in names:
            self.places.pop(name, None)
        self._watch()

    def next_end(self) -> float | None:
        """When the next quarantine ends, monotonic."""
        return min((p.until for p in self.places.values() if p.until), default=None)

    # -- asking ----------------------------------------------------------------------------------------------

    def holds(self, places: Places) -> Place | None:
        """The quarantine that one of these places is under."""
        for name in places if self.places else ():
            place = self.places.get(name)
            if place is not None and place.until:
                return place
        return None

    def names_of(self, worker: str, places: Places) -> set[str]:
        """The places that a person means by a worker's name: its own, and those where it crashed before it went."""
        return {n for n, p in self.places.items() if n in places or n == worker or worker in p.workers}

    # -- inside ----------------------------------------------------------------------------------------------

    def _wandering(self, kind: str) -> bool:
        """Whether tasks of a kind have crashed at two places that do not belong to one worker."""
        seen: set[str] = set()
        for place in self.places.values():
            seen |= {c.worker for c in place.crashes if c.kind == kind}
        if len(seen) < 2:
            return False
        at = {w: {n for n, p in self.places.items() if any(c.worker == w for c in p.crashes)} for w in seen}
        return not set.intersection(*at.values())

    def _acquit(self, kind: str) -> set[str]:
        """Lift what this kind had brought about, if it has turned out to crash anywhere."""
        if not self._wandering(kind):
            return set()
        found = set()
        for name, place in self.places.items():
            tasks = {c.task for c in place.crashes if not c.past and not self._wandering(c.kind)}
            if place.until and len(tasks) < CRASHES and any(c.kind == kind for c in place.crashes):
                place.until, place.since_at, place.why = 0.0, 0.0, ""
                found.add(name)
        return found

    def _forget_old(self, now: float) -> set[str]:
        """Drop crashes that are over the window; of quarantined places they are kept until its end."""
        changed = set()
        for name, place in list(self.places.items()):
            if place.until or all(now - c.at <= WINDOW_S for c in place.crashes):
                continue
            place.crashes = [c for c in place.crashes if now - c.at <= WINDOW_S]
            changed.add(name)
            if not place.crashes:
                del self.places[name]
        self._watch()
        return changed

    def _watch(self) -> None:
        self.watched = {c.worker for p in self.places.values() for c in p.crashes if not c.past}
