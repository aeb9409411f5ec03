"""Readings without a card: by a formula, or from a log of ``rigbus gpu --log``. For tests, demos and other people's bugs."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ...bus.errors import ConfigError
from .cards import reading_of
from .readings import GpuReading

_NAME: Final = "Synthetic 6 GB"
_LIMIT_W: Final = 120.0
_TOTAL_MB: Final = 6144
_IDLE_C: Final = 34.0
_HOT_C: Final = 79.0  #: where the card's own regulation begins
_PERIOD_S: Final = 180.0
_CARDS: Final = 64  #: at most
_LINE_BYTES: Final = 1 << 20


def synthetic_reading(index: int, seed: int, at: float) -> GpuReading:
    """Card ``index`` at ``at`` seconds: load goes up and down in three minutes, each card at its own time.

    The same arguments give the same reading in every process, so workers and a monitor see the same cards.
    """
    shift = (index * 7 + seed * 13) % 17 / 17
    load = 0.5 - 0.5 * math.cos(2 * math.pi * (at / _PERIOD_S + shift))
    heat = _IDLE_C + (_HOT_C + 4 - _IDLE_C) * load
    throttle = ("thermal",) if heat > _HOT_C else ("power cap",) if load > 0.9 else ()
    return GpuReading(
        index=index,
        uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'rigbus synthetic {seed} {index}')}",
        name=_NAME,
        pci_bus=f"00000000:{index + 1:02X}:00.0",
        temperature_c=round(min(heat, _HOT_C + 3), 1),
        utilization=round(load, 3),
        memory_used_mb=round(200 + 5600 * load),
        memory_total_mb=_TOTAL_MB,
        power_w=round(9 + (_LIMIT_W - 9) * load, 1),
        power_limit_w=_LIMIT_W,
        fan=round(0.3 + 0.6 * load, 2),
        clock_mhz=1708 - (200 if throttle else 0),
        throttle=throttle,
    )


class SyntheticSource:
    """``count`` cards by :func:`synthetic_reading`."""

    name = "synthetic"

    def __init__(self, count: int, seed: int = 0, clock: Callable[[], float] = time.time) -> None:
        """``clock``: wall time, which all processes share.

        Raises:
            ConfigError: no card, or more than 64.
        """
        if not 1 <= count <= _CARDS:
            raise ConfigError(f"synthetic:{count}: 1 to {_CARDS} cards, as in synthetic:5")
        self._count, self._seed, self._clock = count, seed, clock

    def sample(self) -> list[GpuReading]:
        at = self._clock()
        return [synthetic_reading(index, self._seed, at) for index in range(self._count)]

    def close(self) -> None:
        """Nothing is held."""


class RecordedSource:
    """The samples of a JSONL file (``rigbus.gpu/1``), the next at each call; at the end the last one stays.

    A file that grows is followed, so a test or a person can append what the cards say next. Lines that are no sample
    are passed over.
    """

    name = "file"

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ConfigError: the file cannot be read, or has no sample.
        """
        self._path = path
        self._last: list[GpuReading] = []
        try:
            self._file = path.open("rb")
        except OSError as e:
            raise ConfigError(
                f"{path}: {e.strerror}; RIGBUS_GPU_SOURCE=file:PATH names a log of readings"
            ) from e
        self._rest = b""
        self._pending = self._next()
        if not self._pending:
            self.close()
            raise ConfigError(
                f"{path}: no line of it is a sample of cards; `rigbus gpu --log FILE` writes such a file"
            )

    def sample(self) -> list[GpuReading]:
        found, self._pending = self._pending or self._next(), []
        self._last = found or self._last
        return list(self._last)

    def close(self) -> None:
        self._file.close()

    def _next(self) -> list[GpuReading]:
        while line := self._file.readline(_LINE_BYTES):
            self._rest += line
            if not line.endswith(b"\n") and len(self._rest) < _LINE_BYTES:
                return []  # its writer has not finished it
            text, self._rest = self._rest, b""
            found = sample_in(text)
            if found:
                return found
        return []


def sample_in(line: bytes) -> list[GpuReading]:
    """The readings in a line of a log; empty when it is none."""
    try:
        value = json.loads(line)
        rows = value["cards"] if isinstance(value, dict) else ()
        return [reading_of(row) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
