"""The worker process: ``python -m rigbus.agents.worker.main``. Runs ``shell`` and ``expand``, or the handlers of one agent.

It needs nothing but the rig's state folder (or its endpoints); everything it must know about a task is in the lease.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from ...bus.errors import ConfigError, RigbusError
from ...bus.paths import find_rig
from ..attempts.expand import ExpandRunner
from ..attempts.output import MAX_LOG_BYTES
from ..attempts.shell import RESULT_TAIL_BYTES, ShellRunner
from ..attempts.spawned import SpawnedRunner
from ..base import load_agent
from ..gpu.guard import ThermalLimits
from ..gpu.guarding import keeper_of
from ..gpu.watch import own_cards
from ..process.linux import processes
from ..supervisor.lifeline import alive_fd, lifeline_fd
from .events import Drain, ModelVram
from .loop import Loop, Peer
from .run import WorkerConfig
from .serve import AgentWorker, Place, leave

log = logging.getLogger(__name__)

CLASSES = ("cpu", "script")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a plain worker runs. ``gpu`` pins CUDA_VISIBLE_DEVICES; ``classes`` is ``("brain",)`` beside the brain."""

    slots: int = 1
    classes: tuple[str, ...] = CLASSES
    needs: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    env_pass: tuple[str, ...] = ()
    gpu: str | None = None
    vram_mb: int | None = None  #: MiB of its cards that tasks may take together; None: as its cards say
    thermal: ThermalLimits | None = None  #: None: the guard's own
    kill_grace_s: float = 10.0
    drain_s: float = 20.0
    max_log_bytes: int = MAX_LOG_BYTES
    tail_bytes: int = RESULT_TAIL_BYTES  #: of the output in a command's result


class Worker:
    """Runs commands and foreach sources for a rig whose state folder it sees; :meth:`run` serves."""

    def __init__(self, place: Place, options: WorkerOptions | None = None) -> None:
        if place.state is None:
            raise ConfigError("a worker of commands must see the rig's state folder; give --state DIR")
        self.options = options or WorkerOptions()
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        lifeline = lifeline_fd()
        if self.options.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.options.gpu
            # CUDA's own order is by speed; the driver's, nvidia-smi's and ours is by bus.
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        self.loop = Loop(
            Peer(place.name, place.commands, place.heartbeats),
            ctx=self._ctx,
            state=place.state,
            alive_fd=alive_fd(),
            lifeline_fd=lifeline,
            # The brain's own worker is given no card: what it runs is bookkeeping.
            cards=own_cards() if self.options.classes != ("brain",) else None,
        )
        keeper = keeper_of(
            self.loop, self.loop.cards, limits=self.options.thermal, budget=self.options.vram_mb is None
        )
        if keeper is not None:
            self.loop.add((), keeper)
        self.loop.on_control(self._placed)
        procs = processes()
        helpers = SpawnedRunner(self.loop, procs, place.state, lambda lease: {}, None)
        shell = ShellRunner(
            self.loop,
            procs,
            helpers,
            place.state,
            env_pass=self.options.env_pass,
            max_log_bytes=self.options.max_log_bytes,
            tail_bytes=self.options.tail_bytes,
            supervised=lifeline is not None,
        )
        self.loop.add(("expand",), ExpandRunner(self.loop, helpers, place.state / "results"))
        self.loop.add(("shell",), shell)
        self.loop.add((), helpers)

    def config(self) -> WorkerConfig:
        """What this worker offers."""
        o = self.options
        return WorkerConfig(
            slots=o.slots,
            types=("shell", "expand"),
            classes=o.classes,
            needs=o.needs,
            pools=o.pools,
            vram_mb=o.vram_mb,
            info={"cards": o.gpu} if o.gpu else {},
            kill_grace_s=o.kill_grace_s,
            drain_s=o.drain_s,
        )

    def _placed(self, action: str, header: Mapping[str, Any]) -> None:
        """CONTROL ``place``: what the models beside this worker take of its cards."""
        mb = header.get("beside_mb")
        if action == "place" and isinstance(mb, int) and not isinstance(mb, bool) and mb >= 0:
            self.loop.post(ModelVram(mb))

    def run(self) -> int:
        """Serve until drained; the exit code (see :meth:`Loop.run`)."""
        return self.loop.run(self.config())

    def stop(self, *, fast: bool = False) -> None:
        """Drain, from any thread."""
        self.loop.post(Drain(fast=fast))


def place_of(name: str, state: Path | None, log_bytes: int = MAX_LOG_BYTES) -> Place:
    """Where the rig with this state folder (None: the user's default) is reached; see :class:`Place`.

    Raises:
        ConfigError: its folders are unusable.
    """
    rig = find_rig(state)
    e = rig.endpoints
    return Place(name, e["commands"], e["heartbeats"], rig.paths.state, log_bytes)


def run_worker(name: str, state: Path | None, options: WorkerOptions | None = None) -> int:
    """Be a worker of commands until drained; the exit code.

    Raises:
        ConfigError: the rig's folders are unusable.
    """
    processes().become_subreaper()
    return Worker(place_of(name, state), options).run()


def run_agent(
    ref: str,
    name: str,
    state: Path | None,
    *,
    slots: int | None = None,
    thermal: ThermalLimits | None = None,
    log_bytes: int = MAX_LOG_BYTES,
) -> tuple[int, bool]:
    """Be the agent ``module:Class`` until drained: the exit code, and whether a thread of it still hangs.

    Raises:
        ConfigError: no such agent, or the rig's folders are unusable.
    """
    cls = load_agent(ref)
    place = place_of(name, state, log_bytes)
    if any(s.options.isolated for s in cls.specs().values()):
        processes().become_subreaper()
    worker = AgentWorker(cls(), place, slots=slots, ref=ref, thermal=thermal)
    return worker.run(), worker.hangs


def thermal_limits(given: str | None) -> ThermalLimits | None:
    """What ``--thermal`` says, else the ``[thermal]`` of the configuration that the verbs read from this folder.

    It is read only where there may be cards: an agent elsewhere needs no configuration, and loads nothing for it.

    Raises:
        ConfigError: neither three numbers nor a configuration that can be read; the message names the place.
    """
    if given:
        return ThermalLimits.parse(given)
    if own_cards() is None:
        return None
    from ...bus.config.settings import load

    said = load().settings.thermal
    return ThermalLimits(warn_c=said.warn_c, critical_c=said.critical_c, hysteresis_c=said.hysteresis_c)


def add_attempt_options(parser: argparse.ArgumentParser) -> None:
    """The settings of the rig that bound one attempt."""
    parser.add_argument("--kill-grace", type=float, default=10.0, help="s between SIGTERM and SIGKILL")
    parser.add_argument(
        "--log-bytes", type=int, default=MAX_LOG_BYTES, help="what the log of one attempt takes"
    )
    parser.add_argument(
        "--tail-bytes", type=int, default=RESULT_TAIL_BYTES, help="of the output in a command's result"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The process's entry: options as words, signals from the supervisor, exit code to it."""
    parser = argparse.ArgumentParser(prog="rigbus.agents.worker.main", description="One worker of a rig.")
    parser.add_argument("--state", type=Path, help="the rig's state folder")
    parser.add_argument("--name", default=f"worker-{os.getpid()}")
    parser.add_argument(
        "--agent", help="module:Class or path/file.py:Class; without it the worker runs commands"
    )
    parser.add_argument("--slots", type=int)
    parser.add_argument("--class", dest="classes", action="append", help="a task class that it serves")
    parser.add_argument("--need", dest="needs", action="append", default=[], help="a capability that it has")
    parser.add_argument("--pool", dest="pools", action="append", default=[])
    parser.add_argument("--env-pass", action="append", default=[], help="a variable that commands may see")
    parser.add_argument("--gpu", help="CUDA_VISIBLE_DEVICES of its commands")
    parser.add_argument("--thermal", help="WARN:CRITICAL:HYSTERESIS of its cards, in °C; as configured")
    parser.add_argument("--vram-mb", type=int, help="MiB of its cards that tasks may take together")
    add_attempt_options(parser)
    parser.add_argument("--verbose", action="store_true")
    a = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if a.verbose else logging.INFO,
        format=f"%(asctime)s {a.name} %(levelname)s %(message)s",
    )
    hangs = False
    try:
        if a.agent:
            limits = thermal_limits(a.thermal)
            code, hangs = run_agent(
                a.agent, a.name, a.state, slots=a.slots, thermal=limits, log_bytes=a.log_bytes
            )
        else:
            options = WorkerOptions(
                slots=a.slots or 1,
                classes=tuple(a.classes or CLASSES),
                needs=tuple(a.needs),
                pools=tuple(a.pools),
                env_pass=tuple(a.env_pass),
                gpu=a.gpu,
                thermal=thermal_limits(a.thermal),
                vram_mb=a.vram_mb,
                kill_grace_s=a.kill_grace,
                max_log_bytes=a.log_bytes,
                tail_bytes=a.tail_bytes,
            )
            code = run_worker(a.name, a.state, options)
    except RigbusError as e:
        print(f"{a.name}: {e}", file=sys.stderr)
        code = e.exit_code
    except TypeError as e:  # a signature that cannot be a schema: the agent's author reads this line
        if a.agent is None:
            raise
        print(f"{a.name}: {a.agent}: {e}", file=sys.stderr)
        code = 2
    # Threads of handlers and of @on are daemons, but a handler in C code can hold the interpreter's end.
    leave(code, hard=hangs or a.agent is not None)


if __name__ == "__main__":
    main()
