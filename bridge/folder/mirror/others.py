"""The files of the mirror that stand in no lane: the rig's state, batches, workers. Pure.

Each is kept here as it was drawn last, so that one which somebody removes or alters can be written again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..contract.layout import File
from ..share.ops import Entry, Op, Result, write
from .lanes import Known

log = logging.getLogger(__name__)

REMEMBERED: Final = 3000  #: files; of more, the longest unchanged are not looked after


@dataclass(slots=True)
class _Stand:
    file: File
    known: Known | None
    drawn_at: float
    theirs: Known | None = None  #: somebody's own file, which stays


class Others:
    """What stands, and what is to be written. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._standing: dict[str, _Stand] = {}
        self._wanted: dict[str, File] = {}
        self._writing: dict[str, File] = {}  #: on its way; what is wanted meanwhile is written after it
        self._failed: dict[str, File] = {}
        self.changed = 0  #: files that were written because their content is another one
        #: Files whose edits are looked at before they are written over: path -> the edit that was ([inode, size, mtime_ns]).
        self.guarded: dict[str, list[int]] = {}

    def unseen(self) -> list[str]:
        """What is wanted, and nobody has looked whether it stands already."""
        return [path for path in self._wanted if path not in self._standing]

    def adopt(self, path: str, entry: Entry | None, now: float) -> None:
        """``entry`` stands there: left as it is where size and time say that it is the very file."""
        file = self._wanted.get(path)  # what was forgotten since `unseen` is nobody's
        if (
            file is not None
            and entry is not None
            and (entry.size, entry.mtime_ns) == (len(file.data), file.mtime_ns)
        ):
            self._standing[path] = _Stand(file, (entry.size, entry.mtime_ns), now)
            del self._wanted[path]

    def want(self, file: File, now: float, refresh_s: float | None = None) -> None:
        """This is how the file should be. An unchanged one is written only when its stamps are ``refresh_s`` old."""
        stand = self._standing.get(file.path)
        self._failed.pop(file.path, None)
        stands = stand is not None and (stand.known or stand.theirs) is not None
        same = stands and stand is not None and stand.file.same == file.same
        if file.path in self._writing:
            self._wanted[file.path] = file
        elif same and (refresh_s is None or (stand is not None and now - stand.drawn_at < refresh_s)):
            self._wanted.pop(file.path, None)
        else:
            self._wanted[file.path] = file

    def waiting(self) -> bool:
        """There is something to write."""
        return bool(self._wanted)

    def ops(self) -> list[Op]:
        """Write what is wanted."""
        out = []
        self._writing = dict(self._wanted)
        for path, file in self._wanted.items():
            stand = self._standing.get(path)
            known = stand.known if stand else None
            keep, over = {path: known}, self.guarded.get(path)
            out.append(
                write(path, file.data, mtime_ns=file.mtime_ns, keep=keep, yields=file.yields, over=over)
            )
        return out

    def done(self, ops: Sequence[Op], results: Sequence[Result], now: float) -> None:
        """Enter what was done; what was not waits for :meth:`again`."""
        for op, result in zip(ops, results, strict=True):
            file = self._writing.pop(op["path"], None)
            if file is None:
                continue  # it is not to stand any more
            newer = self._wanted.get(file.path)
            if newer is file:
                del self._wanted[file.path]
            if not result["ok"]:
                if newer is file:
                    self._failed[file.path] = file
                continue
            stand = self._standing.pop(file.path, None)
            if result.get("yielded"):
                if stand is None or stand.theirs is None:
                    log.info("%s is somebody's own file: it is left as it is", file.path)
                theirs = (result["size"], result["mtime_ns"])
                self._standing[file.path] = _Stand(file, None, now, theirs)
                continue
            if stand is None or stand.file.same != file.same:
                self.changed += "heartbeat" not in file.path
            self._standing[file.path] = _Stand(file, (result["size"], result["mtime_ns"]), now)
        while len(self._standing) > REMEMBERED:
            del self._standing[next(iter(self._standing))]

    def again(self) -> None:
        """What could not be written is wanted once more."""
        self._wanted = {**self._failed, **self._wanted}
        self._failed.clear()

    def known(self, path: str) -> Known | None:
        """Size and mtime of what was written there last; None: unknown."""
        stand = self._standing.get(path)
        return stand.known if stand is not None else None

    def release(self, path: str, was: list[int]) -> None:
        """The edit ``was`` of a guarded file is taken in: it may be put aside."""
        self.guarded[path] = was
        if (file := self._failed.pop(path, None)) is not None:
            self._wanted.setdefault(path, file)
        elif (stand := self._standing.get(path)) is not None:
            stand.known = None
            self._wanted.setdefault(path, stand.file)

    def forget(self, path: str) -> None:
        """It is not to stand any more."""
        for kept in (self._standing, self._wanted, self._writing, self._failed):
            kept.pop(path, None)

    def paths(self) -> list[str]:
        """What should stand."""
        return list(self._standing)

    def compare(self, path: str, entry: Entry | None) -> None:
        """``entry`` is what stands at ``path``: anything else than what was written is written anew."""
        stand = self._standing.get(path)
        if stand is None or path in self._wanted:
            return
        if (
            entry is None
            or entry.type != "file"
            or (entry.size, entry.mtime_ns) != (stand.known or stand.theirs)
        ):
            stand.known = stand.theirs = None
            self._wanted[path] = stand.file
