"""The times that follow from a lease, in a table over its length; the core keeps to them."""

from __future__ import annotations

import pytest
from busparts import RealBroker
from harness import Harness

from rigbus.bus import timing
from rigbus.bus.broker.broker import Options
from rigbus.bus.core.core import Core
from rigbus.bus.states import TaskState
from rigbus.bus.wire import CLIENT_SESSION_S, Verb

LEASES_S = (0.3, 1.0, 5.0)


def spec(key: str) -> dict[str, object]:
    return {"key": key, "type": "noop"}


@pytest.mark.parametrize(
    ("lease_s", "renew_s", "beat_s", "suspicion_s", "fence_s", "silence_s", "absence_s"),
    [
        (0.2, 0.04, 0.2 / 3, 0.12, 0.15, 2.0, 6.0),
        (0.3, 0.06, 0.1, 0.18, 0.225, 2.0, 6.0),
        (1.0, 0.2, 1 / 3, 0.6, 0.75, 2.0, 6.0),
        (5.0, 1.0, 1.0, 3.0, 4.0, 5.0, 10.0),
        (300.0, 1.0, 1.0, 3.0, 299.0, 300.0, 600.0),
    ],
)
def test_every_time_follows_the_lease(
    lease_s: float,
    renew_s: float,
    beat_s: float,
    suspicion_s: float,
    fence_s: float,
    silence_s: float,
    absence_s: float,
) -> None:
    assert timing.renewal_s(lease_s) == pytest.approx(renew_s)
    assert timing.beat_s(lease_s) == pytest.approx(beat_s)
    assert timing.suspicion_s(lease_s) == pytest.approx(suspicion_s)
    assert timing.fence_s(lease_s) == pytest.approx(fence_s)
    assert timing.silence_s(lease_s) == silence_s
    assert timing.absence_s(lease_s) == absence_s
    assert renew_s <= timing.longest_renewal_s(lease_s) < suspicion_s < fence_s < lease_s <= silence_s


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_a_worker_that_renews_as_welcome_says_keeps_its_lease_even_when_one_is_lost(lease_s: float) -> None:
    rig = Harness(lease_s=lease_s)
    worker = rig.worker()
    renew_s = worker.reconnect().header["renew_s"]
    assert renew_s == timing.renewal_s(lease_s)
    worker.offer()
    (task,) = rig.client().tasks(spec("a"))
    lease = worker.lease()
    for n in range(60):
        rig.wait(renew_s)
        if n % 2:
            assert worker.renew(lease) == {"cancel": [], "stale": []}
        assert not rig.core.sessions[worker.id].suspect
    assert task.state is TaskState.LEASED and task.attempt == 1
    assert worker.result(lease).verb is Verb.RECORDED
    rig.check()


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_a_silent_worker_is_suspect_then_without_its_lease_and_then_without_its_session(
    lease_s: float,
) -> None:
    rig = Harness(lease_s=lease_s)
    worker = rig.worker(name="silent", credit=2, slots=2)
    client = rig.client()
    (task,) = client.tasks(spec("a"))
    first = worker.lease()
    rig.wait(timing.suspicion_s(lease_s) + timing.beat_s(lease_s))
    client.renew()
    (other,) = client.tasks(spec("b"))
    assert task.state is TaskState.LEASED and other.state is TaskState.READY, "a suspect got new work"
    rig.matching = False
    rig.wait(lease_s - timing.suspicion_s(lease_s))
    assert task.state is TaskState.READY
    assert f"silent for {lease_s:g} s" in str(task.error)
    assert worker.renew(first) == {"cancel": [], "stale": [first["token"]]}
    rig.wait(timing.absence_s(lease_s) - 0.1)
    assert worker.id in rig.core.sessions
    rig.wait(0.2 + timing.beat_s(lease_s))
    assert worker.id not in rig.core.sessions
    rig.check()


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_a_clients_session_is_as_long_as_ever(lease_s: float) -> None:
    rig = Harness(lease_s=lease_s)
    client = rig.client()
    rig.wait(CLIENT_SESSION_S - 0.1)
    assert client.id in rig.core.sessions
    rig.wait(0.2)
    assert client.id not in rig.core.sessions


def test_a_renewal_that_was_chosen_is_the_one_that_peers_are_told() -> None:
    core = Core(incarnation=1, state_id="5" * 32, lease_s=5.0, renew_s=0.5)
    assert Harness(core).worker().reconnect().header["renew_s"] == 0.5


def test_the_broker_tells_the_renewal_of_its_own_lease(rig_dir) -> None:
    broker = RealBroker(rig_dir, Options(lease_s=0.5))
    broker.start(ready=False)
    try:
        welcome = broker.welcome()
        assert (welcome["lease_s"], welcome["renew_s"]) == (0.5, 0.1)
    finally:
        broker.stop()
