"""``rigbus resume``: the end of a pause or a drain."""

from __future__ import annotations

from pathlib import Path

import click

from .common import rig_options
from .operate import answer_option, worker_verb
from .reach import reach


@click.command()
@rig_options
@answer_option
@click.argument("worker", metavar="WORKER|all")
def resume(
    state: Path | None, shared: Path | None, config: Path | None, as_json: bool, answer_s: float, worker: str
) -> int:
    """Give a worker (or all) work again."""
    with reach(state, shared, config) as rig:
        return worker_verb(rig, "resume", worker, as_json, "gets work again", answer_s)
