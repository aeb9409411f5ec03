"""The private rig of a benchmark: a broker and workers as processes of their own, and what they used of the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..agents.lifeline import Lifeline
from ..bus.errors import RigbusError

if TYPE_CHECKING:
    from ..bus.client import Client

START_S: Final = 20.0
STOP_S: Final = 10.0
_LOOK: Final = threading.Event()


class BenchRig:
    """A rig in a temporary folder; everything in it ends with this object, and with this process."""

    def __init__(self, workers: int, durability: str, slots: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rigbus-bench-"))
        self.state = self.folder / "state"
        self.state.mkdir(mode=0o700)
        self.workers = [f"worker-{n}" for n in range(1, workers + 1)]
        self._lifeline = Lifeline()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._durability = durability
        self._slots = slots

    def __enter__(self) -> BenchRig:
        try:
            self._start("broker", ["-m", "rigbus", "broker", "--state", str(self.state)])
            for name in self.workers:
                words = ["-m", "rigbus.agents.worker", "--state", str(self.state), "--name", name]
                words += ["--agent", "rigbus.tools.bench_agent:Noop", "--slots", str(self._slots)]
                self._start(name, words)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._lifeline.close()
        from ..bus.paths import rig_paths

        shutil.rmtree(rig_paths(self.state).runtime, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, words: list[str]) -> None:
        # The user's own settings stay out of it.
        env = {k: v for k, v in os.environ.items() if not k.startswith("RIGBUS_") or k == "RIGBUS_RUNTIME"}
        env |= {"RIGBUS_DURABILITY": self._durability, **self._lifeline.env}
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-P", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                pass_fds=(self._lifeline.read_fd,),
                cwd=self.folder,
                start_new_session=True,
            )

    def client(self) -> Client:
        """A client, when broker and workers are there.

        Raises:
            RigbusError: a process ended at its start, or did not get ready.
        """
        from ..bus.client import Client
        from ..bus.paths import endpoints, rig_paths

        bus = Client(endpoints(rig_paths(self.state))["commands"], self.state, timeout_s=START_S)
        deadline = time.monotonic() + START_S
        while {w["id"] for w in bus.query("workers")["workers"] if w["credit"]} < set(self.workers):
            for name, process in self._processes.items():
                if process.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text("utf-8", "replace")
                    raise RigbusError(f"{name} ended with {process.returncode}: {log[-500:]}")
            if time.monotonic() > deadline:
                raise RigbusError(f"the workers did not get ready in {START_S:g} s")
            _LOOK.wait(0.02)
        return bus

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far by ``broker`` and (together) ``workers``; empty where there is no /proc."""
        used = {name: _cpu_s(process.pid) for name, process in self._processes.items()}
        known = {name: value for name, value in used.items() if value is not None}
        if len(known) < len(used):
            return {}
        return {"broker": known["broker"], "workers": sum(known[name] for name in self.workers)}


def _cpu_s(pid: int) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fsync_p50_us(folder: Path, count: int = 200) -> float:
    """The median of one fsync of 4 KiB appended to a file in ``folder``, in µs: what each commit pays at least."""
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(b"\0" * 4096)
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[count // 2] * 1e6
