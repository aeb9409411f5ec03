"""Which file system a path lies on, from /proc/self/mountinfo. Standard library only.

The rig's database must lie on a local disk: SQLite's WAL needs memory shared between processes and locks that hold,
and a network file system promises neither. The shared folder may lie anywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .errors import ConfigError

#: how long a drop without READY must lie still: caches hide changes for seconds
LOCAL_SETTLE_S: Final = 3.0
NETWORK_SETTLE_S: Final = 30.0

MOUNTINFO: Final = Path("/proc/self/mountinfo")

_KERNEL: Final = (
    "nfs",
    "nfs4",
    "cifs",
    "smb2",
    "smb3",
    "smbfs",
    "ncpfs",
    "afs",
    "coda",
    "9p",
    "ceph",
    "glusterfs",
    "lustre",
    "beegfs",
    "gpfs",
    "pvfs2",
    "orangefs",
    "davfs",
)
_FUSE: Final = (
    "sshfs",
    "rclone",
    "glusterfs",
    "ceph",
    "ceph-fuse",
    "davfs2",
    "davfs",
    "s3fs",
    "gcsfuse",
    "goofys",
    "smbnetfs",
    "curlftpfs",
    "juicefs",
    "moosefs",
    "mfs",
    "gvfsd-fuse",
    "nfs",
    "grpcfuse",
    "osxfs",
)
NETWORK_TYPES: Final = frozenset(_KERNEL) | {f"fuse.{name}" for name in _FUSE}


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: where it is, its kernel type (``ext4``, ``nfs4``, ``fuse.sshfs``) and what is mounted.

    ``options`` are those of the mount and of its file system (``rw``, ``soft``, ``acregmax=3``); they tell no two
    mounts apart.
    """

    point: str
    fstype: str
    source: str
    options: tuple[str, ...] = field(default=(), compare=False)
    id: int = 0  #: of this very mount: the same place mounted anew has another

    @property
    def late(self) -> bool:
        """What others write there may show only after a while: caches of the network and of FUSE processes."""
        return self.network or self.fstype.startswith(("fuse", "virtiofs"))

    @property
    def network(self) -> bool:
        """Other machines write to it too."""
        return self.fstype in NETWORK_TYPES


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in the kernel's order (proc(5)); lines of another shape are left out."""
    mounts = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if dash and len(fields) >= 6 and len(tail) >= 2:
            options = tuple(dict.fromkeys([*fields[5].split(","), *"".join(tail[2:3]).split(",")]))
            mounts.append(
                Mount(_unescape(fields[4]), tail[0], _unescape(tail[1]), options, _number(fields[0]))
            )
    return mounts


def find_mount(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount that holds the absolute ``path``: the longest mount point, of equal ones the later (it covers)."""
    best: Mount | None = None
    for mount in mounts:
        point = mount.point.rstrip("/")
        inside = path == point or path.startswith(point + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def mount_of(path: Path, *, resolve: bool = True) -> Mount | None:
    """The mount of ``path`` (which need not exist yet); None where the system does not say (not Linux).

    With ``resolve=False`` links are not followed and the path itself is never touched, for a share that may hang.
    """
    try:
        text = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    where = os.path.realpath(path) if resolve else os.path.abspath(path)
    return find_mount(parse_mountinfo(text), where)


def is_network_fs(path: Path, *, resolve: bool = True) -> bool:
    """``path`` lies on a network file system, as far as the kernel says."""
    mount = mount_of(path, resolve=resolve)
    return mount is not None and mount.network


def require_local(state: Path) -> None:
    """Refuse a state folder that cannot hold the database.

    Raises:
        ConfigError: it lies on a network file system.
    """
    mount = mount_of(state)
    if mount is not None and mount.network:
        raise ConfigError(
            f"the state folder {state} lies on {mount.fstype} ({mount.source} on {mount.point}), where the database "
            "cannot be kept safe; choose a folder on a local disk with --state DIR or RIGBUS_STATE"
        )
