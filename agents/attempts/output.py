"""What a command prints: all of it to a capped log file, its head and tail to the result.

Nothing here can grow without bound, and nothing here can fail the attempt: a log file that cannot be
written (full disk, read-only) is said in the summary and the command runs on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 64 * 1024  # RELIABILITY 2.8
TAIL_BYTES = 256 * 1024
MAX_LOG_BYTES = 64 * 1024 * 1024

_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class OutputSummary:
    """What is kept of an attempt's output (stdout and stderr in the order in which they came).

    ``head`` and ``tail`` never overlap; ``tail`` is empty when everything fitted into ``head``.
    ``elided_bytes`` lie between the two, ``discarded_bytes`` were printed but are not in the log file.
    """

    head: bytes = b""
    tail: bytes = b""
    total_bytes: int = 0
    discarded_bytes: int = 0
    log_error: str = ""
    logged: bool = False  #: there is a log file

    @property
    def elided_bytes(self) -> int:
        return self.total_bytes - len(self.head) - len(self.tail)

    def text(self) -> str:
        """Head, a line that says what is missing, tail. Bytes that are not UTF-8 become U+FFFD."""
        if not self.elided_bytes:
            return (self.head + self.tail).decode("utf-8", "replace")
        gap = f"\n[rigbus: {self.elided_bytes} bytes are not shown here]\n"
        return _whole_end(self.head).decode("utf-8", "replace") + gap + _whole_start(self.tail)


def _whole_end(data: bytes) -> bytes:
    """``data`` without a character that the cut has split at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back else data
    return data


def _whole_start(data: bytes) -> str:
    """``data`` as text, without the rest of a character that the cut has split at its start."""
    cut = 0
    while cut < min(3, len(data)) and 0x80 <= data[cut] < 0xC0:
        cut += 1
    return data[cut:].decode("utf-8", "replace")


class OutputLog:
    """Takes output as it comes; keeps head and tail in memory and appends to one file, up to its cap.

    The file (and its folder) is made with the first byte, or by :meth:`open`: most short commands print nothing, and
    a file for each would cost more than their start.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        max_log_bytes: int = MAX_LOG_BYTES,
        head_bytes: int = HEAD_BYTES,
        tail_bytes: int = TAIL_BYTES,
    ) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._head_bytes = head_bytes
        self._tail_bytes = tail_bytes
        self._room = max_log_bytes
        self._capped = False
        self._cap_note = (
            f"\n[rigbus: this log ends at {max_log_bytes} bytes; the rest is counted, not kept]\n"
        )
        self._total = 0
        self._discarded = 0
        self._error = ""
        self._fd = -1
        self._path = path
        self._opened = False

    def open(self) -> None:
        """Make the file now: a reader may follow it before the first byte."""
        if self._path is not None and not self._opened:
            self._opened = True
            try:
                self._fd = open_log(self._path)
            except OSError as error:
                self._fail(error)

    def write(self, data: bytes) -> None:
        self._total += len(data)
        self._keep(data)
        if self._path is not None:
            self.open()
            self._append(data)

    def close(self) -> OutputSummary:
        """Closes the file; may be called again."""
        if self._fd >= 0:
            if self._capped and not self._error:
                self._put(f"[rigbus: {self._discarded} bytes were discarded]\n".encode())
            self._close_file()
        self._trim()
        head, tail = bytes(self._head), bytes(self._tail)
        return OutputSummary(head, tail, self._total, self._discarded, self._error, self._opened)

    def _keep(self, data: bytes) -> None:
        room = self._head_bytes - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        # Cutting only every tail_bytes keeps the cost of a byte constant, whatever the writes' sizes.
        if len(self._tail) > 2 * self._tail_bytes:
            self._trim()

    def _trim(self) -> None:
        excess = len(self._tail) - self._tail_bytes
        if excess > 0:
            del self._tail[:excess]

    def _append(self, data: bytes) -> None:
        if self._fd < 0 or self._capped:
            self._discarded += len(data)
            return
        part = data[: self._room]
        written = self._put(part)
        self._room -= written
        self._discarded += len(data) - written
        if len(part) < len(data) and self._fd >= 0:
            self._capped = True
            self._put(self._cap_note.encode())

    def _put(self, data: bytes) -> int:
        """Bytes written: all, or fewer when the disk refuses; then the log ends here."""
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._fd, view[done:])
        except OSError as error:
            self._fail(error)
        return done

    def _fail(self, error: OSError) -> None:
        self._error = (
            f"log file: {error.strerror or error}; the output's head and tail are kept in the result"
        )
        self._close_file()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as error:  # a deferred write error (quota, network disk)
                self._error = self._error or f"log file: {error.strerror or error}"


def open_log(path: Path) -> int:
    """A descriptor that appends to ``path``; makes the folder. Refuses to follow a link (ELOOP).

    Raises:
        OSError: the folder or file cannot be made.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o644)


def drain(fd: int, log: OutputLog, max_bytes: int) -> bool:
    """Moves what a non-blocking pipe holds now, at most ``max_bytes``, into ``log``.

    Returns False at the end of the stream. A flood therefore costs the caller's loop one bounded turn.
    """
    taken = 0
    while taken < max_bytes:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        log.write(data)
        taken += len(data)
    return True
