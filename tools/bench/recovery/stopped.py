"""A subscriber that is stopped with full queues: what the broker's answers cost the others, in paired turns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ....bus.errors import RigbusError
from ....bus.paths import endpoints, rig_paths
from ..figures import Figure, Spread
from ..mirror import quantile
from ..rig import BenchRig, Setup

if TYPE_CHECKING:
    from ....bus.client.client import Client

RATIO: Final = 1.1  #: target
#: Events after which no queue to it has room: 10,000 with the broker, 1,000 with it, and the kernel's.
QUEUED: Final = 16_000
ASK_S: Final = 0.002  #: between two questions
FILL: Final = 2000  #: tasks of one submit
WAIT_S: Final = 120.0


def measure(turns: int, tasks: int, say: Callable[[str], None]) -> tuple[list[Figure], str]:
    """Pairs of turns, with the subscriber stopped and with it reading; each has ``tasks`` under way."""
    ratios, stopped, reads = [], [], []
    with BenchRig(Setup(agents=2)) as rig, rig.client() as client, _subscriber(rig) as sub:
        _reads(rig, client, tasks)
        for n in range(turns):
            if n % 2:
                b = _reads(rig, client, tasks)
                a = _stopped(rig, client, sub, tasks)
            else:
                a = _stopped(rig, client, sub, tasks)
                b = _reads(rig, client, tasks)
            stopped.append(a)
            reads.append(b)
            ratios.append(a / b)
            say(f"pair {n + 1} of {turns}: p99 {a:.2f} ms with a stopped subscriber, {b:.2f} ms else")
        gaps = _told(sub)
    if gaps < turns:
        raise RigbusError(
            f"the subscriber missed events {gaps} times in {turns} stops: its queues were not full"
        )
    figures = [
        Figure(
            "subscriber stopped: answer p99, by that of one that reads", "×", Spread.of(ratios), target=RATIO
        ),
        Figure("answer p99, subscriber stopped", "ms", Spread.of(stopped)),
        Figure("answer p99, subscriber reads", "ms", Spread.of(reads)),
    ]
    note = (
        f"Subscriber: SUB to all topics, stopped with SIGSTOP; a turn begins when {QUEUED:,} events were published past it. "
        f"It saw {gaps} gaps in {turns} stops. Questions (one task's row) every {ASK_S * 1000:g} ms while {tasks:,} no-op tasks "
        "run; the median of the pairs' ratios."
    )
    return figures, note


def _stopped(rig: BenchRig, client: Client, sub: subprocess.Popen[str], tasks: int) -> float:
    os.kill(sub.pid, signal.SIGSTOP)
    try:
        _fill(rig, client)
        return _turn(rig, client, tasks)
    finally:
        os.kill(sub.pid, signal.SIGCONT)


def _reads(rig: BenchRig, client: Client, tasks: int) -> float:
    _run(rig, client, FILL)  # it catches up meanwhile
    return _turn(rig, client, tasks)


def _seq(client: Client) -> int:
    return int(client.query("status")["seq"])


def _fill(rig: BenchRig, client: Client) -> None:
    """Work until no queue to the stopped one has room."""
    full = _seq(client) + QUEUED
    while _seq(client) < full:
        _run(rig, client, FILL)


def _turn(rig: BenchRig, client: Client, tasks: int) -> float:
    """p99 of the broker's answers while so many tasks run, ms."""
    return quantile(_run(rig, client, tasks), 0.99)


def _run(rig: BenchRig, client: Client, tasks: int) -> list[float]:
    """Queue tasks, and ask for the last one's row until it is done; the times of the answers, ms."""
    from ....bus.client.work import Task

    with rig.open() as other:  # of its own: nobody hears the ends
        ids = other.submit(Task(type="noop", payload={"data": "x" * 200}) for _ in range(tasks))
    found: list[float] = []
    deadline = time.monotonic() + WAIT_S
    while True:
        began = time.perf_counter()
        row = client.query("task", id=ids[-1])["rows"][0]
        found.append((time.perf_counter() - began) * 1000)
        if row["state"] == "done":
            return found
        if time.monotonic() > deadline:
            raise RigbusError(f"{tasks} tasks are not done after {WAIT_S:g} s; this is no benchmark")
        client.tend(ASK_S)


@contextmanager
def _subscriber(rig: BenchRig) -> Iterator[subprocess.Popen[str]]:
    words = ["rigbus.tools.bench.recovery.subscriber", endpoints(rig_paths(rig.state))["events"]]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=rig.folder,
    )
    try:
        if process.stdout is None or process.stdout.readline() != "listens\n":
            raise RigbusError("the subscriber does not start; this is no benchmark")
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            process.communicate()


def _told(sub: subprocess.Popen[str]) -> int:
    """How often it saw that events were missing; it ends with that."""
    out, _ = sub.communicate(timeout=WAIT_S)
    return int(out)
