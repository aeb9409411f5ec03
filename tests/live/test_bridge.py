"""The bridge as a process, beside a real broker, brain and worker, on a real folder: drops run, once, whatever dies."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bridgerig import PLAN, Rig
from helpers import Processes, short_folder, slack, wait_for, written


@pytest.fixture
def rig(rig_dir: Path, processes: Processes) -> Iterator[Rig]:
    made = Rig(rig_dir / "s", processes)
    made.state.mkdir()
    return made


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One rig for the tests that end nothing of it; each has plans of its own names."""
    with short_folder() as folder:
        processes = Processes(tmp_path_factory.mktemp("processes"))
        rig = Rig(folder / "s", processes)
        rig.state.mkdir()
        try:
            rig.start("broker", "brain", "worker")
            rig.bridge()
            wait_for((rig.share / "brain/state.json").exists, timeout_s=30, what="the mirror")
            yield rig
        finally:
            processes.stop_all()


def test_a_drop_with_ready_runs_to_its_mirrored_result(running: Rig) -> None:
    running.drop("hello")
    said = running.receipt("hello")
    assert (said["state"], said["tasks"]) == ("accepted", 1)
    batch = said["batch_id"]
    assert running.batch_file("hello", batch)["status"] == "complete"
    (task,) = wait_for(lambda: running.completed(batch), what="the task's file")
    assert task["result"]["output"] == "out\n"
    log = running.share / f"plans/hello/batches/{batch}/logs/one.1.log"
    assert log.read_text() == "out\n"
    decisions = running.share / "logs/brain_decisions.log"
    wait_for(lambda: "SHELL_COMPLETE" in written(decisions), what="its line in the log")
    wait_for((running.share / "workers/worker-1/heartbeat.json").exists, what="the heartbeat")


def test_without_ready_it_settles_first(running: Rig) -> None:
    folder = running.drop("slow", ready=False)
    receipt = running.inbox / "slow.receipt.json"

    def settling() -> str:
        with (folder / "plan.md").open("a") as file:
            file.write("\n")  # as long as this goes on
        return str(json.loads(written(receipt) or "{}").get("note") or "")

    assert wait_for(settling, timeout_s=20, what="the note")
    assert running.receipt("slow")["state"] == "accepted"


def test_the_first_task_starts_within_half_a_second(running: Rig) -> None:
    took: list[float] = []
    for n in range(5):
        folder = running.drop(f"fast{n}", ready=False)
        before = time.time()
        (folder / "READY").touch()
        batch = running.receipt(f"fast{n}")["batch_id"]
        ran = running.share / f"plans/fast{n}/batches/{batch}/ran"
        wait_for(lambda ran=ran: ran.exists() and ran.read_text(), what="the task")  # type: ignore[misc]
        took.append(ran.stat().st_mtime - before)
    assert sorted(took)[2] < 1.0 * slack(), took  # half a second on a machine that does nothing else


EVIL: dict[str, Any] = {
    "half": "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**:\n\n```bash\necho",
    "binary": bytes(range(256)) * 100,
    "empty": "# Plan: p\n\nnothing to do\n",
    "cyclic": PLAN + "- **depends_on**: two\n\n### two\n- **command**: `true`\n- **depends_on**: one\n",
    "unresolved": "# Plan: p\n\n## Tasks\n\n### a\n- **command**: `echo {NOBODY}`\n",
}


def test_every_bad_drop_gets_a_receipt_and_the_rig_goes_on(running: Rig) -> None:
    for name, content in EVIL.items():
        folder = running.drop(name, "", ready=False)
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "plan.md").write_bytes(data)
        (folder / "READY").touch()
    huge = running.unseen("huge")
    with (huge / "plan.md").open("wb") as file:
        file.truncate(50 << 20)
    huge.rename(running.inbox / "huge")
    os.mkfifo(running.inbox / "pipe")
    (running.inbox / "way-out").symlink_to("/etc")
    (running.drop("..x", ready=True)).rename(running.inbox / "a b; rm -rf x")
    inner = running.unseen("with-link")
    (inner / "passwd").symlink_to("/etc/passwd")
    (inner / "READY").touch()
    inner.rename(running.inbox / "with-link")
    running.drop("good")
    for name in [*EVIL, "huge", "pipe", "way-out", "with-link"]:
        said = running.receipt(name)
        assert said["state"] == "refused", name
        assert said["problems"][0]["what"], name
        assert said["problems"][0]["fix"], name
        assert (running.inbox / f"{name}.receipt.md").exists()
    said = running.receipt("unresolved")
    assert (said["problems"][0]["file"], said["problems"][0]["line"]) == ("plan.md", 6)
    assert "{NOBODY}" in said["problems"][0]["text"]
    assert running.receipt("good")["state"] == "accepted"
    refused = running.inbox / ".refused"
    wait_for(lambda: {*EVIL, "huge", "a b; rm -rf x"} <= set(os.listdir(refused)), what="the refused to move")
    names = {b["name"] for b in running.query("batches", all=True)["batches"]}
    assert "good" in names and not names & {*EVIL, "huge", "pipe", "way-out", "with-link", "a b; rm -rf x"}


def test_the_same_drop_twice_is_two_revisions_and_the_results_stay(running: Rig) -> None:
    running.drop("again")
    first = running.receipt("again")["batch_id"]
    running.batch_file("again", first)
    (running.inbox / "again.receipt.json").unlink()
    running.drop("again", PLAN + "\n")
    second = running.receipt("again")["batch_id"]
    assert first != second
    assert running.batch_file("again", second)["status"] == "complete"
    assert (running.share / f"plans/again/batches/{first}/ran").exists()


def test_a_deleted_mirror_comes_back(running: Rig) -> None:
    running.drop("kept")
    batch = running.receipt("kept")["batch_id"]
    running.batch_file("kept", batch)
    before = wait_for(lambda: running.completed(batch), what="the task's file")
    for folder in ("tasks", "brain", "workers"):
        # at once: it is drawn anew all the time
        (running.share / folder).rename(running.state / f"gone-{folder}")
    wait_for(lambda: running.completed(batch) == before, what="the lane to come back")
    wait_for((running.share / "brain/state.json").exists, what="the state to come back")
    wait_for((running.share / "workers/worker-1/status.json").exists, what="the workers")


def test_a_broker_that_is_killed_is_found_again_and_the_mirror_goes_on(rig: Rig) -> None:
    broker = rig.start("broker")["broker"]
    rig.bridge()
    wait_for((rig.share / "brain/state.json").exists, timeout_s=15, what="the mirror")
    rig.processes.kill(broker)
    rig.drop("while-away")  # taken in, and submitted when there is a broker
    wait_for((rig.share / "plans/while-away").exists, what="the drop to be moved")
    rig.start("broker")
    batch = rig.receipt("while-away")["batch_id"]

    def mirrored() -> bool:
        return batch in json.loads((rig.share / "brain/state.json").read_text())["active_batches"]

    wait_for(mirrored, what="the batch in the mirror")


def test_a_share_that_is_not_mounted_is_waited_for_and_nothing_is_cancelled(rig: Rig) -> None:
    rig.start("broker", "brain", "worker")
    bridge = rig.bridge()
    wait_for((rig.share / "brain/state.json").exists, timeout_s=15, what="the mirror")
    rig.drop("long", "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `sleep 2; echo ended`\n")
    batch = rig.receipt("long")["batch_id"]
    away = rig.share.with_name("elsewhere")
    rig.share.rename(away)
    rig.share.mkdir()  # an empty mount point
    wait_for(lambda: "is the share mounted?" in rig.processes.output(bridge), what="the bridge to notice")
    assert list(rig.share.iterdir()) == []
    assert rig.query("status")["bridge"]["state"] == "attached"
    rig.share.rmdir()
    away.rename(rig.share)
    assert rig.batch_file("long", batch)["status"] == "complete"


@pytest.fixture
def small_share(rig: Rig) -> Iterator[Path]:
    """A share of one megabyte that can be filled and made read-only, also for root."""
    rig.share.mkdir()
    if os.geteuid() != 0 or not _run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(rig.share)):
        pytest.skip("needs root and mounts")
    try:
        yield rig.share
    finally:
        _run("umount", "-l", str(rig.share))


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as e:
            assert e.errno == errno.ENOSPC  # noqa: PT017


def _run(*argv: str) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def test_a_full_share_and_a_read_only_one_make_drops_wait(rig: Rig, small_share: Path) -> None:
    rig.start("broker")
    bridge = rig.bridge()
    wait_for((rig.share / "brain/state.json").exists, timeout_s=15, what="the mirror")
    for n, spoil in enumerate(("full", "ro")):
        os.kill(bridge.pid, signal.SIGSTOP)
        rig.drop(f"drop{n}")
        if spoil == "full":
            _fill(small_share / "filler")
        else:
            # busy while a helper of the bridge has a file open for writing
            wait_for(lambda: _run("mount", "-o", "remount,ro", str(small_share)), what="nobody to write")
        os.kill(bridge.pid, signal.SIGCONT)
        # A rename needs no room, a receipt does; nothing can be moved on a read-only share.
        says = f"drop{n} waits"
        wait_for(lambda says=says: says in rig.processes.output(bridge), what=says)  # type: ignore[misc]
        assert rig.query("status")["bridge"]["state"] == "attached"
        if spoil == "full":
            (small_share / "filler").unlink()
        else:
            assert _run("mount", "-o", "remount,rw", str(small_share))
        assert rig.receipt(f"drop{n}", "accepted")["batch_id"]
    names = [b["name"] for b in rig.query("batches", all=True)["batches"]]
    assert names == ["drop0", "drop1"]


def test_a_helper_that_hangs_stops_neither_the_bridge_nor_the_rig(rig: Rig) -> None:
    rig.start("broker", "brain", "worker")
    bridge = rig.bridge()
    wait_for((rig.share / "brain/state.json").exists, timeout_s=15, what="the mirror")
    children = Path(f"/proc/{bridge.pid}/task/{bridge.pid}/children")
    if not children.exists():
        pytest.skip("no /proc here")
    for pid in children.read_text().split():
        os.kill(int(pid), signal.SIGSTOP)
    before = time.monotonic()
    assert rig.query("status")["bridge"]["state"] == "attached"
    assert time.monotonic() - before < 2.0 * slack()
    rig.drop("through")
    assert rig.receipt("through", timeout_s=60)["state"] == "accepted"


def test_a_request_file_is_answered(running: Rig) -> None:
    running.drop("asked", "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `sleep 60`\n")
    batch = running.receipt("asked")["batch_id"]
    id_ = str(uuid.uuid4())
    request = {"schema": "rigbus.request/1", "id": id_, "verb": "cancel", "args": {}, "batch_id": batch}
    temp = running.inbox / ".requests" / f".{id_}.tmp~"
    temp.write_text(json.dumps(request))
    temp.rename(running.inbox / ".requests" / f"{id_}.json")
    answer = running.inbox / ".requests" / f"{id_}.receipt.json"
    wait_for(answer.exists, what="the answer")
    assert json.loads(answer.read_text())["state"] == "accepted"
    assert running.batch_file("asked", batch)["status"] == "cancelled"


def test_the_verb_starts_it_and_sigterm_ends_it_with_its_helpers(rig: Rig) -> None:
    rig.start("broker")
    process = rig.processes.start(
        [sys.executable, "-m", "rigbus", "bridge", "--state", rig.state], env=rig.environment
    )
    wait_for((rig.share / "brain/state.json").exists, timeout_s=15, what="the mirror")
    helpers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = helpers.read_text().split() if helpers.exists() else []
    assert pids or not helpers.exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
