"""The broker is killed with -9 while thousands of tasks run: how long until it leases again, and what ran twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ....bus.errors import RigbusError
from ..ends import ENDED
from ..figures import Figure, Spread
from ..rig import BenchRig, Setup
from .holder import starts_in

if TYPE_CHECKING:
    from ....bus.client.client import Client, Submitted
    from ....bus.client.work import Task

AGAIN_S: Final = 2.0  #: target
WAIT_S: Final = 120.0
HOLDERS: Final = 4
SLOTS: Final = 4  #: of the worker whose short tasks show when leases come again
TICK_S: Final = 0.01
TICKS: Final = 2000  #: short tasks queued at the kill: they last over any start of a broker


@dataclass(slots=True)
class Round:
    """What one killed broker cost. Times in seconds since the kill."""

    again_s: float  #: until a worker began a task that the next broker leased
    settled_s: float  #: until every result of what ran was recorded
    in_flight: int
    twice: int  #: attempts beyond the first of what ran


def measure(in_flight: int, rounds: int, say: Callable[[str], None]) -> tuple[list[Figure], str]:
    """As many rounds, each on a rig of its own (a broker that dies often is started later and later)."""
    found = []
    for n in range(rounds):
        found.append(_round(in_flight))
        r = found[-1]
        say(
            f"broker killed with {r.in_flight:,} in flight, {n + 1} of {rounds}: leases again after {r.again_s:.2f} s, "
            f"{r.twice} ran twice"
        )
    size = f"{in_flight:,} in flight"
    figures = [
        Figure(
            f"broker killed, {size}: leases again", "s", Spread.of(r.again_s for r in found), target=AGAIN_S
        ),
        Figure(
            "what ran through it and was executed again",
            "tasks",
            Spread.of(float(r.twice) for r in found),
            target=0.0,
        ),
        Figure("all results of what ran recorded", "s", Spread.of(r.settled_s for r in found)),
    ]
    note = (
        f"Broker: under `up`, killed with {HOLDERS} workers that hold {size} (real loops and sockets, tasks without a process) "
        f"and {TICKS:,} short tasks queued. *Leases again*: until a worker begins a task that the next broker leased; 0.2 s of "
        "it is the pause before the start. A tenth of what ran ends while no broker is there, the rest after it; every result "
        "is counted."
    )
    return figures, note


def _round(in_flight: int) -> Round:
    holders = min(HOLDERS, in_flight)
    slots = -(-in_flight // holders)
    setup = Setup(up=True, holders=holders, hold_slots=slots, tickers=1, slots=SLOTS)
    with BenchRig(setup) as rig, rig.client() as client:
        held = client.submit(_held(in_flight), timeout_s=WAIT_S)
        names = [name for name in rig.workers if name.startswith("holder-")]
        _wait_begun(rig, names, in_flight)
        before = int(client.query("status")["broker"]["incarnation"])
        client.submit(_ticks(), timeout_s=WAIT_S)
        _wait_begun(rig, ["ticker-1"], 1)
        killed_at = time.monotonic()
        rig.kill("broker")
        for name in names:
            rig.tell(name, "release 0")
        again = rig.wait(lambda: _first_after(rig, before), "the next broker to lease", WAIT_S, poll_s=0.02)
        for name in names:
            rig.tell(name, "release 1")
        _wait_done(rig, client, held, in_flight)
        settled_s = time.monotonic() - killed_at
        begun = [s for name in names for s in starts_in(rig.starts(name))]
        return Round(again - killed_at, settled_s, in_flight, len(begun) - in_flight)


def _held(count: int) -> list[Task]:
    """Tasks that are let go in two parts: 0 is a tenth of them."""
    from ....bus.client.work import Task

    return [Task(type="hold", payload={"part": 0 if n % 10 == 0 else 1}) for n in range(count)]


def _ticks() -> list[Task]:
    from ....bus.client.work import Task

    return [Task(type="tick", payload={"for_s": TICK_S}) for _ in range(TICKS)]


def _wait_begun(rig: BenchRig, names: list[str], count: int) -> None:
    def begun() -> bool:
        return sum(len(starts_in(rig.starts(name))) for name in names) >= count

    rig.wait(begun, f"{count:,} tasks to begin", WAIT_S, poll_s=0.1)


def _first_after(rig: BenchRig, incarnation: int) -> float:
    """When the first task began that a later broker leased, monotonic; 0 before."""
    return min((s.at for s in starts_in(rig.starts("ticker-1")) if s.incarnation > incarnation), default=0.0)


def _wait_done(rig: BenchRig, client: Client, held: Submitted, count: int) -> None:
    tasks: dict[str, int] = {}

    def ended() -> bool:
        row = client.query("batch", id=held.batch)
        tasks.update(row["tasks"])
        return row["state"] in ENDED

    try:
        rig.wait(ended, "what ran to be recorded", WAIT_S, poll_s=0.05)
    except RigbusError as e:
        raise RigbusError(f"{e} ({tasks})") from None
    if tasks["done"] != count:
        raise RigbusError(
            f"of {count:,} tasks that ran through a killed broker: {tasks}; results are missing"
        )
