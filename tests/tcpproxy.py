"""A TCP proxy in a thread, between a peer and the broker, whose network can be made bad while it runs."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace

UP, DOWN = "up", "down"  #: from the peer to the broker, and back


@dataclass(frozen=True)
class Network:
    """How it behaves. ``silent`` directions carry nothing, as a path that loses every packet; what was sent into one
    arrives when it heals, as TCP has it."""

    delay_s: float = 0.0
    silent: frozenset[str] = frozenset()
    half_open: bool = False  #: new connections are accepted and go nowhere; old ones carry nothing
    cut: bool = False  #: every connection ends, new ones are refused
    bytes_per_s: float = 0.0  #: of each direction; 0: as fast as it goes


@dataclass
class _Way:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    name: str
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)  #: (due, bytes)
    free_at: float = 0.0
    size: int = 0


class TcpProxy:
    """Listens on a port of its own; ``network`` may be set at any time."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setblocking(False)
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._network = Network()
        self._corrupt: set[str] = set()
        self.accepted = 0  #: connections so far
        self.refused = 0  #: while it was cut
        self._ways: list[_Way] = []
        self._held: list[socket.socket] = []
        self._wake_out, self._wake_in = os.pipe()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def network(self) -> Network:
        return self._network

    @network.setter
    def network(self, network: Network) -> None:
        self._network = network
        self._wake()

    def become(self, **how: object) -> None:
        """A network that is well but for this."""
        self.network = replace(Network(), **how)  # type: ignore[arg-type]

    def corrupt(self, way: str) -> None:
        """One bit of the next bytes of each connection that go this way."""
        self._corrupt.add(way)

    def stop(self) -> None:
        self._stopping = True
        self._wake()
        self._thread.join(5)
        for s in (self._listener, *self._held, *(w.source for w in self._ways)):
            s.close()
        for fd in (self._wake_out, self._wake_in):
            os.close(fd)

    # -- the thread ------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        os.write(self._wake_in, b"!")

    def _run(self) -> None:
        while not self._stopping:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake_out, selectors.EVENT_READ)
                selector.register(self._listener, selectors.EVENT_READ)
                for way in self._ways:
                    if (
                        way.name not in self._network.silent
                        and not self._network.half_open
                        and way.size < 1 << 20
                    ):
                        selector.register(way.source, selectors.EVENT_READ, way)
                ready = [key for key, _ in selector.select(self._patience())]
            for key in ready:
                if key.fileobj == self._wake_out:
                    os.read(self._wake_out, 4096)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            if self._network.cut:
                self._end(self._ways)
                for s in self._held:
                    s.close()
                self._held.clear()
            else:
                self._forward()

    def _patience(self) -> float:
        due = [w.waiting[0][0] for w in self._ways if w.waiting]
        return min(1.0, max(0.0, min(due) - time.monotonic())) if due else 1.0

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        if self._network.cut:
            self.refused += 1
            peer.close()
            return
        self.accepted += 1
        if self._network.half_open:
            self._held.append(peer)
            return
        try:
            broker = socket.create_connection(self._target, 5)
        except OSError:
            peer.close()
            return
        for s in (peer, broker):
            s.setblocking(False)
        self._ways += [_Way(peer, broker, UP), _Way(broker, peer, DOWN)]

    def _read(self, way: _Way) -> None:
        if way not in self._ways:
            return  # its connection ended in this turn
        try:
            data = way.source.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end([way])
            return
        if way.name in self._corrupt:
            self._corrupt.discard(way.name)
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
        now = time.monotonic()
        due = max(now + self._network.delay_s, way.free_at)
        if self._network.bytes_per_s:
            way.free_at = due + len(data) / self._network.bytes_per_s
        way.waiting.append((due, data))
        way.size += len(data)

    def _forward(self) -> None:
        now = time.monotonic()
        for way in list(self._ways):
            silent = way.name in self._network.silent or self._network.half_open
            while way.waiting and way.waiting[0][0] <= now and not silent:
                _, data = way.waiting.popleft()
                try:
                    n = way.target.send(data)
                except BlockingIOError:
                    n = 0
                except OSError:
                    self._end([way])
                    break
                way.size -= n
                if n < len(data):
                    way.waiting.appendleft((now + 0.005, data[n:]))

    def _end(self, ways: list[_Way]) -> None:
        """Both directions of each connection."""
        sockets = {s for way in ways for s in (way.source, way.target)}
        self._ways = [w for w in self._ways if w.source not in sockets]
        for s in sockets:
            s.close()
