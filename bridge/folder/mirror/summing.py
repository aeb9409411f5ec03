"""When a batch of a plan has ended: the last line of its log, and what its summary is made of. Flows of the mirror.

Both wait until everything that was heard of its tasks has been drawn. Until its summary stands, the end of a batch counts as
untold, so a bridge that is killed in between tells it when it comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Final

from ....bus.errors import NotFound
from ....bus.wire import Verb
from ..contract import rows
from ..contract.summary import READ, READ_BYTES, Facts, artifacts, count_events, files
from ..logs.batchlog import BatchLogs, events_path
from ..loop.flows import Flow, ask, share
from ..share.ops import entries, read, scan
from .drawing import Drawing

log = logging.getLogger(__name__)

DEPTH: Final = 4
FILES: Final = 2000  #: of a batch's folder that are listed
PER_ENTRY: Final = 1000
PIECE: Final = 4 << 20
MAX_LOG_BYTES: Final = 64 << 20  #: of its log that is counted


class Summing:
    """See the module. ``waits``: batches of which something is still to be drawn."""

    def __init__(self, logs: BatchLogs, drawing: Drawing, utc_offset_s: Callable[[float], float]) -> None:
        self._logs, self._drawing, self._utc_offset_s = logs, drawing, utc_offset_s
        self._told: dict[str, int] = {}  #: batch -> the event of the end whose line was handed over

    def waiting(self) -> bool:
        """Some batch has ended."""
        return bool(self._logs.ends)

    def step(self, waits: Collection[str]) -> Flow[None]:
        """Bring each batch that has ended one step further."""
        for batch, event in list(self._logs.ends.items()):
            if batch in waits:
                continue
            row = yield from self._row(batch)
            if row is None or not row["plan"] or not rows.batch_ended(row):
                self._forget(batch)  # purged, without a folder, or begun again
                continue
            folder = f"plans/{row['plan']}/batches/{batch}"
            if self._told.get(batch) != event.seq:
                self._told[batch] = event.seq
                self._logs.end(event, row, folder)
            elif self._logs.idle(events_path(folder)):
                facts = yield from self._facts(row, folder)
                now = self._drawing.now()
                for file in files(facts, self._utc_offset_s(row["ended_at"])):
                    self._drawing.others.want(file, now)
                yield from self._drawing.write({}, [], {})
                if self._logs.ends.get(batch) is event:  # else it has begun again meanwhile
                    self._forget(batch)

    def _forget(self, batch: str) -> None:
        self._logs.ends.pop(batch, None)
        self._told.pop(batch, None)

    def _row(self, batch: str) -> Flow[dict[str, Any] | None]:
        try:
            answer = yield from ask(Verb.QUERY, {"what": "batch", "id": batch})
        except NotFound:
            return None
        return rows.batch_row(answer.header)

    def _facts(self, batch: dict[str, Any], folder: str) -> Flow[Facts]:
        facts = Facts(batch)
        if batch["state"] != "complete":
            facts.failure = yield from self._failure(batch["id"])
        op = scan(folder, depth=DEPTH, budget=FILES, per_entry=PER_ENTRY)
        (listed,) = yield from share("mirror", [op], 30.0)
        if listed["ok"]:
            facts.entries = entries(listed)
            facts.cut = bool(listed["next"] or listed["cut"])
        chosen = artifacts(facts.entries)[:READ]
        results = yield from share("mirror", [read(f"{folder}/{e.path}", READ_BYTES) for e in chosen])
        facts.contents = {e.path: r["data"] for e, r in zip(chosen, results, strict=True) if r["ok"]}
        events: dict[str, int] = {}
        facts.events = events
        carry, offset = b"", 0
        while offset < MAX_LOG_BYTES:
            (piece,) = yield from share("mirror", [read(events_path(folder), PIECE, offset)], 30.0)
            if not piece["ok"] or not piece["data"]:
                break
            carry = count_events(piece["data"], events, carry)
            offset += len(piece["data"])
        else:
            facts.cut = True
        return facts

    def _failure(self, batch: str) -> Flow[dict[str, Any] | None]:
        question = {"what": "tasks", "batch": batch, "states": ["dead", "expired"], "limit": 1}
        try:
            answer = yield from ask(Verb.QUERY, question)
        except NotFound:
            return None
        found: list[dict[str, Any]] = answer.header["rows"]
        return found[0] if found else None
