"""Batches and tasks that the share remembers -> rows of a new database. Only what the core itself could have written.

A task that had ended has no payload here (commands and their values were on the lost disk): it can be shown, not run again.
Of a batch that goes on only what is *done* becomes a row: the brain skips the keys that it finds and declares the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ....bus.core.checks import policy_of, shape_of
from ....bus.core.model import PLACEMENT_ASKS, Batch, Changes, Task
from ....bus.states import BatchState, TaskState
from ....bus.store.repairing import LEAP
from ....bus.store.store import Store, create, mark
from ....bus.store.tail import Tail
from ....bus.wire import MAX_META_BYTES, MAX_PAYLOAD_BYTES, pack
from ....plans.model import PRIORITY_LEVELS
from .remains import Ran, Stood

_STATES: Final = {
    "complete": BatchState.COMPLETE,
    "failed": BatchState.FAILED,
    "cancelled": BatchState.CANCELLED,
}
_META: Final = (
    *("executor", "depends_on", "command", "prompt", "context", "foreach", "item_ids", "batch_size"),
    *("created_by", "fix_applied", "llm_model", "llm_min_tier", "llm_placement"),
)
_ROWS: Final = 5000  #: a commit
_TEXT: Final = 60_000
UNSEEN: Final = "how it ended was on the disk that was lost"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a SUBMIT of the batch would bear."""

    spec: dict[str, Any]
    priority: int


@dataclass(slots=True)
class Rebuilt:
    """One batch, and what becomes of it: with a ``plan`` it goes on, ``stopped`` says why it cannot."""

    no: int
    ran: Ran
    tasks: Mapping[str, Stood]
    plan: Plan | None = None
    stopped: str = ""

    @property
    def kept(self) -> list[Stood]:
        """The tasks that become rows."""
        if self.plan is None:
            return list(self.tasks.values())
        return [one for one in self.tasks.values() if one.state is TaskState.DONE and not _made_anew(one)]

    def row(self) -> dict[str, Any]:
        """Its line of the report. ``again``: tasks that had a file and run (once more), by what they were."""
        again: dict[str, int] = {}
        if self.plan is not None:
            kept = {one.id for one in self.kept}
            for one in self.tasks.values():
                if one.id not in kept and not _made_anew(one):
                    again[one.status] = again.get(one.status, 0) + 1
        becomes = "goes on" if self.plan is not None else ("ended" if self.ran.ended else "failed")
        done = sum(one.state is TaskState.DONE for one in self.kept)
        return {
            "id": self.ran.id,
            "plan": self.ran.plan,
            "was": self.ran.status,
            "becomes": becomes,
            "done": done,
            "ended_badly": len(self.kept) - done if self.plan is None else 0,
            "again": again,
            "cut_results": sum(one.cut for one in self.kept),
            "why": self.stopped,
        }


def _made_anew(one: Stood) -> bool:
    """Tasks that run nothing of the plan's own: lists are read again, joins and loaded models follow."""
    return one.type == "expand" or bool(one.fields.get("foreach")) or one.type in PLACEMENT_ASKS


def fill(db: Path, rebuilt: list[Rebuilt], *, seq: int, incarnation: int, said: Mapping[str, Any]) -> None:
    """A new database at ``db`` whose next broker has the incarnation after ``incarnation``."""
    create(db, Tail(1, seq, incarnation))
    store = Store(db)
    try:
        changes = Changes()
        changes.meta["epoch"] = LEAP
        no = 0
        for one in rebuilt:
            batch = _batch(one)
            changes.batches[batch.no] = batch
            for stood in sorted(one.kept, key=lambda t: (t.at, t.key)):
                no += 1
                task, spec = _task(no, batch, stood, ended=one.ran)
                result = _result(stood)
                changes.new_tasks[no] = (task, spec, pack({}), None)
                if result is not None:
                    changes.results[no] = result
                if len(changes.new_tasks) >= _ROWS:
                    store.commit(changes, 0.0, 0.0)
                    changes = Changes()
        mark(changes, dict.fromkeys(("p", "c", "a"), seq))
        store.commit(changes, 0.0, 0.0)
        store.leap({"batches": len(rebuilt), "tasks": no, "shared": str(said.get("shared"))}, "rig.rebuilt")
    finally:
        store.close()


def _batch(one: Rebuilt) -> Batch:
    ran = one.ran
    batch = Batch(one.no, ran.id, ran.key, "plan", ran.plan.rpartition("/")[2], ran.created_at)
    batch.seq = ran.seq
    batch.priority = PRIORITY_LEVELS.get(str(ran.fields.get("priority")), PRIORITY_LEVELS["normal"])
    if one.plan is not None:
        batch.plan, batch.priority = one.plan.spec, one.plan.priority
        batch.total = len(one.kept)
        batch.state = batch.derive()
        batch.total = 0
        return batch
    batch.closed = True
    batch.plan = _shown_plan(ran)
    batch.state = _STATES.get(ran.status, BatchState.FAILED)
    batch.cancelled = batch.state is BatchState.CANCELLED
    batch.ended_at = ran.ended_at or ran.created_at or 1.0
    error = ran.fields.get("error")
    batch.error = one.stopped or (error[:2000] if isinstance(error, str) else None)
    if batch.state is BatchState.FAILED and batch.error is None and not one.tasks:
        batch.error = UNSEEN
    return batch


def _shown_plan(ran: Ran) -> dict[str, Any]:
    """What the mirror needs to find the batch's folder; there is no plan to run."""
    root, path = ran.fields.get("batch_path"), ran.fields.get("plan_path")
    spec: dict[str, Any] = {"name": ran.plan.rpartition("/")[2], "source": "rebuild"}
    if "/" in ran.plan:
        spec["folder"] = ran.plan
    if isinstance(root, str) and "/" in root:
        spec["batch_root"] = root.rpartition("/")[0]
    for name, value in (("path", path), ("sha256", ran.fields.get("plan_sha256"))):
        if isinstance(value, str):
            spec[name] = value
    config = ran.fields.get("config")
    if isinstance(config, Mapping) and len(pack(dict(config))) < MAX_META_BYTES // 2:
        spec["config"] = dict(config)
    return spec


def _task(no: int, batch: Batch, one: Stood, *, ended: Ran) -> tuple[Task, bytes]:
    """A task that has ended, and its packed spec."""
    join = bool(one.fields.get("foreach"))
    kind = "join" if join else one.type
    meta = {name: one.fields[name] for name in _META if name in one.fields} | {"name": one.key}
    if one.file_id != one.id:
        meta["file_id"] = one.file_id
    if len(pack(meta)) > MAX_META_BYTES:
        meta = {"name": one.key}
    spec: dict[str, Any] = {"key": one.key, "type": kind[:100], "meta": meta}
    if join:
        spec["join"] = True
    given = one.fields.get("task_class")
    if isinstance(given, str) and len(given) <= 64:
        spec["class"] = given
    task = Task(no, batch, one.key, shape_of(spec, kind), policy_of(spec), batch.created_at)
    state = one.state
    task.error = _error(one)
    if state is None:  # the batch has ended, so it had too
        state = TaskState.DONE if ended.status == "complete" else TaskState.CANCELLED
        task.error = None if state is TaskState.DONE else UNSEEN
    task.state, task.seq = state, one.seq
    task.join = join or kind in PLACEMENT_ASKS
    attempt = one.fields.get("attempts")
    task.attempt = attempt if isinstance(attempt, int) and 0 <= attempt < 1000 else 1
    worker = one.fields.get("assigned_to")
    task.worker = worker[:200] if isinstance(worker, str) else None
    task.ended_at = one.at if one.at > 0 else batch.created_at or 1.0
    task.started_at = task.leased_at = 0.0
    return task, pack([pack(spec), {"after": [], "feeds": []}, 0])


def _error(one: Stood) -> str | None:
    error = one.result.get("error")
    return error[:4000] if isinstance(error, str) and one.state is not TaskState.DONE else None


def _result(one: Stood) -> bytes | None:
    """What its file has of its value."""
    given = one.result
    if not given:
        return None
    output = given.get("output")
    value: dict[str, Any] = {"output": output[-_TEXT:] if isinstance(output, str) else ""}
    names = (("return_code", "exit"), ("log", "log"), ("duration_seconds", "duration_s"))
    for name, ours in (*names, ("model", "model"), ("tokens", "tokens")):
        if isinstance(given.get(name), (str, int, float)):
            value[ours] = given[name]
    data = pack(value)
    return data if len(data) <= MAX_PAYLOAD_BYTES else pack({"output": str(value["output"])[-1000:]})
