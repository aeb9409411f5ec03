"""The periodic comparison of the mirror with what stands in the share, a slice at a time.

People and scripts remove, edit and copy files there. Each slice is one small batch of the helper, so that a mirror of
10^5 files is compared without anything else waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..contract import layout
from ..loop.flows import Flow, share
from ..share.ops import entries, scan, stat, unlink
from .drawing import Drawing, entry_of
from .lanes import lane_files
from .survey import STATS, archived_already, make_folders

PAGE: Final = 4_000  #: entries of one slice: what waits for it waits a fraction of a second


class Sweep:
    """One comparison after the other. ``lost`` collects the tasks whose file has to be drawn again."""

    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._slices: Iterator[Flow[None]] = iter(())
        self.lost: set[str] = set()

    def begin(self) -> None:
        """The next :meth:`step` is the first of a new comparison."""
        self._slices = self._all()

    def step(self) -> Flow[bool]:
        """The next slice; False when there was none left."""
        for one in self._slices:
            yield from one
            return True
        return False

    def _all(self) -> Iterator[Flow[None]]:
        yield make_folders()
        for lane in layout.LANES:
            pages = _Lane(self._drawing, self.lost, lane)
            while not pages.over:
                yield pages.next()
        others = self._drawing.others.paths()
        for i in range(0, len(others), STATS):
            yield self._others(others[i : i + STATS])
        logs = self._drawing.logs.paths()
        for i in range(0, len(logs), STATS):
            yield self._logs(logs[i : i + STATS])

    def _others(self, paths: list[str]) -> Flow[None]:
        results = yield from share("mirror", [stat(path) for path in paths])
        for path, result in zip(paths, results, strict=True):
            if result["ok"]:
                self._drawing.others.compare(path, entry_of(result))

    def _logs(self, paths: list[str]) -> Flow[None]:
        results = yield from share("mirror", [stat(path) for path in paths])
        for path, result in zip(paths, results, strict=True):
            if result["ok"]:
                self._drawing.logs.compare(path, entry_of(result))


class _Lane:
    """The pages of one lane's listing."""

    def __init__(self, drawing: Drawing, lost: set[str], lane: str) -> None:
        self._drawing, self._lost, self._lane = drawing, lost, lane
        self._expected = drawing.lanes.names(lane)
        self._after = ""
        self.over = False

    def next(self) -> Flow[None]:
        lanes = self._drawing.lanes
        op = scan(self._lane, budget=PAGE, after=self._after)
        (result,) = yield from share("mirror", [op], 30.0)
        if not result["ok"]:
            # ENOENT: somebody removed the folder. Another fault says nothing about the files.
            self.over = True
            if result["errno"] != "ENOENT":
                return
            result = {"entries": [], "next": ""}
        there = lane_files(self._lane, entries(result))
        low, high = (f"{self._lane}/{name}" if name else "" for name in (self._after, result["next"]))
        page = lanes.compare(self._expected, low, high, there)
        self._after = result["next"]
        self.over = self.over or not self._after
        archived = yield from self._archived(page.lost)
        for path in page.lost:
            if path not in archived:
                self._lost.add(lanes.task_of(path))
            lanes.forget(path)
        for path in page.altered:
            lanes.doubt(path)
            self._lost.add(lanes.task_of(path))
        if page.strays:
            yield from self._drawing.remove([unlink(path, only_sealed=True) for path in page.strays])

    def _archived(self, lost: list[str]) -> Flow[set[str]]:
        """Those of ``lost`` that somebody has moved into the archive himself: they stay there."""
        if self._lane not in (layout.COMPLETE, layout.FAILED):
            return set()
        lanes = self._drawing.lanes
        return (yield from archived_already((path, lanes.batch_of(path)) for path in lost))
