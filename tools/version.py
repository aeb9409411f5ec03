"""``rigbus version``: what runs here, for a report of a fault."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import click

from .. import __version__
from .common import json_option, print_json

LIBRARIES = ("pyzmq", "msgpack", "pydantic", "click", "rich", "markdown-it-py", "llama-cpp-python")


def _version_of(name: str) -> str | None:
    try:
        return installed(name)
    except PackageNotFoundError:
        return None


@click.command()
@json_option
def version(as_json: bool) -> None:
    """The version of rigbus and of what it runs on."""
    libraries = {name: _version_of(name) for name in LIBRARIES}
    if as_json:
        print_json(
            {
                "schema": "rigbus.version/1",
                "version": __version__,
                "protocol": "1.0",
                "python": platform.python_version(),
                "platform": platform.platform(),
                "libraries": libraries,
            }
        )
        return
    click.echo(f"rigbus {__version__}, protocol 1.0")
    click.echo(f"Python {platform.python_version()} on {platform.platform()}")
    click.echo(", ".join(f"{name} {found or 'not installed'}" for name, found in libraries.items()))
