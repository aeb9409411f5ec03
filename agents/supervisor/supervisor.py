"""What `up` runs: it starts the rig's processes, watches them, and leaves none behind. The shell of ``core.py``.

One thread, one poller: the children's pidfds, their alive pipes, the broker, signals. It is the outer subreaper:
what a dead worker leaves becomes its child, so the end of a child is the end of its whole tree. When this process is
killed, the lifeline closes: workers end their trees and themselves, and the kernel kills the others.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import zmq

from ... import __version__
from ...bus.client.link import Connection
from ...bus.errors import ConfigError, Refused, RigbusError
from ...bus.paths import RigPaths, endpoints, read_run_json, write_run_json
from ...bus.wire import Envelope, Verb
from ..process.linux import SpawnError
from ..worker.spool import Estate
from .children import GUARD, Children
from .core import (
    EXIT_REFUSED,
    Action,
    ChildSpec,
    Finish,
    Gone,
    Phase,
    Say,
    Stage,
    Start,
    SupervisorCore,
    Sweep,
    Terminate,
    missing,
)
from .folder import known_state_id
from .lifeline import lifeline_fd
from .obituaries import Obituaries

log = logging.getLogger(__name__)

ASK_S: Final = 0.04  #: between two questions whether all have reported, until the rig is ready
RENEW_S: Final = 1.0
#: What a disk or a quota without room answers; a rig that is up outlives it.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Supervisor:
    """Runs the rig of one state folder until it is stopped.

    Args:
        paths: of a folder that :func:`.folder.prepare` has locked.
        specs: what to run.
        say: gets each line for people.
        on_ready: called once, when all have reported, with run.json's content and the broker's status.
        env: added to the environment of every process.
    """

    def __init__(
        self,
        paths: RigPaths,
        specs: Sequence[ChildSpec],
        *,
        lease_s: float,
        say: Callable[[str], None],
        on_ready: Callable[[dict[str, Any], dict[str, Any]], None],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.paths = paths
        self.core = SupervisorCore(specs, lease_s=lease_s)
        self._say = say
        self._on_ready = on_ready
        self._state_id = known_state_id(paths.state)
        self._endpoints = endpoints(paths)
        self._children = Children(paths, self._state_id, env or {})
        self._gone = Obituaries()
        self._estate = Estate(paths.state)
        self._ready = False
        self._refusals: set[str] = set()  #: said already
        self._run_changed = False
        self._ask_at = 0.0
        self._publish_at = 0.0
        self._renew_at = 0.0
        self._finish: Finish | None = None
        self._started_at = time.time()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._link = Connection(
            self._endpoints["commands"], role="supervisor", name="up", build=__version__, ctx=self._context
        )
        self._above = lifeline_fd()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._signals = 0

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start everything and serve until all is stopped; the exit code.

        Raises:
            Refused: the broker said that it must not run here (a locked or damaged database).
            RigbusError: broker, brain or bridge did not stay up, and the rig was never ready.
        """
        former = self._take_signals()
        self._children.control.become_subreaper()
        self._bury_former_run()
        try:
            self._perform(self.core.begin())
            self._publish_run()
            while self._finish is None:
                self._turn()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            self._close()
        if self._finish.error:
            kind = Refused if self._finish.code == EXIT_REFUSED else RigbusError
            raise kind(self._finish.error)
        return self._finish.code

    def _turn(self) -> None:
        self._link.tend()
        ready = self._poll()
        now = time.monotonic()
        if self._wake_out in ready:
            self._drain_wake(now)
        if self._above in ready:
            self._above = None
            self._say("whoever started this rig is gone: it stops")
            self._perform([*self.core.stop(now, fast=True)])
        for name in list(self._children.running):
            self._look_at(name, ready, now)
        self._take_swept(now)
        self._hear()
        for name in self.core.silent(now):
            if self._children.heard(name):  # it came after the poll
                self.core.beat(name, now)
        self._perform(self.core.tick(now))
        if self._run_changed and self._ready and now >= self._publish_at:
            self._publish_run()
        if now >= self._renew_at:
            self._renew_at = now + RENEW_S
            self._link.renew(0.0)
            self._children.control.reap_adopted()
        if not self._ready and not self.core.stopping and now >= self._ask_at and self._link.ready:
            self._ask_at = now + ASK_S
            self._link.send(Verb.QUERY, {"what": "status"}, corr=b"status")

    def _poll(self) -> set[Any]:
        """What can be read now; waits until something can, or something is due."""
        poller = zmq.Poller()
        poller.register(self._link.socket, self._link.interest)
        for fd in (self._wake_out, self._above, *self._children.fds):
            if fd is not None:
                poller.register(fd, zmq.POLLIN)
        now = time.monotonic()
        due = min(self.core.next_at() or now + RENEW_S, self._renew_at)
        if not self._ready and self._link.ready:
            due = min(due, self._ask_at)
        if self._children.wait_s is not None:
            due = min(due, now + self._children.wait_s)
        return {what for what, _ in poller.poll(max(0, int((due - now) * 1000) + 1))}

    def _look_at(self, name: str, ready: set[Any], now: float) -> None:
        before = self._children.running[name].session
        if self._children.read(name, ready):
            self.core.beat(name, now)
            self._run_changed = self._run_changed or before != self._children.running[name].session
        end = self._children.ended(name)
        if end is not None:
            status, detail = end
            self._perform(self.core.exited(name, status.code, status.signal, detail, now))

    def _take_swept(self, now: float) -> None:
        for name, running, status in self._children.swept():
            if status is not None and not self.core.children[name].end:
                self.core.exited(name, status.code, status.signal, status.message, now)
            if running.session:
                self._gone.session_of(name, running.session)
            if name == "broker":
                self._link.reconnect()  # what the old socket holds must not reach the next broker
            self._perform(self.core.swept(name, now))
        for name, said in self._children.undying(stopping=self.core.stopping):
            if session := self._children.running[name].session:
                self._gone.session_of(name, session)
            self._perform(self.core.undying(name, said, now))

    # -- actions ---------------------------------------------------------------------------------------------

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    self._start(name)
                case Terminate(name):
                    self._children.terminate(name)
                case Sweep(name):
                    self._sweep(name)
                case Gone(name, why, stuck, undying):
                    pid = self.core.children[name].pid
                    self._gone.add(name, why, stuck, pid=pid, undying=undying)
                    self._tell_gone()
                case Say(text):
                    self._say(text)
                case Finish():
                    self._finish = action

    def _sweep(self, name: str) -> None:
        doing = self._children.busy_with(name)
        if self.core.children[name].killed_for and doing:
            self._say(f"{name} was running {doing}")
        self._children.sweep(name)

    def _start(self, name: str) -> None:
        try:
            pid = self._children.start(self.core.children[name].spec)
        except SpawnError as error:
            self._perform(self.core.not_started(name, str(error), time.monotonic()))
            return
        self._gone.taken_over(name)
        self._run_changed = True
        self._perform(self.core.started(name, pid, time.monotonic()))

    # -- the broker ------------------------------------------------------------------------------------------

    def _tell_gone(self) -> None:
        """Say to the broker what it has not been told; what it cannot hear now stays.

        The results that the dead left come first, also of workers that this rig has no more: GONE ends their leases.
        """
        if not self._present():
            return
        for corr, header in self._gone.untold():
            if not self._link.send(Verb.GONE, header, corr=corr):
                return
            self._gone.told(corr)

    def _present(self) -> bool:
        """Send the results that dead processes left on disk; False when the broker is away."""
        running = self._children.running.items()
        living = {r.session for name, r in running if self.core.children[name].phase is Phase.RUNNING}
        return self._link.ready and self._estate.present(self._link, but=living)

    def _hear(self) -> None:
        while (envelope := self._link.recv()) is not None:
            self._take(envelope)

    def _take(self, e: Envelope) -> None:
        if e.verb is Verb.WELCOME:
            self._gone.new_broker()
            self._tell_gone()
        elif e.verb in (Verb.RECORDED, Verb.STALE):
            self._estate.settle([(t[0], t[1]) for t in e.header.get("tokens") or ()])
        elif e.verb is Verb.CONTROL and e.header.get("action") == "stop":
            self._say("asked to stop: running tasks have 20 s to finish")
            if not self.core.stopping:
                self._perform(self.core.stop(time.monotonic()))
        elif e.verb is Verb.CONTROL and e.header.get("action") == "kill":
            worker, pid = str(e.header.get("worker")), int(e.header.get("pid") or 0)
            self._perform(self.core.kill(worker, pid, "asked for"))
        elif e.verb is Verb.OK and (name := self._gone.answered(e.corr)) is not None:
            leases = e.header.get("leases") or 0
            if leases:
                self._say(f"{name}: {leases} {'lease' if leases == 1 else 'leases'} back in the queue")
        elif e.verb is Verb.OK and e.corr == b"status":
            self._learn(e.header)
        elif e.verb is Verb.ERROR and e.header.get("code") != "no_session":
            log.warning("the broker says: %s", e.header.get("message") or e.header.get("code"))

    def _learn(self, status: dict[str, Any]) -> None:
        wanted = [c.spec.name for c in self.core.children.values() if c.spec.stage is Stage.WORKER]
        for row in status.get("refused") or ():
            if (text := f"refused: {row['why']}; {row['fix']}") not in self._refusals:
                self._refusals.add(text)
                self._say(text)
        absent = missing(status, wanted)
        if not self._ready and not absent and not self.core.stopping:
            self._ready = self.core.ready = True
            run = self._publish_run()
            self._on_ready(run, status)

    # -- start and end ---------------------------------------------------------------------------------------

    def _publish_run(self) -> dict[str, Any]:
        """run.json: how clients and `down` find this rig."""
        pids = {
            name: r.child.pid
            for name, r in self._children.running.items()
            if self.core.children[name].phase is Phase.RUNNING
        }
        order = ("broker", "brain", "brain-worker", "bridge")
        run = {
            "schema": "rigbus.run/1",
            "ready": self._ready,
            "version": __version__,
            "state": str(self.paths.state),
            "state_id": self._state_id,
            "shared": str(self.paths.shared),
            "endpoints": self._endpoints,
            "pid": os.getpid(),
            "guard": pids.pop(GUARD, None),
            "pids": {
                name: pids[name] for name in (*order, *(n for n in pids if n not in order)) if name in pids
            },
            "sessions": {name: r.session for name, r in self._children.running.items() if r.session},
            "started_at": datetime.fromtimestamp(self._started_at).astimezone().isoformat(timespec="seconds"),
        }
        try:
            write_run_json(self.paths, run)
            self._run_changed = False
        except OSError as e:
            if not self._ready or e.errno not in NO_ROOM:
                raise RigbusError(
                    f"{self.paths.run_json} cannot be written: {e.strerror or e}; free some space there, or correct "
                    "its permissions"
                ) from None
            log.warning("run.json cannot be written: %s; trying again", e.strerror)
            self._publish_at = time.monotonic() + RENEW_S
        return run

    def _bury_former_run(self) -> None:
        """What an earlier run on this state folder left behind, after a crash of everything: its processes are
        ended, and the broker will be told that its workers are gone, so that their tasks need not wait."""
        report = self._children.control.sweep_prefix(f"{self._state_id}:")
        if report.killed:
            self._say(f"{report.killed} processes of an earlier run were still there: ended")
        for left in report.survivors:
            self._say(
                f"pid {left.pid} of an earlier run cannot be ended ({left.cmdline[:80]}): end it by hand"
            )
        if not report.survivors:
            self._gone.nothing_left()
        try:
            sessions = (read_run_json(self.paths) or {}).get("sessions")
        except ConfigError as e:
            log.warning("%s", e)  # it is only a hint, and written anew in a moment
            return
        if report.survivors or not isinstance(sessions, dict):
            return
        for name, session in sessions.items():
            self._gone.session_of(str(name), str(session))
            self._gone.add(str(name), "of an earlier run is gone", False)

    def _take_signals(self) -> dict[int, Any]:
        """SIGTERM and SIGINT drain, the second one is fast; SIGHUP (the terminal closed) as they do."""
        signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)

        def heard(number: int, frame: object) -> None:
            self._signals += 1

        wanted = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it is meant to be ignored
            wanted.append(signal.SIGHUP)
        return {n: signal.signal(n, heard) for n in wanted}

    def _drain_wake(self, now: float) -> None:
        try:
            os.read(self._wake_out, 4096)
        except BlockingIOError:
            pass
        while self._signals:
            self._signals -= 1
            if not self.core.stopping:
                self._say("stopping: running tasks have 20 s to finish; once more to stop at once")
            self._perform(self.core.stop(now))

    def _close(self) -> None:
        """Whatever happened: no child outlives this, no descriptor stays, run.json is gone."""
        self._children.close()
        self._link.close()
        self._context.destroy(0)
        for fd in (self._wake_in, self._wake_out):
            os.close(fd)
        try:
            self.paths.run_json.unlink()
        except FileNotFoundError:
            pass
