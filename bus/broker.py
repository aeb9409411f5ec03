"""The broker process: sockets, clock and disk around the pure core. One thread, one poller.

The loop is five named steps: ``receive`` what arrived, ``advance`` the core's clock and match, ``commit`` once,
``answer``, ``publish``. No answer precedes its commit (PROTOCOL §8).
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zmq

from .. import __version__
from .completing import Completer
from .core import Core
from .errors import BadFrame, ConfigError, Refused
from .model import Effects, Send
from .mounts import require_local
from .outgoing import Outgoing, messages_of
from .paths import RigPaths, endpoints, make_runtime
from .sockets import receiver
from .store import SCHEMA_VERSION, Store, mark, state_id
from .wire import LEASE_S, MAX_FRAME_BYTES, Envelope, Token, Verb, corr_of, decode, encode, pack, unpack

log = logging.getLogger(__name__)

#: A round ends after so many messages or seconds, so that a flood cannot hold back the commit that others wait for.
ROUND_MESSAGES: Final = 4000
ROUND_S: Final = 0.02
HWM: Final = 10_000
MAX_TOPIC_BYTES: Final = 512  #: of a subscription
MAX_KNOWN_TOPICS: Final = 4096  #: of which it is remembered whether somebody subscribes
COMPLAIN_S: Final = 1.0  #: one line of the log for so many seconds of broken messages
#: Messages in a peer's pipe; what it does not take waits in its outbox, which is bounded in bytes too.
ROUTER_HWM: Final = 1_000


@dataclass(frozen=True, slots=True)
class Options:
    """What the broker can be told. Durations in seconds."""

    durability: str = "full"  #: full | normal
    lease_s: float = LEASE_S
    age_s: float = 60.0
    retain_tasks: int = 200_000
    retain_events: int = 2_000_000
    max_live: int = 1_000_000
    max_batch_tasks: int = 100_000


class Broker:
    """One broker on one state folder. ``run`` returns the exit code."""

    def __init__(
        self, paths: RigPaths, options: Options | None = None, *, addresses: dict[str, str] | None = None
    ) -> None:
        self.paths = paths
        self.options = options or Options()
        require_local(paths.state)
        _make_state(paths.state)
        self._lock = _lock(paths.state / "broker.lock")
        self.addresses = addresses or endpoints(paths)
        _check_addresses(self.addresses)
        self.store = Store(paths.db, durability=self.options.durability)
        now, wall = time.monotonic(), time.time()
        batches, tasks, facts, seq, channels = self.store.load(now, wall)
        self.core = Core(
            incarnation=self.store.next_incarnation(),
            state_id=state_id(paths.state),
            epoch=int(self.store.meta("epoch") or 0),
            lease_s=self.options.lease_s,
            age_s=self.options.age_s,
            retain_tasks=self.options.retain_tasks,
            build=__version__,
            schema=SCHEMA_VERSION,
            endpoints={"events": self.addresses["events"], "heartbeats": self.addresses["heartbeats"]},
        )
        self.core.max_live, self.core.max_batch_tasks = self.options.max_live, self.options.max_batch_tasks
        self.core.seq, self.core.channel_seq = seq, channels
        self.core.load(batches, tasks, facts, now, wall)
        self.completer = Completer(self.store, paths.results)
        self.subscriptions: dict[bytes, int] = {}
        self._known_topics: dict[bytes, bool] = {}
        self.tapped = False
        self._taps = 0
        self.asked: list[Envelope] = []  # EVENTS questions of this round
        self.stopping = False
        self._next_tick = 0.0
        self._refused = 0
        self._complain_at = 0.0
        self._trim_at = 0
        log.info(
            "broker of state %s, incarnation %d: %d batches, %d tasks",
            self.core.state_id[:8],
            self.core.incarnation,
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
        self._receive = receiver(self.router)
        self.outgoing = Outgoing(self.router, self._lost)
        self.hearts = self._socket(zmq.SUB)
        self.hearts.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.hearts.subscribe(b"hb.")
        self.events = self._socket(zmq.XPUB)
        # Subscriptions: libzmq keeps a tree node for each of their bytes, and takes long to end many long ones.
        self.events.setsockopt(zmq.MAXMSGSIZE, MAX_TOPIC_BYTES)
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
        return socket

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the supervisor's death; 0 when it stopped in order."""
        self.bind()
        poller = zmq.Poller()
        for socket in (self.router, self.hearts, self.events):
            poller.register(socket, zmq.POLLIN)
        wake = self._install_signals()
        poller.register(wake, zmq.POLLIN)
        lifeline = os.environ.get("RIGBUS_LIFELINE_FD")
        if lifeline:
            poller.register(int(lifeline), zmq.POLLIN)
        try:
            while not self.stopping:
                ready = dict(poller.poll(self._timeout_ms()))
                if lifeline and int(lifeline) in ready:
                    self.stopping = True  # nothing is ever written there: this is its end
                self.round(ready)
        finally:
            self.close()
        return 0

    def _timeout_ms(self) -> int:
        if self.core.changes:
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
        self.receive(ready)
        now, wall = time.monotonic(), time.time()
        self.core.tick(now, wall)
        self.core.match()
        fx = self.core.take_effects()
        if fx.changes:
            self.commit(fx, now, wall)
        self.answer(fx)
        self.publish(fx, now, wall)

    def receive(self, ready: dict[Any, int]) -> None:
        """Drain what arrived, within the bounds of a round, into the core."""
        if self.events in ready:
            self._subscriptions()
        now, wall = time.monotonic(), time.time()
        if self.hearts in ready:
            self._heartbeats(now)
        if self.router not in ready:
            return
        deadline = now + ROUND_S
        step, receive = self.core.step, self._receive
        for _ in range(ROUND_MESSAGES):
            frames = receive()
            if frames is None:
                return
            try:
                env = decode(frames, routed=True)
            except BadFrame as e:
                self._refuse(frames, e)
                continue
            if self.tapped:
                self._tap("in", env)
            if env.verb is Verb.EVENTS:
                self.asked.append(env)
            else:
                step(env, now, wall)
            # After each one: a thousand tasks in a message take longer than a round may.
            now, wall = time.monotonic(), time.time()
            if now > deadline:
                return

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
                self._publish([frames[0], frames[1]])

    def _subscriptions(self) -> None:
        for _ in range(ROUND_MESSAGES):
            try:
                message = self.events.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if message[:1] not in (b"\0", b"\1"):
                continue  # no subscription: a peer's own words, which nobody reads
            topic = message[1:]
            self.subscriptions[topic] = self.subscriptions.get(topic, 0) + (1 if message[0] else -1)
            if self.subscriptions[topic] <= 0:
                del self.subscriptions[topic]
        self._known_topics.clear()
        self.tapped = any(t.startswith(b"tap") for t in self.subscriptions)

    def commit(self, fx: Effects, now: float, wall: float) -> None:
        """One transaction. If it fails the core is ahead of the disk, so the error ends the process."""
        for no, (_, _, payload, meta) in fx.changes.new_tasks.items():
            self.completer.payloads.put(no, meta, payload)
        events = fx.changes.events
        if events and events[-1][0] - self._trim_at > 100_000:
            self._trim_at = events[-1][0]
            fx.changes.trim_events_below = max(0, self._trim_at - self.options.retain_events)
            mark(fx.changes, self.core.channel_seq)
        self.store.commit(fx.changes, now, wall)

    def answer(self, fx: Effects) -> None:
        """Send what the round decided, what somebody waits for first, the asked events last."""
        self.outgoing.flush()
        for send in sorted(fx.sends, key=_urgency) if len(fx.sends) > 1 else fx.sends:
            self.completer.complete(send)
            for frames, leases in messages_of(send):
                self.outgoing.send(send.peer, frames, leases)
            if self.tapped:
                self._tap("out", Envelope(send.verb, send.header, send.body, send.corr, send.peer))
        for env in self.asked:
            self._answer_events(env)
        self.asked.clear()

    def _answer_events(self, env: Envelope) -> None:
        session = self.core.peers.get(env.peer)
        if session is None:
            self.outgoing.send(
                env.peer,
                encode(Verb.ERROR, {"code": "no_session", "message": "say HELLO first"}, corr=env.corr),
            )
            return
        session.last_seen = time.monotonic()
        try:
            since, limit = (
                min(max(int(env.header.get("since") or 0), 0), self.core.seq),
                min(max(int(env.header.get("limit") or 1000), 1), 5000),
            )
        except (TypeError, ValueError, OverflowError) as e:
            self.outgoing.send(
                env.peer, encode(Verb.ERROR, {"code": "bad_frame", "message": f"EVENTS: {e}"}, corr=env.corr)
            )
            return
        channel = env.header.get("channel")
        events, oldest, more = self.store.events(
            since, channel if channel in ("p", "c", "a") else None, limit
        )
        if oldest is not None:
            frames = encode(Verb.RESNAPSHOT, {"oldest": oldest, "last": self.core.seq}, corr=env.corr)
        else:
            while len(events) > 1 and len(pack(events)) > MAX_FRAME_BYTES // 2:
                events, more = events[: len(events) // 2], True
            frames = encode(
                Verb.EVENTS, {"events": events, "last": self.core.seq, "more": more}, corr=env.corr
            )
        self.outgoing.send(env.peer, frames)

    def _lost(self, peer: bytes, leases: list[Token]) -> None:
        """A peer is gone or was cut off; its session may come back over another connection."""
        session = self.core.peers.get(peer)
        if session is not None:
            self.core.disconnected(session, leases)

    # -- publishing ------------------------------------------------------------------------------------------

    def publish(self, fx: Effects, now: float, wall: float) -> None:
        """Events of the commit, progress, and a tick a second, to whoever subscribed."""
        if self.subscriptions:
            for event in fx.changes.events:
                topic = f"{event[3]}.{event[4]}".encode()
                if self._wanted(topic):
                    self._publish([topic, pack(event)])
            for id_, header, body in fx.progress:
                self._publish([b"progress." + id_.encode(), pack(header), *body])
            if now >= self._next_tick:
                self._publish(
                    [b"tick", pack({"seq": self.core.seq, "at": wall, "channels": self.core.channel_seq})]
                )
        if now >= self._next_tick:
            self._next_tick = now + 1.0
            self._keep_bound()

    def _wanted(self, topic: bytes) -> bool:
        """Does anybody subscribe to it? To pack and send what XPUB then drops costs 20 µs an event."""
        wanted = self._known_topics.get(topic)
        if wanted is None:
            if len(self._known_topics) >= MAX_KNOWN_TOPICS:
                self._known_topics.clear()
            wanted = self._known_topics[topic] = any(topic.startswith(t) for t in self.subscriptions)
        return wanted

    def _publish(self, frames: list[bytes]) -> None:
        with suppress(zmq.Again):  # XPUB drops for slow subscribers; they see the gap
            self.events.send_multipart(frames, zmq.NOBLOCK)

    def _tap(self, direction: str, env: Envelope) -> None:
        session = self.core.peers.get(env.peer)
        self._taps += 1  # the tap may drop for a slow sniffer: the number shows it
        record = {
            "seq": self._taps,
            "ts": time.time(),
            "dir": direction,
            "peer": session.name if session else env.peer.hex(),
            "verb": env.verb.value,
            "corr": env.corr,
            "bytes": env.size,
            "header": env.header,
        }
        try:
            self._publish([f"tap.{direction}.{env.verb.value}".encode(), pack(record)])
        except (TypeError, ValueError):
            record["header"] = {"unprintable": True}
            self._publish([f"tap.{direction}.{env.verb.value}".encode(), pack(record)])

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
        self.context.destroy(linger=0)
        self.store.close()
        os.close(self._lock)


#: A session is greeted before anything else reaches it; of the rest, work goes before words, and the receipt of a
#: result, which nobody waits for, comes last. Among equals the core's order holds.
_URGENCY: Final = {Verb.WELCOME: 0, Verb.LEASE: 1, Verb.RECORDED: 3}


def _urgency(send: Send) -> int:
    return _URGENCY.get(send.verb, 2)


def _make_state(folder: Path) -> None:
    """The state folder, for us alone where it is new.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise ConfigError(
            f"the state folder {folder} cannot be made: {e.strerror}; choose a folder of yours with --state DIR or "
            "RIGBUS_STATE"
        ) from None


def _lock(path: Path) -> int:
    """The one broker of a state folder; held by the kernel, gone with the process.

    Raises:
        Refused: another broker holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Refused(
            f"{path.parent}: another broker runs on this state folder; `rigbus down` ends it, or choose another --state"
        ) from None
    return fd


def _check_addresses(addresses: dict[str, str]) -> None:
    """Off loopback needs encryption and an allow-list, which this version does not have."""
    for name, address in addresses.items():
        if address.startswith("tcp://") and not address.startswith(
            ("tcp://127.", "tcp://[::1]", "tcp://localhost")
        ):
            raise ConfigError(
                f"{name} at {address}: tcp off loopback needs CURVE keys and an allow-list, which are not there yet; "
                "use ipc:// or 127.0.0.1"
            )


def main(paths: RigPaths, options: Options | None = None) -> int:
    """One broker process, until it is told to stop; the exit code.

    Raises:
        Refused: another broker runs here.  StoreError: the database cannot be used, or a commit failed.
        ConfigError: the sockets cannot be where they should.
    """
    broker = Broker(paths, options)
    # The core keeps every record for long and makes few cycles: full collections over 10^5 records cost more than
    # they find (a third of the broker's time at 30,000 tasks).
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    return broker.run()
