"""The demo's ear: a sniffer on the rig's events, kept so that one task's life can be told afterwards."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import zmq

from ..bus.errors import BadFrame
from ..bus.sniff.records import Record, Sniffer
from ..bus.sniff.view import Follow, step_line

KEPT: Final = 100_000
#: Questions of the mirror and of the demo itself are no part of a task's life.
ASIDE: Final = frozenset({"QUERY", "OK", "SNAPSHOT", "EVENTS"})


class Tap:
    """Subscribes to every command and event. ``with Tap(endpoint) as tap``; call :meth:`take` often."""

    def __init__(self, endpoint: str) -> None:
        self._sniffer = Sniffer()
        self._records: deque[Record] = deque(maxlen=KEPT)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, KEPT)
        for topic in (b"tap.", b"p.", b"c."):
            self._socket.subscribe(topic)
        self._socket.connect(endpoint)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *exc: object) -> None:
        self._context.destroy(0)

    def take(self) -> None:
        """Keep what has come since the last call."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                record = self._sniffer.frames(frames, time.time())
            except BadFrame:
                continue
            if record is not None and record.verb not in ASIDE:
                self._records.append(record)

    def life(self, task: str | None) -> list[str]:
        """The life of ``task`` in order, a line a step; empty when nothing of it was heard."""
        if task is None:
            return []
        follow = Follow(task)
        steps = [step for record in self._records for step in follow.take(record)]
        return [step_line(step) for step in [*steps, *follow.flush()]]
