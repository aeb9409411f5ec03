"""The thread that keeps one model's child: starts it, hears it, notices its end, starts it again.

It is also the thread that the child's parent death signal follows, so it lives as long as the model. Everybody
else talks to it through a queue and reads the answers from queues of their own.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections import deque
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, Final

from ...bus.errors import DefinitionError, WaitTimeout
from ..pipe import PIPE_VARIABLE, BrokenPipeFrame, Pipe
from ..process import TOKEN_VARIABLE, Child, ExitStatus, Processes, Spawn, SpawnError, Sweep, processes
from .files import check_llama, check_model_file
from .generation import HostedGeneration
from .protocol import (
    Chunk,
    LoadOptions,
    ModelClosed,
    ModelCrashed,
    ModelInfo,
    ModelState,
    Usage,
)

log = logging.getLogger(__name__)

BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
_SWEEP_POLL_S: Final = 0.02
_END_S: Final = 1.0  # between the end of a child's pipe and its own
_IDLE_POLL_S: Final = 60.0
_LAST_WORDS_LINES: Final = 3
_MODELS = count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the host waits, in seconds.

    ``silent_s``: without a word while a text is made, then the child counts as hung; ``load_silent_s``: the same
    while it loads; ``cancel_s``: for a cancel to be obeyed, then the child is ended instead.
    """

    silent_s: float = 120.0
    load_silent_s: float = 600.0
    cancel_s: float = 5.0
    backoff_s: float = BACKOFF_S


class Keeper:
    """The keeper thread. Public methods are for other threads, ``_``-methods for its own."""

    def __init__(self, options: LoadOptions, log_path: Path | None, patience: Patience) -> None:
        self.state = ModelState("new")
        self.pid: int | None = None
        self._options = options
        self._log_path = log_path
        self._patience = patience
        self._token = f"{os.environ.get(TOKEN_VARIABLE) or f'model:{os.getpid()}'}.m{next(_MODELS)}"
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._inbox: deque[tuple[str, HostedGeneration | None]] = deque()
        self._wake_out = self._wake_in = -1
        self._info: ModelInfo | None = None
        self._error: Exception | None = None  # why it is not ready
        self._failed_mark: tuple[int, int] | None = None
        self._crashes_ever = 0
        # Of the keeper's thread alone:
        self._child: Child | None = None
        self._pipe: Pipe | None = None
        self._sweep: Sweep | None = None
        self._open: dict[int, HostedGeneration] = {}  # asked and not answered, in their order
        self._heard_at = 0.0
        self._spawn_at: float | None = None
        self._crashes = 0
        self._doomed = ""  # why we ended the child ourselves
        self._broken = ""  # why the child says that it ends
        self._end_by: float | None = None  # its pipe has ended, so it should too
        self._refusal = False  # this child has said that the model cannot be loaded

    # ------------------------------------------------------------ from other threads

    def begin(self) -> None:
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
            elif self.state.phase == "failed" and self._file_mark() != self._failed_mark:
                self.state = ModelState("loading")  # somebody has repaired or replaced the file
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

    def ask(self, generation: HostedGeneration) -> None:
        self._post("ask", generation)

    def cancel(self, generation: HostedGeneration) -> None:
        self._post("cancel", generation)

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

    def _post(self, what: str, generation: HostedGeneration | None) -> None:
        with self._changed:
            if self._thread is None or self.state.phase == "closed":
                if what == "ask" and generation is not None:
                    generation.put(self._closed())
                return
            self._inbox.append((what, generation))
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
            self._error = ModelCrashed(
                f"model {self._options.name}: a fault of rigbus ended it: {e!r}; see the log"
            )
        finally:
            self._shut(control)

    def _turn(self, control: Processes) -> bool:
        self._wait(control)
        if not self._take_inbox():
            return False
        self._hear()
        if self._child is not None:
            self._child.read_output()
            self._child.read_entry()
            status = self._child.poll_exit()
            if status is not None and self._sweep is None:
                self._hear()  # what it said before its end
                self._sweep = control.kill_tree(self._child)
            if self._sweep is not None and self._sweep.step() and self._child.status is not None:
                self._buried(self._child.status)
        now = monotonic()
        self._watch(control, now)
        if self._spawn_at is not None and now >= self._spawn_at and self._child is None:
            self._spawn(control)
        return True

    def _wait(self, control: Processes) -> None:
        poller = select.poll()
        poller.register(self._wake_out, select.POLLIN)
        if self._child is not None:
            for fd in self._child.fds:
                # An ended child's descriptor stays readable: while it is swept, the clock is enough.
                if self._sweep is None or fd != self._child.exit_fd:
                    poller.register(fd, select.POLLIN)
        if self._pipe is not None and not self._pipe.ended:
            unsent = not self._pipe.push()
            poller.register(self._pipe.fileno(), select.POLLIN | (select.POLLOUT if unsent else 0))
        poller.poll(1000 * self._patience_left(control))
        try:
            os.read(self._wake_out, 4096)
        except BlockingIOError:
            pass

    def _patience_left(self, control: Processes) -> float:
        """Seconds until something is due."""
        if self._sweep is not None:
            return _SWEEP_POLL_S
        now = monotonic()
        due = [now + _IDLE_POLL_S]
        if self._child is None and self._spawn_at is not None:
            due.append(self._spawn_at)
        elif self._child is not None:
            due += [t for t in (self._silent_by(), self._end_by) if t is not None]
            due += [g.cancel_by for g in self._open.values() if g.cancel_by is not None]
            if control.poll_s is not None:
                due.append(now + control.poll_s)
        return max(0.0, min(due) - now)

    def _take_inbox(self) -> bool:
        """False when the end was asked for."""
        while self._inbox:
            what, generation = self._inbox.popleft()
            if what == "close":
                return False
            if what == "again":
                self._spawn_at = monotonic()
            elif generation is not None:
                self._asked(generation) if what == "ask" else self._stop(generation)
        return True

    # ------------------------------------------------------------ requests

    def _asked(self, generation: HostedGeneration) -> None:
        if self.state.phase == "failed":
            generation.put(self._error or self._closed())
            return
        self._open[generation.number] = generation
        if self.state.phase == "ready":
            self._send(generation)

    def _send(self, generation: HostedGeneration) -> None:
        if self._pipe is not None:
            if not any(g.sent for g in self._open.values()):
                self._heard_at = monotonic()  # it was silent because it had nothing to do
            generation.sent = True
            self._pipe.send({"generate": generation.number, "request": generation.request.to_map()})

    def _stop(self, generation: HostedGeneration) -> None:
        if generation.number not in self._open:
            return
        if not generation.sent or self._pipe is None:
            self._answered(generation.number, Usage(finish="cancelled"))
        elif generation.cancel_by is None:
            self._pipe.send({"cancel": generation.number})
            generation.cancel_by = monotonic() + self._patience.cancel_s

    def _answered(self, number: int, item: Usage | Exception) -> None:
        generation = self._open.pop(number, None)
        if generation is not None:
            generation.put(item)

    # ------------------------------------------------------------ the child speaks

    def _hear(self) -> None:
        if self._pipe is None or self._end_by is not None:
            return
        try:
            messages = self._pipe.receive()
        except BrokenPipeFrame as e:
            self._broken = f"its pipe carried what is no message: {e}"
            self._pipe.ended = True
            return
        for message in messages:
            self._heard_at = monotonic()
            self._take(message)
        if self._pipe.ended:
            self._end_by = monotonic() + _END_S

    def _take(self, message: dict[str, Any]) -> None:
        if "chunk" in message:
            generation = self._open.get(message["chunk"])
            if generation is not None and message["text"]:
                generation.put(Chunk(message["text"]))
        elif "usage" in message:
            number = message.pop("usage")
            self._crashes = 0
            self._answered(number, Usage(**message))
        elif "begun" in message:
            generation = self._open.get(message["begun"])
            if generation is not None:
                generation.begun = True
        elif "loading" in message:
            self._set(ModelState("loading", float(message["loading"])))
        elif "ready" in message:
            self._info = ModelInfo(**message["ready"])
            self._set(ModelState("ready", 1.0, self._info.description))
            log.info("model %s is ready after %.1f s", self._options.name, self._info.load_s)
            for generation in self._open.values():
                self._send(generation)
        elif "refused" in message:
            self._refused(message["refused"], str(message["message"]))
        elif "broken" in message:
            self._broken = str(message["broken"])

    def _refused(self, number: int | None, text: str) -> None:
        if number is not None:
            self._answered(number, DefinitionError(text))
        else:
            self._refusal = True
            self._fail(DefinitionError(text))

    # ------------------------------------------------------------ the child lives and dies

    def _spawn(self, control: Processes) -> None:
        self._spawn_at = None
        self._doomed = self._broken = ""
        self._end_by = None
        self._refusal = False
        self._heard_at = monotonic()
        pipe = Pipe()
        try:
            check_model_file(Path(self._options.path))
            check_llama()
            fd = pipe.theirs.fileno()
            spec = Spawn(
                argv=[sys.executable, "-P", "-m", "rigbus.agents.models.child"],
                env={
                    **os.environ,
                    PIPE_VARIABLE: str(fd),
                },  # all of it: CUDA is found through LD_LIBRARY_PATH
                token=self._token,
                cwd=Path("/"),
                log_path=self._log_path,
                pass_fds=(fd,),
            )
            self._child = control.spawn(spec)
        except DefinitionError as e:
            self._fail(e)
        except SpawnError as e:
            self._crashed(f"cannot be started: {e}")
        if self._child is None:
            pipe.close()
            return
        pipe.theirs.close()
        self._pipe = pipe
        self.pid = self._child.pid
        if self.state.phase != "loading":
            self._set(ModelState("loading"))
        pipe.send({"load": asdict(self._options)})

    def _watch(self, control: Processes, now: float) -> None:
        """End a child that hangs, or that does not obey a cancel."""
        if self._child is None or self._sweep is not None:
            return
        if now >= self._silent_by():
            self._doomed = f"gave no sign of life for {now - self._heard_at:.0f} s"
        elif any(g.cancel_by is not None and now >= g.cancel_by for g in self._open.values()):
            self._doomed = f"did not obey a cancel within {self._patience.cancel_s:g} s"
        elif self._broken:
            self._doomed = self._broken
        elif self._end_by is not None and now >= self._end_by:
            self._doomed = "closed its pipe and lives on"
        else:
            return
        self._sweep = control.kill_tree(self._child)

    def _silent_by(self) -> float:
        """When silence means that the child hangs. An idle one may be silent for ever."""
        if self.state.phase == "loading":
            return self._heard_at + self._patience.load_silent_s
        if any(g.sent for g in self._open.values()):
            return self._heard_at + self._patience.silent_s
        return float("inf")

    def _buried(self, status: ExitStatus) -> None:
        """The child and all that it started are dead."""
        words = self._put_away()
        if self._refusal:
            return  # it ended because the model cannot be loaded
        how = f"ended by signal {status.signal}" if status.signal else f"ended with exit code {status.code}"
        self._crashed(f"{self._doomed or self._broken or how}{words}")

    def _put_away(self) -> str:
        """Close what belonged to the child; its last words for a message."""
        child, self._child, self._sweep, self.pid = self._child, None, None, None
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
        if child is None:
            return ""
        lines = child.finish_output().text().strip().splitlines()[-_LAST_WORDS_LINES:]
        child.close()
        return "; its last words: " + " | ".join(line[:200] for line in lines) if lines else ""

    def _crashed(self, what: str) -> None:
        loading = self.state.phase != "ready"
        self._crashes += 1
        self._crashes_ever += 1
        delay_s = min(BACKOFF_MAX_S, self._patience.backoff_s * 2 ** min(self._crashes - 1, 10))
        text = f"model {self._options.name} {what}; it is started again in {delay_s:g} s"
        log.warning("%s", text)
        self._spawn_at = monotonic() + delay_s
        alone = sum(generation.begun for generation in self._open.values()) <= 1
        self._error = ModelCrashed(text, alone=alone)
        for generation in list(self._open.values()):
            if generation.cancel_by is not None:
                self._answered(generation.number, Usage(finish="cancelled"))
            elif generation.begun or loading:
                self._answered(generation.number, ModelCrashed(text, alone=alone))
            else:
                generation.sent = False  # it had waited behind another one: the next child gets it
        self._set(ModelState("restarting", 0.0, text))

    def _fail(self, error: DefinitionError) -> None:
        """It can never load as it is: no restart until the file changes."""
        log.error("%s", error)
        self._error = error
        self._failed_mark = self._file_mark()
        for number in list(self._open):
            self._answered(number, error)
        self._set(ModelState("failed", 0.0, str(error)))

    def _shut(self, control: Processes) -> None:
        """End the child, then everybody who waits."""
        if self._child is not None:
            sweep = self._sweep or control.kill_tree(self._child)
            poller = select.poll()  # nothing to poll for: a clock
            while not sweep.step():
                poller.poll(1000 * _SWEEP_POLL_S / 5)
        self._put_away()
        with self._changed:
            self.state = ModelState("closed")
            self._inbox, left = deque(), self._inbox
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._changed.notify_all()
        asked = [g for what, g in left if what == "ask" and g is not None]
        for generation in [*self._open.values(), *asked]:
            generation.put(self._error if isinstance(self._error, ModelCrashed) else self._closed())
        self._open.clear()

    # ------------------------------------------------------------ small things

    def _set(self, state: ModelState) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()

    def _closed(self) -> ModelClosed:
        return ModelClosed(f"model {self._options.name} was unloaded; start it again")

    def _file_mark(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self._options.path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size
