"""``rigbus plan lint``: what is wrong in a plan, and what it leaves to rigbus, before anybody runs it."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from . import plan_source, render
from .common import fold, json_option, print_json, shared_option, state_option
from .keyvalue import json_object, pairs
from .reach import rig_folders

if TYPE_CHECKING:
    from ..plans.errors import PlanFault
    from ..plans.model import Plan, PlanTask

_INVALID: Final = 5
_COLOUR_OF: Final = {"error": "dead", "warning": "skipped"}
#: A file of the plan that a command names; what a placeholder or a pattern is part of cannot be looked up.
_OWN_FILE: Final = re.compile(
    r"\{PLAN_PATH\}/((?:scripts|lib)/[A-Za-z0-9._/-]*[A-Za-z0-9_-])(?![\w./{*?\[$-])"
)
#: A script by its path in the plan's folder, which is not the folder that the command runs in.
_BARE_FILE: Final = re.compile(
    r"(?:^|(?<=[\s\"'=(;&|]))(?:\./)?((?:scripts|lib)/[A-Za-z0-9._/-]*[A-Za-z0-9_-])(?![\w./{*?\[$-])"
)
#: A command that goes into another folder may well mean that one.
_MOVES: Final = re.compile(r"\b(?:cd|pushd|chdir)\b|\s-C\b")
_NAMES_SHOWN: Final = 6


@dataclass(slots=True)
class Linted:
    """What was found in one plan. ``inferred``: what the plan leaves open, and what is taken for it."""

    name: str
    file: str
    tasks: int = 0
    faults: list[PlanFault] = field(default_factory=list)
    inferred: list[dict[str, Any]] = field(default_factory=list)

    def count(self, severity: str) -> int:
        """How many faults of a severity there are."""
        return sum(fault.severity == severity for fault in self.faults)


@click.command()
@state_option
@shared_option
@json_option
@click.option("--set", "sets", multiple=True, metavar="K=V", help="A variable, as `submit` takes it.")
@click.option("--config", "config_json", metavar="JSON", help="Variables as one JSON object.")
@click.option("--strict", is_flag=True, help="Warnings end it with 5 too.")
@click.argument("paths", nargs=-1, required=True, metavar="PLAN...")
def lint(
    state: Path | None,
    shared: Path | None,
    as_json: bool,
    sets: tuple[str, ...],
    config_json: str | None,
    strict: bool,
    paths: tuple[str, ...],
) -> int:
    """Check plans: 0 none has an error, 5 one has.

    PLAN is a folder, a plan.md, or the name of a plan in the shared folder.
    A config.json in the folder counts, as it does for a dropped plan.
    """
    given = (json_object(config_json, "--config") if config_json is not None else {}) | pairs(sets, "--set")
    plans = rig_folders(state, shared, None).shared
    results = [lint_plan(plan_source.find_plan(path, plans), given) for path in paths]
    errors = sum(one.count("error") for one in results)
    warnings = sum(one.count("warning") for one in results)
    if as_json:
        print_json(report(results))
    else:
        for one in results:
            click.echo("\n".join(lines_of(one)))
        if len(results) > 1:
            click.echo(
                f"{len(results)} plans: {render.counted(errors, 'error')}, {render.counted(warnings, 'warning')}"
            )
    return _INVALID if errors or (strict and warnings) else 0


def lint_plan(path: Path, given: Mapping[str, Any]) -> Linted:
    """Everything that can be said of a plan without running it: its text, its values, and what would be staged."""
    from ..plans.check import check_plan, unused_keys
    from ..plans.errors import PlanInvalid
    from ..plans.parser import load_plan

    file = path / "plan.md" if path.is_dir() else path
    folder = file.parent if file.name.lower() == "plan.md" else None
    result = Linted(name=folder.resolve().name if folder else file.stem, file=str(file))
    config, faults = _beside(folder)
    try:
        plan, source = load_plan(path)
    except PlanInvalid as e:
        result.faults = [*e.faults, *faults]
        return result
    _, values = check_plan(plan, {**config, **given})
    values += unused_keys(plan, given) + unused_keys(plan, set(config) - set(given), near_only=True)
    result.name, result.tasks = plan.name, len(plan.tasks)
    faults += [*plan.warnings, *values, *_missing_files(plan, folder), *_unstageable(source)]
    result.faults = sorted(
        dict.fromkeys(faults), key=lambda one: (one.file != plan.file, one.line, one.column)
    )
    result.inferred = [dict(row) for row in inferred(plan)]
    return result


def inferred(plan: Plan) -> Iterator[dict[str, Any]]:
    """What the tasks leave open: ``{"task", "field", "value", "rule"}`` for classes and time limits."""
    from ..plans.classes import UNSURE

    for task in plan.tasks:
        if task.task_class_inferred:
            rule = "its words; the warning names them"
            if task.task_class_unsure:
                rule += f"; {UNSURE}"
            yield {"task": task.id, "field": "task_class", "value": task.task_class, "rule": rule}
    for task in plan.tasks:
        if task.timeout_s is None:
            rule = "the default" if plan.settings.timeout_s is None else "the plan's settings"
            yield {"task": task.id, "field": "timeout_s", "value": plan.timeout_s(task), "rule": rule}


def report(results: Iterable[Linted]) -> dict[str, Any]:
    """``rigbus.lint/1``."""
    rows = [
        {
            "plan": one.name,
            "file": one.file,
            "ok": not one.count("error"),
            "tasks": one.tasks,
            "errors": one.count("error"),
            "warnings": one.count("warning"),
            "faults": [fault.as_dict() for fault in one.faults],
            "inferred": one.inferred,
        }
        for one in results
    ]
    return {
        "schema": "rigbus.lint/1",
        "ok": all(row["ok"] for row in rows),
        "errors": sum(row["errors"] for row in rows),
        "warnings": sum(row["warnings"] for row in rows),
        "plans": rows,
    }


def lines_of(result: Linted) -> list[str]:
    """One plan for people: each fault with its line and a mark below, then one line that sums up."""
    lines = []
    for fault in result.faults:
        place = ":".join(str(part) for part in (fault.file, fault.line, fault.column) if part)
        head = render.clean(f"{place}: {fault.severity}: {fault.what}")
        fix = render.clean(fault.fix)
        short = len(f"{head}; {fix}") <= render.WIDEST
        said = (
            [f"{head}; {fix}"] if short else fold(head, render.WIDEST, 4) if sys.stdout.isatty() else [head]
        )
        said[0] = said[0].replace(
            fault.severity, render.colour(_COLOUR_OF[fault.severity], fault.severity), 1
        )
        lines += said + [render.clean(row) for row in fault.excerpt(render.WIDEST - 6)]
        if not short:
            lines += fold(f"    fix: {fix}", render.WIDEST, 9)
    grouped: dict[tuple[str, Any, str], list[str]] = {}
    for row in result.inferred:
        grouped.setdefault((row["field"], row["value"], row["rule"]), []).append(row["task"])
    for (name, value, rule), tasks in grouped.items():
        if name == "timeout_s":  # of classes the warnings above speak
            lines.append(f"{result.name}: note: timeout_s is {value:g} ({rule}) for {_names(tasks)}")
    counted = render.counted(result.tasks, "task") if result.tasks else "not read"
    errors, warnings = (
        render.counted(result.count("error"), "error"),
        render.counted(result.count("warning"), "warning"),
    )
    lines.append(f"{render.clean(result.name)}: {counted}, {errors}, {warnings}")
    return lines


def _beside(folder: Path | None) -> tuple[dict[str, Any], list[PlanFault]]:
    """The variables that a config.json in the plan's folder sets."""
    found = plan_source.settings_beside(folder)
    if found.fault is None:
        return dict(found.config), []
    return {}, [found.fault]


def _missing_files(plan: Plan, folder: Path | None) -> Iterator[PlanFault]:
    """A warning for each script that a command names and the plan's folder does not have."""
    from ..plans.errors import FaultList

    faults = FaultList(plan.file, list(plan.source))
    for task in plan.tasks:
        for name, line in _own_files(task, _BARE_FILE):
            moves = _MOVES.search(task.command or "")
            if folder is not None and not moves and (folder / name).exists():
                what = f"task {task.id!r} names {name}, but runs in {{BATCH_PATH}}, where it is not"
                faults.warning(line, what, f"write {{PLAN_PATH}}/{name}", mark=name)
        for name, line in _own_files(task, _OWN_FILE):
            if folder is None:
                fix = "make the plan a folder with a plan.md and its scripts"
                faults.warning(
                    line, f"task {task.id!r} runs {name}, but a single file has none", fix, mark=name
                )
            elif not (folder / name).exists():
                near = get_close_matches(name, _files_of(folder), n=1)
                fix = f"did you mean {near[0]}?" if near else "add it, or mend the name"
                faults.warning(
                    line, f"task {task.id!r} runs {name}, which the plan does not have", fix, mark=name
                )
    yield from faults.all()


def _own_files(task: PlanTask, pattern: re.Pattern[str]) -> Iterator[tuple[str, int]]:
    seen = set()
    for name, text in task.texts():
        if name not in ("command", "argv"):
            continue
        for match in pattern.finditer(text):
            if match.group(1) not in seen:
                seen.add(match.group(1))
                below = text.count("\n", 0, match.start()) if name == "command" else 0
                yield match.group(1), task.line_of(name) + below


def _files_of(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for part in ("scripts", "lib") for path in (folder / part).rglob("*.*")
    )


def _unstageable(source: Path) -> list[PlanFault]:
    """What would be refused when the plan is copied to the rig: links out of it, devices, too much of it."""
    from ..plans.errors import PlanFault
    from ..plans.stage import StageError, remove_tree, stage_plan

    with tempfile.TemporaryDirectory(prefix="rigbus-lint-") as scratch:
        try:
            remove_tree(stage_plan(source, Path(scratch) / "staged").path)
        except StageError as e:
            return [PlanFault(e.where, 0, e.what, e.fix)]
    return []


def _names(tasks: list[str]) -> str:
    more = len(tasks) - _NAMES_SHOWN
    return ", ".join(tasks[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
