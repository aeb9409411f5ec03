"""``rigbus schema export``: the JSON Schemas of what the rig publishes."""

from __future__ import annotations

from pathlib import Path

import click

from .common import json_option, print_json


@click.group()
def schema() -> None:
    """The JSON Schemas (2020-12) of what the rig writes."""


@schema.command()
@json_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="One file a schema into DIR.",
)
def export(as_json: bool, out: Path | None) -> int:
    """Print all schemas as one object by name, or write each into a file of DIR."""
    from ..bus.telemetry import export_schemas, write_schemas

    if out is None:
        print_json(export_schemas(), pretty=not as_json)
        return 0
    files = [str(file) for file in write_schemas(out)]
    if as_json:
        print_json({"schema": "rigbus.schema.export/1", "files": files})
    else:
        click.echo("\n".join(files))
    return 0
