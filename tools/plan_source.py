"""A plan on its way to the rig: found, checked, and put where the rig reads it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ..bus.errors import NotFound, PlanError, RigbusError, Unreachable

if TYPE_CHECKING:
    from ..plans.errors import PlanFault
    from ..plans.model import Plan

#: What scripts write to: a new revision of a plan adds to these and takes nothing away.
KEPT: Final = frozenset({"batches", "history", "input", "output", "results", "data"})
_LEFT_OUT: Final = ("READY", "__pycache__", ".git", "*.receipt.md", "*.receipt.json")


@dataclass(frozen=True, slots=True)
class Checked:
    """A plan that may run. ``source`` is its folder, or its single file; ``values`` those of its variables; ``config``
    and ``priority`` what was given for it, that of a config.json in its folder included."""

    plan: Plan
    source: Path
    values: dict[str, Any]
    config: dict[str, Any]
    priority: str | None = None
    warnings: list[str] = field(default_factory=list)


def find_plan(given: str, shared: Path) -> Path:
    """A folder with a plan.md, a plan.md, a ``name.md``, or the name of a plan in ``<shared>/plans``.

    Raises:
        NotFound: none of these; the message has the nearest name.
    """
    path = Path(given).expanduser()
    if path.is_file() or (path / "plan.md").exists():
        return path
    plans = shared / "plans"
    if given and given == Path(given).name and (plans / given / "plan.md").is_file():
        return plans / given
    if path.is_dir():
        raise NotFound(f"{path} has no plan.md; write one, or give another folder")
    try:
        names = sorted(e.name for e in os.scandir(plans) if e.is_dir())
    except OSError:
        names = []
    near = get_close_matches(given, names, n=1)
    hint = (
        f"did you mean {near[0]!r}?" if near else "give a folder with a plan.md, a plan.md, or a plan's name"
    )
    raise NotFound(f"no plan {given!r}, here or in {plans}; {hint}")


@dataclass(frozen=True, slots=True)
class Beside:
    """What the config.json in a plan's folder asks for; ``fault`` says what is wrong with the file."""

    config: Mapping[str, Any] = field(default_factory=dict)
    priority: str | None = None
    fault: PlanFault | None = None


def settings_beside(folder: Path | None) -> Beside:
    """``config.json`` in the folder of a plan, read as the bridge reads that of a drop; empty where there is none."""
    if folder is None:
        return Beside()
    from ..bridge.folder.intake.core import MAX_SETTINGS_BYTES, Settings, drop_settings
    from ..plans.errors import PlanFault

    file = folder / "config.json"
    try:
        if not file.is_file():
            return Beside()
        with open(file, "rb") as data:
            found = drop_settings({"config.json": data.read(MAX_SETTINGS_BYTES + 1)})
    except OSError as e:
        fault = PlanFault(str(file), 0, f"cannot be read: {e.strerror}", "check its permissions")
        return Beside(fault=fault)
    if isinstance(found, Settings):
        return Beside(found.config, found.priority)
    return Beside(fault=PlanFault(str(file), found.line, found.what, found.fix, source_line=found.text))


def folder_of(path: Path) -> Path | None:
    """The folder of a plan; None of a plan that is a single file."""
    file = path / "plan.md" if path.is_dir() else path
    return file.parent if file.name.lower() == "plan.md" else None


def check(
    path: Path,
    config: Mapping[str, Any],
    priority: str | None = None,
    base: Mapping[str, Any] | None = None,
) -> Checked:
    """Read and check a plan with its configuration: what the bridge would say of it, before anything is written.

    What is given goes before what a config.json in its folder says, and both before ``base``.

    Raises:
        PlanError: with every fault as ``file:line: what; fix``.
    """
    from ..agents.brain.planner import problems_of
    from ..plans.check import check_plan, unused_keys
    from ..plans.errors import PlanInvalid
    from ..plans.parser import load_plan

    try:
        plan, source = load_plan(path)
    except PlanInvalid as e:
        raise _invalid([str(f) for f in e.errors]) from None
    beside = settings_beside(folder_of(path))
    if beside.fault is not None:
        raise _invalid([str(beside.fault)])
    given = {**(base or {}), **beside.config, **config}
    values, faults = check_plan(plan, given)
    faults += unused_keys(plan, config) + unused_keys(plan, set(beside.config) - set(config), near_only=True)
    errors = [str(f) for f in faults if f.severity == "error"] + problems_of(plan)
    if errors:
        raise _invalid(list(dict.fromkeys(errors)))
    warnings = [str(f) for f in [*plan.warnings, *faults] if f.severity == "warning"]
    return Checked(plan, source, values, given, priority or beside.priority, list(dict.fromkeys(warnings)))


def stage(source: Path, staged: Path) -> str:
    """Stage the plan and return the hash that names the staged copy.

    Raises:
        PlanError: a part of it cannot be staged (a link out of it, a FIFO, too much of it).
    """
    from ..plans.stage import StageError, stage_plan

    try:
        return stage_plan(source, staged).sha256
    except StageError as e:
        raise _invalid([str(e)]) from None


def _invalid(problems: list[str]) -> PlanError:
    from .render import clean

    return PlanError(
        "the plan is invalid", [clean(p) for p in problems] or ["the plan is invalid; see its file"]
    )


def into_plans(source: Path, name: str, shared: Path) -> Path:
    """The plan's folder ``<shared>/plans/<name>``; a source from elsewhere is copied there first.

    A new revision replaces what it brings and leaves the rest: results and the batches of earlier runs stay.

    Raises:
        RigbusError: the shared folder is not there, or the copy failed; the message says where.
    """
    require_share(shared)
    target = shared / "plans" / name
    if os.path.realpath(source) == os.path.realpath(target):
        return target
    target.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".incoming-{uuid4()}"
    try:
        copy_plan(source, work, keep_links=True)
        for entry in sorted(os.listdir(work)):
            _replace(work / entry, target / entry, merge=entry in KEPT)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def require_share(shared: Path) -> None:
    """Never make the shared folder itself: what is written below a mount that is away is lost when it comes back.

    Raises:
        Unreachable: it is not there.
    """
    if not shared.is_dir():
        raise Unreachable(f"the shared folder {shared} is not there; mount it, or make it: mkdir -p {shared}")


def copy_plan(source: Path, target: Path, *, keep_links: bool) -> None:
    """Copy a plan (a folder, or a single file as its plan.md) to a new folder, whole.

    ``keep_links``: links stay links, which is right on the rig's own machine; otherwise what they point to is copied.

    Raises:
        RigbusError: something could not be copied; the message names the first such thing.
    """
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise RigbusError(f"{source} holds the shared folder itself; submit the plan's own folder")
    old = os.umask(0o002)  # the rig and the one who submits share the group
    try:
        if source.is_dir():
            shutil.copytree(source, target, symlinks=keep_links, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        else:
            target.mkdir()
            shutil.copy2(source, target / "plan.md")
    except shutil.Error as e:
        first = e.args[0][0] if e.args and e.args[0] else ("?", "?", "unknown")
        raise RigbusError(f"{first[0]}: cannot be copied: {first[2]}; remove it or mend it") from None
    finally:
        os.umask(old)


def _replace(new: Path, target: Path, *, merge: bool) -> None:
    if merge and new.is_dir() and target.is_dir():
        shutil.copytree(new, target, symlinks=True, dirs_exist_ok=True)
        return
    if target.is_dir() and not target.is_symlink():
        aside = new.with_name(f".old-{new.name}")
        os.rename(target, aside)
    os.rename(new, target)
