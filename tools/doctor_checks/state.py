"""The rig's private folder: may the database lie there, is there room, how fast is a commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from ...bus.mounts import Mount
from .findings import Finding, Status, size

GROUP: Final = "State folder"
LOW_BYTES: Final = 1 << 30
NO_BYTES: Final = 128 << 20
LOW_INODES: Final = 20_000
NO_INODES: Final = 1_000
SLOW_US: Final = 10_000
UNSYNCED_US: Final = 30
#: Local file systems that keep no owners and modes, or no locks that SQLite can trust.
UNFIT: Final = frozenset({"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfs"})
_MOVE: Final = "choose a folder on a local disk with --state DIR or RIGBUS_STATE"


@dataclass(frozen=True, slots=True)
class StateFacts:
    """What ``folder_probe`` saw. ``above`` is the nearest folder that exists where the state folder does not."""

    exists: bool = True
    real: str = ""
    error: str = ""
    write_error: str = ""
    is_dir: bool = True
    uid: int = 0
    gid: int = 0
    mode: int = 0o700
    above: str = ""
    above_writable: bool = True
    free_bytes: int | None = None
    free_inodes: int | None = None
    fsync_us: Sequence[int] = ()
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    journal: int = 0
    journal_age_s: float = 0.0
    copies: int = 0
    state_id: str = ""
    doctor_left: Sequence[str] = ()


def judge(facts: StateFacts | None, folder: Path, mount: Mount | None, *, me: int) -> list[Finding]:
    """``facts`` is None when the folder did not answer; ``mount`` None where the system does not say."""
    system = _file_system(mount)
    if facts is None:
        fix = "is it on a network mount that is away? " + _MOVE
        return [Finding(GROUP, "folder", "fail", f"{folder} does not answer", fix), *system]
    if not facts.exists:
        return [_missing(facts, folder), *system]
    if not facts.is_dir:
        return [Finding(GROUP, "folder", "fail", f"{folder} is no folder", "remove it, or " + _MOVE)]
    return [_folder(facts, folder, me), *system, *_room(facts), *_speed(facts)]


def _missing(facts: StateFacts, folder: Path) -> Finding:
    if facts.error:
        return Finding(GROUP, "folder", "fail", f"{folder}: {facts.error}", _MOVE)
    if not facts.above_writable:
        fix = f"make it yourself, or {_MOVE}"
        return Finding(GROUP, "folder", "fail", f"{folder} cannot be made in {facts.above}", fix)
    return Finding(GROUP, "folder", "info", f"{folder} is not there: no rig has run here", "rigbus up")


def _folder(facts: StateFacts, folder: Path, me: int) -> Finding:
    if facts.uid != me:
        fix = f"run as that user, or {_MOVE}"
        return Finding(GROUP, "folder", "fail", f"{folder} belongs to user {facts.uid}, you are {me}", fix)
    if facts.error or facts.write_error:
        why = facts.error or facts.write_error
        if why == "ENOSPC":
            return Finding(GROUP, "folder", "fail", f"{folder} is full", "free some space on its disk")
        fix = f"chmod 700 {folder}, or remount its disk writable"
        return Finding(GROUP, "folder", "fail", f"{folder} cannot be written: {why}", fix)
    if facts.mode & 0o077:
        said = f"{folder} has mode {facts.mode:04o}: others can read results and logs"
        return Finding(GROUP, "folder", "warn", said, f"chmod 700 {folder}")
    return Finding(GROUP, "folder", "ok", f"{folder}, mode {facts.mode:04o}")


def _file_system(mount: Mount | None) -> Iterable[Finding]:
    if mount is None:
        yield Finding(GROUP, "file system", "info", "this system does not say")
        return
    said = f"{mount.fstype} ({mount.source} on {mount.point})"
    if mount.network or mount.fstype.startswith("fuse."):
        yield Finding(
            GROUP, "file system", "fail", f"{said}: SQLite's database cannot be kept safe there", _MOVE
        )
    elif mount.fstype in UNFIT:
        yield Finding(GROUP, "file system", "fail", f"{said}: it keeps no private modes or locks", _MOVE)
    elif mount.fstype in ("tmpfs", "ramfs"):
        yield Finding(GROUP, "file system", "warn", f"{said}: everything is lost at a reboot", _MOVE)
    elif "ro" in mount.options:
        yield Finding(
            GROUP, "file system", "fail", f"{said} is read-only", f"mount -o remount,rw {mount.point}"
        )
    else:
        yield Finding(GROUP, "file system", "ok", said)


def _room(facts: StateFacts) -> Iterable[Finding]:
    if facts.free_bytes is not None:
        status = _level(facts.free_bytes, LOW_BYTES, NO_BYTES)
        fix = "free some space: below 512 MiB a rig takes no new tasks (limits.free_mb); logs/ of finished batches may go"
        yield Finding(GROUP, "free space", status, size(facts.free_bytes), "" if status == "ok" else fix)
    if facts.free_inodes is not None:
        status = _level(facts.free_inodes, LOW_INODES, NO_INODES)
        fix = "remove old small files: df -i shows where; logs/ and views/ have many"
        yield Finding(GROUP, "free inodes", status, f"{facts.free_inodes:,}", "" if status == "ok" else fix)


def _level(found: int, low: int, none: int) -> Status:
    return "fail" if found < none else "warn" if found < low else "ok"


def _speed(facts: StateFacts) -> Iterable[Finding]:
    if not facts.fsync_us:
        return
    middle = median(facts.fsync_us)
    said = f"fsync of 4 KiB {middle / 1000:.2g} ms (median of {len(facts.fsync_us)})"
    if middle > SLOW_US:
        fix = 'put the state folder on an SSD, or set durability = "normal" (safe after a crash, not a power cut)'
        yield Finding(GROUP, "fsync", "warn", f"{said}: each round of the broker waits for one", fix)
    elif middle < UNSYNCED_US:
        yield Finding(GROUP, "fsync", "info", f"{said}: so fast that nothing may reach a disk")
    else:
        yield Finding(GROUP, "fsync", "ok", said)
