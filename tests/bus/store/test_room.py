"""Room on the disk and the other bounds, in the core: what is refused, what goes on, what is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import Harness, Peer, spec

from rigbus.bus.core.bounds import RESERVED_SESSIONS, Bounds
from rigbus.bus.states import TaskState
from rigbus.bus.store.room import MIB, UNKNOWN, Bars, Level, Room, bars, level_of
from rigbus.bus.wire import MAX_FRAME_BYTES, MAX_REQUESTS, Envelope, Verb

AMPLE = Room(Level.AMPLE, 900 * MIB, 512 * MIB, 64 * MIB, "/rig")
LOW = replace(AMPLE, level=Level.LOW, free_bytes=300 * MIB)
FULL = replace(AMPLE, level=Level.FULL, free_bytes=3 * MIB, ballast_bytes=0)


@pytest.fixture
def rig() -> Harness:
    return Harness()


def found(rig: Harness, room: Room) -> None:
    rig.core.found_room(room)
    rig.settle()


def submit(client: Peer, key: str, *specs: dict[str, Any]) -> tuple[Verb, dict[str, Any]]:
    send = client.submit(*specs, key=key)
    return send.verb, send.header


# -- levels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total_mb", "low_mb", "ballast_mb", "low", "ballast"),
    [
        (100_000, None, None, 512, 64),
        (1_000, None, None, 50, 25),  # a small disk keeps a part of itself
        (1_000, 8, 2, 8, 2),  # what somebody has set is taken as it is
        (1_000, 0, 0, 0, 0),
    ],
)
def test_the_bars_follow_the_disk_or_the_settings(
    total_mb: int, low_mb: int | None, ballast_mb: int | None, low: int, ballast: int
) -> None:
    assert bars(total_mb * MIB, low_mb, ballast_mb) == Bars(low * MIB, ballast * MIB)


@pytest.mark.parametrize(
    ("before", "free_mb", "has_ballast", "level"),
    [
        (Level.AMPLE, 512, True, Level.AMPLE),
        (Level.AMPLE, 511, True, Level.LOW),
        (Level.LOW, 575, True, Level.LOW),  # a little more is wanted to go on than to stop
        (Level.LOW, 576, True, Level.AMPLE),
        (Level.LOW, 64, True, Level.LOW),
        (Level.LOW, 63, True, Level.FULL),
        (Level.FULL, 127, True, Level.FULL),
        (Level.FULL, 128, True, Level.LOW),
        (Level.FULL, 900, True, Level.AMPLE),
        (Level.AMPLE, 900, False, Level.FULL),  # nothing is held back for results
    ],
)
def test_the_level_of_the_room(before: Level, free_mb: int, has_ballast: bool, level: Level) -> None:
    wanted = Bars(512 * MIB, 64 * MIB)
    assert level_of(before, free_mb * MIB, wanted, has_ballast=has_ballast) is level


def test_without_bars_no_disk_is_too_small() -> None:
    assert level_of(Level.AMPLE, 0, Bars(0, 0), has_ballast=True) is Level.AMPLE


# -- what the core does --------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [LOW, FULL])
def test_new_tasks_are_refused_with_the_bound_and_the_fix(rig: Harness, room: Room) -> None:
    client = rig.client()
    (id_,) = submit(client, "before", spec("a"))[1]["ids"]
    found(rig, room)
    verb, header = submit(client, "after", spec("a"))
    assert verb is Verb.BUSY and header["bound"] == "disk" and header["retry_after_s"] > 0
    assert "/rig" in header["message"] and "free some space" in header["message"]
    verb, header = submit(client, "plan without tasks yet")
    assert (verb, header["bound"]) == (Verb.BUSY, "disk")
    assert set(rig.core.batch_keys) == {"before"}
    # what was accepted before is accepted: the same answer again
    verb, header = submit(client, "before", spec("a"))
    assert (verb, header["ids"]) == (Verb.ACCEPTED, [id_])
    found(rig, AMPLE)
    assert submit(client, "after", spec("a"))[0] is Verb.ACCEPTED
    rig.check()


def test_the_brain_adds_no_tasks_but_its_other_words_are_taken(rig: Harness) -> None:
    client, brain = rig.client(), rig.brain()
    client.submit(key="p", kind="plan", plan={"name": "p"})
    batch = rig.core.batch_keys["p"]
    found(rig, LOW)
    say = {"epoch": rig.core.epoch, "batch": batch.id}
    busy = brain.ask(Verb.BRAIN, {**say, "tasks": [spec("a")]}, [b""])
    assert (busy.verb, busy.header["bound"]) == (Verb.BUSY, "disk") and not batch.keys
    fact = {"scope": "plan", "key": batch.id, "rev": 0, "value": {"title": "t"}}
    assert brain.ask(Verb.BRAIN, {**say, "facts": [fact]}).verb is Verb.OK
    found(rig, AMPLE)
    assert brain.ask(Verb.BRAIN, {**say, "tasks": [spec("a")]}, [b""]).verb is Verb.OK
    assert list(batch.keys) == ["a"]


def test_results_are_recorded_while_nothing_new_is_started(rig: Harness) -> None:
    worker, client = rig.worker(credit=1), rig.client()
    first, second = client.tasks(spec("a"), spec("b"))
    lease = worker.lease()
    found(rig, FULL)
    assert worker.result(lease).verb is Verb.RECORDED
    assert first.state is TaskState.DONE
    assert second.state is TaskState.READY and not worker.leases()
    found(rig, LOW)
    assert worker.lease()["key"] == "b"


def test_a_task_does_not_expire_in_the_queue_of_a_full_disk(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    found(rig, FULL)
    rig.core.room = AMPLE  # accepted a moment before
    rig.matching = False
    (task,) = client.tasks(spec("a", queue_timeout_s=5))
    rig.core.room = FULL
    rig.matching = True
    rig.wait(60, (worker, []), (client, []))
    assert task.state is TaskState.READY
    found(rig, AMPLE)
    assert worker.lease()["key"] == "a"


def test_an_event_tells_of_another_level_only(rig: Harness) -> None:
    for room in (AMPLE, LOW, replace(LOW, free_bytes=1), FULL, AMPLE):
        found(rig, room)
    events = [e for e in rig.events if e[4] == "rig.disk"]
    assert [(e[7]["was"], e[7]["level"]) for e in events] == [
        ("ample", "low"),
        ("low", "full"),
        ("full", "ample"),
    ]


def test_why_names_the_disk_for_the_rig_a_task_and_a_plan(rig: Harness) -> None:
    client, _ = rig.client(), rig.worker()
    rig.matching = False
    (task,) = client.tasks(spec("a"))
    client.submit(key="p", kind="plan", plan={"name": "p"})
    found(rig, FULL)
    rig.matching = True
    worker = next(w.name for w in rig.core.workers())
    for ref in (None, task.id, worker, rig.core.batch_keys["p"].id):
        why = client.ask(Verb.QUERY, {"what": "why", "id": ref}).header
        test = next(p for p in why["predicates"] if p["name"] == "room on the disk")
        assert not test["ok"] and "3 MiB free in /rig" in test["value"] and "free some space" in test["fix"]
        assert "disk full" in " ".join([why["summary"], *why["reasons"]])
    # said once, not of each worker that is idle for it
    stuck = client.ask(Verb.QUERY, {"what": "why", "id": None}).header["stuck"]
    assert {s["kind"] for s in stuck} == {"batch"}
    found(rig, AMPLE)
    why = client.ask(Verb.QUERY, {"what": "why", "id": None}).header
    assert "room on the disk" not in {p["name"] for p in why["predicates"]}


def test_status_has_the_disk_once_somebody_has_looked(rig: Harness) -> None:
    client = rig.client()
    assert rig.core.room is UNKNOWN
    assert client.ask(Verb.QUERY, {"what": "status"}).header["disk"] is None
    found(rig, LOW)
    disk = client.ask(Verb.QUERY, {"what": "status"}).header["disk"]
    assert disk == {
        "level": "low",
        "free_bytes": 300 * MIB,
        "low_bytes": 512 * MIB,
        "ballast_bytes": 64 * MIB,
        "folder": "/rig",
    }


# -- the other bounds ----------------------------------------------------------------------------------------


def test_status_shows_how_full_everything_is(rig: Harness) -> None:
    worker, client = rig.worker(credit=3), rig.client()
    rig.core.gauges = {"peer_bytes": (7, 9)}
    client.submit(*[spec(f"t{i}") for i in range(5)])
    worker.result(worker.leases()[0])
    limits = client.ask(Verb.QUERY, {"what": "status"}).header["limits"]
    assert limits["live_tasks"] == {"used": 4, "bound": 1_000_000}
    assert limits["batch_tasks"] == {"used": 5, "bound": 100_000}
    assert limits["ended_tasks"] == {"used": 1, "bound": 200_000}
    assert limits["sessions"] == {"used": 2, "bound": 4_000}
    assert limits["worker_leases"] == {"used": 3, "bound": 4_096}
    assert limits["peer_bytes"] == {"used": 7, "bound": 9}


def test_a_welcome_says_what_a_peer_must_keep_to(rig: Harness) -> None:
    limits = rig.client().hello().header["limits"]
    assert limits["frame_bytes"] == MAX_FRAME_BYTES and limits["live_tasks"] == 1_000_000


def test_a_flood_of_clients_is_refused_and_keeps_no_worker_out(rig: Harness) -> None:
    rig.core.bounds = Bounds(sessions=3)
    clients = [rig.client() for _ in range(3)]
    late = Peer(rig, "client", "late")
    refusal = late.inbox or [late.hello()]
    assert refusal[-1].verb is Verb.BUSY and refusal[-1].header["bound"] == "sessions"
    assert late.id not in rig.core.sessions
    worker = rig.worker()
    assert worker.id in rig.core.sessions
    # who has a session keeps it, over any connection
    assert clients[0].reconnect().verb is Verb.WELCOME
    clients[1].say(Verb.BYE, {})
    assert late.hello().verb is Verb.BUSY  # the worker's session counts
    clients[2].say(Verb.BYE, {})
    assert late.hello().verb is Verb.WELCOME
    assert RESERVED_SESSIONS > 0


def test_workers_have_a_bound_too(rig: Harness) -> None:
    rig.core.bounds = Bounds(sessions=2 - RESERVED_SESSIONS)
    rig.worker()
    rig.worker()
    assert Peer(rig, "worker", "one too many").hello().verb is Verb.BUSY


def test_a_client_has_so_many_questions_open_and_the_work_of_others_goes_on(rig: Harness) -> None:
    client, worker = rig.client(), rig.worker()

    def ask(peer: Peer, n: int) -> list[Verb]:
        """Messages of one round, as a flood brings them."""
        for _ in range(n):
            rig.core.step(Envelope(Verb.RENEW, {}, [], b"c", peer.address), rig.now, rig.wall)
        return [s.verb for s in rig.core.fx.sends if s.peer == peer.address]

    assert ask(client, MAX_REQUESTS + 5) == [Verb.RENEWED] * MAX_REQUESTS + [Verb.BUSY] * 5
    busy = rig.core.fx.sends[-1].header
    assert busy["bound"] == "requests" and "wait for answers" in busy["message"]
    assert Verb.BUSY not in ask(worker, MAX_REQUESTS + 5)
    rig.settle()
    assert client.ask(Verb.RENEW, {}).verb is Verb.RENEWED, "the next round is another one"


def test_facts_of_the_brain_and_tokens_are_bounded_and_old_ones_can_be_rewritten(rig: Harness) -> None:
    client, brain = rig.client(), rig.brain()
    rig.core.bounds = Bounds(facts=2)
    assert client.ask(Verb.TOKEN, {"name": "one", "action": "take"}).header["held"]

    def fact(key: str, rev: int) -> Any:
        row = {"scope": "s", "key": key, "rev": rev, "value": 1}
        return brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "facts": [row]})

    assert fact("a", 0).verb is Verb.OK
    busy = fact("b", 0)
    assert (busy.verb, busy.header["bound"]) == (Verb.BUSY, "facts")
    assert client.ask(Verb.TOKEN, {"name": "two", "action": "take"}).verb is Verb.BUSY
    assert fact("a", 1).verb is Verb.OK
    assert client.ask(Verb.TOKEN, {"name": "one", "action": "release"}).verb is Verb.OK
    assert fact("b", 0).verb is Verb.OK


def test_a_forgotten_batch_takes_its_fact_along() -> None:
    rig = Harness(retain_tasks=1)
    worker, client, brain = rig.worker(credit=10), rig.client(), rig.brain()
    client.submit(key="p", kind="plan", plan={"name": "p"})
    batch = rig.core.batch_keys["p"]
    fact = {"scope": "plan", "key": batch.id, "rev": 0, "value": {"title": "t"}}
    say = {"epoch": rig.core.epoch, "batch": batch.id, "tasks": [spec("a"), spec("b")], "close": [batch.id]}
    brain.ask(Verb.BRAIN, {**say, "facts": [fact]}, [b"", b""])
    for lease in worker.leases():
        worker.result(lease)
    assert ("plan", batch.id) in rig.core.facts
    rig.wait(2, (worker, []), (client, []), (brain, []))
    assert batch.no not in rig.core.batches and ("plan", batch.id) not in rig.core.facts
