"""One reading of one card, and what gives them. Pure: no driver, no clock, no file.

Every field but the index is optional: a driver leaves out what its card cannot tell, and a card that has failed tells
nothing but ``error``. Readers decide what a missing field means to them; nobody here invents a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """A card at one moment. ``index`` is the driver's (PCI bus order), ``uuid`` the name that survives a reboot.

    ``throttle`` has the reasons why the clock is lowered now, in plain words (:data:`THROTTLE_WORDS`); an idle card's low
    clock is none. ``pids`` are the processes that compute on it. ``error`` says why there are no readings; the numbers
    are then None.
    """

    index: int
    uuid: str = ""
    name: str = ""
    pci_bus: str = ""
    temperature_c: float | None = None
    utilization: float | None = None  #: 0 to 1, over the driver's last sample period
    memory_used_mb: int | None = None  #: MiB
    memory_total_mb: int | None = None  #: MiB
    power_w: float | None = None
    power_limit_w: float | None = None
    fan: float | None = None  #: 0 to 1
    clock_mhz: int | None = None  #: of the multiprocessors
    throttle: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    error: str = ""


class GpuSource(Protocol):
    """Something that reads cards. One thread owns it: the one that calls it first."""

    name: str

    def sample(self) -> list[GpuReading]:
        """Every card now, by index. It may block for as long as its driver does.

        A card, or a driver, that fails after it has worked gives readings with ``error``, and is tried again later.
        """
        ...

    def close(self) -> None:
        """Let go of the driver. Safe to call twice."""
        ...
