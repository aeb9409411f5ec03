"""Comparing the lanes with the broker: at the start, after a gap, when the share is back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ...bus.wire import Verb
from . import layout, rows
from .flows import Flow, ask, share
from .lanes import id_of, lane_files
from .ops import entries, mkdirs, scan

log = logging.getLogger(__name__)

PAGE: Final = 5000
ASKED: Final = 200
_ENDED_LANES: Final = (layout.COMPLETE, layout.FAILED)


@dataclass(slots=True)
class Survey:
    """The broker's state at ``seq`` beside what stands. ``known``: files of tasks that the broker knows, with their
    mtimes; ``changed``: tasks (and their batch) whose file is missing or not what it should be."""

    seq: int
    batches: dict[str, dict[str, Any]]
    known: dict[str, int] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    running: dict[str, dict[str, Any]] = field(default_factory=dict)


def make_folders() -> Flow[None]:
    """The folders that the scripts of the Pi expect."""
    results = yield from share("mirror", [mkdirs(folder) for folder in layout.FOLDERS])
    for result in results:
        if not result["ok"]:
            log.warning("a folder of the share cannot be made: %s; mount it writable", result["what"])
            return


def scan_lanes() -> Flow[dict[str, int]]:
    """Path -> mtime of every task file in the lanes."""
    found: dict[str, int] = {}
    for lane in layout.LANES:
        after = ""
        while True:
            op = scan(lane, budget=PAGE, after=after)
            (result,) = yield from share("mirror", [op], 30.0)
            if not result["ok"]:
                break  # the lane is missing: nothing stands there
            found |= lane_files(lane, entries(result))
            after = result["next"]
            if not after:
                break
    return found


def survey(found: Mapping[str, int], kept: int) -> Flow[Survey]:
    """Ask for every live mirrored task, for as many ended ones as are kept, and for those whose file was found."""
    batches: dict[str, dict[str, Any]] = {}
    first, cursor = None, None
    while cursor is None or cursor < 0:  # negative: more batches to come; the tasks are asked for by batch
        question = {"limit": 1, "full": False, "mirror": True, "cursor": cursor}
        page = (yield from ask(Verb.SNAPSHOT, question)).header
        first = int(page["seq"]) if first is None else first
        batches |= {raw["id"]: rows.batch_row(raw) for raw in page["batches"]}
        cursor = page["cursor"]
        if cursor is None:
            break
    seen = Survey(first or 0, batches)
    at: dict[str, list[str]] = {}
    for path in found:
        at.setdefault(id_of(path), []).append(path)
    wanted = _Wanted(seen, found, at)
    mirrored = [b for b in batches.values() if b["mirror"]]
    for batch in [b for b in mirrored if not rows.batch_ended(b)]:
        yield from _tasks_of(batch["id"], wanted)
    ended = [b for b in mirrored if rows.batch_ended(b)]
    for batch in sorted(ended, key=lambda b: b["ended_at"] or 0.0, reverse=True):
        if wanted.enough(kept):
            break
        yield from _tasks_of(batch["id"], wanted)
    unknown = [task for task in at if task not in wanted.asked]
    for i in range(0, len(unknown), ASKED):
        answer = yield from ask(Verb.QUERY, {"what": "rows", "ids": unknown[i : i + ASKED]})
        for raw in answer.header["rows"]:
            wanted.take(raw)
    wanted.finish(kept)
    return seen


def _tasks_of(batch: str, wanted: _Wanted) -> Flow[None]:
    cursor = None
    while True:
        answer = yield from ask(Verb.QUERY, {"what": "tasks", "batch": batch, "cursor": cursor})
        for raw in answer.header["rows"]:
            wanted.take(raw)
        cursor = answer.header.get("cursor")
        if cursor is None:
            return


class _Wanted:
    """Sorts the broker's rows into files that stand as they should and tasks that have to be drawn."""

    def __init__(self, seen: Survey, found: Mapping[str, int], at: Mapping[str, list[str]]) -> None:
        self.seen, self.found, self.at = seen, found, at
        self.asked: set[str] = set()
        self._ended: dict[str, list[tuple[float, str, str, bool]]] = {lane: [] for lane in _ENDED_LANES}

    def take(self, raw: Mapping[str, Any]) -> None:
        """One row, without its result."""
        task = raw["id"]
        if task in self.asked:
            return
        self.asked.add(task)
        row = rows.task_row(raw, b"", self.seen.batches.get(raw["batch"]))
        paths = self.at.get(task, [])
        for path in paths:
            self.seen.known[path] = self.found[path]
        lane = layout.lane(row)
        if lane is None:
            return
        right = f"{lane}/{task}.json"
        stands = paths == [right] and self.found[right] == layout.mtime_ns(row["changed_at"])
        if lane in self._ended:
            self._ended[lane].append((row["changed_at"], task, raw["batch"], stands))
        elif not stands:
            self.seen.changed[task] = raw["batch"]
        if row["state"] == "leased" and row["started"]:
            self.seen.running[task] = row

    def enough(self, kept: int) -> bool:
        """As many ended tasks were seen as the two lanes keep together; older ones are asked for by their files."""
        return sum(map(len, self._ended.values())) >= 2 * kept

    def finish(self, kept: int) -> None:
        """Of the ended tasks, the newest are drawn."""
        for ended in self._ended.values():
            for _, task, batch, stands in sorted(ended, reverse=True)[:kept]:
                if not stands:
                    self.seen.changed[task] = batch
