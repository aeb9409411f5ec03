"""Where a broker may run: its state folder, the lock on it, its database, its addresses."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, Refused, StoreError
from ..paths import RigPaths
from ..store.ballast import Disk, full_disk, is_full
from ..store.reading import Loaded
from ..store.store import Store, state_id


def make_state(folder: Path) -> None:
    """The state folder, for us alone where it is new.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise ConfigError(
            f"the state folder {folder} cannot be made: {e.strerror}; choose a folder of yours with --state DIR or "
            "RIGBUS_STATE"
        ) from None


def lock(path: Path) -> int:
    """The one broker of a state folder; held by the kernel, gone with the process.

    Raises:
        Refused: another broker holds it.  StoreError: the disk does not give the file.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(
            f"{path}: {e.strerror}; check the disk, the folder's rights and its free space"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Refused(
            f"{path.parent}: another broker runs on this state folder; `rigbus down` ends it, or choose another --state"
        ) from None
    return fd


@dataclass(frozen=True, slots=True)
class Opened:
    """A database that was read whole, and then marked with this start's incarnation."""

    store: Store
    loaded: Loaded
    incarnation: int
    state_id: str


def open_store(paths: RigPaths, disk: Disk, durability: str, now: float, wall: float) -> Opened:
    """Open and read it: on a full disk with the ballast's room. A damaged one is not written to.

    Raises:
        DiskFull: there is no room even so.  StoreError: the database cannot be used.
    """
    try:
        return _open_once(paths, durability, now, wall)
    except (StoreError, sqlite3.Error, OSError) as e:
        if not is_full(paths.state):
            if isinstance(e, StoreError):
                raise
            raise StoreError(f"{paths.db}: {e}; nothing was changed. Check the disk, then start again") from e
        if not disk.give_up():
            raise full_disk(paths.db, "the database cannot be opened") from e
    try:
        return _open_once(paths, durability, now, wall)
    except (StoreError, sqlite3.Error, OSError) as e:
        raise full_disk(paths.db, "the database cannot be opened") from e


def _open_once(paths: RigPaths, durability: str, now: float, wall: float) -> Opened:
    store = Store(paths.db, durability=durability)
    try:
        return Opened(store, store.load(now, wall), store.next_incarnation(), state_id(paths.state))
    except BaseException:
        store.close()
        raise


def check_addresses(addresses: dict[str, str]) -> None:
    """Off loopback needs encryption and an allow-list, which this version does not have."""
    for name, address in addresses.items():
        if address.startswith("tcp://") and not address.startswith(
            ("tcp://127.", "tcp://[::1]", "tcp://localhost")
        ):
            raise ConfigError(
                f"{name} at {address}: tcp off loopback needs CURVE keys and an allow-list, which are not there yet; "
                "use ipc:// or 127.0.0.1"
            )
