"""The workers' files: a heartbeat for each that was heard, a status for each that has changed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import layout, rows


@dataclass(slots=True)
class _Worker:
    known: Mapping[str, Any] = field(default_factory=dict)
    beat: Mapping[str, Any] = field(default_factory=dict)
    seen_at: float = 0.0
    drawn_at: float = 0.0
    status: Any = None


class Workers:
    """What is known of each worker, and what of it has been drawn."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}

    def busy(self) -> bool:
        """Some worker runs something."""
        return any(worker.beat.get("running") for worker in self._workers.values())

    def heard(self, beats: Iterable[tuple[str, Mapping[str, Any]]], at: float) -> None:
        """Heartbeats, at unix seconds of our own clock."""
        for name, beat in beats:
            if rows.worker_folder(name):
                worker = self._workers.setdefault(name, _Worker())
                worker.beat, worker.seen_at = beat, at

    def told(self, present: Iterable[Mapping[str, Any]]) -> None:
        """The broker's rows of the workers that are there."""
        known = {str(row["id"]): row for row in present if rows.worker_folder(str(row["id"]))}
        for name in known.keys() | self._workers.keys():
            self._workers.setdefault(name, _Worker()).known = known.get(name, {"state": "gone"})

    def draw_again(self) -> None:
        """What stands in the share is unknown."""
        for worker in self._workers.values():
            worker.drawn_at, worker.status = 0.0, None

    def files(self, at: float, utc_offset_s: float) -> list[layout.File]:
        """The files that are due. A worker that is gone gets a last status and is forgotten."""
        out: list[layout.File] = []
        for name, worker in list(self._workers.items()):
            row = rows.worker_row(name, worker.beat, worker.known, worker.seen_at)
            gone = worker.known.get("state") == "gone"
            if gone:
                row |= {"state": "gone", "tasks": []}
                del self._workers[name]
            elif worker.seen_at > worker.drawn_at:
                worker.drawn_at = worker.seen_at
                out.append(layout.heartbeat_file(row, utc_offset_s, rows.running_names(worker.beat)))
            status = (row["state"], row["classes"], row["model"], row["tasks"], row["pid"])
            if status != worker.status:
                worker.status = status
                out.append(layout.status_file(row, utc_offset_s, at))
        return out
