"""``Plan`` → Markdown in the standard form: what ``parse_plan`` reads back as the same plan.

Laws of this file
- What is written is read again by the reader of its field before it is used; of several ways to write a value
  the first that reads back as the same one is taken.
- The workflow form is written as tasks. Lines, warnings and the order of fields are not kept; a class that was
  inferred is left out, so that it is inferred again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .fields import READERS, FieldError
from .inputs import find_default
from .markdown import Field, in_backticks
from .model import ItemDependency, Plan, PlanTask

_LISTS: Final = ("requires", "produces", "needs")
#: The other fields in the order in which they are written.
_PLAIN: Final = (
    "batch_size",
    "timeout_s",
    "queue_timeout_s",
    "no_progress_s",
    "max_attempts",
    "backoff_s",
    "on_failure",
    "evaluate",
    "pool",
    "priority",
    "output",
    "input",
    "max_tokens",
    "temperature",
    "seed",
    "llm_model",
    "llm_min_tier",
    "llm_placement",
    "vram_policy",
    "vram_estimate_mb",
)
_SETTINGS: Final = ("on_failure", "priority", "timeout_s", "max_attempts")


def write_plan(plan: Plan) -> str:
    """The plan as text: title, ``## Goal``, ``## Inputs``, ``## Settings``, ``## Tasks``; it ends in a newline.

    Raises:
        ValueError: a value that no plan file can say (a pool with a line break in it, say); the message names
            the task and the field. A plan that was parsed always can be written.
    """
    parts = [f"# Plan: {plan.title or plan.name}"]
    if plan.goal:
        parts.append(f"## Goal\n\n{plan.goal}")
    if plan.inputs:
        lines = [_input_line(one.name, one.text, one.default) for one in plan.inputs.values()]
        parts.append("## Inputs\n\n" + "\n".join(lines))
    settings = [
        f"- **{name}**: {_plain('the settings', name, value)}"
        for name in _SETTINGS
        if (value := getattr(plan.settings, name)) is not None
    ]
    if settings:
        parts.append("## Settings\n\n" + "\n".join(settings))
    parts.append("## Tasks")
    parts += [f"### {task.id}\n\n" + "\n".join(_task_lines(task)) for task in plan.tasks]
    return "\n\n".join(parts) + "\n"


def _input_line(name: str, text: str, default: str | None) -> str:
    line = f"- **{name}**:" + (f" {text}" if text else "")
    if default is None or find_default(text) == default:
        return line
    return f"{line} (default: {in_backticks(default)})"


def _task_lines(task: PlanTask) -> Iterator[str]:
    if task.type != "shell":
        yield f"- **type**: {task.type}"
    if task.executor == "brain":
        yield "- **executor**: brain"
    if not task.task_class_inferred:
        yield f"- **task_class**: {task.task_class}"
    waits = [*task.depends_on, *(_per_item(one) for one in task.item_depends_on)]
    if waits:
        yield f"- **depends_on**: {', '.join(waits)}"
    if task.foreach is not None:
        yield f"- **foreach**: {in_backticks(f'{task.foreach.source}:{task.foreach.json_path}')}"
    defaults = PlanTask.model_fields
    for name in (*_PLAIN, *_LISTS):
        value = getattr(task, name)
        if name in _LISTS:
            if value:
                yield f"- **{name}**: {', '.join(in_backticks(one) for one in value)}"
        elif value != defaults[name].default:
            yield f"- **{name}**: {_plain(task.id, name, value)}"
    if task.json_schema is not None:
        yield _schema(task.json_schema)
    for name in ("choices", "stop"):
        if (texts := getattr(task, name)) is not None:
            yield f"- **{name}**: {_json(texts)}"
    for name in ("prompt", "text"):
        if (text := getattr(task, name)) is not None:
            yield _block(name, "text", text)
    if task.argv is not None:
        yield f"- **argv**: {_json(task.argv)}"
    if task.command is not None:
        yield _command(task.command)


def _per_item(one: ItemDependency) -> str:
    return f"{one.template}_{{ITEM{'.' if one.path else ''}{one.path}}}"


def _command(command: str) -> str:
    plain = re.search(r"[`\n]", command) is None and command == command.strip()
    return f"- **command**: `{command}`" if plain else _block("command", "bash", command)


def _schema(schema: dict[str, Any] | str) -> str:
    if isinstance(schema, str):
        return f"- **json_schema**: {in_backticks(schema)}"
    return _block("json_schema", "json", _json(schema, indent=2))


def _block(name: str, language: str, text: str) -> str:
    """The field with a fence below it, longer than every run of backticks in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    lines = [f"{fence}{language}", *text.split("\n"), fence]
    return "\n".join([f"- **{name}**:", *(f"  {line}" if line else "" for line in lines)])


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def _plain(task: str, name: str, value: Any) -> str:
    """The value in the first form that its reader takes for it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    text = str(value)
    for form in (text, in_backticks(text), f'"{text}"'):
        if _reads(READERS[name], name, form, value):
            return form
    raise ValueError(f"{task}: {name} {text[:60]!r} cannot be written in a plan file")


def _reads(reader: Callable[[Field], Any], name: str, form: str, value: Any) -> bool:
    if "\n" in form or form != form.strip():
        return False
    try:
        return bool(reader(Field(name, name, form, 0, 1)) == value)
    except FieldError:
        return False


def same_plan(first: Plan, second: Plan) -> bool:
    """Whether two plans say the same, wherever it stands in their files."""
    return _bare(first) == _bare(second)


def _bare(plan: Plan) -> tuple[Any, ...]:
    tasks: Sequence[dict[str, Any]] = [task.model_dump(exclude={"line", "lines"}) for task in plan.tasks]
    inputs = {name: one.model_dump(exclude={"line"}) for name, one in plan.inputs.items()}
    return plan.name, plan.title, plan.goal, inputs, plan.settings.model_dump(), tasks
