"""``self.task`` and ``self.bus``: what a handler sees of its attempt and of the bus.

Both are found through a context variable, so that one agent object serves several threads at once, and code
that an ``async def`` handler awaits (or runs by ``asyncio.to_thread``) sees the same task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from ..bus.errors import DefinitionError
from ..bus.paths import log_path
from ..bus.wire import Token
from .attempts.output import MAX_LOG_BYTES
from .attempts.values import pack_value
from .worker.events import Lease, legible

if TYPE_CHECKING:
    from ..bus.client.client import Client

NOTE_CHARS = 2000
CHUNK_BYTES = 512 << 10  #: of one `progress`


class Channel(Protocol):
    """From a running handler to its worker. Called from the handler's threads."""

    def progress(self, token: Token, pct: float | None, note: str | None, data: bytes | None) -> None: ...

    def waiting(self, token: Token, waits: bool) -> None:
        """The handler waits for an answer of the bus: its slot is lent meanwhile.

        Raises:
            DefinitionError: ``call depth``: too many handlers of this worker wait already.
        """


class TaskContext:
    """One attempt, as its handler sees it (``self.task``).

    Attributes:
        id, key, name, type, batch_id: the task's. attempt: 1 for the first. priority: 0 to 9.
        parent: id of the task whose handler called this one, None for others.
        meta: what the submitter attached. timeout_s: of this attempt, None when it has none.
        feedback: why the result of an earlier attempt was rejected, empty where none was (docs/evaluation.md).
    """

    def __init__(
        self,
        lease: Lease,
        channel: Channel,
        logs: Path | None = None,
        timeout_s: float | None = None,
        log_bytes: int = MAX_LOG_BYTES,
    ) -> None:
        self.token = lease.token
        self.id = lease.id
        self.key = lease.key
        self.name = lease.name or lease.key
        self.type = lease.type
        self.batch_id = lease.batch
        self.parent: str | None = lease.parent
        self.attempt = lease.attempt
        self.priority = lease.priority
        self.meta: Mapping[str, Any] = lease.meta
        self.feedback = lease.feedback or ""
        self.timeout_s = timeout_s if timeout_s is not None else lease.timeout_s
        self._deadline_s = lease.deadline_s
        self._begun_at = monotonic()
        self._channel = channel
        self._logs = logs
        self._log_bytes = log_bytes
        self._cancelled = False
        self._event: threading.Event | None = None
        self._lock = threading.Lock()
        self._on_cancel: list[Callable[[], None]] = []
        self._logged = 0
        #: The thread whose client this task's calls go through; their order is what a rerun relies on.
        self.bus_thread: int | None = None

    @property
    def cancelled(self) -> bool:
        """True once the task is cancelled, timed out or its worker is stopped: return soon."""
        return self._cancelled

    def wait_cancelled(self, timeout_s: float | None = None) -> bool:
        """Sleep, at most ``timeout_s`` seconds, but not past a cancel; ``cancelled`` afterwards."""
        with self._lock:
            if self._event is None:
                self._event = threading.Event()
                if self._cancelled:
                    self._event.set()
        return self._event.wait(timeout_s)

    @property
    def deadline_s(self) -> float | None:
        """Seconds left until the attempt's timeout or the task's deadline, whichever is first; None: neither."""
        spent = monotonic() - self._begun_at
        ends = [s - spent for s in (self.timeout_s, self._deadline_s) if s is not None]
        return min(ends) if ends else None

    def progress(self, pct: float | None = None, note: str | None = None, data: Any = None) -> None:
        """Tell whoever waits how far it is: ``pct`` 0 to 1, a short ``note``, a chunk of ``data`` (plain data).

        Chunks arrive in order and numbered; nothing of it is stored. Call it as often as you like.

        Raises:
            DefinitionError: ``data`` is not plain data, or over 512 KiB packed.
        """
        share = None if pct is None else min(1.0, max(0.0, float(pct)))
        text = None if note is None else legible(str(note), NOTE_CHARS)
        chunk = None if data is None else pack_value(data)
        if chunk is not None and len(chunk) > CHUNK_BYTES:
            raise DefinitionError(
                f"a chunk of progress of {len(chunk)} bytes, the limit is {CHUNK_BYTES}; send it in several"
            )
        self._channel.progress(self.token, share, text, chunk)

    def log(self, text: object) -> None:
        """Append a line to the attempt's log (``rigbus logs TASK``); past the rig's ``logs.task_bytes`` it is dropped."""
        if self._logs is None or self._logged > self._log_bytes:
            return
        line = f"{text}\n".encode("utf-8", "replace")
        with self._lock:
            self._logged += len(line)
            path = log_path(self._logs, self.batch_id, self.key, self.attempt)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as f:
                f.write(line)

    def cancel(self) -> None:
        """For the worker: set ``cancelled`` and wake who waits for it."""
        with self._lock:
            self._cancelled = True
            if self._event is not None:
                self._event.set()
            hooks = list(self._on_cancel)
        for hook in hooks:
            hook()

    def when_cancelled(self, hook: Callable[[], None]) -> None:
        """For the worker: call ``hook`` from the cancelling thread; at once when it is cancelled already."""
        with self._lock:
            if not self._cancelled:
                self._on_cancel.append(hook)
                return
        hook()

    def waiting(self, waits: bool) -> None:
        """For the client: a wait for the bus begins or ends."""
        self._channel.waiting(self.token, waits)


CURRENT: ContextVar[TaskContext | None] = ContextVar("rigbus_task", default=None)


def current_task() -> TaskContext:
    """The attempt that this code runs for.

    Raises:
        RuntimeError: it does not run inside a handler.
    """
    task = CURRENT.get()
    if task is None:
        raise RuntimeError("self.task exists only while a handler runs; on_start and @on methods have none")
    return task


class Buses:
    """The clients of one agent: one a thread, bound to the task that the thread works on."""

    def __init__(self, make: Callable[[TaskContext | None], Client]) -> None:
        self._make = make
        self._local = threading.local()

    def get(self) -> Client:
        """This thread's client; its calls are children of the running task, when there is one.

        Raises:
            RuntimeError: another thread of the same handler uses ``self.bus`` already.
        """
        task = CURRENT.get()
        if task is not None:
            me = threading.get_ident()
            task.bus_thread = task.bus_thread or me
            if task.bus_thread != me:
                raise RuntimeError(
                    "self.bus is used by two threads of one handler: the order of its calls would be lost; submit "
                    "them together with self.bus.submit and take self.bus.results"
                )
        held: tuple[TaskContext | None, Client] | None = getattr(self._local, "held", None)
        if held is not None and held[0] is task:
            return held[1]
        self.drop()
        client = self._make(task)
        self._local.held = (task, client)
        return client

    def drop(self) -> None:
        """The thread's task is over: end its client's session."""
        held: tuple[TaskContext | None, Client] | None = getattr(self._local, "held", None)
        if held is not None:
            self._local.held = None
            held[1].close()
