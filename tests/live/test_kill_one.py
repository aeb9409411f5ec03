"""kill -9 of one process in the middle of the example plan: the right report, nothing lost, nothing recorded twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from drops import own_rig
from helpers import Processes, processes_of, slack, wait_for
from rigs import SOURCE, LiveRig, expected_report

from rigbus import Client, Task

LIMIT = 20


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return expected_report(tmp_path_factory.mktemp("expected"), LIMIT)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    """One rig for all victims: what one kill leaves behind is what the next one finds."""
    with own_rig(tmp_path_factory) as rig:
        yield rig
        assert rig.stop() == 0
        rig.check_log()


def _children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _kill_a_child_of(rig: LiveRig, name: str) -> None:
    """A worker's running command, not the worker."""
    worker = rig.pids()[name]

    def killed() -> bool:
        try:
            for child in (children := _children_of(worker)):
                os.kill(child, signal.SIGKILL)
        except ProcessLookupError:  # it has ended by itself
            return False
        return bool(children)

    wait_for(killed, timeout_s=20, what=f"a command of {name}", poll_s=0.001)


@pytest.mark.parametrize("victim", ["broker", "brain", "bridge", "worker-1", "brain-worker", "a command"])
def test_the_plan_ends_with_the_right_report(killed: LiveRig, wanted: dict[str, object], victim: str) -> None:
    rig, name = killed, victim.replace(" ", "-")
    with rig.client() as client:
        batch = rig.receipt(rig.drop(name, limit=LIMIT, source=SOURCE))["batch_id"]
        before = rig.wait_done(batch, client, 3)
        assert before["state"] == "running", "the batch ended before anything was killed: raise LIMIT"
        if victim == "a command":
            _kill_a_child_of(rig, "worker-1")
        else:
            old = rig.kill(victim)
            wait_for(lambda: rig.pids().get(victim) not in (None, old), what=f"{victim} to be started again")
        row = rig.wait_batch(batch, client)
    assert row["state"] == "complete", row
    assert rig.report(name, batch) == wanted


@pytest.mark.smoke
def test_a_clients_task_ends_without_a_brain(rig_dir: Path, processes: Processes) -> None:
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    pid = rig.pids()["brain"]
    os.kill(pid, signal.SIGSTOP)  # it lives and does nothing
    try:
        with Client(state=rig.state) as client:
            ids = client.submit([_shell("exit 3", max_attempts=1), _shell("echo hello")])
            by_id = {r.id: r for r in client.results(ids, timeout_s=20)}
        assert not by_id[ids[0]].ok
        assert by_id[ids[0]].state == "dead"
        assert by_id[ids[1]].ok
        assert by_id[ids[1]].value["output"] == "hello\n"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert rig.stop() == 0


def _shell(command: str, **more: object) -> object:
    return Task(type="shell", payload={"command": command}, **more)  # type: ignore[arg-type]


@pytest.mark.smoke
def test_kill_9_of_up_alone_ends_every_tree_within_3_s(rig_dir: Path, processes: Processes) -> None:
    rig = LiveRig(rig_dir, processes)
    rig.start()
    with rig.client() as client:
        ids = client.submit([_shell("setsid sleep 600 & sleep 600"), _shell("trap '' TERM; sleep 600")])
        wait_for(
            lambda: all(
                r["state"] == "leased" and r["started"] for r in client.query("rows", ids=ids)["rows"]
            ),
            what="both commands to run",
        )
    assert rig.up is not None
    rig.up.kill()
    rig.up.wait(5)
    wait_for(
        lambda: not processes_of(rig_dir), timeout_s=3.0 * slack(), what="every process of the rig to end"
    )
