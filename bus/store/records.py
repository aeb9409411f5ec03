"""Rows of the database <-> records of the core. The order of columns is that of schema.sql. Pure."""

from __future__ import annotations

import sys
from typing import Any, Final

import msgpack

from ..core.checks import policy_of, shape_of
from ..core.model import JITTER, PLACEMENT_ASKS, Batch, Revised, Revision, Task
from ..states import BatchState, TaskState


def meta_of(spec: bytes) -> Any:
    """The ``meta`` of a stored spec, None when it has none."""
    raw = msgpack.unpackb(spec, raw=False)[0]
    return msgpack.unpackb(raw, raw=False).get("meta")


def _wall(mono: float, offset: float) -> float:
    return mono + offset if mono else 0.0


def insert_row(
    t: Task,
    spec: bytes,
    payload: bytes,
    results: dict[int, bytes],
    refs: dict[int, tuple[str, int]],
    offset: float,
) -> tuple[Any, ...]:
    """A new task's row, in the order of schema.sql; ``offset`` takes monotonic times to wall clock."""
    ref, ref_bytes = refs.get(t.no, (None, None))
    return (
        t.no,
        t.batch.no,
        t.key,
        int(t.state),
        t.seq,
        t.priority,
        *_attempt_columns(t, offset),
        t.created_at,
        t.ended_at,
        t.owner,
        t.parent,
        t.error,
        spec,
        payload,
        results.get(t.no),
        ref,
        ref_bytes,
        int(t.revised),
    )


def update_row(t: Task, offset: float) -> tuple[Any, ...]:
    """What may change of a task's row, its no last."""
    return (
        int(t.state),
        t.seq,
        *_attempt_columns(t, offset),
        t.ended_at,
        t.owner,
        t.error,
        int(t.revised),
        t.no,
    )


def _attempt_columns(t: Task, offset: float) -> tuple[Any, ...]:
    """``hold`` to ``deadline_at``: how far its attempts have come."""
    return (
        int(t.hold),
        t.ending,
        t.attempt,
        *t.counts,
        t.token_inc,
        t.token_seq,
        t.session,
        t.worker,
        t.leased_at,
        t.started_at,
        _wall(t.not_before, offset),
        _wall(t.deadline, offset),
    )


def batch_row(b: Batch) -> tuple[Any, ...]:
    """A batch's row, in the order of schema.sql."""
    plan = msgpack.packb(b.plan, use_bin_type=True) if b.plan is not None else None
    revisions = [[r.key, r.digest, r.replaced, r.at, r.by, r.reason] for r in b.revisions]
    return (
        b.no,
        b.id,
        b.key,
        b.kind,
        b.name,
        int(b.state),
        b.priority,
        int(b.mirror),
        int(b.closed),
        int(b.cancelled),
        b.created_at,
        b.ended_at,
        b.seq,
        b.error,
        plan,
        msgpack.packb(revisions, use_bin_type=True) if revisions else None,
    )


def batch_from(row: tuple[Any, ...]) -> Batch:
    """A batch from its row; that of a database before version 4 is shorter."""
    (
        no,
        id_,
        key,
        kind,
        name,
        state,
        priority,
        mirror,
        closed,
        cancelled,
        created_at,
        ended_at,
        seq,
        error,
        plan,
        *later,
    ) = row
    b = Batch(no, id_, key, kind, name, created_at)
    b.state = BatchState(state)
    b.priority = priority
    b.mirror, b.closed, b.cancelled = bool(mirror), bool(closed), bool(cancelled)
    b.ended_at, b.seq, b.error = ended_at, seq, error
    b.plan = msgpack.unpackb(plan, raw=False) if plan is not None else None
    revisions = msgpack.unpackb(later[0], raw=False) if later and later[0] is not None else ()
    b.revisions = tuple(Revision(*revision) for revision in revisions)
    b.revising = bool(b.revisions) and not b.closed
    return b


#: What the columns that came later hold in a row of an older database, by table.
_LATER: Final[dict[str, tuple[int, tuple[Any, ...]]]] = {"batches": (15, (None,)), "tasks": (30, (0,))}


def whole_row(table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row of this or an older version, in the columns of schema.sql."""
    columns, later = _LATER.get(table, (0, ()))
    return (*row, *later) if columns == len(row) else row


def task_from(
    row: tuple[Any, ...], batch: Batch, now: float, wall: float
) -> tuple[Task, dict[str, Any] | None]:
    """A task from its row, and its edges as SUBMIT resolved them; times against this process' clock.

    The row: the columns of schema.sql up to `error`, then `spec`, `revised`.
    What a hundred thousand tasks have in common is one object: it stays in memory as long as they do.
    """
    (
        no,
        _,
        key,
        state,
        seq,
        priority,
        hold,
        ending,
        attempt,
        n_task,
        n_crash,
        n_infra,
        inc,
        tok,
        session,
        worker,
    ) = row[:16]
    leased_at, started_at, not_before_at, deadline_at, created_at, ended_at, owner = row[16:23]
    parent, error, packed, revised = row[23:]
    raw, edges, digest = msgpack.unpackb(packed, raw=False)
    spec = msgpack.unpackb(raw, raw=False)
    # validated when it was submitted; the same readers, so that a limit has one home
    t = Task(no, batch, key, shape_of(spec, spec["type"]), policy_of(spec), created_at)
    t.state = TaskState(state)
    t.seq, t.priority, t.hold, t.ending = seq, priority, bool(hold), ending
    t.join = bool(spec.get("join")) or t.shape.type in PLACEMENT_ASKS
    t.attempt, t.counts = attempt, (n_task, n_crash, n_infra)
    t.token_inc, t.token_seq, t.session = inc, tok, sys.intern(session)
    t.worker = sys.intern(worker) if worker is not None else None
    t.leased_at, t.started_at, t.ended_at = leased_at, started_at, ended_at
    t.owner, t.parent, t.error, t.digest = sys.intern(owner), parent, error, digest
    t.revised = Revised(revised)
    if not_before_at:
        # a wall clock that went back must not hold it for longer than its policy could
        t.not_before = now + min(max(0.0, not_before_at - wall), t.policy.backoff_max_s * (1 + JITTER))
    if deadline_at:
        remaining = max(0.0, deadline_at - wall)
        t.deadline = now + min(remaining, float(spec.get("deadline_s") or remaining))
    return t, edges if any(edges.values()) else None
