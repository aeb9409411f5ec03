"""A broker that could not listen calls nobody silent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from busparts import RealBroker
from harness import Harness
from helpers import wait_for

from rigbus import Client, Task
from rigbus.bus.broker.broker import Options
from rigbus.bus.broker.earshot import Earshot
from rigbus.bus.client.link import Connection
from rigbus.bus.states import TaskState
from rigbus.bus.wire import CLIENT_SESSION_S, LEASE_S, Envelope, Verb

STOPPED_LEASE_S = 2.0


def test_what_was_read_to_its_end_is_judged_at_once() -> None:
    ear = Earshot(5.0, 100.0)
    assert ear.turned(101.0, 0.0, True) == 101.0
    assert ear.turned(101.5, 0.1, True) == 101.5


def test_while_something_lies_unread_nobody_gets_older() -> None:
    ear = Earshot(5.0, 100.0)
    assert ear.turned(103.0, 0.0, False) == 100.0
    assert ear.turned(103.1, 0.0, True) == 103.1


def test_a_flood_that_has_no_end_holds_up_nothing_for_longer_than_a_lease() -> None:
    ear = Earshot(5.0, 100.0)
    for n in range(1, 100):
        behind = 95.0 + n if n > 6 else 100.0
        assert ear.turned(100.0 + n, 0.0, False) == behind
    assert ear.turned(200.0, 0.0, True) == 200.0


def test_however_long_it_stood_still_it_may_read_for_a_lease() -> None:
    ear = Earshot(5.0, 100.0)
    assert ear.turned(400.0, 300.0, False) == 100.0
    assert ear.turned(404.9, 0.0, False) == 100.0
    assert ear.turned(405.1, 0.0, False) == pytest.approx(400.1)


def test_after_a_stall_it_listens_for_a_moment_before_it_judges() -> None:
    ear = Earshot(5.0, 100.0)
    assert ear.turned(104.0, 4.0, True) == 100.0, "what was sent meanwhile may still be on its way"
    assert ear.turned(104.9, 0.0, True) == 100.0
    assert ear.turned(105.1, 0.0, True) == 105.1


def test_silence_is_judged_by_what_was_heard() -> None:
    rig = Harness()
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks({"key": "a", "type": "noop"}, orphan="cancel")
    worker.lease()
    heard, late = rig.now + 1.0, rig.now + max(LEASE_S, CLIENT_SESSION_S) + 5.0
    for n in range(20):  # each timer that is due looks again, soon, and no more often
        rig.core.tick(late + n, rig.wall, heard)
    assert task.state is TaskState.LEASED
    assert {worker.id, client.id} <= set(rig.core.sessions)
    rig.core.tick(late + 20.0, rig.wall)
    assert task.state is not TaskState.LEASED
    assert client.id not in rig.core.sessions


@pytest.fixture
def broker(rig_dir: Path) -> Iterator[RealBroker]:
    made = RealBroker(rig_dir, Options(lease_s=STOPPED_LEASE_S))
    made.start()
    yield made
    made.stop()


def test_what_a_stopped_broker_has_not_read_yet_keeps_a_lease(broker: RealBroker) -> None:
    link = Connection(broker.endpoint, role="worker", name="w1")
    stale = {"results": [{"token": [9, n], "ok": True, "duration_s": 0.0} for n in range(300)]}
    try:
        link.connect(10)
        offer = {"credit": 1, "slots": 1, "types": ["noop"], "classes": ["cpu"], "needs": [], "pools": []}
        assert link.send(Verb.OFFER, offer)
        with Client(broker.endpoint) as client:
            (id_,) = client.submit([Task(type="noop")])
            token = wait_for(lambda: _leased(link), what="the lease")
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                until = time.monotonic() + 1.5 * STOPPED_LEASE_S
                wait_for(lambda: time.monotonic() > until, what="the lease's time to pass")
                for _ in range(30):  # more than the broker reads in one round, and the renewal is behind it
                    assert link.send(Verb.RESULT, stale, [b""] * 300)
                assert link.send(Verb.RENEW, {"tokens": [token]})
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            answer = wait_for(lambda: _heard(link, Verb.RENEWED), timeout_s=20, what="the answer to RENEW")
            assert answer.header["stale"] == []
            row = client.query("task", id=id_)["rows"][0]
            assert (row["state"], row["attempts"]["infra"]) == ("leased", 0)
    finally:
        link.close()


def _heard(link: Connection, verb: Verb) -> Envelope | None:
    link.poll(0.01)
    while (envelope := link.recv()) is not None:
        if envelope.verb is verb:
            return envelope
    return None


def _leased(link: Connection) -> list[int] | None:
    envelope = _heard(link, Verb.LEASE)
    return envelope.header["leases"][0]["token"] if envelope else None
