"""What a worker owes, on the local disk: results that are in danger, until they are RECORDED or STALE.

A file is one RESULT message, ``<state>/spool/<session>.<n>``: a 16-byte BLAKE2b of what follows, then msgpack
``{worker, session, rows, body}``. It is written whole or not at all, and removed when all its results are answered. Who
comes after a process that died sends what lies here in that process's name: the next worker of the name, or the
supervisor before it says GONE. A repeat is harmless: the broker knows the token and the session it was given to.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...bus.client.link import Connection
from ...bus.errors import BadFrame
from ...bus.paths import write_atomic
from ...bus.wire import Token, Verb, pack, unpack
from .events import Inherited

log = logging.getLogger(__name__)

_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Left:
    """One file: what a process with this session owed when it wrote it."""

    path: Path
    worker: str
    session: str
    rows: list[dict[str, Any]]
    body: list[bytes]

    @property
    def tokens(self) -> list[Token]:
        return [row["token"] for row in self.rows]

    def inherited(self) -> Inherited:
        """As the worker's core takes it over."""
        return Inherited(self.session, self.rows, self.body)


@dataclass(slots=True)
class _Unanswered:
    """Files whose results are not all answered."""

    _tokens: dict[Path, set[Token]] = field(default_factory=dict)
    _files: dict[Token, Path] = field(default_factory=dict)

    def add(self, path: Path, tokens: Iterable[Token]) -> None:
        self._tokens[path] = set(tokens)
        self._files.update((token, path) for token in tokens)

    def settle(self, tokens: Iterable[Token]) -> list[Path]:
        """The files that are not needed any more."""
        done = []
        for token in tokens:
            path = self._files.pop(token, None)
            if path is None:
                continue
            left = self._tokens[path]
            left.discard(token)
            if not left:
                del self._tokens[path]
                done.append(path)
        return done


class Spool:
    """The spool of one worker process. All calls come from its loop's thread; a write takes an fsync."""

    def __init__(self, state: Path, worker: str, session: str) -> None:
        self._folder = state / "spool"
        self._worker = worker
        self._session = session
        self._n = 0
        self._refused = False
        self._unanswered = _Unanswered()

    def former(self) -> list[Left]:
        """What earlier processes of this name left."""
        found = [
            left
            for left in _read(self._folder)
            if left.worker == self._worker and left.session != self._session
        ]
        for left in found:
            self._unanswered.add(left.path, left.tokens)
        return found

    def keep(self, rows: Sequence[dict[str, Any]], body: Sequence[bytes]) -> bool:
        """:meth:`write` them; False when the disk does not take them, which is logged once in a row."""
        try:
            self.write(rows, body)
        except OSError as error:
            if not self._refused:
                log.warning(
                    "%d results of worker %s are not answered and cannot be kept on disk (%s): trying again",
                    len(rows),
                    self._worker,
                    error.strerror,
                )
            self._refused = True
            return False
        self._refused = False
        return True

    def write(self, rows: Sequence[dict[str, Any]], body: Sequence[bytes]) -> None:
        """Keep these results; on stable storage when it returns.

        Raises:
            OSError: the disk does not take them.
        """
        _make(self._folder)
        self._n += 1
        packed = pack({"worker": self._worker, "session": self._session, "rows": rows, "body": list(body)})
        path = self._folder / f"{self._session}.{self._n}"
        write_atomic(path, _digest(packed) + packed)
        self._unanswered.add(path, [row["token"] for row in rows])

    def settle(self, tokens: Iterable[Token]) -> None:
        """RECORDED or STALE."""
        _remove(self._unanswered.settle(tokens))


class Estate:
    """What dead processes of a rig left, as its supervisor presents it."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "spool"
        self._unanswered = _Unanswered()

    def present(self, link: Connection, but: Container[str] = ()) -> bool:
        """Send what lies here of sessions not in ``but``; False when the broker does not take all of it now."""
        for left in _read(self._folder):
            if left.session in but:
                continue
            self._unanswered.add(left.path, left.tokens)
            if not link.send(Verb.RESULT, {"session": left.session, "results": left.rows}, left.body):
                return False
        return True

    def settle(self, tokens: Iterable[Token]) -> None:
        """RECORDED or STALE."""
        _remove(self._unanswered.settle(tokens))


def _make(folder: Path) -> None:
    """The folder, durable with its name."""
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _digest(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=_DIGEST_BYTES).digest()


def _read(folder: Path) -> list[Left]:
    """Its files in the order of their names. A damaged one is removed: it can tell nobody anything.

    What the disk does not give now is left: the next worker of the name asks again, and the supervisor.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s cannot be read (%s): what dead workers owe waits there", folder, error.strerror)
        return []
    found = []
    for path in paths:
        try:
            found.append(_decode(path, path.read_bytes()))
        except FileNotFoundError:
            continue  # answered meanwhile
        except OSError as error:
            log.warning("%s cannot be read (%s): what it holds waits there", path, error.strerror)
        except BadFrame as error:
            log.warning(
                "%s holds results of a dead worker and is unreadable (%s): they are lost", path, error
            )
            _remove([path])
    return found


def _decode(path: Path, data: bytes) -> Left:
    """One file of a spool.

    Raises:
        BadFrame: it is damaged.
    """
    packed = data[_DIGEST_BYTES:]
    if _digest(packed) != data[:_DIGEST_BYTES]:
        raise BadFrame("its checksum does not fit its content")
    kept = unpack(packed)
    try:
        rows = [{**row, "token": (row["token"][0], row["token"][1])} for row in kept["rows"]]
        return Left(path, str(kept["worker"]), str(kept["session"]), rows, list(kept["body"]))
    except (KeyError, TypeError, IndexError) as error:
        raise BadFrame(f"a field of it is missing: {error!r}") from None


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # Presented again by whoever finds it, and answered as a repeat.
            log.warning("%s is recorded and cannot be removed: %s", path, error.strerror)
