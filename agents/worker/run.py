"""What a worker offers, and where each of its leases is. Plain data of ``core.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .events import Lease


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker offers and how patient it is. All ``*_s`` in seconds."""

    slots: int = 1
    types: tuple[str, ...] = ("shell", "expand")
    classes: tuple[str, ...] = ("cpu", "script")
    needs: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    state_id: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    #: Types whose runner keeps its own run queue (handler threads); the others start only into a free slot.
    threaded: frozenset[str] = frozenset()
    timeouts: Mapping[str, float | None] = field(default_factory=dict)
    default_timeout_s: float = 1800.0
    kill_grace_s: float = 10.0
    drain_s: float = 20.0
    busy_s: float = 0.2
    max_prefetch: int = 128
    #: STARTED is said of what still runs after so long: it costs the broker a commit, and a short task is over by then.
    announce_s: float = 0.02
    #: End what runs before its lease ends (``bus.timing.fence_s`` after the last answered RENEW). The loop sets it where
    #: the broker is on another machine; on ipc it is not needed, the supervisor and the tokens are enough there.
    fence: bool = False
    #: MiB of its cards that tasks and a model may take together; None: not limited, or no card.
    vram_mb: int | None = None


class Phase(Enum):
    """Where a lease is inside the worker."""

    QUEUED = 0  #: in the core; a free slot moves it on
    HANDED = 1  #: given to its runner; it says Started, or Recalled
    RUNNING = 2
    ENDING = 3  #: told to end (``why``); Ended moves it on, ``kill_at`` sharpens it


class Why(Enum):
    """Why the worker itself ends an attempt."""

    CANCEL = "cancelled"
    TIMEOUT = "timeout"
    STALE = "stale"
    DRAIN = "drained"
    HEAT = "too hot"  #: given back: its worker is held, critically
    FENCE = "fenced"  #: given back: its lease was not renewed, by and by it is another worker's


@dataclass(slots=True)
class Run:
    """One lease that is held."""

    lease: Lease
    threaded: bool
    timeout_s: float
    phase: Phase = Phase.QUEUED
    started_at: float = 0.0
    active_at: float = 0.0
    announced: bool = False
    waiting: bool = False
    why: Why | None = None
    error: str = ""
    kill_at: float | None = None
    #: The broker leases it to nobody else before, if the clocks run alike. It moves with each answered RENEW that named it.
    held_until: float = 0.0
    fenced: bool = False
    reported: bool = False

    @property
    def waits(self) -> bool:
        """Has it not begun, and could it be given back?"""
        return self.phase is Phase.QUEUED or (self.phase is Phase.HANDED and self.threaded)
