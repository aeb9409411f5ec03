"""The rig's child processes as the supervisor holds them: how one is started, read and ended with its tree.

It decides nothing: ``core.py`` says what is to happen, supervisor.py when.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq

from ...bus.paths import RigPaths
from ..process.api import UNKILLABLE_S, Child, ExitStatus, unkillable
from ..process.linux import LinuxProcesses, Processes, Spawn, Sweep, default_launcher, processes
from .cards import ModelSeat
from .core import ChildSpec, Stage
from .folder import last_line, rotate_log
from .lifeline import ALIVE_VARIABLE, Lifeline

GUARD: Final = "guard"
SWEEP_STEP_S: Final = 0.03
#: A commit on a slow disk holds up the broker for seconds, a large plan the brain; a hung one helps nobody.
BROKER_SILENT_S: Final = 10.0
SERVICE_SILENT_S: Final = 30.0
GIVEN_UP_STEP_S: Final = 1.0
UNKILLABLE_STOP_S: Final = 6.0  #: instead of UNKILLABLE_S, when the rig stops
LAST_WORDS_S: Final = 3.0  #: for what must be ended when the supervisor itself fails


@dataclass(slots=True)
class Running:
    """One started process and the descriptors that belong to it."""

    child: Child
    alive_fd: int | None
    log_from: int
    last_beat: str = ""
    session: str = ""  #: of its worker, as its beats say


def rig_specs(
    cards: Sequence[str | None],
    *,
    slots: int = 1,
    brain_cards: str | None = None,
    extra: Sequence[ChildSpec] = (),
) -> list[ChildSpec]:
    """The processes of a rig: broker, brain, bridge, guard, brain-worker, ``worker-1`` … and ``extra``.

    ``cards``: CUDA_VISIBLE_DEVICES of each worker, as many as there are workers; ``brain_cards`` that of the brain-worker
    (None: as it is here; "": no card). ``slots``: tasks at once in each worker.
    """
    specs = [
        _service_spec("broker", Stage.BROKER, BROKER_SILENT_S),
        _service_spec("brain", Stage.BRAIN, SERVICE_SILENT_S),
        _service_spec("bridge", Stage.BRIDGE, SERVICE_SILENT_S),
        ChildSpec(GUARD, ("rigbus.agents.supervisor.guard",), Stage.GUARD, leaf=False),
        _worker_spec("brain-worker", "--class", "brain", *_gpu(brain_cards)),
    ]
    for n, card in enumerate(cards, 1):
        specs.append(_worker_spec(f"worker-{n}", "--slots", str(slots), *_gpu(card)))
    return [*specs, *extra]


def _gpu(cards: str | None) -> tuple[str, ...]:
    return () if cards is None else ("--gpu", cards)


def _service_spec(name: str, stage: Stage, silent_s: float) -> ChildSpec:
    return ChildSpec(name, ("rigbus", name), stage, watched=True, silent_s=silent_s)


def _worker_spec(name: str, *words: str) -> ChildSpec:
    argv = ("rigbus", "worker", "--name", name, *words)
    return ChildSpec(name, argv, Stage.WORKER, watched=True, leaf=False)


def model_worker_spec(
    seat: ModelSeat, *, env_pass: Sequence[str] = (), thermal: str = "", bounds: Sequence[str] = ()
) -> ChildSpec:
    """A worker that holds what the brain places there. ``bounds``: of an attempt, as words of its command line."""
    words = ["--name", seat.name, "--group", seat.group, "--role", seat.role]
    words += ["--cards", seat.cards] if seat.cards else []
    words += ["--split", seat.split] if seat.split else []
    words += ["--thermal", thermal] if thermal else []
    words += bounds
    words += [word for value in env_pass for word in ("--env-pass", value)]
    argv = ("rigbus.agents.worker.model", *words)
    return ChildSpec(seat.name, argv, Stage.WORKER, watched=True, leaf=False)


def agent_spec(
    name: str, ref: str, *, cwd: Path, slots: int | None = None, env: Mapping[str, str] | None = None
) -> ChildSpec:
    """An agent ``module:Class``, started in ``cwd``, where its module is looked for too."""
    words = ["--slots", str(slots)] if slots is not None else []
    argv = ("rigbus", "worker", "--agent", ref, "--name", name, *words)
    return ChildSpec(name, argv, Stage.WORKER, watched=True, env=env, cwd=cwd)


@dataclass(slots=True)
class Ending:
    """A tree that is being ended, since ``since`` (monotonic seconds)."""

    sweep: Sweep
    since: float
    step_at: float = 0.0
    given_up: bool = False  #: it hangs in the kernel: a look now and then is enough


class Children:
    """The running ones by name. Start, signals and sweeps all come from the thread that made this object."""

    def __init__(self, paths: RigPaths, state_id: str, env: Mapping[str, str]) -> None:
        self.paths = paths
        self.control = _process_control()
        self.running: dict[str, Running] = {}
        self._state_id = state_id
        self._env = dict(env)
        self._sweeps: dict[str, Ending] = {}
        self._lifeline = Lifeline()

    @property
    def fds(self) -> list[int]:
        """What to poll for reading."""
        found = []
        for running in self.running.values():
            child = running.child
            # Its pidfd can be read from its end to its burial, which is the sweep's to wait for.
            exit_fd = child.exit_fd if child.status is None else None
            found += [fd for fd in (exit_fd, child.entered_fd, running.alive_fd) if fd is not None]
        return found

    @property
    def wait_s(self) -> float | None:
        """The longest sleep just now; None: the descriptors are enough."""
        if not self._sweeps:
            return self.control.poll_s
        return GIVEN_UP_STEP_S if all(e.given_up for e in self._sweeps.values()) else SWEEP_STEP_S

    # -- starting --------------------------------------------------------------------------------------------

    def start(self, spec: ChildSpec) -> int:
        """Start it and return its pid.

        Raises:
            SpawnError: the system refuses it.
        """
        log_file = self._log_of(spec.name)
        rotate_log(log_file)
        log_from = log_file.stat().st_size if log_file.exists() else 0
        env = self._environment(spec)
        fds = [self._lifeline.read_fd]
        alive_out = alive_in = -1
        if spec.watched:
            alive_out, alive_in = os.pipe()
            os.set_blocking(alive_out, False)
            env[ALIVE_VARIABLE] = str(alive_in)
            fds.append(alive_in)
        try:
            child = self._spawn(spec, env, log_file, tuple(fds))
        except BaseException:
            if alive_out >= 0:
                os.close(alive_out)
            raise
        finally:
            if alive_in >= 0:
                os.close(alive_in)
        self.running[spec.name] = Running(child, alive_out if spec.watched else None, log_from)
        return child.pid

    def _spawn(self, spec: ChildSpec, env: dict[str, str], log_file: Path, fds: tuple[int, ...]) -> Child:
        # -P: a file in the present folder must not stand in for a module of ours.
        words = [*_death_signal(spec, self.control), sys.executable, "-P", "-m", *spec.argv]
        return self.control.spawn(
            Spawn(
                argv=words,
                env=env,
                token=f"{self._state_id}:rig:{spec.name}",
                cwd=self.paths.state if spec.cwd is None else spec.cwd,
                log_path=log_file,
                pass_fds=fds,
                capture=False,
                subreaper=True,
            )
        )

    def _environment(self, spec: ChildSpec) -> dict[str, str]:
        env = {
            **os.environ,
            "RIGBUS_STATE": str(self.paths.state),
            "RIGBUS_SHARED": str(self.paths.shared),
            **self._lifeline.env,
            **self._env,
            **(spec.env or {}),
        }
        env.pop(ALIVE_VARIABLE, None)
        return env

    def _log_of(self, name: str) -> Path:
        return self.paths.logs / f"{name}.log"

    # -- reading ---------------------------------------------------------------------------------------------

    def ended(self, name: str) -> tuple[ExitStatus, str] | None:
        """How it ended, with the last line of its log; None while it runs, or its tree is being ended."""
        running = self.running[name]
        status = None if name in self._sweeps else running.child.poll_exit()
        if status is None:
            return None
        return status, status.message or last_line(self._log_of(name), running.log_from)

    def read(self, name: str, ready: set[object]) -> bool:
        """Take what ``ready`` descriptors of it hold; True when it has given a sign of life."""
        running = self.running[name]
        if running.child.entered_fd in ready:
            running.child.read_entry()
        return running.alive_fd in ready and self.heard(name)

    def heard(self, name: str) -> bool:
        """Look into its alive pipe now: True when it has given a sign of life. Never waits."""
        running = self.running[name]
        if running.alive_fd is None:
            return False
        try:
            data = os.read(running.alive_fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            os.close(running.alive_fd)
            running.alive_fd = None
            return False
        running.last_beat = data.decode("utf-8", "replace").strip().rpartition("\n")[2]
        running.session = (
            _session_in(running.last_beat) or running.session
        )  # a worker's; others write bare bytes
        return True

    def busy_with(self, name: str) -> str:
        """What it was running by its last beat, in words; "" when it said nothing of use."""
        try:
            running = json.loads(self.running[name].last_beat)["running"]
            return ", ".join(f"{type_} {str(id_)[:8]} for {float(age):.0f} s" for id_, type_, age in running)
        except (ValueError, KeyError, TypeError):
            return ""

    # -- ending ----------------------------------------------------------------------------------------------

    def terminate(self, name: str) -> None:
        """SIGTERM to its process group."""
        if name in self.running:
            self.control.terminate(self.running[name].child)

    def sweep(self, name: str) -> None:
        """Begin to end it and all below it; :meth:`swept` tells when that is done."""
        self._sweeps[name] = Ending(self.control.kill_tree(self.running[name].child), time.monotonic())

    def undying(self, *, stopping: bool) -> list[tuple[str, str]]:
        """Those whose tree should be dead for long, and what of it still lives, in words; each is named once."""
        limit = time.monotonic() - (UNKILLABLE_STOP_S if stopping else UNKILLABLE_S)
        late = [name for name, e in self._sweeps.items() if e.since <= limit and not e.given_up]
        for name in late:
            self._sweeps[name].given_up = True
            self._sweeps[name].sweep.give_up()
        return [(name, unkillable(self._sweeps[name].sweep.survivors)) for name in late]

    def swept(self) -> list[tuple[str, Running, ExitStatus | None]]:
        """Those whose tree is dead by now; they are forgotten here."""
        done = []
        now = time.monotonic()
        due = [(name, ending) for name, ending in self._sweeps.items() if now >= ending.step_at]
        for name, ending in due:
            if not ending.sweep.step():
                ending.step_at = now + GIVEN_UP_STEP_S if ending.given_up else now
                continue
            del self._sweeps[name]
            running = self.running.pop(name)
            done.append((name, running, running.child.poll_exit()))
            _release(running)
        return done

    def close(self) -> None:
        """End whatever still runs, and the lifeline with it."""
        for name in self.running:
            if name not in self._sweeps:
                self.sweep(name)
        self._lifeline.close()
        deadline = time.monotonic() + LAST_WORDS_S
        while any(not e.given_up for e in self._sweeps.values()) and time.monotonic() < deadline:
            self.swept()
            fds = [
                r.child.exit_fd
                for r in self.running.values()
                if r.child.exit_fd is not None and r.child.status is None
            ]
            if self._sweeps:
                zmq.zmq_poll([(fd, zmq.POLLIN) for fd in fds], int(SWEEP_STEP_S * 1000))
        for running in self.running.values():
            _release(running)
        self.running.clear()


def _release(running: Running) -> None:
    running.child.close()
    if running.alive_fd is not None:
        os.close(running.alive_fd)
        running.alive_fd = None


def _process_control() -> Processes:
    """Without the launcher that kills each child when we die: workers must end their trees first."""
    found = processes()
    return LinuxProcesses(launcher=[]) if isinstance(found, LinuxProcesses) else found


def _death_signal(spec: ChildSpec, control: Processes) -> list[str]:
    """The words that make the kernel kill a process without trees the moment that its supervisor is gone."""
    return default_launcher() if spec.leaf and isinstance(control, LinuxProcesses) else []


def _session_in(beat: str) -> str:
    """The session in a beat's ``mark``, ``<state id>:<session>:``; "" without one."""
    try:
        parts = str(json.loads(beat).get("mark") or "").split(":")
    except (ValueError, AttributeError):
        return ""
    return parts[1] if len(parts) == 3 else ""
