"""A machine that sleeps, a wall clock that is set: what the shell sees of it, and what the core makes of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from busparts import RealBroker, SmallWorker
from harness import STATE_ID, Harness, spec
from helpers import wait_for
from machineclocks import MachineClocks

from rigbus import Client, Task
from rigbus.bus.broker.broker import Options
from rigbus.bus.client.link import Connection
from rigbus.bus.clocks import Clocks
from rigbus.bus.core.core import Core
from rigbus.bus.states import TaskState
from rigbus.bus.store.records import update_row
from rigbus.bus.wire import CLIENT_SESSION_S, GRACE_S, LEASE_S, Verb


class Machine:
    """Three clocks."""

    def __init__(self) -> None:
        self.awake, self.asleep, self.date = 100.0, 40.0, 1_700_000_000.0
        self.held_up_s = 0.0
        self.clocks = Clocks(self.monotonic, self.boot, lambda: self.date)

    def monotonic(self) -> float:
        return self.awake

    def boot(self) -> float:
        at = self.awake + self.asleep
        self.awake += self.held_up_s
        self.date += self.held_up_s
        return at

    def work(self, seconds: float) -> None:
        self.awake += seconds
        self.date += seconds

    def sleep(self, seconds: float) -> None:
        self.asleep += seconds
        self.date += seconds


# ---------------------------------------------------------------- the look


def test_time_that_passes_is_neither_sleep_nor_jump() -> None:
    machine = Machine()
    for seconds in (0.0, 0.001, 1.0, 86_400.0):
        machine.work(seconds)
        seen = machine.clocks.look()
        assert (seen.slept_s, seen.jumped_s) == (0.0, 0.0)
        assert (seen.now, seen.wall) == (machine.awake, machine.date)


def test_a_sleep_is_told_once_and_is_no_jump_of_the_wall_clock() -> None:
    machine = Machine()
    machine.sleep(3600.0)
    assert machine.clocks.look().slept_s == pytest.approx(3600.0)
    machine.sleep(5.0)
    machine.work(2.0)
    seen = machine.clocks.look()
    assert seen.slept_s == pytest.approx(5.0) and seen.jumped_s == 0.0
    assert machine.clocks.look().slept_s == 0.0


@pytest.mark.parametrize("by_s", [-86_400.0, -5.1, 5.1, 30 * 86_400.0])
def test_a_wall_clock_that_is_set_by_more_than_5_s_is_told_once(by_s: float) -> None:
    machine = Machine()
    machine.date += by_s
    seen = machine.clocks.look()
    assert seen.jumped_s == pytest.approx(by_s) and seen.slept_s == 0.0
    assert machine.clocks.look().jumped_s == 0.0


def test_a_wall_clock_that_is_slewed_is_never_a_jump() -> None:
    machine = Machine()
    for _ in range(100):
        machine.work(1.0)
        machine.date += 0.4
        assert machine.clocks.look().jumped_s == 0.0


def test_a_process_that_was_held_up_between_two_readings_accuses_nobody() -> None:
    machine = Machine()
    machine.held_up_s = 7.0
    seen = machine.clocks.look()
    assert (seen.slept_s, seen.jumped_s) == (0.0, 0.0)
    machine.held_up_s = 0.0
    seen = machine.clocks.look()
    assert (seen.slept_s, seen.jumped_s) == (0.0, 0.0)


# ---------------------------------------------------------------- the core


def woken(rig: Harness, slept_s: float) -> None:
    """What the broker's shell does when the machine has slept: monotonic time stood still."""
    rig.wall += slept_s
    rig.core.woke(slept_s, rig.now, rig.wall)
    rig.settle()


def test_after_a_sleep_leases_wait_for_their_workers_to_come_back() -> None:
    rig = Harness()
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    rig.wait(LEASE_S - 0.01)  # it would be lost in a moment
    woken(rig, 8 * 3600.0)
    rig.wait(LEASE_S + GRACE_S - 0.1)
    assert task.state is TaskState.LEASED, "nobody can renew in the first moment after a sleep"
    assert worker.renew(lease)["stale"] == []
    worker.result(lease, 1)
    assert task.state is TaskState.DONE and task.attempt == 1
    assert [e[7] for e in rig.events if e[4] == "rig.slept"] == [{"for_s": 8 * 3600.0}]


def test_a_worker_that_does_not_come_back_after_a_sleep_loses_its_lease_after_the_grace() -> None:
    rig = Harness()
    rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    woken(rig, 60.0)
    rig.wait(LEASE_S + GRACE_S + 1.0)
    assert task.state is TaskState.READY and task.counts == (0, 0, 1)


def test_a_lease_whose_worker_was_away_before_the_sleep_ends_after_the_grace_too() -> None:
    rig = Harness()
    rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    task.batch.counts, task.batch.total = [0] * len(TaskState), 0  # counted anew by the next broker
    restarted = Core(incarnation=2, state_id=STATE_ID)
    restarted.load([task.batch], [task], {}, {}, rig.now, rig.wall)
    again = Harness(restarted, now=rig.now, wall=rig.wall)
    woken(again, 60.0)
    again.wait(LEASE_S + GRACE_S + 0.1)
    assert task.state is TaskState.READY


def test_sessions_outlive_a_sleep() -> None:
    rig = Harness()
    client = rig.client()
    rig.wait(CLIENT_SESSION_S - 0.1)
    woken(rig, 3600.0)
    rig.wait(CLIENT_SESSION_S - 0.1)
    assert client.id in rig.core.sessions


def test_a_sleep_counts_for_deadlines_and_for_no_duration() -> None:
    rig = Harness()
    client = rig.client()
    (late,) = client.tasks(spec("late", deadline_s=1800.0))
    (soon,) = client.tasks(spec("soon", deadline_s=7200.0))
    (queued,) = client.tasks(spec("queued", queue_timeout_s=1800.0))
    woken(rig, 3600.0)
    assert late.state is TaskState.EXPIRED
    assert soon.deadline == pytest.approx(rig.now + 3600.0)
    rig.wait(1700.0, (client, []))
    assert queued.state is TaskState.READY, "nobody could take it while the machine slept"
    rig.wait(200.0, (client, []))
    assert queued.state is TaskState.EXPIRED
    rig.wait(1800.0, (client, []))
    assert soon.state is TaskState.EXPIRED


def test_when_the_wall_clock_is_set_deadlines_are_written_anew() -> None:
    """A small computer without a clock begins in 1970: what it then accepts must not expire at the next start."""
    rig = Harness(wall=1000.0)
    (task,) = rig.client().tasks(spec("a", deadline_s=3600.0))
    rig.wait(1.0)
    rig.wall += 1_700_000_000.0
    rig.core.wall_jumped(1_700_000_000.0, rig.now, rig.wall)
    changes = rig.settle().changes
    assert changes.tasks == {task.no: task}
    assert update_row(task, rig.wall - rig.now)[15] == pytest.approx(rig.wall + 3599.0, abs=0.1)
    assert [e[7] for e in rig.events if e[4] == "rig.clock"] == [{"by_s": 1_700_000_000.0}]
    assert task.state is TaskState.READY


def test_many_deadlines_are_written_anew_a_part_each_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rigbus.bus.core.waking._AT_ONCE", 10)
    rig = Harness()
    tasks = rig.client().tasks(*(spec(f"t{i}", deadline_s=3600.0) for i in range(25)))
    rig.core.wall_jumped(86_400.0, rig.now, rig.wall)
    rig.settle()
    rig.wait(3.0)
    written = [set(c.tasks) for c in rig.changes if c.tasks]
    assert max(map(len, written)) == 10
    assert set.union(*written) == {t.no for t in tasks}


# ---------------------------------------------------------------- a real broker


@pytest.mark.live
def test_a_broker_whose_machine_sleeps_and_whose_clock_is_set_says_so_and_takes_no_lease_away(
    rig_dir: Path,
) -> None:
    clocks = MachineClocks(rig_dir)
    broker = RealBroker(rig_dir, Options(lease_s=5.0))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clocks.env.items():
            patch.setenv(name, value)
        broker.start()
    go_on = threading.Event()
    worker = SmallWorker(broker.endpoint, ["wait"], lambda lease, payload, progress: go_on.wait(60))
    try:
        with Client(broker.endpoint) as client:
            ids = client.submit([Task(type="wait")])
            wait_for(lambda: worker.leases, timeout_s=30, what="the lease")
            clocks.sleep(8 * 3600.0)
            assert _event(broker, "rig.slept")["for_s"] == pytest.approx(8 * 3600.0, abs=1.0)
            clocks.set_wall(-86_400.0)
            assert _event(broker, "rig.clock")["by_s"] == pytest.approx(-86_400.0, abs=1.0)
            go_on.set()
            (result,) = client.results(ids, timeout_s=30)
        assert result.ok and result.attempts == 1 and len(worker.leases) == 1
    finally:
        go_on.set()
        worker.stop()
        broker.stop()


@pytest.mark.live
def test_a_boot_clock_that_is_ahead_from_the_start_is_no_sleep(rig_dir: Path) -> None:
    words = ["unshare", "-T", "--boottime", "100000", "true"]
    if shutil.which("unshare") is None or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("no time namespace can be made here")
    code = (
        "import time; from rigbus.bus.clocks import Clocks, boottime\n"
        "assert boottime() - time.monotonic() > 99_000\n"
        "print(Clocks().look().slept_s)"
    )
    done = subprocess.run(
        [*words[:-1], sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0.0\n"


def _event(broker: RealBroker, topic: str) -> dict[str, Any]:
    """The data of the newest event of a topic, when there is one."""
    found: list[dict[str, Any]] = []
    link = Connection(broker.endpoint, role="client")
    link.connect(20)
    try:

        def there() -> bool:
            events = link.request(Verb.EVENTS, {"since": 0, "limit": 5000}, timeout_s=20).header["events"]
            found[:] = [row[7] for row in events if row[4] == topic]
            return bool(found)

        wait_for(there, timeout_s=30, what=f"the event {topic}")
    finally:
        link.close()
    return found[-1]
