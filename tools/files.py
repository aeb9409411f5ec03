"""The rig as its shared folder shows it, for machines that have nothing but the folder. Standard library only.

The bridge writes these files (``bridge/folder/layout.py``); here they become the same rows that the broker answers, so
that a verb prints one thing in both modes. A file may vanish or be half-written between two looks: it is left out.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ..bridge.folder.layout import (
    COMPLETE,
    DECISIONS_LOG,
    FAILED,
    LANES,
    PRIVATE,
    PROCESSING,
    QUEUE,
    STATE_FILE,
)
from ..bus.errors import NotFound, Unreachable
from .rows import STATES, TASK_ENDED

MAX_BYTES: Final = 4 << 20
STALE_S: Final = 60.0  #: as the earlier scripts: older news is no news
ENDED_SHOWN: Final = 20
MIN_PREFIX: Final = 6
_PRIORITY: Final = {"low": 3, "normal": 5, "high": 8, "urgent": 10}
_STATE: Final = {PRIVATE: "waiting", QUEUE: "ready", PROCESSING: "leased", COMPLETE: "done"}


class Folder:
    """One shared folder. Every method reads the disk anew."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- the whole -------------------------------------------------------------------------------------------

    def status(self, now: float) -> dict[str, Any]:
        """The answer to QUERY `status`. ``now`` is Unix seconds, for ages; ``as_of`` is the last sign of the rig."""
        state = self.state()
        workers = self.workers(now)
        batches = self.batches()
        tasks: Counter[str] = Counter()
        for batch in batches:
            tasks.update(batch["tasks"])
        as_of = self.as_of()
        fresh = as_of is not None and now - as_of <= STALE_S
        seen = "as mirrored" if fresh else "stale"
        return {
            "as_of": as_of,
            "seq": 0,
            "broker": {"state": seen},
            "brain": {"state": str(state.get("status", "unknown")) if fresh else "unknown"},
            "bridge": {"state": seen, "pid": state.get("pid"), "host": state.get("hostname")},
            "workers": workers,
            "tasks": {s: tasks[s] for s in STATES},
            "batches": batches,
            "unrunnable": [],
        }

    def state(self) -> dict[str, Any]:
        """``brain/state.json``; empty when it is not there."""
        return _object(self.root / STATE_FILE) or {}

    def as_of(self) -> float | None:
        """When the bridge last wrote something that it writes often; None when it never did."""
        files = [self.root / STATE_FILE, *(self.root / "workers").glob("*/heartbeat.json")]
        return max((at for at in map(_mtime, files) if at is not None), default=None)

    def workers(self, now: float) -> list[dict[str, Any]]:
        """Workers by name, from their heartbeats."""
        out = []
        for file in sorted((self.root / "workers").glob("*/heartbeat.json")):
            beat, at = _object(file), _mtime(file)
            if beat is None or at is None:
                continue
            slow = _object(file.parent / "status.json") or {}
            word = str(beat.get("state", "unknown"))
            state = {"running": "busy", "hot": "idle", "cold": "idle"}.get(word, word)
            out.append(
                {
                    "id": str(beat.get("name", file.parent.name)),
                    "state": state if now - at <= STALE_S else "stale",
                    "classes": list(slow.get("classes") or ()),
                    "model": beat.get("model"),
                    "heartbeat_age_s": round(max(0.0, now - at), 3),
                    "tasks": [
                        str(t.get("task_id")) for t in beat.get("active_tasks") or () if isinstance(t, dict)
                    ],
                    "gpu": _gpu(beat),
                    "pid": beat.get("pid"),
                }
            )
        return out

    # -- batches ---------------------------------------------------------------------------------------------

    def batches(self, ended: int | None = ENDED_SHOWN) -> list[dict[str, Any]]:
        """The live batches and the last ``ended`` others (None: all), oldest first."""
        active = self.state().get("active_batches")
        live = (
            {str(k): v for k, v in active.items() if isinstance(v, dict)} if isinstance(active, dict) else {}
        )
        rows = {id_: _active_row(id_, fields) for id_, fields in live.items()}
        folders = [(name, path) for name, path in self._batch_folders() if name not in rows]
        folders.sort()
        for name, path in folders if ended is None else folders[-ended:]:
            row = _ended_row(name, path)
            if row is not None:
                rows[name] = row
        return [rows[name] for name in sorted(rows)]

    def batch(self, ref: str) -> dict[str, Any]:
        """One batch by its id, or the start of one.

        Raises:
            NotFound: none, or several.
        """
        rows = {row["id"]: row for row in self.batches(ended=0)}
        paths = dict(self._batch_folders())
        names = sorted({*rows, *paths})
        hits = [ref] if ref in names else [n for n in names if len(ref) >= MIN_PREFIX and n.startswith(ref)]
        if len(hits) > 1:
            raise NotFound(f"batch {ref!r} fits {len(hits)}: give more characters")
        if not hits:
            raise NotFound(f"no batch {ref!r} in {self.root}; `rigbus batch list` shows them")
        row = rows.get(hits[0]) or _ended_row(hits[0], paths[hits[0]])
        if row is None:
            raise NotFound(f"batch {hits[0]}: its batch.json is not there (yet)")
        return row

    def _batch_folders(self) -> Iterator[tuple[str, Path]]:
        for plan in _folders(self.root / "plans"):
            for folder in _folders(Path(plan.path) / "batches"):
                yield folder.name, Path(folder.path)

    # -- tasks -----------------------------------------------------------------------------------------------

    def tasks(self, batch: str | None = None) -> list[dict[str, Any]]:
        """Every task in the lanes, oldest first."""
        out: dict[str, dict[str, Any]] = {}
        for lane in LANES:
            for entry in _entries(self.root / lane):
                row = _task_row(lane, Path(entry.path)) if entry.name.endswith(".json") else None
                if row is not None and batch in (None, row["batch"]):
                    out[row["id"]] = (
                        row  # a task that moves is in two lanes for a moment: the later one counts
                    )
        return sorted(out.values(), key=lambda r: (r["created_at"] or 0.0, r["name"]))

    def task(self, ref: str) -> dict[str, Any]:
        """One task by its id, the start of one, or ``BATCH/NAME``.

        Raises:
            NotFound: none, or several.
        """
        batch, slash, name = ref.partition("/")
        if slash:
            id_ = self.batch(batch)["id"]
            found = {r["id"]: r for r in self.tasks(id_) if r["name"] == name}
        else:
            found = {}
            for lane in LANES:
                for entry in _entries(self.root / lane):
                    stem = entry.name.removesuffix(".json")
                    if stem == ref or (len(ref) >= MIN_PREFIX and stem.startswith(ref)):
                        row = _task_row(lane, Path(entry.path))
                        if row is not None:
                            found[row["id"]] = row
        if len(found) > 1:
            raise NotFound(f"task {ref!r} fits {len(found)}: give more characters")
        if not found:
            raise NotFound(f"no task {ref!r} in {self.root}; `rigbus task list` shows them")
        return next(iter(found.values()))

    def find(self, ref: str) -> tuple[str, dict[str, Any]]:
        """``("task", row)`` or ``("batch", row)``.

        Raises:
            NotFound: neither, or several.
        """
        try:
            return "task", self.task(ref)
        except NotFound as e:
            if "fits" in str(e):
                raise
        try:
            return "batch", self.batch(ref)
        except NotFound as e:
            if "fits" in str(e):
                raise
        raise NotFound(f"no task or batch {ref!r} in {self.root}; `rigbus batch list` shows the batches")

    def logs(self, task: dict[str, Any]) -> dict[int, Path]:
        """The copied logs of a task, by attempt."""
        name = _file_name(str(task["name"]))
        out: dict[int, Path] = {}
        for folder in [path / "logs" for id_, path in self._batch_folders() if id_ == task["batch"]]:
            for entry in _entries(folder):
                number = entry.name.removeprefix(f"{name}.").removesuffix(".log")
                if entry.name == f"{name}.{number}.log" and number.isdecimal():
                    out.setdefault(int(number), Path(entry.path))
        return out

    def decisions(self, count: int) -> list[dict[str, Any]]:
        """The last lines of ``logs/brain_decisions.log``."""
        try:
            with (self.root / DECISIONS_LOG).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1000 * count))
                lines = file.read().split(b"\n")[-count - 1 :]
        except OSError:
            return []
        out = []
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                out.append(value)
        return out[-count:]

    def must_be_fresh(self, now: float) -> None:
        """Refuse news that is too old to be believed.

        Raises:
            Unreachable: the bridge has written nothing for a minute.
        """
        at = self.as_of()
        if at is None:
            raise Unreachable(f"{self.root}: no rig has written here yet; start one with `rigbus up`")
        if now - at > STALE_S:
            raise Unreachable(
                f"{self.root}: stale: the rig's last sign is {now - at:.0f} s old; see whether it is up, and the "
                "mount and the clocks of both machines"
            )


def _active_row(id_: str, fields: dict[str, Any]) -> dict[str, Any]:
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
        "created_at": _unix(fields.get("started_at")),
        "ended_at": None,
        "total": total,
        "error": None,
        "tasks": tasks,
        "progress": ended / total if total else 0.0,
    }


def _ended_row(id_: str, folder: Path) -> dict[str, Any] | None:
    fields = _object(folder / "batch.json")
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
        "created_at": _unix(fields.get("started_at")),
        "ended_at": _unix(fields.get("completed_at")),
        "total": int(fields.get("total_tasks") or 0),
        "error": fields.get("error"),
        "tasks": {s: int(counts.get(s) or 0) for s in STATES} if isinstance(counts, dict) else {},
        "progress": float(fields.get("progress") or 0.0),
    }


def _task_row(lane: str, file: Path) -> dict[str, Any] | None:
    """A task of a lane in the keys of :func:`.rows.task_object`."""
    fields = _object(file)
    if fields is None or "task_id" not in fields:
        return None
    given = fields.get("result")
    result: dict[str, Any] = given if isinstance(given, dict) else {}
    state = _STATE.get(lane) or _failed_state(fields, result)
    attempt = int(fields.get("attempts") or 0)
    started, ended = _unix(fields.get("started_at")), _unix(fields.get("completed_at"))
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
        "created_at": _unix(fields.get("created_at")),
        "started_at": started,
        "ended_at": ended,
        "command": fields.get("command"),
        "depends_on": list(fields.get("depends_on") or ()),
        "attempts": [],
        "result": given if lane in (COMPLETE, FAILED) else None,
    }
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


def _gpu(beat: dict[str, Any]) -> dict[str, Any] | None:
    names = {
        "index": "gpu_id",
        "temperature_c": "temperature_c",
        "utilization_pct": "gpu_util_percent",
        "power_w": "power_draw_w",
        "vram_used_mb": "vram_used_mb",
        "vram_total_mb": "vram_total_mb",
    }
    found = {ours: beat[theirs] for ours, theirs in names.items() if beat.get(theirs) is not None}
    return found or None


def _file_name(key: str) -> str:
    """How a task's key stands in the name of its log (``agents/values.py`` writes it so)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else _escape(c) for c in key)
    return f"%2E{plain[1:]}" if plain.startswith(".") else plain


def _escape(char: str) -> str:
    return "".join(f"%{b:02X}" for b in char.encode("utf-8", "replace"))


def _object(file: Path) -> dict[str, Any] | None:
    """A JSON object of a regular file; None for whatever is none."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return None
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _mtime(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _unix(text: Any) -> float | None:
    """Naive local ISO-8601, as the mirror has it, as Unix seconds."""
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [e for e in found if not e.name.startswith(".")]
    except OSError:
        return []


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [e for e in _entries(folder) if e.is_dir(follow_symlinks=False)]
