"""A state folder whose disk is really full: new work is refused, what runs is recorded, the rig stands, nothing is lost."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from drops import say
from helpers import Processes, wait_for
from rigs import LiveRig
from smallfs import SmallDisk, small_disk

from rigbus import Client, Task
from rigbus.bus.errors import Busy, Unreachable
from rigbus.bus.store.ballast import NAME

RUNNING, WAITING = 6, 12
ROUNDS = int(os.environ.get("RIGBUS_TEST_ROUNDS", "2"))  #: more of them on demand
#: Each result takes a good part of the ballast, so that the room that SQLite has anyway does not hide anything.
OUTPUT = "head -c 60000 /dev/zero | tr '\\0' x"


@pytest.fixture
def disk(rig_dir: Path) -> Iterator[SmallDisk]:
    # So small that the WAL is not given its full length beforehand: a commit wants room. What many rounds leave
    # behind, rows and logs, must not fill it by itself.
    with small_disk(rig_dir / "state", 64 + 8 * max(0, ROUNDS - 2)) as disk:
        yield disk


@pytest.fixture
def rig(rig_dir: Path, processes: Processes, disk: SmallDisk) -> Iterator[LiveRig]:
    env = {"RIGBUS_LIMITS__FREE_MB": "8", "RIGBUS_LIMITS__BALLAST_MB": "4", "RIGBUS_SLOTS": "3"}
    rig = LiveRig(rig_dir, processes, workers=2, env=env)
    rig.start()
    yield rig
    if rig.up is not None and rig.up.poll() is None:
        rig.stop()


def level(client: Client) -> str:
    return str(client.query("status")["disk"]["level"])


def marked(folder: Path, words: str, keys: list[str]) -> list[Task]:
    """Commands that leave a mark for each time that they run."""
    folder.mkdir(exist_ok=True)
    command = f"echo ran >> {folder}/$RIGBUS_TASK_KEY; {words}"
    return [Task(type="shell", payload={"command": command}, key=key) for key in keys]


def times(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().split()) for path in folder.iterdir()}


def refuses(client: Client, folder: Path) -> None:
    def refused() -> str:
        try:
            client.submit(
                marked(folder, "true", ["refused"]), timeout_s=0.95
            )  # less than what BUSY says to wait
        except Unreachable:
            return ""  # the machine is busy: ask again
        except Busy as e:
            return str(e)
        raise AssertionError("new work was taken on a full disk")

    said = wait_for(refused, timeout_s=20, what="an answer")
    assert re.search(r"disk.* MiB free in .*free some space", said), said


def fill(disk: SmallDisk, client: Client, rig: LiveRig) -> tuple[list[str], list[str]]:
    """Six tasks that run and twelve behind them, then not a byte is free; the ids of both."""
    gate, marks = rig.state.parent / "gate", rig.state.parent / "marks"
    gated = f"until [ -e {gate} ]; do sleep 0.02; done; {OUTPUT}"
    running = client.submit(marked(marks, gated, [f"run{n}" for n in range(RUNNING)]))
    wait_for(lambda: len(times(marks)) == RUNNING, what="the first ones to run")
    waiting = client.submit(marked(marks, OUTPUT, [f"wait{n}" for n in range(WAITING)]))
    disk.fill()
    wait_for(lambda: level(client) == "full", what="the broker to see the full disk")
    return list(running), list(waiting)


def test_results_are_recorded_on_a_full_disk_and_the_rig_goes_on_when_there_is_room(
    rig: LiveRig, disk: SmallDisk, rig_dir: Path
) -> None:
    marks = rig_dir / "marks"
    with rig.client() as client:
        before = rig.pids()
        running, waiting = fill(disk, client, rig)
        refuses(client, marks)
        (rig_dir / "gate").touch()
        results = {r.id: r for r in client.results(running, timeout_s=20)}
        assert all(r.ok and len(r.value["output"]) == 60_000 for r in results.values())
        assert not (rig.state / NAME).exists()  # it was of use
        shown = client.query("status")
        assert shown["disk"]["level"] == "full" and shown["disk"]["ballast_bytes"] == 0
        assert shown["tasks"]["ready"] == WAITING and shown["tasks"]["leased"] == 0
        for words in (("status",), ("why",), ("why", waiting[0][:12]), ("doctor",)):
            _, out, _ = say(rig, *words)
            assert "disk" in out and "full" in out, (words, out)
        disk.free()
        assert all(r.ok for r in client.results(waiting, timeout_s=20))
        wait_for(lambda: level(client) == "ample", what="the level to come back")
        assert (rig.state / NAME).stat().st_size == 4 << 20
        (after,) = client.submit(marked(marks, "true", ["after"]), timeout_s=5)
        assert next(client.results([after], timeout_s=10)).ok
        assert rig.pids() == before  # nobody had to be started again
    assert set(times(marks).values()) == {1} and len(times(marks)) == RUNNING + WAITING + 1
    assert rig.stop() == 0
    rig.check_log()


def test_a_disk_that_takes_the_ballast_too_stops_no_rig_and_loses_nothing(
    rig: LiveRig, disk: SmallDisk, rig_dir: Path, processes: Processes
) -> None:
    marks = rig_dir / "marks"
    with rig.client() as client:
        broker = rig.pids()["broker"]
        running, waiting = fill(disk, client, rig)
        (rig.state / NAME).unlink(missing_ok=True)
        disk.fill()
        (rig_dir / "gate").touch()  # six results, and no room for one

        def said() -> str:
            return processes.output(rig.up) if rig.up is not None else ""

        wait_for(lambda: said().count("the disk of the state folder is full") >= 2, timeout_s=20, what="it")
        assert rig.up is not None and rig.up.poll() is None
        disk.free()
        results = {r.id: r for r in client.results(running + waiting, timeout_s=30)}
        assert len(results) == RUNNING + WAITING and all(r.ok for r in results.values())
        (after,) = client.submit(marked(marks, "true", ["after"]), timeout_s=10)
        assert next(client.results([after], timeout_s=10)).ok
        assert client.query("status")["broker"]["incarnation"] >= 2
        wait_for(lambda: rig.pids()["broker"] != broker, what="run.json, which no room was for")
    # the workers kept their six results for the broker that came back
    assert set(times(marks).values()) == {1}
    assert rig.stop() == 0
    rig.check_log()


def test_a_disk_that_fills_and_empties_again_and_again_loses_nothing_that_was_accepted(
    rig: LiveRig, disk: SmallDisk, rig_dir: Path, processes: Processes
) -> None:
    marks = rig_dir / "marks"
    accepted: list[str] = []
    stop = threading.Event()

    def submit() -> None:
        """Goes on for as long as the test does, whatever the broker says."""
        with rig.client() as client:
            n = 0
            while not stop.is_set():
                keys = [f"t{n}-{i}" for i in range(5)]
                accepted.extend(client.submit(marked(marks, "seq 500", keys), batch=f"part{n}", timeout_s=60))
                n += 1

    submitter = threading.Thread(target=submit)
    submitter.start()
    with rig.client() as client:
        try:
            for _ in range(ROUNDS):
                before = len(accepted)
                wait_for(lambda before=before: len(accepted) >= before + 20, timeout_s=30, what="work")
                disk.fill()
                wait_for(
                    lambda: level(client) == "full", timeout_s=30, what="the broker to see the full disk"
                )
                disk.free()
        finally:
            disk.free()
            stop.set()
            submitter.join(70)
        assert not submitter.is_alive()
        ended = {r.id: r for r in client.results(accepted, timeout_s=90)}
        assert set(ended) == set(accepted) and all(r.ok for r in ended.values())
    runs = times(marks)
    assert len(runs) == len(accepted) and rig.up is not None
    restarts = processes.output(rig.up).count("broker runs again")
    print(
        f"{ROUNDS} rounds, {len(accepted)} accepted and ended, {sum(runs.values())} runs, {restarts} restarts"
    )
    assert rig.stop() == 0
    rig.check_log()
