"""The broker core's records. No I/O, no clock: ``now`` (monotonic seconds) and ``wall`` (Unix seconds) come in.

One slotted record a task; payloads, results and ``meta`` are never in it (they are in the store only).
"""

from __future__ import annotations

import hashlib
import uuid
import zlib
from collections import deque
from dataclasses import dataclass, field
from enum import IntFlag
from functools import lru_cache
from typing import Any, Final

from ..states import ENDED_BADLY, STATE_NAMES, TERMINAL, BatchState, TaskState
from ..tags import MODEL_TYPES
from ..wire import Verb
from .quarantine import Places, places_of

NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "rigbus")
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def task_id(batch: str, key: str) -> str:
    """The public id of a task: uuid5(RIGBUS, "<batch>/<key>") (PROTOCOL §2).

    As RFC 9562 has it; five times as fast as the UUID class, and it is made for each task of each start.
    """
    h = hashlib.sha1(NAMESPACE.bytes + f"{batch}/{key}".encode(), usedforsecurity=False).hexdigest()
    return f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{_VARIANT[h[16]]}{h[17:20]}-{h[20:32]}"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a worker must offer to run a task; interned, so that matching compares shapes and not tasks."""

    type: str
    cls: str | None = None  #: None: any worker that runs the type
    pool: str | None = None
    needs: tuple[str, ...] = ()
    view: str | None = None  #: id of the state folder that the worker must see
    depth: int = 0  #: how many handlers wait for it, one in another; at most :data:`MAX_DEPTH_SEEN`
    vram_mb: int = 0  #: MiB of a card's memory that it takes while it runs; 0: none that counts
    avoid: Places = ()  #: where a task of it has crashed: another place is tried first, where there is one


#: Scope of the facts that say which worker holds which model; its key "" is a line for people.
PLACEMENT: Final = "placement"
#: Types of the held joins by which anybody asks for a model to be loaded or unloaded (placements.py).
PLACEMENT_ASKS: Final = frozenset({"load_llm", "unload_llm"})


def of_model(shape: Shape) -> bool:
    """Whether tasks of this shape want a worker that holds a model."""
    return shape.cls == "llm" or shape.type in MODEL_TYPES


JITTER: Final = 0.25  #: of a back-off, that it is lengthened by at most


@dataclass(frozen=True, slots=True)
class Policy:
    """Retry and time limits of a task, applied by the core alone. Seconds."""

    task: int = 3
    crash: int = 2
    infra: int = 10
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    no_progress_s: float | None = None
    review: bool = False
    escalate: bool = False
    aside: bool = False  #: the brain's own question: not part of its batch's count, nor of the mirror

    def cap(self, error_class: str) -> int:
        """Attempts allowed that end in this class; ``definition`` gets one."""
        return {"task": self.task, "crash": self.crash, "infra": self.infra}.get(error_class, 1)

    def backoff(self, failures: int, who: str = "") -> float:
        """Seconds before the next attempt after ``failures`` (≥ 1) of a class: doubling, capped, then lengthened.

        What failed together must not come back together: with ``who`` up to a quarter is added, by a hash of it, so that
        the same task always waits equally long.
        """
        wait_s = float(min(self.backoff_max_s, self.backoff_s * 2 ** min(failures - 1, 16)))
        if not who or not wait_s:
            return wait_s
        return wait_s * (1.0 + JITTER * zlib.crc32(who.encode()) / 0xFFFFFFFF)


_interned = lru_cache(maxsize=4096)(Shape)


def intern_shape(
    type_: str,
    cls: str | None = None,
    pool: str | None = None,
    needs: tuple[str, ...] = (),
    view: str | None = None,
    depth: int = 0,
    vram_mb: int = 0,
    avoid: Places = (),
) -> Shape:
    """One object for what is equal, as far as it is kept: how it is called must not make two (``lru_cache`` would)."""
    return _interned(type_, cls, pool, needs, view, depth, vram_mb, avoid)


MAX_DEPTH_SEEN: Final = 64  #: deeper calls are matched as if they were as deep as this
intern_policy = lru_cache(maxsize=1024)(Policy)

CLASSES: Final = ("task", "crash", "infra")


def apart(shape: Shape, avoid: Places) -> Shape:
    """The same shape for a task that has crashed at these places; empty: as it was."""
    if shape.avoid == avoid:
        return shape
    s = shape
    return intern_shape(s.type, s.cls, s.pool, s.needs, s.view, s.depth, s.vram_mb, avoid)


def called_from(shape: Shape, caller: Shape | None) -> Shape:
    """The shape of a task that a handler calls; ``caller`` is None when that task is known no more."""
    depth = min(caller.depth + 1 if caller is not None else 1, MAX_DEPTH_SEEN)
    return intern_shape(shape.type, shape.cls, shape.pool, shape.needs, shape.view, depth, shape.vram_mb)


class Revised(IntFlag):
    """What revisions of its plan, and a REQUEUE while it is being cancelled, mean to a task. The numbers are stored; never
    renumber them."""

    NO = 0  #: nothing that is still to come
    GOES_ON = 1  #: it was being ended; when its tree is dead it comes back, unless it ended well
    VOID = 2  #: what runs of it ran under another definition: nothing that this attempt says is recorded
    ANEW = 3  #: both: what runs is void, and it comes back when that is dead
    DROPPED = 4  #: the plan has it no more; it counts in no total once it has ended


@dataclass(frozen=True, slots=True)
class Revision:
    """One REVISE of a batch. ``digest`` is of the plan that came with ``key``; ``at`` is wall clock.

    ``replaced``: the staged copy of the plan before.
    """

    key: str
    digest: str
    replaced: str
    at: float
    by: str
    reason: str

    def row(self) -> dict[str, Any]:
        """For people."""
        return {"at": self.at, "by": self.by, "reason": self.reason, "replaced": self.replaced}


class Batch:
    """Tasks submitted together, or the calls of a session, or the run of a plan."""

    __slots__ = (
        "cancelled",
        "closed",
        "counts",
        "created_at",
        "ended_at",
        "error",
        "id",
        "key",
        "keys",
        "kind",
        "mirror",
        "name",
        "no",
        "plan",
        "priority",
        "revising",
        "revisions",
        "seq",
        "state",
        "total",
        "vtime",
    )

    def __init__(self, no: int, id_: str, key: str, kind: str, name: str, created_at: float) -> None:
        self.no = no
        self.id = id_
        self.key = key
        self.kind = kind  #: client | calls | plan
        self.name = name
        self.priority = 5
        self.mirror = kind == "plan"
        self.plan: dict[str, Any] | None = None
        self.state = BatchState.PLANNING if kind == "plan" else BatchState.RUNNING
        self.closed = False  #: no more tasks will join
        self.cancelled = False
        self.created_at = created_at  #: wall clock
        self.ended_at = 0.0
        self.error: str | None = None
        self.seq = 0
        self.counts = [0] * len(TaskState)
        self.total = 0
        self.vtime = 0.0  #: service received, for the fair share
        self.keys: dict[str, Task] = {}
        self.revisions: tuple[Revision, ...] = ()  #: after the first plan
        self.revising = False  #: the last one is not planned yet: nothing of it is leased

    @property
    def revision(self) -> int:
        """Which of its plans it has, from 1."""
        return 1 + len(self.revisions)

    @property
    def live(self) -> int:
        """Tasks that have not ended."""
        c = self.counts
        return c[0] + c[1] + c[2] + c[3] + c[4]

    @property
    def own(self) -> bool:
        """It holds what the brain asks for by itself; nobody else may put a task into it."""
        return self.key == PLACEMENT or self.key.startswith(f"{PLACEMENT}/")

    @property
    def channel(self) -> str:
        """The event channel of its tasks (PROTOCOL §6)."""
        return "p" if self.mirror else "c"

    @property
    def expands(self) -> bool:
        """Whether a foreach of it has tasks that are not declared yet, though a failed one has skipped its join.

        Not where it was skipped for a list. ``ending``: the brain has said that it declares no more.
        """
        if self.kind != "plan" or self.cancelled or self.error is not None:
            return False
        skipped = {
            task.no
            for task in self.keys.values()
            if task.hold
            and task.state is TaskState.SKIPPED
            and task.shape.type == "join"
            and not (task.ending or task.dropped)
        }
        for task in self.keys.values() if skipped else ():
            if task.shape.type == "expand" and task.breaks:
                skipped -= {other.no for other, on_end in task.dependents or () if not on_end}
        return bool(skipped)

    def derive(self) -> BatchState:
        """Its state from its counts; the only rule for a batch's end."""
        if self.kind == "plan" and not self.closed and not self.cancelled and self.error is None:
            return BatchState.PLANNING if not self.total else BatchState.RUNNING
        if self.live or (not self.closed and not self.cancelled and self.error is None):
            return BatchState.RUNNING
        if self.expands:
            return BatchState.RUNNING
        if self.cancelled:
            return BatchState.CANCELLED
        if self.error is not None:
            return BatchState.FAILED
        return BatchState.COMPLETE if self.counts[TaskState.DONE] == self.total else BatchState.FAILED


class Task:
    """One task. ``token_seq`` 0 = no lease; times ``*_at`` are wall clock, the others monotonic."""

    __slots__ = (
        "after",
        "attempt",
        "batch",
        "children",
        "counts",
        "created_at",
        "deadline",
        "dependents",
        "digest",
        "ended_at",
        "ending",
        "error",
        "hold",
        "hold_reason",
        "id",
        "join",
        "key",
        "lease_deadline",
        "leased_at",
        "no",
        "not_before",
        "owner",
        "parent",
        "policy",
        "priority",
        "ready_at",
        "revised",
        "seq",
        "session",
        "shape",
        "silences",
        "started_at",
        "state",
        "token_inc",
        "token_seq",
        "unmet",
        "waiters",
        "worker",
    )

    def __init__(
        self, no: int, batch: Batch, key: str, shape: Shape, policy: Policy, created_at: float
    ) -> None:
        self.no = no
        self.batch = batch
        self.key = key
        self.id = task_id(batch.id, key)
        self.shape = shape
        self.policy = policy
        self.priority = 5
        self.state = TaskState.WAITING
        self.seq = 0
        self.unmet = 0  #: edges not yet met, plus one while ``hold``
        self.hold = False
        self.join = False
        self.after: list[tuple[int, bool]] | tuple[()] = ()  #: (task no, True for ``on: end``)
        self.dependents: list[tuple[Task, bool]] | None = None
        self.attempt = 0
        self.counts = (0, 0, 0)  #: failures by class: task, crash, infra
        self.token_inc = 0
        self.token_seq = 0
        self.session = ""  #: the worker session that holds (or held) it
        self.worker: str | None = None
        self.lease_deadline = 0.0
        self.leased_at = 0.0
        self.started_at = 0.0
        self.silences = 0  #: times that its worker lived but fell silent under it, since the broker started
        self.not_before = 0.0
        self.ready_at = 0.0
        self.deadline = 0.0  #: monotonic, 0 = none
        self.digest = 0  #: of spec and payload: the same key with another content is a CONFLICT
        self.ending = 0  #: 1 cancel asked, 2 expired: the state follows when the tree is dead
        self.owner = ""  #: a client session (``orphan: cancel``)
        self.parent = 0  #: task no of the handler that called it
        self.children: list[Task] | None = None
        self.waiters: frozenset[str] | None = (
            None  #: sessions to tell the end; one object for all of a submit
        )
        self.error: str | None = None
        self.revised = Revised.NO
        self.hold_reason = ""
        self.created_at = created_at
        self.ended_at = 0.0

    @property
    def token(self) -> tuple[int, int]:
        """The fencing token of the current or last lease."""
        return (self.token_inc, self.token_seq)

    @property
    def ended(self) -> bool:
        """Whether its state is terminal."""
        return self.state in TERMINAL

    @property
    def dropped(self) -> bool:
        """The last revision of its plan has it no more."""
        return self.revised != 0 and Revised.DROPPED in self.revised

    @property
    def breaks(self) -> bool:
        """It has ended badly: what depends on its success will not run."""
        return self.state in ENDED_BADLY and not self.dropped

    @property
    def void(self) -> bool:
        """Nothing that its attempt says is recorded."""
        return self.revised != 0 and Revised.VOID in self.revised

    @property
    def counted(self) -> bool:
        """Whether its batch counts it."""
        return not self.policy.aside and not (self.dropped and self.state in TERMINAL)

    def row(self) -> dict[str, Any]:
        """What QUERY and SNAPSHOT show of it (PROTOCOL §6); the shell adds ``meta`` and the result."""
        shape = self.shape
        return {
            "no": self.no,
            "id": self.id,
            "batch": self.batch.id,
            "key": self.key,
            "type": shape.type,
            "class": shape.cls,
            "pool": shape.pool,
            "priority": self.priority,
            "state": STATE_NAMES[self.state],
            "started": self.state is TaskState.LEASED and self.started_at > 0,
            "attempt": self.attempt,
            "token": list(self.token) if self.state in (TaskState.LEASED, TaskState.REVIEW) else None,
            "attempts": dict(zip(CLASSES, self.counts, strict=True)),
            "worker": self.worker,
            "created_at": self.created_at,
            "started_at": self.started_at or self.leased_at,
            "ended_at": self.ended_at,
            "error": self.error,
            "join": self.join,
            "hold": self.hold,
            "cancel_requested": self.ending == 1,
            "ending": self.ending > 0,
            "review": self.policy.review,
            "aside": self.policy.aside,
            "reason": self.hold_reason,
            "definition": f"{self.digest:014x}",
            "revision": self.batch.revision,
            "dropped": self.dropped,
            "call": self.parent > 0,
            "seq": self.seq,
        }


class Session:
    """A peer that said HELLO. ``peer`` is the ROUTER's name of its present connection."""

    __slots__ = (
        "classes",
        "credit",
        "draining",
        "epoch",
        "greeted",
        "held",
        "hellos",
        "id",
        "info",
        "last_seen",
        "leases",
        "lent",
        "name",
        "needs",
        "order",
        "peer",
        "pid",
        "pools",
        "requests",
        "role",
        "shapes",
        "slots",
        "state_id",
        "suspect",
        "types",
        "unkillable",
        "vram_mb",
        "watched",
    )

    def __init__(self, id_: str, role: str, peer: bytes, now: float) -> None:
        self.id = id_
        self.role = role
        self.peer = peer
        self.name = ""
        self.pid = 0
        self.last_seen = now
        self.epoch = 0
        self.requests = (0, 0)  #: (round, how many in it)
        self.info: dict[str, Any] = {}
        self.hellos = 0  #: the `nth` of the last HELLO that was accepted; 0: it does not count them
        # of a worker
        self.credit = 0
        self.greeted = False  #: a HELLO of it has renewed leases, and no RENEW has come since
        self.slots = 1
        self.lent = 0  #: of the credit: slots of handlers that wait, for the calls of handlers only
        self.types: frozenset[str] = frozenset()
        self.classes: frozenset[str] = frozenset()
        self.needs: frozenset[str] = frozenset()
        self.pools: frozenset[str] = frozenset()
        self.state_id = ""
        self.vram_mb: int | None = None  #: MiB that its leases may take together; None: not limited
        self.held = ""  #: why it asks for no work at present, in its own words (a hot card)
        #: processes that hang in the kernel and keep its slots, in its words
        self.unkillable: tuple[str, ...] = ()
        self.leases: dict[tuple[int, int], Task] = {}  #: by token: a seq alone comes again after a restart
        self.draining = False
        self.suspect = False
        self.shapes: dict[Shape, bool] = {}  #: cache of ``accepts``
        self.order = 0.0
        self.watched = False  #: a timer looks after its leases

    def accepts(self, shape: Shape) -> bool:
        """Whether its OFFER covers a shape; the predicates of :func:`~.matching.predicates`, cached."""
        hit = self.shapes.get(shape)
        if hit is None:
            hit = self.shapes[shape] = (
                shape.type in self.types
                and (shape.cls in self.classes if shape.cls else "brain" not in self.classes)
                and (shape.pool is None or shape.pool in self.pools)
                and self.needs.issuperset(shape.needs)
                and (shape.view is None or shape.view == self.state_id)
                and (self.vram_mb is None or shape.vram_mb <= self.vram_mb)
            )
        return hit

    @property
    def places(self) -> Places:
        """Its cards, or itself: where its crashes are counted."""
        return places_of(self.name, self.info)

    @property
    def vram_leased_mb(self) -> int:
        """MiB that its present leases may take: counted when it is asked, so that it cannot drift."""
        return sum(task.shape.vram_mb for task in self.leases.values())

    def has_vram(self, shape: Shape) -> bool:
        """Whether its budget has room for one more of a shape beside its leases."""
        if not shape.vram_mb or self.vram_mb is None:
            return True
        return self.vram_leased_mb + shape.vram_mb <= self.vram_mb


@dataclass(slots=True)
class Fact:
    """What the brain must remember, in the broker: compare-and-set by ``rev``."""

    rev: int
    epoch: int
    value: Any


@dataclass(slots=True)
class Send:
    """One message to send after the commit. The shell fills ``payload_of`` and ``result_of`` from the store."""

    peer: bytes
    verb: Verb
    header: dict[str, Any]
    body: list[bytes] = field(default_factory=list)
    corr: bytes = b""
    payload_of: list[int] | None = None  #: body frame i = payload of this task no, ``meta`` put into lease i
    rows_of: list[int] | None = None  #: ``header["rows"][i]`` gets meta; body frame i = its result
    history: bool = False  #: ``header["rows"][i]["earlier"]`` gets the recorded attempts of each
    attempts_of: int = 0  #: ``header["attempts"]`` gets the recorded attempts of this task no
    evaluations_of: int = 0  #: ``header["evaluations"]`` gets those of this task no, with their samples


@dataclass(slots=True)
class Changes:
    """What one commit writes. Several transitions of a task in one step are one row."""

    new_tasks: dict[int, tuple[Task, bytes, bytes, Any]] = field(
        default_factory=dict
    )  #: no -> task, spec, payload, meta
    tasks: dict[int, Task] = field(default_factory=dict)
    respecs: dict[int, tuple[bytes, bytes, int]] = field(
        default_factory=dict
    )  #: no -> spec, payload, priority of a task whose plan was revised; it is among ``tasks``, too
    results: dict[int, bytes] = field(default_factory=dict)
    refs: dict[int, tuple[str, int]] = field(
        default_factory=dict
    )  #: no -> sha256 and bytes of a result in a file
    attempts: list[tuple[int, int, str | None, float, float, str, str | None]] = field(default_factory=list)
    evaluations: list[tuple[int, int, str, float, bytes, bytes]] = field(
        default_factory=list
    )  #: task no, attempt, verdict, when, evaluation, sample
    batches: dict[int, Batch] = field(default_factory=dict)
    facts: dict[tuple[str, str], Fact | None] = field(default_factory=dict)
    events: list[list[Any]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    purge_tasks: list[int] = field(default_factory=list)
    purge_batches: list[int] = field(default_factory=list)
    #: (batch id, key, attempts) of purged tasks whose batch stays: the shell removes their logs
    purge_logs: list[tuple[str, str, int]] = field(default_factory=list)
    trim_events_below: int = 0

    def __bool__(self) -> bool:
        return bool(
            self.new_tasks
            or self.tasks
            or self.batches
            or self.facts
            or self.events
            or self.meta
            or self.purge_tasks
            or self.purge_batches
            or self.attempts
            or self.evaluations
            or self.trim_events_below
        )


@dataclass(frozen=True, slots=True)
class Doubt:
    """A result that came for an attempt which was recorded before this broker started: is it the recorded one?"""

    no: int
    task: str
    token: tuple[int, int]
    worker: str
    ok: bool
    value: bytes
    ref: str | None  #: sha256 of a result in a file


@dataclass(slots=True)
class Effects:
    """The outcome of a round of steps: commit ``changes`` first, then send, then publish the events."""

    changes: Changes = field(default_factory=Changes)
    sends: deque[Send] = field(default_factory=deque)
    progress: list[tuple[str, dict[str, Any], list[bytes]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)  #: for the shell to compare with the store
