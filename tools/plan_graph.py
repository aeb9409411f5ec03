"""``rigbus plan graph``: a plan drawn, as Mermaid, as SVG, or as lines of text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click

from ..bus.errors import ConfigError, PlanError, Refused
from . import plan_source, render
from .common import json_option, print_json, shared_option, state_option, talk
from .reach import rig_folders

if TYPE_CHECKING:
    from ..plans.graph import Graph

FORMATS: Final = ("mermaid", "svg", "text")
_ENDINGS: Final = {".svg": "svg", ".txt": "text", ".mmd": "mermaid", ".mermaid": "mermaid"}
_PICTURES: Final = frozenset({".pdf", ".png", ".jpg", ".jpeg", ".gif", ".webp"})


@click.command()
@state_option
@shared_option
@json_option
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Default: what --output ends in (.svg .mmd .txt), else mermaid.",
)
@click.option("--output", metavar="FILE", help="Into FILE, not to stdout; - is stdout.")
@click.argument("path", metavar="PLAN")
def graph(
    state: Path | None, shared: Path | None, as_json: bool, form: str | None, output: str | None, path: str
) -> int:
    """Draw a plan's tasks and what waits for what.

    The SVG needs no other program to make, and a browser to look at.
    """
    source = plan_source.find_plan(path, rig_folders(state, shared, None).shared)
    drawn = _read(source)
    if as_json and output is not None and output != "-":
        raise ConfigError("--json is for stdout; leave --output away")
    if as_json:
        print_json(as_object(drawn))
        return 0
    form = form or _form_of(output)
    text = _draw(drawn, form)
    if output is None or output == "-":
        click.echo(text, nl=False)
        return 0
    target = Path(output).expanduser()
    _refuse_the_plan(target, source)
    _write(target, text)
    talk(f"wrote {target} ({render.counted(len(drawn.nodes), 'task')}, {form})")
    return 0


def _form_of(output: str | None) -> str:
    """What the file's name says. A picture that nobody here draws is refused, not written as something else."""
    ending = Path(output or "").suffix.lower()
    if ending in _PICTURES:
        raise ConfigError(f"{output}: no {ending} is drawn here; write an .svg, which every browser shows")
    return _ENDINGS.get(ending, "mermaid")


def as_object(drawn: Graph) -> dict[str, Any]:
    """``rigbus.graph/1``: the tasks with the step that they stand in, and the edges."""
    step_of = {node.id: number for number, step in enumerate(drawn.steps(), start=1) for node in step}
    return {
        "schema": "rigbus.graph/1",
        "plan": drawn.name,
        "title": drawn.title,
        "tasks": [
            {
                "id": node.id,
                "class": node.task_class,
                "type": node.type,
                "step": step_of[node.id],
                "foreach": node.source or None,
                "batch_size": node.batch_size,
                "on_failure": node.on_failure or None,
            }
            for node in drawn.nodes
        ],
        "edges": [
            {"from": edge.source, "to": edge.target, "per_item": edge.per_item, "any_end": edge.any_end}
            for edge in drawn.edges
        ],
    }


def _read(source: Path) -> Graph:
    from ..plans.errors import PlanInvalid
    from ..plans.graph import graph_of
    from ..plans.parser import load_plan

    try:
        plan, _ = load_plan(source)
    except PlanInvalid as e:
        raise PlanError("the plan is invalid", [render.clean(str(fault)) for fault in e.errors]) from None
    return graph_of(plan)


def _draw(drawn: Graph, form: str) -> str:
    if form == "svg":
        from ..plans.svg import svg

        return svg(drawn)
    from ..plans.graph import as_text, mermaid

    return mermaid(drawn) if form == "mermaid" else as_text(drawn)


def _refuse_the_plan(target: Path, source: Path) -> None:
    plan_file = source / "plan.md" if source.is_dir() else source
    if target.exists() and target.samefile(plan_file):
        raise Refused(f"{target} is the plan itself; give another file, such as plan.svg")
    if target.is_dir():
        raise Refused(f"{target} is a folder; give a file in it, such as {target / 'plan.svg'}")


def _write(target: Path, text: str) -> None:
    """Whole or not at all."""
    unfinished = target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, target)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(target)) from None  # nobody knows the other name
    finally:
        unfinished.unlink(missing_ok=True)
