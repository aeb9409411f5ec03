"""``rigbus cancel``: end a task, or all of a batch."""

from __future__ import annotations

from pathlib import Path

import click

from .common import print_json, rig_options
from .file_rows import whole
from .operate import answer_option, deed, find, only_asked
from .reach import reach
from .render import clean


@click.command()
@rig_options
@answer_option
@click.option("--reason", default="", metavar="TEXT", help="Is recorded with each task.")
@click.argument("id_", metavar="ID")
def cancel(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    answer_s: float,
    reason: str,
    id_: str,
) -> int:
    """End a task or a batch. What runs ends when its processes are dead; what waits for it is skipped."""
    with reach(state, shared, config) as rig:
        kind, full, name = find(rig, id_)
        why = reason or "cancelled by a person (rigbus cancel)"
        done, places = deed(
            rig,
            "cancel",
            kind,
            full,
            answer_s,
            lambda bus, ids, batch: bus.cancel(ids, batch, why),
            reason=reason,
        )
    if done is None:
        return only_asked("cancel", places, as_json)
    if as_json:
        print_json({"schema": "rigbus.cancel/1", "kind": kind, "id": full, **done, **places})
        return 0
    cancelled, ending, already = (whole(done.get(key)) for key in ("cancelled", "ending", "already"))
    parts = [f"{cancelled} cancelled"] if cancelled else []
    parts += [f"{ending} still running, their processes are being ended"] if ending else []
    parts += [f"{already} had ended before"] if already else []
    click.echo(f"{kind} {clean(name)}: {', '.join(parts) or 'nothing to cancel'}")
    return 0
