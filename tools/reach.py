"""How a verb reaches the rig: over the bus where its broker answers, else through the files of the shared folder.

The first look needs neither zmq nor msgpack, so that a machine that only has the folder never loads them.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..bus.errors import Unreachable
from ..bus.paths import RigPaths, read_run_json
from .common import talk, where

if TYPE_CHECKING:
    from ..bus.client.client import Client

#: How long a broker whose socket is there may take to answer.
ANSWER_S: Final = 2.0
_IPC: Final = "ipc://"


@dataclass(slots=True)
class Reach:
    """The way to the rig. ``client`` is None in file mode; ``paths.shared`` is the folder that the rig serves."""

    paths: RigPaths
    client: Client | None
    why_not: str = ""

    def __enter__(self) -> Reach:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.client is not None:
            self.client.close()

    @property
    def bus(self) -> Client:
        """The client.

        Raises:
            Unreachable: this is file mode.
        """
        if self.client is None:
            raise Unreachable(self.why_not)
        return self.client


def reach(state: Path | None, shared: Path | None = None, config: Path | None = None) -> Reach:
    """Over the bus, else by the folder; stderr says which.

    Raises:
        Unreachable: no broker answers, and the shared folder is none of a rig.
        ConfigError: the rig's folders are unusable.
    """
    found = _look(where(state, shared, config), chosen=state is not None)
    if found.client is not None:
        talk(f"bus mode: the rig on {found.paths.state}")
        return found
    if not is_share(found.paths.shared):
        raise Unreachable(
            f"{found.why_not}; and {found.paths.shared} is no shared folder of a rig: start one with `rigbus up`, or "
            "name it with --state DIR or --shared DIR"
        )
    talk(f"file mode: {found.paths.shared}, {_news(found.paths.shared)} ({found.why_not})")
    return found


def reach_bus(state: Path | None, config: Path | None = None) -> Reach:
    """Over the bus only.

    Raises:
        Unreachable: no broker answers.  ConfigError: the rig's folders are unusable.
    """
    found = _look(where(state, None, config), chosen=True)
    if found.client is None:
        raise Unreachable(
            f"{found.why_not}; start the rig with `rigbus up`, or name another with --state DIR or RIGBUS_STATE"
        )
    return found


def rig_folders(state: Path | None, shared: Path | None, config: Path | None) -> RigPaths:
    """The rig's folders without asking anybody; ``shared`` as the rig on this state folder has it, if it is known."""
    paths = where(state, shared, config)
    return _served(paths, read_run_json(paths), chosen=state is not None) or paths


def shared_folder(paths: RigPaths) -> RigPaths:
    """``paths``, when their shared folder is there.

    Raises:
        Unreachable: it is not, or is none of a rig.
    """
    if not is_share(paths.shared):
        raise Unreachable(
            f"{paths.shared} is no shared folder of a rig: mount it, or name it with --shared DIR"
        )
    return paths


def is_share(folder: Path) -> bool:
    """Whether the folder has what a bridge makes in every share."""
    return (folder / "inbox").is_dir() or (folder / "tasks").is_dir()


def _news(shared: Path) -> str:
    """How old the folder's newest sign of a rig is."""
    from .files import Folder
    from .render import age

    at = Folder(shared).as_of()
    return f"as of {age(at, time.time())} ago" if at is not None else "no rig has written here yet"


def _served(paths: RigPaths, run: dict[str, Any] | None, *, chosen: bool) -> RigPaths | None:
    """The paths with the folder that the running rig serves; None where the user means another folder.

    ``chosen``: the state folder was named, so its rig is meant whatever the environment says of the share.
    """
    if run is None or not isinstance(run.get("shared"), str):
        return paths
    served = Path(run["shared"])
    asked = paths.shared
    if chosen or asked == paths.state / "shared" or os.path.realpath(asked) == os.path.realpath(served):
        return replace(paths, shared=served)
    return None


def _look(paths: RigPaths, *, chosen: bool) -> Reach:
    run = read_run_json(paths)
    served = _served(paths, run, chosen=chosen)
    if served is None:
        return Reach(paths, None, f"the rig on {paths.state} serves another folder")
    if not _may_answer(served, run):
        return Reach(served, None, f"no broker answers on the state folder {served.state}")
    from ..bus.client.client import Client

    try:
        return Reach(served, Client(state=served.state, timeout_s=ANSWER_S))
    except Unreachable as e:
        return Reach(served, None, str(e).partition(";")[0])


def _may_answer(paths: RigPaths, run: dict[str, Any] | None) -> bool:
    """A look at the socket that costs no library: nobody listens and no supervisor lives means no."""
    endpoint = str(
        ((run or {}).get("endpoints") or {}).get("commands") or f"{_IPC}{paths.runtime / 'commands'}"
    )
    if not endpoint.startswith(_IPC):
        return True
    file = endpoint.removeprefix(_IPC)
    if not os.path.exists(file):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(0.3)
            s.connect(file)
    except TimeoutError:
        return True
    except OSError:
        # A broker that is being restarted is worth the wait; a socket left by a rig that is gone is not.
        return lives((run or {}).get("pid"))
    return True


def lives(pid: object) -> bool:
    """Whether a process of this number is there; False for what is no number of one."""
    if not isinstance(pid, int) or pid <= 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
