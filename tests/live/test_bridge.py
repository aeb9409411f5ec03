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
from helpers import Processes, wait_for

from rigbus.bus.client.link import Connection
from rigbus.bus.paths import endpoints, rig_paths
from rigbus.bus.wire import Verb

BRIDGE = (
    "import logging, sys; from pathlib import Path\n"
    "logging.basicConfig(level=logging.INFO)\n"
    "from rigbus.bridge.folder.service import Bridge\n"
    "from rigbus.bus.paths import endpoints, rig_paths\n"
    "paths = rig_paths(Path(sys.argv[1]))\n"
    "sys.exit(Bridge(paths, endpoints(paths)['commands'], settle_s=0.3, reconcile_s=1.0).run())\n"
)
PLAN = "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo out; echo $RANDOM >> {BATCH_PATH}/ran`\n"


class Rig:
    """Broker, brain, worker and bridge of one state folder."""

    def __init__(self, state: Path, processes: Processes) -> None:
        self.state, self.processes = state, processes
        self.paths = rig_paths(state)
        self.share = self.paths.shared
        self.inbox = self.share / "inbox"
        self.environment = {"RIGBUS_STATE": str(state)}

    def start(self, *names: str) -> dict[str, subprocess.Popen[bytes]]:
        verbs = {
            "broker": ("broker",),
            "brain": ("brain",),
            "worker": ("worker", "--name", "worker-1", "--slots", "2"),
        }
        return {
            name: self.processes.python(
                "-m", "rigbus", *verbs[name], "--state", self.state, env=self.environment
            )
            for name in names
        }

    def bridge(self) -> subprocess.Popen[bytes]:
        return self.processes.python("-c", BRIDGE, self.state, env=self.environment)

    def drop(self, name: str, text: str = PLAN, *, ready: bool = True) -> Path:
        folder = self.inbox / name
        folder.mkdir(parents=True)
        (folder / "plan.md").write_text(text)
        if ready:
            (folder / "READY").touch()
        return folder

    def receipt(self, name: str, *states: str) -> dict[str, Any]:
        """Wait for the receipt in one of these states."""
        file = self.inbox / f"{name}.receipt.json"

        def there() -> dict[str, Any] | None:
            try:
                said: dict[str, Any] = json.loads(file.read_text())
            except (OSError, ValueError):
                return None
            return said if said["state"] in (states or ("accepted", "refused")) else None

        found = wait_for(there, timeout_s=20, what=f"the receipt of {name}")
        assert found is not None
        return found

    def batch_file(self, plan: str, batch: str) -> dict[str, Any]:
        """Wait for the mirrored end of a batch."""
        file = self.share / f"plans/{plan}/batches/{batch}/batch.json"

        def ended() -> dict[str, Any] | None:
            try:
                said: dict[str, Any] = json.loads(file.read_text())
            except (OSError, ValueError):
                return None
            return said if said["status"] in ("complete", "failed", "cancelled") else None

        found = wait_for(ended, timeout_s=30, what=f"the end of {batch}")
        assert found is not None
        return found

    def query(self, what: str, **how: Any) -> dict[str, Any]:
        link = Connection(endpoints(self.paths)["commands"], role="client")
        try:
            link.connect(10)
            return link.request(Verb.QUERY, {"what": what, **how}, timeout_s=10).header
        finally:
            link.close()

    def lane(self, lane: str) -> list[str]:
        return sorted(p.name for p in (self.share / lane).glob("*.json"))


@pytest.fixture
def rig(rig_dir: Path, processes: Processes) -> Iterator[Rig]:
    made = Rig(rig_dir / "s", processes)
    made.state.mkdir()
    return made


@pytest.fixture
def running(rig: Rig) -> Rig:
    rig.start("broker", "brain", "worker")
    rig.bridge()
    wait_for((rig.share / "brain/state.json").exists, timeout_s=15, what="the mirror")
    return rig


def test_a_drop_with_ready_runs_to_its_mirrored_result(running: Rig) -> None:
    running.drop("hello")
    said = running.receipt("hello")
    assert (said["state"], said["tasks"]) == ("accepted", 1)
    batch = said["batch_id"]
    assert running.batch_file("hello", batch)["status"] == "complete"
    (name,) = wait_for(lambda: running.lane("tasks/complete"), what="the task's file")
    task = json.loads((running.share / "tasks/complete" / name).read_text())
    assert task["result"]["output"] == "out\n"
    log = running.share / f"plans/hello/batches/{batch}/logs/one.1.log"
    assert log.read_text() == "out\n"
    assert "SHELL_COMPLETE" in (running.share / "logs/brain_decisions.log").read_text()
    wait_for((running.share / "workers/worker-1/heartbeat.json").exists, what="the heartbeat")


def test_without_ready_it_settles_first(running: Rig) -> None:
    running.drop("slow", ready=False)
    assert running.receipt("slow", "settling")["note"]
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
    assert sorted(took)[2] < 1.0, took  # half a second on a machine that does nothing else


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
    with (running.drop("huge", ready=False) / "plan.md").open("wb") as file:
        file.truncate(50 << 20)
    os.mkfifo(running.inbox / "pipe")
    (running.inbox / "way-out").symlink_to("/etc")
    (running.drop("..x", ready=True)).rename(running.inbox / "a b; rm -rf x")
    inner = running.drop("with-link", ready=False)
    (inner / "passwd").symlink_to("/etc/passwd")
    (inner / "READY").touch()
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
    assert [b["name"] for b in running.query("batches", all=True)["batches"]] == ["good"]


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


def test_killed_at_random_moments_each_drop_runs_exactly_once(rig: Rig) -> None:
    rig.start("broker", "brain", "worker")
    names = [f"drop{n}" for n in range(12)]
    bridge = rig.bridge()
    wait_for(rig.inbox.is_dir, timeout_s=15, what="the inbox")
    for n, name in enumerate(names):
        rig.drop(name)
        if n % 2:  # at another moment of the intake each time
            bridge.poll()
            deadline = time.monotonic() + 0.05 * (n + 1)
            wait_for(lambda deadline=deadline: time.monotonic() > deadline, what="the moment")  # type: ignore[misc]
            rig.processes.kill(bridge)
            bridge = rig.bridge()
    batches = {name: rig.receipt(name, "accepted")["batch_id"] for name in names}
    for name, batch in batches.items():
        assert rig.batch_file(name, batch)["status"] == "complete"
        assert len((rig.share / f"plans/{name}/batches/{batch}/ran").read_text().splitlines()) == 1
    told = [b["name"] for b in rig.query("batches", all=True)["batches"]]
    assert sorted(told) == sorted(names)
    assert os.listdir(rig.state / "incoming") == []


def test_a_deleted_mirror_comes_back(running: Rig) -> None:
    running.drop("kept")
    batch = running.receipt("kept")["batch_id"]
    running.batch_file("kept", batch)
    before = wait_for(lambda: running.lane("tasks/complete"), what="the task's file")
    for folder in ("tasks", "brain", "workers"):
        (running.share / folder).rename(
            running.state / f"gone-{folder}"
        )  # at once: it is drawn anew all the time
    wait_for(lambda: running.lane("tasks/complete") == before, what="the lane to come back")
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
            assert _run("mount", "-o", "remount,ro", str(small_share))
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
    assert time.monotonic() - before < 2.0
    rig.drop("through")
    assert wait_for(lambda: rig.receipt("through"), timeout_s=60)["state"] == "accepted"


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


def test_sigterm_ends_it_with_its_helpers(rig: Rig) -> None:
    rig.start("broker")
    bridge = rig.bridge()
    wait_for((rig.share / "brain/state.json").exists, timeout_s=15, what="the mirror")
    bridge.send_signal(signal.SIGTERM)
    assert bridge.wait(5) == 0


def test_the_verb_starts_it(rig: Rig) -> None:
    rig.start("broker")
    process = rig.processes.start(
        [sys.executable, "-m", "rigbus", "bridge", "--state", rig.state], env=rig.environment
    )
    wait_for((rig.share / "brain/state.json").exists, timeout_s=15, what="the mirror")
    assert process.poll() is None
