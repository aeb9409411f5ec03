"""Operations on the share as the bridge writes them down, and how it reads their results. Pure.

An operation is a dict for :meth:`FolderPort.request`; its result is a dict with ``ok``, and either the keys
named here or ``errno`` (a name such as ENOENT) and ``what``. Paths are relative to the share's root, with
``/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Op = dict[str, Any]
Result = dict[str, Any]


class Entry(NamedTuple):
    """One thing in the share. ``type`` is file, dir, link, fifo, socket, device, other or unreadable (a
    folder).
    """

    path: str
    type: str
    size: int
    mtime_ns: int
    inode: int
    mode: int

    @property
    def was(self) -> list[int]:
        """Which file it is, for :func:`unlink` and its like: [inode, size, mtime_ns]."""
        return [self.inode, self.size, self.mtime_ns]


def scan(
    path: str,
    *,
    depth: int = 1,
    budget: int = 10_000,
    per_entry: int = 5_000,
    after: str = "",
    enter: Iterable[str] = (),
) -> Op:
    """List a folder: ``entries`` (:func:`entries`; paths relative to ``path``), ``next``, ``cut``, ``took_s``.

    At most ``budget`` entries in name order; ``next`` continues (as ``after``), empty at the end. A top-level
    entry with more than ``per_entry`` below it is listed as far as that and named in ``cut``. Hidden
    top-level folders are gone into only when named in ``enter``.
    """
    return {
        "op": "scan",
        "path": path,
        "depth": depth,
        "budget": budget,
        "per_entry": per_entry,
        "after": after,
        "enter": list(enter),
    }


def newcomers(
    path: str, *, after: str = "", budget: int = 500, doubts_after: str = "", doubts: int = 0
) -> Op:
    """Look for task files that are not the mirror's: ``entries``, ``next``; and a few names that look like the
    mirror's: ``doubtful``, ``doubts_next``; ``took_s``.
    """
    return {
        "op": "newcomers",
        "path": path,
        "after": after,
        "budget": budget,
        "doubts_after": doubts_after,
        "doubts": doubts,
    }


def stat(path: str) -> Op:
    """``entry``: None when nothing is there; links are not followed."""
    return {"op": "stat", "path": path}


def read(path: str, max_bytes: int, offset: int = 0) -> Op:
    """``data`` (at most ``max_bytes``), ``size`` of the whole file, ``mtime_ns``, ``inode``. Regular files
    only.
    """
    return {"op": "read", "path": path, "max_bytes": max_bytes, "offset": offset}


def write(
    path: str,
    data: bytes,
    *,
    mtime_ns: int | None = None,
    fsync: bool = False,
    replaces: str = "",
    was: Sequence[int] | None = None,
    keep: Mapping[str, Sequence[int] | None] | None = None,
    yields: bool = False,
    over: Sequence[int] | None = None,
    runs: bool = False,
) -> Op:
    """Temporary file and rename; folders are made. ``replaces`` is unlinked once the new file stands; with ``was``
    as for :func:`unlink`. Answers ``size``, ``mtime_ns`` and ``kept``.

    ``keep`` names those of ``path`` and ``replaces`` where somebody's edit may stand, each with the [size, mtime_ns]
    that the mirror left there (None: unknown). What is neither that nor sealed (`seal`) is put aside (`asides`) and
    named in ``kept``, not lost. With ``yields`` such a file at ``path`` stays, and nothing is written: ``yielded``, with
    its ``size`` and ``mtime_ns``. With ``over`` it is not even put aside but left where it is, and the answer is EEDITED;
    unless it is that very file ([inode, size, mtime_ns]; empty: none). ``runs``: it is executable.
    """
    op: Op = {"op": "write", "path": path, "data": data, "fsync": fsync, "replaces": replaces}
    if keep is not None:
        op["keep"] = {name: None if known is None else list(known) for name, known in keep.items()}
    if was is not None:
        op["was"] = list(was)
    if yields:
        op["yields"] = True
    if over is not None:
        op["over"] = list(over)
    if runs:
        op["runs"] = True
    return op if mtime_ns is None else {**op, "mtime_ns": mtime_ns}


def append(path: str, data: bytes, at: int | None = None) -> Op:
    """``size`` afterwards. With ``at``, the size that the caller knows, repeating the call is harmless; a
    file shorter than that is ESTALE."""
    return {"op": "append", "path": path, "data": data, "at": at}


def unlink(path: str, *, only_sealed: bool = False, was: Sequence[int] | None = None) -> Op:
    """``was``: False when nothing was there, which is no error. ``only_sealed`` leaves what the mirror has not written
    as it is now; ``was`` ([inode, size, mtime_ns], as :func:`read` told them) what somebody has put there since."""
    op: Op = {"op": "unlink", "path": path}
    if was is not None:
        op["was"] = list(was)
    return {**op, "only_sealed": True} if only_sealed else op


def aside(path: str, was: Sequence[int]) -> Op:
    """Rename to a name of `asides`, if it is still the file ``was`` ([inode, size, mtime_ns]): ``kept`` is [its new path], or
    empty."""
    return {"op": "aside", "path": path, "was": list(was)}


def rename(path: str, to: str, *, replace: bool = False, was: Sequence[int] | None = None) -> Op:
    """Move a file or folder; EEXIST when something stands at ``to``, unless it is to be replaced. With ``was`` ([inode, size,
    mtime_ns]) EEDITED when another one stands at ``path``."""
    op: Op = {"op": "rename", "path": path, "to": to}
    if was is not None:
        op["was"] = list(was)
    return {**op, "replace": True} if replace else op


def mkdirs(path: str) -> Op:
    """Make a folder and its parents; existing ones are fine."""
    return {"op": "mkdirs", "path": path}


def rmdir(path: str) -> Op:
    """Remove an empty folder."""
    return {"op": "rmdir", "path": path}


def copy_in(
    path: str,
    to: str,
    *,
    tops: Iterable[str] | None = None,
    small_bytes: int = 0,
    max_bytes: int = 64 << 20,
    max_files: int = 10_000,
) -> Op:
    """Copy a file or folder to the absolute local path ``to`` (new; its parent exists): ``sha256``,
    ``files``, ``bytes``, ``inode``. With ``tops`` only these top-level names, and other top-level files up
    to ``small_bytes``; links to files among them must stay inside, a FIFO or device refuses the whole.
    """
    return {
        "op": "copy_in",
        "path": path,
        "to": to,
        "tops": None if tops is None else list(tops),
        "small_bytes": small_bytes,
        "max_bytes": max_bytes,
        "max_files": max_files,
    }


def copy_out(source: str, path: str, offset: int = 0, max_bytes: int = 8 << 20, *, fsync: bool = False) -> Op:
    """Continue the copy of the local file ``source`` at ``offset``: new ``offset``, ``more``. ``fsync``: at the end."""
    op: Op = {"op": "copy_out", "source": source, "path": path, "offset": offset, "max_bytes": max_bytes}
    return {**op, "fsync": True} if fsync else op


def entries(result: Mapping[str, Any]) -> list[Entry]:
    """The entries of a scan's result."""
    return [Entry(*row) for row in result["entries"]]


def is_odd(name: str) -> bool:
    """True for a name that is not UTF-8 or holds characters that a terminal or a page must not get raw."""
    return not name.isprintable()


def shown(text: str) -> str:
    """Text for people: whatever is not printable (controls, ESC, bidi marks, stray bytes) as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
