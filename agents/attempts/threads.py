"""How the attempts of handlers run: threads of this process, beside the loop's thread.

The loop hands leases over and posts nothing but actions; the threads answer with events (``post``). A thread
cannot be killed: ``terminate`` only sets ``self.task.cancelled`` (and cancels an ``async def`` handler).
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from ...bus.errors import DefinitionError, RigbusError, TaskFailed, Unreachable
from ...bus.wire import Token
from ..context import CURRENT, Buses, TaskContext
from ..handlers import Spec
from ..worker import events as ev
from ..worker.events import Lease, Outcome
from .output import MAX_LOG_BYTES
from .values import outcome_of

log = logging.getLogger(__name__)

#: ``post(event, wake)``: from any thread to the loop; without ``wake`` it is seen at the loop's next turn.
Post = Callable[[ev.Event, bool], None]
LENT_PER_SLOT = 4
CROWDED_S = 0.25  #: how long a handler that found no room to wait stays away


class Crowded(RigbusError):
    """Too many handlers of this worker wait already. Not a failure: the attempt is given back and runs again."""


class Runner(Protocol):
    """Runs leases of some types. Called from the loop's thread only; answers by posting events."""

    def start(self, lease: Lease) -> None:
        """Run it. Started and Ended follow, Ended exactly once, when all its processes are dead."""

    def recall(self, tokens: Sequence[Token]) -> list[Token]:
        """Those that had not begun; they will not."""

    def terminate(self, token: Token) -> None:
        """End it politely. Unknown tokens are ignored."""

    def kill(self, token: Token) -> None:
        """End its whole tree. Unknown tokens are ignored."""

    def tick(self, now: float) -> float | None:
        """Do what is due; the time of the next call that is needed, None for none."""

    def close(self) -> None:
        """The worker exits: free what is held; whatever still runs dies with the process."""


class ThreadRunner:
    """Handlers in threads: ``slots`` at once, and one more for each that waits for the bus."""

    def __init__(
        self,
        run: Callable[[Lease, TaskContext], Outcome],
        slots: int,
        post: Post,
        logs: Path | None,
        timeouts: Mapping[str, float | None] | None = None,
        log_bytes: int = MAX_LOG_BYTES,
    ) -> None:
        self._run = run
        self._slots = slots
        self._post = post
        self._logs, self._log_bytes = logs, log_bytes
        self._timeouts = timeouts or {}
        self._cond = threading.Condition()
        self._queue: deque[Lease] = deque()
        self._running: dict[Token, TaskContext] = {}
        self._active = 0  # running and not waiting
        self._idle = 0
        self._waiting = 0
        self._closed = False

    # ------------------------------------------------------------ the loop's side

    def start(self, lease: Lease) -> None:
        with self._cond:
            self._queue.append(lease)
            self._put_to_work()

    def _put_to_work(self) -> None:
        """Under the lock: someone takes the queue's head if a slot is free."""
        if not self._queue or self._active >= self._slots or self._closed:
            return
        if self._idle:
            self._cond.notify()
            return
        self._active += 1  # reserved for the new thread
        threading.Thread(target=self._serve, name="rigbus-handler", daemon=True).start()

    def recall(self, tokens: Sequence[Token]) -> list[Token]:
        wanted = set(tokens)
        with self._cond:
            back = [lease.token for lease in self._queue if lease.token in wanted]
            self._queue = deque(lease for lease in self._queue if lease.token not in wanted)
        return back

    def terminate(self, token: Token) -> None:
        with self._cond:
            task = self._running.get(token)
        if task is not None:
            task.cancel()

    def kill(self, token: Token) -> None:
        self.terminate(token)

    def tick(self, now: float) -> float | None:
        return None

    def close(self) -> None:
        with self._cond:
            self._closed = True
            self._queue.clear()
            self._cond.notify_all()

    @property
    def busy(self) -> bool:
        """Does a handler still run?"""
        with self._cond:
            return bool(self._running)

    # ------------------------------------------------------------ the channel of a running handler

    def progress(self, token: Token, pct: float | None, note: str | None, data: bytes | None) -> None:
        self._post(ev.Progress(token, pct, note, data), True)

    def waiting(self, token: Token, waits: bool) -> None:
        with self._cond:
            if waits:
                if self._waiting >= LENT_PER_SLOT * self._slots:
                    raise self._no_room(token)
                self._waiting += 1
                self._active -= 1
                self._put_to_work()
            else:
                # It goes on at once, even beyond the slots: to wait for a free slot here could deadlock.
                self._waiting -= 1
                self._active += 1
        self._post(ev.Lent(token, waits), waits)

    def _no_room(self, token: Token) -> RigbusError:
        """Under the lock: why this handler may not wait too. Where all that wait are its own callers it never could;
        else others are in the way, and it runs again when they have gone on."""
        running = {task.id: task for task in self._running.values()}
        callers, task = 0, self._running.get(token)
        while task is not None and task.parent is not None and callers < len(running):
            task = running.get(task.parent)
            callers += task is not None
        said = f"{self._waiting} handlers of this worker wait for answers already ({LENT_PER_SLOT} a slot)"
        if callers >= self._waiting:
            return DefinitionError(f"call depth: {said}; give the agent more slots or call less deeply")
        return Crowded(f"{said}: it runs again when there is room; more slots let more of them wait")

    # ------------------------------------------------------------ the threads

    def _serve(self) -> None:
        reserved = True
        while True:
            with self._cond:
                if reserved:
                    self._active -= 1
                    reserved = False
                while not self._closed and not (self._queue and self._active < self._slots):
                    self._idle += 1
                    self._cond.wait()
                    self._idle -= 1
                if self._closed:
                    return
                lease = self._queue.popleft()
                self._active += 1
                timeout_s = lease.timeout_s or self._timeouts.get(lease.type)
                task = TaskContext(lease, self, self._logs, timeout_s, self._log_bytes)
                self._running[lease.token] = task
                reserved = True
            self._post(ev.Started(lease.token, monotonic()), False)
            outcome = self._run(lease, task)
            with self._cond:
                del self._running[lease.token]
            self._post(ev.Ended(lease.token, outcome), True)


def run_handler(agent: Any, spec: Spec, lease: Lease, task: TaskContext, results: Path | None) -> Outcome:
    """Run one attempt of ``spec`` in this thread and say how it ended. Never raises."""
    begun_at = monotonic()
    mark = CURRENT.set(task)
    try:
        arguments = spec.arguments(lease.payload)
        method = getattr(agent, spec.method)
        value = _await(method(**arguments), task) if spec.is_async else method(**arguments)
        return outcome_of(value, results, monotonic() - begun_at)
    except BaseException as e:
        return failure_of(e, spec, monotonic() - begun_at)
    finally:
        CURRENT.reset(mark)
        buses = getattr(agent, "_buses", None)
        if isinstance(buses, Buses):
            buses.drop()


def failure_of(error: BaseException, spec: Spec, duration_s: float) -> Outcome:
    """The class and text of a handler's exception: its traceback without our own frames."""
    if isinstance(error, Crowded):
        return ev.returned(f"{spec.type}: {error}", CROWDED_S)
    if isinstance(error, DefinitionError):
        return ev.failed("definition", str(error), duration_s=duration_s)
    if isinstance(error, TaskFailed) and error.error_class == "definition":
        # The answer is on record: the next attempt would be told the same.
        return ev.failed("definition", f"{spec.type}: {error}", duration_s=duration_s)
    if isinstance(error, Unreachable):
        return ev.failed("infra", f"{spec.type}: {error}", duration_s=duration_s)
    # An agent that knows whose fault it was says so; a failed call's class is that of another task, so its place counts.
    error_class = None if isinstance(error, TaskFailed) else getattr(error, "error_class", None)
    if isinstance(error, RigbusError) and error_class in {"task", "crash", "infra", "definition"}:
        return ev.failed(error_class, f"{spec.type}: {error}", duration_s=duration_s)
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    text = "".join(traceback.format_exception(type(error), error, tb)).rstrip()
    if not isinstance(error, Exception) and not _is_cancellation(error):
        text = f"the handler of {spec.type} tried to end its process: {text}"
    log.debug("handler %s failed", spec.type, exc_info=not isinstance(error, RigbusError))
    return ev.failed("task", text, duration_s=duration_s)


def _is_cancellation(error: BaseException) -> bool:
    loaded = sys.modules.get("asyncio")
    return loaded is not None and isinstance(error, loaded.CancelledError)


def _await(coroutine: Any, task: TaskContext) -> Any:
    import asyncio  # a tenth of a worker's start, and few have such handlers

    async def main() -> Any:
        loop, me = asyncio.get_running_loop(), asyncio.current_task()

        def cancel() -> None:
            if me is not None and not loop.is_closed():
                loop.call_soon_threadsafe(me.cancel)

        task.when_cancelled(cancel)
        return await coroutine

    return asyncio.run(main())
