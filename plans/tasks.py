"""One ``### id`` with its bullets → ``PlanTask``: the rules that join its fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from .errors import FaultList
from .fields import (
    READERS,
    TASK_FIELDS,
    FieldError,
    infer_class,
    known_class,
    read_dependencies,
    read_foreach,
)
from .keys import is_plain_name, slug
from .markdown import Field, code_span, read_fields, unquote
from .model import Foreach, PlanTask
from .sections import Group

_MODEL_TYPES: Final = ("generate", "parse", "decide")
_OWN_TYPES: Final = ("execute_plan", "expand")


def _task_id(heading: str) -> str:
    text = re.sub(r"^(?:task\s*\d*\s*:|\d+[.)])\s*", "", unquote(heading.strip("* ")), flags=re.IGNORECASE)
    return unquote(text)


def read_task(group: Group, faults: FaultList) -> PlanTask | None:
    """The task of a ``###`` group; ``None`` where it is none, or where its faults leave nothing to check."""
    if group.heading is None:
        return None
    line = group.heading.line
    name = _task_id(group.heading.text)
    fields = read_fields(group.blocks, TASK_FIELDS)
    if read_fields(group.below, TASK_FIELDS):
        faults.warning(line, f"the fields below a #### in {name[:60]!r} are not read", "use ### for a task")
    if not is_plain_name(name):
        if not fields:
            faults.warning(
                line, f"{name[:60]!r} is a heading without fields, not a task", "nothing, or use ####"
            )
        else:
            faults.error(
                line,
                f"{name[:60]!r} is no task id: use 1 to 64 of A-Z a-z 0-9 . _ -",
                f"rename it, for example to {slug(name)!r}",
            )
        return None
    return _build(name, line, _unique_fields(name, fields, faults), faults)


def _unique_fields(task: str, fields: Sequence[Field], faults: FaultList) -> dict[str, Field]:
    found: dict[str, Field] = {}
    for field in fields:
        if field.name not in TASK_FIELDS:
            near = faults.nearest(field.name, sorted(TASK_FIELDS))
            hint = f"did you mean {near}?" if near else f"known: {', '.join(sorted(TASK_FIELDS))}"
            faults.warning(field.line, f"unknown field {field.written!r} in task {task!r}, not read", hint)
        elif field.name in found:
            faults.error(
                field.line,
                f"{field.name} stands twice in task {task!r} (first in line {found[field.name].line})",
                "keep one of them",
            )
        else:
            found[field.name] = field
    return found


def _build(name: str, line: int, fields: dict[str, Field], faults: FaultList) -> PlanTask:
    values: dict[str, Any] = {
        "id": name,
        "line": line,
        "lines": {key: one.text_line for key, one in fields.items()},
    }
    for key, field in fields.items():
        try:
            if key in READERS:
                values[key] = READERS[key](field)
            elif key == "depends_on":
                values["depends_on"], values["item_depends_on"] = read_dependencies(field)
            elif key == "foreach":
                source, path = read_foreach(field)
                values["foreach"] = Foreach(source=source, json_path=path)
        except FieldError as error:
            faults.error(field.line, error.what, error.fix)
    _warn_command_remark(fields.get("command"), faults)
    _settle_type(values, fields, faults)
    _settle_class(values, fields, faults)
    _warn_unused(values, fields, faults)
    return PlanTask(**values)


def _warn_command_remark(field: Field | None, faults: FaultList) -> None:
    if field is None or field.fence is not None:
        return
    try:
        span = code_span(field.text)
    except ValueError:
        return
    if span is not None and (span[0] or span[2]):
        faults.warning(
            field.line, "only the part of the command in backticks is run", "drop the text around it"
        )


def _settle_type(values: dict[str, Any], fields: dict[str, Field], faults: FaultList) -> None:
    """What the task runs: exactly one of command and argv for shell, a prompt for the model's types."""
    name, line = values["id"], values["line"]
    has_work = "command" in fields or "argv" in fields
    if "type" not in fields and "prompt" in fields and not has_work:
        values["type"] = "generate"
        faults.warning(line, f"task {name!r} has a prompt and no type: taken as generate", "write the type")
    kind = values.get("type", "shell")
    if kind in _OWN_TYPES:
        faults.error(
            values["lines"]["type"], f"the type {kind} is rigbus's own", "use shell or a handler's type"
        )
    elif kind == "shell" and "command" in fields and "argv" in fields:
        faults.error(line, f"task {name!r} has both a command and an argv", "keep one of them")
    elif kind == "shell" and not has_work:
        faults.error(
            line,
            f"task {name!r} has no command (is the file half written?)",
            "add `- **command**: …`, or use #### for a heading that is no task",
        )
    elif kind in _MODEL_TYPES and "prompt" not in fields:
        faults.error(line, f"task {name!r} of type {kind} has no prompt", "add `- **prompt**: …`")
    elif kind != "shell" and has_work:
        faults.warning(line, f"the command of {name!r} is not used by the type {kind}", "drop one of them")
    if "argv" in fields and values.get("batch_size", 1) > 1:
        faults.error(
            values["lines"]["argv"],
            f"task {name!r} has a batch_size, which runs one command for each item, and an argv",
            "write a command, or drop batch_size",
        )
    models = set(re.findall(r"--[a-z-]*model[= ]+(\S+)", values.get("command") or ""))
    if values.get("llm_placement") == "split_gpu" and len(models) > 1:
        faults.error(
            values["lines"]["command"],
            f"task {name!r} names several models for one GPU pair: {', '.join(sorted(models))[:200]}",
            "a pair holds one model: name it in every --…-model",
        )


def _settle_class(values: dict[str, Any], fields: dict[str, Field], faults: FaultList) -> None:
    """Executor and class, either of which may say "brain"; a missing class is inferred, and said."""
    name, line = values["id"], values["line"]
    executor = unquote(fields["executor"].text).lower() if "executor" in fields else "worker"
    if executor not in ("worker", "brain"):
        faults.warning(
            fields["executor"].line,
            f"unknown executor {executor[:40]!r}, taken as worker",
            "write worker or brain",
        )
        executor = "worker"
    written = unquote(fields["task_class"].text) if "task_class" in fields else ""
    task_class: str | None = known_class(written)
    if executor == "brain" or task_class == "brain":
        values.update(executor="brain", task_class="brain")
        return
    if task_class is None:
        task_class, reason = _inferred(values)
        what = f"has the unknown task_class {written[:40]!r}" if written else "has no task_class"
        faults.warning(
            fields["task_class"].line if written else line,
            f"task {name!r} {what}: taken as {task_class} ({reason})",
            f"write `- **task_class**: {task_class}` (one of cpu, script, llm, brain)",
        )
        values["task_class_inferred"] = True
    values.update(executor="worker", task_class=task_class)


def _inferred(values: dict[str, Any]) -> tuple[str, str]:
    kind = values.get("type", "shell")
    if kind in _MODEL_TYPES:
        return "llm", f"its type is {kind}"
    found, word = infer_class(values.get("command") or " ".join(values.get("argv") or []))
    return found, f"its command holds {word!r}" if word else "the default"


def _warn_unused(values: dict[str, Any], fields: dict[str, Field], faults: FaultList) -> None:
    """Fields that have no effect on this task, and a list that is read before anybody can have written it."""
    task_class = values["task_class"]
    for key, field in fields.items():
        if key.startswith("vram_") and task_class != "script":
            faults.warning(
                field.line, f"{key} has no effect on a {task_class} task", "drop it, or use script"
            )
        elif key.startswith("llm_") and task_class != "llm":
            faults.warning(field.line, f"{key} has no effect on a {task_class} task", "drop it, or use llm")
        elif key == "batch_size" and "foreach" not in fields:
            faults.warning(
                field.line, "batch_size has no effect without a foreach", "drop it, or add a foreach"
            )
    foreach = values.get("foreach")
    waits = values.get("depends_on") or values.get("item_depends_on")
    if foreach is not None and "{BATCH_PATH}" in foreach.source and not waits:
        faults.warning(
            fields["foreach"].line,
            f"{values['id']!r} reads a file of this batch but depends on no task",
            "add the task that writes it to depends_on",
        )
