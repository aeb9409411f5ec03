"""Tasks of type ``expand``: read a foreach source once and return its items as the recorded result.

The brain expands only from that record, so a source that changes later changes nothing. A child reads it: the
source lies on the share, and a read that hangs can only be killed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...bus.errors import BadFrame, DefinitionError
from ...bus.wire import MAX_RESULT_BYTES, Token, pack, unpack
from ...plans.items import read_list
from ...plans.keys import ItemsError
from ...plans.stage import StageError
from ...plans.view import make_view
from ..worker import events as ev
from ..worker.events import Lease, Outcome
from .children import Host
from .spawned import SpawnedRunner

MAX_SOURCE_BYTES: Final = 64 << 20
READ_TIMEOUT_S: Final = 120.0
SHARE_RETRY_S: Final = 5.0
EMPTY_NOTE: Final = "the list is empty: no tasks, a success"
_READS: Final = 3
#: What trying again does not mend; other errors are the share's.
_THE_PLANS_FAULT: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
)
#: A JSON text can grow in the result's form (``0.5,`` takes nine bytes): above this it is measured.
_MEASURED_BYTES: Final = MAX_RESULT_BYTES // 3


class SourceError(Exception):
    """The source cannot be expanded.

    ``error_class``: ``task`` (not there, or half written: it may come, and is tried again), ``definition`` (its content
    or kind is wrong: tried once) or ``infra`` (not readable now).
    """

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


def read_items(
    source: str,
    json_path: str,
    results: str,
    plan: Mapping[str, str] | None = None,
    fields: Sequence[str] = (),
) -> dict[str, Any]:
    """The items at ``json_path`` of the JSON file ``source``: ``{"items": […], "count": n}``. Runs in the child.

    ``results`` is where the value goes when it is large. With ``plan`` (``staged``, ``original``, ``view``,
    ``batch_path``) the batch's view is made first: the list of a plan's first task often lies in the plan itself.
    ``fields`` are the paths that the template asks of each item. An empty list has a ``note`` that says so.

    Raises:
        SourceError: no such file, no JSON, no list at the path, an unusable element, too large; the share is away.
    """
    shown = _shown(source, plan)
    _need_share(plan)
    try:
        data = _read(source, shown)
    except FileNotFoundError:
        _need_share(plan)  # an unmount in between looks like a missing file
        raise SourceError(
            f"foreach: {shown} is not there; let an earlier task write it, and name that task in depends_on",
            "task",
        ) from None
    except OSError as e:
        cls = "definition" if e.errno in _THE_PLANS_FAULT else "infra"
        raise SourceError(f"foreach: {shown}: {e.strerror or e}; {_way_out(source, e)}", cls) from None
    try:
        items = read_list(data, json_path, fields)
    except ItemsError as e:
        half_written = not data.rstrip(b" \t\r\n\0").endswith((b"]", b"}"))
        raise SourceError(f"foreach: {shown}: {e}", "task" if half_written else "definition") from None
    if len(data) > _MEASURED_BYTES and (size := len(pack(items))) > MAX_RESULT_BYTES - 1024:
        raise SourceError(
            f"foreach: {shown}: its list takes {size} bytes on the bus, the limit is {MAX_RESULT_BYTES}; keep "
            "large parts in files and put their paths into the list",
            "definition",
        )
    return {"items": items, "count": len(items), **({} if items else {"note": EMPTY_NOTE})}


def _need_share(plan: Mapping[str, str] | None) -> None:
    """The plan's folder in the share is there, and its view stands.

    Raises:
        SourceError: of class infra; no attempt is counted for it.
    """
    if plan:
        try:
            make_view(Path(plan["staged"]), Path(plan["original"]), Path(plan["view"]))
        except StageError as e:
            raise SourceError(str(e), "infra") from None


def _read(source: str, shown: str) -> bytes:
    """The bytes of a regular file, as they stood at one moment.

    Raises:
        OSError: it cannot be read.  SourceError: it is something else (a FIFO must not make us wait), too large, or
            somebody writes it.
    """
    fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for _ in range(_READS):
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise SourceError(f"foreach: {shown} is no file; point foreach at a JSON file", "definition")
            if before.st_size > MAX_SOURCE_BYTES:
                what = (
                    f"foreach: {shown} has {before.st_size} bytes, the limit is {MAX_SOURCE_BYTES}; split it"
                )
                raise SourceError(what, "definition")
            os.lseek(fd, 0, os.SEEK_SET)
            with open(fd, "rb", closefd=False) as f:
                data = f.read(MAX_SOURCE_BYTES + 1)
            after = os.fstat(fd)
            unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if unchanged and len(data) == after.st_size:
                return data
    finally:
        os.close(fd)
    raise SourceError(
        f"foreach: {shown} changes while it is read; write it under another name and rename it when it is whole",
        "task",
    )


def _way_out(source: str, error: OSError) -> str:
    """The fix for a source that cannot be opened."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return "make it a file that can be read"
    try:
        info = os.stat(source)
    except OSError:
        return "let the user of the rig enter its folder"
    return (
        f"it belongs to user {info.st_uid} with mode {stat.S_IMODE(info.st_mode):o}, the rig runs as user "
        f"{os.geteuid()}: `chmod a+r` it"
    )


def _shown(source: str, plan: Mapping[str, str] | None) -> str:
    """The source as the plan's author wrote it."""
    for name, key in (("PLAN_PATH", "view"), ("BATCH_PATH", "batch_path")):
        folder = (plan or {}).get(key)
        if folder and source.startswith(f"{folder}/"):
            return f"{{{name}}}{source[len(folder) :]}"
    return source


class ExpandRunner:
    """Runs ``expand`` leases, each in a child of its own."""

    def __init__(self, host: Host, helpers: SpawnedRunner, results: Path) -> None:
        self._host = host
        self._helpers = helpers
        self._results = results

    def start(self, lease: Lease) -> None:
        try:
            arguments = _arguments(lease)
        except DefinitionError as e:
            self._host.post(ev.Ended(lease.token, ev.failed("definition", str(e))))
            return

        def done(outcome: Outcome) -> None:
            if not outcome.ok and outcome.cls == "infra":
                outcome = ev.returned(f"share unavailable: {outcome.error}", SHARE_RETRY_S)
            self._host.post(ev.Ended(lease.token, outcome))

        arguments["results"] = str(self._results)
        self._helpers.call(
            lease.token,
            "rigbus.agents.attempts.expand:read_items",
            arguments,
            done,
            READ_TIMEOUT_S,
            lease=lease,
        )

    def recall(self, tokens: Any) -> list[Token]:
        return []

    def terminate(self, token: Token) -> None:
        """The child is the helpers' and so is its end: they get every terminate and kill as well."""

    def kill(self, token: Token) -> None:
        """As :meth:`terminate`."""

    def tick(self, now: float) -> float | None:
        return None

    def close(self) -> None:
        """Nothing is held here."""


def _arguments(lease: Lease) -> dict[str, Any]:
    try:
        payload: Any = unpack(lease.payload)
    except BadFrame as e:
        raise DefinitionError(f"expand: the payload is unreadable: {e}") from None
    if not isinstance(payload, Mapping):
        raise DefinitionError("expand: the payload is no map; send {source, json_path}")
    source, json_path = payload.get("source"), payload.get("json_path") or ""
    if not isinstance(source, str) or not source.startswith("/") or "\0" in source:
        raise DefinitionError('expand: field "source" is no absolute path')
    if not isinstance(json_path, str):
        raise DefinitionError('expand: field "json_path" is no text')
    fields = payload.get("fields") or []
    if not isinstance(fields, list) or not all(isinstance(f, str) for f in fields):
        raise DefinitionError('expand: field "fields" is no list of texts')
    return {
        "source": source,
        "json_path": json_path,
        "plan": _plan(payload.get("plan")),
        "fields": fields,
    }


def _plan(given: Any) -> dict[str, str] | None:
    """The folders of the plan, where the payload names all that a view needs."""
    if not isinstance(given, Mapping):
        return None
    names = ("staged", "original", "view", "batch_path")
    found = {n: v for n in names if isinstance(v := given.get(n), str) and v.startswith("/")}
    return found if {"staged", "original", "view"} <= set(found) else None
