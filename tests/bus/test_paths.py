"""Folders, sockets and mounts of a rig."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rigbus.bus import mounts
from rigbus.bus.errors import ConfigError
from rigbus.bus.mounts import find_mount, is_network_fs, mount_of, parse_mountinfo, require_local
from rigbus.bus.paths import (
    check_private,
    default_state,
    endpoints,
    find_rig,
    locate,
    make_runtime,
    read_run_json,
    rig_paths,
    runtime_folder,
    write_run_json,
)

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/shared rw,relatime - nfs4 pi:/export rw,vers=4.2
31 22 0:41 / /mnt/with\\040space rw - cifs //nas/x rw
32 22 0:42 / /home/me/remote rw - fuse.sshfs me@pi:/ rw
33 30 8:2 / /mnt/shared/local rw - xfs /dev/sdb1 rw
garbage
"""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"RIGBUS_STATE": "/a/b", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/rigbus"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/rigbus"),
        ({"HOME": "/h"}, "/h/.local/state/rigbus"),
    ],
)
def test_the_default_state_folder(environ: dict[str, str], expected: str) -> None:
    assert default_state(environ) == Path(expected)


def test_locate_follows_flags_then_environment_then_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rigbus.toml").write_text('state = "from-file"\nshared = "/mnt/shared"\n')
    environ = {"HOME": str(tmp_path)}
    assert locate(environ=environ).state == tmp_path / "from-file"
    assert locate(environ=environ).shared == Path("/mnt/shared")
    assert locate(environ={**environ, "RIGBUS_STATE": "/env"}).state == Path("/env")
    assert locate(Path("/flag"), environ={**environ, "RIGBUS_STATE": "/env"}).state == Path("/flag")


def test_the_shared_folder_defaults_into_the_state_folder() -> None:
    assert rig_paths(Path("/s")).shared == Path("/s/shared")


def test_the_runtime_folder_is_the_users_own_and_the_same_each_time(tmp_path: Path) -> None:
    xdg = {"XDG_RUNTIME_DIR": str(tmp_path)}
    folder = runtime_folder(Path("/s"), xdg)
    assert folder.parent == tmp_path
    assert folder == runtime_folder(Path("/s"), xdg)
    assert folder != runtime_folder(Path("/t"), xdg)
    assert runtime_folder(Path("/s"), {}).parent == Path(f"/tmp/rigbus-{os.getuid()}")
    assert runtime_folder(Path("/s"), {"XDG_RUNTIME_DIR": "/nonexistent"}).parent.name.startswith("rigbus-")
    assert runtime_folder(Path("/s"), {"RIGBUS_RUNTIME": "/r"}).parent == Path("/r")


def test_a_link_to_the_state_folder_has_the_same_sockets(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert runtime_folder(tmp_path / "real", {}) == runtime_folder(tmp_path / "link", {})


def test_endpoints_fit_a_unix_socket_or_the_error_says_how() -> None:
    paths = rig_paths(Path("/s"), environ={"RIGBUS_RUNTIME": "/tmp/r"})
    assert set(endpoints(paths)) == {"commands", "heartbeats", "events"}
    assert endpoints(paths)["events"].startswith("ipc:///tmp/r/")
    long = rig_paths(Path("/s"), environ={"RIGBUS_RUNTIME": "/tmp/" + "ä" * 50})
    with pytest.raises(ConfigError, match=r"has 12\d bytes, 107 are allowed; set RIGBUS_RUNTIME"):
        endpoints(long)


def test_the_runtime_folder_is_made_private(tmp_path: Path) -> None:
    paths = rig_paths(tmp_path / "s", environ={"RIGBUS_RUNTIME": str(tmp_path / "r")})
    folder = make_runtime(paths)
    assert folder.stat().st_mode & 0o777 == 0o700
    make_runtime(paths)
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match="mode 0750"):
        make_runtime(paths)


def test_a_runtime_folder_of_another_kind_or_owner_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(ConfigError, match="no folder"):
        check_private(tmp_path / "link")
    check_private(tmp_path / "absent")
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(other, 12345, 12345)
        with pytest.raises(ConfigError, match="belongs to user 12345"):
            check_private(other)


def test_a_runtime_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    paths = rig_paths(tmp_path / "s", environ={"RIGBUS_RUNTIME": str(tmp_path / "file" / "r")})
    with pytest.raises(ConfigError, match="set RIGBUS_RUNTIME"):
        make_runtime(paths)


def test_run_json_is_private_whole_and_read_back(tmp_path: Path) -> None:
    paths = rig_paths(tmp_path)
    assert read_run_json(paths) is None
    write_run_json(paths, {"pids": {"broker": 7}})
    assert read_run_json(paths) == {"pids": {"broker": 7}}
    assert paths.run_json.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    paths.run_json.write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json.*remove it"):
        read_run_json(paths)
    paths.run_json.write_text("[]")
    with pytest.raises(ConfigError, match="no JSON object"):
        read_run_json(paths)


def test_a_rig_is_found_where_run_json_says(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    state = tmp_path / "s"
    state.mkdir()
    environ = {"HOME": str(tmp_path)}
    assert find_rig(state, environ).run is None
    where = {name: f"ipc://{runtime}/{name}" for name in ("commands", "heartbeats", "events")}
    write_run_json(rig_paths(state, environ=environ), {"endpoints": where})
    assert find_rig(state, environ).endpoints == where
    runtime.chmod(0o777)
    with pytest.raises(ConfigError, match="0777"):
        find_rig(state, environ)


@pytest.mark.parametrize(
    ("path", "fstype", "network"),
    [
        ("/home", "ext4", False),
        ("/mnt/shared/plans/x", "nfs4", True),
        ("/mnt/shared", "nfs4", True),
        ("/mnt/sharedx", "ext4", False),
        ("/mnt/shared/local/x", "xfs", False),
        ("/mnt/with space/y", "cifs", True),
        ("/home/me/remote/z", "fuse.sshfs", True),
    ],
)
def test_the_longest_mount_point_decides(path: str, fstype: str, network: bool) -> None:
    mount = find_mount(parse_mountinfo(MOUNTINFO), path)
    assert mount is not None
    assert (mount.fstype, mount.network) == (fstype, network)


def test_of_two_mounts_on_one_point_the_later_covers() -> None:
    text = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / /m rw - ext4 b rw\n3 1 0:9 / /m rw - nfs c rw\n"
    mount = find_mount(parse_mountinfo(text), "/m/x")
    assert mount is not None
    assert mount.source == "c"


def test_a_state_folder_on_a_network_mount_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / {tmp_path.resolve()} rw - nfs4 pi:/x rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTINFO", info)
    assert is_network_fs(tmp_path / "not-yet-there")
    with pytest.raises(ConfigError, match=r"nfs4 \(pi:/x .*local disk with --state"):
        require_local(tmp_path / "state")


def test_where_the_kernel_says_nothing_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "none")
    assert mount_of(tmp_path) is None
    require_local(tmp_path)


def test_written_run_json_is_plain_json(tmp_path: Path) -> None:
    write_run_json(rig_paths(tmp_path), {"endpoints": {"commands": "ipc://ä"}})
    assert json.loads((tmp_path / "run.json").read_text()) == {"endpoints": {"commands": "ipc://ä"}}
