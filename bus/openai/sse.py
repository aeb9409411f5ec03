"""Server-sent events (WHATWG HTML, 9.2): one as bytes, and bytes, split anywhere, as events. Pure."""

from __future__ import annotations

import codecs
import re
from typing import Final

from ..errors import RigbusError

MAX_EVENT_CHARS: Final = 1 << 20
_LINE_END: Final = re.compile(r"\r\n|\r|\n")


class BadStream(RigbusError):
    """What came is no stream of events. Whoever reads it gives the connection up."""


def event(data: str) -> bytes:
    """``data`` (of one or more lines) as one event."""
    return "".join(f"data: {line}\n" for line in data.split("\n")).encode() + b"\n"


def comment(text: str) -> bytes:
    """A sign of life that no reader takes for an event."""
    return f": {text}\n\n".encode()


class EventReader:
    """Takes a stream's bytes in any pieces; gives the ``data`` of each complete event.

    Lines end with LF, CRLF or CR; comments and the fields ``event``, ``id`` and ``retry`` are passed over; several
    ``data`` lines are joined with LF; an event without data is none.
    """

    def __init__(self, max_event_chars: int = MAX_EVENT_CHARS) -> None:
        self._max = max_event_chars
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._parts: list[str] = []  # of the line that has not ended
        self._data: list[str] = []  # of the event that has not ended
        self._parts_size = self._data_size = 0
        self._cr = False  # the former piece ended in CR: an LF now belongs to it

    def feed(self, piece: bytes) -> list[str]:
        """The events that ``piece`` completes.

        Raises:
            BadStream: an event is longer than the bound.
        """
        text = self._decoder.decode(piece)
        if not text:
            return []
        if self._cr and text[0] == "\n":
            text = text[1:]
        self._cr = text.endswith("\r")
        *lines, rest = _LINE_END.split(text)
        done: list[str] = []
        for line in lines:
            self._line("".join([*self._parts, line]), done)
            self._parts, self._parts_size = [], 0
        self._parts.append(rest)
        self._parts_size += len(rest)
        if self._parts_size + self._data_size > self._max:
            raise BadStream(f"an event of more than {self._max} characters; is this a stream of events?")
        return done

    def _line(self, line: str, done: list[str]) -> None:
        if not line:
            if self._data:
                done.append("\n".join(self._data))
            self._data, self._data_size = [], 0
            return
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
            self._data_size += len(value)
