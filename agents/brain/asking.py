"""Tasks of a plan that an agent answers, not a command: their payload, and what they need of a model. Pure.

No shell reads their texts, so values are put in as plain text. A file is named as in a command: what does not begin
with ``/`` is in the folder of the batch; only a schema is read from the plan as it was submitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from ...bus.core.model import PLACEMENT_ASKS
from ...bus.tags import BRAIN_ROLE, MODEL_TYPES, ROLE, wanted_tags
from ...plans.environment import encode_value, lookup
from ...plans.model import Plan, PlanTask
from ...plans.placeholders import ValueFault, is_item
from ...plans.variables import find_variables, substitute
from .messages import Run
from .naming import no_model_for
from .placing_view import Entry

#: Fields that are passed on as they stand in the plan.
_AS_WRITTEN: Final = ("max_tokens", "temperature", "seed", "stop")


def agent_payload(
    task: PlanTask, run: Run, values: Mapping[str, Any], items: Sequence[Any]
) -> dict[str, Any]:
    """The payload of one task of a type that is not ``shell``; ``items`` holds its element, where it has a foreach.

    Raises:
        ValueFault: a value is missing in the element, or cannot be put in.
    """
    out: dict[str, Any] = {}
    for name in ("prompt", "text", "input", "output"):
        if (text := getattr(task, name)) is not None:
            out[name] = _filled(text, values, items)
    for name in ("input", "output"):
        if out.get(name):
            out[name] = str(PurePosixPath(run.batch_path) / out[name])
    if task.input is not None:
        out["plan"] = run.plan_part()
    if task.choices is not None:
        out["choices"] = [_filled(choice, values, items) for choice in task.choices]
    if isinstance(task.json_schema, str):
        # As it was when the plan was submitted.
        out["json_schema"] = str(PurePosixPath(run.staged) / _filled(task.json_schema, values, items))
    elif task.json_schema is not None:
        out["json_schema"] = task.json_schema
    for name in _AS_WRITTEN:
        if (value := getattr(task, name)) is not None:
            out[name] = value
    if model := model_name(task, values):
        out["model"] = model
    return out


def asked_texts(task: PlanTask) -> list[str]:
    """The texts of such a task in which ``{ITEM…}`` may stand."""
    texts = [task.prompt, task.text, task.input, task.output, *(task.choices or ())]
    texts.append(task.json_schema if isinstance(task.json_schema, str) else None)
    return [text for text in texts if text is not None]


def model_name(task: PlanTask, values: Mapping[str, Any]) -> str:
    """The model that a task names; empty where it takes any.

    Raises:
        ValueFault: a value cannot be put in.
    """
    return _filled(task.llm_model, values, ()).strip() if task.llm_model is not None else ""


def model_needs(task: PlanTask, values: Mapping[str, Any]) -> list[str]:
    """What a worker must offer of its model for a task of class ``llm``, commands included.

    A task of a model's type that names the brain as its executor goes to the brain's model.

    Raises:
        ValueFault: a value cannot be put in.
    """
    of_model = task.type in MODEL_TYPES
    if not of_model and task.task_class != "llm":
        return []
    return wanted_tags(
        model=model_name(task, values),
        min_tier=task.llm_min_tier,
        placement=task.llm_placement,
        role=BRAIN_ROLE if of_model and task.executor == "brain" else None,
    )


def model_faults(
    plan: Plan, values: Mapping[str, Any], catalogue: Mapping[str, Entry]
) -> list[tuple[str, str, frozenset[str]]]:
    """(file and line, what is wrong, what is needed of a model) of each task whose model the catalogue does not have.

    Nothing where there is no catalogue: then any model may come.
    """
    found = []
    for task in plan.tasks if catalogue else ():
        try:
            needs = frozenset(model_needs(task, values)) - {f"{ROLE}{BRAIN_ROLE}"}
            if task.type in PLACEMENT_ASKS:
                needs = frozenset(wanted_tags(model=model_name(task, values)))
        except ValueFault:
            continue  # said when the task is declared
        if needs and (lack := no_model_for(needs, catalogue)):
            line = task.line_of("llm_model" if task.llm_model is not None else "llm_min_tier")
            found.append((f"{plan.file}:{line}", f"task {task.id!r}: {lack}", needs))
    return found


def needs_view(task: PlanTask) -> bool:
    """Whether the worker must see the rig's state folder: it reads a file of the plan."""
    return task.input is not None or isinstance(task.json_schema, str)


def _filled(text: str, values: Mapping[str, Any], items: Sequence[Any]) -> str:
    """``text`` with its variables; lists and objects are JSON.

    Raises:
        ValueFault: as :func:`agent_payload`.
    """
    known: dict[str, str] = {}
    for name, _ in find_variables(text):
        if is_item(name) and items:
            known[name] = encode_value(lookup(items[0], name.partition(".")[2]))
        elif name in values:
            known[name] = encode_value(values[name])
    filled = substitute(text, known)
    if "\0" in filled:
        raise ValueFault("a text with a NUL character", "remove it")
    return filled
