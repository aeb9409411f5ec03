"""Where a broker may run: its state folder, the lock on it, its addresses."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from .errors import ConfigError, Refused


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
        Refused: another broker holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Refused(
            f"{path.parent}: another broker runs on this state folder; `rigbus down` ends it, or choose another --state"
        ) from None
    return fd


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
