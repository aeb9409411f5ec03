"""Who gets what: priority, ageing, fair share, spread, prefetch, pause; and `why` agrees with it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from harness import STATE_ID, Harness, Peer, error_of, spec

from rigbus.bus.core.matching import predicates
from rigbus.bus.states import TaskState
from rigbus.bus.wire import LEASE_S, Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def order_of(worker: Peer, n: int = 1000, held: list[dict[str, Any]] | None = None) -> list[str]:
    """Answer leases one by one, at most ``n``; the keys in the order in which they were granted.

    ``held`` keeps what was granted and not answered, for a next call.
    """
    order: list[str] = []
    queue = [] if held is None else held
    queue += worker.leases()
    while queue and len(order) < n:
        lease = queue.pop(0)
        order.append(lease["key"])
        worker.result(lease)
        queue += worker.leases()
    return order


def test_higher_priority_first_and_inside_it_first_come(rig: Harness) -> None:
    rig.client().tasks(
        spec("a", priority=3), spec("b", priority=8), spec("c"), spec("d", priority=8), spec("e")
    )
    assert order_of(rig.worker()) == ["b", "d", "c", "e", "a"]


def test_a_batch_gives_its_priority_to_its_tasks(rig: Harness) -> None:
    rig.client().tasks(spec("low"), priority=2)
    rig.client().tasks(spec("high"), priority=9)
    assert order_of(rig.worker()) == ["high", "low"]


def test_what_waits_long_rises_one_level_each_minute(rig: Harness) -> None:
    client = rig.client()
    client.tasks(spec("old", priority=3))
    rig.wait(60 * 3 - 1, (client, []))
    client.tasks(*[spec(f"new{i}", priority=6) for i in range(3)])
    worker = rig.worker()
    assert worker.lease()["key"] == "new0"
    worker.result({"token": [1, 1]})
    rig.wait(2, (worker, []), (client, []))
    assert worker.lease()["key"] == "new1"  # granted before the time passed
    worker.result({"token": [1, 2]})
    assert order_of(worker) == ["old", "new2"]


def test_three_tasks_are_not_starved_by_five_hundred(rig: Harness) -> None:
    client = rig.client()
    client.tasks(*[spec(f"big{i}") for i in range(500)])
    worker, held = rig.worker(), []  # type: ignore[var-annotated]
    order_of(worker, 20, held)
    client.tasks(*[spec(f"small{i}") for i in range(3)])
    order = order_of(worker, 8, held)
    assert [key for key in order if key.startswith("small")] == ["small0", "small1", "small2"]
    assert [key for key in order if key.startswith("big")] == [f"big{i}" for i in range(20, 25)]


def test_batches_share_evenly_while_they_have_work(rig: Harness) -> None:
    for name in "abc":
        rig.client().tasks(*[spec(f"{name}{i}") for i in range(10)])
    order = [key[0] for key in order_of(rig.worker())]
    for n in range(0, 30, 3):
        assert sorted(order[n : n + 3]) == ["a", "b", "c"]


def test_a_batch_is_not_paid_for_the_time_it_had_nothing_to_do(rig: Harness) -> None:
    client, worker, held = rig.client(), rig.worker(), []  # type: ignore[var-annotated]
    client.tasks(spec("early"), key="early", open=True)
    client.tasks(*[spec(f"a{i}") for i in range(100)])
    order_of(worker, 51, held)
    client.tasks(*[spec(f"e{i}") for i in range(20)], key="early", open=True)
    order = order_of(worker, 20, held)
    assert 8 <= sum(key.startswith("e") for key in order) <= 12


def test_work_is_spread_over_idle_workers_before_anybody_prefetches(rig: Harness) -> None:
    workers = [rig.worker(credit=50, slots=1) for _ in range(4)]
    rig.client().tasks(*[spec(f"t{i}") for i in range(4)])
    assert [len(w.leases()) for w in workers] == [1, 1, 1, 1]


def test_prefetch_is_spread_and_credit_is_never_exceeded(rig: Harness) -> None:
    workers = [rig.worker(credit=20, slots=2) for _ in range(3)]
    rig.client().tasks(*[spec(f"t{i}") for i in range(30)])
    held = [len(w.leases()) for w in workers]
    assert sum(held) == 30 and max(held) - min(held) <= 8
    rig.client().tasks(*[spec(f"t{i}") for i in range(100)])
    assert [h + len(w.leases()) for h, w in zip(held, workers, strict=True)] == [20, 20, 20]
    assert all(len(s.leases) <= s.credit for s in rig.core.workers())
    rig.check()


def test_a_worker_without_credit_gets_nothing(rig: Harness) -> None:
    worker = rig.worker(credit=0)
    (task,) = rig.client().tasks(spec("a"))
    assert task.state is TaskState.READY
    worker.offer(credit=1)
    assert worker.lease()["key"] == "a"


def test_an_offer_replaces_the_former(rig: Harness) -> None:
    worker = rig.worker(types=["other"])
    (task,) = rig.client().tasks(spec("a"))
    assert task.state is TaskState.READY
    worker.offer(types=["noop"])
    assert task.state is TaskState.LEASED


@pytest.mark.parametrize(
    "offer",
    [
        {"credit": -1},
        {"credit": "many"},
        {"credit": 1.5},
        {"slots": 0},
        {"slots": None, "types": "noop"},
        {"types": [1]},
        {"types": {"noop": 1}},
        {"classes": 3},
        {"needs": [["a"]]},
    ],
)
def test_an_offer_that_is_none_changes_nothing(rig: Harness, offer: dict[str, Any]) -> None:
    worker = rig.worker(credit=3, slots=2)
    header = {"credit": 9, "slots": 9, "types": ["x"], **offer}
    assert error_of(worker.ask(Verb.OFFER, header)) == "bad_frame"
    session = rig.core.sessions[worker.id]
    assert (session.credit, session.slots, session.types) == (3, 2, frozenset({"noop"}))


FITTING = {"types": ["noop"], "classes": ["llm"], "pools": ["fast"], "needs": ["cuda", "big"]}
WANTED = {"class": "llm", "pool": "fast", "needs": ["cuda"], "view": STATE_ID}


@pytest.mark.parametrize(
    ("wrong", "predicate"),
    [
        ({"types": ["other"]}, "type"),
        ({"classes": ["cpu"]}, "class"),
        ({"pools": []}, "pool"),
        ({"needs": ["big"]}, "needs"),
        ({"state_id": "elsewhere"}, "view"),
        ({"credit": 0}, "free credit"),
    ],
)
def test_each_predicate_stands_in_the_way_alone_and_why_names_it(
    rig: Harness, wrong: dict[str, Any], predicate: str
) -> None:
    worker = rig.worker(**{**FITTING, **wrong})
    (task,) = rig.client().tasks(spec("a", **WANTED))
    assert task.state is TaskState.READY
    why = rig.client().ask(Verb.QUERY, {"what": "why", "id": task.id}).header
    (seen,) = why["workers"]
    assert [p["name"] for p in seen["predicates"] if not p["ok"]] == [predicate]
    worker.offer(**FITTING)
    assert task.state is TaskState.LEASED


def test_a_brain_worker_takes_only_what_names_its_class(rig: Harness) -> None:
    brain_worker = rig.worker(credit=5, slots=5, classes=["brain"])
    plain, brainy = rig.client().tasks(spec("plain"), spec("brainy", **{"class": "brain"}))
    assert plain.state is TaskState.READY and brain_worker.lease()["id"] == brainy.id


def test_pause_drain_and_suspicion_stop_new_leases_and_why_says_so(rig: Harness) -> None:
    worker, person = rig.worker(name="w1"), rig.client()

    def blocked() -> list[str]:
        (task,) = person.tasks(spec(f"t{rig.core.next_no}"))
        assert task.state is TaskState.READY
        (seen,) = person.ask(Verb.QUERY, {"what": "why", "id": task.id}).header["workers"]
        names = [p["name"] for p in seen["predicates"] if not p["ok"]]
        assert all(p["fix"] for p in seen["predicates"] if not p["ok"])
        person.ask(Verb.CANCEL, {"ids": [task.id]})
        return names

    for target, name in (("all", "rig not paused"), ("w1", "worker not paused")):
        person.ask(Verb.CONTROL, {"action": "pause", "worker": target})
        assert blocked() == [name]
        person.ask(Verb.CONTROL, {"action": "resume", "worker": target})
    for target in ("all", "w1"):
        person.ask(Verb.DRAIN, {"worker": target})
        assert blocked() == ["not draining"]
        person.ask(Verb.CONTROL, {"action": "resume", "worker": target})
    assert [h["action"] for h in worker.take(Verb.CONTROL)] == ["pause", "resume"] * 2 + [
        "drain",
        "resume",
    ] * 2
    rig.wait(4, (person, []))
    assert blocked() == ["heard of lately"]
    worker.renew()
    (task,) = person.tasks(spec("free"))
    assert task.state is TaskState.LEASED


def test_what_why_says_and_what_matching_does_agree_for_every_worker(rig: Harness) -> None:
    options = itertools.product(
        [["noop"], ["x"]], [["cpu"], ["llm"], ["brain"]], [[], ["p"]], [[], ["n"]], [STATE_ID, ""], [0, 1]
    )
    shapes = [
        spec("plain"),
        spec("cpu", **{"class": "cpu"}),
        spec("pool", pool="p"),
        spec("needs", needs=["n"]),
        spec("view", view=STATE_ID),
        spec("brain", **{"class": "brain"}),
    ]
    for types, classes, pools, needs, state_id, credit in options:
        own = Harness()
        worker = own.worker(
            types=types, classes=classes, pools=pools, needs=needs, state_id=state_id, credit=credit
        )
        for one in shapes:
            (task,) = own.client().tasks(one)
            session = own.core.sessions[worker.id]
            leased = task.state is TaskState.LEASED
            if leased:
                own.matching = False
                worker.ask(Verb.RETURN, {"tokens": [list(task.token)]})
            said = predicates(task.shape, session, paused=False, rig_paused=False)
            assert all(p.ok for p in said) == leased, (one, [p for p in said if not p.ok])
            own.client().ask(Verb.CANCEL, {"ids": [task.id]})
            own.matching = True


def test_pause_outlives_a_session_and_running_work_goes_on(rig: Harness) -> None:
    worker, person = rig.worker(name="w1"), rig.client()
    (running,) = person.tasks(spec("a"))
    lease = worker.lease()
    person.ask(Verb.CONTROL, {"action": "pause", "worker": "w1"})
    (waiting,) = person.tasks(spec("b"))
    assert worker.result(lease).verb is Verb.RECORDED and running.state is TaskState.DONE
    worker.say(Verb.BYE)
    rig.worker(name="w1")
    assert waiting.state is TaskState.READY
    # resume of a worker that is away is possible, of one that nobody knows it is not
    assert error_of(person.ask(Verb.CONTROL, {"action": "resume", "worker": "w2"})) == "not_found"
    person.ask(Verb.CONTROL, {"action": "resume", "worker": "w1"})
    assert waiting.state is TaskState.LEASED


def test_a_drained_worker_that_comes_back_is_still_drained(rig: Harness) -> None:
    person = rig.client()
    rig.worker(name="w1")
    person.ask(Verb.DRAIN, {"worker": "w1"})
    again = rig.worker(name="w1")
    (task,) = person.tasks(spec("a"))
    assert task.state is TaskState.READY
    person.ask(Verb.CONTROL, {"action": "resume", "worker": "w1"})
    assert again.lease()["id"] == task.id


def test_status_names_what_nobody_can_run(rig: Harness) -> None:
    rig.worker()
    client = rig.client()
    client.tasks(spec("a"), {"key": "b", "type": "rare", "needs": ["cuda"]})
    status = client.ask(Verb.QUERY, {"what": "status"}).header
    (row,) = status["unrunnable"]
    assert row == {"type": "rare", "class": None, "pool": None, "needs": ["cuda"], "vram_mb": None}


def test_why_of_each_state_says_something(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    a, b, c = client.tasks(spec("a"), spec("b", "a"), spec("c", policy={"task": 1}))

    def reasons(ref: str) -> str:
        return " | ".join(client.ask(Verb.QUERY, {"what": "why", "id": ref}).header["reasons"])

    assert "waits for 1 of 1 tasks: a (leased)" in reasons(b.id)
    assert "is with" in reasons(a.id) and "not started yet" in reasons(a.id)
    worker.started(worker.lease())
    assert "runs on" in reasons(a.id)
    assert reasons(a.batch.id) and reasons(worker.name)
    client.ask(Verb.CANCEL, {"batch": a.batch.id})
    assert "its end was asked for" in reasons(a.id)
    assert "it has ended: cancelled" in reasons(c.id)
    assert error_of(client.ask(Verb.QUERY, {"what": "why", "id": "nobody"})) == "not_found"


def test_leases_of_a_silent_worker_go_to_the_others_after_the_lease(rig: Harness) -> None:
    silent, alive = rig.worker(credit=4, slots=4), rig.worker(credit=8, slots=4)
    tasks = rig.client().tasks(*[spec(f"t{i}") for i in range(8)])
    mine = alive.leases()
    assert len(mine) == len(silent.leases()) == 4
    rig.wait(LEASE_S + 0.5, (alive, mine))
    assert {t.worker for t in tasks} == {alive.name}
    rig.check()
