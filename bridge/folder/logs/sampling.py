"""``logs/training_samples.jsonl`` and the book of the samples are kept alike. A flow of the mirror's, on the share.

The file is read again only when it is another one than the bridge has left there (inode, size, mtime), and not before it has
rested: a script that is about to write it anew would overwrite what is appended meanwhile, and shows half of it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from typing import Any, Final

from ....bus.errors import NotFound
from ....bus.wire import Verb
from ..contract import layout
from ..loop.clock import Clock
from ..loop.flows import Flow, ask, share
from ..share.ops import Entry, Result, append, read, stat
from .decisions import Decision
from .samplebook import SampleBook, Signature
from .samples import Reading, Samples
from .telling import Heard, Telling

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0  #: between two looks whether somebody has written it
SETTLE_S: Final = 3.0  #: so long it must have rested
AGAIN_S: Final = 10.0  #: after a fault
PIECE: Final = 1 << 20
MAX_APPEND: Final = 256 << 10
APPENDS: Final = 4  #: of one step
SLICE_S: Final = 0.02  #: between two pieces, so that the mirror goes on drawing
MAX_BYTES: Final = 1 << 30  #: a larger file is not read again
_FILE: Final = layout.TRAINING_SAMPLES
_UNSET: Final = (-1, -1, -1)


class Sampling:
    """See the module. ``due`` is when the next step wants to be made, by the clock's monotonic seconds."""

    def __init__(self, samples: Samples, telling: Telling, clock: Clock) -> None:
        self.samples, self._telling, self._clock = samples, telling, clock
        self.due = 0.0
        self._resting: Signature | tuple[()] = _UNSET
        self._rests_since = 0.0
        self._reading: Reading | None = None  #: a reading that goes on, and the signature of what is read
        self._reads: Signature | tuple[()] = _UNSET
        self._ratings = 0
        self._torn = False
        self._told = ""

    @property
    def _book(self) -> SampleBook:
        return self.samples.book

    def judgements(self, heard: Heard) -> Flow[None]:
        """The samples of what a model has judged: the broker has what was shown to it. The next step is made at once,
        unless a fault is waited for."""
        for task, (batch, steps) in heard.items():
            judged = {step.attempt: step for step in steps if step.judged}
            if not judged:
                continue
            try:
                answer = yield from ask(Verb.QUERY, {"what": "evaluations", "id": task})
            except NotFound:  # purged meanwhile
                continue
            for evaluation in answer.header["evaluations"]:
                if (step := judged.get(evaluation["attempt"])) is not None:
                    self.samples.judged(task, batch, step, evaluation)
        if self.samples.waiting() and self.due - self._clock.now() <= LOOK_S:
            self.due = 0.0

    def step(self) -> Flow[None]:
        """Take in what people have written, and append what the file lacks."""
        self.due = self._clock.now() + LOOK_S
        try:
            self.samples.keep()
            yield from self._step()
        except sqlite3.Error as e:
            self._reading = None  # what it had seen is not known to be in the book
            self._trouble(f"the book of the training samples cannot be written: {e}")

    def _step(self) -> Flow[None]:
        (found,) = yield from share("mirror", [stat(_FILE)])
        if not found["ok"]:
            self._trouble(str(found["what"]))
            return
        entry = _entry(found)
        if entry is not None and entry.type != "file":
            self._trouble(f"{_FILE} is no file ({entry.type}); move it away")
            return
        there = signature_of(entry)
        if there != self._book.signature() and not (yield from self._take_in(there)):
            return
        for _ in range(APPENDS):
            if not self._book.unwritten():
                self._told = ""
                return
            after = yield from self._append(there)
            if after is None:
                return
            there = after
        self.due = 0.0  # there is more

    def _take_in(self, there: Signature | tuple[()]) -> Flow[bool]:
        """The file is another one; whether it has been read to its end."""
        if self._reading is None or there != self._reads:
            self._reading = None
            if not self._rests(there):
                return False
            if there and there[1] > MAX_BYTES:
                what = f"{_FILE} has {there[1]} bytes: it is not read, so no ratings are taken in; split it"
                self._say(what)
                self._book.written((), there)
                return True
            self._reading, self._reads, self._ratings = Reading(), there, 0
            self._book.begin_reading()
        return (yield from self._read_on(self._reading, there))

    def _rests(self, there: Signature | tuple[()]) -> bool:
        """Nobody has written it for a while."""
        if not there and self._book.signature() is None:
            return True  # a new share: there is nothing to lose
        now = self._clock.now()
        if there != self._resting:
            self._resting, self._rests_since = there, now
        if now - self._rests_since < SETTLE_S:
            self.due = self._rests_since + SETTLE_S
            return False
        self._resting = _UNSET
        return True

    def _read_on(self, reading: Reading, there: Signature | tuple[()]) -> Flow[bool]:
        """One piece; whether it was the last."""
        data = b""
        if there:
            (piece,) = yield from share("mirror", [read(_FILE, PIECE, reading.size)])
            if not piece["ok"] or (piece["inode"], piece["size"], piece["mtime_ns"]) != there:
                self._reading = None  # somebody writes: it has to rest once more
                return False
            data = piece["data"]
        if data:
            self._ratings += self._book.saw(reading.piece(data))
            self.due = self._clock.now() + SLICE_S
            return False
        self._reading = None
        self._ratings += self._book.saw(reading.end())
        self._torn = reading.torn
        lost = self._book.end_reading(there)
        self._tell(reading, self._ratings, lost)
        return True

    def _append(self, there: Signature | tuple[()]) -> Flow[Signature | None]:
        data, ids = self._book.some(MAX_APPEND)
        data = b"\n" + data if self._torn else data
        done, seen = yield from share("mirror", [append(_FILE, data), stat(_FILE)])
        if not done["ok"]:
            self._trouble(str(done["what"]))
            return None
        now = signature_of(_entry(seen)) if seen["ok"] else ()
        size = (there[1] if there else 0) + len(data)
        if not now or now[1] != size or done["size"] != size or (there and now[0] != there[0]):
            self._book.forget_signature()  # somebody has written it in the same moment: look what stands
            self.due = self._clock.now() + SETTLE_S
            return None
        self._torn = False
        self._book.written(ids, now)
        return now

    # -- saying it -------------------------------------------------------------------------------------------

    def _tell(self, reading: Reading, ratings: int, lost: int) -> None:
        said = []
        if ratings:
            said.append(f"{ratings} rated by people")
        if lost:
            said.append(f"{lost} lines that were gone are written again")
        if reading.bad:
            said.append(
                f"{reading.bad} lines are no samples (the first is line {reading.first_bad}): left as they are"
            )
        if reading.odd:
            said.append(f"{reading.odd} ratings are not 1 to 5 with plain texts: not taken in")
        if said:
            text = f"{_FILE}: {'; '.join(said)}"
            log.info("%s", text)
            details = {"rated": ratings, "again": lost, "unreadable": reading.bad + reading.odd}
            self._telling.say(self._clock.wall(), Decision("TRAINING_SAMPLES", text, details))

    def _trouble(self, what: str) -> None:
        self.due = self._clock.now() + AGAIN_S
        self._say(f"training samples: {what}; trying again")

    def _say(self, what: str) -> None:
        if what != self._told:
            log.warning("%s", what)
        self._told = what


def signature_of(entry: Entry | None) -> Signature | tuple[()]:
    """What tells a file from another one; () where there is none."""
    return (entry.inode, entry.size, entry.mtime_ns) if entry is not None else ()


def _entry(result: Result) -> Entry | None:
    found: Iterable[Any] | None = result.get("entry")
    return Entry(*found) if found is not None else None
