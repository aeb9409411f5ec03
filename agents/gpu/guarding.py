"""The guard in a worker: the loop's own ticks judge the last readings of its cards, and hold or release its core.

The readings come from a thread beside the loop: where a driver hangs, the loop sees them grow old, which the guard knows
how to judge, and goes on with its leases.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

from ...bus.wire import Token
from ..worker.events import Event, Held, Lease, Released, VramBudget
from .budget import vram_budget_mb
from .guard import Level, ThermalGuard, ThermalLimits, Verdict
from .readings import GpuReading

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  #: how often the loop looks: at the last sample, or at its age


class Sample(Protocol):
    """What is known of the cards; ``age_s`` is None before the first sample."""

    @property
    def readings(self) -> Sequence[GpuReading]: ...
    @property
    def age_s(self) -> float | None: ...


class Cards(Protocol):
    """The cards of a worker: those that its CUDA_VISIBLE_DEVICES (``devices``; None: all of the machine) names."""

    @property
    def devices(self) -> str | None: ...
    def latest(self) -> Sample:
        """The last sample, at once: it must not wait for a driver."""
        ...


class Host(Protocol):
    """What is needed of the loop."""

    def post(self, event: Event, wake: bool = True) -> None: ...


class CardKeeper:
    """A runner without tasks (see ``Loop.add``): its ticks step the guard and tell the worker's core.

    ``budget``: whether the size of the cards is its VRAM budget (not where the configuration gives one).
    """

    def __init__(
        self, host: Host, cards: Cards, *, limits: ThermalLimits | None = None, budget: bool = True
    ) -> None:
        self._host = host
        self._cards = cards
        self._guard = ThermalGuard(limits)
        self._budget = budget
        self._budget_mb: int | None = None
        self._look_at = float("-inf")
        self._held: Held | None = None
        self._unknown: tuple[str, ...] = ()

    def tick(self, now: float) -> float | None:
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            sample = self._cards.latest()
            if sample.age_s is not None:
                self._tell(self._guard.step(sample.readings, now, now - sample.age_s))
                self._tell_budget(sample.readings)
        return self._look_at

    def _tell(self, verdict: Verdict) -> None:
        if verdict.unknown != self._unknown:
            self._unknown = verdict.unknown
            for said in verdict.unknown:
                log.warning("%s: it cannot be guarded", said)
        if verdict.level is Level.OK:
            if self._held is not None:
                self._held = None
                log.info("the cards have cooled: the worker takes work again")
                self._host.post(Released())
            return
        held = Held(verdict.reason, critical=verdict.level is Level.CRITICAL)
        if held == self._held:
            return
        if self._held is None or self._held.critical != held.critical:
            what = "what runs is ended and given back" if held.critical else "no new work"
            log.warning("%s: %s", held.reason, what)
        self._held = held
        self._host.post(held)

    def _tell_budget(self, cards: Sequence[GpuReading]) -> None:
        mb = vram_budget_mb(cards)
        if self._budget and mb is not None and mb != self._budget_mb:
            self._budget_mb = mb
            self._host.post(VramBudget(mb))

    # ------------------------------------------------------------ the rest of a runner: there are no tasks here

    def start(self, lease: Lease) -> None:
        raise LookupError(f"no type of task belongs to the guard of the cards, not {lease.type!r} either")

    def recall(self, tokens: Sequence[Token]) -> list[Token]:
        return []

    def terminate(self, token: Token) -> None:
        pass

    def kill(self, token: Token) -> None:
        pass

    def close(self) -> None:
        pass


def keeper_of(
    host: Host,
    cards: Cards | None,
    *,
    uses_any: bool = False,
    limits: ThermalLimits | None = None,
    budget: bool = True,
) -> CardKeeper | None:
    """The keeper of a worker's cards, for ``Loop.add((), …)``; None for a worker that has none of its own.

    A worker that is not told its cards (no CUDA_VISIBLE_DEVICES) is guarded only where it computes on whatever there is
    (``uses_any``: a model without a named card). One that only runs commands on a CPU is held by no card.
    """
    if cards is None or (cards.devices is None and not uses_any):
        return None
    return CardKeeper(host, cards, limits=limits, budget=budget)
