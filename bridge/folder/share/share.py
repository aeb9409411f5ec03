"""The operations that a folder helper knows, on one opened root of the share.

Runs only inside the helper: each call may hang for ever (a dead NFS server); only the parent has a deadline.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import asides, copies
from .beneath import (
    CHUNK_BYTES,
    DIR_FLAGS,
    READ_FLAGS,
    WRITE_FLAGS,
    OpError,
    open_dir,
    open_regular,
    split,
    temp_name,
    write_all,
)
from .seal import MAX_BYTES, sealed

MAX_DEPTH = 32
EDITED = "EEDITED"  #: in place of an errno: somebody else has changed it
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "device",
    stat.S_IFCHR: "device",
}


def row(path: str, info: os.stat_result) -> list[Any]:
    """An entry as it travels: [path, type, size, mtime_ns, inode, mode]."""
    kind = _TYPES.get(stat.S_IFMT(info.st_mode), "other")
    return [path, kind, info.st_size, info.st_mtime_ns, info.st_ino, stat.S_IMODE(info.st_mode)]


class Share:
    """The operations on one opened root. ``until`` (monotonic seconds) bounds the work of a batch."""

    def __init__(self, root: int, until: float) -> None:
        self.root = root
        self.until = until
        self._asides: dict[str, list[str]] = {}  #: folder -> what was put aside there, listed once a batch

    def late(self) -> bool:
        return time.monotonic() >= self.until

    def parent(self, path: object, *, create: bool = False, follow: bool = False) -> tuple[int, str]:
        parts = split(path)
        if not parts:
            raise OpError("EINVAL", "the root itself is not a file")
        return open_dir(self.root, parts[:-1], create=create, follow=follow), parts[-1]

    def scan(
        self,
        path: str,
        *,
        depth: int = 1,
        budget: int = 10_000,
        per_entry: int = 5_000,
        after: str = "",
        enter: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Top-level names in order, each with its subtree, until ``budget`` entries or the time is spent.

        ``next`` is the name to continue after (empty = the end was reached); ``cut`` names whose subtree held
        more than ``per_entry`` or took too long. Hidden top-level folders are listed, but gone into only when
        named in ``enter``. ``took_s`` is the share's own time.
        """
        began = time.monotonic()
        fd = open_dir(self.root, split(path), follow=True)
        entries: list[list[Any]] = []
        cut: list[str] = []
        last = more = ""
        try:
            for name in sorted(os.listdir(fd)):
                if after and name <= after:
                    continue
                start = len(entries)
                if start >= budget or (start and self.late()):
                    more = last
                    break
                limit = min(start + per_entry, budget)
                deep = min(depth, MAX_DEPTH) if not name.startswith(".") or name in enter else 1
                if not self._walk(fd, name, deep, entries, limit):
                    if start and limit == budget and not len(entries) - start >= per_entry:
                        del entries[start:]  # it may fit whole into the next page
                        more = last
                        break
                    cut.append(name)
                last = name
        finally:
            os.close(fd)
        return {"entries": entries, "next": more, "cut": cut, "took_s": time.monotonic() - began}

    def _walk(self, fd: int, shown: str, depth: int, out: list[list[Any]], limit: int) -> bool:
        """Add ``shown`` (its last name lies in ``fd``) and what is below; False when a bound stopped it."""
        name = shown.rpartition("/")[2]
        if len(out) >= limit:
            return False
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return True  # vanished between the listing and here
        out.append(row(shown, info))
        if depth <= 1 or not stat.S_ISDIR(info.st_mode):
            return True
        place = len(out) - 1
        try:
            child = os.open(name, DIR_FLAGS, dir_fd=fd)
        except OSError:
            out[place][1] = "unreadable"
            return True
        try:
            names = sorted(os.listdir(child))
            return all(
                not self.late() and self._walk(child, f"{shown}/{n}", depth - 1, out, limit) for n in names
            )
        finally:
            os.close(child)

    def stat(self, path: str) -> dict[str, Any]:
        """``entry``, or None when nothing is there."""
        if not split(path):
            return {"entry": row(".", os.fstat(self.root))}
        try:
            fd, name = self.parent(path, follow=True)
        except FileNotFoundError:
            return {"entry": None}
        try:
            return {"entry": row(path, os.stat(name, dir_fd=fd, follow_symlinks=False))}
        except FileNotFoundError:
            return {"entry": None}
        finally:
            os.close(fd)

    def read(self, path: str, max_bytes: int, offset: int = 0) -> dict[str, Any]:
        """At most ``max_bytes`` from ``offset``; ``size`` is the whole file's, so a cut answer shows."""
        fd, name = self.parent(path, follow=True)
        try:
            file, info = open_regular(name, fd, READ_FLAGS, path)
        finally:
            os.close(fd)
        try:
            data = b""
            while len(data) < max_bytes:
                piece = os.pread(file, min(CHUNK_BYTES, max_bytes - len(data)), offset + len(data))
                if not piece:
                    break
                data += piece
        finally:
            os.close(file)
        return {"data": data, "size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}

    def write(
        self,
        path: str,
        data: bytes,
        mtime_ns: int | None = None,
        fsync: bool = False,
        replaces: str = "",
        was: list[int] | None = None,
        keep: dict[str, list[int] | None] | None = None,
        yields: bool = False,
        over: list[int] | None = None,
        runs: bool = False,
    ) -> dict[str, Any]:
        """Whole or not at all: a temporary file beside the target, then a rename over it.

        ``replaces`` is removed only after the new file stands: a reader may see a moving task twice for an
        instant, never nowhere, and a full disk leaves the old file where it was. ``keep``, ``yields``, ``over`` and
        ``runs``: see :func:`ops.write`.
        """
        fd, name = self.parent(path, create=True)
        try:
            if yields and (theirs := self._somebodys(fd, name, path, (keep or {}).get(path))) is not None:
                return {"size": theirs.st_size, "mtime_ns": theirs.st_mtime_ns, "kept": [], "yielded": True}
            kept: list[str] = []
            mode = 0o775 if runs else 0o664
            with _written_beside(fd, name, data, mode, mtime_ns, fsync) as (file, temp):
                if over is not None:
                    self._unless_edited(fd, name, path, over)
                if keep is not None and path in keep:
                    kept += self._aside(fd, name, path, keep[path], stays=True)
                if over is not None and not kept:
                    # Where that cannot be, an edit in this instant is lost.
                    asides.link(fd, name, _former(name))
                os.rename(temp, name, src_dir_fd=fd, dst_dir_fd=fd)
                info = os.fstat(file)
                if over is not None and self._late_edit(fd, name, path):
                    raise OpError(EDITED, f"{path} is being changed by somebody")
            if fsync:
                os.fsync(fd)
        finally:
            os.close(fd)
        if replaces:
            if keep is not None and replaces in keep:
                kept += self._put_aside(replaces, keep[replaces])
            self.unlink(replaces, was=was)
        return {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "kept": kept}

    def _put_aside(self, path: str, known: list[int] | None) -> list[str]:
        try:
            fd, name = self.parent(path)
        except FileNotFoundError:
            return []
        try:
            return self._aside(fd, name, path, known)
        finally:
            os.close(fd)

    def _aside(
        self, fd: int, name: str, path: str, known: list[int] | None, *, stays: bool = False
    ) -> list[str]:
        """Rename what stands at ``name`` unless the mirror wrote it; the path of what was kept."""
        if self._somebodys(fd, name, path, known) is None:
            return []
        return [self._put_away(fd, name, path, stays=stays)]

    def _put_away(self, fd: int, name: str, path: str, *, stays: bool = False) -> str:
        folder = path.removesuffix(name)
        if folder not in self._asides:
            self._asides[folder] = asides.standing(fd)
        return folder + asides.put_aside(fd, name, path, self._asides[folder], stays=stays)

    def aside(self, path: str, was: list[int]) -> dict[str, Any]:
        """Put a file aside if it is still the one that the caller read; ``kept`` is its new path, empty when it is not."""
        try:
            fd, name = self.parent(path)
        except FileNotFoundError:
            return {"kept": []}
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if was != [info.st_ino, info.st_size, info.st_mtime_ns]:
                return {"kept": []}
            return {"kept": [self._put_away(fd, name, path)]}
        except FileNotFoundError:
            return {"kept": []}
        finally:
            os.close(fd)

    def _unless_edited(self, fd: int, name: str, path: str, over: list[int]) -> None:
        """Refuse to write over what somebody else has written, but for the file ``over``, which was taken in."""
        edited = self._late_edit(fd, name, path)
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if edited or not (
            over == [info.st_ino, info.st_size, info.st_mtime_ns]
            or not stat.S_ISREG(info.st_mode)
            or self._is_sealed(fd, name, path, info.st_size)
        ):
            raise OpError(EDITED, f"{path} was changed by somebody")

    def _late_edit(self, fd: int, name: str, path: str) -> bool:
        """Whoever had opened the former file before ours took its place writes into that one, which still has a second
        name: it is given its place back. A helper killed in between leaves it to the next write."""
        former = _former(name)
        try:
            info = os.stat(former, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(info.st_mode) or self._is_sealed(fd, former, path, info.st_size):
            os.unlink(former, dir_fd=fd)
            return False
        os.rename(former, name, src_dir_fd=fd, dst_dir_fd=fd)
        return True

    def _somebodys(self, fd: int, name: str, path: str, known: list[int] | None) -> os.stat_result | None:
        """What stands at ``name``; None where that is nothing, or the mirror wrote it."""
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        ours = stat.S_ISREG(info.st_mode) and (
            known == [info.st_size, info.st_mtime_ns] or self._is_sealed(fd, name, path, info.st_size)
        )
        return None if ours else info

    def _is_sealed(self, fd: int, name: str, path: str, size: int) -> bool:
        if size > MAX_BYTES:
            return False
        try:
            file, _ = open_regular(name, fd, READ_FLAGS, path)
        except PermissionError:
            return False  # what the mirror writes it may read
        try:
            return sealed(os.read(file, MAX_BYTES))
        finally:
            os.close(file)

    def append(self, path: str, data: bytes, at: int | None = None) -> dict[str, Any]:
        """Append in place (readers keep their descriptor). With ``at`` a repeat writes nothing twice."""
        fd, name = self.parent(path, create=True)
        try:
            file, info = open_regular(name, fd, WRITE_FLAGS, path)
        finally:
            os.close(fd)
        try:
            if at is not None and info.st_size < at:
                raise OpError("ESTALE", f"{path} holds {info.st_size} bytes, {at} were expected")
            os.lseek(file, info.st_size if at is None else at, os.SEEK_SET)
            write_all(file, data)
            return {"size": os.lseek(file, 0, os.SEEK_END)}
        finally:
            os.close(file)

    def unlink(self, path: str, only_sealed: bool = False, was: list[int] | None = None) -> dict[str, Any]:
        """Remove a file; ``was`` is False when it had gone already, is none that the mirror wrote, or is another one
        than the caller read."""
        try:
            fd, name = self.parent(path)
        except FileNotFoundError:
            return {"was": False}
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if was is not None and was != [info.st_ino, info.st_size, info.st_mtime_ns]:
                return {"was": False}
            ours = not only_sealed or stat.S_ISREG(info.st_mode)
            if not ours or (only_sealed and not self._is_sealed(fd, name, path, info.st_size)):
                return {"was": False}
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return {"was": False}
        finally:
            os.close(fd)
        return {"was": True}

    def rename(
        self, path: str, to: str, replace: bool = False, was: list[int] | None = None
    ) -> dict[str, Any]:
        """Move a file or folder inside the share; an existing target is refused, or with ``replace`` replaced. With ``was`` only
        the file that the caller read."""
        source, name = self.parent(path)
        try:
            if was is not None:
                info = os.stat(name, dir_fd=source, follow_symlinks=False)
                if was != [info.st_ino, info.st_size, info.st_mtime_ns]:
                    raise OpError("EEDITED", f"{path} is another file now")
            target, new = self.parent(to, create=True)
            try:
                try:
                    os.stat(new, dir_fd=target, follow_symlinks=False)
                except FileNotFoundError:
                    pass
                else:
                    if not replace:
                        raise OpError("EEXIST", f"{to} is there already")
                os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        return {}

    def rmdir(self, path: str) -> dict[str, Any]:
        """Remove an empty folder."""
        fd, name = self.parent(path)
        try:
            os.rmdir(name, dir_fd=fd)
        finally:
            os.close(fd)
        return {}

    def mkdirs(self, path: str) -> dict[str, Any]:
        """Make a folder and its parents, 0775."""
        os.close(open_dir(self.root, split(path), create=True))
        return {}

    def copy_out(
        self,
        source: str,
        path: str,
        offset: int = 0,
        max_bytes: int = 8 * CHUNK_BYTES,
        fsync: bool = False,
    ) -> dict[str, Any]:
        """See :func:`copies.copy_out`; with ``fsync`` a copy that is whole is on the disk of whoever keeps the share."""
        os.stat(source)  # before the target is made: what is not there leaves no empty copy
        fd, name = self.parent(path, create=True)
        try:
            file, info = open_regular(name, fd, WRITE_FLAGS, path)
        finally:
            os.close(fd)
        try:
            copied = copies.copy_out(source, file, min(offset, info.st_size), max_bytes, self.late)
            if fsync and not copied["more"]:
                os.fsync(file)
            return copied
        finally:
            os.close(file)

    def copy_in(self, path: str, to: str, **limits: Any) -> dict[str, Any]:
        """See :func:`copies.copy_in`."""
        fd, name = self.parent(path, follow=True)
        try:
            return copies.copy_in(fd, name, to, late=self.late, **limits)
        finally:
            os.close(fd)


@contextmanager
def _written_beside(
    fd: int, name: str, data: bytes, mode: int, mtime_ns: int | None, fsync: bool
) -> Iterator[tuple[int, str]]:
    """A whole temporary file in the folder of ``name``: (descriptor, its name). It is gone when what follows fails."""
    temp = temp_name(name)
    _gone(fd, temp)  # left by a killed helper
    file = os.open(temp, WRITE_FLAGS | os.O_EXCL, mode, dir_fd=fd)
    try:
        write_all(file, data)
        if mtime_ns is not None:
            os.utime(file, ns=(mtime_ns, mtime_ns))
        if fsync:
            os.fsync(file)
        yield file, temp
    except BaseException:
        _gone(fd, temp)
        raise
    finally:
        os.close(file)


def _former(name: str) -> str:
    return f".{name}.former~"


def _gone(fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass
