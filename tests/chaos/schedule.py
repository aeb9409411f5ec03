"""Whom each round hurts, by the seed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

#: Victims and their weights. ``worker``: one of them, ``command``: a child of one, ``helper``: a child of the bridge.
VICTIMS: Final = {
    "worker": 30,
    "broker": 17,
    "brain": 10,
    "brain-worker": 7,
    "bridge": 8,
    "command": 20,
    "helper": 3,
    "guard": 1,
    "up": 4,
}
BURST: Final = 0.2  #: of rounds: the next victim follows at once, while the rig still recovers
STOPS: Final = 0.2  #: of rounds: SIGSTOP instead of SIGKILL
#: Seconds that a victim is stopped. The lease is 0.5, a worker is replaced after 2, a broker after 10.
STOPPED_S: Final = ((0.02, 0.3), (0.3, 1.0), (1.0, 2.5), (3.0, 5.0), (11.0, 13.0))
_STOP_WEIGHTS: Final = (40, 30, 20, 9, 1)


@dataclass(frozen=True, slots=True)
class Round:
    """One fault. ``pick`` (0 to 1) chooses among several of a kind; ``after_s``: the time from the round before."""

    n: int
    after_s: float
    burst: bool  #: it does not wait for the rig to have done anything since the last one
    victim: str
    stop_s: float  #: 0: SIGKILL
    pick: float


def plan_round(seed: int, n: int) -> Round:
    """The n-th round of a campaign."""
    chance = Random(f"{seed}/round/{n}")
    burst = chance.random() < BURST
    victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
    stop_s = 0.0
    if chance.random() < STOPS:
        stop_s = chance.uniform(*chance.choices(STOPPED_S, _STOP_WEIGHTS)[0])
    after_s = chance.uniform(0.0, 0.1) if burst else chance.uniform(0.2, 0.8)
    return Round(n, after_s, burst, victim, stop_s, chance.random())
