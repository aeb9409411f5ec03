"""Opening things below one folder and nowhere else.

Paths are relative and are walked by descriptor, one name at a time, with O_NOFOLLOW: whoever renames or links
under our feet can make an operation fail, never make it reach outside. (The standard library has no openat2.)
"""

from __future__ import annotations

import errno
import os
import stat

CHUNK_BYTES = 1024 * 1024
MAX_LINK_HOPS = 8

DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OpError(Exception):
    """An operation that is not done; ``code`` is an errno name, the text says what and where."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code


def split(path: object) -> list[str]:
    """The names of a path relative to the root; ``.`` is the root itself."""
    if not isinstance(path, str) or not path:
        raise OpError("EINVAL", "a path must be a text that is not empty")
    if path == ".":
        return []
    parts = path.split("/")
    if path.startswith("/") or "\0" in path or any(p in ("", ".", "..") for p in parts):
        raise OpError("EINVAL", f"{path!r} is not a plain path below the share's root")
    return parts


def _link_target(name: str, fd: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError:
        return None


def open_dir(root: int, parts: list[str], *, create: bool = False, follow: bool = False) -> int:
    """A descriptor of a folder below ``root``; the caller closes it.

    ``create`` makes what is missing (0775). A link on the way is refused, except with ``follow`` (reads) when
    it stays inside: its text is walked again from the root, name by name, so no race can lead outside.
    """
    fd = os.dup(root)
    todo, done, hops = list(parts), [], 0
    try:
        while todo:
            name = todo.pop(0)
            link: str | None = None
            if name != "..":
                try:
                    nxt = _enter(name, fd, create=create)
                except OSError as error:
                    link = _link_target(name, fd) if error.errno in (errno.ELOOP, errno.ENOTDIR) else None
                    if link is None:
                        raise
                else:
                    os.close(fd)
                    fd = nxt
                    done.append(name)
                    continue
            hops += link is not None
            where = "/".join([*done, name])
            if link is not None and not follow:
                raise OpError("ELOOP", f"{where} is a link; a real folder must stand there")
            if hops > MAX_LINK_HOPS or (link or "").startswith("/") or (name == ".." and not done):
                raise OpError("EXDEV", f"{where} is a link that leads out of the share")
            # Only real folders are in `done`, so going up is exact; start again from the root.
            step = (
                done[:-1]
                if name == ".."
                else done + [p for p in (link or "").split("/") if p not in ("", ".")]
            )
            todo, done = step + todo, []
            os.close(fd)
            fd = os.dup(root)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _enter(name: str, fd: int, *, create: bool) -> int:
    try:
        return os.open(name, DIR_FLAGS, dir_fd=fd)
    except FileNotFoundError:
        if not create:
            raise
    try:
        os.mkdir(name, 0o775, dir_fd=fd)
    except FileExistsError:
        pass  # somebody else made it in between: as good
    return os.open(name, DIR_FLAGS, dir_fd=fd)


def open_regular(name: str, fd: int, flags: int, shown: str) -> tuple[int, os.stat_result]:
    """Open without following or blocking; anything but a regular file is refused."""
    try:
        file = os.open(name, flags, 0o664, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise OpError("ENOTSUP", f"{shown} is a link, FIFO or socket, not a regular file") from None
        raise
    info = os.fstat(file)
    if not stat.S_ISREG(info.st_mode):
        os.close(file)
        raise OpError("ENOTSUP", f"{shown} is not a regular file")
    return file, info


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte or raise."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def temp_name(name: str) -> str:
    """Beside the target, hidden, and matching neither ``*.json`` nor ``*.lock`` (readers glob those)."""
    temp = f".{name}.tmp~"
    if len(os.fsencode(temp)) <= 255:
        return temp
    return f".{os.urandom(8).hex()}.tmp~"
