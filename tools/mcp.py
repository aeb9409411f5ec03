"""``rigbus mcp``: the shared folder as an MCP server over stdio, for any client that plans, watches and mends."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from ..bus.errors import ConfigError
from .common import config_option, shared_option, state_option


@click.command()
@state_option
@shared_option
@config_option
@click.option("--read-only", is_flag=True, help="Offer only the tools that change nothing.")
def mcp(state: Path | None, shared: Path | None, config: Path | None, read_only: bool) -> int:
    """An MCP server on stdin and stdout: plans, batches, logs and escalations of the shared folder.

    A client starts it, such as `claude mcp add rigbus -- rigbus mcp --shared DIR`. It needs the extra: pip install
    'rigbus[mcp]'. It works while the rig is off, and says how old the news are.
    """
    if find_spec("mcp") is None or find_spec("mcp.server.mcpserver") is None:
        raise ConfigError("`rigbus mcp` needs the package mcp, version 2: pip install 'rigbus[mcp]'")
    from .mcp_desk import Desk
    from .mcp_server import serve
    from .reach import rig_folders

    serve(Desk(rig_folders(state, shared, config)), read_only=read_only)
    return 0
