"""``rigbus pause``: no new work until `resume`, over restarts."""

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
def pause(
    state: Path | None, shared: Path | None, config: Path | None, as_json: bool, answer_s: float, worker: str
) -> int:
    """Give a worker (or all) no new work until `resume`; what runs goes on. It outlives restarts."""
    with reach(state, shared, config) as rig:
        return worker_verb(
            rig, "pause", worker, as_json, f"paused; `rigbus resume {worker}` lets it go on", answer_s
        )
