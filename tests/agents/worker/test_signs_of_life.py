"""What the rig's processes write into their alive pipes, and when: real processes, real pipes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from busparts import ScriptedBroker
from helpers import free_endpoint

from rigbus.agents.worker import events as ev
from rigbus.agents.worker.loop import Loop, Peer
from rigbus.agents.worker.run import WorkerConfig
from rigbus.bus.lifeline import ALIVE_S, ALIVE_VARIABLE
from rigbus.bus.paths import endpoints, make_runtime, rig_paths
from rigbus.bus.timing import beat_s
from rigbus.bus.wire import Verb


def beat(fd: int, timeout_s: float) -> bool:
    """Wait for a sign of life and take all that is there."""
    if not select.select([fd], [], [], timeout_s)[0]:
        return False
    return bool(os.read(fd, 65536))


@contextmanager
def service(state: Path, name: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """``rigbus NAME`` with an alive pipe: its read end, and the process."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "rigbus", name, "--state", str(state)],
        env={**os.environ, ALIVE_VARIABLE: str(write)},
        pass_fds=(write,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        yield read, process
    finally:
        process.kill()
        process.wait(5)
        os.close(read)


@pytest.mark.live
@pytest.mark.parametrize("name", ["broker", "brain", "bridge"])
def test_a_service_says_that_its_loop_turns_until_it_is_stopped(name: str, rig_dir: Path) -> None:
    """Brain and bridge have no broker here: they wait for one, and that is life too."""
    with service(rig_dir / "s", name) as (pipe, process):
        assert beat(pipe, 15.0), "no first beat"
        assert beat(pipe, 4 * ALIVE_S)
        os.kill(process.pid, signal.SIGSTOP)
        while beat(pipe, 0.0):
            pass
        assert not beat(pipe, 1.5 * ALIVE_S), "a stopped process spoke"
        os.kill(process.pid, signal.SIGCONT)
        assert beat(pipe, 4 * ALIVE_S)


@pytest.mark.live
def test_a_brain_that_waits_for_an_answer_lives(rig_dir: Path) -> None:
    """A broker that hangs must not take the brain along: it is the broker that is to be replaced."""
    paths = rig_paths(rig_dir / "s")
    paths.state.mkdir()
    make_runtime(paths)
    broker = ScriptedBroker(endpoints(paths)["commands"], events=endpoints(paths)["events"])
    welcome = {"proto": [1, 0], "incarnation": 1, "seq": 0, "events": broker.events, "epoch": 1}
    broker.answers[Verb.HELLO] = lambda _: [(Verb.WELCOME, welcome, [])]
    try:
        with service(paths.state, "brain") as (pipe, _):
            assert beat(pipe, 15.0)
            deadline = time.monotonic() + 10
            while Verb.SNAPSHOT not in broker.verbs() and time.monotonic() < deadline:
                beat(pipe, 0.05)
            assert Verb.SNAPSHOT in broker.verbs(), "it never asked"
            assert all(beat(pipe, 4 * ALIVE_S) for _ in range(2))
            assert broker.verbs().count(Verb.SNAPSHOT) <= 2, "it did not wait for its answer"
    finally:
        broker.stop()


@pytest.mark.parametrize("lease_s", [0.3, 0.6])
def test_a_worker_beats_several_times_in_a_lease_once_it_knows_the_lease(
    lease_s: float, rig_dir: Path
) -> None:
    broker = ScriptedBroker(free_endpoint(rig_dir))
    welcome = {"proto": [1, 0], "incarnation": 1, "seq": 0, "lease_s": lease_s, "renew_s": lease_s / 5}
    broker.answers[Verb.HELLO] = lambda _: [(Verb.WELCOME, welcome, [])]
    read, write = os.pipe()
    loop = Loop(Peer("w", broker.endpoint), alive_fd=write)
    thread = threading.Thread(target=loop.run, args=(WorkerConfig(),), daemon=True)
    thread.start()
    try:
        assert loop.ready.wait(5)
        times = []
        for _ in range(8):
            assert beat(read, 5.0)
            times.append(time.monotonic())
        gaps = sorted(b - a for a, b in pairwise(times))
        assert gaps[len(gaps) // 2] == pytest.approx(beat_s(lease_s), rel=0.5)
        assert broker.verbs().count(Verb.RENEW) >= 3
    finally:
        loop.post(ev.Drain(fast=True))
        thread.join(5)
        broker.stop()
        os.close(read)
        os.close(write)
    assert not thread.is_alive()
