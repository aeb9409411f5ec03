"""Sending and receiving as the hot loops need it: whole messages, never waiting, without the wrapper's detours.

pyzmq's own ``recv_multipart`` says "nothing there" by an exception (8 µs; asking the socket first costs 1.5), and its
wrapper looks for options that are not used here, for each frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq

# plain numbers: the enum's arithmetic costs as much as the send itself
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_RCVMORE: Final = int(zmq.RCVMORE)

Receive = Callable[[], "list[bytes] | None"]
Send = Callable[[Sequence[bytes]], None]


def receiver(socket: zmq.Socket[bytes]) -> Receive:
    """A function that takes the next message of ``socket``, frame by frame; None when there is none now."""
    raw: Any = super(zmq.Socket, socket)
    get, recv = raw.get, raw.recv

    def receive() -> list[bytes] | None:
        if not get(_EVENTS) & _POLLIN:
            return None
        frames = [recv(_NOBLOCK)]
        while get(_RCVMORE):
            frames.append(recv(_NOBLOCK))
        return frames

    return receive


def sender(socket: zmq.Socket[bytes]) -> Send:
    """A function that sends a message at once.

    Its zmq.Again (or, of a ROUTER, EHOSTUNREACH) concerns the first frame only: then nothing of it was sent.
    """
    raw: Any = super(zmq.Socket, socket)
    send = raw.send

    def push(frames: Sequence[bytes]) -> None:
        for frame in frames[:-1]:
            send(frame, _MORE)
        send(frames[-1], _NOBLOCK)

    return push
