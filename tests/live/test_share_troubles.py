"""A share that is missing, unmounted, read-only or full while plans run: they wait and go on, nothing is lost, and
nothing is written where the share is not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from drops import GOOD, HEAD, run_plan, say, task
from helpers import Processes, wait_for
from rigs import LiveRig

from rigbus import Client


def _run(*argv: str | Path) -> bool:
    try:
        done = subprocess.run([str(a) for a in argv], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Mount:
    """A small file system of our own, mounted at the rig's share."""

    def __init__(self, disk: Path, point: Path) -> None:
        self.disk, self.point = disk, point

    def come(self) -> None:
        assert _run("mount", "--bind", self.disk, self.point)

    def go(self) -> None:
        assert _run("umount", "-l", self.point)

    def read_only(self, yes: bool) -> None:
        assert _run("mount", "-o", f"remount,{'ro' if yes else 'rw'}", self.disk)


@pytest.fixture
def mount(rig_dir: Path) -> Iterator[Mount]:
    disk, point = rig_dir / "disk", rig_dir / "share"
    disk.mkdir()
    point.mkdir()
    if os.geteuid() != 0 or not _run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk):
        pytest.skip("needs root and mounts")
    try:
        yield Mount(disk, point)
    finally:
        _run("umount", "-l", point)
        _run("umount", "-l", disk)


def _two_steps(rig: LiveRig, name: str, gate: Path, second: str) -> str:
    """A batch whose first task has written its line and waits at the gate; the second comes after it."""
    first = task("a", f"echo a >> {{BATCH_PATH}}/out; until [ -e {gate} ]; do sleep 0.05; done")
    plan = HEAD + first + task("b", second, depends_on="a", backoff_s="0.3", max_attempts=50)
    batch = run_plan(rig, name, plan)
    out = rig.shared / f"plans/{name}/batches/{batch}/out"
    wait_for(lambda: out.exists() and out.read_text() == "a\n", what="the first task")
    return batch


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _waits_for(words: str, rig: LiveRig, client: Client, batch: str) -> None:
    wait_for(lambda: words in str(client.query("why", id=batch)), timeout_s=20, what=f"the reason: {words}")
    shown = lambda: words in " ".join(say(rig, "why", batch)[1].split())  # noqa: E731
    wait_for(
        shown, timeout_s=20, poll_s=0.2, what=f"`rigbus why` to show it: {words}"
    )  # it tries again meanwhile


def _completes(rig: LiveRig, client: Client, batch: str, name: str, lines: str) -> None:
    assert rig.wait_batch(batch, client, timeout_s=40)["state"] == "complete"
    assert (rig.shared / f"plans/{name}/batches/{batch}/out").read_text() == lines


def test_a_share_that_goes_and_comes_costs_waiting_only(
    mount: Mount, rig_dir: Path, processes: Processes, tmp_path: Path
) -> None:
    rig = LiveRig(rig_dir, processes)
    mount.come()
    rig.start()
    pids = rig.pids()
    with rig.client() as client:
        batch = _two_steps(rig, "gone", tmp_path / "1", "echo b >> {BATCH_PATH}/out")
        mount.go()
        (tmp_path / "1").touch()
        _waits_for("share unavailable", rig, client, batch)
        wait_for(
            lambda: (
                "share unavailable" in (status := say(rig, "status")[1]) and "is the share mounted?" in status
            )
        )
        assert os.listdir(rig.shared) == [], "something was written into the empty mount point"
        mount.come()
        _completes(rig, client, batch, "gone", "a\nb\n")

        batch = _two_steps(rig, "frozen", tmp_path / "2", "echo b >> {BATCH_PATH}/out")
        mount.read_only(True)
        (tmp_path / "2").touch()
        _waits_for("share unavailable", rig, client, batch)
        mount.read_only(False)
        _completes(rig, client, batch, "frozen", "a\nb\n")

        batch = _two_steps(
            rig, "full", tmp_path / "3", "head -c 900000 /dev/zero > {BATCH_PATH}/x && echo b >> out"
        )
        with (rig.shared / "filler").open("wb") as file:
            file.write(bytes(1_300_000))
        (tmp_path / "3").touch()
        _waits_for("No space left", rig, client, batch)
        (rig.shared / "filler").unlink()
        _completes(rig, client, batch, "full", "a\nb\n")
        good = run_plan(rig, "good", GOOD)
        assert rig.wait_batch(good, client)["state"] == "complete"
    state = rig.shared / "brain/state.json"
    ended = rig.shared / f"plans/full/batches/{batch}/batch.json"
    # However long the share was full or read-only, it shows the present soon after.
    wait_for(
        lambda: '"complete"' in _text(ended) and batch not in _text(state), timeout_s=30, what="the mirror"
    )
    assert rig.pids() == pids
    assert rig.stop() == 0
    rig.check_log()


def test_a_share_that_is_missing_at_the_start_is_named_and_waited_for(
    rig_dir: Path, processes: Processes
) -> None:
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.shared.rmdir()
    rig.start()
    assert f"{rig.shared} is not there: mount it" in processes.output(rig.up)  # type: ignore[arg-type]
    wait_for(lambda: "share unavailable" in say(rig, "status")[1], what="the status to say so", poll_s=0.2)
    rig.shared.mkdir()
    wait_for((rig.shared / "inbox").is_dir, timeout_s=15, what="the inbox")
    with rig.client() as client:
        assert rig.wait_batch(run_plan(rig, "good", GOOD), client)["state"] == "complete"
    wait_for(lambda: "share unavailable" not in say(rig, "status")[1], what="the status", poll_s=0.2)
    assert rig.stop() == 0
