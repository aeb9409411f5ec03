"""Commands: a plan of `true`, beside a bare loop that starts the same command."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ...bus.errors import RigbusError
from . import limits
from .ends import Ends
from .figures import Figure, Outcome, Spread, cpu_a_task
from .machine import machine
from .rig import BenchRig, Setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...bus.client.client import Client

ROUND_S: Final = 300.0
BARE_S: Final = 1.0  #: of the bare loop in a round
TARGET: Final = 0.5  #: of the bare loop

PLAN: Final = """# Plan: bench_true

## Tasks

### each
- **executor**: worker
- **task_class**: cpu
- **foreach**: `{PLAN_PATH}/items.json:items`
- **command**: `true`
- **depends_on**: none
"""


@dataclass(frozen=True, slots=True)
class Options:
    """``tasks`` of a round; ``slots`` at once in each of ``workers``."""

    tasks: int = 3000
    repeats: int = 5
    workers: int = 2
    slots: int = 1
    profile: Path | None = None


def items_json(count: int) -> str:
    """A foreach source of so many items."""
    return json.dumps({"items": [{"id": f"i{n:05d}"} for n in range(count)]})


def measure(options: Options, say: Callable[[str], None]) -> Outcome:
    """Rounds of the plan and of the bare loop in turn."""
    settings = {
        "durability": "full",
        "tasks": options.tasks,
        "repeats": options.repeats,
        "workers": options.workers,
        "slots": options.slots,
        **machine(),
    }
    setup = Setup(workers=options.workers, slots=options.slots, brain=True, profile=options.profile)
    run = _rounds(setup, options, options.repeats, say)
    figures = [
        Figure("shell tasks of a plan", "tasks/s", run.ours, ratio=run.ratios.median, limit="bare loop"),
        Figure("part of the bare loop", "", run.ratios, target=TARGET, at_least=True),
    ]
    if options.profile is None:
        say("the same with a bridge, which draws each task into a shared folder")
        seen = _rounds(replace(setup, bridge=True), options, min(3, options.repeats), say)
        figures.append(Figure("the same, mirrored by a bridge", "", seen.ratios))
    return Outcome(
        "shell",
        figures,
        settings,
        run.fsync_us,
        cpu=cpu_a_task(dict.fromkeys(run.cpu, 0.0), run.cpu, options.tasks * options.repeats),
        limits={f"{options.workers} bare loops of `bash -c true`/s": run.bare.median},
        notes=[
            "A round is a whole run: from the plan's submit to the end of its batch, its list read and expanded."
        ],
    )


@dataclass(frozen=True, slots=True)
class _Rounds:
    """``ours`` and ``bare`` in tasks a second, their ``ratios``, CPU seconds by kind of process."""

    ours: Spread
    bare: Spread
    ratios: Spread
    cpu: dict[str, float]
    fsync_us: float


def _rounds(setup: Setup, options: Options, repeats: int, say: Callable[[str], None]) -> _Rounds:
    """Rounds of the plan on a rig of its own, and of the bare loop in turn."""
    ours, bare = [], []
    with (
        BenchRig(setup) as rig,
        rig.client() as client,
        Ends(rig, client) as ends,
    ):
        fsync_us = limits.fsync_p50_us(rig.state)
        plan = rig.staged(PLAN, {"items.json": items_json(options.tasks)})
        small = rig.staged(PLAN, {"items.json": items_json(max(20, options.tasks // 10))})
        _run(ends, client, small, max(20, options.tasks // 10))
        limits.bash_loop(0.2, options.workers)
        cpu = dict.fromkeys(rig.cpu_s(), 0.0)
        for n in range(repeats):
            bare.append(limits.bash_loop(min(BARE_S, options.tasks / 500), options.workers))
            before = rig.cpu_s()
            ours.append(options.tasks / _run(ends, client, plan, options.tasks))
            after = rig.cpu_s()
            cpu = {kind: cpu[kind] + after[kind] - before[kind] for kind in cpu}
            say(f"round {n + 1} of {repeats}: {ours[-1]:,.0f} tasks/s, bare {bare[-1]:,.0f}")
    ratios = Spread.of(a / b for a, b in zip(ours, bare, strict=True))
    return _Rounds(Spread.of(ours), Spread.of(bare), ratios, cpu, fsync_us)


def _run(ends: Ends, client: Client, plan: dict[str, Any], tasks: int) -> float:
    """Submit the plan and wait for the end of its batch; seconds.

    Raises:
        RigbusError: a task did not end well.
    """
    began = time.perf_counter()
    row = ends.wait(client.submit_plan(plan, str(uuid4())), ROUND_S)
    took_s = time.perf_counter() - began
    if row["state"] != "complete" or row["tasks"]["done"] != tasks + 2:
        raise RigbusError(f"the plan ended {row['state']}: {row['tasks']}; this is no benchmark")
    return took_s
