"""What the mirror and the door for commands by edited files (`control`) tell each other. Pure.

The mirror finds files that are not its own and goes on drawing; the door reads them, does what they ask for, and says
which may be drawn over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..contract.layout import STATE_FILE
from .lanes import Known
from .listing import Listing
from .others import Others

MAX_STRAYS: Final = 5000  #: more are found again once these are done with
MAX_KEPT: Final = 1000  #: edits put aside that wait to be answered


@dataclass(slots=True)
class Findings:
    """``load`` reads the listing that was shown last, once it is this bridge's turn; ``keep`` makes one durable before it is
    shown (OSError: it cannot be)."""

    load: Callable[[], Listing]
    keep: Callable[[Listing], None]
    others: Others | None = None  #: the mirror's, once it has begun
    strays: dict[str, tuple[str, str]] = field(default_factory=dict)  #: path -> (task, batch), to be read
    kept: list[str] = field(default_factory=list)  #: put aside by the mirror, to be answered
    lines: list[str] = field(default_factory=list)  #: put aside by the door, to be told in the log
    redraw: dict[str, str] = field(default_factory=dict)  #: task -> batch, to be drawn again
    withheld_until: float = float(
        "-inf"
    )  #: ready tasks are not shown where others would claim them (monotonic)
    _listing: Listing | None = None

    @property
    def listing(self) -> Listing:
        """What ``state.json`` shows now."""
        if self._listing is None:
            self._listing = self.load()
        return self._listing

    def attach(self, others: Others) -> None:
        """The mirror draws with these; an edit of ``state.json`` waits there to be read."""
        self.others = others
        others.guarded.setdefault(STATE_FILE, [])

    def show(self, active: Sequence[str]) -> str:
        """What ``state.json`` says of itself when it shows these batches.

        Where a new listing cannot be kept the mark stays the old one: who edits such a file cannot cancel what is new in
        it, and is told so.
        """
        listing = self.listing.after(active)
        if listing.n != self.listing.n:
            try:
                self.keep(listing)
            except OSError:
                return self.listing.mark
        self._listing = listing
        return listing.mark

    def written(self, path: str, data: bytes, now: float) -> None:
        """The mirror has written a file."""
        if path == STATE_FILE and f'"{self.listing.mark}"'.encode() in data:
            self._listing = self.listing.shown(now)

    def cancelled(self, batches: Sequence[str]) -> None:
        """An edit has cancelled these: what it said of them is done with."""
        self._listing = self.listing.without(batches)
        try:
            self.keep(self._listing)
        except OSError:
            pass  # it was said; a repeat of the same edit after a restart could hit a later run

    def known(self, path: str) -> Known | None:
        """Size and mtime of what the mirror wrote there last."""
        return self.others.known(path) if self.others is not None else None

    def taken_in(self, was: list[int]) -> None:
        """The edit of ``state.json`` that was read is in the journal, or asks for nothing: it may be put aside."""
        if self.others is not None:
            self.others.release(STATE_FILE, was)

    def stray(self, path: str, task: str, batch: str) -> None:
        """An unsealed file of a known task, in a lane where that does not stand."""
        if len(self.strays) < MAX_STRAYS:
            self.strays[path] = (task, batch)

    def put_aside(self, paths: Sequence[str]) -> None:
        """The mirror has put these aside. What somebody did to ``state.json`` was read before, and is answered already."""
        paths = [path for path in paths if not path.startswith(f"{STATE_FILE}.")]
        self.kept += paths[: max(0, MAX_KEPT - len(self.kept))]
