"""Staging: the parts of a plan that run, copied once to a read-only folder named by their hash.

Copied are plan.md, ``scripts/``, ``lib/`` and small text files beside them; all else is data and stays where
it is. The copy is what runs, so an edit in the share cannot change a running batch, and nothing checked can be
exchanged before it is used. Everything is opened relative to a descriptor, without following links and
without blocking: a FIFO or a link out of the plan is refused, never waited for. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .keys import NOT_A_PLAN, BadName, plan_name

MAX_TEXT_BYTES: Final = 1024 * 1024
MAX_TOTAL_BYTES: Final = 64 * 1024 * 1024
MAX_FILES: Final = 10_000
MAX_DEPTH: Final = 16
COPIED_FOLDERS: Final = ("scripts", "lib")
#: What the inbox adds to a plan, and what interpreters leave behind: no part of it.
_IGNORED: Final = frozenset({"READY", "__pycache__"})
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_MAX_LINKS: Final = 20


class StageError(Exception):
    """The plan cannot be staged. ``where`` is the path, in the plan or on the disk, that it is about."""

    def __init__(self, what: str, where: str, fix: str) -> None:
        super().__init__(f"{where}: {what}; {fix}")
        self.what = what
        self.where = where
        self.fix = fix


class StageDiskError(StageError):
    """The disk that the copy goes to refuses it: no fault of the plan, and another try may find it well."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged plan: ``path`` is ``<staged_root>/<sha256>``, ``files`` its files, ``bytes`` their sum."""

    sha256: str
    path: Path
    name: str
    files: list[str]
    bytes: int


def stage_plan(source: Path, staged_root: Path) -> Staged:
    """Copy the parts of ``source`` that run to ``staged_root/<sha256>/``.

    ``source`` is a plan folder, its plan.md, or a single ``name.md``. The hash covers the names, the
    executable bits and the contents of exactly the copied files. The folder appears whole or not at all, is on the disk
    when this returns, and is the same one for the same content, whoever stages it how often.

    Raises:
        StageError: a link out of the plan, a FIFO or device, a name with control characters, too much,
            unreadable, changed while it was copied; StageDiskError: the disk is full or refuses.
    """
    source = Path(os.path.abspath(source))
    if source.name.lower() == "plan.md":
        source = source.parent
    single = source.suffix.lower() == ".md" and not source.is_dir()
    try:
        name = plan_name(source.stem if single else source.name)
    except BadName as error:
        raise StageError(error.what, str(source), error.fix) from error
    try:
        staged_root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(staged_root)
        work = Path(tempfile.mkdtemp(prefix=f".tmp-{os.getpid()}-", dir=staged_root))
    except OSError as error:
        raise _disk(error, staged_root) from error
    try:
        copy = _Copy(source, work)
        copy.take_file() if single else copy.take_folder()
        return copy.publish(staged_root, name)
    except OSError as error:  # a look at an open file, a list of names: whichever disk that was
        where = error.filename if isinstance(error.filename, str) else str(source)
        raise StageError(error.strerror or str(error), where, "check the disk that it is on") from error
    finally:
        remove_tree(work)


def _taken_up(target: Path) -> bool:
    """Whether it is there already; its new time tells a cleaner of what nobody uses that it is not at rest."""
    try:
        os.utime(target)
    except FileNotFoundError:
        return False
    return target.is_dir()


def hash_beside_plan(folder: Path) -> str:
    """A hash of all files of a staged plan but its plan.md: of their names, executable bits and contents.

    Raises:
        OSError: one cannot be read.
    """
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "plan.md":
            mode = bool(path.stat().st_mode & stat.S_IXUSR)
            found.update(f"{name}\0{mode:d}{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def remove_tree(path: Path) -> None:
    """Remove a tree with read-only folders in it; what cannot be removed is left."""
    if os.path.isdir(path):
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(staged_root: Path) -> None:
    """Take away unfinished copies whose maker is gone (killed half-way)."""
    for entry in staged_root.glob(".tmp-*"):
        pid = entry.name.split("-")[1]
        if pid.isdecimal() and not _lives(int(pid)):
            remove_tree(entry)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _disk(error: OSError, where: Path) -> StageDiskError:
    return StageDiskError(
        f"cannot be written: {error.strerror or error}",
        str(where),
        "check free space and rights of the state folder",
    )


@dataclass(slots=True)
class _Copy:
    """One copy in the making: what was taken so far, and its digest."""

    source: Path
    work: Path
    taken: dict[str, tuple[bool, bytes]] = field(default_factory=dict)
    total: int = 0

    def take_file(self) -> None:
        """A plan that is one file: it becomes plan.md."""
        with self._opened(None, self.source.parent, _FOLDER_FLAGS & ~os.O_NOFOLLOW) as root:
            self._take(root, self.source.name, "plan.md", limit=MAX_TEXT_BYTES)

    def take_folder(self) -> None:
        """A plan folder: its copied parts, and a refusal for what no plan may hold."""
        with self._opened(None, self.source, _FOLDER_FLAGS) as root:
            names = self._names(root, "")
            if "plan.md" not in names:
                other = next((one for one in names if one.lower() == "plan.md"), None)
                fix = (
                    f"rename {other!r} to 'plan.md'" if other else "put the plan into a file 'plan.md' there"
                )
                raise StageError("has no plan.md", str(self.source), fix)
            for name in names:
                self._take_top(root, name)

    def publish(self, staged_root: Path, name: str) -> Staged:
        """Rename the copy to its hash; where that folder is already there, it is the same."""
        digest = hashlib.sha256(b"rigbus-staged-1\n")
        for path in sorted(self.taken):
            executable, content = self.taken[path]
            raw = path.encode()
            digest.update(b"%d:%s%s" % (len(raw), raw, b"x" if executable else b"-") + content)
        sha256 = digest.hexdigest()
        target = staged_root / sha256
        try:
            if not _taken_up(target):
                self._sync()
                with contextlib.suppress(FileExistsError):
                    _rename(self.work, target)
                sync_folder(staged_root)
        except OSError as error:
            raise _disk(error, staged_root) from error
        return Staged(sha256, target, name, sorted(self.taken), self.total)

    def _take_top(self, root: int, name: str) -> None:
        """One entry of the plan folder: copied, or left to be linked by the view."""
        if name.startswith(".") or name in _IGNORED or name.endswith(NOT_A_PLAN):
            return
        status = self._status(root, name, name)
        if name in COPIED_FOLDERS:
            parts = self._inside(root, (name,), name)
            self._take_entry(root, parts, name, depth=1, above=())
        elif stat.S_ISLNK(status.st_mode):
            self._take_top_link(root, name)
        elif stat.S_ISREG(status.st_mode):
            if name == "plan.md" or status.st_size <= MAX_TEXT_BYTES:
                self._take(root, name, name, limit=MAX_TEXT_BYTES, text_only=name != "plan.md")
        elif not stat.S_ISDIR(status.st_mode):
            raise self._special(name)

    def _take_top_link(self, root: int, name: str) -> None:
        """A link to a folder is data wherever it leads; a link to a file must stay inside the plan."""
        try:
            followed = os.stat(name, dir_fd=root)
        except OSError:
            followed = None
        if name != "plan.md" and (followed is None or stat.S_ISDIR(followed.st_mode)):
            return
        parts = self._inside(root, (name,), name)
        with self._folder(root, parts[:-1], name) as folder:
            if self._status(folder, parts[-1], name).st_size <= MAX_TEXT_BYTES or name == "plan.md":
                self._take(folder, parts[-1], name, limit=MAX_TEXT_BYTES, text_only=name != "plan.md")

    def _take_entry(
        self, root: int, parts: tuple[str, ...], out: str, depth: int, above: tuple[int, ...]
    ) -> None:
        """A file or folder below a copied folder; ``parts`` lead to it from the root without a link."""
        with self._folder(root, parts[:-1], out) as folder:
            status = self._status(folder, parts[-1], out)
            if stat.S_ISREG(status.st_mode):
                self._take(folder, parts[-1], out, limit=MAX_TOTAL_BYTES)
                return
        if not stat.S_ISDIR(status.st_mode):
            raise self._special(out)
        if status.st_ino in above:
            raise StageError("links make a circle", self._where(out), "remove the link")
        if depth > MAX_DEPTH:
            raise StageError(f"folders go deeper than {MAX_DEPTH}", self._where(out), "make the tree flatter")
        with self._folder(root, parts, out) as folder:
            names = self._names(folder, out)
        for name in names:
            if name not in _IGNORED:
                inner = f"{out}/{name}"
                real = self._inside(root, (*parts, name), inner)
                self._take_entry(root, real, inner, depth + 1, (*above, status.st_ino))

    def _take(self, folder: int, name: str, out: str, *, limit: int, text_only: bool = False) -> None:
        """Copy one regular file, hashing what is written; ``text_only`` leaves a binary one out."""
        with self._opened(folder, name, _FILE_FLAGS, out) as descriptor:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise self._special(out)
            if before.st_size > limit:
                raise StageError(
                    f"has {before.st_size} bytes, the limit is {limit}",
                    self._where(out),
                    "move data to input/",
                )
            content = self._read(descriptor, before, out)
        if text_only and not _is_text(content):
            return
        self.total += len(content)
        if self.total > MAX_TOTAL_BYTES:
            raise StageError(
                f"scripts, lib and texts together have more than {MAX_TOTAL_BYTES} bytes",
                str(self.source),
                "move data to input/, which is linked and not copied",
            )
        if len(self.taken) >= MAX_FILES:
            raise StageError(f"more than {MAX_FILES} files to copy", str(self.source), "move data to input/")
        executable = bool(before.st_mode & 0o111)
        self.taken[out] = (executable, hashlib.sha256(content).digest())
        self._write(out, content, executable, before)

    def _read(self, descriptor: int, before: os.stat_result, out: str) -> bytes:
        parts = []
        left = before.st_size + 1
        try:
            while left > 0 and (part := os.read(descriptor, min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
            after = os.fstat(descriptor)
        except OSError as error:
            raise self._unreadable(error, out) from error
        content = b"".join(parts)
        if len(content) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
            raise StageError(
                "changed while it was copied", self._where(out), "wait for the copy to end, drop it again"
            )
        return content

    def _write(self, out: str, content: bytes, executable: bool, before: os.stat_result) -> None:
        target = self.work / out
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o555 if executable else 0o444)
                os.utime(file.fileno(), ns=(before.st_mtime_ns, before.st_mtime_ns))
                os.fsync(file.fileno())
        except OSError as error:
            raise _disk(error, target.parent) from error

    def _sync(self) -> None:
        """Folders read-only and on the disk, the inner ones first."""
        for folder, _, _ in os.walk(self.work, topdown=False):
            sync_folder(Path(folder))
            os.chmod(folder, 0o555)  # noqa: S103 - read-only for all is the point

    def _inside(self, root: int, parts: tuple[str, ...], out: str) -> tuple[str, ...]:
        """The same place without links on the way.

        Raises:
            StageError: a link leaves the plan or goes in circles.
        """
        done: list[str] = []
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    raise self._leaves(out)
                done.pop()
                continue
            try:
                target = os.readlink("/".join([*done, part]), dir_fd=root)
            except OSError:
                # No link, or nothing there: opening it will say.
                done.append(part)
                continue
            links += 1
            if target.startswith("/"):
                raise self._leaves(out)
            if links > _MAX_LINKS:
                raise StageError("links make a circle", self._where(out), "remove the link")
            todo += reversed(target.split("/"))
        if not done:
            raise StageError("is a link to the plan itself", self._where(out), "remove the link")
        return tuple(done)

    @contextlib.contextmanager
    def _folder(self, root: int, parts: tuple[str, ...], out: str) -> Iterator[int]:
        """The folder at ``parts`` below the root, each step opened without following a link."""
        with contextlib.ExitStack() as stack:
            here = root
            for part in parts:
                here = stack.enter_context(self._opened(here, part, _FOLDER_FLAGS, out))
            yield here

    @contextlib.contextmanager
    def _opened(self, folder: int | None, name: str | Path, flags: int, out: str = "") -> Iterator[int]:
        try:
            descriptor = os.open(name, flags, dir_fd=folder)
        except (OSError, ValueError) as error:
            raise self._unreadable(error, out) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _names(self, folder: int, out: str) -> list[str]:
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise self._unreadable(error, out) from error
        for name in names:
            if _CONTROL.search(name):
                raise StageError(
                    f"holds the file name {name[:80]!a}",
                    self._where(out),
                    "rename it: UTF-8, no control characters",
                )
        return names

    def _status(self, folder: int, name: str, out: str) -> os.stat_result:
        try:
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            raise self._unreadable(error, out) from error

    def _where(self, out: str) -> str:
        return str(self.source / out) if out else str(self.source)

    def _leaves(self, out: str) -> StageError:
        return StageError(
            "is a link that leaves the plan",
            self._where(out),
            "copy the file into the plan, or link relatively inside it",
        )

    def _special(self, out: str) -> StageError:
        return StageError(
            "is a FIFO, socket or device", self._where(out), "remove it: a plan holds files and folders"
        )

    def _unreadable(self, error: OSError | ValueError, out: str) -> StageError:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return StageError(
            f"cannot be read: {reason}", self._where(out), "check that it exists and may be read"
        )


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _rename(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError:
        # Another process was first: its folder has the same content by its name.
        if not target.is_dir():
            raise


def sync_folder(path: Path) -> None:
    """Bring the names in ``path`` to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
