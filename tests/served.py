"""Models behind HTTP, for tests: our own endpoint with a client, and servers that misbehave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rigbus.agents.models.endpoint.server import Endpoint, Limits
from rigbus.agents.models.protocol import Chunk, GenerateRequest, Model, Usage
from rigbus.agents.models.remote import RemoteModel, RemotePatience
from rigbus.agents.models.scripted import ScriptedModel

#: It waits for what a busy machine does late; between two tries it hardly does.
QUICK = RemotePatience(connect_s=30, silent_s=60, retries=3, backoff_s=0.01)


@contextmanager
def endpoint_of(
    model: Model | None, limits: Limits | None = None, idle_s: float = 10.0
) -> Iterator[Endpoint]:
    """A running endpoint."""
    endpoint = Endpoint(model, limits=limits, idle_s=idle_s)
    endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.close()


@contextmanager
def remote_of(model: Model) -> Iterator[RemoteModel]:
    """``model`` behind an endpoint of ours, seen through HTTP."""
    with endpoint_of(model) as endpoint:
        # The secret by the path, so that a test needs no environment of its own.
        url = f"{endpoint.url}/attempt/{endpoint.grant('test')}/v1"
        remote = RemoteModel(url, model.name, ctx=8192, patience=QUICK)
        try:
            yield remote
        finally:
            remote.close()


class HeldGeneration:
    """Says one word, then nothing until it is cancelled."""

    def __init__(self, first: str, cancelled: threading.Event) -> None:
        self._first = first
        self._cancelled = cancelled
        self._ended = False

    def __iter__(self) -> Iterator[Chunk | Usage]:
        return self

    def __next__(self) -> Chunk | Usage:
        while (item := self.poll(5)) is None:
            pass
        return item

    def poll(self, timeout_s: float) -> Chunk | Usage | None:
        if self._ended:
            raise StopIteration
        if self._first:
            text, self._first = self._first, ""
            return Chunk(text)
        if self._cancelled.wait(timeout_s):
            self._ended = True
            return Usage(completion_tokens=1, finish="cancelled")
        return None

    def cancel(self) -> None:
        self._cancelled.set()


class HeldModel(ScriptedModel):
    """Each request says ``first`` and waits for its cancel: ``cancels`` holds one event a request."""

    def __init__(self, first: str = "well") -> None:
        super().__init__(name="held")
        self.first = first
        self.cancels: list[threading.Event] = []
        self.asked_one = threading.Event()

    def generate(self, request: GenerateRequest) -> Any:
        self.start()
        self.cancels.append(threading.Event())
        self.asked_one.set()
        return HeldGeneration(self.first, self.cancels[-1])


class RawServer:
    """Plays ``script(connection, n)`` for the n-th connection, from 0, each in a thread; the request is in ``asked``."""

    def __init__(self, script: Callable[[socket.socket, int], None], *, reads: bool = True) -> None:
        self.asked: list[bytes] = []
        self.asked_by: dict[int, bytes] = {}  #: by the number of the connection
        self.ended = threading.Event()
        self._script = script
        self._reads = reads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a script that goes on beside the next test"

    def _run(self) -> None:
        n = 0
        while not self.ended.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self.ended.is_set():
                sock.close()  # nobody plays for a connection that comes after the test
                return
            self._sockets.append(sock)
            thread = threading.Thread(target=self._play, args=(sock, n), daemon=True)
            self._threads.append(thread)
            thread.start()
            n += 1

    def _play(self, sock: socket.socket, n: int) -> None:
        with sock:
            try:
                if self._reads:
                    self.asked_by[n] = read_request(sock)
                    self.asked.append(self.asked_by[n])
                self._script(sock, n)
            except OSError:
                pass  # the client has gone: often what the test wants


def read_request(sock: socket.socket) -> bytes:
    """The head and the body of a request with a Content-Length.

    Raises:
        OSError: the connection ended before it was whole, which a server must not take for a request.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        body += _receive(sock)
    return head + b"\r\n\r\n" + body


def _receive(sock: socket.socket) -> bytes:
    piece = sock.recv(65536)
    if not piece:
        raise ConnectionResetError("ended in the middle of a request")
    return piece


def answer(status: str, body: bytes, *headers: str, content_type: str = "application/json") -> bytes:
    """A whole HTTP answer."""
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream_head() -> bytes:
    """The head of a stream that ends with the connection."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"


def chunk(text: str, finish: str | None = None) -> bytes:
    """One event of a streamed chat answer."""
    value = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"
