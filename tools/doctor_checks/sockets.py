"""The folder of the rig's sockets: short enough for a Unix socket, and ours alone."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .findings import Finding

GROUP: Final = "Sockets"
#: Bytes of a Unix socket's path (wire.IPC_PATH_MAX; that file loads msgpack).
PATH_MAX: Final = 107
LONGEST: Final = "heartbeats"


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """The runtime folder: ``exists`` false where there is none yet; ``uid`` and ``mode`` of the thing itself."""

    path: Path
    exists: bool = True
    is_dir: bool = True
    uid: int = 0
    mode: int = 0o700


def gather(runtime: Path) -> RuntimeFacts:
    """The facts of a runtime folder; links are not followed."""
    try:
        info = os.lstat(runtime)
    except OSError:
        return RuntimeFacts(runtime, exists=False)
    return RuntimeFacts(runtime, True, stat.S_ISDIR(info.st_mode), info.st_uid, stat.S_IMODE(info.st_mode))


def judge(facts: RuntimeFacts, *, me: int) -> list[Finding]:
    """The length of the longest path, then the folder itself."""
    return [_length(facts.path), _folder(facts, me)]


def _length(runtime: Path) -> Finding:
    longest = runtime / LONGEST
    length = len(os.fsencode(longest))
    if length > PATH_MAX:
        fix = "set RIGBUS_RUNTIME to a short folder of yours, such as /run/user/1000 or /tmp/rb"
        return Finding(GROUP, "path", "fail", f"{longest} has {length} bytes, {PATH_MAX} are allowed", fix)
    return Finding(GROUP, "path", "ok", f"{longest}, {length} of {PATH_MAX} bytes")


def _folder(facts: RuntimeFacts, me: int) -> Finding:
    other = "or set RIGBUS_RUNTIME to another folder"
    if not facts.exists:
        return Finding(GROUP, "folder", "ok", "not there yet; `rigbus up` makes it")
    if not facts.is_dir:
        return Finding(GROUP, "folder", "fail", f"{facts.path} is no folder", f"remove it, {other}")
    if facts.uid != me:
        said = f"{facts.path} belongs to user {facts.uid}, you are {me}"
        return Finding(GROUP, "folder", "fail", said, f"run as that user, {other}")
    if facts.mode & 0o077:
        said = f"{facts.path} has mode {facts.mode:04o}: others could send commands to the rig"
        return Finding(GROUP, "folder", "fail", said, f"chmod 700 {facts.path}")
    return Finding(GROUP, "folder", "ok", f"{facts.path}, mode {facts.mode:04o}")
