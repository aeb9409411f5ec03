"""The agent of ``rigbus bench``: a handler that does nothing, so that what is measured is the bus."""

from __future__ import annotations

from typing import Any

from ...agents.base import Agent, handler


class Noop(Agent):
    """Answers ``noop`` at once."""

    @handler("noop")
    def noop(self, data: Any = None) -> None:
        """Nothing."""
