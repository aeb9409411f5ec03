"""Readings from NVML, the driver's own library, through the module ``pynvml`` of nvidia-ml-py.

Laws: a call that fails costs its field, never the sample. A card that is lost says so in its reading, and the others go on.
A driver that goes away (an update, a crash) is asked for again with a back-off; until it is back each card that was known
says why it has no readings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

from ...bus.errors import NotFound
from .readings import GpuReading, throttle_words

# Codes of nvmlReturn_t. By number: a module older or newer than the driver may not have the name.
_DRIVER_DOWN: Final = frozenset(
    {1, 9, 12, 18}
)  # uninitialized, not loaded, no library, library and kernel differ
_CARD_LOST: Final = frozenset({15, 16})  # off the bus, reset required
_TEMPERATURE_GPU: Final = 0
_CLOCK_SM: Final = 1
_MIB: Final = 1 << 20
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0


class _DriverDown(Exception):
    """No card can be asked any more."""


class _CardLost(Exception):
    """This card cannot be asked any more."""


@dataclass(slots=True)
class _Card:
    """``who`` is the card's identity, as a reading without numbers; ``handle`` None: the driver gives none."""

    who: GpuReading
    handle: Any = None


class NvmlSource:
    """Cards as NVML tells of them. Calls may block for as long as the driver does: use it in a thread of its own."""

    name = "nvml"

    def __init__(self, module: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        """``module``: what stands for ``pynvml``, imported when None.

        Raises:
            NotFound: no module, no driver, or no card; the message says which.
        """
        self._nvml = module if module is not None else _module()
        self._clock = clock
        self._cards: list[_Card] = []
        self._up = False
        self._retry_at: float | None = None  #: None: nothing is wrong
        self._retry_s = RETRY_FIRST_S
        self._refused = ""  #: why a call failed last
        try:
            self._open()
        except _DriverDown as e:
            raise NotFound(f"NVML: {e}") from None
        if not self._cards:
            self.close()
            raise NotFound("NVML: the driver shows no card")

    def sample(self) -> list[GpuReading]:
        try:
            if self._retry_at is not None and self._clock() >= self._retry_at:
                self.close()
                self._open()
            found = [self._read(card) for card in self._cards] if self._up else None
        except _DriverDown as e:
            self.close()
            self._cards = [_Card(replace(c.who, error=str(e))) for c in self._cards]
            self._try_later()
            found = None
        if found is None:
            return [card.who for card in self._cards]
        if not any(reading.error for reading in found):
            self._retry_at, self._retry_s = None, RETRY_FIRST_S
        elif self._retry_at is None:
            self._try_later()
        return found

    def close(self) -> None:
        if self._up:
            self._up = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                pass  # it is gone already

    # -- the driver ------------------------------------------------------------------------------------------

    def _try_later(self) -> None:
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(RETRY_MOST_S, 2 * self._retry_s)

    def _open(self) -> None:
        """Begin, or begin again. Cards that were known and are not listed any more stay, with an error."""
        try:
            self._nvml.nvmlInit()
            self._up = True
            count = int(self._nvml.nvmlDeviceGetCount())
        except (self._nvml.NVMLError, OSError) as e:
            raise _DriverDown(_said(e)) from None
        self._retry_at = None
        before = {card.who.index: card.who for card in self._cards}
        cards = [self._meet(index, before.get(index)) for index in range(count)]
        listed = {card.who.uuid for card in cards}
        for who in before.values():
            if who.uuid not in listed:
                cards.append(_Card(replace(who, error=who.error or "the driver does not list it any more")))
        self._cards = sorted(cards, key=lambda card: card.who.index)

    def _meet(self, index: int, before: GpuReading | None) -> _Card:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError as e:
            return _Card(replace(before or GpuReading(index=index), error=_said(e)))
        try:
            pci = self._ask("nvmlDeviceGetPciInfo", handle)
            return _Card(
                GpuReading(
                    index=index,
                    uuid=_text(self._ask("nvmlDeviceGetUUID", handle)),
                    name=_text(self._ask("nvmlDeviceGetName", handle)),
                    pci_bus=_text(getattr(pci, "busId", "")),
                ),
                handle,
            )
        except _CardLost as e:
            return _Card(replace(before or GpuReading(index=index), error=str(e)))

    # -- a card ----------------------------------------------------------------------------------------------

    def _read(self, card: _Card) -> GpuReading:
        handle = card.handle
        if handle is None:
            return card.who
        self._refused = ""
        try:
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
            load = self._ask("nvmlDeviceGetUtilizationRates", handle)
            # The first is to go with CUDA 14, the second is not in older drivers.
            celsius = self._first_of(
                ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"), handle, _TEMPERATURE_GPU
            )
            processes = self._processes(handle)
            power_mw = _number(self._ask("nvmlDeviceGetPowerUsage", handle))
            limit_mw = _number(self._ask("nvmlDeviceGetEnforcedPowerLimit", handle))
            reading = replace(
                card.who,
                temperature_c=_number(celsius),
                utilization=_share(getattr(load, "gpu", None)),
                memory_used_mb=_mib(getattr(memory, "used", None)),
                memory_total_mb=_mib(getattr(memory, "total", None)),
                power_w=None if power_mw is None else power_mw / 1000,
                power_limit_w=None if limit_mw is None else limit_mw / 1000,
                fan=_share(self._ask("nvmlDeviceGetFanSpeed", handle)),
                clock_mhz=_whole(self._ask("nvmlDeviceGetClockInfo", handle, _CLOCK_SM)),
                throttle=throttle_words(self._throttle_bits(handle)),
                pids=tuple(processes),
                process_mb=tuple((pid, mb) for pid, mb in processes.items() if mb is not None),
            )
        except _CardLost as e:
            card.who, card.handle = replace(card.who, error=str(e)), None
            return card.who
        told = (reading.temperature_c, reading.memory_used_mb, reading.utilization, reading.power_w)
        if self._refused and all(value is None for value in told):
            return replace(reading, error=self._refused)
        return reading

    def _throttle_bits(self, handle: Any) -> int:
        # Newer drivers say "event", older ones "throttle"; a module has one or both.
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        bits = self._first_of(names, handle)
        return bits if isinstance(bits, int) else 0

    def _processes(self, handle: Any) -> dict[int, int | None]:
        """What computes on it, by pid; None: the driver does not tell its memory (pynvml makes None of "not available")."""
        # The first is the third version of the call, which older drivers do not have.
        calls = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2")
        found = self._first_of(calls, handle) or ()
        memory = {getattr(one, "pid", None): _mib(getattr(one, "usedGpuMemory", None)) for one in found}
        return {pid: memory[pid] for pid in sorted(p for p in memory if isinstance(p, int))}

    def _first_of(self, calls: Sequence[str], *args: Any) -> Any:
        """What the first of them that this module and driver have answers."""
        return next((value for call in calls if (value := self._ask(call, *args)) is not None), None)

    def _ask(self, call: str, *args: Any) -> Any:
        """What NVML answers; None for what this card, driver or module does not know.

        Raises:
            _CardLost, _DriverDown: it makes no sense to ask on.
        """
        function = getattr(self._nvml, call, None)
        if function is None:
            return None
        try:
            return function(*args)
        except self._nvml.NVMLError as e:
            code = getattr(e, "value", None)
            if code in _CARD_LOST:
                raise _CardLost(_said(e)) from None
            if code in _DRIVER_DOWN:
                raise _DriverDown(_said(e)) from None
            self._refused = _said(e)
        except (OSError, ValueError, TypeError, AttributeError) as e:
            # What ctypes and the module make of a library that is not quite what they expect.
            self._refused = f"{call}: {e}"
        return None


def _module() -> ModuleType:
    try:
        import pynvml
    except ImportError:
        raise NotFound("NVML: no module pynvml; pip install 'rigbus[gpu]' brings it") from None
    module: ModuleType = pynvml
    if not (hasattr(module, "nvmlInit") and hasattr(module, "NVMLError")):
        raise NotFound(
            "NVML: the module pynvml here is not the one of nvidia-ml-py; pip install nvidia-ml-py"
        )
    return module


def _said(error: BaseException) -> str:
    code = getattr(error, "value", None)
    text = str(error) or type(error).__name__
    return f"{text} (NVML error {code})" if code is not None else text


def _text(value: Any) -> str:
    """Older modules give bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) else None


def _mib(value: Any) -> int | None:
    return int(value) // _MIB if isinstance(value, (int, float)) else None


def _share(percent: Any) -> float | None:
    return min(1.0, max(0.0, percent / 100)) if isinstance(percent, (int, float)) else None
