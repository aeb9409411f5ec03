"""Runs one flow to its end on a real share, with a broker that says what the test tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rigbus.bridge.folder.loop.flows import Ask, Flow, Idle, Ops
from rigbus.bridge.folder.share.port import Fault, FolderPort, Reply
from rigbus.bus.wire import Envelope, Verb

T = TypeVar("T")
Answer = Callable[[Ask], Envelope]


class Broker:
    """Accepts plans, each key once; answers other questions with OK. ``asked`` holds what came."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.batches: dict[str, str] = {}
        self.next: list[Envelope] = []  # answers that come before the usual ones

    def __call__(self, ask: Ask) -> Envelope:
        self.asked.append(ask)
        if self.next:
            return self.next.pop(0)
        if ask.verb is not Verb.SUBMIT:
            return Envelope(Verb.OK, {})
        key = ask.header["batch"]["key"]
        batch = self.batches.setdefault(key, f"20260101_000000_{len(self.batches):06x}")
        return Envelope(Verb.ACCEPTED, {"batch": batch, "ids": [], "states": [], "seq": 1})

    def plans(self) -> list[dict[str, Any]]:
        return [a.header["batch"]["plan"] for a in self.asked if a.verb is Verb.SUBMIT]


class Killed(Exception):
    """The flow was stopped where a kill -9 would have."""


def drive(
    flow: Flow[T],
    port: FolderPort,
    broker: Answer | None = None,
    *,
    die_at: int = 0,
    between: Callable[[int], object] | None = None,
) -> T:
    """The flow's value. With ``die_at`` it is killed *after* its n-th step was done, before it hears of it; ``between``
    is called with n at that moment of each step."""
    value: Any = None
    steps = 0
    while True:
        try:
            step = flow.send(value)
        except StopIteration as end:
            return end.value
        if isinstance(step, Ops):
            value = port.call(step.kind, step.ops, step.deadline_s)
        elif isinstance(step, Idle):
            value = None
        else:
            assert broker is not None, f"the flow asks {step.verb}"
            value = broker(step)
        steps += 1
        if steps == die_at:
            raise Killed
        if between is not None:
            between(steps)


def away(step: Ops) -> Reply:
    """The answer of a share that hangs."""
    return Reply(0, step.kind, [], Fault("HUNG", "the share gave no answer"))
