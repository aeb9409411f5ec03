"""What a file in ``signals/`` asks for. Pure.

``<worker>.stop``: finish what runs, take nothing new. ``<worker>.abort``: end its running tasks now (with ``task_id``
only that one); they are cancelled, and with ``"requeue": true`` run again. ``<worker>.kill``: end its process hard; it
starts again and what it ran goes back to the queue. ``<batch>.abort`` and ``.kill`` cancel a batch. ``all`` is every
worker.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..contract.receipts import PLAIN_NAME, Invalid, Problem
from ..share.ops import Entry, shown

FOLDER: Final = "signals"
VERBS: Final = ("stop", "abort", "kill")
MAX_BYTES: Final = 64 * 1024
ALL: Final = "all"
_WORD: Final = re.compile(r"[A-Za-z]{1,16}\Z")
#: What others keep there; not meant for us.
_FOREIGN: Final = frozenset(
    {"json", "lock", "tmp", "part", "log", "txt", "md", "ready", "flag", "signal", "bak"}
)
_USE: Final = "write <worker>.stop, <worker>.abort or <worker>.kill"


@dataclass(frozen=True, slots=True)
class Signal:
    """``target`` is a worker, a batch, or ``all``."""

    name: str
    target: str
    verb: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What stands in the file: only this task, why, and whether it is to run again."""

    task_id: str = ""
    reason: str = ""
    requeue: bool = False


def signal_of(entry: Entry) -> Signal | Problem | None:
    """The signal of a folder's entry; None for what is none, or somebody else's."""
    name = entry.path
    if name.startswith(".") or name.endswith((".receipt.json", "~")) or entry.type == "dir":
        return None
    target, dot, verb = name.rpartition(".")
    if not dot or verb.lower() in _FOREIGN or not _WORD.match(verb):
        return None
    where = f"{FOLDER}/{shown(name)}"
    if entry.type != "file":
        return Problem(
            f"it is a {entry.type}, not a file", where, "remove it, and write a plain file of that name"
        )
    if not PLAIN_NAME.match(target):
        return Problem("its name names no worker", where, _USE)
    if verb not in VERBS:
        return Problem(f"the signal {verb!r} is unknown", where, _USE)
    return Signal(name, target, verb)


def wish_of(data: bytes, where: str) -> Wish | None:
    """What the file says; a plain text says only why. None: a JSON object that is not whole (yet).

    Raises:
        Invalid: it is an object with a field of the wrong type.
    """
    text = data.decode("utf-8", "replace").lstrip("\ufeff").strip("\0 \t\r\n")
    if not text.startswith("{"):
        return Wish(reason=shown(text)[:300])
    try:
        found = json.loads(text)
    except RecursionError:
        raise Invalid(Problem("it is nested too deeply", where, "write a flat object")) from None
    except ValueError:
        return None
    task, reason, again = found.get("task_id"), found.get("reason"), found.get("requeue")
    if not isinstance(task, str | None) or not isinstance(again, bool | None):
        raise Invalid(
            Problem(
                "task_id or requeue has the wrong type", where, "task_id is a text, requeue true or false"
            )
        )
    return Wish(task or "", shown(str(reason or ""))[:300], bool(again))


def mark_of(entry: Entry) -> str:
    """Names this very file: another one of the same name is another signal."""
    raw = f"{entry.path}\0{entry.inode}\0{entry.mtime_ns}".encode("utf-8", "surrogateescape")
    return "signal-" + hashlib.sha256(raw).hexdigest()[:32]


def nobody(target: str, where: str, workers: Sequence[Mapping[str, Any]]) -> Problem:
    """The refusal of a name that is neither a worker's nor a batch's."""
    names = ", ".join(sorted(str(w["id"]) for w in workers)) or "none"
    return Problem(f"there is no worker and no batch {target!r}", where, f"the workers are: {names}")
