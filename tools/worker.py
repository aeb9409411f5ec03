"""``rigbus worker``: one worker, or one agent, in the foreground."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .common import attempt_words, config_option, settings_of, state_option, thermal_text, where

#: The supervisor of a rig watches its workers itself; an agent alone gets a small parent that does.
SUPERVISED = "RIGBUS_ALIVE_FD"


@click.command()
@state_option
@config_option
@click.option(
    "--agent",
    metavar="MODULE:CLASS",
    help="Run this agent's handlers instead of commands; a file.py:Class too.",
)
@click.option("--name", metavar="NAME", help="Its name, unique in the rig.")
@click.option(
    "--slots", type=click.IntRange(1, 256), help="How many tasks at once (default: 1, or the agent's own)."
)
@click.option(
    "--class", "classes", multiple=True, metavar="CLASS", help="A task class that it serves (cpu, script)."
)
@click.option("--need", "needs", multiple=True, metavar="NEED", help="A capability that it has.")
@click.option("--pool", "pools", multiple=True, metavar="POOL", help="A pool that it serves.")
@click.option("--gpu", metavar="N", help="CUDA_VISIBLE_DEVICES of its commands.")
def worker(
    state: Path | None,
    config: Path | None,
    agent: str | None,
    name: str | None,
    slots: int | None,
    classes: tuple[str, ...],
    needs: tuple[str, ...],
    pools: tuple[str, ...],
    gpu: str | None,
) -> int:
    """Run one worker alone. Ctrl-C lets running tasks finish (20 s), a second one ends them."""
    words = ["--state", str(where(state, None, config).state)]
    for option, value in (("--name", name), ("--slots", slots)):
        words += [option, str(value)] if value is not None else []
    settings = settings_of(config)
    words += ["--thermal", thermal_text(settings)]
    if agent is not None and SUPERVISED not in os.environ:
        from ..agents.worker.parent import run_alone

        words += ["--log-bytes", str(settings["logs"]["task_bytes"])]
        return run_alone(agent, words, program="rigbus worker")
    from ..agents.worker.main import main

    if agent is not None:
        words += ["--agent", agent]
    for option, values in (("--class", classes), ("--need", needs), ("--pool", pools)):
        words += [word for value in values for word in (option, value)]
    words += attempt_words(settings)
    if agent is None:
        words += [word for value in settings["env_pass"] for word in ("--env-pass", value)]
    if gpu is not None:
        words += ["--gpu", gpu]
    main(words)
    return 0
