"""Which lines of the input have an answer already. Pure.

The results file itself is the record: each of its lines names the line that it answers. So nothing has to be kept beside
it, and what a crash left is read from what it left.
"""

from __future__ import annotations

from collections.abc import Iterable

from .answers import line_of


class Books:
    """Answered lines, a byte each. Numbers count from 1."""

    def __init__(self, lines: int) -> None:
        self._flags = bytearray(lines + 1)
        self.count = 0

    def __contains__(self, line: int) -> bool:
        return 0 < line < len(self._flags) and bool(self._flags[line])

    def add(self, line: int) -> bool:
        """False where it has an answer already, or is no line of this file."""
        if not 0 < line < len(self._flags) or self._flags[line]:
            return False
        self._flags[line] = 1
        self.count += 1
        return True

    def recover(self, written: Iterable[bytes], mark: str) -> int:
        """Enter the lines of a results file that a crash may have cut; how many of its bytes are good.

        A line without its end, or that is none of this file's, ends what is good.
        """
        good = 0
        for data in written:
            line = line_of(data, mark)
            if not data.endswith(b"}\n") or line is None or not self.add(line):
                break
            good += len(data)
        return good
