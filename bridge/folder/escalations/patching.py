"""A plan's staged copy and the files of an answer -> another copy, on the local disk.

Nothing is written through a link, nothing outside of the copy, and no name beside one that differs only in case: the
share may lie on a file system that takes both for one.
"""

from __future__ import annotations

import os
import shutil
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from ....plans.stage import COPIED_FOLDERS, MAX_TEXT_BYTES
from ..contract.receipts import Invalid, Problem
from ..share.ops import shown

_FIX: Final = "name files of the plan: plan.md, scripts/…, lib/…, or small text files beside plan.md"
_NO_FILES: Final = frozenset({"READY"})


def patched(staged: Path, place: Path, files: Mapping[str, str]) -> None:
    """Copy ``staged`` to the new folder ``place`` and put ``files`` (path -> whole text) into it.

    Raises:
        Invalid: a path is not to be written; nothing outside of ``place`` was touched.  OSError: our own disk refuses.
    """
    check_names(files)
    shutil.copytree(staged, place, symlinks=True)
    for folder, _, _ in os.walk(place):
        os.chmod(folder, 0o700)
    _check_case(place, files)
    for path, text in files.items():
        _put(place, path, text)


def check_names(files: Iterable[str]) -> None:
    """The model has confined the paths; these are the names that no plan of ours has.

    Raises:
        Invalid: with every one.
    """
    problems = []
    for path in files:
        parts = path.split("/")
        if not path.isprintable() or any(p != p.strip() or p.endswith(".") for p in parts):
            problems.append(
                Problem("its name has characters that nobody can see or type", f"files: {shown(path)}", _FIX)
            )
        elif len(parts) > 1 and parts[0] not in COPIED_FOLDERS:
            what = f"{parts[0]}/ is data: it is linked, not copied, and no part of what a revision runs"
            problems.append(
                Problem(what, f"files: {path}", f"{_FIX}; write data into the plan's folder itself")
            )
        elif path in _NO_FILES:
            problems.append(Problem(f"{path} is no part of a plan", f"files: {path}", _FIX))
    if problems:
        raise Invalid(*problems)


def _check_case(place: Path, files: Iterable[str]) -> None:
    """
    Raises:
        Invalid: two names differ only in case, or in how they are composed.
    """
    known: dict[str, str] = {}
    for folder, folders, names in os.walk(place):
        for name in [*folders, *names]:
            path = os.path.relpath(os.path.join(folder, name), place)
            known[_folded(path)] = path
    problems = []
    for path in files:
        parts = path.split("/")
        for n in range(1, len(parts) + 1):
            part = "/".join(parts[:n])
            other = known.setdefault(_folded(part), part)
            if other != part:
                what = f"{shown(part)} and {shown(other)} are one name on many file systems"
                problems.append(
                    Problem(
                        what, f"files: {shown(path)}", "write it as the plan has it, or choose another name"
                    )
                )
                break
    if problems:
        raise Invalid(*problems)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _put(place: Path, path: str, text: str) -> None:
    target, where = place, f"files: {path}"
    *folders, name = path.split("/")
    for folder in folders:
        target = target / folder
        _require(target, folder=True, where=where)
        target.mkdir(mode=0o700, exist_ok=True)
    target = target / name
    _require(target, folder=False, where=where)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise Invalid(
            Problem("its text is no Unicode (a lone surrogate)", where, "write it as UTF-8")
        ) from None
    if not folders and name != "plan.md" and len(data) > MAX_TEXT_BYTES:
        raise Invalid(
            Problem(f"it has {len(data)} bytes, at most {MAX_TEXT_BYTES}", where, "put it into scripts/")
        )
    runs = text.startswith("#!") or (target.exists() and bool(target.stat().st_mode & 0o111))
    target.unlink(
        missing_ok=True
    )  # the copy is read-only, and what a new file is must not depend on the old one
    with target.open("xb") as file:
        file.write(data)
    target.chmod(0o700 if runs else 0o600)


def _require(path: Path, *, folder: bool, where: str) -> None:
    """
    Raises:
        Invalid: a link, or something else than is wanted, stands there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise Invalid(Problem(f"{path.parent.name} is a file, not a folder", where, _FIX)) from None
    if stat.S_ISLNK(mode):
        raise Invalid(Problem(f"{path.name} is a link; an answer does not write through links", where, _FIX))
    if stat.S_ISDIR(mode) != folder:
        raise Invalid(Problem(f"{path.name} is a {'file' if folder else 'folder'} in the plan", where, _FIX))
