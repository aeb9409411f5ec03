"""``status.py --config C [--tasks | --task ID]``."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

LANES = ("queue", "processing", "complete", "failed")


def config_of(config: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.read_text())
    return found


def age(stamp: str) -> str:
    """Minutes and seconds since then, by the reader's clock."""
    seconds = int((datetime.now() - datetime.fromisoformat(stamp)).total_seconds())
    return f"{seconds // 60}m{seconds % 60:02d}s"


def status(config: Path) -> list[str]:
    """Who there is, and how many files each lane holds."""
    c = config_of(config)
    shared = Path(c["shared_path"])
    lines = [f"Brain: {c['brain']['model']} on GPUs {c['brain']['gpus']}"]
    for w in c["workers"]:
        lines.append(f"  {w['name']}: {w['model']} (GPU {w['gpu']}, port {w['port']})")
    for lane in LANES:
        lines.append(f"{lane}: {len(list((shared / 'tasks' / lane).glob('*.json')))}")
    return lines


def status_tasks(config: Path) -> list[str]:
    """A line for each task of each lane."""
    shared = Path(config_of(config)["shared_path"])
    lines = []
    for lane in LANES:
        for path in sorted((shared / "tasks" / lane).glob("*.json")):
            t = json.loads(path.read_text())
            prompt = t.get("prompt", "")
            text = prompt[:50] + ("..." if len(prompt) > 50 else "")
            who = t.get("assigned_to", "-")
            lines.append(
                f"{lane} {t['task_id'][:8]} {t.get('type', '?')} {who} {age(t['created_at'])} {text}"
            )
    return lines


def status_task(config: Path, task_id: str) -> str | None:
    """The file of the task whose name contains the id, as it lies there."""
    shared = Path(config_of(config)["shared_path"])
    for lane in LANES:
        for path in (shared / "tasks" / lane).glob("*.json"):
            if task_id in path.name:
                return json.dumps(json.loads(path.read_text()), indent=2)
    return None
