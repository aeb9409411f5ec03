"""The client against the real broker and a small worker; a scripted broker only where the real one will not misbehave."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from busparts import NEVER, RealBroker, Ref, ScriptedBroker, SmallWorker, wait_until
from helpers import free_endpoint, short_folder

from rigbus.bus.client import client as client_module
from rigbus.bus.client import hearing
from rigbus.bus.client.client import Client, Progress, Result, Submitted, Task
from rigbus.bus.client.work import task_id
from rigbus.bus.errors import (
    Busy,
    Conflict,
    DefinitionError,
    LeaseLost,
    NotFound,
    Refused,
    RigbusError,
    TaskFailed,
    Unreachable,
    WaitTimeout,
)
from rigbus.bus.wire import Verb, pack


class Rig:
    """A broker process and one worker whose types do what their names say."""

    def __init__(self, folder: Path) -> None:
        self.broker = RealBroker(folder)
        self.broker.start()
        self.release = threading.Event()
        self.worker = SmallWorker(
            self.broker.endpoint, ["echo", "fail", "never", "steps", "big", "gate", "held", "lost"], self.work
        )

    def work(self, lease: dict[str, Any], payload: Any, progress: Any) -> Any:
        kind = lease["type"]
        if kind == "fail":
            raise RigbusError("it broke")
        if kind == "never" or (kind == "gate" and not self.release.is_set()):
            return NEVER
        if kind == "held" and not self.release.wait(10):
            raise RigbusError("never released")
        if kind == "steps":
            for n in range(payload):
                progress({"n": n, "pct": n / payload, "note": f"step {n}"}, [pack(f"chunk {n}")])
        if kind in {"big", "lost"}:
            data = pack("x" * payload)
            digest = hashlib.sha256(data).hexdigest()
            if kind == "big":
                file = self.broker.paths.results / digest[:2] / digest
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
            return Ref({"sha256": digest, "bytes": len(data)})
        return payload

    def close(self) -> None:
        self.worker.stop()
        self.broker.stop()


@pytest.fixture(scope="module")
def shared_rig() -> Iterator[Rig]:
    with short_folder() as folder:
        rig = Rig(folder)
        yield rig
        rig.close()


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.release.clear()
    return shared_rig


@pytest.fixture
def own_rig(rig_dir: Path) -> Iterator[Rig]:
    """One that the test may kill."""
    rig = Rig(rig_dir)
    yield rig
    rig.close()


@pytest.fixture
def bus(rig: Rig) -> Iterator[Client]:
    with Client(rig.broker.endpoint) as client:
        yield client


@pytest.fixture
def scripted(rig_dir: Path) -> Iterator[ScriptedBroker]:
    broker = ScriptedBroker(free_endpoint(rig_dir))
    yield broker
    broker.stop()


# --- finding the rig ------------------------------------------------------------------------------------------


def test_a_client_finds_the_rig_by_its_state_folder(rig: Rig) -> None:
    with Client(state=rig.broker.state) as bus:
        assert bus.call("echo", 7) == 7


def test_without_a_rig_the_error_is_quick_and_names_the_folder(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=str(tmp_path)) as caught:
        Client(state=tmp_path / "none")
    assert time.monotonic() - begun < 4, "it waited for a broker"
    assert caught.value.exit_code == 4


def test_a_dead_endpoint_is_unreachable(rig_dir: Path) -> None:
    with pytest.raises(Unreachable, match="no broker answers"):
        Client(free_endpoint(rig_dir), timeout_s=0.2)


# --- submit and results ---------------------------------------------------------------------------------------


def test_submitted_tasks_come_back_with_their_values(bus: Client) -> None:
    tasks = [Task(type="echo", payload={"n": n}) for n in range(20)]
    ids = bus.submit(tasks)
    results = {r.id: r for r in bus.results(ids, timeout_s=10)}
    assert [results[i].value for i in ids] == [{"n": n} for n in range(20)]
    assert all(r.ok and r.state == "done" and r.attempts == 1 and r.error is None for r in results.values())
    assert results[ids[3]].task is tasks[3]
    assert tasks[3].id == ids[3]


def test_a_batch_has_an_id_and_ids_are_derived_from_it(bus: Client) -> None:
    ids = bus.submit([Task(type="echo", key="a")])
    assert isinstance(ids, Submitted)
    assert ids == [task_id(ids.batch, "a")]
    assert bus.query("batch", id=ids.batch)["id"] == ids.batch


def test_results_come_in_the_order_in_which_tasks_end(bus: Client) -> None:
    slow = Task(type="never", key="slow")
    ids = bus.submit([slow, Task(type="echo", key="quick")])
    stream = bus.results(ids, timeout_s=10)
    assert next(stream).id == ids[1]
    bus.cancel([ids[0]], reason="enough")
    stream.close()


def test_results_can_be_asked_twice_and_by_another_client(rig: Rig, bus: Client) -> None:
    ids = bus.submit([Task(type="echo", payload=n) for n in range(5)])
    assert sorted(r.value for r in bus.results(ids, timeout_s=5)) == [0, 1, 2, 3, 4]
    assert sorted(r.value for r in bus.results(ids, timeout_s=5)) == [0, 1, 2, 3, 4]
    with Client(rig.broker.endpoint) as other:
        assert sorted(r.value for r in other.results(ids, timeout_s=5)) == [0, 1, 2, 3, 4]


def test_results_left_unread_are_not_lost(bus: Client) -> None:
    ids = bus.submit([Task(type="echo", payload=n) for n in range(10)])
    first = bus.results(ids, timeout_s=5)
    seen = [next(first).value]
    first.close()
    bus.call("echo", None)
    assert len({r.value for r in bus.results(ids, timeout_s=5)}) == 10
    assert len(seen) == 1


def test_ends_beyond_the_bound_are_asked_again(bus: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "KEPT_ENDS", 3)
    ids = bus.submit([Task(type="echo", payload=n) for n in range(10)])
    assert len(list(bus.results(ids[9:], timeout_s=5))) == 1
    wait_until(lambda: bus.tend() or len(bus._ended) <= 3, "the bound")
    assert sorted(r.value for r in bus.results(ids, timeout_s=5)) == list(range(10))


def test_an_unknown_id_is_not_found(bus: Client) -> None:
    with pytest.raises(NotFound, match="3f2c"):
        list(bus.results(["3f2c0000-0000-5000-8000-000000000000"], timeout_s=5))


def test_no_tasks_are_a_batch_without_results(bus: Client) -> None:
    ids = bus.submit([])
    assert ids == []
    assert list(bus.results(ids, timeout_s=1)) == []


def test_waiting_too_short_names_what_is_left(bus: Client) -> None:
    ids = bus.submit([Task(type="never"), Task(type="echo")])
    next(bus.results(ids[1:], timeout_s=20))
    with pytest.raises(WaitTimeout, match=ids[0]) as caught:
        list(bus.results(ids, timeout_s=0.3))
    assert caught.value.ids == [ids[0]]
    assert caught.value.exit_code == 7
    bus.cancel(batch=ids.batch)


def test_a_failed_task_is_a_result_and_its_dependents_are_skipped(bus: Client) -> None:
    bad = Task(type="fail", max_attempts=1)
    ids = bus.submit(
        [bad, Task(type="echo", after=[bad]), Task(type="echo", after=[(bad, "end")], payload=1)]
    )
    results = {r.id: r for r in bus.results(ids, timeout_s=10)}
    assert not results[ids[0]].ok
    assert results[ids[0]].error == "it broke"
    assert results[ids[0]].error_class == "task"
    assert [results[i].state for i in ids] == ["dead", "skipped", "done"]


def test_tasks_of_an_earlier_submit_can_be_waited_for(bus: Client) -> None:
    first = Task(type="echo", payload="first")
    bus.submit([first])
    later = bus.submit([Task(type="echo", payload="later", after=[first])])
    assert next(bus.results(later, timeout_s=5)).value == "later"


def test_the_same_key_is_the_same_batch(bus: Client) -> None:
    key = os.urandom(8).hex()
    one = bus.submit([Task(type="echo", payload=1), Task(type="echo", payload=2)], batch=key)
    two = bus.submit([Task(type="echo", payload=1), Task(type="echo", payload=2)], batch=key)
    assert one == two
    assert one.batch == two.batch
    with pytest.raises(Conflict):
        bus.submit([Task(type="echo", payload="other")], batch=key)


def test_more_tasks_join_an_open_batch(bus: Client) -> None:
    one = bus.submit([Task(type="echo", payload=1)], keep_open=True)
    two = bus.submit([Task(type="echo", payload=2)], batch=one.batch)
    assert two.batch == one.batch
    assert len({*one, *two}) == 2
    assert sorted(r.value for r in bus.results([*one, *two], timeout_s=5)) == [1, 2]
    with pytest.raises(Refused):
        bus.submit([Task(type="echo", payload=3)], batch=one.batch)


def test_many_tasks_go_in_several_messages_and_are_one_batch(bus: Client) -> None:
    last = Task(type="echo", payload="last", key="last")
    tasks = [Task(type="echo", payload=n) for n in range(2100)]
    last.after = [tasks[0], tasks[1500], tasks[2099]]
    ids = bus.submit([last, *tasks])  # it names tasks of later messages
    assert len(set(ids)) == 2101
    seen = {r.id: r.value for r in bus.results(ids, timeout_s=30)}
    assert [seen[i] for i in ids] == ["last", *range(2100)]
    row = bus.query("batch", id=ids.batch)
    assert row["total"] == 2101
    wait_until(lambda: bus.query("batch", id=ids.batch)["state"] == "complete", "the batch is closed")


def test_large_payloads_are_split_by_bytes(bus: Client) -> None:
    ids = bus.submit([Task(type="echo", payload=bytes(200_000)) for _ in range(50)])
    assert sum(len(r.value) for r in bus.results(ids, timeout_s=20)) == 50 * 200_000


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([Task(type="echo", payload=bytes(300_000))], "file"),
        ([Task(type="echo", payload=object())], "plain data"),
        ([Task(type="echo", key="a"), Task(type="echo", key="a")], "twice"),
        ([Task(type="echo", key="k" * 300)], "200 bytes"),
        ([Task(type="echo", after=[Task(type="echo")])], "submit it first"),
        ([Task(type="echo", after=["nothing like that"])], "nothing like that"),
        ([Task(type="echo", after=[3])], "3"),
        ([{"type": "echo"}], r"Task\(type"),
        ([Task(type="echo", key="a", after=["b"]), Task(type="echo", key="b", after=["a"])], "a"),
        ([Task(type="echo", timeout_s=-1.0)], "timeout_s"),
    ],
)
def test_what_can_never_run_is_refused_with_the_reason(bus: Client, tasks: list[Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        bus.submit(tasks)


def test_a_cycle_over_several_messages_is_refused_before_anything_is_sent(bus: Client) -> None:
    tasks = [Task(type="echo", key=f"k{n}", after=[f"k{(n + 1) % 1500}"]) for n in range(1500)]
    with pytest.raises(DefinitionError, match="cycle"):
        bus.submit(tasks)


def test_when_a_later_message_is_refused_the_first_is_cancelled(bus: Client) -> None:
    tasks = [Task(type="gate", key=f"k{n}") for n in range(1001)]
    tasks[1000].after = ["nothing like that"]
    before = {b["id"] for b in bus.query("batches", all=True)["batches"]}
    with pytest.raises(DefinitionError):
        bus.submit(tasks)
    (batch,) = [b for b in bus.query("batches", all=True)["batches"] if b["id"] not in before]
    wait_until(lambda: not _live(bus.query("batch", id=batch["id"])), "the rest is cancelled")


def _live(row: dict[str, Any]) -> int:
    return sum(row["tasks"][s] for s in ("waiting", "ready"))


def test_a_busy_broker_is_asked_again(scripted: ScriptedBroker) -> None:
    tries = []

    def answer(envelope: Any) -> list[Any]:
        tries.append(envelope.header)
        if len(tries) < 3:
            return [(Verb.BUSY, {"retry_after_s": 0.02, "message": "full"}, [])]
        return [(Verb.ACCEPTED, {"batch": "b", "ids": ["t"], "states": ["ready"]}, [])]

    scripted.answers[Verb.SUBMIT] = answer
    with Client(scripted.endpoint) as bus:
        assert bus.submit([Task(type="echo")]) == ["t"]
    assert len({t["batch"]["key"] for t in tries}) == 1  # the same submit each time

    tries.clear()
    scripted.answers[Verb.SUBMIT] = lambda e: [(Verb.BUSY, {"retry_after_s": 9, "message": "full"}, [])]
    with Client(scripted.endpoint) as bus, pytest.raises(Busy):
        bus.submit([Task(type="echo")], timeout_s=5)


def test_a_revision_is_asked_for_under_one_key_until_there_is_room(scripted: ScriptedBroker) -> None:
    tries = []

    def answer(envelope: Any) -> list[Any]:
        tries.append(envelope.header)
        if len(tries) < 3:
            return [(Verb.BUSY, {"retry_after_s": 0.02, "bound": "disk", "message": "full"}, [])]
        return [(Verb.OK, {"batch": "b", "revision": 2, "state": "running"}, [])]

    scripted.answers[Verb.REVISE] = answer
    with Client(scripted.endpoint) as bus:
        assert bus.revise("b", {"name": "p"}, reason="why", priority=8)["revision"] == 2
    assert len({t["key"] for t in tries}) == 1 and tries[0]["reason"] == "why" and tries[0]["priority"] == 8


# --- values by reference --------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible", [True, False])
def test_a_large_value_comes_by_reference(rig: Rig, visible: bool) -> None:
    where: dict[str, Any] = {"state": rig.broker.state} if visible else {"endpoint": rig.broker.endpoint}
    with Client(**where) as bus:
        assert bus.call("big", 1_500_000, timeout_s=10) == "x" * 1_500_000


def test_a_reference_whose_file_is_gone_says_so(rig: Rig) -> None:
    with Client(state=rig.broker.state) as bus, pytest.raises(TaskFailed, match="cannot be read"):
        bus.call("lost", 400_000, timeout_s=10)


# --- calls ----------------------------------------------------------------------------------------------------


def test_a_call_returns_the_value(bus: Client) -> None:
    assert bus.call("echo", {"text": "hi"}, timeout_s=5) == {"text": "hi"}


def test_a_failed_call_raises_with_the_reason_and_the_id(bus: Client) -> None:
    with pytest.raises(TaskFailed, match="it broke") as caught:
        bus.call("fail", timeout_s=10, max_attempts=1)
    assert caught.value.state == "dead"
    assert len(caught.value.task_id) == 36


def test_a_call_that_takes_too_long_is_cancelled(rig: Rig, bus: Client) -> None:
    with pytest.raises(WaitTimeout) as caught:
        bus.call("gate", timeout_s=0.3)
    row = bus.query("task", id=caught.value.ids[0])["rows"][0]
    assert row["cancel_requested"] or row["state"] == "cancelled"


def test_the_calls_of_a_session_share_a_batch(bus: Client) -> None:
    a, b = Task(type="echo"), Task(type="echo")
    ids = [bus._start(a, 5), bus._start(b, 5)]
    rows = [bus.query("task", id=i)["rows"][0] for i in ids]
    assert rows[0]["batch"] == rows[1]["batch"]
    assert len(list(bus.results(ids, timeout_s=5))) == 2


def test_ctrl_c_in_a_call_cancels_its_task(own_rig: Rig) -> None:
    with Client(own_rig.broker.endpoint) as bus:
        started = threading.Thread(
            target=lambda: (
                wait_until(lambda: [x for x in own_rig.worker.leases if x["type"] == "never"], "its start"),
                os.kill(os.getpid(), signal.SIGINT),
            )
        )
        started.start()
        with pytest.raises(KeyboardInterrupt):
            bus.call("never", timeout_s=20)
        started.join()
        (lease,) = own_rig.worker.leases
        row = bus.query("task", id=lease["id"])["rows"][0]
        assert row["cancel_requested"] or row["state"] == "cancelled"


@pytest.mark.parametrize("way", ["call", "stream"])
def test_ctrl_c_in_the_submit_of_a_call_ends_what_was_accepted_of_it(
    rig: Rig, bus: Client, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    accepted = bus._accepted
    answers: list[dict[str, Any]] = []

    def interrupted_once(*args: Any) -> dict[str, Any]:
        answers.append(accepted(*args))
        if len(answers) == 1:
            raise KeyboardInterrupt
        return answers[-1]

    monkeypatch.setattr(bus, "_accepted", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        list(getattr(bus, way)("never", timeout_s=20))
    (id_,) = answers[0]["ids"]
    assert answers[1]["ids"] == [id_], "the same submit is the same task"
    row = bus.query("task", id=id_)["rows"][0]
    assert row["cancel_requested"] or row["state"] == "cancelled"


def test_a_client_that_leaves_ends_its_calls_but_not_its_submits(rig: Rig, bus: Client) -> None:
    leaving = Client(rig.broker.endpoint)
    kept = leaving.submit([Task(type="gate")])
    dropped = leaving.submit([Task(type="gate")], orphan="cancel")
    leaving.close()
    wait_until(
        lambda: (
            bus.query("task", id=dropped[0])["rows"][0]["state"] == "cancelled"
            or bus.query("task", id=dropped[0])["rows"][0]["cancel_requested"]
        ),
        "the orphan's end",
    )
    assert not bus.query("task", id=kept[0])["rows"][0]["cancel_requested"]
    bus.cancel(kept)


# --- streams --------------------------------------------------------------------------------------------------


def test_a_stream_yields_progress_and_then_the_result(bus: Client) -> None:
    news = list(bus.stream("steps", 5, timeout_s=10))
    *steps, end = news
    assert isinstance(end, Result)
    assert end.value == 5
    assert all(isinstance(s, Progress) for s in steps)
    assert [(s.n, s.note, s.data) for s in steps if isinstance(s, Progress)] == [
        (n, f"step {n}", (f"chunk {n}",)) for n in range(5)
    ]


def test_leaving_a_stream_early_cancels_its_task(bus: Client) -> None:
    stream = bus.stream("gate", timeout_s=1.0)
    with pytest.raises(WaitTimeout) as caught:
        next(stream)
    (left,) = caught.value.ids
    row = bus.query("task", id=left)["rows"][0]
    assert row["cancel_requested"] or row["state"] == "cancelled"


# --- a handler's own calls ------------------------------------------------------------------------------------


@pytest.fixture
def parent(rig: Rig, bus: Client) -> dict[str, Any]:
    """A task that runs for ever, as the handler sees it."""
    seen = len(rig.worker.leases)
    bus.submit([Task(type="never", key="handler")])
    wait_until(lambda: rig.worker.leases[seen:], "the lease")
    lease = rig.worker.leases[seen]
    return {"id": lease["id"], "token": lease["token"], "key": lease["key"], "batch": lease["batch"]}


def test_a_handlers_calls_are_children_with_numbered_keys(
    rig: Rig, bus: Client, parent: dict[str, Any]
) -> None:
    with Client(rig.broker.endpoint, parent=parent) as inner:
        assert inner.call("echo", "a") == "a"
        assert inner.call("echo", "b") == "b"
    child = bus.query("task", id=task_id(parent["batch"], "handler/2"))["rows"][0]
    assert child["batch"] == parent["batch"]
    assert child["state"] == "done"


def test_a_rerun_handler_gets_the_recorded_answer(rig: Rig, parent: dict[str, Any]) -> None:
    with Client(rig.broker.endpoint, parent=parent) as inner:
        assert inner.call("echo", "a") == "a"
    ran = len(rig.worker.leases)
    with Client(rig.broker.endpoint, parent=parent) as again:
        assert again.call("echo", "a") == "a"
    assert len(rig.worker.leases) == ran
    with (
        Client(rig.broker.endpoint, parent=parent) as other,
        pytest.raises(Conflict, match="non-deterministic"),
    ):
        other.call("echo", "something else")


def test_an_attempt_that_lost_its_lease_is_told(rig: Rig, parent: dict[str, Any]) -> None:
    parent["token"] = [parent["token"][0], parent["token"][1] + 1000]
    with Client(rig.broker.endpoint, parent=parent) as inner, pytest.raises(LeaseLost):
        inner.call("echo", "a")


def test_a_wait_is_announced_once_and_ended_before_the_value_is_used(rig: Rig) -> None:
    waits: list[bool] = []

    def on_wait(begins: bool) -> None:
        waits.append(begins)
        rig.release.set()  # no result can be there before a wait began

    with Client(rig.broker.endpoint, on_wait=on_wait) as bus:
        ids = bus.submit([Task(type="held", payload=n) for n in range(3)])
        for _ in bus.results(ids, timeout_s=5):
            assert not waits or waits[-1] is False
    assert waits
    assert waits[::2] == [True] * (len(waits) // 2)
    assert waits[1::2] == [False] * (len(waits) // 2)


def test_a_slot_that_cannot_be_lent_ends_the_wait(rig: Rig) -> None:
    def refuse(begins: bool) -> None:
        raise RigbusError("call depth")

    with Client(rig.broker.endpoint, on_wait=refuse) as bus, pytest.raises(RigbusError, match="call depth"):
        bus.call("gate", timeout_s=5)


# --- faults ---------------------------------------------------------------------------------------------------


def test_results_survive_a_killed_broker(own_rig: Rig) -> None:
    with Client(own_rig.broker.endpoint) as bus:
        ids = bus.submit([Task(type="gate", key="g"), Task(type="echo", payload=1, after=["g"])])
        wait_until(lambda: own_rig.worker.leases, "the lease")
        got: list[Result] = []
        killer = threading.Thread(target=_kill_and_restart, args=(own_rig, ids))
        killer.start()
        got.extend(bus.results(ids, timeout_s=30))
        killer.join()
        assert {r.id: r.state for r in got} == {ids[0]: "cancelled", ids[1]: "skipped"}


def _kill_and_restart(rig: Rig, ids: list[str]) -> None:
    rig.broker.kill()
    rig.broker.start()
    with Client(rig.broker.endpoint) as other:
        other.cancel([ids[0]], reason="test")


def test_a_submit_whose_answer_was_lost_is_the_same_tasks(
    own_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(own_rig.broker.endpoint) as bus:
        own_rig.broker.kill()
        starter = threading.Thread(target=own_rig.broker.start)
        starter.start()
        ids = bus.submit([Task(type="echo", payload=n) for n in range(3)], timeout_s=20)
        starter.join()
        assert sorted(r.value for r in bus.results(ids, timeout_s=20)) == [0, 1, 2]
        assert len(bus.query("batches", all=True)["batches"]) == 1


def test_a_broker_that_stays_away_is_unreachable(own_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "PATIENCE_S", 0.3)
    monkeypatch.setattr(client_module, "PATIENCE_S", 0.3)
    with Client(own_rig.broker.endpoint) as bus:
        ids = bus.submit([Task(type="never")])
        own_rig.broker.kill()
        with pytest.raises(Unreachable, match="nothing that was accepted is lost"):
            list(bus.results(ids))


# --- operating ------------------------------------------------------------------------------------------------


def test_cancel_and_requeue_count_what_they_did(bus: Client) -> None:
    ids = bus.submit([Task(type="nobody runs this", key="a"), Task(type="echo", key="b", after=["a"])])
    assert bus.cancel(ids[:1], reason="no")["cancelled"] == 1
    assert {r.state for r in bus.results(ids, timeout_s=5)} == {"cancelled", "skipped"}
    again = bus.requeue(ids[:1])
    assert (again["requeued"], again["revived"]) == (1, 1)
    bus.cancel(batch=ids.batch)


def test_a_plan_is_a_batch_once(bus: Client) -> None:
    plan = {"name": "p", "sha256": "0" * 64, "path": "/x"}
    first = bus.submit_plan(plan, key="drop-1")
    assert bus.submit_plan(plan, key="drop-1") == first
    assert bus.query("batch", id=first)["state"] == "planning"
    bus.cancel(batch=first)


def test_status_has_what_the_interface_says(bus: Client) -> None:
    status = bus.query("status")
    assert {"as_of", "seq", "broker", "brain", "bridge", "workers", "tasks", "batches"} <= set(status)
