"""``rigbus backup`` and ``rigbus restore``: a copy of a rig's state, and a rig made from it."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .common import config_option, json_option, print_json, state_option, talk, where

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@state_option
@config_option
@json_option
@click.argument("folder", type=_FOLDER)
def backup(state: Path | None, config: Path | None, as_json: bool, folder: Path) -> int:
    """Copy the state of a rig, up or down, to a new FOLDER: database, results, staged plans, samples; not the share, no logs."""
    from ..bus.store.backup import backup as run

    manifest = run(where(state, None, config), folder.absolute())
    missing = manifest["missing_results"]
    if missing:
        talk(f"warning: {len(missing)} results that the database names were not there: {missing[0]}, …")
    if manifest["samples"]:
        talk(f"warning: samples.db is damaged and was left out: {manifest['samples']}")
    if as_json:
        print_json({"folder": str(folder.absolute()), **manifest})
    else:
        size = sum(said["bytes"] for said in manifest["files"].values()) / 2**20
        click.echo(
            f"{folder}: {len(manifest['files'])} files, {size:.1f} MiB, up to event {manifest['tail']['seq']}"
        )
    return 0


@click.command()
@state_option
@config_option
@json_option
@click.argument("folder", type=_FOLDER)
def restore(state: Path | None, config: Path | None, as_json: bool, folder: Path) -> int:
    """Make a rig's state, which must be new or empty, from a backup. What ran when it was made runs again.

    All that the rig has done since then is unknown to the new one: what it had ended runs again.
    """
    from ..bus.store.backup import restore as run

    done = run(folder.absolute(), where(state, None, config))
    if as_json:
        print_json(done)
    else:
        kept = done["kept"]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(done["made_at"]))
        click.echo(
            f"{done['state']}: as of {when}, {kept['tasks']} tasks in {kept['batches']} batches, "
            f"{done['leases_back']} leases back in the queue; `rigbus up` goes on"
        )
    return 0
