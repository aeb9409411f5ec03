"""``rigbus bench``: how fast this machine is, through a real rig of its own."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..bus.errors import RigbusError
from .common import json_option, print_json, talk

if TYPE_CHECKING:
    from ..bus.client import Client
    from .bench_rig import BenchRig

_ROUND_S: Final = 300.0


@click.group()
def bench() -> None:
    """Figures of this machine; the rig is a private one in a temporary folder."""


@bench.command()
@json_option
@click.option(
    "--tasks", type=click.IntRange(100, 100_000), default=5000, show_default=True, help="Tasks of a round."
)
@click.option(
    "--repeats", type=click.IntRange(1, 100), default=5, show_default=True, help="Rounds after the warm-up."
)
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Worker processes.")
@click.option(
    "--slots", type=click.IntRange(1, 64), default=1, show_default=True, help="Tasks at once a worker."
)
@click.option(
    "--payload", type=click.IntRange(0, 200_000), default=200, show_default=True, help="Bytes of a payload."
)
@click.option(
    "--singles", type=click.IntRange(10, 10_000), default=200, show_default=True, help="Calls one at a time."
)
@click.option("--durability", type=click.Choice(("full", "normal")), default="full", show_default=True)
def bus(
    as_json: bool,
    tasks: int,
    repeats: int,
    workers: int,
    slots: int,
    payload: int,
    singles: int,
    durability: str,
) -> int:
    """No-op tasks through broker, workers and client: tasks a second, latency, CPU a task."""
    from .bench_rig import BenchRig, fsync_p50_us

    settings = {
        "durability": durability,
        "workers": workers,
        "slots": slots,
        "tasks": tasks,
        "repeats": repeats,
        "payload_bytes": payload,
        "singles": singles,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        # A rate on a busy machine says little; the CPU a task holds up better.
        "load_before": round(os.getloadavg()[0], 2),
    }
    with BenchRig(workers, durability, slots) as rig, rig.client() as client:
        fsync_us = fsync_p50_us(rig.state)
        _round(client, max(100, tasks // 5), payload)
        rates, cpu = _rounds(rig, client, tasks, repeats, payload, quiet=as_json)
        p50_ms = _one_at_a_time(client, singles, payload)
    result = {
        "schema": "rigbus.bench/1",
        "bench": "bus",
        "tasks_per_s": {
            "median": round(statistics.median(rates), 1),
            "min": round(min(rates), 1),
            "max": round(max(rates), 1),
        },
        "p50_ms": round(p50_ms, 3),
        "cpu_us_per_task": cpu,
        "fsync_p50_us": round(fsync_us, 1),
        "settings": settings,
    }
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(lines_of(result)))
    return 0


def _round(client: Client, tasks: int, payload: int) -> float:
    """Submit tasks and collect every result; seconds.

    Raises:
        RigbusError: one of them did not end well, so the figure means nothing.
    """
    from ..bus.work import Task

    data = "x" * payload
    began = time.perf_counter()
    ids = client.submit([Task(type="noop", payload={"data": data}) for _ in range(tasks)])
    bad = sum(not result.ok for result in client.results(ids, timeout_s=_ROUND_S))
    took_s = time.perf_counter() - began
    if bad:
        raise RigbusError(f"{bad} of {tasks} tasks did not end well; this is no benchmark")
    return took_s


def _rounds(
    rig: BenchRig, client: Client, tasks: int, repeats: int, payload: int, *, quiet: bool
) -> tuple[list[float], dict[str, float | None]]:
    """(tasks a second of each round, CPU µs a task by kind of process over all of them)."""
    rates = []
    before, own = rig.cpu_s(), time.process_time()
    for n in range(repeats):
        rates.append(tasks / _round(client, tasks, payload))
        if not quiet:
            talk(f"round {n + 1} of {repeats}: {rates[-1]:,.0f} tasks/s")
    after, client_s = rig.cpu_s(), time.process_time() - own
    total = tasks * repeats
    cpu: dict[str, float | None] = {
        kind: round((after[kind] - before[kind]) / total * 1e6, 1) if kind in after else None
        for kind in ("broker", "workers")
    }
    cpu["client"] = round(client_s / total * 1e6, 1)
    known = [value for value in cpu.values() if value is not None]
    cpu["sum"] = round(sum(known), 1) if len(known) == len(cpu) else None
    return rates, cpu


def _one_at_a_time(client: Client, singles: int, payload: int) -> float:
    """The median of one call and its answer with nothing else to do, in ms."""
    data = {"data": "x" * payload}
    times = []
    for n in range(singles + 10):
        began = time.perf_counter()
        client.call("noop", data, timeout_s=30.0)
        if n >= 10:  # the first ones warm up
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """The figures for people."""
    rate, cpu, s = result["tasks_per_s"], result["cpu_us_per_task"], result["settings"]
    parts = ", ".join(
        f"{kind} {value:.0f}" for kind, value in cpu.items() if value is not None and kind != "sum"
    )
    total = f" = {cpu['sum']:.0f}" if cpu["sum"] is not None else ""
    return [
        f"{rate['median']:,.0f} no-op tasks/s (median of {s['repeats']}, {rate['min']:,.0f} to {rate['max']:,.0f})",
        f"{result['p50_ms']:.2f} ms one at a time (median of {s['singles']})",
        f"CPU µs a task: {parts}{total}",
        f"one fsync of 4 KiB: {result['fsync_p50_us']:.0f} µs (median)",
        (
            f"durability {s['durability']}, {s['workers']} workers of {s['slots']} slots, {s['tasks']} tasks a round, "
            f"{s['payload_bytes']} bytes each"
        ),
        f"{s['cpu']}, {s['cores']} cores (load {s['load_before']:.1f} before), Python {s['python']}",
    ]
