"""What the files of a shared folder say of a rig whose own disk is gone. Pure: bytes in, records out.

Believed is only what the mirror wrote and nobody has changed since (`seal`). Where a task has two files, as after a crash
in the middle of a move, the one that has seen the later event is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from ....bus.core.model import task_id
from ....bus.states import TaskState
from ....bus.wire import pack
from ..contract.receipts import PLAIN_NAME
from ..contract.rows import plan_folder
from ..share.seal import MAX_BYTES, MIRRORED_BY, sealed

#: A file that holds the beginning or the end of a result only.
CUT: Final = "[... cut; "
ELSEWHERE: Final = " has them]"
_ENDED: Final = frozenset({"complete", "failed", "cancelled"})
_LIVE: Final = frozenset({"planning", "running"})
_ABANDONED: Final = {"cancelled": TaskState.CANCELLED}
_MAX_KEY: Final = 200


class NotBelieved(Exception):
    """A file that is no witness; the text says why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch as its ``batch.json`` has it. ``fields`` is the file; times are unix seconds."""

    id: str
    plan: str  #: folder below ``plans/``
    status: str
    key: str
    seq: int
    created_at: float
    ended_at: float
    fields: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        """It had ended."""
        return self.status in _ENDED

    @property
    def old_root(self) -> str:
        """Where the share was mounted then; "" where the file does not say."""
        tail = f"/plans/{self.plan}/batches/{self.id}"
        path = self.fields.get("batch_path")
        return path.removesuffix(tail) if isinstance(path, str) and path.endswith(tail) else ""

    @property
    def plan_path(self) -> str:
        """The plan's folder: relative to the share where it is inside, else absolute."""
        path, root = self.fields.get("plan_path"), self.old_root
        if isinstance(path, str) and path and not (root and path.startswith(f"{root}/")):
            return path
        return str(path)[len(root) + 1 :] if isinstance(path, str) and path else f"plans/{self.plan}"


@dataclass(frozen=True, slots=True)
class Stood:
    """A task as one of its files has it."""

    path: str
    id: str
    file_id: str
    batch: str
    key: str
    type: str
    status: str  #: pending, processing, complete, failed or abandoned
    seq: int
    at: float  #: of its last event, unix seconds
    fields: Mapping[str, Any]

    @property
    def state(self) -> TaskState | None:
        """How it has ended; None where it has not, or where that is not known."""
        if self.status == "complete":
            return TaskState.DONE
        kind = self.result.get("error_type")
        if self.status == "failed":
            return TaskState.EXPIRED if kind == "expired" else TaskState.DEAD
        if self.status == "abandoned":
            return _ABANDONED.get(str(kind), TaskState.SKIPPED)
        return None

    @property
    def result(self) -> Mapping[str, Any]:
        """``result`` of the file; empty where there is none."""
        given = self.fields.get("result")
        return given if isinstance(given, Mapping) else {}

    @property
    def cut(self) -> bool:
        """The file has only a part of what the task gave."""
        output = self.result.get("output")
        return isinstance(output, str) and (output.startswith(CUT) or output.endswith(ELSEWHERE))


@dataclass(slots=True)
class Remains:
    """Everything that was found."""

    batches: dict[str, Ran] = field(default_factory=dict)
    tasks: dict[str, dict[str, Stood]] = field(default_factory=dict)  #: batch -> task id -> its newest file
    doubted: list[tuple[str, str]] = field(default_factory=list)  #: (path, why)
    highest: int = 0  #: event number in any file that is believed

    def take_batch(self, path: str, data: bytes, size: int) -> None:
        """A ``batch.json``."""
        try:
            ran = batch_of(path, data, size)
        except NotBelieved as e:
            self.doubted.append((path, str(e)))
            return
        self.highest = max(self.highest, ran.seq)
        known = self.batches.get(ran.id)
        if known is None or known.seq < ran.seq:
            self.batches[ran.id] = ran

    def take_task(self, path: str, data: bytes, size: int, mtime_ns: int) -> None:
        """A file of a lane or of the archive. Files of authors, and those of the doors, are passed over."""
        try:
            stood = task_of(path, data, size, mtime_ns)
        except NotBelieved as e:
            self.doubted.append((path, str(e)))
            return
        if stood is None:
            return
        self.highest = max(self.highest, stood.seq)
        its = self.tasks.setdefault(stood.batch, {})
        known = its.get(stood.id)
        if known is None or (known.seq, known.state is not None) < (stood.seq, stood.state is not None):
            its[stood.id] = stood


def batch_of(path: str, data: bytes, size: int) -> Ran:
    """The batch of ``plans/<plan>/batches/<id>/batch.json``.

    Raises:
        NotBelieved: it is no witness.
    """
    found = _sealed_fields(data, size)
    folder, _, id_ = path.removeprefix("plans/").removesuffix("/batch.json").rpartition("/batches/")
    if found.get("batch_id") != id_ or found.get("plan") != folder or plan_folder(folder) is None:
        raise NotBelieved("it was written for another batch, and copied here")
    if not PLAIN_NAME.match(id_):
        raise NotBelieved("its id is no plain name")
    status = found.get("status")
    if status not in _ENDED | _LIVE:
        raise NotBelieved(f"its status is {status!r:.40}")
    key = found.get("key")
    ended_at = _time(found.get("completed_at"))
    if status in _ENDED and not ended_at:
        raise NotBelieved("it says that it has ended, and not when")
    return Ran(
        id_,
        folder,
        str(status),
        key if isinstance(key, str) and 0 < len(key) <= _MAX_KEY else f"rebuilt:{id_}",
        _number(found.get("seq")),
        _time(found.get("started_at")) or ended_at,
        ended_at if status in _ENDED else 0.0,
        found,
    )


def task_of(path: str, data: bytes, size: int, mtime_ns: int) -> Stood | None:
    """The task of a file in a lane; None for a file that the mirror has not drawn.

    Raises:
        NotBelieved: the mirror drew it, and it is not as it was drawn.
    """
    if size > MAX_BYTES or len(data) < size:
        return None
    if not sealed(data):
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if isinstance(found, dict) and found.get("mirrored_by") == MIRRORED_BY and "check" in found:
            raise NotBelieved("somebody has changed it")
        return None
    found = _sealed_fields(data, size)
    batch, key, kind = found.get("batch_id"), found.get("name"), found.get("type")
    if not isinstance(batch, str) or not isinstance(key, str) or not isinstance(kind, str):
        return None  # an answer to a task file that was refused
    if not PLAIN_NAME.match(batch) or not 0 < len(key.encode("utf-8", "replace")) <= _MAX_KEY:
        raise NotBelieved("its batch or its name is none")
    return Stood(
        path,
        task_id(batch, key),
        str(found.get("task_id")),
        batch,
        key,
        kind,
        str(found.get("status")),
        _number(found.get("seq")),
        mtime_ns / 1e9,
        found,
    )


def _sealed_fields(data: bytes, size: int) -> dict[str, Any]:
    if size > MAX_BYTES or len(data) < size:
        raise NotBelieved(f"{size} bytes: the mirror writes no file so large")
    if not sealed(data):
        raise NotBelieved("it is not whole, or somebody has changed it")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise NotBelieved("it is no JSON") from None
    if not isinstance(found, dict):
        raise NotBelieved("it is no JSON object")
    try:
        pack(
            found
        )  # all that the mirror writes has come over the wire; halves of characters, huge numbers do not
    except (ValueError, OverflowError):
        raise NotBelieved("no rig can have written it: a text or a number in it is none") from None
    return found


def _time(given: Any) -> float:
    """Naive local ISO-8601 as unix seconds; 0 for anything else."""
    if not isinstance(given, str):
        return 0.0
    try:
        return max(0.0, datetime.fromisoformat(given).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0.0


def _number(given: Any) -> int:
    usable = isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 1 << 53
    return given if usable else 0
