"""Trees that do not die: the attempt ends without them, the rig stops without them, and a late end is noticed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from frozen import frozen_mount, thaw, wait_hanging
from helpers import wait_for

from rigbus.agents.attempts.shell import ShellRunner
from rigbus.agents.attempts.spawned import SpawnedRunner
from rigbus.agents.process.api import Orphan, unkillable
from rigbus.agents.process.linux import LinuxProcesses
from rigbus.agents.supervisor.core import (
    ChildSpec,
    Finish,
    Gone,
    Phase,
    Say,
    Stage,
    Start,
    SupervisorCore,
    Terminate,
)
from rigbus.agents.worker import events as ev
from rigbus.agents.worker.events import Lease, Outcome
from rigbus.bus.wire import Token, pack

HANGS = "pid 4711 (cat /mnt/x, state D) cannot be killed"


def test_what_does_not_die_is_named() -> None:
    one = Orphan(4711, "cat /mnt/x", "t", "D")
    assert unkillable([one]) == HANGS
    assert "and 2 more cannot be killed" in unkillable([one] * 5)
    assert unkillable([Orphan(7, "", "")]) == "pid 7 (no command line) cannot be killed"
    assert unkillable([]) == "a process of it cannot be killed"


# ---------------------------------------------------------------- the supervisor


def supervised() -> SupervisorCore:
    core = SupervisorCore(
        [
            ChildSpec("broker", ("broker",), Stage.BROKER),
            ChildSpec("worker-1", ("worker",), Stage.WORKER, watched=True, leaf=False),
        ],
        lease_s=5.0,
    )
    core.begin()
    core.started("broker", 10, 0.0)
    core.started("worker-1", 11, 0.0)
    core.ready = True
    return core


def of(actions: list[Any], kind: type) -> list[Any]:
    return [a for a in actions if isinstance(a, kind)]


def test_a_worker_whose_tree_hangs_is_reported_and_waits_with_its_name() -> None:
    core = supervised()
    core.exited("worker-1", None, 9, "", 1.0)
    (gone,) = of(core.undying("worker-1", HANGS, 31.0), Gone)
    assert gone.why == f"was ended by signal 9; {HANGS}" and gone.undying
    assert core.undying("worker-1", HANGS, 32.0) == []
    assert of(core.tick(500.0), Start) == [], "what hangs may hold its card"
    late = core.swept("worker-1", 600.0)
    assert of(late, Gone) == [Gone("worker-1", "what could not be killed has ended")], "its card is free now"
    assert "dead at last" in of(late, Say)[0].text
    assert Start("worker-1") in core.tick(700.0)
    core.started("worker-1", 12, 700.0)
    core.exited("worker-1", None, 9, "", 701.0)
    assert of(core.swept("worker-1", 701.0), Gone), "the next one is reported as ever"


@pytest.mark.parametrize("first", ["stop", "hang"])
def test_a_stop_does_not_wait_for_what_hangs(first: str) -> None:
    core = supervised()
    core.exited("worker-1", None, 9, "", 1.0)
    actions = core.stop(2.0) if first == "stop" else []
    actions += core.undying("worker-1", HANGS, 31.0)
    actions += core.stop(32.0) if first == "hang" else []
    assert core.children["worker-1"].phase is Phase.STOPPED
    assert Terminate("broker") in actions
    core.exited("broker", 0, None, "", 33.0)
    actions = core.swept("broker", 33.0)
    assert of(actions, Finish) == [Finish(0)]
    assert core.swept("worker-1", 34.0) == []


def test_nobody_hangs_who_runs() -> None:
    core = supervised()
    assert core.undying("worker-1", HANGS, 31.0) == []


# ---------------------------------------------------------------- runners, with real processes


class Host:
    """What a runner needs of the loop; ``events`` is what it posted."""

    def __init__(self) -> None:
        self.events: list[ev.Event] = []
        self.watched: dict[int, Callable[[], None]] = {}

    def post(self, event: ev.Event, wake: bool = True) -> None:
        self.events.append(event)

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        self.watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def mark(self, token: Token) -> str:
        return f"test:{os.getpid()}:{token[0]}.{token[1]}"

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    with frozen_mount(tmp_path) as point:
        yield point


@pytest.mark.live
@pytest.mark.parametrize("what", ["the command itself", "what it left behind"])
def test_a_command_that_hangs_in_the_kernel_is_given_up_and_its_late_end_is_told(
    mount: Path, tmp_path: Path, what: str
) -> None:
    procs = LinuxProcesses()
    procs.become_subreaper()
    host = Host()
    helpers = SpawnedRunner(host, procs, tmp_path, lambda lease: {}, None)
    shell = ShellRunner(host, procs, helpers, tmp_path)
    shell.unkillable_s = 0.3

    def turn(kind: type, timeout_s: float = 10.0) -> Any:
        def one() -> list[Any]:
            shell.tick(time.monotonic())
            return host.of(kind)

        return wait_for(one, timeout_s=timeout_s, what=kind.__name__)[0]

    command = f"touch {mount}/x" if what == "the command itself" else f"setsid touch {mount}/x & exit 0"
    lease = Lease((1, 1), "id", "b", "k", "shell", payload=pack({"command": command}))
    shell.start(lease)
    try:
        attempt = shell._live[(1, 1)]
        if what == "the command itself":
            wait_hanging(attempt.child.pid)
            shell.kill((1, 1))
        else:
            wait_for(attempt.child.poll_exit, what="the end of the command")
            wait_hanging(wait_for(procs.adopted_children, what="its orphan")[0].pid)
            shell._on_exit(attempt)
        hangs = turn(ev.Unkillable)
        assert hangs.token == (1, 1)
        assert "(touch " in hangs.said and hangs.said.endswith("state D) cannot be killed")
        assert not host.of(ev.Ended)
        assert attempt.child.exit_fd not in host.watched or what == "the command itself", (
            "it would wake all the time"
        )
        thaw(mount)
        assert turn(ev.Ended).token == (1, 1)
        assert len(host.of(ev.Unkillable)) == 1
    finally:
        thaw(mount)
        shell.close()


@pytest.mark.live
@pytest.mark.parametrize("words", ["setsid", "env -i setsid"])
def test_what_hangs_holds_up_no_other_attempt(mount: Path, tmp_path: Path, words: str) -> None:
    """An orphan without a mark could be anybody's: the others wait for it only until it is given up."""
    procs = LinuxProcesses()
    procs.become_subreaper()
    host = Host()
    shell = ShellRunner(host, procs, SpawnedRunner(host, procs, tmp_path, lambda lease: {}, None), tmp_path)
    shell.unkillable_s = 0.3

    def start(n: int, command: str) -> None:
        shell.start(Lease((1, n), "id", "b", f"k{n}", "shell", payload=pack({"command": command})))

    def ended() -> list[Token]:
        for ready in list(host.watched.values()):
            ready()
        shell.tick(time.monotonic())
        return [e.token for e in host.of(ev.Ended)]

    try:
        start(1, f"{words} touch {mount}/x & exit 0")
        wait_hanging(wait_for(procs.adopted_children, what="its orphan")[0].pid)
        assert ended() == []  # its shell has ended and its orphan is seen before there is another attempt
        start(2, "true")
        wait_for(lambda: ended() == [(1, 2)], timeout_s=30, what="the end of the one beside it")
        wait_for(lambda: ended() and host.of(ev.Unkillable), what="the first one to be given up")
        start(3, "true")
        wait_for(lambda: ended() == [(1, 2), (1, 3)], what="the end of the one after it")
        thaw(mount)
        wait_for(lambda: ended() == [(1, 2), (1, 3), (1, 1)], what="its late end")
        assert [e.token for e in host.of(ev.Unkillable)] == [(1, 1)]
        assert procs.hanging == set()
    finally:
        thaw(mount)
        shell.close()


@pytest.mark.live
def test_a_helper_that_hangs_answers_who_waits_and_no_second_one_is_started(
    mount: Path, tmp_path: Path
) -> None:
    procs = LinuxProcesses()
    procs.become_subreaper()
    host = Host()
    helpers = SpawnedRunner(host, procs, tmp_path, lambda lease: {}, None)
    helpers.unkillable_s = 0.3
    answers: list[Outcome] = []

    def turn(n: int) -> bool:
        for ready in list(host.watched.values()):
            ready()
        helpers.tick(time.monotonic())
        return len(answers) == n

    arguments = {"path": str(mount / "made")}
    try:
        helpers.call(("view", "v"), "os:mkdir", arguments, answers.append, 4.0)
        wait_for(lambda: turn(1), what="the first answer")
        assert (answers[0].cls, "cannot be killed" in str(answers[0].error)) == ("infra", True)
        helpers.call(("view", "v"), "os:mkdir", arguments, answers.append, 1.0)
        assert "before it hangs" in str(answers[1].error)
        thaw(mount)
        wait_for(lambda: turn(2) and not helpers._live, what="its late end")
        (mount / "made").rmdir()
        helpers.call(("view", "v"), "os:mkdir", arguments, answers.append, 10.0)
        wait_for(lambda: turn(3), what="the third answer")
        assert answers[2].ok, answers[2].error
    finally:
        thaw(mount)
        helpers.close()
