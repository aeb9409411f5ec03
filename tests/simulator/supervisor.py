"""Who tells the broker that a worker's process and tree are dead. It never dies itself."""

from __future__ import annotations

from rigbus.bus.wire import PROTO_VERSION, Envelope, Verb

from .broker import Broker
from .world import Process, World

_AGAIN_S = 0.3


class Supervisor(Process):
    """It sweeps what dies, and says GONE until it is answered; what is only stopped it does not notice."""

    def __init__(self, world: World, broker: Broker) -> None:
        super().__init__(world, "supervisor")
        self.broker = broker
        self.process = self
        self.up = True

    @property
    def lives(self) -> bool:
        return True

    def deliver(self, env: Envelope) -> None:
        """Pushes are not for it."""

    def died(self, session: str) -> None:
        """The process of this session is dead, and its tree."""
        self.after(self.world.between(0.02, 0.5), self._say_gone, session)

    def _say_gone(self, session: str) -> None:
        peer = self.broker.connect(self)
        hello = {"proto": list(PROTO_VERSION), "role": "supervisor", "session": "supervisor-of-all"}
        greeted = self.broker.ask(Envelope(Verb.HELLO, hello, (), b"hello", peer))
        gone = Envelope(Verb.GONE, {"session": session, "why": "killed"}, (), b"gone", peer)
        answer = self.broker.ask(gone) if greeted is not None and greeted.verb is Verb.WELCOME else None
        self.broker.disconnect(peer)
        if answer is None or answer.verb is not Verb.OK:
            self.after(_AGAIN_S, self._say_gone, session)
