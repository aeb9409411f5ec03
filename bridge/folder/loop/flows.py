"""Work of the bridge that waits in the middle: each piece a generator that says what it waits for.

One thread runs them all: a flow yields operations on the share, a question to the broker, or a pause, and goes on
with the answer. So the order of steps stands in the code as people read it, and nothing ever blocks the loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ....bus.client.link import raise_error
from ....bus.errors import BadFrame
from ....bus.wire import Envelope, Verb
from ..share.ops import Op, Result
from ..share.port import Fault, FolderPort, Reply
from .questions import Questions

log = logging.getLogger(__name__)

T = TypeVar("T")
DEADLINE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Ops:
    """Wait for a batch of the ``intake`` or ``mirror`` helper; goes on with its Reply."""

    kind: str
    ops: Sequence[Op]
    deadline_s: float = DEADLINE_S


@dataclass(frozen=True, slots=True)
class Ask:
    """Wait for the broker's answer, however long it is away; goes on with its Envelope."""

    verb: Verb
    header: dict[str, Any]
    body: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Idle:
    """Wait ``seconds`` (None: for ever), or until somebody pokes the flow."""

    seconds: float | None = None


Step = Ops | Ask | Idle
Flow = Generator[Step, Any, T]


class ShareAway(Exception):
    """A whole batch failed: the share hangs, is away, or its helper died. What was done of it is unknown."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


def share(kind: str, ops: Sequence[Op], deadline_s: float = DEADLINE_S) -> Flow[list[Result]]:
    """One result for each operation.

    Raises:
        ShareAway: the batch as a whole was not answered.
    """
    if not ops:
        return []
    reply: Reply = yield Ops(kind, ops, deadline_s)
    if reply.fault is not None:
        raise ShareAway(reply.fault)
    return reply.results


def ask(verb: Verb, header: dict[str, Any], body: Sequence[bytes] = ()) -> Flow[Envelope]:
    """The broker's answer.

    Raises:
        Busy, Conflict, NotFound, Refused, DefinitionError: what it answered.
        BadFrame: the question breaks a limit of the wire.
    """
    answer: Envelope = yield Ask(verb, header, body)
    if answer.verb in (Verb.ERROR, Verb.BUSY, Verb.CONFLICT):
        raise_error(answer)
    return answer


@dataclass(slots=True)
class _Run:
    name: str
    flow: Flow[None]
    idle_until: float | None = None
    idle: bool = False


class Flows:
    """Runs flows over one port and one link."""

    def __init__(
        self, port: FolderPort, questions: Questions, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._port, self._questions, self._monotonic = port, questions, monotonic
        self._runs: dict[str, _Run] = {}
        self._tickets: dict[int, _Run] = {}
        self._asked: dict[bytes, _Run] = {}

    def start(self, name: str, flow: Flow[None]) -> None:
        """Run ``flow`` to its first wait. ``name`` is for :meth:`poke` and the log; it is free again when it ends."""
        run = self._runs[name] = _Run(name, flow)
        self._go_on(run, None)

    def running(self, name: str) -> bool:
        """It has not ended yet."""
        return name in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def poke(self, name: str) -> None:
        """End the pause of a flow, if it pauses."""
        run = self._runs.get(name)
        if run is not None and run.idle:
            run.idle_until = 0.0

    def replies(self, replies: Sequence[Reply]) -> None:
        """What the port has answered."""
        for reply in replies:
            run = self._tickets.pop(reply.ticket, None)
            if run is not None:
                self._go_on(run, reply)

    def answer(self, envelope: Envelope) -> bool:
        """A message of the broker; False when no flow waits for it."""
        run = self._asked.pop(self._questions.hear(envelope), None)
        if run is None:
            return False
        self._go_on(run, envelope)
        return True

    def turn(self) -> None:
        """Go on with the flows whose pause is over."""
        now = self._monotonic()
        for run in list(self._runs.values()):
            if run.idle and run.idle_until is not None and run.idle_until <= now:
                self._go_on(run, None)

    def timeout_s(self) -> float | None:
        """Seconds until :meth:`turn` has something to do; None = nothing is due."""
        due = [r.idle_until for r in self._runs.values() if r.idle and r.idle_until is not None]
        return max(0.0, min(due) - self._monotonic()) if due else None

    def close(self) -> None:
        """End all flows where they wait."""
        for run in list(self._runs.values()):
            run.flow.close()
        self._runs.clear()

    def _go_on(self, run: _Run, value: Any) -> None:
        run.idle = False
        problem: BadFrame | None = None
        while True:
            try:
                step = run.flow.send(value) if problem is None else run.flow.throw(problem)
            except StopIteration:
                self._ended(run)
                return
            except Exception:
                # A fault of ours, not of the folder's: the flow ends, the others and the loop go on.
                log.exception("%s ended by a fault in rigbus; please report this", run.name)
                self._ended(run)
                return
            problem = None
            if isinstance(step, Idle):
                run.idle = True
                run.idle_until = None if step.seconds is None else self._monotonic() + step.seconds
                return
            if isinstance(step, Ops):
                self._tickets[self._port.request(step.kind, step.ops, step.deadline_s)] = run
                return
            try:
                self._asked[self._questions.ask(step.verb, step.header, step.body)] = run
                return
            except BadFrame as e:
                problem, value = e, None

    def _ended(self, run: _Run) -> None:
        if self._runs.get(run.name) is run:
            del self._runs[run.name]
