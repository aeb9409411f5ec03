"""What the helpers do on a real folder, and what they refuse."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
from folders import Share
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigbus.bridge.folder.share import ops
from rigbus.bridge.folder.share import share as operations
from rigbus.bridge.folder.share.helper import SENTINEL
from rigbus.bridge.folder.share.seal import seal, seal_text


def test_a_written_file_has_the_event_s_time_and_is_the_group_s_too(share: Share) -> None:
    assert share.one(ops.write("tasks/queue/a.json", b"{}", mtime_ns=1_500_000_000_123_456_000))["ok"]
    info = (share.root / "tasks/queue/a.json").stat()
    assert info.st_mtime_ns == 1_500_000_000_123_456_000
    assert stat.S_IMODE(info.st_mode) == 0o664
    assert stat.S_IMODE((share.root / "tasks").stat().st_mode) & 0o777 == 0o775


def test_a_reader_never_sees_a_torn_file_nor_a_temporary_json(share: Share) -> None:
    path = share.root / "tasks/queue/a.json"
    share.one(ops.write("tasks/queue/a.json", b'{"n": "0"}'))
    stop, torn, seen, odd = threading.Event(), [], set(), set()

    def read_all_the_time() -> None:
        while not stop.is_set():
            try:
                seen.add(json.loads(path.read_bytes())["n"][:1])
            except ValueError as error:
                torn.append(error)
            odd.update(p.name for p in path.parent.glob("*.json") if p.name != "a.json")

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    try:
        for n in range(30):
            text = json.dumps({"n": str(n % 10) * 300_000}).encode()
            share.do(*[ops.write("tasks/queue/a.json", text, fsync=n == 0)] * 3)
    finally:
        stop.set()
        reader.join()
    assert not torn
    assert not odd
    assert len(seen) > 1


def test_a_moving_task_is_never_nowhere(share: Share) -> None:
    queue, done = share.root / "tasks/queue/t.json", share.root / "tasks/complete/t.json"
    share.one(ops.write("tasks/queue/t.json", b"{}"))
    stop, lost, begun = threading.Event(), [], 0

    def look() -> None:
        while not stop.is_set():
            before = begun
            # The one move that goes on can fool two of the looks, not all three; a second one could.
            if not (queue.exists() or done.exists() or queue.exists()) and begun == before:
                lost.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        here, there = "tasks/queue/t.json", "tasks/complete/t.json"
        for _ in range(100):
            begun += 1
            assert share.one(ops.write(there, b"{}", replaces=here))["ok"]
            here, there = there, here
    finally:
        stop.set()
        reader.join()
    assert not lost
    assert queue.exists() != done.exists()


def test_a_move_that_cannot_be_written_keeps_the_old_file(share: Share) -> None:
    share.one(ops.write("tasks/queue/t.json", b"old"))
    (share.root / "tasks/complete").write_text("a file where the folder should be")
    result = share.one(ops.write("tasks/complete/t.json", b"new", replaces="tasks/queue/t.json"))
    assert not result["ok"]
    assert (share.root / "tasks/queue/t.json").read_bytes() == b"old"


def test_a_temporary_file_left_by_a_killed_helper_is_no_obstacle(share: Share) -> None:
    share.one(ops.mkdirs("d"))
    (share.root / "d/.a.json.tmp~").symlink_to("/etc/passwd")
    assert share.one(ops.write("d/a.json", b"{}"))["ok"]
    assert os.listdir(share.root / "d") == ["a.json"]


def test_the_longest_possible_name_can_be_written(share: Share) -> None:
    assert share.one(ops.write("n" * 255, b"x"))["ok"]
    result = share.one(ops.write("n" * 256, b"x"))
    assert result["errno"] == "ENAMETOOLONG"


def test_an_appended_log_keeps_its_inode_and_a_repeat_adds_nothing(share: Share) -> None:
    assert share.one(ops.append("logs/d.log", b"one\n"))["size"] == 4
    before = (share.root / "logs/d.log").stat().st_ino
    for _ in range(2):
        assert share.one(ops.append("logs/d.log", b"two\n", at=4))["size"] == 8
    assert (share.root / "logs/d.log").read_bytes() == b"one\ntwo\n"
    assert (share.root / "logs/d.log").stat().st_ino == before
    short = share.one(ops.append("logs/d.log", b"far\n", at=100))
    assert short["errno"] == "ESTALE"


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "a/./b", "", "a\0b", "a/", "..", "."]
)
def test_a_path_that_is_not_plainly_below_the_root_is_refused(share: Share, path: str) -> None:
    results = share.do(ops.write(path, b"x"), ops.read(path, 1), ops.unlink(path), ops.append(path, b"x"))
    assert {(r["ok"], r["errno"]) for r in results} == {(False, "EINVAL")}
    assert os.listdir(share.root) == [SENTINEL]


def test_nothing_is_written_through_a_link(share: Share, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (share.root / "inside").mkdir()
    (share.root / "out").symlink_to(outside)
    (share.root / "in").symlink_to("inside")
    (share.root / "log").symlink_to(outside / "log")
    results = share.do(
        ops.write("out/x", b"x"),
        ops.write("in/x", b"x"),
        ops.mkdirs("out/d"),
        ops.append("log", b"x"),
        ops.rename("inside", "out/moved"),
        ops.unlink("in/x"),
    )
    assert {r["errno"] for r in results} == {"ELOOP", "ENOTSUP"}
    assert os.listdir(outside) == []
    assert os.listdir(share.root / "inside") == []


def test_reading_follows_links_that_stay_inside_and_no_other(share: Share, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (share.root / "real/deep").mkdir(parents=True)
    (share.root / "real/f").write_text("content")
    (share.root / "real/deep/up").symlink_to("../../real")
    (share.root / "abs").symlink_to(outside)
    (share.root / "rel").symlink_to("../outside")
    (share.root / "loop").symlink_to("loop")
    (share.root / "file").symlink_to("real/f")
    good = share.one(ops.read("real/deep/up/f", 100))
    assert good["data"] == b"content"
    bad = share.do(
        ops.read("abs/secret", 100),
        ops.read("rel/secret", 100),
        ops.read("loop/secret", 100),
        ops.read("file", 100),
        ops.scan("rel"),
    )
    assert not any(r["ok"] for r in bad)
    assert {r["errno"] for r in bad} <= {"EXDEV", "ELOOP", "ENOTSUP"}


def test_a_fifo_socket_or_device_never_blocks(share: Share) -> None:
    os.mkfifo(share.root / "pipe")
    share.one(ops.stat("."))  # starts what it needs
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(share.root / "s"))
        start = time.monotonic()
        results = share.do(
            ops.read("pipe", 10),
            ops.append("pipe", b"x"),
            ops.read("s", 10),
            ops.copy_in("pipe", str(share.root.parent / "copy")),
        )
        assert time.monotonic() - start < 20
    assert {r["errno"] for r in results} == {"ENOTSUP"}


def test_a_read_is_bounded_and_says_the_whole_size(share: Share) -> None:
    (share.root / "big").write_bytes(b"0123456789")
    result = share.one(ops.read("big", 4, offset=2))
    assert (result["data"], result["size"]) == (b"2345", 10)


def test_a_rename_does_not_overwrite(share: Share) -> None:
    share.do(ops.write("a/plan.md", b"a"), ops.write("b/plan.md", b"b"))
    assert share.one(ops.rename("a", "b"))["errno"] == "EEXIST"
    assert share.one(ops.rename("a", "inbox/.refused/a"))["ok"]
    assert (share.root / "inbox/.refused/a/plan.md").read_bytes() == b"a"


def test_a_scan_lists_what_is_there_with_its_type(share: Share) -> None:
    (share.root / "inbox/plan/scripts").mkdir(parents=True)
    (share.root / "inbox/plan/plan.md").write_text("# x")
    (share.root / "inbox/plan/scripts/a.py").write_text("")
    (share.root / "inbox/link").symlink_to("plan")
    os.mkfifo(share.root / "inbox/pipe")
    (share.root / "inbox/.refused/old").mkdir(parents=True)
    (share.root / "inbox/.requests").mkdir()
    (share.root / "inbox/.requests/r.json").write_text("{}")
    result = share.one(ops.scan("inbox", depth=8, enter=[".requests"]))
    found = {e.path: e.type for e in ops.entries(result)}
    assert found == {
        ".refused": "dir",
        ".requests": "dir",
        ".requests/r.json": "file",
        "link": "link",
        "pipe": "fifo",
        "plan": "dir",
        "plan/plan.md": "file",
        "plan/scripts": "dir",
        "plan/scripts/a.py": "file",
    }
    assert result["next"] == ""
    assert result["cut"] == []


def test_ten_thousand_files_are_scanned_in_bounded_pages(share: Share) -> None:
    lane = share.root / "lane"
    lane.mkdir()
    for n in range(10_000):
        (lane / f"{n:05}").touch()
    names: list[str] = []
    after, pages, start = "", 0, time.monotonic()
    while True:
        result = share.one(ops.scan("lane", budget=3_000, after=after))
        got = ops.entries(result)
        assert len(got) <= 3_000
        names += [e.path for e in got]
        pages += 1
        after = result["next"]
        if not after:
            break
    assert names == [f"{n:05}" for n in range(10_000)]
    assert pages == 4
    assert time.monotonic() - start < 30


def test_one_crowded_drop_is_cut_and_its_neighbours_are_seen_whole(share: Share) -> None:
    for name, count in (("a", 3), ("crowd", 50), ("z", 3)):
        (share.root / "inbox" / name).mkdir(parents=True)
        for n in range(count):
            (share.root / "inbox" / name / str(n)).touch()
    result = share.one(ops.scan("inbox", depth=3, per_entry=20))
    found = [e.path for e in ops.entries(result)]
    assert result["cut"] == ["crowd"]
    assert sum(p.startswith("z/") for p in found) == 3
    assert sum(p.startswith("crowd") for p in found) == 20
    page = share.one(ops.scan("inbox", depth=3, budget=21, per_entry=30))
    assert page["next"] == "a"  # the next drop does not fit: it comes whole with the next page
    assert page["cut"] == []


def test_a_name_that_is_not_utf8_can_be_addressed_and_shown(share: Share) -> None:
    os.mkdir(os.fsencode(share.root) + b"/inbox")
    with open(os.fsencode(share.root) + b"/inbox/bad\xff\x1b[31m.md", "wb") as file:
        file.write(b"# x")
    entry = ops.entries(share.one(ops.scan("inbox")))[0]
    assert ops.is_odd(entry.path)
    assert ops.shown(entry.path) == "bad\\xff\\x1b[31m.md"
    assert share.one(ops.read(f"inbox/{entry.path}", 10))["data"] == b"# x"
    assert share.one(ops.rename(f"inbox/{entry.path}", f"inbox/.refused/{entry.path}"))["ok"]


@given(name=st.binary(min_size=1, max_size=60).filter(lambda b: b"/" not in b and b not in (b".", b"..")))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_name_a_file_is_found_or_the_path_is_refused(share: Share, name: bytes) -> None:
    path = "d/" + os.fsdecode(name)
    written, found, removed = share.do(ops.write(path, name), ops.read(path, 100), ops.unlink(path))
    if b"\0" in name:
        assert {r["errno"] for r in (written, found, removed)} == {"EINVAL"}
    else:
        assert found["data"] == name
        assert removed["was"] is True


def test_a_log_is_copied_as_it_grows(share: Share, tmp_path: Path) -> None:
    log = tmp_path / "task.log"
    log.write_bytes(b"x" * 10)
    first = share.one(ops.copy_out(str(log), "logs/t.log", 0, max_bytes=4))
    assert (first["offset"], first["more"]) == (4, True)
    with log.open("ab") as file:
        file.write(b"y" * 5)
    second = share.one(ops.copy_out(str(log), "logs/t.log", 4))
    again = share.one(ops.copy_out(str(log), "logs/t.log", 4))
    assert second == again
    assert (second["offset"], second["more"]) == (15, False)
    assert (share.root / "logs/t.log").read_bytes() == log.read_bytes()


def test_a_copy_that_somebody_shortened_is_made_whole_again(share: Share, tmp_path: Path) -> None:
    log = tmp_path / "task.log"
    log.write_bytes(b"0123456789")
    share.one(ops.copy_out(str(log), "t.log"))
    os.truncate(share.root / "t.log", 3)
    assert share.one(ops.copy_out(str(log), "t.log", 10))["offset"] == 10
    assert (share.root / "t.log").read_bytes() == b"0123456789"


def make_plan(root: Path) -> Path:
    plan = root / "inbox" / "census"
    (plan / "scripts").mkdir(parents=True)
    (plan / "data").mkdir()
    (plan / "plan.md").write_text("# Census\n")
    (plan / "scripts/a.py").write_text("print()\n")
    (plan / "scripts/a.py").chmod(0o755)
    (plan / "scripts/b.py").symlink_to("a.py")
    (plan / "notes.txt").write_text("small")
    (plan / "big.bin").write_bytes(b"x" * 5000)
    (plan / "data/huge").write_bytes(b"x" * 5000)
    return plan


def test_a_plan_is_copied_in_without_its_data(share: Share, tmp_path: Path) -> None:
    make_plan(share.root)
    take = {"tops": ["plan.md", "scripts", "lib"], "small_bytes": 1000}
    one = share.one(ops.copy_in("inbox/census", str(tmp_path / "one"), **take))
    assert sorted(os.listdir(tmp_path / "one")) == ["notes.txt", "plan.md", "scripts"]
    assert os.access(tmp_path / "one/scripts/a.py", os.X_OK)
    assert os.readlink(tmp_path / "one/scripts/b.py") == "a.py"
    two = share.one(ops.copy_in("inbox/census", str(tmp_path / "two"), **take))
    assert two["sha256"] == one["sha256"]
    (share.root / "inbox/census/scripts/a.py").write_text("print(1)\n")
    three = share.one(ops.copy_in("inbox/census", str(tmp_path / "three"), **take))
    assert three["sha256"] != one["sha256"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../x", "../x/../../../y", "sub/../../../../x"])
def test_a_link_out_of_the_plan_is_refused(share: Share, tmp_path: Path, target: str) -> None:
    plan = make_plan(share.root)
    (plan / "scripts/evil").symlink_to(target)
    result = share.one(ops.copy_in("inbox/census", str(tmp_path / "copy")))
    assert result["errno"] == "EXDEV"
    assert "scripts/evil" in result["what"]


def test_a_copy_is_bounded_in_bytes_and_files(share: Share, tmp_path: Path) -> None:
    make_plan(share.root)
    few = share.one(ops.copy_in("inbox/census", str(tmp_path / "1"), max_files=3))
    small = share.one(ops.copy_in("inbox/census", str(tmp_path / "2"), max_bytes=6000))
    assert (few["errno"], small["errno"]) == ("EFBIG", "EFBIG")
    share.one(ops.copy_in("inbox/census", str(tmp_path / "3")))
    taken = share.one(ops.copy_in("inbox/census", str(tmp_path / "3")))
    assert taken["errno"] == "EEXIST"


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(share: Share) -> None:
    share.one(ops.write("d/x", b"old"))
    pid = share.port.pids()["mirror"]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, 1000))  # fails in the middle, as a full disk does
    result = share.one(ops.write("d/x", b"y" * 5000))
    assert result["errno"] == "EFBIG"
    assert "d/x" in result["what"]
    assert os.listdir(share.root / "d") == ["x"]
    assert (share.root / "d/x").read_bytes() == b"old"


def test_a_copy_of_a_log_ends_where_the_log_ends_though_a_longer_one_stood_there(
    share: Share, tmp_path: Path
) -> None:
    """A rig that was made again counts attempts anew: the first log of a name is not the first copy of it."""
    source = tmp_path / "one.1.log"
    source.write_text("of the rig before this one\n" * 9)
    share.one(ops.copy_out(str(source), "logs/one.1.log"))
    source.write_text("short\n")
    share.one(ops.copy_out(str(source), "logs/one.1.log"))
    assert (share.root / "logs/one.1.log").read_text() == "short\n"


@pytest.mark.parametrize("text", [False, True])
def test_a_write_that_yields_replaces_the_mirrors_own_file_only(share: Share, text: bool) -> None:
    made = seal_text(b"# one\n") if text else seal(b'{\n  "a": 1\n}')
    path = share.root / "plans/x"
    assert "yielded" not in share.one(ops.write("plans/x", made, yields=True, keep={"plans/x": None}))
    assert "yielded" not in share.one(
        ops.write("plans/x", made, mtime_ns=5_000, yields=True, keep={"plans/x": None})
    )
    edited = made.replace(b"1", b"2").replace(b"one", b"two")
    path.write_bytes(edited)
    result = share.one(ops.write("plans/x", made, yields=True, keep={"plans/x": None}))
    info = path.stat()
    assert (result["yielded"], result["size"], result["mtime_ns"]) == (True, info.st_size, info.st_mtime_ns)
    assert path.read_bytes() == edited
    path.unlink()
    path.symlink_to("/nonexistent")
    assert share.one(ops.write("plans/x", made, yields=True))["yielded"]
    assert path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    assert share.one(ops.write("plans/x", made, yields=True))["yielded"]
    assert [p.name for p in path.parent.iterdir()] == ["x"]


def test_a_file_that_cannot_be_looked_at_costs_the_helper_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"somebody's")
    folders: list[int] = []

    def fails(name: str, fd: int, flags: int, shown: str) -> tuple[int, os.stat_result]:
        folders.append(fd)
        raise OSError(errno.EIO, "a bad block", shown)

    monkeypatch.setattr(operations, "open_regular", fails)
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="a bad block"):
            operations.Share(root, time.monotonic() + 60).write("x", b"ours", yields=True)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(folders[0])
    finally:
        os.close(root)
