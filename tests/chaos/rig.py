"""`rigbus up` on a state folder, and its processes as the kernel shows them: found, signalled, measured, and all ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from helpers import end_all, processes_of, wait_for

from rigbus.agents.supervisor.lifeline import Lifeline
from rigbus.bus.paths import endpoints, rig_paths

LEASE_S: Final = 0.5
READY_S: Final = 90.0
STOP_S: Final = 60.0
CONFIG: Final = """\
lease_s = {lease_s}
slots = {slots}

[retention]
tasks = 10000000
events = 100000000
"""


class ChaosRig:
    """The rig of one campaign; whatever ends the campaign ends it, too."""

    def __init__(self, folder: Path, *, workers: int = 3, slots: int = 4) -> None:
        self.folder = folder
        self.workers = [f"worker-{n}" for n in range(1, workers + 1)]
        self.paths = rig_paths(folder / "state", folder / "share")
        self.paths.shared.mkdir(exist_ok=True)
        self.endpoint = endpoints(self.paths)["commands"]
        self._config = folder / "rigbus.toml"
        self._config.write_text(CONFIG.format(lease_s=LEASE_S, slots=slots))
        self._lifeline = Lifeline()
        self._said = folder / "up.json"
        self.up: subprocess.Popen[bytes] | None = None

    # -- starting, ending ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start ``rigbus up``; :meth:`ready` tells when it is there."""
        words = [sys.executable, "-m", "rigbus", "up", "--json", "--workers", str(len(self.workers))]
        words += ["--config", str(self._config)]
        env = {k: v for k, v in os.environ.items() if not k.startswith("RIGBUS_")} | self._lifeline.env
        env |= {"RIGBUS_STATE": str(self.paths.state), "RIGBUS_SHARED": str(self.paths.shared)}
        with self._said.open("wb") as said, (self.folder / "up.log").open("ab") as log:
            self.up = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=log,
                env=env,
                pass_fds=(self._lifeline.read_fd,),
                start_new_session=True,
            )

    def ready(self) -> bool:
        """Whether all of it has reported since :meth:`begin`."""
        return self._said.read_bytes().startswith(b"{")

    @property
    def ended(self) -> int | None:
        """The exit code of ``up``; None while it runs."""
        return None if self.up is None else self.up.poll()

    def stop(self) -> int | str:
        """SIGTERM to ``up``; its exit code, or in words that it does not end."""
        assert self.up is not None
        self.up.terminate()
        try:
            return self.up.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return f"no end within {STOP_S:g} s"

    def end(self) -> dict[int, str]:
        """End all of it hard, whatever state it is in; the processes that had to be killed for it."""
        self._lifeline.close()
        if self.up is not None and self.up.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.up.pid, signal.SIGCONT)
            self.up.kill()
            self.up.wait(10)
        with suppress(AssertionError):
            wait_for(lambda: not processes_of(self.folder), timeout_s=5, what="the rig's processes to end")
        left = processes_of(self.folder)
        end_all(left)
        shutil.rmtree(self.paths.runtime, ignore_errors=True)
        return left

    # -- its processes ---------------------------------------------------------------------------------------

    @property
    def state_id(self) -> str:
        """The first part of each RIGBUS_TOKEN."""
        return str(self.run_json()["state_id"])

    def run_json(self) -> dict[str, Any]:
        """What `up` says of its processes; empty while it says nothing."""
        try:
            found: dict[str, Any] = json.loads(self.paths.run_json.read_bytes())
        except (OSError, ValueError):
            return {}
        return found

    def pids(self) -> dict[str, int]:
        """Living processes of the rig by name, ``up`` and ``guard`` among them. Each is looked at: a pid may be used again."""
        run = self.run_json()
        named = {**run.get("pids", {}), "guard": run.get("guard")}
        token = f"{run.get('state_id')}:rig:"
        found = {n: p for n, p in named.items() if p and variable(p, "RIGBUS_TOKEN") == f"{token}{n}"}
        if self.up is not None and self.up.poll() is None:
            found["up"] = self.up.pid
        return found

    def attempts(self) -> list[tuple[int, str, str]]:
        """Living processes of attempts: pid, token, task."""
        prefix = f"{self.run_json().get('state_id')}:"
        found = []
        for pid in _all_pids():
            token = variable(pid, "RIGBUS_TOKEN")
            if token.startswith(prefix) and not token.startswith(f"{prefix}rig:"):
                found.append((pid, token, variable(pid, "RIGBUS_TASK_ID")))
        return found


def variable(pid: int, name: str) -> str:
    """A variable of a process' environment; empty when it has none, or is gone."""
    try:
        for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if line.startswith(name.encode() + b"="):
                return line.partition(b"=")[2].decode("utf-8", "replace")
    except OSError:
        pass
    return ""


def children(pid: int) -> list[int]:
    """The direct children of all threads of a process."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def hurt(pid: int, number: int) -> bool:
    """Send a signal; False when there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def started_at(pid: int) -> str:
    """What tells a process from a later one with its pid; empty when it is gone, or only not buried yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == b"Z" else fields[19].decode()


def size(pid: int) -> tuple[int, int]:
    """KiB of memory in use, and open descriptors; zeros when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 1024, len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0, 0


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
