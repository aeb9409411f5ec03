"""What a brain has begun and not ended, as facts: a plan that ends the brain is not begun for ever.

A fact stands before the work begins, and goes with the message that ends it. The brain that finds one of another process
counts one more try; three tries that came no further than each other fail the batch. A brain that only lost its broker
has not died: what this process has begun is not counted again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

from ...bus.errors import Refused
from .core import ExpandTemplate, PlanBatch, Work, template_of
from .messages import Unplannable

SCOPE: Final = "brain.doing"
TRIES: Final = 3


class Bus(Protocol):
    """What the brain's process offers to this part of it."""

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        """The header of QUERY's answer."""

    def write_facts(self, facts: list[dict[str, Any]]) -> None:
        """One BRAIN message with these facts only."""


@dataclass(slots=True)
class _Begun:
    """Work of this process. ``rev`` of its fact is None when it has to be read again; ``at``: what the fact says."""

    about: dict[str, Any]  #: of the fact's value what never changes: batch, what
    rev: int | None = None
    at: int = 0
    declared: int = 0  #: tasks that this walk through the plan or list has declared


class Doing:
    """The work that is under way."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._begun: dict[str, _Begun] = {}
        self._now = ""  # the key of the work whose messages are sent at present; empty: of none that counts

    @staticmethod
    def key_of(work: Work) -> tuple[str, str]:
        """(key of the fact, what it is in words); the key is empty for work that is not counted."""
        if isinstance(work, PlanBatch):
            return work.batch, "planned"
        if isinstance(work, ExpandTemplate):
            return work.expand_id, f"expanded ({template_of(work.expand_key)})"
        return "", ""

    def begin(self, work: Work) -> None:
        """Before a piece of work, or the next step of it.

        Raises:
            Unplannable: it has ended the brain too often.
        """
        self._now, what = self.key_of(work)
        if not self._now:
            return
        mine = self._begun.get(self._now)
        if mine is not None and mine.rev is not None:
            return
        if mine is not None:
            mine.rev, _, mine.at = self._read(self._now)
            return
        mine = self._begun[self._now] = _Begun({"batch": work.batch, "what": what})
        if self._first(mine):
            return
        rev, tries, mine.at = self._read(self._now)
        if tries >= TRIES:
            mine.rev = rev
            raise Unplannable(
                f"its plan ended the brain {tries} times while it was {what}: brain.log and the rig's memory say more; "
                "make it smaller, and submit it again"
            )
        value = {"tries": tries + 1, "at": mine.at, **mine.about}
        self._bus.write_facts([self._fact(self._now, rev, value)])
        mine.rev = rev + 1

    def _first(self, mine: _Begun) -> bool:
        """Write the fact of a first try, which most are, without asking before; False where another process had begun."""
        try:
            self._bus.write_facts([self._fact(self._now, 0, {"tries": 1, "at": 0, **mine.about})])
        except Refused as e:
            if "epoch" in str(e):
                raise
            return False
        mine.rev = 1
        return True

    def riding(self, declared: int, *, over: bool) -> list[dict[str, Any]]:
        """The facts that go with a message of the present work: it declares so many tasks, or ends the work.

        Call :meth:`rode` when the message was answered. Until then the fact's revision counts as unknown.
        """
        mine = self._begun.get(self._now)
        if mine is None or not (over or mine.declared + declared > mine.at):
            return []
        rev = self._read(self._now)[0] if mine.rev is None else mine.rev
        mine.rev = None
        if over:
            return [self._fact(self._now, rev, None)] if rev else []
        return [self._fact(self._now, rev, {"tries": 1, "at": mine.declared + declared, **mine.about})]

    def rode(self, facts: list[dict[str, Any]], declared: int, *, over: bool) -> None:
        """The message with these facts is recorded."""
        mine = self._begun.get(self._now)
        if mine is None:
            return
        if over:
            del self._begun[self._now]
            return
        mine.declared += declared
        if facts:
            mine.rev, mine.at = int(facts[0]["rev"]) + 1, mine.declared

    def end(self, work: Work) -> None:
        """There was nothing to do, or nothing more: the fact goes, if no message took it along."""
        key, _ = self.key_of(work)
        if key not in self._begun:
            return
        rev, _, _ = self._read(key)
        if rev:
            self._bus.write_facts([self._fact(key, rev, None)])
        del self._begun[key]

    def forget(self) -> None:
        """Another snapshot tells what is due: every walk begins anew, and facts are read again."""
        for mine in self._begun.values():
            mine.rev, mine.declared = None, 0

    def _read(self, key: str) -> tuple[int, int, int]:
        """(revision, tries, how far) of a fact; zeros where there is none."""
        facts = self._bus.query("facts", scope=SCOPE, key=key)["facts"]
        if not facts:
            return 0, 0, 0
        value = facts[0]["value"]
        return int(facts[0]["rev"]), int(value["tries"]), int(value["at"])

    @staticmethod
    def _fact(key: str, rev: int, value: dict[str, Any] | None) -> dict[str, Any]:
        return {"scope": SCOPE, "key": key, "rev": rev, "value": value}
