"""The shared folder: how it is mounted, what it can do, who may write, whether the rig's news are fresh."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...bus.mounts import Mount
from ..render import duration
from .findings import Finding, Status, size

GROUP: Final = "Shared folder"
STALE_S: Final = 60.0  #: as file mode has it (tools.files)
SKEW_S: Final = 5.0
LOW_BYTES: Final = 512 << 20
LATE_S: Final = 30
_CACHE: Final = re.compile(r"(?:actimeo|acregmax|acdirmax)=([0-9]+)\Z")
_UNIX_NAMES: Final = frozenset({"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfs", "hfsplus"})


@dataclass(frozen=True, slots=True)
class ShareFacts:
    """What ``folder_probe`` saw. ``skew_s``: the share's clock less ours, exact to ``round_s``."""

    exists: bool = True
    real: str = ""
    error: str = ""
    is_dir: bool = True
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    free_bytes: int | None = None
    free_inodes: int | None = None
    is_share: bool = True
    sentinel: bool = True
    write_error: str = ""
    left: str = ""
    skew_s: float = 0.0
    round_s: float = 0.0
    case_folds: bool = False
    rename_error: str | None = None
    names: str = "kept"
    news_age_s: float | None = None
    incoming: Sequence[str] = ()
    unanswered: int = 0
    unanswered_age_s: float = 0.0
    doctor_left: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine is to the share. ``rig``: its rig runs here; ``own``: it is the default, inside the state folder."""

    rig: bool = True
    own: bool = False
    user: str = "you"


def judge(
    facts: ShareFacts | None,
    folder: Path,
    mount: Mount | None,
    here: Here,
    names: Callable[[int, int], tuple[str, str]],
) -> list[Finding]:
    """``facts`` is None when the folder did not answer in time; ``names(uid, gid)`` are those of user and group."""
    mounted = list(judge_mount(mount))
    if facts is None:
        at = mount.point if mount else folder
        fix = f"is its server up? then: umount -l {at} and mount it again"
        return [Finding(GROUP, "folder", "fail", f"{folder} does not answer: a hung mount", fix), *mounted]
    first = _folder(facts, folder, here)
    if first.status == "fail" or not facts.exists:
        return [first, *mounted]
    return [
        first,
        *mounted,
        *_writing(facts, folder, here),
        _trust(facts, folder, here, names),
        *_abilities(facts),
        *_news(facts, here),
        *_room(facts),
    ]


def _folder(facts: ShareFacts, folder: Path, here: Here) -> Finding:
    if not facts.exists and not facts.error:
        if here.own:
            return Finding(GROUP, "folder", "info", f"{folder} is not there yet", "rigbus up makes it")
        fix = "mount it, or name another with --shared DIR or RIGBUS_SHARED"
        return Finding(GROUP, "folder", "fail", f"{folder} is not there", fix)
    if facts.error in ("ESTALE", "EIO", "ENOTCONN", "EHOSTDOWN"):
        fix = "mount it again: the server has forgotten this mount, or is gone"
        return Finding(GROUP, "folder", "fail", f"{folder} cannot be read: {facts.error}", fix)
    if facts.error:
        fix = f"give {here.user} read access, or run as a user who has it"
        return Finding(GROUP, "folder", "fail", f"{folder} cannot be read: {facts.error}", fix)
    if not facts.is_dir:
        return Finding(GROUP, "folder", "fail", f"{folder} is no folder", "name a folder with --shared DIR")
    if facts.is_share and not facts.sentinel:
        fix = "is the share mounted? if it is, restart the bridge: it makes the file anew"
        said = f"{folder} has a rig's folders but no .rigbus-folder-id"
        return Finding(GROUP, "folder", "warn", said, fix)
    if not facts.is_share:
        fix = "is it mounted? if it is new: rigbus up --shared DIR makes its folders"
        return Finding(GROUP, "folder", "warn" if here.rig else "info", f"{folder}: no rig has used it", fix)
    return Finding(GROUP, "folder", "ok", str(folder))


def judge_mount(mount: Mount | None) -> Iterable[Finding]:
    """Its type, and what its options mean for plans."""
    if mount is None:
        yield Finding(GROUP, "mount", "info", "this system does not say how it is mounted")
        return
    kind = "network" if mount.network else "local"
    said = f"{mount.fstype}, {kind} ({mount.source} on {mount.point})"
    yield Finding(GROUP, "mount", "ok", said)
    options = set(mount.options)
    if mount.fstype.startswith("nfs"):
        yield from _nfs(mount, options)
    elif mount.fstype in ("cifs", "smb3") and "cache=loose" in options:
        fix = "mount with cache=strict"
        yield Finding(GROUP, "cache", "warn", "cache=loose: two machines see different files", fix)
    elif mount.fstype == "fuse.sshfs":
        fix = "mount with -o reconnect,ServerAliveInterval=15, or a lost line hangs every reader"
        yield Finding(GROUP, "sshfs", "info", "whether it reconnects cannot be seen", fix)
    elif mount.fstype in _UNIX_NAMES:
        fix = "use ext4, xfs or btrfs; here names are folded and links and modes are missing"
        yield Finding(GROUP, "file system", "warn", f"{mount.fstype} is no Unix file system", fix)
    elif mount.fstype in ("tmpfs", "ramfs"):
        fix = "put it on a disk if results are to stay"
        yield Finding(GROUP, "file system", "info", "it is gone after a reboot", fix)


def _nfs(mount: Mount, options: set[str]) -> Iterable[Finding]:
    if options & {"soft", "softerr"}:
        fix = "mount with hard: rigbus has deadlines of its own and waits without harm"
        said = "soft: a slow server becomes an I/O error in the middle of a file"
        yield Finding(GROUP, "soft or hard", "warn", said, fix)
    else:
        yield Finding(GROUP, "soft or hard", "ok", "hard")
    seconds = [int(match[1]) for option in options if (match := _CACHE.match(option))]
    if "noac" in options:
        fix = "mount with actimeo=3 instead"
        yield Finding(GROUP, "attributes", "info", "noac: never late, but every look asks the server", fix)
    elif seconds and max(seconds) <= LATE_S:
        yield Finding(GROUP, "attributes", "ok", f"cached for at most {max(seconds)} s")
    else:
        late = max(seconds) if seconds else 60
        status: Status = "warn" if seconds else "info"
        said = f"cached for up to {late} s: drops and news are seen that late"
        yield Finding(GROUP, "attributes", status, said, "mount with actimeo=3")


def _writing(facts: ShareFacts, folder: Path, here: Here) -> Iterable[Finding]:
    status: Status = "fail" if here.rig else "warn"
    if facts.write_error == "EROFS":
        fix = "mount it read-write (mount -o remount,rw); without that nothing can be submitted from here"
        yield Finding(GROUP, "writable", status, "read-only", fix)
    elif facts.write_error in ("ENOSPC", "EDQUOT"):
        yield Finding(
            GROUP, "writable", "fail", "full, or over its quota", "remove old batches, or raise the quota"
        )
    elif facts.write_error:
        fix = f"let {here.user} write: chgrp and chmod g+w {folder}, or the server's export options"
        yield Finding(GROUP, "writable", status, f"not by {here.user}: {facts.write_error}", fix)
    else:
        yield Finding(GROUP, "writable", "ok", f"by {here.user}")
    if facts.left:
        yield Finding(GROUP, "probe", "warn", f"{facts.left} could not be removed", f"rm -r {facts.left}")


def _trust(
    facts: ShareFacts, folder: Path, here: Here, names: Callable[[int, int], tuple[str, str]]
) -> Finding:
    user, group = names(facts.uid, facts.gid)
    who = [user] + ([f"group {group}"] if facts.mode & 0o020 else [])
    rig = f"as {here.user} here" if here.rig else "on the rig"
    if facts.mode & 0o002:
        said = f"everybody on this machine can write, and so run commands {rig}"
        return Finding(GROUP, "trust", "warn", said, f"chmod o-w {folder}")
    said = f"{' and '.join(who)} can write (mode {facts.mode:04o}), and so run commands {rig}"
    return Finding(GROUP, "trust", "info", said)


def _abilities(facts: ShareFacts) -> Iterable[Finding]:
    if facts.write_error:
        return
    skew = abs(facts.skew_s)
    if skew - facts.round_s > SKEW_S:
        way = "ahead of" if facts.skew_s > 0 else "behind"
        said = f"the share's clock is {duration(skew)} {way} ours"
        fix = "timedatectl set-ntp true on both; the rig does not need it, file mode's ages do"
        yield Finding(GROUP, "clock", "warn", said, fix)
    else:
        said = f"the share's and ours agree within {max(0.1, skew, facts.round_s):.1f} s"
        yield Finding(GROUP, "clock", "ok", said)
    if facts.rename_error:
        fix = "use another kind of mount: readers here could see half-written files"
        yield Finding(GROUP, "rename", "fail", f"a file cannot replace another: {facts.rename_error}", fix)
    else:
        yield Finding(GROUP, "rename", "ok", "atomic")
    yield _names(facts)


def _names(facts: ShareFacts) -> Finding:
    if facts.case_folds:
        fix = "give plans names that differ in more than case, or use a case-sensitive file system"
        return Finding(GROUP, "names", "warn", "capital and small letters are the same", fix)
    if facts.names == "refused":
        fix = "mount with UTF-8 names (iocharset=utf8), or keep to plain letters"
        return Finding(GROUP, "names", "warn", "names with accents are refused", fix)
    if facts.names in ("changed", "folded"):
        fix = "keep to plain letters in the names of plans and items"
        return Finding(GROUP, "names", "warn", f"accents are normalised ({facts.names})", fix)
    return Finding(GROUP, "names", "ok", "kept as they are written")


def _news(facts: ShareFacts, here: Here) -> Iterable[Finding]:
    age = facts.news_age_s
    if age is None:
        if facts.is_share:
            yield Finding(GROUP, "news", "info", "no bridge has written here yet", "rigbus up, on the rig")
    elif age > STALE_S:
        fix = "rigbus up" if here.rig else "look at the rig: is it up, does its bridge reach this folder?"
        yield Finding(GROUP, "news", "warn", f"the bridge last wrote {duration(age)} ago", fix)
    else:
        yield Finding(GROUP, "news", "ok", f"the bridge wrote {duration(age)} ago")
    if facts.unanswered:
        said = f"{facts.unanswered} requests without an answer, the oldest {duration(facts.unanswered_age_s)} old"
        fix = "they run when the rig's bridge is back; remove inbox/.requests/*.json to forget them"
        yield Finding(GROUP, "requests", "warn", said, fix)


def _room(facts: ShareFacts) -> Iterable[Finding]:
    if facts.free_bytes is not None:
        low = facts.free_bytes < LOW_BYTES
        fix = "remove old batches under plans/*/batches" if low else ""
        yield Finding(GROUP, "free space", "warn" if low else "ok", size(facts.free_bytes), fix)
