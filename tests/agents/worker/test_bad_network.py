"""A worker behind a network that delays, cuts, swallows and corrupts: real tcp, real commands, a second worker beside it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from busparts import RealBroker
from helpers import free_ports, short_folder, wait_for
from tcpproxy import DOWN, UP, Network, TcpProxy

from rigbus import Client, Task
from rigbus.bus.broker.broker import Options
from rigbus.bus.wire import Verb

pytestmark = pytest.mark.live

LEASE_S = 2.0
BUSY_S = 0.15
#: More than a lease and its fence, less than the patience of anybody.
OUTAGE_S = 3.5
_WORKER = (
    "import sys; from pathlib import Path\n"
    "from rigbus.agents.process.linux import processes\n"
    "from rigbus.agents.worker.serve import Place\n"
    "from rigbus.agents.worker.main import Worker\n"
    "processes().become_subreaper()\n"
    "name, state, commands, heartbeats = sys.argv[1:]\n"
    "sys.exit(Worker(Place(name, commands, heartbeats, Path(state))).run())\n"
)


@dataclass
class Rig:
    """A broker on tcp; the worker ``near`` beside it, ``far`` behind the proxy."""

    folder: Path
    broker: RealBroker
    proxy: TcpProxy
    client: Client

    def rows(self) -> dict[str, dict[str, Any]]:
        found = self.client._link.request(Verb.QUERY, {"what": "workers"}, timeout_s=20).header["workers"]
        return {row["id"]: row for row in found}

    def submit(self, n: int, tag: str) -> list[str]:
        """Commands that notice a second one of their own at the same time, and say when they have run."""
        ids: list[str] = []
        for i in range(n):
            key = f"{tag}-{i}"
            command = (
                f"cd {self.folder}; exec 9>>lock-{key}; flock -n 9 || echo {key} >> overlaps; "
                f"sleep {BUSY_S}; echo ran >> ran-{key}"
            )
            ids += self.client.submit([Task(type="shell", payload={"command": command}, key=key)])
        return ids

    def ran(self, tag: str) -> int:
        return len(list(self.folder.glob(f"ran-{tag}-*")))

    def works_far(self) -> bool:
        """Whether ``far`` is heard, and has said that it takes work."""
        row = self.rows().get("far", {})
        return row.get("state") in ("idle", "busy") and row["credit"] > 0

    def leased_far(self) -> int:
        return len(self.rows().get("far", {"tasks": ()})["tasks"])


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with short_folder() as folder:
        names = ("commands", "heartbeats", "events")
        addresses = {n: f"tcp://127.0.0.1:{p}" for n, p in zip(names, free_ports(3), strict=True)}
        broker = RealBroker(folder, Options(lease_s=LEASE_S), addresses)
        broker.start()
        for part in ("logs", "results"):
            (broker.state / part).mkdir(exist_ok=True)
        proxy = TcpProxy(addresses["commands"])
        started = []
        try:
            for name, commands in (("near", addresses["commands"]), ("far", proxy.endpoint)):
                words = [sys.executable, "-c", _WORKER, name, str(broker.state), commands]
                words.append(addresses["heartbeats"])
                log = (folder / f"{name}.log").open("wb")
                started.append(subprocess.Popen(words, stdout=log, stderr=log))
                log.close()
            with Client(broker.endpoint) as client:
                made = Rig(folder, broker, proxy, client)
                wait_for(lambda: set(made.rows()) == {"near", "far"}, timeout_s=30, what="both workers")
                yield made
        finally:
            for worker in started:
                worker.terminate()
                worker.terminate()
            for worker in started:
                try:
                    worker.wait(10)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait(5)
            proxy.stop()
            broker.stop()


@pytest.fixture(autouse=True)
def _well_again(rig: Rig) -> Iterator[None]:
    yield
    rig.proxy.become()
    wait_for(rig.works_far, timeout_s=30, what="far")


def ended_once(rig: Rig, ids: list[str], tag: str) -> None:
    """All ended well, recorded once each; none ran beside itself."""
    results = list(rig.client.results(ids, timeout_s=60))
    assert sorted(r.id for r in results) == sorted(ids), "none lost, none told twice"
    assert [r.error for r in results if not r.ok] == []
    assert not (rig.folder / "overlaps").exists(), (rig.folder / "overlaps").read_text()
    for i in range(len(ids)):
        assert (rig.folder / f"ran-{tag}-{i}").exists()


def during(rig: Rig, outage_s: float, tag: str, n: int, **network: Any) -> tuple[list[str], float]:
    """Break the network while ``far`` works, heal it; the tasks, and how long ``far`` took to be back at work (s)."""
    ids = rig.submit(n, tag)
    wait_for(lambda: rig.leased_far() and rig.ran(tag), timeout_s=20, what="far to be at work")
    rig.proxy.become(**network)
    until = time.monotonic() + outage_s
    wait_for(lambda: time.monotonic() >= until, timeout_s=outage_s + 5, what="the outage's end")
    rig.proxy.become()
    healed_at = time.monotonic()
    wait_for(rig.works_far, timeout_s=30, what="far to be back at work")
    return ids, time.monotonic() - healed_at


@pytest.mark.parametrize(
    "network",
    [
        pytest.param({"cut": True}, id="cut"),
        pytest.param({"half_open": True}, id="half-open"),
    ],
)
def test_after_an_outage_each_task_has_ended_once_and_the_worker_is_back(
    rig: Rig, request: pytest.FixtureRequest, network: dict[str, Any]
) -> None:
    tag = request.node.callspec.id
    ids, back_s = during(rig, OUTAGE_S, tag, 40, **network)
    ended_once(rig, ids, tag)
    assert back_s < 10.0
    print(f"\n{tag}: back at work {back_s:.2f} s after it healed, {rig.proxy.accepted} connections so far")


@pytest.mark.parametrize("way", [UP, DOWN])
def test_one_way_silence_is_noticed_and_the_work_goes_to_another(rig: Rig, way: str) -> None:
    tag = f"silent-{way}"
    ids = rig.submit(20, tag)
    wait_for(lambda: rig.leased_far() and rig.ran(tag), timeout_s=20, what="far to be at work")
    rig.proxy.become(silent=frozenset({way}))
    ended_once(rig, ids, tag)  # while it lasts
    rig.proxy.become()
    wait_for(rig.works_far, timeout_s=30, what="far to be back at work")
    ended_once(rig, ids, tag)  # what `far` has to say of its runs changes nothing


def test_a_slow_network_costs_no_task_a_second_run(rig: Rig) -> None:
    rig.proxy.become(delay_s=0.3)
    ids = rig.submit(20, "slow")
    ended_once(rig, ids, "slow")
    assert [len((rig.folder / f"ran-slow-{i}").read_text().split()) for i in range(20)] == [1] * 20


def test_a_thin_line_costs_no_task_a_second_run(rig: Rig) -> None:
    rig.proxy.become(bytes_per_s=20_000.0)
    ids = rig.submit(20, "thin")
    ended_once(rig, ids, "thin")
    assert [len((rig.folder / f"ran-thin-{i}").read_text().split()) for i in range(20)] == [1] * 20


@pytest.mark.parametrize("way", [UP, DOWN])
def test_corrupt_bytes_lose_no_task_and_run_none_beside_itself(rig: Rig, way: str) -> None:
    tag = f"corrupt-{way}"
    ids = rig.submit(40, tag)
    wait_for(rig.leased_far, timeout_s=20, what="far to be at work")
    for _ in range(10):
        before = rig.ran(tag)
        rig.proxy.corrupt(way)
        wait_for(lambda before=before: rig.ran(tag) > before, timeout_s=30, what="the work to go on")
    results = list(rig.client.results(ids, timeout_s=60))
    assert sorted(r.id for r in results) == sorted(ids), "none lost, none told twice"
    assert not (rig.folder / "overlaps").exists()
    # Without CURVE nothing but TCP's own checksum guards a payload: a bit that gets past it may make another command.
    assert sum(r.ok for r in results) >= len(ids) - 10


def test_connections_that_end_at_once_are_tried_again_with_a_back_off(rig: Rig) -> None:
    """A port where something listens that is no broker costs no storm of connections."""
    rig.proxy.network = Network(half_open=True)
    wait_for(
        lambda: rig.rows().get("far", {}).get("state") not in ("idle", "busy"), timeout_s=20, what="far away"
    )
    rig.proxy.network = Network(cut=True)
    before = rig.proxy.refused
    until = time.monotonic() + 3.0
    wait_for(lambda: time.monotonic() >= until, timeout_s=5, what="three seconds")
    assert rig.proxy.refused - before < 3.0 * 25, "50 ms between two at the least"
