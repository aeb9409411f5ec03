"""What must hold before a plan runs: its graph when it is read, its variables when it is submitted. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .errors import FaultList, PlanFault, find_mark
from .model import Plan, PlanTask
from .values import ValueFault, check_argv, rewrite_batch, rewrite_command, variables_in
from .variables import BUILT_INS, ITEM, LOUD, NAME, find_variables, split_name, substitute

#: Variables of the earlier system's control keys, with the values that they have when nobody sets them.
CONTROL_DEFAULTS: Final = {"PRIORITY": "normal", "PREEMPTIBLE": "True", "RUN_MODE": "fresh"}
#: All of them: they are known, though no plan names them.
CONTROL_KEYS: Final = frozenset(
    {*CONTROL_DEFAULTS, "RESUME_BATCH_ID", "QUERY", "DISCOVERY_TASKS", "DISCOVERY_ROUNDS"}
    | {"DISCOVERY_ROUND_MULTIPLIER", "DISCOVERY_PREFILL_DIVISOR", "DISCOVERY_POOL_MULTIPLIER"}
    | {"DISCOVERY_POOL_CAP", "DISCOVERY_REFILL_DIVISOR", "MAX_VALIDATIONS_PER_CYCLE"}
)
_MAX_CYCLES: Final = 20
#: What plans of the earlier system wait for when their goal is met.
GOAL_DEPENDENCY: Final = "_goal_complete"


def check_tasks(tasks: Sequence[PlanTask], faults: FaultList) -> None:
    """Duplicate ids, unknown dependencies, per-item dependencies that cannot be, cycles."""
    first: dict[str, PlanTask] = {}
    for task in tasks:
        if task.id in first:
            faults.error(
                task.line,
                f"the task id {task.id!r} stands twice (first in line {first[task.id].line})",
                "give one of them another id",
                mark=task.id,
            )
        else:
            first[task.id] = task
    for task in tasks:
        _check_dependencies(task, first, faults)
    for template in first.values():
        if template.foreach is None:
            continue
        made = re.compile(re.escape(template.id) + r"_batch_\d{4,}_\d{4,}")
        for other in first.values():
            if template.batch_size > 1 and made.fullmatch(other.id):
                faults.error(
                    other.line,
                    f"the id {other.id!r} is one that the template {template.id!r} makes",
                    "rename the task",
                    mark=other.id,
                )
    for cycle in find_cycles(first.values()):
        task = first[cycle[0]]
        after = cycle[1] if len(cycle) > 1 else cycle[0]
        faults.error(
            _spot(task, after, faults),
            f"tasks wait for each other: {_path(cycle)}",
            "remove one of these dependencies",
            mark=after,
        )


def _path(cycle: Sequence[str]) -> str:
    """The whole way round; of a very long one its start and its end."""
    names = [*cycle, cycle[0]]
    if len(names) > 40:
        names = [*names[:20], f"… {len(names) - 40} more …", *names[-20:]]
    return " → ".join(names)


_NEXT_FIELD: Final = re.compile(r"\s*(?:#{1,6}\s|(?:[-*+]\s+)?(?:\*\*|__)[A-Za-z])")


def _spot(task: PlanTask, name: str, faults: FaultList) -> int:
    """The line of ``depends_on`` where ``name`` stands: the list may go over several lines."""
    line = task.line_of("depends_on")
    for number, text in enumerate(faults.lines[line - 1 : line + 200] if line else [], start=line):
        if number > line and _NEXT_FIELD.match(text):
            break
        if name in text and find_mark(text, name)[0] > (text.find(":") + 1 if number == line else 0):
            return number
    return line


def _check_dependencies(task: PlanTask, known: Mapping[str, PlanTask], faults: FaultList) -> None:
    for name in task.depends_on:
        if name in known:
            continue
        if name == GOAL_DEPENDENCY:
            fix = "goals do not run: depend on the tasks whose results are meant"
        else:
            fix = _offer(name, known, faults)
        line = task.line if faults.full else _spot(task, name, faults)
        faults.error(line, f"task {task.id!r} depends on the unknown task {name[:80]!r}", fix, mark=name)
    for dependency in task.item_depends_on:
        mark = f"{dependency.template}_{{ITEM"
        line = task.line if faults.full else _spot(task, mark, faults)
        template = known.get(dependency.template)
        if task.foreach is None:
            faults.error(
                line,
                f"task {task.id!r} depends on single tasks of {dependency.template[:70]!r} without a foreach",
                f"depend on {dependency.template!r} (all of its items), or add a foreach",
                mark=mark,
            )
        elif template is None:
            faults.error(
                line,
                f"task {task.id!r} depends on the unknown template {dependency.template[:80]!r}",
                _offer(dependency.template, known, faults),
                mark=mark,
            )
        elif template.foreach is None:
            faults.error(
                line,
                f"{dependency.template!r} has no tasks for single items",
                f"depend on {dependency.template!r}, or give it a foreach",
                mark=mark,
            )


def _offer(name: str, known: Iterable[str], faults: FaultList) -> str:
    near = faults.nearest(name, known, 0.5)
    return f"did you mean {near!r}?" if near else "add that task, or remove it from depends_on"


def find_cycles(tasks: Iterable[PlanTask]) -> list[list[str]]:
    """Each cycle as its ids in the order "waits for"; at most 20 of them."""
    waits = {task.id: [*task.depends_on, *(one.template for one in task.item_depends_on)] for task in tasks}
    waits = {name: [one for one in wanted if one in waits] for name, wanted in waits.items()}
    cycles: list[list[str]] = []
    while (left := _without_leaves(waits)) and len(cycles) < _MAX_CYCLES:
        place: dict[str, int] = {}
        here = next(iter(left))
        while here not in place:
            place[here] = len(place)
            here = next(one for one in left[here] if one in left)
        cycle = list(place)[place[here] :]
        gone = set(cycle)
        cycles.append(cycle)
        waits = {name: wanted for name, wanted in left.items() if name not in gone}
    return cycles


def _without_leaves(waits: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """What is left when tasks that can end are taken away, one after the other."""
    missing = {name: {one for one in wanted if one in waits} for name, wanted in waits.items()}
    dependents: dict[str, list[str]] = {}
    for name, wanted in missing.items():
        for one in wanted:
            dependents.setdefault(one, []).append(name)
    ready = [name for name, wanted in missing.items() if not wanted]
    while ready:
        done = ready.pop()
        for name in dependents.get(done, ()):
            missing[name].discard(done)
            if not missing[name]:
                ready.append(name)
        del missing[done]
    return {name: waits[name] for name in missing}


def check_plan(
    plan: Plan, config: Mapping[str, Any], built_ins: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[PlanFault]]:
    """(the values of all variables, the faults) for a run of ``plan`` with ``config``.

    The values are the control keys' defaults, then the plan's ``## Inputs`` defaults, then ``config``, then
    ``built_ins`` (PLAN_PATH, BATCH_ID, BATCH_PATH). Without ``built_ins`` — at submit, when there is no batch
    yet — those names count as known but have no value in the result, and defaults keep them as written.
    A fault with severity "error" means that the run must be refused.
    """
    faults = FaultList(plan.file, plan.source)
    values: dict[str, Any] = dict(CONTROL_DEFAULTS)
    if plan.settings.priority is not None:
        values["PRIORITY"] = plan.settings.priority
    for spec in plan.inputs.values():
        if spec.default is None:
            continue
        for name, _ in find_variables(spec.default):
            if name not in BUILT_INS:
                faults.error(
                    spec.line,
                    f"the default of {spec.name} names {{{name}}}",
                    f"a default may only name {', '.join(BUILT_INS)}",
                    mark=f"{{{name}}}",
                )
        values[spec.name] = substitute(spec.default, built_ins or {})
    values.update(_usable_config(config, faults))
    values.update(built_ins or {})
    variables = _Variables(plan, frozenset(values) | frozenset(BUILT_INS), faults)
    lists = {name: len(value) for name, value in values.items() if isinstance(value, list)}
    used: set[str] = set()
    for task in plan.tasks:
        used |= variables.check(task)
        variables.check_shell(task, lists)
    for spec in plan.inputs.values():
        if spec.name not in values and spec.name not in used and LOUD.fullmatch(spec.name):
            faults.warning(
                spec.line,
                f"the input {spec.name} has no value and no task uses it",
                f"use {{{spec.name}}} in a task, or drop the line",
                mark=spec.name,
            )
    return values, faults.all()


def unused_keys(plan: Plan, given: Iterable[str], *, near_only: bool = False) -> list[PlanFault]:
    """A warning for each of the given variables that ``plan`` neither declares nor uses: a typing error, mostly.

    With ``near_only`` those alone that resemble a name of the plan: a config.json may be there for its scripts too.
    """
    faults = FaultList(plan.file, plan.source)
    named = {
        split_name(name)[0]
        for task in plan.tasks
        for _, text in task.texts()
        for name, _ in find_variables(text)
    }
    names = sorted((named | set(plan.inputs)) - {ITEM, *BUILT_INS})
    for key in given:
        if key in names or key in CONTROL_KEYS or key in BUILT_INS or not NAME.fullmatch(key):
            continue
        near = faults.nearest(key.upper(), names)
        if near or not near_only:
            fix = f"did you mean {near}?" if near else "drop it, or use {" + key + "} in a task"
            faults.warning(0, f"the configuration sets {key}, which the plan does not use", fix)
    return faults.all()


def _usable_config(config: Mapping[str, Any], faults: FaultList) -> dict[str, Any]:
    usable = {}
    for key, value in config.items():
        if key in BUILT_INS:
            faults.warning(0, f"the configuration sets {key}, which rigbus sets itself", "drop the key")
        elif key == ITEM:
            faults.error(0, "the configuration sets ITEM, the element of a foreach", "use another name")
        else:
            usable[key] = value
            if not NAME.fullmatch(key):
                faults.warning(
                    0, f"the key {key[:60]!r} cannot be used as a variable", "use letters, digits and _ only"
                )
    return usable


_PLACEHOLDER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_.]*\}")
_WARNING: Final = re.compile(r"line (?P<line>\d+): (?P<what>.*?); (?P<fix>.*)", re.DOTALL)


def _references(task: PlanTask, field: str, text: str) -> list[tuple[str, int]]:
    """(placeholder, its line in the plan) in one text of a task; a comment of a command asks for nothing."""
    first = task.line_of(field)
    if field == "command":
        found = [one for one in variables_in(text) if one.context != "comment"]
        return [(one.name, first + one.line - 1) for one in found]
    return [(name, first) for name, _ in find_variables(text)]


@dataclass(frozen=True, slots=True)
class _Variables:
    """The variables of one plan and run: which names have a value, and where faults go."""

    plan: Plan
    known: frozenset[str]
    faults: FaultList

    def check(self, task: PlanTask) -> set[str]:
        """Report each placeholder of ``task`` that cannot get a value, once; all that it names, without fields."""
        reported: set[str] = set()
        for field, text in task.texts():
            for reference, line in _references(task, field, text):
                if reference not in reported:
                    reported.add(reference)
                    self._check_one(task, field, reference, line)
        return {split_name(reference)[0] for reference in reported}

    def check_shell(self, task: PlanTask, lists: Mapping[str, int]) -> None:
        """Report each place of a command or argv where a value would be parsed as program text."""
        if task.type != "shell":
            return
        try:
            if task.command is None:
                warnings = check_argv(task.argv or [], self._has_value)
            elif task.batch_size > 1:
                warnings = rewrite_batch(task.command, 2, self._has_value, lists).warnings
            else:
                warnings = rewrite_command(task.command, self._has_value, lists).warnings
        except ValueFault as fault:
            line, column = self._place(task, fault.line, fault.offset)
            mark = _PLACEHOLDER.match(fault.what)
            what = f"task {task.id!r}: {fault.what}"
            self.faults.error(line, what, fault.fix, mark=mark.group() if mark else "", column=column)
            return
        for warning in warnings:
            place = _WARNING.fullmatch(warning)
            if place is not None:
                line, _ = self._place(task, int(place["line"]), 0)
                mark = _PLACEHOLDER.match(place["what"])
                what = f"task {task.id!r}: {place['what']}"
                self.faults.warning(line, what, place["fix"], mark=mark.group() if mark else "")

    def _place(self, task: PlanTask, line: int, offset: int) -> tuple[int, int]:
        """(line, column) in the file of a place in the task's command; the column is 0 where it is not known."""
        if task.command is None:
            return task.line_of("argv"), 0
        number = task.line_of("command") + line - 1
        start = task.command.rfind("\n", 0, offset) + 1
        end = task.command.find("\n", start)
        text = task.command[start : end if end >= 0 else len(task.command)]
        source = self.faults.lines[number - 1] if 0 < number <= len(self.faults.lines) else ""
        at = source.find(text) if text.strip() and offset else -1
        return number, at + 1 + offset - start if at >= 0 else 0

    def _has_value(self, reference: str) -> bool:
        return reference in self.known or reference in self.plan.inputs

    def _check_one(self, task: PlanTask, field: str, reference: str, line: int) -> None:
        name, fields = split_name(reference)
        if name == ITEM:
            self._check_item(task, field, reference, line)
        elif fields and (name in self.known or name in self.plan.inputs):
            self.faults.error(
                line,
                f"{{{reference}}} asks for a field of {name}",
                f"only ITEM has fields; pass the value itself with --set {name}=…",
                mark=f"{{{reference}}}",
            )
        elif not fields and name not in self.known:
            self._report_unresolved(task, name, line)

    def _check_item(self, task: PlanTask, field: str, reference: str, line: int) -> None:
        if task.foreach is None:
            self.faults.error(
                line,
                f"task {task.id!r} uses {{{reference}}} but has no foreach",
                "add a foreach, or write {{" + reference + "}} for the literal text",
                mark=f"{{{reference}}}",
            )
        elif field == "foreach":
            self.faults.error(
                line,
                f"the foreach of {task.id!r} names {{{reference}}}, which exists only in its tasks",
                "name a file that one earlier task writes",
                mark=f"{{{reference}}}",
            )

    def _report_unresolved(self, task: PlanTask, name: str, line: int) -> None:
        """Capitals and declared inputs are meant as variables; other braces belong to awk and its like."""
        near = self.faults.nearest(name, sorted(self.known), 0.75)
        if name in self.plan.inputs:
            where = self.plan.inputs[name].line
            self.faults.error(
                line,
                f"task {task.id!r} uses the input {{{name}}}, which has no value",
                f"pass --set {name}=… or put it into config.json, or write a default in line {where}: "
                "(default: `…`)",
                mark=f"{{{name}}}",
            )
        elif LOUD.fullmatch(name):
            hint = f"did you mean {{{near}}}? " if near else ""
            self.faults.error(
                line,
                f"task {task.id!r} uses {{{name}}}, which nothing sets",
                f"{hint}pass --set {name}=… or put it into config.json, or write {{{{{name}}}}} for the literal text",
                mark=f"{{{name}}}",
            )
        elif near:
            self.faults.warning(
                line,
                f"task {task.id!r} holds {{{name}}}, left as it is",
                f"did you mean {{{near}}}?",
                mark=f"{{{name}}}",
            )
