"""EVENTS: questions about the numbered log, which the broker's shell answers from the store after its commit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..core.core import Core
from ..store.store import Store
from ..wire import MAX_FRAME_BYTES, MAX_REQUESTS, Envelope, Verb, encode, pack

ANSWER_S: Final = 0.1  #: of a round; they cost reading, and must hold up nobody


class LogQuestions:
    """Those that wait, at most :data:`.wire.MAX_REQUESTS`. ``send(peer, frames)`` answers."""

    def __init__(self, core: Core, store: Store, send: Callable[[bytes, list[bytes]], Any]) -> None:
        self._core = core
        self._store = store
        self._send = send
        self.waiting: deque[Envelope] = deque()

    def ask(self, env: Envelope) -> None:
        """Keep a question until the round's commit."""
        if len(self.waiting) < MAX_REQUESTS:
            self.waiting.append(env)
            return
        message = f"{len(self.waiting)} questions for events wait already: wait for answers"
        header = {"retry_after_s": 1.0, "bound": "requests", "message": message, "verb": env.verb}
        self._send(env.peer, encode(Verb.BUSY, header, corr=env.corr))

    def answer(self) -> None:
        """Those for which there is time in this round, the first first."""
        until = time.monotonic() + ANSWER_S
        while self.waiting:
            self._answer(self.waiting.popleft())
            if time.monotonic() > until:
                return

    def _answer(self, env: Envelope) -> None:
        session = self._core.peers.get(env.peer)
        if session is None:
            self._send(
                env.peer,
                encode(Verb.ERROR, {"code": "no_session", "message": "say HELLO first"}, corr=env.corr),
            )
            return
        session.last_seen = time.monotonic()
        try:
            since, limit = (
                min(max(int(env.header.get("since") or 0), 0), self._core.seq),
                min(max(int(env.header.get("limit") or 1000), 1), 5000),
            )
        except (TypeError, ValueError, OverflowError) as e:
            self._send(
                env.peer, encode(Verb.ERROR, {"code": "bad_frame", "message": f"EVENTS: {e}"}, corr=env.corr)
            )
            return
        channel = env.header.get("channel")
        events, oldest, more = self._store.events(
            since, channel if channel in ("p", "c", "a") else None, limit
        )
        if oldest is not None:
            frames = encode(Verb.RESNAPSHOT, {"oldest": oldest, "last": self._core.seq}, corr=env.corr)
        else:
            while len(events) > 1 and len(pack(events)) > MAX_FRAME_BYTES // 2:
                events, more = events[: len(events) // 2], True
            frames = encode(
                Verb.EVENTS, {"events": events, "last": self._core.seq, "more": more}, corr=env.corr
            )
        self._send(env.peer, frames)
