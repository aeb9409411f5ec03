"""The rig beside the cards: which worker has which card, and what it runs. A rig that is silent is no error here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..agents.process.tree import read_proc
from ..bus.errors import Refused, RigbusError, Unreachable
from .common import talk
from .files import Folder
from .reach import Reach, reach, reach_bus

AGAIN_S: Final = 10.0
_DEEP: Final = 64  #: ancestors of a process that are looked at


@dataclass(frozen=True, slots=True)
class RigNow:
    """``workers`` are rows of a status; ``running`` is a worker's tasks, ``{id, name, elapsed_s}``."""

    workers: Sequence[Mapping[str, Any]] = ()
    running: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def worker_of(self, pid: int) -> str | None:
        """The worker that has started a process of this machine; None for somebody else's."""
        by_pid = {w["pid"]: str(w["id"]) for w in self.workers if isinstance(w.get("pid"), int)}
        for _ in range(_DEEP):
            if pid in by_pid:
                return by_pid[pid]
            proc = read_proc(pid) if pid > 1 else None
            if proc is None:
                return None
            pid = proc.ppid
        return None


class RigEye:
    """Looks at the rig whenever asked; one that does not answer is tried again every ten seconds."""

    def __init__(self, state: Path | None, shared: Path | None, config: Path | None, *, folder: bool) -> None:
        """``folder``: a shared folder will do where no broker answers."""
        self._where = (state, shared, config)
        self._folder = folder
        self._rig: Reach | None = None
        self._again_at = 0.0
        self.why_not = ""  #: why it said nothing, the first time

    def __enter__(self) -> RigEye:
        return self

    def __exit__(self, *exc: object) -> None:
        self._let_go()

    def look(self) -> RigNow | None:
        """What the rig says now; None when it says nothing.

        Raises:
            ConfigError: the rig's folders are unusable.
        """
        if self._rig is None and time.monotonic() < self._again_at:
            return None
        try:
            if self._rig is None:
                state, shared, config = self._where
                self._rig = reach(state, shared, config) if self._folder else reach_bus(state, config)
            return _now(self._rig)
        except (Unreachable, Refused) as e:
            self._silent(str(e))
        return None

    def _silent(self, why: str) -> None:
        self._let_go()
        self._again_at = time.monotonic() + AGAIN_S
        if not self.why_not:
            self.why_not = why.partition(";")[0]
            if not self._folder:
                talk(f"cards only, without their tasks: {self.why_not}")

    def _let_go(self) -> None:
        if self._rig is not None:
            with suppress(RigbusError):
                self._rig.__exit__()
            self._rig = None


def _now(rig: Reach) -> RigNow:
    if rig.client is None:
        folder = Folder(rig.paths.shared)
        at = folder.now()
        by_worker: dict[str, list[dict[str, Any]]] = {}
        for task in folder.tasks():
            if task["state"] == "leased":
                begun = task["started_at"]
                elapsed_s = max(0.0, at - begun) if begun else None
                row = {"id": task["id"], "name": task["name"], "elapsed_s": elapsed_s}
                by_worker.setdefault(str(task["worker"]), []).append(row)
        return RigNow(folder.workers(at), by_worker)
    workers = rig.client.query("status")["workers"]
    running = {str(w["id"]): _running(w.get("telemetry")) for w in workers}
    return RigNow(workers, running)


def _running(beat: Any) -> list[dict[str, Any]]:
    rows = beat.get("running") if isinstance(beat, Mapping) else None
    return [
        {key: row.get(key) for key in ("id", "name", "elapsed_s")}
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, Mapping)
    ]
