"""The step from the brain to whoever is above it: ends of work that it cannot settle are raised (PROTOCOL §8).

An end is raised in the message that settles it here, so in the same commit. What it remembers are only times, of how long
workers have not been in order.
"""

from __future__ import annotations

import logging
from typing import Any, Final, Protocol

from ...bus.errors import NotFound
from . import raising

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0  #: between two looks at the workers
AFTER_S: Final = 60.0
_FULL: Final = 20  #: tasks of a record: more are not shown


class Bus(Protocol):
    """What the brain's process offers to this part of it."""

    def tell(self, header: dict[str, Any]) -> dict[str, Any]:
        """One atomic BRAIN message; the broker's answer."""

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        """The header of QUERY's answer."""

    def batch_row(self, batch_id: str) -> dict[str, Any]:
        """A batch as QUERY shows it."""

    def workers(self) -> list[dict[str, Any]]:
        """The workers as QUERY shows them."""


class Escalating:
    """Raises. Times are monotonic seconds."""

    def __init__(self, bus: Bus, after_s: float = AFTER_S) -> None:
        self._bus, self._after_s = bus, after_s
        self._looked_at: float | None = None
        self._bad_since: float | None = None
        self._good_since: float | None = None
        self._settled = False

    # -- ends of work ----------------------------------------------------------------------------------------

    def of_plan(self, batch: str, error: str) -> list[dict[str, Any]]:
        """What to raise with the end of a batch that cannot be planned; nothing for one that is no plan's, or gone."""
        try:
            row = self._bus.batch_row(batch)
        except NotFound:
            return []
        return [raising.of_plan(row, error)] if row["kind"] == "plan" else []

    def of_task(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """What to raise for a task that ended so; nothing where it is no matter for others."""
        if row["state"] != "dead" or row.get("dropped") or row.get("call"):
            return []  # a call that failed is for the handler that has made it
        if (row.get("meta") or {}).get("on_failure") == "continue":
            return []  # its plan says what follows: whoever wrote it wants no answer
        try:
            known = self._bus.query("escalations", batch=row["batch"], open=True)["escalations"]
            cause = raising.probable_cause(row)
            if any(
                r["cause"] == cause and r["status"] != "answered" and len(r["tasks"]) >= _FULL for r in known
            ):
                return []  # it says enough; a list of ten thousand dead tasks is one question
            attempts = self._bus.query("task", id=row["id"])["attempts"]
        except NotFound:
            return []
        return [raising.of_task(row, attempts)]

    # -- workers ---------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Another session: what was seen before says nothing."""
        self._looked_at = self._bad_since = self._good_since = None
        self._settled = False

    def due(self, now: float) -> bool:
        """Whether it is time to look at the workers. The first look is a while after the start, when they are there."""
        if self._looked_at is None:
            self._looked_at = now
        return now - self._looked_at >= min(LOOK_S, self._after_s)

    def look(self, now: float) -> None:
        """Raise that no worker is in order, once, or settle it when one is again; both after a while."""
        self._looked_at = now
        rows = self._bus.workers()
        if raising.some_well(rows):
            self._bad_since = None
            self._good_since = now if self._good_since is None else self._good_since
            if not self._settled and now - self._good_since >= self._after_s:
                self._settle(rows)
            return
        self._good_since = None
        if not raising.all_unwell(rows):
            self._bad_since = None
            return
        self._bad_since = now if self._bad_since is None else self._bad_since
        if now - self._bad_since >= self._after_s:
            self._raise(rows)

    def _settle(self, rows: list[dict[str, Any]]) -> None:
        well = next(w["id"] for w in raising.plan_workers(rows) if raising.some_well([w]))
        found = [
            r for r in self._of_rig() if r["cause"] == raising.WORKERS and r["status"] in ("pending", "human")
        ]
        if found:
            self._bus.tell({"settle": [{"id": r["id"], "note": f"{well} is in order again"} for r in found]})
        self._settled = True

    def _raise(self, rows: list[dict[str, Any]]) -> None:
        self._settled = False
        past = self._of_rig()
        if any(r["cause"] == raising.WORKERS and r["status"] not in ("applied", "closed") for r in past):
            return
        ready = int(self._bus.query("status")["tasks"].get("ready") or 0)
        if ready:
            one = raising.of_workers(rows, ready, past)
            log.warning("escalated: %s", one["title"])
            self._bus.tell({"escalate": [one]})

    def _of_rig(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor: int | None = None
        while True:
            page = self._bus.query("escalations", batch="", cursor=cursor)
            found += page["escalations"]
            cursor = page["cursor"]
            if cursor is None:
                return found
