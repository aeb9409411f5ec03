"""Rows of readings, whose cards they are, and what a log says in short."""

from __future__ import annotations

from typing import Any

import pytest

from rigbus.agents.gpu.cards import gpu_field, reading_of, row_of, rows_in, visible
from rigbus.agents.gpu.played import synthetic_reading
from rigbus.agents.gpu.readings import GpuReading
from rigbus.agents.gpu.summary import summarise
from rigbus.bus.telemetry import WorkerTelemetry

CARDS = [GpuReading(index=n, uuid=f"GPU-{n}{n}{n}{n}-abcd") for n in range(5)]


@pytest.mark.parametrize(
    ("devices", "indexes"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("", []),
        ("2", [2]),
        ("3,0", [3, 0]),
        (" 0 , 3 ", [0, 3]),
        ("GPU-4444-abcd", [4]),
        ("gpu-11", [1]),
        ("GPU-2222-abcd,0", [2, 0]),
        ("GPU-", []),  # names no card alone
        ("1,-1,2", [1]),  # CUDA stops at the first that is none
        ("NoDevFiles", []),
        ("9,0", []),
        ("1,1", [1]),
        ("MIG-1111-abcd", []),
    ],
)
def test_a_workers_cards_are_those_that_cuda_would_show_it(devices: str | None, indexes: list[int]) -> None:
    assert [card.index for card in visible(CARDS, devices)] == indexes


def test_an_index_means_the_card_that_works_when_a_lost_one_has_the_same() -> None:
    lost = GpuReading(index=1, uuid="GPU-lost", error="the driver does not list it any more")
    assert visible([lost, CARDS[1]], "1") == [CARDS[1]]
    assert visible([lost], "1") == [lost]


@pytest.mark.parametrize("index", range(5))
def test_a_row_says_what_the_reading_says(index: int) -> None:
    reading = synthetic_reading(index, 7, 1234.5)
    assert reading_of(row_of(reading)) == reading


def test_a_row_that_somebody_else_wrote_loses_what_is_no_reading() -> None:
    row = {
        "index": 1,
        "temperature_c": "hot",
        "power_w": True,
        "vram_used_mb": float("inf"),
        "throttle": "x",
        "pids": [1, "2"],
        "processes": [{"pid": 1, "vram_used_mb": 70}, {"pid": 2, "vram_used_mb": -1}, {"pid": True}, 7],
    }
    assert reading_of({**row, "fan_pct": 40, "new": 1}) == GpuReading(
        index=1, fan=0.4, pids=(1,), process_mb=((1, 70),)
    )
    for index in (None, "0", True, -1, 1.5):
        with pytest.raises(ValueError, match="index"):
            reading_of({"index": index})


def test_a_heartbeats_field_is_the_first_card_with_all_of_them_in_it() -> None:
    pair = [GpuReading(index=3, temperature_c=50.0), GpuReading(index=0, temperature_c=71.0)]
    field = gpu_field(pair, source="nvml", age_s=0.456)
    assert field is not None
    assert (field["index"], field["temperature_c"], field["age_s"]) == (3, 50.0, 0.5)
    assert [card["index"] for card in rows_in(field)] == [3, 0]
    assert "stale" not in field
    assert gpu_field([], source="nvml", age_s=0.0) is None
    beat = WorkerTelemetry.model_validate(
        {"worker": "w", "pid": 1, "at": 0.0, "gpu": {**field, "stale": True}}
    )
    assert beat.gpu is not None and beat.gpu.cards is not None and beat.gpu.stale
    assert beat.gpu.cards[1].temperature_c == 71.0


@pytest.mark.parametrize(
    ("field", "rows"), [(None, []), ("x", []), ({"index": 1}, [{"index": 1}]), ({"cards": 3}, [{"cards": 3}])]
)
def test_cards_in_a_field_of_an_older_worker_or_of_nobody(field: Any, rows: list[Any]) -> None:
    assert rows_in(field) == rows


# -- summary ---------------------------------------------------------------------------------------------------------


def log(*samples: tuple[float, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"at": at, "cards": [{"index": 0, "uuid": "GPU-a", **card}]} for at, card in samples]


def test_a_summary_weighs_samples_by_how_long_they_held() -> None:
    lines = log(
        (0.0, {"temperature_c": 60, "power_w": 60, "throttle": []}),
        (2.0, {"temperature_c": 80, "power_w": 120, "throttle": ["power cap"]}),
        (4.0, {"temperature_c": 82, "power_w": 120, "throttle": ["thermal", "power cap"]}),
        (6.0, {"temperature_c": 70, "power_w": 60, "throttle": []}),
        (8.0, {"temperature_c": 70, "power_w": 60, "throttle": ["thermal"]}),
    )
    (card,) = summarise(lines, 75.0)
    assert card["temperature_c"] == {"min": 60, "median": 70, "max": 82}
    assert (card["covered_s"], card["above_warn_s"], card["samples"]) == (8.0, 4.0, 5)
    assert (card["throttled_share"], card["throttled"]) == (0.5, {"power cap": 0.5, "thermal": 0.25})
    assert card["energy_wh"] == pytest.approx((60 * 2 + 120 * 4 + 60 * 2) / 3600, abs=1e-3)


def test_a_gap_counts_for_nobody() -> None:
    hot = {"temperature_c": 90.0}
    (card,) = summarise(log((0, hot), (1, hot), (2, hot), (3600, hot), (3601, hot)), 75.0)
    assert (card["covered_s"], card["above_warn_s"], card["energy_wh"]) == (3.0, 3.0, None)


def test_samples_out_of_order_errors_and_stale_lines_do_not_spoil_it() -> None:
    lines = log((2, {"temperature_c": 50}), (0, {"temperature_c": 40}), (1, {"error": "GPU is lost"}))
    lines += [{"at": 3, "stale": True, "cards": [{"index": 0, "uuid": "GPU-a", "temperature_c": 99}]}]
    lines += [{"at": "x", "cards": []}, {"at": 4, "cards": 7}, {"at": 5, "cards": [None, {"index": "a"}]}]
    (card,) = summarise(lines, 75.0)
    assert card["temperature_c"] == {"min": 40, "median": 45, "max": 50}
    assert (card["errors"], card["covered_s"], card["utilization_pct"]) == (1, 1.0, None)


def test_one_sample_covers_nothing_and_says_so() -> None:
    (card,) = summarise(log((0, {"temperature_c": 50})), 75.0)
    assert (card["covered_s"], card["throttled_share"]) == (0.0, None)
    assert summarise([], 75.0) == []
