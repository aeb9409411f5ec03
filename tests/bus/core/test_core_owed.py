"""Results that outlive their worker's process: who may present them, and what the fence refuses."""

from __future__ import annotations

import pytest
from harness import Harness, Peer, error_of, spec, value_of

from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Send, Task
from rigbus.bus.states import TaskState
from rigbus.bus.wire import LEASE_S, Verb, pack


@pytest.fixture
def rig() -> Harness:
    return Harness()


def present(
    sender: Peer, session: str, lease: dict[str, object], value: object = "kept", **more: object
) -> Send:
    row = {"token": lease["token"], "ok": True, "duration_s": 0.1, **more}
    return sender.ask(Verb.RESULT, {"session": session, "results": [row]}, [pack(value)])


def running(rig: Harness) -> tuple[Peer, Task, dict[str, object]]:
    """A worker ``w1`` with one lease, its task and the lease."""
    worker = rig.worker(name="w1")
    (task,) = rig.client().tasks(spec("a"))
    return worker, task, worker.lease()


def after_restart(rig: Harness, *tasks: Task) -> Harness:
    """The broker was killed; its store had these tasks of one batch."""
    core = Core(incarnation=2, state_id="5" * 32)
    batch = tasks[0].batch
    batch.counts, batch.total, batch.keys = [0] * len(TaskState), 0, {}
    core.load([batch], list(tasks), {}, {}, rig.now, rig.wall)
    again = Harness(core, now=rig.now, wall=rig.wall)
    again.numbers = rig.numbers  # its peers are others than those of the former life
    return again


# ---------------------------------------------------------------- the supervisor


def test_a_supervisor_presents_before_gone_and_nothing_runs_again(rig: Harness) -> None:
    worker, task, lease = running(rig)
    supervisor = rig.peer("supervisor")
    assert present(supervisor, worker.id, lease).verb is Verb.RECORDED
    assert task.state is TaskState.DONE and task.attempt == 1
    assert value_of(rig.changes[-1].results[task.no]) == "kept"
    assert supervisor.ask(Verb.GONE, {"session": worker.id}).header == {"sessions": 1, "leases": 0}
    rig.check()


def test_after_the_brokers_restart_too(rig: Harness) -> None:
    worker, task, lease = running(rig)
    again = after_restart(rig, task)
    supervisor = again.peer("supervisor")
    assert present(supervisor, worker.id, lease).verb is Verb.RECORDED
    assert supervisor.ask(Verb.GONE, {"session": worker.id}).header == {"sessions": 0, "leases": 0}
    assert task.state is TaskState.DONE
    again.check()


def test_after_gone_it_comes_too_late(rig: Harness) -> None:
    worker, task, lease = running(rig)
    supervisor = rig.peer("supervisor")
    supervisor.ask(Verb.GONE, {"session": worker.id})
    assert present(supervisor, worker.id, lease).verb is Verb.STALE
    assert task.state is TaskState.READY


def test_the_fence_wants_the_session_beside_the_token(rig: Harness) -> None:
    _, task, lease = running(rig)
    supervisor = rig.peer("supervisor")
    assert present(supervisor, "f" * 32, lease).verb is Verb.STALE
    assert present(supervisor, supervisor.id, lease).verb is Verb.STALE
    assert task.state is TaskState.LEASED
    rig.check()


@pytest.mark.parametrize("role", ["client", "brain", "bridge"])
def test_other_roles_have_no_results(rig: Harness, role: str) -> None:
    worker, task, lease = running(rig)
    assert error_of(present(rig.peer(role), worker.id, lease)) == "refused"
    assert task.state is TaskState.LEASED


# ---------------------------------------------------------------- the next process of the name


def test_a_successor_that_owes_the_result_keeps_the_lease_of_the_one_it_supersedes(rig: Harness) -> None:
    dead, task, lease = running(rig)
    heir = rig.peer("worker", "w1", owes={dead.id: [lease["token"]]})
    assert dead.id not in rig.core.sessions
    assert task.state is TaskState.LEASED and task.counts == (0, 0, 0)
    rig.check()
    assert present(heir, dead.id, lease).verb is Verb.RECORDED
    assert task.state is TaskState.DONE and task.attempt == 1
    rig.check()


def test_without_owing_it_the_lease_ends_as_ever(rig: Harness) -> None:
    _, task, _ = running(rig)
    rig.matching = False
    rig.peer("worker", "w1")
    assert task.state is TaskState.READY and task.counts == (0, 0, 1)


def test_what_is_owed_and_never_comes_is_lost_after_a_leases_time(rig: Harness) -> None:
    dead, task, lease = running(rig)
    rig.matching = False
    heir = rig.peer("worker", "w1", owes={dead.id: [lease["token"]]})
    rig.wait(LEASE_S - 0.1, (heir, []))
    assert task.state is TaskState.LEASED
    rig.wait(0.2, (heir, []))
    assert task.state is TaskState.READY and task.counts == (0, 0, 1)
    assert "has not sent the result" in str(task.error)
    rig.check()


def test_the_name_must_be_the_one_that_had_the_lease(rig: Harness) -> None:
    dead, task, lease = running(rig)
    other = rig.peer("worker", "w2", owes={dead.id: [lease["token"]]})
    assert dead.leases() == [] and rig.core.sessions[dead.id].leases
    assert present(other, dead.id, lease).verb is Verb.STALE
    assert task.state is TaskState.LEASED
    rig.check()


def test_after_a_restart_the_successor_has_a_leases_time_from_its_hello(rig: Harness) -> None:
    dead, task, lease = running(rig)
    again = after_restart(rig, task)
    again.matching = False
    again.wait(LEASE_S + 4.5)
    heir = again.peer("worker", "w1", owes={dead.id: [lease["token"]]})
    again.wait(LEASE_S - 0.5, (heir, []))
    assert present(heir, dead.id, lease).verb is Verb.RECORDED
    assert task.state is TaskState.DONE


def test_what_is_owed_outlives_the_other_leases_of_its_session_after_a_restart(rig: Harness) -> None:
    dead = rig.worker(name="w1", credit=2, slots=1)
    done, prefetched = rig.client().tasks(spec("a"), spec("b"))
    lease, _ = dead.leases()
    again = after_restart(rig, done, prefetched)
    again.matching = False
    again.wait(LEASE_S + 4.5)
    heir = again.peer("worker", "w1", owes={dead.id: [lease["token"]]})
    again.wait(1.0, (heir, []))
    assert prefetched.state is TaskState.READY, "nobody owes that one"
    assert done.state is TaskState.LEASED
    assert present(heir, dead.id, lease).verb is Verb.RECORDED
    assert done.state is TaskState.DONE and done.attempt == 1
    again.check()


@pytest.mark.parametrize("owes", [[], "x", {"s": 3}, {"s": [[1]]}, {"s": {"a": 1}}, 7])
def test_a_senseless_owes_changes_nothing(rig: Harness, owes: object) -> None:
    worker, task, _ = running(rig)
    header = {"proto": [1, 0], "role": "worker", "session": "e" * 32, "name": "w1", "owes": owes}
    assert error_of(rig.client().ask(Verb.HELLO, header)) == "bad_frame"
    assert worker.id in rig.core.sessions and task.state is TaskState.LEASED
    rig.check()


def test_a_cancel_meanwhile_ends_it_with_the_result_that_came_first(rig: Harness) -> None:
    dead, task, lease = running(rig)
    heir = rig.peer("worker", "w1", owes={dead.id: [lease["token"]]})
    rig.client().ask(Verb.CANCEL, {"ids": [task.id]})
    assert present(heir, dead.id, lease).verb is Verb.RECORDED
    assert task.state is TaskState.DONE, "it had ended before the cancel"
    rig.check()


def test_leases_of_two_incarnations_with_one_number_are_two(rig: Harness) -> None:
    worker, old, lease = running(rig)
    again = after_restart(rig, old)
    again.peer("worker", "w0")
    both = Peer.__new__(Peer)
    both.rig, both.role, both.name, both.id, both.address = again, "worker", "w1", worker.id, b"again"
    both.hello(resume=[lease["token"]])
    both.offer(2, 2)
    (new,) = again.client().tasks(spec("b"))
    second = both.lease()
    assert (lease["token"][1], second["token"][1]) == (1, 1)  # type: ignore[index]
    assert len(again.core.sessions[worker.id].leases) == 2
    again.check()
    both.result(second)
    assert both.renew(lease) == {"cancel": [], "stale": []}, (
        "the older lease was forgotten with the newer one"
    )
    assert new.state is TaskState.DONE
    again.check()


# ---------------------------------------------------------------- one token, two contents


def alarms(rig: Harness) -> list[dict[str, object]]:
    return [e[7] for e in rig.events if e[4].endswith(".nondeterministic")]


def test_the_same_result_again_is_recorded_without_a_word(rig: Harness) -> None:
    worker, _, lease = running(rig)
    worker.result(lease, {"n": 1})
    assert worker.result(lease, {"n": 1}, duration_s=9.0).verb is Verb.RECORDED
    assert alarms(rig) == []


@pytest.mark.parametrize("second", [{"value": 2}, {"ok": False, "error": "no"}])
def test_another_content_under_the_same_token_leaves_the_first_and_is_told_once(
    rig: Harness, second: dict[str, object]
) -> None:
    worker, task, lease = running(rig)
    worker.result(lease, 1)
    for _ in range(2):
        assert worker.result(lease, **second).verb is Verb.RECORDED  # type: ignore[arg-type]
    (alarm,) = alarms(rig)
    assert (alarm["token"], alarm["task"]) == (lease["token"], task.id)
    assert task.state is TaskState.DONE
    assert [value_of(c.results[task.no]) for c in rig.changes if c.results] == [1]
    rig.check()


def test_after_a_restart_nobody_knows_what_the_first_was(rig: Harness) -> None:
    worker, task, lease = running(rig)
    worker.result(lease, 1)
    again = after_restart(rig, task)
    assert again.worker(name="w1").result(lease, 2).verb is Verb.RECORDED
    assert alarms(again) == []


# ---------------------------------------------------------------- what cannot be killed

HANGS = "pid 4711 (cat /mnt/x, state D) cannot be killed"


def test_a_worker_names_what_it_cannot_kill_and_an_event_tells_of_each_change(rig: Harness) -> None:
    worker = rig.worker(name="w1", credit=2, slots=2)
    worker.offer(1, 1, unkillable=[HANGS])
    row = rig.client().ask(Verb.QUERY, {"what": "workers"}).header["workers"][0]
    assert row["unkillable"] == [HANGS]
    why = rig.client().ask(Verb.QUERY, {"what": "why", "id": "w1"}).header
    assert any(HANGS in reason for reason in why["reasons"])
    worker.offer(1, 1, unkillable=[HANGS])
    worker.offer(2, 2)
    told = [e[7]["processes"] for e in rig.events if e[4] == "worker.w1.unkillable"]
    assert told == [[HANGS], []]


def test_a_task_that_only_such_a_worker_could_run_says_what_is_in_the_way(rig: Harness) -> None:
    worker = rig.worker(name="w1")
    worker.offer(0, 1, held=HANGS, unkillable=[HANGS])
    (task,) = rig.client().tasks(spec("a"))
    assert task.state is TaskState.READY
    why = rig.client().ask(Verb.QUERY, {"what": "why", "id": task.id}).header
    (held,) = [p for p in why["predicates"] if p["name"] == "not held"]
    assert HANGS in held["value"] and "share" in held["fix"] and "card" not in held["fix"]


def test_an_offer_that_names_them_wrongly_changes_nothing(rig: Harness) -> None:
    worker = rig.worker(name="w1", credit=1)
    assert (
        error_of(worker.ask(Verb.OFFER, {"credit": 9, "types": ["noop"], "unkillable": [3]})) == "bad_frame"
    )
    assert rig.core.sessions[worker.id].credit == 1


def test_of_what_a_worker_names_only_so_much_is_kept(rig: Harness) -> None:
    worker = rig.worker(name="w1")
    worker.offer(1, 1, unkillable=["x" * 5000] * 500)
    kept = rig.core.sessions[worker.id].unkillable
    assert len(kept) == 64 and {len(text) for text in kept} == {200}
