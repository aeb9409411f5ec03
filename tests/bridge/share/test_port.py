"""The folder port with real helpers: what happens when one hangs, dies, or the share goes away."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import drive

from rigbus.bridge.folder.share import ops
from rigbus.bridge.folder.share.helper import SENTINEL
from rigbus.bridge.folder.share.port import FolderPort, Reply


@pytest.fixture
def share(tmp_path: Path) -> Path:
    root = tmp_path / "share"
    root.mkdir()
    return root


@pytest.fixture
def port(share: Path, tmp_path: Path) -> Iterator[FolderPort]:
    with FolderPort(
        share, remember=tmp_path / "folder-id", probe_s=2.0, backoff_s=(0.02, 0.1), start_grace_s=1.0
    ) as opened:
        yield opened


def answer(port: FolderPort, ticket: int) -> Reply:
    got: list[Reply] = []

    def here() -> bool:
        return any(r.ticket == ticket for r in got)

    end = time.monotonic() + 10
    while not here():
        assert time.monotonic() < end
        got += port.poll()
        if not here():
            port.wait(port.timeout_s())
    return next(r for r in got if r.ticket == ticket)


def available(port: FolderPort) -> bool:
    return port.state.available


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_batch_is_answered_in_order(port: FolderPort, share: Path) -> None:
    reply = port.call(
        "mirror", [ops.write("a/b.json", b"{}"), ops.read("a/b.json", 100), ops.unlink("nothing")]
    )
    assert reply.fault is None
    assert [r["ok"] for r in reply.results] == [True, True, True]
    assert reply.results[1]["data"] == b"{}"
    assert reply.results[2]["was"] is False
    assert port.state.available
    assert (share / SENTINEL).exists()


def test_requests_made_before_the_first_look_wait_for_it(port: FolderPort) -> None:
    assert not port.state.available
    ticket = port.request("intake", [ops.stat(".")])
    assert answer(port, ticket).fault is None


def test_a_failed_operation_says_what_and_does_not_end_the_batch(port: FolderPort) -> None:
    reply = port.call("mirror", [ops.read("missing", 10), {"op": "dance"}, {"op": "read"}, ops.stat(".")])
    assert [r["ok"] for r in reply.results] == [False, False, False, True]
    assert reply.results[0]["errno"] == "ENOENT"
    assert "missing" in reply.results[0]["what"]
    assert {r["errno"] for r in reply.results[1:3]} == {"EINVAL"}


def test_an_unknown_helper_is_refused_with_the_known_ones(port: FolderPort) -> None:
    with pytest.raises(ValueError, match="intake, mirror"):
        port.request("other", [])


def test_a_big_batch_passes_both_pipes_without_a_deadlock(port: FolderPort) -> None:
    data = os.urandom(5 << 20)
    reply = port.call("mirror", [ops.write("big", data), ops.read("big", 6 << 20)])
    assert reply.results[1]["data"] == data


def test_a_helper_that_hangs_is_abandoned_and_replaced(port: FolderPort) -> None:
    port.call("mirror", [ops.stat(".")])
    drive(port, lambda: "intake" in port.pids())
    first = port.pids()["intake"]
    os.kill(first, signal.SIGSTOP)
    reply = answer(port, port.request("intake", [ops.stat(".")], deadline_s=0.1))
    assert reply.fault is not None
    assert reply.fault.code == "HUNG"
    assert port.state.available
    second = port.call("intake", [ops.stat(".")])
    assert second.fault is None
    assert port.pids()["intake"] != first
    drive(port, lambda: not port.stuck())
    assert gone(first)


def test_the_other_helper_works_on_while_one_hangs(port: FolderPort) -> None:
    port.call("intake", [ops.stat(".")])
    port.call("mirror", [ops.stat(".")])
    os.kill(port.pids()["intake"], signal.SIGSTOP)
    slow = port.request("intake", [ops.stat(".")], deadline_s=0.4)
    assert port.call("mirror", [ops.write("x", b"1")]).fault is None
    reply = answer(port, slow)
    assert reply.fault is not None


def hang_twice(port: FolderPort) -> None:
    port.call("intake", [ops.stat(".")])
    for _ in range(2):
        os.kill(port.pids()["intake"], signal.SIGSTOP)
        reply = answer(port, port.request("intake", [ops.stat(".")], deadline_s=0.05))
        assert reply.fault is not None
        assert reply.fault.code == "HUNG"


def test_after_two_abandoned_helpers_the_share_is_unavailable_until_a_probe_answers(
    port: FolderPort,
) -> None:
    hang_twice(port)
    assert not port.state.available
    assert "does not answer" in port.state.reason
    late = answer(port, port.request("intake", [ops.stat(".")]))
    assert late.fault is not None
    assert late.fault.code == "UNAVAILABLE"
    drive(port, lambda: available(port))
    assert port.call("intake", [ops.stat(".")]).fault is None


def test_while_every_probe_hangs_there_is_one_at_a_time_and_no_crowd(share: Path) -> None:
    probes: list[int] = []
    with FolderPort(share, probe_s=0.05, backoff_s=(0.01, 0.05), start_grace_s=0.05) as port:
        port.call("intake", [ops.stat(".")])
        port._unavailable("made so by the test")

        def each_probe_is_stopped() -> bool:
            pid = port.pids().get("probe")
            if pid and pid not in probes:
                os.kill(pid, signal.SIGSTOP)
                probes.append(pid)
            return len(probes) >= 4

        drive(port, each_probe_is_stopped)
        assert not port.state.available
        assert len(port.stuck()) <= 3
        os.kill(probes[-1], signal.SIGCONT)  # the fault heals
        port._probe_s = port._grace = 5.0  # a healthy one has its usual time, on a busy machine as well
        drive(port, lambda: available(port))
        drive(port, lambda: not port.stuck())


def test_a_killed_helper_is_replaced_and_its_batch_answered(port: FolderPort) -> None:
    port.call("mirror", [ops.stat(".")])
    port.call("intake", [ops.stat(".")])
    pid = port.pids()["mirror"]
    os.kill(pid, signal.SIGSTOP)  # so that the batch is surely under way
    ticket = port.request("mirror", [ops.stat(".")])
    port.poll()
    os.kill(pid, signal.SIGKILL)
    reply = answer(port, ticket)
    assert reply.fault is not None
    assert reply.fault.code == "DIED"
    assert port.call("mirror", [ops.stat(".")]).fault is None
    assert port.pids()["mirror"] != pid


def test_an_empty_mount_point_is_unavailable_and_nothing_is_written_there(
    port: FolderPort, share: Path
) -> None:
    port.call("mirror", [ops.write("tasks/queue/a.json", b"{}")])
    away = share.with_name("away")
    share.rename(away)  # what an unmount looks like from here
    share.mkdir()
    reply = port.call("mirror", [ops.write("tasks/queue/b.json", b"{}")])
    assert reply.fault is not None
    assert reply.fault.code == "ENOENT"
    assert not port.state.available
    assert "mounted" in port.state.reason
    assert list(share.iterdir()) == []
    share.rmdir()
    away.rename(share)
    drive(port, lambda: available(port))
    assert port.call("mirror", [ops.stat("tasks/queue/a.json")]).results[0]["entry"]


def test_the_id_is_remembered_over_a_restart(port: FolderPort, share: Path, tmp_path: Path) -> None:
    port.call("mirror", [ops.stat(".")])
    (share / SENTINEL).unlink()
    with FolderPort(share, remember=tmp_path / "folder-id") as again:
        reply = again.call("mirror", [ops.stat(".")])
    assert reply.fault is not None
    assert str(tmp_path / "folder-id") in again.state.reason
    assert not (share / SENTINEL).exists()


def test_another_folder_at_the_same_place_is_unavailable(port: FolderPort, share: Path) -> None:
    port.call("mirror", [ops.stat(".")])
    (share / SENTINEL).write_text("another\n")
    reply = port.call("mirror", [ops.stat(".")])
    assert reply.fault is not None
    assert "another folder" in reply.fault.what


def test_two_rigs_on_a_new_share_agree_on_its_id(share: Path, tmp_path: Path) -> None:
    with FolderPort(share, remember=tmp_path / "1") as one, FolderPort(share, remember=tmp_path / "2") as two:
        one.poll()
        two.poll()
        drive(one, lambda: available(one))
        drive(two, lambda: available(two))
        assert one.call("mirror", [ops.stat(".")]).fault is None
        assert two.call("mirror", [ops.stat(".")]).fault is None
    assert (tmp_path / "1").read_text() == (tmp_path / "2").read_text()
    assert [p.name for p in share.iterdir()] == [SENTINEL]


def test_a_missing_share_is_unavailable_and_found_when_it_comes(tmp_path: Path) -> None:
    with FolderPort(tmp_path / "later", backoff_s=(0.02, 0.05)) as port:
        reply = port.call("mirror", [ops.stat(".")])
        assert reply.fault is not None
        assert reply.fault.code == "UNAVAILABLE"
        assert str(tmp_path / "later") in reply.fault.what
        (tmp_path / "later").mkdir()
        drive(port, lambda: available(port))


def test_the_default_folder_is_made_on_first_use(tmp_path: Path) -> None:
    with FolderPort(tmp_path / "state" / "shared", create_root=True) as port:
        assert port.call("mirror", [ops.stat(".")]).fault is None
    assert (tmp_path / "state" / "shared" / SENTINEL).exists()


def test_a_slow_share_answers_in_part_instead_of_being_taken_for_dead(port: FolderPort) -> None:
    port.call("mirror", [ops.stat(".")])
    reply = port.call("mirror", [ops.write(f"f{n}", b"x" * 200_000) for n in range(400)], deadline_s=0.05)
    if reply.fault is None:  # a very slow machine may not even start within the deadline
        assert reply.results[-1]["ok"] or reply.results[-1]["errno"] == "EAGAIN"
        assert reply.results[0]["ok"]


def test_helpers_die_with_the_bridge_even_when_they_are_stopped(share: Path) -> None:
    script = (
        "import sys, os, signal\n"
        "from rigbus.bridge.folder.share import ops\n"
        "from rigbus.bridge.folder.share.port import FolderPort\n"
        f"port = FolderPort({str(share)!r})\n"
        "port.call('mirror', [ops.stat('.')]); port.call('intake', [ops.stat('.')])\n"
        "os.kill(port.pids()['intake'], signal.SIGSTOP)\n"
        "print(*port.pids().values(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    bridge = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert bridge.stdout is not None
    pids = [int(word) for word in bridge.stdout.readline().split()]
    fds = [os.pidfd_open(pid) for pid in pids]
    bridge.kill()
    bridge.communicate()
    for fd in fds:
        assert select.select([fd], [], [], 5)[0], "a helper outlived the bridge"
        os.close(fd)


def test_the_helper_imports_nothing_of_rigbus_and_no_site_packages(share: Path, port: FolderPort) -> None:
    port.call("mirror", [ops.stat(".")])
    maps = Path(f"/proc/{port.pids()['mirror']}/maps").read_text()
    assert "site-packages" not in maps
    helper = Path(sys.modules["rigbus.bridge.folder.share.helper"].__file__ or "")
    code = (
        "import runpy, sys; sys.argv[1:] = ['/', '0']\n"
        f"try: runpy.run_path({str(helper)!r}, run_name='__main__')\n"
        "except SystemExit: print(sorted(m for m in sys.modules if 'rigbus' in m))"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "rigbus_folder_helper.share" in out
    assert "rigbus.bridge" not in out
