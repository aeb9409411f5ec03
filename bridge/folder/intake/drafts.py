"""A plan's local copy -> what to submit, or everything that is wrong with it. Local disk only.

The copy is what is parsed, staged and hashed: nothing that was checked can be exchanged in the share before it runs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ....bus.wire import MAX_META_BYTES, pack
from ....plans.errors import PlanFault, PlanInvalid
from ....plans.stage import MAX_TEXT_BYTES, MAX_TOTAL_BYTES, StageDiskError, StageError, stage_plan
from ..contract.receipts import Invalid, Problem
from ..share.ops import Op, copy_in
from .core import MAX_SETTINGS_BYTES, PLAN, READY, Settings, drop_settings

COPIED: Final = ("plan.md", "scripts", "lib")
SETTINGS_FILES: Final = ("config.json", READY)
MAX_PROBLEMS: Final = 50
_OWN_DISK: Final = frozenset({errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
COPY_S: Final = 60.0  #: for one copy out of the share; a slow one gets more with each try
#: A copy that fails so may work the next time: that is the share's fault, or our disk's, and not the plan's.
PASSING: Final = frozenset({"EBUSY", "ETIME", "EAGAIN", "EIO", "ESTALE", "EINTR", "EMFILE", "ENFILE"})
LOCAL_DISK: Final = frozenset({"ENOSPC", "EDQUOT", "EROFS"})


@dataclass(frozen=True, slots=True)
class Draft:
    """A valid plan, staged: what a SUBMIT needs of it. ``warnings`` is one sentence, or empty."""

    name: str
    sha256: str
    tasks: int
    config: dict[str, Any]
    priority: int | None
    batch_priority: int
    warnings: str = ""

    def header(self, key: str, path: str, batch_root: str, source: str = "inbox") -> dict[str, Any]:
        """The header of the SUBMIT with this key; ``path`` is the plan's folder in the share."""
        plan = {
            "name": self.name,
            "sha256": self.sha256,
            "path": path,
            "batch_root": batch_root,
            "config": self.config,
            "priority": self.priority,
            "source": source,
        }
        head = {"key": key, "kind": "plan", "name": self.name, "priority": self.batch_priority, "plan": plan}
        return {"batch": head, "tasks": []}


def copy_op(path: str, to: Path) -> Op:
    """Copy the parts of the plan at ``path`` that run to the new local path ``to``."""
    return copy_in(path, str(to), tops=COPIED, small_bytes=MAX_TEXT_BYTES, max_bytes=MAX_TOTAL_BYTES)


def read_settings(folder: Path, given: Settings | None = None) -> Settings:
    """What the files beside a plan ask for; what was ``given`` with a request comes before it.

    Raises:
        Invalid: a file that is there is unusable.
    """
    files: dict[str, bytes] = {}
    for name in SETTINGS_FILES:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                files[name] = file.read(MAX_SETTINGS_BYTES + 1)
    found = drop_settings(files)
    if isinstance(found, Problem):
        raise Invalid(found)
    if given is None:
        return found
    config = {**given.base, **found.config, **given.config}
    return Settings(config, given.priority or found.priority)


def examine(copy: Path, staged: Path, given: Settings | None = None, called: str = PLAN) -> Draft:
    """Parse, check and stage the local folder ``copy``, whose name is the plan's. What this returns is on the disk.
    ``called`` is the plan file's name where it was dropped.

    Raises:
        Invalid: with every fault that was found.  OSError: our own disk refuses.
    """
    # Loaded here: pydantic and the Markdown parser would cost each start of the bridge a third of a second.
    from ....plans.check import check_plan, unused_keys
    from ....plans.model import PRIORITY_LEVELS
    from ....plans.parser import load_plan

    settings = read_settings(copy, given)
    try:
        plan, _ = load_plan(copy)
    except PlanInvalid as e:
        _require_own_disk(e)
        raise Invalid(*(_problem(fault, called) for fault in e.errors[:MAX_PROBLEMS])) from None
    _, faults = check_plan(plan, settings.config)
    errors = [fault for fault in faults if fault.severity == "error"]
    if errors:
        raise Invalid(*(_problem(fault, called) for fault in errors[:MAX_PROBLEMS]))
    faults += unused_keys(plan, settings.config, near_only=True)
    _check_size(settings.config)
    try:
        staged_plan = stage_plan(copy, staged)
    except StageError as e:
        _require_own_disk(e)
        raise Invalid(Problem(e.what, _inside(e.where, copy), e.fix)) from None
    word = settings.priority or plan.settings.priority
    return Draft(
        name=copy.name,
        sha256=staged_plan.sha256,
        tasks=len(plan.tasks),
        config=dict(settings.config),
        priority=PRIORITY_LEVELS[settings.priority] if settings.priority else None,
        batch_priority=PRIORITY_LEVELS[word or "normal"],
        warnings=_some([*plan.warnings, *(f for f in faults if f.severity == "warning")], called),
    )


def _require_own_disk(error: PlanInvalid | StageError) -> None:
    """The copy is ours as well: that our disk fails is no fault of the plan.

    Raises:
        OSError: it does.
    """
    cause = error.__cause__
    if isinstance(cause, OSError) and (isinstance(error, StageDiskError) or cause.errno in _OWN_DISK):
        raise cause


def given_settings(args: Mapping[str, Any]) -> Settings:
    """``config`` and ``priority`` of a request's args.

    Raises:
        Invalid: one of them has the wrong type or value.
    """
    from ....plans.model import PRIORITY_LEVELS

    config, priority = args.get("config") or {}, args.get("priority")
    if not isinstance(config, Mapping):
        raise Invalid(Problem("config is not an object", "args", 'write {"config": {"KEY": "value"}}'))
    if priority is not None and priority not in PRIORITY_LEVELS:
        raise Invalid(
            Problem(f"priority {str(priority)[:40]!r} is unknown", "args", "low, normal, high, urgent")
        )
    return Settings(dict(config), priority)


def _check_size(config: Mapping[str, Any]) -> None:
    room = MAX_META_BYTES - 2048  # for the names and paths that travel with it
    size = len(pack(dict(config)))
    if size > room:
        fix = "put data into a file of the plan and give its path"
        raise Invalid(Problem(f"the configuration has {size} bytes, at most {room}", "config.json", fix))


def _problem(fault: PlanFault, called: str) -> Problem:
    return Problem(fault.what, _place(fault, called), fault.fix, fault.line, fault.source_line)


def _place(fault: PlanFault, called: str) -> str:
    """The file as the person knows it: ours is a copy elsewhere."""
    name = os.path.basename(fault.file)
    return called if name == PLAN else name


def _inside(where: str, copy: Path) -> str:
    """A path in the local copy as the person knows it."""
    base = str(copy.parent) + "/"
    return where[len(base) :] if where.startswith(base) else where


def _some(warnings: list[PlanFault], called: str) -> str:
    if not warnings:
        return ""
    said = [w.what + (f" ({w.fix})" if w.fix.startswith("did you mean") else "") for w in warnings[:3]]
    shown = "; ".join(
        f"{_place(w, called)}:{w.line}: {text}" if w.line else text
        for w, text in zip(warnings[:3], said, strict=True)
    )
    more = f" and {len(warnings) - 3} more" if len(warnings) > 3 else ""
    return f"{len(warnings)} warning{'s' if len(warnings) > 1 else ''}: {shown}{more}."
