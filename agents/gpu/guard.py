"""The thermal guard: temperatures of a worker's cards in, whether it may take work out. Pure.

Laws
- A level is believed when two samples in a row agree on it, upwards and downwards: one wrong number changes nothing.
- No driver tells 0 or 255 °C of a card that works: such numbers, errors and samples that are too old are *unknown*.
  What is unknown is said, and is no reason to stop.
- A card that was hot when its readings ended stays held for :data:`BLIND_HOLD_S` after the last of them: it cools
  without work in that time, and a dead sensor must not hold a rig for ever.
- Between warn and resume lie ``hysteresis_c`` degrees, and a hold lasts ``min_pause_s`` at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ...bus.errors import ConfigError
from .readings import GpuReading

#: Between these (exclusive, °C) a temperature is believed: drivers say 0 or 255 where a sensor does not answer.
COLDEST_C: Final = 0.0
HOTTEST_C: Final = 130.0
BLIND_HOLD_S: Final = 60.0
_SAME_S: Final = 0.05  #: a sample's time is told as an age, with some error: closer ones are the same


class Level(IntEnum):
    """How hot a card is; the larger one counts."""

    OK = 0
    WARN = 1  #: no new work; what runs goes on
    CRITICAL = 2  #: what runs is ended and handed back


@dataclass(frozen=True, slots=True, kw_only=True)
class ThermalLimits:
    """When a worker stops taking work, in °C of its hottest card.

    The defaults fit cards that run at 76 to 78 °C under load: work stops at 83, where the drivers of most cards begin
    to lower the clock, and goes on below 79. At 90 what runs is ended.
    """

    warn_c: float = 83.0
    critical_c: float = 90.0
    hysteresis_c: float = 4.0
    min_pause_s: float = 10.0
    stale_s: float = 15.0  #: older samples are unknown; nvidia-smi, the slowest source, is asked every 5 s

    def __post_init__(self) -> None:
        if not COLDEST_C < self.warn_c < self.critical_c < HOTTEST_C:
            raise ConfigError(
                f"thermal limits: warn_c {self.warn_c:g} and critical_c {self.critical_c:g}; "
                f"give {COLDEST_C:g} < warn_c < critical_c < {HOTTEST_C:g}"
            )
        if not 0 <= self.hysteresis_c < self.warn_c:
            raise ConfigError(
                f"thermal limits: hysteresis_c {self.hysteresis_c:g}; give 0 or more, below warn_c"
            )
        if not self.min_pause_s >= 0 or not self.stale_s > 0:
            raise ConfigError(
                f"thermal limits: min_pause_s {self.min_pause_s:g}, stale_s {self.stale_s:g}; "
                "give seconds, stale_s above 0"
            )

    @classmethod
    def parse(cls, text: str) -> ThermalLimits:
        """``WARN:CRITICAL:HYSTERESIS`` in °C, as a worker's command line has it.

        Raises:
            ConfigError: it is not three such numbers.
        """
        try:
            warn_c, critical_c, hysteresis_c = (float(part) for part in text.split(":"))
        except ValueError:
            raise ConfigError(f"--thermal {text!r:.40}: give WARN:CRITICAL:HYSTERESIS, as 83:90:4") from None
        return cls(warn_c=warn_c, critical_c=critical_c, hysteresis_c=hysteresis_c)

    @property
    def resume_c(self) -> float:
        """Below this work goes on."""
        return self.warn_c - self.hysteresis_c

    def level_at(self, temperature_c: float) -> Level:
        """The level of one temperature, without memory."""
        if temperature_c >= self.critical_c:
            return Level.CRITICAL
        return Level.WARN if temperature_c >= self.warn_c else Level.OK


@dataclass(frozen=True, slots=True)
class CardVerdict:
    """One card: its level, and in a sentence why it is held (empty at OK) or what is not known of it."""

    index: int
    level: Level
    temperature_c: float | None  #: None while it is unknown
    reason: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All cards of a worker."""

    cards: tuple[CardVerdict, ...] = ()

    @property
    def level(self) -> Level:
        """That of the hottest card."""
        return max((card.level for card in self.cards), default=Level.OK)

    @property
    def reason(self) -> str:
        """Why the worker is held, card by card; empty at OK."""
        return "; ".join(card.reason for card in self.cards if card.reason)

    @property
    def unknown(self) -> tuple[str, ...]:
        """What cannot be judged, one sentence a card."""
        return tuple(card.unknown for card in self.cards if card.unknown)


@dataclass(slots=True)
class _Card:
    """What is remembered of one card; times are monotonic seconds."""

    level: Level = Level.OK
    temperature_c: float | None = None  #: the last one that was believable
    felt_at: float = 0.0  #: when that was
    held_at: float = 0.0  #: when it left OK
    error: str = ""

    def feel(self, temperature_c: float, at: float, limits: ThermalLimits) -> None:
        """One believable sample."""
        before, before_at = self.temperature_c, self.felt_at
        self.temperature_c, self.felt_at = temperature_c, at
        if before is None or at - before_at > limits.stale_s:
            return  # nothing to agree with
        both_at_least, both_at_most = min(before, temperature_c), max(before, temperature_c)
        risen = limits.level_at(both_at_least)
        if risen > self.level:
            self.held_at = at if self.level is Level.OK else self.held_at
            self.level = risen
            return
        if self.level is Level.CRITICAL and both_at_most < limits.critical_c - limits.hysteresis_c:
            self.level = Level.WARN
        rested = at - self.held_at >= limits.min_pause_s
        if self.level is Level.WARN and both_at_most < limits.resume_c and rested:
            self.level = Level.OK


class ThermalGuard:
    """Judges the cards of one worker, sample by sample."""

    def __init__(self, limits: ThermalLimits | None = None) -> None:
        self.limits = limits or ThermalLimits()
        self._cards: dict[int, _Card] = {}
        self._taken_at: float | None = None

    def step(self, readings: Sequence[GpuReading], now: float, taken_at: float | None = None) -> Verdict:
        """The verdict at ``now``, from a sample of the worker's cards that was taken at ``taken_at`` (now).

        Monotonic seconds. The same sample may come again, as its age matters: it is counted once.
        """
        taken = now if taken_at is None else taken_at
        if self._taken_at is None or taken > self._taken_at + _SAME_S:
            self._taken_at = taken
            for reading in readings:
                self._take(reading, taken)
        return Verdict(tuple(self._judge(index, self._cards[index], now) for index in sorted(self._cards)))

    def _take(self, reading: GpuReading, taken: float) -> None:
        card = self._cards.setdefault(reading.index, _Card())
        degrees = reading.temperature_c
        card.error = reading.error
        if degrees is not None and COLDEST_C < degrees < HOTTEST_C:  # NaN is not
            card.feel(degrees, taken, self.limits)
        elif degrees is not None and not reading.error:
            card.error = f"its driver says {degrees:g} °C"

    def _judge(self, index: int, card: _Card, now: float) -> CardVerdict:
        degrees, silent_s = card.temperature_c, now - card.felt_at
        if degrees is None or silent_s > self.limits.stale_s:
            return self._blind(index, card, silent_s)
        if card.level is Level.OK:
            return CardVerdict(index, Level.OK, degrees)
        rest_s = card.held_at + self.limits.min_pause_s - now
        if degrees < self.limits.resume_c:
            when = f"in {rest_s:.0f} s" if rest_s >= 1 else "when the next sample agrees"
            said = f"GPU {index} has cooled to {degrees:.0f} °C, goes on {when}"
        else:
            said = f"GPU {index} is at {degrees:.0f} °C, resumes below {self.limits.resume_c:g} °C"
        return CardVerdict(index, card.level, degrees, said)

    def _blind(self, index: int, card: _Card, silent_s: float) -> CardVerdict:
        """No believable reading lately."""
        why = f": {card.error}" if card.error else ""
        if card.temperature_c is None:
            return CardVerdict(index, card.level, None, unknown=f"GPU {index} tells no temperature{why}")
        unknown = f"GPU {index} has told no temperature for over {self.limits.stale_s:g} s{why}"
        if card.level is Level.OK or silent_s > BLIND_HOLD_S:
            card.level = Level.OK
            return CardVerdict(index, Level.OK, None, unknown=unknown)
        was = f"GPU {index} was at {card.temperature_c:.0f} °C and tells no temperature"
        return CardVerdict(
            index, card.level, None, f"{was}; goes on {BLIND_HOLD_S:g} s after its last one", unknown
        )
