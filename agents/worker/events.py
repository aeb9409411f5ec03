"""What the worker's core is told (events) and what it asks for (actions). Plain data, no behaviour.

``now`` and every ``*_at`` are monotonic seconds; every ``*_s`` is a duration in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...bus.errors import BadFrame
from ...bus.wire import LEASE_S, RENEW_S, Token, Verb

#: Exit codes of a worker process. ``RESTART`` asks the supervisor for a fresh process: a thread hangs in it.
EXIT_OK = 0
EXIT_SUPERSEDED = 8
EXIT_RESTART = 75
#: The broker keeps no more of an error (leasing.py).
ERROR_CHARS: Final = 8000


@dataclass(slots=True)
class Lease:
    """One attempt at one task, as LEASE gave it (PROTOCOL §4). ``payload`` is still packed."""

    token: Token
    id: str
    batch: str
    key: str
    type: str
    payload: bytes = b""
    name: str = ""
    cls: str = "cpu"
    attempt: int = 1
    timeout_s: float | None = None
    no_progress_s: float | None = None
    deadline_s: float | None = None
    parent: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 5
    last_stuck: Any = None
    feedback: str | None = None  #: None where results are not judged, empty where none was rejected yet

    @classmethod
    def from_wire(cls, row: Mapping[str, Any], payload: bytes) -> Lease:
        """The lease of one entry of LEASE's list.

        Raises:
            BadFrame: a field that every lease has is missing or of another kind.
        """
        try:
            incarnation, seq = row["token"]
            return cls(
                token=(incarnation, seq),
                id=row["id"],
                batch=row["batch"],
                key=row["key"],
                type=row["type"],
                payload=payload,
                name=row.get("name") or "",
                cls=row.get("class") or "cpu",
                attempt=row.get("attempt") or 1,
                timeout_s=row.get("timeout_s"),
                no_progress_s=row.get("no_progress_s"),
                deadline_s=row.get("deadline_s"),
                parent=row.get("parent"),
                meta=row.get("meta") or {},
                priority=row.get("priority", 5),
                last_stuck=row.get("last_stuck"),
                feedback=row.get("feedback"),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise BadFrame(f"a lease without its fields: {e!r}", rule="§4") from None


@dataclass(slots=True)
class Outcome:
    """How an attempt ended. ``returned`` means it did not run and goes back without counting as an attempt.

    ``body`` is the packed value (for a failure: what is known), ``ref`` names it in the results folder when it
    is too large to send. ``cls`` of a failure is ``task``, ``crash``, ``infra`` or ``definition``.
    """

    ok: bool
    body: bytes = b""
    ref: Mapping[str, Any] | None = None
    cls: str | None = None
    error: str | None = None
    exit: int | None = None
    duration_s: float = 0.0
    returned: bool = False
    not_before_s: float | None = None


def legible(text: str, most: int = ERROR_CHARS) -> str:
    """``text`` as it can be sent: of a long one the beginning and (more of) the end, where tracebacks say what it was.

    Lone surrogates, as file names that are no UTF-8 bring them along, become escapes: no frame may hold them.
    """
    if len(text) > most:
        text = f"{text[: most // 4]}\n…\n{text[len(text) - (most - most // 4 - 3) :]}"
    return text.encode("utf-8", "backslashreplace").decode()


def failed(
    cls: str, error: str, *, body: bytes = b"", duration_s: float = 0.0, exit: int | None = None
) -> Outcome:
    """An attempt that ended badly, of error class ``cls``."""
    return Outcome(False, body=body, cls=cls, error=legible(error), exit=exit, duration_s=duration_s)


def returned(reason: str, not_before_s: float | None = None) -> Outcome:
    """An attempt given back without a run; the broker leases the task again after ``not_before_s``."""
    return Outcome(False, cls="infra", error=reason, returned=True, not_before_s=not_before_s)


# ---------------------------------------------------------------- events


@dataclass(slots=True)
class Welcome:
    """HELLO was answered: a (new) session stands. ``stale`` must be killed, ``kept`` goes on.

    ``greeted_at``: when the HELLO was sent; None: just now. The broker renewed ``kept`` at that time at the earliest.
    ``incarnation`` is the broker's, 0 where that is not said.
    """

    kept: Sequence[Token] = ()
    stale: Sequence[Token] = ()
    renew_s: float = RENEW_S
    lease_s: float = LEASE_S
    greeted_at: float | None = None
    incarnation: int = 0


@dataclass(slots=True)
class Leases:
    leases: Sequence[Lease]


@dataclass(slots=True)
class Renewed:
    """The broker's answer to RENEW, or CONTROL ``cancel`` (then ``stale`` is empty).

    ``corr`` is that of the RENEW: an answer says nothing of a later one, which may have been lost.
    """

    cancel: Sequence[Token] = ()
    stale: Sequence[Token] = ()
    corr: bytes = b""
    credit: int | None = None  #: what the broker knows of the last OFFER; None where it does not say


@dataclass(slots=True)
class Control:
    """CONTROL ``pause``, ``resume`` or ``drain``: no new leases until ``resume``; running work finishes.

    ``hand_back``: what has not begun goes back, for this reason; nothing else changes.
    """

    action: str
    reason: str = ""


@dataclass(slots=True)
class Recorded:
    tokens: Sequence[Token]


@dataclass(slots=True)
class Stale:
    tokens: Sequence[Token]


@dataclass(slots=True)
class Started:
    """A handed lease really runs since ``at``."""

    token: Token
    at: float


@dataclass(slots=True)
class Ended:
    """The attempt is over and, where it had processes, its tree is dead."""

    token: Token
    outcome: Outcome


@dataclass(slots=True)
class Recalled:
    """These handed leases had not begun and will not."""

    tokens: Sequence[Token]


@dataclass(slots=True)
class Progress:
    token: Token
    pct: float | None = None
    note: str | None = None
    data: bytes | None = None


@dataclass(slots=True)
class Active:
    """The attempt does something (it wrote output): resets ``no_progress_s``, nothing is sent."""

    token: Token


@dataclass(slots=True)
class Lent:
    """A handler waits for an answer from the bus (its slot is lent), or waits no more."""

    token: Token
    waiting: bool


@dataclass(slots=True)
class Tick:
    """Time has passed."""


@dataclass(slots=True)
class Slept:
    """The machine has slept for so long, and monotonic time stood still. Said before anything else is done."""

    for_s: float


@dataclass(slots=True)
class Flush:
    """Everything that arrived is stepped: send what has gathered, in as few messages as possible."""


@dataclass(slots=True)
class Disconnected:
    """A message could not be handed over: the broker is away."""


@dataclass(slots=True)
class Drain:
    """Finish and exit. ``fast`` (the second signal): end the running work now.

    ``patience_s``: how long a fast one waits for dying trees and for RECORDED.
    """

    fast: bool = False
    patience_s: float = 1.0  #: a broker that is there answers in milliseconds


@dataclass(slots=True)
class Serve:
    """From now on the worker offers this, and no more what it offered before."""

    types: tuple[str, ...]
    classes: tuple[str, ...]
    needs: tuple[str, ...] = ()


@dataclass(slots=True)
class Held:
    """The worker must take no work until :class:`Released`; ``reason`` may change meanwhile. What has not begun goes back.

    ``critical``: what runs is ended and given back, too. No attempt is burnt, and control commands pass as ever.
    """

    reason: str
    critical: bool = False


@dataclass(slots=True)
class Released:
    """What held the worker is over."""


@dataclass(slots=True)
class VramBudget:
    """MiB of its cards that tasks and a model may take together; None: not limited, or no card."""

    mb: int | None


@dataclass(slots=True)
class ModelVram:
    """MiB that the loaded model takes of the budget; 0: none is loaded."""

    mb: int


@dataclass(slots=True)
class Inherited:
    """What an earlier process of this worker's name, of that ``session``, left on disk: it is owed, too."""

    session: str
    rows: Sequence[dict[str, Any]]
    body: Sequence[bytes]


@dataclass(slots=True)
class NotSpooled:
    """The disk did not take these results; they are still owed."""

    tokens: Sequence[Token]


@dataclass(slots=True)
class Unkillable:
    """The attempt's tree does not die, long after SIGKILL; ``said`` names its processes. Ended may follow after all."""

    token: Token
    said: str


@dataclass(slots=True)
class Superseded:
    """Another worker of this name has taken over (BYE): stop at once."""


# ---------------------------------------------------------------- actions


@dataclass(slots=True)
class Send:
    verb: Verb
    header: dict[str, Any]
    body: Sequence[bytes] = ()
    corr: bytes = b""


@dataclass(slots=True)
class Spool:
    """Write these results to the disk before anything else is done; NotSpooled follows when that fails."""

    rows: Sequence[dict[str, Any]]
    body: Sequence[bytes]


@dataclass(slots=True)
class Unspool:
    """These results were written to the disk and are answered."""

    tokens: Sequence[Token]


@dataclass(slots=True)
class Start:
    lease: Lease


@dataclass(slots=True)
class Recall:
    """Take back those of these leases that have not begun; answer with :class:`Recalled`."""

    tokens: Sequence[Token]


@dataclass(slots=True)
class Terminate:
    """End it politely: SIGTERM to its group, or ``self.task.cancelled`` for a handler."""

    token: Token


@dataclass(slots=True)
class Kill:
    """End its whole tree; :class:`Ended` follows when it is dead."""

    token: Token


@dataclass(slots=True)
class Reconnect:
    """Nothing was heard for too long: take a new socket and HELLO again."""


@dataclass(slots=True)
class Exit:
    code: int
    reason: str


Event = (
    Welcome
    | Leases
    | Renewed
    | Control
    | Recorded
    | Stale
    | Started
    | Ended
    | Recalled
    | Progress
    | Active
    | Lent
    | Tick
    | Slept
    | Flush
    | Disconnected
    | Drain
    | Serve
    | Held
    | Released
    | VramBudget
    | ModelVram
    | Inherited
    | NotSpooled
    | Unkillable
    | Superseded
)
Action = Send | Spool | Unspool | Start | Recall | Terminate | Kill | Reconnect | Exit
