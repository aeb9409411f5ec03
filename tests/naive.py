"""What a reader without any care relies on in the files of the mirror: which fields are there, and what they may hold."""

from __future__ import annotations

import os
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

STATUS = {
    "tasks/queue": {"pending"},
    "tasks/processing": {"processing"},
    "tasks/complete": {"complete"},
    "tasks/failed": {"failed", "abandoned"},
    "brain/private_tasks": {"pending"},
}
MANDATORY = (
    "task_id",
    "type",
    "name",
    "batch_id",
    "status",
    "created_at",
    "created_by",
    "priority",
    "executor",
)
TIMES = ("created_at", "started_at", "completed_at", "timestamp", "last_updated", "since", "at")


def check_values(value: Any, where: str) -> None:
    """No null anywhere, and times that ``datetime.now()`` can be compared with."""
    if value is None:
        raise ValueError(f"{where} is null")
    if isinstance(value, dict):
        for key, inner in value.items():
            check_values(inner, f"{where}.{key}")
            if key in TIMES and isinstance(inner, str) and inner:
                age_s = (datetime.now() - datetime.fromisoformat(inner)).total_seconds()  # TypeError: aware
                if not -5 < age_s < 600:
                    raise ValueError(f"{where}.{key}: {age_s} s old")
    elif isinstance(value, list):
        for inner in value:
            check_values(inner, f"{where}[]")


def check_task(path: Path, found: dict[str, Any], lane: str, info: os.stat_result) -> None:
    missing = [key for key in MANDATORY if key not in found]
    if missing:
        raise ValueError(f"without {missing}")
    if path.stem != found["task_id"] or found["status"] not in STATUS[lane]:
        raise ValueError(f"{found['task_id']} is {found['status']} in {lane}")
    if lane in ("tasks/complete", "tasks/failed"):
        result = found["result"]
        if result["success"] is not (lane == "tasks/complete") or not isinstance(result["output"], str):
            raise ValueError(f"result {result}")
        if lane == "tasks/failed" and not result["error"][:1]:
            raise ValueError("no error")
        ended = datetime.fromisoformat(found["completed_at"]).timestamp()
        if abs(info.st_mtime - ended) > 1.0:
            raise ValueError(f"mtime {info.st_mtime} of a task that ended at {ended}")


def check_mode(info: os.stat_result) -> None:
    """Scripts of another user of the same group remove what the rig has written."""
    if stat.S_IMODE(info.st_mode) & 0o664 != 0o664:
        raise ValueError(f"mode {info.st_mode:o}")
