"""Sessions: HELLO and resume, names, the brain's epoch, orphans, GONE, TOKEN."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness, error_of, spec

from rigbus.bus.core.refusals import MAX_KEPT
from rigbus.bus.states import TaskState
from rigbus.bus.wire import CLIENT_SESSION_S, LEASE_S, Envelope, Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def hello(rig: Harness, **header: Any) -> Any:
    base = {"proto": [1, 0], "role": "client", "session": "c" * 32}
    rig.step(Envelope(Verb.HELLO, {**base, **header}, [], b"h", b"fresh"))
    return rig.inboxes[b"fresh"].pop()


def test_welcome_says_what_a_peer_needs(rig: Harness) -> None:
    welcome = hello(rig)
    assert welcome.verb is Verb.WELCOME and welcome.corr == b"h"
    assert welcome.header["proto"] == [1, 0] and welcome.header["incarnation"] == 1
    assert welcome.header["lease_s"] == LEASE_S and welcome.header["session_s"] == CLIENT_SESSION_S


def test_another_major_version_is_refused_and_a_newer_minor_is_not(rig: Harness) -> None:
    assert error_of(hello(rig, proto=[2, 0])) == "version"
    assert not rig.core.sessions
    assert hello(rig, proto=[1, 99], unheard_of={"a": [1]}).verb is Verb.WELCOME


def test_who_was_refused_for_its_version_is_named_to_people_for_two_minutes(rig: Harness) -> None:
    client = rig.client()
    stranger = {"proto": [2, 0], "role": "worker", "name": "gpu1", "pid": 7, "host": "rig2", "build": "9.9"}
    for _ in range(2):
        assert error_of(hello(rig, **stranger)) == "version"
    (row,) = client.ask(Verb.QUERY, {"what": "status"}).header["refused"]
    assert (row["kind"], row["who"], row["times"]) == ("version", "worker gpu1 (pid 7 on rig2)", 2)
    assert "speaks protocol 2.0 (rigbus 9.9), this broker 1.0" in row["why"] and "same rigbus" in row["fix"]
    why = client.ask(Verb.QUERY, {"what": "why", "id": "gpu1"}).header
    assert why["state"] == "refused" and "protocol 2.0" in why["summary"]
    rig_why = client.ask(Verb.QUERY, {"what": "why"}).header
    assert any("protocol 2.0" in reason for reason in rig_why["reasons"])
    rig.wait(130, (client, []))
    assert client.ask(Verb.QUERY, {"what": "status"}).header["refused"] == []


def test_who_comes_back_with_the_right_version_is_not_named_any_more(rig: Harness) -> None:
    client = rig.client()
    stranger = {"role": "worker", "name": "gpu1", "pid": 7, "host": "rig2"}
    hello(rig, **stranger, proto=[2, 0])
    assert hello(rig, **stranger, proto=[1, 0]).verb is Verb.WELCOME
    assert client.ask(Verb.QUERY, {"what": "status"}).header["refused"] == []


def test_who_was_refused_is_one_line_whatever_it_says_of_itself(rig: Harness) -> None:
    evil = "x\n\x1b[2Jall is well"
    hello(rig, proto=[evil, evil], role=evil, name={"a": evil}, host=evil, build=evil, pid=evil)
    (row,) = rig.client().ask(Verb.QUERY, {"what": "status"}).header["refused"]
    assert row["who"].isprintable() and row["why"].isprintable()


def test_the_list_of_the_refused_is_bounded(rig: Harness) -> None:
    client = rig.client()
    for i in range(200):
        hello(rig, role="worker", name=f"w{i}", proto=[2, 0])
    assert len(client.ask(Verb.QUERY, {"what": "status"}).header["refused"]) == MAX_KEPT


@pytest.mark.parametrize("proto", [None, [], "1.0", 1, {}, [None], {"0": 1}, [[1]]])
def test_a_version_that_is_none_is_refused(rig: Harness, proto: object) -> None:
    assert error_of(hello(rig, proto=proto)) == "version"


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "king"},
        {"role": None},
        {"role": ["client"]},
        {"session": "short"},
        {"session": 5},
        {"session": "x" * 65},
        {"session": None},
        {"name": 5},
        {"name": "n" * 300},
        {"pid": "abc"},
        {"pid": -1},
        {"role": "worker", "resume": 5},
        {"role": "worker", "resume": [5]},
        {"role": "worker", "resume": [[1, [2]]]},
        {"role": "worker", "resume": [[1, 2, 3]]},
    ],
)
def test_a_hello_that_is_wrong_leaves_nothing_behind(rig: Harness, wrong: dict[str, Any]) -> None:
    old = rig.worker(name="w1")
    answer = hello(rig, **{"name": "w1", **wrong})
    assert error_of(answer) == "bad_frame"
    assert set(rig.core.sessions) == {old.id} and len(rig.core.peers) == 1
    rig.check()


def test_a_hello_that_a_later_one_has_overtaken_takes_back_nothing(rig: Harness) -> None:
    worker = rig.worker()
    worker.reconnect(nth=2)
    worker.offer()
    (task,) = rig.client().tasks(spec("a"))
    assert task.state is TaskState.LEASED
    old = {"proto": [1, 0], "role": "worker", "session": worker.id, "name": worker.name, "nth": 1}
    rig.step(Envelope(Verb.HELLO, old, [], b"h", b"an older connection"))
    assert not rig.inboxes[b"an older connection"], "nobody hears an answer there"
    assert task.state is TaskState.LEASED and rig.core.sessions[worker.id].peer == worker.address
    worker.reconnect(nth=3)
    assert task.state is TaskState.READY, "this one is newer, and does not have it"


def test_who_has_not_said_hello_is_told_to(rig: Harness) -> None:
    rig.step(Envelope(Verb.SUBMIT, {}, [], b"c", b"stranger"))
    assert error_of(rig.inboxes[b"stranger"].pop()) == "no_session"


@pytest.mark.parametrize(
    "verb", [Verb.LEASE, Verb.OK, Verb.ACCEPTED, Verb.ENDED, Verb.WELCOME, Verb.SNAPSHOT]
)
def test_what_the_broker_says_is_not_said_to_it(rig: Harness, verb: Verb) -> None:
    answer = rig.client().ask(verb)
    assert answer.verb is Verb.SNAPSHOT if verb is Verb.SNAPSHOT else error_of(answer) == "unsupported"


def test_a_session_keeps_its_role(rig: Harness) -> None:
    client = rig.client()
    client.role = "brain"
    assert error_of(client.hello()) == "bad_frame"
    assert not rig.core.brain and rig.core.sessions[client.id].role == "client"


def test_a_second_session_on_one_connection_takes_the_connection_over(rig: Harness) -> None:
    worker = rig.worker()
    other = rig.client()
    other.address = worker.address
    other.hello()
    (task,) = other.tasks(spec("a"))
    assert task.state is TaskState.READY  # nothing is pushed to a worker that has no connection
    rig.check()
    worker.reconnect()
    rig.check()
    assert worker.leases() == []  # nor to one that has not offered since
    worker.offer()
    assert worker.lease()["id"] == task.id


# -- resume --------------------------------------------------------------------------------------------------


def test_a_worker_that_reconnects_keeps_what_it_still_runs(rig: Harness) -> None:
    worker = rig.worker(credit=3, slots=3)
    kept, unknown, done = rig.client().tasks(spec("kept"), spec("unknown"), spec("done"))
    first, second, third = worker.leases()
    worker.result(third)
    rig.matching = False
    welcome = worker.reconnect(resume=[first["token"], third["token"], [1, 99], [0, 5]]).header
    assert welcome["kept"] == [first["token"]]
    assert welcome["stale"] == [
        [1, 99],
        [0, 5],
    ]  # the recorded one is neither: its RESULT gets RECORDED again
    assert kept.state is TaskState.LEASED and done.state is TaskState.DONE
    assert unknown.state is TaskState.READY and unknown.counts == (0, 0, 0)
    assert worker.result(third).verb is Verb.RECORDED
    assert worker.result(second).verb is Verb.STALE
    assert worker.result(first).verb is Verb.RECORDED
    rig.check()


def test_a_lost_connection_does_not_end_a_lease(rig: Harness) -> None:
    worker = rig.worker()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    rig.core.disconnected(rig.core.sessions[worker.id], [])
    rig.wait(LEASE_S - 1)
    worker.reconnect(resume=[lease["token"]])
    rig.wait(LEASE_S - 1)
    assert task.state is TaskState.LEASED


def test_a_second_worker_of_a_name_ends_the_first(rig: Harness) -> None:
    old = rig.worker(name="w1")
    (task,) = rig.client().tasks(spec("a"))
    lease = old.lease()
    old.started(lease)
    new = rig.worker(name="w1")
    assert old.take(Verb.BYE) == [{"reason": "superseded"}]
    assert task.state is TaskState.LEASED and new.lease()["id"] == task.id
    assert task.counts == (0, 0, 1)
    rig.check()


def test_a_superseded_worker_that_did_not_hear_of_it_does_not_take_its_name_back(rig: Harness) -> None:
    old = rig.worker(name="w1")
    rig.core.disconnected(rig.core.sessions[old.id], [])
    new = rig.worker(name="w1")
    answer = old.reconnect(resume=[])
    assert answer.verb is Verb.BYE and answer.header["reason"] == "superseded"
    assert new.id in rig.core.sessions and old.id not in rig.core.sessions
    assert not new.take(Verb.BYE)


def test_a_client_session_lives_while_it_says_something(rig: Harness) -> None:
    client, silent = rig.client(), rig.client()
    rig.wait(CLIENT_SESSION_S * 3, (client, []))
    assert client.id in rig.core.sessions and silent.id not in rig.core.sessions
    assert error_of(silent.ask(Verb.QUERY, {"what": "status"})) == "no_session"
    assert silent.hello().verb is Verb.WELCOME


def test_sessions_that_come_and_go_leave_nothing(rig: Harness) -> None:
    for _ in range(30):
        client = rig.client()
        client.ask(Verb.TOKEN, {"name": "t", "action": "take"})
        client.say(Verb.BYE)
    rig.wait(CLIENT_SESSION_S + 1)
    assert not rig.core.sessions and not rig.core.peers and not rig.core.facts and not rig.core.owned
    assert len(rig.core.timers) <= 3


def test_bye_of_a_worker_returns_its_leases_at_once(rig: Harness) -> None:
    worker, other = rig.worker(credit=2, slots=1), rig.worker(credit=0)
    ran, prefetched = rig.client().tasks(spec("a"), spec("b"))
    worker.started(worker.leases()[0])
    worker.say(Verb.BYE, {"reason": "drained"})
    assert rig.states([ran, prefetched]) == ["READY", "READY"]
    assert ran.counts == (0, 0, 1) and prefetched.counts == (0, 0, 0)
    other.offer(credit=2)
    assert len(other.leases()) == 2


# -- the brain -----------------------------------------------------------------------------------------------


def test_the_first_brain_is_seated_and_the_second_waits(rig: Harness) -> None:
    first = rig.peer("brain")
    assert rig.core.epoch == 1 and rig.changes[-1].meta == {"epoch": 1}
    second = rig.peer("brain")
    assert second.hello().header["standby"] is True
    for brain, code in ((first, None), (second, "stale_epoch")):
        answer = brain.ask(Verb.BRAIN, {"epoch": 1})
        assert (answer.verb is Verb.OK) if code is None else error_of(answer) == code
    first.say(Verb.BYE)
    (welcome,) = second.take(Verb.WELCOME)
    assert welcome["epoch"] == 2 and welcome["standby"] is False and "seq" in welcome
    assert second.ask(Verb.BRAIN, {"epoch": 2}).verb is Verb.OK
    assert error_of(second.ask(Verb.BRAIN, {"epoch": 1})) == "stale_epoch"


def test_a_brain_that_is_silent_loses_its_seat_to_the_one_that_waits(rig: Harness) -> None:
    rig.peer("brain")
    waiting = rig.peer("brain")
    rig.wait(CLIENT_SESSION_S + 1, (waiting, []))
    (welcome,) = waiting.take(Verb.WELCOME)
    assert welcome["epoch"] == 2


@pytest.mark.parametrize("role", ["client", "worker", "bridge", "supervisor"])
def test_only_the_seated_brain_may_speak_as_the_brain(rig: Harness, role: str) -> None:
    peer = rig.peer(role)
    for epoch in (0, 1, None):
        assert error_of(peer.ask(Verb.BRAIN, {"epoch": epoch})) == "stale_epoch"
    rig.brain()
    assert error_of(peer.ask(Verb.BRAIN, {"epoch": 1})) == "stale_epoch"


def test_a_brain_that_reconnects_keeps_its_epoch(rig: Harness) -> None:
    """A new epoch a HELLO made a brain and a broker chase each other: each refusal was a HELLO, each HELLO a refusal."""
    brain = rig.brain()
    assert brain.reconnect().header["epoch"] == 1
    assert brain.ask(Verb.BRAIN, {"epoch": 1}).verb is Verb.OK


def test_renewed_says_which_brain_acts(rig: Harness) -> None:
    """A WELCOME that was lost would leave the seat to nobody."""
    first, second = rig.brain(), rig.peer("brain")
    assert first.ask(Verb.RENEW, {}).header == {"epoch": 1}
    assert second.ask(Verb.RENEW, {}).header == {"epoch": 0}
    first.say(Verb.BYE)
    assert second.ask(Verb.RENEW, {}).header == {"epoch": 2}


def test_facts_are_compare_and_set_and_one_mismatch_refuses_the_message(rig: Harness) -> None:
    brain = rig.brain()

    def tell(*facts: dict[str, Any]) -> Any:
        return brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "facts": list(facts)})

    assert tell({"scope": "s", "key": "a", "rev": 0, "value": 1}).verb is Verb.OK
    wrong = tell(
        {"scope": "s", "key": "b", "rev": 0, "value": 1}, {"scope": "s", "key": "a", "rev": 7, "value": 2}
    )
    assert error_of(wrong) == "refused" and set(rig.core.facts) == {("s", "a")}
    assert tell({"scope": "s", "key": "a", "rev": 1, "value": 2}).verb is Verb.OK
    assert rig.core.facts["s", "a"].rev == 2
    # the answer was lost and the same message came again
    assert tell({"scope": "s", "key": "a", "rev": 1, "value": 2}).verb is Verb.OK
    assert rig.core.facts["s", "a"].rev == 2
    assert error_of(tell({"scope": "s", "key": "a", "rev": 1, "value": 3})) == "refused"
    facts = rig.client().ask(Verb.QUERY, {"what": "facts", "scope": "s"}).header["facts"]
    assert facts == [{"scope": "s", "key": "a", "rev": 2, "epoch": 1, "value": 2}]
    assert error_of(tell({"scope": "s", "key": "c", "rev": 0, "value": "x" * 70_000})) == "definition"
    assert error_of(tell({"scope": 5, "key": "c", "rev": 0})) == "definition"


def test_a_fact_of_null_is_deleted_and_a_repeat_is_harmless(rig: Harness) -> None:
    brain = rig.brain()

    def tell(rev: int, value: Any) -> Any:
        fact = {"scope": "s", "key": "a", "rev": rev, "value": value}
        return brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "facts": [fact]})

    tell(0, 1)
    assert error_of(tell(7, None)) == "refused" and rig.core.facts
    assert tell(1, None).verb is Verb.OK and not rig.core.facts
    assert rig.changes[-1].facts == {("s", "a"): None}
    assert tell(1, None).verb is Verb.OK and rig.changes[-1].facts == {}
    assert tell(0, 2).verb is Verb.OK and rig.core.facts["s", "a"].rev == 1


def test_tasks_for_a_batch_that_a_person_has_cancelled_are_dropped(rig: Harness) -> None:
    brain, client = rig.brain(), rig.client()
    batch = client.submit(kind="plan", plan={"name": "p"}).header["batch"]
    client.ask(Verb.CANCEL, {"batch": batch})
    assert "batch.plan.cancelled" in rig.topics("a")
    answer = brain.ask(Verb.BRAIN, {"epoch": 1, "batch": batch, "tasks": [spec("late")], "close": [batch]})
    assert answer.verb is Verb.OK and answer.header["ids"] == []
    assert not rig.core.tasks and rig.core.batch_ids[batch].state.name == "CANCELLED"


# -- orphans, GONE, TOKEN ------------------------------------------------------------------------------------


def test_orphans_end_with_their_clients_session(rig: Harness) -> None:
    worker, client, other = rig.worker(), rig.client(), rig.client()
    running, ready, kept = client.tasks(
        spec("running", orphan="cancel"), spec("ready", orphan="cancel"), spec("kept", orphan="keep")
    )
    lease = worker.lease()
    rig.wait(CLIENT_SESSION_S + 1, (worker, [lease]), (other, []))
    assert ready.state is TaskState.CANCELLED and "orphan" in str(ready.error)
    assert running.state is TaskState.LEASED and running.ending == 1
    assert worker.renew(lease)["cancel"] == [lease["token"]]
    worker.fail(lease, cancelled=True)
    assert running.state is TaskState.CANCELLED and "orphan" in str(running.error)
    assert worker.lease()["id"] == kept.id
    rig.check()


def test_who_waits_for_an_orphan_takes_it_over(rig: Harness) -> None:
    client, other = rig.client(), rig.client()
    (task,) = client.tasks(spec("a", orphan="cancel"))
    other.ask(Verb.QUERY, {"what": "wait", "ids": [task.id]})
    client.say(Verb.BYE)
    assert task.state is TaskState.READY and task.owner == other.id
    other.say(Verb.BYE)
    assert task.state is TaskState.CANCELLED


def test_gone_is_believed_only_from_a_supervisor(rig: Harness) -> None:
    worker = rig.worker(name="w1")
    (task,) = rig.client().tasks(spec("a"))
    worker.started(worker.lease())
    for role in ("client", "worker", "brain", "bridge"):
        assert error_of(rig.peer(role).ask(Verb.GONE, {"session": worker.id})) == "refused"
    assert task.state is TaskState.LEASED
    answer = rig.peer("supervisor").ask(Verb.GONE, {"name": "w1", "why": "killed"})
    assert answer.header == {"sessions": 1, "leases": 1}
    assert task.state is TaskState.READY and task.error == "killed"
    assert error_of(worker.ask(Verb.RENEW)) == "no_session"


def test_gone_of_a_name_ends_only_the_process_that_has_died(rig: Harness) -> None:
    """Brains of one name: one acts, the other stands by; whichever dies, the other one lives."""
    acts, waits = rig.peer("brain", "brain", pid=7), rig.peer("brain", "brain", pid=8)
    supervisor = rig.peer("supervisor")
    assert supervisor.ask(Verb.GONE, {"name": "brain", "pid": 9}).header == {"sessions": 0, "leases": 0}
    assert supervisor.ask(Verb.GONE, {"name": "brain", "pid": 7}).header == {"sessions": 1, "leases": 0}
    assert error_of(acts.ask(Verb.RENEW)) == "no_session"
    assert waits.ask(Verb.RENEW).header == {"epoch": 2}, "the seat is its own now"
    assert error_of(supervisor.ask(Verb.GONE, {"name": "brain", "pid": "8"})) == "bad_frame"
    assert waits.ask(Verb.RENEW).header == {"epoch": 2}


def test_gone_of_nobody_is_harmless(rig: Harness) -> None:
    supervisor = rig.peer("supervisor")
    for header in ({}, {"session": "x"}, {"name": "x"}, {"session": 5}, {"name": None}, {"session": ["x"]}):
        assert supervisor.ask(Verb.GONE, header).header == {"sessions": 0, "leases": 0}
    assert len(rig.core.sessions) == 1


def test_a_token_is_held_by_one_session_and_ends_with_it(rig: Harness) -> None:
    a, b = rig.client(name="a"), rig.client(name="b")
    take = {"name": "pcie-0", "action": "take"}
    assert a.ask(Verb.TOKEN, take).header == {"held": True}
    assert a.ask(Verb.TOKEN, take).header == {"held": True}
    assert b.ask(Verb.TOKEN, take).header == {"held": False, "by": "a"}
    assert b.ask(Verb.TOKEN, {"name": "pcie-0", "action": "release"}).header == {"held": False}
    assert b.ask(Verb.TOKEN, take).header["held"] is False
    assert b.ask(Verb.TOKEN, {"name": "pcie-1", "action": "take"}).header == {"held": True}
    rig.wait(CLIENT_SESSION_S + 1, (b, []))
    assert b.ask(Verb.TOKEN, take).header == {"held": True}
    b.ask(Verb.TOKEN, {"name": "pcie-0", "action": "release"})
    assert set(rig.core.facts) == {("token", "pcie-1")}
    for wrong in ({}, {"name": 5, "action": "take"}, {"name": "x", "action": "steal"}, {"name": ""}):
        assert error_of(b.ask(Verb.TOKEN, wrong)) == "definition"


def test_stop_asks_the_supervisors(rig: Harness) -> None:
    supervisor, person = rig.peer("supervisor"), rig.client()
    assert person.ask(Verb.CONTROL, {"action": "stop"}).header == {"supervisors": 1}
    assert supervisor.take(Verb.CONTROL) == [{"action": "stop"}]
    assert error_of(person.ask(Verb.CONTROL, {"action": "dance", "worker": "all"})) == "definition"


def test_telemetry_is_kept_of_workers_that_are_here_only(rig: Harness) -> None:
    rig.worker(name="w1")
    rig.core.heartbeat("w1", {"model": "tiny"}, rig.now)
    rig.core.heartbeat("nobody", {"model": "tiny"}, rig.now)
    assert set(rig.core.heartbeats) == {"w1"}
    (row,) = rig.client().ask(Verb.QUERY, {"what": "workers"}).header["workers"]
    assert row["model"] == "tiny" and row["heartbeat_age_s"] == 0
