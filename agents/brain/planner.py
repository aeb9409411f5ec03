"""A plan and its values -> task specs for the bus. Pure: text in, messages out.

A task with `foreach` becomes three kinds of tasks: ``<id>:expand`` reads the list (in a child that sees the share)
and records it; the *join* ``<id>`` stands for the template, held until its last chunk of children is declared;
the children ``<id>_<item>`` feed the join. Keys are made of names in the plan and ids in the list only, so that a
planner killed half-way declares the same tasks again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...bus.wire import MAX_BATCH, MAX_PAYLOAD_BYTES, pack
from ...plans.check import check_plan
from ...plans.environment import encode_value, fill, lookup
from ...plans.errors import PlanInvalid
from ...plans.keys import batch_key, item_groups, item_keys
from ...plans.model import PRIORITY_LEVELS, Plan, PlanTask
from ...plans.placeholders import ValueFault, is_item
from ...plans.values import rewrite_argv, rewrite_batch, rewrite_command, variables_in
from ...plans.variables import find_variables, substitute

#: Children in one message: a longer transaction stalls the broker's loop.
CHUNK: Final = 500
CHUNK_BYTES: Final = 2 << 20
_META_TEXT: Final = 4000


class Unplannable(Exception):
    """The plan cannot become tasks; the text says what, where and the fix."""


@dataclass(frozen=True, slots=True)
class Run:
    """One batch of a plan. Paths are absolute texts; ``config`` is what the submitter gave."""

    batch: str
    name: str
    state_id: str
    sha256: str
    staged: str
    original: str
    view: str
    batch_path: str
    config: Mapping[str, Any]
    priority: int | None = None

    def plan_part(self) -> dict[str, str]:
        """What a worker needs to make the plan's view."""
        return {
            "sha256": self.sha256,
            "staged": self.staged,
            "original": self.original,
            "view": self.view,
            "batch_path": self.batch_path,
        }

    def built_ins(self) -> dict[str, str]:
        """The variables that every plan has."""
        return {"PLAN_PATH": self.view, "BATCH_ID": self.batch, "BATCH_PATH": self.batch_path}


@dataclass(slots=True)
class Message:
    """One BRAIN message's tasks: specs with their payloads."""

    specs: list[dict[str, Any]] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)

    def add(self, spec: dict[str, Any], payload: Mapping[str, Any]) -> None:
        packed = pack(payload)
        if len(packed) > MAX_PAYLOAD_BYTES:
            raise Unplannable(
                f"task {spec['key']!r} needs {len(packed)} bytes of values, {MAX_PAYLOAD_BYTES} are allowed; "
                "write large values to a file and pass its path"
            )
        self.specs.append(spec)
        self.payloads.append(packed)

    @property
    def size(self) -> int:
        """Bytes of the payloads."""
        return sum(map(len, self.payloads))


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
        if len(messages[-1].specs) + 2 > MAX_BATCH or messages[-1].size > CHUNK_BYTES:
            messages.append(Message())
        after = [_edge(by_id[name], name) for name in task.depends_on]
        if task.foreach is None:
            spec = _spec(plan, task, run, task.id) | {"after": after}
            messages[-1].add(spec, _payload(task, run, values, ()))
            continue
        # an item's own dependency is met with its whole template
        after += [
            _edge(by_id[d.template], d.template)
            for d in task.item_depends_on
            if d.template not in task.depends_on
        ]
        expand = {
            "key": f"{task.id}:expand",
            "type": "expand",
            "view": run.state_id,
            "priority": _priority(plan, task, run),
            "after": after,
            "timeout_s": 300.0,
            "meta": _meta(task) | {"name": f"{task.id}:expand", "template": task.id},
        }
        source = substitute(task.foreach.source, _texts(values))
        payload = {"source": source, "json_path": task.foreach.json_path, "plan": run.plan_part()}
        messages[-1].add(expand, payload)
        join = {
            "key": task.id,
            "type": "join",
            "join": True,
            "hold": True,
            "priority": _priority(plan, task, run),
            "after": [f"{task.id}:expand"],
            "meta": _meta(task) | {"foreach": f"{task.foreach.source}:{task.foreach.json_path}"},
        }
        messages[-1].add(join, {})
    return messages


def expand(plan: Plan, run: Run, template: str, items: Sequence[Any]) -> Iterator[Message]:
    """The children of a template for the recorded list, in chunks.

    Raises:
        Unplannable: duplicate ids, a field that an item lacks, a value that cannot be passed.
    """
    task = plan.by_id()[template]
    values = values_of(plan, run)
    others = [t.id for t in plan.tasks if t.id != template]
    edge = [template, "end" if task.on_failure == "continue" else "success"]
    message = Message()
    try:
        keys = item_keys(template, items, others)
    except ValueError as e:
        raise Unplannable(f"{plan.file}:{task.line_of('foreach')}: the list of {template!r}: {e}") from None
    for group in item_groups(len(items), task.batch_size):
        chosen = [items[i] for i in group]
        key = keys[group[0]] if task.batch_size == 1 else batch_key(template, group[0] + 1, group[-1] + 1)
        spec = _spec(plan, task, run, key) | {"feeds": [edge]}
        spec["meta"]["template"] = template
        if task.batch_size > 1:
            spec["meta"]["batch_size"] = len(chosen)
        if len(message.specs) >= CHUNK or message.size > CHUNK_BYTES:
            yield message
            message = Message()
        message.add(spec, _payload(task, run, values, chosen))
    yield message


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


def _edge(source: PlanTask, name: str) -> Any:
    return [name, "end"] if source.on_failure == "continue" else name


def _priority(plan: Plan, task: PlanTask, run: Run) -> int:
    if task.priority is None and run.priority is not None:
        return run.priority
    return PRIORITY_LEVELS[plan.priority_of(task)]


def _class(task: PlanTask) -> str | None:
    """The class a worker must offer. A handler's type says enough where the plan names none."""
    if task.executor == "brain":
        return "brain"
    return None if task.type != "shell" and task.task_class_inferred else task.task_class


def _spec(plan: Plan, task: PlanTask, run: Run, key: str) -> dict[str, Any]:
    """The bus's spec of one task; times in seconds."""
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
        "meta": _meta(task) | {"name": key},
    }
    if task.type == "shell":
        spec["view"] = run.state_id
    for name in ("pool", "queue_timeout_s", "no_progress_s"):
        if (value := getattr(task, name)) is not None:
            spec[name] = value
    if task.needs:
        spec["needs"] = list(task.needs)
    if task.evaluate:
        spec["review"] = True
    if task.on_failure != "continue" and plan.settings.on_failure == "abort":
        spec["meta"]["on_failure"] = "abort"
    return spec


def _meta(task: PlanTask) -> dict[str, Any]:
    """What people and the mirror see of a task beside its state."""
    meta: dict[str, Any] = {"executor": task.executor, "depends_on": list(task.depends_on), "line": task.line}
    if task.command is not None:
        meta["command"] = task.command[:_META_TEXT]
    elif task.argv is not None:
        meta["command"] = shlex.join(task.argv)[:_META_TEXT]
    if task.on_failure is not None:
        meta["on_failure"] = task.on_failure
    if task.task_class_inferred:
        meta["fix_applied"] = f"inferred task_class={task.task_class!r} from command"
    return meta


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: encode_value(value) for name, value in values.items()}


def _payload(task: PlanTask, run: Run, values: Mapping[str, Any], items: Sequence[Any]) -> dict[str, Any]:
    """The payload of a shell task: its command with the environment that carries the values."""
    try:
        if task.type != "shell":
            return _other_payload(task, run, values, items)
        if task.argv is not None and len(items) <= 1:
            argv = rewrite_argv(task.argv, _argv_values(task.argv, values, items))
            return {"command": None, "argv": argv, "env": {}, "plan": run.plan_part()}
        if task.argv is not None:
            lines = [
                shlex.join(rewrite_argv(task.argv, _argv_values(task.argv, values, [item]))) for item in items
            ]
            return {
                "command": "\n".join(["set -e", *lines]),
                "argv": None,
                "env": {},
                "plan": run.plan_part(),
            }
        known = values.__contains__
        lists = {k: len(v) for k, v in values.items() if isinstance(v, list)}
        command = task.command or ""
        if task.batch_size > 1 and items:
            made = rewrite_batch(command, len(items), known, lists)
        else:
            made = rewrite_command(command, known, lists)
        return {
            "command": made.command,
            "argv": None,
            "env": fill(made.slots, values, items),
            "plan": run.plan_part(),
        }
    except ValueFault as e:
        field_name = "argv" if task.argv is not None else "command"
        raise Unplannable(f"plan.md:{task.line_of(field_name)}: task {task.id!r}: {e}") from None


def _argv_values(argv: Sequence[str], values: Mapping[str, Any], items: Sequence[Any]) -> dict[str, Any]:
    """Text by dotted name for the argv form; a list-valued key stays a list."""
    out: dict[str, Any] = {k: v if isinstance(v, list) else encode_value(v) for k, v in values.items()}
    for word in argv:
        for name, _ in find_variables(word):
            if is_item(name) and items:
                out[name] = encode_value(lookup(items[0], name.partition(".")[2]))
    return out


def _other_payload(
    task: PlanTask, run: Run, values: Mapping[str, Any], items: Sequence[Any]
) -> dict[str, Any]:
    """The payload of a handler's task: its prompt and output with the values put in as text (no shell reads them)."""
    out: dict[str, Any] = {}
    for name in ("prompt", "output"):
        text = getattr(task, name)
        if text is not None:
            words = rewrite_argv([text], _argv_values([text], values, items))
            out[name] = words[0] if words else ""
    if task.json_schema is not None:
        out["json_schema"] = task.json_schema
    if task.llm_model is not None:
        out["model"] = task.llm_model
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
    "CHUNK",
    "Message",
    "PlanInvalid",
    "Run",
    "Unplannable",
    "declare",
    "expand",
    "problems_of",
    "values_of",
]
