"""A task's life: one enum, one table, one file.

Rule 1: every state change of a task goes through :func:`after`. Nothing else assigns a state.
Rule 2: terminal states absorb every machine event; only a person's REQUEUE and REVIVE leave them.
Rule 3: the CHECK constraints in ``store/schema.sql`` say the same again; a test compares the two.

    WAITING -MET-> READY -LEASE-> LEASED -OK-> DONE | -OK_REVIEW-> REVIEW
    LEASED -RETRY-> READY, -ESCALATE-> FAILED, -BURY-> DEAD, -RETURN-> READY
    REVIEW -ACCEPT-> DONE, -REJECT-> READY, -ESCALATE-> FAILED      FAILED -RETRY-> READY, -BURY-> DEAD
    any non-final -EXPIRE-> EXPIRED, -CANCEL-> CANCELLED            WAITING -SKIP-> SKIPPED, -JOIN-> DONE
    WAITING -BURY-> DEAD: a held join whose list cannot become tasks
    READY -AWAIT-> WAITING: by a revision of its plan, or a person's REQUEUE, others are before it again
    by a person: DEAD/EXPIRED/CANCELLED -REQUEUE-> READY, or -REVIVE-> WAITING while something before it is live
                 SKIPPED -REVIVE-> WAITING
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class TaskState(IntEnum):
    """Where a task is. The numbers are stored; never renumber them."""

    WAITING = 0  #: for its edges; the recording of the last dependency moves it on
    READY = 1  #: for a worker; matching moves it on (not before ``not_before``), a revision of its plan may take it back
    LEASED = 2  #: held by one worker under a fencing token; its result or the lease's end moves it on
    REVIEW = 3  #: result recorded, judged by the brain (or by its verdict deadline)
    FAILED = 4  #: retries used up and escalated; a verdict (or its deadline) moves it on
    DONE = 5  #: ended well
    DEAD = 6  #: ended badly: its attempts are used up, or its definition cannot run
    CANCELLED = 7  #: ended by a person, its batch or its owner
    EXPIRED = 8  #: ended by a deadline
    SKIPPED = 9  #: never ran: a task before it ended badly


class TaskEvent(IntEnum):
    """What can happen to a task."""

    MET = 0  #: the last edge is satisfied
    JOIN = 1  #: the last edge of a join task (it runs nothing) is satisfied
    SKIP = 2  #: a dependency ended badly
    LEASE = 3  #: granted to a worker
    OK = 4  #: result ok
    OK_REVIEW = 5  #: result ok, to be judged
    RETRY = 6  #: attempts are left (LEASED), or the verdict says so (FAILED)
    RETURN = 7  #: handed back without a run
    ESCALATE = 8  #: attempts used up, a verdict is wanted
    BURY = 9  #: attempts used up or not retryable
    ACCEPT = 10  #: verdict on REVIEW
    REJECT = 11  #: verdict on REVIEW, attempts are left
    EXPIRE = 12  #: a deadline passed
    CANCEL = 13  #: cancelled, and no process of it lives
    REQUEUE = 14  #: by a person only
    REVIVE = 15  #: by a person's REQUEUE, of what waits (again) for others
    AWAIT = 16  #: by a new revision of its plan, or a person's REQUEUE, it waits for others again


S, E = TaskState, TaskEvent

TRANSITIONS: Final[Mapping[tuple[TaskState, TaskEvent], TaskState]] = {
    (S.WAITING, E.MET): S.READY,
    (S.WAITING, E.JOIN): S.DONE,
    (S.WAITING, E.SKIP): S.SKIPPED,
    (S.WAITING, E.BURY): S.DEAD,
    (S.WAITING, E.EXPIRE): S.EXPIRED,
    (S.WAITING, E.CANCEL): S.CANCELLED,
    (S.READY, E.LEASE): S.LEASED,
    (S.READY, E.AWAIT): S.WAITING,
    (S.READY, E.EXPIRE): S.EXPIRED,
    (S.READY, E.CANCEL): S.CANCELLED,
    (S.LEASED, E.OK): S.DONE,
    (S.LEASED, E.OK_REVIEW): S.REVIEW,
    (S.LEASED, E.RETRY): S.READY,
    (S.LEASED, E.RETURN): S.READY,
    (S.LEASED, E.ESCALATE): S.FAILED,
    (S.LEASED, E.BURY): S.DEAD,
    (S.LEASED, E.EXPIRE): S.EXPIRED,
    (S.LEASED, E.CANCEL): S.CANCELLED,
    (S.REVIEW, E.ACCEPT): S.DONE,
    (S.REVIEW, E.REJECT): S.READY,
    (S.REVIEW, E.ESCALATE): S.FAILED,
    (S.REVIEW, E.EXPIRE): S.EXPIRED,
    (S.REVIEW, E.CANCEL): S.CANCELLED,
    (S.FAILED, E.RETRY): S.READY,
    (S.FAILED, E.BURY): S.DEAD,
    (S.FAILED, E.EXPIRE): S.EXPIRED,
    (S.FAILED, E.CANCEL): S.CANCELLED,
    (S.DEAD, E.REQUEUE): S.READY,
    (S.EXPIRED, E.REQUEUE): S.READY,
    (S.CANCELLED, E.REQUEUE): S.READY,
    (S.DEAD, E.REVIVE): S.WAITING,
    (S.EXPIRED, E.REVIVE): S.WAITING,
    (S.CANCELLED, E.REVIVE): S.WAITING,
    (S.SKIPPED, E.REVIVE): S.WAITING,
}

TERMINAL: Final = frozenset({S.DONE, S.DEAD, S.CANCELLED, S.EXPIRED, S.SKIPPED})
#: Terminal and not DONE: a dependent with an edge ``on: success`` is skipped.
ENDED_BADLY: Final = TERMINAL - {S.DONE}
#: The wire's and the status page's words, by number.
STATE_NAMES: Final[tuple[str, ...]] = tuple(s.name.lower() for s in TaskState)


class IllegalTransition(Exception):
    """The table has no such pair. A bug of the caller, never of a peer: nothing has changed."""


def after(state: TaskState, event: TaskEvent) -> TaskState:
    """The state after ``event``.

    Raises:
        IllegalTransition: the pair is not in the table; nothing happened.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{state.name} + {event.name}") from None


class BatchState(IntEnum):
    """Where a batch is; derived from its tasks' counts, stored for people and for restart."""

    PLANNING = 0  #: a plan whose tasks the brain has not declared yet
    RUNNING = 1
    COMPLETE = 2  #: every task DONE
    FAILED = 3  #: ended, and some task ended badly (or the plan could not be planned)
    CANCELLED = 4


BATCH_STATE_NAMES: Final[tuple[str, ...]] = tuple(s.name.lower() for s in BatchState)
BATCH_ENDED: Final = frozenset({BatchState.COMPLETE, BatchState.FAILED, BatchState.CANCELLED})
