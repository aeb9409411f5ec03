"""What stands in the task lanes, and the operations that bring it to what should stand there. Pure.

Only files of tasks that the broker knows are ever counted, moved or removed: anything else in a lane is somebody's.
A lane of ended tasks stays short: its oldest files move to ``tasks/archive/`` and are forgotten here.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..contract.layout import COMPLETE, FAILED, LANES, QUEUE, File, archived
from ..share.ops import Entry, Op, Result, rename, unlink, write

KEPT: Final = 2000  #: files of ended tasks in each of their two lanes
KEPT_S: Final = 7 * 86400.0  #: and for so long
_SLACK: Final = 100  #: so that not every new file archives an old one
_AT_ONCE: Final = 2000  #: files archived in one go
_UNREAD: Final = "?"  #: stands for the content of a file that nobody has looked at
_CLOSE_NS: Final = 2_000_000_000  #: some file systems keep times to two seconds

Known = tuple[int, int]  #: size and mtime_ns
Author = Callable[[str], Known | None]  #: path -> what its author left there


def nobody(path: str) -> Known | None:
    """No author has left a file there."""
    return None


def id_of(path: str) -> str:
    """The file id in ``<lane>/<id>.json``."""
    return path.rpartition("/")[2].removesuffix(".json")


def lane_files(lane: str, entries: Iterable[Entry]) -> dict[str, Known]:
    """Path -> size and mtime of the task files in a lane's listing; locks, sidecars, hidden and foreign things are
    left out."""
    return {
        f"{lane}/{e.path}": (e.size, e.mtime_ns)
        for e in entries
        if e.type == "file"
        and e.path.endswith(".json")
        and not e.path.startswith(".")
        and not e.path.endswith(".heartbeat.json")
    }


@dataclass(slots=True)
class _Stand:
    same: str
    known: Known | None
    batch: str = ""


@dataclass(slots=True)
class Page:
    """What a page of a lane's listing shows: ``lost`` and ``altered`` paths, and ``strays``: files of a known task in a
    lane where it is not."""

    lost: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


class Lanes:
    """The files of known tasks. ``kept`` and ``kept_s`` bound those of ended ones, by the time of their end; ``author``
    tells of a task's file that its author wrote and that the mirror is to replace; ``strays`` are somebody's edits that are
    to be read before anything is drawn over them."""

    def __init__(
        self,
        kept: int = KEPT,
        kept_s: float = KEPT_S,
        author: Author = nobody,
        strays: Container[str] = (),
    ) -> None:
        self._author, self._strays = author, strays
        self._kept, self._kept_ns = kept, round(kept_s * 1e9)
        self._standing: dict[str, _Stand] = {}
        self._paths: dict[str, list[str]] = {}
        self._tasks: dict[str, str] = {}  #: file id -> task id, where they differ
        self._ended: dict[str, dict[str, int]] = {COMPLETE: {}, FAILED: {}}
        self._drawing: dict[str, File] = {}

    def __len__(self) -> int:
        return len(self._standing)

    def paths(self, name: str) -> list[str]:
        """Where the file ``name`` stands; two places after a crash in the middle of a move."""
        return list(self._paths.get(name, ()))

    def stands(self, path: str) -> bool:
        """The mirror keeps a file at this path."""
        return path in self._standing

    def task_of(self, path: str) -> str:
        """The id of the task whose file stands at ``path``."""
        return self._tasks.get(id_of(path), id_of(path))

    def batch_of(self, path: str) -> str:
        """The batch of the task whose file stands at ``path``."""
        stand = self._standing.get(path)
        return stand.batch if stand else ""

    def adopt(self, path: str, known: Known, batch: str, task: str) -> None:
        """A file of a known task was found; its content is taken to be what its mtime says."""
        self._enter(path, _Stand(_UNREAD, known, batch), known[1])
        if task != id_of(path):
            self._tasks[id_of(path)] = task

    def ops(self, wanted: Mapping[str, File]) -> list[Op]:
        """Write each task's file (task id -> file) where it belongs and nowhere else.

        A task that changed its lane is one operation: the new file is written, then the old one unlinked. The other
        order would show it nowhere to a reader in between, and a disk that is full would lose it.
        """
        out: list[Op] = []
        for task, file in wanted.items():
            name = id_of(file.path)
            if task != name:
                self._tasks[name] = task
            stands = self._standing.get(file.path)
            others = [path for path in self._paths.get(name, ()) if path != file.path]
            if stands is not None and stands.same == file.same:
                out += [unlink(path, only_sealed=True) for path in others]
                continue
            first = others[0] if others else ""
            keep = {path: self._known(path) for path in (file.path, first) if path}
            if file.taken and stands is None and not others:
                first = f"{QUEUE}/{name}.json"
                if first == file.path or first in self._strays:
                    first = ""
                # Its author's own file stood in the queue until now; what he has put there since is not lost.
                keep = {path: self._known(path) for path in (file.path, first) if path}
            self._drawing[file.path] = file
            out.append(write(file.path, file.data, mtime_ns=file.mtime_ns, replaces=first, keep=keep))
            out += [unlink(path, only_sealed=True) for path in others[1:]]
        return out

    def done(self, ops: Sequence[Op], results: Sequence[Result]) -> list[str]:
        """Enter what was done; the paths where it was not."""
        failed: list[str] = []
        for op, result in zip(ops, results, strict=True):
            path = op["path"]
            file = self._drawing.pop(path, None) if op["op"] == "write" else None
            if not result["ok"] and not (op["op"] == "rename" and result["errno"] == "ENOENT"):
                failed.append(path)
            elif file is not None:
                known = (result["size"], result["mtime_ns"])
                self._enter(path, _Stand(file.same, known, file.batch), file.mtime_ns)
                if op["replaces"]:
                    self._leave(op["replaces"])
            else:
                self._leave(path)
        return failed

    def over(self, now_ns: int) -> list[Op]:
        """The move into the archive of the oldest files of ended tasks: of those too old, and once a lane holds too
        many. ``now_ns`` is wall clock."""
        out: list[Op] = []
        for files in self._ended.values():
            too_many = len(files) - self._kept if len(files) > self._kept + _SLACK else 0
            oldest = min(files.values(), default=now_ns)
            if not too_many and oldest >= now_ns - self._kept_ns:
                continue
            in_order = sorted(files, key=files.__getitem__)
            too_old = bisect.bisect_left([files[path] for path in in_order], now_ns - self._kept_ns)
            chosen = in_order[: max(too_many, too_old)][:_AT_ONCE]
            out += [rename(path, archived(self.batch_of(path), path), replace=True) for path in chosen]
        return out

    # -- comparing with what stands --------------------------------------------------------------------------

    def names(self, lane: str) -> list[str]:
        """The sorted paths that should stand in a lane."""
        return sorted(path for path in self._standing if path.startswith(lane + "/"))

    def compare(self, expected: Sequence[str], after: str, until: str, there: Mapping[str, Known]) -> Page:
        """One page of a listing: ``there`` are the lane's files with ``after`` < path <= ``until`` (both empty: to the
        ends); ``expected`` is what :meth:`names` said before the listing began."""
        low = bisect.bisect_right(expected, after) if after else 0
        high = bisect.bisect_right(expected, until) if until else len(expected)
        page = Page()
        page.lost = [path for path in expected[low:high] if path in self._standing and path not in there]
        for path, known in there.items():
            stand = self._standing.get(path)
            if stand is None:
                if id_of(path) in self._paths:
                    page.strays.append(path)
            elif stand.known is not None and not _equal(stand.known, known):
                page.altered.append(path)
        return page

    def forget(self, path: str) -> None:
        """It does not stand any more."""
        self._leave(path)

    def doubt(self, path: str) -> None:
        """What stands there is not what was written: the next drawing writes it anew."""
        stand = self._standing.get(path)
        if stand is not None:
            stand.same, stand.known = _UNREAD, None

    def _known(self, path: str) -> Known | None:
        stand = self._standing.get(path)
        return (stand.known if stand else None) or self._author(path)

    def _enter(self, path: str, stand: _Stand, mtime_ns: int) -> None:
        self._standing[path] = stand
        paths = self._paths.setdefault(id_of(path), [])
        if path not in paths:
            paths.append(path)
        ended = self._ended.get(path.rpartition("/")[0])
        if ended is not None:
            ended[path] = mtime_ns

    def _leave(self, path: str) -> None:
        self._standing.pop(path, None)
        name = id_of(path)
        left = [other for other in self._paths.get(name, ()) if other != path]
        if left:
            self._paths[name] = left
        else:
            self._paths.pop(name, None)
            self._tasks.pop(name, None)
        ended = self._ended.get(path.rpartition("/")[0])
        if ended is not None:
            ended.pop(path, None)


def _equal(one: Known, other: Known) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) < _CLOSE_NS


__all__ = ["KEPT", "KEPT_S", "LANES", "Known", "Lanes", "Page", "id_of", "lane_files"]
