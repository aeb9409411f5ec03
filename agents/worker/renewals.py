"""Until when the broker gives a lease to nobody else, as far as a worker can know. Pure.

A RENEWED prolongs what its own RENEW named, counted from the time when that was sent: the broker had it then at the
earliest, and a later RENEW may have been lost. All times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...bus.wire import LEASE_S, Token

_KEPT = 1000  #: RENEWs without an answer; a connection is given up long before


class Renewals:
    """The RENEWs of one worker."""

    def __init__(self, now: float) -> None:
        self.lease_s = LEASE_S
        #: End of a lease that comes now: it was granted after the last RENEW that was answered before it came.
        self.until = now + LEASE_S
        self._sent = 0
        self._unanswered: dict[bytes, tuple[float, list[Token]]] = {}

    def welcomed(self, greeted_at: float, lease_s: float) -> None:
        """WELCOME answers a HELLO of that time; what was asked on an older connection has no answer any more."""
        self.lease_s = lease_s
        self.until = greeted_at + lease_s
        self._unanswered.clear()

    def sent(self, tokens: Sequence[Token], now: float) -> bytes:
        """A RENEW that names ``tokens`` is sent now: its correlation id."""
        self._sent += 1
        corr = self._sent.to_bytes(8, "big")
        self._unanswered[corr] = (now, list(tokens))
        if len(self._unanswered) > _KEPT:
            del self._unanswered[next(iter(self._unanswered))]
        return corr

    def slept(self, for_s: float) -> None:
        """The machine has slept, and this clock stood still; the broker's may have gone on."""
        self.until -= for_s
        self._unanswered = {corr: (at - for_s, tokens) for corr, (at, tokens) in self._unanswered.items()}

    def answered(self, corr: bytes) -> list[Token]:
        """A RENEWED: what holds until :attr:`until` now. Empty for an answer that says nothing new."""
        sent_at, tokens = self._unanswered.pop(corr, (None, []))
        if sent_at is None or sent_at + self.lease_s < self.until:
            return []
        self.until = sent_at + self.lease_s
        return tokens
