"""``submit.py PLAN [--config JSON]``."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any


def submit(shared: Path, plan: Path, config: dict[str, Any] | None = None) -> str:
    """Order a plan by a file in the queue, written where it is read; the task's id."""
    assert (plan / "plan.md").exists(), "no plan.md"
    task_id = str(uuid.uuid4())
    queue = shared / "tasks" / "queue"
    queue.mkdir(parents=True, exist_ok=True)
    task = {
        "task_id": task_id,
        "type": "execute_plan",
        "executor": "brain",
        "plan_path": str(plan.absolute()),
        "config": config or {},
        "priority": 10,
        "status": "pending",
        "created_at": datetime.now().isoformat(),
        "created_by": "submit",
    }
    with (queue / f"{task_id}.json").open("w") as f:
        json.dump(task, f, indent=2)
    return task_id
