"""What a person writes by hand, in place and under its final name: a task, a signal, a request, an answer."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any


def hand_task(shared: Path, **fields: Any) -> Path:
    """A task in the queue (`shell`, `decide`, `load_llm` …); its file."""
    task_id = str(uuid.uuid4())
    task = {"task_id": task_id, "status": "pending", "created_at": datetime.now().isoformat(), **fields}
    path = shared / "tasks" / "queue" / f"{task_id}.json"
    with path.open("w") as f:
        json.dump(task, f, indent=2)
    return path


def signal(shared: Path, worker: str, verb: str, task_id: str = "", reason: str = "") -> Path:
    """``signals/<worker>.stop``, a time; ``.abort`` and ``.kill``, an object. Its file."""
    path = shared / "signals" / f"{worker}.{verb}"
    now = datetime.now().isoformat()
    with path.open("w") as f:
        if verb == "stop":
            f.write(now)
        else:
            json.dump({"task_id": task_id, "timestamp": now, "reason": reason}, f)
    return path


def request(shared: Path, verb: str, batch_id: str | None = None, **args: Any) -> Path:
    """A request as docs/control.md and INTERFACE have it; its file."""
    id_ = str(uuid.uuid4())
    asked = {"schema": "rigbus.request/1", "id": id_, "verb": verb, "args": args, "batch_id": batch_id}
    path = shared / "inbox" / ".requests" / f"{id_}.json"
    with path.open("w") as f:
        json.dump(asked, f)
    return path


def answer(shared: Path, escalation: dict[str, Any], action: str, **fields: Any) -> Path:
    """``brain/escalations/<id>.answer.json``; its file."""
    path: Path = shared / escalation["answer_to"]
    said = {"escalation_id": escalation["escalation_id"], "action": action, "by": "pi", **fields}
    with path.open("w") as f:
        json.dump(said, f)
    return path


def receipt_of(path: Path) -> Path:
    """Where the rig answers to a file: beside it."""
    return path.with_name(path.name.removesuffix(".json") + ".receipt.json")
