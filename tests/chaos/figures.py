"""The summary of a history. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from .judge import Violation
from .seen import Seen


def summary(seen: Seen, violations: Sequence[Violation]) -> dict[str, Any]:
    """What a campaign has done and what came of it; durations in seconds."""
    missed = {r["n"] for r in seen.all("missed")}
    rounds = [r for r in seen.rounds if r["n"] not in missed]
    by = Counter(f"{r['deed']} {_kind(r['victim'])}" for r in rounds)
    lines, tasks = seen.lines, seen.tasks.values()
    calm = seen.all("calm")
    storm_s = (calm[0]["t"] if calm else seen.last_t) - seen.first_t
    settled = seen.all("settled")
    return {
        "schema": "rigbus.chaos/1",
        "seed": seen.campaign.get("seed"),
        "storm_s": round(storm_s, 1),
        "healed_s": settled[-1]["took_s"] if settled else None,
        "rounds": sum(r["deed"] == "kill" for r in rounds),
        "stops": sum(r["deed"] == "stop" for r in rounds),
        "rounds_by_victim": dict(by.most_common()),
        "jobs": dict(Counter(job["kind"] for job in seen.jobs.values())),
        "unanswered_submits": len(seen.all("unanswered")),
        "batches": dict(Counter(b["state"] for b in seen.batches.values())),
        "tasks": len(seen.tasks),
        "tasks_by_state": dict(Counter(t["state"] for t in tasks).most_common()),
        "tasks_per_s": round(len(seen.tasks) / storm_s, 1) if storm_s > 0 else None,
        "executions": len(lines),
        "reexecutions": len(lines) - len(seen.starts),
        "interrupted": sum(line.token not in seen.ends for line in lines),
        "failed_attempts": dict(Counter(c for t in tasks for _, c, _ in t["failed"])),
        "stale_results": sum(e["topic"].endswith(".stale") for e in seen.events),
        "quarantines": len(seen.all("trust")),
        "events": len(seen.events),
        "recovery": recoveries(seen),
        "peak": _peaks(seen),
        "violations": len(violations),
        "violations_by_rule": dict(Counter(v.rule for v in violations)),
        "first_violations": [str(v) for v in violations[:50]],
    }


def recoveries(seen: Seen) -> dict[str, dict[str, float]]:
    """How long the rig needed after a kill. Of a broker and of `up`: from the kill to the next recorded end of a task. Of a
    worker, or of a command: from the kill to the next attempt of a task that ran there."""
    took: dict[str, list[float]] = {}
    ended = sorted(e["at"] for ends in seen.task_ends.values() for e in ends)
    ups = sorted(r["t"] for r in seen.all("up"))
    by_ppid: dict[int, list[str]] = {}
    for id_, lines in seen.starts.items():
        for line in lines:
            by_ppid.setdefault(line.ppid, []).append(id_)
    for r in seen.rounds:
        if r["deed"] != "kill":
            continue
        kind = _kind(r["victim"])
        if kind == "broker":
            took.setdefault(kind, []).extend(_next(ended, r["t"]))
        elif kind == "up":  # what its dying processes still record is no recovery
            for ready in _next(ups, r["t"]):
                took.setdefault(kind, []).extend(ready + s for s in _next(ended, r["t"] + ready))
        elif kind == "command":
            took.setdefault(kind, []).extend(_again(seen, r["task"], r["t"]))
        elif kind in ("worker", "brain-worker"):
            for id_ in set(by_ppid.get(r["pid"], ())):
                took.setdefault(kind, []).extend(_again(seen, id_, r["t"]))
    return {kind: _spread(found) for kind, found in took.items() if found}


def _again(seen: Seen, id_: str, killed_at: float) -> list[float]:
    """From the kill to the next attempt of a task, if one was running."""
    lines = sorted(seen.starts.get(id_, ()), key=lambda line: line.t)
    before = [line for line in lines if line.t <= killed_at]
    if not before or before[-1].token in seen.ends:
        return []
    return [line.t - killed_at for line in lines[len(before) : len(before) + 1]]


def _next(times: Sequence[float], after: float) -> list[float]:
    place = bisect_right(times, after)
    return [times[place] - after] if place < len(times) else []


def _spread(found: list[float]) -> dict[str, float]:
    found = sorted(found)
    p99 = found[min(len(found) - 1, int(0.99 * len(found)))]
    return {
        "n": len(found),
        "median_s": round(median(found), 3),
        "p99_s": round(p99, 3),
        "max_s": round(found[-1], 3),
    }


def _peaks(seen: Seen) -> dict[str, Any]:
    """The most that any process of a kind, or any file, ever had."""
    rss: dict[str, int] = {}
    fds: dict[str, int] = {}
    files: dict[str, int] = {}
    for r in seen.all("size"):
        for target, found in ((rss, r["rss_kib"]), (fds, r["fds"]), (files, r["bytes"])):
            for name, value in found.items():
                target[_kind(name)] = max(value, target.get(_kind(name), 0))
    return {"rss_kib": rss, "fds": fds, "bytes": files}


def _kind(name: str) -> str:
    """``worker-3`` is a worker."""
    return name.rstrip("0123456789").rstrip("-")
