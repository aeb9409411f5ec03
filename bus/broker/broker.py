"""The broker process: sockets, clock and disk around the pure core. One thread, one poller.

The loop is five named steps: ``receive`` what arrived, ``advance`` the core's clock and match, ``commit`` once,
``answer``, ``publish``. No answer precedes its commit (PROTOCOL §8).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import zmq

from ... import __version__
from ..clocks import Clocks
from ..core.bounds import Bounds
from ..core.core import Core
from ..core.escalations import Guards
from ..core.model import Effects, Send
from ..errors import BadFrame, ConfigError
from ..lifeline import Alive, alive_fd, lifeline_fd
from ..mounts import require_local
from ..paths import RigPaths, endpoints, make_runtime
from ..sockets import receiver
from ..store.ballast import Disk
from ..store.store import SCHEMA_VERSION, mark
from ..wire import (
    LEASE_S,
    MAX_FRAME_BYTES,
    MAX_REQUESTS,
    Envelope,
    Token,
    Verb,
    corr_of,
    decode,
    encode,
    hello_of,
    other_major,
    unpack,
)
from .completing import Completer
from .earshot import Earshot
from .housekeeping import Housekeeper, has_entries
from .inflow import INFLOW_BYTES, Inflow
from .leftovers import Holdings
from .log_questions import LogQuestions
from .outgoing import PEER_BYTES, PEER_QUEUE, Outgoing, messages_of
from .premises import check_addresses, lock, make_state, open_store
from .publishing import Publisher

log = logging.getLogger(__name__)

#: A round ends after so many messages or seconds, so that a flood cannot hold back the commit that others wait for.
ROUND_MESSAGES: Final = 4000
ROUND_S: Final = 0.02
#: How long a round waits for more where nobody waits for it: results of workers that have enough to do are recorded
#: together, which saves a commit and a wake-up for each.
LINGER_S: Final = 0.004
HWM: Final = 10_000
#: The log is trimmed whenever so large a part of what it keeps has come: it is never much longer than its bound, so the
#: database, whose file only grows, stays as large as it once was; and no commit has to remove very much.
TRIM_PART: Final = 20
MAX_TOPIC_BYTES: Final = 512  #: of a subscription
COMPLAIN_S: Final = 1.0  #: one line of the log for so many seconds of broken messages
#: Messages in a peer's pipe; what it does not take waits in its outbox, which is bounded in bytes too.
ROUTER_HWM: Final = 1_000


@dataclass(frozen=True, slots=True)
class Options:
    """What the broker can be told. Durations in seconds."""

    durability: str = "full"  #: full | normal
    lease_s: float = LEASE_S
    renew_s: float | None = None  #: None: as :func:`.timing.renewal_s` has it
    age_s: float = 60.0
    retain_tasks: int = 200_000
    retain_events: int = 2_000_000
    max_live: int = 1_000_000
    max_batch_tasks: int = 100_000
    bounds: Bounds = field(default_factory=Bounds)
    guards: Guards = field(default_factory=Guards)  #: of escalations
    peer_messages: int = PEER_QUEUE
    peer_bytes: int = PEER_BYTES
    low_mb: int | None = None  #: as :class:`.store.ballast.Disk`
    ballast_mb: int | None = None
    inflow_bytes: int = INFLOW_BYTES  #: memory that connections may fill with what has not ended
    connections: int | None = None  #: None: by what the system allows
    handshake_s: float = 5.0  #: for a connection to say what it is


class Broker:
    """One broker on one state folder. ``run`` returns the exit code."""

    def __init__(
        self, paths: RigPaths, options: Options | None = None, *, addresses: dict[str, str] | None = None
    ) -> None:
        self.paths = paths
        self.options = options or Options()
        require_local(paths.state)
        make_state(paths.state)
        self._lock = lock(paths.state / "broker.lock")
        self.addresses = addresses or endpoints(paths)
        check_addresses(self.addresses)
        self.disk = Disk(paths.state, low_mb=self.options.low_mb, ballast_mb=self.options.ballast_mb)
        self.clocks = Clocks()
        now, wall = time.monotonic(), time.time()
        opened = open_store(paths, self.disk, self.options.durability, now, wall)
        batches, tasks, edges, facts, seq, channels = opened.loaded
        self.store = opened.store
        self.store.make_room = self.disk.give_up
        self.core = Core(
            incarnation=opened.incarnation,
            state_id=opened.state_id,
            epoch=int(self.store.meta("epoch") or 0),
            lease_s=self.options.lease_s,
            renew_s=self.options.renew_s,
            age_s=self.options.age_s,
            retain_tasks=self.options.retain_tasks,
            build=__version__,
            schema=SCHEMA_VERSION,
            endpoints={"events": self.addresses["events"], "heartbeats": self.addresses["heartbeats"]},
        )
        self.core.max_live, self.core.max_batch_tasks = self.options.max_live, self.options.max_batch_tasks
        self.core.bounds = self.options.bounds
        self.core.escalations.guards = self.options.guards
        since = self.store.meta("escalations_since")
        if since is None:  # what failed under an older build is not asked about now
            since = self.core.changes.meta["escalations_since"] = int(wall)
        self.core.escalations.since = float(since)
        self.core.durability = self.options.durability
        self.core.seq, self.core.channel_seq = seq, channels
        self.core.load(batches, tasks, edges, facts, now, wall)
        self.core.found_room(self.disk.look())
        self.holdings = Holdings(batches, self.store.refs() if has_entries(paths.results) else [])
        self.housekeeper = Housekeeper(paths, self.holdings)
        self.completer = Completer(self.store, paths.results)
        self._hurry = False  #: somebody waits for this round's end
        self.stopping = False
        self._next_tick = 0.0
        self._earshot = Earshot(self.options.lease_s, now)
        self._woken_at, self._late_s = time.monotonic(), 0.0
        self._refused = 0
        self._complain_at = 0.0
        self._trim_at = 0
        log.info(
            "broker of state %s, incarnation %d, durability %s: %d batches, %d tasks",
            self.core.state_id[:8],
            self.core.incarnation,
            self.options.durability,
            len(batches),
            len(tasks),
        )

    # -- sockets ---------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Bind the three sockets; everything durable has been read and the incarnation is on disk."""
        self.context = zmq.Context()
        self.router = self._socket(zmq.ROUTER)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # one message is many frames; libzmq bounds each of them
        self.router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES + 4096)
        self.router.setsockopt(zmq.SNDHWM, ROUTER_HWM)
        self.router.setsockopt(zmq.RCVHWM, MAX_REQUESTS)  # what a peer sends beyond it waits with the peer
        self._receive = receiver(self.router)
        self.outgoing = Outgoing(
            self.router, self._lost, messages=self.options.peer_messages, size=self.options.peer_bytes
        )
        self.log_questions = LogQuestions(self.core, self.store, self.outgoing.send)
        self.hearts = self._socket(zmq.SUB)
        self.hearts.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.hearts.subscribe(b"hb.")
        self.events = self._socket(zmq.XPUB)
        # Subscriptions: libzmq keeps a tree node for each of their bytes, and takes long to end many long ones.
        self.events.setsockopt(zmq.MAXMSGSIZE, MAX_TOPIC_BYTES)
        self.publisher = Publisher(self.events)
        self.inflow = Inflow(
            {"commands": self.router, "heartbeats": self.hearts, "events": self.events},
            lambda: len(self.core.tasks),
            allowed_bytes=self.options.inflow_bytes,
            connections=self.options.connections,
        )
        self._bind(("heartbeats", "events", "commands"))

    def _bind(self, names: Sequence[str]) -> None:
        sockets = {"heartbeats": self.hearts, "events": self.events, "commands": self.router}
        if any(self.addresses[name].startswith("ipc://") for name in names):
            make_runtime(self.paths)
        old = os.umask(0o177)
        try:
            for name in names:
                sockets[name].bind(self.addresses[name])
        finally:
            os.umask(old)

    def _keep_bound(self) -> None:
        """A cleaner of /tmp took a socket's file away: who is connected stays so, for the others it is made again."""
        gone = [
            name for name, a in self.addresses.items() if a.startswith("ipc://") and not os.path.exists(a[6:])
        ]
        if not gone:
            return
        try:
            # Without an unbind: its end, some time later, would take the new file away.
            self._bind(gone)
        except (ConfigError, zmq.ZMQError) as e:
            log.error("the sockets %s are gone and cannot be made again: %s", ", ".join(gone), e)
        else:
            log.warning("somebody removed the sockets %s: made again", ", ".join(gone))

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, HWM)
        socket.setsockopt(zmq.RCVHWM, HWM)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        socket.setsockopt(zmq.BACKLOG, 1024)  # after a restart all come at once
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(self.options.handshake_s * 1000))
        return socket

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the supervisor's death; 0 when it stopped in order."""
        self.bind()
        self.inflow.start()
        self.housekeeper.start()
        poller = zmq.Poller()
        for socket in (self.router, self.hearts, self.events):
            poller.register(socket, zmq.POLLIN)
        wake = self._install_signals()
        poller.register(wake, zmq.POLLIN)
        lifeline = lifeline_fd()
        if lifeline is not None:
            poller.register(lifeline, zmq.POLLIN)
        alive = Alive(alive_fd())
        try:
            while not self.stopping:
                alive.say()  # a tick a second wakes an idle loop
                timeout_ms = self._timeout_ms()
                asked_at = time.monotonic()
                ready = dict(poller.poll(timeout_ms))
                woken_at, before = time.monotonic(), self._woken_at
                overslept_s = max(0.0, woken_at - asked_at - timeout_ms / 1000)
                self._late_s, self._woken_at = asked_at - before + overslept_s, woken_at
                if lifeline in ready:
                    self.stopping = True  # nothing is ever written there: this is its end
                self.round(ready)
        finally:
            self.close()
        return 0

    def _timeout_ms(self) -> int:
        if self.core.changes or self.log_questions.waiting:
            return 0  # a peer was lost while it was answered, its leases are back
        now = time.monotonic()
        at = self._next_tick
        timer = self.core.next_timer()
        if timer is not None:
            at = min(at, timer)
        if self.outgoing.outboxes:
            at = min(at, now + 0.01)
        return max(0, int((at - now) * 1000) + 1)

    def round(self, ready: dict[Any, int]) -> None:
        """One turn: receive, advance, commit, answer, publish."""
        self._hurry = False
        drained = self.receive(ready)
        if self.core.changes and not self._hurry:
            drained = self._linger(drained)
        now, wall = self._look_at_clocks()
        self.core.tick(now, wall, self._earshot.turned(now, self._late_s, drained))
        self.core.match()
        fx = self.core.take_effects()
        if fx.changes:
            self.commit(fx, now, wall)
        self.answer(fx)
        self.publish(fx, now, wall)

    def _look_at_clocks(self) -> tuple[float, float]:
        """Monotonic and wall clock; before anything is judged by them, the core hears of a sleep and of a jump."""
        seen = self.clocks.look()
        if seen.slept_s:
            log.warning("the machine has slept for %.0f s: leases get their grace", seen.slept_s)
            self.core.woke(seen.slept_s, seen.now, seen.wall)
        if seen.jumped_s:
            log.warning("the wall clock was set by %+.0f s: nothing of the rig goes by it", seen.jumped_s)
            self.core.wall_jumped(seen.jumped_s, seen.now, seen.wall)
        return seen.now, seen.wall

    def _linger(self, drained: bool) -> bool:
        until = time.monotonic() + LINGER_S
        while not self._hurry and (left := until - time.monotonic()) > 0:
            if not self.router.poll(max(1, int(left * 1000))):
                return True
            drained = self.receive({self.router: zmq.POLLIN})
        return drained

    def _waits(self, env: Envelope) -> bool:
        """Does somebody wait for this round? Nobody does for a result of a worker that has other work in hand, if no
        session listens for the task's end."""
        if env.verb is not Verb.RESULT:
            return True
        worker = self.core.peers.get(env.peer)
        if worker is None or len(worker.leases) < worker.slots:
            return True
        # what it made: the ENDED of each listener, then RECORDED and STALE for the worker
        return any(send.verb is Verb.ENDED for send in islice(reversed(self.core.fx.sends), 3))

    def receive(self, ready: dict[Any, int]) -> bool:
        """Drain what arrived, within the bounds of a round, into the core; whether nothing is left."""
        if self.events in ready:
            self.publisher.hear()
        now, wall = time.monotonic(), time.time()
        if self.hearts in ready:
            self._heartbeats(now)
        if self.router not in ready:
            return True
        deadline = now + ROUND_S
        step, receive = self.core.step, self._receive
        for _ in range(ROUND_MESSAGES):
            frames = receive()
            if frames is None:
                return True
            try:
                env = decode(frames, routed=True)
            except BadFrame as e:
                major = other_major(frames[1:])
                if major is None:
                    self._refuse(frames, e)
                else:
                    self._turn_away(frames, major)
                continue
            if self.publisher.tapped:
                self._tap("in", env)
            if env.verb is Verb.EVENTS:
                self.log_questions.ask(env)
            else:
                step(env, now, wall)
            self._hurry = self._hurry or self._waits(env)
            # After each one: a thousand tasks in a message take longer than a round may.
            now, wall = time.monotonic(), time.time()
            if now > deadline:
                break
        return False

    def _refuse(self, frames: list[bytes], error: BadFrame) -> None:
        self._refused += 1
        if (now := time.monotonic()) >= self._complain_at:
            self._complain_at = now + COMPLAIN_S
            log.warning(
                "dropped a message that breaks PROTOCOL %s: %s (%d so far)", error.rule, error, self._refused
            )
        if frames:
            header = {"code": "bad_frame", "message": str(error), "rule": error.rule}
            self.outgoing.send(frames[0], encode(Verb.ERROR, header, corr=corr_of(frames[1:])))

    def _turn_away(self, frames: list[bytes], major: int) -> None:
        """A peer of another major version: told in frames that begin as its own do."""
        text = self.core.turn_away(hello_of(frames[1:]), major)
        answer = encode(Verb.ERROR, {"code": "version", "message": text}, corr=corr_of(frames[1:]))
        self.outgoing.send(frames[0], [frames[1], *answer[1:]])

    def _heartbeats(self, now: float) -> None:
        for _ in range(1000):
            try:
                frames = self.hearts.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                telemetry = unpack(frames[1])
                name = frames[0][3:].decode()
            except (BadFrame, IndexError, UnicodeDecodeError) as e:
                log.warning("dropped a heartbeat: %s", e)
                continue
            if isinstance(telemetry, dict):
                self.core.heartbeat(name, telemetry, now)
                self.publisher.send([frames[0], frames[1]])

    def commit(self, fx: Effects, now: float, wall: float) -> None:
        """One transaction. If it fails the core is ahead of the disk, so the error ends the process."""
        for no, (_, _, payload, meta) in fx.changes.new_tasks.items():
            self.completer.payloads.put(no, meta, payload)
        for no in fx.changes.respecs:
            self.completer.payloads.pop(no)  # that of its older plan
        events = fx.changes.events
        if events and events[-1][0] - self._trim_at > self.options.retain_events // TRIM_PART:
            self._trim_at = events[-1][0]
            fx.changes.trim_events_below = max(0, self._trim_at - self.options.retain_events)
            mark(fx.changes, self.core.channel_seq)
        self.store.commit(fx.changes, now, wall)
        self.housekeeper.take(self.holdings.committed(fx.changes))
        if self.disk.room is not self.core.room:
            self.core.found_room(self.disk.room)  # the ballast was given up for this commit

    def answer(self, fx: Effects) -> None:
        """Send what the round decided, what somebody waits for first, the asked events last."""
        self.outgoing.flush()
        for send in sorted(fx.sends, key=_urgency) if len(fx.sends) > 1 else fx.sends:
            self.completer.complete(send)
            for frames, leases in messages_of(send):
                self.outgoing.send(send.peer, frames, leases)
            if self.publisher.tapped:
                self._tap("out", Envelope(send.verb, send.header, send.body, send.corr, send.peer))
        for doubt in fx.doubts:
            if self.completer.contradicts(doubt):
                self.core.contradicted(doubt)  # the next round, which is due at once, commits it
        self.log_questions.answer()

    def _lost(self, peer: bytes, leases: list[Token]) -> None:
        """A peer is gone or was cut off; its session may come back over another connection."""
        session = self.core.peers.get(peer)
        if session is not None:
            self.core.disconnected(session, leases)

    # -- publishing ------------------------------------------------------------------------------------------

    def publish(self, fx: Effects, now: float, wall: float) -> None:
        """Events of the commit, progress, and a tick a second, to whoever subscribed."""
        due = now >= self._next_tick
        if due:
            self._next_tick = now + 1.0
        self.publisher.round(fx, {"seq": self.core.seq, "at": wall, "channels": self.core.channel_seq}, due)
        if due:
            self._keep_bound()
            self.core.found_room(self.disk.look())
            self._say_refusals(now, wall)
            self.core.gauges = {**self.outgoing.usage(), **self.inflow.usage()}

    def _say_refusals(self, now: float, wall: float) -> None:
        """Who was turned away or cut off since the last tick: into `status`, and once into the log."""
        cuts = self.inflow.take()
        floods = sum(cut.why == "flood" for cut in cuts)
        for cut in cuts:
            self.core.refusals.note(cut.why, cut.peer, cut.words(floods), cut.fix, now, wall)
        for refusal in self.core.refusals.take_news():
            log.warning("%s; %s", refusal.why, refusal.fix, extra={"action": f"refused_{refusal.kind}"})

    def _tap(self, direction: str, env: Envelope) -> None:
        session = self.core.peers.get(env.peer)
        self.publisher.tap(direction, env, session.name if session else env.peer.hex())

    # -- ending ----------------------------------------------------------------------------------------------

    def _install_signals(self) -> int:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        try:
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
        except ValueError:
            log.debug("not in the main thread: the caller stops this broker")
        self._wake = write
        return read

    def _on_signal(self, number: int, _: Any) -> None:
        self.stopping = True

    def stop(self) -> None:
        """Ask the loop to end, from another thread."""
        self.stopping = True
        os.write(self._wake, b"x")

    def close(self) -> None:
        """Close sockets, then the database (which checkpoints it)."""
        self.housekeeper.close()
        self.inflow.close()
        self.context.destroy(linger=0)
        self.store.close()
        os.close(self._lock)


#: A session is greeted before anything else reaches it; of the rest, work goes before words, and the receipt of a
#: result, which nobody waits for, comes last. Among equals the core's order holds.
_URGENCY: Final = {Verb.WELCOME: 0, Verb.LEASE: 1, Verb.RECORDED: 3}


def _urgency(send: Send) -> int:
    return _URGENCY.get(send.verb, 2)


def main(paths: RigPaths, options: Options | None = None) -> int:
    """One broker process, until it is told to stop; the exit code.

    Raises:
        Refused: another broker runs here.  StoreError: the database cannot be used, or a commit failed; DiskFull: for
            want of room, and another start may find some.
        ConfigError: the sockets cannot be where they should.
    """
    broker = Broker(paths, options)
    # The core keeps every record for long and makes few cycles: full collections over 10^5 records cost more than
    # they find (a third of the broker's time at 30,000 tasks).
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    return broker.run()
