"""Copies between the share and the local disk: a plan in, a growing log out."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from typing import Any

from .beneath import CHUNK_BYTES, DIR_FLAGS, READ_FLAGS, OpError, open_regular, write_all

MAX_DEPTH = 32


def copy_out(source: str, file: int, offset: int, max_bytes: int, late: Callable[[], bool]) -> dict[str, Any]:
    """Continue a copy of a growing local file into the open ``file`` at ``offset``; repeatable.

    ``offset`` in the answer is where to go on, ``more`` says that the local file holds more already. A copy
    that somebody shortened is continued from its end.
    """
    local = os.open(source, READ_FLAGS)
    try:
        place = os.lseek(file, offset, os.SEEK_SET)
        end = place + max_bytes
        while place < end and not late():
            piece = os.pread(local, min(CHUNK_BYTES, end - place), place)
            if not piece:
                break
            write_all(file, piece)
            place += len(piece)
        more = place < os.fstat(local).st_size
        if not more and os.fstat(file).st_size > place:
            os.ftruncate(file, place)  # the end of another attempt's log, of a rig that was before this one
        return {"offset": place, "more": more}
    finally:
        os.close(local)


def copy_in(
    fd: int,
    name: str,
    to: str,
    *,
    late: Callable[[], bool],
    tops: list[str] | None = None,
    small_bytes: int = 0,
    max_bytes: int = 64 * CHUNK_BYTES,
    max_files: int = 10_000,
) -> dict[str, Any]:
    """Copy the file or folder ``name`` in ``fd`` to the local path ``to``, which must not exist yet.

    ``tops`` are the top-level names copied with all below them; other top-level files of at most
    ``small_bytes`` come too, the rest stays. None copies everything. A file that changes under the copy is
    EBUSY, a FIFO or device or a link out of the folder is refused. ``sha256`` covers the copied names, x bits
    and contents. After an error the caller removes what lies at ``to``.
    """
    copy = _Copy(max_bytes, max_files, late)
    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISDIR(info.st_mode):
        copy.file(fd, name, name, to)
    else:
        folder = os.open(name, DIR_FLAGS, dir_fd=fd)
        try:
            os.mkdir(to, 0o700)
            for top in sorted(os.listdir(folder)):
                if tops is None or top in tops or _wanted(folder, top, small_bytes):
                    copy.any(folder, top, top, f"{to}/{top}")
        finally:
            os.close(folder)
    return {"sha256": copy.hash.hexdigest(), "files": copy.files, "bytes": copy.bytes, "inode": info.st_ino}


def _wanted(folder: int, top: str, small_bytes: int) -> bool:
    """Whether a top-level entry that was not asked for by name comes too: small files, and links to files.

    Folders, links to folders and large files are data and stay. Whatever is none of these must not reach a plan.
    """
    info = os.stat(top, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        return False
    if not stat.S_ISLNK(info.st_mode):
        if not stat.S_ISREG(info.st_mode):
            raise OpError("ENOTSUP", f"{top} is a FIFO, socket or device")
        return info.st_size <= small_bytes
    try:
        return stat.S_ISREG(os.stat(top, dir_fd=folder).st_mode)
    except OSError:
        return False  # it leads nowhere


class _Copy:
    """One copy out of the share: bounds, and the hash of what was copied."""

    def __init__(self, max_bytes: int, max_files: int, late: Callable[[], bool]) -> None:
        self.hash = hashlib.sha256()
        self.files = self.bytes = 0
        self.max_bytes, self.max_files, self.late = max_bytes, max_files, late

    def any(self, fd: int, name: str, shown: str, to: str) -> None:
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            self.link(fd, name, shown, to)
        elif not stat.S_ISDIR(info.st_mode):
            self.file(fd, name, shown, to)
        else:
            if shown.count("/") >= MAX_DEPTH:
                raise OpError("ELOOP", f"{shown} lies deeper than {MAX_DEPTH} folders")
            child = os.open(name, DIR_FLAGS, dir_fd=fd)
            try:
                os.mkdir(to, 0o700)
                self._say("dir", shown, b"")
                for inner in sorted(os.listdir(child)):
                    self.any(child, inner, f"{shown}/{inner}", f"{to}/{inner}")
            finally:
                os.close(child)

    def link(self, fd: int, name: str, shown: str, to: str) -> None:
        """Copied as a link when it surely stays inside: ``..`` only in front, never above the folder."""
        target = os.readlink(name, dir_fd=fd)
        steps = target.split("/")
        ups = next((n for n, step in enumerate(steps) if step != ".."), len(steps))
        if target.startswith("/") or ".." in steps[ups:] or ups > shown.count("/"):
            raise OpError("EXDEV", f"{shown} is a link that leads out of its folder ({target!r})")
        os.symlink(target, to)
        self._say("link", shown, os.fsencode(target))

    def file(self, fd: int, name: str, shown: str, to: str) -> None:
        file, before = open_regular(name, fd, READ_FLAGS, shown)
        content = hashlib.sha256()
        try:
            out = os.open(
                to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700 & (before.st_mode | 0o600)
            )
            try:
                while piece := os.read(file, CHUNK_BYTES):
                    if self.late():
                        raise OpError("ETIME", f"{shown}: the batch's time was up while it was being copied")
                    self.bytes += len(piece)
                    if self.bytes > self.max_bytes:
                        raise OpError("EFBIG", f"{shown} brings the copy over {self.max_bytes} bytes")
                    content.update(piece)
                    write_all(out, piece)
            finally:
                os.close(out)
            after = os.fstat(file)
        finally:
            os.close(file)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise OpError("EBUSY", f"{shown} changed while it was being copied")
        self._say("x" if before.st_mode & 0o111 else "file", shown, content.digest())

    def _say(self, kind: str, shown: str, digest: bytes) -> None:
        self.files += 1
        if self.files > self.max_files:
            raise OpError("EFBIG", f"{shown}: more than {self.max_files} files and folders")
        self.hash.update(b"%s\0%s\0%d\0%s" % (kind.encode(), os.fsencode(shown), len(digest), digest))
