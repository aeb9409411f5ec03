"""What the brain cannot settle by itself, as it is raised: which ends of work, and in which words. Pure.

Keys come from rows: a task or batch, and the number of its last change. So whoever looks at the same end again says the
same, and an end after a person's or planner's answer is another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .judgement import cut_bytes

Row = Mapping[str, Any]

PLAN_FAULT: Final = "plan_fault"
REPEATED: Final = "repeated_failures"
UNFIXABLE: Final = "unfixable_definition"
WORKERS: Final = "workers_unhealthy"
PLAN_FAILED: Final = "execute_plan_failure"
NOT_VERIFIED: Final = "verification_failure"
RIG_FAILED: Final = "infrastructure_failure"
_TITLE: Final = 280  #: characters
_ERROR_BYTES: Final = 4000
_WORKERS_TOLD: Final = 20
_WELL: Final = frozenset({"idle", "busy"})
_UNWELL: Final = frozenset({"quarantined", "fenced", "suspect"})


def of_plan(batch: Row, error: str) -> dict[str, Any]:
    """A batch whose plan, or a list of it, cannot become tasks; ``batch`` is its row before it fails."""
    name = batch.get("plan") or batch["id"]
    return {
        "key": f"{batch['id']}/{PLAN_FAULT}/{batch['seq']}",
        "batch": batch["id"],
        "cause": PLAN_FAULT,
        "type": PLAN_FAILED,
        "title": _cut(f"{name} cannot be planned: {error}"),
        "details": {"error": cut_bytes(error, _ERROR_BYTES)},
    }


def of_task(row: Row, attempts: Sequence[Row]) -> dict[str, Any]:
    """A dead task of a plan; ``attempts`` are those that ended badly, the oldest first."""
    last = str(attempts[-1]["class"]) if attempts else "definition"
    cause = UNFIXABLE if last == "definition" else REPEATED
    error = str(row.get("error") or "no reason was recorded")
    return {
        "key": f"{row['batch']}/{cause}/{row['id']}/{row['seq']}",
        "batch": row["batch"],
        "task": row["id"],
        "cause": cause,
        "type": _type_of(row, last),
        "title": _cut(f"{row['key']} {_how(cause, attempts)}: {error}"),
        "details": {"error": cut_bytes(error, _ERROR_BYTES), "error_class": last},
    }


def probable_cause(row: Row) -> str:
    """Of a dead task, by its row alone."""
    return REPEATED if any((row.get("attempts") or {}).values()) else UNFIXABLE


def _type_of(row: Row, last: str) -> str:
    if last == "infra":
        return RIG_FAILED
    judged = row.get("evaluation") or {}
    rejected = judged.get("verdict") == "reject" and judged.get("attempt") == row.get("attempt")
    return NOT_VERIFIED if rejected else PLAN_FAILED


def _how(cause: str, attempts: Sequence[Row]) -> str:
    if cause == UNFIXABLE:
        return "cannot run as it is defined"
    workers = sorted({str(a["worker"]) for a in attempts if a.get("worker")})
    times = f"{len(attempts)} time{'s' if len(attempts) != 1 else ''}"
    return f"failed {times} on {', '.join(workers) or 'no worker'}"


# -- workers -------------------------------------------------------------------------------------------------


def of_workers(rows: Sequence[Row], ready: int, past: Sequence[Row]) -> dict[str, Any]:
    """No worker is in order while ``ready`` tasks wait; ``past`` are the records about the rig so far."""
    number = max((int(r["no"]) for r in past), default=0)
    mine = plan_workers(rows)
    told = [{"id": w["id"], "state": w["state"], "why": why_unwell(w)} for w in mine[:_WORKERS_TOLD]]
    names = "; ".join(f"{w['id']} is {w['state']}" for w in told[:5]) or "none is attached"
    tasks = f"{ready} tasks wait" if ready != 1 else "1 task waits"
    return {
        "key": f"{WORKERS}/{number}",
        "cause": WORKERS,
        "type": RIG_FAILED,
        "title": _cut(f"no worker is in order while {tasks}: {names}"),
        "details": {"workers": told, "ready": ready},
    }


def plan_workers(rows: Sequence[Row]) -> list[Row]:
    """The workers but those that run only the brain's own commands."""
    return [w for w in rows if list(w.get("classes") or ()) != ["brain"]]


def some_well(rows: Sequence[Row]) -> bool:
    """Whether a worker takes work."""
    return any(w["state"] in _WELL for w in plan_workers(rows))


def all_unwell(rows: Sequence[Row]) -> bool:
    """Whether no worker takes work and none will by itself, or by the person who has paused it; none at all counts."""
    return all(w["state"] in _UNWELL or bool(w.get("unkillable")) for w in plan_workers(rows))


def why_unwell(worker: Row) -> str:
    """In the broker's words."""
    quarantine = worker.get("quarantine") or {}
    said = quarantine.get("why") or worker.get("fenced") or worker.get("held") or ""
    return cut_bytes(str(said), 200)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TITLE else f"{line[: _TITLE - 1]}…"
