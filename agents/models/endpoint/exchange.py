"""One HTTP request and its answer, on a connection of ``loopback.py``; runs in that connection's thread.

Parsing the head is the standard library's (``http.server``); the body, the bounds and the answer are ours.
"""

from __future__ import annotations

import io
import re
import select
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from time import monotonic
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from ....bus.openai.answers import to_json
from ....bus.openai.requests import ApiError

LOOPBACK: Final = "127.0.0.1"
_NAMES: Final = (LOOPBACK, "localhost", "::1")
_DRAIN_S: Final = 2.0
_DRAIN_BYTES: Final = 32 * 1024 * 1024
_CHUNK_HEAD: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;[^\r\n]*)?\r?\n")
_LINE_BYTES: Final = 1024
_TRAILERS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``head_s``: for a request's line and headers; ``body_s``: for its body; ``idle_s``: between two requests;
    ``write_s``: for the client to take a piece of the answer."""

    connections: int = 64
    body_bytes: int = 8 * 1024 * 1024
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 60.0
    write_s: float = 30.0


class Watch:
    """A connection whose client waits. ``gone`` is set when it has closed; ``on_gone`` is called then.

    ``half``: it has ended its own side, and waits.
    """

    def __init__(self, sock: socket.socket, on_gone: Callable[[], None]) -> None:
        self.sock = sock
        self.on_gone = on_gone
        self.events = select.POLLIN
        self.half = False
        self.gone = threading.Event()


class Host(Protocol):
    """The server, as an exchange needs it."""

    limits: Limits

    def serve(self, exchange: Exchange) -> None: ...
    def know(self, known: bool) -> None: ...
    def watch(self, sock: socket.socket, on_gone: Callable[[], None]) -> AbstractContextManager[Watch]: ...
    def abort(self, sock: socket.socket) -> None: ...


class _TimedReader(io.RawIOBase):
    """A socket's bytes until a deadline; however slowly they come, the whole is bounded."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.then_s: float | None = None  # idle: seconds from the first byte on
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self.deadline_s - monotonic()
        if left_s <= 0:
            raise TimeoutError("the client is too slow")
        self._sock.settimeout(left_s)
        size = self._sock.recv_into(buffer)
        if self.then_s is not None:
            self.deadline_s, self.then_s = monotonic() + self.then_s, None
        return size


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer. ``command``, ``route`` (the path without its query) and ``headers`` are the request's."""

    protocol_version = "HTTP/1.1"
    route: str = ""
    _loopback: Host

    def __init__(self, sock: socket.socket, address: tuple[str, int], server: Host) -> None:
        self._loopback = server
        self._limits = server.limits
        self.begun = False  # the head of the answer is out
        self._chunked = False
        self._unread = False  # a body that nobody has read
        super().__init__(sock, address, server)  # type: ignore[arg-type]

    def setup(self) -> None:
        self.connection = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._raw = _TimedReader(self.connection, monotonic() + self._limits.head_s)
        self.rfile = io.BufferedReader(self._raw, 64 * 1024)
        self.wfile = io.BytesIO()  # the base class flushes one; what we send goes to the socket at once

    def handle(self) -> None:
        self.close_connection = True
        self.handle_one_request()
        while not self.close_connection:
            self._raw.deadline_s, self._raw.then_s = monotonic() + self._limits.idle_s, self._limits.head_s
            self.handle_one_request()

    def finish(self) -> None:
        """A client that still sends would lose the answer to a reset: let it finish, within bounds."""
        if not self._unread:
            return
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self._raw.deadline_s, self._raw.then_s = monotonic() + _DRAIN_S, None
            left = _DRAIN_BYTES
            while left > 0 and (piece := self.rfile.read1()):
                left -= len(piece)
        except OSError:
            pass  # it has gone, or is too slow

    # ------------------------------------------------------------ the request

    def _answer(self) -> None:
        self.begun = False
        self.route = urlsplit(self.path).path
        try:
            self._unread = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
            self._check_origin()
            self._loopback.serve(self)
        except ApiError as e:
            self.refuse(e)
        except TimeoutError:
            self.refuse(ApiError("the body did not come in time; send it at once", status=408))
        if self._unread:
            self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        """``do_POST`` and so on, which the base class looks for: a method that is none of ours is answered, too."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _check_origin(self) -> None:
        """Only what names this machine: a page in a browser whose name was bound to 127.0.0.1 does not (DNS rebinding)."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or _host_of("//" + hosts[0]) not in _NAMES:
            raise ApiError(f"this server is {LOOPBACK} only; not {hosts}", status=403, code="wrong_host")
        origin = self.headers.get("Origin")
        if origin is not None and _host_of(origin) not in _NAMES:
            raise ApiError("no requests of web pages", status=403, code="wrong_origin")

    def body(self) -> bytes:
        """The request's body, read once.

        Raises:
            ApiError: it is too long, or its length is not said as HTTP does. TimeoutError: it is too slow.
        """
        self._raw.deadline_s = monotonic() + self._limits.body_s
        lengths = self.headers.get_all("Content-Length") or []
        coding = self.headers.get("Transfer-Encoding", "").strip().lower()
        if coding and (coding != "chunked" or lengths):
            raise ApiError("Transfer-Encoding: only chunked, and without Content-Length", code="bad_framing")
        if coding:
            data = self._chunks()
        elif not lengths:
            raise ApiError("there is no body; send Content-Length", status=411)
        else:
            if len(lengths) > 1 or not re.fullmatch("[0-9]{1,15}", lengths[0]):
                raise ApiError(f"Content-Length {lengths} is no number", code="bad_framing")
            data = self._exactly(self._fits(int(lengths[0])))
        self._unread = False
        return data

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            head = _CHUNK_HEAD.fullmatch(self.rfile.readline(_LINE_BYTES))
            if head is None:
                raise ApiError("a chunk of the body has no length", code="bad_framing")
            length = int(head[1], 16)
            if not length:
                break
            size = self._fits(size + length)
            parts.append(self._exactly(length))
            if self.rfile.readline(_LINE_BYTES) not in (b"\r\n", b"\n"):
                raise ApiError("a chunk of the body is longer than it says", code="bad_framing")
        for _ in range(_TRAILERS):
            if self.rfile.readline(_LINE_BYTES) in (b"\r\n", b"\n", b""):
                return b"".join(parts)
        raise ApiError("too many lines after the body", code="bad_framing")

    def _fits(self, size: int) -> int:
        if size > self._limits.body_bytes:
            raise ApiError(
                f"the body has over {self._limits.body_bytes} bytes", status=413, code="body_too_large"
            )
        return size

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the client left in the middle of its body")
        return data

    def watch(self, on_gone: Callable[[], None]) -> AbstractContextManager[Watch]:
        """A ``with`` block in which ``on_gone`` is called as soon as the client closes; its value has ``gone``, an Event."""
        return self._loopback.watch(self.connection, on_gone)

    def know(self, known: bool) -> None:
        """Whether it is known who asks: a connection of which it is not makes room for others (see ``loopback.py``)."""
        self._loopback.know(known)

    def abort(self) -> None:
        """From any thread: end the connection."""
        self._loopback.abort(self.connection)

    # ------------------------------------------------------------ the answer

    def send_json(
        self, value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """The whole answer."""
        data = to_json(value).encode("utf-8", "replace")
        head = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        self._send_head(status, head, b"" if self.command == "HEAD" else data)

    def refuse(self, error: ApiError, body: Mapping[str, Any] | None = None) -> None:
        """Answer with an error, in its own form or as ``body``; where the answer has begun, it breaks off instead."""
        if self.begun:
            self.close_connection = True
            return
        headers = {}
        if error.retry_after_s is not None:
            headers["Retry-After"] = f"{error.retry_after_s:.0f}"
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        self.send_json(error.to_map() if body is None else body, error.status, headers)

    def begin_stream(self, content_type: str) -> None:
        """The head of an answer whose parts follow by ``write``, until ``end_stream``."""
        self._chunked = self.request_version == "HTTP/1.1"
        self.close_connection = self.close_connection or not self._chunked
        length = {"Transfer-Encoding": "chunked"} if self._chunked else {}
        self._send_head(200, {"Content-Type": content_type, "Cache-Control": "no-cache", **length}, b"")

    def write(self, data: bytes) -> None:
        """A part of a stream; it leaves at once.

        Raises:
            OSError: the client has gone, or does not read.
        """
        if data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end_stream(self) -> None:
        """The stream is whole."""
        if self._chunked:
            self._write(b"0\r\n\r\n")

    def _send_head(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        if self._unread:
            self.close_connection = True
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        lines += [
            "X-Content-Type-Options: nosniff",
            f"Connection: {'close' if self.close_connection else 'keep-alive'}",
        ]
        self.begun = True
        self._write("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + data)

    def _write(self, data: bytes) -> None:
        self.connection.settimeout(self._limits.write_s)
        self.connection.sendall(data)

    # ------------------------------------------------------------ of the base class

    def handle_expect_100(self) -> bool:
        self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """For what the parser of the head refuses."""
        self.close_connection = self._unread = True
        self.command = self.command or ""
        self.send_json(ApiError(message or HTTPStatus(code).phrase, status=code).to_map(), code)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a path may hold a secret."""


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
