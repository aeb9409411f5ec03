"""A subscriber that is stopped (SIGSTOP) while much happens, and goes on: it has missed nothing, and nobody waited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from busparts import RealBroker, SmallWorker
from helpers import wait_for

from rigbus import Client, Task
from rigbus.bus.wire import Verb

pytestmark = pytest.mark.live

#: More events than the broker keeps for a subscriber (10,000), and than a socket takes beside.
TASKS = 5_000

_SUBSCRIBER = """
import sys
from rigbus import Client

class Counting(Client):
    asked = 0
    def request(self, verb, *rest, **more):
        self.asked += verb == "EVENTS"
        return super().request(verb, *rest, **more)

with Counting(sys.argv[1]) as client, client.events(["task.noop.done", "rig.over"]) as events:
    print("listening", flush=True)
    seen, last = 0, 0
    for event in events:
        assert event.seq > last, "in order, and once"
        last, seen = event.seq, seen + 1
        if seen == int(sys.argv[2]):
            break
    print(seen, client.asked, flush=True)
"""


@pytest.fixture
def broker(rig_dir: Path) -> Iterator[RealBroker]:
    made = RealBroker(rig_dir)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def worker(broker: RealBroker) -> Iterator[SmallWorker]:
    made = SmallWorker(broker.endpoint, ["noop"], lambda lease, payload, progress: None, credit=1000)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.usefixtures("worker")
def test_a_stopped_subscriber_sees_the_gap_and_reads_what_it_missed(broker: RealBroker) -> None:
    subscriber = subprocess.Popen(
        [sys.executable, "-c", _SUBSCRIBER, broker.endpoint, str(TASKS)], stdout=subprocess.PIPE, text=True
    )
    assert subscriber.stdout is not None
    try:
        assert subscriber.stdout.readline() == "listening\n"
        os.kill(subscriber.pid, signal.SIGSTOP)
        with Client(broker.endpoint) as client:
            slowest_s = 0.0
            ids: list[str] = []
            for _ in range(TASKS // 1000):
                ids += client.submit([Task(type="noop") for _ in range(1000)])
                began = time.monotonic()
                client.query("workers")
                slowest_s = max(slowest_s, time.monotonic() - began)
            assert sum(result.ok for result in client.results(ids, timeout_s=100)) == TASKS
            status = client.query("status")
            assert status["seq"] > 12_000, "or it has missed nothing"
            assert slowest_s < 5.0 and status["refused"] == []
            os.kill(subscriber.pid, signal.SIGCONT)
            said = wait_for(subscriber.stdout.readline, timeout_s=60, what="it to have seen everything")
        seen, asked = map(int, said.split())
        assert seen == TASKS
        assert asked > 0, "the socket has dropped some, so the log was asked"
        assert subscriber.wait(10) == 0
    finally:
        subscriber.kill()
        subscriber.wait(5)
        subscriber.stdout.close()


def test_the_verb_that_the_subscriber_counts_is_that_of_the_log() -> None:
    assert Verb.EVENTS == "EVENTS"
