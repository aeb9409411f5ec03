"""One planner a folder. Two locks, since none works everywhere: the kernel's, on this machine, gone with its process; and
a record in the share with a beat that is counted up, for planners on other machines.

Nobody compares two clocks: a record whose beat has not moved for ``free_s``, by the watcher's own clock, is nobody's. Who
lost the seat (it slept, say) finds another name in the record before it writes an answer, and writes none.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal
from uuid import uuid4

from ...bus.errors import Refused
from ...bus.paths import write_atomic
from ..answering import NO_LINKS
from ..escalation_rows import FOLDER, as_object, read_bytes
from ..reach import lives
from ..requests import pause

log = logging.getLogger(__name__)

RECORD: Final = f"{FOLDER}/.planner.json"
BEAT_S: Final = 5.0
FREE_S: Final = 60.0
_MAX_BYTES: Final = 4096
_LOOK_S: Final = 0.25


class Seat:
    """``local`` is a file on this machine's own disk. ``with Seat(…) as seat: seat.take(wait=True) …``"""

    def __init__(self, shared: Path, local: Path, *, beat_s: float = BEAT_S, free_s: float = FREE_S) -> None:
        self.file = shared / RECORD
        self._local, self._beat_s, self._free_s = local, beat_s, free_s
        self._mine: dict[str, Any] = {
            "schema": "rigbus.planner/1",
            "id": uuid4().hex,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "beat": 0,
        }
        self._lock: int | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, *, wait: bool) -> None:
        """Have the seat, or with ``wait`` wait for it.

        Raises:
            Refused: another planner has it, and ``wait`` is not wanted.
        """
        self._take_local(wait)
        try:
            self._take_shared(wait)
        except BaseException:
            self._drop_local()
            raise
        self._thread = threading.Thread(target=self._beats, name="planner-seat", daemon=True)
        self._thread.start()

    def __enter__(self) -> Seat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            if self.is_ours():
                self.file.unlink(missing_ok=True)
        self._drop_local()

    def is_ours(self) -> bool:
        """Whether the record in the share still names this planner; asked before an answer is written."""
        return self.state() == "ours"

    def state(self) -> Literal["ours", "lost", "gone", "away"]:
        """``lost``: the record names another. ``gone``: somebody removed it. ``away``: the share does not show it."""
        data = read_bytes(self.file, _MAX_BYTES)
        if data is not None:
            return "ours" if (as_object(data) or {}).get("id") == self._mine["id"] else "lost"
        return "gone" if self.file.parent.is_dir() and not os.path.lexists(self.file) else "away"

    # -- on this machine -------------------------------------------------------------------------------------

    def _take_local(self, wait: bool) -> None:
        self._local.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._local, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    os.close(lock)
                    raise Refused(
                        f"another planner on this machine serves {self.file.parent}; end it first"
                    ) from None
                if not said:
                    log.info("another planner on this machine serves %s; waits for it", self.file.parent)
                    said = True
                pause(_LOOK_S)
            else:
                self._lock = lock
                return

    def _drop_local(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- in the share ----------------------------------------------------------------------------------------

    def _take_shared(self, wait: bool) -> None:
        seen: bytes | None = None
        since = time.monotonic()
        said = False
        while True:
            data = self._created()
            if data is None:
                return
            if data != seen:
                if seen is not None and not wait:
                    raise Refused(f"another planner serves {self.file.parent}: {_who(data)}; end it first")
                seen, since = data, time.monotonic()
            if self._is_dead(data) or time.monotonic() - since >= self._free_s:
                self._take_away(data)
                continue
            if not said:
                log.info("a planner's record is there (%s); it is watched for %g s", _who(data), self._free_s)
                said = True
            pause(_LOOK_S)

    def _created(self) -> bytes | None:
        """None: the record is ours now. Else what stands there."""
        if os.path.lexists(self.file):  # who waits writes nothing
            return read_bytes(self.file, _MAX_BYTES) or b""
        temp = self.file.with_name(f".planner.{uuid4().hex[:8]}.tmp")
        try:
            self._write_new(temp)
            try:
                os.link(temp, self.file)  # whole from its first moment, as others read this folder
            except OSError as e:
                if e.errno not in NO_LINKS:
                    raise
                self._write_new(self.file)  # empty for a moment, but still of one planner alone
        except FileExistsError:
            return read_bytes(self.file, _MAX_BYTES) or b""
        finally:
            temp.unlink(missing_ok=True)
        return None

    def _write_new(self, file: Path) -> None:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o664)
        with os.fdopen(handle, "wb") as out:
            out.write(self._record())

    def _take_away(self, stale: bytes) -> None:
        """Move the record aside; where it was another one than we have watched, give it back."""
        aside = self.file.with_name(f".planner.{uuid4().hex[:8]}.tmp")
        try:
            os.rename(self.file, aside)
        except FileNotFoundError:
            return
        if (read_bytes(aside, _MAX_BYTES) or b"") != stale:
            try:
                os.link(aside, self.file)
            except OSError:
                log.warning("%s was taken at the same moment; its planner will notice", self.file)
        aside.unlink(missing_ok=True)

    def _is_dead(self, data: bytes) -> bool:
        """A process of this very machine, since its last start, that is known to have ended."""
        found = as_object(data) or {}
        pid = found.get("pid")
        ours = bool(self._mine["boot"]) and found.get("boot") == self._mine["boot"]
        return ours and isinstance(pid, int) and pid > 1 and not lives(pid)

    def _record(self) -> bytes:
        return json.dumps(self._mine).encode() + b"\n"

    def _beats(self) -> None:
        while not self._ended.wait(self._beat_s):
            state = self.state()
            if state == "lost":
                log.warning("%s names another planner; nothing more is answered by this one", self.file)
                return
            try:
                if state == "gone":
                    self._created()
                elif state == "ours":
                    self._mine["beat"] += 1
                    write_atomic(self.file, self._record(), mode=0o664, durable=False)
            except OSError as e:
                log.warning("%s: %s; tried again", self.file, e.strerror or e)


def _boot() -> str:
    """Names this machine since its last start, and whose process numbers are meant; empty where the kernel is silent."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except (OSError, UnicodeError):
        return ""


def _who(data: bytes) -> str:
    found = as_object(data) or {}
    return f"host {str(found.get('host'))[:60]!r}, pid {found.get('pid')}"
