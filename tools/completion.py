"""``rigbus completion``: the script that teaches a shell the verbs and their options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ..bus.errors import ConfigError

_HOW = {
    "bash": 'eval "$(rigbus completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(rigbus completion zsh)"  in ~/.zshrc',
    "fish": "rigbus completion fish > ~/.config/fish/completions/rigbus.fish",
}


@click.command(epilog="Use it: " + " · ".join(_HOW.values()))
@click.argument("shell", type=click.Choice(tuple(_HOW)))
def completion(shell: str) -> int:
    """Print the completion script of a shell."""
    from .cli import cli

    found = get_completion_class(shell)
    if found is None:
        raise ConfigError(f"no completion for {shell}; choose one of {', '.join(_HOW)}")
    click.echo(found(cli, {}, "rigbus", "_RIGBUS_COMPLETE").source())
    return 0
