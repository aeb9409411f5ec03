"""What is new in a lane, found without looking at each of 100,000 files. Runs inside the helper.

Tasks of this rig have ids of UUID version 5, files of people and of the earlier system's scripts have others: the
name alone tells them apart. Names that look like ours are *doubts*: almost always the mirror's own files, and only
a few of them are shown at a time.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from .beneath import open_dir, split
from .share import Share, row

_OURS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.json\Z")


def is_task_name(name: str) -> bool:
    """A name that readers of a lane take for a task: no lock, no sidecar, nothing hidden or temporary."""
    return (
        name.endswith(".json")
        and not name.startswith(".")
        and not name.endswith((".heartbeat.json", ".receipt.json"))
    )


def newcomers(
    share: Share, path: str, *, after: str = "", budget: int = 500, doubts_after: str = "", doubts: int = 0
) -> dict[str, Any]:
    """Entries of names that are not ours, in name order after ``after``, at most ``budget``; ``next`` continues.

    ``doubts`` bounds the entries of names that look like ours, after ``doubts_after``; ``doubts_next`` continues.
    ``took_s`` is the share's own time.
    """
    began = time.monotonic()
    fd = open_dir(share.root, split(path), follow=True)
    try:
        theirs: list[str] = []
        ours: list[str] = []
        for name in os.listdir(fd):
            if is_task_name(name):
                (ours if _OURS.match(name) else theirs).append(name)
        found, following = _some(share, fd, theirs, after, budget)
        doubtful, doubts_following = _some(share, fd, ours, doubts_after, doubts)
    finally:
        os.close(fd)
    return {
        "entries": found,
        "next": following,
        "doubtful": doubtful,
        "doubts_next": doubts_following,
        "took_s": time.monotonic() - began,
    }


def _some(share: Share, fd: int, names: list[str], after: str, budget: int) -> tuple[list[list[Any]], str]:
    """The entries of the first names after ``after``, and where to go on ("" at the end)."""
    if budget <= 0:
        return [], after
    left = sorted(name for name in names if name > after)
    out: list[list[Any]] = []
    for n, name in enumerate(left[:budget]):
        if n and share.late():
            return out, left[n - 1]
        try:
            out.append(row(name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
        except FileNotFoundError:
            continue
    return out, left[budget - 1] if len(left) > budget else ""
