"""Where what somebody has put in the place of a mirrored file goes: beside it, the newest few of a name and of a folder.

Runs inside the helper. The names bear a number that only grows, made of our own clock, so that their order is that of
the edits whatever any clock does. In a lane of tasks none ends in ``.json``: there each reader takes such a name for a
task, and the queue's door for an order.
"""

from __future__ import annotations

import os
import re
import stat
import time

KEPT_OF_NAME = 5
KEPT_OF_FOLDER = 200
_MADE_UP = 90_000_000_000_000_000  #: a number of the year 9000: after 17 nines there is no further one
_LANES = ("tasks/", "brain/private_tasks/")
_ASIDE = re.compile(r"(?P<name>.+)\.conflict-(?P<number>[0-9]{17})(\.json)?\Z", re.DOTALL)


def standing(fd: int) -> list[str]:
    """The names in a folder that are such files."""
    return [name for name in os.listdir(fd) if _ASIDE.match(name)]


def aside_name(path: str, names: list[str], at: float, taken: int = 0) -> str:
    """The next name for ``path`` among ``names``, at ``at`` (unix seconds), when so many were ``taken`` all the same."""
    name = path.rpartition("/")[2]
    stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(at)) + f"{int(at * 1000) % 1000:03}"
    numbers = (number for other in names if (number := _number(other)) < _MADE_UP)
    number = max(int(stamp), 1 + max(numbers, default=0)) + taken
    is_task = path.startswith(_LANES)
    return f"{name}.conflict-{number:017}" + (".json" if name.endswith(".json") and not is_task else "")


def surplus(name: str, names: list[str]) -> list[str]:
    """Those of ``names`` that are too many, after one for ``name`` has come."""
    in_order = sorted(names, key=_number, reverse=True)
    of_name = [other for other in in_order if (found := _ASIDE.match(other)) and found["name"] == name]
    return list(dict.fromkeys([*of_name[KEPT_OF_NAME:], *in_order[KEPT_OF_FOLDER:]]))


def put_aside(fd: int, name: str, path: str, names: list[str], *, stays: bool = False) -> str:
    """Rename ``name`` (in the folder ``fd``, ``path`` below the root); its new name. ``names`` is kept up to date.

    ``stays``: it is about to be replaced, and where the file system has hard links it stands until then, for readers.

    Folders, links and whatever else stands there are put aside too, but only files are ever removed as too many.
    """
    at, taken = time.time(), 0
    while True:
        free = aside_name(path, names, at, taken)
        try:
            os.stat(free, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            break
        taken += 1  # the other helper was faster, or somebody has made such names up
    if not (stays and link(fd, name, free)):
        os.rename(name, free, src_dir_fd=fd, dst_dir_fd=fd)
    names.append(free)
    for old in surplus(name, names):
        try:
            if stat.S_ISREG(os.stat(old, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(old, dir_fd=fd)
        except FileNotFoundError:
            pass
        names.remove(old)
    return free


def link(fd: int, name: str, other: str) -> bool:
    """A second name for a file; False where there cannot be one: for a folder, on FAT, on some SMB and FUSE mounts."""
    try:
        os.link(name, other, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except (OSError, NotImplementedError):
        return False
    return True


def _number(name: str) -> int:
    found = _ASIDE.match(name)
    return int(found["number"]) if found else 0
