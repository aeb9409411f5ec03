"""Broker, brain, worker and bridge of one state folder, each a process that a test starts and kills by itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from helpers import Processes, wait_for

from rigbus.bus.client.link import Connection
from rigbus.bus.paths import endpoints, rig_paths
from rigbus.bus.wire import Verb

BRIDGE = (
    "import logging, sys; from pathlib import Path\n"
    "logging.basicConfig(level=logging.INFO)\n"
    "from rigbus.bridge.folder.service import Bridge\n"
    "from rigbus.bus.paths import endpoints, rig_paths\n"
    "paths = rig_paths(Path(sys.argv[1]))\n"
    "sys.exit(Bridge(paths, endpoints(paths)['commands'], settle_s=0.3, reconcile_s=1.0).run())\n"
)
PLAN = "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo out; echo $RANDOM >> {BATCH_PATH}/ran`\n"


class Rig:
    """Broker, brain, worker and bridge of one state folder."""

    def __init__(self, state: Path, processes: Processes) -> None:
        self.state, self.processes = state, processes
        self.paths = rig_paths(state)
        self.share = self.paths.shared
        self.inbox = self.share / "inbox"
        self.environment = {"RIGBUS_STATE": str(state)}

    def start(self, *names: str) -> dict[str, subprocess.Popen[bytes]]:
        verbs = {
            "broker": ("broker",),
            "brain": ("brain",),
            "worker": ("worker", "--name", "worker-1", "--slots", "2"),
        }
        return {
            name: self.processes.python(
                "-m", "rigbus", *verbs[name], "--state", self.state, env=self.environment
            )
            for name in names
        }

    def bridge(self) -> subprocess.Popen[bytes]:
        return self.processes.python("-c", BRIDGE, self.state, env=self.environment)

    def drop(self, name: str, text: str = PLAN, *, ready: bool = True) -> Path:
        folder = self.unseen(name, text).rename(self.inbox / name)
        if ready:
            (folder / "READY").touch()
        return folder

    def unseen(self, name: str, text: str = PLAN) -> Path:
        """A folder in the inbox under a name that nobody looks at: renamed to its own it is a drop."""
        folder = self.inbox / f".{name}"
        folder.mkdir(parents=True)
        (folder / "plan.md").write_text(text)
        return folder

    def receipt(self, name: str, *states: str, timeout_s: float = 20.0) -> dict[str, Any]:
        """Wait for the receipt in one of these states."""
        file = self.inbox / f"{name}.receipt.json"

        def there() -> dict[str, Any] | None:
            try:
                said: dict[str, Any] = json.loads(file.read_text())
            except (OSError, ValueError):
                return None
            return said if said["state"] in (states or ("accepted", "refused")) else None

        found = wait_for(there, timeout_s=timeout_s, what=f"the receipt of {name}")
        assert found is not None
        return found

    def batch_file(self, plan: str, batch: str) -> dict[str, Any]:
        """Wait for the mirrored end of a batch."""
        file = self.share / f"plans/{plan}/batches/{batch}/batch.json"

        def ended() -> dict[str, Any] | None:
            try:
                said: dict[str, Any] = json.loads(file.read_text())
            except (OSError, ValueError):
                return None
            return said if said["status"] in ("complete", "failed", "cancelled") else None

        found = wait_for(ended, timeout_s=30, what=f"the end of {batch}")
        assert found is not None
        return found

    def query(self, what: str, **how: Any) -> dict[str, Any]:
        link = Connection(endpoints(self.paths)["commands"], role="client")
        try:
            link.connect(10)
            return link.request(Verb.QUERY, {"what": what, **how}, timeout_s=10).header
        finally:
            link.close()

    def completed(self, batch: str) -> list[dict[str, Any]]:
        """What lies in tasks/complete of a batch."""
        found = []
        for file in sorted((self.share / "tasks/complete").glob("*.json")):
            try:
                found.append(json.loads(file.read_text()))
            except FileNotFoundError:
                continue  # moved away meanwhile
        return [task for task in found if task["batch_id"] == batch]
