"""A peer's connection: HELLO until WELCOME, sending only while it stands; what the real ``link`` does, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from rigbus.bus.wire import PROTO_VERSION, Envelope, Verb, pack, unpack

from .broker import Broker
from .world import Process

HELLO_S: Final = 0.5  #: between two tries while nobody is there
WELCOME_S: Final = 3.0
#: Messages whose maps the core may change, or keeps: each copy has maps of its own, as on a wire.
_COPIED: Final = frozenset({Verb.SUBMIT, Verb.BRAIN, Verb.HELLO, Verb.OFFER})


class Link:
    """Of one life of a process. ``hear`` gets every message of the present connection."""

    def __init__(
        self, process: Process, broker: Broker, role: str, hear: Callable[[Envelope], None], name: str = ""
    ) -> None:
        self.process = process
        self.life = process.life
        self.broker = broker
        self.role = role
        self.name = name
        self.session = f"{process.world.chance.getrandbits(128):032x}"
        self.extra: Callable[[], dict[str, Any]] = dict
        self.ready = False
        self.welcome: dict[str, Any] = {}
        self.generation = 0
        self.hellos = 0
        self.superseded = False
        self.greeted_at = 0.0
        self._hear = hear
        self._asked_at = float("-inf")
        self.peer = b""
        self._tend()

    def _tend(self) -> None:
        world = self.process.world
        if not self.ready and not self.superseded and world.now - self._asked_at >= WELCOME_S:
            self.hello()
        self.process.after(HELLO_S, self._tend)

    def hello(self) -> None:
        """On a new connection."""
        self.ready = False
        self._asked_at = self.greeted_at = self.process.world.now
        self.broker.disconnect(self.peer)
        self.peer = self.broker.connect(self)
        self.hellos += 1
        self.put(Envelope(Verb.HELLO, self.greeting(), (), b"", self.peer))

    @property
    def lives(self) -> bool:
        """A connection dies with its process: what was sent over it reaches no later one."""
        return self.process.up and self.process.life == self.life

    @property
    def newer(self) -> bool:
        """Each third life of a process is of a newer minor version, which says what nobody knows."""
        return self.process.life % 3 == 2

    def greeting(self) -> dict[str, Any]:
        major, minor = PROTO_VERSION
        header = {
            "proto": [major, minor + self.newer],
            "role": self.role,
            "session": self.session,
            "nth": self.hellos,
            "pid": 1000 + self.process.life,
            **self.extra(),
        }
        return header | {"name": self.name} if self.name else header

    reconnect = hello

    def put(self, env: Envelope) -> None:
        broker = self.broker
        if not broker.up:
            return
        if self.newer:
            env = replace(env, header={**env.header, "unheard_of": {"a": [1, None]}})
        packed = pack(env.header) if env.verb in _COPIED else None
        self.process.world.travel(self.process, broker, self._arrive, env, packed)

    def _arrive(self, env: Envelope, packed: bytes | None) -> None:
        header = env.header if packed is None else unpack(packed)
        self.broker.receive(Envelope(env.verb, header, env.body, env.corr, env.peer))

    def send(self, verb: Verb, header: dict[str, Any], body: Any = (), corr: bytes = b"") -> bool:
        """False where no broker is there."""
        if not self.ready:
            return False
        if not self.broker.up:
            self.ready = False
            return False
        if self.peer not in self.broker.peers:
            # libzmq connects again by itself, under another name: the broker will say that it knows no session
            self.peer = self.broker.connect(self)
        self.put(Envelope(verb, header, tuple(body), corr, self.peer))
        return True

    def deliver(self, env: Envelope) -> None:
        """Called by the broker's network."""
        self.follow(env)
        self._hear(env)

    def follow(self, env: Envelope) -> None:
        if env.verb is Verb.WELCOME:
            self.ready = True
            self.welcome = env.header
            self.generation += 1
        elif env.verb is Verb.BYE:
            self.ready = False
            self.superseded = env.header.get("reason") == "superseded"
        elif env.verb is Verb.ERROR and env.header.get("code") == "no_session" and self.ready:
            self.ready = False
            self._asked_at = float("-inf")
