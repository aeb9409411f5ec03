"""The shell of every worker: one thread, one poller. It owns the socket, the clock and the child processes.

Each turn: take what arrived (broker, handler threads, children), step the core, perform its actions, flush once.
Handlers run beside it and reach it only through :meth:`Loop.post`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import zmq

from ...bus.client.link import Connection
from ...bus.clocks import Clocks
from ...bus.errors import BadFrame, Unreachable
from ...bus.timing import beat_s
from ...bus.wire import Envelope, Token, Verb, pack
from ..attempts.threads import Runner
from ..gpu.watch import OwnCards
from . import events as ev
from .core import WorkerCore
from .run import Phase, WorkerConfig
from .spool import Spool

log = logging.getLogger(__name__)

_FIRST_BEAT_S: Final = beat_s(1.0)  #: until the broker has said how long a lease is
_TURN_MESSAGES: Final = 500
_BEGIN_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a worker is and where it connects."""

    name: str
    commands: str
    heartbeats: str | None = None
    build: str = ""


def read_state_id(state: Path | None) -> str | None:
    """The id of the state folder that this worker sees, None when it sees none."""
    if state is None:
        return None
    try:
        return (state / "id").read_text().strip() or None
    except OSError:
        return None


def tokens_of(value: Any) -> list[Token]:
    """The tokens of a header field; what is no token is left out."""
    return [(t[0], t[1]) for t in value or () if isinstance(t, (list, tuple)) and len(t) == 2]


class Loop:
    """Runs one worker until it is drained, superseded or told to restart; :meth:`run` returns the exit code."""

    def __init__(
        self,
        peer: Peer,
        *,
        ctx: zmq.Context[zmq.Socket[bytes]] | None = None,
        state: Path | None = None,
        alive_fd: int | None = None,
        lifeline_fd: int | None = None,
        cards: OwnCards | None = None,
        clock: Callable[[], float] = time.monotonic,
        clocks: Clocks | None = None,
    ) -> None:
        self.peer = peer
        self._clocks = clocks or Clocks()
        self.cards = cards  #: None: this worker has no GPU
        self.clock = clock
        self.ctx: zmq.Context[zmq.Socket[bytes]] = ctx if ctx is not None else zmq.Context(io_threads=1)
        self.core: WorkerCore | None = None
        self.state_id = ""
        self._state = state
        self.ready = threading.Event()  #: the first WELCOME has come
        self._link = Connection(
            peer.commands,
            role="worker",
            name=peer.name,
            build=peer.build,
            ctx=self.ctx,
            hello_extra=self._hello_extra,
        )
        self._spool = Spool(state, peer.name, self._link.session) if state is not None else None
        self._inbox: deque[ev.Event] = deque()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._awake = False
        self._watched: dict[int, Callable[[], None]] = {}
        self._poller = zmq.Poller()
        self._polled: zmq.Socket[bytes] | None = None
        self._interest = 0
        self._runners: dict[str, Runner] = {}
        self._kinds: list[Runner] = []
        self._exit: ev.Exit | None = None
        self._beat_at = 0.0
        self._beat_s = _FIRST_BEAT_S
        self._started_at = clock()
        self._alive_fd = alive_fd
        self._heartbeats = self._open_heartbeats()
        self._control: Callable[[str, Mapping[str, Any]], None] | None = None
        self._placement: Callable[[], Mapping[str, Any] | None] = lambda: None
        self._asked: dict[bytes, Callable[[Mapping[str, Any]], None]] = {}
        if lifeline_fd is not None:
            self.watch(lifeline_fd, lambda: self._supervisor_died(lifeline_fd))

    @property
    def session(self) -> str:
        return self._link.session

    def mark(self, token: Token) -> str:
        """RIGBUS_TOKEN of an attempt: ``<state id>:<session>:<incarnation>.<seq>``."""
        return f"{self.state_id}:{self._link.session}:{token[0]}.{token[1]}"

    # ------------------------------------------------------------ for runners and other threads

    def post(self, event: ev.Event, wake: bool = True) -> None:
        """Hand an event to the loop, from any thread."""
        self._inbox.append(event)
        if wake and not self._awake:
            self._awake = True
            try:
                os.write(self._wake_in, b"!")
            except (BlockingIOError, OSError):
                pass  # full: it is awake already; closed: it has ended

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` in the loop's thread whenever ``fd`` can be read."""
        self._watched[fd] = ready
        self._poller.register(fd, zmq.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Before ``fd`` is closed. An unknown one is ignored."""
        if self._watched.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def add(self, types: tuple[str, ...], runner: Runner) -> None:
        """Tasks of ``types`` go to ``runner``."""
        self._kinds.append(runner)
        for type_ in types:
            self._runners[type_] = runner

    def on_control(self, act: Callable[[str, Mapping[str, Any]], None]) -> None:
        """Who gets CONTROL pushes other than cancel, pause, resume and drain."""
        self._control = act

    def on_placement(self, report: Callable[[], Mapping[str, Any] | None]) -> None:
        """Who says in each heartbeat which model this worker holds."""
        self._placement = report

    def beat(self) -> None:
        """The next turn ends with a heartbeat."""
        self._beat_at = 0.0

    def ask(self, verb: Verb, header: dict[str, Any], answered: Callable[[Mapping[str, Any]], None]) -> bool:
        """Ask the broker; ``answered`` gets the header of its OK, in the loop's thread, at most once.

        False: no broker is there. A new connection forgets what was asked, and an ERROR is no answer: ask again later.
        """
        corr = os.urandom(8)
        if not self._link.send(verb, header, corr=corr):
            return False
        self._asked[corr] = answered
        return True

    # ------------------------------------------------------------ the loop

    def run(self, config: WorkerConfig) -> int:
        """Serve until the end.

        Returns:
            0 drained, 8 superseded by another worker of this name, 75 a fresh process is wanted.
        """
        local = self.peer.commands.startswith(("ipc:", "inproc:"))
        self.core = WorkerCore(replace(config, fence=config.fence or not local), self.clock())
        for left in self._spool.former() if self._spool is not None else ():
            log.info("worker %s: a former process of it left %s", self.peer.name, left.path)
            self._step(self.core, left.inherited())
        self._poller.register(self._wake_out, zmq.POLLIN)
        handled = self._take_signals()
        if self.cards is not None:
            self.cards.watch.start()
        log.info("worker %s looks for the broker at %s", self.peer.name, self._link.endpoint)
        try:
            while self._exit is None:
                self._turn(self.core)
        finally:
            for number, former in handled.items():
                signal.signal(number, former)
            self._close()
        log.info("worker %s ends: %s", self.peer.name, self._exit.reason)
        return self._exit.code

    def _turn(self, core: WorkerCore) -> None:
        self._link.tend()
        self._follow_socket()
        ready = dict(self._poller.poll(self._wait_ms(core)))
        if self._wake_out in ready:
            try:
                os.read(self._wake_out, 4096)
            except BlockingIOError:
                pass
            # After the read, or it could swallow the byte of a post that came between; before the inbox is taken.
            self._awake = False
        if core.config.fence:
            self._look_at_clocks(core)
        for fd in ready:
            callback = self._watched.get(fd) if isinstance(fd, int) else None
            if callback is not None:
                callback()
        for _ in range(_TURN_MESSAGES):
            envelope = self._link.recv()
            if envelope is None:
                break
            self._hear(core, envelope)
        if self._link.superseded:
            self._step(core, ev.Superseded())
        self._take_inbox(core)
        now = self.clock()
        for runner in self._kinds:
            runner.tick(now)
        self._take_inbox(core)
        if now >= core.next_due(now):
            self._step(core, ev.Tick())
        self._step(core, ev.Flush())
        if now >= self._beat_at:
            self._beat(core, now)

    def _look_at_clocks(self, core: WorkerCore) -> None:
        """Before anything is begun or answered: has the machine slept through the end of a lease?"""
        slept_s = self._clocks.look().slept_s
        if slept_s:
            log.warning("the machine of worker %s has slept for %.0f s", self.peer.name, slept_s)
            self._step(core, ev.Slept(slept_s))

    def _take_inbox(self, core: WorkerCore) -> None:
        inbox = self._inbox
        while inbox:
            self._step(core, inbox.popleft())

    def _wait_ms(self, core: WorkerCore) -> int:
        if self._inbox:
            return 0
        now = self.clock()
        due = min(core.next_due(now), self._beat_at)
        for runner in self._kinds:
            at = runner.tick(now)
            due = due if at is None else min(due, at)
        if any(r.phase is Phase.HANDED and r.threaded for r in core.runs.values()):
            due = min(due, now + _BEGIN_POLL_S)  # Started does not wake us: look for it soon
        return max(0, min(1000, int((due - now) * 1000) + 1)) if due > now else 0

    def _follow_socket(self) -> None:
        """The link takes a new socket when it must."""
        s, interest = self._link.socket, self._link.interest
        if s is not self._polled or interest != self._interest:
            if self._polled is not None and s is not self._polled:
                self._poller.unregister(self._polled)
            self._poller.register(s, interest)
            self._polled, self._interest = s, interest

    # ------------------------------------------------------------ steps and actions

    def _step(self, core: WorkerCore, event: ev.Event) -> None:
        for action in core.step(event, self.clock()):
            self._perform(core, action)

    def _perform(self, core: WorkerCore, action: ev.Action) -> None:
        match action:
            case ev.Send():
                self._send(core, action)
            case ev.Spool(rows, body):
                # Without a state folder they are in memory only: what becomes of them is this process's fate.
                if self._spool is not None and not self._spool.keep(rows, body):
                    self._step(core, ev.NotSpooled([row["token"] for row in rows]))
            case ev.Unspool(tokens):
                if self._spool is not None:
                    self._spool.settle(tokens)
            case ev.Start(lease):
                runner = self._runners.get(lease.type)
                if runner is None:
                    outcome = ev.failed(
                        "definition", f"worker {self.peer.name} has no handler {lease.type!r}"
                    )
                    self._inbox.append(ev.Ended(lease.token, outcome))
                    return
                runner.start(lease)
            case ev.Recall(tokens):
                for runner in self._kinds:
                    back = runner.recall(tokens)
                    if back:
                        self._inbox.append(ev.Recalled(back))
            case ev.Terminate(token):
                for runner in self._kinds:
                    runner.terminate(token)
            case ev.Kill(token):
                for runner in self._kinds:
                    runner.kill(token)
            case ev.Reconnect():
                log.warning("worker %s hears nothing from the broker: new connection", self.peer.name)
                self._link.reconnect()
            case ev.Exit():
                self._exit = self._exit or action

    def _send(self, core: WorkerCore, send: ev.Send) -> None:
        try:
            sent = self._link.send(send.verb, send.header, send.body, send.corr)
        except (BadFrame, TypeError, ValueError, OverflowError):
            log.exception("worker %s made a message that breaks the protocol; dropped", self.peer.name)
            return
        if not sent:
            # The outbox keeps what matters; WELCOME makes it say everything again.
            self._step(core, ev.Disconnected())

    def _hear(self, core: WorkerCore, e: Envelope) -> None:
        h = e.header
        match e.verb:
            case Verb.LEASE:
                actions = core.step(ev.Leases(self._leases(e)), self.clock())
                if core.config.threaded:
                    self._say_alive(core, self.clock())  # before they run: a handler may hold the interpreter
                for action in actions:
                    self._perform(core, action)
            case Verb.RECORDED:
                self._step(core, ev.Recorded(tokens_of(h.get("tokens"))))
            case Verb.RENEWED:
                credit = h.get("credit")
                renewed = ev.Renewed(tokens_of(h.get("cancel")), tokens_of(h.get("stale")), e.corr)
                renewed.credit = credit if isinstance(credit, int) else None
                self._step(core, renewed)
            case Verb.STALE:
                self._step(core, ev.Stale(tokens_of(h.get("tokens"))))
            case Verb.WELCOME:
                self._welcome(core, h)
            case Verb.CONTROL:
                self._controlled(core, h)
            case Verb.OK:
                answered = self._asked.pop(e.corr, None)
                if answered is not None:
                    answered(h)
            case Verb.ERROR:
                self._asked.pop(e.corr, None)
                if h.get("code") not in ("no_session", "version"):  # the link has said the second
                    log.warning("the broker says: %s", h.get("message") or h.get("code"))
            case Verb.BYE:
                log.info("the broker ended the session: %s", h.get("reason"))
            case _:
                pass  # an answer that nobody waits for

    def _leases(self, e: Envelope) -> list[ev.Lease]:
        leases = []
        for row, payload in zip(e.header.get("leases") or (), e.body, strict=False):
            try:
                leases.append(ev.Lease.from_wire(row, payload))
            except BadFrame as error:
                log.warning("a lease is unreadable and will lapse: %s", error)
        return leases

    def _welcome(self, core: WorkerCore, h: Mapping[str, Any]) -> None:
        self.state_id = str(h.get("state_id") or self.state_id)
        self._asked.clear()
        # Read now: the broker has made it by the time it answers.
        core.state_id = core.state_id or read_state_id(self._state)
        event = ev.Welcome(tokens_of(h.get("kept")), tokens_of(h.get("stale")))
        event.incarnation = int(h.get("incarnation") or 0)
        event.renew_s = float(h.get("renew_s") or event.renew_s)
        event.lease_s = float(h.get("lease_s") or event.lease_s)
        event.greeted_at = self._link.greeted_at
        self._beat_s = beat_s(event.lease_s)
        self._step(core, event)
        if not self.ready.is_set():
            log.info("worker %s has joined the rig", self.peer.name)
        self.ready.set()

    def _controlled(self, core: WorkerCore, h: Mapping[str, Any]) -> None:
        action = str(h.get("action"))
        if action == "cancel":
            self._step(core, ev.Renewed(tokens_of(h.get("tokens"))))
        elif action in {"pause", "resume", "drain", "hand_back"}:
            self._step(core, ev.Control(action, str(h.get("reason") or "")))
        elif self._control is not None:
            self._control(action, h)

    def _hello_extra(self) -> dict[str, Any]:
        if self.core is None:
            return {"resume": []}
        owes = self.core.owes()
        return {"resume": self.core.resume(), **({"owes": owes} if owes else {})}

    # ------------------------------------------------------------ signs of life

    def _open_heartbeats(self) -> zmq.Socket[bytes] | None:
        if self.peer.heartbeats is None:
            return None
        s = self.ctx.socket(zmq.PUB)
        s.setsockopt(zmq.LINGER, 0)
        s.setsockopt(zmq.SNDHWM, 10)
        try:
            s.connect(self.peer.heartbeats)
        except zmq.ZMQError as e:
            raise Unreachable(f"{self.peer.heartbeats} is no endpoint to connect to: {e}") from None
        return s

    def _beat(self, core: WorkerCore, now: float) -> None:
        self._beat_at = now + self._beat_s
        running = [
            {"id": r.lease.id, "name": r.lease.name or r.lease.key, "elapsed_s": round(now - r.started_at, 1)}
            for r in core.running[:64]
        ]
        if self._heartbeats is not None:
            placement = self._placement()
            beat = {
                "schema": "rigbus.telemetry/1",
                "worker": self.peer.name,
                "pid": os.getpid(),
                "at": time.time(),
                "uptime_s": round(now - self._started_at, 1),
                "state": _state(core),
                "slots": core.config.slots,
                "credit": core.credit,
                "held": core.held.reason if core.held else core.hangs or None,
                "running": running,
                "model": placement.get("model") if placement and placement["phase"] == "hot" else None,
                "load": os.getloadavg()[0],
                "rss_bytes": _rss_bytes(),
                "gpu": self.cards.field() if self.cards is not None else None,
            }
            if placement is not None:
                beat["placement"] = placement
            try:
                self._heartbeats.send_multipart([b"hb." + self.peer.name.encode(), pack(beat)], zmq.DONTWAIT)
            except zmq.Again:
                pass  # a hint may be lost
        self._say_alive(core, now)

    def _say_alive(self, core: WorkerCore, now: float) -> None:
        """A line of JSON for the supervisor: it names what ran when the lines stop."""
        if self._alive_fd is None:
            return
        # Handed counts as running: a handler that takes the interpreter's lock at once lets us say nothing more.
        begun = [r for r in core.runs.values() if r.phase is not Phase.QUEUED]
        said = {
            "mark": f"{self.state_id}:{self.session}:",
            "running": [
                [r.lease.id, r.lease.type, round(now - r.started_at, 1) if r.started_at else 0.0]
                for r in sorted(begun, key=lambda r: r.phase is Phase.HANDED)[:8]
            ],
        }
        try:
            os.write(self._alive_fd, json.dumps(said).encode() + b"\n")
        except OSError:
            pass  # full or closed: the supervisor is busy or gone; its lifeline says which

    # ------------------------------------------------------------ the end

    def _take_signals(self) -> dict[int, Any]:
        """SIGTERM and SIGINT drain; the second one is fast. Only the main thread may ask for signals."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        seen: list[int] = []

        def drain(number: int, frame: object) -> None:
            seen.append(number)
            self.post(ev.Drain(fast=len(seen) > 1))

        return {n: signal.signal(n, drain) for n in (signal.SIGTERM, signal.SIGINT)}

    def _supervisor_died(self, fd: int) -> None:
        self.unwatch(fd)
        log.warning("the supervisor of worker %s is gone: it ends too", self.peer.name)
        # Its broker is ending as well: there is nobody to wait for.
        self.post(ev.Drain(fast=True, patience_s=0.3))

    def _close(self) -> None:
        if self.cards is not None:
            self.cards.watch.close()
        for runner in self._kinds:
            runner.close()
        superseded = self._exit is not None and self._exit.code == ev.EXIT_SUPERSEDED
        self._link.close(bye=not superseded)
        if self._heartbeats is not None:
            self._heartbeats.close(0)
        self._awake = True
        os.close(self._wake_in)
        os.close(self._wake_out)


def _state(core: WorkerCore) -> str:
    if core.stuck:
        return "stuck"
    if core.leaving:
        return "draining"
    if core.paused:
        return "paused"
    if core.held or core.hangs:
        return "held"
    return "busy" if core.runs else "idle"


def _rss_bytes() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None  # no /proc here
