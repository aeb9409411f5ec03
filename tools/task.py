"""``rigbus task list|show``."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from . import render
from .batch import task_table
from .common import print_json, rig_options, talk
from .files import Folder
from .reach import Reach, reach
from .rows import STATES, evaluation_text, task_object

_OUTPUT_LINES: Final = 40


@click.group()
def task() -> None:
    """Single tasks."""


@task.command("list")
@rig_options
@click.option("--batch", "batch_id", metavar="ID", help="Only those of this batch.")
@click.option(
    "--state-is",
    "states",
    multiple=True,
    type=click.Choice(STATES),
    help="Only those in this state (repeatable).",
)
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many."
)
def list_(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    batch_id: str | None,
    states: tuple[str, ...],
    limit: int,
) -> int:
    """Tasks, oldest first."""
    with reach(state, shared, config) as rig:
        found = _list(rig, batch_id, states, limit + 1)
    rows, more = found[:limit], len(found) > limit
    if as_json:
        print_json({"schema": "rigbus.tasks/1", "tasks": rows, "more": more})
    elif rows:
        click.echo("\n".join(task_table(rows)))
    else:
        click.echo("no such tasks")
    if more:
        talk(f"there are more: --limit, --batch ID or --state-is STATE (shown: {limit})")
    return 0


def _list(rig: Reach, batch_id: str | None, states: tuple[str, ...], limit: int) -> list[dict[str, Any]]:
    if rig.client is None:
        folder = Folder(rig.paths.shared)
        id_ = folder.batch(batch_id)["id"] if batch_id else None
        return [t for t in folder.tasks(id_) if not states or t["state"] in states][:limit]
    from . import ask

    return [task_object(row, None) for row, _ in islice(ask.task_rows(rig.client, batch_id, states), limit)]


@task.command()
@rig_options
@click.argument("id_", metavar="ID")
def show(state: Path | None, shared: Path | None, config: Path | None, as_json: bool, id_: str) -> int:
    """One task with its attempts and result.

    ID may be shortened, or be BATCH/NAME.
    """
    with reach(state, shared, config) as rig:
        shown = task_of(rig, id_)
    if as_json:
        print_json({"schema": "rigbus.task.show/1", **shown})
    else:
        click.echo("\n".join(lines_of(shown)))
    return 0


def task_of(rig: Reach, ref: str) -> dict[str, Any]:
    """One task, over the bus or from the folder.

    Raises:
        NotFound: there is none, or several.
    """
    if rig.client is None:
        return Folder(rig.paths.shared).task(ref)
    from . import ask

    return ask.task(rig.client, ref)


def lines_of(t: dict[str, Any]) -> list[str]:
    """A task for people."""
    lines = [
        f"{render.clean(t['name'])}  {render.colour(t['state'])}",
        f"  id       {t['id']}",
        f"  batch    {t['batch']}",
    ]
    kind = f"{t['type']}, class {t['class'] or 'any'}" + (f", pool {t['pool']}" if t["pool"] else "")
    lines.append(f"  type     {render.clean(kind)}")
    if t.get("fix_applied"):
        lines.append(f"  said     {render.clean(str(t['fix_applied']))}")
    if t["command"]:
        lines.append(f"  command  {render.clean(str(t['command']))}")
    if t["depends_on"]:
        lines.append(f"  after    {render.clean(', '.join(map(str, t['depends_on'])))}")
    if t["error"]:
        lines.append(f"  error    {render.clean(str(t['error']))}")
    if t.get("evaluation"):
        lines.append(f"  review   {render.clean(evaluation_text(t['evaluation']))}")
    if t["attempts"]:
        rows = [
            (a["n"], a["worker"], render.clock(a["started_at"]), _took(a), a["outcome"], a["error"])
            for a in t["attempts"]
        ]
        lines += [
            "",
            *render.table(("ATTEMPT", "WORKER", "STARTED", "TOOK", "OUTCOME", "ERROR"), rows, state=4),
        ]
    return lines + _result_lines(t)


def _took(attempt: dict[str, Any]) -> str:
    if not attempt["ended_at"] or not attempt["started_at"]:
        return "-"
    return render.duration(attempt["ended_at"] - attempt["started_at"])


def _result_lines(t: dict[str, Any]) -> list[str]:
    if t.get("ref"):
        return ["", f"result: {t['ref'].get('bytes')} bytes, sha256 {t['ref'].get('sha256')}"]
    result = t["result"]
    if result is None:
        return []
    if isinstance(result, dict) and isinstance(result.get("output"), str):
        exit_ = result.get("exit", result.get("return_code"))
        head = "output" + (f" (exit {exit_})" if exit_ is not None else "")
        rows = result["output"].rstrip("\n").split("\n")
        cut = [f"  … {len(rows) - _OUTPUT_LINES} lines before; `rigbus logs {t['id'][:8]}` shows all"]
        return [
            "",
            f"{head}:",
            *(cut if len(rows) > _OUTPUT_LINES else []),
            *(f"  {render.clean_lines(row)}" for row in rows[-_OUTPUT_LINES:]),
        ]
    text = json.dumps(result, ensure_ascii=False, indent=1, default=str)
    return ["", "result:", *(f"  {render.clean_lines(row)}" for row in text.split("\n"))]
