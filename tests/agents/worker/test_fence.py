"""Over a network a worker ends what it runs before the broker can give it to another: the core, and real tcp."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from busparts import RealBroker
from helpers import free_ports, wait_for, written
from machineclocks import MachineClocks
from workbench import T1, T2, Bench, kinds, lease, results, sent

from rigbus import Client, Task
from rigbus.agents.worker import events as ev
from rigbus.agents.worker.loop import Loop, Peer
from rigbus.bus.broker.broker import Options
from rigbus.bus.timing import fence_s, guard_s, renewal_s
from rigbus.bus.wire import Verb

LEASES_S = (0.3, 1.0, 5.0)


def until_it_acts(b: Bench) -> list[ev.Action]:
    """Ticks as the loop makes them, until the core does something other than to renew."""
    for _ in range(1000):
        b.now = b.core.next_due(b.now + 1e-6)
        acts = [a for a in b.do(ev.Tick(), ev.Flush()) if not isinstance(a, ev.Send)]
        if acts:
            return acts
    raise AssertionError("it never acted")


def ask(b: Bench) -> tuple[bytes, float]:
    """The next RENEW: its correlation id, and when it was sent."""
    for _ in range(100):
        b.now = b.core.next_due(b.now + 1e-6)
        for action in b.do(ev.Tick(), ev.Flush()):
            if isinstance(action, ev.Send) and action.verb is Verb.RENEW:
                return action.corr, b.now
    raise AssertionError("no RENEW")


# ---------------------------------------------------------------- the core


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_work_ends_a_guard_before_its_lease_does(lease_s: float) -> None:
    b = Bench(lease_s=lease_s, fence=True)
    b.run()
    corr, asked_at = ask(b)
    b.do(ev.Renewed(corr=corr))
    b.do(ev.Disconnected())
    assert kinds(until_it_acts(b)) == [ev.Kill]
    assert b.now == pytest.approx(asked_at + fence_s(lease_s), abs=0.01)


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_work_whose_lease_is_renewed_is_left_alone(lease_s: float) -> None:
    b = Bench(lease_s=lease_s, fence=True)
    b.run()
    begun_at = b.now
    while b.now < begun_at + 20 * lease_s:
        corr, _ = ask(b)
        b.now += lease_s / 5  # a slow network
        b.do(ev.Renewed(corr=corr))
    assert ev.Kill not in kinds(b.actions)


def test_without_a_network_the_same_silence_ends_nothing() -> None:
    b = Bench()
    b.run()
    b.do(ev.Disconnected())
    b.actions.clear()
    for _ in range(60):
        b.after(1.0)
    assert b.actions == []


def test_an_answer_speaks_for_its_own_renew_only() -> None:
    """The answer to the first arrives when the second has been sent, and lost."""
    b = Bench(fence=True)
    b.run()
    corr, first_at = ask(b)
    ask(b)
    b.do(ev.Renewed(corr=corr))
    assert kinds(until_it_acts(b)) == [ev.Kill]
    assert b.now == pytest.approx(first_at + fence_s(5.0), abs=0.01)


def test_answers_that_overtake_each_other_shorten_nothing() -> None:
    b = Bench(fence=True)
    b.run()
    first, _ = ask(b)
    second, second_at = ask(b)
    b.do(ev.Renewed(corr=second), ev.Renewed(corr=first), ev.Renewed(corr=b"unknown"))
    b.do(ev.Disconnected())
    assert kinds(until_it_acts(b)) == [ev.Kill]
    assert b.now == pytest.approx(second_at + fence_s(5.0), abs=0.01)


def test_a_cancel_that_is_pushed_renews_nothing() -> None:
    b = Bench(fence=True, slots=2)
    b.run(T1)
    b.run(T2)
    begun_at = b.now
    b.now += 2.0
    b.do(ev.Renewed(cancel=[T2]))  # CONTROL
    b.do(ev.Disconnected())
    assert {a.token for a in until_it_acts(b)} == {T1, T2}
    assert b.now == pytest.approx(begun_at + fence_s(5.0), abs=0.01)


def test_a_lease_that_came_after_a_renew_was_sent_is_not_renewed_by_its_answer() -> None:
    b = Bench(fence=True)
    first, first_at = ask(b)
    b.do(ev.Renewed(corr=first))
    second, _ = ask(b)
    b.run()  # granted before the broker saw the second: it was long on its way
    b.do(ev.Renewed(corr=second))
    b.do(ev.Disconnected())
    assert kinds(until_it_acts(b)) == [ev.Kill]
    assert b.now == pytest.approx(first_at + fence_s(5.0), abs=0.01)


def test_a_welcome_renews_what_it_keeps_from_the_time_of_its_hello() -> None:
    b = Bench(fence=True)
    b.run()
    b.do(ev.Disconnected())
    b.now += 3.0
    greeted_at = b.now - 1.0
    b.do(b.welcome(kept=[T1], greeted_at=greeted_at))
    b.do(ev.Disconnected())
    assert kinds(until_it_acts(b)) == [ev.Kill]
    assert b.now == pytest.approx(greeted_at + fence_s(5.0), abs=0.01)


def test_what_was_fenced_goes_back_when_it_is_dead_and_counts_nothing() -> None:
    b = Bench(fence=True, slots=1, busy_s=60.0)
    b.run(T1)
    b.do(ev.Leases([lease(T2)]))  # waits behind it
    b.do(ev.Disconnected())
    while ev.Kill not in kinds(b.actions):
        until_it_acts(b)
    b.do(b.welcome(kept=[T1, T2]))
    (begun,) = b.do(ev.Ended(T1, ev.Outcome(False, cls="crash", error="ended by signal 9")))
    assert isinstance(begun, ev.Start) and begun.lease.token == T2, "what had not begun is kept"
    sends = b.flush()
    assert results(sends) == []
    assert [h["tokens"] for h in sent(sends, Verb.RETURN)] == [[T1]]
    b.do(ev.Recorded([T1]))
    assert b.core.resume() == [T2]


@pytest.mark.parametrize("type_", ["shell", "noop"])
def test_a_lease_that_is_the_first_word_after_a_silence_begins_when_it_was_renewed(type_: str) -> None:
    """It may have been under way as long as the silence was."""
    b = Bench(fence=True)
    b.now += 10.0
    assert b.do(ev.Leases([lease(T1, type_)])) == []
    assert b.core.next_due(b.now) == b.now, "it asks at once"
    (renew,) = (a for a in b.do(ev.Tick(), ev.Flush()) if isinstance(a, ev.Send) and a.verb is Verb.RENEW)
    assert renew.header["tokens"] == [T1]
    b.now += 0.1
    assert kinds(b.do(ev.Tick())) == [], "it does not ask again and again"
    assert kinds(b.do(ev.Renewed(corr=renew.corr))) == [ev.Start]


def test_what_has_not_begun_when_the_broker_goes_away_does_not_begin_without_it() -> None:
    b = Bench(fence=True, slots=1)
    b.run(T1)
    b.do(ev.Leases([lease(T2)]), ev.Disconnected())
    b.now += 4.5
    assert ev.Start not in kinds(b.do(ev.Ended(T1, ev.Outcome(True)), ev.Tick()))
    b.do(b.welcome(stale=[T2]))
    assert b.core.resume() == [T1]


def test_what_ended_well_at_the_last_moment_is_not_thrown_away() -> None:
    b = Bench(fence=True)
    b.run()
    b.do(ev.Disconnected())
    until_it_acts(b)
    b.do(ev.Ended(T1, ev.Outcome(True, body=b"\xc0")), b.welcome(kept=[T1]))
    assert [row["ok"] for row in results(b.flush())] == [True]


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_a_thread_that_does_not_listen_ends_with_its_process_while_the_lease_still_holds(
    lease_s: float,
) -> None:
    b = Bench(lease_s=lease_s, fence=True)
    b.run(T1, "noop")
    held_until = b.now + lease_s
    b.do(ev.Disconnected())
    assert kinds(until_it_acts(b)) == [ev.Terminate]
    end = until_it_acts(b)[-1]
    assert isinstance(end, ev.Exit) and end.code == ev.EXIT_RESTART
    assert b.now <= held_until - guard_s(lease_s) / 2 + 0.01


def test_a_thread_that_listens_costs_no_process() -> None:
    b = Bench(fence=True)
    b.run(T1, "noop")
    b.do(ev.Disconnected())
    assert kinds(until_it_acts(b)) == [ev.Terminate]
    b.do(ev.Ended(T1, ev.Outcome(False, error="cancelled")))
    for _ in range(20):
        b.after(1.0)
    assert ev.Exit not in kinds(b.actions)
    b.do(b.welcome(kept=[T1]))
    assert sent(b.flush(), Verb.RETURN)


def test_a_timeout_that_was_under_way_keeps_its_own_words() -> None:
    b = Bench(fence=True, kill_grace_s=60.0)
    b.run(T1, timeout_s=1.0)
    b.do(ev.Disconnected())
    assert kinds(until_it_acts(b)) == [ev.Terminate]
    assert kinds(until_it_acts(b)) == [ev.Kill], "the grace would outlive the lease"
    b.do(ev.Ended(T1, ev.Outcome(False, cls="crash")), b.welcome(kept=[T1]))
    (row,) = results(b.flush())
    assert "timed out after 1 s" in row["error"]


# ---------------------------------------------------------------- the shell


@pytest.mark.parametrize(
    ("endpoint", "fenced"), [("ipc:///tmp/none.s", False), ("tcp://127.0.0.1:1", True), ("inproc://x", False)]
)
def test_the_endpoint_says_whether_a_fence_is_needed(
    endpoint: str, fenced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rigbus.agents.worker.run import WorkerConfig

    loop = Loop(Peer("w", endpoint))
    monkeypatch.setattr(loop, "_turn", lambda core: loop._perform(core, ev.Exit(0, "seen")))
    assert loop.run(WorkerConfig()) == 0
    assert loop.core is not None and loop.core.config.fence is fenced


LEASE_S = 5.0
_WORKER = (
    "import sys; from pathlib import Path\n"
    "from rigbus.agents.process.linux import processes\n"
    "from rigbus.agents.worker.serve import Place\n"
    "from rigbus.agents.worker.main import Worker\n"
    "processes().become_subreaper()\n"
    "state, commands, heartbeats = sys.argv[1:]\n"
    "sys.exit(Worker(Place('far', commands, heartbeats, Path(state))).run())\n"
)


@pytest.fixture
def broker(rig_dir: Path) -> Iterator[RealBroker]:
    names = ("commands", "heartbeats", "events")
    addresses = {name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, free_ports(3), strict=True)}
    made = RealBroker(rig_dir, Options(lease_s=LEASE_S), addresses)
    made.start()
    try:
        yield made
    finally:
        os.kill(made.pid, signal.SIGCONT)
        made.stop()


@pytest.fixture
def far(broker: RealBroker) -> Iterator[subprocess.Popen[bytes]]:
    for folder in ("logs", "results"):
        (broker.state / folder).mkdir(exist_ok=True)
    addresses = broker.addresses
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(broker.state), addresses["commands"], addresses["heartbeats"]]
    )
    try:
        yield worker
    finally:
        worker.terminate()
        worker.terminate()
        try:
            worker.wait(10)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait(5)


@pytest.mark.live
def test_over_tcp_a_command_is_dead_before_its_lease_ends_and_runs_again_after_the_silence(
    broker: RealBroker, far: subprocess.Popen[bytes], rig_dir: Path
) -> None:
    mark = rig_dir / "mark"
    with Client(broker.endpoint) as client:
        (task,) = client.submit(
            [
                Task(
                    type="shell",
                    payload={"command": f"echo $$ >> {mark}; [ $(wc -l < {mark}) -gt 1 ] || sleep 300"},
                )
            ]
        )
        wait_for(lambda: written(mark), timeout_s=30, what="the first attempt")
        pid = int(mark.read_text().split()[0])
        os.kill(broker.pid, signal.SIGSTOP)
        silent_at = time.monotonic()
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=20, what="its end", poll_s=0.005)
        took_s = time.monotonic() - silent_at
        # An answer may have been on its way: counted from its RENEW, the lease ends lease_s later at the latest.
        assert fence_s(LEASE_S) - renewal_s(LEASE_S) - 0.3 < took_s < LEASE_S
        assert far.poll() is None
        os.kill(broker.pid, signal.SIGCONT)
        (result,) = client.results([task], timeout_s=40)
    assert result.ok
    assert len(mark.read_text().split()) == 2


# ---------------------------------------------------------------- a machine that sleeps


def test_after_a_sleep_past_the_lease_work_ends_at_once_and_a_short_sleep_ends_nothing() -> None:
    b = Bench(lease_s=5.0, fence=True)
    b.run()
    assert kinds(b.do(ev.Slept(2.0))) == []
    assert kinds(b.do(ev.Slept(2.5))) == [ev.Kill]


def test_an_answer_to_what_was_asked_before_the_sleep_prolongs_nothing() -> None:
    b = Bench(lease_s=5.0, fence=True)
    b.run()
    corr, _ = ask(b)
    assert ev.Kill in kinds(b.do(ev.Slept(10.0)))
    until = b.core._renewals.until
    b.do(ev.Renewed(corr=corr))
    assert b.core._renewals.until <= max(until, b.now)


def test_without_a_network_a_sleep_ends_nothing_and_no_timeout_counts_it() -> None:
    b = Bench()
    b.run(timeout_s=100.0)
    assert kinds(b.do(ev.Slept(86_400.0))) == []
    assert kinds(b.after(50.0)) == [ev.Send], "a RENEW, and no end of the attempt"


@pytest.mark.live
def test_over_tcp_a_command_whose_machine_has_slept_past_its_lease_is_ended_before_it_can_do_harm(
    broker: RealBroker, rig_dir: Path, request: pytest.FixtureRequest
) -> None:
    clocks = MachineClocks(rig_dir)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clocks.env.items():
            patch.setenv(name, value)
        request.getfixturevalue("far")
    mark = rig_dir / "mark"
    command = f"echo $$ >> {mark}; [ $(wc -l < {mark}) -gt 1 ] || sleep 300"
    with Client(broker.endpoint) as client:
        ids = client.submit([Task(type="shell", payload={"command": command})])
        wait_for(lambda: mark.exists() and mark.read_text(), timeout_s=30, what="the first attempt")
        pid = int(mark.read_text().split()[0])
        clocks.sleep(8 * 3600.0)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=20, what="its end", poll_s=0.005)
        (result,) = client.results(ids, timeout_s=40)
    assert result.ok and len(mark.read_text().split()) == 2
