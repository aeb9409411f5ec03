"""One command writes gigabytes to stdout: what the broker and its worker grow by, what is kept, what others feel."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ....agents.attempts.output import MAX_LOG_BYTES
from ....agents.process.tree import peak_rss_bytes
from ....bus.errors import RigbusError
from ..figures import Figure, Spread
from ..machine import forget_peak, rss_bytes
from ..mirror import quantile
from ..rig import BenchRig, Setup

if TYPE_CHECKING:
    from ....bus.client.client import Client

MIB: Final = 1 << 20
GROWS_MIB: Final = 20.0  #: target, of the broker and of the worker
NOTES_BYTES: Final = 1024  #: after its cap a log has two lines that say what was discarded
WAIT_S: Final = 550.0
SINGLES: Final = 200  #: calls beforehand
PAUSE_S: Final = 0.005  #: between two calls
WATCHED: Final = ("broker", "worker-1")


def measure(size: int, say: Callable[[str], None]) -> tuple[list[Figure], str]:
    """``size`` bytes of lines by one command, beside an agent that is called all the time."""
    with BenchRig(Setup(workers=1, agents=1)) as rig, rig.client() as client:
        warm = client.submit([_flood(MIB)])
        _ended(client, warm[0])
        quiet = [_call(client) for _ in range(SINGLES)]
        before = {name: _rss(rig, name) for name in WATCHED}
        for name in WATCHED:
            forget_peak(rig.pid(name))
        began = time.monotonic()
        (id_,) = client.submit([_flood(size)])
        beside = []
        while client.query("task", id=id_)["rows"][0]["state"] in ("ready", "leased"):
            beside.append(_call(client))
            client.tend(PAUSE_S)
            if time.monotonic() - began > WAIT_S:
                raise RigbusError(
                    f"{size:,} bytes of output last more than {WAIT_S:g} s; this is no benchmark"
                )
        value = _ended(client, id_)
        peaks = {name: _peak(rig, name) for name in WATCHED}
        kept = Path(value["log"]).stat().st_size
    rate = size / value["duration_s"] / 1e6
    say(f"{size / 1e9:g} GB of output at {rate:,.0f} MB/s, {len(beside):,} calls beside it")
    grown = {name: max(0.0, (peaks[name] - before[name]) / MIB) for name in WATCHED}
    figures = [
        Figure(
            f"{size / 1e9:g} GB of output: broker grows by",
            "MiB",
            Spread.of([grown["broker"]]),
            target=GROWS_MIB,
        ),
        Figure("its worker grows by", "MiB", Spread.of([grown["worker-1"]]), target=GROWS_MIB),
        Figure("its log file", "MiB", Spread.of([kept / MIB]), target=(MAX_LOG_BYTES + NOTES_BYTES) / MIB),
        Figure("output taken", "MB/s", Spread.of([rate])),
        Figure("call beside it", "ms", Spread.of(beside)),
        Figure("call beside it, p99", "ms", Spread.of([quantile(beside, 0.99)])),
        Figure("call without it, p99", "ms", Spread.of([quantile(quiet, 0.99)])),
    ]
    note = (
        "Output: lines of a command; memory as its peak over what it was just before; the log's cap is "
        f"{MAX_LOG_BYTES // MIB} MiB, and after it two lines say what was discarded. The calls go to another worker, one after "
        "the other; the command and the worker that reads it take the two cores meanwhile."
    )
    return figures, note


def _flood(size: int) -> Any:
    from ....bus.client.work import Task

    command = f"yes 'a line of the flood, {'x' * 40}' | head -c {size}"
    return Task(type="shell", payload={"command": command, "env": {}}, timeout_s=WAIT_S)


def _ended(client: Client, id_: str) -> dict[str, Any]:
    (result,) = client.results([id_], timeout_s=30.0)
    if not result.ok or not isinstance(result.value, dict):
        raise RigbusError(f"the flood ended {result.state}: {result.error}; this is no benchmark")
    return result.value


def _call(client: Client) -> float:
    """One call and its answer, ms."""
    began = time.perf_counter()
    client.call("noop", {"data": "x" * 200}, timeout_s=60.0)
    return (time.perf_counter() - began) * 1000


def _rss(rig: BenchRig, name: str) -> int:
    return _known(rss_bytes(rig.pid(name)))


def _peak(rig: BenchRig, name: str) -> int:
    return _known(peak_rss_bytes(rig.pid(name)))


def _known(value: int | None) -> int:
    if value is None:
        raise RigbusError(
            "this system has no /proc/PID/status with VmRSS; this part of the bench needs Linux"
        )
    return value
