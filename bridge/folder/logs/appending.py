"""Lines for one file that is only ever appended to, each once, whoever was killed meanwhile. Pure.

A line bears a key. After a start, and after an append without an answer, it is unknown what stands: then the end of the
file is looked at, and what is found there is not said again.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Final

MAX_APPEND: Final = 256 << 10
#: The part of the file that is read to know what stands: more than is ever appended at once.
TAIL_BYTES: Final = 2 * MAX_APPEND


class Appending:
    """The lines of one file that wait. ``field`` has a line's key; at most ``max_lines`` wait, the newest."""

    def __init__(self, field: str, max_lines: int) -> None:
        self._field, self._max_lines = field, max_lines
        self._lines: list[tuple[int, Hashable, bytes]] = []  #: event, key, line
        self._stand: set[Hashable] = set()
        self._wait: set[Hashable] = set()
        self._torn = False
        #: Whether it is unknown what stands.
        self.in_doubt = True

    def __len__(self) -> int:
        return len(self._lines)

    def untold(self) -> int | None:
        """The first event whose line has not been appended; None when there is none."""
        return min((seq for seq, _, _ in self._lines), default=None)

    def stands(self, tail: bytes) -> None:
        """The end of the file, as it is now."""
        self.in_doubt = False
        self._torn = bool(tail) and not tail.endswith(b"\n")
        for line in tail.split(b"\n"):
            try:
                found = json.loads(line)[self._field]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(found, (str, int)):
                self._stand.add(found)
        self._keep([one for one in self._lines if one[1] not in self._stand])

    def knows(self, key: Hashable) -> bool:
        """Its line stands, or waits."""
        return key in self._stand or key in self._wait

    def add(self, seq: int, key: Hashable, line: bytes) -> None:
        """A line of the event ``seq``; nothing happens where one of this key stands or waits."""
        if self.knows(key):
            return
        self._lines.append((seq, key, line))
        self._wait.add(key)
        if len(self._lines) > self._max_lines:  # the share is away for long
            self._wait.discard(self._lines.pop(0)[1])

    def some(self) -> tuple[bytes, int]:
        """The lines of one append, and their number."""
        total = count = 0
        for _, _, line in self._lines:
            if count and total + len(line) > MAX_APPEND:
                break
            total, count = total + len(line), count + 1
        head = b"\n" if self._torn and count else b""
        return head + b"".join(line for _, _, line in self._lines[:count]), count

    def written(self, count: int) -> None:
        """The first ``count`` lines stand in the file."""
        self._torn = False
        self._keep(self._lines[count:])

    def _keep(self, lines: list[tuple[int, Hashable, bytes]]) -> None:
        self._lines = lines
        self._wait = {key for _, key, _ in lines}
