"""`rigbus doctor` beside a real rig: well, with a broker that stands still, after a power cut, on a mount that hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import HEAD, drop, say, task
from helpers import Processes, bearers_of_token, slack, wait_for
from rigs import LiveRig

pytestmark = pytest.mark.live


def doctor(rig: LiveRig) -> tuple[int, dict[str, dict[str, Any]]]:
    """Its exit code, and the findings by ``group/check``."""
    code, out, err = say(rig, "doctor", "--json")
    assert err == ""
    return code, {f"{f['group']}/{f['check']}": f for f in json.loads(out)["findings"]}


def test_a_rig_is_well_then_its_broker_stands_still_then_everything_is_gone(
    rig_dir: Path, processes: Processes, tmp_path: Path
) -> None:
    rig = LiveRig(rig_dir, processes)
    rig.start()
    wait_for((rig.shared / "brain/state.json").exists, what="the mirror")
    code, found = doctor(rig)
    assert code == 0, found
    assert [found[f"Rig/{name}"]["status"] for name in ("up", "processes", "broker", "versions")] == [
        "ok"
    ] * 4
    assert [found[f"Shared folder/{name}"]["status"] for name in ("writable", "rename", "news")] == ["ok"] * 3
    # other tests may leave something of theirs at this moment
    mine = (str(rig.state), str(rig.shared), rig.paths.runtime.name)
    warned = [f for name, f in found.items() if name.startswith("Leftovers/") and f["status"] != "ok"]
    assert not any(part in f["value"] for f in warned for part in mine)
    assert not [path for path in (*rig.state.rglob("*"), *rig.shared.rglob("*")) if "doctor" in path.name]
    assert max(map(len, say(rig, "doctor")[1].splitlines())) <= 100

    pid = rig.pids()["broker"]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        code, found = doctor(rig)
        assert code == 1
        assert "does not answer" in found["Rig/broker"]["value"]
        assert "broker.log" in found["Rig/broker"]["fix"]
        assert time.monotonic() - began < 12 * slack()
    finally:
        os.kill(pid, signal.SIGCONT)

    drop(rig, "left", HEAD + task("one", f"setsid sleep 600 & echo > {tmp_path / 'on'}; wait"))
    wait_for((tmp_path / "on").exists, timeout_s=20, what="the task to run")
    token = json.loads(rig.paths.run_json.read_text())["state_id"]
    guard = json.loads(rig.paths.run_json.read_text())["guard"]
    os.kill(guard, signal.SIGKILL)
    rig.kill_everything()
    left = wait_for(lambda: bearers_of_token(token), what="a process without its rig")
    try:
        code, found = doctor(rig)
        assert code == 0
        assert found["Rig/up"]["status"] == "warn"
        assert "ended without cleaning up" in found["Rig/up"]["value"]
        orphans = found["Leftovers/processes"]
        assert orphans["status"] == "warn"
        assert any(str(pid) in orphans["fix"] for pid in left)
    finally:
        for pid in bearers_of_token(token):
            os.kill(pid, signal.SIGKILL)


def run(*argv: str | Path) -> bool:
    try:
        done = subprocess.run([str(part) for part in argv], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A small file system of our own that can be frozen."""
    image, point = tmp_path / "image", tmp_path / "mnt"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    if os.geteuid() != 0 or not run("mkfs.ext4", "-q", image) or not run("mount", "-o", "loop", image, point):
        pytest.skip("needs root, mkfs.ext4 and loop mounts")
    try:
        yield point
    finally:
        run("fsfreeze", "-u", point)
        run("umount", "-l", point)


def fill(folder: Path) -> None:
    """
    Raises:
        OSError: no folder fits any more.
    """
    for size in (65536, 1024):
        with (folder / f"ballast-{size}").open("wb", buffering=0) as file:
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                os.fsync(file)
    for number in range(100_000):
        (folder / f"more-{number}").mkdir()


def on(mount: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    words = ["doctor", "--state", str(mount.parent / "none"), "--shared", str(mount), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "rigbus", *words], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, {f"{f['group']}/{f['check']}": f for f in json.loads(done.stdout)["findings"]}


def test_a_mount_that_hangs_full_or_read_only_is_a_finding(mount: Path) -> None:
    code, found = on(mount)
    assert code == 0
    assert found["Shared folder/mount"]["value"].startswith("ext4, local (/dev/loop")

    assert run("fsfreeze", "-f", mount)
    began = time.monotonic()
    code, found = on(mount)
    took_s = time.monotonic() - began
    assert run("fsfreeze", "-u", mount)
    wait_for(lambda: not list(mount.glob(".rigbus-doctor-*")), what="the probe to remove its folder")
    assert code == 1
    assert "does not answer" in found["Shared folder/folder"]["value"]
    assert "umount -l" in found["Shared folder/folder"]["fix"]
    assert took_s < 9 * slack()

    # busy for as long as the probe that hung has a file open there
    wait_for(lambda: run("mount", "-o", "remount,ro", mount), what="the mount to be free")
    code, found = on(mount)
    assert code == 0
    assert found["Shared folder/writable"]["value"] == "read-only"
    assert run("mount", "-o", "remount,rw", mount)

    with pytest.raises(OSError, match="No space"):
        fill(mount)
    code, found = on(mount)
    assert code == 1
    assert "full" in found["Shared folder/writable"]["value"]
