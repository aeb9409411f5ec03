"""``rigbus cancel``: end a task, or all of a batch."""

from __future__ import annotations

from pathlib import Path

import click

from .common import print_json, rig_options
from .operate import find, request_for
from .reach import reach
from .render import clean


@click.command()
@rig_options
@click.option("--reason", default="", metavar="TEXT", help="Is recorded with each task.")
@click.argument("id_", metavar="ID")
def cancel(
    state: Path | None, shared: Path | None, config: Path | None, as_json: bool, reason: str, id_: str
) -> int:
    """End a task or a batch. What runs ends when its processes are dead; what waits for it is skipped."""
    with reach(state, shared, config) as rig:
        kind, full, name = find(rig, id_)
        if rig.client is None:
            return request_for(rig, "cancel", kind, full, as_json, reason=reason)
        why = reason or "cancelled by a person (rigbus cancel)"
        ids, batch = ([full], None) if kind == "task" else (None, full)
        done = rig.client.cancel(ids, batch, why)
    if as_json:
        print_json({"schema": "rigbus.cancel/1", "kind": kind, "id": full, **done})
        return 0
    parts = [f"{done['cancelled']} cancelled"] if done["cancelled"] else []
    parts += [f"{done['ending']} still running, their processes are being ended"] if done["ending"] else []
    parts += [f"{done['already']} had ended before"] if done["already"] else []
    click.echo(f"{kind} {clean(name)}: {', '.join(parts) or 'nothing to cancel'}")
    return 0
