"""A small HTTP/1.1 server for this machine's own commands: bounded in connections, bytes and time; it notices a client
that has gone.

One thread accepts, and watches the connections whose client waits; each connection has a thread that reads and writes
it (``exchange.py``). The watcher only peeks.

Whoever is on this machine can connect, and say nothing. So a connection is a *stranger* until ``serve`` knows whose it is,
and where all places are taken the stranger who has been there the longest makes room. One who has something to say has
said it by then: that many others would have to come between its connect and the reading of its head.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Final

from .exchange import LOOPBACK, Exchange, Limits, Watch
from .peers import reads_on

log = logging.getLogger(__name__)

_BACKLOG: Final = 512  # one that does not fit in comes again after a second only
_ACCEPT_PAUSE_S: Final = 1.0  # after EMFILE
_JOIN_S: Final = 5.0
_HALF_S: Final = 0.2  #: between two looks at a client that has ended its side
_RDHUP: Final = getattr(select, "POLLRDHUP", 0)
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    b'{"error":{"message":"too many connections; try again","type":"server_error","param":null,"code":"busy"}}'
)


@dataclass(slots=True)
class _Connection:
    """``known``: ``serve`` knows whose it is; ``ended``: we have shut it, and its thread is on its way out."""

    sock: socket.socket
    known: bool = False
    ended: bool = False


class LoopbackServer:
    """Serves HTTP on an ephemeral port of 127.0.0.1 from ``start`` to ``close``; ``serve`` answers each request.

    ``serve`` runs in the connection's thread, and calls ``know`` with what it finds out; an ApiError that it raises becomes
    the answer.
    """

    def __init__(self, serve: Callable[[Exchange], None], limits: Limits | None = None) -> None:
        self.serve = serve
        self.limits = limits or Limits()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self._closing = False
        self._open: dict[threading.Thread, _Connection] = {}  # the oldest first
        self._watched: dict[int, Watch] = {}
        self._loop: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        """Bind and listen. Once."""
        self._listener = socket.create_server((LOOPBACK, 0), backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._loop = threading.Thread(target=self._run, args=(self._listener,), name="loopback", daemon=True)
        self._loop.start()

    def close(self) -> None:
        """End every connection. Harmless twice."""
        with self._lock:
            self._closing = True
            for connection in self._open.values():
                _shut(connection.sock)
            threads = list(self._open)
        self._wake()
        if self._loop is not None:
            self._loop.join(_JOIN_S)
        until_s = monotonic() + _JOIN_S
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until_s - monotonic()))

    # ------------------------------------------------------------ the accepting thread

    def _run(self, listener: socket.socket) -> None:
        accept_at_s = 0.0
        try:
            while not self._closing:
                poller = select.poll()
                poller.register(self._wake_out, select.POLLIN)
                pause_s = accept_at_s - monotonic()
                halves = False
                with self._lock:
                    if pause_s <= 0 and not self._is_crowded():
                        poller.register(listener, select.POLLIN)
                    for fd, watch in self._watched.items():
                        poller.register(fd, watch.events)
                        halves = halves or watch.half
                waits = [s for s in (pause_s, _HALF_S if halves else 0.0) if s > 0]
                for fd, _events in poller.poll(1000 * min(waits) if waits else None):
                    if fd == listener.fileno():
                        accept_at_s = self._accept(listener)
                    elif fd == self._wake_out.fileno():
                        _drain(self._wake_out)
                    else:
                        self._look(fd)
                if halves:
                    self._look_at_halves()
        finally:
            listener.close()
            with self._lock:
                left = list(self._watched.values())
            for watch in left:
                _tell(watch)
            self._wake_out.close()
            self._wake_in.close()

    def _accept(self, listener: socket.socket) -> float:
        """When to accept again: at once, or after a pause where the system gives no socket."""
        try:
            sock, _address = listener.accept()
        except BlockingIOError:
            return 0.0
        except OSError as e:
            log.warning("the model's endpoint cannot accept: %s; next try in %g s", e, _ACCEPT_PAUSE_S)
            return monotonic() + _ACCEPT_PAUSE_S
        with self._lock:
            full = self._closing or not self._has_room()
            if not full:
                thread = threading.Thread(
                    target=self._serve, args=(sock,), name="loopback-client", daemon=True
                )
                self._open[thread] = _Connection(sock)
                thread.start()
        if full:
            sock.setblocking(False)
            try:
                sock.send(_FULL)
            except OSError:
                pass  # it has gone already
            sock.close()
        return 0.0

    def _is_crowded(self) -> bool:
        """So many threads of strangers that were shut have yet to end: who comes now waits for the next that does. With the
        lock held."""
        return len(self._open) >= 2 * self.limits.connections

    def _has_room(self) -> bool:
        """Is there a place for one more, if need be that of a stranger? With the lock held."""
        most = self.limits.connections
        there = [connection for connection in self._open.values() if not connection.ended]
        if len(there) < most:
            return True
        stranger = next((connection for connection in there if not connection.known), None)
        if stranger is None:
            return False
        stranger.ended = True
        _shut(stranger.sock)
        return True

    def _look(self, fd: int) -> None:
        """Is the client of ``fd`` gone? Under the lock, so that its thread cannot close the socket meanwhile."""
        with self._lock:
            watch = self._watched.get(fd)
            if watch is None:
                return
            try:
                gone = not watch.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                gone = watch.events != select.POLLIN
            except OSError:
                gone = True
            if not gone:
                # It has sent more (the next request): only its end is of interest now.
                gone = watch.events != select.POLLIN
                watch.events = _RDHUP
            if gone and not watch.half and reads_on(watch.sock):
                # It has said all and waits for the answer. A reset still wakes the poll; its end has to be looked for.
                watch.half, watch.events, gone = True, 0, False
            if gone:
                del self._watched[fd]
        if gone:
            _tell(watch)

    def _look_at_halves(self) -> None:
        """Who has ended its side: does it still wait?"""
        with self._lock:
            gone = [fd for fd, watch in self._watched.items() if watch.half and not reads_on(watch.sock)]
            told = [self._watched.pop(fd) for fd in gone]
        for watch in told:
            _tell(watch)

    # ------------------------------------------------------------ the threads of connections

    def _serve(self, sock: socket.socket) -> None:
        try:
            Exchange(sock, (LOOPBACK, 0), self)
        except OSError as e:
            log.debug("a client of the model's endpoint: %s", e)
        except Exception:
            log.exception("the model's endpoint failed in a connection")
        finally:
            with self._lock:
                crowded = self._is_crowded()
                self._open.pop(threading.current_thread(), None)
            if crowded:
                self._wake()
            _shut(sock)  # a close alone waits for the poll that still looks at it
            sock.close()

    @contextmanager
    def watch(self, sock: socket.socket, on_gone: Callable[[], None]) -> Iterator[Watch]:
        """Meanwhile ``on_gone`` is called, in the accepting thread, as soon as the client closes."""
        watch = Watch(sock, on_gone)
        fd = sock.fileno()
        with self._lock:
            closing = self._closing
            if not closing:
                self._watched[fd] = watch
        if closing:
            _tell(watch)
        self._wake()
        try:
            yield watch
        finally:
            with self._lock:
                if self._watched.get(fd) is watch:
                    del self._watched[fd]

    def know(self, known: bool) -> None:
        """Of the calling thread's connection: it is a stranger's no more, or again."""
        with self._lock:
            self._open[threading.current_thread()].known = known

    def abort(self, sock: socket.socket) -> None:
        """From any thread: end a connection. Its thread, or its watch, sees that as the client's end."""
        with self._lock:
            if any(connection.sock is sock for connection in self._open.values()):
                _shut(sock)

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"!")
        except OSError:
            pass  # it is awake already, or has ended


def _tell(watch: Watch) -> None:
    watch.gone.set()
    try:
        watch.on_gone()
    except Exception:  # of one request; the server goes on for the others
        log.exception("the model's endpoint: what ends a request failed")


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself


def _drain(sock: socket.socket) -> None:
    try:
        sock.recv(4096)
    except BlockingIOError:
        pass
