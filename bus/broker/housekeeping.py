"""Removes what forgotten batches left in the state folder: one thread of the broker, without database and sockets.

Laws: only below the rig's own folders, by names that the broker gave, never through a link. A result file or staged
plan may be taken up again by its content at the very moment when its last holder goes: it is removed only when it has
rested for a while, it is asked again whether somebody holds it, and it is first renamed, so that a taker sees all of
it or nothing. What a crash leaves here is found at the next start.
"""

from __future__ import annotations

import heapq
import logging
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from ..paths import RigPaths, log_path
from .leftovers import Gone, Holdings

log = logging.getLogger(__name__)

REST_S: Final = 600.0  #: since a file named by its content was last made, or taken up again
ORPHAN_S: Final = 86_400.0  #: age of what nobody is known to have left, at a start
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_DOOMED: Final = ".gone-"
_END_S: Final = 1.0

Job = Callable[[], None]


class Housekeeper:
    """The thread. :meth:`take` and :meth:`close` are for the broker's."""

    def __init__(
        self,
        paths: RigPaths,
        holdings: Holdings,
        *,
        rest_s: float = REST_S,
        orphan_s: float = ORPHAN_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._paths = paths
        self._holdings = holdings
        self._rest_s = rest_s
        self._orphan_s = orphan_s
        self._wall = wall
        self._jobs: queue.SimpleQueue[Gone | None] = queue.SimpleQueue()
        self._later: list[tuple[float, int, Job]] = []
        self._n = 0
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier broker did not get to."""
        self._thread.start()

    def take(self, gone: Gone) -> None:
        """See to these."""
        if gone:
            self._jobs.put(gone)

    def close(self) -> None:
        """End soon; what is not done is found again at the next start."""
        self._ending = True
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(_END_S)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._guarded(self.sweep)
        while not self._ending:
            wait = self._later[0][0] - time.monotonic() if self._later else None
            try:
                gone = self._jobs.get(timeout=None if wait is None else max(0.0, wait))
            except queue.Empty:
                self._guarded(heapq.heappop(self._later)[2])
                continue
            if gone is not None:
                self._guarded(partial(self.remove, gone))

    def _guarded(self, job: Job) -> None:
        try:
            job()
        except OSError as e:
            log.warning("left where it is: %s", e)

    def remove(self, gone: Gone) -> None:
        """Remove folders and logs now, what is named by its content after its rest."""
        for name in gone.folders:
            self._remove(self._paths.logs / name)
        for name in gone.views:
            self._remove(self._paths.views / name)
        for batch, key, attempts in gone.logs:
            for n in range(1, attempts + 1):
                with suppress(FileNotFoundError):
                    log_path(self._paths.logs, batch, key, n).unlink()
        for sha in gone.results:
            self._after_rest(self._result(sha), partial(self._holdings.has_result, sha))
        for sha in gone.plans:
            self._after_rest(self._plan(sha), partial(self._holdings.has_plan, sha))

    def sweep(self) -> None:
        """What is of no batch that is known, and old: a broker ended before it was removed."""
        oldest = self._wall() - self._orphan_s
        for entry in _folders(self._paths.logs):
            if not self._holdings.has_folder(entry.name) and _changed_at(entry) < oldest:
                self._remove(Path(entry.path))
        for entry in _folders(self._paths.views):
            if not self._holdings.has_view(entry.name) and _changed_at(entry) < oldest:
                self._remove(Path(entry.path))
        for entry in _folders(self._paths.staged):
            if entry.name.startswith(_DOOMED):
                self._remove(Path(entry.path))
            elif not self._holdings.has_plan(entry.name) and _changed_at(entry) < oldest:
                sha = entry.name
                self._forget(self._plan(sha), partial(self._holdings.has_plan, sha), self._orphan_s)
        for shelf in _folders(self._paths.results):
            for entry in _entries(Path(shelf.path)):
                sha = entry.name
                if sha.startswith((_DOOMED, ".tmp-")):
                    if _changed_at(entry) < oldest:
                        self._remove(Path(entry.path))
                elif not self._holdings.has_result(sha) and _changed_at(entry) < oldest:
                    self._forget(self._result(sha), partial(self._holdings.has_result, sha), self._orphan_s)

    def _result(self, sha: str) -> Path | None:
        return self._paths.results / sha[:2] / sha if _HEX64.fullmatch(sha) else None

    def _plan(self, sha: str) -> Path | None:
        return self._paths.staged / sha if _HEX64.fullmatch(sha) else None

    def _after_rest(self, path: Path | None, is_held: Callable[[], bool]) -> None:
        if path is None or not path.exists():
            return
        rested = self._wall() - path.stat(follow_symlinks=False).st_mtime
        self._n += 1
        due = time.monotonic() + max(0.0, self._rest_s - rested)
        heapq.heappush(self._later, (due, self._n, lambda: self._forget(path, is_held, self._rest_s)))

    def _forget(self, path: Path | None, is_held: Callable[[], bool], rest_s: float) -> None:
        """Remove a file or folder that is named by its content, unless somebody has taken it up again."""
        if path is None or is_held():
            return
        doomed = path.with_name(f"{_DOOMED}{path.name}")
        try:
            os.rename(path, doomed)
        except FileNotFoundError:
            return
        taken_up = self._wall() - doomed.stat(follow_symlinks=False).st_mtime < rest_s
        if (is_held() or taken_up) and not path.exists():
            os.rename(doomed, path)
            if not is_held():
                self._after_rest(path, is_held)
            return
        self._remove(doomed)

    @staticmethod
    def _remove(path: Path) -> None:
        """A file, or a tree with read-only folders in it; a link goes, not what it leads to."""
        try:
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
                return
            for folder, _, _ in os.walk(path):
                os.chmod(folder, 0o700)
            shutil.rmtree(path)
        except OSError as e:  # the others go on; this is found again at the next start
            log.warning("%s is left where it is: %s", path, e)


def has_entries(folder: Path) -> bool:
    """Whether there is anything in it."""
    return next(_entries(folder), None) is not None


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except FileNotFoundError:
        return


def _folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    return (entry for entry in _entries(folder) if entry.is_dir(follow_symlinks=False))


def _changed_at(entry: os.DirEntry[str]) -> float:
    return entry.stat(follow_symlinks=False).st_mtime
