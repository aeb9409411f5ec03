"""What connected peers make the broker hold before it can read it, and who is cut off for it.

libzmq bounds a frame (MAXMSGSIZE) and counts messages (RCVHWM). The frames of a message that has not ended are counted
by nothing and shown to nobody: one peer that says MORE for ever fills the memory of the process, while its loop sees an
idle socket (docs/adr/0027). So the process' own memory is watched here, from a thread; libzmq's monitors tell which
file descriptors are connections; and one that fills the memory is shut down under libzmq, which then frees what it had.

The decisions are :class:`Watch`, pure; :class:`Inflow` is the thread around it. What it asks of the system is in
``connections``.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import zmq

from .connections import Connection, Process, allowed, trim, unread_bytes

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
INFLOW_BYTES: Final = 256 * MIB  #: what a message of 1,000 payloads of 256 KiB takes, the largest there is
LOOK_S: Final = 0.05  #: between two looks: a local socket brings about 70 MiB in it
SETTLE_S: Final = 0.25  #: for libzmq to free what a connection had, where memory still rises after it was cut
PATIENCE_S: Final = 2.0  #: where it does not: a busy machine lets libzmq wait for its turn
SAMPLES: Final = 5  #: of the unread bytes in a look: a reader that keeps up leaves none at most moments
SAMPLE_S: Final = 0.002
RISE_BYTES: Final = (
    4 * MIB
)  #: memory that grew by less in a look is nobody's flood: connections are not asked
TASK_BYTES: Final = 1_000  #: of the core's records, a task; they are no flood
_HEARD_AT_ONCE: Final = 1000  #: beginnings and ends of connections of one socket
_DECAY: Final = 0.8
_SUSPECT: Final = 0.1  #: of the fullest connection's bytes, that make another one suspect, too


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that was shut down: which peer of which socket, and what was freed with it and its like (bytes)."""

    peer: str
    pid: int
    socket: str
    freed_bytes: int
    why: str = "flood"  #: or connections

    @property
    def fix(self) -> str:
        """What a person can do."""
        if self.why == "flood":
            return "end that program if it goes on; limits.inflow_mb is the bound"
        return "end programs that open many connections, or raise limits.connections"

    def words(self, of: int) -> str:
        """What it did; ``of`` connections were cut at once."""
        if self.why != "flood":
            return f"{self.peer} was refused: there are as many connections as are allowed"
        alone = "" if of < 2 else f", it or one of {of - 1} others that were cut with it"
        return (
            f"{self.peer} was cut off: {self.freed_bytes // MIB} MiB lay in messages without an end on the "
            f"{self.socket} socket{alone}"
        )


@dataclass(slots=True)
class Watch:
    """When memory grew past what is allowed, which connections to cut. ``allowed_bytes`` is the growth that is."""

    allowed_bytes: int
    base: int = 0  #: bytes of the process that are explained
    base_tasks: int = 0
    scores: dict[int, float] = field(default_factory=dict)  #: connection -> unread bytes of late
    before: int = 0  #: bytes of the process when the connections in ``cut`` were cut
    cut: list[int] = field(default_factory=list)
    _last: int = 0
    _wave: int = 0
    _settled_at: float = 0.0

    def bound(self, tasks: int) -> int:
        """How many bytes the process may have now."""
        return self.base + self.allowed_bytes + TASK_BYTES * max(0, tasks - self.base_tasks)

    def start(self, size: int, tasks: int) -> None:
        """What is there now is explained."""
        self.base, self.base_tasks, self._last = size, tasks, size

    def wants_connections(self, size: int, tasks: int) -> bool:
        """Whether the next :meth:`look` needs to know of all connections, and what they have unread."""
        return size - self._last >= RISE_BYTES or size > self.bound(tasks)

    def look(self, size: int, tasks: int, unread: Mapping[int, int], now: float) -> list[int]:
        """The connections to cut now. ``unread``: bytes by connection, empty where nobody asked."""
        if unread:
            self.scores = {c: self.scores.get(c, 0.0) * _DECAY + n for c, n in unread.items()}
        rises, self._last = size > self._last, size
        if size <= self.bound(tasks):
            if size < self.base:
                self.base, self.base_tasks = size, tasks
            return []
        if not self._wave:
            self.before = size
            most = max(self.scores.values(), default=0.0)
            self.cut = [c for c, n in self.scores.items() if n and n >= most * _SUSPECT]
            return self._wait(1, now) if self.cut else self._all(now)
        if now < self._settled_at + (0.0 if rises else PATIENCE_S - SETTLE_S):
            return []
        return self._all(now) if self._wave == 1 else []

    def over(self, size: int, tasks: int, now: float) -> bool | None:
        """Of what was cut: True: the memory is back; False: it was not theirs, and is explained from now on; None: wait."""
        if not self._wave:
            return None
        if size <= self.bound(tasks):
            self._wave = 0
            return True
        if self._wave == 2 and now >= self._settled_at + PATIENCE_S - SETTLE_S:
            self._wave = 0
            self.start(size, tasks)
            return False
        return None

    def _wait(self, wave: int, now: float) -> list[int]:
        self._wave, self._settled_at = wave, now + SETTLE_S
        return self.cut

    def _all(self, now: float) -> list[int]:
        """The suspects were none, or the wrong ones: everybody greets again, and loses nothing by it."""
        self.cut = list(self.scores)
        return self._wait(2, now)


class Inflow:
    """The thread. ``tasks`` says how many the core has; ``take`` gives what was cut since the last call.

    Only where the process can see its own size (/proc): elsewhere connections are counted, and nothing is cut for memory.
    """

    def __init__(
        self,
        sockets: Mapping[str, zmq.Socket[bytes]],
        tasks: Callable[[], int],
        *,
        allowed_bytes: int = INFLOW_BYTES,
        connections: int | None = None,
    ) -> None:
        self._sockets = sockets
        self._monitors = {name: s.get_monitor_socket(_EVENTS) for name, s in sockets.items()}
        self._tasks = tasks
        self._watch = Watch(allowed_bytes)
        self._bound = allowed(connections)
        self._process = Process()
        self._connections: dict[int, Connection] = {}
        self._cuts: deque[Cut] = deque(maxlen=256)
        self._pending: list[Connection] = []
        self._size = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inflow", daemon=True)

    def start(self) -> None:
        """Begin to watch; the memory that the process has now is explained."""
        self._size = self._process.size_bytes()
        self._watch.start(self._size, self._tasks())
        self._thread.start()

    def take(self) -> list[Cut]:
        """What was cut since the last call; from any thread."""
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._cuts.popleft())
        return taken

    def usage(self) -> dict[str, tuple[int, int]]:
        """For `status`: (used, bound) of connections, and of memory that nothing explains."""
        room = self._watch.bound(self._tasks()) - self._watch.allowed_bytes
        return {
            "connections": (len(self._connections), self._bound),
            "inflow_bytes": (max(0, self._size - room), self._watch.allowed_bytes),
        }

    def close(self) -> None:
        """End the thread and the monitors, before their sockets are closed."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        for name, s in self._sockets.items():
            s.disable_monitor()
            self._monitors[name].close(0)
        self._process.close()

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        for monitor in self._monitors.values():
            poller.register(monitor, zmq.POLLIN)
        look_at = time.monotonic() + LOOK_S
        while not self._stopping.is_set():
            # A new connection is heard of at once: a thousand can come between two looks, and at its last descriptor
            # libzmq aborts the process (ipc_listener.cpp).
            poller.poll(max(0, math.ceil((look_at - time.monotonic()) * 1000)))
            self._hear()
            if time.monotonic() < look_at:
                continue
            try:
                self._look()
            except OSError as e:  # of a descriptor that went away meanwhile
                log.debug("a look at the connections failed: %s", e)
            look_at = time.monotonic() + LOOK_S

    def _hear(self) -> None:
        for name, monitor in self._monitors.items():
            for _ in range(
                _HEARD_AT_ONCE
            ):  # who connects without an end keeps nobody from the look at memory
                if not monitor.poll(0):
                    break
                self._heard(name, *_event_of(monitor.recv_multipart()))

    def _look(self) -> None:
        self._size = size = self._process.size_bytes()
        now, tasks, watch = time.monotonic(), self._tasks(), self._watch
        rose = watch.wants_connections(size, tasks)
        for fd in watch.look(size, tasks, self._unread() if rose else {}, now):
            connection = self._connections.get(fd)
            if connection is not None and self._process.shut_down(connection):
                self._pending.append(connection)
        if self._pending:
            trim()
            self._size = size = self._process.size_bytes()
        over = watch.over(size, tasks, now)
        if over is not None:
            self._judge(over, size)

    def _judge(self, over: bool, size: int) -> None:
        freed = max(0, self._watch.before - size)
        if over:
            self._cuts.extend(Cut(c.peer, c.pid, c.socket, freed) for c in self._pending)
        else:
            log.info(
                "memory grew to %d MiB, and not for what %d connections sent", size // MIB, len(self._pending)
            )
        self._pending = []

    def _heard(self, name: str, event: int, fd: int) -> None:
        if event != zmq.EVENT_ACCEPTED:
            known = self._connections.get(fd)
            # Each socket tells of its own: the number may be a connection of another one by now.
            if known is not None and known.socket == name:
                del self._connections[fd]
                self._watch.scores.pop(fd, None)
            return
        try:
            connection = self._process.accepted(fd, name)
        except OSError:
            return  # it is gone again
        if len(self._connections) >= self._bound:
            if self._process.shut_down(connection):
                self._cuts.append(Cut(connection.peer, connection.pid, name, 0, "connections"))
            return
        self._connections[fd] = connection
        self._watch.scores.pop(fd, None)  # of who had the number before

    def _unread(self) -> dict[int, int]:
        """Of each connection the most that was seen waiting in some moments."""
        unread: dict[int, int] = {}
        for i in range(SAMPLES):
            if i and self._stopping.wait(SAMPLE_S):
                break
            for fd in self._connections:
                with suppress(OSError):
                    unread[fd] = max(unread.get(fd, 0), unread_bytes(fd))
        return unread


_EVENTS: Final = int(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)


def _event_of(frames: list[bytes]) -> tuple[int, int]:
    """(event, value) of a monitor's message, zmq_socket_monitor(3). pyzmq's own reader would load asyncio."""
    event, value = struct.unpack("=Hi", frames[0])
    return int(event), int(value)
