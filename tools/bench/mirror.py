"""The mirror: how long after the end of a task a reader of the shared folder sees it, at a steady rate."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...bus.errors import RigbusError, WaitTimeout
from . import limits
from .figures import Figure, Outcome, Spread, cpu_a_task
from .machine import machine
from .rig import BenchRig, Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ...bus.client.client import Client

COMPLETE: Final = "tasks/complete"
LOOK_MS: Final = 20  #: of the outside reader
STEP_S: Final = 0.05  #: between two submits
SETTLE_S: Final = 30.0
QUIET_S: Final = 2.5  #: the bridge tells its counters with its heartbeats
LAG_S: Final = {200: 1.0, 500: 2.0}  #: targets, by the tasks a second for which they are
WRITES: Final = 1.2
RATE: Final = 200


@dataclass(frozen=True, slots=True)
class Options:
    """``rate`` tasks a second for ``for_s`` seconds, in each of ``repeats`` rounds."""

    rate: int = RATE
    for_s: float = 10.0
    repeats: int = 5
    workers: int = 2


def measure(options: Options, say: Callable[[str], None]) -> Outcome:
    """A short warm-up, then the rounds."""
    settings = {
        "durability": "full",
        "rate_per_s": options.rate,
        "for_s": options.for_s,
        "repeats": options.repeats,
        "workers": options.workers,
        "reader_ms": LOOK_MS,
        **machine(),
    }
    lags: list[list[float]] = []
    with BenchRig(Setup(agents=options.workers, bridge=True)) as rig, rig.client() as client:
        fsync_us = limits.fsync_p50_us(rig.shared)
        _round(rig, client, options.rate, min(1.0, options.for_s / 2))
        counted, used = _counters(client), rig.cpu_s()
        total = 0
        with _looking(rig) as looked:
            for n in range(options.repeats):
                lags.append(_round(rig, client, options.rate, options.for_s))
                total += len(lags[-1])
                say(f"round {n + 1} of {options.repeats}: {_said(lags[-1])}")
        cpu = cpu_a_task(used, rig.cpu_s(), total)
        drawn = _drawn(rig, client, counted)
    figures = [
        Figure("mirror lag, p50", "s", Spread.of(quantile(lag, 0.5) for lag in lags)),
        Figure(
            "mirror lag, p99",
            "s",
            Spread.of(quantile(lag, 0.99) for lag in lags),
            target=LAG_S.get(options.rate),
        ),
        Figure("mirror lag, longest", "s", Spread.of(max(lag) for lag in lags)),
        Figure("torn reads by a reader that goes on reading", "files", Spread.of([looked.torn]), target=0.0),
    ]
    notes = [
        (
            "Lag: a reader in a process of its own looks into tasks/complete every 20 ms; from the task's end at the client "
            "to the first look that shows it. A negative one means that the file was seen before the client heard."
        ),
        f"Another reader opened {looked.read:,} files meanwhile, the last of each lane every {LOOK_MS} ms.",
    ]
    if drawn.get("changes"):
        a_change = drawn["writes"] / drawn["changes"]
        figures.append(Figure("file writes a visible change", "", Spread.of([a_change]), target=WRITES))
        notes.append("The bridge counted: " + ", ".join(f"{v:,} {k}" for k, v in drawn.items()) + ".")
    else:
        notes.append("File writes a visible change: not reported by this bridge.")
    return Outcome("mirror", figures, settings, fsync_us, cpu=cpu, more={"mirror": drawn}, notes=notes)


@dataclass(slots=True)
class _Looked:
    """What the reader of whole files found."""

    read: int = 0
    torn: int = 0


@contextmanager
def _looking(rig: BenchRig) -> Iterator[_Looked]:
    """Somebody opens the files of the share all the time; the counts are there at the end."""
    looked = _Looked()
    words = ["-P", "-m", "rigbus.tools.bench.looker", str(rig.shared), str(LOOK_MS)]
    with subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=rig.folder
    ) as looker:
        try:
            yield looked
        finally:
            said, _ = looker.communicate(timeout=SETTLE_S)
    if looker.returncode:
        raise RigbusError(f"the reader of whole files ended with {looker.returncode}; this is no benchmark")
    looked.read, looked.torn = map(int, said.split())


def quantile(values: list[float], part: float) -> float:
    """The value below which ``part`` of them lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def _said(lag: list[float]) -> str:
    p50, p99 = quantile(lag, 0.5), quantile(lag, 0.99)
    return f"{len(lag):,} tasks, lag p50 {p50:.2f} s, p99 {p99:.2f} s, longest {max(lag):.2f} s"


def _round(rig: BenchRig, client: Client, rate: int, for_s: float) -> list[float]:
    """Tasks at a steady rate; the lag of each, in seconds.

    Raises:
        RigbusError: one was never seen.
    """
    words = ["rigbus.tools.bench.reader", str(rig.shared / COMPLETE), str(LOOK_MS)]
    said = rig.folder / "reader.out"
    with said.open("wb") as out:
        reader = subprocess.Popen(
            [sys.executable, "-P", "-m", *words], stdin=subprocess.PIPE, stdout=out, cwd=rig.folder
        )
    try:
        ended = _steady(client, rate, for_s)
        # Not whether the files stand there now: the mirror archives the oldest of them.
        seen = rig.wait(lambda: _all_seen(said, ended), "the reader to see every task", SETTLE_S, poll_s=0.1)
    finally:
        reader.communicate()
    return [seen[id_] - at for id_, at in ended.items()]


def _all_seen(said: Path, wanted: Mapping[str, float]) -> dict[str, float]:
    """When the reader saw each file, once it has seen all that are wanted; empty before."""
    lines = said.read_text("ascii", "replace").rpartition("\n")[0].splitlines()
    seen = {name: float(at) for name, _, at in (line.partition(" ") for line in lines)}
    return seen if wanted.keys() <= seen.keys() else {}


def _steady(client: Client, rate: int, for_s: float) -> dict[str, float]:
    """Submit ``rate`` mirrored tasks a second; when each end was heard, monotonic."""
    from ...bus.client.work import Task

    ended: dict[str, float] = {}
    live: dict[str, None] = {}
    batch: str | None = None
    sent, total, began = 0, max(1, int(rate * for_s)), time.monotonic()
    while sent < total or live:
        due = min(total, int((time.monotonic() - began) * rate) + 1)
        if due > sent:
            ids = client.submit(
                [Task(type="noop", payload={"data": "x" * 200}) for _ in range(due - sent)],
                batch=batch,
                name="steady",
                mirror=True,
                keep_open=due < total,
            )
            batch, sent = ids.batch, due
            live.update(dict.fromkeys(ids))
        try:
            for result in client.results(list(live), timeout_s=STEP_S):
                ended[result.id] = time.monotonic()
                del live[result.id]
                if not result.ok:
                    raise RigbusError(f"a task ended {result.state}: {result.error}; this is no benchmark")
        except WaitTimeout:
            continue
        client.tend(max(0.0, began + sent / rate - time.monotonic()))
    return ended


def _counters(client: Client) -> dict[str, float]:
    """What the bridge counts of its mirror; empty where it does not tell."""
    mirror: Mapping[str, Any] | None = client.query("status")["bridge"].get("mirror")
    names = ("changes", "writes", "moves", "removes")
    return {n: float(mirror[n]) for n in names if isinstance(mirror.get(n), (int, float))} if mirror else {}


def _drawn(rig: BenchRig, client: Client, before: dict[str, float]) -> dict[str, int]:
    """The counters' growth, when they have come to rest."""
    if not before:
        return {}
    last, since = _counters(client), time.monotonic()

    def at_rest() -> bool:
        nonlocal last, since
        now = _counters(client)
        if now.get("changes") != last.get("changes"):
            last, since = now, time.monotonic()
        return time.monotonic() - since > QUIET_S

    rig.wait(at_rest, "the mirror to come to rest", SETTLE_S, poll_s=0.1)
    return {name: int(last[name] - before.get(name, 0.0)) for name in last}
