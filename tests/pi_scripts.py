"""The earlier system's scripts that change files of the shared folder, as people have them on their Pi: naive, in place,
without locks but where they had some. Written after the file contract, one function a script."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

LANES = ("queue", "processing", "failed")


def _load(path: Path) -> dict[str, Any]:
    with path.open() as file:
        found: dict[str, Any] = json.load(file)
    return found


def _dump(path: Path, value: dict[str, Any]) -> None:
    with path.open("w") as file:  # truncates first, as they did
        json.dump(value, file, indent=2)


def read_state(shared: Path) -> dict[str, Any]:
    """What a script holds in memory while it goes on."""
    return _load(shared / "brain/state.json")


def delete_files(shared: Path, batch: str | None = None) -> None:
    """The first generation removes everything; the second (with a batch) what names that batch, private tasks too."""
    folders = [shared / "tasks" / lane for lane in LANES]
    if batch is not None:
        folders.append(shared / "brain/private_tasks")
    for folder in folders:
        for path in [*folder.glob("*.json"), *folder.glob("*.lock")]:
            try:
                if batch is None or _load(path).get("batch_id") == batch:
                    path.unlink()
            except (FileNotFoundError, ValueError):
                continue


def write_state(shared: Path, state: dict[str, Any], batch: str | None = None) -> None:
    """Take one batch out of the active ones, or all."""
    if batch is None:
        state["active_batches"] = {}
    else:
        state["active_batches"].pop(batch, None)
    _dump(shared / "brain/state.json", state)


def kill_plan_1(shared: Path, batch: str | None = None) -> None:
    """`kill_plan [batch]` of the first generation: the files of all batches, and the state of one."""
    state = read_state(shared)
    delete_files(shared)
    write_state(shared, state, batch)


def kill_plan_2(shared: Path, batch: str) -> None:
    """`kill_plan batch` of the second generation."""
    state = read_state(shared)
    delete_files(shared, batch)
    write_state(shared, state, batch)


def reset(shared: Path) -> list[str]:
    """The dashboard's reset: everything in processing goes back to the queue, without its owner."""
    moved = []
    for path in (shared / "tasks/processing").glob("*.json"):
        if path.name.endswith(".heartbeat.json"):
            continue
        task = _load(path)
        for key in ("assigned_to", "started_at", "completed_at", "result"):
            task.pop(key, None)
        task["status"] = "pending"
        _dump(shared / "tasks/queue" / path.name, task)
        path.unlink(missing_ok=True)  # the bridge may have followed already
        moved.append(path.stem)
    return moved


def archive_tasks(shared: Path) -> list[str]:
    """Move what has ended to the archive, by batch."""
    moved = []
    for lane in ("complete", "failed"):
        for path in (shared / "tasks" / lane).glob("*.json"):
            batch = _load(path).get("batch_id") or "_unbatched"
            place = shared / "tasks/archive" / str(batch) / lane
            place.mkdir(parents=True, exist_ok=True)
            os.replace(path, place / path.name)
            moved.append(path.stem)
    return moved


class CpuAgent:
    """The worker on a Pi that claims files itself."""

    NAME = "pi-cpu"

    def __init__(self, shared: Path, name: str = NAME) -> None:
        self.tasks, self.name = shared / "tasks", name

    def claim(self, task_id: str) -> dict[str, Any] | None:
        """Rename it to processing and write its name in; None when somebody was faster."""
        lock = self.tasks / "queue" / f"{task_id}.json.lock"
        with lock.open("w"):
            path = self.tasks / "processing" / f"{task_id}.json"
            try:
                os.replace(self.tasks / "queue" / f"{task_id}.json", path)
            except FileNotFoundError:
                return None
            task = _load(path)
            now = datetime.now().isoformat()
            task |= {
                "status": "processing",
                "assigned_to": self.name,
                "started_at": now,
                "last_attempt_at": now,
            }
            task |= {"attempts": int(task.get("attempts") or 0) + 1, "workers_attempted": [self.name]}
            _dump(path, task)
        self.beat(task_id)
        return task

    def beat(self, task_id: str) -> None:
        """The sidecar beside the claimed file."""
        beat = {"task_id": task_id, "worker_id": self.name, "worker": self.name, "pid": os.getpid()}
        _dump(
            self.tasks / "processing" / f"{task_id}.heartbeat.json",
            {**beat, "updated_at": datetime.now().isoformat()},
        )

    def finish(self, task: dict[str, Any], output: str) -> None:
        """Its result into complete; what it had in processing is removed."""
        name = f"{task['task_id']}.json"
        result = {"success": True, "output": output, "worker": self.name}
        done = {**task, "status": "complete", "completed_at": datetime.now().isoformat(), "result": result}
        _dump(self.tasks / "complete" / name, done)
        for path in (
            self.tasks / "processing" / name,
            self.tasks / "processing" / f"{name[:-5]}.heartbeat.json",
        ):
            path.unlink(missing_ok=True)
