"""Which files of the queue are to be read now. Pure: names and entries in, yes or no out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..share.ops import Entry


@dataclass(slots=True)
class Seen:
    """What is known of one file of the queue: how it looked, since when, and what was done about it."""

    entry: Entry
    since_s: float
    read_at: float = 0.0
    settled: bool = False  #: refused or told: not looked at again until it changes
    round: int = 0


@dataclass(slots=True)
class Watch:
    """The files that wait in the queue: what is whole goes at once, what is not has ``patience_s``.

    Sizes and mtimes are compared for equality only: the Pi's clock is not trusted.
    """

    patience_s: float = 60.0
    again_s: float = 1.0
    files: dict[str, Seen] = field(default_factory=dict)
    round: int = 0

    def due(self, name: str, entry: Entry, now: float) -> bool:
        """It is to be read now."""
        seen = self.files.get(name)
        if seen is None or seen.entry != entry:
            seen = self.files[name] = Seen(entry, now, read_at=-math.inf)
        seen.round = self.round
        return not seen.settled and now - seen.read_at >= self.again_s

    def touch(self, name: str) -> None:
        """It is still there."""
        if name in self.files:
            self.files[name].round = self.round

    def waits(self) -> bool:
        """Something there is not done with."""
        return any(not seen.settled for seen in self.files.values())

    def unchanged_s(self, name: str, now: float) -> float:
        """For how long it has looked the same."""
        return now - self.files[name].since_s if name in self.files else 0.0

    def was_read(self, name: str, now: float) -> None:
        """It was, and is no order yet."""
        if name in self.files:
            self.files[name].read_at = now

    def is_over(self, name: str, now: float) -> bool:
        """It has not changed for the whole patience."""
        return name in self.files and self.unchanged_s(name, now) >= self.patience_s

    def settle(self, name: str) -> bool:
        """Nothing more is to be done while it stays so; False when that was known."""
        seen = self.files.get(name)
        if seen is None or seen.settled:
            return False
        seen.settled = True
        return True

    def forget(self, name: str) -> None:
        """It is to be looked at as if it were new."""
        self.files.pop(name, None)

    def end_round(self) -> None:
        """Every name was shown once: what was not among them has gone."""
        self.files = {name: seen for name, seen in self.files.items() if seen.round == self.round}
        self.round += 1
