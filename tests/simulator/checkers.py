"""What must hold (RELIABILITY's invariants), seen from outside of the cores: on the disk, on the wire, in the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rigbus.agents.worker.events import Lease
from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Batch, Changes, Send, Task
from rigbus.bus.states import BATCH_ENDED, BATCH_STATE_NAMES, ENDED_BADLY, STATE_NAMES, TERMINAL, TaskState
from rigbus.bus.wire import Envelope, Token, Verb, unpack

from .disk import Disk
from .world import Process, World

_STATE, _INC, _TOK = 3, 12, 13
#: Attempts by class that a task of the simulator may have at most.
MOST_ATTEMPTS: Final = 3 + 2 + 10
#: In which a worker that was stopped ends what it had held; a deaf process gets a second of grace.
ENDING_S: Final = 1.5
#: Of a task of a plan that a revision mends.
TO_FAIL: Final = "no such command"


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
        self.plans: dict[str, frozenset[str]] = {}  #: batch key of a revised plan -> its tasks, but the items
        self.forgiven: set[str] = set()  #: keys of tasks that may end badly
        self._no_of: dict[str, int] = {}  #: of every task that was ever committed
        self._accepted: set[int] = set()
        self._granted: dict[int, Token] = {}  #: the last lease of each task, on disk
        self._definitions: dict[Token, int] = {}  #: what was leased
        self._holders: dict[Token, tuple[int, str]] = {}
        self._ended: dict[int, int] = {}  #: terminal states on disk
        self._answered: set[Token] = set()  #: RECORDED was said
        self._values: dict[int, Token] = {}  #: whose value stands
        self._cancelled: set[int] = set()
        self._stopping: dict[
            tuple[bytes, bytes], tuple[str, bool]
        ] = {}  #: CANCEL and REQUEUE of batches, by question
        self._last_word: dict[str, tuple[bytes, bytes]] = {}  #: about a batch
        self._stopped: set[str] = set()  #: batches whose CANCEL was answered
        self._retries: dict[str, int] = {}  #: of batches
        self._returned: set[Token] = set()  #: by a worker that got the lease (again)
        self._began: dict[Token, str] = {}  #: attempts that run, and where
        self._owed: dict[
            Token, str
        ] = {}  #: attempts that have ended, whose worker has heard nothing of their result
        self._told: set[Token] = set()
        self._commits = 0
        self._granted_in: dict[Token, int] = {}  #: by which commit
        self._lost: dict[
            Token, int
        ] = {}  #: attempts that have ended badly in the broker's books, and by which commit
        self._overtaken: set[Token] = set()
        self._runs: dict[str, dict[Token, Process]] = {}  #: who began the attempts of a task

    def wrong(self, rule: str, text: str) -> None:
        raise Violation(f"{rule}: {text}")

    # -- the disk --------------------------------------------------------------------------------------------

    def committed(self, core: Core, changes: Changes) -> None:
        """A commit has just been made."""
        self._commits += 1
        lost = (self._granted[no] for no, *_ in changes.attempts if no in self._granted)
        self._lost |= dict.fromkeys(lost, self._commits)
        self._replaced(changes)
        for task, _, _, _ in changes.new_tasks.values():
            self._no_of[task.id] = task.no
            self._look(core, task, changes)
        for task in changes.tasks.values():
            self._look(core, task, changes)

    def _replaced(self, changes: Changes) -> None:
        """A row goes only where a revision puts another task under its key: a list to be read again, or its join."""
        named = {no: id_ for id_, no in self._no_of.items() if no in changes.purge_tasks}
        fresh = {t.id for t, *_ in changes.new_tasks.values() if t.join or t.shape.type == "expand"}
        for no in changes.purge_tasks:
            if named.get(no) not in fresh:
                self.wrong("I1", f"task {no} was forgotten")
            self._accepted.discard(no)
            self._ended.pop(no, None)

    def _look(self, core: Core, task: Task, changes: Changes) -> None:
        no, state = task.no, task.state
        before = self._ended.get(no)
        again = task.batch.revisions or task.batch.id in self._retries
        if before in ENDED_BADLY and state != before and again:
            del self._ended[no]  # its plan was revised, or its batch retried
        elif before is not None and before != state:
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
        if task.batch.id in self._stopped:
            self.wrong("cancel", f"{task.key} was leased after the cancel of its batch was answered")
        if task.batch.revising and not task.policy.aside and not task.parent:
            self.wrong("revision", f"{task.key} was leased before its new plan was planned")
        self._definitions[token] = task.digest
        if task.attempt > MOST_ATTEMPTS * (task.batch.revision + self._retries.get(task.batch.id, 0)):
            self.wrong("poison", f"{task.key} has attempt {task.attempt}")
        for source, on_end in task.after:
            state = self.disk.tables["tasks"][source][_STATE]
            if state not in TERMINAL or (state in ENDED_BADLY and not on_end):
                self.wrong("order", f"{task.key} was leased while task {source} is {STATE_NAMES[state]}")
        self._granted[no], self._holders[token] = token, (no, task.session)
        self._granted_in[token] = self._commits

    def _recorded(self, task: Task, value: bytes) -> None:
        shown = unpack(value)
        token = tuple(shown["token"])
        if token != self._granted.get(task.no):
            self.wrong(
                "I3", f"{task.key} has the result of {token}, its lease was {self._granted.get(task.no)}"
            )
        if self._definitions[token] != task.digest:
            self.wrong("revision", f"{task.key} has a result of what it was under an older plan")
        self._values[task.no] = token

    # -- the wire --------------------------------------------------------------------------------------------

    def asked(self, env: Envelope) -> None:
        """The broker is about to do this: a batch that is to go on again is stopped no more."""
        for id_ in env.header.get("again") or () if env.verb is Verb.CANCEL else ():
            self._begins_anew(id_)
        batch = env.header.get("batch") if env.verb in (Verb.CANCEL, Verb.REQUEUE, Verb.REVISE) else None
        if isinstance(batch, str):
            question = env.peer, env.corr
            self._last_word[batch] = question
            self._stopping[question] = batch, env.verb is Verb.CANCEL
            if env.verb is not Verb.CANCEL:
                self._retries[batch] = self._retries.get(batch, 0) + (env.verb is Verb.REQUEUE)
                self._stopped.discard(batch)

    def _begins_anew(self, id_: str) -> None:
        """Its attempts are counted from the first."""
        task = self.core.ids.get(id_) if self.core is not None else None
        if task is not None:
            self._retries[task.batch.id] = self._retries.get(task.batch.id, 0) + 1

    def _stop(self, send: Send) -> None:
        """A batch is cancelled, and nobody has said anything else of it since: nothing of it begins any more."""
        batch, cancels = self._stopping.pop((send.peer, send.corr), ("", False))
        core = self.core
        if core is None or not cancels or self._last_word[batch] != (send.peer, send.corr):
            return
        self._stopped.add(batch)
        row = core.batch_ids[batch]
        if not (row.cancelled or row.state in BATCH_ENDED):
            self.wrong("cancel", f"batch {row.name} is {row.state.name} after its cancel was answered")

    def answered(self, send: Send) -> None:
        """The broker says something: it must be true on the disk."""
        if send.verb is Verb.OK:
            self._stop(send)
        match send.verb:
            case Verb.ACCEPTED:
                self._on_disk(send.header["ids"])
            case Verb.OK if send.header.get("ids"):
                self._on_disk(send.header["ids"])
            case Verb.LEASE:
                for lease, payload in zip(send.header["leases"], send.body, strict=True):
                    self._of_the_last_plan(lease, payload)
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

    def _of_the_last_plan(self, lease: Any, payload: bytes) -> None:
        batch = self.core.batch_ids.get(lease["batch"]) if self.core is not None else None
        if batch is None or batch.plan is None or lease["type"] not in ("shell", "expand"):
            return
        if batch.plan["sha256"].encode() not in payload:
            self.wrong("revision", f"{lease['key']} was leased with the payload of an older plan")

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

    def revised(self, key: str, keys: frozenset[str], items: int) -> None:
        self.plans[key], self.items[key] = keys, items

    def cancelled(self, ids: list[str]) -> None:
        for id_ in ids:
            no = self._no_of[id_]
            self._cancelled.add(no)

    def refused(self, env: Envelope) -> None:
        self.wrong("idempotent", f"what was asked again was refused: {env.header}")

    # -- workers ---------------------------------------------------------------------------------------------

    def attempt_began(self, process: Process, lease: Lease, *, alone: bool = False, cards: str = "") -> None:
        """``alone``: workers fence themselves, so no other that runs may still be at the same task. ``cards``: all workers
        share them, so what was lost may not still run elsewhere when another lease is granted.
        """
        worker, where = process.name, self._began.get(lease.token)
        if where is not None:
            self.wrong(
                "once", f"lease {lease.token} of {lease.key} began on {worker} while it runs on {where}"
            )
        for token, other in self._runs.get(lease.id, {}).items() if alone else ():
            # A worker that was stopped ends what it held as soon as it goes on, which takes a moment.
            older = lease.token < token or other is process
            kept_back = token in self._overtaken
            stood = other.stopped or self.world.now - other.went_on_at < ENDING_S
            if not (older or kept_back or stood) and self._began.get(token) == other.name:
                self.wrong(
                    "fence", f"{lease.key} began on {worker} under {lease.token}, {other.name} has {token}"
                )
        granted_in = self._granted_in[lease.token]
        for token, other_name in self._began.items() if cards else ():
            kept_back = token in self._overtaken
            if not kept_back and other_name != worker and self._lost.get(token, granted_in) < granted_in:
                self.wrong(
                    "card", f"{lease.key} began on {worker}, and the lost {token} still runs on {other_name}"
                )
        self._began[lease.token] = worker
        self._runs.setdefault(lease.id, {})[lease.token] = process

    def overtaken(self, leases: list[dict[str, Any]]) -> None:
        """The network held these back until what was sent after them had come: no real connection does that, and a worker
        takes what it hears for the present state of its leases."""
        self._overtaken.update((lease["token"][0], lease["token"][1]) for lease in leases)

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
        """Everything that was accepted has ended, and every batch; and each result has been answered, which may take longer."""
        core = self.core
        if core is None or core.live or self._owed:
            return False
        return all(b.state in BATCH_ENDED for b in core.batches.values())

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
            if batch.closed is False and not (batch.cancelled or batch.error):
                self.wrong("I4", f"batch {batch.name} was never planned to its end")
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
            elif key in self.plans:
                if not batch.cancelled:
                    self._by_the_last_plan(core, batch, self.plans[key], self.items[key])
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

    def _by_the_last_plan(self, core: Core, batch: Batch, keys: frozenset[str], items: int) -> None:
        """A batch that was revised has what its last plan says; of what it has no more only what is done counts."""
        wanted = set(keys)
        expand = batch.keys.get("each:expand")
        if (
            expand is not None
            and expand.state is TaskState.DONE
            and batch.keys["each"].state is TaskState.DONE
        ):
            wanted |= {f"each_i{n}" for n in range(items)}
        there = {k for k, t in batch.keys.items() if not t.dropped and not t.policy.aside}
        if wanted - there:
            self.wrong("revision", f"{batch.name} lacks {sorted(wanted - there)[:5]} of its last plan")
        known = keys | {f"each_i{n}" for n in range(items)}
        for key in there - known:
            if batch.keys[key].state is not TaskState.DONE:
                self.wrong("revision", f"{key} of {batch.name} is not in its last plan, and counts")
        if batch.revising:
            self.wrong("revision", f"revision {batch.revision} of {batch.name} was never planned")
        if any(t.error == TO_FAIL for t in batch.keys.values() if not t.dropped):
            self.wrong("revision", f"{batch.name} ended by what its first plan did")

    def _explained(self, core: Core, task: Task) -> None:
        """Why did it end badly?"""
        if task.dropped or (task.error == TO_FAIL and task.batch.key not in self.plans):
            return
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
