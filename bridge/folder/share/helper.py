"""The child that touches the shared folder, so that nobody else has to.

Started as ``python -I -S -X utf8 helper.py ROOT PARENT_PID``: the standard library and this folder only, so a
start costs little and nothing on the share can shadow a module. It reads one batch from stdin, runs its
operations in order, answers on stdout and reads the next. Its laws:

- Every call here may hang for ever; only the parent has a deadline.
- A batch opens the root anew, checks the sentinel through that very descriptor and then uses no other: the
  empty mount point under an unmounted share is never taken for a share whose files were all deleted. So it does with the
  record of whose folder this is (`owner`).
- It dies with its parent: parent-death signal where the kernel has one, end of stdin everywhere.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__" and not __package__:
    # Run by its path: the relative imports below get a package that is this folder and nothing above it, so
    # rigbus itself (and what it needs) is never imported here.
    __package__ = "rigbus_folder_helper"
    sys.modules[__package__] = type(sys)(__package__)
    sys.modules[__package__].__path__ = [os.path.dirname(os.path.abspath(__file__))]

from .beneath import CHUNK_BYTES, READ_FLAGS, WRITE_FLAGS, OpError, open_regular, write_all
from .frames import HEAD, leave_blobs, pack, take_blobs
from .newcomers import newcomers
from .owner import Owned, hold
from .share import Share

SENTINEL = ".rigbus-folder-id"
SENTINEL_NOTE = "Keep this file: it tells rigbus a mounted share from an empty mount point.\n"


def identify(root: int, make: bool) -> str:
    """The share's id from its sentinel; made on first use, so that two bridges agree on one winner."""
    try:
        file, _ = open_regular(SENTINEL, root, READ_FLAGS, SENTINEL)
    except FileNotFoundError:
        if not make:
            raise OpError("ENOENT", f"{SENTINEL} is missing from the share") from None
    else:
        try:
            found = os.read(file, 200).decode("ascii", "replace").split("\n")[0].strip()
        finally:
            os.close(file)
        if found:
            return found
        raise OpError("EINVAL", f"{SENTINEL} in the share is empty")
    temp = f"{SENTINEL}.{os.getpid()}.tmp~"
    file = os.open(temp, WRITE_FLAGS | os.O_TRUNC, 0o664, dir_fd=root)
    try:
        write_all(file, f"{os.urandom(16).hex()}\n{SENTINEL_NOTE}".encode())
        os.fsync(file)
    finally:
        os.close(file)
    try:
        os.link(temp, SENTINEL, src_dir_fd=root, dst_dir_fd=root)  # fails where one exists, unlike a rename
        os.unlink(temp, dir_fd=root)
    except FileExistsError:
        os.unlink(temp, dir_fd=root)
    except OSError:  # no hard links here (FAT, some FUSE and SMB mounts)
        os.rename(temp, SENTINEL, src_dir_fd=root, dst_dir_fd=root)
    os.fsync(root)
    return identify(root, make=False)


def _shown_id(root: int) -> str:
    """The share's id; "" where there is no sentinel, or none that is whole."""
    try:
        return identify(root, make=False)
    except OpError:
        return ""


def fault(error: BaseException, where: str) -> dict[str, Any]:
    """An exception as it travels; ``where`` is the path that the operation named."""
    if isinstance(error, OpError):
        said = {"ok": False, "errno": error.code, "what": str(error)}
        return said | {"owner": error.record} if isinstance(error, Owned) else said
    if isinstance(error, OSError):
        code = errno.errorcode.get(error.errno or 0, "EIO")
        return {"ok": False, "errno": code, "what": f"{where}: {error.strerror}"}
    return {"ok": False, "errno": "EINVAL", "what": f"{where}: {type(error).__name__}: {error}"}


OPS: dict[str, Callable[..., dict[str, Any]]] = {
    "scan": Share.scan,
    "newcomers": newcomers,
    "stat": Share.stat,
    "read": Share.read,
    "write": Share.write,
    "append": Share.append,
    "unlink": Share.unlink,
    "aside": Share.aside,
    "rename": Share.rename,
    "mkdirs": Share.mkdirs,
    "rmdir": Share.rmdir,
    "copy_in": Share.copy_in,
    "copy_out": Share.copy_out,
}


def run_op(share: Share, op: dict[str, Any]) -> dict[str, Any]:
    """One operation; whatever it raises becomes its answer."""
    if share.late():
        return {"ok": False, "errno": "EAGAIN", "what": "not tried: the batch's time was up; ask again"}
    args = dict(op)
    call = OPS.get(str(args.pop("op", "")))
    if call is None:
        return {"ok": False, "errno": "EINVAL", "what": f"unknown operation {op.get('op')!r}"}
    try:
        return {"ok": True, **call(share, **args)}
    except (OpError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return fault(error, str(op.get("path")))


def run_batch(path: str, header: dict[str, Any], body: bytes) -> bytes:
    """Check the sentinel on a fresh descriptor of the root, run the operations, and pack the answer."""
    ticket = header["ticket"]
    try:
        if header.get("create_root"):
            os.makedirs(path, 0o775, exist_ok=True)
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return pack({"ticket": ticket, "fault": fault(error, path)}, [])
    try:
        expected = header.get("folder_id")
        reads_any = expected is None and not header.get("make_id", True)
        found = _shown_id(root) if reads_any else identify(root, make=expected is None)
        if expected is not None and found != expected:
            raise OpError("EXDEV", f"another folder is mounted there ({SENTINEL} says {found})")
        if (claim := header.get("claim")) is not None:
            hold(root, claim)
        ops = header["ops"]
        take_blobs(ops, body)
        share = Share(root, time.monotonic() + float(header["budget_s"]))
        results, blobs = leave_blobs([run_op(share, op) for op in ops])
        return pack({"ticket": ticket, "folder_id": found, "results": results}, blobs)
    except (OpError, OSError) as error:
        return pack({"ticket": ticket, "fault": fault(error, path)}, [])
    finally:
        os.close(root)


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux); elsewhere the end of stdin must do."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request stood
        raise SystemExit(0)


def read_exactly(count: int) -> bytes:
    """``count`` bytes of stdin, or the end of this process: the parent has gone."""
    data = bytearray()
    while len(data) < count:
        piece = os.read(0, min(CHUNK_BYTES, count - len(data)))
        if not piece:
            raise SystemExit(0)
        data += piece
    return bytes(data)


def main(argv: list[str]) -> None:
    """Serve batches until stdin ends."""
    root, parent = argv[1], int(argv[2])
    die_with(parent)
    os.umask(0o002)  # the Pi's user must be able to remove what the rig wrote
    while True:
        head, body = HEAD.unpack(read_exactly(HEAD.size))
        header = json.loads(read_exactly(head))
        try:
            write_all(1, run_batch(root, header, read_exactly(body)))
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main(sys.argv)
