"""``rigbus plan lint|graph|new``: for those who write plans. None of them needs a rig."""

from __future__ import annotations

import click

from .plan_graph import graph
from .plan_lint import lint
from .plan_new import new


@click.group()
def plan() -> None:
    """Write plans: check one, draw one, begin one. rigbus/plans/PLAN_FORMAT.md describes the format."""


plan.add_command(lint)
plan.add_command(graph)
plan.add_command(new)
