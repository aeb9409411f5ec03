"""A rig for your tests: ``def test_shouter(rig): rig.add(Shouter); assert rig.call("shout", {"text": "hi"}) == …``

The fixture starts a real broker in a short temporary folder and real worker processes, and ends all of them. It is a
pytest plugin (entry point ``pytest11``), so it imports nothing of ours until a test asks for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..bus.client.client import Client
    from .base import Agent

READY_S = 20.0
_BROKER = """\
import logging, sys
from pathlib import Path
from rigbus.bus.broker.broker import main
from rigbus.bus.paths import rig_paths
logging.basicConfig(level=logging.INFO)
sys.exit(main(rig_paths(Path(sys.argv[1]))))
"""


class Rig:
    """One private rig: ``state`` is its folder, ``log`` what its processes said."""

    def __init__(self) -> None:
        # Short, since Unix sockets have 107 bytes for their path and pytest's folders are long.
        self.folder = Path(tempfile.mkdtemp(prefix="rb-"))
        self.state = self.folder / "state"
        self.state.mkdir(mode=0o700)
        self.shared = self.folder / "shared"
        self.shared.mkdir()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[tuple[Any, threading.Thread]] = []
        self._clients: list[Client] = []
        self._named: dict[str, int] = {}
        self._lifeline: Any = None
        self._own: Client | None = None

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Rig]:
        """A rig with its broker, for fixtures of your own scope; it ends with the block."""
        rig = cls()
        try:
            rig.start_broker()
            yield rig
        finally:
            rig.stop()

    # ------------------------------------------------------------ parts

    def start_broker(self) -> None:
        """Start the broker; it is there when this returns."""
        self._start("broker", ["-c", _BROKER, str(self.state)])
        from ..bus.errors import Unreachable

        until = time.monotonic() + READY_S
        while True:
            try:
                with self._connect(1.0):
                    return
            except Unreachable as e:
                if self._processes["broker"].poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the rig's broker did not start: {e}\n{self.log('broker')}") from e

    def add(self, cls: type[Agent], *, name: str | None = None, slots: int | None = None) -> str:
        """Start an agent of this class and wait until it has joined; its name in the rig.

        A process of its own, found by the class's file and name. A class local to a function runs in a thread of
        the test instead: it cannot be killed, but it sees the test's variables.
        """
        name = name or self._name(cls.__name__.lower())
        if "<locals>" in cls.__qualname__:
            self._thread(cls, name, slots)
        else:
            from .base import agent_path, agent_ref

            words = ["--agent", agent_ref(cls), *([] if slots is None else ["--slots", str(slots)])]
            self._worker(name, words, agent_path(cls))
        self.wait_joined(name)
        return name

    def add_worker(self, *options: str, name: str | None = None) -> str:
        """Start a worker of commands with these command-line options; its name in the rig."""
        name = name or self._name("worker")
        self._worker(name, list(options))
        self.wait_joined(name)
        return name

    def client(self) -> Client:
        """A new client of this rig, closed with it. A client belongs to the thread that made it."""
        client = self._connect(READY_S)
        self._clients.append(client)
        return client

    def call(self, type: str, payload: Any = None, *, timeout_s: float = 20.0, **options: Any) -> Any:
        """``Client.call`` on the rig's own client."""
        return self.bus.call(type, payload, timeout_s=timeout_s, **options)

    @property
    def bus(self) -> Client:
        """The rig's own client, for the test's thread."""
        if self._own is None:
            self._own = self.client()
        return self._own

    # ------------------------------------------------------------ trouble

    def kill(self, name: str) -> None:
        """``kill -9`` one of its processes (``"broker"`` or a worker's name), then do what a supervisor does.

        That is: end what a worker has left running, and tell the broker, so that its leases end now.
        """
        rows = [] if name == "broker" else self.bus.query("workers")["workers"]
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        for session in [row["session"] for row in rows if row["id"] == name]:
            self._sweep(session)
            self._gone(session)

    def restart_broker(self) -> None:
        """``kill -9`` the broker and start it again on the same state."""
        self.kill("broker")
        self.start_broker()

    def pid(self, name: str) -> int:
        """The process id of one of its processes."""
        return self._processes[name].pid

    def exit_code(self, name: str, timeout_s: float = READY_S) -> int:
        """Wait for the end of one of its processes; its exit code."""
        return self._processes[name].wait(timeout_s)

    def stop_worker(self, name: str, timeout_s: float = READY_S) -> int:
        """SIGTERM, which drains; the exit code."""
        process = self._processes.pop(name)
        process.terminate()
        return process.wait(timeout_s)

    def log(self, name: str) -> str:
        """What a process wrote to its standard output and error."""
        try:
            return (self.folder / f"{name}.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait(
        self, condition: Callable[[], Any], timeout_s: float = READY_S, what: str = "the condition"
    ) -> Any:
        """Ask ``condition`` until it is true; its value.

        Raises:
            AssertionError: it was not true within ``timeout_s`` seconds.
        """
        until = time.monotonic() + timeout_s
        pause = threading.Event()
        while not (value := condition()):
            if time.monotonic() >= until:
                raise AssertionError(f"{what} did not come about within {timeout_s:g} s")
            pause.wait(0.02)
        return value

    def wait_joined(self, name: str) -> None:
        """Until the worker has offered its credit.

        Raises:
            RuntimeError: its process has ended; the message has its log.
        """

        def joined() -> bool:
            process = self._processes.get(name)
            if process is not None and process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{self.log(name)}")
            rows = self.bus.query("workers")["workers"]
            return any(row["id"] == name and row["credit"] for row in rows)

        self.wait(joined, what=f"{name} joining the rig")

    # ------------------------------------------------------------ inside

    def _name(self, stem: str) -> str:
        self._named[stem] = self._named.get(stem, 0) + 1
        return f"{stem}-{self._named[stem]}"

    def _connect(self, timeout_s: float) -> Client:
        from ..bus.client.client import Client
        from ..bus.paths import endpoints, rig_paths

        # By its sockets, not by run.json: the broker may not have them yet, the link waits for it.
        return Client(endpoints(rig_paths(self.state))["commands"], self.state, timeout_s=timeout_s)

    def _worker(self, name: str, options: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        words = ["-m", "rigbus.agents.worker.main", "--state", str(self.state), "--name", name, *options]
        self._start(name, words, env)

    def _start(self, name: str, words: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        from .supervisor.lifeline import Lifeline

        if self._lifeline is None:
            self._lifeline = Lifeline()  # when the test dies, its rig ends with it
        if name in self._processes and self._processes[name].poll() is None:
            raise RuntimeError(f"{name} runs already; give each its own name")
        env = {k: v for k, v in os.environ.items() if not k.startswith("RIGBUS_") or k == "RIGBUS_RUNTIME"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**env, **(more or {}), **self._lifeline.env},
                pass_fds=(self._lifeline.read_fd,),
                start_new_session=True,
            )

    def _thread(self, cls: type[Agent], name: str, slots: int | None) -> None:
        from .worker.main import place_of
        from .worker.serve import AgentWorker

        started: list[Any] = []
        ready = threading.Event()

        def run() -> None:
            # Made here: a socket belongs to the thread that opens it.
            try:
                worker = AgentWorker(cls(), place_of(name, self.state), slots=slots)
            except BaseException as e:
                started.append(e)
                raise
            finally:
                ready.set()
            started.append(worker)
            worker.run()

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        ready.wait(READY_S)
        self.wait(lambda: started, what=f"the thread of {name}")
        if isinstance(started[0], BaseException):
            raise started[0]
        self._threads.append((started[0], thread))

    def stop(self) -> None:
        """End every process, thread and file of this rig."""
        from ..bus.paths import rig_paths

        for worker, _ in self._threads:
            worker.stop(fast=True)
        for _, thread in self._threads:
            thread.join(5.0)
        broker = self._processes.pop("broker", None)
        for process in self._processes.values():
            process.terminate()
            process.send_signal(signal.SIGINT)  # the second signal: it does not wait for what runs
        for process in self._processes.values():
            _end(process, 3.0)
        for client in self._clients:
            client.close()
        if broker is not None:
            broker.terminate()
            _end(broker, 3.0)
        self._sweep()
        shutil.rmtree(rig_paths(self.state).runtime, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lifeline is not None:
            self._lifeline.close()

    def _gone(self, session: str) -> None:
        from ..bus.client.link import Connection
        from ..bus.paths import endpoints, rig_paths
        from ..bus.wire import Verb
        from .worker.spool import Estate

        link = Connection(endpoints(rig_paths(self.state))["commands"], role="supervisor")
        try:
            link.connect(READY_S)
            Estate(self.state).present(link)
            link.request(Verb.GONE, {"session": session}, timeout_s=READY_S)
        finally:
            link.close()

    def _sweep(self, session: str = "") -> None:
        """End the processes of this rig's attempts, or of one worker's session."""
        from .process.linux import processes

        try:
            state_id = (self.state / "id").read_text().strip()
        except OSError:
            state_id = ""
        if state_id:
            processes().sweep_prefix(f"{state_id}:{session}:" if session else f"{state_id}:")


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A running broker in a folder of its own; add agents and workers to it (:class:`Rig`)."""
    with Rig.running() as started:
        yield started
