"""A whole rig on a share that fails: work that needs no share goes on, drops of the bad time run once when it is over."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from frozen import frozen_mount, thaw
from fusefs import fuse_mount
from helpers import Processes, slack, wait_for
from parts import Part, drop, runs, wait_ran

from rigbus import Client, Task

pytestmark = pytest.mark.live

#: Whether `status` is to say at once that the share is unavailable. A full or read-only one can be read; that a call hangs
#: is known after its deadline only (`bridge/share/test_fuse_share.py` waits for that).
MODES = {"EIO": True, "ESTALE": True, "EROFS": False, "ENOSPC": False, "hang": False}


def test_in_each_way_in_which_a_share_fails_a_drop_runs_once_when_it_has_healed(
    rig_dir: Path, processes: Processes
) -> None:
    backing = rig_dir / "backing"
    (backing / "inbox").mkdir(parents=True)
    with fuse_mount(backing, rig_dir / "mnt") as mount:
        rig = Part(rig_dir / "s", mount.point, processes)
        rig.rest()
        rig.bridge()
        wait_for((backing / "brain/state.json").exists, timeout_s=30, what="the mirror")
        took = {}
        for mode, said in MODES.items():
            mount.set(mode)
            drop(backing, mode)  # as the Pi does it: on its own side nothing is wrong
            if said:
                rig.until(f"the share to be unavailable under {mode}", available=False)
            mount.set("ok")
            began = time.monotonic()
            wait_ran(backing, mode)
            took[mode] = time.monotonic() - began
        assert runs(backing) == dict.fromkeys(MODES, 1)
        shown = ", ".join(f"{mode} {s:.1f} s" for mode, s in took.items())
        print(
            f"from healed to the drop's end: {shown}; median {statistics.median(took.values()):.1f} s",
            file=sys.stderr,
        )
        rig.until("the share to be back", available=True)


def test_beside_a_hung_share_tasks_that_need_none_go_on_and_everybody_answers(
    rig_dir: Path, processes: Processes
) -> None:
    with frozen_mount(rig_dir) as point:
        thaw(point)
        share = point / "share"
        (share / "inbox").mkdir(parents=True)
        rig = Part(rig_dir / "s", share, processes)
        rig.rest()
        processes.python(
            "-m", "rigbus", "worker", "--agent", f"{AGENTS}:Echo", "--state", rig.state, env=rig.env
        )
        rig.bridge()
        wait_for((share / "brain/state.json").exists, timeout_s=30, what="the mirror")
        with Client(state=rig.state) as client:
            assert client.call("echo", {"text": "before"}, timeout_s=30) == {"text": "before"}
            wait_for(
                lambda: client.query("status")["brain"]["state"] == "seated", timeout_s=30, what="the brain"
            )
            assert subprocess.run(["fsfreeze", "-f", str(point)], check=False, timeout=20).returncode == 0
            try:
                ids = client.submit([Task(type="echo", payload={"text": str(n)}) for n in range(200)])
                ended = list(client.results(ids, timeout_s=60))
                assert [r.ok for r in ended] == [True] * 200
                worst = 0.0
                for _ in range(20):
                    began = time.monotonic()
                    status = client.query("status")
                    worst = max(worst, time.monotonic() - began)
                assert worst < 2.0 * slack()
                assert status["brain"]["state"] == "seated" and status["bridge"]["state"] == "attached"
            finally:
                thaw(point)
            drop(share, "after")
            wait_ran(share, "after")


AGENTS = Path(__file__).with_name("echo_agent.py")
