"""``rigbus backup`` and ``restore``: a copy of a rig's state, of one moment, and a rig made from it.

A backup is a folder: the database as SQLite's own backup interface copies it (also while the rig works: its reader
never writes or checkpoints), the values and staged plans that it names, what the bridge remembers (its book of samples
is a database, too), and last of all ``manifest.json`` with the sha256 of each file. What is restored goes on far past
the numbers that it had given out, since the rig has lived on after the copy: no token and no event number comes twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ..errors import NotFound, Refused, StoreError
from ..paths import RigPaths, sync_path
from .examining import SCHEMA_VERSION, reading, require_read, structure_fault
from .repairing import LEAP, take_up
from .store import Store, state_id
from .tail import Tail, TailFile, sync_folder, tail_path, write_durably

SCHEMA: Final = "rigbus.backup/1"
MANIFEST: Final = "manifest.json"
#: What is copied as it stands, where it is there. Logs, views and sockets are not: they are made anew.
_WHOLE: Final = ("id", "share.json", "mirror.json", "incoming", "doors", "staged")
#: The bridge's training samples, with what people said of them: written while it is copied.
_SAMPLES: Final = "samples.db"


def backup(paths: RigPaths, target: Path) -> dict[str, Any]:
    """Copy the state of a rig, up or down, to the new folder ``target``; its manifest.

    Raises:
        NotFound: there is no rig.  Refused: ``target`` is there and not empty.
        StoreError: the database cannot be read, its copy is damaged, or a disk refuses.
    """
    with _told(paths.state, "nothing was copied; check its disk"):
        there = paths.db.exists()
    if not there:
        raise NotFound(f"{paths.state}: no rig's state; name the right one with --state DIR")
    _require_empty(target, "choose a new folder")
    with _told(
        target, "it is no backup without its manifest; remove it and try again, or choose another disk"
    ):
        return _copy_all(paths, target)


@contextmanager
def _told(folder: Path, fix: str) -> Iterator[None]:
    """A disk that refuses something, as an error of ours."""
    try:
        yield
    except (OSError, sqlite3.Error) as e:
        raise StoreError(f"{folder}: not finished: {e}; {fix}") from e


def _copy_all(paths: RigPaths, target: Path) -> dict[str, Any]:
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    tail, refs = _copy_database(paths.db, target / paths.db.name)
    missing = []
    for sha in refs:
        source = paths.results / sha[:2] / sha
        try:
            _copy(source, target / "results" / sha[:2] / sha)
        except FileNotFoundError:
            missing.append(sha)
    for name in _WHOLE:
        if (source := paths.state / name).exists():
            _copy(source, target / name)
    unread = _copy_samples(paths.state / _SAMPLES, target / _SAMPLES)
    files = {
        str(file.relative_to(target)): {"sha256": _digest(file), "bytes": file.stat().st_size}
        for file in sorted(_files(target))
    }
    manifest = {
        "schema": SCHEMA,
        "made_at": time.time(),
        "state": str(paths.state),
        "db_schema": SCHEMA_VERSION,
        "tail": {
            "commits": tail.commits,
            "seq": tail.seq,
            "incarnation": tail.incarnation,
            "chain": tail.chain.hex(),
        },
        "missing_results": missing,
        "samples": unread,
        "files": files,
    }
    _sync(target)  # the copies first, then the one file that says that they are whole
    write_durably(target / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def restore(source: Path, paths: RigPaths) -> dict[str, Any]:
    """Make the state folder of ``paths``, which is new or empty, from a backup; what was restored.

    Raises:
        NotFound: ``source`` is no backup.  Refused: it is not whole, or the state folder is not empty.
        StoreError: its database cannot be used, or a disk refuses.
    """
    manifest = _manifest(source)
    _require_empty(paths.state, "restore makes a new rig: choose another --state, or move that folder aside")
    _require_whole(source, manifest["files"])
    with _told(paths.state, "the backup is as it was; check the disk and the room on it, then restore again"):
        found = _make_whole(source, paths, manifest)
    return {"schema": "rigbus.restore/1", "state": str(paths.state), "made_at": manifest["made_at"], **found}


def _make_whole(source: Path, paths: RigPaths, manifest: dict[str, Any]) -> dict[str, Any]:
    """The state folder: whole, or not there; what is in it."""
    work = paths.state.with_name(f"{paths.state.name}.restoring")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, mode=0o700)
    try:
        for name in manifest["files"]:
            _copy(source / name, work / name)
        found = _leap(work, paths.db.name, manifest)
        _sync(work)
        work.rename(paths.state)  # over an empty folder, or to a new name: whole, or not there
        sync_folder(paths.state.parent)
        return found
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copy_database(db: Path, target: Path) -> tuple[Tail, list[str]]:
    """The database of one moment; its tail, and the values that it names."""
    try:
        with reading(db) as source:
            copy = sqlite3.connect(target, isolation_level=None)
            try:
                source.backup(copy)
                if wrong := structure_fault(copy, target):
                    raise StoreError(
                        f"{db}: damaged: {wrong}; `rigbus repair` says more, when the rig is down"
                    )
                row = copy.execute("SELECT tail FROM events ORDER BY seq_first DESC LIMIT 1").fetchone()
                meta = copy.execute("SELECT value FROM meta WHERE key='tail'").fetchone()
                refs = copy.execute("SELECT DISTINCT ref FROM tasks WHERE ref IS NOT NULL").fetchall()
            finally:
                copy.close()
    except sqlite3.DatabaseError as e:
        require_read(e)  # else it is the database, no disk
        raise StoreError(f"{db}: {e}; `rigbus repair` says more, when the rig is down") from None
    tails = [t for r in (row, meta) if r and r[0] and (t := Tail.unpack(r[0])) is not None]
    return max(tails, key=lambda t: t.commits, default=Tail()), [ref for (ref,) in refs]


def _leap(work: Path, name: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Let the copied database go on where no number has been."""
    tail = _tail_of(manifest)
    TailFile.make(tail_path(work / name), tail)
    store = Store(work / name)
    try:
        store.tail = replace(
            tail, seq=max(tail.seq, store.last_seq()) + LEAP, incarnation=tail.incarnation + LEAP
        )
        _, leases, kept = take_up(store, {}, state_id(work))
        store.leap({"made_at": manifest["made_at"]}, "rig.restored")
        return {
            "kept": kept,
            "leases_back": leases,
            "seq": store.last_seq(),
            "incarnation": store.tail.incarnation + 1,
        }
    finally:
        store.close()


def _copy_samples(book: Path, target: Path) -> str | None:
    """Copy the book of samples, where there is one; why it could not be read, else None. The rig runs without it."""
    if not book.exists():
        return None
    try:
        with reading(book) as source:
            copy = sqlite3.connect(target, isolation_level=None)
            try:
                source.backup(copy)
                wrong = structure_fault(copy, target)
            finally:
                copy.close()
    except sqlite3.DatabaseError as e:
        require_read(e)  # else it is the book, no disk
        wrong = str(e)
    if wrong:
        target.unlink(missing_ok=True)
    return wrong or None


def _manifest(source: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{source}: no {MANIFEST} there: not a backup, or one that was interrupted") from None
    except (OSError, ValueError) as e:
        raise Refused(f"{source / MANIFEST}: {e}; this backup cannot be used") from None
    try:
        usable = manifest["schema"] == SCHEMA and isinstance(manifest["made_at"], (int, float))
        usable = usable and all(isinstance(said["sha256"], str) for said in manifest["files"].values())
        _tail_of(manifest)
    except (LookupError, TypeError, ValueError, AttributeError):
        usable = False
    if not usable:
        raise Refused(f"{source / MANIFEST}: not of schema {SCHEMA}; this backup cannot be used")
    return manifest


def _tail_of(manifest: dict[str, Any]) -> Tail:
    """Where the copied database ends.

    Raises:
        LookupError, TypeError, ValueError: the manifest does not say so.
    """
    said = manifest["tail"]
    tail = Tail(said["commits"], said["seq"], said["incarnation"], bytes.fromhex(said["chain"]))
    numbers = (tail.commits, tail.seq, tail.incarnation)
    if len(tail.chain) != 16 or not all(isinstance(n, int) and 0 <= n < 1 << 62 for n in numbers):
        raise ValueError(f"no tail of a database: {tail}")
    return tail


def _require_whole(source: Path, files: dict[str, Any]) -> None:
    """Each file of the manifest is there and is what was copied."""
    wrong = []
    for name, said in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise Refused(f"{source / MANIFEST}: names {name!r}, which is outside of the backup")
        try:
            if _digest(source / name) != said["sha256"]:
                wrong.append(f"{name} is damaged")
        except OSError as e:
            wrong.append(f"{name}: {e.strerror}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Refused(f"{source}: {'; '.join(wrong[:3])}{more}; use another backup")


def _require_empty(folder: Path, fix: str) -> None:
    try:
        full = any(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as e:
        raise Refused(f"{folder}: {e.strerror}; {fix}") from None
    if full:
        raise Refused(f"{folder} is not empty; {fix}")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _sync(folder: Path) -> None:
    """Bring a tree to the disk: its files, then the names."""
    for path in _files(folder):
        sync_path(path)
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink())):
        sync_folder(path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)


def _digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
