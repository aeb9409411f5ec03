"""What a worker still owes the broker: results and returns until they are RECORDED, progress, and its credit.

Pure: no socket, no clock. A result leaves :class:`Outbox` only when the broker says RECORDED or STALE. One in danger (not
answered, the broker away, this process leaving) is to lie on disk as well; what is answered at once never touches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...bus.wire import MAX_BATCH, Token, Verb
from .events import Outcome, Progress, Send, Spool, legible

#: A RESULT message carries at most this many bytes of values: one message never stalls the broker's loop.
MESSAGE_BYTES: Final = 4 << 20
HEADER_BYTES: Final = 900_000
#: Sent but unanswered for this long: send it again (the answer is idempotent).
RESEND_S: Final = 5.0
#: Sent but unanswered for this long: a copy goes to the disk.
SPOOL_S: Final = 1.0
PROGRESS_S: Final = 0.02
PROGRESS_BYTES: Final = 256 << 10
#: Holding this many unanswered results, a worker takes no more work (PROTOCOL §9 allows 1,000).
FULL_AT: Final = 600


@dataclass(slots=True)
class _Owed:
    row: dict[str, Any]
    body: bytes
    sent_at: float | None = None
    session: str = ""  #: of the dead process that left it; empty: it is our own
    spooled: bool = False


@dataclass(slots=True)
class _Return:
    reason: str
    not_before_s: float | None
    sent_at: float | None = None


@dataclass(slots=True)
class Outbox:
    """Results and returns by token, kept until answered; resent after a reconnect or :data:`RESEND_S`."""

    results: dict[Token, _Owed] = field(default_factory=dict)
    returns: dict[Token, _Return] = field(default_factory=dict)
    _fresh: list[Token] = field(default_factory=list)
    _fresh_returns: list[Token] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.results) + len(self.returns)

    @property
    def has_fresh(self) -> bool:
        """Is anything owed that was not sent yet?"""
        return bool(self._fresh or self._fresh_returns)

    def __contains__(self, token: object) -> bool:
        return token in self.results or token in self.returns

    def tokens(self) -> list[Token]:
        """Those of this process's own leases."""
        return [*(token for token, owed in self.results.items() if not owed.session), *self.returns]

    def inherited(self) -> dict[str, list[Token]]:
        """The tokens that dead processes left, by their sessions."""
        found: dict[str, list[Token]] = {}
        for token, owed in self.results.items():
            if owed.session:
                found.setdefault(owed.session, []).append(token)
        return found

    def inherit(self, session: str, rows: Sequence[dict[str, Any]], body: Sequence[bytes]) -> None:
        """Owe what a dead process left on disk."""
        for row, value in zip(rows, body, strict=True):
            self.results[row["token"]] = _Owed(row, value, session=session, spooled=True)
            self._fresh.append(row["token"])

    def add(self, token: Token, outcome: Outcome, *, cancelled: bool = False) -> None:
        """Owe this outcome. Nothing is sent before :meth:`flush`."""
        row: dict[str, Any] = {"token": token, "ok": outcome.ok, "duration_s": round(outcome.duration_s, 6)}
        if cancelled:
            row["cancelled"] = True
        if not outcome.ok:
            row["class"] = outcome.cls or "task"
            row["error"] = legible(outcome.error or "failed")
        if outcome.exit is not None:
            row["exit"] = outcome.exit
        if outcome.ref is not None:
            row["ref"] = dict(outcome.ref)
        self.results[token] = _Owed(row, outcome.body)
        self._fresh.append(token)

    def give_back(self, tokens: Iterable[Token], reason: str, not_before_s: float | None = None) -> None:
        """Owe a RETURN: these did not run."""
        for token in tokens:
            self.returns[token] = _Return(reason, not_before_s)
            self._fresh_returns.append(token)

    def settle(self, tokens: Iterable[Token]) -> list[Token]:
        """RECORDED or STALE: forget. Those of which a copy lies on disk."""
        spooled = []
        for token in tokens:
            owed = self.results.pop(token, None)
            self.returns.pop(token, None)
            if owed is not None and owed.spooled:
                spooled.append(token)
        return spooled

    def spool(self, sent_by: float | None = None) -> list[Spool]:
        """What is to be written to the disk: everything, or what was sent before ``sent_by`` and is not answered."""
        due = [
            owed
            for owed in self.results.values()
            if not owed.spooled
            and (sent_by is None or (owed.sent_at is not None and owed.sent_at <= sent_by))
        ]
        for owed in due:
            owed.spooled = True
        return [Spool(rows, body) for _, rows, body in _messages(due)]

    def not_spooled(self, tokens: Iterable[Token]) -> None:
        """The disk did not take them."""
        for token in tokens:
            if token in self.results:
                self.results[token].spooled = False

    def resend_all(self) -> None:
        """A new session: whatever is not answered goes out again."""
        self._fresh = list(self.results)
        self._fresh_returns = list(self.returns)

    def resend_old(self, now: float) -> None:
        """Queue what was sent :data:`RESEND_S` ago and is still unanswered."""
        for token, owed in self.results.items():
            if owed.sent_at is not None and now - owed.sent_at > RESEND_S:
                owed.sent_at = None  # queued once, however long the flush is away
                self._fresh.append(token)
        for token, back in self.returns.items():
            if back.sent_at is not None and now - back.sent_at > RESEND_S:
                back.sent_at = None
                self._fresh_returns.append(token)

    def flush(self, now: float) -> list[Send]:
        """The messages that carry everything fresh; RETURN one per reason."""
        if not self._fresh and not self._fresh_returns:
            return []
        return [*self._flush_results(now), *self._flush_returns(now)]

    def _flush_results(self, now: float) -> list[Send]:
        due = [owed for token in self._fresh if (owed := self.results.get(token)) is not None]
        self._fresh = []
        for owed in due:
            owed.sent_at = now
        return [
            Send(Verb.RESULT, {"results": rows} | ({"session": session} if session else {}), body)
            for session, rows, body in _messages(due)
        ]

    def _flush_returns(self, now: float) -> list[Send]:
        groups: dict[tuple[str, float | None], list[Token]] = {}
        for token in self._fresh_returns:
            owed = self.returns.get(token)
            if owed is not None:
                owed.sent_at = now
                groups.setdefault((owed.reason, owed.not_before_s), []).append(token)
        self._fresh_returns = []
        sends = []
        for (reason, not_before_s), tokens in groups.items():
            for i in range(0, len(tokens), MAX_BATCH):
                header: dict[str, Any] = {"tokens": tokens[i : i + MAX_BATCH], "reason": legible(reason)}
                if not_before_s is not None:
                    header["not_before_s"] = not_before_s
                sends.append(Send(Verb.RETURN, header))
        return sends


def _messages(due: Iterable[_Owed]) -> Iterator[tuple[str, list[dict[str, Any]], list[bytes]]]:
    """(session, rows, values) of each message: within its limits, and of one session."""
    rows: list[dict[str, Any]] = []
    body: list[bytes] = []
    size = head = 0
    session = ""
    for owed in due:
        # Rows travel in the header frame, whose limit an error text of four-byte characters could reach.
        row_bytes = 300 + 4 * len(owed.row.get("error", ""))
        full = size + len(owed.body) > MESSAGE_BYTES or head + row_bytes > HEADER_BYTES
        if rows and (full or len(rows) >= MAX_BATCH or owed.session != session):
            yield session, rows, body
            rows, body, size, head = [], [], 0, 0
        session = owed.session
        rows.append(owed.row)
        body.append(owed.body)
        size += len(owed.body)
        head += row_bytes
    if rows:
        yield session, rows, body


@dataclass(slots=True)
class _Stream:
    n: int = 0
    next_at: float = 0.0
    pct: float | None = None
    note: str | None = None
    chunks: list[bytes] = field(default_factory=list)
    pending: bool = False
    size: int = 0


@dataclass(slots=True)
class ProgressBook:
    """PROGRESS, numbered per attempt: the first at once, then at most one per :data:`PROGRESS_S`."""

    _streams: dict[Token, _Stream] = field(default_factory=dict)

    def add(self, event: Progress, now: float) -> list[Send]:
        s = self._streams.setdefault(event.token, _Stream(next_at=now))
        s.pending = True
        s.pct = event.pct if event.pct is not None else s.pct
        s.note = event.note if event.note is not None else s.note
        if event.data is not None:
            s.chunks.append(event.data)
            s.size += len(event.data)
        if now >= s.next_at or s.size >= PROGRESS_BYTES or len(s.chunks) >= MAX_BATCH:
            return [self._send(event.token, s, now)]
        return []

    def end(self, token: Token, now: float) -> list[Send]:
        """The attempt is over: what is pending goes before its result."""
        s = self._streams.pop(token, None)
        return [self._send(token, s, now)] if s is not None and s.pending else []

    def due(self, now: float) -> list[Send]:
        return [self._send(t, s, now) for t, s in self._streams.items() if s.pending and now >= s.next_at]

    def next_at(self) -> float | None:
        if not self._streams:
            return None
        return min((s.next_at for s in self._streams.values() if s.pending), default=None)

    @staticmethod
    def _send(token: Token, s: _Stream, now: float) -> Send:
        header: dict[str, Any] = {"token": token, "n": s.n}
        if s.pct is not None:
            header["pct"] = s.pct
        if s.note is not None:
            header["note"] = s.note
        body: Sequence[bytes] = s.chunks
        s.n += 1
        s.next_at = now + PROGRESS_S
        s.note, s.chunks, s.pending, s.size = None, [], False, 0
        return Send(Verb.PROGRESS, header, body)


@dataclass(slots=True)
class Prefetch:
    """How many leases to hold beyond the slots: some to hide a short task's round trip, none behind long ones.

    It aims at :data:`QUEUE_S` of queued work by the mean duration of what ran last. One task longer than
    ``busy_s`` takes it to zero (:meth:`busy`); it comes back after some ten short ones.
    """

    slots: int
    most: int = 128
    depth: int = 0
    _mean_s: float | None = None

    QUEUE_S = 0.02

    def ran(self, duration_s: float) -> None:
        self._mean_s = duration_s if self._mean_s is None else 0.75 * self._mean_s + 0.25 * duration_s
        wanted = min(self.most, int(self.QUEUE_S * self.slots / max(self._mean_s, 1e-6)))
        # In steps of two, so that the credit is not announced anew after every task.
        if wanted >= max(2 * self.depth, 1) or wanted < self.depth // 2 or wanted == 0:
            self.depth = wanted

    def busy(self, elapsed_s: float) -> None:
        self._mean_s = max(elapsed_s, self._mean_s or 0.0)
        self.depth = 0
