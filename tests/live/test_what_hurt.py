"""What hurt in the system before this one, where no other test is named after the symptom (docs/what-hurt.md has them all)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from helpers import Processes, wait_for
from rigs import LiveRig

from rigbus import Task
from rigbus.agents.testing import Rig

pytestmark = pytest.mark.live


def shell(command: str, **more: object) -> Task:
    return Task(type="shell", payload={"command": command}, **more)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"


def pids(mark: Path) -> list[int]:
    """Who wrote its pid there, in order."""
    return [int(word) for word in mark.read_text().split()] if mark.exists() else []


def test_a_brain_task_of_minutes_holds_up_nobody_and_no_lock_file_is_left_in_the_share(
    rig_dir: Path, processes: Processes
) -> None:
    """A shell task of the brain stopped releases, retries and monitoring for up to 30 minutes; and after 100 tasks there
    were 101 lock files, of which those of root stopped the claims of the others."""
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    with rig.client() as bus:
        (slow,) = bus.submit([shell("sleep 600", cls="brain")])
        wait_for(
            lambda: bus.query("task", id=slow)["rows"][0]["started"],
            timeout_s=30,
            what="the task of the brain",
        )
        (fails,) = bus.submit([shell("exit 3", max_attempts=2, backoff_s=0.1)])
        batch = rig.receipt(rig.drop(limit=8))["batch_id"]
        row = rig.wait_batch(batch, bus)
        assert row["state"] == "complete", row
        many = bus.submit([shell("true") for _ in range(100)])
        assert all(r.ok for r in bus.results(many, timeout_s=60))
        (failed,) = bus.results([fails], timeout_s=40)
        assert (failed.state, failed.attempts) == ("dead", 2)
        assert bus.query("task", id=slow)["rows"][0]["state"] == "leased"
        bus.cancel([slow])
        (ended,) = bus.results([slow], timeout_s=40)
        assert ended.state == "cancelled"
    assert rig.stop() == 0
    locks = [path for path in rig.shared.rglob("*") if "lock" in path.name.lower()]
    assert locks == []


def test_the_old_process_of_a_hung_worker_is_dead_soon_after_it_goes_on_and_its_result_changes_nothing(
    rig: Rig,
) -> None:
    """A stuck task was queued again while its old process ran on. Nobody watches over these two workers."""
    rig.add_worker("--slots", "2", name="w1")
    marks, go = (rig.folder / "ends", rig.folder / "stays"), rig.folder / "go"
    begins = [f'echo $$ >> "{mark}"; [ $(wc -l < "{mark}") -gt 1 ] || ' for mark in marks]
    ends, stays = f'until [ -e "{go}" ]; do sleep 0.05; done', "sleep 600"
    ids = rig.bus.submit([shell(begins[0] + ends), shell(begins[1] + stays)])
    wait_for(lambda: all(pids(mark) for mark in marks), timeout_s=30, what="the first attempt of both")
    old = [pids(mark)[0] for mark in marks]
    os.kill(rig.pid("w1"), signal.SIGSTOP)
    try:
        rig.add_worker("--slots", "2", name="w2")
        ended = list(rig.bus.results(ids, timeout_s=60))
        assert [(r.ok, r.worker, r.attempts) for r in ended] == [(True, "w2", 2)] * 2
        assert all(alive(pid) for pid in old), "nobody could end them"
        go.touch()
        wait_for(lambda: is_zombie(old[0]), timeout_s=30, what="its end, which its worker has not seen")
    finally:
        os.kill(rig.pid("w1"), signal.SIGCONT)
    wait_for(lambda: not any(alive(pid) for pid in old), timeout_s=30, what="the end of the old processes")
    rig.stop_worker("w2")
    (after,) = rig.bus.results(rig.bus.submit([shell("true")]), timeout_s=40)
    assert (after.ok, after.worker) == (True, "w1"), "it was told that its result is stale, and works on"
    rows = rig.bus.query("rows", ids=ids)["rows"]
    assert [(row["state"], row["worker"]) for row in rows] == [("done", "w2")] * 2


def test_a_cancel_that_was_answered_outlives_the_broker_and_ends_the_tree(rig: Rig) -> None:
    """A killed batch was resurrected, and its running tasks finished: what was cancelled was only in memory."""
    rig.add_worker(name="w1")
    mark = rig.folder / "mark"
    (id_,) = rig.bus.submit([shell(f'echo $$ >> "{mark}"; sleep 600')])
    wait_for(lambda: pids(mark), timeout_s=30, what="its command")
    os.kill(rig.pid("w1"), signal.SIGSTOP)  # it cannot hear of it before the broker dies
    try:
        rig.bus.cancel([id_])
        rig.restart_broker()
        assert alive(pids(mark)[0])
        row = rig.client().query("task", id=id_)["rows"][0]
        assert (row["state"], row["cancel_requested"]) == ("leased", True)
    finally:
        os.kill(rig.pid("w1"), signal.SIGCONT)
    client = rig.client()
    (result,) = client.results([id_], timeout_s=40)
    assert (result.state, len(pids(mark))) == ("cancelled", 1)
    assert not alive(pids(mark)[0])


def test_two_brain_processes_one_acts_and_the_other_takes_over_when_it_dies(
    rig_dir: Path, processes: Processes
) -> None:
    """Nothing kept two brains apart, and each wrote the whole state back from its own memory."""
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    second = processes.python("-m", "rigbus", "brain", env=rig.env)
    with rig.client() as bus:

        def seated() -> tuple[int | None, int]:
            brain = bus.query("status")["brain"]
            return brain["pid"], brain["epoch"]

        wait_for(lambda: "this one waits" in processes.output(second), timeout_s=40, what="its word")
        first = rig.pids()["brain"]
        batch = rig.receipt(rig.drop("one", limit=3))["batch_id"]
        assert rig.wait_batch(batch, bus)["state"] == "complete"
        assert seated() == (first, 1), "the second one has no part in it"
        os.kill(first, signal.SIGKILL)
        wait_for(
            lambda: seated()[0] not in (None, first) and seated()[1] > 1, timeout_s=40, what="another one"
        )
        batch = rig.receipt(rig.drop("two", limit=3))["batch_id"]
        assert rig.wait_batch(batch, bus)["state"] == "complete"
    processes.kill(second)
    assert rig.stop() == 0
    rig.check_log()
