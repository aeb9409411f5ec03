"""Dependencies: a chain, a fan, and a plan with a long list, whose expansion must not stall the broker."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ...bus.errors import NotFound, RigbusError
from . import limits
from .ends import Ends
from .figures import Figure, Outcome, Spread, cpu_a_task
from .machine import machine
from .rig import BenchRig, Setup
from .shell import PLAN, items_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...bus.client.client import Client
    from ...bus.client.work import Task

WAIT_S: Final = 300.0
ASK_EVERY_S: Final = 0.005
CHAIN_S: Final = 1.5  #: target of 1,000 tasks
FAN_S: Final = 0.5  #: target of 1→2,000→1
FIRST_S: Final = 1.5
STALL_MS: Final = 250.0
LIMIT_S: Final = 0.3  #: of each limit


@dataclass(frozen=True, slots=True)
class Options:
    """``chain`` tasks in a row, ``fan`` side by side between two, ``items`` of the plan's foreach."""

    chain: int = 1000
    fan: int = 2000
    items: int = 20_000
    repeats: int = 5
    workers: int = 2


def measure(options: Options, say: Callable[[str], None]) -> Outcome:
    """Chains and fans in turn on a rig of no-op handlers; then plans on a rig with a brain and commands."""
    settings = {
        "durability": "full",
        "chain": options.chain,
        "fan": options.fan,
        "items": options.items,
        "repeats": options.repeats,
        "workers": options.workers,
        **machine(),
    }
    chains, fans = [], []
    with BenchRig(Setup(agents=options.workers)) as rig, rig.client() as client:
        fsync_us = limits.fsync_p50_us(rig.state)
        _edges(client, max(10, options.chain // 10), max(10, options.fan // 10))
        before = rig.cpu_s()
        for n in range(options.repeats):
            chain_s, fan_s = _edges(client, options.chain, options.fan)
            chains.append(chain_s)
            fans.append(fan_s)
            say(f"round {n + 1} of {options.repeats}: chain {chain_s:.2f} s, fan {fan_s:.2f} s")
        after = rig.cpu_s()
        with limits.echo(rig.folder) as echo, closing(limits.Sqlite(rig.state)) as db:
            commit_s, echo_s = 0.5 / db.tasks_per_s(1, LIMIT_S), 1 / echo(1, LIMIT_S)
    chain, fan = Spread.of(chains), Spread.of(fans)
    bare_s = options.chain * (commit_s + echo_s)
    figures = [
        Figure(
            f"chain of {options.chain:,}",
            "s",
            chain,
            target=_scaled(CHAIN_S, options.chain, 1000),
            ratio=chain.median / bare_s,
            limit="× bare",
        ),
        Figure(f"1→{options.fan:,}→1", "s", fan, target=_scaled(FAN_S, options.fan, 2000)),
    ]
    figures += _expansions(options, say)
    per_round = options.chain + options.fan + 2
    return Outcome(
        "dag",
        figures,
        settings,
        fsync_us,
        cpu=cpu_a_task(before, after, per_round * options.repeats),
        limits={"synced commits/s": 1 / commit_s, "echo one at a time/s": 1 / echo_s},
        notes=[
            (
                "A step of a chain is one commit and two messages one after the other; bare, that is a commit and an echo. "
                "The stall is the longest answer to a small question asked every 5 ms while the list is expanded and its "
                "first tasks run."
            )
        ],
    )


def _scaled(target: float, size: int, of: int) -> float | None:
    """The target holds for one size only."""
    return target if size == of else None


def _edges(client: Client, chain: int, fan: int) -> tuple[float, float]:
    return _timed(client, chain_of(chain)), _timed(client, fan_of(fan))


def chain_of(count: int) -> list[Task]:
    """Tasks each of which waits for the one before."""
    from ...bus.client.work import Task

    return [Task(type="noop", key=f"c{n}", after=[f"c{n - 1}"] if n else []) for n in range(count)]


def fan_of(count: int) -> list[Task]:
    """One task, ``count`` that wait for it, and one that waits for all of them."""
    from ...bus.client.work import Task

    middle = [Task(type="noop", key=f"m{n}", after=["first"]) for n in range(count)]
    return [
        Task(type="noop", key="first"),
        *middle,
        Task(type="noop", key="last", after=[t.key for t in middle]),
    ]


def _timed(client: Client, tasks: list[Task]) -> float:
    began = time.perf_counter()
    ids = client.submit(tasks)
    bad = sum(not result.ok for result in client.results(ids, timeout_s=WAIT_S))
    took_s = time.perf_counter() - began
    if bad:
        raise RigbusError(f"{bad} of {len(tasks)} tasks did not end well; this is no benchmark")
    return took_s


def _expansions(options: Options, say: Callable[[str], None]) -> list[Figure]:
    """A plan of many items: when its first task starts, how long the broker answers nobody."""
    found: list[dict[str, float]] = []
    rounds = max(1, min(options.repeats, 5))
    with (
        BenchRig(Setup(workers=options.workers, brain=True)) as rig,
        rig.client() as client,
        Ends(rig, client) as ends,
    ):
        small = rig.staged(PLAN, {"items.json": items_json(max(10, options.items // 100))})
        plan = rig.staged(PLAN, {"items.json": items_json(options.items)})
        _expansion(rig, ends, client, small, max(10, options.items // 100))
        for n in range(rounds):
            found.append(_expansion(rig, ends, client, plan, options.items))
            r = found[-1]
            say(
                f"plan {n + 1} of {rounds}: first task {r['submit']:.2f} s after the submit, "
                f"{r['list']:.2f} s after its list; all declared {r['declared']:.2f} s; longest answer {r['stall']:.0f} ms"
            )
    of = {key: Spread.of(r[key] for r in found) for key in found[0]}
    what = f"{options.items:,} items"
    first_s = _scaled(FIRST_S, options.items, 20_000)
    return [
        Figure(f"{what}: submit to first task", "s", of["submit"], target=first_s),
        Figure(f"{what}: list recorded to first task", "s", of["list"], target=first_s),
        Figure(f"{what}: list recorded to all declared", "s", of["declared"]),
        Figure(
            "broker's longest stall meanwhile",
            "ms",
            of["stall"],
            target=_scaled(STALL_MS, options.items, 20_000),
        ),
    ]


def _expansion(
    rig: BenchRig, ends: Ends, client: Client, plan: dict[str, Any], items: int
) -> dict[str, float]:
    """One run of the plan until all its tasks are declared and some have ended; then it is cancelled.

    What is asked meanwhile is the row of the list's join: it is held until the last task is declared.
    """
    from ...bus.client.work import task_id

    submitted = time.time()
    batch = client.submit_plan(plan, str(uuid4()))
    join = task_id(batch, "each")
    longest = 0.0
    deadline = time.monotonic() + WAIT_S
    while True:
        asked = time.perf_counter()
        held = _held(client, join)
        longest = max(longest, time.perf_counter() - asked)
        if held is False:
            break
        rig.check()
        if time.monotonic() > deadline:
            raise RigbusError(
                f"{items:,} items are not declared after {WAIT_S:g} s: {client.query('batch', id=batch)}"
            )
        client.tend(ASK_EVERY_S)
    declared_at = time.time()
    row = client.query("batch", id=batch)
    if row["total"] != items + 2:
        raise RigbusError(f"{row['total']:,} tasks are declared, not {items + 2:,}; this is no benchmark")
    # The list's own task is the first that is done.
    rig.wait(
        lambda: client.query("batch", id=batch)["tasks"]["done"] >= 2, "a task to end", WAIT_S, poll_s=0.05
    )
    found = _times(client, batch)
    client.cancel(batch=batch, reason="measured", timeout_s=120.0)
    ends.wait(batch, WAIT_S)
    return {
        "submit": found["first"] - submitted,
        "list": found["first"] - found["list"],
        "declared": declared_at - found["list"],
        "stall": longest * 1000,
    }


def _held(client: Client, join: str) -> bool | None:
    """Whether the list's join is held; None before the plan is declared."""
    try:
        return bool(client.query("task", id=join)["rows"][0]["hold"])
    except NotFound:
        return None


def _times(client: Client, batch: str) -> dict[str, float]:
    """By the broker's clock: when the list was recorded, when the first of its tasks started."""
    list_at = first_at = 0.0
    cursor = 0
    while True:
        page = client.query("tasks", batch=batch, states=["leased", "done"], cursor=cursor)
        for row in page["rows"]:
            if row["type"] == "expand":
                list_at = row["ended_at"]
            elif row["started_at"]:
                first_at = min(first_at or row["started_at"], row["started_at"])
        if page["cursor"] is None:
            return {"list": list_at, "first": first_at}
        cursor = page["cursor"]
