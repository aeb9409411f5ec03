"""The whole brain of a rig, but for its sockets: it asks over a link that loses questions and answers, and dies between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import zmq

from rigbus.agents.brain import service
from rigbus.agents.brain.expanding import Expanding
from rigbus.bus.client.link import raise_error
from rigbus.bus.errors import Unreachable
from rigbus.bus.paths import rig_paths
from rigbus.bus.wire import Envelope, Verb, pack, unpack
from rigbus.plans.model import Plan
from rigbus.plans.parser import parse_plan

from .broker import RENEW_S, Broker
from .link import Link
from .world import Process, World

TURN_S: Final = 0.05
IDLE_S: Final = 0.5


class Killed(BaseException):
    """kill -9 in the midst of a piece of work."""


class Asking(Link):
    """The link of a brain: questions are answered (or lost) before it goes on; others may act meanwhile."""

    def __init__(self, process: Brain, broker: Broker) -> None:
        self.lost = 0.0  #: share of the questions that do not arrive, and of the answers
        self._corr = 0
        self._renewed_at = 0.0
        self._pushed: deque[Envelope] = deque()
        super().__init__(process, broker, "brain", self._pushed.append, process.name)
        self.socket = self.interest = self.context = None

    def tend(self, wait_s: float = 0.0) -> None:
        """It tends itself."""

    def recv(self) -> Envelope | None:
        return self._pushed.popleft() if self._pushed else None

    def renew(self) -> None:
        if self.process.world.now - self._renewed_at >= RENEW_S:
            self._renewed_at = self.process.world.now
            self.send(Verb.RENEW, {})

    def poll(self, timeout_s: float) -> bool:
        self.process.world.run(self.process.world.now + timeout_s)
        return False

    def request(
        self, verb: Verb, header: dict[str, Any], body: Any = (), timeout_s: float = 30.0
    ) -> Envelope:
        world, process = self.process.world, self.process
        life, until = process.life, world.now + timeout_s
        while True:
            world.run(world.now + world.between(0.0002, 0.003))
            if process.life == life:
                process.stumble()
            if process.life != life:
                raise Killed
            if world.now >= until:
                raise Unreachable(f"no answer to {verb}")
            if not self.ready or process.stopped or process.name in world.cut or world.happens(self.lost):
                world.run(world.now + 0.1)
                continue
            self._corr += 1
            copy = unpack(pack({**header, "deadline_s": 1.0}))
            answer = self.broker.ask(
                Envelope(verb, copy, list(body), self._corr.to_bytes(8, "big"), self.peer)
            )
            if process.life != life:
                raise Killed
            if answer is None or world.happens(self.lost):
                world.run(world.now + 0.1)  # it was done, or not: asked again
                continue
            answer = Envelope(answer.verb, unpack(pack(answer.header)), answer.body, answer.corr)
            self.follow(answer)
            if answer.header.get("code") == "no_session":
                continue
            if answer.verb in (Verb.ERROR, Verb.BUSY, Verb.CONFLICT):
                raise_error(answer)
            return answer

    def close(self) -> None:
        """Nothing to close."""


class _Mind(service.Brain):
    """The brain of ``agents/brain/service.py``; only what opens sockets and reads files is replaced."""

    def __init__(self, link: Any, plans: Mapping[str, str], world: World) -> None:
        super().__init__(rig_paths(Path("/nonexistent")), "", link=link, clock=world.clock)
        self.heard: deque[tuple[bytes, Any]] = deque()
        self._texts = plans
        self._events = self  # type: ignore[assignment]
        self.placements.due = lambda now: False  # type: ignore[method-assign]  # no models here

    def _subscribe(self, endpoint: str) -> None:
        self.heard.clear()

    def recv_multipart(self, flags: int) -> list[bytes]:
        """As the SUB socket of the events."""
        if not self.heard:
            raise zmq.Again
        topic, value = self.heard.popleft()
        return [topic, pack(value)]

    def _parse(self, staged: Path, name: str) -> Plan:  # type: ignore[override]
        return parse_plan(self._texts[staged.name], file="plan.md", name=name)

    def _files(self, staged: Path) -> str:  # type: ignore[override]
        return ""


class Brain(Process):
    """A process that runs the mind. ``plans``: the text of each plan, by its sha256."""

    def __init__(self, world: World, name: str, broker: Broker, plans: Mapping[str, str]) -> None:
        super().__init__(world, name)
        self.broker = broker
        self.plans = plans
        self.lost = 0.0
        self.crashes = 0.0  #: share of the questions before which it dies, or falls asleep
        self.clumsy = 0.0  #: at least this share
        self.make_expanding = Expanding
        broker.listeners.append(self._publish)

    def begin(self) -> None:
        self._acts = False
        self.link = Asking(self, self.broker)
        self.mind = _Mind(self.link, self.plans, self.world)
        self.mind.expanding = self.make_expanding(self.mind, clock=self.world.clock)
        self._turn_is_due = False
        self._renewed_at = self.world.now
        self._soon(0.01)

    def stumble(self) -> None:
        """It may die, or sleep so long that another brain takes its seat, in the midst of its work."""
        world = self.world
        if world.happens(max(self.crashes, self.clumsy)):
            if world.happens(0.5):
                self.kill("killed between two questions")
                world.at(world.now + world.between(0.1, 3.0), self._again)
            else:
                self.stop()
                world.at(world.now + world.between(0.5, 9.0), self.go_on)

    def _again(self) -> None:
        if not self.up:
            self.start()

    def _publish(self, topic: bytes, value: Any) -> None:
        if self.up and (topic == b"tick" or topic.startswith(b"a.")):
            self.world.travel(self.broker, self, self._heard, topic, value)

    def _heard(self, topic: bytes, value: Any) -> None:
        self.mind.heard.append((topic, value))
        self._soon(0.001)

    def _soon(self, delay_s: float) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            self.after(delay_s, self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        if self._acts:
            return  # it is in the midst of a question
        self._acts, life = True, self.life
        self.link.lost = self.lost
        try:
            self.mind.turn()
        except Killed:
            return
        except Unreachable:
            self.link.reconnect()
        if life == self.life:
            self._acts = False
            busy = bool(self.mind.work and self.mind.epoch) or self.mind.heard
            self._soon(TURN_S * self.world.chance.random() if busy else IDLE_S)
