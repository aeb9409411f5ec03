"""The times that follow from ``lease_s``: one rule each, for broker, workers and supervisor alike. Pure; in seconds.

They keep this order for every lease: renewal < suspicion < fence < lease, so that a single lost RENEW costs nothing.
"""

from __future__ import annotations

from typing import Final

from .wire import CLIENT_SESSION_S, RENEW_S, SUSPECT_S

LEASE_MIN_S: Final = 0.2  #: below it a loaded machine loses leases by its scheduler alone
LEASE_MAX_S: Final = 300.0
#: However short a lease is, a process may be without the processor for so long and is not killed for it.
_SILENCE_MIN_S: Final = 2.0
_QUIET_MIN_S: Final = 1.0
LOOK_S: Final = 0.05  #: between two looks at what would be over, if all that was said had been read


def renewal_s(lease_s: float) -> float:
    """Between two RENEWs of a worker: a second, or a fifth of a short lease."""
    return min(RENEW_S, lease_s / 5)


def longest_renewal_s(lease_s: float) -> float:
    """What ``renew_s`` may be at most: half of the time after which a worker is suspect."""
    return suspicion_s(lease_s) / 2


def suspicion_s(lease_s: float) -> float:
    """A worker that was silent for so long gets no new leases until its next RENEW."""
    return min(SUSPECT_S, 0.6 * lease_s)


def fence_s(lease_s: float) -> float:
    """Over a network a worker ends what it runs so long after the last RENEW that was answered: the rest of the lease,
    a second or a quarter of a short one, is for the end of the trees."""
    return lease_s - guard_s(lease_s)


def guard_s(lease_s: float) -> float:
    """The part of a lease in which fenced work dies."""
    return min(1.0, lease_s / 4)


def beat_s(lease_s: float) -> float:
    """Between two signs of life of a worker: its telemetry, and the line for the supervisor."""
    return min(1.0, lease_s / 3)


def silence_s(lease_s: float) -> float:
    """A supervised worker that gave no sign of life for so long is killed. Its leases end by their own time."""
    return max(lease_s, _SILENCE_MIN_S)


def quiet_s(lease_s: float, renew_s: float) -> float:
    """A worker that heard nothing from the broker for so long takes a new connection."""
    return max(lease_s, 3 * renew_s, _QUIET_MIN_S)


def absence_s(lease_s: float) -> float:
    """The session of a worker without leases ends after so much silence."""
    return max(2 * lease_s, CLIENT_SESSION_S)
