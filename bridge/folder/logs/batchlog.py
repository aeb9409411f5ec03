"""``plans/<plan>/batches/<id>/logs/batch_events.jsonl``: what happened to a batch and its tasks, a line an event. Pure.

The lines are those that the earlier system wrote (its summaries count them), told from the numbered events of the broker:
each once, in the files of many batches, also over a bridge that was killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ....bus.client.follow import Event
from ..contract import rows
from ..contract.layout import Row, error_text, iso
from ..share.ops import Op, Result, append
from .appending import Appending

MAX_LINES: Final = 5000  #: that wait for one file
MAX_FILES: Final = 500  #: files that lines wait for, or that were written to of late
AT_ONCE: Final = 100  #: files of one go
MAX_ENDS: Final = 1000  #: batches whose end waits to be told
SUMMARY_CHARS: Final = 200
_BATCH_ENDS: Final = {"complete": "batch_completed", "failed": "batch_aborted", "cancelled": "batch_aborted"}
_ENDS: Final = {
    "done": "task_succeeded",
    "dead": "task_failed",
    "expired": "task_failed",
    "cancelled": "task_abandoned",
    "skipped": "task_abandoned",
}
_STATUS: Final = {
    "ready": "pending",
    "done": "complete",
    "dead": "failed",
    "expired": "failed",
    "cancelled": "abandoned",
    "skipped": "abandoned",
}


def events_path(folder: str) -> str:
    """The file of the batch in ``folder``."""
    return f"{folder}/logs/batch_events.jsonl"


def word_of(step: rows.Transition) -> str | None:
    """The event's name for what happened to a task; None for what has none."""
    if step.state in _ENDS:
        return _ENDS[step.state]
    if step.state == "leased":
        return "task_started" if step.started else None
    if step.state != "ready" or step.before == "ready":  # only handed back
        return None
    return "task_released" if step.before in (None, "waiting") else "task_retried"


def task_line(word: str, step: rows.Transition, row: Row, utc_offset_s: float) -> bytes:
    """The line of one event. ``row`` is the task as it was then (`rows.row_then`)."""
    at = iso(step.at, utc_offset_s)
    fields: dict[str, Any] = {
        "event": word,
        "batch_id": row["batch"],
        "recorded_at": at,
        "task_id": row["id"],
        "task_name": step.key,
        "task_class": row.get("class"),
        "executor": row.get("executor"),
        "worker": step.worker,
        "attempts": step.attempt,
        "recorded_status": "processing" if step.state == "leased" else _STATUS.get(step.state, step.state),
    }
    if word == "task_started":
        fields["started_at"] = at
    elif word == "task_retried":
        fields |= {"requeued_at": at, "error": step.error}
    elif word != "task_released":
        begun = row.get("started_at") or 0.0  # of the newest attempt, which may be a later one
        fields["started_at"] = iso(begun, utc_offset_s) if 0 < begun <= step.at else None
        fields |= {"completed_at": at, "success": word == "task_succeeded"}
        if word != "task_succeeded":
            error = error_text(row)
            fields |= {"error": error, "error_type": step.error_class or step.state}
            fields["summary"] = error.partition("\n")[0][:SUMMARY_CHARS]
        given = row.get("result")
        fields["error_code"] = given.get("exit") if isinstance(given, Mapping) else None
    return _line(fields, step.seq)


def _line(fields: Mapping[str, Any], seq: int) -> bytes:
    shown = {key: value for key, value in fields.items() if value is not None}
    return json.dumps({**shown, "seq": seq}, default=str).encode("ascii") + b"\n"


class BatchLogs:
    """The lines that wait, by file, and the batches whose end is to be told."""

    def __init__(self, utc_offset_s: Callable[[float], float] = lambda _: 0.0) -> None:
        self._utc_offset_s = utc_offset_s
        self._files: dict[str, Appending] = {}
        self.ends: dict[str, Event] = {}  #: batch -> the event of its end, until its summary stands

    def waiting(self) -> bool:
        """There are lines to append."""
        return any(map(len, self._files.values()))

    def idle(self, path: str) -> bool:
        """Nothing waits for this file."""
        return not self._files.get(path)

    def untold(self) -> int | None:
        """The first event of which something is still to be written; None when there is none."""
        waiting = [seq for file in self._files.values() if (seq := file.untold()) is not None]
        return min([*waiting, *(event.seq for event in self.ends.values())], default=None)

    def batch(self, event: Event) -> None:
        """An event about a batch: its end is remembered, a new beginning takes that back."""
        told = rows.batch_told(event)
        if told is None:
            return
        state, row = told
        if state in _BATCH_ENDS:
            self.ends[row["id"]] = event
        else:
            self.ends.pop(row["id"], None)
        while len(self.ends) > MAX_ENDS:  # the share is away for long
            del self.ends[next(iter(self.ends))]

    def tasks(
        self,
        heard: Mapping[str, tuple[str, Sequence[rows.Transition]]],
        found: Mapping[str, Mapping[str, Any]],
        folder_of: Callable[[str], str | None],
    ) -> None:
        """What was heard of tasks, with their rows as they are now. ``folder_of``: the folder of a batch, if it has one."""
        lines: list[tuple[int, str, bytes]] = []
        for task, (batch, steps) in heard.items():
            folder = folder_of(batch) if batch else None
            if folder is None:
                continue
            for step in steps:
                word = word_of(step)
                if word is not None:
                    row = rows.row_then(step, task, batch, found.get(task))
                    line = task_line(word, step, row, self._utc_offset_s(step.at))
                    lines.append((step.seq, events_path(folder), line))
        for seq, path, line in sorted(lines):
            self._file(path).add(seq, seq, line)

    def end(self, event: Event, row: Row, folder: str) -> None:
        """The line of a batch's end. ``row`` is the batch as `rows.batch_row` has it."""
        offset = self._utc_offset_s(event.at)
        state = event.topic.rpartition(".")[2]
        at = iso(event.at, offset)
        fields = {
            "event": _BATCH_ENDS.get(state, "batch_aborted"),
            "batch_id": row["id"],
            "recorded_at": at,
            "recorded_status": state,
            "started_at": iso(row["created_at"], offset),
            "completed_at": at,
            "success": state == "complete",
            "error": event.data.get("error"),
        }
        self._file(events_path(folder)).add(event.seq, event.seq, _line(fields, event.seq))

    # -- writing ---------------------------------------------------------------------------------------------

    def doubtful(self) -> list[str]:
        """Files that lines wait for, and of which it is unknown what stands."""
        return [path for path, file in self._files.items() if len(file) and file.in_doubt][:AT_ONCE]

    def stands(self, path: str, tail: bytes) -> None:
        """The end of a file, as it is now."""
        self._files[path].stands(tail)

    def ops(self) -> tuple[list[Op], list[int]]:
        """The next appends, and how many lines each has."""
        out: list[Op] = []
        counts: list[int] = []
        for path, file in self._files.items():
            if len(file) and not file.in_doubt and len(out) < AT_ONCE:
                data, count = file.some()
                out.append(append(path, data))
                counts.append(count)
        return out, counts

    def done(self, ops: Sequence[Op], counts: Sequence[int], results: Sequence[Result]) -> bool:
        """Enter what was appended; whether all of it was."""
        for op, count, result in zip(ops, counts, results, strict=True):
            file = self._files.pop(op["path"])
            self._files[op["path"]] = file  # to the end: the longest unused is forgotten first
            if result["ok"]:
                file.written(count)
            else:
                file.in_doubt = True
        self._forget()
        return all(result["ok"] for result in results)

    def lost_sight(self, paths: Iterable[str]) -> None:
        """Appends to these had no answer."""
        for path in paths:
            self._files[path].in_doubt = True

    def _file(self, path: str) -> Appending:
        if path not in self._files:
            self._files[path] = Appending("seq", MAX_LINES)
        return self._files[path]

    def _forget(self) -> None:
        if len(self._files) <= MAX_FILES:
            return
        idle = [path for path, file in self._files.items() if not len(file)]
        for path in idle[: len(self._files) - MAX_FILES]:
            del self._files[path]
