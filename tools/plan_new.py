"""``rigbus plan new``: a small plan that runs, to begin from."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from pathlib import Path
from typing import Final
from uuid import uuid4

import click

from ..bus.errors import ConfigError, Refused
from .common import json_option, print_json, talk

STARTERS: Final = Path(__file__).resolve().parent.parent / "plans" / "examples"
FORMS: Final = ("tasks", "workflow", "foreach")
_THERE: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR})


@click.command()
@json_option
@click.option(
    "--form",
    type=click.Choice(FORMS),
    default="tasks",
    show_default=True,
    help="Tasks with their fields; scripts and a workflow; one task for each element of a list.",
)
@click.argument("folder", metavar="DIR")
def new(as_json: bool, form: str, folder: str) -> int:
    """Write a small plan that runs into the new folder DIR.

    The folder's name is the plan's name. Nothing is ever overwritten: 8 where DIR is there.
    """
    target = Path(folder).expanduser()
    name = _name_of(target)
    files = write_plan(target, name, form)
    if as_json:
        print_json({"schema": "rigbus.plan.new/1", "plan": name, "path": str(target), "files": files})
        return 0
    click.echo("\n".join(str(target / file) for file in files))
    shown = shlex.quote(str(target))
    talk(f"check it with `rigbus plan lint {shown}`, run it with `rigbus submit {shown} --wait`")
    return 0


def write_plan(target: Path, name: str, form: str) -> list[str]:
    """Write the plan whole or not at all; its files, relative to ``target``.

    Raises:
        Refused: something is there already.  ConfigError: the folder above is not there.
    """
    if not target.parent.is_dir():
        raise ConfigError(f"the folder {target.parent} is not there; make it: mkdir -p {target.parent}")
    unfinished = target.parent / f".{name}.{uuid4().hex[:8]}.tmp"
    try:
        shutil.copytree(
            STARTERS / f"starter_{form}", unfinished, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
        plan = unfinished / "plan.md"
        text = plan.read_text(encoding="utf-8").replace(f"# Plan: starter_{form}", f"# Plan: {name}", 1)
        plan.write_text(text, encoding="utf-8")
        try:
            os.rename(unfinished, target)  # fails where a file or a folder with something in it is there
        except OSError as e:
            if e.errno in _THERE:
                raise Refused(f"{target} is there already; give a new folder") from None
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


def _name_of(target: Path) -> str:
    from ..plans.keys import BadName, plan_name

    try:
        return plan_name(target.resolve().name)
    except BadName as e:
        raise ConfigError(str(e)) from None
