"""Tasks of type ``expand``: read a foreach source once and return its items as the recorded result.

The brain expands only from that record, so a source that changes later changes nothing. A child reads it: the
source lies on the share, and a read that hangs can only be killed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..bus.errors import BadFrame, DefinitionError
from ..bus.wire import Token, unpack
from ..plans.keys import ItemsError, select_items
from ..plans.stage import StageError
from ..plans.view import make_view
from . import worker_events as ev
from .attempts import Host
from .spawned import SpawnedRunner
from .worker_events import Lease, Outcome

MAX_SOURCE_BYTES: Final = 64 << 20
READ_TIMEOUT_S: Final = 120.0
SHARE_RETRY_S: Final = 5.0
#: What waiting does not mend; other errors are the share's.
_THE_PLANS_FAULT: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
)


class SourceError(Exception):
    """The source cannot be expanded; ``error_class`` is ``task`` (wrong content) or ``infra`` (not readable)."""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


def read_items(
    source: str, json_path: str, results: str, plan: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The items at ``json_path`` of the JSON file ``source``: ``{"items": […], "count": n}``. Runs in the child.

    ``results`` is where the value goes when it is large. With ``plan`` (``staged``, ``original``, ``view``,
    ``batch_path``) the batch's view is made first: the list of a plan's first task often lies in the plan itself.

    Raises:
        SourceError: no such file, no JSON, no list at the path, too large; the share is away.
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
        cls = "task" if e.errno in _THE_PLANS_FAULT else "infra"
        raise SourceError(
            f"foreach: {shown}: {e.strerror or e}; make it a file that can be read", cls
        ) from None
    try:
        items = select_items(json.loads(data.decode("utf-8-sig")), json_path)
    except ItemsError as e:
        raise SourceError(f"foreach: {shown}: {e}", "task") from None
    except UnicodeDecodeError:
        raise SourceError(f"foreach: {shown} is no UTF-8 text; let its task write JSON", "task") from None
    except (ValueError, RecursionError) as e:
        raise SourceError(
            f"foreach: {shown} is no JSON ({e}); let its task write valid JSON", "task"
        ) from None
    return {"items": items, "count": len(items)}


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
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be read.  SourceError: it is something else (a FIFO must not make us wait), or too large.
    """
    fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise SourceError(f"foreach: {shown} is no file; point foreach at a JSON file", "task")
        if info.st_size > MAX_SOURCE_BYTES:
            what = f"foreach: {shown} has {info.st_size} bytes, the limit is {MAX_SOURCE_BYTES}; split it"
            raise SourceError(what, "task")
        with open(fd, "rb", closefd=False) as f:
            return f.read()
    finally:
        os.close(fd)


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
            lease.token, "rigbus.agents.expand:read_items", arguments, done, READ_TIMEOUT_S, lease=lease
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
    return {"source": source, "json_path": json_path, "plan": _plan(payload.get("plan"))}


def _plan(given: Any) -> dict[str, str] | None:
    """The folders of the plan, where the payload names all that a view needs."""
    if not isinstance(given, Mapping):
        return None
    names = ("staged", "original", "view", "batch_path")
    found = {n: v for n in names if isinstance(v := given.get(n), str) and v.startswith("/")}
    return found if {"staged", "original", "view"} <= set(found) else None
