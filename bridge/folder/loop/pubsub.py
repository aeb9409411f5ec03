"""What the broker publishes, and this bridge's own heartbeat: three sockets, made anew with each session.

Events and heartbeats are hints (PROTOCOL §6): what is lost here is asked for later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import zmq

from ....bus.errors import BadFrame
from ....bus.wire import pack, unpack

_EVENTS_A_TURN: Final = 2000


class PubSub:
    """``name``: the one under which we beat; our own heartbeat is no news to us."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.events: zmq.Socket[bytes] | None = None  #: to be polled; None before the first session
        self._hearts: zmq.Socket[bytes] | None = None
        self._voice: zmq.Socket[bytes] | None = None

    def open(self, context: zmq.Context[zmq.Socket[bytes]], welcome: Mapping[str, Any]) -> None:
        """Subscribe anew: the broker may be another process."""
        self.close()
        self.events = _subscriber(context, str(welcome["events"]), (b"p.", b"tick"), 20_000)
        # Not polled: heartbeats are looked at when their files are due, and never wake the loop.
        self._hearts = _subscriber(context, str(welcome["events"]), (b"hb.",), 1000)
        self._voice = context.socket(zmq.PUB)
        self._voice.setsockopt(zmq.LINGER, 0)
        self._voice.setsockopt(zmq.SNDHWM, 10)
        self._voice.connect(str(welcome["heartbeats"]))

    def heard(self) -> Iterator[list[bytes]]:
        """Events and ticks that have come, as frames; at most what fits into one turn of the loop."""
        for _ in range(_EVENTS_A_TURN):
            if self.events is None:
                return
            try:
                frames = self.events.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            yield frames

    def beats(self) -> list[tuple[str, dict[str, Any]]]:
        """The newest heartbeat of each worker since the last call."""
        newest: dict[str, dict[str, Any]] = {}
        while self._hearts is not None:
            try:
                frames = self._hearts.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                name, beat = frames[0][3:].decode(), unpack(frames[1])
            except (BadFrame, IndexError, UnicodeDecodeError):
                continue
            if name != self._name and isinstance(beat, dict):
                newest[name] = beat
        return list(newest.items())

    @property
    def may_speak(self) -> bool:
        return self._voice is not None

    def speak(self, beat: Mapping[str, Any]) -> None:
        """Our own heartbeat; one that finds no room is lost, the next one is near."""
        if self._voice is None:
            return
        try:
            self._voice.send_multipart([b"hb." + self._name.encode(), pack(beat)], zmq.DONTWAIT)
        except zmq.Again:
            pass

    def close(self) -> None:
        for one in (self.events, self._hearts, self._voice):
            if one is not None:
                one.close(0)
        self.events = self._hearts = self._voice = None


def _subscriber(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, topics: tuple[bytes, ...], hwm: int
) -> zmq.Socket[bytes]:
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.LINGER, 0)
    sub.setsockopt(zmq.RCVHWM, hwm)
    sub.setsockopt(zmq.RECONNECT_IVL, 50)
    sub.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    for topic in topics:
        sub.subscribe(topic)
    sub.connect(endpoint)
    return sub
