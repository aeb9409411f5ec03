"""Views: what ``{PLAN_PATH}`` is for one batch.

A view is a real folder with copies of the staged files and links to everything else of the plan in the
share. Copies, not links, because scripts find their neighbours by ``Path(__file__).resolve()``. These
functions touch the share, so they run in child processes only: one that hangs can be killed. Each may be
killed anywhere and called again.
Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import filecmp
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from .stage import StageError, remove_leftovers, remove_tree, sync_folder

#: Folders that a plan's scripts write to: made in the share before they are linked.
SHARED_FOLDERS: Final = ("batches", "history", "input", "output", "results", "data")
#: Our own unfinished work in the share, and what interpreters leave: never linked, never moved.
_OURS: Final = ".rigbus-"
_IGNORED: Final = frozenset({"__pycache__"})


def make_view(staged: Path, original: Path, view: Path, dirs: Sequence[str] = SHARED_FOLDERS) -> Path:
    """Make ``view`` from the ``staged`` folder and the plan's folder ``original`` in the share.

    The view appears whole or not at all; one that is there already is refreshed. Its folders and files can
    be written, since scripts keep caches beside themselves.

    Raises:
        StageError: the plan's folder is not there (the share is away), or a disk refuses.
    """
    original = Path(os.path.abspath(original))
    if not os.path.isdir(view):
        try:
            view.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(view.parent)
            work = Path(tempfile.mkdtemp(prefix=f".tmp-{os.getpid()}-", dir=view.parent))
        except OSError as error:
            raise _refused(error, view.parent) from error
        try:
            _copy_staged(staged, work)
            _link_missing(work, original, dirs)
            sync_folder(work)
            _publish(work, view)
        except OSError as error:
            raise _refused(error, view) from error
        finally:
            remove_tree(work)
    refresh_view(view, original, dirs)
    return view


def refresh_view(view: Path, original: Path, dirs: Sequence[str] = SHARED_FOLDERS) -> list[str]:
    """Link what has appeared in the share since, and drop links whose target is gone; the names that changed.

    Raises:
        StageError: the view or the plan's folder is not there, or a disk refuses.
    """
    original = Path(os.path.abspath(original))
    try:
        with _locked(view):
            return _drop_dead_links(view, original) + _link_missing(view, original, dirs)
    except OSError as error:
        raise _refused(error, view) from error


def harvest_view(staged: Path, original: Path, view: Path) -> list[str]:
    """Move what an attempt newly made at the top of its view to the share, and link it there.

    A name that the share already has with another content is kept beside it as ``<name>.<batch>``. Returns
    one note for the task's log for each thing done, and for a copied file that was changed: such a change
    stays in this batch.

    Raises:
        StageError: the view or the plan's folder is not there, or a disk refuses.
    """
    original = Path(os.path.abspath(original))
    try:
        _require_folder(original)
        with _locked(view):
            copied = set(os.listdir(staged))
            notes = []
            for name in sorted(os.listdir(view)):
                if name.startswith(_OURS) or name in _IGNORED:
                    continue
                mode = (view / name).lstat().st_mode
                if name in copied:
                    notes += _changed(staged / name, view / name)
                elif stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                    notes.append(_move(name, original, view))
                elif not stat.S_ISLNK(mode):
                    notes.append(f"{name} is no file or folder and stays in the batch's view")
            return notes
    except OSError as error:
        raise _refused(error, view) from error


def _copy_staged(staged: Path, work: Path) -> None:
    """The staged files with their times, writable, on the disk before the view can be seen."""
    for folder, folders, files in os.walk(staged):
        here = work / os.path.relpath(folder, staged)
        for name in folders:
            (here / name).mkdir()
        for name in files:
            target = here / name
            shutil.copy2(Path(folder) / name, target, follow_symlinks=False)
            target.chmod(target.stat().st_mode | stat.S_IWUSR)
            _sync_file(target)
        sync_folder(here)
    work.chmod(0o755)


def _publish(work: Path, view: Path) -> None:
    try:
        os.rename(work, view)
    except OSError:
        # Another process made the same view first; anything else in the way is an error.
        if not view.is_dir():
            raise
    sync_folder(view.parent)


def _link_missing(view: Path, original: Path, dirs: Sequence[str]) -> list[str]:
    _require_folder(original)
    for name in dirs:
        if not os.path.lexists(original / name) and not os.path.lexists(view / name):
            with contextlib.suppress(FileExistsError):
                (original / name).mkdir()
                # The Pi's user shares the group and must be able to clear up; not every share knows modes.
                with contextlib.suppress(OSError):
                    (original / name).chmod(0o775)
    linked = []
    for name in sorted(os.listdir(original)):
        if name.startswith(_OURS) or name in _IGNORED or os.path.lexists(view / name):
            continue
        with contextlib.suppress(FileExistsError):
            (view / name).symlink_to(original / name)
            linked.append(name)
    return linked


def _drop_dead_links(view: Path, original: Path) -> list[str]:
    """A dead link would make a script's ``mkdir`` fail. Only believed while the plan's folder is there."""
    _require_folder(original)
    dropped = []
    for name in sorted(os.listdir(view)):
        link = view / name
        if (
            link.is_symlink()
            and os.readlink(link) == str(original / name)
            and not os.path.lexists(original / name)
        ):
            link.unlink()
            dropped.append(name)
    return dropped


def _require_folder(original: Path) -> None:
    if not original.is_dir():
        raise StageError("the plan's folder is not there", str(original), "check that the share is mounted")


@contextlib.contextmanager
def _locked(view: Path) -> Iterator[None]:
    """One process at a time: attempts of a batch start and end side by side."""
    descriptor = os.open(view, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _changed(staged: Path, copy: Path) -> list[str]:
    """A note where a copied top-level file is no longer what was staged."""
    if staged.is_dir() or not copy.is_file():
        return []
    before, now = staged.stat(), copy.stat()
    if (before.st_size, before.st_mtime_ns) == (now.st_size, now.st_mtime_ns):
        return []
    if filecmp.cmp(staged, copy, shallow=False):
        return []
    return [f"{copy.name} was changed in this batch's copy of the plan; the plan in the share keeps its own"]


def _move(name: str, original: Path, view: Path) -> str:
    """Bring one entry to the share and put a link in its place; a move that was cut off is finished."""
    entry = view / name
    target = original / name
    if os.path.lexists(target) and not _same(entry, target):
        target = original / f"{name}.{view.name}"
    if not os.path.lexists(target):
        _bring(entry, target, original / f"{_OURS}{view.name}-{name}.part")
    elif not _same(entry, target):
        return f"{name} stays in the batch's view: the share already has {target.name}"
    _replace_by_link(entry, target)
    return f"{name} was moved to {target} and linked"


def _bring(entry: Path, target: Path, part: Path) -> None:
    """``entry`` at ``target``, by its inode on one file system (open files stay valid), else as a copy."""
    try:
        if entry.is_dir():
            os.rename(entry, target)
        else:
            # A hard link, since a rename would overwrite what another batch put there a moment ago.
            os.link(entry, target)
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    _remove_entry(part)
    if entry.is_dir():
        shutil.copytree(entry, part, symlinks=True)
    else:
        shutil.copy2(entry, part)
    os.rename(part, target)


def _replace_by_link(entry: Path, target: Path) -> None:
    link = entry.parent / f"{_OURS}link-{entry.name}"
    _remove_entry(link)
    link.symlink_to(target)
    if not os.path.lexists(entry):
        os.rename(link, entry)
    elif entry.is_dir():
        # A link cannot be renamed over a folder: first out of the way, under a name that nobody harvests.
        away = entry.parent / f"{_OURS}old-{entry.name}"
        _remove_entry(away)
        os.rename(entry, away)
        os.rename(link, entry)
        _remove_entry(away)
    else:
        os.replace(link, entry)


def _remove_entry(path: Path) -> None:
    """Remove a file, link or tree, whichever it is; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    """Whether two files or trees hold the same names and bytes (a move that was cut off left both)."""
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    if one.is_dir() and other.is_dir():
        names = os.listdir(one)
        return sorted(names) == sorted(os.listdir(other)) and all(
            _same(one / name, other / name) for name in names
        )
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(error: OSError, where: Path) -> StageError:
    place = error.filename if isinstance(error.filename, str) else str(where)
    return StageError(
        error.strerror or str(error), place, "check that the share is mounted, its rights and its free space"
    )
