"""Where a rig's files and sockets are. Standard library only: verbs that work on files load nothing else.

``rig_paths`` and ``endpoints`` only compute; ``make_runtime`` is the one that makes and checks the socket folder.
Whoever can open the sockets can run commands as the rig's user (PROTOCOL §10), so that folder is 0700 and ours.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError

SOCKETS: Final = ("commands", "heartbeats", "events")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class RigPaths:
    """The folders of one rig. All but ``shared`` are private and on a local disk."""

    state: Path
    db: Path  #: the broker's SQLite file
    logs: Path  #: ``<batch>/<key>.<attempt>.log`` of tasks, and the processes' own logs
    staged: Path  #: ``<sha256>/``: read-only copies of plans
    views: Path  #: ``<batch>/``: what a task sees as {PLAN_PATH}
    results: Path  #: ``<sha[:2]>/<sha256>``: values over 256 KiB
    run_json: Path  #: pids and endpoints of the running rig
    runtime: Path  #: the sockets
    shared: Path


@dataclass(frozen=True, slots=True)
class Rig:
    """A rig as a client finds it. ``run`` is its run.json, None when the rig has not been started."""

    paths: RigPaths
    endpoints: dict[str, str]
    run: dict[str, Any] | None


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME") or ""
    if home:
        return Path(home)
    try:
        return Path.home()
    except RuntimeError:
        raise ConfigError("no home folder is known: give --state DIR or set RIGBUS_STATE or HOME") from None


def default_state(environ: Mapping[str, str] = os.environ) -> Path:
    """RIGBUS_STATE, else ``$XDG_STATE_HOME/rigbus``, else ``~/.local/state/rigbus``.

    Raises:
        ConfigError: none of them is known.
    """
    if given := environ.get("RIGBUS_STATE"):
        return Path(given).expanduser().absolute()
    xdg = environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a path that is not absolute is to be ignored.
    base = Path(xdg) if xdg.startswith("/") else _home(environ) / ".local" / "state"
    return base / "rigbus"


def model_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """RIGBUS_MODEL where it is the GGUF file that a rig or an agent is to serve; None where it is not set, or is a name.

    A command of a rig (RIGBUS_TASK_ID is there) finds the *name* of its worker's model in this variable: what it starts
    must not take that for a file. A command that sets it itself names a file by a ``/`` or the ending ``.gguf``.
    """
    given = environ.get("RIGBUS_MODEL", "")
    if environ.get("RIGBUS_TASK_ID") and "/" not in given and not given.endswith(".gguf"):
        return None
    return Path(given) if given else None


def config_files(environ: Mapping[str, str] = os.environ, cwd: Path | None = None) -> list[Path]:
    """Where a configuration is looked for, the strongest first; the files need not exist."""
    xdg = environ.get("XDG_CONFIG_HOME", "")
    files = [(cwd or Path.cwd()) / "rigbus.toml"]
    if xdg.startswith("/"):
        files.append(Path(xdg) / "rigbus" / "config.toml")
    elif environ.get("HOME"):
        files.append(Path(environ["HOME"]) / ".config" / "rigbus" / "config.toml")
    return [*files, Path("/etc/rigbus/config.toml")]


def profiles() -> dict[str, Path]:
    """The configurations for known rigs that are shipped, by name."""
    return {file.stem: file for file in Path(__file__).with_name("profiles").glob("*.toml")}


def read_toml(file: Path) -> dict[str, Any] | None:
    """One configuration file; None when it does not exist.

    Raises:
        ConfigError: it cannot be read or is not TOML; the message has file and line.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as e:
        raise ConfigError(
            f"{file}: not UTF-8 text ({e.reason} at byte {e.start}); save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{file}: not TOML: {e}; correct that line") from None
    except OSError as e:
        raise ConfigError(
            f"{file}: cannot be read: {e.strerror}; check the path and its permissions"
        ) from None


def _from_files(key: str, config: Path | None, environ: Mapping[str, str]) -> Path | None:
    if config is not None and not config.exists():
        raise ConfigError(f"{config}: no such file; correct --config")
    for file in [config] if config is not None else config_files(environ):
        value = (read_toml(file) or {}).get(key)
        if isinstance(value, str) and value:
            return file.absolute().parent / Path(value).expanduser()
    return None


def locate(
    state: Path | None = None,
    shared: Path | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RigPaths:
    """The rig's paths by the one order: arguments, RIGBUS_STATE and RIGBUS_SHARED, configuration files, defaults.

    For verbs that must not load the settings model; it reads only these two keys.

    Raises:
        ConfigError: a file is not TOML, or no home folder is known.
    """
    if state is None and not environ.get("RIGBUS_STATE"):
        state = _from_files("state", config, environ)
    if shared is None:
        given = environ.get("RIGBUS_SHARED")
        shared = Path(given) if given else _from_files("shared", config, environ)
    return rig_paths(state or default_state(environ), shared, environ)


def _usable_runtime_base(folder: str) -> bool:
    try:
        info = os.stat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()


def runtime_folder(state: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of this state's sockets; a name as short as ``ipc://`` needs, the same from every process.

    ``$RIGBUS_RUNTIME/<hash8>``, else ``$XDG_RUNTIME_DIR/rigbus-<hash8>`` where that folder is ours (after ``su`` it is
    not), else ``/tmp/rigbus-<uid>/<hash8>``.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(state))).hexdigest()[:8]
    if base := environ.get("RIGBUS_RUNTIME"):
        return Path(base).absolute() / name
    xdg = environ.get("XDG_RUNTIME_DIR", "")
    if xdg.startswith("/") and _usable_runtime_base(xdg):
        return Path(xdg) / f"rigbus-{name}"
    return Path(f"/tmp/rigbus-{os.getuid()}") / name


def rig_paths(state: Path, shared: Path | None = None, environ: Mapping[str, str] = os.environ) -> RigPaths:
    """Every path of the rig with this state folder; nothing is made. ``shared`` defaults to ``<state>/shared``."""
    state = state.expanduser().absolute()
    return RigPaths(
        state=state,
        db=state / "rigbus.db",
        logs=state / "logs",
        staged=state / "staged",
        views=state / "views",
        results=state / "results",
        run_json=state / "run.json",
        runtime=runtime_folder(state, environ),
        shared=shared.expanduser().absolute() if shared is not None else state / "shared",
    )


def log_path(logs: Path, batch: str, key: str, attempt: int) -> Path:
    """Where an attempt's log lies: ``<logs>/<batch>/<key>.<attempt>.log``.

    A key may hold anything (``/`` in calls of a handler): other characters than ``A-Za-z0-9._-`` become ``%XX``,
    and what would be too long for a file name ends in a hash.
    """
    return logs / folder_name(batch) / f"{_file_name(key, 200)}.{attempt}.log"


def folder_name(batch: str) -> str:
    """The folder of a batch in ``logs/``."""
    return _file_name(batch, 120)


#: What no id of a batch has: between the id and the number in the name of a later revision's view.
OF_REVISION: Final = "@"


def view_name(batch: str, revision: int) -> str:
    """The folder of ``views/`` that is ``{PLAN_PATH}`` of a batch; each revision of its plan has one of its own."""
    return batch if revision == 1 else f"{batch}{OF_REVISION}{revision}"


def _file_name(text: str, most: int) -> str:
    if len(text) <= most and _PLAIN_NAME.fullmatch(text):
        return text
    safe = "".join(
        c
        if c.isascii() and (c.isalnum() or c in "._-")
        else "".join(f"%{b:02X}" for b in c.encode("utf-8", "replace"))
        for c in text
    )
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if len(safe) <= most:
        return safe or "%"
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    return f"{safe[: most - 13]}-{digest}"


def endpoints(paths: RigPaths) -> dict[str, str]:
    """``{"commands": "ipc://…", "heartbeats": …, "events": …}``.

    Raises:
        ConfigError: a socket's path is over 107 bytes (the limit of Unix sockets).
    """
    from .wire import IPC_PATH_MAX  # the wire loads msgpack, which a verb of files does not need

    found = {}
    for name in SOCKETS:
        path = paths.runtime / name
        length = len(os.fsencode(path))
        if length > IPC_PATH_MAX:
            raise ConfigError(
                f"the socket path {path} has {length} bytes, {IPC_PATH_MAX} are allowed; set RIGBUS_RUNTIME to a "
                "short folder of yours, such as /run/user/1000 or /tmp/rb"
            )
        found[name] = f"ipc://{path}"
    return found


def check_private(folder: Path) -> None:
    """Refuse a socket folder that is not ours alone. One that does not exist is no danger.

    Raises:
        ConfigError: it is a link, no folder, another user's, or open to the group or to others.
    """
    try:
        info = os.lstat(folder)
    except FileNotFoundError:
        return
    except OSError as e:
        raise ConfigError(
            f"the runtime folder {folder}: {e.strerror}; set RIGBUS_RUNTIME to a folder of yours"
        ) from None
    problem = ""
    if not stat.S_ISDIR(info.st_mode):
        problem = "is no folder"
    elif info.st_uid != os.getuid():
        problem = f"belongs to user {info.st_uid}, you are {os.getuid()}"
    elif info.st_mode & 0o077:
        problem = f"has mode {info.st_mode & 0o777:04o}, others could open its sockets (chmod 700 {folder})"
    if problem:
        raise ConfigError(
            f"the runtime folder {folder} {problem}; remove it or set RIGBUS_RUNTIME to another folder"
        )


def _private_parent(folder: Path) -> Path | None:
    """``/tmp/rigbus-<uid>`` is ours to make and check too; any other parent is the system's or the user's."""
    return folder.parent if folder.parent.name == f"rigbus-{os.getuid()}" else None


def make_runtime(paths: RigPaths) -> Path:
    """Make the socket folder, mode 0700, and check that it is ours alone.

    Raises:
        ConfigError: as :func:`check_private`, or it cannot be made.
    """
    parent = _private_parent(paths.runtime)
    try:
        if parent is None:
            paths.runtime.parent.mkdir(parents=True, exist_ok=True)
        for folder in (parent, paths.runtime):
            if folder is not None:
                folder.mkdir(mode=0o700, exist_ok=True)
                check_private(folder)
    except OSError as e:
        raise ConfigError(
            f"the runtime folder {paths.runtime} cannot be made: {e.strerror}; set RIGBUS_RUNTIME to a folder of yours"
        ) from None
    return paths.runtime


def write_atomic(file: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Write a file so that a reader sees the old or the new content, never a part.

    ``durable``: the new content is on the disk, under its name, when this returns.
    """
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            os.fchmod(out.fileno(), mode)
            out.write(data)
            out.flush()
            if durable:
                os.fsync(out.fileno())
        os.replace(name, file)
    except OSError as e:
        os.unlink(name)
        raise OSError(e.errno, e.strerror, str(file)) from None  # a failed write or sync does not say of what
    except BaseException:
        os.unlink(name)
        raise
    if durable:
        try:
            sync_path(file.parent)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
                raise


def sync_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk.

    Raises:
        OSError: it does not take them; it names the path.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from None
    finally:
        os.close(fd)


def write_run_json(paths: RigPaths, data: Mapping[str, Any]) -> None:
    """Publish pids and endpoints of the running rig (``run.json``, 0600, atomically)."""
    write_atomic(paths.run_json, (json.dumps(data, indent=1) + "\n").encode())


def read_run_json(paths: RigPaths) -> dict[str, Any] | None:
    """The run.json of this rig; None when there is none.

    Raises:
        ConfigError: it cannot be read, or is not what rigbus wrote.
    """
    try:
        run = json.loads(paths.run_json.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise ConfigError(f"{paths.run_json}: unusable ({e}); remove it and start the rig again") from None
    if not isinstance(run, dict):
        raise ConfigError(f"{paths.run_json}: no JSON object; remove it and start the rig again")
    return run


def find_rig(state: Path | None = None, environ: Mapping[str, str] = os.environ) -> Rig:
    """The rig of this state folder, running or not. What run.json says comes before what this environment implies.

    Raises:
        ConfigError: the socket folder is not ours alone, a path is too long, or run.json is damaged.
    """
    paths = locate(state, environ=environ)
    run = read_run_json(paths)
    known = (run or {}).get("endpoints")
    if isinstance(known, dict) and all(isinstance(known.get(name), str) for name in SOCKETS):
        found = {name: str(known[name]) for name in SOCKETS}
    else:
        found = endpoints(paths)
    for endpoint in found.values():
        if endpoint.startswith("ipc://"):
            folder = Path(endpoint.removeprefix("ipc://")).parent
            for private in (_private_parent(folder), folder):
                if private is not None:
                    check_private(private)
    return Rig(paths, found, run)
