"""Two bridges on one folder, as processes: of one rig, and of two rigs. One serves it, the other says why it does not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, wait_for

from rigbus import Client
from rigbus.bus.errors import Unreachable
from rigbus.bus.paths import rig_paths

pytestmark = pytest.mark.live

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


@pytest.fixture
def share(rig_dir: Path) -> Path:
    folder = rig_dir / "share"
    (folder / "inbox").mkdir(parents=True)
    return folder


def test_a_second_bridge_of_a_rig_waits_and_says_so_until_the_first_is_gone(
    rig_dir: Path, share: Path, processes: Processes
) -> None:
    rig = Part(rig_dir / "s", share, processes)
    rig.rest()
    first = rig.bridge()
    wait_for((share / "brain/state.json").exists, timeout_s=30, what="the mirror")
    second = rig.bridge()
    found = rig.until("the second one to be told of", standby=[second.pid])
    assert found["pid"] == first.pid
    assert f"another bridge (pid {first.pid}) serves this rig" in processes.output(second)
    assert second.poll() is None
    names = [f"p{n}" for n in range(6)]
    for name in names[:3]:
        drop(share, name)
    wait_ran(share, *names[:3])
    processes.kill(first)
    for name in names[3:]:
        drop(share, name)
    wait_ran(share, *names)
    assert runs(share) == dict.fromkeys(names, 1)
    rig.until("the second one to serve", pid=second.pid, standby=[])


def test_of_two_rigs_on_one_folder_one_has_it_and_the_other_takes_it_when_the_first_has_left(
    rig_dir: Path, share: Path, processes: Processes
) -> None:
    one, two = Part(rig_dir / "s1", share, processes), Part(rig_dir / "s2", share, processes)
    one.rest()
    bridge = one.bridge()
    wait_for((share / "brain/state.json").exists, timeout_s=30, what="the mirror")
    two.rest()
    other = two.bridge()
    rig_id = (one.state / "id").read_text()[:8]
    two.until("the other rig to say whose it is", available=False, reason=f"belongs to the rig {rig_id}")
    assert "rigbus bridge take" in processes.output(other)
    names = [f"p{n}" for n in range(6)]
    for name in names[:3]:
        drop(share, name)
    wait_ran(share, *names[:3])
    bridge.terminate()
    assert bridge.wait(20) == 0
    for name in names[3:]:
        drop(share, name)
    wait_ran(share, *names)
    two.until("the other rig to have it", available=True)
    assert runs(share) == dict.fromkeys(names, 1)
    with Client(state=two.state) as client:
        assert sum(b["kind"] == "plan" for b in client.query("batches", all=True)["batches"]) == 3
