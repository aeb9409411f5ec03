"""A file system that can be frozen: whoever writes to it is in state D, where SIGKILL does nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import wait_for


def _run(*argv: str | Path) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def thaw(point: Path) -> None:
    """What hung there goes on."""
    _run("fsfreeze", "-u", point)


@contextmanager
def frozen_mount(folder: Path) -> Iterator[Path]:
    """A mount point in ``folder``, frozen until :func:`thaw` or the end; the test is skipped where there is no such thing."""
    image, point = folder / "image", folder / "mnt"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    if os.geteuid() != 0 or not _run("mkfs.ext4", "-q", image):
        pytest.skip("needs root and mkfs.ext4")
    if not _run("mount", "-o", "loop", image, point):
        pytest.skip("no loop mounts here")
    try:
        if not _run("fsfreeze", "-f", point):
            pytest.skip("this file system cannot be frozen")
        yield point
    finally:
        thaw(point)
        _run("umount", "-l", point)


def in_state_d(pid: int) -> bool:
    """Does this process wait in the kernel, uninterruptibly? For a moment each does that reads a disk."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"
    except FileNotFoundError:
        return False


def wait_hanging(pid: int) -> None:
    """Until this process was in state D at twenty looks in a row."""
    looks = 0

    def again() -> bool:
        nonlocal looks
        looks = looks + 1 if in_state_d(pid) else 0
        return looks >= 20

    wait_for(again, what=f"pid {pid} to hang in the kernel")
