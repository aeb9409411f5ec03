"""Leases: fencing tokens, renewal, loss, stale results, hand-back."""

from __future__ import annotations

import math

import pytest
from harness import Harness, error_of, spec

from rigbus.bus.states import TaskState
from rigbus.bus.wire import LEASE_S, MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES, SUSPECT_S, Verb, pack

SHA = "ab" * 32


@pytest.fixture
def rig() -> Harness:
    return Harness()


def test_a_ready_task_is_leased_with_what_its_worker_needs_to_know(rig: Harness) -> None:
    worker = rig.worker()
    client = rig.client()
    (task,) = client.tasks(spec("a", timeout_s=30, no_progress_s=5, deadline_s=100, priority=7), key="b")
    lease = worker.lease()
    assert lease == {
        "token": [1, 1],
        "id": task.id,
        "batch": task.batch.id,
        "key": "a",
        "type": "noop",
        "class": None,
        "attempt": 1,
        "priority": 7,
        "timeout_s": 30,
        "no_progress_s": 5,
        "deadline_s": 100,
    }
    assert task.state is TaskState.LEASED and task.attempt == 1
    rig.check()


def test_the_lease_and_its_attempt_are_in_the_commit_before_they_are_sent(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    changes = rig.changes[-1]
    assert worker.leases() and changes.new_tasks[task.no][0].token_seq == 1


def test_a_result_is_recorded_once_and_a_repeat_is_recorded_again(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a"))
    lease = worker.lease()
    assert worker.result(lease, 7).verb is Verb.RECORDED
    (ended,) = client.take(Verb.ENDED)
    assert ended["ok"] and ended["id"] == task.id and ended["attempts"] == 1
    again = worker.result(lease, 8)
    assert again.verb is Verb.RECORDED and again.header == {"tokens": [lease["token"]]}
    assert not client.take(Verb.ENDED) and not rig.changes[-1].results
    rig.check()


def test_one_message_carries_results_of_every_kind(rig: Harness) -> None:
    worker, client = rig.worker(credit=4, slots=4), rig.client()
    tasks = client.tasks(spec("a"), spec("b"), spec("c", policy={"task": 1}))
    a, b, c = worker.leases()
    results = [
        {"token": a["token"], "ok": True, "duration_s": 0.1},
        {"token": [1, 999], "ok": True, "duration_s": 0.1},
        {"token": c["token"], "ok": False, "class": "task", "error": "no", "duration_s": 0.1},
        {"token": a["token"], "ok": True, "duration_s": 0.1},
    ]
    recorded = worker.ask(Verb.RESULT, {"results": results}, [pack(1), pack(2), pack(3), pack(4)])
    assert recorded.header["tokens"] == [a["token"], c["token"], a["token"]]
    (stale,) = worker.take(Verb.STALE)
    assert stale["tokens"] == [[1, 999]]
    assert rig.states(tasks) == ["DONE", "LEASED", "DEAD"]
    assert b["id"] == tasks[1].id
    rig.check()


def test_a_lease_that_is_renewed_lives_and_one_that_is_not_is_lost(rig: Harness) -> None:
    worker = rig.worker(credit=2, slots=2)
    kept, lost = rig.client().tasks(spec("kept"), spec("lost"))
    first, second = worker.leases()
    rig.matching = False
    rig.wait(LEASE_S + 1.0, (worker, [first]))
    assert kept.state is TaskState.LEASED and lost.state is TaskState.READY
    assert lost.counts == (0, 0, 1) and "silent for 5 s" in str(lost.error)
    assert worker.renew(first, second) == {"cancel": [], "stale": [second["token"]]}
    rig.check()


def test_a_lease_of_before_a_restart_is_not_taken_for_one_of_the_same_sequence_after_it(rig: Harness) -> None:
    worker = rig.worker(credit=2, slots=2)
    client = rig.client()
    client.tasks(spec("before"))
    before = worker.lease()
    rig.core.incarnation, rig.core.token_seq = 2, 0  # as after a restart, with what the worker still runs
    (after,) = client.tasks(spec("after"))
    assert worker.lease()["token"] == [2, 1] and before["token"] == [1, 1]
    assert worker.result(before).verb is Verb.RECORDED
    rig.matching = False
    rig.wait(LEASE_S + 1.0)
    assert after.state is TaskState.READY, "its worker is silent, and nobody looks after its lease"
    rig.check()


def test_a_worker_that_hears_nothing_keeps_its_leases_by_no_number_of_hellos(rig: Harness) -> None:
    """The way to the broker is open, the way back is not: it says HELLO again and again, and RENEW never."""
    client, worker = rig.client(), rig.worker(credit=5, slots=5)
    task = client.tasks(spec("a"))[0]
    lease = worker.lease()
    worker.started(lease)
    for _ in range(4):
        rig.wait(3.0, (client, []))
        worker.reconnect(resume=[lease["token"]])
    assert rig.states([task]) == ["READY"]
    assert worker.leases() == [], "nor is it given new ones"
    worker.renew()
    worker.offer(credit=5, slots=5)
    rig.wait(3.0, (client, []), (worker, []))
    assert worker.leases(), "until it hears again"


def test_a_silent_worker_loses_its_lease_and_its_late_result_is_stale(rig: Harness) -> None:
    silent = rig.worker(name="silent")
    (task,) = rig.client().tasks(spec("a"))
    old = silent.lease()
    busy = rig.worker(name="busy")
    rig.wait(LEASE_S + 0.5, (busy, []))
    new = busy.lease()
    assert new["token"] > old["token"] and new["attempt"] == 2
    answer = silent.result(old, "late")
    assert answer.verb is Verb.STALE and answer.header == {"tokens": [old["token"]]}
    assert not rig.changes[-1].results and "worker.silent.stale" in rig.topics()
    assert busy.result(new, "right").verb is Verb.RECORDED
    assert task.state is TaskState.DONE and task.worker == "busy"
    assert silent.result(old, "later still").verb is Verb.STALE
    rig.check()


def test_a_result_of_another_workers_lease_is_stale(rig: Harness) -> None:
    holder, thief = rig.worker(), rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = (holder.leases() + thief.leases())[0]
    owner = holder if task.worker == holder.name else thief
    other = thief if owner is holder else holder
    assert other.result(lease).verb is Verb.STALE
    assert task.state is TaskState.LEASED
    assert owner.result(lease).verb is Verb.RECORDED


def test_only_renew_renews_leases_but_any_message_renews_the_session(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    rig.matching = False
    for _ in range(6):
        rig.wait(1.0)
        worker.say(Verb.PROGRESS, {"token": lease["token"], "n": 0})
    assert task.state is TaskState.READY
    assert worker.id in rig.core.sessions


def test_a_worker_that_was_silent_gets_no_new_leases_until_it_renews(rig: Harness) -> None:
    worker = rig.worker(credit=2, slots=2)
    rig.wait(SUSPECT_S + 1.0)
    (task,) = rig.client().tasks(spec("a"))
    assert task.state is TaskState.READY
    rig.core.heartbeat(worker.name, {"pid": 1}, rig.now)  # telemetry alone is no word on the DEALER
    rig.settle()
    assert task.state is TaskState.READY
    worker.renew()
    assert task.state is TaskState.LEASED


def test_an_idle_worker_that_stays_silent_is_forgotten(rig: Harness) -> None:
    worker = rig.worker(name="w9")
    rig.wait(2 * LEASE_S + 2)
    assert worker.id not in rig.core.sessions and "worker.w9.left" in rig.topics()
    assert error_of(worker.ask(Verb.RENEW)) == "no_session"


def test_a_task_that_was_only_prefetched_does_not_pay_for_a_lost_worker(rig: Harness) -> None:
    poison, *behind = rig.client().tasks(spec("poison"), spec("behind-1"), spec("behind-2"))
    supervisor = rig.peer("supervisor")
    worker = rig.worker(credit=3, slots=1)
    assert len(worker.leases()) == 3
    assert supervisor.ask(Verb.GONE, {"session": worker.id}).header == {"sessions": 1, "leases": 3}
    assert poison.counts == (0, 0, 1)
    assert [t.counts for t in behind] == [(0, 0, 0)] * 2
    assert rig.states([poison, *behind]) == ["READY"] * 3
    rig.check()


def test_a_prefetched_task_that_had_started_pays(rig: Harness) -> None:
    worker = rig.worker(credit=2, slots=1)
    first, second = rig.client().tasks(spec("a"), spec("b"))
    leases = worker.leases()
    worker.started(leases[1])
    rig.peer("supervisor").ask(Verb.GONE, {"session": worker.id})
    assert (first.counts, second.counts) == ((0, 0, 1), (0, 0, 1))


def test_a_returned_lease_counts_no_attempt_of_any_class(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    answer = worker.ask(Verb.RETURN, {"tokens": [lease["token"]], "reason": "share away", "not_before_s": 30})
    assert answer.verb is Verb.RECORDED
    assert task.counts == (0, 0, 0) and task.state is TaskState.READY and task.hold_reason == "share away"
    rig.wait(29, (worker, []))
    assert not worker.leases()
    rig.wait(2, (worker, []))
    assert worker.lease()["id"] == task.id
    rig.check()


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), -1, "soon", True, 1e300])
def test_a_senseless_delay_of_a_return_never_reaches_the_clock(rig: Harness, delay: object) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    rig.matching = False
    worker.ask(Verb.RETURN, {"tokens": [lease["token"]], "not_before_s": delay})
    assert task.not_before <= rig.now + 3600
    assert not any(math.isnan(at) for at, *_ in rig.core.timers)
    rig.check()


def test_the_same_token_twice_in_one_message_is_one(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    rig.matching = False
    answer = worker.ask(Verb.RETURN, {"tokens": [lease["token"], lease["token"]]})
    assert answer.header == {"tokens": [lease["token"]]}
    assert task.state is TaskState.READY
    assert worker.ask(Verb.RETURN, {"tokens": [lease["token"]]}).verb is Verb.STALE
    rig.check()


def test_a_lease_that_did_not_reach_its_worker_is_handed_back(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    session = rig.core.sessions[worker.id]
    rig.core.disconnected(session, [task.token])
    rig.settle()
    assert task.state is TaskState.READY and task.counts == (0, 0, 0)
    assert task.worker is not None and not session.leases
    rig.check()


def test_tokens_grow_and_never_repeat(rig: Harness) -> None:
    worker = rig.worker(credit=5, slots=5)
    client = rig.client()
    seen: list[list[int]] = []
    for n in range(20):
        client.submit(*[spec(f"{n}-{i}") for i in range(5)])
        for lease in worker.leases():
            seen.append(lease["token"])
            worker.ask(Verb.RETURN, {"tokens": [lease["token"]]}) if n % 3 else worker.result(lease)
    assert len({tuple(t) for t in seen}) == len(seen) and seen == sorted(seen)


def test_one_timer_looks_after_a_worker_however_often_it_is_idle(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    for n in range(50):
        client.submit(spec(f"t{n}"))
        worker.result(worker.lease())
    assert sum(kind == "lease" for _, _, kind, _ in rig.core.timers) == 1


def test_a_result_too_large_inline_is_a_definition_failure(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a"))
    lease = worker.lease()
    header = {"results": [{"token": lease["token"], "ok": True, "duration_s": 0.0}]}
    assert worker.ask(Verb.RESULT, header, [b"x" * (MAX_PAYLOAD_BYTES + 1)]).verb is Verb.RECORDED
    assert task.state is TaskState.DEAD and "by reference" in str(task.error)


def test_a_result_by_reference_is_kept_as_such(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a"))
    worker.result(worker.lease(), ref={"sha256": SHA, "bytes": 300_000})
    assert rig.changes[-1].refs == {task.no: (SHA, 300_000)}
    assert client.take(Verb.ENDED)[0]["ref"] == {"sha256": SHA, "bytes": 300_000}


@pytest.mark.parametrize(
    "ref",
    [
        "text",
        {},
        {"sha256": SHA},
        {"sha256": "../../etc/passwd", "bytes": 1},
        {"sha256": SHA.upper(), "bytes": 1},
        {"sha256": SHA, "bytes": -1},
        {"sha256": SHA, "bytes": 2**64 - 1},
        {"sha256": SHA, "bytes": MAX_RESULT_BYTES + 1},
        {"sha256": SHA, "bytes": "10"},
    ],
)
def test_a_reference_that_is_none_ends_the_task_and_leaves_no_half_lease(rig: Harness, ref: object) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    assert worker.result(worker.lease(), ref=ref).verb is Verb.RECORDED
    assert task.state is TaskState.DEAD and "reference" in str(task.error)
    assert not rig.changes[-1].refs
    rig.check()


@pytest.mark.parametrize(
    "results",
    [
        5,
        "x",
        {"token": [1, 1]},
        [5],
        [{}],
        [{"token": 5}],
        [{"token": [1]}],
        [{"token": [1, "1"]}],
        [{"token": [[1], 1]}],
        [{"ok": True}],
    ],
)
def test_a_result_that_breaks_the_protocol_applies_nothing_of_its_message(
    rig: Harness, results: object
) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    good = {"token": lease["token"], "ok": True, "duration_s": 0.0}
    whole = [good, *results] if isinstance(results, list) else results
    assert error_of(worker.ask(Verb.RESULT, {"results": whole}, [pack(1)])) == "bad_frame"
    assert task.state is TaskState.LEASED
    assert worker.result(lease).verb is Verb.RECORDED
    rig.check()


def test_started_is_told_once(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    worker.started(lease)
    worker.started(lease)
    assert rig.topics().count("task.noop.started") == 1 and task.started_at == rig.wall
    assert task.row()["started"]


def test_progress_goes_to_who_waits_and_is_not_durable(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a"))
    lease = worker.lease()
    before = rig.core.seq
    worker.say(Verb.PROGRESS, {"token": lease["token"], "n": 3, "pct": 0.5, "odd": 1}, [b"chunk"])
    (send,) = [s for s in client.inbox if s.verb is Verb.PROGRESS]
    assert send.header == {"n": 3, "pct": 0.5, "id": task.id, "attempt": 1} and send.body == [b"chunk"]
    assert rig.core.seq == before and not rig.changes[-1]
    worker.say(Verb.PROGRESS, {"token": [9, 9], "n": 0})
    assert len([s for s in client.inbox if s.verb is Verb.PROGRESS]) == 1


def test_work_is_for_workers_only(rig: Harness) -> None:
    client = rig.client()
    for verb in (Verb.OFFER, Verb.STARTED, Verb.RESULT, Verb.RETURN, Verb.PROGRESS):
        assert error_of(client.ask(verb, {"token": [1, 1]})) == "refused"
    assert rig.core.sessions[client.id].credit == 0
