"""A file system that fails on demand: a FUSE pass-through that speaks the kernel's protocol itself (fuse(4), ABI 7.31).

Run as ``python fusefs.py BACKING MOUNTPOINT CACHE_S``; each line on its stdin is a mode: ``ok``, the name of an errno,
``hang`` (nothing is answered until another mode), ``slow``. EROFS and ENOSPC fail what writes, other errnos everything.
``CACHE_S``: for so long the kernel may believe attributes and names. Needs root and Linux; :func:`fuse_mount` skips a
test where there is none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

(
    LOOKUP,
    FORGET,
    GETATTR,
    SETATTR,
    READLINK,
    SYMLINK,
    MKNOD,
    MKDIR,
    UNLINK,
    RMDIR,
    RENAME,
    LINK,
    OPEN,
    READ,
    WRITE,
) = (
    *range(1, 7),
    *range(8, 17),
)
STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = (
    17,
    18,
    20,
    25,
    26,
    27,
    28,
    29,
    30,
)
ACCESS, CREATE, INTERRUPT, DESTROY, BATCH_FORGET, RENAME2 = 34, 35, 36, 38, 42, 45
QUIET = frozenset({FORGET, INTERRUPT, BATCH_FORGET})  # the kernel wants no answer
ALWAYS = QUIET | {INIT, RELEASE, RELEASEDIR, DESTROY}
ROOMY = frozenset({SYMLINK, MKNOD, MKDIR, LINK, WRITE, CREATE})  # what a full disk refuses
CHANGING = ROOMY | {SETATTR, UNLINK, RMDIR, RENAME, RENAME2}
ROOT, WRITE_MAX, SLOW_S = 1, 128 << 10, 0.01
MODE_MODIFY, MODE_SIZE, MODE_ATIME, MODE_MTIME, ATIME_NOW, MTIME_NOW = 1, 8, 16, 32, 128, 256


class Passing:
    """The pass-through: nodes are paths below the backing folder."""

    def __init__(self, backing: str, device: int, cache_s: int) -> None:
        self.backing, self.device, self.cache_s = backing, device, cache_s
        self.paths: dict[int, str] = {ROOT: ""}
        self.nodes: dict[str, int] = {"": ROOT}
        self.mode = "ok"
        self.held: list[bytes] = []

    # -- the loop

    def serve(self) -> None:
        """Until it is unmounted, or stdin ends."""
        os.set_blocking(0, False)
        while True:
            ready, _, _ = select.select([self.device, 0], [], [])
            if 0 in ready:
                said = os.read(0, 4096)
                if not said:
                    return
                self.mode = said.decode().split()[-1]
                if self.mode != "hang":
                    held, self.held = self.held, []
                    for request in held:
                        self.answer(request)
                os.write(1, b".")
            if self.device in ready:
                try:
                    request = os.read(self.device, WRITE_MAX + 4096)
                except OSError as e:
                    if e.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                        continue
                    return  # unmounted
                if self.mode == "hang" and struct.unpack_from("<I", request, 4)[0] not in ALWAYS:
                    self.held.append(request)
                else:
                    self.answer(request)

    def answer(self, request: bytes) -> None:
        _, op, unique, node = struct.unpack_from("<IIQQ", request)
        if self.mode == "slow":
            time.sleep(SLOW_S)  # nothing is waited for: this is how slow it is
        code, data = 0, b""
        try:
            if op not in ALWAYS and self.refuses(op, request[40:]):
                raise OSError(getattr(errno, self.mode), "")
            data = self.do(op, node, request[40:])
        except OSError as e:
            code = -(e.errno or errno.EIO)
        if op not in QUIET:
            with suppress(OSError):  # the one who asked has been killed
                os.write(self.device, struct.pack("<IiQ", 16 + len(data), code, unique) + data)

    def refuses(self, op: int, body: bytes) -> bool:
        if self.mode in ("ok", "slow"):
            return False
        if self.mode == "ENOSPC":
            return op in ROOMY
        if self.mode == "EROFS":
            return op in CHANGING or (
                op == OPEN and struct.unpack_from("<I", body)[0] & os.O_ACCMODE != os.O_RDONLY
            )
        return True

    # -- names

    def path(self, node: int, name: bytes = b"") -> str:
        inside = self.paths.get(node)
        if inside is None:
            raise OSError(errno.ESTALE, "")
        tail = f"/{os.fsdecode(name)}" if name else ""
        return f"{self.backing}{inside}{tail}"

    def entry(self, path: str) -> bytes:
        info = os.lstat(path)
        inside = path[len(self.backing) :]
        node = self.nodes.setdefault(inside, len(self.paths) + ROOT + 1)
        self.paths[node] = inside
        return struct.pack("<QQQQII", node, 0, self.cache_s, self.cache_s, 0, 0) + attributes(info)

    def moved(self, old: str, new: str) -> None:
        """Known nodes at or below ``old`` are at ``new`` now."""
        cut = len(self.backing)
        was, now = old[cut:], new[cut:]
        gone = self.nodes.pop(now, None)
        if gone is not None:
            self.paths[gone] = f"/.gone-{gone}"
        for inside, node in list(self.nodes.items()):
            if inside == was or inside.startswith(f"{was}/"):
                del self.nodes[inside]
                moved = now + inside[len(was) :]
                self.nodes[moved], self.paths[node] = node, moved

    def forget(self, path: str) -> None:
        node = self.nodes.pop(path[len(self.backing) :], None)
        if node is not None:
            self.paths[node] = f"/.gone-{node}"

    # -- operations

    def do(self, op: int, node: int, body: bytes) -> bytes:
        if op == INIT:
            out = struct.pack("<IIIIHHI", 7, 31, 1 << 17, 1 << 5, 12, 9, WRITE_MAX)  # 1 << 5: big writes
            return out + struct.pack("<IHHI", 1, 0, 0, 0) + bytes(28)
        if op in QUIET or op in (DESTROY, ACCESS, FLUSH, FSYNCDIR):
            return b""
        named = self.named(op, node, body)
        if named is not None:
            return named
        if op in (OPEN, OPENDIR):
            flags = struct.unpack_from("<I", body)[0] if op == OPEN else os.O_RDONLY | os.O_DIRECTORY
            fd = os.open(self.path(node), flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
            return struct.pack("<QII", fd, 0, 0)
        if op == GETATTR:
            return struct.pack("<QII", self.cache_s, 0, 0) + attributes(os.lstat(self.path(node)))
        if op == SETATTR:
            return self.set_attributes(self.path(node), body)
        if op == READLINK:
            return os.fsencode(os.readlink(self.path(node)))
        if op == STATFS:
            s = os.statvfs(self.backing)
            sizes = (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, 255, s.f_frsize, 0)
            return struct.pack("<QQQQQIIII", *sizes) + bytes(24)
        return self.opened(op, body)

    def named(self, op: int, node: int, body: bytes) -> bytes | None:
        """What has a name in a folder; None for another operation."""
        skip = {MKNOD: 16, MKDIR: 8, CREATE: 16, RENAME: 8, RENAME2: 16, LINK: 8}.get(op, 0)
        if op not in (LOOKUP, SYMLINK, UNLINK, RMDIR) and not skip:
            return None
        name, _, rest = body[skip:].partition(b"\0")
        if op == LINK:
            path = self.path(node, name)
            os.link(self.path(struct.unpack_from("<Q", body)[0]), path)
            return self.entry(path)
        path = self.path(node, name)
        if op in (RENAME, RENAME2):
            to = self.path(struct.unpack_from("<Q", body)[0], rest.partition(b"\0")[0])
            if op == RENAME2 and struct.unpack_from("<I", body, 8)[0]:
                raise OSError(errno.EINVAL, "")  # flags: the caller has another way
            os.rename(path, to)
            self.moved(path, to)
            return b""
        if op in (UNLINK, RMDIR):
            (os.unlink if op == UNLINK else os.rmdir)(path)
            self.forget(path)
            return b""
        if op == SYMLINK:
            os.symlink(rest.partition(b"\0")[0], path)
        elif op == MKDIR:
            os.mkdir(path, struct.unpack_from("<I", body)[0] & 0o7777)
        elif op == MKNOD:
            os.mknod(path, struct.unpack_from("<I", body)[0])
        elif op == CREATE:
            flags, mode = struct.unpack_from("<II", body)
            fd = os.open(path, flags | os.O_CREAT, mode & 0o7777)
            return self.entry(path) + struct.pack("<QII", fd, 0, 0)
        return self.entry(path)

    def opened(self, op: int, body: bytes) -> bytes:
        """What has a descriptor, which is ours."""
        if op == WRITE:
            fd, offset, size = struct.unpack_from("<QQI", body)
            return struct.pack("<II", os.pwrite(fd, body[40 : 40 + size], offset), 0)
        if op == READ:
            fd, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(fd, size, offset)
        if op == READDIR:
            fd, offset, size = struct.unpack_from("<QQI", body)
            return listing(fd, offset, size)
        if op in (RELEASE, RELEASEDIR):
            os.close(struct.unpack_from("<Q", body)[0])
            return b""
        if op == FSYNC:
            os.fsync(struct.unpack_from("<Q", body)[0])
            return b""
        raise OSError(errno.ENOSYS, "")

    def set_attributes(self, path: str, body: bytes) -> bytes:
        fields = struct.unpack_from("<IIQQQQQQIIIIIIII", body)
        valid, size, atime, mtime = fields[0], fields[3], fields[5], fields[6]
        if valid & MODE_MODIFY:
            os.chmod(path, fields[11] & 0o7777)
        if valid & MODE_SIZE:
            os.truncate(path, size)
        if valid & (MODE_ATIME | MODE_MTIME):
            info, now = os.lstat(path), time.time_ns()
            given = (atime * 10**9 + fields[8], mtime * 10**9 + fields[9])
            old, news = (info.st_atime_ns, info.st_mtime_ns), (ATIME_NOW, MTIME_NOW)
            times = [
                now if valid & news[i] else given[i] if valid & (MODE_ATIME, MODE_MTIME)[i] else old[i]
                for i in (0, 1)
            ]
            os.utime(path, ns=(times[0], times[1]), follow_symlinks=False)
        return struct.pack("<QII", self.cache_s, 0, 0) + attributes(os.lstat(path))


def attributes(info: os.stat_result) -> bytes:
    times = [divmod(ns, 10**9) for ns in (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)]
    return struct.pack(
        "<QQQQQQIIIIIIIIII",
        *(info.st_ino, info.st_size, info.st_blocks, *(t[0] for t in times), *(t[1] for t in times)),
        *(info.st_mode, info.st_nlink, info.st_uid, info.st_gid, 0, 4096, 0),
    )


def listing(fd: int, offset: int, size: int) -> bytes:
    """Entries of a folder from ``offset`` on, as many as fit."""
    out = b""
    with os.scandir(fd) as found:
        for n, one in enumerate(sorted(found, key=lambda e: e.name)[offset:], offset + 1):
            name = os.fsencode(one.name)
            kind = stat.S_IFMT(one.stat(follow_symlinks=False).st_mode) >> 12
            row = struct.pack("<QQII", one.inode(), n, len(name), kind) + name
            row += bytes(-len(row) % 8)
            if len(out) + len(row) > size:
                break
            out += row
    return out


def main(backing: str, point: str, cache_s: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"rigbus-test", point.encode(), b"fuse", 0, options.encode()):
        raise SystemExit(f"no mount: {os.strerror(ctypes.get_errno())}")
    os.write(1, b"!")
    Passing(backing, device, int(cache_s)).serve()


class Mount:
    """One mount; ``set`` changes its mode and returns when it has."""

    def __init__(self, point: Path, process: subprocess.Popen[bytes]) -> None:
        self.point, self._process = point, process

    def set(self, mode: str) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(mode.encode() + b"\n")
        stdin.flush()
        assert os.read(stdout.fileno(), 1) == b".", "the file system has ended"


@contextmanager
def fuse_mount(backing: Path, point: Path, *, cache_s: int = 0) -> Iterator[Mount]:
    """``backing``, seen through ``point``; the test is skipped where that cannot be."""
    import pytest

    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs root and /dev/fuse")
    point.mkdir()
    words: list[Any] = [sys.executable, __file__, backing, point, str(cache_s)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdin is not None
        if os.read(process.stdout.fileno(), 1) != b"!":
            pytest.skip("no FUSE mounts here")
        yield Mount(point, process)
    finally:
        process.kill()  # its descriptor goes with it, and whoever hung there gets ENOTCONN
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        subprocess.run(["umount", "-l", str(point)], capture_output=True, check=False)


if __name__ == "__main__":
    main(*sys.argv[1:4])
