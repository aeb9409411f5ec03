"""A disk that loses power: from recorded operations, every content that the files may have after a crash.

Of a file counts what its last sync has brought to the disk, and of each write since then all, nothing or whole blocks.
Names go in order, as a journal of metadata keeps them: those of a folder last when the folder was synced, with all that
came before; the later ones may be there or not. (ext4, xfs and btrfs promise more, POSIX less: no order.)
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from .tracing import Op

_BLOCK: Final = 4096
_SECTOR: Final = 512

#: A path -> the content of a file, None for a folder.
State = dict[str, bytes | None]


@dataclass(slots=True)
class Crash:
    """One way in which the files may lie after a crash behind ``n`` operations."""

    n: int
    how: str
    said: list[bytes]
    state: State

    def write(self, folder: Path, was: Path) -> None:
        """Put the files, which lay below ``was``, below ``folder``."""
        for path, data in sorted(self.state.items()):
            target = folder / PurePosixPath(path).relative_to(was)
            if data is None:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)


@dataclass(slots=True)
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    #: Since then, in order: (where, bytes), or (length, None).
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def apply(self, at: int, data: bytes | None) -> None:
        _put(self.data, at, data)
        self.pending.append((at, data))

    def sync(self) -> None:
        self.synced = bytes(self.data)
        self.pending.clear()

    def some(self, chance: random.Random) -> bytes:
        """Some blocks of what is not synced: a disk writes them in any order. The length is one that the file had."""
        data = bytearray(self.synced)
        for at, new in self.pending:
            if new is None:
                if chance.random() < 0.5:
                    _put(data, at, None)
                continue
            cut = 0
            while cut < len(new):
                end = min(len(new), cut + _BLOCK - (at + cut) % _BLOCK)
                if chance.random() < 0.5:
                    _put(data, at + cut, new[cut:end])
                cut = end
        return bytes(data)

    def torn(self, cut: int) -> bytes:
        """All writes, of the last one the first ``cut`` bytes."""
        data = bytearray(self.synced)
        for at, new in self.pending[:-1]:
            _put(data, at, new)
        at, new = self.pending[-1]
        _put(data, at, None if new is None else new[:cut])
        return bytes(data)


class Disk:
    """Takes operations one after the other, and says what a crash behind each may leave."""

    def __init__(self, state: State | None = None) -> None:
        """Begin with these files, all of them durable."""
        self._names: dict[str, _File | None] = {}
        for path, data in (state or {}).items():
            self._names[path] = None if data is None else _File(bytearray(data), data)
        self._durable = dict(self._names)
        self._moves: list[Op] = []  #: changes of names that are not durable
        self._made: list[_File | None] = []
        self._n = 0
        self._said: list[bytes] = []

    def crashes(self, ops: Sequence[Op]) -> Iterator[Crash]:
        """Before the first and behind each of ``ops``: every way, each state once in a row."""
        seen: set[bytes] = set()
        yield from self._now(None, seen)
        for op in ops:
            self._n += 1
            self._do(op)
            yield from self._now(op, seen)

    def _now(self, op: Op | None, seen: set[bytes]) -> Iterator[Crash]:
        for how, state in self._states(op):
            digest = _digest(state, self._said)
            if digest not in seen:
                seen.add(digest)
                yield Crash(self._n, how, list(self._said), state)

    def _states(self, op: Op | None) -> Iterator[tuple[str, State]]:
        names, durable = self._names, self._durable
        yield "killed", {p: None if f is None else bytes(f.data) for p, f in names.items()}
        yield "nothing unsynced", {p: None if f is None else f.synced for p, f in durable.items()}
        yield "names only", {p: None if f is None else f.synced for p, f in names.items()}
        yield "content only", {p: None if f is None else bytes(f.data) for p, f in durable.items()}
        for top in self._tops() if len(self._tops()) > 1 else ():
            # each folder at the top on a disk of its own, and one of them behind
            behind = {p: f for p, f in durable.items() if p == top or p.startswith(f"{top}/")}
            ahead = {p: f for p, f in names.items() if p != top and not p.startswith(f"{top}/")}
            state: State = {p: None if f is None else f.synced for p, f in behind.items()}
            state |= {p: None if f is None else bytes(f.data) for p, f in ahead.items()}
            yield f"{PurePosixPath(top).name} behind", state
        chance = random.Random(self._n)
        yield "some blocks", {p: None if f is None else f.some(chance) for p, f in names.items()}
        if op is None or op.kind != "write" or names.get(op.path) is None:
            return
        for unit in (_SECTOR, _BLOCK):
            cut = chance.randrange(len(op.data) + 1) // unit * unit
            torn = {p: None if f is None else bytes(f.data) for p, f in names.items()}
            file = names[op.path]
            assert file is not None
            torn[op.path] = file.torn(cut)
            yield f"torn at {cut}", torn

    def _tops(self) -> list[str]:
        shortest = min((len(PurePosixPath(p).parts) for p in self._names), default=0)
        return sorted(p for p in self._names if len(PurePosixPath(p).parts) == shortest)

    def _do(self, op: Op) -> None:
        kind, path = op.kind, op.path
        if kind == "say":
            self._said.append(op.data)
        elif kind in ("write", "size"):
            file = self._names.get(path)
            if file is not None:  # else: of a file that has no name any more
                file.apply(op.at, op.data if kind == "write" else None)
        elif kind == "sync" and self._names.get(path) is not None:
            file = self._names[path]
            assert file is not None
            file.sync()
        elif kind == "sync":
            self._sync_folder(path)
        else:
            self._moves.append(op)
            made = _File() if kind == "make" else self._names.get(path)
            self._made.append(made)
            _rename(self._names, op, made)

    def _sync_folder(self, folder: str) -> None:
        last = 0
        for i, op in enumerate(self._moves):
            if folder in (str(PurePosixPath(p).parent) for p in (op.path, op.to) if p):
                last = i + 1
        for op, made in zip(self._moves[:last], self._made[:last], strict=True):
            _rename(self._durable, op, made)
        del self._moves[:last], self._made[:last]


def _put(data: bytearray, at: int, new: bytes | None) -> None:
    if new is None:
        del data[at:]
        data.extend(bytes(at - len(data)))
    elif new:
        data.extend(bytes(max(0, at - len(data))))
        data[at : at + len(new)] = new


def _rename(names: dict[str, _File | None], op: Op, file: _File | None) -> None:
    if op.kind in ("make", "folder"):
        names[op.path] = file if op.kind == "make" else None
    elif op.kind == "link":
        names[op.to] = file
    elif op.kind == "gone":
        names.pop(op.path, None)
    else:
        under = f"{op.path}/"
        for path in [p for p in names if p == op.path or p.startswith(under)]:
            names[op.to + path[len(op.path) :]] = names.pop(path)


def _digest(state: State, said: Sequence[bytes]) -> bytes:
    digest = hashlib.blake2b(repr(said).encode(), digest_size=16)
    for path, data in sorted(state.items()):
        digest.update(f"{path} {-1 if data is None else len(data)}\n".encode())
        digest.update(data or b"")
    return digest.digest()


def files_below(folder: Path) -> State:
    """The files and folders below, as they are now; those that a crash does not leave are left out."""
    return {
        str(p): None if p.is_dir() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if not p.name.endswith("-shm")
    }
