"""What the mirror has done and how far it lags behind, for its heartbeat and QUERY `status` (`bridge.mirror`). Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ..share.ops import Op, Result

LAGS: Final = 2_000  #: the newest so many tasks count


class Counts:
    """Since the bridge's start.

    A *change* is one that a reader could see: a task's file that appeared, changed its lane or its content, and a new
    content of ``state.json``, a ``batch.json`` or a ``status.json``. Steps of a task that came and went between two
    looks of the mirror are one change; a heartbeat, refreshed stamps, a healed file and a line of the log are none,
    but count as writes. A lag is the time from the broker's event to its file, in seconds of the rig's wall clock.
    """

    def __init__(self) -> None:
        self.changes = self.writes = self.moves = self.removes = self.conflicts = 0
        self._lags: deque[float] = deque(maxlen=LAGS)

    def done(self, ops: Sequence[Op], results: Sequence[Result]) -> None:
        """One answered batch: each write or append is a write, each rename a move, each removal a remove."""
        for op, result in zip(ops, results, strict=True):
            if not result["ok"]:
                continue
            kind = op["op"]
            if kind in ("write", "append"):
                self.writes += 1
                self.removes += bool(op.get("replaces"))
                self.conflicts += len(result.get("kept", ()))
            elif kind == "rename":
                self.moves += 1
            elif kind == "unlink":
                self.removes += bool(result.get("was"))

    def drawn(self, lags_s: Iterable[float]) -> None:
        """Tasks whose newest event shows now."""
        self._lags.extend(max(0.0, lag) for lag in lags_s)

    def shown(self) -> dict[str, Any]:
        """Plain numbers; ``lag_p50_s`` and ``lag_p99_s`` are 0 before the first task."""
        lags = sorted(self._lags)
        return {
            "changes": self.changes,
            "writes": self.writes,
            "moves": self.moves,
            "removes": self.removes,
            "conflicts": self.conflicts,
            "lag_p50_s": round(lags[len(lags) // 2], 4) if lags else 0.0,
            "lag_p99_s": round(lags[min(len(lags) - 1, len(lags) * 99 // 100)], 4) if lags else 0.0,
        }
