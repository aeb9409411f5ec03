"""The mirror of a whole rig: edited, deleted and archived by people, killed and stopped, read at full speed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from drops import HEAD, run_plan, say, task
from helpers import Processes, slack, wait_for, written
from rigs import LiveRig

from rigbus import Client, Task

pytestmark = pytest.mark.live

TASKS = 600
RATE = 200.0
AGENT = """
from rigbus import Agent, handler

class Noop(Agent):
    @handler("noop")
    def noop(self, n: int) -> int:
        return n
"""


def _lane(rig: LiveRig, lane: str) -> dict[str, Path]:
    """Task name -> file."""
    found = {}
    for path in (rig.shared / lane).glob("*.json"):
        try:
            found[json.loads(path.read_text())["name"]] = path
        except (FileNotFoundError, ValueError):
            continue
    return found


def _lines(rig: LiveRig, batch: str) -> list[str]:
    """The words about a batch and its tasks, in the log's order."""
    text = written(rig.shared / "logs/brain_decisions.log")
    said = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line["type"] for line in said if line["details"].get("batch_id") == batch]


def test_people_at_the_files_of_a_running_rig(rig_dir: Path, processes: Processes) -> None:
    rig = LiveRig(rig_dir, processes, workers=1, env={"RIGBUS_BRIDGE__RECONCILE_S": "0.5"})
    rig.start()
    with rig.client() as client:
        batch = run_plan(rig, "kept", HEAD + task("one", "echo one") + task("two", "echo two"))
        assert rig.wait_batch(batch, client)["state"] == "complete"
        done = wait_for(lambda: len(f := _lane(rig, "tasks/complete")) == 2 and f, what="the files")
        one, two = done["one"], done["two"]  # type: ignore[index]
        whole, at = one.read_bytes(), one.stat().st_mtime_ns
        one.write_bytes(b'{"mine": true}')
        archive = rig.shared / "tasks/archive" / batch / "complete"
        archive.mkdir(parents=True)
        two.rename(archive / two.name)
        log = rig.shared / f"plans/kept/batches/{batch}/logs/one.1.log"
        log.unlink()
        (kept,) = wait_for(
            lambda: list(one.parent.glob(f"{one.name}.conflict-*")), what="the edit to be kept"
        )
        wait_for(lambda: one.exists() and one.read_bytes() == whole, what="the file to be restored")
        assert one.stat().st_mtime_ns == at
        assert kept.read_bytes() == b'{"mine": true}'
        wait_for(log.exists, what="the log's copy")

        def counted() -> dict[str, Any] | None:
            found = client.query("status")["bridge"]["mirror"]  # None until the bridge's first heartbeat
            return found if found and found["conflicts"] == 1 else None

        counts = wait_for(counted, what="the counts", timeout_s=12)
        assert counts["changes"] >= 4  # type: ignore[index]
    assert list(_lane(rig, "tasks/complete")) == ["one"], "the archive was undone"
    assert rig.stop() == 0
    code, out, _ = say(rig, "task", "show", f"{batch}/two", "--json")
    assert (code, json.loads(out)["state"]) == (0, "done"), "an archived task is not found"
    assert say(rig, "task", "show", two.stem)[0] == 0
    code, out, err = say(rig, "status", "--json")
    assert (code, json.loads(out)["workers"]) == (4, []), "who has ended is not stale for ever"
    assert "stopped" in err


def test_a_killed_bridge_tells_what_happened_while_it_was_away(rig_dir: Path, processes: Processes) -> None:
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    with rig.client() as client:
        gate = rig_dir / "gate"
        gate.touch()
        slow = task("b", f"until [ -e {gate} ]; do sleep 0.02; done") + task("c", "true", depends_on="b")
        first = run_plan(rig, "first", HEAD + slow)
        rig.wait_batch(first, client)
        wait_for(lambda: "BATCH_COMPLETE" in _lines(rig, first), what="the first lines")
        gate.unlink()
        batch = run_plan(rig, "second", HEAD + slow)
        wait_for(lambda: "b" in _lane(rig, "tasks/processing"), what="the task to run")
        os.kill(rig.pids()["bridge"], signal.SIGSTOP)
        gate.touch()
        rig.wait_batch(batch, client)
        rig.kill("bridge")
        wait_for(lambda: "BATCH_COMPLETE" in _lines(rig, batch), timeout_s=20, what="the lines")
        words = _lines(rig, batch)
    once = ["PLAN_READ", "PLAN_PARSED", "SHELL_COMPLETE", "BATCH_COMPLETE"]
    assert [words.count(word) for word in once] == [1, 1, 2, 1]
    seqs = [json.loads(line).get("seq") for line in (rig.shared / "logs/brain_decisions.log").open()]
    assert len(set(seqs)) == len(seqs), "told twice"
    rig.kill_everything()
    state = rig.shared / "brain/state.json"
    long_ago = time.time() - 60
    for path in [state, *rig.shared.glob("workers/*/*.json")]:
        os.utime(path, (long_ago, long_ago))
    code, _, err = say(rig, "status")
    assert code == 4
    assert "stale" in err


class _Reader(threading.Thread):
    """Lists a lane all the time, and parses every file it has not seen."""

    def __init__(self, lane: Path) -> None:
        super().__init__(daemon=True)
        self.lane, self.seen, self.torn = lane, {}, []  # type: ignore[var-annotated]
        self.end = threading.Event()

    def run(self) -> None:
        while not self.end.wait(0.02):
            for entry in os.scandir(self.lane):
                if entry.name.endswith(".json") and entry.name not in self.seen:
                    self.seen[entry.name] = time.time()
                    try:
                        json.loads(Path(entry.path).read_bytes())
                    except ValueError as e:
                        self.torn.append(f"{entry.name}: {e}")


def test_two_hundred_tasks_a_second_show_within_a_second(rig_dir: Path, processes: Processes) -> None:
    (rig_dir / "noopagent.py").write_text(AGENT)
    spec = json.dumps([{"spec": "noopagent:Noop", "count": 2}])
    env = {"PYTHONPATH": str(rig_dir), "RIGBUS_AGENTS": spec}
    rig = LiveRig(rig_dir, processes, workers=0, env=env)
    rig.start()
    lane = rig.shared / "tasks/complete"
    wait_for(lane.is_dir, what="the lane")
    reader = _Reader(lane)
    reader.start()
    ended: dict[str, float] = {}
    with rig.client() as client, rig.client() as other:
        events = other.events("task.noop.done")
        began = time.monotonic()
        for n in range(0, TASKS, 10):
            client.submit([Task(type="noop", payload={"n": i}) for i in range(n, n + 10)], mirror=True)
            while time.monotonic() < began + n / RATE:
                _hear(events, ended, 0.005)
        wait_for(lambda: _hear(events, ended, 0.05) >= TASKS, what="the tasks to end", timeout_s=20)
        wait_for(lambda: len(reader.seen) >= TASKS, what="the files", timeout_s=10)
        counts = wait_for(lambda: _counts(client, TASKS // 2), what="the counts", timeout_s=12)
    reader.end.set()
    lags = sorted(reader.seen[f"{id_}.json"] - at for id_, at in ended.items())
    assert lags[int(len(lags) * 0.99)] < 3 * slack(), lags[
        -20:
    ]  # 0.2 s where nothing else runs: `rigbus bench mirror`
    assert not reader.torn, reader.torn[0]
    assert counts["writes"] <= 1.5 * counts["changes"], counts  # type: ignore[index]
    assert rig.stop() == 0


def _hear(events: Any, ended: dict[str, float], for_s: float) -> int:
    event = events.poll(for_s)
    while event is not None:
        ended[event.id] = event.at
        event = events.poll(0.0)
    return len(ended)


def _counts(client: Client, least: int) -> dict[str, Any] | None:
    found: dict[str, Any] | None = client.query("status")["bridge"]["mirror"]
    return found if found and found["changes"] >= least else None
