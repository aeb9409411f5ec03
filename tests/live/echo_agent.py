"""An agent that needs no shared folder."""

from __future__ import annotations

from rigbus import Agent, handler


class Echo(Agent):
    """Says it again."""

    @handler("echo")
    def echo(self, text: str) -> dict[str, str]:
        """The same text."""
        return {"text": text}
