"""Escalations as the broker keeps them: records, their states, and the guards at their birth. Pure.

A record is about one batch and one cause (or about the rig as a whole: ``batch`` is empty). While it is open, what else
ends of the same cause joins it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

SCOPE: Final = "escalation"  #: of the facts, one a record, by its id
SPENT: Final = "escalation.spent"  #: of the facts: when a planner was asked, under the key ``day``
DAY_S: Final = 86_400.0
MAX_TASKS: Final = 20  #: shown of a record
MAX_KEYS: Final = 1000  #: that are known again
KEPT_OVER: Final = 100  #: records that are over, of a batch or about the rig
OPEN: Final = frozenset({"pending", "human"})  #: nobody has answered; what ends now joins it
OVER: Final = frozenset({"applied", "closed"})

#: The only way from state to state. ``answered`` -> ``pending`` means: back to what it was before.
MOVES: Final = frozenset(
    {
        ("pending", "answered"),
        ("pending", "human"),
        ("pending", "closed"),
        ("human", "answered"),
        ("human", "closed"),
        ("answered", "pending"),
        ("answered", "applied"),
        ("answered", "human"),
        ("answered", "closed"),
    }
)
STATES: Final = frozenset({"pending", "answered", "applied", "human", "closed"})


@dataclass(frozen=True, slots=True)
class Guards:
    """How often a planner is asked. Past any of them a record goes to a person."""

    max_per_batch: int = 3  #: of one batch; about the rig as a whole in 24 h
    cooldown_s: float = 60.0  #: after the last one of the same batch and cause
    per_day: int = 20  #: of all, in 24 h


@dataclass(frozen=True, slots=True)
class Raised:
    """What the brain says of one end of work. ``batch`` and ``task`` are public ids, empty where there is none."""

    key: str
    cause: str
    type: str
    title: str
    batch: str = ""
    task: str = ""
    task_key: str = ""
    attempt: int = 0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """One escalation. ``keys`` are digests of what was raised; ``*_at`` are wall clock, in seconds."""

    no: int
    id: str
    key: str
    cause: str
    type: str
    title: str
    created_at: float
    batch: str = ""
    task: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    status: str = "pending"
    was: str = "pending"  #: before it was answered
    asked: bool = True  #: of a planner; False: a guard has sent it to a person
    why: str = ""  #: which guard
    answer: str = ""
    by: str = ""
    note: str = ""
    changed_at: float = 0.0
    plan: dict[str, Any] = field(default_factory=dict)
    revision: int = 1
    seq: int = 0  #: of its last event

    @property
    def open(self) -> bool:
        """Nobody has answered it yet."""
        return self.status in OPEN

    def value(self) -> dict[str, Any]:
        """As a fact has it."""
        return asdict(self)

    def row(self) -> dict[str, Any]:
        """As QUERY shows it."""
        row = asdict(self)
        del row["keys"], row["was"]
        return row


class Escalations:
    """The book. What it changes is named, so that its fact is written in the same commit."""

    def __init__(self, guards: Guards | None = None) -> None:
        self.guards = guards or Guards()
        self.records: dict[str, Record] = {}  #: by id, in the order of their numbers
        self.of_batch: dict[str, list[Record]] = {}
        self.spent: list[float] = []
        self.since = 0.0  #: what had failed before then was not this brain's to look at; wall clock
        self._known: dict[str, Record] = {}  #: by digest of a key
        self._next = 1

    def load(self, values: Iterable[Mapping[str, Any]], spent: Iterable[float]) -> None:
        """Take over what the facts say, after a start; fields of a newer rig are left out."""
        names = Record.__dataclass_fields__
        found = [Record(**{k: v for k, v in value.items() if k in names}) for value in values]
        for record in sorted(found, key=lambda r: r.no):
            self._add(record)
        self.spent = list(spent)

    def known(self, key: str) -> bool:
        """Whether a key was raised before."""
        return digest(key) in self._known

    def open_of(self, batch: str) -> list[Record]:
        """The open ones of a batch, or of the rig."""
        return [r for r in self.of_batch.get(batch, ()) if r.open]

    def raise_(self, raised: Raised, plan: Mapping[str, Any], revision: int, wall: float) -> Record | None:
        """Enter what was raised: the record that is new, or has been joined; None when the key is known."""
        if self.known(raised.key):
            return None
        for record in self.open_of(raised.batch):
            if record.cause == raised.cause:
                return self._join(record, raised)
        why = self._guard(raised.batch, raised.cause, wall)
        record = Record(
            no=self._next,
            id=self._id(raised.key, wall),
            key=raised.key,
            cause=raised.cause,
            type=raised.type,
            title=raised.title,
            created_at=wall,
            changed_at=wall,
            batch=raised.batch,
            task=raised.task,
            details=raised.details,
            status="human" if why else "pending",
            asked=not why,
            why=why,
            plan=dict(plan),
            revision=revision,
        )
        self._add(record)
        self._join(record, raised)
        if not why:
            self.spent = [at for at in self.spent if 0 <= wall - at < DAY_S] + [wall]
        return record

    def left(self, batch: str, wall: float) -> int:
        """How often a planner may still be asked about a batch, or the rig."""
        return max(0, self.guards.max_per_batch - self._asked(batch, wall))

    def forget(self, record: Record) -> None:
        """Its batch is gone, or it is too old."""
        self.records.pop(record.id, None)
        mine = self.of_batch.get(record.batch, [])
        if record in mine:
            mine.remove(record)
        if not mine:
            self.of_batch.pop(record.batch, None)
        for key in record.keys:
            self._known.pop(key, None)

    def surplus(self, batch: str) -> list[Record]:
        """Records of a batch, or about the rig, that are over and too many, the oldest first. What counts for the batch's
        guard stays with it."""
        over = [r for r in self.of_batch.get(batch, ()) if r.status in OVER and not (batch and r.asked)]
        return over[: max(0, len(over) - KEPT_OVER)]

    # -- inside ----------------------------------------------------------------------------------------------

    def _add(self, record: Record) -> None:
        self.records[record.id] = record
        self.of_batch.setdefault(record.batch, []).append(record)
        self._known.update(dict.fromkeys(record.keys, record))
        self._next = max(self._next, record.no + 1)

    def _join(self, record: Record, raised: Raised) -> Record:
        if len(record.keys) < MAX_KEYS:
            record.keys.append(digest(raised.key))
            self._known[record.keys[-1]] = record
        if raised.task and len(record.tasks) < MAX_TASKS:
            record.tasks.append({"id": raised.task, "key": raised.task_key, "attempt": raised.attempt})
        return record

    def _guard(self, batch: str, cause: str, wall: float) -> str:
        """Why no planner is asked; empty where one is."""
        guards, mine = self.guards, self.of_batch.get(batch, [])
        asked = self._asked(batch, wall)
        if asked >= guards.max_per_batch:
            of = "this batch" if batch else "the rig in 24 h"
            return f"{asked} of {of} were asked already (max_per_batch = {guards.max_per_batch})"
        last = max((r.created_at for r in mine if r.cause == cause), default=None)
        if last is not None and 0 <= wall - last < guards.cooldown_s:
            return f"the last one was {wall - last:.0f} s ago (cooldown_s = {guards.cooldown_s:g})"
        day = sum(0 <= wall - at < DAY_S for at in self.spent)
        if day >= guards.per_day:
            return f"{day} were asked in the last 24 h (per_day = {guards.per_day})"
        return ""

    def _asked(self, batch: str, wall: float) -> int:
        mine = self.of_batch.get(batch, ())
        return sum(r.asked and (bool(batch) or 0 <= wall - r.created_at < DAY_S) for r in mine)

    def _id(self, key: str, wall: float) -> str:
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(wall))
        n = 0
        while (id_ := f"{stamp}_{digest(f'{key}/{n}')[:8]}") in self.records:
            n += 1
        return id_


def digest(key: str) -> str:
    """What is remembered of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
