"""``rigbus bridge``: the bridge alone, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from .common import config_option, process_log, settings_of, shared_option, state_option, where


@click.command()
@state_option
@shared_option
@config_option
def bridge(state: Path | None, shared: Path | None, config: Path | None) -> int:
    """Run the bridge alone: it takes plans from the shared folder and mirrors the rig into it."""
    from ..bridge.folder.service import main

    settings = settings_of(config)
    folder = settings["bridge"]
    process_log("bridge", settings["logs"]["level"])
    return main(
        where(state, shared, config),
        settle_s=settings["settle_s"],
        path_map=folder["path_map"],
        reconcile_s=folder["reconcile_s"],
        archive_keep=folder["archive_keep"],
        archive_after_s=folder["archive_after_s"],
    )
