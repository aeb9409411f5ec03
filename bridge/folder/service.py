"""The bridge process: the only service that touches the share, through its helpers; a peer of the broker.

Outwards it mirrors, inwards it takes in (`mirror`, `intake` and the other rooms). It owns nothing: kill it at any moment,
start it again. Neither the share nor the broker can make its loop wait.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import zmq

from ... import __version__
from ...bus.alerting.rules import Policy
from ...bus.client.follow import event_of
from ...bus.client.link import Connection
from ...bus.errors import BadFrame
from ...bus.lifeline import Alive, alive_fd, lifeline_fd
from ...bus.mounts import LOCAL_SETTLE_S, NETWORK_SETTLE_S, mount_of
from ...bus.paths import RigPaths, find_rig
from ...bus.store.store import state_id
from ...bus.wire import Verb, unpack
from .alerts import alerts
from .alerts.alerts import BridgeAlerts
from .alerts.files import Book
from .batchfiles import files as batch_files
from .batchfiles.files import BatchFiles
from .contract.layout import File
from .control import control
from .control.control import Control
from .doors import books_of, control_of, doors
from .escalations import escalations
from .escalations.escalations import Escalations
from .intake import intake
from .intake.intake import Intake
from .intake.requests import Requests
from .intake.taking import Taker
from .logs.decisions import Decision
from .loop.clock import Clock
from .loop.flows import Flow, Flows, Idle
from .loop.pubsub import PubSub
from .loop.questions import Questions
from .mirror import mirror
from .mirror.lanes import KEPT, KEPT_S
from .mirror.mirror import Mirror
from .seat import Seat
from .share.owner import SILENT_S, Claim
from .share.port import REMEMBERED, FolderPort

log = logging.getLogger(__name__)

NAME: Final = "bridge"
RENEW_S: Final = 2.0  #: a session lives 6 s
BEAT_S: Final = 5.0
HASTE_S: Final = (
    3.0  #: after a change, beats come every second: one that a new connection loses is soon made good
)
AGAIN_S: Final = 5.0
SEAT_S: Final = 0.5  #: between two looks whether the other bridge of this rig has gone
MAX_WAIT_S: Final = 1.0
END_S: Final = 1.5  #: for showing an orderly end


class Bridge:
    """One bridge on one rig; :meth:`run` returns the exit code. ``settle_s`` None: by the share's mount.

    Its folders come from ``paths``; ``commands`` is the broker's endpoint.
    """

    def __init__(
        self,
        paths: RigPaths,
        commands: str,
        *,
        settle_s: float | None = None,
        reconcile_s: float = mirror.RECONCILE_S,
        archive_keep: int = KEPT,
        archive_after_s: float = KEPT_S,
        path_map: Sequence[str] = (),
        silent_s: float = SILENT_S,
        models: Sequence[str] = (),
        alerting: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.paths, self.stopping = paths, False
        clock = clock or Clock()
        self._seat = Seat(paths.state / "bridge.lock")
        self._waits = False
        self.port = _port(paths, silent_s)
        self.link = Connection(
            commands,
            role="bridge",
            name=NAME,
            build=__version__,
            hello_extra=lambda: {"share": self._share(), "standby": self._waits},
        )
        self._pubsub = PubSub(NAME)
        self.questions = Questions(self.link)
        self.flows = Flows(self.port, self.questions)
        self._books = books_of(paths)
        self._deeds, self._findings = control_of(paths)
        self.mirror = Mirror(
            paths,
            self.port,
            self._pubsub.beats,
            clock,
            author=self._books.author,
            reconcile_s=reconcile_s,
            kept=archive_keep,
            kept_s=archive_after_s,
            path_map=path_map,
            findings=self._findings,
        )
        self.alerts = BridgeAlerts(
            self.port,
            Book(paths.state),
            clock,
            Policy.of(alerting or {}),
            attached=lambda: self.link.ready,
            say=self._say,
        )
        self._escalations = Escalations(self.port, paths, clock, self._draw, self.mirror.forget)
        self.intake, self._doors = self._inward(clock, settle_s, models, path_map)
        self._generation = 0
        self._was_available: bool | None = None
        self._beat_at = self._hasty_until = 0.0
        self._begun: dict[str, float] = {}

    def _inward(
        self, clock: Clock, settle_s: float | None, models: Sequence[str], path_map: Sequence[str]
    ) -> tuple[Intake, dict[str, Callable[[], Flow[None]]]]:
        """The inbox, and the doors beside it: flow name -> what starts it."""
        port, flows, paths = self.port, self.flows, self.paths
        rest = settle_s if settle_s is not None else self._settle_s()
        taker = Taker(paths, clock)
        batches = BatchFiles(port, flows, taker, paths, clock, settle_s=rest, models=models)
        answer = Requests(taker, clock, self.alerts).answer
        inbox = Intake(port, flows, taker, answer, clock, settle_s=rest, told=batches.told)
        redraw = partial(flows.poke, mirror.NAME)
        edits = Control(port, self._deeds, self._findings, taker, clock, redraw)
        beside = doors(
            port,
            flows,
            paths,
            clock,
            self.mirror.drawn,
            homes=taker.homes,
            path_map=path_map,
            books=self._books,
        )
        return inbox, {control.NAME: edits.run, **beside, batch_files.NAME: batches.run}

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the supervisor's death."""
        wake = _install_signals(self)
        lifeline, alive = lifeline_fd(), Alive(alive_fd())
        try:
            if not self._seated(wake, lifeline, alive):
                return 0
            self._keep_running()
            self.flows.start("warm-up", _warm_up())
            while not self.stopping:
                alive.say()
                ready = self._wait(wake, lifeline)
                if lifeline is not None and lifeline in ready:
                    log.info("the supervisor is gone; the bridge ends")
                    break
                self.turn()
            if self.stopping:
                self._show_the_end(wake)
        finally:
            self.close()
        return 0

    def _seated(self, wake: int, lifeline: int | None, alive: Alive) -> bool:
        """Wait until no other bridge serves this rig; False when this one is to end before that.

        The broker knows of the one that waits, so that `status` can say it.
        """
        while not self._seat.take():
            if not self._waits:
                self._waits = True
                log.warning(
                    "another bridge (pid %s) serves this rig: this one waits, and takes nothing from the shared folder; end "
                    "one of the two",
                    self._seat.holder(),
                )
            alive.say()
            self.link.tend()
            while self.link.recv() is not None:
                pass
            self.link.renew(RENEW_S)
            # not _wait: port and flows have something to do at once, and nobody to do it
            ready = dict(self._poller(wake, lifeline).poll(int(SEAT_S * 1000)))
            if self.stopping or (lifeline is not None and lifeline in ready):
                return False
        if self._waits:
            self._waits = False
            log.info("the other bridge has gone: this one serves the rig")
            self.link.reconnect()  # HELLO says so
        return True

    def _show_the_end(self, wake: int) -> None:
        """Workers and broker stop in order: who looks into the share later sees that nothing died."""
        until = time.monotonic() + END_S
        try:
            os.read(wake, 1024)  # the signal that we know of would wake every wait
        except BlockingIOError:
            pass
        self.mirror.stop()
        self.flows.poke(mirror.NAME)
        while not self.mirror.stopped() and time.monotonic() < until:
            self._wait(wake, None, 0.05)
            self.turn()
        self.port.leave()

    def turn(self) -> None:
        """Take what has come, and do what is due. Never waits."""
        self.link.tend()
        while (env := self.link.recv()) is not None:
            if self.flows.answer(env):
                continue
            if env.verb is Verb.BYE:
                log.info("the broker ended this session: %s", env.header.get("reason"))
            elif env.verb is Verb.ERROR and env.header.get("code") != "no_session":
                log.warning("the broker: %s", env.header.get("message"))
        self.link.renew(RENEW_S)
        if self.link.generation != self._generation:
            self._generation = self.link.generation
            self._welcomed()
        self.questions.tend()
        self._hear_events()
        self.flows.replies(self.port.poll())
        if self.port.state.available != self._was_available:
            self._share_changed()
        self.flows.turn()
        self._keep_running()
        self._speak()

    def _keep_running(self) -> None:
        """Mirror, intake and doors run for ever; one that a fault of ours ended begins anew, after a pause."""
        now = time.monotonic()
        both = {mirror.NAME: self.mirror.run, intake.NAME: self.intake.run}
        both[escalations.NAME] = self._escalations.run
        for name, run in {**both, **self._doors, **self.alerts.flows()}.items():
            if not self.flows.running(name) and now - self._begun.get(name, -AGAIN_S) >= AGAIN_S:
                self._begun[name] = now
                self.flows.start(name, run())

    def _poller(self, wake: int, lifeline: int | None) -> zmq.Poller:
        """For what wakes every wait: the broker, a signal, the supervisor's end."""
        poller = zmq.Poller()
        poller.register(self.link.socket, self.link.interest)
        poller.register(wake, zmq.POLLIN)
        if lifeline is not None:
            poller.register(lifeline, zmq.POLLIN)
        return poller

    def _wait(self, wake: int, lifeline: int | None, most_s: float = MAX_WAIT_S) -> dict[Any, int]:
        poller = self._poller(wake, lifeline)
        if self._pubsub.events is not None:
            poller.register(self._pubsub.events, zmq.POLLIN)
        for fd, writing in self.port.fds():
            poller.register(fd, zmq.POLLOUT if writing else zmq.POLLIN)
        times = [most_s, self.port.timeout_s(), self.flows.timeout_s()]
        timeout_s = min(t for t in times if t is not None)
        # Rounded up: a wait that ends just before its time would spin.
        return dict(poller.poll(int(timeout_s * 1000) + 1 if timeout_s > 0 else 0))

    def _welcomed(self) -> None:
        """A session: subscribe anew (the broker may be another process), and compare the mirror."""
        welcome = self.link.welcome
        self._pubsub.open(self.link.context, welcome)
        self._beat_at, self._hasty_until = 0.0, time.monotonic() + HASTE_S
        if self.port.claim is not None:  # for `rebuild`: what a new rig gives out must be past it
            self.port.claim.said["incarnation"] = int(welcome.get("incarnation") or 0)
        self.mirror.welcomed()
        self._escalations.welcomed()
        self.alerts.welcomed()
        for name in (mirror.NAME, escalations.NAME, alerts.LOOK):
            self.flows.poke(name)
        log.info("attached to the broker (incarnation %s)", welcome.get("incarnation"))

    def _hear_events(self) -> None:
        heard = raised = False
        for frames in self._pubsub.heard():
            heard = True
            try:
                value = unpack(frames[1])
                if frames[0] == b"tick":
                    self.mirror.tick(value.get("channels") or {})
                else:
                    event = event_of(value)
                    self.mirror.event(event)
                    raised = raised or event.topic.startswith("escalation.")
                    if self.alerts.event(event):
                        self.flows.poke(alerts.LOOK)
            except (BadFrame, AttributeError, IndexError) as e:
                log.warning("an event that breaks PROTOCOL §6: %s; dropped", e)
        if heard and self.mirror.has_work():
            self.flows.poke(mirror.NAME)
        if raised:
            self._escalations.heard()
            self.flows.poke(escalations.NAME)

    def _draw(self, file: File) -> None:
        """A file that another flow has drawn: the mirror writes it."""
        self.mirror.want(file)
        self.flows.poke(mirror.NAME)

    # -- the share -------------------------------------------------------------------------------------------

    def _share_changed(self) -> None:
        """It came, or went: both flows look again, and whoever listens hears it at once."""
        self._was_available = self.port.state.available
        self._beat_at, self._hasty_until = 0.0, time.monotonic() + HASTE_S
        self.mirror.share_is_back()
        self._escalations.welcomed()
        for name in (mirror.NAME, intake.NAME, escalations.NAME, *self._doors, alerts.DRAW):
            self.flows.poke(name)

    def _say(self, at: float, decision: Decision) -> None:
        self.mirror.say(at, decision)
        self.flows.poke(mirror.NAME)

    def _share(self) -> dict[str, Any]:
        state = self.port.state
        return {"available": state.available, "reason": state.reason, "since_at": state.since_at}

    def _settle_s(self) -> float:
        mount = mount_of(Path(self.port.root), resolve=False)
        return NETWORK_SETTLE_S if mount is not None and mount.late else LOCAL_SETTLE_S

    def _speak(self) -> None:
        """Our own heartbeat: whether the share is there, and why not."""
        now = time.monotonic()
        if not self._pubsub.may_speak or now < self._beat_at:
            return
        self._beat_at = now + (1.0 if now < self._hasty_until else BEAT_S)
        beat = {
            "schema": "rigbus.bridge/1",
            "worker": NAME,
            "pid": os.getpid(),
            "at": time.time(),
            "state": "mirroring" if self.port.state.available else "share unavailable",
            "share": self._share(),
            "stuck_helpers": len(self.port.stuck()),
            "mirror": self.mirror.counts(),
            "alerts": self.alerts.counts(),
        }
        self._pubsub.speak(beat)

    def close(self) -> None:
        """End the flows, the helpers and the session."""
        self.flows.close()
        self.port.close()
        self._pubsub.close()
        self.link.close()
        self._seat.leave()


def _port(paths: RigPaths, silent_s: float) -> FolderPort:
    """The way to the share, which is made only where it is the rig's own folder."""
    return FolderPort(
        paths.shared,
        remember=paths.state / REMEMBERED,
        create_root=paths.shared == paths.state / "shared",
        claim=_claim(paths, silent_s),
    )


def _claim(paths: RigPaths, silent_s: float = SILENT_S) -> Claim:
    """What this process claims of the shared folder, in the name of its rig."""
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    said = {"host": socket.gethostname(), "state": str(paths.state), "pid": os.getpid()}
    return Claim(state_id(paths.state), uuid.uuid4().hex, said, silent_s)


def _warm_up() -> Flow[None]:
    """Load the plan parser while nothing waits for it: the first drop would pay for it otherwise."""
    yield Idle(0.5)
    import_module("...plans.parser", __package__)
    import_module("...plans.check", __package__)


def _install_signals(bridge: Bridge) -> int:
    """SIGTERM and SIGINT end the loop; the descriptor wakes it."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def stop(number: int, _: Any) -> None:
        bridge.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return read


def main(
    paths: RigPaths,
    *,
    settle_s: float | None = None,
    path_map: Sequence[str] = (),
    reconcile_s: float = mirror.RECONCILE_S,
    archive_keep: int = KEPT,
    archive_after_s: float = KEPT_S,
    models: Sequence[str] = (),
    alerting: Mapping[str, Any] | None = None,
) -> int:
    """One bridge process on this rig; the exit code.

    Raises:
        ConfigError: the rig's socket folder is not ours, or a path is too long.
    """
    started = time.monotonic()
    commands = find_rig(paths.state).endpoints["commands"]
    log.info("bridge for %s; state in %s", paths.shared, paths.state)
    bridge = Bridge(
        paths,
        commands,
        settle_s=settle_s,
        path_map=path_map,
        reconcile_s=reconcile_s,
        archive_keep=archive_keep,
        archive_after_s=archive_after_s,
        models=models,
        alerting=alerting,
    )
    code = bridge.run()
    log.info("bridge ended after %.1f s", time.monotonic() - started)
    return code
