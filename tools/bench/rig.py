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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ...agents.process.linux import default_launcher
from ...agents.supervisor.lifeline import Lifeline
from ...bus.errors import RigbusError
from ..common import HANDED_ON
from . import machine

if TYPE_CHECKING:
    from ...bus.client.client import Client

START_S: Final = 60.0  #: a rig of twenty workers on a busy machine
STOP_S: Final = 15.0
_LOOK: Final = threading.Event()
HOLDER: Final = "rigbus.tools.bench.recovery.holder"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setup:
    """What runs. ``agents`` are workers of the no-op handler, ``workers`` those of commands, ``model`` a GGUF to serve.

    With ``up`` broker, brain, bridge and ``workers`` are children of one ``rigbus up``; without it each runs alone.
    ``holders`` are workers that hold ``hold_slots`` tasks each, and ``tickers`` some that run short ones (holder.py).
    """

    agents: int = 0
    workers: int = 0
    slots: int = 1
    brain: bool = False
    bridge: bool = False
    model: Path | None = None
    ctx: int = 0
    up: bool = False
    alone: bool = False  #: workers of commands know of nobody who would sweep what they leave
    holders: int = 0
    hold_slots: int = 1
    tickers: int = 0
    durability: str = "full"
    settings: Mapping[str, Any] = field(default_factory=dict)  #: of rigbus.toml, where not the defaults
    profile: Path | None = None  #: each process writes its profile into this folder at its end


class BenchRig:
    """A rig in a temporary folder; everything in it ends with this object, and with this process."""

    def __init__(self, setup: Setup, *, shared: Path | None = None) -> None:
        self.setup = setup
        self.folder = Path(tempfile.mkdtemp(prefix="rigbus-bench-"))
        self.state = self.folder / "state"
        self.shared = shared or self.folder / "shared"
        self.state.mkdir(mode=0o700)
        self.shared.mkdir(exist_ok=True)
        self.workers = [f"worker-{n}" for n in range(1, setup.workers + 1)]
        self.workers += [f"agent-{n}" for n in range(1, setup.agents + 1)]
        self.workers += [f"holder-{n}" for n in range(1, setup.holders + 1)]
        self.workers += [f"ticker-{n}" for n in range(1, setup.tickers + 1)]
        self.workers += ["model-1"] if setup.model is not None else []
        self._settings = self._defaults()
        self._lifeline = Lifeline()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _defaults(self) -> str:
        """What `up` hands to its processes, of defaults only: the user's settings and files stay out of it.

        A process that is handed its settings does not load what reads them, which is some memory.
        """
        from ...bus.config.settings import Settings

        mine = {"state": self.state, "shared": self.shared, "durability": self.setup.durability}
        mine |= {"workers": self.setup.workers, "slots": self.setup.slots} if self.setup.up else {}
        settings = Settings.model_validate({**mine, **self.setup.settings})
        return json.dumps(settings.model_dump(mode="json"))

    def __enter__(self) -> BenchRig:
        try:
            for name in self._own():
                self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _own(self) -> list[str]:
        """What this object starts itself; with ``up`` the rest is started by that."""
        if self.setup.up:
            return ["up", *(name for name in self.workers if not name.startswith("worker-"))]
        return ["broker", *self._others(), *self.workers]

    def _others(self) -> list[str]:
        return [name for name in ("brain", "bridge") if self.setup.up or getattr(self.setup, name)]

    def __exit__(self, *exc: object) -> None:
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()  # a holder lets go of all that it holds
        # The broker last: who ends while it answers says goodbye at once.
        last = ("broker", "up")
        _end([p for name, p in self._processes.items() if name not in last])
        _end([p for name, p in self._processes.items() if name in last])
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
            return ["rigbus.agents.worker.main", *state, "--name", name, *agent, *slots]
        if kind in ("holder", "ticker"):
            type_, many = ("hold", self.setup.hold_slots) if kind == "holder" else ("tick", self.setup.slots)
            return [HOLDER, str(self.state), name, type_, str(many), str(self.starts(name))]
        if name.startswith("worker-"):
            return ["rigbus", "worker", *state, "--name", name, *slots]
        return ["rigbus", name, *state]

    def starts(self, name: str) -> Path:
        """Where a holder notes each attempt that it begins."""
        return self.folder / f"{name}.starts"

    def start(self, name: str) -> None:
        """Start one process of the rig, for the first time or after :meth:`kill`."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("RIGBUS_") or k == "RIGBUS_RUNTIME"}
        env |= {"RIGBUS_STATE": str(self.state), "RIGBUS_SHARED": str(self.shared)}
        if self.setup.model is not None:
            env |= {"RIGBUS_MODEL": str(self.setup.model.absolute()), "RIGBUS_MODEL_CTX": str(self.setup.ctx)}
        alone = self.setup.alone and name.startswith("worker-")
        # Without the lifeline the kernel must see to it that no worker outlives us.
        launcher = default_launcher() if alone and sys.platform == "linux" else []
        env |= {HANDED_ON: self._settings, **({} if alone else self._lifeline.env)}
        words = ["-P", "-m"]
        if self.setup.profile is not None:
            words += ["rigbus.tools.bench.profiled", str(self.setup.profile / f"{name}.pstats")]
        words += self._words(name)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*launcher, sys.executable, *words],
                stdin=subprocess.PIPE if HOLDER in words else subprocess.DEVNULL,
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
        from ...bus.client.client import Client
        from ...bus.paths import endpoints, rig_paths

        return Client(endpoints(rig_paths(self.state))["commands"], self.state, timeout_s=timeout_s)

    def _ready(self, bus: Client) -> bool:
        status = bus.query("status")
        there = {w["id"] for w in status["workers"] if w["credit"]}
        return (
            there >= set(self.workers)
            and ("brain" not in self._others() or status["brain"]["state"] == "seated")
            and ("bridge" not in self._others() or status["bridge"]["state"] == "attached")
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
        """The present pid of one process; 0 where `up` runs it and it does not run just now."""
        if name in self._processes:
            return self._processes[name].pid
        from ...bus.paths import read_run_json, rig_paths

        run = read_run_json(rig_paths(self.state)) or {}
        return int(run.get("pids", {}).get(name, 0))

    def kill(self, name: str) -> None:
        """``kill -9``: what a crash leaves is what the next start finds. What `up` runs, it starts again."""
        process = self._processes.pop(name, None)
        if process is None:
            pid = self.pid(name)
            if not pid:  # kill(0) is our own process group
                raise RigbusError(f"{name} does not run just now; this is no benchmark")
            os.kill(pid, signal.SIGKILL)
            return
        process.kill()
        process.wait()

    def tell(self, name: str, line: str) -> None:
        """A line for a holder."""
        stdin = self._processes[name].stdin
        if stdin is None:
            raise RigbusError(f"{name} takes no orders; this is no benchmark")
        stdin.write(line.encode() + b"\n")
        stdin.flush()

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
