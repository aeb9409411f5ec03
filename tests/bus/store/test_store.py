"""The store: what is committed is there after a restart, all of it and nothing half; what cannot be used is refused."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from durable import Durable
from harness import WALL, Peer, spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigbus.bus.broker.completing import Completer
from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Changes, Fact, Send
from rigbus.bus.errors import StoreError
from rigbus.bus.states import TaskState
from rigbus.bus.store.records import whole_row
from rigbus.bus.store.store import SCHEMA_VERSION, Store, mark, state_id
from rigbus.bus.wire import LEASE_S, Verb

SHA = "cd" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rig.db"


@pytest.fixture
def rig(path: Path) -> Iterator[Durable]:
    rig = Durable(path)
    yield rig
    rig.store.close()


class Seconds(float):
    """Equal within a millisecond: on the disk a time lies by the wall clock, whose large numbers take the last digits."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 1e-3

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]


def durable(core: Core) -> dict[str, Any]:
    """Everything that has to survive; times against the core's own clocks."""

    def left(at: float) -> Seconds | None:
        return Seconds(max(0.0, at - core.now)) if at else None

    tasks = {
        t.id: {
            "no": t.no,
            "key": t.key,
            "batch": t.batch.id,
            "shape": t.shape,
            "policy": t.policy,
            "state": t.state,
            "seq": t.seq,
            "priority": t.priority,
            "unmet": t.unmet if t.state is TaskState.WAITING else None,
            "hold": t.hold,
            "join": t.join,
            "edges": [(no, end) for no, end in t.after if no in core.tasks],
            "attempt": t.attempt,
            "counts": t.counts,
            "token": t.token if t.state is TaskState.LEASED else None,
            "session": t.session,
            "worker": t.worker,
            "leased_at": t.leased_at,
            "started_at": t.started_at,
            "not_before": left(t.not_before) if t.state is TaskState.READY else None,
            "deadline": left(t.deadline),
            "digest": t.digest,
            "ending": t.ending,
            "owner": t.owner,
            "parent": t.parent,
            "error": t.error,
            "created_at": t.created_at,
            "ended_at": t.ended_at,
        }
        for t in core.tasks.values()
    }
    batches = {
        b.id: (
            *(b.no, b.key, b.kind, b.name, b.state, b.priority, b.mirror, b.closed, b.cancelled),
            *(b.created_at, b.ended_at, b.error, b.plan, b.seq, list(b.counts), b.total, sorted(b.keys)),
        )
        for b in core.batches.values()
    }
    return {
        "tasks": tasks,
        "batches": batches,
        "facts": {k: (f.rev, f.epoch, f.value) for k, f in core.facts.items()},
        "leases": sorted(core.leases),
        "owned": {sid: sorted(t) for sid, t in core.owned.items() if t},
        "counts": list(core.counts),
        "seq": core.seq,
        "channels": core.channel_seq,
        "next": (core.next_no, core.next_batch),
        "epoch": core.epoch,
    }


# -- a random life, then a restart ---------------------------------------------------------------------------


class Life:
    """A rig in which random but sensible things happen."""

    def __init__(self, rig: Durable, seed: int) -> None:
        self.rig, self.random = rig, random.Random(seed)
        self.client = rig.client()
        self.workers = [rig.worker(credit=3, slots=2, name=f"w{i}") for i in range(2)]
        self.brain = rig.brain()
        self.supervisor = rig.peer("supervisor")
        self.held: list[tuple[Peer, dict[str, Any]]] = []
        self.n = 0

    def live(self) -> None:
        for _ in range(self.random.randint(5, 40)):
            getattr(self, self.random.choice([n for n in dir(self) if n.startswith("do_")]))()
            for worker in self.workers:
                self.held += [(worker, lease) for lease in worker.leases()]
            self.rig.check()

    def keys(self, n: int) -> list[str]:
        self.n += n
        return [f"k{i}" for i in range(self.n - n, self.n)]

    def some_id(self) -> str:
        ids = list(self.rig.core.ids)
        return self.random.choice(ids) if ids else "nobody"

    def do_submit(self) -> None:
        r = self.random
        specs: list[dict[str, Any]] = []
        for key in self.keys(r.randint(1, 5)):
            one = spec(key, priority=r.randint(0, 10))
            before = [s["key"] for s in specs] + [self.some_id()] * bool(self.rig.core.ids)
            if before and r.random() < 0.6:
                one["after"] = [
                    r.choice([ref, [ref, "end"]]) for ref in r.sample(before, r.randint(1, len(before)))
                ]
            if r.random() < 0.2:
                one["deadline_s"] = r.choice([2.2371, 50.1173])  # never at the very moment of the restart
            if r.random() < 0.2:
                one["orphan"] = "cancel"
            if r.random() < 0.3:
                one["policy"] = {"task": r.randint(1, 3), "backoff_s": r.choice([0, 5])}
            one["review"], one["escalate"] = r.random() < 0.1, r.random() < 0.1
            if r.random() < 0.15:
                one["join"] = True
            elif joins := [s["key"] for s in specs if s.get("join")]:
                one["feeds"] = [r.choice([joins[0], [joins[0], "end"]])]
                one.pop("after", None)
            specs.append(one)
        kind = r.choice(["client", "client", "calls"])
        self.client.submit(*specs, kind=kind, payloads=[b"p" * r.randint(0, 50) for _ in specs])

    def do_plan(self) -> None:
        batch = self.client.submit(kind="plan", plan={"name": "p", "config": {"a": [1, None]}}).header[
            "batch"
        ]
        a, j, k = self.keys(3)
        tasks = [spec(a), spec(j, a, join=True, hold=True), spec(k, j)]
        self.tell(batch=batch, tasks=tasks)
        self.tell(facts=[{"scope": "plan", "key": batch, "rev": 0, "value": {"n": 1.5}}])
        if self.random.random() < 0.7:
            (child,) = self.keys(1)
            join = self.rig.core.batch_ids[batch].keys[j].id
            self.tell(batch=batch, tasks=[spec(child, feeds=[j])], release=[join], close=[batch])

    def tell(self, **header: Any) -> None:
        self.brain.ask(Verb.BRAIN, {"epoch": self.rig.core.epoch, **header})

    def do_verdict(self) -> None:
        word = self.random.choice(["accept", "reject", "retry", "dead"])
        if self.rig.core.ids:
            self.tell(verdicts=[{"id": self.some_id(), "verdict": word}])

    def do_answer(self) -> None:
        if not self.held:
            return
        worker, lease = self.held.pop(self.random.randrange(len(self.held)))
        what = self.random.choice(
            ["ok", "ok", "ok", "task", "crash", "infra", "return", "child", "started", "ref"]
        )
        if what == "ok":
            worker.result(lease, {"v": self.n})
        elif what == "ref":
            worker.result(lease, ref={"sha256": SHA, "bytes": 400_000})
        elif what == "return":
            worker.ask(Verb.RETURN, {"tokens": [lease["token"]], "not_before_s": self.random.choice([0, 5])})
        elif what in ("child", "started"):
            self.held.append((worker, lease))
            worker.started(lease)
            if what == "child":
                child = spec(f"{lease['key']}/{self.n}", parent={"id": lease["id"], "token": lease["token"]})
                worker.submit(child)
        else:
            worker.fail(lease, what)

    do_answer_again = do_answer_more = do_answer

    def do_cancel(self) -> None:
        self.client.ask(Verb.CANCEL, {"ids": [self.some_id()], "reason": "why not"})

    def do_cancel_batch(self) -> None:
        if self.rig.core.batches and self.random.random() < 0.3:
            batch = self.random.choice(list(self.rig.core.batches.values()))
            self.client.ask(Verb.CANCEL, {"batch": batch.id})

    def do_requeue(self) -> None:
        if self.random.random() < 0.5:
            self.client.ask(Verb.REQUEUE, {"ids": [self.some_id()]})
        elif self.rig.core.batches:
            batch = self.random.choice(list(self.rig.core.batches.values()))
            self.client.ask(Verb.REQUEUE, {"batch": batch.id})

    def do_wait(self) -> None:
        leases = [(w, [lease for other, lease in self.held if other is w]) for w in self.workers]
        self.rig.wait(self.random.choice([0.5, 3.0]), *leases, (self.client, []), (self.brain, []))

    def do_lose_a_worker(self) -> None:
        if self.random.random() < 0.3:
            i = self.random.randrange(len(self.workers))
            lost = self.workers[i]
            self.supervisor.hello()
            self.supervisor.ask(Verb.GONE, {"session": lost.id})
            self.held = [(w, lease) for w, lease in self.held if w is not lost]
            self.workers[i] = self.rig.worker(credit=3, slots=2, name=lost.name)

    def do_operate(self) -> None:
        verb, header = self.random.choice(
            [
                (Verb.CONTROL, {"action": "pause", "worker": "w0"}),
                (Verb.CONTROL, {"action": "resume", "worker": "all"}),
                (Verb.DRAIN, {"worker": "w1"}),
                (Verb.TOKEN, {"name": "pcie-0", "action": "take"}),
                (Verb.TOKEN, {"name": "pcie-0", "action": "release"}),
            ]
        )
        self.client.ask(verb, header)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_core_that_is_loaded_again_equals_the_one_that_was_killed(tmp_path: Path, seed: int) -> None:
    rig = Durable(tmp_path / f"{seed}-{random.random()}.db", durability="normal", age_s=10.0)
    life = Life(rig, seed)
    life.live()
    before = durable(rig.core)
    again = rig.restart()
    after = durable(again.core)
    for id_, task in before["tasks"].items():
        loaded = after["tasks"][id_]
        assert {k: v for k, v in loaded.items() if v != task[k]} == {}, task
    assert after == before
    again.check()
    # and it goes on: whatever is left ends
    worker = again.worker(credit=50, slots=50)
    again.client().ask(Verb.CONTROL, {"action": "resume", "worker": "all"})
    again.wait(LEASE_S + 12, (worker, []))
    again.check()
    again.store.close()


def test_a_call_that_was_taken_up_again_is_not_ended_anew_by_a_restart(rig: Durable) -> None:
    """Its parent is still to end: a deadline that has passed is told once, and is no news to the next broker."""
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("p", deadline_s=LEASE_S / 2))
    lease = worker.lease()
    (child,) = worker.tasks(spec("p/1", parent={"id": lease["id"], "token": lease["token"]}))
    rig.wait(LEASE_S / 2 + 0.1, (worker, [lease]))
    assert child.state is TaskState.CANCELLED
    client.ask(Verb.REQUEUE, {"ids": [child.id]})
    assert child.state is TaskState.READY
    again = rig.restart()
    again.wait(0.1)
    assert again.core.tasks[child.no].state is TaskState.READY
    again.store.close()


def test_a_clean_start_twice_is_the_same_rig(path: Path) -> None:
    rig = Durable(path)
    first = rig.core.incarnation
    again = rig.restart()
    assert again.core.incarnation == first + 1
    assert durable(again.core)["tasks"] == {}
    again.store.close()


# -- what a restart must keep --------------------------------------------------------------------------------


def test_a_running_lease_is_kept_over_a_restart(rig: Durable) -> None:
    worker = rig.worker(name="w1")
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    again = rig.restart(away_s=3600)
    kept = again.core.ids[task.id]
    assert kept.state is TaskState.LEASED and kept.token == (1, 1)
    again.wait(LEASE_S)
    worker.rig = again
    assert worker.reconnect(resume=[lease["token"]]).header["kept"] == [lease["token"]]
    assert worker.result(lease, 1).verb is Verb.RECORDED
    assert kept.state is TaskState.DONE and kept.attempt == 1
    again.store.close()


def test_a_question_about_a_plan_and_its_deadline_are_kept_over_a_restart(rig: Durable) -> None:
    batch = rig.client().submit(kind="plan", plan={"name": "p"}).header["batch"]
    question = spec("plan:classes.1", aside=True, deadline_s=30)
    brain = rig.brain()
    header = {"epoch": rig.core.epoch, "upto_seq": 0, "batch": batch, "tasks": [question]}
    (id_,) = brain.ask(Verb.BRAIN, header, [b""]).header["ids"]
    again = rig.restart(away_s=10)
    kept = again.core.ids[id_]
    assert (kept.batch.total, kept.batch.state.name) == (0, "PLANNING")
    again.wait(19)
    assert kept.state is TaskState.READY
    again.wait(2)
    assert kept.state is TaskState.EXPIRED
    assert [e[7].get("asks") for e in again.events if e[3] == "a"] == [True]
    again.check()
    again.store.close()


def test_a_lease_whose_worker_does_not_come_back_ends_after_the_grace(rig: Durable) -> None:
    worker = rig.worker(credit=2, slots=2)
    started, not_started = rig.client().tasks(spec("a"), spec("b"))
    worker.started(worker.leases()[0])
    again = rig.restart()
    again.wait(LEASE_S + 4.5)
    assert again.core.counts[TaskState.LEASED] == 2
    again.wait(1.0)
    assert again.core.counts[TaskState.READY] == 2
    assert again.core.ids[started.id].counts == (0, 0, 1)
    assert again.core.ids[not_started.id].counts == (0, 0, 0)
    again.store.close()


def test_gone_ends_the_leases_of_a_worker_that_never_greeted_this_broker(rig: Durable) -> None:
    worker = rig.worker(name="w1")
    (task,) = rig.client().tasks(spec("a"))
    for header in ({"session": worker.id}, {"name": "w1"}):
        again = rig.restart()
        answer = again.peer("supervisor").ask(Verb.GONE, header)
        assert answer.header == {"sessions": 0, "leases": 1}
        assert again.core.ids[task.id].state is TaskState.READY
        again.store.db.execute("UPDATE tasks SET state=2, tok=1, inc=1, attempt=1")
        rig = again
    rig.store.close()


def test_a_result_that_was_recorded_before_the_restart_is_recorded_again(rig: Durable) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"), spec("b", policy={"task": 1}))[:1]
    lease = worker.lease()
    worker.result(lease, 1)
    failed = worker.lease()
    worker.fail(failed)
    again = rig.restart()
    worker.rig = again
    welcome = worker.reconnect(resume=[lease["token"]]).header
    assert welcome["kept"] == welcome["stale"] == []
    assert worker.result(lease, 1).verb is Verb.RECORDED
    assert again.core.stale_results == 0
    assert worker.result(failed, 1).verb is Verb.STALE
    assert again.core.ids[task.id].state is TaskState.DONE
    again.store.close()


def test_tokens_never_repeat_over_restarts(path: Path) -> None:
    seen: set[tuple[int, int]] = set()
    rig = Durable(path)
    for n in range(5):
        worker = rig.worker()
        rig.client().submit(spec(f"{n}a"), spec(f"{n}b"))
        for _ in range(2):
            lease = worker.lease()
            assert tuple(lease["token"]) not in seen
            seen.add(tuple(lease["token"]))
            worker.ask(Verb.RETURN, {"tokens": [lease["token"]]})
        rig = rig.restart()
    rig.store.close()


def test_event_numbers_and_the_chain_of_each_channel_go_on(rig: Durable) -> None:
    rig.brain()
    client = rig.client()
    client.submit(kind="plan", plan={"name": "p"})
    client.submit(spec("a"))
    before = dict(rig.core.channel_seq)
    assert all(before.values())
    again = rig.restart()
    assert again.core.seq == rig.core.seq and again.core.channel_seq == before
    again.client().submit(spec("b"), kind="plan", plan={"name": "q"})
    rows, oldest, more = again.store.events(0, None, 1000)
    assert oldest is None and not more
    assert [e[0] for e in rows] == list(range(1, len(rows) + 1))
    last = {"p": 0, "c": 0, "a": 0}
    for seq, prev, _, channel, *_ in rows:
        assert prev == last[channel]
        last[channel] = seq
    again.store.close()


def test_a_channel_that_was_long_silent_is_found_by_its_mark(path: Path) -> None:
    store = Store(path)
    changes = Changes(events=[[1, 0, WALL, "a", "t", "", "", {}]])
    mark(changes, {"p": 0, "c": 0, "a": 1})
    store.commit(changes, 0, WALL)
    for seq in range(2, 8):
        store.commit(Changes(events=[[seq, seq - 1, WALL, "c", "t", "", "", {}]]), 0, WALL)
    assert store.load(0, WALL)[4:] == (7, {"p": 0, "c": 7, "a": 1})
    store.commit(Changes(events=[[8, 1, WALL, "a", "t", "", "", {}]], trim_events_below=7), 0, WALL)
    assert store.load(0, WALL)[4:] == (8, {"p": 0, "c": 7, "a": 8})
    store.close()


def test_orphans_whose_client_does_not_come_back_end_after_the_grace(rig: Durable) -> None:
    gone, back = rig.client(), rig.client()
    (a,) = gone.tasks(spec("a", orphan="cancel"))
    (b,) = back.tasks(spec("b", orphan="cancel"))
    again = rig.restart()
    back.rig = again
    back.reconnect()
    again.wait(LEASE_S + 6, (back, []))
    assert again.core.ids[a.id].state is TaskState.CANCELLED
    assert again.core.ids[b.id].state is TaskState.READY
    again.store.close()


def test_pause_and_exclusive_tokens_outlive_the_broker_for_who_comes_back(rig: Durable) -> None:
    holder = rig.client()
    rig.worker(name="w1")
    holder.ask(Verb.TOKEN, {"name": "pcie-0", "action": "take"})
    holder.ask(Verb.TOKEN, {"name": "pcie-1", "action": "take"})
    holder.ask(Verb.CONTROL, {"action": "pause", "worker": "w1"})
    again = rig.restart()
    other = again.client()
    assert other.ask(Verb.TOKEN, {"name": "pcie-0", "action": "take"}).header["held"] is False
    again.wait(LEASE_S + 6, (other, []))
    assert other.ask(Verb.TOKEN, {"name": "pcie-0", "action": "take"}).header == {"held": True}
    assert ("pause", "w1") in again.core.facts
    again.store.close()


def test_a_clock_that_was_set_back_holds_nothing_for_ever(rig: Durable) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a", deadline_s=100, policy={"backoff_s": 30}))
    worker.fail(worker.lease())
    again = rig.restart(away_s=-1_000_000)
    loaded = again.core.ids[task.id]
    assert loaded.not_before - again.now <= 75 and loaded.deadline - again.now <= 100
    again.store.close()


# -- retention -----------------------------------------------------------------------------------------------


def test_old_batches_are_forgotten_and_nothing_that_somebody_waits_for(path: Path) -> None:
    rig = Durable(path, retain_tasks=20)
    client, worker = rig.client(), rig.worker(credit=10, slots=10)
    needed = client.tasks(spec("needed"))[0]
    rig.matching = False
    waiting = client.tasks(spec("never", type="other"), spec("waiting", "never", needed.id))[1]
    rig.matching = True
    for n in range(10):
        client.submit(*[spec(f"{n}-{i}") for i in range(5)])
        leases = worker.leases()
        while leases:
            for lease in leases:
                worker.result(lease)
            leases = worker.leases()
    assert needed.state is TaskState.DONE
    rig.wait(5, (worker, []), (client, []))
    ended = len(rig.core.tasks) - rig.core.live
    assert ended <= 20 and rig.core.tasks[needed.no] is needed
    assert (
        len(rig.core.batches) < 12
        and rig.store.db.execute("SELECT count(*) FROM tasks").fetchone()[0] == ended + 2
    )
    rig.check()
    again = rig.restart()
    assert durable(again.core)["tasks"].keys() == durable(rig.core)["tasks"].keys()
    assert again.core.ids[waiting.id].unmet == 1
    again.check()
    again.store.close()


def test_what_was_skipped_for_a_forgotten_task_stays_skipped(path: Path) -> None:
    rig = Durable(path, retain_tasks=2)
    client, worker = rig.client(), rig.worker()
    (bad,) = client.tasks(spec("bad"))
    worker.fail(worker.lease(), "definition")
    (other,) = client.tasks(spec("other"))
    worker.fail(worker.lease(), "definition")
    (skipped, _live) = client.tasks(spec("skipped", bad.id, other.id), spec("live", type="rare"))
    assert skipped.state is TaskState.SKIPPED
    rig.wait(10, (worker, []), (client, []))
    assert bad.id in rig.core.ids  # its dependent is kept, because its batch still lives or is newer
    client.ask(Verb.REQUEUE, {"ids": [other.id]})
    worker.result(worker.lease())
    assert skipped.state is TaskState.SKIPPED
    rig.check()
    rig.store.close()


def test_a_forgotten_dependent_is_not_woken(path: Path) -> None:
    rig = Durable(path, retain_tasks=1)
    client, worker = rig.client(), rig.worker()
    (bad,) = client.tasks(spec("bad"))
    holder = client.tasks(spec("live", type="rare"), spec("waits", "live", [bad.id, "end"]))[1]
    worker.fail(worker.lease(), "definition")
    (skipped,) = client.tasks(spec("skipped", bad.id))
    rig.wait(10, (worker, []), (client, []))
    assert skipped.id not in rig.core.ids and bad.id in rig.core.ids
    assert client.ask(Verb.REQUEUE, {"ids": [bad.id]}).header == {"requeued": 1, "revived": 0}
    assert holder.unmet == 2
    rig.check()
    rig.store.close()


# -- payloads, results, attempts, events ---------------------------------------------------------------------


def test_payloads_results_and_attempts_are_read_back(rig: Durable) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a", meta={"m": [1, 2]}, policy={"backoff_s": 0}))
    worker.fail(worker.lease(), "task")
    worker.result(worker.lease(), {"v": 1}, ref={"sha256": SHA, "bytes": 9})
    assert rig.store.payloads([task.no]) == {task.no: ({"m": [1, 2]}, b"")}
    assert rig.store.details([task.no, 999])[task.no] == ({"m": [1, 2]}, b"\x81\xa1v\x01", SHA, 9)
    (attempt,) = rig.store.attempts(task.no)
    assert (attempt["n"], attempt["class"], attempt["error"]) == (1, "task", "no")
    assert rig.store.payloads([]) == rig.store.details([]) == {} and rig.store.attempts(999) == []


def test_events_are_read_page_by_page_and_by_channel(path: Path) -> None:
    store = Store(path)
    seq = 0
    for commit in range(5):
        events = []
        for _ in range(commit + 1):
            seq += 1
            events.append([seq, seq - 1, WALL, "pca"[seq % 3], "t", "", "", {}])
        store.commit(Changes(events=events), 0, WALL)
    assert [e[0] for e in store.events(0, None, 100)[0]] == list(range(1, 16))
    for since in range(16):
        assert [e[0] for e in store.events(since, None, 100)[0]] == list(range(since + 1, 16))
    page, oldest, more = store.events(4, None, 3)
    assert ([e[0] for e in page], oldest, more) == ([5, 6, 7], None, True)
    assert [e[0] for e in store.events(0, "p", 100)[0]] == [3, 6, 9, 12, 15]
    assert store.events(15, None, 100) == ([], None, False) == store.events(99, None, 100)
    store.commit(Changes(trim_events_below=7), 0, WALL)
    assert store.oldest_event() == 7
    assert store.events(5, None, 100) == ([], 7, False)
    assert [e[0] for e in store.events(6, None, 100)[0]] == list(range(7, 16))
    store.close()


def test_an_empty_log_has_nothing_and_lacks_nothing(path: Path) -> None:
    store = Store(path)
    assert store.events(0, None, 10) == ([], None, False) and store.oldest_event() == 0
    store.close()


def test_facts_are_written_over_and_deleted(path: Path) -> None:
    store = Store(path)
    store.commit(
        Changes(facts={("s", "a"): Fact(1, 0, {"x": [None, 1.5, b"b"]}), ("s", "b"): Fact(1, 0, 1)}), 0, WALL
    )
    store.commit(Changes(facts={("s", "b"): None, ("s", "a"): Fact(2, 3, "new")}), 0, WALL)
    assert store.load(0, WALL)[3] == {("s", "a"): Fact(2, 3, "new")}
    store.close()


# -- commits that fail ---------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_half_and_says_so(rig: Durable) -> None:
    client = rig.client()
    client.submit(spec("before"), key="before")
    before = durable(rig.core)
    pages = rig.store.db.execute("PRAGMA page_count").fetchone()[0]
    rig.store.db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match=r"full.*nothing of this round was recorded"):
        client.submit(*[spec(f"big{i}") for i in range(300)], payloads=[b"x" * 10_000] * 300, key="after")
    again = rig.restart()
    assert durable(again.core)["tasks"] == before["tasks"] and set(again.core.batch_keys) == {"before"}
    assert again.client().submit(spec("a"), key="after").verb is Verb.ACCEPTED
    again.store.close()


def test_an_impossible_row_is_refused_with_its_whole_round(rig: Durable) -> None:
    client = rig.client()
    tasks = client.tasks(spec("a"), spec("b"))
    tasks[0].state = TaskState.DONE  # a bug of the core: it has no end
    with pytest.raises(StoreError, match="CHECK"):
        rig.store.commit(Changes(tasks={t.no: t for t in tasks}, meta={"epoch": 7}), rig.now, rig.wall)
    assert rig.store.meta("epoch") is None and not rig.store.db.in_transaction


def test_a_number_that_the_database_cannot_hold_is_an_error_of_the_store(path: Path) -> None:
    store = Store(path)
    with pytest.raises(StoreError):
        store.commit(Changes(meta={"n": 2**70}), 0, WALL)
    store.commit(Changes(meta={"n": 5}), 0, WALL)
    assert store.meta("n") == 5
    store.close()


# -- judgements ----------------------------------------------------------------------------------------------


def reviewed(rig: Durable) -> tuple[Peer, Peer, Any]:
    """A brain, a worker and a task in review."""
    brain, worker = rig.brain(), rig.worker()
    (task,) = rig.client().tasks(spec("a", review=True, policy={"backoff_s": 0}))
    worker.result(worker.lease(), "first")
    return brain, worker, task


def say_verdict(brain: Peer, task: Any, word: str, **more: Any) -> None:
    verdict = {"id": task.id, "verdict": word, "note": f"a note on {word}", **more}
    brain.say(Verb.BRAIN, {"epoch": brain.rig.core.epoch, "verdicts": [verdict]})


def test_a_judgement_is_there_after_a_restart_and_reaches_the_next_attempt_and_whoever_asks(
    path: Path,
) -> None:
    rig = Durable(path)
    brain, worker, task = reviewed(rig)
    worker.offer(credit=0)  # the next attempt is another worker's
    say_verdict(brain, task, "reject", evaluation={"score": 2}, sample={"prompt": "p", "response": "first"})
    rig = rig.restart()
    completer = Completer(rig.store, path.parent)
    lease = Send(b"", Verb.LEASE, {"leases": [{"attempt": 2, "feedback": ""}]}, payload_of=[task.no])
    completer.complete(lease)
    assert lease.header["leases"][0]["feedback"] == "a note on reject"

    brain, worker = rig.brain(), rig.worker()
    worker.result(worker.lease(), "second")
    say_verdict(brain, rig.core.ids[task.id], "accept", evaluation={"score": 5})
    answer = brain.ask(Verb.QUERY, {"what": "task", "id": task.id})
    completer.complete(answer)
    (row,) = answer.header["rows"]
    assert (row["state"], row["evaluation"]["score"], row["evaluation"]["attempt"]) == ("done", 5, 2)
    assert [(a["n"], a["class"], a["error"]) for a in answer.header["attempts"]] == [
        (1, "task", "a note on reject")
    ]
    for history, wanted in ((True, ["a note on reject"]), (False, None)):
        answer = brain.ask(Verb.QUERY, {"what": "rows", "ids": [task.id], "history": history})
        completer.complete(answer)
        (row,) = answer.header["rows"]
        earlier = row.get("earlier")
        assert (earlier and [attempt["error"] for attempt in earlier]) == wanted
        assert "_history" not in answer.header
    answer = brain.ask(Verb.QUERY, {"what": "evaluations", "id": task.id})
    completer.complete(answer)
    said = answer.header["evaluations"]
    assert [(e["attempt"], e["verdict"], e["sample"]) for e in said] == [
        (1, "reject", {"prompt": "p", "response": "first"}),
        (2, "accept", {}),
    ]
    rig.store.close()


def test_the_first_attempt_at_a_reviewed_task_has_empty_feedback_and_others_have_none(path: Path) -> None:
    rig = Durable(path)
    worker = rig.worker(credit=2, slots=2)
    rig.client().tasks(spec("a", review=True), spec("b"))
    leases = worker.leases()
    assert [lease.get("feedback") for lease in leases] == ["", None]
    rig.store.close()


def test_a_purged_task_leaves_no_judgement_behind(path: Path) -> None:
    rig = Durable(path, retain_tasks=0)
    brain, _, task = reviewed(rig)
    say_verdict(brain, task, "accept")
    count = "SELECT count(*) FROM evaluations"
    assert rig.store.db.execute(count).fetchone() == (1,)
    rig.wait(3.0)
    assert task.id not in rig.core.ids
    assert rig.store.db.execute(count).fetchone() == (0,)
    rig.store.close()


def test_a_judge_is_bound_to_what_it_judges_after_a_restart_too(path: Path) -> None:
    rig = Durable(path)
    brain, _, task = reviewed(rig)
    judge = {"key": "a:judge.1", "type": "generate", "judges": "a"}
    header = {"epoch": rig.core.epoch, "batch": task.batch.id, "tasks": [judge]}
    assert brain.ask(Verb.BRAIN, header, [b"\x80"]).verb is Verb.OK
    rig = rig.restart()
    task = rig.core.ids[task.id]
    (bound,) = rig.core.judges_of(task)
    assert (bound.key, bound.policy.aside, task.batch.total) == ("a:judge.1", True, 1)
    rig.check()
    say_verdict(rig.brain(), task, "accept")
    assert (task.state, bound.state) == (TaskState.DONE, TaskState.CANCELLED)
    rig.check()
    rig.store.close()


# -- databases that cannot be used ---------------------------------------------------------------------------


def test_a_database_of_version_1_becomes_one_of_today_with_all_that_it_held(path: Path) -> None:
    rig = Durable(path)
    (task,) = rig.client().tasks(spec("a"))
    today = _schema(rig.store.db)
    rig.store.db.executescript(
        "DROP TABLE evaluations; ALTER TABLE events DROP COLUMN tail; DELETE FROM meta WHERE key='tail';"
        "ALTER TABLE batches DROP COLUMN revisions; ALTER TABLE tasks DROP COLUMN revised;"
        "PRAGMA user_version=1;"
    )
    rig.store.close()
    for suffix in (".tail", ".sums"):  # they came with version 3
        path.with_suffix(suffix).unlink()
    again = rig.restart()
    assert _schema(again.store.db) == today
    assert again.core.ids[task.id].state is TaskState.READY
    assert again.store.db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    again.store.close()


def test_a_row_of_version_3_is_made_whole_by_a_repair() -> None:
    assert whole_row("batches", (0,) * 15) == (*(0,) * 15, None)
    assert whole_row("tasks", (0,) * 30) == (*(0,) * 30, 0)
    assert whole_row("tasks", (1,) * 31) == (1,) * 31 and whole_row("facts", (1, 2)) == (1, 2)


def _schema(db: sqlite3.Connection) -> list[tuple[str, str]]:
    rows = db.execute("SELECT name, sql FROM sqlite_master WHERE type='table' ORDER BY name").fetchall()
    return [(name, " ".join(sql.split()).replace(" )", ")")) for name, sql in rows]


def test_a_newer_schema_is_refused_and_left_as_it_is(path: Path) -> None:
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"newer rigbus .schema {SCHEMA_VERSION + 1}"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, 1, 99])
def test_another_programs_database_is_refused_and_left_as_it_is(path: Path, version: int) -> None:
    db = sqlite3.connect(path)
    db.executescript(
        f"CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1); PRAGMA user_version={version};"
    )
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="no rigbus database"):
        Store(path)
    assert path.read_bytes() == before and sorted(p.name for p in path.parent.iterdir()) == [path.name]


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough" * 40, b"SQLite format 3\0" + b"\xff" * 500]
)
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"move the state folder aside|no rigbus database"):
        Store(path)
    assert path.read_bytes() == content


def test_a_row_that_cannot_be_read_is_a_named_error(rig: Durable) -> None:
    rig.client().submit(spec("a"))
    for sql in ("UPDATE tasks SET spec=x'c1'", "UPDATE tasks SET spec=x'93c0c0c0'", "DELETE FROM batches"):
        rig.store.db.execute(sql)
        with pytest.raises(StoreError, match="damaged"):
            rig.store.load(0.0, WALL)


def test_a_folder_that_is_not_there_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        Store(tmp_path / "nowhere" / "rig.db")
    with pytest.raises(StoreError):
        Store(tmp_path)


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    store = Store(path)
    assert store.next_incarnation() == 1 and store.meta("incarnation") == 1
    store.close()


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_the_incarnation_grows_with_each_start(path: Path, durability: str) -> None:
    for n in (1, 2, 3):
        store = Store(path, durability=durability)
        assert store.next_incarnation() == n
        level = store.db.execute("PRAGMA synchronous").fetchone()[0]
        assert level == (2 if durability == "full" else 1)
        store.close()


def test_the_write_ahead_log_has_its_length_from_the_start_and_its_zeros_are_no_rows(
    path: Path, tmp_path: Path
) -> None:
    rig = Durable(path)
    wal = path.with_name(f"{path.name}-wal")
    size = wal.stat().st_size
    assert size > 16_000_000
    rig.client().submit(spec("a"), spec("b"))
    assert wal.stat().st_size == size, "a commit overwrites, it adds nothing"
    # as after a power loss: what is on disk at this moment, opened by another broker
    for file in (path, wal, path.with_suffix(".tail")):
        shutil.copy(file, tmp_path / f"copy-{file.name}")
    copy = Store(tmp_path / f"copy-{path.name}")
    assert [task.key for task in copy.load(0.0, WALL)[1]] == ["a", "b"]
    assert copy.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.close()


@pytest.mark.parametrize("trouble", ["little room", "no room"])
def test_a_disk_with_little_room_keeps_it_for_the_tasks(
    path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    real = os.fstatvfs

    def little(fd: int) -> os.statvfs_result:
        return os.statvfs_result((*real(fd)[:2], *[0] * 3, *real(fd)[5:]))

    def full(fd: int, data: bytes, at: int) -> int:
        if at > 4_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, at)

    write = os.pwrite
    if trouble == "little room":
        monkeypatch.setattr(os, "fstatvfs", little)
    else:
        monkeypatch.setattr(os, "pwrite", full)
    rig = Durable(path)
    assert path.with_name(f"{path.name}-wal").stat().st_size < 1_000_000
    rig.client().submit(spec("a"))
    assert [task.key for task in rig.restart().core.tasks.values()] == ["a"]


def test_the_state_id_is_made_once(tmp_path: Path) -> None:
    first = state_id(tmp_path)
    assert len(first) == 32 and state_id(tmp_path) == first
    assert [p.name for p in tmp_path.iterdir()] == ["id"]
