"""``rigbus repair``: a database that was refused becomes one to go on with, and what was lost is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ..bus.errors import NotFound
from .common import config_option, json_option, print_json, state_option, where


@click.command()
@state_option
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Say what would be lost; change nothing.")
def repair(state: Path | None, config: Path | None, as_json: bool, dry_run: bool) -> int:
    """Repair the database of a rig that is down. The damaged files are kept; nothing is done in place.

    A batch that misses tasks ends failed, with the reason; `rigbus retry` runs what is left of it.
    """
    from ..bus.broker.premises import lock
    from ..bus.store.repairing import repair as run

    paths = where(state, None, config)
    if not paths.state.is_dir():
        raise NotFound(f"{paths.state}: no such state folder; name the right one with --state DIR")
    held = lock(paths.state / "broker.lock")
    try:
        report = run(paths.state, paths.db, dry_run=dry_run)
    finally:
        os.close(held)
    if as_json:
        print_json(report)
    else:
        click.echo("\n".join(_lines(report)))
    return 0


def _lines(report: dict[str, Any]) -> list[str]:
    if not report["needed"]:
        return [f"{report['state']}: nothing to repair"]
    from .render import clean

    lines = [f"found: {problem}" for problem in report["problems"]]
    commits = report["lost_commits"]
    if commits:
        first, last = report["lost_events"]
        lines.append(
            f"lost: the last {commits} commits (event {first} to {last}): what was submitted in them is gone, what was "
            "recorded in them runs again"
        )
    elif commits is None:
        lines.append("lost: nobody knows how many of the last commits")
    for batch in report["batches"]:
        name = clean(f"{batch['name']} " if batch["name"] else "") + clean(batch["id"])
        row = ", and its own row with its plan" if batch["row_lost"] else ""
        lines.append(
            f"lost: {batch['lost_tasks']} tasks of batch {name}{row}; {batch['cancelled']} of the others cancelled"
        )
    if report["broken_tables"]:
        tables = ", ".join(report["broken_tables"])
        lines.append(f"lost: a part of {tables}; what no event and no other row names is gone without a name")
    if report["unreadable_rows"]:
        lines.append(f"lost: {report['unreadable_rows']} rows that cannot be read")
    kept = report["kept"]
    lines.append(
        f"kept: {kept['tasks']} tasks in {kept['batches']} batches, {kept['facts']} facts; {report['leases_back']} leases "
        "are back in the queue"
    )
    if report["repaired"]:
        lines.append(f"the damaged files are kept as {report['damaged']}*; `rigbus up` goes on")
    else:
        lines.append("nothing was changed (--dry-run)")
    return lines
