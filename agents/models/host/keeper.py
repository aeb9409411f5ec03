"""The thread that keeps one model's child: starts it, hears it, notices its end, starts it again.

It is also the thread that the child's parent death signal follows, so it lives as long as the model. Everybody
else talks to it through a queue and reads the answers from queues of their own.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, Final

from ....bus.errors import DefinitionError, WaitTimeout
from ...attempts.pipe import BrokenPipeFrame
from ...process.linux import TOKEN_VARIABLE, ExitStatus, Processes, SpawnError, processes
from ..protocol import GenerateRequest, LoadOptions, ModelClosed, ModelCrashed, ModelInfo, ModelState, Usage
from .crash_budget import CRASHES, WINDOW_S, CrashBudget
from .generation import Hosted
from .open_requests import OpenRequests
from .patience import Patience
from .process import SWEEP_POLL_S, ModelProcess

log = logging.getLogger(__name__)

BACKOFF_MAX_S: Final = 30.0
_END_S: Final = 1.0  # between the end of a child's pipe and its own
_IDLE_POLL_S: Final = 60.0
_MODELS = count(1)


class Keeper:
    """The keeper thread. Public methods are for other threads, ``_``-methods for its own."""

    def __init__(self, options: LoadOptions, log_path: Path | None, patience: Patience) -> None:
        self.state = ModelState("new")
        self._options = options
        self._log_path = log_path
        self._patience = patience
        self._token = f"{os.environ.get(TOKEN_VARIABLE) or f'model:{os.getpid()}'}.m{next(_MODELS)}"
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._inbox: deque[tuple[str, Hosted[Any] | None]] = deque()
        self._wake_out = self._wake_in = -1
        self._info: ModelInfo | None = None
        self._error: Exception | None = None  # why it is not ready
        self._failed_mark: tuple[int, int] | None = None
        self._given_up = False  # it failed by its crashes, not by its file
        self._crashes_ever = 0
        # Of the keeper's thread alone:
        self._process: ModelProcess | None = None
        self._open = OpenRequests(options.name, options.parallel, options.queue)
        self._heard_at = 0.0
        self._spawn_at: float | None = None
        self._budget = CrashBudget()
        self._fault: Exception | None = None  # of this thread itself
        self._peak_rss_bytes = 0  # of all its children so far
        self._doomed = ""  # why we ended the child ourselves
        self._broken = ""  # why the child says that it ends
        self._broken_by: list[int] = []  # and the requests that may have led to it
        self._probe_by: float | None = None  # it is loaded and tries itself: when that is to be over
        self._end_by: float | None = None  # its pipe has ended, so it should too
        self._refusal = False  # this child has said that the model cannot be loaded

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    @property
    def on_card(self) -> bool:
        """May what was loaded last compute on a card?"""
        info = self._info
        return info is not None and info.on_card

    # ------------------------------------------------------------ from other threads

    def begin(self, *, by_hand: bool = False) -> None:
        """Load it, if it is not loaded or lost for good. ``by_hand``: somebody wants it although it was given up."""
        with self._changed:
            if self._thread is None and self.state.phase == "new":
                self.state = ModelState("loading")
                self._wake_out, self._wake_in = os.pipe()
                os.set_blocking(self._wake_out, False)
                os.set_blocking(self._wake_in, False)
                self._thread = threading.Thread(
                    target=self._run, name=f"model-{self._options.name}", daemon=True
                )
                self._thread.start()
            elif self.state.phase == "failed" and (
                (by_hand and self._given_up) or self._file_mark() != self._failed_mark
            ):
                # Somebody has repaired or replaced the file, or what made it crash.
                self.state = ModelState("loading", peak_rss_bytes=self._peak_rss_bytes)
                self._post("again", None)

    def wait_loaded(self, timeout_s: float | None) -> ModelInfo:
        with self._changed:
            former = self._crashes_ever
            done = self._changed.wait_for(
                lambda: self.state.phase in {"ready", "failed", "closed"} or self._crashes_ever > former,
                timeout_s,
            )
            if not done:
                raise WaitTimeout(
                    f"model {self._options.name} is not loaded after {timeout_s} s; it goes on loading"
                )
            if self.state.phase == "ready" and self._info is not None:
                return self._info
            raise self._closed() if self.state.phase == "closed" else self._error or self._closed()

    def ask(self, request: Hosted[Any]) -> None:
        self._post("ask", request)

    def cancel(self, request: Hosted[Any]) -> None:
        self._post("cancel", request)

    def end(self) -> None:
        with self._changed:
            thread = self._thread
            if thread is None:
                self.state = ModelState("closed")
        if thread is None:
            return
        self._post("close", None)
        if thread is not threading.current_thread():
            thread.join()

    def _post(self, what: str, request: Hosted[Any] | None) -> None:
        with self._changed:
            if self._thread is None or self.state.phase == "closed":
                if what == "ask" and request is not None:
                    request.put(self._closed())
                return
            self._inbox.append((what, request))
            try:
                os.write(self._wake_in, b"!")
            except BlockingIOError:
                pass  # it is awake already

    # ------------------------------------------------------------ the loop

    def _run(self) -> None:
        # A process control of this thread's own: the worker's belongs to its main thread.
        control = type(processes())()
        self._spawn_at = monotonic()
        try:
            while self._turn(control):
                pass
        except Exception as e:
            log.exception("model %s: its keeper failed", self._options.name)
            self._fault = ModelCrashed(
                f"model {self._options.name}: a fault of rigbus ended it: {e!r}; see the log"
            )
        finally:
            self._shut(control)

    def _turn(self, control: Processes) -> bool:
        self._wait(control)
        if not self._take_inbox():
            return False
        now = monotonic()
        if (process := self._process) is not None:
            self._hear(process)
            if process.read():
                self._hear(process)  # what it said before its end
                process.kill()
            if (status := process.buried()) is not None:
                self._buried(status)
            else:
                self._watch(process, now)
                self._send_next(process)
        elif self._spawn_at is not None and now >= self._spawn_at:
            self._spawn(control)
        return True

    def _wait(self, control: Processes) -> None:
        poller = select.poll()
        poller.register(self._wake_out, select.POLLIN)
        if self._process is not None:
            self._process.register(poller)
        poller.poll(1000 * self._patience_left(control))
        try:
            os.read(self._wake_out, 4096)
        except BlockingIOError:
            pass

    def _patience_left(self, control: Processes) -> float:
        """Seconds until something is due."""
        if self._process is not None and self._process.dying:
            return SWEEP_POLL_S
        now = monotonic()
        due = [now + _IDLE_POLL_S]
        if self._process is None and self._spawn_at is not None:
            due.append(self._spawn_at)
        elif self._process is not None:
            limits = (self._silent_by(), self._end_by, self._open.next_cancel_by())
            due += [t for t in limits if t is not None]
            if control.poll_s is not None:
                due.append(now + control.poll_s)
        return max(0.0, min(due) - now)

    def _take_inbox(self) -> bool:
        """False when the end was asked for."""
        while self._inbox:
            what, request = self._inbox.popleft()
            if what == "close":
                return False
            if what == "again":
                self._budget.answered()
                self._spawn_at = monotonic()
            elif request is not None:
                self._asked(request) if what == "ask" else self._stop(request)
        return True

    # ------------------------------------------------------------ requests

    def _asked(self, request: Hosted[Any]) -> None:
        if self.state.phase == "failed":
            request.put(self._error or self._closed())
        else:
            self._open.add(request)

    def _send_next(self, process: ModelProcess) -> None:
        """All who may go to the child now; one that could not be sent makes room for the next."""
        while self.state.phase == "ready" and not process.dying and (found := self._open.to_send()):
            for request in found:
                self._send(request)

    def _send(self, request: Hosted[Any]) -> None:
        if self._process is None:
            return
        if not self._open.at_work:
            self._heard_at = monotonic()  # it was silent because it had nothing to do
        asked = request.request
        verb = "generate" if isinstance(asked, GenerateRequest) else "embed"
        try:
            self._process.pipe.send({verb: request.number, "request": asked.to_map()})
        except (ValueError, OverflowError, TypeError, RecursionError) as e:
            # What it is checked for does not know all that a message can be too large, too deep or too odd for.
            self._open.answer(
                request.number,
                DefinitionError(f"{verb}: the request cannot be sent to the model: {e!s:.200}"),
            )
        else:
            request.sent = True

    def _stop(self, request: Hosted[Any]) -> None:
        if request not in self._open:
            return
        if not request.sent or self._process is None:
            self._open.answer(request.number, Usage(finish="cancelled"))
        elif request.cancel_by is None:
            self._process.pipe.send({"cancel": request.number})
            request.cancel_by = monotonic() + self._patience.cancel_s

    # ------------------------------------------------------------ the child speaks

    def _hear(self, process: ModelProcess) -> None:
        if self._end_by is not None:
            return
        try:
            for message in process.pipe.receive():
                self._heard_at = monotonic()
                self._take(message)
        except (BrokenPipeFrame, KeyError, TypeError, ValueError) as e:
            self._broken = f"its pipe carried what is no message: {e!r:.200}"
            process.pipe.ended = True
            return
        if process.pipe.ended:
            self._end_by = monotonic() + _END_S

    def _take(self, message: dict[str, Any]) -> None:
        if self._open.heard(message):
            if message.get("finish") in {"stop", "length"}:
                self._budget.answered()
        elif "probing" in message:
            size = (self._file_mark() or (0, 0))[1]
            self._probe_by = self._heard_at + self._patience.probe_s(size)
        elif "loading" in message:
            self._set(ModelState("loading", float(message["loading"])))
        elif "ready" in message:
            self._info = ModelInfo(**message["ready"])
            self._error = None
            self._set(ModelState("ready", 1.0, self._info.description))
            log.info("model %s is ready after %.1f s", self._options.name, self._info.load_s)
        elif "refused" in message:
            self._refusal = True
            self._fail(DefinitionError(str(message["message"])))
        elif "broken" in message:
            self._broken = str(message["broken"])
            self._broken_by = [int(number) for number in message.get("by", ())]

    # ------------------------------------------------------------ the child lives and dies

    def _spawn(self, control: Processes) -> None:
        self._spawn_at = None
        self._doomed = self._broken = ""
        self._broken_by, self._probe_by = [], None
        self._end_by = None
        self._refusal = False
        self._heard_at = monotonic()
        try:
            self._process = ModelProcess(control, self._options, self._token, self._log_path)
        except DefinitionError as e:
            self._fail(e)
        except SpawnError as e:
            self._crashed(f"cannot be started: {e}")
        else:
            if self.state.phase != "loading":
                self._set(ModelState("loading"))

    def _watch(self, process: ModelProcess, now: float) -> None:
        """Measure a child; end one that hangs, or that does not obey a cancel."""
        if process.dying:
            return
        self._note_memory(process.measure(now))
        if now >= self._silent_by():
            self._doomed = f"gave no sign of life for {now - self._heard_at:.0f} s{self._when()}"
        elif (by := self._open.next_cancel_by()) is not None and now >= by:
            self._doomed = f"did not obey a cancel within {self._patience.cancel_s:g} s"
        elif self._broken:
            self._doomed = self._broken
        elif self._end_by is not None and now >= self._end_by:
            self._doomed = "closed its pipe and lives on"
        else:
            return
        process.kill()

    def _silent_by(self) -> float:
        """When silence means that the child hangs. An idle one may be silent for ever."""
        if self.state.phase == "loading":
            return self._probe_by or self._heard_at + self._patience.load_silent_s
        if self._open.at_work:
            return self._heard_at + self._patience.silent_s
        return float("inf")

    def _when(self) -> str:
        """What a child that is not ready yet was at."""
        if self.state.phase == "ready":
            return ""
        return " while it loaded" if self._probe_by is None else " at its first token"

    def _buried(self, status: ExitStatus) -> None:
        """The child and all that it started are dead."""
        words = self._put_away()
        if self._refusal:
            return  # it ended because the model cannot be loaded
        how = f"ended by signal {status.signal}" if status.signal else f"ended with exit code {status.code}"
        self._crashed(f"{self._doomed or self._broken or how}{words}")

    def _put_away(self) -> str:
        """Close what belonged to the child; its last words for a message."""
        process, self._process = self._process, None
        if process is None:
            return ""
        self._note_memory(process.peak_rss_bytes)
        return process.close()

    def _crashed(self, what: str) -> None:
        loading = self.state.phase != "ready"
        self._crashes_ever += 1
        spent = self._budget.crashed(monotonic())
        text = f"model {self._options.name} {what}"
        if spent:
            text += (
                f"; that was {CRASHES} times within {WINDOW_S / 60:g} minutes without an answer, so it is given up until "
                "its file changes or somebody starts it again"
            )
        else:
            power = min(self._budget.in_a_row - 1, 10)
            delay_s = min(BACKOFF_MAX_S, self._patience.backoff_s * 2**power)
            text += f"; it is started again in {delay_s:g} s"
            self._spawn_at = monotonic() + delay_s
        log.warning("%s", text)
        self._open.died(text, loading=loading, by=self._broken_by)
        error = ModelCrashed(text, alone=False)
        if spent:
            self._fail(error)
        else:
            self._error = error
            self._set(ModelState("restarting", 0.0, text))

    def _fail(self, error: DefinitionError | ModelCrashed) -> None:
        """No restart until the file changes; where it was given up by its crashes, until somebody asks for it."""
        log.error("%s", error)
        self._error = error
        self._given_up = isinstance(error, ModelCrashed)
        self._failed_mark = self._file_mark()
        self._open.answer_all(error)
        self._set(ModelState("failed", 0.0, str(error)))

    def _note_memory(self, peak_rss_bytes: int) -> None:
        if peak_rss_bytes > self._peak_rss_bytes:
            self._peak_rss_bytes = peak_rss_bytes
            with self._changed:
                self._set(self.state)  # read under the lock: `begin` may be setting another

    def _shut(self, control: Processes) -> None:
        """End the child, then everybody who waits."""
        if self._process is not None:
            self._process.kill_and_wait()
        self._put_away()
        with self._changed:
            self.state = ModelState("closed", peak_rss_bytes=self._peak_rss_bytes)
            self._inbox, left = deque(), self._inbox
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._changed.notify_all()
        error = self._fault or self._closed()
        self._open.answer_all(error)
        for what, request in left:
            if what == "ask" and request is not None:
                request.put(error)

    # ------------------------------------------------------------ small things

    def _set(self, state: ModelState) -> None:
        with self._changed:
            self.state = replace(state, peak_rss_bytes=self._peak_rss_bytes)
            self._changed.notify_all()

    def _closed(self) -> ModelClosed:
        return ModelClosed(f"model {self._options.name} was unloaded; start it again")

    def _file_mark(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self._options.path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size
