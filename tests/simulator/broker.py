"""The broker's core and its rows in a process that can die between any two of: step, commit, answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from rigbus.bus.broker.completing import Completer
from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Effects, Send
from rigbus.bus.wire import Envelope, Verb

from .checkers import Checkers
from .disk import Disk
from .world import Process, World

LEASE_S: Final = 2.0
RENEW_S: Final = 0.5
VERDICT_S: Final = 30.0
_FIRST: Final = {Verb.WELCOME: 0, Verb.LEASE: 1, Verb.RECORDED: 3}


class Peer(Protocol):
    """Who has a connection to the broker."""

    process: Process

    @property
    def lives(self) -> bool:
        """The process is there, and is still the one that has connected."""

    def deliver(self, env: Envelope) -> None:
        """A message of the broker."""


class Died(Exception):
    """The broker was killed in the midst of what it did."""


class Broker(Process):
    """See the module. ``crashes``: shares of rounds that end with its death before and after the commit, and between answers."""

    make_core: Callable[..., Core] = staticmethod(Core)
    answers_first = False  #: a defect: answer, then commit

    def __init__(self, world: World, disk: Disk, checkers: Checkers) -> None:
        super().__init__(world, "broker")
        self.disk = disk
        self.checkers = checkers
        self.crashes = 0.0
        self.peers: dict[bytes, Peer] = {}
        self.listeners: list[Callable[[bytes, Any], None]] = []
        self.restart: Callable[[], None] = lambda: None
        self._connections = 0
        self._heard_upto: dict[
            bytes, float
        ] = {}  #: when the youngest message was sent that came over a connection

    # -- connections -----------------------------------------------------------------------------------------

    def connect(self, peer: Peer) -> bytes:
        """A new connection's name."""
        self._connections += 1
        name = self._connections.to_bytes(5, "big")
        self.peers[name] = peer
        return name

    def disconnect(self, name: bytes) -> None:
        self.peers.pop(name, None)

    # -- the process -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        world = self.world
        self.inbox: deque[Envelope] = deque()
        self._round_is_due = False
        self._timer_at = float("inf")
        batches, tasks, edges, facts, seq, channels = self.disk.load(world.now, world.wall())
        self.core = self.make_core(
            incarnation=self.disk.next_incarnation(),
            state_id="s" * 32,
            epoch=int(self.disk.meta("epoch") or 0),
            lease_s=LEASE_S,
            renew_s=RENEW_S,
            endpoints={"events": "events", "heartbeats": "heartbeats"},
        )
        self.core.verdict_s = VERDICT_S
        self.core.seq, self.core.channel_seq = seq, channels
        self.core.load(batches, tasks, edges, facts, world.now, world.wall())
        self.completer = Completer(self.disk, Path("/nonexistent"))  # type: ignore[arg-type]
        self.checkers.broker_started(self.core)
        self.after(0.0, self._round)
        self.after(1.0, self._tick)

    def killed(self) -> None:
        self.peers.clear()

    def receive(self, env: Envelope) -> None:
        """A message has arrived."""
        self.inbox.append(env)
        if not self._round_is_due:
            self._round_is_due = True
            self.after(self.world.between(0.0, 0.002), self._round)

    def ask(self, env: Envelope) -> Envelope | None:
        """A question that is answered at once, after its commit; None where the broker died on it."""
        if not self.up or self.stopped:
            return None
        if env.verb is Verb.EVENTS:
            return self._events(env)
        self.inbox.append(env)
        try:
            answers = self._turn()
        except Died:
            return None
        mine = [s for s in answers if s.peer == env.peer and s.corr == env.corr]
        try:
            self._answer([s for s in answers if s not in mine])
        except Died:
            return None
        if not mine:
            return None
        self.checkers.answered(mine[0])
        return Envelope(mine[0].verb, mine[0].header, list(mine[0].body), mine[0].corr)

    def _events(self, env: Envelope) -> Envelope:
        """As the broker's shell answers it, from the log."""
        if env.peer not in self.core.peers:
            return Envelope(Verb.ERROR, {"code": "no_session", "message": "say HELLO first"}, (), env.corr)
        since = min(env.header["since"], self.core.seq)
        events, oldest, more = self.disk.events(since, env.header["channel"], 1000)
        if oldest is not None:
            return Envelope(Verb.RESNAPSHOT, {"oldest": oldest, "last": self.core.seq}, (), env.corr)
        header = {"events": events, "last": self.core.seq, "more": more}
        return Envelope(Verb.EVENTS, header, (), env.corr)

    def _round(self) -> None:
        self._round_is_due = False
        try:
            self._answer(self._turn())
        except Died:
            return

    def _turn(self) -> list[Send]:
        """Step, commit; what is to be answered, completed."""
        world, core = self.world, self.core
        now, wall = world.now, world.wall()
        while self.inbox:
            env = self.inbox.popleft()
            self.checkers.asked(env)
            core.step(env, now, wall)
        core.tick(now, wall)
        core.match()
        fx = core.take_effects()
        self._plan_timer()
        sends = sorted(fx.sends, key=lambda s: _FIRST.get(s.verb, 2))
        if self.answers_first:
            self._complete(fx, sends)
            self._answer(sends)
            sends = []
        if fx.changes:
            self._commit(fx)
        self._complete(fx, sends)
        for row in fx.changes.events:
            for listen in self.listeners:
                listen(b"%s.%s" % (row[3].encode(), row[4].encode()), row)
        return sends

    def _commit(self, fx: Effects) -> None:
        self._maybe_die("before its commit")
        self.disk.commit(fx.changes, self.world.now, self.world.wall())
        self.checkers.committed(self.core, fx.changes)
        self._maybe_die("after its commit")

    def _complete(self, fx: Effects, sends: list[Send]) -> None:
        for no, (_, _, payload, meta) in fx.changes.new_tasks.items():
            self.completer.payloads.put(no, meta, payload)
        for no in fx.changes.respecs:
            self.completer.payloads.pop(no)
        for send in sends:
            self.completer.complete(send)

    def _answer(self, sends: list[Send]) -> None:
        for send in sends:
            self._maybe_die("between two answers")
            self.checkers.answered(send)
            peer = self.peers.get(send.peer)
            if peer is None or not peer.lives:
                self._gone(send)
                continue
            env = Envelope(send.verb, send.header, list(send.body), send.corr)
            self.world.travel(self, peer.process, self._deliver, peer, send.peer, env, self.world.now)

    def _deliver(self, peer: Peer, name: bytes, env: Envelope, sent_at: float) -> None:
        if self.peers.get(name) is peer and peer.lives:
            if env.verb is Verb.LEASE and sent_at < self._heard_upto.get(name, 0.0):
                self.checkers.overtaken(env.header["leases"])
            self._heard_upto[name] = max(sent_at, self._heard_upto.get(name, 0.0))
            peer.deliver(env)

    def _gone(self, send: Send) -> None:
        """Nobody is there: ROUTER says so, or the message is lost in a pipe."""
        session = self.core.peers.get(send.peer)
        if session is not None and self.world.happens(0.5):
            leases = [(x["token"][0], x["token"][1]) for x in send.header.get("leases") or ()]
            self.core.disconnected(session, leases if send.verb is Verb.LEASE else [])

    def _plan_timer(self) -> None:
        at = self.core.next_timer()
        if at is not None and at < self._timer_at:
            self._timer_at = at
            self.after(max(0.0, at - self.world.now), self._timer)

    def _timer(self) -> None:
        self._timer_at = float("inf")
        self._round()

    def _tick(self) -> None:
        for listen in self.listeners:
            listen(b"tick", {"seq": self.core.seq, "channels": dict(self.core.channel_seq)})
        self._round()
        self.after(1.0, self._tick)

    def _maybe_die(self, where: str) -> None:
        if self.world.happens(self.crashes):
            self.kill(f"killed {where}")
            self.restart()
            raise Died
