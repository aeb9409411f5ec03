"""``rigbus config``: every setting and where its value comes from, and whole configurations to begin with."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..bus.errors import NotFound
from . import render
from .common import print_json, rig_options, talk


@click.group()
def config() -> None:
    """The settings: flags, then RIGBUS_* variables, then configuration files, then defaults."""


@config.command()
@rig_options
def show(state: Path | None, shared: Path | None, config: Path | None, as_json: bool) -> int:
    """Every setting with its value and its origin."""
    from ..bus.config.settings import load
    from ..bus.paths import config_files

    loaded = load({"state": state, "shared": shared}, config)
    rows = loaded.show()
    if as_json:
        settings = [{"name": r.name, "value": _plain(r.value), "origin": r.origin} for r in rows]
        warnings = list(loaded.warnings)
        print_json({"schema": "rigbus.config/1", "settings": settings, "warnings": warnings})
        return 0
    shown = [(r.name, json.dumps(_plain(r.value), ensure_ascii=False), r.origin) for r in rows]
    click.echo("\n".join(render.table(("SETTING", "VALUE", "ORIGIN"), shown)))
    for warning in loaded.warnings:
        talk(f"warning: {warning}")
    if config is None:
        talk("files, the strongest first: " + ", ".join(str(file) for file in config_files()))
    return 0


@config.command()
@click.argument("name", required=False)
def profile(name: str | None) -> int:
    """Print a configuration for a known rig, to be edited; without NAME the names of all.

    \b
    rigbus config profile seed-5x1060 > rigbus.toml
    """
    from ..bus.paths import profiles

    found = profiles()
    if name is None:
        for each in sorted(found):
            click.echo(each)
        return 0
    if name not in found:
        raise NotFound(f"there is no profile {name!r}; there are: {', '.join(sorted(found))}")
    click.echo(found[name].read_text(encoding="utf-8"), nl=False)
    return 0


def _plain(value: object) -> object:
    """As JSON has it: paths are text."""
    return json.loads(json.dumps(value, default=str))
