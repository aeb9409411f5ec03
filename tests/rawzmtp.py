"""A peer that speaks ZMTP 3 byte by byte, over a bare socket: what no library would send."""

from __future__ import annotations

import socket
from contextlib import suppress

from helpers import wait_for

SIGNATURE = b"\xff" + b"\0" * 8 + b"\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + b"\0" * 31
MORE, LONG, COMMAND = 1, 2, 4


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame; ``flags`` as :data:`MORE`."""
    if len(body) > 255:
        return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def ready(kind: bytes) -> bytes:
    """READY of a socket of this type."""

    def item(name: bytes, value: bytes) -> bytes:
        return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value

    body = b"\x05READY" + item(b"Socket-Type", kind) + item(b"Identity", b"")
    return frame(body, COMMAND)


def connect(endpoint: str, timeout_s: float = 10.0) -> socket.socket:
    """A bare connection to an ``ipc://`` or ``tcp://`` endpoint that has said nothing."""
    if endpoint.startswith("ipc://"):
        return wait_for(lambda: _local(endpoint[6:], timeout_s), what="room in the backlog")
    host, _, port = endpoint[6:].rpartition(":")
    return socket.create_connection((host, int(port)), timeout_s)


def _local(path: str, timeout_s: float) -> socket.socket | None:
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(timeout_s)
    try:
        raw.connect(path)
    except BlockingIOError:
        raw.close()
        return None
    return raw


def greeted(endpoint: str, kind: bytes = b"DEALER") -> socket.socket:
    """A connection whose handshake is done."""
    raw = connect(endpoint)
    raw.sendall(GREETING)
    _take(raw, 64)
    raw.sendall(ready(kind))
    head = _take(raw, 2)
    _take(raw, head[1])
    return raw


def flood(raw: socket.socket, piece: bytes, most_bytes: int) -> int:
    """Send ``piece`` again and again, until the other side ends it; how many bytes were sent, at most ``most_bytes``."""
    sent = 0
    with suppress(OSError):
        while sent < most_bytes:
            raw.sendall(piece)
            sent += len(piece)
    return sent


def is_ended(raw: socket.socket) -> bool:
    """Whether the other side has closed the connection; waits for it as long as the socket's timeout."""
    try:
        while raw.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _take(raw: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = raw.recv(n - len(data))
        assert piece, "the broker ended the handshake"
        data += piece
    return data
