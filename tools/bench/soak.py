"""A soak: very many no-op tasks through one rig with little history, and whether anything of it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ...bus.errors import RigbusError
from ...bus.paths import rig_paths
from ...bus.wire import Verb
from . import limits
from .bus import run_round
from .figures import Figure, Outcome, Spread, cpu_a_task
from .machine import machine, open_files, rss_bytes
from .rig import BenchRig, Setup

if TYPE_CHECKING:
    from pathlib import Path

    from ...bus.client.client import Client

MIB: Final = 1 << 20
MILLION: Final = 1_000_000
WATCHED: Final = ("broker", "brain", "bridge", "agent-1", "agent-2")
#: What counts as flat, per million tasks: ten bytes a task. A leak of one small object a task is ten times as much.
GROWS_MIB: Final = 10.0
GROWS_FILES: Final = 1.0
KEPT: Final = 1.1  #: the log is trimmed when a twentieth more has come, by whole commits
#: So that what is kept is full long before the half of the run from which on growth is judged.
RETENTION: Final = {"tasks": 20_000, "events": 100_000}


@dataclass(frozen=True, slots=True)
class Options:
    """``tasks`` in all, in rounds of ``part``; each round is a client of its own."""

    tasks: int = MILLION
    part: int = 5000
    payload: int = 200


@dataclass(slots=True)
class Sample:
    """The state of the rig after so many tasks; memory and files in bytes."""

    tasks: int
    rss: dict[str, int]
    files: dict[str, int]
    database: int
    kept: int  #: events of the numbered log
    rate: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "tasks": self.tasks,
            "rss_mib": {name: round(value / MIB, 2) for name, value in self.rss.items()},
            "open_files": self.files,
            "database_mib": round(self.database / MIB, 2),
            "events_kept": self.kept,
            "tasks_per_s": round(self.rate, 1),
        }


@dataclass(slots=True)
class _Series:
    samples: list[Sample] = field(default_factory=list)

    @property
    def last_half(self) -> list[Sample]:
        return [s for s in self.samples if s.tasks >= self.samples[-1].tasks / 2]

    def growth(self, value: Callable[[Sample], float]) -> float:
        """Of the last half of the run, by least squares, per million tasks."""
        last = self.last_half
        return slope([s.tasks / MILLION for s in last], [value(s) for s in last])


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The slope of the line through points by least squares; 0 for one point."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / over if over else 0.0


def measure(options: Options, say: Callable[[str], None]) -> Outcome:
    """Rounds until all tasks are done; a sample after each."""
    settings = {
        "durability": "full",
        "tasks": options.tasks,
        "part": options.part,
        "payload_bytes": options.payload,
        "workers": 2,
        "kept_tasks": RETENTION["tasks"],
        "kept_events": RETENTION["events"],
        **machine(),
    }
    series = _Series()
    setup = Setup(agents=2, brain=True, bridge=True, settings={"retention": RETENTION})
    with BenchRig(setup) as rig:
        rig.client().close()
        fsync_us = limits.fsync_p50_us(rig.state)
        before, done, began = rig.cpu_s(), 0, time.monotonic()
        while done < options.tasks:
            part = min(options.part, options.tasks - done)
            with rig.open() as client:
                took_s = run_round(client, part, options.payload)
                done += part
                series.samples.append(_sample(rig, client, done, part / took_s))
            if done * 10 // options.tasks > (done - part) * 10 // options.tasks:
                say(f"{done:,} of {options.tasks:,}: {_said(series.samples[-1])}")
        cpu = cpu_a_task(before, rig.cpu_s(), done)
        took_s = time.monotonic() - began
    return Outcome(
        "soak",
        _figures(series, options, done / took_s),
        settings,
        fsync_us,
        cpu=cpu,
        more={"samples": [s.as_dict() for s in series.samples[:: max(1, len(series.samples) // 100)]]},
        notes=_notes(series),
    )


def _figures(series: _Series, options: Options, rate: float) -> list[Figure]:
    """Growth, per million tasks of the last half; the targets hold for a million tasks."""
    whole = options.tasks >= MILLION

    def grows(name: str, unit: str, value: Callable[[Sample], float], target: float) -> Figure:
        return Figure(name, unit, Spread.of([series.growth(value)]), target=target if whole else None)

    a_million = "per million tasks"
    figures = [
        grows(f"{name}'s memory grows by", f"MiB {a_million}", lambda s, n=name: s.rss[n] / MIB, GROWS_MIB)  # type: ignore[misc]
        for name in WATCHED
    ]
    figures += [
        grows("open files grow by", a_million, lambda s: float(sum(s.files.values())), GROWS_FILES),
        grows("database and its log grow by", f"MiB {a_million}", lambda s: s.database / MIB, GROWS_MIB),
        Figure(
            "events kept, of their bound",
            "×",
            Spread.of(s.kept / RETENTION["events"] for s in series.last_half),
            target=KEPT if whole else None,
        ),
        Figure("no-op tasks, all of it", "tasks/s", Spread.of([rate])),
    ]
    return figures


def _notes(series: _Series) -> list[str]:
    points = [
        ("after the first round", series.samples[0]),
        ("half-way", series.samples[len(series.samples) // 2]),
    ]
    points.append(("at the end", series.samples[-1]))
    return [
        "Growth is the slope of the last half of the run, by least squares over a sample a round. "
        + "; ".join(f"{when}: {_said(sample)}" for when, sample in points)
        + ".",
    ]


def _said(s: Sample) -> str:
    memory = ", ".join(f"{name} {value / MIB:.1f}" for name, value in s.rss.items())
    return (
        f"MiB {memory}, {sum(s.files.values())} open files, database {s.database / MIB:.1f} MiB, "
        f"{s.kept:,} events kept, {s.rate:,.0f} tasks/s"
    )


def _sample(rig: BenchRig, client: Client, tasks: int, rate: float) -> Sample:
    rss = {name: rss_bytes(rig.pid(name)) or 0 for name in WATCHED}
    files = {name: open_files(rig.pid(name)) or 0 for name in WATCHED}
    if not all(rss.values()):
        raise RigbusError("this system has no /proc/PID/status with VmRSS; `bench soak` needs Linux")
    return Sample(tasks, rss, files, _database(rig.state), _kept(client), rate)


def _kept(client: Client) -> int:
    """How far back the numbered log reaches."""
    header = client.request(Verb.EVENTS, {"since": 0, "limit": 1}).header
    oldest = header["oldest"] if "oldest" in header else header["events"][0][0]
    return int(header["last"]) - int(oldest) + 1


def _database(state: Path) -> int:
    """Bytes of the database and what lies beside it."""
    db = rig_paths(state).db
    return sum(file.stat().st_size for file in db.parent.glob(f"{db.name}*"))
