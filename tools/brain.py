"""``rigbus brain``: the brain alone, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from .common import config_option, process_log, settings_of, state_option, where


@click.command()
@state_option
@config_option
def brain(state: Path | None, config: Path | None) -> int:
    """Run the brain alone: it turns plans into tasks. A second one waits until the first has gone."""
    from ..agents.brain.service import main

    process_log("brain")
    return main(where(state, None, config).state, settings_of(config))
