"""One request on its way through a model's child: what the keeper puts in, its reader takes out."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

from .protocol import Chunk, GenerateRequest, Usage


class HostedGeneration:
    """See ``model.Generation``. ``sent``: to a child; ``begun``: it is the one that the child works on.

    ``number`` is the request's own within its model; ``cancel_by`` is when the keeper's patience with a cancel ends.
    """

    def __init__(
        self, number: int, request: GenerateRequest, cancel: Callable[[HostedGeneration], None]
    ) -> None:
        self.number = number
        self.request = request
        self.sent = False
        self.begun = False
        self.cancel_by: float | None = None
        self._items: queue.SimpleQueue[Chunk | Usage | Exception] = queue.SimpleQueue()
        self._cancel = cancel
        self._cancelled = False
        self._over = False

    def __iter__(self) -> Iterator[Chunk | Usage]:
        return self

    def __next__(self) -> Chunk | Usage:
        item = self._take(None)
        if item is None:
            raise StopIteration
        return item

    def poll(self, timeout_s: float) -> Chunk | Usage | None:
        return self._take(timeout_s)

    def _take(self, timeout_s: float | None) -> Chunk | Usage | None:
        if self._over:
            raise StopIteration
        try:
            item = self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._over = not isinstance(item, Chunk)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        if not self._cancelled and not self._over:
            self._cancelled = True
            self._cancel(self)

    def put(self, item: Chunk | Usage | Exception) -> None:
        """For the keeper."""
        self._items.put(item)
