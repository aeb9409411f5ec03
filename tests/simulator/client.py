"""Somebody who submits, and asks again until it is answered; sometimes cancels."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rigbus.bus.wire import Envelope, Verb

from .broker import Broker
from .checkers import Checkers
from .link import Link
from .world import Process, World

AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Revise:
    """A new plan for the batch, ``after_s`` after it was accepted. ``keys``: its tasks but the items of its list."""

    after_s: float
    key: str
    plan: dict[str, Any]
    keys: frozenset[str]
    items: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The batch is cancelled ``after_s`` after it was accepted, and retried ``retry_s`` after the answer; 0: never."""

    after_s: float
    retry_s: float


@dataclass(slots=True)
class Job:
    """A batch that shall be submitted at ``at``; ``cancel``: keys that are cancelled ``cancel_after_s`` after that."""

    at: float
    head: dict[str, Any]
    specs: list[dict[str, Any]]
    payloads: list[bytes]
    cancel: list[str] = field(default_factory=list)
    cancel_after_s: float = 1.0
    revise: list[Revise] = field(default_factory=list)
    stop: Stop | None = None
    again_s: list[float] = field(default_factory=list)  #: then what runs of it is ended, to run again


class Client(Process):
    """What it wants outlives its process, as a script's does: it asks for the same again."""

    def __init__(
        self, world: World, name: str, broker: Broker, checkers: Checkers, jobs: Sequence[Job]
    ) -> None:
        super().__init__(world, name)
        self.broker = broker
        self.checkers = checkers
        self._todo = deque(jobs)
        self._cancels: deque[tuple[float, list[str]]] = deque()
        self._revises: list[tuple[float, str, str, Revise]] = []  #: at, batch, its key
        self._stops: list[tuple[float, Verb, str, Stop]] = []  #: at, what is asked, batch
        self._agains: list[tuple[float, str]] = []  #: at, batch
        self._runs: dict[str, list[int]] = {}  #: what is to be ended now: task -> token
        self._asked: Any = None
        self._corr = 0

    @property
    def done(self) -> bool:
        """Everything it wanted was answered."""
        return not (self._todo or self._cancels or self._revises or self._stops or self._agains)

    def begin(self) -> None:
        self._waits_for = b""
        self.link = Link(self, self.broker, "client", self._hear)
        self._go()

    def _go(self) -> None:
        """Ask what is due, again and again."""
        now = self.world.now
        if self._todo and now >= self._todo[0].at:
            job = self._todo[0]
            self._ask(Verb.SUBMIT, {"batch": job.head, "tasks": job.specs}, job.payloads)
        elif self._cancels and now >= self._cancels[0][0]:
            self._asked = None
            self._ask(Verb.CANCEL, {"ids": self._cancels[0][1], "reason": "not wanted any more"})
        elif self._agains and now >= self._agains[0][0]:
            self._asked = self._agains[0]
            if self._runs:
                self._ask(Verb.CANCEL, {"again": self._runs, "reason": "once more"})
            else:
                states = ["leased", "review"]
                self._ask(
                    Verb.QUERY, {"what": "tasks", "batch": self._asked[1], "states": states, "limit": 4}
                )
        elif self._stops and now >= self._stops[0][0]:
            self._asked = self._stops[0]
            _, verb, batch, _ = self._asked
            self._ask(verb, {"batch": batch})
        elif self._revises and now >= self._next()[0]:
            self._asked = self._next()
            _, batch, _, new = self._asked
            self._ask(Verb.REVISE, {"batch": batch, "key": new.key, "plan": new.plan})
        else:
            self.link.send(Verb.RENEW, {})
        self.after(AGAIN_S * (0.5 + self.world.chance.random()), self._go)

    def _next(self) -> tuple[float, str, str, Revise]:
        return min(self._revises, key=lambda due: due[0])

    def _ask(self, verb: Verb, header: dict[str, Any], body: Sequence[bytes] = ()) -> None:
        self._corr += 1  # never that of an earlier life: its answers may still be on their way
        self._waits_for = self._corr.to_bytes(8, "big")
        self.link.send(verb, header, body, self._waits_for)

    def _hear(self, env: Envelope) -> None:
        if env.corr != self._waits_for:
            return  # an answer to a question that was asked again, or answered twice
        if env.verb is Verb.ACCEPTED:
            self._waits_for = b""
            job = self._todo.popleft()
            self.checkers.submitted(job.head["key"], env.header["batch"], [s["key"] for s in job.specs])
            if job.cancel:
                ids = [i for s, i in zip(job.specs, env.header["ids"], strict=True) if s["key"] in job.cancel]
                self._cancels.append((self.world.now + job.cancel_after_s, ids))
            for new in job.revise:
                due = self.world.now + new.after_s
                self._revises.append((due, env.header["batch"], job.head["key"], new))
            if job.stop is not None:
                due = self.world.now + job.stop.after_s
                self._stops = sorted(
                    [*self._stops, (due, Verb.CANCEL, env.header["batch"], job.stop)], key=_due
                )
            for after_s in job.again_s:
                self._agains = sorted([*self._agains, (self.world.now + after_s, env.header["batch"])])
        elif env.verb is Verb.OK and "rows" in env.header:
            self._waits_for = b""
            self._runs = {row["id"]: row["token"] for row in env.header["rows"]}
            if not self._runs:
                self._agains.remove(self._asked)
        elif env.verb is Verb.OK and "again" in env.header:
            self._waits_for = b""
            self._agains.remove(self._asked)
            self._runs = {}
        elif env.verb is Verb.OK and "revision" in env.header:
            self._waits_for = b""
            self._revises.remove(self._asked)
            self.checkers.revised(self._asked[2], self._asked[3].keys, self._asked[3].items)
        elif env.verb is Verb.OK and self._asked in self._stops:
            self._waits_for = b""
            self._stops.remove(self._asked)
            _, verb, batch, stop = self._asked
            self._asked = None
            if verb is Verb.CANCEL and stop.retry_s:
                due = self.world.now + stop.retry_s
                self._stops = sorted([*self._stops, (due, Verb.REQUEUE, batch, stop)], key=_due)
        elif env.verb is Verb.OK:
            self._waits_for = b""
            self.checkers.cancelled(self._cancels.popleft()[1])
        elif env.header.get("code") == "refused" and self._asked in self._stops:
            self._waits_for = b""  # what is cancelled still runs: a retry is asked for again
        elif env.verb in (Verb.CONFLICT, Verb.ERROR) and env.header.get("code") != "no_session":
            self.checkers.refused(env)


def _due(one: tuple[float, Verb, str, Stop]) -> float:
    return one[0]
