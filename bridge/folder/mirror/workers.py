"""The workers' files: a heartbeat for each that was heard, a status for each that has changed or must be fresh. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..contract import beats, layout, oldconfig, rows
from ..contract.beats import Scene


@dataclass(slots=True)
class _Worker:
    known: Mapping[str, Any] = field(default_factory=dict)
    beat: Mapping[str, Any] = field(default_factory=dict)
    seen_at: float = 0.0
    heard: bool = False  #: since its heartbeat was drawn; a flag, since the wall clock may go backwards
    status: Any = None
    since: float = 0.0


class Workers:
    """What is known of each worker, and what of it has been drawn."""

    def __init__(self, shared: str = "") -> None:
        self._shared = shared  #: the share as the Pi names it
        self._workers: dict[str, _Worker] = {}
        self.folders: frozenset[str] = frozenset()  #: of the later generation's, those that the share has

    def busy(self) -> bool:
        """Some worker runs something."""
        return any(worker.beat.get("running") for worker in self._workers.values())

    def heard(self, beats: Iterable[tuple[str, Mapping[str, Any]]], at: float) -> None:
        """Heartbeats, at unix seconds of our own clock."""
        for name, beat in beats:
            if rows.worker_folder(name):
                worker = self._workers.setdefault(name, _Worker())
                worker.beat, worker.seen_at, worker.heard = beat, at, True

    def told(self, present: Iterable[Mapping[str, Any]]) -> None:
        """The broker's rows of the workers that are there."""
        known = {str(row["id"]): row for row in present if rows.worker_folder(str(row["id"]))}
        for name in known.keys() | self._workers.keys():
            self._workers.setdefault(name, _Worker()).known = known.get(name, {"state": "gone"})

    def missing(self, names: Iterable[str]) -> None:
        """Workers that have a folder in the share; one that nobody knows any more has gone while nobody looked."""
        for name in names:
            if rows.worker_folder(name) and name not in self._workers:
                self._workers[name] = _Worker(known={"state": "gone"})

    def files(self, at: float, utc_offset_s: float, seq: int = 0) -> list[layout.File]:
        """The files as they are now. A worker that is gone gets last ones and is forgotten."""
        out: list[layout.File] = []
        for name, worker in list(self._workers.items()):
            row = rows.worker_row(name, worker.beat, worker.known, worker.seen_at)
            gone = worker.known.get("state") == "gone"
            names = rows.running_names(worker.beat)
            if gone:
                row |= {"state": "gone", "tasks": []}
                del self._workers[name]
            if (gone and worker.seen_at) or worker.heard:
                worker.heard = False
                beat = beats.heartbeat_file(row, utc_offset_s, names, seq)
                later = beats.later_heartbeat(beat, row, self.folders)
                out += [beat] if later is None else [beat, later]
            status = (row["state"], row["classes"], row["model"], row["tasks"], row["pid"])
            if status != worker.status:
                worker.status, worker.since = status, at
            out.append(beats.status_file(row, utc_offset_s, worker.since, at, seq))
        return out

    def portrait(self, scene: Scene, active_batches: int, *, ending: bool = False) -> list[layout.File]:
        """The brain's heartbeat, with the cards of its model, and ``config.json``."""
        present = [rows.worker_row(n, w.beat, w.known, w.seen_at) for n, w in self._workers.items()]
        state = "stopped" if ending else "active"
        files = beats.brain_files(present, scene, active_batches=active_batches, state=state)
        if not ending:  # the workers have gone before: the last ones stay
            files += oldconfig.config_files(present, scene, shared=self._shared, cards="gpus" in self.folders)
        return files


__all__ = ["Scene", "Workers"]
