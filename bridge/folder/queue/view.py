"""How an ``execute_plan`` file, and a file that was refused, is shown in the lanes. Pure.

It keeps the name, the task_id and the fields that its author gave it, so that his scripts find it again; what the rig
adds is marked ``mirrored_by``, by which no bridge takes it for an order. (A single task is shown by the mirror.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from ..contract import layout
from ..contract.layout import COMPLETE, FAILED, LANES, PROCESSING, File, iso, to_json
from ..contract.receipts import Problem, receipt_stem
from ..share.seal import MIRRORED_BY, seal
from .core import TASK_ID

_TEXTS: Final = ("type", "name", "prompt", "context", "command", "created_by", "batch_id")


def stem_of(name: str, task_id: str) -> str:
    """What its files in the lanes are called: as its author called it, where that is a plain name."""
    stem = name.removesuffix(".json")
    return stem if TASK_ID.match(stem) else task_id


def lane_path(lane: str, stem: str) -> str:
    """``<lane>/<stem>.json``."""
    return f"{lane}/{stem}.json"


def elsewhere(path: str) -> list[str]:
    """The same file in all other lanes, where an earlier bridge may have left it."""
    stem = path.rpartition("/")[2].removesuffix(".json")
    return [other for lane in LANES if (other := lane_path(lane, stem)) != path]


def plan_view(entry: Mapping[str, Any], batch: Mapping[str, Any], offset_s: float) -> File:
    """An ``execute_plan`` file: processing until its batch has ended, then complete (its status may be failed).

    ``batch`` is the broker's row; one with ``state`` "gone" was purged.
    """
    state = batch["state"]
    ended = state not in ("planning", "running")
    begun = float(entry["at"])
    at = float(batch.get("ended_at") or begun) if ended else begun
    fields = _base(entry, offset_s)
    fields |= {"status": "processing", "assigned_to": "brain", "started_at": iso(begun, offset_s)}
    if ended:
        ok = state == "complete"
        result: dict[str, Any] = {
            "success": ok,
            "batch_id": entry["batch"],
            "handler": "brain",
            "output": _counts(batch),
        }
        if not ok:
            result["error"] = _why(batch, str(entry["batch"]))
        fields |= {
            "status": "complete" if ok else "failed",
            "completed_at": iso(at, offset_s),
            "result": result,
        }
    fields |= _stamps(batch.get("seq"), at, offset_s)
    path = lane_path(COMPLETE if ended else PROCESSING, str(entry["stem"]))
    return File(path, to_json(fields), layout.mtime_ns(at))


def refused_view(
    name: str, fields: Mapping[str, Any], problems: Sequence[Problem], at: float, offset_s: float
) -> File:
    """What was refused, where its author looks for it. A refused plan lies in complete, as the earlier brain put it."""
    is_plan = fields.get("type") == "execute_plan"
    given = fields.get("task_id")
    task_id = given if isinstance(given, str) and TASK_ID.match(given) else _safe_id(name)
    error = "; ".join(f"{p.what}; {p.fix}" if p.fix else p.what for p in problems) or "refused"
    out = _base({"fields": fields, "task_id": task_id, "at": at}, offset_s)
    out |= {"status": "failed", "completed_at": iso(at, offset_s)}
    out["result"] = {"success": False, "output": "", "error": error, "reason": error}
    if is_plan:
        out["result"]["handler"] = "brain"
    else:
        out |= {"error_type": "definition", "definition_error": error}
        out["result"]["error_type"] = "definition"
    out |= _stamps(None, at, offset_s)
    path = lane_path(COMPLETE if is_plan else FAILED, stem_of(name, task_id))
    # Sealed: where its author mends the task and orders it again, the mirror removes the old answer.
    return File(path, seal(to_json(out).removesuffix(b"\n}\n") + b"\n}"), layout.mtime_ns(at))


def naive(given: Any, at: float, offset_s: float) -> str:
    """A timestamp as the earlier readers can subtract it: naive local time; ``at`` for what is none."""
    if isinstance(given, str):
        try:
            found = datetime.fromisoformat(given)
        except ValueError:
            return iso(at, offset_s)
        if found.tzinfo is None:
            return given
        try:
            return iso(found.timestamp(), offset_s)
        except (OverflowError, ValueError):
            return iso(at, offset_s)
    return iso(at, offset_s)


def _base(entry: Mapping[str, Any], offset_s: float) -> dict[str, Any]:
    """The author's fields, as far as a reader can take them."""
    given: Mapping[str, Any] = entry["fields"]
    fields = dict(given)
    for key in _TEXTS:
        if key in fields and not isinstance(fields[key], str):
            fields[key] = json.dumps(fields[key], default=str)
    fields.setdefault("type", "unknown")
    fields["task_id"] = entry["task_id"]
    fields["created_at"] = naive(fields.get("created_at"), float(entry["at"]), offset_s)
    return fields


def _stamps(seq: Any, at: float, offset_s: float) -> dict[str, Any]:
    return {"mirrored_by": MIRRORED_BY, "seq": seq if isinstance(seq, int) else 0, "as_of": iso(at, offset_s)}


def _counts(batch: Mapping[str, Any]) -> str:
    counts = batch.get("tasks") or {}
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    total = int(batch.get("total") or 0)
    return f"{total} task{'s' if total != 1 else ''}" + (f": {said}" if said else "")


def _why(batch: Mapping[str, Any], batch_id: str) -> str:
    if batch["state"] == "gone":
        return f"the record of batch {batch_id} was purged before its end could be shown"
    if batch.get("error"):
        return str(batch["error"])
    if batch["state"] == "cancelled":
        return "cancelled"
    return f"{_counts(batch)}; `rigbus batch show {batch_id}` says why"


def _safe_id(name: str) -> str:
    stem = receipt_stem(name.removesuffix(".json"))
    return stem if TASK_ID.match(stem) else receipt_stem(stem.replace(".", "-") + "-")
