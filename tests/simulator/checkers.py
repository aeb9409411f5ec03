"""What must hold (RELIABILITY's invariants), seen from outside of the cores: on the disk, on the wire, in the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rigbus.agents.worker.events import Lease
from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Changes, Send, Task
from rigbus.bus.states import BATCH_ENDED, BATCH_STATE_NAMES, ENDED_BADLY, STATE_NAMES, TERMINAL, TaskState
from rigbus.bus.wire import Envelope, Token, Verb, unpack

from .disk import Disk
from .world import Process, World

_STATE, _INC, _TOK = 3, 12, 13
#: Attempts by class that a task of the simulator may have at most.
MOST_ATTEMPTS: Final = 3 + 2 + 10


class Violation(Exception):
    """Something that must never happen."""


class Checkers:
    """``lost`` and the like raise :class:`Violation` at once; :meth:`at_the_end` says what is still wrong when all is calm."""

    def __init__(self, world: World, disk: Disk) -> None:
        self.world = world
        self.disk = disk
        self.core: Core | None = None
        self.submits: dict[str, tuple[str, list[str]]] = {}  #: batch key -> batch id, keys of its tasks
        self.items: dict[str, int] = {}  #: batch key of a plan -> elements of its list
        self.forgiven: set[str] = set()  #: keys of tasks that may end badly
        self._no_of: dict[str, int] = {}  #: of every task that was ever committed
        self._accepted: set[int] = set()
        self._granted: dict[int, Token] = {}  #: the last lease of each task, on disk
        self._holders: dict[Token, tuple[int, str]] = {}
        self._ended: dict[int, int] = {}  #: terminal states on disk
        self._answered: set[Token] = set()  #: RECORDED was said
        self._values: dict[int, Token] = {}  #: whose value stands
        self._cancelled: set[int] = set()
        self._returned: set[Token] = set()  #: by a worker that got the lease (again)
        self._began: dict[Token, str] = {}  #: attempts that run, and where
        self._owed: dict[
            Token, str
        ] = {}  #: attempts that have ended, whose worker has heard nothing of their result
        self._told: set[Token] = set()
        self._lost: set[Token] = set()  #: attempts that have ended badly in the broker's books
        self._runs: dict[str, dict[Token, Process]] = {}  #: who began the attempts of a task

    def wrong(self, rule: str, text: str) -> None:
        raise Violation(f"{rule}: {text}")

    # -- the disk --------------------------------------------------------------------------------------------

    def committed(self, core: Core, changes: Changes) -> None:
        """A commit has just been made."""
        # Not what was handed back: a HELLO that the network doubles takes back a lease that has just come.
        self._lost.update(self._granted[no] for no, *_ in changes.attempts if no in self._granted)
        for task, _, _, _ in changes.new_tasks.values():
            self._no_of[task.id] = task.no
            self._look(core, task, changes)
        for task in changes.tasks.values():
            self._look(core, task, changes)

    def _look(self, core: Core, task: Task, changes: Changes) -> None:
        no, state = task.no, task.state
        before = self._ended.get(no)
        if before is not None and before != state:
            self.wrong("I2", f"{task.key} was {STATE_NAMES[before]} and is {state.name}")
        if state is TaskState.LEASED:
            self._leased(core, task)
        if no in changes.results and state in (TaskState.DONE, TaskState.REVIEW) and not task.join:
            self._recorded(task, changes.results[no])
        if state in TERMINAL:
            self._ended[no] = state

    def _leased(self, core: Core, task: Task) -> None:
        no, token = task.no, task.token
        if self._granted.get(no) == token:
            return
        if token in self._holders and self._holders[token] != (no, task.session):
            self.wrong(
                "I3", f"token {token} was given twice, to {self._holders[token]} and {(no, task.session)}"
            )
        if no in self._cancelled:
            self.wrong("cancel", f"{task.key} was leased after its cancel was answered")
        if task.attempt > MOST_ATTEMPTS:
            self.wrong("poison", f"{task.key} has attempt {task.attempt}")
        for source, on_end in task.after:
            state = self.disk.tables["tasks"][source][_STATE]
            if state not in TERMINAL or (state in ENDED_BADLY and not on_end):
                self.wrong("order", f"{task.key} was leased while task {source} is {STATE_NAMES[state]}")
        self._granted[no], self._holders[token] = token, (no, task.session)

    def _recorded(self, task: Task, value: bytes) -> None:
        shown = unpack(value)
        token = tuple(shown["token"])
        if token != self._granted.get(task.no):
            self.wrong(
                "I3", f"{task.key} has the result of {token}, its lease was {self._granted.get(task.no)}"
            )
        self._values[task.no] = token

    # -- the wire --------------------------------------------------------------------------------------------

    def answered(self, send: Send) -> None:
        """The broker says something: it must be true on the disk."""
        match send.verb:
            case Verb.ACCEPTED:
                self._on_disk(send.header["ids"])
            case Verb.OK if send.header.get("ids"):
                self._on_disk(send.header["ids"])
            case Verb.LEASE:
                for lease in send.header["leases"]:
                    if tuple(lease["token"]) not in self._holders:
                        self.wrong(
                            "durable", f"lease {lease['token']} of {lease['key']} was sent before its commit"
                        )
            case Verb.RECORDED:
                for shown in send.header["tokens"]:
                    self._settled(tuple(shown))
            case Verb.STALE:
                for shown in send.header["tokens"]:
                    no = self._holders.get(tuple(shown), (0, ""))[0]
                    row = self.disk.tables["tasks"].get(no)
                    if (
                        row
                        and row[_STATE] in (TaskState.DONE, TaskState.REVIEW)
                        and self._values.get(no) == tuple(shown)
                        and tuple(shown) not in self._returned
                    ):
                        self.wrong("idempotent", f"the recorded result of {shown} was called stale")
            case _:
                pass

    def _on_disk(self, ids: list[str]) -> None:
        for id_ in ids:
            no = self._no_of.get(id_)
            if no is None or no not in self.disk.tables["tasks"]:
                self.wrong("durable", f"task {id_} was accepted before its commit")
            else:
                self._accepted.add(no)

    def _settled(self, token: Token) -> None:
        no = self._holders.get(token, (0, ""))[0]
        row = self.disk.tables["tasks"].get(no)
        if row is not None and row[_STATE] == TaskState.LEASED and (row[_INC], row[_TOK]) == token:
            self.wrong("durable", f"the result of {token} was acknowledged before its commit")
        self._answered.add(token)

    def broker_started(self, core: Core) -> None:
        """It has read its disk: nothing that was promised may be missing."""
        self.core = core
        for no in self._accepted:
            if no not in core.tasks:
                self.wrong("I1", f"task {no} was accepted and is gone")
        for no, state in self._ended.items():
            if no in core.tasks and core.tasks[no].state != state:
                self.wrong(
                    "I2",
                    f"{core.tasks[no].key} was {STATE_NAMES[state]} and came back as {core.tasks[no].state.name}",
                )
        for token in self._answered:
            no = self._holders.get(token, (0, ""))[0]
            task = core.tasks.get(no)
            if task is not None and task.state is TaskState.LEASED and task.token == token:
                self.wrong("I1", f"the result of {token} was acknowledged and is gone")

    # -- clients ---------------------------------------------------------------------------------------------

    def submitted(self, key: str, batch: str, keys: list[str]) -> None:
        self.submits[key] = (batch, keys)

    def cancelled(self, ids: list[str]) -> None:
        for id_ in ids:
            no = self._no_of[id_]
            self._cancelled.add(no)

    def refused(self, env: Envelope) -> None:
        self.wrong("idempotent", f"what was asked again was refused: {env.header}")

    # -- workers ---------------------------------------------------------------------------------------------

    def attempt_began(self, process: Process, lease: Lease, *, alone: bool = False, cards: str = "") -> None:
        """``alone``: workers fence themselves, so no other that runs may still be at the same task. ``cards``: all workers
        share them, so nothing that was lost may still run elsewhere."""
        worker, where = process.name, self._began.get(lease.token)
        if where is not None:
            self.wrong(
                "once", f"lease {lease.token} of {lease.key} began on {worker} while it runs on {where}"
            )
        for token, other in self._runs.get(lease.id, {}).items() if alone else ():
            # A lease that the network held back is overtaken by its own renewals, which no real connection lets happen; and a
            # worker that was stopped ends what it held as soon as it goes on.
            overtaken = lease.token < token or other is process
            if not overtaken and not other.stopped and self._began.get(token) == other.name:
                self.wrong(
                    "fence", f"{lease.key} began on {worker} under {lease.token}, {other.name} has {token}"
                )
        for token, other_name in self._began.items() if cards else ():
            if other_name != worker and token in self._lost:
                self.wrong(
                    "card", f"{lease.key} began on {worker}, and the lost {token} still runs on {other_name}"
                )
        self._began[lease.token] = worker
        self._runs.setdefault(lease.id, {})[lease.token] = process

    def gave_back(self, tokens: list[Token]) -> None:
        """A RETURN of what has ended is rightly called stale."""
        self._returned.update(tokens)

    def to_end(
        self, process: Process, tokens: list[Token], trees: Mapping[Token, Any], within_s: float
    ) -> None:
        """A worker has heard that these attempts are over: soon nothing of them may run."""
        running = [t for t in tokens if t in trees]
        if running:
            process.after(within_s, self._must_be_dead, process, running, trees)

    def _must_be_dead(self, process: Process, tokens: list[Token], trees: Mapping[Token, Any]) -> None:
        for token in tokens:
            if token in trees:
                self.wrong("I5", f"attempt {token} runs on {process.name}, which was told long ago to end it")

    def attempt_ended(self, worker: str, token: Token) -> None:
        self._began.pop(token, None)
        if token not in self._told:
            self._owed[token] = worker

    def told(self, tokens: list[Token]) -> None:
        """A worker has heard RECORDED or stale: it owes nothing any more."""
        self._told.update(tokens)
        for token in tokens:
            self._owed.pop(token, None)

    def worker_died(self, worker: str) -> None:
        for token in [t for t, where in self._owed.items() if where == worker]:
            del self._owed[token]
        for token in [t for t, where in self._began.items() if where == worker]:
            del self._began[token]

    # -- the end ---------------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Everything that was accepted has ended, and every batch."""
        core = self.core
        return (
            core is not None and not core.live and all(b.state in BATCH_ENDED for b in core.batches.values())
        )

    def at_the_end(self) -> None:
        """After all faults have healed, and after enough time.

        Raises:
            Violation: something hangs, is missing, is there twice, or ended badly without a cause.
        """
        core = self.core
        if core is None:
            self.wrong("I4", "there is no broker")
            return
        live = [t for t in core.tasks.values() if not t.ended]
        if live:
            shown = ", ".join(
                f"{t.key} {t.state.name} (attempt {t.attempt}, {t.hold_reason!r})" for t in live[:5]
            )
            self.wrong("I4", f"{len(live)} tasks never ended: {shown}")
        for batch in core.batches.values():
            if batch.state not in BATCH_ENDED:
                self.wrong("I4", f"batch {batch.name} is still {BATCH_STATE_NAMES[batch.state]}")
            if batch.state is not batch.derive():
                self.wrong(
                    "I4", f"batch {batch.name} is {batch.state.name}, its tasks say {batch.derive().name}"
                )
        for no in self._accepted:
            if no not in core.tasks:
                self.wrong("I1", f"task {no} was accepted and is gone")
        for token, worker in self._began.items():
            self.wrong("I5", f"attempt {token} still runs on {worker}")
        for token, worker in self._owed.items():
            self.wrong("I1", f"the result of {token} was never answered: {worker} has forgotten it")
        self._counted(core)
        for task in core.tasks.values():
            self._explained(core, task)

    def _counted(self, core: Core) -> None:
        if len(core.batches) != len(self.submits):
            self.wrong("once", f"{len(core.batches)} batches for {len(self.submits)} submits")
        for key, (id_, keys) in self.submits.items():
            batch = core.batch_ids.get(id_)
            if batch is None:
                self.wrong("I1", f"batch {key} is gone")
            elif batch.kind == "plan":
                children = [k for k, t in batch.keys.items() if k.startswith("each_") and not t.policy.aside]
                join = batch.keys.get("each")
                if batch.state.name == "COMPLETE" or (join is not None and join.state is TaskState.DONE):
                    if len(children) != self.items[key]:
                        self.wrong("expansion", f"{len(children)} children of {self.items[key]} items")
                elif len(children) > self.items[key]:
                    self.wrong("expansion", f"{len(children)} children of {self.items[key]} items")
            elif sorted(batch.keys) != sorted(keys):
                self.wrong("once", f"batch {key} has {len(batch.keys)} tasks, {len(keys)} were submitted")

    def _explained(self, core: Core, task: Task) -> None:
        """Why did it end badly?"""
        if task.state not in ENDED_BADLY or task.key in self.forgiven or task.no in self._cancelled:
            return
        if task.batch.cancelled or task.batch.error or task.policy.aside:
            return
        if task.state is TaskState.SKIPPED:
            causes = [core.tasks[no] for no, _ in task.after if no in core.tasks]
            if any(c.state in ENDED_BADLY for c in causes):
                return
        elif task.state is TaskState.DEAD and (task.counts[2] >= 10 or task.counts[1] >= 2):
            return  # its workers were lost so often
        self.wrong("I4", f"{task.key} ended {task.state.name} without a cause: {task.error!r}, {task.counts}")
