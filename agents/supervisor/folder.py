"""The rig's private folder as `up` needs it: checked, made, locked, named; and the lines that people are told.

Laws: the lock comes before anything else (a second ``ipc://`` bind would silently steal the sockets); the shared
folder itself is never touched here, since a call on a hung mount cannot be ended.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ...bus.errors import ConfigError, Refused
from ...bus.mounts import Mount, mount_of, require_local
from ...bus.paths import RigPaths, endpoints, make_runtime
from ...bus.store.store import state_id

LOCK_NAME: Final = "up.lock"
MAX_LOG_BYTES: Final = 8 << 20  #: of a process' own log, kept twice: now and before
#: The classes of tasks that plans know (plans.model.TaskClass).
CLASSES: Final = ("cpu", "script", "llm", "brain", "meta")


class UpLock:
    """The exclusive lock of the supervisor on one state folder, held until the process ends."""

    def __init__(self, state: Path) -> None:
        """Take it.

        Raises:
            Refused: another supervisor holds it; its pid is named.
        """
        self._fd = os.open(state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(self._fd, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise Refused(
                f"a rig is up already on {state} (pid {pid}); stop it with `rigbus down --state {state}`, or choose "
                "another folder with --state DIR"
            ) from None
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as e:
            os.close(self._fd)
            raise Refused(
                f"{state / LOCK_NAME} cannot be written: {e.strerror}; free some space on its disk"
            ) from None

    def release(self) -> None:
        """Let go of it; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def lock_holder(state: Path) -> int | None:
    """The pid of the supervisor of this state folder, None when none runs.

    The lock is the proof: a pid that was written by a supervisor that has died may be anybody's by now.
    """
    try:
        fd = os.open(state / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 20, 0).strip()
            return int(text) if text.isdigit() else None
        return None
    finally:
        os.close(fd)


def prepare(paths: RigPaths) -> UpLock:
    """Check and make the private folders and take the lock.

    Raises:
        ConfigError: a network file system, a socket path that is too long, a folder that is not ours.
        Refused: another supervisor runs here.
    """
    require_local(paths.state)
    endpoints(paths)
    try:
        paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(paths.state, 0o700)
    except OSError as e:
        raise ConfigError(
            f"the state folder {paths.state} cannot be made private: {e.strerror}; choose a folder of yours with "
            "--state DIR or RIGBUS_STATE"
        ) from None
    lock = UpLock(paths.state)
    for folder in (paths.logs, paths.staged, paths.views, paths.results):
        folder.mkdir(exist_ok=True, mode=0o700)
    if paths.shared == paths.state / "shared":
        paths.shared.mkdir(exist_ok=True)
    make_runtime(paths)
    return lock


def known_state_id(state: Path) -> str:
    """The id of this state folder, 32 hex digits in ``<state>/id``, made once; the broker uses the same.

    Raises:
        ConfigError: the file holds something else.
    """
    text = state_id(state)
    if len(text) != 32 or not set(text) <= set("0123456789abcdef"):
        raise ConfigError(
            f"{state / 'id'}: not 32 hex digits; remove it, a new one is made at the next start"
        )
    return text


def rotate_log(file: Path) -> None:
    """Put a process' log aside (``.1``) before it starts to write to one that has grown large."""
    try:
        if file.stat().st_size > MAX_LOG_BYTES:
            os.replace(file, file.with_name(file.name + ".1"))
    except FileNotFoundError:
        pass


def said_since(file: Path, since: int, most: int = 20) -> list[str]:
    """The first ``most`` lines with text that were written at or after the byte ``since``; at most 300 characters each."""
    try:
        with file.open("rb") as log:
            log.seek(since)
            lines = log.read(16_384).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [_printable(line)[:300] for line in lines if line.strip()][:most]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def last_line(file: Path, since: int = 0) -> str:
    """The last line with text that was written at or after the byte ``since``; at most 300 characters."""
    try:
        with file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(since if since <= size else 0, size - 4096))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if text := line.strip():
            return _printable(text)[-300:]
    return ""


def trust_line(shared: Path) -> str:
    """Who may run what here. It is said at every start: it is the one thing to know about a rig."""
    return f"whoever can write to {shared} can run commands as {_user()} here"


def root_line() -> str | None:
    """A warning when everything runs as root."""
    if os.geteuid() != 0:
        return None
    return "running as root: so does every command of every plan; a user of its own is safer"


def mount_line(shared: Path, mount: Mount | None = None) -> str:
    """What to type on the Pi to see the shared folder. ``mount``: where it lies; looked up when None."""
    found = mount or mount_of(shared, resolve=False)
    if found is None or not found.network:
        return f"on the Pi: sshfs -o reconnect {_user()}@{socket.gethostname()}:{shared} ~/rig"
    rest = str(shared).removeprefix(found.point.rstrip("/"))
    if ":" in found.source and found.fstype.startswith("nfs"):
        return f"on the Pi: sudo mount -t nfs {found.source.rstrip('/')}{rest} /mnt/rig"
    if found.source.startswith("//"):
        return f"on the Pi: sudo mount -t cifs {found.source} /mnt/rig -o user={_user()}, then /mnt/rig{rest}"
    return f"on the Pi: mount {found.source} as here ({found.fstype}); the folder is {rest or '/'} in it"


def idle_class_lines(offered: Iterable[str]) -> list[str]:
    """The classes of tasks that nobody here can run, and what would change it."""
    fix = {
        "llm": "`rigbus up --model FILE.gguf` runs them",
        "brain": "the brain-worker runs them",
    }
    known = set(offered)
    missing = [name for name in CLASSES if name not in known and name != "meta"]
    return [
        f"no worker runs tasks of class {name}: they wait; {fix.get(name, '`rigbus why TASK` says more')}"
        for name in missing
    ]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a uid without a name, as in some containers
        return f"user {os.getuid()}"
