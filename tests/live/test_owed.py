"""A worker dies between the end of its command and the broker's word: the result is recorded, the command ran once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, wait_for
from rigs import LiveRig

from rigbus import Task
from rigbus.agents.testing import Rig

pytestmark = pytest.mark.live


class Command:
    """A command that counts its runs and ends when it is told to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._ran, self._go = folder / "ran", folder / "go"
        script = f'echo run >> "{self._ran}"; until [ -e "{self._go}" ]; do sleep 0.02; done; echo the result'
        self.task = Task(type="shell", payload={"command": script})

    @property
    def runs(self) -> int:
        return len(self._ran.read_text().splitlines()) if self._ran.exists() else 0

    def begun(self) -> None:
        wait_for(lambda: self.runs == 1, what="the beginning of the command")

    def end(self) -> None:
        self._go.touch()


def spool(state: Path) -> list[str]:
    try:
        return [path.name for path in (state / "spool").iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def in_danger(state: Path) -> None:
    wait_for(lambda: spool(state), what="the result on the worker's disk")


def check(bus: Any, ids: list[str], command: Command, state: Path) -> None:
    (result,) = bus.results(ids, timeout_s=30)
    assert (result.ok, result.attempts, command.runs) == (True, 1, 1), result
    assert result.value["output"] == "the result\n"
    wait_for(lambda: not spool(state), what="an empty spool")
    assert bus.query("status")["broker"]["stale_results"] == 0


# ---------------------------------------------------------------- a worker alone


@pytest.fixture
def begun(rig: Rig) -> tuple[Rig, list[str], Command]:
    """A rig of one worker, ``w1``, that runs a command."""
    rig.add_worker(name="w1")
    command = Command(rig.folder)
    ids = rig.bus.submit([command.task])
    command.begun()
    return rig, ids, command


def kill_alone(rig: Rig, name: str) -> None:
    """kill -9, and nobody there who would tell the broker."""
    os.kill(rig.pid(name), signal.SIGKILL)
    rig.exit_code(name)


def test_while_the_broker_is_dead_the_next_worker_of_the_name_presents_it(
    begun: tuple[Rig, list[str], Command],
) -> None:
    rig, ids, command = begun
    rig.kill("broker")
    command.end()
    in_danger(rig.state)
    kill_alone(rig, "w1")
    rig.start_broker()
    rig.add_worker(name="w1")
    check(rig.bus, ids, command, rig.state)


def test_while_the_broker_only_hangs_its_successor_keeps_the_lease(
    begun: tuple[Rig, list[str], Command],
) -> None:
    rig, ids, command = begun
    os.kill(rig.pid("broker"), signal.SIGSTOP)
    try:
        command.end()
        in_danger(rig.state)  # sent into the silence, and not answered for a second
        kill_alone(rig, "w1")
    finally:
        os.kill(rig.pid("broker"), signal.SIGCONT)
    # The broker may have the result from the dead worker's socket, or not: it is recorded once in either case.
    rig.add_worker(name="w1")
    check(rig.bus, ids, command, rig.state)


def test_a_worker_that_is_stopped_while_the_broker_is_away_leaves_its_result_too(
    begun: tuple[Rig, list[str], Command],
) -> None:
    rig, ids, command = begun
    rig.kill("broker")
    command.end()
    in_danger(rig.state)
    os.kill(rig.pid("w1"), signal.SIGTERM)
    os.kill(rig.pid("w1"), signal.SIGINT)  # the second one: it does not wait for the broker
    assert rig.exit_code("w1") == 0
    assert spool(rig.state)
    rig.start_broker()
    rig.add_worker(name="w1")
    check(rig.bus, ids, command, rig.state)


# ---------------------------------------------------------------- under `up`


def without_a_broker(rig: LiveRig) -> int:
    """The broker is dead, and `up`, which would start the next one, is stopped; the pid of `up`."""
    assert rig.up is not None
    os.kill(rig.up.pid, signal.SIGSTOP)
    rig.kill("broker")
    return rig.up.pid


def test_under_up_a_killed_workers_result_is_there_before_its_lease_ends(
    rig_dir: Path, processes: Processes
) -> None:
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    command = Command(rig_dir)
    with rig.client() as bus:
        ids = bus.submit([command.task])
        command.begun()
        up = without_a_broker(rig)
        command.end()
        in_danger(rig.state)
        rig.kill("worker-1")
        os.kill(up, signal.SIGCONT)
        check(bus, ids, command, rig.state)
    assert rig.stop() == 0
    rig.check_log()


def test_after_a_power_cut_the_supervisor_presents_for_workers_that_are_no_more(
    rig_dir: Path, processes: Processes
) -> None:
    rig = LiveRig(rig_dir, processes, workers=2)
    rig.start()
    commands = [Command(rig_dir / name) for name in ("a", "b")]
    with rig.client() as bus:
        ids = bus.submit([command.task for command in commands])
        for command in commands:
            command.begun()
        without_a_broker(rig)
        for command in commands:
            command.end()
        wait_for(lambda: len(spool(rig.state)) == 2, what="the results on the disks of both workers")
        rig.kill_everything()
        rig.workers = 1  # the name of the other one does not come again
        rig.start()
        for id_, command in zip(ids, commands, strict=True):
            check(bus, [id_], command, rig.state)
    assert rig.stop() == 0
    rig.check_log()
