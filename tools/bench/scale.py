"""A long queue: memory of the broker, what a lease costs with it, and how long a restart takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...bus.errors import RigbusError, Unreachable
from . import limits
from .figures import Figure, Outcome, Spread, cpu_a_task
from .machine import machine, rss_bytes
from .rig import BenchRig, Setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...bus.client.client import Client, Submitted

WAIT_S: Final = 300.0
RSS_MIB: Final = 150.0
MORE: Final = 1.15  #: what counts as "as at 1,000": the noise of shared machines
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """``tasks`` queued, beside ``small`` queued; ``part`` are drained in each round."""

    tasks: int = 100_000
    small: int = 1000
    part: int = 5000
    repeats: int = 5
    workers: int = 2
    payload: int = 200


def measure(options: Options, say: Callable[[str], None]) -> Outcome:
    """Short queues, then the long one, a kill -9 and a restart with it, its drain in parts, and short queues again."""
    settings = {
        "durability": "full",
        "queued": options.tasks,
        "small": options.small,
        "part": options.part,
        "repeats": options.repeats,
        "workers": options.workers,
        "payload_bytes": options.payload,
        **machine(),
    }
    with BenchRig(Setup(agents=options.workers)) as rig, rig.client() as client:
        fsync_us = limits.fsync_p50_us(rig.state)
        run = _Run(rig, client, options, say)
        run.short_queue(1)
        rss_empty = _rss(rig)
        short = run.short_queue(options.repeats)
        rss_before = _rss(rig)
        submitted_s = run.fill()
        rss_full = _rss(rig)
        restart_s = run.restart()
        rss_again = _rss(rig)
        long = run.long_queue(options.repeats)
        cpu = run.cpu
        run.clear()
        again = run.short_queue(options.repeats)
    sizes = (rss_before, rss_full, rss_again)
    figures = _of_the_queue(options, sizes, submitted_s, restart_s) + _of_the_drains(
        options, short, long, again
    )
    return Outcome(
        "scale",
        figures,
        settings,
        fsync_us,
        cpu=cpu,
        notes=[
            (
                f"The broker alone, empty: {rss_empty / MIB:.1f} MiB. A lease's cost is that of lease, result and end, "
                'without the submit; "as at 1,000" allows 15 %, the noise of these machines.'
            )
        ],
    )


def _of_the_queue(
    options: Options, sizes: tuple[int, int, int], submitted_s: float, restart_s: float
) -> list[Figure]:
    """``sizes``: the broker's memory in bytes before the long queue, with it, and with it after a restart."""
    before, full, again = sizes
    bound = _target(options, RSS_MIB)
    return [
        Figure(f"broker's memory, {options.tasks:,} queued", "MiB", _once(full / MIB), target=bound),
        Figure("the same after a restart", "MiB", _once(again / MIB), target=bound),
        Figure("memory of a queued task", "bytes", _once((full - before) / options.tasks)),
        Figure(f"submit of {options.tasks:,}", "s", _once(submitted_s)),
        Figure("kill -9 to first answer", "s", _once(restart_s)),
    ]


def _of_the_drains(options: Options, short: _Drains, long: _Drains, again: _Drains) -> list[Figure]:
    """Tasks a second and the broker's CPU, with short queues before and after the long one."""
    few, many = f"{options.small:,} queued", f"{options.tasks:,} queued"
    figures = [
        Figure(f"drain, {few}", "tasks/s", Spread.of([*short.rates, *again.rates])),
        Figure(f"drain, {many}", "tasks/s", Spread.of(long.rates)),
    ]
    if short.cpu:
        ratio = Spread.of(2 * b / (a + c) for a, b, c in zip(short.cpu, long.cpu, again.cpu, strict=True))
        figures += [
            Figure(f"broker's CPU a lease, {few}", "µs", Spread.of([*short.cpu, *again.cpu])),
            Figure(f"broker's CPU a lease, {many}", "µs", Spread.of(long.cpu)),
            Figure("cost with the long queue", "× the short one", ratio, target=_target(options, MORE)),
        ]
    return figures


def _once(value: float) -> Spread:
    return Spread.of([value])


def _target(options: Options, target: float) -> float | None:
    return target if options.tasks == 100_000 else None


def _rss(rig: BenchRig) -> int:
    found = rss_bytes(rig.pid("broker"))
    if found is None:
        raise RigbusError("this system has no /proc/PID/status with VmRSS; `bench scale` needs Linux")
    return found


@dataclass(slots=True)
class _Drains:
    """Queues, or parts of one, that were drained: tasks a second, and µs of the broker's CPU a task."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def note(self, tasks: int, took_s: float, broker_s: float) -> None:
        self.rates.append(tasks / took_s)
        if broker_s:
            self.cpu.append(broker_s / tasks * 1e6)


class _Run:
    """The steps; ``cpu`` is µs a task of the long queue's drain."""

    def __init__(self, rig: BenchRig, client: Client, options: Options, say: Callable[[str], None]) -> None:
        self.rig, self.client, self.options, self.say = rig, client, options, say
        self.cpu: dict[str, float | None] = {}
        self._ids: Submitted

    def _submit(self, count: int) -> Submitted:
        """Queue tasks while every worker is paused. By a client of their own: nobody hears their ends."""
        from ...bus.client.work import Task

        data = {"data": "x" * self.options.payload}
        self.client.control("pause")
        with self.rig.open() as other:
            return other.submit((Task(type="noop", payload=data) for _ in range(count)), timeout_s=WAIT_S)

    def _wait_drained(self, ids: Submitted, count: int) -> None:
        """Until about so many have ended: they are leased in their order, and one row is little to ask for."""

        def drained() -> bool:
            return bool(self.client.query("task", id=ids[count - 1])["rows"][0]["state"] == "done")

        self.rig.wait(drained, f"{count} tasks of the queue to end", WAIT_S)

    def short_queue(self, rounds: int) -> _Drains:
        """Drain short queues: tasks a second, and µs of the broker's CPU a task."""
        o, out = self.options, _Drains()
        for n in range(rounds):
            # as many tasks as a part of the long queue has, in several short queues
            took, used = 0.0, 0.0
            times = max(1, o.part // o.small)
            for _ in range(times):
                ids = self._submit(o.small)
                before, began = self.rig.cpu_s(), time.perf_counter()
                self.client.control("resume")
                self._wait_drained(ids, o.small)
                took += time.perf_counter() - began
                used += self._broker_s(before)
            out.note(times * o.small, took, used)
            self.say(f"{o.small:,} queued, {n + 1} of {rounds}: {out.rates[-1]:,.0f} tasks/s")
        return out

    def _broker_s(self, before: dict[str, float]) -> float:
        after = self.rig.cpu_s()
        return after["broker"] - before["broker"] if before and after else 0.0

    def fill(self) -> float:
        """Queue all of them; seconds."""
        began = time.perf_counter()
        self._ids = self._submit(self.options.tasks)
        took_s = time.perf_counter() - began
        self.say(f"{self.options.tasks:,} tasks queued in {took_s:.1f} s")
        return took_s

    def restart(self) -> float:
        """kill -9 of the broker with all that queued, and a new one; seconds until it answers."""
        self.rig.kill("broker")
        began = time.perf_counter()
        self.rig.start("broker")
        with self.rig.wait(self._first_client, "the restarted broker", WAIT_S) as other:
            row = other.query("batch", id=self._ids.batch, timeout_s=WAIT_S)
            took_s = time.perf_counter() - began
        if row["total"] != self.options.tasks or row["tasks"]["ready"] != self.options.tasks:
            raise RigbusError(f"after the restart the queue is another: {row['tasks']}; this is no benchmark")
        workers = set(self.rig.workers)
        self.rig.wait(
            lambda: {w["id"] for w in self.client.query("workers")["workers"]} >= workers,
            "the workers",
            WAIT_S,
        )
        self.say(f"the restarted broker answers after {took_s:.2f} s")
        return took_s

    def _first_client(self) -> Client | None:
        """A client if the broker is there. A new one each time: one that waits looks more and more seldom."""
        try:
            return self.rig.open(0.05)
        except Unreachable:
            return None

    def long_queue(self, rounds: int) -> _Drains:
        """Drain parts of the long queue; figures as :meth:`short_queue`."""
        o, out = self.options, _Drains()
        first = self.rig.cpu_s()
        done = 0
        for n in range(rounds):
            start, before, began = done, self.rig.cpu_s(), time.perf_counter()
            self.client.control("resume")
            self._wait_drained(self._ids, min(start + o.part, o.tasks))
            self.client.control("pause")
            took = time.perf_counter() - began
            done = self._settled()
            out.note(done - start, took, self._broker_s(before))
            self.say(f"{o.tasks:,} queued, {n + 1} of {rounds}: {out.rates[-1]:,.0f} tasks/s")
        self.cpu = cpu_a_task(first, self.rig.cpu_s(), max(1, done))
        return out

    def clear(self) -> None:
        """Cancel what is left of the long queue."""
        self.client.cancel(batch=self._ids.batch, reason="measured", timeout_s=WAIT_S)

    def _settled(self) -> int:
        """How many are done, when no task is with a worker any more."""

        def still() -> int:
            tasks = self.client.query("batch", id=self._ids.batch)["tasks"]
            return 0 if tasks["leased"] else int(tasks["done"])

        return self.rig.wait(still, "the paused workers to finish", WAIT_S)
