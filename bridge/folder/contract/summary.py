"""What a batch's folder says of a batch that has ended: ``RUN_SUMMARY.json`` and ``.md``, ``batch_meta.json`` and
``execution_stats.json``, as the earlier system's readers know them. Pure.

All of it follows from the batch's row and from what lies in its folder, so the same end gives the same files. A plan whose
scripts write a file of such a name keeps its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..share.ops import Entry, shown
from ..share.seal import seal_text
from .layout import File, Row, digest, iso, mtime_ns, priority_word, stamped

NAMES: Final = ("RUN_SUMMARY.json", "RUN_SUMMARY.md", "batch_meta.json", "execution_stats.json")
SHOWN: Final = 20  #: files that are named
READ: Final = 10  #: and looked into
READ_BYTES: Final = 64 << 10
EXCERPT_CHARS: Final = 400
MAX_KEYS: Final = 40
_LOGS: Final = "logs"
_BATCH_FILE: Final = "batch.json"
_KINDS: Final = {
    **dict.fromkeys((".md", ".txt", ".log", ".html", ".rst"), "text"),
    **dict.fromkeys((".json", ".jsonl"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "table"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".svg", ".gif", ".webp"), "image"),
}
_FIRST: Final = ("report", "summary", "result", "output", "final", "index")


@dataclass(slots=True)
class Facts:
    """What was found of a batch. ``events`` counts the lines of its log by their event; ``contents`` are beginnings of
    files by path; ``cut``: there is more than was looked at."""

    batch: Row
    entries: Sequence[Entry] = ()
    contents: Mapping[str, bytes] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    failure: Mapping[str, Any] | None = None
    cut: bool = False


def count_events(piece: bytes, events: dict[str, int], carry: bytes = b"") -> bytes:
    """Count the lines of ``carry + piece`` by their event; the unfinished last line, to be given with the next piece."""
    *lines, rest = (carry + piece).split(b"\n")
    for line in lines:
        head, found, tail = line.partition(b'"event": "')
        if found and head == b"{":
            name = tail.partition(b'"')[0][:40].decode("ascii", "replace")
            name = name if name in events or len(events) < MAX_KEYS else "others"
            events[name] = events.get(name, 0) + 1
    return rest


def artifacts(entries: Sequence[Entry]) -> list[Entry]:
    """The files that the batch has made, those that people look for first."""
    made = [
        e
        for e in entries
        if e.type == "file"
        and e.path not in (*NAMES, _BATCH_FILE)
        and not e.path.startswith((f"{_LOGS}/", "."))
        and not e.path.endswith((".tmp", "~"))
        and ".conflict" not in e.path
    ]
    return sorted(made, key=_rank)


def files(facts: Facts, utc_offset_s: float) -> list[File]:
    """The files, for a batch with a folder."""
    batch = facts.batch
    at = batch["ended_at"]
    summary = _summary(facts, utc_offset_s)
    total = batch["total"]
    counts = {state: n for state, n in batch["counts"].items() if n}
    begun, ended = iso(batch["created_at"], utc_offset_s), iso(at, utc_offset_s)
    meta = {
        "batch_id": batch["id"],
        "plan": batch["plan"],
        "started_at": begun,
        "total_tasks": total,
        "priority": priority_word(batch.get("priority") or 0),
        "preemptible": False,
        "persisted_at": ended,
    }
    accepted = counts.get("done", 0)
    stats = {
        "batch_id": batch["id"],
        "overall": {"total_tasks": total, "tasks": counts},
        "outcome": {
            "target": total,
            "accepted": accepted,
            "rejected": total - accepted,
            "status": batch["state"],
        },
        "started_at": begun,
        "completed_at": ended,
        "elapsed_seconds": round(at - batch["created_at"], 3),
    }
    folder = f"plans/{batch['plan']}/batches/{batch['id']}"
    made = [
        stamped(f"{folder}/{name}", fields, at, utc_offset_s, batch.get("seq"))
        for name, fields in zip((NAMES[0], *NAMES[2:]), (summary, meta, stats), strict=True)
    ]
    text = seal_text(_markdown(summary).encode("utf-8", "backslashreplace"))
    made.append(File(f"{folder}/{NAMES[1]}", text, mtime_ns(at), digest(text)))
    return [file._replace(yields=True) for file in made]


def _summary(facts: Facts, utc_offset_s: float) -> dict[str, Any]:
    batch = facts.batch
    made = artifacts(facts.entries)
    logs = sum(e.type == "file" and e.path.startswith(f"{_LOGS}/") for e in facts.entries)
    folders: dict[str, int] = {}
    for entry in made:
        top, slash, _ = entry.path.partition("/")
        name = shown(top) if slash else "."
        folders[name] = folders.get(name, 0) + 1
    ended = iso(batch["ended_at"], utc_offset_s)
    return {
        "batch_id": batch["id"],
        "plan_name": batch["plan"],
        "history_dir": batch.get("batch_path"),
        "status": _status(batch),
        "refreshed_at": ended,
        "started_at": iso(batch["created_at"], utc_offset_s),
        "completed_at": ended,
        "event_counts": dict(sorted(facts.events.items())),
        "live_counts": {state: n for state, n in batch["counts"].items() if n},
        "artifact_counts": {**dict(sorted(folders.items())), "logs": logs, "total": len(made)},
        "artifact_presence": {name: bool(folders.get(name)) for name in ("output", "results")}
        | {"logs": bool(logs)},
        "failure": _failure(facts),
        "important_artifacts": [_artifact(e, facts.contents.get(e.path)) for e in made[:SHOWN]],
        "incomplete": True if facts.cut else None,
    }


def _status(batch: Row) -> str:
    if batch["state"] == "complete":
        return "complete"
    if batch["state"] == "cancelled":
        return "partial" if batch["counts"].get("done") else "failed"
    return "failed" if batch["state"] == "failed" else "running_or_partial"


def _failure(facts: Facts) -> dict[str, Any] | None:
    found, error = facts.failure, facts.batch.get("error")
    if found is None and not error:
        return None
    given = found or {}
    return {
        "reason": error or given.get("error"),
        "source_task": given.get("key"),
        "source_task_id": given.get("id"),
        "error": given.get("error") or error,
        "worker": given.get("worker"),
        "attempts": given.get("attempt"),
    }


def _rank(entry: Entry) -> tuple[bool, bool, int, str]:
    name = entry.path.rpartition("/")[2].lower()
    kind = _KINDS.get(_suffix(name))
    return (not name.startswith(_FIRST), kind not in ("text", "json"), entry.path.count("/"), entry.path)


def _suffix(name: str) -> str:
    stem, dot, end = name.rpartition(".")
    return f".{end.lower()}" if dot and stem else ""


def _artifact(entry: Entry, data: bytes | None) -> dict[str, Any]:
    name = shown(entry.path.rpartition("/")[2])
    suffix = _suffix(name)
    kind = _KINDS.get(suffix, "file")
    out: dict[str, Any] = {
        "path": shown(entry.path),
        "name": name,
        "suffix": suffix,
        "kind": kind,
        "size_bytes": entry.size,
    }
    if data is None or kind not in ("text", "json", "table"):
        return out
    if suffix == ".json" and len(data) == entry.size:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            out["keys"] = [shown(str(key)) for key in list(value)[:MAX_KEYS]]
    out["excerpt"] = data.decode("utf-8", "replace")[:EXCERPT_CHARS]
    return out


def _markdown(summary: Mapping[str, Any]) -> str:
    lines = [
        f"# {summary['plan_name']}: {summary['status']}",
        "",
        f"- batch: {summary['batch_id']}",
        f"- from {summary['started_at']} to {summary['completed_at']}",
        f"- tasks: {_counted(summary['live_counts'])}",
        f"- events: {_counted(summary['event_counts'])}",
    ]
    if (failure := summary["failure"]) is not None:
        named = f"{failure['source_task']}: " if failure.get("source_task") else ""
        lines += ["", "## Failure", "", *_quoted(f"{named}{failure['error']}")]
    if summary["important_artifacts"]:
        lines += ["", "## Files", ""]
        lines += [f"- `{one['path']}` ({one['size_bytes']} bytes)" for one in summary["important_artifacts"]]
        left = summary["artifact_counts"]["total"] - len(summary["important_artifacts"])
        lines += [f"- and {left} more"] if left else []
    if summary["incomplete"]:
        lines += ["", "There is more in the folder than was looked at."]
    return "\n".join(lines) + "\n"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "none"


def _quoted(text: str) -> list[str]:
    """Output of commands may be anything: as a block of code it stays text."""
    return [f"    {shown(line)}" for line in text.splitlines()[:20]]
