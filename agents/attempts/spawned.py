"""Python in a child of its own (``isolated.py``), with a pipe for what it says: isolated handlers, and the worker's
own calls that may hang (a view on the share, a foreach source).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from ...bus.paths import log_path
from ...bus.wire import Token
from ..process.api import ExitStatus, Processes, Spawn
from ..worker import events as ev
from ..worker.events import Lease, Outcome
from .children import Attempt, Host, ProcessRunner
from .output import MAX_LOG_BYTES, OutputSummary
from .pipe import PIPE_VARIABLE, BrokenPipeFrame, Pipe

_TAIL_CHARS = 4000


@dataclass(slots=True)
class Job:
    """One child that was given work. ``done`` gets its outcome once its tree is dead."""

    pipe: Pipe
    done: Callable[[Outcome], None]
    lease: Lease | None = None
    outcome: Outcome | None = None
    begun_at: float = field(default_factory=monotonic)
    by: float | None = None
    timed_out: bool = False
    broken: str = ""
    listens: bool = False  #: a handler, which gets its cancel by the pipe


class SpawnedRunner(ProcessRunner):
    """Runs Python functions and isolated handlers, one child each."""

    def __init__(
        self,
        host: Host,
        procs: Processes,
        state: Path,
        request: Callable[[Lease], Mapping[str, Any]],
        logs: Path | None,
        env: Mapping[str, str] | None = None,
        log_bytes: int = MAX_LOG_BYTES,
    ) -> None:
        super().__init__(host, procs)
        self._state = state
        self._request = request
        self._logs, self._log_bytes = logs, log_bytes
        self._env = dict(os.environ if env is None else env)

    # ------------------------------------------------------------ Runner

    def start(self, lease: Lease) -> None:
        def done(outcome: Outcome) -> None:
            self._host.post(ev.Ended(lease.token, outcome))

        log_file = log_path(self._logs, lease.batch, lease.key, lease.attempt) if self._logs else None
        self._begin(lease.token, lease, self._request(lease), done, log_file, None)

    def terminate(self, token: Token) -> None:
        """The handler's ``self.task.cancelled``; SIGTERM would end it before it can tidy up."""
        attempt = self._live.get(token)
        if attempt is not None:
            attempt.job.pipe.send({"cancel": True})
            if not attempt.job.listens:
                super().terminate(token)

    def tick(self, now: float) -> float | None:
        due = super().tick(now)
        for attempt in list(self._live.values()):
            job: Job = attempt.job
            if not job.pipe.push():
                due = now + 0.01 if due is None else min(due, now + 0.01)
            if job.by is None or attempt.sweep is not None:
                continue
            if now >= job.by:
                job.timed_out = True
                self.kill(attempt.key)
                due = now
            else:
                due = job.by if due is None else min(due, job.by)
        return due

    def close(self) -> None:
        for attempt in self._live.values():
            self._host.unwatch(attempt.job.pipe.fileno())
            attempt.job.pipe.close()
        super().close()

    # ------------------------------------------------------------ the worker's own calls

    def call(
        self,
        key: Any,
        function: str,
        arguments: Mapping[str, Any],
        done: Callable[[Outcome], None],
        timeout_s: float,
        lease: Lease | None = None,
    ) -> None:
        """Run ``module:function(**arguments)`` in a child; its return value is the outcome's body.

        A child that has not finished after ``timeout_s`` is killed, with class ``infra``. With ``lease`` it is that
        attempt: it has its token, and is terminated and killed by it.
        """
        self._begin(key, lease, {"function": function, "arguments": dict(arguments)}, done, None, timeout_s)

    def _begin(
        self,
        key: Any,
        lease: Lease | None,
        request: Mapping[str, Any],
        done: Callable[[Outcome], None],
        log_file: Path | None,
        timeout_s: float | None,
    ) -> None:
        if key in self._live:
            done(ev.failed("infra", "the helper before it hangs in the kernel, another would hang as well"))
            return
        pipe = Pipe()
        fd = pipe.theirs.fileno()
        token = lease.token if lease is not None else (0, 0)
        spec = Spawn(
            argv=[sys.executable, "-P", "-m", "rigbus.agents.attempts.isolated"],
            env={**self._env, PIPE_VARIABLE: str(fd)},
            token=self._host.mark(token),
            cwd=self._state,
            log_path=log_file,
            max_log_bytes=self._log_bytes,
            pass_fds=(fd,),
        )
        job = Job(pipe, done, lease, by=None if timeout_s is None else monotonic() + timeout_s)
        job.listens = "agent" in request
        started = self._launch(key, spec, job)
        pipe.theirs.close()
        if isinstance(started, Outcome):
            pipe.close()
            done(started)
            return
        pipe.send(request)
        self._host.watch(pipe.fileno(), lambda: self._said(started))

    # ------------------------------------------------------------ what the child says

    def _said(self, attempt: Attempt) -> None:
        job: Job = attempt.job
        try:
            messages = job.pipe.receive()
        except BrokenPipeFrame as e:
            job.broken = f"its pipe carried what is no message: {e}"
            job.pipe.ended = True
            messages = []
            self.kill(attempt.key)
        for message in messages:
            self._take(attempt, job, message)
        if job.pipe.ended:
            self._host.unwatch(job.pipe.fileno())

    def _take(self, attempt: Attempt, job: Job, message: Mapping[str, Any]) -> None:
        token = job.lease.token if job.lease is not None else None
        if "begun" in message and token is not None:
            self._host.post(ev.Started(token, monotonic()))
        elif "progress" in message and token is not None:
            pct, note, data = message["progress"]
            self._host.post(ev.Progress(token, pct, note, data))
        elif "waiting" in message and token is not None:
            self._host.post(ev.Lent(token, bool(message["waiting"])))
        elif "outcome" in message:
            o = message["outcome"]
            job.outcome = Outcome(
                ok=bool(o["ok"]),
                body=o.get("body") or b"",
                ref=o.get("ref"),
                cls=o.get("cls"),
                error=o.get("error"),
                duration_s=float(o.get("duration_s") or 0.0),
            )

    def _entered(self, attempt: Attempt) -> None:
        if attempt.job.lease is not None and not attempt.job.listens:
            self._host.post(ev.Started(attempt.job.lease.token, monotonic()))

    def _wrote(self, attempt: Attempt) -> None:
        if attempt.job.lease is not None:
            self._host.post(ev.Active(attempt.job.lease.token))

    def _hangs(self, attempt: Attempt, said: str) -> None:
        job: Job = attempt.job
        if job.lease is not None:
            self._host.post(ev.Unkillable(job.lease.token, said))
        else:  # a helper of the worker: whoever waits for it need not wait for its end
            job.done(ev.failed("infra", said))
            job.done = _nobody_waits

    def _over(self, attempt: Attempt, status: ExitStatus, summary: OutputSummary) -> None:
        job: Job = attempt.job
        if not job.pipe.ended:
            self._said(attempt)
        self._host.unwatch(job.pipe.fileno())
        job.pipe.close()
        duration_s = monotonic() - job.begun_at
        tail = summary.text()[-_TAIL_CHARS:].strip()
        if job.timed_out:
            outcome = ev.failed("infra", "it did not finish in time", duration_s=duration_s)
        elif job.outcome is not None:
            outcome = job.outcome
        elif status.signal is not None and not status.sent_by_us:
            said = f"its process was ended by signal {status.signal}"
            outcome = ev.failed("crash", f"{said}\n{tail}".strip(), duration_s=duration_s)
        else:
            said = job.broken or status.message or f"its process ended with exit {status.code} and no result"
            cls = "task" if status.entered else "infra"
            outcome = ev.failed(cls, f"{said}\n{tail}".strip(), duration_s=duration_s)
        job.done(outcome)


def _nobody_waits(outcome: Outcome) -> None:
    """The late end of a helper that was given up."""
