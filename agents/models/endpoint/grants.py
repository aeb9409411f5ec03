"""Who may ask a worker's model: one secret an attempt, which ends with it."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Final

from ....bus.openai.requests import ApiError, unavailable

REQUESTS: Final = 32  #: of one attempt at once


class Grant:
    """One attempt's right to ask; ``ends`` are the ways to end its open requests."""

    def __init__(self, token_id: str, digest: bytes) -> None:
        self.token_id = token_id
        self.digest = digest
        self.ends: dict[object, Callable[[], None]] = {}


class Grants:
    """Every method may be called from any thread. Of a secret only its digest is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grants: list[Grant] = []

    def grant(self, token_id: str) -> str:
        """A new secret, of 43 characters that need no quoting in a URL or a shell."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            self._grants.append(Grant(token_id, _digest(secret)))
        return secret

    def revoke(self, secret: str) -> None:
        """Its open requests end now, later ones are refused. Harmless twice."""
        with self._lock:
            grant = self._find(secret)
            ends = [] if grant is None else list(grant.ends.values())
            if grant is not None:
                self._grants.remove(grant)
        for end in ends:
            end()

    @contextmanager
    def admitted(self, secret: str, end: Callable[[], None]) -> Iterator[Grant]:
        """A request of the attempt with this secret; ``end`` is called, in any thread, when it is revoked meanwhile.

        Raises:
            ApiError: 401, nobody has this secret; 429, the attempt has too many open requests.
        """
        key = object()
        with self._lock:
            grant = self._find(secret)
            if grant is None:
                raise ApiError(
                    "no such API key, or its task has ended; use OPENAI_API_KEY of the task's environment",
                    status=401,
                    code="invalid_api_key",
                )
            if len(grant.ends) >= REQUESTS:
                raise unavailable(
                    f"{REQUESTS} requests of task {grant.token_id} are open; wait for one to end",
                    status=429,
                    code="rate_limit_exceeded",
                )
            grant.ends[key] = end
        try:
            yield grant
        finally:
            with self._lock:
                grant.ends.pop(key, None)

    def _find(self, secret: str) -> Grant | None:
        """Compares with every grant, in a time that says nothing about any of them. With the lock held."""
        digest = _digest(secret)
        found = None
        for grant in self._grants:
            if hmac.compare_digest(grant.digest, digest):
                found = grant
        return found


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "replace")).digest()
