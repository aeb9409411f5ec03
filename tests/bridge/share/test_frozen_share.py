"""A mount that hangs for real: writers on a frozen file system are in state D, where SIGKILL does nothing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rigbus.bridge.folder.share import ops
from rigbus.bridge.folder.share.port import MAX_STUCK, FolderPort

pytestmark = pytest.mark.live


def run(*argv: str) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    image, point = tmp_path / "image", tmp_path / "mnt"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    if os.geteuid() != 0 or not run("mkfs.ext4", "-q", str(image)):
        pytest.skip("needs root and mkfs.ext4")
    if not run("mount", "-o", "loop", str(image), str(point)):
        pytest.skip("no loop mounts here")
    try:
        yield point
    finally:
        run("fsfreeze", "-u", str(point))
        run("umount", "-l", str(point))


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_the_bridge_never_waits_for_a_hung_mount_and_finds_it_again(mount: Path) -> None:
    with FolderPort(mount, backoff_s=(0.02, 0.1)) as port:
        assert port.call("mirror", [ops.write("a", b"1")]).fault is None
        port._probe_s, port._grace = 0.2, 0.3
        if not run("fsfreeze", "-f", str(mount)):
            pytest.skip("this file system cannot be frozen")
        longest, codes, end = 0.0, set(), time.monotonic() + 30

        def hung() -> list[int]:
            return [pid for pid in port.stuck() if state_of(pid) == "D"]

        while codes != {"HUNG", "UNAVAILABLE"} or port.state.available or len(hung()) < 2:
            assert time.monotonic() < end, (codes, port.state)
            if not port.load("mirror"):
                port.request("mirror", [ops.write("b", b"2")], deadline_s=0.2)
            before = time.monotonic()
            codes |= {reply.fault.code for reply in port.poll() if reply.fault}
            longest = max(longest, time.monotonic() - before)
            wait = port.timeout_s()
            port.wait(0.05 if wait is None else max(0.005, min(wait, 0.05)))
        assert longest < 5, "a poll waited for the mount"
        assert len(port.stuck()) <= MAX_STUCK
        assert run("fsfreeze", "-u", str(mount))
        port._probe_s = port._grace = 5.0
        end = time.monotonic() + 30
        while not port.state.available or port.stuck():
            assert time.monotonic() < end, port.state
            port.poll()
            port.wait(0.05)
        assert port.call("mirror", [ops.write("b", b"2")]).fault is None
        assert (mount / "b").read_bytes() == b"2"


def test_a_full_share_is_an_answer_and_keeps_what_stood_there(mount: Path) -> None:
    with FolderPort(mount) as port:
        port.call("mirror", [ops.write("state.json", b"old")])
        reply = port.call("mirror", [ops.write("big", b"x" * (32 << 20)), ops.write("state.json", b"new")])
        assert reply.results[0]["errno"] == "ENOSPC"
        assert port.state.available
        assert sorted(p.name for p in mount.iterdir() if not p.name.startswith(".")) == [
            "lost+found",
            "state.json",
        ]


def test_a_read_only_share_is_available_and_each_write_says_so(mount: Path) -> None:
    with FolderPort(mount) as port:
        port.call("mirror", [ops.write("a", b"1")])
        if not run("mount", "-o", "remount,ro", str(mount)):
            pytest.skip("cannot remount")
        read, written = port.call("mirror", [ops.read("a", 9), ops.write("a", b"2")]).results
        assert read["data"] == b"1"
        assert written["errno"] == "EROFS"
        assert port.state.available
