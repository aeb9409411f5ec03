"""Bytes as they come -> numbered lines. Pure, and bounded: of a line that is too long only its length is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_LINE_BYTES: Final = 1 << 20  #: a payload may have 256 KiB, and JSON may say one character in six bytes
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """``number`` counts from 1; ``data`` is the line without its LF, None where it has over the bound; ``size`` in bytes."""

    number: int
    data: bytes | None
    size: int


class Splitter:
    """Feed it the pieces of a file in order; it holds at most one line of ``max_bytes``."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._number = 0
        self._held = bytearray()
        self._size = 0  #: of the line that has begun, also where nothing of it is held any more

    def feed(self, data: bytes) -> list[Line]:
        """The lines that end in this piece."""
        *whole, rest = data.split(b"\n")
        found = []
        for part in whole:
            self._add(part)
            found.append(self._take())
        self._add(rest)
        return found

    def end(self) -> list[Line]:
        """The last line, where it ends without an LF."""
        return [self._take()] if self._size else []

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_bytes:
            self._held.clear()
        else:
            self._held += part

    def _take(self) -> Line:
        self._number += 1
        data = bytes(self._held) if self._size <= self._max_bytes else None
        line = Line(self._number, data, self._size)
        self._held.clear()
        self._size = 0
        if self._number == 1 and data is not None and data.startswith(_BOM):
            return Line(1, data[len(_BOM) :], line.size)
        return line
