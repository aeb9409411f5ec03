"""Answers get from the store what the core does not hold: payloads, ``meta``, results, attempts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..core.model import Doubt, Send
from ..store.store import Store
from ..wire import MAX_FRAME_BYTES, Verb
from .outgoing import cut_page

PAYLOAD_CACHE_BYTES: Final = 8 << 20
RESULT_CHUNK: Final = 512 << 10
_PAGE_BYTES: Final = 8 * MAX_FRAME_BYTES


class PayloadCache:
    """Payloads of fresh tasks, so that a lease soon after its submit reads no row. Bounded by bytes."""

    def __init__(self, limit: int = PAYLOAD_CACHE_BYTES) -> None:
        self.limit = limit
        self.size = 0
        self.items: OrderedDict[int, tuple[Any, bytes]] = OrderedDict()

    def put(self, no: int, meta: Any, payload: bytes) -> None:
        """Keep one; the oldest go."""
        self.items[no] = (meta, payload)
        self.size += len(payload) + 500
        while self.size > self.limit:
            _, (_, old) = self.items.popitem(last=False)
            self.size -= len(old) + 500

    def pop(self, no: int) -> tuple[Any, bytes] | None:
        """Take one out; None when it is not there (any more)."""
        hit = self.items.pop(no, None)
        if hit is not None:
            self.size -= len(hit[1]) + 500
        return hit


class Completer:
    """Fills in what only the store knows."""

    def __init__(self, store: Store, results: Path) -> None:
        self.store = store
        self.results = results
        self.payloads = PayloadCache()

    def complete(self, send: Send) -> None:
        """Payloads of leases, details and results of rows, attempts of a task."""
        if send.payload_of is not None:
            self._leases(send, send.payload_of)
        if send.rows_of is not None:
            self._rows(send, send.rows_of)
        if send.attempts_of:
            send.header["attempts"] = self.store.attempts(send.attempts_of)
        if send.evaluations_of:
            send.header["evaluations"] = self.store.evaluations(send.evaluations_of)

    def contradicts(self, doubt: Doubt) -> bool:
        """Whether a result is another than the recorded one; False where that is known no more."""
        stored = self.store.details([doubt.no]).get(doubt.no)
        if stored is None:
            return False
        _, result, ref, _ = stored
        return not doubt.ok or (result or b"") != doubt.value or ref != doubt.ref

    def _leases(self, send: Send, nos: list[int]) -> None:
        found = {no: hit for no in nos if (hit := self.payloads.pop(no)) is not None}
        missing = [no for no in nos if no not in found]
        if missing:
            found |= self.store.payloads(missing)
        again = [no for lease, no in _both(send, nos) if "feedback" in lease and lease["attempt"] > 1]
        judged = self.store.last_evaluations(again)
        for lease, no in _both(send, nos):
            meta, payload = found.get(no, (None, b""))
            if meta:
                lease["meta"] = meta
            if no in judged:
                lease["feedback"] = judged[no]["note"]
            send.body.append(payload)

    def _rows(self, send: Send, nos: list[int]) -> None:
        details = self.store.details(nos)
        judged = self.store.last_evaluations(row["no"] for row in send.header["rows"] if row.get("review"))
        body: list[bytes] = []
        for row in send.header["rows"]:
            meta, result, ref, ref_bytes = details.get(row["no"], (None, None, None, None))
            if meta:
                row["meta"] = meta
            if row["no"] in judged:
                row["evaluation"] = judged[row["no"]]
            if send.history and row["attempt"]:
                row["earlier"] = self.store.attempts(row["no"])
            if ref:
                row["ref"] = {"sha256": ref, "bytes": ref_bytes}
            body.append(result or b"")
        send.body[:] = body
        if send.verb is Verb.ENDED:
            row = send.header.pop("rows")[0]
            if "ref" in row:
                send.header["ref"] = row["ref"]
        elif send.header.pop("chunk", False):
            send.body[:] = [self._chunk(send)]
        else:
            _fit(send)

    def _chunk(self, send: Send) -> bytes:
        """Part of a result file, for peers that cannot see the state folder."""
        row, offset = send.header["rows"][0], send.header["offset"]
        ref = row.get("ref")
        if not ref:
            return send.body[0][offset : offset + RESULT_CHUNK]
        path = self.results / ref["sha256"][:2] / ref["sha256"]
        try:
            with path.open("rb") as f:
                f.seek(offset)
                chunk: bytes = f.read(RESULT_CHUNK)
                return chunk
        except OSError as e:
            send.verb = Verb.ERROR
            message = f"the result file {path} cannot be read: {e.strerror}"
            send.header = {"code": "not_found", "message": message}
            return b""


def _both(send: Send, nos: list[int]) -> Iterator[tuple[dict[str, Any], int]]:
    """The leases of a LEASE with their tasks' numbers."""
    return zip(send.header["leases"], nos, strict=True)


def _fit(send: Send) -> None:
    """A page of rows with large results: keep what fits one message."""
    total = 0
    for i, part in enumerate(send.body):
        total += len(part)
        if total > _PAGE_BYTES and i:
            cut_page(send, i)
            return
