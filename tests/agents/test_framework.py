"""The framework of agents, over a real broker and real agent processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rigbus import Agent, Task, handler, on
from rigbus.agents.base import load_agent
from rigbus.agents.testing import Rig
from rigbus.bus.client.work import Progress, Result
from rigbus.bus.errors import TaskFailed
from rigbus.bus.paths import log_path

# Found by their file, as a worker process finds them: tests are no package.
Apart, Hanger, Noop, Ring, Sampler = (
    load_agent(f"{Path(__file__).with_name('sample_agents.py')}:{name}")
    for name in ("Apart", "Hanger", "Noop", "Ring", "Sampler")
)

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def sampler() -> Iterator[Rig]:
    """One rig with two agents for the tests that leave it as it was."""
    with Rig.running() as rig:
        rig.add(Sampler)
        rig.add(Apart)
        yield rig


def logs_of(rig: Rig, id_: str) -> list[str]:
    """The logs of one task's attempts."""
    row = rig.bus.query("task", id=id_)["rows"][0]
    return [
        log_path(rig.state / "logs", row["batch"], row["key"], n + 1).read_text()
        for n in range(row["attempt"])
    ]


# ---------------------------------------------------------------- handlers over the bus


def test_an_agents_handlers_answer_sync_and_async_with_models_and_large_values(sampler: Rig) -> None:
    rig = sampler
    assert rig.call("shout", {"text": "hi", "times": 2}) == {"text": "HIHI"}
    assert rig.call("ashout", {"text": "hi"}) == {"text": "HI", "attempt": 1}
    assert rig.call("shift", {"point": {"x": 1}, "by": 2}) == {"x": 3, "y": 2}
    assert rig.call("big", {"size": 1_000_000}) == "x" * 1_000_000


def test_what_goes_wrong_in_a_handler_says_so(sampler: Rig) -> None:
    rig = sampler
    with pytest.raises(TaskFailed, match=r"ValueError: broken") as e:
        rig.call("fail", {}, max_attempts=1)
    assert "sample_agents.py" in str(e.value)
    assert "threads.py" not in str(e.value)
    with pytest.raises(TaskFailed, match='field "text"'):
        rig.call("shout", {"text": 5})
    with pytest.raises(TaskFailed, match="a object is not plain data"):
        rig.call("odd")
    (result,) = rig.bus.results(rig.bus.submit([Task(type="fail", policy={"backoff_s": 0.01})]), timeout_s=20)
    assert (result.ok, result.attempts, result.error_class) == (False, 3, "task")
    (result,) = rig.bus.results(rig.bus.submit([Task(type="odd")]), timeout_s=20)
    assert (result.attempts, result.error_class) == (1, "definition")


def test_progress_streams_in_order_and_the_log_lies_in_the_state_folder(sampler: Rig) -> None:
    rig = sampler
    seen = list(rig.bus.stream("steps", {"n": 50}, timeout_s=20))
    assert isinstance(seen[-1], Result)
    assert seen[-1].value == 50
    chunks = [d["i"] for p in seen if isinstance(p, Progress) for d in p.data]
    assert chunks == list(range(50))
    assert [p.n for p in seen if isinstance(p, Progress)] == list(range(len(seen) - 1))
    assert len(seen) < 50  # gathered, not one message a step
    assert logs_of(rig, seen[-1].id) == ["done with the steps\n"]


def test_a_cancelled_handler_sees_it_and_its_task_is_cancelled(sampler: Rig) -> None:
    rig = sampler
    ids = rig.bus.submit([Task(type="wait")])
    _wait_started(rig, ids[0])
    rig.bus.cancel(ids)
    (result,) = rig.bus.results(ids, timeout_s=10)
    assert result.state == "cancelled"


def test_handlers_that_call_each_other_through_one_slot_do_not_deadlock(rig: Rig) -> None:
    rig.add(Ring)
    assert rig.call("down", {"n": 4}) == 4
    with pytest.raises(TaskFailed, match="call depth"):
        rig.call("down", {"n": 5}, max_attempts=1)


def test_two_slots_run_two_handlers_and_no_third(rig: Rig) -> None:
    at_once: list[int] = []
    running = 0
    lock = threading.Lock()
    go = threading.Event()

    class Counter(Agent):
        slots = 2

        @handler("count")
        def count(self) -> None:
            nonlocal running
            with lock:
                running += 1
                at_once.append(running)
            go.wait(0.3)
            with lock:
                running -= 1

    rig.add(Counter)
    list(rig.bus.results(rig.bus.submit([Task(type="count") for _ in range(6)]), timeout_s=20))
    assert max(at_once) == 2


def test_events_reach_the_methods_that_want_them(rig: Rig) -> None:
    started, dead = threading.Event(), threading.Event()
    seen: list[Any] = []

    class Mourner(Agent):
        def on_start(self) -> None:
            started.set()

        @handler("poor")
        def poor(self) -> None:
            raise ValueError("poor thing")

        @on("task.*.dead", "task.*.done")
        def mourn(self, event: Any) -> None:
            seen.append((event.topic, event.id))
            dead.set()
            raise RuntimeError("an @on method that fails does not end the agent")

    rig.add(Mourner)
    assert started.is_set()
    rig.add(Noop)

    def one_more() -> bool:
        rig.call("noop")  # the follower joins the events at some moment: try until it has
        return dead.is_set()

    rig.wait(one_more, what="an event")
    with pytest.raises(TaskFailed):
        rig.call("poor", max_attempts=1)
    rig.wait(lambda: any(topic == "task.poor.dead" for topic, _ in seen), what="the death of poor")


def _wait_started(rig: Rig, id_: str) -> None:
    rig.wait(lambda: rig.bus.query("task", id=id_)["rows"][0]["started"], what="its start")


# ---------------------------------------------------------------- isolated


def test_an_isolated_handler_runs_elsewhere_with_its_own_bus(sampler: Rig) -> None:
    rig = sampler
    name = "apart-1"
    seen = list(rig.bus.stream("apart", {"text": "hi"}, timeout_s=20))
    assert any(isinstance(p, Progress) and p.note == "half" for p in seen)
    result = seen[-1]
    assert isinstance(result, Result)
    assert result.value["text"] == "HI"
    assert result.value["pid"] != rig.pid(name)
    assert logs_of(rig, result.id) == ["from the child\n"]


def test_an_isolated_handler_is_killed_with_its_tree_at_its_timeout(sampler: Rig) -> None:
    rig = sampler
    mark = f"rb-mark-{os.getpid()}"
    payload = {"seconds": 60, "mark": mark}
    ids = rig.bus.submit([Task(type="sleep_apart", payload=payload, timeout_s=1, max_attempts=1)])
    rig.wait(lambda: _alive(mark), what="its grandchild")
    (result,) = rig.bus.results(ids, timeout_s=30)
    assert (result.error, result.error_class) == ("timed out after 1 s", "task")
    assert _alive(mark) == []


def _alive(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0")[0]:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_segfault_in_an_isolated_handler_is_a_crash_and_the_agent_lives(sampler: Rig) -> None:
    rig = sampler
    name = "apart-1"
    pid = rig.pid(name)
    (result,) = rig.bus.results(rig.bus.submit([Task(type="die_apart", policy={"crash": 1})]), timeout_s=20)
    assert result.error_class == "crash"
    assert f"signal {signal.SIGSEGV.value}" in str(result.error)
    assert rig.pid(name) == pid
    os.kill(pid, 0)


def test_an_isolated_handler_may_tidy_up_when_it_is_cancelled(sampler: Rig) -> None:
    rig = sampler
    ids = rig.bus.submit([Task(type="polite")])
    _wait_started(rig, ids[0])
    rig.bus.cancel(ids)
    (result,) = rig.bus.results(ids, timeout_s=15)
    assert result.state == "cancelled"
    assert logs_of(rig, ids[0]) == ["tidied up\n"]


# ---------------------------------------------------------------- trouble


def test_a_handler_that_hangs_is_reported_and_its_agent_asks_for_a_new_process(rig: Rig) -> None:
    name = rig.add(Hanger)
    (result,) = rig.bus.results(rig.bus.submit([Task(type="hang", max_attempts=1)]), timeout_s=20)
    assert "timed out after 0.3 s; its thread cannot be killed: use isolated=True" in str(result.error)
    assert rig.exit_code(name) == 75


def test_a_drained_agent_finishes_what_runs(rig: Rig) -> None:
    name = rig.add(Sampler)
    ids = rig.bus.submit([Task(type="wait", payload={"seconds": 0.5})])
    _wait_started(rig, ids[0])
    assert rig.stop_worker(name) == 0
    (result,) = rig.bus.results(ids, timeout_s=5)
    assert (result.ok, result.value) == (True, False)


def test_a_second_agent_of_the_same_name_ends_the_first(rig: Rig) -> None:
    name = rig.add(Noop)
    first = rig._processes.pop(name)
    rig.add(Noop, name=name)
    assert first.wait(10) == 8
    assert rig.call("noop") is None


def test_a_restart_of_the_broker_is_survived_and_running_work_is_not_repeated(rig: Rig) -> None:
    rig.add(Sampler)
    ids = rig.bus.submit([Task(type="wait", payload={"seconds": 1.0})])
    _wait_started(rig, ids[0])
    rig.restart_broker()
    (result,) = rig.bus.results(ids, timeout_s=20)
    assert (result.ok, result.attempts) == (True, 1)
    assert rig.call("shout", {"text": "again"}) == {"text": "AGAIN"}


def test_an_agent_that_cannot_start_says_why(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("from rigbus import Agent\nclass Empty(Agent): pass\n")
    with pytest.raises(RuntimeError, match="it would do nothing"):
        rig.add(load_agent(f"{file}:Empty"))


def test_a_second_thread_of_a_handler_may_not_use_its_bus(rig: Rig) -> None:
    class Split(Agent):
        @handler("split")
        async def split(self) -> str:
            self.bus.query("status")
            try:
                await asyncio.to_thread(lambda: self.bus.query("status"))
            except RuntimeError as e:
                return str(e)
            return "it was allowed"

    rig.add(Split)
    assert "two threads of one handler" in rig.call("split")


def test_what_a_large_answer_weighs_does_not_hold_its_agent_up(sampler: Rig) -> None:
    with pytest.raises(TaskFailed, match="the limit is"):
        sampler.call("big", {"size": 65 << 20}, timeout_s=60)
    assert sampler.call("big", {"size": 10 << 20}) == "x" * (10 << 20)


def test_a_returned_lease_counts_no_attempt(rig: Rig) -> None:
    """One agent is busy; what waited behind it runs elsewhere, though it may fail only once."""
    slow = rig.add(Sampler, slots=1)
    for _ in range(30):
        rig.call("pid")  # short tasks: the agent holds leases ahead
    hold = rig.bus.submit([Task(type="wait", payload={"seconds": 30})])
    _wait_started(rig, hold[0])
    policy = {"task": 1, "crash": 1, "infra": 1}
    ids = rig.bus.submit([Task(type="pid", policy=policy) for _ in range(20)])
    rig.add(Sampler, name="other", slots=1)
    got = list(rig.bus.results(ids, timeout_s=10))
    assert {r.value for r in got} == {rig.pid("other")}
    assert all(r.ok for r in got)
    assert rig.pid(slow) not in {r.value for r in got}
