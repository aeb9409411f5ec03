"""A share that fails in each of its ways, for real: the port says so, nothing waits for it, and it heals by itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import drive
from fusefs import Mount, fuse_mount

from rigbus.bridge.folder.share import ops
from rigbus.bridge.folder.share.port import FolderPort

pytestmark = pytest.mark.live


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    folder = tmp_path / "backing"
    folder.mkdir()
    return folder


@pytest.fixture
def mount(backing: Path, tmp_path: Path) -> Iterator[Mount]:
    with fuse_mount(backing, tmp_path / "mnt") as mounted:
        yield mounted


def open_port(point: Path) -> FolderPort:
    return FolderPort(point, probe_s=0.3, backoff_s=(0.05, 0.2), start_grace_s=1.0)


@pytest.mark.parametrize("mode", ["EIO", "ESTALE"])
def test_a_share_that_fails_every_call_is_unavailable_by_that_name_and_heals(mount: Mount, mode: str) -> None:
    with open_port(mount.point) as port:
        assert port.call("mirror", [ops.write("a", b"1")]).fault is None
        mount.set(mode)
        reply = port.call("mirror", [ops.write("a", b"2")])
        assert reply.fault is not None and reply.fault.code == mode
        assert not port.state.available and str(mount.point) in port.state.reason
        heal(mount, port, mode)
        assert (mount.point / "a").read_bytes() == b"3"


@pytest.mark.parametrize("mode", ["EROFS", "ENOSPC"])
def test_a_share_that_cannot_be_written_is_read_and_each_write_says_so(mount: Mount, mode: str) -> None:
    with open_port(mount.point) as port:
        port.call("mirror", [ops.write("a", b"1")])
        mount.set(mode)
        read, written = port.call("mirror", [ops.read("a", 9), ops.write("a", b"2")]).results
        assert read["data"] == b"1"
        assert written["errno"] == mode
        assert port.state.available
        assert (mount.point / "a").read_bytes() == b"1", "a failed write left something else"
        heal(mount, port, mode)
        assert sorted(p.name for p in mount.point.iterdir() if not p.name.startswith(".")) == ["a"]


def test_a_share_that_hangs_is_left_alone_and_found_again(mount: Mount) -> None:
    with open_port(mount.point) as port:
        port.call("mirror", [ops.write("a", b"1")])
        mount.set("hang")
        for _ in range(2):
            ticket = port.request("mirror", [ops.write("a", b"2")], deadline_s=0.3)
            drive(port, lambda: not port.load("mirror"))
        assert ticket
        drive(port, lambda: not port.state.available)
        assert "does not answer" in port.state.reason
        heal(mount, port, "hang")
        drive(port, lambda: not port.stuck())


def test_a_slow_share_is_no_dead_one(mount: Mount) -> None:
    with open_port(mount.point) as port:
        port.call("mirror", [ops.write("a", b"1")])
        mount.set("slow")
        reply = port.call("mirror", [ops.write(f"f{n}", b"x") for n in range(20)], deadline_s=10)
        assert reply.fault is None and all(r["ok"] or r["errno"] == "EAGAIN" for r in reply.results)
        assert reply.results[0]["ok"] and port.state.available


def heal(mount: Mount, port: FolderPort, mode: str) -> None:
    """The fault ends: the share is written again, soon."""
    mount.set("ok")
    began = time.monotonic()
    drive(port, lambda: port.state.available)
    reply = port.call("mirror", [ops.write("a", b"3")])
    took = time.monotonic() - began
    assert reply.fault is None and reply.results[0]["ok"]
    print(f"{mode}: written again after {took:.2f} s", file=sys.stderr)
    assert took < 10


def test_attributes_that_a_mount_keeps_too_long_do_not_cut_what_is_copied(
    backing: Path, tmp_path: Path
) -> None:
    """The rig's mount believes sizes for a minute; what the Pi has written since is copied whole all the same."""
    with fuse_mount(backing, tmp_path / "mnt", cache_s=60) as mount, open_port(mount.point) as port:
        plan = backing / "inbox/p"
        plan.mkdir(parents=True)
        (plan / "plan.md").write_text("short")
        seen = ops.entries(port.call("intake", [ops.scan("inbox", depth=8)]).results[0])
        assert {e.path: e.size for e in seen}["p/plan.md"] == 5
        (plan / "plan.md").write_text("long" * 5000)
        assert (mount.point / "inbox/p/plan.md").stat().st_size == 5, "this mount has no stale attributes"
        for n in range(3):
            place = tmp_path / f"copy-{n}"
            (copied,) = port.call("intake", [ops.copy_in("inbox/p", str(place))]).results
            if copied["ok"]:
                break
            assert copied["errno"] == "EBUSY", copied  # said, and tried again: never half a plan
        assert (place / "plan.md").read_text() == "long" * 5000
