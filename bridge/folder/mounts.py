"""What kind of mount a path lies on, read from the kernel's table: asking the mount itself could hang.
Pure.
"""

from __future__ import annotations

from typing import NamedTuple

SETTLE_LOCAL_S = 3.0
SETTLE_REMOTE_S = 30.0
_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "glusterfs", "virtiofs", "lustre", "beegfs")


class Mount(NamedTuple):
    """``id`` changes with every mount, so a remount shows."""

    id: int
    point: str
    fstype: str


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """The mount that holds the absolute ``path``, by the text of /proc/self/mountinfo; None when unknown."""
    best: Mount | None = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or not kind or not fields[0].isdigit():
            continue
        point = _unescape(fields[4])
        inside = point in ("/", path) or path.startswith(point + "/")
        # A later line with the same point lies on top of the earlier one.
        if inside and (best is None or len(point) >= len(best.point)):
            best = Mount(int(fields[0]), point, kind[0])
    return best


def settle_s(fstype: str) -> float:
    """How long a drop without READY must lie still: remote attribute caches hide changes for seconds."""
    return SETTLE_REMOTE_S if fstype.startswith(_REMOTE) else SETTLE_LOCAL_S


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
