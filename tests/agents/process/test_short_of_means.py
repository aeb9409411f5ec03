"""No descriptor, no memory, no process to be had, at each call in turn: the attempt ends by name, and nothing lives on."""

from __future__ import annotations

import builtins
import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import bearers_of_token, end_all, open_descriptors, wait_for

from rigbus.agents.attempts.environment import task_environment
from rigbus.agents.process import child as child_module
from rigbus.agents.process import tree as proctree
from rigbus.agents.process.linux import LinuxProcesses, Spawn, SpawnError, shell_argv

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc and pidfds")
TOKEN = f"short-{os.getpid()}"
_SET_CHILD_SUBREAPER = 36
#: One that hides in a session of its own, one beside it.
COMMAND = "setsid sh -c 'exec sleep 300' & sleep 300 & echo $!; wait"


class Failing:
    """A function of the system whose Nth call fails; 0: none does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: int) -> None:
        self.count, self.nth, self.error = 0, 0, error
        self._real: Callable[..., Any] = getattr(owner, name, None) or getattr(builtins, name)
        monkeypatch.setattr(owner, name, self, raising=False)

    def arm(self, nth: int) -> None:
        self.count, self.nth = 0, nth

    def disarm(self) -> None:
        self.nth = 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.count += bool(self.nth)
        if self.nth and self.count == self.nth:
            raise OSError(self.error, os.strerror(self.error))
        return self._real(*given, **named)


@pytest.fixture
def procs() -> Iterator[LinuxProcesses]:
    made = LinuxProcesses([])
    assert made.become_subreaper()
    yield made
    end_all(bearers_of_token(TOKEN))
    wait_for(lambda: not made.reap_adopted() and not made.adopted(), what="the last zombies")
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def attempt(
    procs: LinuxProcesses,
    folder: Path,
    argv: list[str],
    *,
    at_start: Callable[[], None],
    at_end: Callable[[], None],
) -> str:
    """Start it, let its tree grow, end it with everything; why it could not be started, if so."""
    spec = Spawn(
        argv=argv,
        env=task_environment(os.environ, {}),
        token=f"{TOKEN}:1.1",
        cwd=folder,
        log_path=folder / "out.log",
        enter=folder if argv[0] == "bash" else None,
    )
    at_start()
    try:
        child = procs.spawn(spec)
    except SpawnError as e:
        return f"{e.error_class}: {e}"
    wait_for(lambda: len(bearers_of_token(TOKEN)) >= 3, what="the command's tree")
    at_end()
    sweep = procs.kill_tree(child)
    wait_for(sweep.step, what="the end of the tree")
    child.close()
    return ""


def nothing() -> None:
    """No call fails."""


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (os, "pidfd_open", errno.EMFILE),
        (os, "pipe", errno.EMFILE),
        (os, "posix_spawn", errno.EAGAIN),
        (child_module.subprocess, "Popen", errno.ENOMEM),
        (proctree, "open", errno.EMFILE),
        (proctree, "open", errno.ENOMEM),
    ],
    ids=lambda value: (
        getattr(value, "__name__", "") if not isinstance(value, int) else errno.errorcode[value]
    ),
)
def test_whichever_call_fails_the_attempt_ends_and_nothing_lives_on(
    procs: LinuxProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: int
) -> None:
    failing = Failing(monkeypatch, owner, name, error)
    # A line of bash is started by posix_spawn, anything else by Popen.
    argv = shell_argv(COMMAND) if name == "posix_spawn" else ["/bin/sh", "-c", COMMAND]
    attempt(procs, tmp_path, argv, at_start=nothing, at_end=nothing)
    total = 0
    before = open_descriptors()
    for phase, other in (("at_start", "at_end"), ("at_end", "at_start")):
        for nth in range(1, 60):
            how = {
                phase: lambda n=nth: failing.arm(n),
                other: nothing if phase == "at_end" else failing.disarm,
            }
            said = attempt(procs, tmp_path, argv, **how)
            reached = failing.count >= nth
            failing.disarm()
            assert not said or (said.startswith("infra: ") and os.strerror(error) in said), said
            assert not (left := bearers_of_token(TOKEN)), f"{phase}, call {nth}: {left}"
            assert not open_descriptors() - before, f"{phase}, call {nth} leaves a descriptor"
            if not reached:
                break
        total += nth - 1
        print(f"\n{name} {phase}: {nth - 1} calls")
    assert total, "it is never called: nothing was tested"


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_sweep_of_a_rig_that_is_short_of_means_looks_again_until_all_is_dead(
    procs: LinuxProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    spec = Spawn(
        argv=["/bin/sh", "-c", COMMAND],
        env=task_environment(os.environ, {}),
        token=f"{TOKEN}:2.1",
        cwd=tmp_path,
        log_path=tmp_path / "out.log",
    )
    child = procs.spawn(spec)
    wait_for(lambda: len(bearers_of_token(TOKEN)) >= 3, what="the command's tree")
    looks = Failing(monkeypatch, proctree, "open", error)
    looks.arm(3)
    report = procs.sweep_prefix(f"{TOKEN}:", timeout_s=20.0)
    assert looks.count >= 3 and report.killed >= 3 and not report.survivors
    assert not bearers_of_token(TOKEN)

    def none_left(*given: Any) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as short:
        short.setattr(proctree, "open", none_left, raising=False)
        with pytest.raises(OSError, match=os.strerror(error)):
            procs.sweep_prefix(f"{TOKEN}:", timeout_s=0.1)
    wait_for(procs.kill_tree(child).step, what="the end of the tree")
    child.close()


def test_a_sweep_says_once_what_keeps_it_from_looking(
    procs: LinuxProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = Spawn(
        argv=["/bin/sh", "-c", "exec sleep 300"],
        env=task_environment(os.environ, {}),
        token=f"{TOKEN}:3.1",
        cwd=tmp_path,
        log_path=tmp_path / "out.log",
    )
    child = procs.spawn(spec)
    sweep = procs.kill_tree(child)

    def none_left(*given: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as short:
        short.setattr(proctree, "open", none_left, raising=False)
        for _ in range(5):
            assert not sweep.step()
    assert [r.getMessage() for r in caplog.records] == [
        "a look at the processes of an attempt failed (Too many open files); looking again"
    ]
    wait_for(sweep.step, what="the end of the tree")
    child.close()
