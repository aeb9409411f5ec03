"""Questions to the broker that nobody waits for: asked when it can be reached, asked again until they are answered.

`Connection.request` waits; the bridge must not, for its helpers have deadlines while the broker is away. Every verb
that is asked here may be repeated without harm (PROTOCOL §8).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ....bus.client.link import Connection
from ....bus.wire import Envelope, Verb

log = logging.getLogger(__name__)

PATIENCE_S: Final = 5.0  #: without an answer by then, a new socket
MAX_PATIENCE_S: Final = 30.0


@dataclass(slots=True)
class _Question:
    verb: Verb
    header: dict[str, Any]
    body: Sequence[bytes]
    sent_in: int = -1
    sent_at: float = 0.0


class Questions:
    """The open questions of one link. Call :meth:`tend` in each turn of the loop."""

    def __init__(self, link: Connection, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._link, self._monotonic = link, monotonic
        self._open: dict[bytes, _Question] = {}
        self._patience_s = PATIENCE_S

    def ask(self, verb: Verb, header: dict[str, Any], body: Sequence[bytes] = ()) -> bytes:
        """The id of a new question; it goes out at once where the broker is there.

        Raises:
            BadFrame: it breaks a limit of PROTOCOL §9.
        """
        corr = os.urandom(8)
        question = self._open[corr] = _Question(verb, header, body)
        try:
            self._send(corr, question)
        except BaseException:
            del self._open[corr]
            raise
        return corr

    def hear(self, envelope: Envelope) -> bytes:
        """The id of the question that a message answers; empty for any other message."""
        if envelope.corr not in self._open or envelope.header.get("code") == "no_session":
            return b""  # without a session it was not heard: it goes out again after the next WELCOME
        del self._open[envelope.corr]
        self._patience_s = PATIENCE_S
        return envelope.corr

    def tend(self) -> None:
        """Send what has not gone out on this session; take a new socket where an answer is long overdue."""
        if not self._link.ready:
            return
        now = self._monotonic()
        for corr, question in self._open.items():
            if question.sent_in != self._link.generation:
                self._send(corr, question)
            elif now - question.sent_at > self._patience_s:
                log.info("no answer to %s in %.0f s; asking again", question.verb, now - question.sent_at)
                self._patience_s = min(self._patience_s * 2, MAX_PATIENCE_S)
                self._link.reconnect()
                return

    def __len__(self) -> int:
        return len(self._open)

    def _send(self, corr: bytes, question: _Question) -> None:
        if self._link.send(question.verb, question.header, question.body, corr):
            question.sent_in, question.sent_at = self._link.generation, self._monotonic()
