"""File mode: what a verb asks of the rig is one file in the inbox; the answer is a file beside it (INTERFACE)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from ..bus.errors import NotFound, PlanError, Refused
from ..bus.paths import write_atomic
from .file_rows import json_object
from .plan_source import require_share

LOOK_S: Final = 0.25
_NEVER: Final = threading.Event()


def pause(seconds: float) -> None:
    """Wait: a folder tells nobody when it changes, over NFS least of all."""
    _NEVER.wait(max(0.0, seconds))


def write_request(
    shared: Path, verb: str, args: Mapping[str, Any], batch_id: str | None = None, id_: str | None = None
) -> Path:
    """Write ``inbox/.requests/<uuid>.json`` atomically; its path."""
    name = id_ or str(uuid4())
    folder = shared / "inbox" / ".requests"
    require_share(shared)
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "schema": "rigbus.request/1",
        "id": name,
        "verb": verb,
        "args": dict(args),
        "batch_id": batch_id,
    }
    file = folder / f"{name}.json"
    write_atomic(file, (json.dumps(request, indent=1) + "\n").encode(), mode=0o664)
    return file


def receipt_of(request: Path) -> Path:
    """Where the answer to a request will lie."""
    return request.with_name(request.name.removesuffix(".json") + ".receipt.json")


def wait_receipt(request: Path, until: float | None) -> dict[str, Any] | None:
    """The answer, or None when there is none at ``until`` (monotonic seconds; None waits for ever).

    Raises:
        PlanError, NotFound, Refused: the rig refused it; the message has its reasons.
    """
    file = receipt_of(request)
    while True:
        found = _read(file)
        if found is not None:
            return _accepted(found)
        left = LOOK_S if until is None else until - time.monotonic()
        if left <= 0:
            return None
        pause(min(LOOK_S, left))


def _read(file: Path) -> dict[str, Any] | None:
    with suppress(OSError):
        os.listdir(file.parent)  # an NFS client shows a new file only after it has read the folder again
    return json_object(file)


def _accepted(receipt: dict[str, Any]) -> dict[str, Any]:
    if receipt.get("state") != "refused":
        return receipt
    given = receipt.get("problems")
    problems = [p for p in given if isinstance(p, dict)] if isinstance(given, list) else []
    lines = [problem_line(p) for p in problems] or [
        str(receipt.get("note") or "the rig refused it without a reason")
    ]
    if any(p.get("line") for p in problems):
        raise PlanError("the plan is invalid", lines)
    if receipt.get("exit_code") == NotFound.exit_code:
        raise NotFound("; ".join(lines))
    raise Refused("; ".join(lines))


def problem_line(problem: Mapping[str, Any]) -> str:
    """A problem of a receipt as `place: what; fix`."""
    place = str(problem.get("file") or "")
    if problem.get("line"):
        place += f":{problem['line']}"
    text = f"{place}: " if place else ""
    fix = f"; {problem['fix']}" if problem.get("fix") else ""
    return f"{text}{problem.get('what', '')}{fix}"
