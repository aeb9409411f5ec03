"""What stands in the task lanes, and the operations that bring it to what should stand there. Pure.

Only files of tasks that the broker knows are ever counted, moved or removed: anything else in a lane is somebody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from .layout import COMPLETE, FAILED, LANES, File, acknowledge, diff
from .ops import Entry, Op, Result, unlink

KEPT: Final = 2000  #: files of ended tasks in each of their two lanes
_SLACK: Final = 100  #: so that not every new file removes an old one
_UNREAD: Final = "?"  #: the digest of a file that stands there with a content that nobody has looked at


def id_of(path: str) -> str:
    """The task id in ``<lane>/<id>.json``."""
    return path.rpartition("/")[2].removesuffix(".json")


def lane_files(lane: str, entries: Iterable[Entry]) -> dict[str, int]:
    """Path -> mtime of the task files in a lane's listing; locks, sidecars, hidden and foreign things are left out."""
    return {
        f"{lane}/{e.path}": e.mtime_ns
        for e in entries
        if e.type == "file"
        and e.path.endswith(".json")
        and not e.path.startswith(".")
        and not e.path.endswith(".heartbeat.json")
    }


class Lanes:
    """The files of known tasks. ``kept`` bounds those of ended ones, by the time of their end."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._standing: dict[str, str] = {}
        self._paths: dict[str, list[str]] = {}
        self._ended: dict[str, dict[str, int]] = {COMPLETE: {}, FAILED: {}}

    def __len__(self) -> int:
        return len(self._standing)

    def paths(self, task: str) -> list[str]:
        """Where the task's file stands; two places after a crash in the middle of a move."""
        return list(self._paths.get(task, ()))

    def adopt(self, path: str, mtime_ns: int) -> None:
        """A file of a known task was found; its content is taken to be what its mtime says."""
        self._enter(path, _UNREAD, mtime_ns)

    def ops(self, wanted: Mapping[str, File]) -> list[Op]:
        """Write each task's file (task id -> file) where it belongs and nowhere else."""
        out: list[Op] = []
        for task, file in wanted.items():
            stands = {path: self._standing[path] for path in self._paths.get(task, ())}
            out += diff(stands, {file.path: file})
        return out

    def done(self, ops: Sequence[Op], results: Sequence[Result]) -> list[str]:
        """Enter what was done; the ids of the tasks whose operation was not."""
        failed: list[str] = []
        for op, result in zip(ops, results, strict=True):
            acknowledge(self._standing, [op], [result])
            if not result["ok"]:
                failed.append(id_of(op["path"]))
            elif op["op"] == "write":
                self._enter(op["path"], self._standing[op["path"]], op.get("mtime_ns", 0))
                if op["replaces"]:
                    self._leave(op["replaces"])
            else:
                self._leave(op["path"])
        return failed

    def over(self) -> list[Op]:
        """The removal of the oldest files of ended tasks, once a lane holds too many."""
        out: list[Op] = []
        for files in self._ended.values():
            if len(files) > self._kept + _SLACK:
                oldest = sorted(files, key=files.__getitem__)[: len(files) - self._kept]
                out += [unlink(path) for path in oldest]
        return out

    def lost(self, there: Mapping[str, int]) -> list[str]:
        """Tasks whose file is not among those ``there`` (path -> mtime, of all lanes): somebody removed it."""
        gone = [path for path in self._standing if path not in there]
        for path in gone:
            self._leave(path)
        return list(dict.fromkeys(id_of(path) for path in gone))

    def _enter(self, path: str, digest: str, mtime_ns: int) -> None:
        self._standing[path] = digest
        paths = self._paths.setdefault(id_of(path), [])
        if path not in paths:
            paths.append(path)
        ended = self._ended.get(path.rpartition("/")[0])
        if ended is not None:
            ended[path] = mtime_ns

    def _leave(self, path: str) -> None:
        self._standing.pop(path, None)
        task = id_of(path)
        left = [other for other in self._paths.get(task, ()) if other != path]
        if left:
            self._paths[task] = left
        else:
            self._paths.pop(task, None)
        ended = self._ended.get(path.rpartition("/")[0])
        if ended is not None:
            ended.pop(path, None)


__all__ = ["KEPT", "LANES", "Lanes", "id_of", "lane_files"]
