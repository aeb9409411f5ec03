"""Framed messages between a worker and the children that it speaks with: 4 bytes of length, then msgpack.

The worker's end never blocks (``Pipe``); the child's end does (``ChildPipe``), from any of its threads.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any, Final

import msgpack

PIPE_VARIABLE: Final = "RIGBUS_PIPE_FD"
MAX_MESSAGE_BYTES: Final = 8 << 20  #: larger results go by the results folder
_LENGTH: Final = struct.Struct("!I")
_READ_BYTES: Final = 64 << 10


class BrokenPipeFrame(ValueError):
    """The other side sent what is no message of this pipe."""


def _pack(message: Mapping[str, Any]) -> bytes:
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > MAX_MESSAGE_BYTES:
        raise BrokenPipeFrame(f"a message of {len(body)} bytes, the limit is {MAX_MESSAGE_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Pipe:
    """The worker's end. ``theirs`` is inherited by the child and closed here after the start."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self._ours = ours
        self._in = bytearray()
        self._out = bytearray()
        self.ended = False

    def fileno(self) -> int:
        return self._ours.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a message and send what fits; :meth:`push` sends the rest."""
        self._out += _pack(message)
        self.push()

    def push(self) -> bool:
        """Send what is left; True when all is sent."""
        while self._out and not self.ended:
            try:
                sent = self._ours.send(self._out)
            except BlockingIOError:
                return False
            except OSError:
                self.ended = True
                break
            del self._out[:sent]
        return True

    def receive(self) -> list[dict[str, Any]]:
        """The messages that are complete now; ``ended`` is set when the child has closed its end.

        Raises:
            BrokenPipeFrame: something else than the child's runtime wrote into the pipe.
        """
        while not self.ended:
            try:
                data = self._ours.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.ended = True
                break
            self._in += data
            if len(self._in) > 4 * MAX_MESSAGE_BYTES:
                break
        messages = []
        while len(self._in) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._in)
            if size > MAX_MESSAGE_BYTES:
                raise BrokenPipeFrame(f"a message of {size} bytes, the limit is {MAX_MESSAGE_BYTES}")
            if len(self._in) < _LENGTH.size + size:
                break
            body = bytes(self._in[_LENGTH.size : _LENGTH.size + size])
            del self._in[: _LENGTH.size + size]
            messages.append(_map(body))
        return messages

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


class ChildPipe:
    """The child's end, found by :data:`PIPE_VARIABLE`."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        fd = int((os.environ if environ is None else environ)[PIPE_VARIABLE])
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        frame = _pack(message)
        with self._lock:
            self._socket.sendall(frame)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the worker has gone."""
        head = self._exactly(_LENGTH.size)
        if head is None:
            return None
        body = self._exactly(_LENGTH.unpack(head)[0])
        return None if body is None else _map(body)

    def _exactly(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            data = self._socket.recv(min(size - len(parts), _READ_BYTES))
            if not data:
                return None
            parts += data
        return bytes(parts)


def _map(body: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as e:
        raise BrokenPipeFrame(f"unreadable: {e}") from None
    if not isinstance(message, dict):
        raise BrokenPipeFrame("no map")
    return message
