"""Parts for tests of the bus: a broker that says what the test tells it, the real broker, and a small worker."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zmq
from helpers import wait_for

from rigbus.bus.broker.broker import Options
from rigbus.bus.client.link import Connection
from rigbus.bus.errors import BadFrame, RigbusError
from rigbus.bus.paths import endpoints, rig_paths
from rigbus.bus.wire import Envelope, Verb, decode, encode, pack, unpack

Answer = tuple[Verb, dict[str, Any], list[bytes]]


class ScriptedBroker:
    """A ROUTER in a thread. ``answers[verb](envelope)`` gives the messages to send back; HELLO is answered by itself.

    ``seen`` holds what came, in order. ``silent`` swallows everything, as a hung broker does.
    """

    def __init__(self, endpoint: str, *, events: str = "") -> None:
        self.endpoint = endpoint
        self.events = events
        self.answers: dict[Verb, Callable[[Envelope], list[Answer]]] = {}
        self.seen: list[Envelope] = []
        self.hellos: list[Envelope] = []
        self.silent = False
        self.sessions: dict[bytes, str] = {}
        self._pushes: queue.SimpleQueue[tuple[Verb, dict[str, Any], list[bytes]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._bound.wait(30)

    def push(self, verb: Verb, header: dict[str, Any], body: list[bytes] | None = None) -> None:
        """Send to every session."""
        self._pushes.put((verb, header, body or []))

    def verbs(self) -> list[Verb]:
        return [e.verb for e in self.seen]

    def forget_sessions(self) -> None:
        """As a restart: nobody has said HELLO."""
        self.sessions.clear()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "it would go on beside the next test"

    def _run(self) -> None:
        ctx = zmq.Context()
        router = ctx.socket(zmq.ROUTER)
        router.linger = 0
        router.router_mandatory = True
        router.bind(self.endpoint)
        self._bound.set()
        while not self._stop.is_set():
            if router.poll(5):
                self._one(router)
            while not self._pushes.empty():
                verb, header, body = self._pushes.get()
                for peer in list(self.sessions):
                    self._send(router, peer, encode(verb, header, body))
        ctx.destroy(0)

    def _one(self, router: zmq.Socket[bytes]) -> None:
        try:
            env = decode(router.recv_multipart(), routed=True)
        except BadFrame:
            return
        if self.silent:
            return
        if env.verb is Verb.HELLO:
            self.hellos.append(env)
            self.sessions[env.peer] = env.header["session"]
            welcome = {"proto": [1, 0], "incarnation": 1, "seq": 0, "events": self.events}
            out: list[Answer] = self.answers.get(Verb.HELLO, lambda _: [(Verb.WELCOME, welcome, [])])(env)
        elif env.peer not in self.sessions:
            out = [(Verb.ERROR, {"code": "no_session", "message": "HELLO first"}, [])]
        else:
            self.seen.append(env)
            default = [(Verb.RENEWED, {}, [])] if env.verb is Verb.RENEW else []
            make = self.answers.get(env.verb)
            out = make(env) if make is not None else default
        for verb, header, body in out:
            self._send(
                router, env.peer, encode(verb, header, body, b"" if verb is Verb.WELCOME else env.corr)
            )

    def _send(self, router: zmq.Socket[bytes], peer: bytes, frames: list[bytes]) -> None:
        try:
            router.send_multipart([peer, *frames], zmq.DONTWAIT)
        except zmq.ZMQError:
            self.sessions.pop(peer, None)


_BROKER = (
    "import json, sys; from pathlib import Path\n"
    "from rigbus.bus.core.bounds import Bounds\n"
    "from rigbus.bus.broker.broker import Broker, Options\n"
    "from rigbus.bus.paths import rig_paths\n"
    "options, addresses = json.loads(sys.argv[2])\n"
    "paths = rig_paths(Path(sys.argv[1]))\n"
    "options['bounds'] = Bounds(**options['bounds'])\n"
    "sys.exit(Broker(paths, Options(**options), addresses=addresses).run())\n"
)


class RealBroker:
    """The real broker as a process on ``<folder>/state``; it can be killed and started again."""

    def __init__(
        self, folder: Path, options: Options | None = None, addresses: dict[str, str] | None = None
    ) -> None:
        self.state = folder / "state"
        self.paths = rig_paths(self.state)
        self.addresses = addresses or endpoints(self.paths)
        self.endpoint = self.addresses["commands"]
        self._how = json.dumps([asdict(options or Options()), self.addresses])
        self._log = (folder / "broker.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BROKER, str(self.state), self._how], stdout=self._log, stderr=self._log
        )
        if ready:
            self.welcome()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def welcome(self) -> dict[str, Any]:
        """What a new client is told."""
        link = Connection(self.endpoint, role="client")
        try:
            return link.connect(30)
        finally:
            link.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None
        self._log.close()


class SmallWorker:
    """A worker in a thread: ``run(lease, payload)`` returns a value or raises; answers go back as RESULT."""

    def __init__(
        self, endpoint: str, types: list[str], run: Callable[..., Any], *, name: str = "w1", credit: int = 200
    ) -> None:
        self.endpoint, self.types, self.run_task, self.name, self.credit = endpoint, types, run, name, credit
        self.leases: list[dict[str, Any]] = []
        self.progress: Callable[[str, dict[str, Any], list[bytes]], None]
        self._held: dict[tuple[int, int], tuple[dict[str, Any], bytes]] = {}
        #: RESULTs that the socket had no room for.
        self._unsent: deque[tuple[dict[str, Any], list[bytes]]] = deque()
        self._stop = threading.Event()
        self._offered = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        assert self._offered.wait(30)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "it would go on beside the next test"

    def _loop(self) -> None:
        link = Connection(
            self.endpoint,
            role="worker",
            name=self.name,
            hello_extra=lambda: {"resume": [list(token) for token in self._held]},
        )
        offer = {
            "credit": self.credit,
            "slots": 4,
            "types": self.types,
            "classes": ["cpu"],
            "needs": [],
            "pools": [],
        }
        renewed = 0.0
        while not self._stop.is_set():
            link.poll(0.02)
            while (env := link.recv()) is not None:
                if env.verb is Verb.WELCOME and link.send(Verb.OFFER, offer):
                    self._offered.set()
                elif env.verb is Verb.LEASE:
                    self._leased(link, env)
                elif env.verb in {Verb.CONTROL, Verb.RENEWED}:
                    self._cancel(link, env.header.get("tokens") or env.header.get("cancel") or [])
                elif env.verb is Verb.RECORDED:
                    for token in env.header["tokens"]:
                        self._held.pop(tuple(token), None)
            while self._unsent and link.send(Verb.RESULT, *self._unsent[0]):
                self._unsent.popleft()
            if time.monotonic() - renewed > 1.0:
                renewed = time.monotonic()
                link.send(Verb.RENEW, {"tokens": [list(t) for t in self._held]})
        link.close()

    def _cancel(self, link: Connection, tokens: list[Any]) -> None:
        """What it holds has no process, so it is dead at once."""
        known = [t for t in tokens if tuple(t) in self._held]
        if known:
            results = [{"token": t, "ok": False, "cancelled": True, "duration_s": 0.0} for t in known]
            self._unsent.append(({"results": results}, [b""] * len(known)))

    def _leased(self, link: Connection, env: Envelope) -> None:
        results, body = [], []
        for lease, payload in zip(env.header["leases"], env.body, strict=True):
            self.leases.append(lease)
            token = lease["token"]
            self._held[tuple(token)] = (lease, payload)
            link.send(Verb.STARTED, {"tokens": [token]})
            try:
                value = self.run_task(
                    lease,
                    unpack(payload),
                    lambda h, b=(), t=token: link.send(Verb.PROGRESS, {"token": t, **h}, list(b)),
                )
            except RigbusError as e:
                results.append(
                    {"token": token, "ok": False, "class": "task", "error": str(e), "duration_s": 0.0}
                )
                body.append(b"")
                continue
            if value is NEVER:
                continue
            if isinstance(value, Ref):
                results.append({"token": token, "ok": True, "ref": value.ref, "duration_s": 0.0})
                body.append(b"")
            else:
                results.append({"token": token, "ok": True, "duration_s": 0.0})
                body.append(pack(value))
        if results:
            self._unsent.append(({"results": results}, body))


class Ref:
    """A value by reference."""

    def __init__(self, ref: dict[str, Any]) -> None:
        self.ref = ref


NEVER = object()  #: a task that does not end


def wait_until(condition: Callable[[], Any], what: str = "") -> Any:
    return wait_for(condition, timeout_s=20.0, what=what)
