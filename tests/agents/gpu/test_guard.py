"""The thermal guard, sample by sample: what holds a worker, what lets it go on, and what is no reason at all."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.agents.gpu.budget import vram_budget_mb
from rigbus.agents.gpu.guard import BLIND_HOLD_S, Level, ThermalGuard, ThermalLimits, Verdict
from rigbus.agents.gpu.readings import GpuReading
from rigbus.bus.errors import ConfigError

EVERY_S = 2.0


class Cards:
    """A guard that is shown a sample every two seconds."""

    def __init__(self, **limits: Any) -> None:
        self.guard = ThermalGuard(ThermalLimits(**{"min_pause_s": 0.0, **limits}))
        self.now = 1000.0

    def see(self, *degrees: float | None, error: str = "") -> Verdict:
        """One sample: the temperatures of cards 0, 1, …"""
        self.now += EVERY_S
        readings = [GpuReading(index=i, temperature_c=d, error=error) for i, d in enumerate(degrees)]
        return self.guard.step(readings, self.now)

    def levels(self, *degrees: float | None) -> list[Level]:
        """The levels over samples of one card."""
        return [self.see(d).level for d in degrees]


OK, WARN, CRITICAL = Level.OK, Level.WARN, Level.CRITICAL


@pytest.mark.parametrize(
    ("degrees", "levels"),
    [
        ([76, 78, 77, 78, 82.9], [OK] * 5),  # how such cards run under load
        ([83, 83], [OK, WARN]),
        ([84, 95], [OK, WARN]),  # only one of them was critical
        ([90, 90], [OK, CRITICAL]),
        ([84, 84, 91, 91], [OK, WARN, WARN, CRITICAL]),
        ([84, 84, 81, 79, 79], [OK, WARN, WARN, WARN, WARN]),  # inside the hysteresis
        ([84, 84, 78, 78], [OK, WARN, WARN, OK]),
        ([84, 84, 78, 80, 78, 78], [OK, WARN, WARN, WARN, WARN, OK]),
        ([91, 91, 87, 87], [OK, CRITICAL, CRITICAL, CRITICAL]),
        ([91, 91, 85, 85], [OK, CRITICAL, CRITICAL, WARN]),
        ([91, 91, 60, 60], [OK, CRITICAL, CRITICAL, OK]),
        ([70, 120, 70, 120, 70], [OK] * 5),  # single spikes
        ([70, 255, 255, 255, 70], [OK] * 5),
        ([70, 0, 0, 70], [OK] * 4),
        ([84, 84, 0, 0, 255], [OK, WARN, WARN, WARN, WARN]),  # nor do they release
        ([84, 255, 84], [OK, OK, WARN]),
        ([84, 84, math.nan, math.nan], [OK, WARN, WARN, WARN]),
        ([-3, -3], [OK, OK]),
        ([None, None], [OK, OK]),
    ],
)
def test_a_level_needs_two_samples_that_agree(degrees: list[float | None], levels: list[Level]) -> None:
    assert Cards().levels(*degrees) == levels


def test_the_hottest_card_counts_and_each_hot_one_is_named() -> None:
    cards = Cards()
    cards.see(70, 84, 91)
    verdict = cards.see(70, 84, 91)
    assert verdict.level is CRITICAL
    assert verdict.reason == (
        "GPU 1 is at 84 °C, resumes below 79 °C; GPU 2 is at 91 °C, resumes below 79 °C"
    )
    assert [c.level for c in verdict.cards] == [OK, WARN, CRITICAL]


def test_a_hold_lasts_its_least_time_and_says_how_long() -> None:
    cards = Cards(min_pause_s=10.0)
    assert cards.levels(84, 84, 70, 70) == [OK, WARN, WARN, WARN]
    assert cards.see(70).reason == "GPU 0 has cooled to 70 °C, goes on in 4 s"
    assert cards.levels(70, 70) == [WARN, OK]


def test_a_sample_that_is_shown_again_counts_once() -> None:
    guard = ThermalGuard()
    hot = [GpuReading(index=0, temperature_c=95)]
    for look in range(5):
        assert guard.step(hot, 1000.0 + look, 1000.0).level is OK
    assert guard.step(hot, 1005.0, 1005.0).level is CRITICAL


def test_an_old_sample_is_unknown_and_no_reason_to_stop() -> None:
    guard = ThermalGuard()
    verdict = guard.step([GpuReading(index=3, temperature_c=80)], 1000.0, 1000.0)
    assert (verdict.level, verdict.unknown) == (OK, ())
    verdict = guard.step([GpuReading(index=3, temperature_c=80)], 1016.0, 1000.0)
    assert (verdict.level, verdict.cards[0].temperature_c) == (OK, None)
    assert verdict.unknown == ("GPU 3 has told no temperature for over 15 s",)


def test_samples_that_lie_far_apart_do_not_agree() -> None:
    guard = ThermalGuard()
    hot = [GpuReading(index=0, temperature_c=95)]
    assert [guard.step(hot, at).level for at in (1000.0, 1100.0, 1102.0)] == [OK, OK, CRITICAL]


@pytest.mark.parametrize(
    ("degrees", "error", "said"),
    [
        (None, "", "GPU 0 tells no temperature"),
        (None, "GPU is lost", "GPU 0 tells no temperature: GPU is lost"),
        (255, "", "GPU 0 tells no temperature: its driver says 255 °C"),
    ],
)
def test_what_is_unknown_is_said(degrees: float | None, error: str, said: str) -> None:
    verdict = Cards().see(degrees, error=error)
    assert (verdict.level, verdict.reason, verdict.unknown) == (OK, "", (said,))


def test_a_hot_card_that_falls_silent_stays_held_for_a_while_and_not_for_ever() -> None:
    cards = Cards()
    cards.levels(91, 91)
    last = cards.now
    while cards.now - last + EVERY_S <= BLIND_HOLD_S:
        verdict = cards.see(None, error="GPU is lost")
        assert verdict.level is CRITICAL
    assert verdict.reason == ("GPU 0 was at 91 °C and tells no temperature; goes on 60 s after its last one")
    assert verdict.unknown == ("GPU 0 has told no temperature for over 15 s: GPU is lost",)
    assert cards.see(None).level is OK
    assert cards.levels(91, 91) == [OK, CRITICAL], "when it is back, it is judged anew"


def test_a_card_that_vanishes_from_the_samples_is_treated_as_silent() -> None:
    cards = Cards()
    cards.see(84, 60)
    assert cards.see(84, 60).level is WARN
    for _ in range(40):
        verdict = cards.see()
    assert verdict.level is OK
    assert len(verdict.unknown) == 2


def test_memory_power_and_load_are_not_heat() -> None:
    guard = ThermalGuard()
    full = GpuReading(
        index=0, temperature_c=70, utilization=1.0, memory_used_mb=6144, memory_total_mb=6144, power_w=200
    )
    assert [guard.step([full], 1000.0 + i).level for i in range(3)] == [OK] * 3


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True), st.integers(60, 100)), max_size=40))
def test_whatever_a_sensor_says_a_held_card_has_a_reason_and_nobody_else(degrees: list[Any]) -> None:
    cards = Cards(min_pause_s=6.0)
    before: float | None = None
    for value in degrees:
        verdict = cards.see(value)
        assert bool(verdict.reason) == (verdict.level is not OK)
        believable = value is not None and 0 < value < 130
        if verdict.level is CRITICAL and believable and before is not None:
            assert max(before, value) >= 86, "two cooler samples in a row end it"
        before = value if believable else None


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"warn_c": 90, "critical_c": 83}, "warn_c < critical_c"),
        ({"warn_c": 83, "critical_c": 83}, "warn_c < critical_c"),
        ({"critical_c": 300}, "critical_c 300"),
        ({"warn_c": math.nan}, "warn_c nan"),
        ({"hysteresis_c": -1}, "hysteresis_c -1"),
        ({"min_pause_s": -1}, "min_pause_s -1"),
        ({"stale_s": 0}, "stale_s 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ThermalLimits(**limits)


def test_the_budget_is_that_of_the_smallest_card() -> None:
    def card(index: int, mb: int | None) -> GpuReading:
        return GpuReading(index=index, memory_total_mb=mb)

    assert vram_budget_mb([card(0, 6144), card(3, 8192)]) == 4915
    assert vram_budget_mb([card(0, None)]) is None
    assert vram_budget_mb([]) is None
