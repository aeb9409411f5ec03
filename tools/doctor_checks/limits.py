"""The system's limits for this user: open files and processes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .findings import Finding, Status

GROUP: Final = "Limits"
LOW_FILES: Final = 1024
NO_FILES: Final = 128
LOW_PROCESSES: Final = 256
_UNLIMITED: Final = resource.RLIM_INFINITY


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """Soft limits, None where there is none. ``running`` are this user's processes, None where nobody counts them."""

    files: int | None = 1024
    processes: int | None = None
    running: int | None = None
    root: bool = False


def gather() -> LimitFacts:
    """The limits of this process, which those that it starts inherit."""
    me = os.geteuid()
    try:
        running = sum(
            entry.stat(follow_symlinks=False).st_uid == me
            for entry in os.scandir("/proc")
            if entry.name.isdigit()
        )
    except OSError:
        running = None
    processes = getattr(resource, "RLIMIT_NPROC", None)
    return LimitFacts(
        files=_soft(resource.RLIMIT_NOFILE),
        processes=_soft(processes) if processes is not None else None,
        running=running,
        root=me == 0,
    )


def _soft(kind: int) -> int | None:
    value = resource.getrlimit(kind)[0]
    return None if value == _UNLIMITED else value


def judge(facts: LimitFacts) -> Iterable[Finding]:
    """Open files, then processes."""
    if facts.files is None or facts.files >= LOW_FILES:
        said = "no limit" if facts.files is None else f"{facts.files:,}"
        yield Finding(GROUP, "open files", "ok", said)
    else:
        status: Status = "fail" if facts.files < NO_FILES else "warn"
        fix = "ulimit -n 4096 before rigbus up; a broker needs one a peer, a worker some a task"
        yield Finding(GROUP, "open files", status, f"{facts.files}", fix)
    running = "" if facts.running is None else f", {facts.running:,} running"
    if facts.root or facts.processes is None:
        yield Finding(GROUP, "processes", "ok", f"no limit{running}")
    elif facts.running is not None and facts.processes - facts.running < LOW_PROCESSES:
        fix = f"ulimit -u {facts.processes + 4096}, or a higher nproc in /etc/security/limits.conf"
        yield Finding(GROUP, "processes", "warn", f"{facts.processes:,}{running}", fix)
    else:
        yield Finding(GROUP, "processes", "ok", f"{facts.processes:,}{running}")
    if facts.root:
        fix = "a user of its own is safer: every command of every plan runs as this one"
        yield Finding(GROUP, "user", "warn", "root", fix)
