"""Readings beside a loop that must not wait: a thread samples, the loop takes the latest.

A driver's call can hang for ever (a card that fell off the bus). Then the thread hangs, and nothing else: its last sample
grows old and is called stale.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ...bus.errors import ConfigError, NotFound
from .cards import gpu_field, visible
from .readings import GpuReading, GpuSource
from .sources import chosen, interval_of, may_have_cards

log = logging.getLogger(__name__)

STALE_INTERVALS: Final = 3
REOPEN_S: Final = 60.0
_CLOSE_S: Final = 0.2
_HURRIED_S: Final = 0.1  #: between a sample and the next, where somebody waits for it


@dataclass(frozen=True, slots=True)
class Sample:
    """What the watch knows. ``age_s`` is None before the first sample; ``number`` counts samples from 1.

    ``stale``: the last one is older than three intervals, or there is none after as long. ``error`` says why there is no
    source at all.
    """

    readings: Sequence[GpuReading] = ()
    age_s: float | None = None
    stale: bool = False
    number: int = 0
    source: str = ""
    error: str = ""


class GpuWatch:
    """Samples a source every ``interval_s`` in a thread of its own, which opens, owns and closes it."""

    def __init__(
        self,
        open_: Callable[[], GpuSource],
        interval_s: float | None = None,
        *,
        reopen_s: float = REOPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``open_`` is called in the thread; while it raises NotFound it is called again every ``reopen_s``.

        ``interval_s`` None: as fits the source that is opened.
        """
        if interval_s is not None and interval_s <= 0:
            raise ValueError(f"an interval of {interval_s} s; it must be more than 0")
        self.interval_s = interval_s or interval_of("")
        self._by_source = interval_s is None
        self._open = open_
        self._reopen_s = reopen_s
        self._clock = clock
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._news = threading.Condition()
        self._readings: tuple[GpuReading, ...] = ()
        self._at: float | None = None
        self._number = 0
        self._name = ""
        self._error = ""
        self._began = clock()
        self._thread = threading.Thread(target=self._run, name="rigbus-gpu", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._began = self._clock()
        self._thread.start()

    def latest(self, max_age_s: float | None = None) -> Sample:
        """The last sample, at once. One older than ``max_age_s`` comes without its readings, its age still said."""
        with self._news:
            now = self._clock()
            age_s = None if self._at is None else now - self._at
            silent_s = now - self._began if age_s is None else age_s
            fresh = max_age_s is None or (age_s is not None and age_s <= max_age_s)
            return Sample(
                self._readings if fresh else (),
                age_s,
                silent_s > STALE_INTERVALS * self.interval_s,
                self._number,
                self._name,
                self._error,
            )

    def wait(self, number: int, timeout_s: float) -> Sample:
        """The latest as soon as it is newer than sample ``number``, or there is no source, or time is up."""
        with self._news:
            self._news.wait_for(lambda: self._number > number or bool(self._error), timeout_s)
        return self.latest()

    def refresh(self) -> None:
        """Sample once more, soon: what the cards say has just changed. Returns at once."""
        self._hurry.set()

    def close(self) -> None:
        """End the thread; one that hangs in its driver is left behind, which a process' end does not wait for."""
        self._stop.set()
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                source = self._open()
            except (NotFound, ConfigError) as e:
                self._tell_error(str(e))
            except Exception as e:  # as in _follow
                log.exception("the readings of cards cannot be opened")
                self._tell_error(f"{type(e).__name__}: {e}")
            else:
                try:
                    self._follow(source)
                finally:
                    source.close()
            self._stop.wait(self._reopen_s)

    def _follow(self, source: GpuSource) -> None:
        """Until the watch is closed."""
        if self._by_source:
            self.interval_s = interval_of(source.name)
        due = self._clock()
        while not self._stop.is_set():
            try:
                readings = source.sample()
            except Exception:
                # A source promises not to; but no surprise of a driver may end the readings for good.
                log.exception("%s gave no sample; asked again in %g s", source.name, self._reopen_s)
                self._stop.wait(self._reopen_s)
                continue
            self._tell(source.name, readings)
            # A slow driver shifts the rhythm, and always gets half an interval of rest.
            now = self._clock()
            due = max(due + self.interval_s, now + self.interval_s / 2)
            if self._hurry.wait(due - now) and not self._stop.wait(min(_HURRIED_S, self.interval_s / 2)):
                self._hurry.clear()
                due = self._clock()

    def _tell(self, name: str, readings: Sequence[GpuReading]) -> None:
        with self._news:
            self._readings, self._at = tuple(readings), self._clock()
            self._number += 1
            self._name, self._error = name, ""
            self._news.notify_all()

    def _tell_error(self, error: str) -> None:
        with self._news:
            if error != self._error:
                log.info("no readings of cards: %s", error)
            self._error = error
            self._news.notify_all()


@dataclass(frozen=True, slots=True)
class OwnCards:
    """The cards of one worker: those that its CUDA_VISIBLE_DEVICES (``devices``; None: all) names."""

    watch: GpuWatch
    devices: str | None = None

    def latest(self, max_age_s: float | None = None) -> Sample:
        """As :meth:`GpuWatch.latest`, of these cards only."""
        sample = self.watch.latest(max_age_s)
        return replace(sample, readings=visible(sample.readings, self.devices))

    def refresh(self) -> None:
        """As :meth:`GpuWatch.refresh`."""
        self.watch.refresh()

    def field(self) -> dict[str, Any] | None:
        """What the heartbeat says of them; None while nothing is known of any."""
        sample = self.latest()
        if sample.age_s is None:
            return None
        return gpu_field(sample.readings, source=sample.source, age_s=sample.age_s, stale=sample.stale)


def own_cards(environ: Mapping[str, str] = os.environ) -> OwnCards | None:
    """The cards of a worker with this environment, not started yet; None where it has none or there is no driver.

    Raises:
        ConfigError: RIGBUS_GPU_SOURCE names no source of readings.
    """
    choice = chosen(environ)
    devices = environ.get("CUDA_VISIBLE_DEVICES")
    switched_off = choice.kind == "none" or (devices is not None and not devices.strip())
    if switched_off or (choice.kind == "auto" and not may_have_cards()):
        return None
    return OwnCards(GpuWatch(choice.open), devices)
