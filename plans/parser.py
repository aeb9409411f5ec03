"""A plan file → ``Plan``: reads everything that it can, and reports every fault at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .blocks import Fence, read_blocks, split_lines
from .check import check_tasks
from .errors import FaultList, PlanInvalid
from .goal import read_goal
from .inputs import read_inputs
from .keys import BadName, plan_name
from .markdown import read_fields
from .model import InputSpec, Plan, PlanTask
from .sections import (
    Group,
    Section,
    cut_front_matter,
    groups,
    read_sections,
    read_settings,
    setting_fields,
    settle_underlines,
)
from .tasks import read_task
from .workflow import read_workflow

MAX_PLAN_BYTES: Final = 1024 * 1024
#: Reading costs up to 30 µs a line, and the bridge reads plans beside its other work.
MAX_LINES: Final = 60_000
MAX_TASKS: Final = 10_000


def parse_plan(text: str | bytes, *, file: str = "plan.md", name: str = "plan") -> Plan:
    """The plan in ``text``; ``file`` is how messages call it, ``name`` the plan's folder name.

    Both dialects are read: ``## Tasks`` with ``### id`` and field bullets, and ``## Available Scripts`` with
    a ``## Workflow``. Warnings are in ``Plan.warnings``; variables are ``check_plan``'s matter.

    Raises:
        PlanInvalid: with all the faults found; nothing else is raised, whatever ``text`` holds.
    """
    lines = split_lines(_decode(text, file))
    faults = FaultList(file, lines)
    if len(lines) > MAX_LINES:
        faults.error(
            MAX_LINES + 1,
            f"the plan has {len(lines)} lines, the limit is {MAX_LINES}",
            "a plan is text for people: use a foreach over a list in a file",
        )
        raise PlanInvalid(faults.all())
    try:
        plan_name(name)
    except BadName as error:
        faults.error(0, error.what, error.fix)
    front, body = cut_front_matter(lines, faults)
    blocks = settle_underlines(read_blocks(body))
    for block in blocks:
        if isinstance(block, Fence) and not block.closed:
            faults.error(
                block.line,
                "this fenced block is never closed (is the file half written?)",
                "close it with ```",
            )
    title, sections = read_sections(blocks, len(lines))
    inputs = _all_inputs(sections, faults)
    fields = [one for section in sections if section.name == "settings" for one in setting_fields(section)]
    settings = read_settings([*front, *fields], faults)
    tasks = _read_tasks(sections, faults)
    goal = read_goal(sections, lines, tasks, faults)
    check_tasks(tasks, faults)
    if faults.failed:
        raise PlanInvalid(faults.all())
    return Plan(
        name=name,
        title=title or name,
        file=file,
        goal=goal,
        inputs=inputs,
        tasks=tasks,
        settings=settings,
        warnings=faults.all(),
        source=lines,
    )


def load_plan(path: Path) -> tuple[Plan, Path]:
    """(the plan, what to stage) for a plan folder, its ``plan.md``, or a single ``name.md``.

    What to stage is the folder, or the single file. At most 1 MiB is read, and only from a regular file.

    Raises:
        PlanInvalid: the plan cannot be read, or is invalid.
    """
    plan_file, source = path, path
    if path.is_dir():
        plan_file = path / "plan.md"
    elif path.name.lower() == "plan.md":
        source = Path(os.path.abspath(path)).parent
    real = source.resolve()
    name = real.name if plan_file.name.lower() == "plan.md" else real.stem
    return parse_plan(_read_file(plan_file), file=str(plan_file), name=name), real


def _read_file(path: Path) -> bytes:
    faults = FaultList(str(path), [])
    try:
        # Non-blocking: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        faults.error(0, f"cannot be read: {reason}", "give a folder with a plan.md, a plan.md, or a name.md")
        raise PlanInvalid(faults.faults) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            faults.error(0, "is no regular file", "give a folder with a plan.md, a plan.md, or a name.md")
            raise PlanInvalid(faults.faults)
        if status.st_size > MAX_PLAN_BYTES:
            raise PlanInvalid(_too_long(str(path), status.st_size).faults)
        return file.read(MAX_PLAN_BYTES + 1)


def _too_long(file: str, size: int) -> FaultList:
    faults = FaultList(file, [])
    faults.error(
        0,
        f"the plan has {size} bytes, the limit is {MAX_PLAN_BYTES}",
        "a plan is text: move data into files beside it",
    )
    return faults


def _decode(text: str | bytes, file: str) -> str:
    """The text without its byte order mark.

    Raises:
        PlanInvalid: too long, binary, not UTF-8, or empty.
    """
    faults = FaultList(file, [])
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > MAX_PLAN_BYTES:
        raise PlanInvalid(_too_long(file, len(raw)).faults)
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        hint = (
            "save it as UTF-8"
            if raw[:2] in (b"\xff\xfe", b"\xfe\xff")
            else "a plan is Markdown text in UTF-8"
        )
        faults.error(line, "the plan is binary: it holds a NUL byte", hint)
        raise PlanInvalid(faults.faults)
    try:
        decoded = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        faults.error(line, f"byte {error.start} is not UTF-8 ({error.reason})", "save the plan as UTF-8")
        raise PlanInvalid(faults.faults) from error
    if not decoded.strip():
        faults.error(1, "the plan is empty", "write `# Plan: name` and a `## Tasks` section")
        raise PlanInvalid(faults.faults)
    return decoded


def _all_inputs(sections: Sequence[Section], faults: FaultList) -> dict[str, InputSpec]:
    inputs: dict[str, InputSpec] = {}
    for section in sections:
        if section.name in ("inputs", "input"):
            inputs.update(read_inputs(section, faults))
    return inputs


def _read_tasks(sections: Sequence[Section], faults: FaultList) -> list[PlanTask]:
    has_tasks = False
    tasks: list[PlanTask] = []
    for section in sections:
        parts = groups(section)
        if section.name != "tasks":
            _warn_outside(section, parts, faults)
            continue
        has_tasks = True
        # One more than may be, so that the limit is reported, without reading a hundred thousand.
        for group in parts[1 : MAX_TASKS + 2]:
            task = read_task(group, faults)
            if task is not None:
                tasks.append(task)
    if not has_tasks and any(section.name == "workflow" for section in sections):
        tasks = read_workflow(sections, faults)
    if not tasks and not faults.failed:
        faults.error(
            next((one.line for one in sections if one.name == "tasks"), 1),
            "the plan has no tasks",
            "write a `## Tasks` section with a `### id` and a `- **command**: …` for each task",
        )
    if len(tasks) > MAX_TASKS:
        faults.error(
            tasks[MAX_TASKS].line,
            f"the plan has more than {MAX_TASKS} tasks",
            "use a foreach over a list",
        )
        tasks = tasks[:MAX_TASKS]
    return tasks


def _warn_outside(section: Section, parts: Sequence[Group], faults: FaultList) -> None:
    for group in parts:
        fields = read_fields(group.blocks, frozenset({"command"}))
        if group.heading is not None and any(one.name == "command" for one in fields):
            where = f"## {section.name}" if section.name else "no section"
            faults.warning(
                group.heading.line,
                f"{group.heading.text[:60]!r} has a command but stands in {where}, so it is no task",
                "move it below `## Tasks` where it should run",
            )
