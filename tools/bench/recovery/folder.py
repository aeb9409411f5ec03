"""The bridge starts over a folder of very many files, of which somebody has taken some: how long until all stand again."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ....bus.errors import RigbusError
from ..figures import Figure, Spread
from ..rig import BenchRig, Setup

if TYPE_CHECKING:
    from ....bus.client.client import Client

AGAIN_S: Final = 10.0  #: target, with 100,000 files
QUEUE: Final = "tasks/queue"
TAKEN: Final = 100  #: of so many files one is taken
PART: Final = 5000  #: tasks of one submit
DRAW_S: Final = 600.0
WAIT_S: Final = 120.0


def measure(files: int, rounds: int, sweeps: int, say: Callable[[str], None]) -> tuple[list[Figure], str]:
    """One rig whose tasks wait for a worker that never comes; each time other files are taken.

    ``rounds`` starts of a bridge, then ``sweeps`` times beside one that runs (that rests for 10 s between its comparisons).
    """
    taken = max(1, files // TAKEN)
    started, swept = [], []
    with BenchRig(Setup(bridge=True)) as rig, rig.client() as client:
        _submit(client, files)
        began = time.monotonic()
        rig.wait(lambda: _stand(rig) == files, "the files to be drawn", DRAW_S, poll_s=0.2)
        drawn_s = time.monotonic() - began
        for n in range(rounds):
            rig.kill("bridge")
            _take(rig, taken, n)
            began = time.monotonic()
            rig.start("bridge")
            started.append(_all_stand_s(rig, files, began))
            say(
                f"{files:,} files, {taken:,} taken, start {n + 1} of {rounds}: they stand again after {started[-1]:.1f} s"
            )
        for n in range(sweeps):
            _take(rig, taken, rounds + n)
            swept.append(_all_stand_s(rig, files, time.monotonic()))
            say(f"taken beside a bridge that runs, {n + 1} of {sweeps}: again after {swept[-1]:.1f} s")
    size = f"{files:,} files"
    figures = [
        Figure(
            f"bridge starts over {size}: 1 % that were taken stand again",
            "s",
            Spread.of(started),
            target=AGAIN_S,
        ),
        Figure(f"{size} drawn for the first time", "s", Spread.of([drawn_s])),
    ]
    if swept:
        figures.append(Figure("taken beside a bridge that runs: drawn again", "s", Spread.of(swept)))
    note = (
        f"Folder: {size} of waiting tasks in `{QUEUE}`; the bridge is killed, {taken:,} of them are deleted, and the time goes "
        "from its next start until as many stand as before. A bridge that runs compares a slice at a time, for a tenth of its "
        "time at most, and rests for 10 s between two comparisons."
    )
    return figures, note


def _submit(client: Client, count: int) -> None:
    from ....bus.client.work import Task

    batch: str | None = None
    for sent in range(0, count, PART):
        tasks = [Task(type="hold", payload={}) for _ in range(min(PART, count - sent))]
        batch = client.submit(
            tasks, batch=batch, name="folder", mirror=True, keep_open=sent + PART < count, timeout_s=WAIT_S
        ).batch


def _names(rig: BenchRig) -> list[str]:
    try:
        return [name for name in os.listdir(rig.shared / QUEUE) if name.endswith(".json")]
    except FileNotFoundError:
        return []


def _stand(rig: BenchRig) -> int:
    return len(_names(rig))


def _take(rig: BenchRig, count: int, seed: int) -> None:
    for name in random.Random(seed).sample(sorted(_names(rig)), count):  # noqa: S311 - which ones is no secret
        (rig.shared / QUEUE / name).unlink()


def _all_stand_s(rig: BenchRig, files: int, began: float) -> float:
    try:
        rig.wait(lambda: _stand(rig) == files, "the files to stand again", WAIT_S, poll_s=0.1)
    except RigbusError as e:
        raise RigbusError(f"{e}: {_stand(rig):,} of {files:,}") from None
    return time.monotonic() - began
