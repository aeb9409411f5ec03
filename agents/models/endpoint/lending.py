"""A model lent to the commands of its worker: each attempt of class ``llm`` gets its own way to it, until it ends."""

from __future__ import annotations

from collections.abc import Mapping

from ....bus.wire import Token
from ...worker.events import Lease
from .server import Endpoint, environment


class Lender:
    """The loop's thread only. ``endpoint`` serves from :meth:`start` to :meth:`close`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._secrets: dict[Token, str] = {}

    def start(self) -> None:
        """Listen."""
        self.endpoint.start()

    def close(self) -> None:
        """End every request."""
        self.endpoint.close()

    def lend(self, lease: Lease) -> Mapping[str, str]:
        """The variables by which the command of this lease finds the model; none where it is not of class ``llm``."""
        model = self.endpoint.model
        if lease.cls != "llm" or model is None:
            return {}
        secret = self._secrets[lease.token] = self.endpoint.grant(lease.id)
        return environment(self.endpoint, secret, model.name)

    def over(self, lease: Lease) -> None:
        """The attempt has ended: its requests end, and its secret is void."""
        secret = self._secrets.pop(lease.token, None)
        if secret is not None:
            self.endpoint.revoke(secret)
