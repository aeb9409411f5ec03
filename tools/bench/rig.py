"""The private rig of a benchmark: real processes in a folder of its own, and what they used of the CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ...agents.lifeline import Lifeline
from ...bus.errors import RigbusError
from ..common import HANDED_ON
from . import machine

if TYPE_CHECKING:
    from ...bus.client import Client

START_S: Final = 20.0
STOP_S: Final = 15.0
_LOOK: Final = threading.Event()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setup:
    """What runs. ``agents`` are workers of the no-op handler, ``workers`` those of commands, ``model`` a GGUF to serve."""

    agents: int = 0
    workers: int = 0
    slots: int = 1
    brain: bool = False
    bridge: bool = False
    model: Path | None = None
    ctx: int = 0
    durability: str = "full"
    profile: Path | None = None  #: each process writes its profile into this folder at its end


class BenchRig:
    """A rig in a temporary folder; everything in it ends with this object, and with this process."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.folder = Path(tempfile.mkdtemp(prefix="rigbus-bench-"))
        self.state = self.folder / "state"
        self.shared = self.folder / "shared"
        self.state.mkdir(mode=0o700)
        self.shared.mkdir()
        self.workers = [f"worker-{n}" for n in range(1, setup.workers + 1)]
        self.workers += [f"agent-{n}" for n in range(1, setup.agents + 1)]
        self.workers += ["model-1"] if setup.model is not None else []
        self._settings = self._defaults()
        self._lifeline = Lifeline()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _defaults(self) -> str:
        """What `up` hands to its processes, of defaults only: the user's settings and files stay out of it.

        A process that is handed its settings does not load what reads them, which is some memory.
        """
        from ...bus.config import Settings

        mine = {"state": self.state, "shared": self.shared, "durability": self.setup.durability}
        settings = Settings.model_validate(mine)
        return json.dumps(settings.model_dump(mode="json"))

    def __enter__(self) -> BenchRig:
        try:
            for name in ("broker", *self._others(), *self.workers):
                self._start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _others(self) -> list[str]:
        return [name for name in ("brain", "bridge") if getattr(self.setup, name)]

    def __exit__(self, *exc: object) -> None:
        # The broker last: who ends while it answers says goodbye at once.
        others = [p for name, p in self._processes.items() if name != "broker"]
        _end(others)
        _end([p for name, p in self._processes.items() if name == "broker"])
        self._lifeline.close()
        from ...bus.paths import rig_paths

        shutil.rmtree(rig_paths(self.state).runtime, ignore_errors=True)
        for folder, _, _ in os.walk(self.folder):
            if not os.access(folder, os.W_OK | os.X_OK):
                os.chmod(folder, 0o700)  # staged plans are read-only
        shutil.rmtree(self.folder, ignore_errors=True)

    def _words(self, name: str) -> list[str]:
        state = ["--state", str(self.state)]
        slots = ["--slots", str(self.setup.slots)]
        agents = {"agent": "rigbus.tools.bench.agent:Noop", "model": "rigbus.agents.llm:ModelAgent"}
        kind = name.partition("-")[0]
        if kind in agents:
            agent = ["--agent", agents[kind]]
            return ["rigbus.agents.worker", *state, "--name", name, *agent, *slots]
        if name.startswith("worker-"):
            return ["rigbus", "worker", *state, "--name", name, *slots]
        return ["rigbus", name, *state]

    def _start(self, name: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RIGBUS_") or k == "RIGBUS_RUNTIME"}
        env |= {"RIGBUS_STATE": str(self.state), "RIGBUS_SHARED": str(self.shared)}
        if self.setup.model is not None:
            env |= {"RIGBUS_MODEL": str(self.setup.model.absolute()), "RIGBUS_MODEL_CTX": str(self.setup.ctx)}
        env |= {HANDED_ON: self._settings, **self._lifeline.env}
        words = ["-P", "-m"]
        if self.setup.profile is not None:
            words += ["rigbus.tools.bench.profiled", str(self.setup.profile / f"{name}.pstats")]
        words += self._words(name)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                pass_fds=(self._lifeline.read_fd,),
                cwd=self.folder,
                start_new_session=True,
            )

    def client(self) -> Client:
        """A client, when everything that runs has reported.

        Raises:
            RigbusError: a process ended at its start, or did not get ready.
        """
        bus = self.open()
        self.wait(lambda: self._ready(bus), "the rig to be ready", START_S)
        return bus

    def open(self, timeout_s: float = START_S) -> Client:
        """A client, when the broker answers. Of the thread that calls this.

        Raises:
            Unreachable: not in time.
        """
        from ...bus.client import Client
        from ...bus.paths import endpoints, rig_paths

        return Client(endpoints(rig_paths(self.state))["commands"], self.state, timeout_s=timeout_s)

    def _ready(self, bus: Client) -> bool:
        status = bus.query("status")
        there = {w["id"] for w in status["workers"] if w["credit"]}
        return (
            there >= set(self.workers)
            and (not self.setup.brain or status["brain"]["state"] == "seated")
            and (not self.setup.bridge or status["bridge"]["state"] == "attached")
        )

    def wait(self, look: Callable[[], T | None], what: str, timeout_s: float, poll_s: float = 0.01) -> T:
        """What ``look`` returns, when that is true.

        Raises:
            RigbusError: not in time, or a process has ended meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            self.check()
            if time.monotonic() > deadline:
                raise RigbusError(f"waited {timeout_s:g} s in vain for {what}; this is no benchmark")
            _LOOK.wait(poll_s)
        return found

    def check(self) -> None:
        """All processes live.

        Raises:
            RigbusError: one has ended; the message has its last words.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text("utf-8", "replace")
                raise RigbusError(f"{name} ended with {process.returncode}: {log[-500:]}")

    def pid(self, name: str) -> int:
        """The present pid of one process."""
        return self._processes[name].pid

    def kill_broker(self) -> None:
        """``kill -9``: what a crash leaves is what the next start finds."""
        process = self._processes["broker"]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def start_broker(self) -> None:
        """Another broker on the same state folder."""
        self._start("broker")

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far by ``broker``, ``workers`` (together), ``brain``, ``bridge`` and ``client``.

        Empty where the system does not tell. ``client`` is this process.
        """
        used = {name: machine.tree_cpu_s(process.pid) for name, process in self._processes.items()}
        known = {name: value for name, value in used.items() if value is not None}
        if len(known) < len(used):
            return {}
        kinds = {"broker": known["broker"], "workers": sum(known[name] for name in self.workers)}
        kinds |= {name: known[name] for name in self._others()}
        return {**kinds, "client": time.process_time()}

    def staged(self, text: str, files: dict[str, str]) -> dict[str, Any]:
        """Check, copy and stage a plan as `rigbus submit` does; what ``Client.submit_plan`` takes."""
        from uuid import uuid4

        from ...bus.paths import rig_paths
        from .. import plan_source

        paths = rig_paths(self.state, self.shared)
        source = self.folder / "plans" / f"p{uuid4().hex[:8]}"
        source.mkdir(parents=True)
        (source / "plan.md").write_text(text, encoding="utf-8")
        for name, content in files.items():
            (source / name).write_text(content, encoding="utf-8")
        checked = plan_source.check(source, {})
        folder = plan_source.into_plans(source, checked.plan.name, paths.shared)
        return {
            "name": checked.plan.name,
            "sha256": plan_source.stage(source, paths.staged),
            "path": str(folder),
            "batch_root": str(folder / "batches"),
            "config": {},
            "source": "bench",
        }


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
