"""A plan as a map of path to text: read from a folder, written into one, checked before anybody runs it."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..bus.errors import ConfigError, PlanError

if TYPE_CHECKING:
    from .plan_lint import Linted

MAX_BYTES: Final = 1 << 20  #: of all files of a plan that somebody sends as text
MAX_FILES: Final = 64
_FIX: Final = "name plan.md, scripts/…, lib/…, or a small text file beside plan.md"
_RUNS: Final = "#!"


@dataclass(frozen=True, slots=True)
class Texts:
    """The text files of a plan. ``cut``: those that are longer than was wanted; ``left_out``: names of the others."""

    files: dict[str, str] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def problems_of_names(files: Mapping[str, str]) -> list[str]:
    """What is wrong with the names and sizes; empty where they may be written into a plan's folder."""
    if len(files) > MAX_FILES:
        return [f"files: {len(files)} of them, at most {MAX_FILES}; put the rest into fewer files"]
    problems = []
    known: dict[str, str] = {}
    for path, text in files.items():
        what = _problem(path)
        if what:
            problems.append(f"files: {path[:80]!r}: {what}; {_FIX}")
            continue
        for part in _prefixes(path):
            other = known.setdefault(unicodedata.normalize("NFC", part.casefold()), part)
            if other != part:
                problems.append(f"files: {path!r} and {other!r} are one name on many disks; rename one")
                break
        if any(path != other and other.startswith(f"{path}/") for other in files):
            problems.append(f"files: {path!r} is a file and a folder; rename one")
        try:
            text.encode()
        except UnicodeEncodeError:
            problems.append(f"files: {path!r}: its text is no Unicode (a lone surrogate); write it as UTF-8")
    size = sum(len(text) for text in files.values())
    if size > MAX_BYTES:
        problems.append(f"files: {size} characters in all, at most {MAX_BYTES}; send less")
    return problems


def _problem(path: str) -> str:
    from ..plans.stage import COPIED_FOLDERS

    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or len(path.encode("utf-8", "replace")) > 255:
        return "no path inside the plan's folder"
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        return "no part may be empty or start with a dot"
    if not path.isprintable() or any(part != part.strip() or part.endswith((".", "~")) for part in parts):
        return "it has characters that nobody can see or type"
    if len(parts) > 1 and parts[0] not in COPIED_FOLDERS:
        return f"{parts[0]}/ is no folder of a plan's code"
    if path == "READY" or path.endswith((".receipt.md", ".receipt.json")):
        return "that name belongs to the inbox"
    return ""


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split("/")
    for n in range(1, len(parts) + 1):
        yield "/".join(parts[:n])


def write_files(folder: Path, files: Mapping[str, str], *, shared: bool = False) -> None:
    """Write them into a folder that is ours alone; ``shared``: for everybody of the share's group.

    Raises:
        ConfigError: a name or text that may not be written; nothing was.  OSError: the disk refuses.
    """
    problems = problems_of_names(files)
    if problems:
        raise ConfigError("; ".join(problems[:5]))
    plain, folders = (0o664, 0o775) if shared else (0o600, 0o700)
    for path, text in files.items():
        target = folder / path
        for parent in reversed(target.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(folders)
        runs = text.startswith(_RUNS) or (target.exists() and bool(target.stat().st_mode & 0o100))
        target.unlink(missing_ok=True)  # a copy of a read-only plan is read-only
        with target.open("x", encoding="utf-8", newline="") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        target.chmod(plain | (0o111 if shared else 0o100) if runs else plain)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder on the local disk that is gone afterwards, read-only parts and all."""
    from ..plans.stage import remove_tree

    folder = Path(tempfile.mkdtemp(prefix="rigbus-plan-"))
    try:
        yield folder
    finally:
        remove_tree(folder)


def staged_copy(source: Path, folder: Path, name: str = "") -> tuple[Path, str]:
    """A writable copy of the parts of a plan that run, below ``folder``, and the hash that the rig knows them by.

    Raises:
        PlanError: a part of it cannot be copied (a link out of it, a FIFO, too much).
    """
    import shutil

    from ..plans.stage import StageError, stage_plan

    try:
        staged = stage_plan(source, folder / "staged")
    except StageError as e:
        raise PlanError(str(e)) from None
    copy = folder / (name or staged.name)
    shutil.copytree(staged.path, copy, symlinks=True)
    for below, _, _ in os.walk(copy):
        os.chmod(below, 0o700)
    return copy, staged.sha256


def texts_of(folder: Path, *, each: int, total: int) -> Texts:
    """The text files of a copy that :func:`staged_copy` made; plan.md first, at most ``total`` bytes of all."""
    names = [
        os.path.relpath(os.path.join(below, name), folder)
        for below, _, found in os.walk(folder)
        for name in found
        if not os.path.islink(os.path.join(below, name))
    ]
    names.sort(key=lambda name: (name != "plan.md", name))
    files: dict[str, str] = {}
    cut, left_out = [], []
    for name in names:
        if total <= 0:
            left_out.append(name)
            continue
        with (folder / name).open("rb") as file:
            data = file.read(min(each, total) + 1)
        short = data[: min(each, total)]
        if b"\0" in short:
            left_out.append(name)
            continue
        files[name] = short.decode("utf-8", "replace")
        total -= len(short)
        if len(short) < len(data):
            cut.append(name)
    return Texts(files, tuple(cut), tuple(left_out))


def lint_files(name: str, files: Mapping[str, str], config: Mapping[str, Any]) -> Linted:
    """A plan that is only a map of files, linted as ``rigbus plan lint`` does.

    Raises:
        ConfigError: a name of a file, or of the plan, that may not be.
    """
    from ..plans.keys import BadName, plan_name
    from .plan_lint import lint_plan

    try:
        plan_name(name)
    except BadName as e:
        raise ConfigError(str(e)) from None
    if "plan.md" not in files:
        raise ConfigError("files: there is no plan.md; add it")
    with private_folder() as scratch:
        folder = scratch / name
        folder.mkdir(mode=0o700)
        write_files(folder, files)
        found = lint_plan(folder, config)
        found.faults = [
            replace(one, file=one.file.replace(f"{folder}/", ""), what=one.what.replace(f"{folder}/", ""))
            for one in found.faults
        ]
        found.file = "plan.md"
    return found


def errors_of(faults: Iterable[Any]) -> list[str]:
    """The errors among faults, as ``file:line: what; fix``."""
    return [str(fault) for fault in faults if fault.severity == "error"]
