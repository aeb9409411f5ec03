"""The child side of ``spawned.py``: ``python -m rigbus.agents.attempts.isolated`` with RIGBUS_PIPE_FD.

It gets one request, does it in its main thread and ends. A handler's progress, log and waits go through the pipe;
its ``self.bus`` is a client of its own. When the worker dies the kernel kills this process with it.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from ...bus.wire import Token
from ..worker.events import Lease, Outcome, failed
from .pipe import ChildPipe
from .values import outcome_of


class PipeChannel:
    """``self.task`` over the pipe."""

    def __init__(self, pipe: ChildPipe) -> None:
        self._pipe = pipe

    def progress(self, token: Token, pct: float | None, note: str | None, data: bytes | None) -> None:
        self._pipe.send({"progress": [pct, note, data]})

    def waiting(self, token: Token, waits: bool) -> None:
        self._pipe.send({"waiting": waits})


def main() -> int:
    """Do the one request; 0 when an outcome, good or bad, was delivered."""
    pipe = ChildPipe()
    request = pipe.receive()
    if request is None:
        return 1
    outcome = _handler(pipe, request) if "agent" in request else _function(request)
    pipe.send(
        {
            "outcome": {
                "ok": outcome.ok,
                "body": outcome.body,
                "ref": dict(outcome.ref) if outcome.ref else None,
                "cls": outcome.cls,
                "error": outcome.error,
                "duration_s": outcome.duration_s,
            }
        }
    )
    return 0


def _function(request: Mapping[str, Any]) -> Outcome:
    """``module:name(**arguments)`` of ours; an exception's ``error_class`` says what it counts as (``infra``)."""
    begun_at = monotonic()
    module, _, name = str(request["function"]).partition(":")
    try:
        value = getattr(importlib.import_module(module), name)(**request["arguments"])
        results = request["arguments"].get("results")
        return outcome_of(value, Path(results) if results else None, monotonic() - begun_at)
    except Exception as e:
        cls = getattr(e, "error_class", "infra")
        return failed(cls, str(e) or repr(e), duration_s=monotonic() - begun_at)


def _handler(pipe: ChildPipe, request: Mapping[str, Any]) -> Outcome:
    from ..base import load_agent
    from ..context import TaskContext
    from .threads import failure_of, run_handler

    row = request["lease"]
    lease = Lease.from_wire(row, request["payload"])
    results = Path(request["results"]) if request.get("results") else None
    logs = Path(request["logs"]) if request.get("logs") else None
    task = TaskContext(lease, PipeChannel(pipe), logs, request.get("timeout_s"), request["log_bytes"])
    threading.Thread(target=_listen, args=(pipe, task), daemon=True).start()
    try:
        cls = load_agent(request["agent"])
        agent = cls()
        agent.join_rig(request.get("rig") or {})
        spec = agent.specs()[lease.type]
    except Exception as e:
        return failed(
            "definition", f"the agent {request['agent']} cannot be loaded in its own process: {e!r}"
        )
    try:
        # The child serves one task, so what on_start prepares is prepared for it alone.
        agent.on_start()
    except Exception as e:
        return failure_of(e, spec, 0.0)
    pipe.send({"begun": True})
    outcome = run_handler(agent, spec, lease, task, results)
    agent.on_stop()
    return outcome


def _listen(pipe: ChildPipe, task: Any) -> None:
    """The worker's cancels; its end ends us, also where no parent death signal exists."""
    while True:
        message = pipe.receive()
        if message is None:
            os._exit(1)
        if message.get("cancel"):
            task.cancel()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that a handler left behind must not keep the attempt open
