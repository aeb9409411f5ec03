"""What the broker publishes: events, progress, relayed heartbeats, and the tap of every message for a sniffer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import zmq

from ..core.model import Effects
from ..wire import Envelope, pack

MAX_KNOWN_TOPICS: Final = 4096  #: of which it is remembered whether somebody subscribes
_HEARD_AT_ONCE: Final = 4000


class Publisher:
    """The broker's side of the XPUB ``socket``: who subscribes to what, and what they get."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.subscriptions: dict[bytes, int] = {}
        self.tapped = False  #: a sniffer listens
        self._socket = socket
        self._known: dict[bytes, bool] = {}
        self._taps = 0

    def hear(self) -> None:
        """Take the subscriptions that have arrived."""
        for _ in range(_HEARD_AT_ONCE):
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if message[:1] not in (b"\0", b"\1"):
                continue  # no subscription: a peer's own words, which nobody reads
            topic = message[1:]
            self.subscriptions[topic] = self.subscriptions.get(topic, 0) + (1 if message[0] else -1)
            if self.subscriptions[topic] <= 0:
                del self.subscriptions[topic]
        self._known.clear()
        self.tapped = any(t.startswith(b"tap") for t in self.subscriptions)

    def round(self, fx: Effects, tick: Mapping[str, Any], due: bool) -> None:
        """What a commit made visible; with ``due`` the ``tick``, by which followers see what they have missed."""
        if not self.subscriptions:
            return
        for event in fx.changes.events:
            topic = f"{event[3]}.{event[4]}".encode()
            if self._wanted(topic):
                self.send([topic, pack(event)])
        for id_, header, body in fx.progress:
            self.send([b"progress." + id_.encode(), pack(header), *body])
        if due:
            self.send([b"tick", pack(tick)])

    def send(self, frames: Sequence[bytes]) -> None:
        """A topic and what is said of it. XPUB drops for slow subscribers; they see the gap."""
        with suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.NOBLOCK)

    def tap(self, direction: str, env: Envelope, peer: str) -> None:
        """A message of ``peer`` as the sniffer sees it, ``direction`` in or out."""
        self._taps += 1  # the tap may drop for a slow sniffer: the number shows it
        record = {
            "seq": self._taps,
            "ts": time.time(),
            "dir": direction,
            "peer": peer,
            "verb": env.verb.value,
            "corr": env.corr,
            "bytes": env.size,
            "header": env.header,
        }
        try:
            packed = pack(record)
        except (TypeError, ValueError):
            packed = pack({**record, "header": {"unprintable": True}})
        self.send([f"tap.{direction}.{env.verb.value}".encode(), packed])

    def _wanted(self, topic: bytes) -> bool:
        """Does anybody subscribe to it? To pack and send what XPUB then drops costs 20 µs an event."""
        wanted = self._known.get(topic)
        if wanted is None:
            if len(self._known) >= MAX_KNOWN_TOPICS:
                self._known.clear()
            wanted = self._known[topic] = any(topic.startswith(t) for t in self.subscriptions)
        return wanted
