"""Whether the rig of this state folder runs, and whether what it says of itself is true."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ... import __version__
from ...bus.errors import ConfigError, RigbusError
from ...bus.paths import RigPaths, read_run_json
from .children import within
from .findings import Finding, size

GROUP: Final = "Rig"
ANSWER_S: Final = 2.0
_IPC: Final = "ipc://"


@dataclass(frozen=True, slots=True)
class RigFacts:
    """``run`` is run.json; ``lock`` the pid of the supervisor that holds the state folder; ``alive`` who of run.json's
    processes lives; ``listening`` whether somebody accepts on the command socket; ``status`` the broker's answer.
    """

    run: Mapping[str, Any] | None = None
    run_error: str = ""
    lock: int | None = None
    alive: Mapping[str, bool] = field(default_factory=dict)
    listening: bool = False
    status: Mapping[str, Any] | None = None
    broker_error: str = ""
    logs: str = "logs"
    ours: str = __version__


def gather(paths: RigPaths) -> RigFacts:
    """The facts of a state folder that is known to answer; the broker is asked only where one listens."""
    run, error = None, ""
    try:
        run = read_run_json(paths)
    except ConfigError as e:
        error = str(e)
    pids = (run or {}).get("pids")
    alive = {str(name): lives(pid) for name, pid in pids.items()} if isinstance(pids, dict) else {}
    endpoints = (run or {}).get("endpoints")
    known = endpoints.get("commands") if isinstance(endpoints, dict) else None
    listening = listens(str(known or f"{_IPC}{paths.runtime / 'commands'}"))
    status, said = _ask(paths) if listening else (None, "")
    return RigFacts(run, error, lock_of(paths), alive, listening, status, said, str(paths.logs))


def lock_of(paths: RigPaths) -> int | None:
    """The pid of the supervisor that holds the state folder; 0 when that cannot be told."""
    if not (paths.state / "up.lock").exists():
        return None
    try:
        from ...agents.supervisor.folder import lock_holder

        return lock_holder(paths.state)
    except (ImportError, OSError):  # a broken install, another user's folder: both have findings of their own
        return 0


def lives(pid: object) -> bool:
    """Whether a process with this pid is there."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def listens(endpoint: str) -> bool:
    """Whether somebody accepts on an ``ipc://`` endpoint; others are taken to."""
    if not endpoint.startswith(_IPC):
        return True
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(0.5)
            s.connect(endpoint.removeprefix(_IPC))
    except TimeoutError:
        return True  # its queue is full: it is there, and the question below says whether it is well
    except OSError:
        return False
    return True


def _ask(paths: RigPaths) -> tuple[Mapping[str, Any] | None, str]:
    def question() -> Mapping[str, Any]:
        from ...bus.client.client import Client

        with Client(state=paths.state, timeout_s=ANSWER_S) as bus:
            return bus.query("status")

    try:
        return within(3 * ANSWER_S, question), ""
    except (RigbusError, TimeoutError, ImportError) as e:
        return None, str(e)


def judge(facts: RigFacts) -> list[Finding]:
    """Running or not, then its processes, its broker, its versions."""
    found = [_running(facts)]
    if facts.run_error:
        found.append(Finding(GROUP, "run.json", "fail", *_halves(facts.run_error)))
    if facts.lock is not None:
        found += _processes(facts)
    if facts.listening or facts.lock is not None:
        found += _broker(facts)
    return [*found, *_versions(facts)]


def _halves(text: str) -> tuple[str, str]:
    what, _, fix = text.partition("; ")
    return what, fix


def _running(facts: RigFacts) -> Finding:
    run = facts.run or {}
    since = f" since {run['started_at']}" if run.get("started_at") else ""
    if facts.lock is not None:
        return Finding(GROUP, "up", "ok", f"running{since}, pid {facts.lock or 'unknown'}")
    if facts.listening:
        return Finding(GROUP, "up", "ok", "no supervisor, but a broker that was started alone")
    if facts.run is not None:
        said = f"not running; run.json is of a run{since} that ended without cleaning up"
        return Finding(
            GROUP, "up", "warn", said, "rigbus up: it ends what is left and goes on with the tasks"
        )
    return Finding(GROUP, "up", "info", "not running", "rigbus up")


def _processes(facts: RigFacts) -> Iterable[Finding]:
    dead = [name for name, living in facts.alive.items() if not living]
    if dead:
        fix = f"`up` starts it again; {facts.logs}/{dead[0]}.log says why it ended"
        yield Finding(GROUP, "processes", "warn", f"gone: {', '.join(dead)}", fix)
    elif facts.alive:
        yield Finding(GROUP, "processes", "ok", ", ".join(facts.alive))


def _broker(facts: RigFacts) -> Iterable[Finding]:
    log = f"{facts.logs}/broker.log"
    if not facts.listening:
        yield Finding(
            GROUP, "broker", "fail", "no broker listens", f"see {log}, then rigbus down and rigbus up"
        )
        return
    if facts.status is None:
        said, _ = _halves(facts.broker_error)
        fix = f"see {log}; a stopped broker goes on with kill -CONT, else rigbus down and rigbus up"
        yield Finding(GROUP, "broker", "fail", f"listens but does not answer: {said}", fix)
        return
    broker = facts.status.get("broker") or {}
    workers = facts.status.get("workers") or ()
    yield Finding(GROUP, "broker", "ok", f"answers, incarnation {broker.get('incarnation')}")
    disk = facts.status.get("disk") or {}
    if disk.get("level", "ample") != "ample":
        said = f"{disk['level']}: {size(disk['free_bytes'])} free of {size(disk['low_bytes'])} wanted"
        rest = "and starts none" if disk["level"] == "full" else "until there is room"
        fix = f"free some space on the disk of {disk['folder']}; it goes on by itself"
        yield Finding(GROUP, "disk", "fail", f"{said}; the rig takes no new tasks {rest}", fix)
    if not workers:
        yield Finding(GROUP, "workers", "warn", "none is attached", "rigbus up, or rigbus worker")
    brain = str((facts.status.get("brain") or {}).get("state"))
    if brain != "seated":
        yield Finding(
            GROUP, "brain", "warn", f"{brain}: plans wait", f"see {facts.logs}/brain.log, or rigbus brain"
        )
    share = (facts.status.get("bridge") or {}).get("share") or {}
    if share.get("available") is False:
        fix = "see the shared folder's findings below; plans go on when it is back"
        yield Finding(GROUP, "bridge", "warn", f"the share is unavailable: {share.get('reason')}", fix)


def _versions(facts: RigFacts) -> Iterable[Finding]:
    """Of `up` (run.json) and of the broker, beside that of this command."""
    broker = ((facts.status or {}).get("broker") or {}).get("build")
    told = {"up": (facts.run or {}).get("version") if facts.lock is not None else None, "the broker": broker}
    running = {name: str(version) for name, version in told.items() if version}
    other = [f"{name} is {version}" for name, version in running.items() if version != facts.ours]
    if other:
        said = f"{', '.join(other)}; this command is {facts.ours}"
        yield Finding(GROUP, "versions", "warn", said, "rigbus down, then rigbus up")
    elif running:
        yield Finding(GROUP, "versions", "ok", f"{facts.ours}, as this command")
