"""The files of the mirror that stand in no lane: the rig's state, batches, workers. Pure.

Each is kept here as it was drawn last, so that one which somebody removes or alters can be written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .lanes import Known
from .layout import File
from .ops import Entry, Op, Result, write

REMEMBERED: Final = 3000  #: files; of more, the longest unchanged are not looked after


@dataclass(slots=True)
class _Stand:
    file: File
    known: Known | None
    drawn_at: float


class Others:
    """What stands, and what is to be written. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._standing: dict[str, _Stand] = {}
        self._wanted: dict[str, File] = {}
        self._failed: dict[str, File] = {}
        self.changed = 0  #: files that were written because their content is another one

    def unseen(self) -> list[str]:
        """What is wanted, and nobody has looked whether it stands already."""
        return [path for path in self._wanted if path not in self._standing]

    def adopt(self, path: str, entry: Entry | None, now: float) -> None:
        """``entry`` stands there: left as it is where size and time say that it is the very file."""
        file = self._wanted[path]
        if entry is not None and (entry.size, entry.mtime_ns) == (len(file.data), file.mtime_ns):
            self._standing[path] = _Stand(file, (entry.size, entry.mtime_ns), now)
            del self._wanted[path]

    def want(self, file: File, now: float, refresh_s: float | None = None) -> None:
        """This is how the file should be. An unchanged one is written only when its stamps are ``refresh_s`` old."""
        stand = self._standing.get(file.path)
        self._failed.pop(file.path, None)
        same = stand is not None and stand.known is not None and stand.file.same == file.same
        if same and (refresh_s is None or (stand is not None and now - stand.drawn_at < refresh_s)):
            self._wanted.pop(file.path, None)
        else:
            self._wanted[file.path] = file

    def waiting(self) -> bool:
        """There is something to write."""
        return bool(self._wanted)

    def ops(self) -> list[Op]:
        """Write what is wanted."""
        out = []
        for path, file in self._wanted.items():
            stand = self._standing.get(path)
            known = stand.known if stand else None
            out.append(write(path, file.data, mtime_ns=file.mtime_ns, keep={path: known}))
        return out

    def done(self, ops: Sequence[Op], results: Sequence[Result], now: float) -> None:
        """Enter what was done; what was not waits for :meth:`again`."""
        for op, result in zip(ops, results, strict=True):
            file = self._wanted.pop(op["path"])
            if not result["ok"]:
                self._failed[file.path] = file
                continue
            stand = self._standing.pop(file.path, None)
            if stand is None or stand.file.same != file.same:
                self.changed += "heartbeat" not in file.path
            self._standing[file.path] = _Stand(file, (result["size"], result["mtime_ns"]), now)
        while len(self._standing) > REMEMBERED:
            del self._standing[next(iter(self._standing))]

    def again(self) -> None:
        """What could not be written is wanted once more."""
        self._wanted = {**self._failed, **self._wanted}
        self._failed.clear()

    def paths(self) -> list[str]:
        """What should stand."""
        return list(self._standing)

    def compare(self, path: str, entry: Entry | None) -> None:
        """``entry`` is what stands at ``path``: anything else than what was written is written anew."""
        stand = self._standing.get(path)
        if stand is None or path in self._wanted:
            return
        if entry is None or entry.type != "file" or (entry.size, entry.mtime_ns) != stand.known:
            stand.known = None
            self._wanted[path] = stand.file
