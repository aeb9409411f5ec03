"""The rig as its shared folder shows it, for machines that have nothing but the folder. Standard library only.

The bridge writes these files (``bridge/folder/contract/layout.py``); here they become the same rows that the broker answers, so
that a verb prints one thing in both modes. A file may vanish or be half-written between two looks: it is left out.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from ..bridge.folder.contract.layout import (
    ARCHIVE,
    COMPLETE,
    DECISIONS_LOG,
    FAILED,
    LANES,
    STATE_FILE,
)
from ..bus.errors import NotFound, Unreachable
from . import alert_rows
from .common import talk
from .escalation_rows import UNANSWERED, Escalations, source_of
from .file_rows import active_row, ended_row, gpu, json_object, number, task_row, unix, whole, word
from .rigclock import RigClock
from .rows import STATES

STALE_S: Final = 60.0  #: of files without a `stale_after_s`: as the earlier scripts, older news is no news
ZONE_STEP_S: Final = 900.0  #: time zones lie so far apart
ZONE_MAX_S: Final = 26 * 3600.0
ENDED_SHOWN: Final = 20
PLAN_DEPTH: Final = 3
MIN_PREFIX: Final = 6
_ARCHIVED: Final = (COMPLETE, FAILED)


class Folder:
    """One shared folder. Every method reads the disk anew."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- the whole -------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Unix seconds by the rig's clock, for methods that take ``now``; may wait for some seconds (`RigClock`)."""
        return time.time() if self.state().get("status") == "stopped" else _clock_of(self.root).now()

    def status(self, now: float) -> dict[str, Any]:
        """The answer to QUERY `status`. ``now`` is Unix seconds, for ages; ``as_of`` is the last sign of the rig."""
        workers = self.workers(now)
        batches = self.batches()
        tasks: Counter[str] = Counter()
        for batch in batches:
            tasks.update(batch["tasks"])
        return {
            "as_of": self.as_of(),
            "seq": whole(self.state().get("seq")),
            **self.processes(now),
            "workers": workers,
            "tasks": {s: tasks[s] for s in STATES},
            "batches": batches,
            "unrunnable": [],
            "alerts": alert_rows.counts(alert_rows.of_share(self.root)),
        }

    def processes(self, now: float) -> dict[str, dict[str, Any]]:
        """``broker``, ``brain`` and ``bridge``, by what the last of them wrote and how old that is."""
        state, fresh = self.state(), self.stale_for(now) is None
        seen = "stopped" if state.get("status") == "stopped" else "as mirrored" if fresh else "stale"
        return {
            "broker": {"state": seen},
            "brain": {"state": word(state.get("status"), "unknown") if fresh else "unknown"},
            "bridge": {"state": seen, "pid": state.get("pid"), "host": state.get("hostname")},
        }

    def state(self) -> dict[str, Any]:
        """``brain/state.json``; empty when it is not there."""
        return json_object(self.root / STATE_FILE) or {}

    def as_of(self) -> float | None:
        """When the rig last said how it is, by its own clock; None when it never did."""
        return max((at for at, _ in self.stamps()), default=None)

    def stamps(self) -> list[tuple[float, float]]:
        """(as of when, for how many seconds that may be believed), of each file that a living rig renews."""
        found = (self._stamp(), *(_stamp(beat) for beat in self._beats()))
        return [stamp for stamp in found if stamp is not None]

    def stale_for(self, now: float) -> float | None:
        """How old the last news is where nobody should believe it any more, None while it is fresh.

        The bridge renews ``state.json`` three times in its ``stale_after_s``, whatever happens: an older one means
        that it is dead, or that the mount shows old things.
        """
        stamps = self.stamps()
        if not stamps:
            return float("inf")
        if any(now - at <= limit for at, limit in stamps):
            return None
        return now - max(at for at, _ in stamps)

    def _stamp(self) -> tuple[float, float] | None:
        return _stamp(self.root / STATE_FILE)

    def _beats(self) -> list[Path]:
        return sorted((self.root / "workers").glob("*/heartbeat.json"))

    def workers(self, now: float) -> list[dict[str, Any]]:
        """Workers by name, from their heartbeats; not those that have ended. One whose news is too old is "stale"."""
        out = []
        for file in self._beats():
            beat, stamp = json_object(file), _stamp(file)
            slow = json_object(file.parent / "status.json") or {}
            if beat is None or stamp is None or "gone" in (beat.get("state"), slow.get("state")):
                continue
            at, limit = stamp
            said = word(beat.get("state"), "unknown")
            state = {"running": "busy", "hot": "idle", "cold": "idle"}.get(said, said)
            classes, tasks = slow.get("classes"), beat.get("active_tasks")
            out.append(
                {
                    "id": word(beat.get("name")) or word(file.parent.name),
                    "state": state if now - at <= limit else "stale",
                    "classes": [word(c) for c in classes] if isinstance(classes, list) else [],
                    "model": word(beat.get("model")) or None,
                    "heartbeat_age_s": round(max(0.0, now - at), 3),
                    "tasks": [word(t.get("task_id")) for t in tasks if isinstance(t, dict)]
                    if isinstance(tasks, list)
                    else [],
                    "gpu": gpu(beat),
                    "pid": beat.get("pid"),
                }
            )
        return out

    # -- batches ---------------------------------------------------------------------------------------------

    def batches(self, ended: int | None = ENDED_SHOWN) -> list[dict[str, Any]]:
        """The live batches and the last ``ended`` others (None: all), oldest first."""
        counts = self._unanswered()
        return [{**row, "escalations": counts[row["id"]]} for row in self._batch_rows(ended)]

    def _batch_rows(self, ended: int | None) -> list[dict[str, Any]]:
        active = self.state().get("active_batches")
        live = (
            {str(k): v for k, v in active.items() if isinstance(v, dict)} if isinstance(active, dict) else {}
        )
        rows = {id_: active_row(id_, fields) for id_, fields in live.items()}
        folders = [(name, path) for name, path in self._batch_folders() if name not in rows]
        folders.sort()
        for name, path in folders if ended is None else folders[-ended:]:
            row = ended_row(name, path)
            if row is not None:
                rows[name] = row
        return [rows[name] for name in sorted(rows)]

    def _unanswered(self) -> Counter[str]:
        """How many escalations of each batch nobody has answered, by their files: the broker counts them so."""
        found = (one for one in Escalations(self.root).all() if one.get("status") in UNANSWERED)
        return Counter(word(source_of(one).get("batch_id")) for one in found)

    def batch(self, ref: str) -> dict[str, Any]:
        """One batch by its id, or the start of one.

        Raises:
            NotFound: none, or several.
        """
        rows = {row["id"]: row for row in self._batch_rows(ended=0)}
        paths = dict(self._batch_folders())
        names = sorted({*rows, *paths})
        hits = [ref] if ref in names else [n for n in names if len(ref) >= MIN_PREFIX and n.startswith(ref)]
        if len(hits) > 1:
            raise NotFound(f"batch {ref!r} fits {len(hits)}: give more characters")
        if not hits:
            raise NotFound(f"no batch {ref!r} in {self.root}; `rigbus batch list` shows them")
        row = rows.get(hits[0]) or ended_row(hits[0], paths[hits[0]])
        if row is None:
            raise NotFound(f"batch {hits[0]}: its batch.json is not there (yet)")
        return {**row, "escalations": self._unanswered()[hits[0]]}

    def batch_folder(self, id_: str) -> Path | None:
        """``plans/<plan>/batches/<id>`` of a batch, by its whole id; None where there is none."""
        return next((path for name, path in self._batch_folders() if name == id_), None)

    def _batch_folders(self) -> Iterator[tuple[str, Path]]:
        for plan in self._plan_folders(self.root / "plans", PLAN_DEPTH):
            for folder in _folders(plan / "batches"):
                yield folder.name, Path(folder.path)

    def _plan_folders(self, folder: Path, depth: int) -> Iterator[Path]:
        """Plans lie in ``plans/`` or, where people group them, deeper down; not below other plans."""
        for entry in _folders(folder):
            path = Path(entry.path)
            if (path / "batches").is_dir():
                yield path
            elif depth > 1:
                yield from self._plan_folders(path, depth - 1)

    # -- tasks -----------------------------------------------------------------------------------------------

    def tasks(self, batch: str | None = None) -> list[dict[str, Any]]:
        """Every task in the lanes, oldest first; of one batch also those that were archived."""
        out: dict[str, dict[str, Any]] = {}
        folders = [(lane, self.root / lane) for lane in LANES]
        if batch is not None and "/" not in batch:
            # First, so that a task which runs anew is shown as it is now.
            folders = [(lane, self.root / ARCHIVE / batch / Path(lane).name) for lane in _ARCHIVED] + folders
        for lane, folder in folders:
            for entry in _entries(folder):
                row = task_row(lane, Path(entry.path)) if entry.name.endswith(".json") else None
                if row is not None and batch in (None, row["batch"]):
                    out[row["id"]] = (
                        row  # a task that moves is in two lanes for a moment: the later one counts
                    )
        return sorted(out.values(), key=lambda r: (r["created_at"] or 0.0, r["name"]))

    def task(self, ref: str) -> dict[str, Any]:
        """One task by its id, the start of one, or ``BATCH/NAME``; archived ones too.

        Raises:
            NotFound: none, or several.
        """
        batch, slash, name = ref.partition("/")
        if slash:
            id_ = self.batch(batch)["id"]
            found = {r["id"]: r for r in self.tasks(id_) if r["name"] == name}
        else:
            found = self._by_id([(lane, self.root / lane) for lane in LANES], ref)
            found = found or self._by_id(self._archives(), ref)
        if len(found) > 1:
            raise NotFound(f"task {ref!r} fits {len(found)}: give more characters")
        if not found:
            raise NotFound(f"no task {ref!r} in {self.root}; `rigbus task list` shows them")
        return next(iter(found.values()))

    @staticmethod
    def _by_id(folders: list[tuple[str, Path]], ref: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for lane, folder in folders:
            for entry in _entries(folder):
                stem = entry.name.removesuffix(".json")
                if stem == ref or (len(ref) >= MIN_PREFIX and stem.startswith(ref)):
                    row = task_row(lane, Path(entry.path))
                    if row is not None:
                        found[row["id"]] = row
        return found

    def _archives(self) -> list[tuple[str, Path]]:
        batches = [Path(entry.path) for entry in _folders(self.root / ARCHIVE)]
        return [(lane, batch / Path(lane).name) for batch in batches for lane in _ARCHIVED]

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
                if not entry.is_file(follow_symlinks=False):
                    continue
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
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                out.append(value)
        return out[-count:]

    def must_be_fresh(self, now: float) -> None:
        """Refuse news that is too old to be believed.

        Raises:
            Unreachable: the bridge has not renewed its files for as long as they say, or was stopped.
        """
        if self.state().get("status") == "stopped":
            raise Unreachable(f"{self.root}: the rig was stopped; start it with `rigbus up`")
        age_s = self.stale_for(now)
        if age_s == float("inf"):
            raise Unreachable(f"{self.root}: no rig has written here yet; start one with `rigbus up`")
        if age_s is not None:
            raise Unreachable(
                f"{self.root}: stale: the rig's last sign is {age_s:.0f} s old; see whether it is up, and the "
                "mount and the clocks of both machines"
            )


def is_silent(root: Path) -> bool:
    """Whether no rig answers there: its news is older than may be believed, or there is none."""
    folder = Folder(root)
    return folder.stale_for(folder.now()) is not None


@cache
def _clock_of(root: Path) -> RigClock:
    """One a process: what was found out by waiting need not be found out again."""
    return RigClock(Folder(root).stamps, talk)


def _file_name(key: str) -> str:
    """How a task's key stands in the name of its log (``agents/attempts/values.py`` writes it so)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else _escape(c) for c in key)
    return f"%2E{plain[1:]}" if plain.startswith(".") else plain


def _escape(char: str) -> str:
    return "".join(f"%{b:02X}" for b in char.encode("utf-8", "replace"))


def _stamp(file: Path) -> tuple[float, float] | None:
    """(as of when, for how many seconds that may be believed) a mirrored snapshot is; by its mtime where it is silent."""
    fields, mtime = json_object(file), _mtime(file)
    if fields is None or mtime is None:
        return None
    limit = number(fields.get("stale_after_s")) or 0.0
    return _moment(mtime, unix(fields.get("as_of"))), limit if limit > 0 else STALE_S


def _moment(mtime: float, as_of: float | None) -> float:
    """When a file was so. Its mtime is that moment; ``as_of`` is naive local time of the rig, whose zone may be another
    than ours. A copy without its times, or a touched file, is as old as it says."""
    apart = 0.0 if as_of is None else mtime - as_of
    zone = round(apart / ZONE_STEP_S) * ZONE_STEP_S
    return (
        mtime if as_of is None or (abs(apart - zone) < 2 and abs(zone) <= ZONE_MAX_S) else min(mtime, as_of)
    )


def _mtime(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [e for e in found if not e.name.startswith(".")]
    except OSError:
        return []


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [e for e in _entries(folder) if e.is_dir(follow_symlinks=False)]
