"""The child that looks at one folder for `rigbus doctor`: every call here may hang, only its parent has a deadline.

Started as ``python -I -S folder_probe.py state|share FOLDER``; prints one JSON object whose keys are the fields of
``StateFacts`` or ``ShareFacts``. Standard library only, nothing of rigbus is imported. What it makes (a probe file, a
probe folder) has a name that starts with ``.rigbus-doctor-`` and is removed before it ends.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

MARK = ".rigbus-doctor-"
WALK_S = 1.5  # for sizes: what is not counted by then is said to be more
FSYNCS = 7
OLD_S = 60.0
NFC, NFD = "caf\u00e9", "cafe\u0301"


def code_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "EIO")


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError:
        return


def age_of(entry: os.DirEntry[str], now: float) -> float:
    try:
        return now - entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def basics(folder: str) -> dict[str, Any]:
    """What both kinds share; ``error`` when the folder cannot be looked at."""
    found: dict[str, Any] = {"exists": False, "real": os.path.realpath(folder)}
    try:
        info = os.stat(folder)
    except FileNotFoundError:
        return found
    except OSError as e:
        return {**found, "error": code_of(e)}
    found |= {"exists": True, "is_dir": stat.S_ISDIR(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}
    found |= {"mode": stat.S_IMODE(info.st_mode)}
    if not found["is_dir"]:
        return found
    try:
        os.listdir(folder)
    except OSError as e:
        found["error"] = code_of(e)
    try:
        disk = os.statvfs(folder)
        found |= {"free_bytes": disk.f_bavail * disk.f_frsize}
        found |= {"free_inodes": disk.f_favail if disk.f_files else None}
    except OSError:
        pass  # a file system that does not count
    return found


# -- the state folder ------------------------------------------------------------------------------------------


def look_at_state(folder: str) -> dict[str, Any]:
    found = basics(folder)
    if not found["exists"]:
        above = os.path.dirname(found["real"])
        while above != "/" and not os.path.isdir(above):
            above = os.path.dirname(above)
        return {**found, "above": above, "above_writable": os.access(above, os.W_OK | os.X_OK)}
    if not found.get("is_dir") or found.get("error"):
        return found
    found |= fsync_speed(folder)
    found["sizes"] = sizes(folder)
    now = time.time()
    journal = [e for e in entries(os.path.join(folder, "incoming")) if e.name.endswith(".json")]
    found["journal"] = len(journal)
    found["journal_age_s"] = max((age_of(e, now) for e in journal), default=0.0)
    found["copies"] = sum(e.name.startswith("copy-") for e in entries(os.path.join(folder, "incoming")))
    found["doctor_left"] = left_by_doctor(folder, now)
    try:
        with open(os.path.join(folder, "id"), "rb") as file:
            found["state_id"] = file.read(64).decode("ascii", "replace").strip()
    except OSError:
        found["state_id"] = ""
    return found


def fsync_speed(folder: str) -> dict[str, Any]:
    """``fsync_us``: how long 4 KiB take to be safe, each time; ``write_error`` where it cannot be tried."""
    file = os.path.join(folder, MARK + secrets.token_hex(4))
    took = []
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as e:
        return {"write_error": code_of(e)}
    try:
        for _ in range(FSYNCS):
            began = time.perf_counter()
            os.write(handle, b"\0" * 4096)
            os.fsync(handle)
            took.append(round((time.perf_counter() - began) * 1e6))
    except OSError as e:
        return {"write_error": code_of(e)}
    finally:
        os.close(handle)
        os.unlink(file)
    return {"fsync_us": took}


def sizes(folder: str) -> dict[str, Any]:
    """``{part: {bytes, files, cut}}``; ``cut``: there is more than was counted."""
    found = {}
    until = time.monotonic() + WALK_S
    for part in ("logs", "staged", "views", "results"):
        total = files = 0
        cut = False
        todo = [os.path.join(folder, part)]
        while todo and not cut:
            for entry in entries(todo.pop()):
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                    continue
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                    files += 1
                except OSError:
                    continue
                cut = time.monotonic() > until
                if cut:
                    break
        found[part] = {"bytes": total, "files": files, "cut": cut}
    return found


# -- the shared folder -----------------------------------------------------------------------------------------


def look_at_share(folder: str) -> dict[str, Any]:
    found = basics(folder)
    if not found.get("is_dir") or found.get("error"):
        return found
    inbox = os.path.join(folder, "inbox")
    found["is_share"] = os.path.isdir(inbox) or os.path.isdir(os.path.join(folder, "tasks"))
    found["sentinel"] = os.path.lexists(os.path.join(folder, ".rigbus-folder-id"))
    found |= try_writing(folder)
    now = time.time() + found.get("skew_s", 0.0)
    signs = [os.path.join(folder, "brain", "state.json")]
    signs += [os.path.join(e.path, "heartbeat.json") for e in entries(os.path.join(folder, "workers"))]
    ages = []
    for sign in signs:
        try:
            ages.append(now - os.stat(sign).st_mtime)
        except OSError:
            continue
    found["news_age_s"] = min(ages) if ages else None
    old = [(e.name, age_of(e, now)) for e in entries(inbox) if e.name.startswith(".incoming-")]
    found["incoming"] = sorted(name for name, age in old if age > OLD_S)
    found |= unanswered(os.path.join(inbox, ".requests"), now)
    found["doctor_left"] = left_by_doctor(folder, now)
    return found


def unanswered(folder: str, now: float) -> dict[str, Any]:
    """Requests without a receipt that are older than a minute: how many, and the age of the oldest."""
    names = {e.name: e for e in entries(folder)}
    ages = [
        age_of(entry, now)
        for name, entry in names.items()
        if name.endswith(".json")
        and not name.endswith(".receipt.json")
        and name.removesuffix(".json") + ".receipt.json" not in names
    ]
    old = [age for age in ages if age > OLD_S]
    return {"unanswered": len(old), "unanswered_age_s": max(old, default=0.0)}


def left_by_doctor(folder: str, now: float) -> list[str]:
    return sorted(e.name for e in entries(folder) if e.name.startswith(MARK) and age_of(e, now) > OLD_S)


def try_writing(folder: str) -> dict[str, Any]:
    """Writes, renames and reads back in a folder of its own: clock, atomic rename, how names are kept."""
    place = os.path.join(folder, f"{MARK}{os.getpid()}-{secrets.token_hex(4)}~")
    try:
        os.mkdir(place, 0o700)
    except OSError as e:
        return {"write_error": code_of(e)}
    found: dict[str, Any] = {}
    try:
        found |= clock_of(place)
        found |= rename_of(place)
        found |= names_of(place)
    except OSError as e:
        found["write_error"] = code_of(e)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if os.path.lexists(place):
            found["left"] = place
    return found


def write(file: str, data: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def clock_of(place: str) -> dict[str, Any]:
    """``skew_s``: the share's clock less ours, exact to ``round_s`` seconds."""
    file = os.path.join(place, "Probe")
    before = time.time()
    write(file, b"1")
    after = time.time()
    return {
        "skew_s": os.stat(file).st_mtime - (before + after) / 2,
        "round_s": (after - before) / 2,
        "case_folds": os.path.lexists(os.path.join(place, "pROBE")),
    }


def rename_of(place: str) -> dict[str, Any]:
    """``rename_error``: why a file cannot take the place of another in one step, None where it can."""
    old, new = os.path.join(place, "old"), os.path.join(place, "new")
    write(old, b"old")
    write(new, b"new")
    try:
        os.rename(new, old)
        with open(old, "rb") as file:
            good = file.read() == b"new" and not os.path.lexists(new)
    except OSError as e:
        return {"rename_error": code_of(e)}
    return {"rename_error": None if good else "the old content stayed"}


def names_of(place: str) -> dict[str, Any]:
    """``names``: what becomes of a name with an accent: kept, changed (listed otherwise), folded or refused."""
    inner = os.path.join(place, "names")
    os.mkdir(inner)
    try:
        write(os.path.join(inner, NFC), b"")
    except (OSError, UnicodeError):
        return {"names": "refused"}
    if os.listdir(inner) != [NFC]:
        return {"names": "changed"}
    return {"names": "folded" if os.path.lexists(os.path.join(inner, NFD)) else "kept"}


if __name__ == "__main__":
    look = {"state": look_at_state, "share": look_at_share}[sys.argv[1]]
    text = json.dumps(look(sys.argv[2]))
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)  # it took so long that nobody waits any more
