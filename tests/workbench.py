"""The worker's pure core under a clock that the test moves."""

from __future__ import annotations

from typing import Any

from rigbus.agents.worker import events as ev
from rigbus.agents.worker.core import WorkerCore
from rigbus.agents.worker.run import WorkerConfig
from rigbus.bus.timing import renewal_s
from rigbus.bus.wire import LEASE_S, Verb

T1, T2, T3 = (1, 1), (1, 2), (1, 3)


def lease(token: tuple[int, int] = T1, type: str = "shell", **more: Any) -> ev.Lease:
    return ev.Lease(token, f"id-{token[1]}", "b1", f"k{token[1]}", type, **more)


class Bench:
    """A core with a clock that the test turns."""

    def __init__(self, connected: bool = True, lease_s: float = LEASE_S, **config: Any) -> None:
        config.setdefault("threaded", frozenset({"noop"}))
        config.setdefault("types", ("shell", "noop"))
        self.now = 100.0
        self.core = WorkerCore(WorkerConfig(**config), self.now)
        self.actions: list[ev.Action] = []
        self.lease_s = lease_s
        if connected:
            self.do(self.welcome())
            self.flush()
            self.actions.clear()

    def welcome(self, **more: Any) -> ev.Welcome:
        return ev.Welcome(lease_s=self.lease_s, renew_s=renewal_s(self.lease_s), **more)

    def do(self, *events: ev.Event) -> list[ev.Action]:
        new = [a for e in events for a in self.core.step(e, self.now)]
        self.actions += new
        return new

    def flush(self) -> list[ev.Send]:
        return [a for a in self.do(ev.Flush()) if isinstance(a, ev.Send)]

    def after(self, seconds: float, *, silent: bool = False) -> list[ev.Action]:
        """Time passes; the broker answered meanwhile, unless it is ``silent``."""
        self.now += seconds
        if self.core.connected and not silent:
            self.do(ev.Renewed())
        return self.do(ev.Tick())

    def run(self, token: tuple[int, int] = T1, type: str = "shell", **more: Any) -> None:
        self.do(ev.Leases([lease(token, type, **more)]), ev.Started(token, self.now))
        self.flush()


def kinds(actions: list[Any]) -> list[type]:
    return [type(a) for a in actions]


def sent(actions: list[Any], verb: Verb) -> list[dict[str, Any]]:
    return [a.header for a in actions if isinstance(a, ev.Send) and a.verb is verb]


def results(actions: list[Any]) -> list[dict[str, Any]]:
    return [row for h in sent(actions, Verb.RESULT) for row in h["results"]]
