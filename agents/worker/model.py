"""A worker that holds a model: ``python -m rigbus.agents.worker.model``. What it holds, the brain decides (docs/adr/0013).

Cold it offers nothing. Hot it offers the class ``llm``: the handlers of :class:`.llm.ModelAgent`, and commands of that class.
It is a process of its own beside the worker of commands on the same card: as many requests as the model answers at once,
and a command that waits for a model takes no slot from one that does not.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq

from ...bus.errors import ConfigError, RigbusError
from ..attempts.shell import RESULT_TAIL_BYTES, ShellRunner
from ..attempts.spawned import SpawnedRunner
from ..attempts.threads import ThreadRunner, run_handler
from ..context import TaskContext
from ..gpu.guard import ThermalLimits
from ..gpu.guarding import keeper_of
from ..gpu.watch import own_cards
from ..llm import ModelAgent
from ..models.card_meter import CardMeter
from ..models.catalogue.opening import also_of, entry_of, offer_of, open_model
from ..models.endpoint.lending import Lender
from ..models.endpoint.server import Endpoint
from ..models.protocol import PARALLEL, Model
from ..models.seat import Seat
from ..models.seat_core import Wanted
from ..process.linux import processes
from ..supervisor.lifeline import alive_fd, lifeline_fd
from .events import Drain, Lease, Outcome, Serve
from .loop import Loop, Peer
from .main import add_attempt_options, place_of
from .run import WorkerConfig
from .serve import Place, leave

log = logging.getLogger(__name__)

GROUP = "pcie-0"  #: cards that share a link share this token


@dataclass(frozen=True, slots=True)
class ModelWorkerOptions:
    """``slots``: requests and commands of class llm at once. ``cards``: CUDA_VISIBLE_DEVICES, "" for those of the machine.

    ``group``: one model is loaded at a time in it; "" for any number. ``role`` "brain": it holds the brain's models only.
    ``split``: the cards as the configuration names them: it holds the models that are split over these, and no others.
    """

    slots: int = PARALLEL
    cards: str = ""
    group: str = GROUP
    role: str = "worker"
    split: str = ""
    env_pass: tuple[str, ...] = ()
    thermal: ThermalLimits | None = None
    kill_grace_s: float = 10.0
    tail_bytes: int = RESULT_TAIL_BYTES


class ModelWorker:
    """Serves one rig from the calling thread (:meth:`run`); :meth:`stop` from any other."""

    def __init__(self, place: Place, options: ModelWorkerOptions | None = None) -> None:
        if place.state is None:
            raise ConfigError("a model worker must see the rig's state folder; give --state DIR")
        self.place = place
        self.options = options or ModelWorkerOptions()
        if self.options.cards:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.options.cards
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        self.agent = ModelAgent()
        self._specs = self.agent.specs()
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        lifeline = lifeline_fd()
        self.loop = Loop(
            Peer(place.name, place.commands, place.heartbeats),
            ctx=self._ctx,
            state=place.state,
            alive_fd=alive_fd(),
            lifeline_fd=lifeline,
            cards=own_cards(),
        )
        timeouts = {s.type: s.options.timeout_s for s in self._specs.values()}
        self._threads = ThreadRunner(
            self._run, self.options.slots, self.loop.post, place.logs, timeouts, place.log_bytes
        )
        self.loop.add(tuple(self._specs), self._threads)
        self.lender = Lender(Endpoint())
        self._add_commands(place.state, supervised=lifeline is not None)
        cards = self.loop.cards
        self._meter = CardMeter(cards, place.state) if cards is not None else None
        self.seat = Seat(
            self.loop,
            group=self.options.group or None,
            open_model=self._open,
            on_model=self._offer,
            runs=lambda: len(self.loop.core.runs) if self.loop.core is not None else 0,
            clock=self.loop.clock,
            meter=self._meter,
        )
        self.loop.add((), self.seat)
        keeper = keeper_of(self.loop, cards, uses_any=True, limits=self.options.thermal, budget=False)
        if keeper is not None:
            self.loop.add((), keeper)
        self.loop.on_control(self.seat.control)
        self.loop.on_placement(self.seat.report)

    def _add_commands(self, state: Path, *, supervised: bool) -> None:
        procs = processes()
        helpers = SpawnedRunner(self.loop, procs, state, lambda lease: {}, None)
        shell = ShellRunner(
            self.loop,
            procs,
            helpers,
            state,
            env_pass=self.options.env_pass,
            max_log_bytes=self.place.log_bytes,
            tail_bytes=self.options.tail_bytes,
            supervised=supervised,
            lender=self.lender,
        )
        self.loop.add(("shell",), shell)
        self.loop.add((), helpers)

    def config(self) -> WorkerConfig:
        """What it offers while it holds nothing."""
        return WorkerConfig(
            slots=self.options.slots,
            kill_grace_s=self.options.kill_grace_s,
            types=(),
            classes=(),
            info={
                "seat": True,
                "cards": self.options.cards,
                "group": self.options.group,
                "role": self.options.role,
                **({"split": self.options.split} if self.options.split else {}),
            },
            threaded=frozenset(self._specs),
            timeouts={s.type: s.options.timeout_s for s in self._specs.values()},
        )

    def run(self) -> int:
        """Serve until drained; the exit code (see :meth:`Loop.run`)."""
        self.agent.join_rig({"endpoint": self.place.commands, "state": str(self.place.state)}, self._ctx)
        self.lender.start()
        try:
            return self.loop.run(self.config())
        finally:
            self.lender.close()

    @property
    def hangs(self) -> bool:
        """Is a handler's thread still at work although the loop has ended?"""
        return self._threads.busy

    def stop(self, *, fast: bool = False) -> None:
        """Drain, from any thread."""
        self.loop.post(Drain(fast=fast))

    def _run(self, lease: Lease, task: TaskContext) -> Outcome:
        return run_handler(self.agent, self._specs[lease.type], lease, task, self.place.results)

    def _open(self, wanted: Wanted) -> Model:
        logs = self.place.logs
        log_path = logs / f"{self.place.name}.llama.log" if logs is not None else None
        if self._meter is None:
            return open_model(wanted.spec or {}, log_path, ())
        return open_model(wanted.spec or {}, log_path, self._meter.before or None)

    def _offer(self, wanted: Wanted | None, model: Model | None) -> None:
        self.lender.endpoint.model = model
        if wanted is None or model is None:
            self.loop.post(Serve((), ()))
            return
        self.agent.model = model
        self.agent.max_tokens = self.lender.endpoint.max_tokens = entry_of(wanted.spec or {}).max_tokens
        self.agent.also = also_of(wanted.spec or {})
        types, needs = offer_of(wanted.spec or {})
        self.loop.post(Serve(("shell", *types), ("llm",), needs))


def main(argv: Sequence[str] | None = None) -> None:
    """The process's entry: options as words, signals from the supervisor, exit code to it."""
    parser = argparse.ArgumentParser(
        prog="rigbus.agents.worker.model", description="One model worker of a rig."
    )
    parser.add_argument("--state", type=Path, help="the rig's state folder")
    parser.add_argument("--name", default=f"model-{os.getpid()}")
    parser.add_argument("--slots", type=int, default=PARALLEL)
    parser.add_argument("--cards", default="", help="CUDA_VISIBLE_DEVICES of its models")
    parser.add_argument("--group", default=GROUP, help="one model is loaded at a time in it")
    parser.add_argument("--role", choices=("worker", "brain"), default="worker")
    parser.add_argument(
        "--split",
        default="",
        help="the cards as the configuration names them, of a worker for models split over them",
    )
    parser.add_argument("--thermal", help="WARN:CRITICAL:HYSTERESIS of its cards, in °C")
    parser.add_argument("--env-pass", action="append", default=[], help="a variable that commands may see")
    add_attempt_options(parser)
    a = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {a.name} %(levelname)s %(message)s")
    hangs = False
    try:
        processes().become_subreaper()
        limits = ThermalLimits.parse(a.thermal) if a.thermal else None
        options = ModelWorkerOptions(
            a.slots,
            a.cards,
            a.group,
            a.role,
            a.split,
            tuple(a.env_pass),
            limits,
            kill_grace_s=a.kill_grace,
            tail_bytes=a.tail_bytes,
        )
        worker = ModelWorker(place_of(a.name, a.state, a.log_bytes), options)
        code, hangs = worker.run(), worker.hangs
    except RigbusError as e:
        print(f"{a.name}: {e}", file=sys.stderr)
        code = e.exit_code
    leave(code, hard=hangs)


if __name__ == "__main__":
    main()
