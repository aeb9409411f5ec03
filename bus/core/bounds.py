"""What fills up in a broker, and how far it may: each bound answers BUSY (PROTOCOL §9). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Sessions beyond the bound that are kept for workers and the rig's own processes: a flood of clients keeps none out.
RESERVED_SESSIONS: Final = 1_000
#: Leases that one worker may hold, whatever credit it offers.
WORKER_LEASES: Final = 4_096


@dataclass(frozen=True, slots=True)
class Bounds:
    """Those that the core keeps. What they can be raised to is the configuration's to say."""

    sessions: int = 4_000
    facts: int = 300_000


class Busy(Exception):
    """A bound is reached: answered BUSY, nothing was applied. ``bound`` is its name in `status`."""

    def __init__(self, bound: str, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.bound = bound
        self.retry_after_s = retry_after_s


def usage(used: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
    """``{name: {used, bound}}`` for `status`."""
    return {name: {"used": n, "bound": bound} for name, (n, bound) in used.items()}
