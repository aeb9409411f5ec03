"""Comparing the lanes with the broker: at the start, after a gap, when the share is back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ....bus.wire import Verb
from ..contract import layout, rows
from ..contract.beats import HEARTBEATS
from ..loop.flows import Flow, ask, share
from ..share.ops import entries, mkdirs, read, scan, stat
from ..share.seal import MAX_BYTES, sealed
from .lanes import Known, id_of, lane_files

log = logging.getLogger(__name__)

PAGE: Final = 10_000
ASKED: Final = 200
STATS: Final = 500
WORKERS: Final = 1000
_ENDED_LANES: Final = (layout.COMPLETE, layout.FAILED)


@dataclass(slots=True)
class Survey:
    """The broker's state at ``seq`` beside what stands.

    ``known``: files of tasks that the broker knows -> (task id, its batch); ``changed``: tasks (and their batch) whose
    file is missing or not what it should be; ``strange``: files in lanes of work that no task is for (an earlier rig's);
    ``running`` and ``ended``: rows whose log is looked after; ``displaced``: of ``known``, those of tasks that have not
    ended, in another lane than theirs (left by a crash, or moved by somebody).
    """

    seq: int
    batches: dict[str, dict[str, Any]]
    known: dict[str, tuple[str, str]] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    displaced: list[str] = field(default_factory=list)
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: list[dict[str, Any]] = field(default_factory=list)


def make_folders() -> Flow[None]:
    """The folders that the scripts of the Pi expect."""
    results = yield from share("mirror", [mkdirs(folder) for folder in layout.FOLDERS])
    for result in results:
        if not result["ok"]:
            log.warning("a folder of the share cannot be made: %s; mount it writable", result["what"])
            return


def scan_lanes() -> Flow[dict[str, Known]]:
    """Path -> size and mtime of every task file in the lanes."""
    found: dict[str, Known] = {}
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


def scan_workers() -> Flow[list[str]]:
    """The names that have a folder below ``workers/`` which does not say that its worker is gone."""
    (listed,) = yield from share("mirror", [scan("workers", budget=WORKERS)])
    if not listed["ok"]:
        return []
    names = [e.path for e in entries(listed) if e.type == "dir" and rows.worker_folder(e.path)]
    gone = b'"state": "gone"'
    results = yield from share("mirror", [read(f"workers/{name}/status.json", 4096) for name in names])
    return [name for name, r in zip(names, results, strict=True) if r["ok"] and gone not in r["data"]]


def later_folders() -> Flow[frozenset[str]]:
    """Which folders of the later generation's heartbeats the share has: who wants them makes them."""
    names = [name for name in HEARTBEATS if name != "workers"]
    results = yield from share("mirror", [stat(name) for name in names])
    found = zip(names, results, strict=True)
    return frozenset(name for name, r in found if r["ok"] and r["entry"] and r["entry"][1] == "dir")


def archived_already(paths: Iterable[tuple[str, str]]) -> Flow[set[str]]:
    """Of (path in a lane, batch): the paths whose file stands in the archive, wherever that was done."""
    asked = list(paths)
    found: set[str] = set()
    for i in range(0, len(asked), STATS):
        part = asked[i : i + STATS]
        ops = [stat(layout.archived(batch, path)) for path, batch in part]
        results = yield from share("mirror", ops)
        found |= {p for (p, _), r in zip(part, results, strict=True) if r["ok"] and r["entry"] is not None}
    return found


def unsealed(paths: Iterable[str]) -> Flow[set[str]]:
    """Those of ``paths`` that are whole files, and not as the mirror wrote them."""
    asked = list(paths)
    found: set[str] = set()
    for i in range(0, len(asked), ASKED):
        part = asked[i : i + ASKED]
        results = yield from share("mirror", [read(path, MAX_BYTES) for path in part], 30.0)
        found |= {p for p, r in zip(part, results, strict=True) if r["ok"] and not sealed(bytes(r["data"]))}
    return found


def survey(
    found: Mapping[str, Known], kept: int, oldest: float = 0.0, withheld: bool = False
) -> Flow[Survey]:
    """Ask for every live mirrored task, for as many ended ones as are kept, and for those whose file was found.

    Ended tasks that no lane shows are to be drawn only if they ended after ``oldest`` (unix seconds) and nobody has
    archived them. ``withheld``: see :func:`layout.lane`.
    """
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
    wanted = _Wanted(seen, found, withheld)
    mirrored = [b for b in batches.values() if b["mirror"]]
    for batch in [b for b in mirrored if not rows.batch_ended(b)]:
        yield from _tasks_of(batch, wanted)
    ended = [b for b in mirrored if rows.batch_ended(b)]
    for batch in sorted(ended, key=lambda b: b["ended_at"] or 0.0, reverse=True):
        if wanted.enough(kept):
            break
        yield from _tasks_of(batch, wanted)
    unknown = wanted.unknown()
    for i in range(0, len(unknown), ASKED):
        answer = yield from ask(Verb.QUERY, {"what": "rows", "ids": unknown[i : i + ASKED]})
        for raw in answer.header["rows"]:
            wanted.take(raw)
        if answer.header.get("cursor") is None:  # else only some of them were answered
            seen.strange += wanted.strange(unknown[i : i + ASKED])
    missing = wanted.finish(kept, oldest)
    done = yield from archived_already((path, its) for path, (_, its) in missing.items())
    seen.changed |= {task: its for path, (task, its) in missing.items() if path not in done}
    return seen


def _tasks_of(batch: Mapping[str, Any], wanted: _Wanted) -> Flow[None]:
    cursor = None
    # `full` brings `meta`, which names the file of a task that came from one in the queue
    full = batch["kind"] != "plan"
    while True:
        question = {"what": "tasks", "batch": batch["id"], "cursor": cursor, "full": full}
        answer = yield from ask(Verb.QUERY, question)
        for raw in answer.header["rows"]:
            wanted.take(raw)
        cursor = answer.header.get("cursor")
        if cursor is None:
            return


class _Wanted:
    """Sorts the broker's rows into files that stand as they should and tasks that have to be drawn."""

    def __init__(self, seen: Survey, found: Mapping[str, Known], withheld: bool = False) -> None:
        self.seen, self.found, self._withheld = seen, found, withheld
        self.at: dict[str, list[str]] = {}
        for path in found:
            self.at.setdefault(id_of(path), []).append(path)
        self.asked: set[str] = set()
        self._named: set[str] = set()
        self._ended: dict[str, list[tuple[float, str, str, str, bool]]] = {lane: [] for lane in _ENDED_LANES}
        self._rows: dict[str, dict[str, Any]] = {}

    def take(self, raw: Mapping[str, Any]) -> None:
        """One row, without its result."""
        task = raw["id"]
        if task in self.asked or raw.get("aside"):
            return
        self.asked.add(task)
        row = rows.task_row(raw, b"", self.seen.batches.get(raw["batch"]))
        self._named.add(row["file_id"])
        paths = self.at.get(row["file_id"], [])
        for path in paths:
            self.seen.known[path] = (task, raw["batch"])
        lane = layout.lane(row, self._withheld)
        if lane is None:
            return
        right = f"{lane}/{row['file_id']}.json"
        if lane not in self._ended:
            self.seen.displaced += [p for p in paths if p != right and not p.startswith(layout.PRIVATE)]
        stands = paths == [right] and self.found[right][1] == layout.mtime_ns(row["changed_at"])
        if lane in self._ended:
            self._ended[lane].append((row["changed_at"], task, raw["batch"], right, stands))
            if stands and row["attempt"]:
                self._rows[task] = {key: row[key] for key in ("id", "batch", "key", "attempt")}
            if paths and not stands:
                self.seen.changed[task] = raw["batch"]
        elif not stands:
            self.seen.changed[task] = raw["batch"]
        if row["state"] == "leased" and row["started"]:
            self.seen.running[task] = row

    def unknown(self) -> list[str]:
        """Ids of files that no row was for."""
        return [name for name in self.at if name not in self._named]

    def strange(self, names: Iterable[str]) -> list[str]:
        """Of these files, those that say of a task that it waits or runs, while nobody has it."""
        paths = [path for name in names if name not in self._named for path in self.at[name]]
        return [path for path in paths if path.rpartition("/")[0] not in _ENDED_LANES]

    def enough(self, kept: int) -> bool:
        """As many ended tasks were seen as the two lanes keep together; older ones are asked for by their files."""
        return sum(map(len, self._ended.values())) >= 2 * kept

    def finish(self, kept: int, oldest: float) -> dict[str, tuple[str, str]]:
        """Of the ended tasks, the newest are drawn; those that stand nowhere: path -> (task, batch)."""
        missing: dict[str, tuple[str, str]] = {}
        for ended in self._ended.values():
            for at, task, batch, path, stands in sorted(ended, reverse=True)[:kept]:
                if stands:
                    if task in self._rows:
                        self.seen.ended.append(self._rows[task])
                elif task not in self.seen.changed and at >= oldest:
                    missing[path] = (task, batch)
        return missing
