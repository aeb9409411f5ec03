"""A subscriber to everything that the broker publishes: ``python -m …subscriber ENDPOINT``.

It reads until its stdin ends, then prints how often events were missing before one.
"""

from __future__ import annotations

import sys

import zmq

from ....bus.client.follow import event_of
from ....bus.errors import BadFrame
from ....bus.wire import unpack


def main(endpoint: str) -> None:
    """Read, and count the gaps."""
    sub = zmq.Context().socket(zmq.SUB)
    sub.setsockopt(zmq.LINGER, 0)
    sub.subscribe(b"")
    sub.connect(endpoint)
    poller = zmq.Poller()
    poller.register(sub, zmq.POLLIN)
    poller.register(sys.stdin, zmq.POLLIN)
    last: dict[str, int] = {}
    gaps = 0
    print("listens", flush=True)
    while sys.stdin.fileno() not in dict(poller.poll()):
        while True:
            try:
                frames = sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if not frames[0].startswith((b"p.", b"c.")):
                continue
            try:
                event = event_of(unpack(frames[1]))
            except (BadFrame, IndexError):
                continue
            gaps += event.prev > last.get(event.channel, event.prev)
            last[event.channel] = event.seq
    print(gaps, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
