"""``rigbus config``: every setting and where its value comes from, and whole configurations to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..bus.errors import ConfigError, NotFound, Refused
from . import render
from .common import json_option, print_json, rig_options, talk


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


@config.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--write", is_flag=True, help="Write it to --output; it must not be there yet.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("rigbus.toml"),
    show_default=True,
    help="The file that --write makes.",
)
@json_option
def import_(files: tuple[Path, ...], write: bool, output: Path, as_json: bool) -> int:
    """Make a rigbus.toml of the earlier system's config.json files, the most believed first.

    Prints it, and says what became of each field: what has no counterpart here, and why.

    \b
    rigbus config import ~/config.json /mnt/shared/agents/config.json --write
    """
    from .config_import import imported

    made = imported([_old_config(file) for file in files])
    if made.wrong:
        raise ConfigError("nothing was imported:\n" + "\n".join(map(str, made.wrong)))
    if write:
        _write_new(output, made.toml)
    if as_json:
        notes = {name: [note._asdict() for note in getattr(made, name)] for name in ("mapped", "left")}
        written = str(output) if write else None
        print_json({"schema": "rigbus.config-import/1", "toml": made.toml, "written": written, **notes})
        return 0
    if not write:
        click.echo(made.toml, nl=False)
    for note in made.mapped:
        talk(f"taken: {render.clean(str(note))}")
    for note in made.left:
        talk(f"left: {render.clean(str(note))}")
    if write:
        talk(f"{output} is written; `rigbus doctor` tries it")
    return 0


def _old_config(file: Path) -> tuple[str, str, Any]:
    """A file's name, its folder and what stands in it."""
    from .config_import import MAX_BYTES

    try:
        if not file.is_file():
            raise NotFound(f"{file}: no such file; name the config.json of the earlier system")
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"{file}: {e.strerror}; make it readable") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{file}: is larger than {MAX_BYTES} bytes; name the config.json of the earlier system"
        )
    try:
        return str(file), str(file.absolute().parent), json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{file}: is no JSON ({e}); correct it") from None


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise Refused(f"{file} is there already; move it away, or name another --output") from None
    except OSError as e:
        raise Refused(f"{file}: {e.strerror}; name another --output") from None


def _plain(value: object) -> object:
    """As JSON has it: paths are text."""
    return json.loads(json.dumps(value, default=str))
