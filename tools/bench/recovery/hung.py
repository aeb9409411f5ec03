"""The shared folder hangs under load: what that costs the dispatch of tasks, in paired turns.

As root on Linux the share is a small file system of its own that is frozen: who writes to it is in state D, where no
signal helps. Elsewhere the bridge's helper processes are stopped, also those that it starts in their place.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ....agents.process.tree import children_of, read_proc
from ..bus import run_round
from ..figures import Figure, Spread
from ..rig import BenchRig, Setup

if TYPE_CHECKING:
    from ....bus.client.client import Client

PART: Final = 0.95  #: target
TASKS: Final = 2000  #: of one round
IMAGE_BYTES: Final = 64 << 20
WAIT_S: Final = 60.0
TOOL_S: Final = 20.0
LOOK_S: Final = 0.05


def measure(pairs: int, turn_s: float, say: Callable[[str], None]) -> tuple[list[Figure], str]:
    """Pairs of turns of ``turn_s`` seconds each, with the share hung and with it working."""
    ratios, costs, hung_rates, rates, hung_s = [], [], [], [], 0.0
    setup = Setup(agents=2, brain=True, bridge=True)
    with (
        tempfile.TemporaryDirectory(prefix="rigbus-bench-share-") as folder,
        _share(Path(folder)) as share,
        BenchRig(setup, shared=share.path) as rig,
        rig.client() as client,
    ):
        run_round(client, TASKS, 200)
        for n in range(pairs):
            b = _turn(rig, client, turn_s) if n % 2 == 0 else None
            began = time.monotonic()
            with share.hanging(rig, client):
                a = _turn(rig, client, turn_s)
            hung_s += time.monotonic() - began
            _wait_share(rig, client)
            b = b or _turn(rig, client, turn_s)
            hung_rates.append(a.rate)
            rates.append(b.rate)
            ratios.append(a.rate / b.rate)
            costs.append(a.cpu_us / b.cpu_us)
            say(
                f"pair {n + 1} of {pairs}: {a.rate:,.0f} tasks/s with a hung share ({share.how}), {b.rate:,.0f} else"
            )
    figures = [
        Figure(
            "share hung: dispatch, by that with a share that works",
            "×",
            Spread.of(ratios),
            target=PART,
            at_least=True,
        ),
        Figure("share hung: CPU a task, by that with a share that works", "×", Spread.of(costs)),
        Figure("no-op tasks, share hung", "tasks/s", Spread.of(hung_rates)),
        Figure("no-op tasks, share works", "tasks/s", Spread.of(rates)),
    ]
    note = (
        f"Share: {share.how}, for {hung_s:.0f} s in {pairs} turns; brain and bridge attached, tasks "
        f"mirrored when it began to hang; turns of {turn_s:g} s in turn, the median of the pairs' ratios."
    )
    return figures, note


class _Turn(NamedTuple):
    """What one turn found: tasks a second, and µs of CPU a task of the whole rig and its client."""

    rate: float
    cpu_us: float


def _turn(rig: BenchRig, client: Client, for_s: float) -> _Turn:
    """No-op tasks, in rounds, for so long at least."""
    used, done, began = sum(rig.cpu_s().values()), 0, time.perf_counter()
    while (took := time.perf_counter() - began) < for_s:
        run_round(client, TASKS, 200)
        done += TASKS
    return _Turn(done / took, (sum(rig.cpu_s().values()) - used) / done * 1e6)


def _wait_share(rig: BenchRig, client: Client) -> None:
    def works() -> bool:
        share = client.query("status")["bridge"]["share"]
        return bool(share and share["available"])

    rig.wait(works, "the share to be available again", WAIT_S, poll_s=0.1)


def _write_much(client: Client) -> None:
    """Work for the mirror, so that somebody writes to the share now."""
    from ....bus.client.work import Task

    client.submit([Task(type="noop") for _ in range(50)], mirror=True, name="mirrored")


def _helpers(rig: BenchRig) -> list[int]:
    """The bridge's child processes."""
    return [child.pid for child in children_of(rig.pid("bridge"))]


def _state(pid: int) -> str:
    proc = read_proc(pid)
    return proc.state if proc is not None else ""


class Frozen:
    """A file system of its own, frozen by the kernel."""

    how = "a frozen file system, its writers in state D"

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def hanging(self, rig: BenchRig, client: Client) -> Iterator[None]:
        """From when a helper of the bridge is in state D."""
        _run("fsfreeze", "-f", self.path)
        try:
            _write_much(client)
            looks = 0

            def hangs() -> bool:
                nonlocal looks
                looks = looks + 1 if any(_state(pid) == "D" for pid in _helpers(rig)) else 0
                return looks >= 5

            rig.wait(hangs, "a helper of the bridge to hang in the kernel", WAIT_S, poll_s=LOOK_S)
            yield
        finally:
            _run("fsfreeze", "-u", self.path)


class Stopped:
    """A folder whose helpers are stopped, and the ones after them."""

    how = "its helper processes stopped (a frozen file system needs root and loop mounts)"

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def hanging(self, rig: BenchRig, client: Client) -> Iterator[None]:
        """From when all helpers of the bridge are stopped."""
        over = threading.Event()

        def stop() -> None:
            while not over.wait(LOOK_S):
                _signal([pid for pid in _helpers(rig) if _state(pid) != "T"], signal.SIGSTOP)

        _signal(_helpers(rig), signal.SIGSTOP)
        stopper = threading.Thread(target=stop, name="stopper", daemon=True)
        stopper.start()
        try:
            _write_much(client)
            yield
        finally:
            over.set()
            stopper.join()
            _signal(_helpers(rig), signal.SIGCONT)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _run(*argv: str | Path) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=TOOL_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def _share(folder: Path) -> Iterator[Frozen | Stopped]:
    """The nearest to a hung mount that this machine allows."""
    image, point = folder / "image", folder / "mnt"
    point.mkdir()
    if os.geteuid() != 0 or not _mount(image, point):
        yield Stopped(folder / "share")
        return
    # It ends with our end of the pipe: killed with -9 we leave neither a frozen file system nor a mount.
    words = ["sh", "-c", 'read -r _; fsfreeze -u "$1"; umount -l "$1"', "sh", str(point)]
    guard = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        if _run("fsfreeze", "-f", point) and _run("fsfreeze", "-u", point):
            share = point / "share"
            share.mkdir()
            yield Frozen(share)
        else:
            yield Stopped(folder / "share")
    finally:
        guard.communicate()


def _mount(image: Path, point: Path) -> bool:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    return _run("mkfs.ext4", "-q", image) and _run("mount", "-o", "loop", image, point)
