"""``rigbus retry``: run again what has ended badly."""

from __future__ import annotations

from pathlib import Path

import click

from ..bus.errors import RigbusError
from .common import print_json, rig_options
from .file_rows import whole
from .operate import answer_option, deed, find, only_asked
from .reach import reach
from .render import clean


@click.command()
@rig_options
@answer_option
@click.argument("id_", metavar="ID")
def retry(
    state: Path | None, shared: Path | None, config: Path | None, as_json: bool, answer_s: float, id_: str
) -> int:
    """Run a task, or the failed ones of a batch, again; what was skipped because of them waits again too."""
    with reach(state, shared, config) as rig:
        kind, full, name = find(rig, id_)
        done, places = deed(
            rig, "retry", kind, full, answer_s, lambda bus, ids, batch: bus.requeue(ids, batch)
        )
    if done is None:
        return only_asked("retry", places, as_json)
    if as_json:
        print_json({"schema": "rigbus.retry/1", "kind": kind, "id": full, **done, **places})
    requeued, revived = whole(done.get("requeued")), whole(done.get("revived"))
    if not requeued:
        raise RigbusError(
            f"{kind} {clean(name)}: nothing to run again; only dead, expired or cancelled tasks can be retried"
        )
    if not as_json:
        again = _count(requeued, "task runs", "tasks run") + " again"
        if revived:
            again += ", " + _count(revived, "that was skipped waits", "that were skipped wait") + " again"
        click.echo(f"{kind} {clean(name)}: {again}" if kind == "batch" else f"task {clean(name)} runs again")
    return 0


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
