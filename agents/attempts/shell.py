"""Tasks of type ``shell``: one command, in the folder of its batch, with its log beside the rig.

Nothing here touches the share: the view of the plan is made by a child (``view_child.py``), the command's own
first lines make and enter its folder. Where that does not succeed because the share is away, the lease is returned
and no attempt is counted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from ...bus.errors import BadFrame, DefinitionError
from ...bus.paths import log_path
from ...bus.wire import MAX_PAYLOAD_BYTES, Token, pack, unpack
from ..process.api import ENTER_TIMEOUT_S, ExitStatus, Processes, Spawn, shell_argv
from ..worker import events as ev
from ..worker.events import Lease, Outcome
from .children import Attempt, Host, ProcessRunner
from .environment import task_environment
from .output import MAX_LOG_BYTES, OutputSummary, open_log
from .spawned import SpawnedRunner

log = logging.getLogger(__name__)

SHARE_RETRY_S: Final = 5.0
MAX_VIEWS: Final = 500
RESULT_TAIL_BYTES: Final = 64 << 10  #: of the output in the result, unless the rig's settings say less
UMASK: Final = 0o002  # under the share the Pi's user shares the group
_IGNORED: Final = frozenset({"__pycache__"})
_TICK_NS: Final = 100_000_000
#: What a share that is away, or refuses all writes, says when a folder on it is made or entered.
_AWAY: Final = (
    "no such file",
    "not connected",
    "stale file handle",
    "input/output error",
    "no such device",
    "host is down",
    "not in time",
    "read-only",
    "not writable",
    "no space left",
    "quota exceeded",
)


@dataclass(slots=True)
class Job:
    """One command and what its payload said about the plan."""

    lease: Lease
    plan: Mapping[str, Any] | None
    log_file: Path
    tail_bytes: int = RESULT_TAIL_BYTES
    outcome: Outcome | None = None


@dataclass(slots=True)
class View:
    """A view that this worker made or is making; ``waiting`` leases start when it stands."""

    staged_names: frozenset[str] = frozenset()
    ready: bool = False
    looked_ns: int = 0  #: the folder's mtime when nothing new was in it
    waiting: list[tuple[Lease, Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=list)


class Lender(Protocol):
    """What an attempt is lent while it runs."""

    def lend(self, lease: Lease) -> Mapping[str, str]:
        """Further variables of its command."""

    def over(self, lease: Lease) -> None:
        """It has ended, or never began."""


class ShellRunner(ProcessRunner):
    """Runs ``shell`` leases. ``env_pass`` names further variables of the worker's that commands may see;
    ``supervised`` says that somebody sweeps what this worker leaves when it is killed. ``lender``: what
    gives commands a way to this worker's model."""

    def __init__(
        self,
        host: Host,
        procs: Processes,
        helpers: SpawnedRunner,
        state: Path,
        *,
        env_pass: Sequence[str] = (),
        max_log_bytes: int = MAX_LOG_BYTES,
        tail_bytes: int = RESULT_TAIL_BYTES,
        supervised: bool = False,
        lender: Lender | None = None,
    ) -> None:
        super().__init__(host, procs)
        self._lender = lender
        self._helpers = helpers
        self._state = state
        # The worker's own environment does not change: filtered once, not for each command.
        self._base_env = task_environment(os.environ, {}, env_pass)
        self._max_log_bytes, self._tail_bytes = max_log_bytes, tail_bytes
        self._supervised = supervised
        self._views: dict[str, View] = {}

    # ------------------------------------------------------------ Runner

    def start(self, lease: Lease) -> None:
        try:
            payload = _payload(lease)
        except DefinitionError as e:
            self._end(lease, ev.failed("definition", str(e)))
            return
        plan = payload.get("plan")
        if not plan or not plan.get("view"):
            self._run(lease, payload, plan)
            return
        view = self._view(plan["view"])
        # The view is local: this look cannot hang with the share.
        if view.ready and os.path.isdir(plan["view"]):
            self._run(lease, payload, plan)
            return
        view.waiting.append((lease, payload, plan))
        if len(view.waiting) == 1:
            view.ready = False
            self._make_view(plan)

    def kill(self, token: Any) -> None:
        for view in self._views.values():
            for waiting in [w for w in view.waiting if w[0].token == token]:
                view.waiting.remove(waiting)
                self._end(waiting[0], ev.failed("infra", "ended before its command began"))
        super().kill(token)

    def terminate(self, token: Token) -> None:
        if any(w[0].token == token for v in self._views.values() for w in v.waiting):
            self.kill(token)
        super().terminate(token)

    # ------------------------------------------------------------ the view

    def _view(self, folder: str) -> View:
        if folder not in self._views and len(self._views) >= MAX_VIEWS:
            # Forgotten, not removed: the next attempt of that batch only looks again.
            old = next((f for f, v in self._views.items() if not v.waiting), None)
            if old is not None:
                del self._views[old]
        return self._views.setdefault(folder, View())

    def _make_view(self, plan: Mapping[str, Any]) -> None:
        folder = plan["view"]

        def done(outcome: Outcome) -> None:
            view = self._view(folder)
            waiting, view.waiting = view.waiting, []
            if not outcome.ok:
                self._refuse(waiting, outcome)
                return
            view.ready = True
            view.staged_names = frozenset(unpack(outcome.body))
            for lease, payload, its_plan in waiting:
                self._run(lease, payload, its_plan)

        arguments = {"staged": plan["staged"], "original": plan["original"], "view": folder}
        self._helpers.call(
            ("view", folder), "rigbus.agents.attempts.view_child:prepare", arguments, done, ENTER_TIMEOUT_S
        )

    def _refuse(self, waiting: Sequence[tuple[Lease, Any, Any]], outcome: Outcome) -> None:
        why = outcome.error or "its view cannot be made"
        for lease, _, _ in waiting:
            if outcome.cls == "definition":
                self._end(lease, ev.failed("definition", why))
            else:
                self._end(lease, ev.returned(f"share unavailable: {why}", SHARE_RETRY_S))

    # ------------------------------------------------------------ the command

    def _run(self, lease: Lease, payload: Mapping[str, Any], plan: Mapping[str, Any] | None) -> None:
        log_file = log_path(self._state / "logs", lease.batch, lease.key, lease.attempt)
        enter, original = (plan or {}).get("batch_path"), (plan or {}).get("original")
        try:
            spec = Spawn(
                argv=payload["argv"] or shell_argv(payload["command"]),
                env=self._environment(lease, payload, plan),
                token=self._host.mark(lease.token),
                cwd=self._state,
                enter=Path(enter) if enter else None,
                enter_needs=Path(original) if original else None,
                log_path=log_file,
                umask=UMASK,
                max_log_bytes=self._max_log_bytes,
                death_signal=not self._supervised,
            )
        except DefinitionError as e:
            self._end(lease, ev.failed("definition", str(e)))
            return
        started = self._launch(lease.token, spec, Job(lease, plan, log_file, self._tail_bytes))
        if isinstance(started, Outcome):
            self._end(lease, started)

    def _environment(
        self, lease: Lease, payload: Mapping[str, Any], plan: Mapping[str, Any] | None
    ) -> dict[str, str]:
        """What the command sees.

        Raises:
            DefinitionError: the payload names a variable that no task may set, or a value that none can have.
        """
        extra = {
            "RIGBUS_STATE": str(self._state),
            "RIGBUS_TASK_ID": lease.id,
            "RIGBUS_TASK_KEY": lease.key,
            "RIGBUS_ATTEMPT": str(lease.attempt),
            "RIGBUS_BATCH_ID": lease.batch,
        }
        if lease.feedback is not None:
            extra["RIGBUS_FEEDBACK"] = lease.feedback  # empty at first, so that `set -u` does not mind
        for name, key in (("PLAN_PATH", "view"), ("BATCH_PATH", "batch_path")):
            if plan and plan.get(key):
                extra[f"RIGBUS_{name}"] = extra[f"RIGBUS_V_{name}"] = plan[key]
        own = task_environment({}, {**extra, **payload["env"]})
        lent = self._lender.lend(lease) if self._lender is not None else {}
        return {**self._base_env, **lent, **own, "PATH": self._base_env["PATH"]}

    def _entered(self, attempt: Attempt) -> None:
        self._host.post(ev.Started(attempt.job.lease.token, attempt.enter_by - ENTER_TIMEOUT_S))

    def _wrote(self, attempt: Attempt) -> None:
        self._host.post(ev.Active(attempt.job.lease.token))

    def _hangs(self, attempt: Attempt, said: str) -> None:
        self._host.post(ev.Unkillable(attempt.job.lease.token, said))

    def _over(self, attempt: Attempt, status: ExitStatus, summary: OutputSummary) -> None:
        job: Job = attempt.job
        view = self._views.get(job.plan["view"]) if job.plan and job.plan.get("view") else None
        if view is None or job.plan is None or not _has_new_entry(job.plan["view"], view):
            self._end(job.lease, _outcome(attempt, status, summary, job, summary.logged))
            return
        plan = job.plan

        def done(harvested: Outcome) -> None:
            notes = unpack(harvested.body) if harvested.ok else [f"new entries stay here: {harvested.error}"]
            _append(job.log_file, [f"[rigbus] {note}" for note in notes])
            logged = summary.logged or bool(notes)
            self._end(job.lease, _outcome(attempt, status, summary, job, logged))

        arguments = {"staged": plan["staged"], "original": plan["original"], "view": plan["view"]}
        self._helpers.call(
            ("harvest", job.lease.token),
            "rigbus.agents.attempts.view_child:harvest",
            arguments,
            done,
            ENTER_TIMEOUT_S,
        )

    def _end(self, lease: Lease, outcome: Outcome) -> None:
        if self._lender is not None:
            self._lender.over(lease)
        self._host.post(ev.Ended(lease.token, outcome))


def _payload(lease: Lease) -> dict[str, Any]:
    """The command of a ``shell`` task: ``{command | argv, env?, plan?}``.

    Raises:
        DefinitionError: none or both of command and argv, or a field of the wrong kind (named).
    """
    try:
        payload = unpack(lease.payload) if lease.payload else {}
    except BadFrame as e:
        raise DefinitionError(f"shell: the payload is unreadable: {e}") from None
    if not isinstance(payload, dict):
        raise DefinitionError("shell: the payload is no map; send {command: …} or {argv: […]}")
    command, argv = payload.get("command"), payload.get("argv")
    if (command is None) == (argv is None):
        raise DefinitionError("shell: give either command (a text for bash) or argv (a list of words)")
    if command is not None and not (isinstance(command, str) and command.strip()):
        raise DefinitionError('shell: field "command" is empty or no text')
    if command is not None and "\0" in command:
        raise DefinitionError('shell: field "command" holds a NUL byte; remove it')
    if argv is not None and not (isinstance(argv, list) and argv and all(isinstance(a, str) for a in argv)):
        raise DefinitionError('shell: field "argv" is no list of texts')
    env = payload.get("env") or {}
    if not (isinstance(env, dict) and all(isinstance(v, str) for v in env.values())):
        raise DefinitionError('shell: field "env" is no map of texts')
    plan = payload.get("plan")
    if plan is not None and not isinstance(plan, dict):
        raise DefinitionError('shell: field "plan" is no map')
    for name in ("staged", "original", "view", "batch_path") if plan else ():
        value = plan.get(name)  # type: ignore[union-attr]
        if value is not None and not (isinstance(value, str) and value.startswith("/")):
            raise DefinitionError(f'shell: field "plan.{name}" is no absolute path')
    if plan and plan.get("view") and not (plan.get("staged") and plan.get("original")):
        raise DefinitionError('shell: field "plan.view" needs "plan.staged" and "plan.original"')
    return {"command": command, "argv": argv, "env": env, "plan": plan}


def _outcome(attempt: Attempt, status: ExitStatus, summary: OutputSummary, job: Job, logged: bool) -> Outcome:
    """Exit 0 is good; DESIGN §3 classes the rest. ``logged``: there is a log file, which the value then names."""
    if not status.entered:
        why = "its folder was not entered in time" if attempt.late else status.message
        enter = (job.plan or {}).get("batch_path")
        if enter and (attempt.late or any(word in why.lower() for word in _AWAY)):
            return ev.returned(f"share unavailable: {why}", SHARE_RETRY_S)
        return ev.failed("infra", f"the command did not start: {why}", duration_s=status.duration_s)
    tail, cut = _tail(summary, job.tail_bytes)
    value = {
        "exit": status.code,
        "signal": status.signal,
        "output": tail,
        "truncated_bytes": cut,
        "duration_s": round(status.duration_s, 3),
    }
    if logged:
        value["log"] = str(job.log_file)
    body = pack(value)
    if status.ok:
        return Outcome(True, body=body, exit=0, duration_s=status.duration_s)
    last = "\n".join(tail.rstrip().splitlines()[-10:])
    if status.code is not None:
        error, cls = f"exit {status.code}", "task"
    elif status.signal is not None:
        error, cls = f"ended by signal {status.signal}", status.error_class
        cls = "infra" if cls == "killed" else cls
    else:
        error, cls = status.message or "its end was not seen", "infra"
    if last:
        error = f"{error}: {last[-2000:]}"
    return ev.failed(cls, error, body=body, duration_s=status.duration_s, exit=status.code)


def _tail(summary: OutputSummary, most: int) -> tuple[str, int]:
    """The last part of the output as text, at most so many bytes of it, and how many bytes are not in it."""
    data = summary.head + summary.tail if not summary.elided_bytes else summary.tail or summary.head
    kept = data[-most:]
    text = kept.decode("utf-8", "replace")
    while len(text.encode()) > MAX_PAYLOAD_BYTES - 4096:  # U+FFFD is three bytes for one
        text = text[len(text) // 4 :]
    return text, summary.total_bytes - len(kept)


def _has_new_entry(folder: str, view: View) -> bool:
    """Did an attempt make something real at the top of its view?"""
    try:
        changed_ns = os.stat(folder).st_mtime_ns
        if changed_ns == view.looked_ns:
            return False
        with os.scandir(folder) as entries:
            found = any(
                not e.is_symlink()
                and e.name not in view.staged_names
                and e.name not in _IGNORED
                and not e.name.startswith(".rigbus-")
                for e in entries
            )
    except OSError:
        return False  # the view is gone: there is nothing to bring
    # The kernel's clock ticks every 4 ms: what is made within the tick of this look would show the same time.
    if not found and time.time_ns() - changed_ns > _TICK_NS:
        view.looked_ns = changed_ns
    return found


def _append(path: Path, lines: Sequence[str]) -> None:
    if not lines:
        return
    try:
        fd = open_log(path)
    except OSError as e:
        log.warning("%s: %s", path, e)
        return
    with os.fdopen(fd, "ab") as f:
        f.write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
