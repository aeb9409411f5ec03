"""The rig's folder: locked, private, local; and the lines for people."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rigbus.agents.supervisor import folder as rigfolder
from rigbus.bus import mounts
from rigbus.bus.errors import ConfigError, Refused
from rigbus.bus.mounts import Mount
from rigbus.bus.paths import rig_paths


def test_the_state_folder_is_made_private(rig_dir):
    paths = rig_paths(rig_dir / "state")
    lock = rigfolder.prepare(paths)
    try:
        assert stat.S_IMODE(paths.state.stat().st_mode) == 0o700
        assert paths.logs.is_dir()
        assert paths.shared.is_dir()
        assert stat.S_IMODE(paths.runtime.stat().st_mode) == 0o700
    finally:
        lock.release()


def test_a_shared_folder_elsewhere_is_not_touched(rig_dir):
    """It may be a mount that hangs, or one that is not mounted yet."""
    paths = rig_paths(rig_dir / "state", rig_dir / "share")
    rigfolder.prepare(paths).release()
    assert not paths.shared.exists()


def test_a_second_supervisor_is_refused_and_told_the_first_ones_pid(rig_dir):
    paths = rig_paths(rig_dir)
    lock = rigfolder.prepare(paths)
    with pytest.raises(Refused, match=f"pid {os.getpid()}") as caught:
        rigfolder.prepare(paths)
    assert caught.value.exit_code == 8
    assert rigfolder.lock_holder(rig_dir) == os.getpid()
    lock.release()
    assert rigfolder.lock_holder(rig_dir) is None
    rigfolder.prepare(paths).release()


def test_a_folder_without_a_rig_has_no_holder(rig_dir):
    assert rigfolder.lock_holder(rig_dir / "nothing") is None


def test_a_state_folder_on_a_network_file_system_is_refused(rig_dir, monkeypatch, tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 0:42 / {rig_dir} rw - nfs4 pi:/export rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", table)
    with pytest.raises(ConfigError, match="nfs4"):
        rigfolder.prepare(rig_paths(rig_dir / "state"))


def test_a_socket_path_that_is_too_long_is_refused_before_anything_is_made(rig_dir, monkeypatch):
    monkeypatch.setenv("RIGBUS_RUNTIME", "/tmp/" + "x" * 120)
    with pytest.raises(ConfigError, match="RIGBUS_RUNTIME"):
        rigfolder.prepare(rig_paths(rig_dir / "state"))
    assert not (rig_dir / "state").exists()


def test_the_state_id_is_made_once(rig_dir):
    first = rigfolder.known_state_id(rig_dir)
    assert rigfolder.known_state_id(rig_dir) == first
    (rig_dir / "id").write_text("no id\n")
    with pytest.raises(ConfigError, match="32 hex digits"):
        rigfolder.known_state_id(rig_dir)


def test_a_log_is_put_aside_when_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(rigfolder, "MAX_LOG_BYTES", 10)
    log = tmp_path / "x.log"
    rigfolder.rotate_log(log)
    log.write_text("small")
    rigfolder.rotate_log(log)
    assert log.exists()
    log.write_text("this is large")
    rigfolder.rotate_log(log)
    assert not log.exists()
    assert (tmp_path / "x.log.1").read_text() == "this is large"


def test_the_last_line_of_a_log_is_that_of_this_start(tmp_path):
    log = tmp_path / "x.log"
    assert rigfolder.last_line(log) == ""
    log.write_bytes(b"old fault\n")
    size = log.stat().st_size
    assert rigfolder.last_line(log, size) == ""
    with log.open("ab") as out:
        out.write(b"first\nrigbus: \x1b[31mbad\xff\n\n")
    assert rigfolder.last_line(log, size) == "rigbus: \ufffd[31mbad\ufffd"


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("/", "ext4", "/dev/sda1"), "sshfs"),
        (Mount("/mnt/share", "nfs4", "nas:/export"), "mount -t nfs nas:/export/rig "),
        (Mount("/mnt/share", "cifs", "//nas/export"), "mount -t cifs //nas/export"),
        (Mount("/mnt/share", "fuse.sshfs", "pi@pi:/x"), "fuse.sshfs"),
    ],
)
def test_the_line_for_the_pi_fits_how_the_folder_is_shared(mount, words, tmp_path):
    shared = tmp_path / "x" if mount.point == "/" else Path("/mnt/share/rig")
    assert words in rigfolder.mount_line(shared, mount)


def test_classes_that_nobody_runs_are_named_with_what_would_help():
    lines = rigfolder.idle_class_lines(iter(["cpu", "script", "brain"]))
    assert len(lines) == 1
    assert "llm" in lines[0]
    assert "--model" in lines[0]
    assert rigfolder.idle_class_lines(["cpu", "script", "llm", "brain"]) == []
