"""``rigbus drain``: no new work; what runs is finished."""

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
def drain(
    state: Path | None, shared: Path | None, config: Path | None, as_json: bool, answer_s: float, worker: str
) -> int:
    """No new work for a worker (or all); what runs there is finished."""
    with reach(state, shared, config) as rig:
        return worker_verb(
            rig, "drain", worker, as_json, f"draining; `rigbus resume {worker}` gives it work again", answer_s
        )
