"""No-op tasks through broker, workers and client: tasks a second, latency and its hops, CPU a task."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...bus.errors import RigbusError
from . import hops, limits
from .figures import Figure, Outcome, Spread, cpu_a_task
from .machine import machine
from .rig import BenchRig, Setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...bus.client.client import Client

ROUND_S: Final = 300.0
RATE: Final = 6000.0  #: target, tasks/s
CPU_US: Final = 330.0  #: target over all processes
LATENCY_MS: Final = 1.0  #: target, and two fsyncs more
LIMIT_S: Final = 0.3  #: of each limit in a round


@dataclass(frozen=True, slots=True)
class Options:
    """``tasks`` of a round; ``payload`` in bytes; ``singles`` are calls one at a time, in each round."""

    tasks: int = 5000
    repeats: int = 5
    workers: int = 2
    slots: int = 1
    payload: int = 200
    singles: int = 200
    durability: str = "full"
    profile: Path | None = None


@dataclass(slots=True)
class _Rounds:
    """What the rounds found; rates a second, ``p50`` in ms, ``fsync`` in µs."""

    rates: list[float]
    p50: list[float]
    cpu: list[dict[str, float | None]]
    echo: list[float]
    echo_single: list[float]
    grouped: list[float]
    single: list[float]
    fsync: list[float]


def measure(options: Options, say: Callable[[str], None]) -> Outcome:
    """Rounds of tasks, of calls one at a time, and of the machine's limits, in turn."""
    settings: dict[str, Any] = {
        "durability": options.durability,
        "workers": options.workers,
        "slots": options.slots,
        "tasks": options.tasks,
        "repeats": options.repeats,
        "payload_bytes": options.payload,
        "singles": options.singles,
        **machine(),
    }
    setup = Setup(
        agents=options.workers,
        slots=options.slots,
        durability=options.durability,
        profile=options.profile,
    )
    with BenchRig(setup) as rig, rig.client() as client:
        found = _measure(rig, client, options, say)
        taken = hops.measure(client, options.singles, "x" * options.payload)
    return _outcome(options, settings, found, taken)


def _measure(rig: BenchRig, client: Client, options: Options, say: Callable[[str], None]) -> _Rounds:
    found = _Rounds([], [], [], [], [], [], [], [])
    run_round(client, max(100, options.tasks // 5), options.payload)
    with limits.echo(rig.folder) as echo, closing(limits.Sqlite(rig.state, options.payload)) as db:
        for n in range(options.repeats):
            found.fsync.append(limits.fsync_p50_us(rig.state))
            before = rig.cpu_s()
            found.rates.append(options.tasks / run_round(client, options.tasks, options.payload))
            found.cpu.append(cpu_a_task(before, rig.cpu_s(), options.tasks))
            found.p50.append(one_at_a_time(client, options.singles, options.payload))
            found.echo.append(echo(100, LIMIT_S))
            found.echo_single.append(echo(1, LIMIT_S))
            found.grouped.append(db.tasks_per_s(limits.GROUP, LIMIT_S))
            found.single.append(db.tasks_per_s(1, LIMIT_S))
            say(
                f"round {n + 1} of {options.repeats}: {found.rates[-1]:,.0f} tasks/s, "
                f"one at a time {found.p50[-1]:.2f} ms"
            )
    return found


def _outcome(options: Options, settings: dict[str, Any], found: _Rounds, taken: dict[str, float]) -> Outcome:
    echo, grouped = statistics.median(found.echo), statistics.median(found.grouped)
    fsync_us = statistics.median(found.fsync)
    rate, p50 = Spread.of(found.rates), Spread.of(found.p50)
    cpu = {kind: _median([c.get(kind) for c in found.cpu]) for kind in ("broker", "workers", "client", "sum")}
    bare_ms = 2e3 / statistics.median(found.single) + 2e3 / statistics.median(found.echo_single)
    figures = [
        Figure(
            "no-op tasks",
            "tasks/s",
            rate,
            target=RATE,
            at_least=True,
            ratio=rate.median / grouped,
            limit="SQLite",
        ),
        Figure(
            "one at a time, p50",
            "ms",
            p50,
            target=round(LATENCY_MS + 2 * fsync_us / 1000, 3),
            ratio=p50.median / bare_ms,
            limit="× bare",
        ),
    ]
    sums = [c["sum"] for c in found.cpu if c.get("sum") is not None]
    if sums:
        figures.append(Figure("CPU a task", "µs", Spread.of(float(s or 0.0) for s in sums), target=CPU_US))
    return Outcome(
        "bus",
        figures,
        settings,
        fsync_us,
        cpu=cpu,
        limits={
            "pyzmq echo/s": echo,
            "one at a time/s": statistics.median(found.echo_single),
            f"SQLite FULL, tasks/s in groups of {limits.GROUP}": grouped,
            "one by one": statistics.median(found.single),
        },
        more={
            "tasks_per_s": rate.as_dict(1),
            "p50_ms": round(p50.median, 3),
            "p50_ms_range": p50.as_dict(),
            "hops_us": {name: round(value, 1) for name, value in taken.items()},
        },
        notes=[
            "One at a time, µs by hop (with the tap on): "
            + ", ".join(f"{name} {value:.0f}" for name, value in taken.items())
            + ".",
            "Bare: one INSERT and one UPDATE in a commit each, and two echo round trips, without any contract.",
        ],
    )


def _median(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(statistics.median(known), 1) if known and len(known) == len(values) else None


def run_round(client: Client, tasks: int, payload: int) -> float:
    """Submit tasks and collect every result; seconds.

    Raises:
        RigbusError: one of them did not end well, so the figure means nothing.
    """
    from ...bus.client.work import Task

    data = "x" * payload
    began = time.perf_counter()
    ids = client.submit([Task(type="noop", payload={"data": data}) for _ in range(tasks)])
    bad = sum(not result.ok for result in client.results(ids, timeout_s=ROUND_S))
    took_s = time.perf_counter() - began
    if bad:
        raise RigbusError(f"{bad} of {tasks} tasks did not end well; this is no benchmark")
    return took_s


def one_at_a_time(client: Client, singles: int, payload: int) -> float:
    """The median of one call and its answer with nothing else to do, in ms."""
    data = {"data": "x" * payload}
    times = []
    for n in range(singles + 10):
        began = time.perf_counter()
        client.call("noop", data, timeout_s=30.0)
        if n >= 10:  # the first ones warm up
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)
