"""The memory of a seat's model, measured: samples of its cards into :mod:`.card_memory`, peaks into ``models.json``.

Of the loop's thread. It waits for nobody: samples come from a thread beside the loop, and each is looked at once; a peak is
written by a thread of its own, for it waits for the other workers that write theirs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from ...bus.errors import DefinitionError
from ..gpu.readings import GpuReading
from .card_memory import CardMemory, Returned
from .catalogue.entries import key_of
from .catalogue.opening import entry_of
from .catalogue.peaks import remember_peak
from .protocol import Model

log = logging.getLogger(__name__)

#: A peak is written when it has grown by so much, and when the model goes: what grows by less is not worth a write.
STEP_MB: Final = 16
_WRITTEN_S: Final = 1.0  #: a worker that ends waits so long for its last write


class Sample(Protocol):
    """The readings of sample ``number``, counted from 1, by ``source``. ``stale``: the driver has been silent since."""

    @property
    def readings(self) -> Sequence[GpuReading]: ...
    @property
    def number(self) -> int: ...
    @property
    def stale(self) -> bool: ...
    @property
    def source(self) -> str: ...


class Cards(Protocol):
    """The cards of a worker."""

    def latest(self) -> Sample: ...

    def refresh(self) -> None:
        """Sample once more, soon."""
        ...


@runtime_checkable
class Resident(Protocol):
    """A model that a process of this machine holds: ``pid``, None while there is none. ``on_card``: it may use a card."""

    @property
    def pid(self) -> int | None: ...
    @property
    def on_card(self) -> bool: ...


class CardMeter:
    """For one seat. ``state``: the rig's state folder, where peaks are remembered; ``wall``: the time for people."""

    def __init__(self, cards: Cards, state: Path, wall: Callable[[], float] = time.time) -> None:
        self._cards = cards
        self._state = state
        self._wall = wall
        self._memory = CardMemory("")
        self._left = self._memory  # of the model whose memory is to come back
        self._key: str | None = None
        self._hot = False
        self._written_mb = 0
        self._seen = 0  # the last sample that was looked at
        self._gone_at = 0  # the sample that was the last when the last process had gone
        self._writer: threading.Thread | None = None

    @property
    def peak_mb(self) -> int:
        """The most that the model was measured to take while it was hot; 0: not measured."""
        return self._memory.peak_mb

    @property
    def before(self) -> Sequence[GpuReading]:
        """The cards as they were when the model was about to be opened; empty where that is not known."""
        return self._memory.before

    def open(self, spec: Mapping[str, Any]) -> None:
        """A model is about to be opened: what the cards say now is what they said before it.

        Raises:
            DefinitionError: the spec is no model's.
        """
        entry = entry_of(spec)
        sample = self._cards.latest()
        # A sample from before the last model went has that one in it.
        known = not sample.stale and sample.number > self._gone_at
        self._memory = CardMemory(entry.name, tuple(sample.readings) if known else ())
        self._hot, self._written_mb, self._key = False, 0, None
        if entry.local:
            try:
                self._key = key_of(entry)
            except (OSError, DefinitionError) as e:
                log.info("the memory of %s will not be remembered: %s", entry.name, e)

    def look(self, model: Model, *, hot: bool) -> None:
        """Measure, if there is a new sample; and remember what it takes while it is hot."""
        if hot and not self._hot:
            self._hot = True
            self._cards.refresh()
        sample = self._cards.latest()
        if sample.stale or sample.number <= self._seen or not isinstance(model, Resident):
            return
        self._seen = sample.number
        # A formula's memory goes up and down whatever we load: there only a process of ours would be a sign.
        on_card = model.on_card and sample.source != "synthetic"
        self._memory.note(sample.readings, model.pid, on_card=on_card, hot=hot)
        self._remember(STEP_MB)

    def leave(self, model: Model) -> int:
        """The model is about to go: measure and remember for the last time. MB that are to come back; 0: nobody knows."""
        self.look(model, hot=self._hot)
        self._remember(1)
        if self._memory.takes_mb:
            self._left = self._memory
        return self._memory.takes_mb

    def gone(self) -> None:
        """Its process has gone: what is sampled from now on is after it."""
        self._seen = self._gone_at = self._cards.latest().number
        self._cards.refresh()

    def back(self, *, hurry: bool = False) -> Returned | None:
        """What is back, by a sample that nobody has looked at; None: there is none yet. ``hurry``: somebody waits for it."""
        sample = self._cards.latest()
        if sample.stale:
            return Returned(unknown="the driver gives no readings")
        if sample.number <= self._seen:
            return None
        self._seen = sample.number
        found = self._left.returned(sample.readings)
        if found.missing and hurry:
            self._cards.refresh()
        return found

    def close(self) -> None:
        """The worker ends: what was measured last is written, or it takes too long."""
        if self._writer is not None:
            self._writer.join(_WRITTEN_S)

    def _remember(self, least_mb: int) -> None:
        """Keep the peak, where it is at least so much more than what was kept last."""
        mb = self._memory.peak_mb
        if self._key is None or mb - self._written_mb < least_mb:
            return
        self._written_mb = mb  # also where it cannot be written: once is enough to say so
        words = (self._state, self._key, mb, self._wall(), self._memory.model)
        self._writer = threading.Thread(target=_write, args=words, name="rigbus-peak", daemon=True)
        self._writer.start()


def _write(state: Path, key: str, mb: int, at: float, model: str) -> None:
    try:
        remember_peak(state, key, mb, at=at, model=model)
    except OSError as e:
        log.warning("that %s took %d MB is not remembered: %s", model, mb, e)
    else:
        log.info("%s takes %d MB of its cards", model, mb)
