"""What the broker sends: never blocking, in order, within a bound for each peer, in messages that fit PROTOCOL §9."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import zmq

from ..core.model import Send
from ..errors import BadFrame
from ..sockets import sender
from ..wire import Token, Verb, encode

log = logging.getLogger(__name__)

#: A peer that lets more than this wait is cut off and must HELLO again.
PEER_QUEUE: Final = 20_000
PEER_BYTES: Final = 64 << 20


def messages_of(send: Send) -> Iterator[tuple[list[bytes], list[Token]]]:
    """The frames of a message, each with the leases in it. One that is too big becomes two, or a shorter page."""
    leases = send.header.get("leases") if send.verb is Verb.LEASE else None
    try:
        frames = encode(send.verb, send.header, send.body, send.corr)
    except (BadFrame, TypeError, ValueError, OverflowError) as e:
        if leases and len(leases) > 1:
            for part in (slice(None, len(leases) // 2), slice(len(leases) // 2, None)):
                header = {**send.header, "leases": leases[part]}
                yield from messages_of(Send(send.peer, send.verb, header, send.body[part]))
            return
        rows = send.header.get("rows")
        if isinstance(e, BadFrame) and rows and len(rows) > 1:
            cut_page(send, len(rows) // 2)
            yield from messages_of(send)
            return
        log.error("cannot send %s: %s", send.verb, e)
        message = f"the answer cannot be sent: {e}; ask for less"
        frames = encode(Verb.ERROR, {"code": "refused", "message": message}, corr=send.corr)
    yield frames, [(lease["token"][0], lease["token"][1]) for lease in leases or ()]


def cut_page(send: Send, n: int) -> None:
    """Keep the first ``n`` rows of a page, and say where to go on."""
    send.header["rows"] = send.header["rows"][:n]
    send.header["cursor"] = send.header["rows"][-1]["no"]
    del send.body[n:]


@dataclass(slots=True)
class _Outbox:
    """Messages that a peer's full pipe did not take."""

    waiting: deque[tuple[list[bytes], list[Token]]] = field(default_factory=deque)
    size: int = 0

    def add(self, frames: list[bytes], leases: list[Token]) -> None:
        self.waiting.append((frames, leases))
        self.size += sum(map(len, frames))

    def done(self) -> None:
        frames, _ = self.waiting.popleft()
        self.size -= sum(map(len, frames))


class Outgoing:
    """Sends over the ROUTER. ``lost(peer, leases)`` is told of a peer that is gone or cut off, with the leases that
    did not reach it. ``messages`` and ``size`` (bytes) bound what waits for each peer."""

    def __init__(
        self,
        router: zmq.Socket[bytes],
        lost: Callable[[bytes, list[Token]], None],
        *,
        messages: int = PEER_QUEUE,
        size: int = PEER_BYTES,
    ) -> None:
        self._send = sender(router)
        self._messages = messages
        self._size = size
        self.lost = lost
        self.outboxes: dict[bytes, _Outbox] = {}

    def send(self, peer: bytes, frames: list[bytes], leases: list[Token] | None = None) -> None:
        """Send now, or as soon as the peer reads."""
        outbox = self.outboxes.get(peer)
        if outbox is None:
            try:
                self._push(peer, frames)
                return
            except zmq.Again:
                outbox = self.outboxes[peer] = _Outbox()
            except zmq.ZMQError as e:
                if e.errno != zmq.EHOSTUNREACH:
                    raise
                self.lost(peer, leases or [])
                return
        outbox.add(frames, leases or [])
        if len(outbox.waiting) > self._messages or outbox.size > self._size:
            log.warning("a peer does not read: %d messages dropped, it must HELLO again", len(outbox.waiting))
            self._drop(peer)

    def usage(self) -> dict[str, tuple[int, int]]:
        """Of the peer that is furthest behind: what waits for it, and the bound."""
        waiting = self.outboxes.values()
        return {
            "peer_messages": (max((len(o.waiting) for o in waiting), default=0), self._messages),
            "peer_bytes": (max((o.size for o in waiting), default=0), self._size),
        }

    def _push(self, peer: bytes, frames: list[bytes]) -> None:
        self._send((peer, *frames))

    def flush(self) -> None:
        """Go on with what full pipes did not take."""
        for peer in list(self.outboxes):
            outbox = self.outboxes[peer]
            try:
                while outbox.waiting:
                    self._push(peer, outbox.waiting[0][0])
                    outbox.done()
                del self.outboxes[peer]
            except zmq.Again:
                continue
            except zmq.ZMQError as e:
                if e.errno != zmq.EHOSTUNREACH:
                    raise
                self._drop(peer)

    def _drop(self, peer: bytes) -> None:
        outbox = self.outboxes.pop(peer)
        self.lost(peer, [token for _, leases in outbox.waiting for token in leases])
