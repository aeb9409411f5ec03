"""``rigbus batch list|show``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from . import render
from .common import print_json, rig_options
from .files import Folder
from .reach import Reach, reach
from .rows import batch_object
from .status import batch_table


@click.group()
def batch() -> None:
    """Runs of plans, and what clients submitted together."""


@batch.command("list")
@rig_options
@click.option("--all", "every", is_flag=True, help="Also old ones (default: live ones and the last 20).")
def list_(state: Path | None, shared: Path | None, config: Path | None, as_json: bool, every: bool) -> int:
    """The live batches and the last ended ones."""
    with reach(state, shared, config) as rig:
        if rig.client is not None:
            found = rig.client.query("batches", all=every)["batches"]
        else:
            found = Folder(rig.paths.shared).batches(None if every else 20)
    rows = [batch_object(row) for row in found]
    if as_json:
        print_json({"schema": "rigbus.batches/1", "batches": rows})
    elif rows:
        click.echo("\n".join(batch_table(rows, time.time())))
    else:
        click.echo("no batches yet: `rigbus submit PLAN`")
    return 0


@batch.command()
@rig_options
@click.argument("id_", metavar="ID")
def show(state: Path | None, shared: Path | None, config: Path | None, as_json: bool, id_: str) -> int:
    """One batch with its tasks.

    ID may be shortened to 6 or more characters.
    """
    with reach(state, shared, config) as rig:
        row, tasks = _read(rig, id_)
    if as_json:
        shown = batch_object(row)
        counts = shown.pop("tasks")
        shown["revised"] = row.get("revised")
        print_json({"schema": "rigbus.batch.show/1", **shown, "counts": counts, "tasks": tasks})
        return 0
    click.echo("\n".join(batch_table([batch_object(row)], time.time())))
    if (row.get("revision") or 1) > 1:
        said = row.get("revised") or {}
        by = f" by {said['by']}" if said.get("by") else ""
        why = f": {said['reason']}" if said.get("reason") else ""
        unplanned = "; the brain plans it" if row.get("revising") else ""
        click.echo(render.clean(f"revision {row['revision']} of its plan{by}{why}{unplanned}"))
    if row.get("error"):
        click.echo(f"error: {render.clean(str(row['error']))}")
    if tasks:
        click.echo("")
        click.echo("\n".join(task_table(tasks)))
    return 0


def _read(rig: Reach, id_: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if rig.client is None:
        folder = Folder(rig.paths.shared)
        row = folder.batch(id_)
        return row, folder.tasks(row["id"])
    from . import ask

    row = rig.client.query("batch", id=id_)
    return row, ask.batch_tasks(rig.client, row["id"])


def task_table(tasks: list[dict[str, Any]]) -> list[str]:
    """One line a task."""
    head = ("TASK", "NAME", "STATE", "ATTEMPTS", "WORKER", "TOOK", "ERROR")
    rows = []
    for t in tasks:
        took = t["ended_at"] - t["started_at"] if t["ended_at"] and t["started_at"] else None
        shown = (
            t["id"][:8],
            t["name"],
            t["state"],
            max((a["n"] for a in t["attempts"]), default=0),
            t["worker"],
            render.duration(took),
            t["error"],
        )
        rows.append(shown)
    return render.table(head, rows, state=2)
