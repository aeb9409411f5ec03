"""Broker rows -> the files of the shared folder, by the file contract of the earlier system (its
scripts read them unmodified). Pure: no clock, no disk; times come as unix seconds and leave as naive local
ISO-8601.

The laws, each with its reader:

- Timestamps are naive local time, never ``Z`` or an offset: all readers subtract them from
  ``datetime.now()``.
- No null anywhere in a task: readers slice and measure what they find; a key without a value is left out.
- A failed task always has ``result.error``. A file's mtime is the time of the event, so lanes sort by it.
- Unchanged files are never rewritten: readers cache by mtime.
- Each file says who wrote it (``mirrored_by``), when that was so (``as_of``), which event it has seen (``seq``) and,
  while it can grow old, after how many seconds without a new ``as_of`` nobody should believe it (``stale_after_s``).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from ..share.seal import MIRRORED_BY, seal

Row = Mapping[str, Any]

PRIVATE, QUEUE, PROCESSING, COMPLETE, FAILED = (
    "brain/private_tasks",
    "tasks/queue",
    "tasks/processing",
    "tasks/complete",
    "tasks/failed",
)
LANES = (PRIVATE, QUEUE, PROCESSING, COMPLETE, FAILED)
# Made before any script of the Pi runs: those create only the queue themselves.
FOLDERS = (
    *LANES,
    "logs",
    "signals",
    "workers",
    "plans",
    "inbox",
    "inbox/.requests",
    "inbox/.refused",
    "brain/escalations",
    "alerts",
)
ARCHIVE = "tasks/archive"
DECISIONS_LOG = "logs/brain_decisions.log"
TRAINING_SAMPLES = "logs/training_samples.jsonl"
STATE_FILE = "brain/state.json"
MAX_OUTPUT_CHARS = 64 * 1024
STALE_AFTER_S = 30  #: state.json and the files of workers, which are refreshed three times as often
BATCH_STALE_S = 300  #: the batch.json of a batch that runs

_LANE = {
    "waiting": (PRIVATE, "pending"),
    "ready": (QUEUE, "pending"),
    "review": (PROCESSING, "processing"),
    "done": (COMPLETE, "complete"),
    "failed": (FAILED, "failed"),
    "dead": (FAILED, "failed"),
    "expired": (FAILED, "failed"),
    "cancelled": (FAILED, "abandoned"),
    "skipped": (FAILED, "abandoned"),
}
_ENDED = (COMPLETE, FAILED)
_MODEL_TYPES = frozenset({"load_llm", "unload_llm"})
_TIMED_OUT = re.compile(r"timed out after ([0-9.e+]+) s")  # the worker's words


class File(NamedTuple):
    """A file of the mirror: path relative to the share, content, and its mtime (the event's time).

    ``same`` names the content without its stamps: while it stays the file need not be written. A task's file has the
    ``batch`` that it is archived under. ``taken``: somebody else's file may stand there, which became this task.
    ``yields``: where somebody has a file of his own there, that one stays.
    """

    path: str
    data: bytes
    mtime_ns: int
    same: str = ""
    batch: str = ""
    taken: bool = False
    yields: bool = False


def iso(at: float, utc_offset_s: float, *, whole_seconds: bool = False) -> str:
    """Unix seconds as naive local ISO-8601; ``utc_offset_s`` is the rig's offset from UTC."""
    local = datetime(1970, 1, 1) + timedelta(seconds=at + utc_offset_s)
    return local.isoformat(timespec="seconds" if whole_seconds else "microseconds")


def lane(task: Row, withheld: bool = False) -> str | None:
    """The folder that shows the task; None for a state that has none. ``withheld``: not where others would claim it."""
    if task["state"] == "leased":
        folder: str | None = PROCESSING if task.get("started") else QUEUE
    else:
        folder = _LANE.get(task["state"], (None, ""))[0]
    return PRIVATE if folder == QUEUE and withheld else folder


def status(task: Row) -> str:
    """The word in the task's file."""
    if task["state"] == "leased":
        return "processing" if task.get("started") else "pending"
    return _LANE.get(task["state"], (None, ""))[1]


def task_file(task: Row, utc_offset_s: float, withheld: bool = False) -> File | None:
    """The task's file in its lane; None when its state has no lane."""
    folder = lane(task, withheld)
    if folder is None:
        return None
    ended, running = folder in _ENDED, folder == PROCESSING
    attempt = int(task.get("attempt") or 0)
    timeout = task.get("timeout_s")
    fields: dict[str, Any] = {
        "task_id": task["id"],
        "type": task["type"],
        "name": task["key"],
        "batch_id": task["batch"],
        "task_class": task.get("class"),
        "executor": task.get("executor"),
        "priority": task.get("priority"),
        "status": status(task),
        "created_at": _iso_or_none(task.get("created_at"), utc_offset_s),
        "created_by": task.get("created_by") or "brain",
        "command": task.get("command"),
        "prompt": task.get("prompt"),
        "context": task.get("context"),
        "depends_on": list(task.get("after") or ()),
        "foreach": task.get("foreach"),
        "item_ids": task.get("item_ids"),
        "plan_path": task.get("plan_path"),
        "batch_path": task.get("batch_path"),
        "timeout_seconds": None if timeout is None else math.ceil(timeout),
        "fix_applied": task.get("fix_applied"),
        "evaluation": task.get("evaluation"),
        "llm_model": task.get("llm_model"),
        "llm_min_tier": task.get("llm_min_tier"),
        "llm_placement": task.get("llm_placement"),
        "vram_estimate_mb": task.get("vram_estimate_mb"),
        "vram_estimate_source": task.get("vram_estimate_source"),
        "batch_size": task.get("batch_size"),
        "batch_priority": task.get("batch_priority"),
        "preemptible": False,
        "retry_count": max(0, attempt - 1),
        "attempts": attempt,
        **_tried(task, utc_offset_s, shown=ended or running),
    }
    if task["type"] in _MODEL_TYPES:  # as orders to load a model were written
        fields |= {"command": task["type"], "target_model": task.get("target_model")}
    if ended or running:  # a requeued task shows no owner and no result of its last attempt
        fields["assigned_to"] = task.get("worker")
        fields["started_at"] = _iso_or_none(task.get("started_at"), utc_offset_s)
    if ended:
        fields["completed_at"] = _iso_or_none(task.get("ended_at") or task.get("changed_at"), utc_offset_s)
        fields["result"] = result_object(task)
        fields.update(_why_ended(task))
    name = task.get("file_id") or task["id"]
    fields["task_id"] = name
    at = task.get("changed_at") or 0.0
    file = stamped(f"{folder}/{name}.json", fields, at, utc_offset_s, task.get("seq"))
    return file._replace(batch=str(task["batch"]), taken=name != task["id"])


def _tried(task: Row, utc_offset_s: float, *, shown: bool) -> dict[str, Any]:
    """All attempts up to now: who made them, since when, and why the last of them but the present one did not do.

    ``shown``: the present attempt is one that people see.
    """
    attempt = int(task.get("attempt") or 0)
    earlier = list(task.get("earlier") or ())
    begun = [one["started_at"] for one in earlier]
    workers = [one["worker"] for one in earlier]
    if shown:
        begun += [task["started_at"]] if task.get("started_at") else []
        workers += [task.get("worker")]
    requeued = [one for one in earlier if one["n"] < attempt or task["state"] in ("waiting", "ready")]
    return {
        "workers_attempted": list(dict.fromkeys(name for name in workers if name)) or None,
        "first_attempted_at": _iso_or_none(min(begun, default=None), utc_offset_s),
        "last_attempt_at": _iso_or_none(max(begun, default=None), utc_offset_s),
        "requeued_at": _iso_or_none(requeued[-1]["ended_at"], utc_offset_s) if requeued else None,
        "requeue_reason": requeued[-1]["error"] if requeued else None,
    }


def result_object(task: Row) -> dict[str, Any]:
    """``result`` as the earlier workers wrote it: success, output, and on failure always ``error``."""
    ok = task["state"] == "done"
    value = task.get("result")
    given: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    took = given.get("duration_s")
    out: dict[str, Any] = {"success": ok, "output": _output(value, given)}
    if task["type"] == "shell":
        action = "blocked" if task.get("error_class") == "definition" and not ok else "allowed"
        out |= {"action": action, "return_code": given.get("exit"), "log": given.get("log")}
        out |= {"elapsed_seconds": took}
    elif task["type"] in _MODEL_TYPES:
        out["model_loaded"] = ok and task["type"] == "load_llm"
    else:
        tokens, seconds = _of_a_model(given)
        out |= {"model": given.get("model"), "tokens": tokens}
        took = seconds if took is None else took
    out |= {"duration_seconds": took, "worker": task.get("worker")}
    if task.get("executor") == "brain":
        out["handler"] = "brain"
    if not ok:
        error = error_text(task)
        kind = task.get("error_class") or {"dead": None, "failed": None}.get(task["state"], task["state"])
        late = _TIMED_OUT.match(error)
        reason = f"Command timed out ({late[1]}s)" if late and task["type"] == "shell" else error
        out |= {"error": error, "reason": reason, "error_type": kind}
    return out


def _of_a_model(given: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Tokens of an answer, and the seconds that it took once its turn had come; None where nobody counted them."""
    usage, timings = given.get("usage"), given.get("timings")
    tokens, seconds = given.get("tokens"), None
    if tokens is None and isinstance(usage, Mapping):
        tokens = usage.get("completion_tokens")
    if isinstance(timings, Mapping):
        parts = [timings.get(name) for name in ("prefill_s", "decode_s")]
        seconds = round(sum(part for part in parts if isinstance(part, (int, float))), 3)
    return (tokens if isinstance(tokens, int) else None), seconds


def error_text(task: Row) -> str:
    """Why the task ended badly: never empty."""
    if task.get("error"):
        return str(task["error"])
    given = task.get("result")
    code = given.get("exit") if isinstance(given, Mapping) else None
    if code not in (None, 0):
        return f"exit {code}"
    return {
        "expired": "its deadline passed",
        "cancelled": "cancelled",
        "skipped": "a task that it waits for ended badly",
    }.get(task["state"], "no reason was recorded")


def _why_ended(task: Row) -> dict[str, Any]:
    if task["state"] in ("cancelled", "skipped"):
        return {"abandoned_reason": error_text(task)}
    if task["state"] != "done" and task.get("error_class") == "definition":
        return {"error_type": "definition", "definition_error": error_text(task)}
    return {}


def _output(value: Any, given: Mapping[str, Any]) -> str:
    for key in ("output", "text", "content"):
        if isinstance(given.get(key), str):
            text: str = given[key]
            break
    else:
        text = "" if value is None or "exit" in given else json.dumps(_clean(value), ensure_ascii=False)
    if len(text) > MAX_OUTPUT_CHARS:
        whole = given.get("log", "see the task")
        return f"[... cut; the log has all of it: {whole}]\n{text[-MAX_OUTPUT_CHARS:]}"
    return text


def task_log(plan: str, batch: str, key: str, attempt: int) -> str:
    """Where the copy of an attempt's log lies."""
    return f"plans/{plan}/batches/{batch}/logs/{key}.{attempt}.log"


# -- batches


def priority_word(priority: int) -> str:
    """low, normal, high or urgent, on the scale 3 / 5 / 8 / 10."""
    return next((word for top, word in ((3, "low"), (5, "normal"), (8, "high")) if priority <= top), "urgent")


def is_active(batch: Row) -> bool:
    """``state.json`` shows it as active: it has not ended, and its tasks are mirrored."""
    return batch["state"] in ("planning", "running") and (
        batch["kind"] != "client" or bool(batch.get("mirror"))
    )


def state_file(
    batches: Iterable[Row],
    *,
    pid: int,
    host: str,
    started_at: float,
    changed_at: float,
    utc_offset_s: float,
    seq: int = 0,
    status: str = "active",
    listing: str = "",
) -> File:
    """``brain/state.json``. Batches that have ended leave it; client batches not mirrored appear as
    counts. ``seq``: the last event that the mirror has read; ``status``: active, or stopped by an orderly end;
    ``listing`` names what is shown here, for whoever edits it (`control.core`).
    """
    active: dict[str, Any] = {}
    clients: dict[str, Any] = {}
    for batch in batches:
        if batch["state"] not in ("planning", "running"):
            continue
        if not is_active(batch):
            clients[batch["id"]] = {"tasks": dict(batch["counts"]), "total_tasks": batch["total"]}
            continue
        active[batch["id"]] = {
            "plan": batch.get("plan") or batch["id"],
            "display_name": batch.get("plan") or batch["id"],
            "plan_dir": batch.get("plan_path")
            or "",  # tasks ordered by hand have no plan, and readers take the key for granted
            "batch_dir": batch.get("batch_path") or "",
            "started_at": iso(batch["created_at"], utc_offset_s),
            "config": batch.get("config") or {},
            "total_tasks": batch["total"],
            "tasks": dict(batch["counts"]),
            "priority": priority_word(batch.get("priority") or 0),
            "preemptible": False,
        }
    fields = {
        "pid": pid,
        "hostname": host,
        "started_at": iso(started_at, utc_offset_s),
        "status": status,
        "active_batches": active,
        "client_batches": clients,
        "listing": listing or None,
    }
    return stamped(STATE_FILE, fields, changed_at, utc_offset_s, seq, STALE_AFTER_S)


def batch_file(batch: Row, utc_offset_s: float, now: float | None = None) -> File | None:
    """``batch.json`` in the batch's folder; None for a batch without a plan (it has no folder).

    ``now`` (unix seconds) is when a batch that has not ended was so; one that has ended never goes stale.
    """
    if not batch.get("plan"):
        return None
    counts, total = dict(batch["counts"]), batch["total"]
    ended = sum(counts.get(state, 0) for state in ("done", "dead", "cancelled", "expired", "skipped"))
    fields = {
        "schema": "rigbus.batch/1",
        "batch_id": batch["id"],
        "plan": batch["plan"],
        "status": batch["state"],
        "priority": priority_word(batch.get("priority") or 0),
        "started_at": iso(batch["created_at"], utc_offset_s),
        "completed_at": _iso_or_none(batch.get("ended_at"), utc_offset_s),
        "total_tasks": total,
        "tasks": counts,
        "progress": round(ended / total, 4) if total else 0.0,
        "config": batch.get("config") or {},
        "error": batch.get("error"),
        "plan_path": batch.get("plan_path"),
        "batch_path": batch.get("batch_path"),
        # By these `rigbus bridge rebuild` makes the same batch again, of the same plan.
        "key": batch.get("key"),
        "plan_sha256": batch.get("plan_sha256"),
        "revision": batch.get("revision") or 1,
        "plan_priority": batch.get("plan_priority"),
    }
    path = f"plans/{batch['plan']}/batches/{batch['id']}/batch.json"
    at = batch.get("ended_at") or now or batch["created_at"]
    stale = None if batch.get("ended_at") else BATCH_STALE_S
    return stamped(path, fields, at, utc_offset_s, batch.get("seq"), stale)


def archived(batch: str, path: str) -> str:
    """Where the file of an ended task goes when its lane grows long, as the earlier ``archive_tasks.py`` has it."""
    folder, _, name = path.rpartition("/")
    return f"{ARCHIVE}/{batch or '_unbatched'}/{folder.rpartition('/')[2]}/{name}"


# -- bytes


_PLAIN = frozenset({str, int, bool, type(None)})
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",\n  ", ": ")).encode


def digest(data: bytes) -> str:
    """Names a content; 16 bytes of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def stamped(
    path: str,
    fields: Mapping[str, Any],
    at: float,
    utc_offset_s: float,
    seq: int | None,
    stale_after_s: int | None = None,
) -> File:
    """The file as it was ``at`` unix seconds, which is its mtime too."""
    body = to_json(fields).removesuffix(b"\n}\n")
    stamps = {"mirrored_by": MIRRORED_BY, "seq": seq or 0, "as_of": iso(at, utc_offset_s)}
    if stale_after_s is not None:
        stamps["stale_after_s"] = stale_after_s
    tail = to_json(stamps).removeprefix(b"{").removesuffix(b"\n")
    return File(path, seal(body + b"," + tail), mtime_ns(at), digest(body))


def to_json(fields: Mapping[str, Any]) -> bytes:
    """UTF-8, a field a line, without nulls at any level that readers index; odd bytes of names stay readable.

    ``indent`` of the standard library is written in Python and takes ten times as long as all else of a file: here
    the comma brings the new line along, those of a nested object too.
    """
    text = _encode(_clean(fields))
    # A lone surrogate becomes \\udcXX, which inside a JSON string is the valid escape for itself.
    return f"{{\n  {text[1:-1]}\n}}\n".encode("utf-8", "backslashreplace")


def mtime_ns(at: float | None) -> int:
    """Unix seconds as nanoseconds, to the microsecond: what every file system of ours can hold."""
    return round((at or 0.0) * 1e6) * 1000


def _clean(value: Any) -> Any:
    """Without null values, NaN and bytes: what any JSON reader takes."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {str(k): c for k, v in value.items() if (c := _clean(v)) is not None}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _iso_or_none(at: float | None, utc_offset_s: float) -> str | None:
    return None if at is None else iso(at, utc_offset_s)
