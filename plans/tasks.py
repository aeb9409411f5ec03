"""One ``### id`` with its bullets → ``PlanTask``: the rules that join its fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Final

from .classes import guess_class
from .errors import FaultList
from .fields import (
    READERS,
    TASK_FIELDS,
    FieldError,
    known_class,
    read_dependencies,
    read_foreach,
)
from .keys import is_plain_name, slug
from .markdown import Field, code_span, read_fields, unquote
from .model import DEFAULT_VRAM_MB, Foreach, PlanTask
from .model_tasks import MODEL_TYPES, PLACEMENT_TYPES, check_model_task, settle_model_class
from .sections import Group

_OWN_TYPES: Final = ("execute_plan", "expand")


def _task_id(heading: str) -> str:
    text = re.sub(r"^(?:task\s*\d*\s*:\s*|\d+[.)]\s+)", "", unquote(heading.strip("* ")), flags=re.IGNORECASE)
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
                line,
                f"{name[:60]!r} is a heading without fields, not a task",
                "nothing, or use ####",
                mark=group.heading.text,
            )
        else:
            faults.error(
                line,
                f"{name[:60]!r} is no task id: use 1 to 64 of A-Z a-z 0-9 . _ -",
                f"rename it, for example to {slug(name)!r}",
                mark=group.heading.text,
            )
        return None
    known, unknown = _unique_fields(name, fields, faults)
    return _build(name, line, known, unknown, faults)


def _unique_fields(
    task: str, fields: Sequence[Field], faults: FaultList
) -> tuple[dict[str, Field], list[Field]]:
    """(the known fields by name, the others); of a field that stands twice the first."""
    found: dict[str, Field] = {}
    unknown: list[Field] = []
    for field in fields:
        if field.name not in TASK_FIELDS:
            unknown.append(field)
            near = faults.nearest(field.name, sorted(TASK_FIELDS))
            hint = f"did you mean {near}?" if near else f"known: {', '.join(sorted(TASK_FIELDS))}"
            faults.warning(
                field.line,
                f"unknown field {field.written!r} in task {task!r}, not read",
                hint,
                mark=field.written,
            )
        elif field.name in found:
            faults.error(
                field.line,
                f"{field.name} stands twice in task {task!r} (first in line {found[field.name].line})",
                "keep one of them",
                mark=field.written,
            )
        else:
            found[field.name] = field
    return found, unknown


def _build(
    name: str, line: int, fields: dict[str, Field], unknown: Sequence[Field], faults: FaultList
) -> PlanTask:
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
            faults.error(field.line, error.what, error.fix, mark=field.value[:60] or field.written)
    _warn_command_remark(fields.get("command"), faults)
    _settle_type(values, fields, unknown, faults)
    check_model_task(values, fields, faults)
    _settle_class(values, fields, faults)
    _settle_vram(values, fields, faults)
    _refuse_mixed_models(values, fields, faults)
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


def _settle_type(
    values: dict[str, Any], fields: dict[str, Field], unknown: Sequence[Field], faults: FaultList
) -> None:
    """What the task runs: exactly one of command and argv for shell, a prompt for the model's types."""
    name, line = values["id"], values["line"]
    has_work = "command" in fields or "argv" in fields
    if "type" not in fields and "prompt" in fields and not has_work:
        values["type"] = "generate"
        faults.warning(line, f"task {name!r} has a prompt and no type: taken as generate", "write the type")
    kind = values.get("type", "shell")
    if kind in _OWN_TYPES:
        faults.error(
            fields["type"].line,
            f"the type {kind} is rigbus's own",
            "use shell or a handler's type",
            mark=kind,
        )
    elif kind == "shell" and "command" in fields and "argv" in fields:
        faults.error(line, f"task {name!r} has both a command and an argv", "keep one of them")
    elif kind == "shell" and not has_work:
        _refuse_no_command(name, line, unknown, faults)
    elif kind == "unload_llm" and "llm_model" not in fields:
        faults.error(line, f"task {name!r} unloads no model", "add `- **llm_model**: …` with its name")
    elif kind != "shell" and has_work:
        faults.warning(line, f"the command of {name!r} is not used by the type {kind}", "drop one of them")


def _refuse_no_command(name: str, line: int, unknown: Sequence[Field], faults: FaultList) -> None:
    """A task without work: where a field is nearly called command, that is the fault."""
    for field in unknown:
        near = get_close_matches(field.name[:40], ("command", "argv", "run_command"), 1, 0.6)
        if near:
            faults.error(
                field.line,
                f"task {name!r} has no command, but a field {field.written!r}",
                "write `- **command**: …`",
                mark=field.written,
            )
            return
    faults.error(
        line,
        f"task {name!r} has no command (is the file half written?)",
        "add `- **command**: …`, or use #### for a heading that is no task",
        mark=name,
    )


_MODEL_FLAG: Final = re.compile(
    r"(?<!\S)--(?:[A-Za-z0-9]+[-_])*model(?:=|[ \t]+)(?:\\\n\s*)?(\"[^\"\n]*\"|'[^'\n]*'|[^\s;|&]+)"
)


def _refuse_mixed_models(values: dict[str, Any], fields: dict[str, Field], faults: FaultList) -> None:
    """A GPU pair holds one model, so a split task names the same in ``llm_model`` and each ``--…-model`` flag.

    A flag with a ``{VARIABLE}`` is left to the run: its value may be the same.
    """
    key = "argv" if "argv" in fields else "command"
    if values.get("llm_placement") != "split_gpu" or key not in fields:
        return
    text = "\n".join(values.get("argv") or ()) if key == "argv" else values.get("command") or ""
    flags = re.sub(r"(?m)^(--\S*model)\n", r"\1 ", text) if key == "argv" else text
    first: str | None = values.get("llm_model")
    for match in _MODEL_FLAG.finditer(flags):
        model = match.group(1).strip("\"'")
        if "{" in model or model == first:
            continue
        if first is None:
            first = model
            continue
        below = (
            flags.count("\n", 0, match.start(1)) if fields[key].fence is not None and key == "command" else 0
        )
        faults.error(
            fields[key].text_line + below,
            f"task {values['id']!r} names several models for one GPU pair: {first[:80]}, {model[:80]}",
            "a pair holds one model: name the same in llm_model and every --…-model, or drop split_gpu",
            mark=model,
        )
        return


def _settle_vram(values: dict[str, Any], fields: dict[str, Field], faults: FaultList) -> None:
    """An estimate of a script is its policy (PLAN_DIALECTS 2.2): ``fixed``, unless ``infer`` is written.

    ``fixed`` without a number and ``infer``, which nobody does, leave the default; both are said.
    """
    if values["task_class"] != "script":
        return
    policy = values.get("vram_policy", "default")
    estimate = values.get("vram_estimate_mb")
    if estimate is not None and policy == "default":
        values["vram_policy"] = "fixed"
    elif policy == "infer" and "vram_policy" in fields:
        faults.warning(
            fields["vram_policy"].line,
            f"nothing infers a task's VRAM: {values['id']!r} is taken to need {estimate or DEFAULT_VRAM_MB} MiB",
            "write vram_estimate_mb alone" if estimate is None else "drop vram_policy",
            mark="infer",
        )
    elif policy == "fixed" and estimate is None and "vram_policy" in fields:
        faults.warning(
            fields["vram_policy"].line,
            f"vram_policy is fixed without a number: {values['id']!r} is taken to need {DEFAULT_VRAM_MB} MiB",
            "add vram_estimate_mb",
            mark="fixed",
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
            mark=executor[:40],
        )
        executor = "worker"
    written = unquote(fields["task_class"].text) if "task_class" in fields else ""
    task_class: str | None = known_class(written)
    if values.get("type") in PLACEMENT_TYPES:
        values.update(executor="brain", task_class="meta")
        return
    if executor == "brain" or task_class == "brain":
        values.update(executor="brain", task_class="brain")
        return
    if values.get("type") in MODEL_TYPES:
        settle_model_class(values, fields, faults)
        return
    if task_class is None and not written and values.get("type", "shell") != "shell":
        # Who offers a handler's type runs it; its class decides nothing, so there is nothing to say.
        task_class = "cpu"
        values["task_class_inferred"] = True
    if task_class is None:
        guess = guess_class(values.get("command"), values.get("argv"))
        task_class = guess.task_class
        what = f"has the unknown task_class {written[:40]!r}" if written else "has no task_class"
        faults.warning(
            fields["task_class"].line if written else line,
            f"task {name!r} {what}: taken as {guess.words}",
            f"write `- **task_class**: {task_class}` (one of cpu, script, llm, brain, meta)",
            mark=written or name,
        )
        values.update(task_class_inferred=True, task_class_unsure=not guess.sure)
    values.update(executor="worker", task_class=task_class)


def _warn_unused(values: dict[str, Any], fields: dict[str, Field], faults: FaultList) -> None:
    """Fields that have no effect on this task, and a list that is read before anybody can have written it."""
    task_class = values["task_class"]
    for key, field in fields.items():
        if key.startswith("vram_") and task_class != "script":
            faults.warning(
                field.line,
                f"{key} has no effect on a {task_class} task",
                "drop it, or use script",
                mark=field.written,
            )
        elif key == "llm_model" and values.get("type") in PLACEMENT_TYPES:
            continue  # which one
        elif key.startswith("llm_") and task_class != "llm" and values.get("type") not in MODEL_TYPES:
            faults.warning(
                field.line,
                f"{key} has no effect on a {task_class} task",
                "drop it, or use llm",
                mark=field.written,
            )
        elif key == "batch_size" and "foreach" not in fields:
            faults.warning(
                field.line,
                "batch_size has no effect without a foreach",
                "drop it, or add a foreach",
                mark=field.written,
            )
        elif key == "batch_size" and values.get("type", "shell") != "shell":
            faults.warning(
                field.line,
                f"batch_size has no effect on the type {values['type']}: one task an item",
                "drop it",
            )
    foreach = values.get("foreach")
    waits = values.get("depends_on") or values.get("item_depends_on")
    if foreach is not None and "{BATCH_PATH}" in foreach.source and not waits:
        faults.warning(
            fields["foreach"].line,
            f"{values['id']!r} reads a file of this batch but depends on no task",
            "add the task that writes it to depends_on",
            mark=fields["foreach"].value[:60],
        )
