"""Mirrored files -> the rows that the broker answers, so that a verb prints one thing in both modes. Standard library."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ..bridge.folder.layout import COMPLETE, FAILED, PRIVATE, PROCESSING, QUEUE
from .rows import STATES, TASK_ENDED

MAX_BYTES: Final = 4 << 20
_PRIORITY: Final = {"low": 3, "normal": 5, "high": 8, "urgent": 10}
_STATE: Final = {PRIVATE: "waiting", QUEUE: "ready", PROCESSING: "leased", COMPLETE: "done"}


def active_row(id_: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A batch of ``brain/state.json`` in the keys of QUERY `batches`."""
    counts = fields.get("tasks")
    tasks = {s: int(counts.get(s) or 0) for s in STATES} if isinstance(counts, dict) else {}
    total = int(fields.get("total_tasks") or 0)
    ended = sum(tasks.get(s, 0) for s in TASK_ENDED)
    return {
        "id": id_,
        "plan": fields.get("plan"),
        "name": fields.get("display_name") or fields.get("plan"),
        "kind": "plan",
        "state": "running" if total else "planning",
        "priority": _PRIORITY.get(str(fields.get("priority")), 5),
        "created_at": unix(fields.get("started_at")),
        "ended_at": None,
        "total": total,
        "error": None,
        "tasks": tasks,
        "progress": ended / total if total else 0.0,
    }


def ended_row(id_: str, folder: Path) -> dict[str, Any] | None:
    """A batch by its ``batch.json``; None where there is none to be read."""
    fields = json_object(folder / "batch.json")
    if fields is None:
        return None
    counts = fields.get("tasks")
    return {
        "id": id_,
        "plan": fields.get("plan"),
        "name": fields.get("plan"),
        "kind": "plan",
        "state": str(fields.get("status", "unknown")),
        "priority": _PRIORITY.get(str(fields.get("priority")), 5),
        "created_at": unix(fields.get("started_at")),
        "ended_at": unix(fields.get("completed_at")),
        "total": int(fields.get("total_tasks") or 0),
        "error": fields.get("error"),
        "tasks": {s: int(counts.get(s) or 0) for s in STATES} if isinstance(counts, dict) else {},
        "progress": float(fields.get("progress") or 0.0),
    }


def task_row(lane: str, file: Path) -> dict[str, Any] | None:
    """A task of a lane in the keys of :func:`.rows.task_object`."""
    fields = json_object(file)
    if fields is None or "task_id" not in fields:
        return None
    given = fields.get("result")
    result: dict[str, Any] = given if isinstance(given, dict) else {}
    state = _STATE.get(lane) or _failed_state(fields, result)
    attempt = int(fields.get("attempts") or 0)
    started, ended = unix(fields.get("started_at")), unix(fields.get("completed_at"))
    row = {
        "id": str(fields["task_id"]),
        "batch": fields.get("batch_id"),
        "type": fields.get("type"),
        "class": fields.get("task_class"),
        "pool": None,
        "priority": fields.get("priority"),
        "state": state,
        "worker": fields.get("assigned_to"),
        "error": result.get("error"),
        "reason": None,
        "join": False,
        "name": str(fields.get("name", fields["task_id"])),
        "created_at": unix(fields.get("created_at")),
        "started_at": started,
        "ended_at": ended,
        "command": fields.get("command"),
        "depends_on": list(fields.get("depends_on") or ()),
        "attempts": [],
        "result": given if lane in (COMPLETE, FAILED) else None,
    }
    if isinstance(fields.get("evaluation"), dict):
        row["evaluation"] = fields["evaluation"]
    if attempt and state not in ("waiting", "ready"):
        row["attempts"] = [
            {
                "n": attempt,
                "worker": row["worker"],
                "started_at": started,
                "ended_at": ended,
                "outcome": "running" if state == "leased" else state,
                "error": row["error"],
            }
        ]
    return row


def _failed_state(fields: dict[str, Any], result: dict[str, Any]) -> str:
    kind = str(result.get("error_type") or "")
    if kind in TASK_ENDED:
        return kind
    return "cancelled" if fields.get("status") == "abandoned" else "dead"


#: What the mirror calls a reading -> telemetry's name, where they differ.
_CARD_KEYS: Final = {"gpu_temp_c": "temperature_c", "gpu_util": "utilization_pct"}


def gpu(beat: dict[str, Any]) -> dict[str, Any] | None:
    """What a heartbeat says of its cards, in the keys of telemetry: the first one's, and ``cards`` for all."""
    names = {
        "index": "gpu_id",
        "temperature_c": "temperature_c",
        "utilization_pct": "gpu_util_percent",
        "power_w": "power_draw_w",
        "vram_used_mb": "vram_used_mb",
        "vram_total_mb": "vram_total_mb",
    }
    found = {ours: beat[theirs] for ours, theirs in names.items() if beat.get(theirs) is not None}
    cards = beat.get("gpus")
    if isinstance(cards, dict):
        found["cards"] = [
            {"index": int(index), **{_CARD_KEYS.get(key, key): value for key, value in card.items()}}
            for index, card in cards.items()
            if index.isdecimal() and isinstance(card, dict)
        ]
    return found or None


def json_object(file: Path) -> dict[str, Any] | None:
    """A JSON object of a regular file; None for whatever is none."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return None
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def unix(text: Any) -> float | None:
    """Naive local ISO-8601, as the mirror has it, as Unix seconds."""
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except (ValueError, OverflowError):
        return None
