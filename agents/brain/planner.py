"""A plan and its values -> task specs for the bus. Pure: text in, messages out.

A task with `foreach` becomes three kinds of tasks: ``<id>:expand`` reads the list (in a child that sees the share)
and records it; the *join* ``<id>`` stands for the template, held until its last chunk of children is declared;
the children ``<id>_<item>`` feed the join (``children.py``). Keys are made of names in the plan and ids in the list
only, so that a planner killed half-way declares the same tasks again.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from ...bus.core.model import PLACEMENT_ASKS
from ...bus.tags import MODEL_TYPES
from ...bus.wire import MAX_BATCH
from ...plans.check import check_plan
from ...plans.environment import encode_value, fill, lookup
from ...plans.model import PRIORITY_LEVELS, Foreach, Plan, PlanTask
from ...plans.placeholders import ValueFault, is_item
from ...plans.values import Rewritten, rewrite_argv, rewrite_batch, rewrite_command, variables_in
from ...plans.variables import find_variables, substitute
from .asking import agent_payload, asked_texts, model_name, model_needs, needs_view
from .definitions import definition
from .messages import Message, Run, Unplannable

#: Seconds for reading a list, whatever the template allows its tasks.
EXPAND_TIMEOUT_S: Final = 300.0
_META_TEXT: Final = 4000


def values_of(plan: Plan, run: Run) -> dict[str, Any]:
    """The values of all variables of a run.

    Raises:
        Unplannable: a variable without a value, or another fault of severity error.
    """
    values, faults = check_plan(plan, run.config, run.built_ins())
    errors = [str(f) for f in faults if f.severity == "error"]
    if errors:
        raise Unplannable("; ".join(errors))
    return values


def declare(plan: Plan, run: Run) -> list[Message]:
    """All tasks that a plan has before any foreach is expanded, what is waited for first.

    Raises:
        Unplannable: a value is missing or cannot be put where the plan wants it.
    """
    values = values_of(plan, run)
    by_id = plan.by_id()
    messages = [Message()]
    for task in _in_order(plan):
        if len(messages[-1].specs) + 2 > MAX_BATCH or messages[-1].full:
            messages.append(Message())
        after = [edge_on(by_id[name], name) for name in task.depends_on]
        if task.foreach is None:
            spec = spec_of(plan, task, run, task.id, values) | {"after": after}
            payload = payload_of(task, run, values, ())
            show_prompt(spec["meta"], payload)
            messages[-1].add(_defined(spec, payload, run), payload)
            continue
        spec, payload = _expand_task(plan, task, run, after, values)
        messages[-1].add(_defined(spec, payload, run), payload)
        messages[-1].add(_defined(_join(plan, task, run), {}, run), {})
    return messages


def _defined(spec: dict[str, Any], payload: Mapping[str, Any], run: Run) -> dict[str, Any]:
    return spec | {"definition": definition(spec, payload, run)}


def _expand_task(
    plan: Plan, task: PlanTask, run: Run, after: list[Any], values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The task that reads the list of a template, with its payload. It waits for the template's plain dependencies."""
    foreach = _foreach(task)
    attempts = task.max_attempts or plan.settings.max_attempts
    spec = {
        "key": f"{task.id}:expand",
        "type": "expand",
        "view": run.state_id,
        "priority": _priority(plan, task, run),
        "after": after,
        "timeout_s": EXPAND_TIMEOUT_S,
        "policy": {} if attempts is None else {"task": attempts},
        "meta": _meta(task) | _abort(plan, task) | {"name": f"{task.id}:expand", "template": task.id},
    }
    payload = {
        # As in a command, a name is in the folder of the batch.
        "source": str(PurePosixPath(run.batch_path) / substitute(foreach.source, _texts(values))),
        "json_path": foreach.json_path,
        "plan": run.plan_part(),
        "fields": item_fields(task),
    }
    return spec, payload


def _join(plan: Plan, task: PlanTask, run: Run) -> dict[str, Any]:
    """The held join that stands for a template.

    It ends with the lists that its items depend on: without one of them it could never be expanded.
    """
    by_id = plan.by_id()
    foreach = _foreach(task)
    lists = dict.fromkeys(d.template for d in task.item_depends_on)
    return {
        "key": task.id,
        "type": "join",
        "join": True,
        "hold": True,
        "priority": _priority(plan, task, run),
        "after": [f"{task.id}:expand", *(edge_on(by_id[name], f"{name}:expand") for name in lists)],
        "meta": _meta(task) | _abort(plan, task) | {"foreach": f"{foreach.source}:{foreach.json_path}"},
    }


def _foreach(task: PlanTask) -> Foreach:
    if task.foreach is None:
        raise Unplannable(f"task {task.id!r} has no foreach; submit the plan again")
    return task.foreach


def item_fields(task: PlanTask) -> list[str]:
    """The paths of ``{ITEM.path}`` (``""`` for ``{ITEM}``) that a template's texts and dependencies ask of each item."""
    names = [d.path for d in task.item_depends_on]
    if task.command is not None:
        asked = [v.name for v in variables_in(task.command) if v.context != "comment"]
    else:
        texts = [*(task.argv or ()), *asked_texts(task)]
        asked = [name for text in texts for name, _ in find_variables(text)]
    names += [name.partition(".")[2] for name in asked if is_item(name)]
    return list(dict.fromkeys(names))


def _in_order(plan: Plan) -> list[PlanTask]:
    """Dependencies before dependents (the parser refused cycles), else in the plan's order."""
    by_id = plan.by_id()
    done: dict[str, PlanTask] = {}
    for root in plan.tasks:
        stack = [root]
        while stack:
            task = stack[-1]
            names = [*task.depends_on, *(d.template for d in task.item_depends_on)]
            missing = [by_id[n] for n in names if n not in done]
            if missing and task.id not in done:
                stack += missing
            else:
                done.setdefault(stack.pop().id, task)
    return list(done.values())


def batch_size(task: PlanTask) -> int:
    """Items in one task of a template; a handler takes one at a time."""
    return task.batch_size if task.type == "shell" else 1


def edge_on(source: PlanTask, ref: str) -> Any:
    """The edge on ``ref``, a task of ``source``: on its end where its failure does not matter."""
    return [ref, "end"] if source.on_failure == "continue" else ref


def aborts(plan: Plan, task: PlanTask) -> bool:
    """Whether a failure of ``task`` aborts the whole batch."""
    return task.on_failure != "continue" and plan.settings.on_failure == "abort"


def _abort(plan: Plan, task: PlanTask) -> dict[str, str]:
    return {"on_failure": "abort"} if aborts(plan, task) else {}


def _priority(plan: Plan, task: PlanTask, run: Run) -> int:
    if task.priority is None and run.priority is not None:
        return run.priority
    return PRIORITY_LEVELS[plan.priority_of(task)]


def _class(task: PlanTask) -> str | None:
    """The class a worker must offer. A handler's type says enough where the plan names none."""
    if task.type in MODEL_TYPES:
        return "llm"
    if task.type in PLACEMENT_ASKS:
        return "meta"
    if task.executor == "brain":
        return "brain"
    return None if task.type != "shell" and task.task_class_inferred else task.task_class


def spec_of(plan: Plan, task: PlanTask, run: Run, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The bus's spec of one task; times in seconds.

    Raises:
        Unplannable: a value cannot be put into the name of its model.
    """
    attempts = task.max_attempts or plan.settings.max_attempts
    policy: dict[str, Any] = {}
    if attempts is not None:
        policy["task"] = attempts
    if task.backoff_s is not None:
        policy["backoff_s"] = task.backoff_s
    spec: dict[str, Any] = {
        "key": key,
        "type": task.type,
        "class": _class(task),
        "priority": _priority(plan, task, run),
        "timeout_s": plan.timeout_s(task),
        "policy": policy,
        "meta": _meta(task) | _abort(plan, task) | {"name": key},
    }
    if task.type == "shell" or needs_view(task):
        spec["view"] = run.state_id
    for name in ("pool", "queue_timeout_s", "no_progress_s"):
        if (value := getattr(task, name)) is not None:
            spec[name] = value
    if spec["class"] == "script" and task.vram_mb is not None:
        spec["vram_mb"] = task.vram_mb
    try:
        needs = [*task.needs, *model_needs(task, values)]
        if task.type in PLACEMENT_ASKS:
            spec["meta"]["model"] = model_name(task, values)
    except ValueFault as e:
        raise Unplannable(f"plan.md:{task.line_of('llm_model')}: task {task.id!r}: {e}") from None
    if needs:
        spec["needs"] = list(dict.fromkeys(needs))
    if task.evaluate:
        spec["review"] = True
    return spec


def _meta(task: PlanTask) -> dict[str, Any]:
    """What people and the mirror see of a task beside its state."""
    waits = [*task.depends_on, *(_per_item(d.template, d.path) for d in task.item_depends_on)]
    meta: dict[str, Any] = {"executor": task.executor, "depends_on": waits, "line": task.line}
    if task.command is not None:
        meta["command"] = cut(task.command, _META_TEXT)
    elif task.argv is not None:
        meta["command"] = cut(shlex.join(task.argv), _META_TEXT)
    for name in ("llm_model", "llm_min_tier", "llm_placement"):
        if (value := getattr(task, name)) is not None:
            meta[name] = value
    if task.task_class == "script" and task.vram_estimate_mb is not None:
        meta |= {"vram_estimate_mb": task.vram_estimate_mb, "vram_estimate_source": "plan:explicit"}
    if task.prompt is not None:
        meta["prompt"] = cut(task.prompt, _META_TEXT - len(meta.get("command", "")))
    if task.on_failure is not None:
        meta["on_failure"] = task.on_failure
    if task.task_class_inferred and task.type == "shell":
        inferred = f"inferred task_class={task.task_class!r} from command"
        meta["fix_applied"] = task.task_class_fix or inferred
    return meta


def show_prompt(meta: dict[str, Any], payload: Mapping[str, Any]) -> None:
    """Put the prompt with its values in place of the one that the plan has."""
    if "prompt" in meta and isinstance(payload.get("prompt"), str):
        meta["prompt"] = cut(payload["prompt"], _META_TEXT - len(meta.get("command", "")))


def _per_item(template: str, path: str) -> str:
    """A per-item dependency as the plan writes it."""
    return f"{template}_{{ITEM.{path}}}" if path else f"{template}_{{ITEM}}"


def cut(text: str, most: int) -> str:
    """``text``, at most ``most`` bytes of it."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: encode_value(value) for name, value in values.items()}


def payload_of(
    task: PlanTask, run: Run, values: Mapping[str, Any], items: Sequence[Any], made: Rewritten | None = None
) -> dict[str, Any]:
    """The payload of a task: for `shell` its command with the environment that carries the values, else that of
    :func:`agent_payload`.

    ``made`` is :func:`rewritten` for as many items, where the caller has it already.

    Raises:
        Unplannable: a value cannot be put where the plan wants it.
    """
    try:
        if task.type != "shell":
            return agent_payload(task, run, values, items)
        if task.argv is None:
            made = made or rewritten(task, values, len(items))
            return _shell_payload(run, command=made.command, env=fill(made.slots, values, items))
        if task.batch_size == 1 or not items:
            return _shell_payload(run, argv=rewrite_argv(task.argv, _argv_values(task.argv, values, items)))
        lines = [
            shlex.join(rewrite_argv(task.argv, _argv_values(task.argv, values, [item]))) for item in items
        ]
        return _shell_payload(run, command="\n".join(["set -e", *lines]) + "\n")
    except ValueFault as e:
        raise _unplannable(task, e) from None


def rewritten(task: PlanTask, values: Mapping[str, Any], n_items: int) -> Rewritten:
    """The command of a `shell` task with its placeholders as variables, for ``n_items`` items (0: no foreach).

    Raises:
        Unplannable: a value would be parsed as program text.
    """
    lists = {k: len(v) for k, v in values.items() if isinstance(v, list)}
    command = task.command or ""
    try:
        if task.batch_size > 1 and n_items:
            return rewrite_batch(command, n_items, values.__contains__, lists)
        return rewrite_command(command, values.__contains__, lists)
    except ValueFault as e:
        raise _unplannable(task, e) from None


def _shell_payload(
    run: Run,
    *,
    command: str | None = None,
    argv: list[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    return {"command": command, "argv": argv, "env": env or {}, "plan": run.plan_part()}


def _unplannable(task: PlanTask, fault: ValueFault) -> Unplannable:
    written = (
        name for name in ("argv", "command", "prompt", "text", "input") if getattr(task, name) is not None
    )
    name = next(written, "id")
    return Unplannable(f"plan.md:{task.line_of(name)}: task {task.id!r}: {fault}")


def _argv_values(argv: Sequence[str], values: Mapping[str, Any], items: Sequence[Any]) -> dict[str, Any]:
    """Text by dotted name for the argv form; a list-valued key stays a list."""
    out: dict[str, Any] = {k: v if isinstance(v, list) else encode_value(v) for k, v in values.items()}
    for word in argv:
        for name, _ in find_variables(word):
            if is_item(name) and items:
                out[name] = encode_value(lookup(items[0], name.partition(".")[2]))
    return out


def problems_of(plan: Plan) -> list[str]:
    """Faults of values that need no run to be seen: what the lexer refuses, by line. For `submit` and `plan lint`.

    Nothing is filled in; a foreach counts as having fields.
    """
    faults: list[str] = []
    for task in plan.tasks:
        if task.command is None:
            continue
        names = {f.name for f in variables_in(task.command)}
        known = {n for n in names if n.isupper()} | {"PLAN_PATH", "BATCH_ID", "BATCH_PATH", *plan.inputs}
        try:
            rewrite_command(task.command, known.__contains__)
        except ValueFault as e:
            faults.append(
                f"{plan.file}:{task.line_of('command') + max(0, e.line - 1)}: task {task.id!r}: {e.what}; {e.fix}"
            )
    return faults


__all__ = [
    "Message",
    "Run",
    "Unplannable",
    "declare",
    "problems_of",
    "values_of",
]
