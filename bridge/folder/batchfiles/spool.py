"""What is kept of a batch file on the local disk, from its reading to the end of its batch: ``<state>/doors/batches/``.

    .taking-<name>/     a file that is being read; nothing of it is accepted, and a restart throws it away
    <run>/run.json      what it is, and how far it has come (written atomically)
    <run>/requests      its tasks, ready to submit
    <run>/bad           its lines that no task comes of; both: a length of four bytes and msgpack, again and again
    <run>/results.jsonl the lines of what is done; each group is synced before anybody may see it
    <run>/errors.jsonl  the lines of ``bad``, and at the end those of tasks that ended badly

When all is published only ``run.json`` stays: it tells a file that was answered from a new one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

import msgpack

from ....bus.paths import write_atomic
from ....plans.stage import remove_tree
from ...batchfile.answers import bad_line
from ...batchfile.books import Books
from ...batchfile.names import Look
from ...batchfile.requests import BadLine, Request

log = logging.getLogger(__name__)

_MARK_CHARS: Final = 12
_LENGTH: Final = struct.Struct(">I")
_TAKING: Final = ".taking-"
_RUN: Final = "run.json"
REQUESTS: Final = "requests"
BAD: Final = "bad"
RESULTS: Final = "results.jsonl"
ERRORS: Final = "errors.jsonl"

SYNC_BYTES: Final = 16 << 20

Phase = Literal["running", "publishing", "done"]


def run_id(name: str, sha256: str) -> str:
    """One run: this content under this name. The batch belongs to the content alone."""
    return hashlib.sha256(f"{sha256}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass
class Run:
    """A batch file that was accepted: ``look`` is how the file looked, ``lines`` the number of its last line.

    ``submitted`` is an offset in ``requests``. ``done`` and ``failed`` count lines of the output; ``state`` is the
    batch's, at its end; ``refused``: why the broker took no more of it.
    """

    name: str
    sha256: str
    look: Look
    lines: int
    requests: int
    bad: int
    priority: int
    phase: Phase = "running"
    batch: str = ""
    submitted: int = 0
    done: int = 0
    failed: int = 0
    state: str = ""
    refused: str = ""

    @property
    def id(self) -> str:
        return run_id(self.name, self.sha256)

    @property
    def mark(self) -> str:
        """What the ids of its output lines bear."""
        return self.sha256[:_MARK_CHARS]

    @property
    def key(self) -> str:
        """The batch's: the same content is the same batch."""
        return f"jsonl:{self.sha256}"


class Taking:
    """A file that is being read. ``offset``: how much of it has been."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.offset = folder, 0
        self._digest = hashlib.sha256()
        self._unsynced = 0
        self._requests = (folder / REQUESTS).open("xb")
        self._bad = (folder / BAD).open("xb")

    def put(self, data: bytes, found: Sequence[Request | BadLine]) -> None:
        """The next piece of the file, and what became of the lines that end in it.

        Raises:
            OSError: the disk refuses.
        """
        self._digest.update(data)
        self.offset += len(data)
        for one in found:
            packed = msgpack.packb(astuple(one))
            file = self._bad if isinstance(one, BadLine) else self._requests
            file.write(_LENGTH.pack(len(packed)) + packed)
            self._unsynced += len(packed)
        if self._unsynced > SYNC_BYTES:  # all of it at the end would hold up the bridge for seconds
            self._unsynced = 0
            self._sync()

    def end(self) -> str:
        """All of it was read, and is on the disk: the sha256 of the file.

        Raises:
            OSError: the disk refuses.
        """
        self._sync()
        self._requests.close()
        self._bad.close()
        return self._digest.hexdigest()

    def _sync(self) -> None:
        for file in (self._requests, self._bad):
            file.flush()
            os.fsync(file.fileno())

    def drop(self) -> None:
        """Nothing comes of it."""
        self._requests.close()
        self._bad.close()
        remove_tree(self.folder)


class Spool:
    """The folder of all of them. Every method may raise OSError: the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> list[Run]:
        """Make the folder, throw away what was never accepted; the runs that there are."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for folder in sorted(self._folder.iterdir()):
            run = None if folder.name.startswith(_TAKING) else self._read(folder)
            if run is None:
                remove_tree(folder)
            else:
                found.append(run)
        return found

    def take(self, name: str) -> Taking:
        """Begin to read a file."""
        place = self._folder / f"{_TAKING}{run_id(name, '')}"
        remove_tree(place)
        place.mkdir(mode=0o700)
        return Taking(place)

    def accept(self, taking: Taking, run: Run) -> None:
        """From now on it is not lost: what was read (and ended) is this run. What an earlier one of it left goes."""
        _write_bad(taking.folder, run.mark)
        write_atomic(taking.folder / _RUN, _json(run))
        place = self._place(run)
        remove_tree(place)
        os.rename(taking.folder, place)
        _sync(self._folder)

    def save(self, run: Run) -> None:
        """How far it has come."""
        write_atomic(self._place(run) / _RUN, _json(run))

    def close(self, run: Run) -> None:
        """All is published: only what it was stays."""
        run.phase = "done"
        self.save(run)
        for name in (REQUESTS, BAD, RESULTS, ERRORS):
            (self._place(run) / name).unlink(missing_ok=True)

    def forget(self, run: Run) -> None:
        """Its file has gone."""
        remove_tree(self._place(run))

    # -- requests --------------------------------------------------------------------------------------------

    def requests(self, run: Run, offset: int = 0) -> Iterator[tuple[Request, int]]:
        """The tasks from an offset on, each with the offset behind it."""
        for row, behind in _records(self._place(run) / REQUESTS, offset):
            yield Request(*row), behind

    # -- results ---------------------------------------------------------------------------------------------

    def recover(self, run: Run) -> Books:
        """The books of a run, from its results file; what a crash has left of a last line is cut off."""
        books = Books(run.lines)
        path = self._place(run) / RESULTS
        path.touch(mode=0o600)
        with path.open("rb") as file:
            good = books.recover(file, run.mark)
        if path.stat().st_size > good:
            log.warning(
                "%s: %d bytes behind its last whole line are cut off", path, path.stat().st_size - good
            )
            os.truncate(path, good)
        return books

    def add_results(self, run: Run, lines: Sequence[bytes]) -> None:
        """Append whole lines; they are on the disk when this returns."""
        _append(self._place(run) / RESULTS, lines)

    def restart_errors(self, run: Run) -> None:
        """Only what the reading found: how tasks ended is written once, at the end."""
        _write_bad(self._place(run), run.mark)

    def add_errors(self, run: Run, lines: Sequence[bytes]) -> None:
        """As :meth:`add_results`."""
        _append(self._place(run) / ERRORS, lines)

    def file(self, run: Run, name: str) -> str:
        """Where one of its files lies, for the copy into the share."""
        return str(self._place(run) / name)

    def _place(self, run: Run) -> Path:
        return self._folder / run.id

    def _read(self, folder: Path) -> Run | None:
        try:
            value = json.loads((folder / _RUN).read_bytes())
            known = {f.name for f in fields(Run)}
            run = Run(**{name: one for name, one in value.items() if name in known})
            run.look = (str(run.look[0]), *(int(n) for n in run.look[1:4]))  # type: ignore[assignment]
            return run if run.id == folder.name else None
        except (
            FileNotFoundError,
            NotADirectoryError,
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
        ) as e:
            # Any other OSError is the disk's: what was accepted waits for it.
            log.warning("%s is damaged (%r): drop that file again", folder, e)
            return None


def _json(run: Run) -> bytes:
    return json.dumps(asdict(run), indent=1).encode("ascii")


def _write_bad(folder: Path, mark: str) -> None:
    with (folder / ERRORS).open("wb") as out:
        for row, _ in _records(folder / BAD):
            out.write(bad_line(mark, BadLine(*row)))
        out.flush()
        os.fsync(out.fileno())


def _append(path: Path, lines: Sequence[bytes]) -> None:
    if not lines:
        return
    with path.open("ab") as out:
        out.writelines(lines)
        out.flush()
        os.fsync(out.fileno())


def _records(path: Path, offset: int = 0) -> Iterator[tuple[list[Any], int]]:
    """The rows of a file of records from an offset on, each with the offset behind it."""
    with path.open("rb") as file:
        file.seek(offset)
        while head := file.read(_LENGTH.size):
            (length,) = _LENGTH.unpack(head)
            offset += _LENGTH.size + length
            yield msgpack.unpackb(file.read(length)), offset


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
