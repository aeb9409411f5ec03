"""Mirrored files -> the rows that the broker answers, so that a verb prints one thing in both modes. Standard library.

Whoever can write the share can write anything into them: a row has the types that the broker's has, and its words (ids,
states, classes) are short and printable. Free text (names, errors) is cleaned where it is shown.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ..bridge.folder.contract.layout import COMPLETE, FAILED, PRIVATE, PROCESSING, QUEUE
from ..bridge.folder.share.ops import shown
from .rows import STATES, TASK_ENDED

MAX_BYTES: Final = 4 << 20
_WORD: Final = 200  #: characters of a word
_PRIORITY: Final = {"low": 3, "normal": 5, "high": 8, "urgent": 10}
_STATE: Final = {PRIVATE: "waiting", QUEUE: "ready", PROCESSING: "leased", COMPLETE: "done"}


def active_row(id_: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A batch of ``brain/state.json`` in the keys of QUERY `batches`."""
    tasks = _counts(fields)
    total = whole(fields.get("total_tasks"))
    ended = sum(tasks[s] for s in TASK_ENDED)
    return {
        "id": word(id_),
        "plan": text_or_none(fields.get("plan")),
        "name": text_or_none(fields.get("display_name")) or text_or_none(fields.get("plan")),
        "kind": "plan",
        "state": "running" if total else "planning",
        "priority": _PRIORITY.get(str(fields.get("priority")), 5),
        "created_at": unix(fields.get("started_at")),
        "ended_at": None,
        "total": total,
        "error": None,
        "tasks": tasks,
        "progress": min(1.0, ended / total) if total else 0.0,
    }


def ended_row(id_: str, folder: Path) -> dict[str, Any] | None:
    """A batch by its ``batch.json``; None where there is none to be read."""
    fields = json_object(folder / "batch.json")
    if fields is None:
        return None
    config = fields.get("config")
    return {
        "id": word(id_),
        "plan": text_or_none(fields.get("plan")),
        "name": text_or_none(fields.get("plan")),
        "kind": "plan",
        "state": word(fields.get("status"), "unknown"),
        "priority": _PRIORITY.get(str(fields.get("priority")), 5),
        "created_at": unix(fields.get("started_at")),
        "ended_at": unix(fields.get("completed_at")),
        "total": whole(fields.get("total_tasks")),
        "revision": whole(fields.get("revision")) or 1,
        "config": config if isinstance(config, dict) else None,
        "error": text_or_none(fields.get("error")),
        "tasks": _counts(fields),
        "progress": min(1.0, max(0.0, number(fields.get("progress")) or 0.0)),
    }


def task_row(lane: str, file: Path) -> dict[str, Any] | None:
    """A task of a lane in the keys of :func:`.rows.task_object`."""
    fields = json_object(file)
    if fields is None or "task_id" not in fields:
        return None
    given = fields.get("result")
    result: dict[str, Any] = given if isinstance(given, dict) else {}
    state = _STATE.get(lane) or _failed_state(fields, result)
    attempt = whole(fields.get("attempts"))
    started, ended = unix(fields.get("started_at")), unix(fields.get("completed_at"))
    after = fields.get("depends_on")
    row = {
        "id": word(fields["task_id"]),
        "batch": word(fields.get("batch_id")) or None,
        "type": word(fields.get("type")) or None,
        "class": word(fields.get("task_class")) or None,
        "pool": None,
        "priority": fields.get("priority"),
        "state": state,
        "worker": word(fields.get("assigned_to")) or None,
        "error": text_or_none(result.get("error")),
        "reason": None,
        "join": False,
        "name": text_or_none(fields.get("name")) or word(fields["task_id"]),
        "created_at": unix(fields.get("created_at")),
        "started_at": started,
        "ended_at": ended,
        "command": text_or_none(fields.get("command")),
        "fix_applied": text_or_none(fields.get("fix_applied")),
        "depends_on": [word(one) for one in after] if isinstance(after, list) else [],
        "attempts": [],
        "result": given if lane in (COMPLETE, FAILED) else None,
    }
    judged = _evaluation(fields.get("evaluation"))
    if judged:
        row["evaluation"] = judged
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


def _evaluation(given: Any) -> dict[str, Any] | None:
    """A judge's words, where their numbers are numbers."""
    if not isinstance(given, dict) or (given.get("seconds") is not None and number(given["seconds"]) is None):
        return None
    issues = given.get("issues")
    return {**given, "issues": issues if isinstance(issues, list) else []} if issues is not None else given


def _counts(fields: dict[str, Any]) -> dict[str, int]:
    counts = fields.get("tasks")
    return {s: whole(counts.get(s)) if isinstance(counts, dict) else 0 for s in STATES}


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
    found: dict[str, Any] = {}
    for ours, theirs in names.items():
        value = number(beat.get(theirs))
        if value is not None:
            found[ours] = beat[theirs]
    cards = beat.get("gpus")
    if isinstance(cards, dict):
        found["cards"] = [
            {"index": int(index), **{_CARD_KEYS.get(key, key): value for key, value in card.items()}}
            for index, card in cards.items()
            if index.isdecimal() and isinstance(card, dict)
        ]
    return found or None


def word(value: Any, default: str = "") -> str:
    """An id or a state: printable, on one line, not too long."""
    return shown(str(value))[:_WORD] if isinstance(value, str | int) and value != "" else default


def text_or_none(value: Any) -> str | None:
    """A text as it is."""
    return value if isinstance(value, str) else None


def whole(value: Any) -> int:
    """A count; 0 for whatever is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else 0


def number(value: Any) -> float | None:
    """A finite number; None for whatever is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e15:
        return None
    return None if math.isnan(value) else float(value)


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
