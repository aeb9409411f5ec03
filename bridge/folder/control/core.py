"""What an edit of the bridge's own files asks for. Pure: bytes, rows and times in, a command (or what is wrong) out.

Nothing is ever a command because it is missing. A command is what somebody has *written*: a file without our seal, made
of one of ours, which names the one that it was made of. `brain/state.json` does so by its ``listing``, a number that
grows with each batch that comes into it; a task's file by its ``seq`` and ``attempts``. So an edit of an older file, a file
of another rig, half a file and an empty folder ask for nothing. No time of the other machine is looked at.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..contract.layout import COMPLETE, FAILED, PROCESSING, QUEUE, STATE_FILE
from ..contract.receipts import PLAIN_NAME, Problem
from ..intake.core import parse_object
from ..mirror.lanes import id_of
from ..mirror.listing import Listing
from ..share.seal import MAX_BYTES, MIRRORED_BY

BARE_S: Final = 60.0  #: so long a batch was shown before a state.json that names no listing can have meant it
_OWNER_FIELDS: Final = ("assigned_to", "started_at")
_USE: Final = (
    "use `rigbus cancel ID` and `rigbus retry ID`, or a request file; the rig draws this file itself"
)


# -- brain/state.json --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Half:
    """No whole JSON object (yet); ``problem`` says what is wrong should it stay so."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class NoCommand:
    """Somebody's edit that asks for nothing: it is put aside and answered with ``problem``."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class Kill:
    """These batches are to be cancelled. ``spared`` were missing too, and cannot have been meant."""

    batches: tuple[str, ...]
    spared: tuple[str, ...] = ()


def read_state(data: bytes, listing: Listing, now: float) -> Kill | NoCommand | Half:
    """What a ``state.json`` that is not sealed asks for: the batches that it took out of the one it was made of.

    ``{}``, whole or as ``active_batches``, takes out all. A file that does not say of which listing it was made can only
    mean batches that were shown for :data:`BARE_S` seconds.
    """
    found = parse_object(data, STATE_FILE, MAX_BYTES)
    if isinstance(found, Problem):
        return Half(found)
    active = found.get("active_batches") if found else {}
    if not isinstance(active, dict):
        what = "its active_batches is not an object, so it names no batch to cancel"
        return NoCommand(Problem(what, STATE_FILE, _USE))
    missing = {batch: it for batch, it in listing.since.items() if batch not in active}
    if "listing" in found:
        seen = _seen(found["listing"], listing)
        if seen is None:
            what = f"it was made of a state ({str(found['listing'])[:40]!r}) that this rig has not written"
            return NoCommand(Problem(what, STATE_FILE, _USE))
        meant = sorted(batch for batch, it in missing.items() if it.n <= seen)
    else:
        meant = sorted(batch for batch, it in missing.items() if _age_s(it.at, now) >= BARE_S)
    spared = tuple(sorted(missing.keys() - set(meant)))
    if not meant:
        what = (
            "it was changed, and takes no batch out of active_batches that the state it was made of had shown"
        )
        if spared:
            what += f" ({', '.join(spared[:5])} came later)"
        return NoCommand(Problem(what, STATE_FILE, _USE))
    return Kill(tuple(meant), spared)


def _seen(mark: Any, listing: Listing) -> int | None:
    """The number of the listing that a file was made of; None when it is none of ours."""
    id_, dash, number = mark.rpartition("-") if isinstance(mark, str) else ("", "", "")
    if not dash or id_ != listing.id or not (number.isascii() and number.isdigit() and len(number) < 16):
        return None
    return int(number) if int(number) <= listing.n else None


def _age_s(at: float | None, now: float) -> float:
    """Since ``at``, a monotonic time that may be of before a reboot."""
    if at is None:
        return 0.0
    return now - at if now >= at else math.inf


def mark_of(path: str, data: bytes, was: Iterable[int]) -> str:
    """Names this very edit in the journal: the same file seen again is the same command."""
    raw = f"{path}\0{','.join(map(str, was))}\0".encode("utf-8", "surrogateescape") + data
    return "control-" + hashlib.sha256(raw).hexdigest()[:32]


# -- files of tasks in lanes where they do not stand ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reset:
    """The attempt that runs is to end and the task to run again; ``seq`` is that of the drawing that was moved."""

    task: str
    seq: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Refused:
    """To be put aside and answered. ``claimer`` is who took the task for himself, if that is what happened."""

    problem: Problem
    claimer: str = ""


def read_stray(path: str, data: bytes, row: Mapping[str, Any] | None) -> Reset | Refused | Half | None:
    """What an unsealed file of a known task asks for in a lane where that task does not stand.

    ``row`` is the broker's, None when it has forgotten the task. In the queue, made of the drawing of the attempt that
    runs now and without its owner, it is a reset; in processing with somebody's name it is a claim, which the rig never
    grants by file (its own leases alone say who runs what); in complete or failed it is the end of such a claim. None: an
    author has written his own order again, which is the queue's door's to judge.
    """
    lane = path.rpartition("/")[0]
    if lane == QUEUE and row is None:
        return None  # an order, perhaps half-written: the queue's own door reads it, and knows what is none
    found = parse_object(data, path, MAX_BYTES)
    if isinstance(found, Problem):
        return Half(found)
    state = str(row["state"]) if row is not None else "gone"
    owner = found.get("assigned_to")
    if (
        lane == QUEUE
        and row is not None
        and found.get("mirrored_by") != MIRRORED_BY
        and _is_author_s(path, row)
    ):
        return None
    if lane == QUEUE and row is not None and not any(found.get(key) for key in _OWNER_FIELDS):
        return _reset(path, found, row, state)
    if (
        lane == PROCESSING
        and isinstance(owner, str)
        and owner
        and (row is None or owner != row.get("worker"))
    ):
        what = f"{_name(owner)} has taken this task by its file; the rig leases its tasks itself (this one is {state})"
        fix = (
            "end that agent, or run `rigbus worker` in its place; what it does with this task changes nothing"
        )
        return Refused(Problem(what, path, fix), _name(owner))
    if lane in (COMPLETE, FAILED) and isinstance(found.get("result"), dict):
        what = f"a result that the rig did not ask for: it gave no lease for this task (it is {state})"
        fix = "the rig's own run counts; `rigbus task show ID` has its result"
        return Refused(Problem(what, path, fix), _name(owner) if isinstance(owner, str) else "")
    return Refused(Problem("it is the rig's file and was changed or moved by somebody", path, _USE))


def _reset(path: str, found: Mapping[str, Any], row: Mapping[str, Any], state: str) -> Reset | Refused:
    runs = state == "review" or (state == "leased" and bool(row.get("started")))
    ours = found.get("mirrored_by") == MIRRORED_BY and found.get("task_id") == id_of(path)
    same = _int(found.get("seq")) == _int(row.get("seq")) and _int(found.get("attempts")) == _int(
        row.get("attempt")
    )
    if runs and ours and same and found.get("status") != "complete":
        return Reset(str(row["id"]), _int(row.get("seq")), _int(row.get("attempt")))
    what = (
        "it asks for a run that is not the present one to begin again"
        if ours
        else "it is the rig's file, written anew"
    )
    fix = f"this task is {state}; `rigbus retry ID` runs it again once it has ended badly, `rigbus cancel ID` ends it"
    return Refused(Problem(what, path, fix))


def _is_author_s(path: str, row: Mapping[str, Any]) -> bool:
    meta = row.get("meta")
    return isinstance(meta, Mapping) and meta.get("file_id") == id_of(path)


def _name(given: str) -> str:
    return given if PLAIN_NAME.match(given) else "somebody"


def _int(given: Any) -> int:
    return given if isinstance(given, int) and not isinstance(given, bool) else -1
