"""The catalogue of a rig's settings, as placement sees it, and the files of its models, looked at again and again."""

from __future__ import annotations

import logging
import os
import queue
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..models.catalogue import entries
from ..models.catalogue.catalogue import Catalogue
from .placing import Entry

log = logging.getLogger(__name__)

FILES_LOOK_S: Final = 2.0
Placeable = tuple[dict[str, Entry], str]


def placeable(catalogue: Catalogue) -> Placeable:
    """Every model by its name, and the one that is meant where a task names none ("": the least that will do).

    ``catalogue``: one that knows what the models' files say.
    """
    judged = any(e.role == "brain" for e in catalogue)
    found = {
        e.name: Entry(
            name=e.name,
            spec=_spec(catalogue, e) | {"brain_elsewhere": judged and e.role != "brain"},
            tier=e.tier,
            placement=e.placement,
            role=e.role,
            pinned=e.pinned,
            load_s=catalogue.load_s(e, *(e.split or ("0",))),
            vram_mb=e.vram_mb,
            vram_source=e.vram_source,
            problem=e.problem,
        )
        for e in catalogue
    }
    usable = [found[e.name] for e in catalogue if not e.problem]
    workers = [e for e in usable if e.role == "worker"] or usable
    least = min(workers, key=lambda e: (e.tier, e.vram_mb, e.name), default=None)
    return found, catalogue.default or (least.name if least is not None else "")


def _spec(catalogue: Catalogue, entry: entries.Entry) -> dict[str, Any]:
    also = catalogue.also(entry)
    return entry.to_map() | ({"also": list(also)} if also else {})


class ModelFiles:
    """Looks every ``FILES_LOOK_S`` whether the models' files are as they were, in a thread: a disk that hangs holds up nobody.

    ``looked_at``: when the last look that has ended began, in the seconds of :meth:`look`'s ``now``.
    """

    def __init__(self, catalogue: Catalogue, state: Path | None) -> None:
        self._marks = {e.name: _mark(e) for e in catalogue}  # before it is read: a change meanwhile is seen
        self.catalogue = catalogue.probed(state)
        self.looked_at = -FILES_LOOK_S
        self._state = state
        self._begun_at = self.looked_at
        self._thread: threading.Thread | None = None
        self._found: queue.SimpleQueue[Catalogue] = queue.SimpleQueue()

    def look(self, now: float) -> Placeable | None:
        """What is different since the last call; None: nothing. Never waits."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread, self.looked_at = None, self._begun_at
        elif now >= self._begun_at + FILES_LOOK_S and self._marks:
            self._begun_at = now
            self._thread = threading.Thread(target=self._read, name="rigbus-models", daemon=True)
            self._thread.start()
            return None
        if self._found.empty():
            return None
        before, self.catalogue = self.catalogue, self._found.get()
        for entry in self.catalogue:
            was = before.entries[entry.name].problem
            if entry.problem != was:
                log.info("model %s: %s", entry.name, entry.problem or f"can be loaded again (it was: {was})")
        return placeable(self.catalogue)

    def _read(self) -> None:
        """The thread's: only it touches the marks."""
        known = self.catalogue
        found = dict(known.entries)
        for entry in known:
            mark = _mark(entry)
            # a part of a model may be missing beside its first one, which then has not changed
            if entry.local and (entry.problem or mark != self._marks[entry.name]):
                self._marks[entry.name] = mark
                given = entry if entry.vram_source == "config" else replace(entry, vram_mb=0)
                found[entry.name] = entries.probed(replace(given, problem=""), self._state)
        if found != dict(known.entries):
            self._found.put(replace(known, entries=found))


def _mark(entry: entries.Entry) -> tuple[int, ...] | None:
    """By which a change of its file shows; None where there is none."""
    try:
        seen = os.stat(entry.path or "")
    except (OSError, ValueError):
        return None
    return (seen.st_mtime_ns, seen.st_size, seen.st_ino)
