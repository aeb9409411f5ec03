"""The processes of a rig, started one by one, on a share that others may have too; drops into it, and how often they ran."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from helpers import Processes, wait_for

from rigbus import Client
from rigbus.bus.errors import Unreachable
from rigbus.bus.paths import rig_paths

PLAN = "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo run >> {BATCH_PATH}/ran`\n"


class Part:
    """The processes of one rig, started one by one, on a share that others may have too."""

    def __init__(self, state: Path, share: Path, processes: Processes) -> None:
        self.state, self.share, self.processes = state, share, processes
        self.env = {"RIGBUS_STATE": str(state), "RIGBUS_SHARED": str(share)}
        self.paths = rig_paths(state, share)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return self.processes.python("-m", "rigbus", *words, "--state", self.state, env=self.env)

    def rest(self) -> None:
        self.start("broker")
        self.start("brain")
        self.start("worker", "--name", "w-1")

    def bridge(self) -> subprocess.Popen[bytes]:
        return self.start("bridge", "--shared", str(self.share))

    def status(self) -> dict[str, Any]:
        try:
            with Client(state=self.state) as client:
                found: dict[str, Any] = client.query("status")["bridge"]
        except Unreachable:  # not yet
            return {}
        return found

    def until(self, what: str, **how: Any) -> dict[str, Any]:
        """The bridge's part of `status` when these are so; ``reason``: a word in the share's reason."""

        def so() -> dict[str, Any] | None:
            found = self.status()
            share = found.get("share") or {}
            right = all(found.get(k) == v for k, v in how.items() if k not in ("reason", "available"))
            right = right and how.get("reason", "") in str(share.get("reason"))
            return (
                found
                if right and ("available" not in how or share.get("available") is how["available"])
                else None
            )

        return wait_for(so, timeout_s=30, what=what, poll_s=0.1)  # type: ignore[return-value]


def drop(share: Path, name: str) -> None:
    """A whole plan appears at once."""
    hidden = share / "inbox" / f".{name}"
    hidden.mkdir(parents=True)
    (hidden / "plan.md").write_text(PLAN)
    (hidden / "READY").touch()
    hidden.rename(share / "inbox" / name)


def wait_ran(share: Path, *names: str) -> None:
    def all_shown() -> bool:
        files = [list(share.glob(f"plans/{name}/batches/*/batch.json")) for name in names]
        return all(len(f) == 1 and json.loads(f[0].read_text())["status"] == "complete" for f in files)

    wait_for(all_shown, timeout_s=40, what=f"{names} to be complete")


def runs(share: Path) -> dict[str, int]:
    """How often each plan ran, in any batch."""
    found: dict[str, int] = {}
    for file in share.glob("plans/*/batches/*/ran"):
        name = file.parts[-4]
        found[name] = found.get(name, 0) + file.read_text().count("run")
    return found
