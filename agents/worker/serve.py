"""An agent object and a rig put together: loop, runners, events. Used by the worker process and by tests' threads."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from ...bus.errors import ConfigError, RigbusError
from ..attempts.output import MAX_LOG_BYTES
from ..attempts.spawned import SpawnedRunner
from ..attempts.threads import ThreadRunner, run_handler
from ..base import Agent, dispatch, event_methods
from ..context import TaskContext
from ..gpu.guard import ThermalLimits
from ..gpu.guarding import keeper_of
from ..gpu.watch import own_cards
from ..handlers import Spec
from ..process.linux import processes
from ..supervisor.lifeline import alive_fd, lifeline_fd
from .events import Drain, Lease, Outcome
from .loop import Loop, Peer
from .run import WorkerConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs. ``state`` is the rig's state folder, None on a machine that does not see it.

    ``log_bytes``: what the log of one attempt takes.
    """

    name: str
    commands: str
    heartbeats: str | None = None
    state: Path | None = None
    log_bytes: int = MAX_LOG_BYTES

    @property
    def logs(self) -> Path | None:
        return self.state / "logs" if self.state else None

    @property
    def results(self) -> Path | None:
        return self.state / "results" if self.state else None


class AgentWorker:
    """One agent that serves a rig from the calling thread (:meth:`run`); :meth:`stop` from any other.

    ``thermal``: of its cards; None: the guard's own limits.
    """

    def __init__(
        self,
        agent: Agent,
        place: Place,
        *,
        slots: int | None = None,
        ref: str | None = None,
        thermal: ThermalLimits | None = None,
    ) -> None:
        self.agent = agent
        self.place = place
        self._ref = ref
        self._specs = agent.specs()
        if not self._specs and not agent.subscriptions():
            raise ConfigError(
                f"{type(agent).__name__} has no @handler and no @on method: it would do nothing"
            )
        isolated = [s.type for s in self._specs.values() if s.options.isolated]
        if isolated and ref is None:
            raise ConfigError(
                f"{type(agent).__name__}: isolated handlers ({isolated[0]}) need a class at a module's top"
            )
        wanted = [slots] if slots else [agent.slots, *(s.options.slots or 1 for s in self._specs.values())]
        self.slots = max(1, *wanted)
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.loop = Loop(
            Peer(place.name, place.commands, place.heartbeats),
            ctx=self._ctx,
            state=place.state,
            alive_fd=alive_fd(),
            lifeline_fd=lifeline_fd() if _supervised() else None,
            cards=own_cards(),
        )
        models = any(s.options.cls == "llm" for s in self._specs.values())  # they compute on any card
        keeper = keeper_of(self.loop, self.loop.cards, uses_any=models, limits=thermal)
        if keeper is not None:
            self.loop.add((), keeper)
        timeouts = {s.type: s.options.timeout_s for s in self._specs.values()}
        self._threads = ThreadRunner(
            self._run, self.slots, self.loop.post, place.logs, timeouts, place.log_bytes
        )
        self.loop.add(tuple(t for t, s in self._specs.items() if not s.options.isolated), self._threads)
        if isolated:
            folder = place.state or Path.cwd()
            spawned = SpawnedRunner(
                self.loop, processes(), folder, self._request, place.logs, log_bytes=place.log_bytes
            )
            self.loop.add(tuple(isolated), spawned)
        self._stop = threading.Event()

    def config(self) -> WorkerConfig:
        """What the agent offers."""
        specs = self._specs.values()
        return WorkerConfig(
            slots=self.slots,
            types=tuple(self._specs),
            classes=tuple(dict.fromkeys(s.options.cls for s in specs)) or ("cpu",),
            needs=tuple(dict.fromkeys([*self.agent.offers(), *(n for s in specs for n in s.options.needs)])),
            pools=tuple(self.agent.pools),
            kill_grace_s=self.agent.kill_grace_s,
            info={"agent": type(self.agent).__name__},
            threaded=frozenset(s.type for s in specs if not s.options.isolated),
            timeouts={s.type: s.options.timeout_s for s in specs},
        )

    def run(self) -> int:
        """Serve until drained; the exit code (see :meth:`Loop.run`)."""
        self.agent.join_rig(self._rig(), self._ctx)
        self.agent.on_start()
        methods = event_methods(self.agent)
        if methods:
            threading.Thread(target=self._follow, args=(methods,), name="rigbus-events", daemon=True).start()
        try:
            code = self.loop.run(self.config())
        finally:
            self._stop.set()
        if not self.hangs:
            self.agent.on_stop()
        return code

    @property
    def hangs(self) -> bool:
        """Is a handler's thread still at work although the loop has ended?"""
        return self._threads.busy

    def stop(self, *, fast: bool = False) -> None:
        """Drain, from any thread; ``fast`` does not wait for what runs."""
        self.loop.post(Drain(fast=fast))

    def _rig(self) -> dict[str, Any]:
        return {"endpoint": self.place.commands, "state": str(self.place.state) if self.place.state else None}

    def _run(self, lease: Lease, task: TaskContext) -> Outcome:
        spec: Spec = self._specs[lease.type]
        return run_handler(self.agent, spec, lease, task, self.place.results)

    def _request(self, lease: Lease) -> Mapping[str, Any]:
        """What ``isolated.py`` needs to run this lease."""
        own = lease.timeout_s if lease.timeout_s is not None else self._specs[lease.type].options.timeout_s
        row = {
            "token": lease.token,
            "id": lease.id,
            "batch": lease.batch,
            "key": lease.key,
            "name": lease.name,
            "type": lease.type,
            "class": lease.cls,
            "attempt": lease.attempt,
            "timeout_s": lease.timeout_s,
            "deadline_s": lease.deadline_s,
            "meta": dict(lease.meta),
            "priority": lease.priority,
            "feedback": lease.feedback,
        }
        return {
            "agent": self._ref,
            "lease": row,
            "payload": lease.payload,
            "timeout_s": own,
            "rig": self._rig(),
            "logs": str(self.place.logs) if self.place.logs else None,
            "log_bytes": self.place.log_bytes,
            "results": str(self.place.results) if self.place.results else None,
        }

    def _follow(self, methods: list[tuple[tuple[str, ...], Any]]) -> None:
        """The thread of the ``@on`` methods: one stream for all their topics."""
        patterns = sorted({p for topics, _ in methods for p in topics})
        since: int | None = None
        while not self._stop.is_set():
            try:
                with self.agent._open_client(None) as client, client.events(patterns, since) as stream:
                    while not self._stop.is_set():
                        event = stream.poll(1.0)
                        if event is None:
                            continue
                        since = event.seq
                        for method in dispatch(methods, event):
                            _call(method, event)
            except RigbusError as e:
                log.info("events of %s: %s; trying again", self.place.name, e)
                self._stop.wait(1.0)


def _call(method: Any, event: Any) -> None:
    try:
        method(event)
    except Exception:
        log.exception(
            "%s failed on event %s of %s; the agent goes on", method.__qualname__, event.topic, event.id
        )


def _supervised() -> bool:
    return threading.current_thread() is threading.main_thread()


def leave(code: int, *, hard: bool) -> None:
    """End the process; ``hard`` when a thread would not let it end."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if hard:
        os._exit(code)
    sys.exit(code)
