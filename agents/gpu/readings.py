"""One reading of one card, and what gives them. Pure: no driver, no clock, no file.

Every field but the index is optional: a driver leaves out what its card cannot tell, and a card that has failed tells
nothing but ``error``. Readers decide what a missing field means to them; nobody here invents a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

#: NVML's bits of the reasons for a lowered clock, in words. Left out are those that hold nobody back: an idle card (0x1),
#: and clocks that somebody has set (0x2, 0x100).
THROTTLE_BITS: Final = (
    (0x20, "thermal"),  # by the driver
    (0x40, "thermal"),  # by the card itself
    (0x4, "power cap"),
    (0x80, "power brake"),
    (0x8, "hardware slowdown"),
    (0x10, "sync boost"),
)


def throttle_words(bits: int) -> tuple[str, ...]:
    """The reasons in NVML's bit mask, each once; bits that nobody has named yet are left out."""
    return tuple(dict.fromkeys(word for bit, word in THROTTLE_BITS if bits & bit))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """A card at one moment. ``index`` is the driver's (PCI bus order), ``uuid`` the name that survives a reboot.

    ``throttle`` has the reasons why the clock is lowered now, in plain words (:data:`THROTTLE_BITS`); an idle card's low
    clock is none. ``pids`` are the processes that compute on it, ``process_mb`` (pid, MiB) those of
    them whose memory the driver tells: in a container it often does not. ``error`` says why there are no readings; the
    numbers are then None.
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
    process_mb: tuple[tuple[int, int], ...] = ()
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
