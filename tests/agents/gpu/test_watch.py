"""A watch beside a loop: fresh, old, hung, gone, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import pytest
from helpers import wait_for

from rigbus.agents.gpu.readings import GpuReading, GpuSource
from rigbus.agents.gpu.watch import STALE_INTERVALS, GpuWatch, OwnCards, own_cards
from rigbus.bus.errors import ConfigError, NotFound

WAIT_S = 10.0


class Hand:
    """A source whose every sample the test hands out; it waits for it as for a driver."""

    name = "hand"

    def __init__(self) -> None:
        self.next: SimpleQueue[list[GpuReading] | Exception] = SimpleQueue()
        self.asked = 0
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def give(self, *celsius: float) -> None:
        self.next.put([GpuReading(index=n, uuid=f"GPU-{n}", temperature_c=c) for n, c in enumerate(celsius)])

    def sample(self) -> list[GpuReading]:
        self.asked += 1
        self.threads.add(threading.get_ident())
        given = self.next.get()
        if isinstance(given, Exception):
            raise given
        return given

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed.set()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def watching(open_: Callable[[], GpuSource], hand: Hand | None = None, **more: object) -> Iterator[GpuWatch]:
    watch = GpuWatch(open_, **{"interval_s": 0.01, "reopen_s": 0.01, **more})  # type: ignore[arg-type]
    watch.start()
    try:
        yield watch
    finally:
        if hand is not None:
            hand.give(0.0)  # lets go of a thread that waits for its driver
        watch.close()


def test_the_latest_is_taken_without_waiting_and_its_age_is_said() -> None:
    hand, clock = Hand(), Clock()
    with watching(lambda: hand, hand, clock=clock) as watch:
        assert (watch.latest().number, watch.latest().age_s) == (0, None)
        hand.give(61.0, 44.0)
        sample = watch.wait(0, WAIT_S)
        assert ([card.temperature_c for card in sample.readings], sample.age_s) == ([61.0, 44.0], 0.0)
        assert (sample.source, sample.stale) == ("hand", False)
        clock.now += 2.0
        assert watch.latest().age_s == 2.0
        assert watch.latest(max_age_s=2.5).readings and not watch.latest(max_age_s=1.0).readings
        assert watch.latest(max_age_s=1.0).age_s == 2.0


def test_a_driver_that_hangs_leaves_a_stale_sample_and_nobody_waits_for_it() -> None:
    hand, clock = Hand(), Clock()
    with watching(lambda: hand, hand, clock=clock, interval_s=1.0) as watch:
        assert not watch.latest().stale
        clock.now = STALE_INTERVALS + 0.1
        assert watch.latest().stale, "a first call that hangs"
        hand.give(61.0)
        assert not watch.wait(0, WAIT_S).stale
        clock.now += STALE_INTERVALS + 0.1
        late = watch.latest()
        assert late.stale and late.readings[0].temperature_c == 61.0
        assert watch.wait(1, 0.01).number == 1
    assert hand.closed.wait(WAIT_S)


def test_one_thread_owns_the_source_from_open_to_close() -> None:
    hand = Hand()

    def open_() -> Hand:
        hand.threads.add(threading.get_ident())
        return hand

    with watching(open_, hand) as watch:
        hand.give(1.0)
        hand.give(2.0)
        watch.wait(1, WAIT_S)
    assert hand.closed.wait(WAIT_S)
    assert len(hand.threads) == 1 and threading.get_ident() not in hand.threads


def test_closing_does_not_wait_for_a_driver_that_hangs() -> None:
    hand = Hand()
    watch = GpuWatch(lambda: hand, 0.01)
    watch.start()
    wait_for(lambda: hand.asked == 1, timeout_s=WAIT_S, what="the first sample")
    watch.close()
    assert not hand.closed.is_set()
    hand.give(0.0)
    assert hand.closed.wait(WAIT_S)


def test_a_driver_that_is_not_there_yet_is_looked_for_again() -> None:
    hand = Hand()
    answers: list[Exception | Hand] = [NotFound("NVML: Driver Not Loaded"), RuntimeError("odd"), hand]

    def open_() -> Hand:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with watching(open_, hand) as watch:
        hand.give(50.0)
        sample = wait_for(
            lambda: s if (s := watch.latest()).number else None, timeout_s=WAIT_S, what="a sample"
        )
        assert (sample.readings[0].temperature_c, sample.error, answers) == (50.0, "", [])


def test_why_there_are_no_readings_is_known_at_once() -> None:
    def open_() -> Hand:
        raise NotFound("NVML: Driver Not Loaded")

    with watching(open_, reopen_s=60.0) as watch:
        sample = watch.wait(0, WAIT_S)
        assert (sample.error, sample.number) == ("NVML: Driver Not Loaded", 0)


def test_a_surprise_in_a_sample_does_not_end_the_readings() -> None:
    hand = Hand()
    with watching(lambda: hand, hand) as watch:
        hand.give(50.0)
        assert watch.wait(0, WAIT_S).number == 1
        hand.next.put(RuntimeError("a driver's surprise"))
        hand.give(51.0)
        assert watch.wait(1, WAIT_S).readings[0].temperature_c == 51.0


def test_a_sample_is_taken_at_once_for_somebody_who_waits_for_it_and_the_rhythm_stays() -> None:
    hand = Hand()
    with watching(lambda: hand, hand, interval_s=60.0) as watch:
        hand.give(50.0)
        assert watch.wait(0, WAIT_S).number == 1
        OwnCards(watch).refresh()
        hand.give(51.0)
        assert watch.wait(1, WAIT_S).readings[0].temperature_c == 51.0
        hand.give(52.0)
        assert watch.wait(2, 0.3).number == 2, "one for each who asks"


def test_an_interval_must_be_one() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        GpuWatch(Hand, 0.0)


def test_a_worker_sees_its_cards_only() -> None:
    hand, clock = Hand(), Clock()
    with watching(lambda: hand, hand, clock=clock, interval_s=1.0) as watch:
        own = OwnCards(watch, "2,0")
        assert own.field() is None
        hand.give(40.0, 50.0, 60.0)
        watch.wait(0, WAIT_S)
        field = own.field()
        assert field is not None and [card["temperature_c"] for card in field["cards"]] == [60.0, 40.0]
        assert [card.index for card in own.latest().readings] == [2, 0]
        assert OwnCards(watch, "7").field() is None
        clock.now += STALE_INTERVALS + 1.0
        field = own.field()
        assert field is not None and field["stale"] is True and field["age_s"] == 4.0


@pytest.mark.parametrize(
    ("environ", "watched"),
    [
        ({"RIGBUS_GPU_SOURCE": "synthetic:2"}, True),
        ({"RIGBUS_GPU_SOURCE": "synthetic:2", "CUDA_VISIBLE_DEVICES": "1"}, True),
        ({"RIGBUS_GPU_SOURCE": "synthetic:2", "CUDA_VISIBLE_DEVICES": ""}, False),
        ({"RIGBUS_GPU_SOURCE": "none"}, False),
    ],
)
def test_a_worker_without_cards_watches_none(environ: dict[str, str], watched: bool) -> None:
    assert (own_cards(environ) is not None) is watched


def test_a_worker_is_told_of_a_source_that_is_none() -> None:
    with pytest.raises(ConfigError, match="RIGBUS_GPU_SOURCE='cuda'"):
        own_cards({"RIGBUS_GPU_SOURCE": "cuda"})
