"""From a model's bytes to text that can be shown at once: whole characters, nothing of a stop string. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes the bytes of one token after the other, gives the text that is certain.

    A character that is split between tokens waits for its rest; bytes that are no UTF-8 become U+FFFD. Text that
    may still turn out to be the beginning of a stop string is held back. ``stopped`` is set when one is complete.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The text that ``data`` makes certain, maybe none. After ``stopped`` always none."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data)
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when no more will come. The beginning of an unfinished character is dropped."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that is a beginning of ``stop`` (and not all of it)."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
