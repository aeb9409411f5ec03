"""One request on its way through a model's child: what the keeper puts in, its reader takes out."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from time import monotonic
from typing import Any, Generic, TypeVar

from ..protocol import Chunk, EmbedRequest, GenerateRequest, Queued, Usage, Vector

Piece = TypeVar("Piece", Chunk, Vector)


class _Place:
    """Stands in the queue of items for the newest position, whichever that is when it is read."""


_PLACE = _Place()


class Hosted(Generic[Piece]):
    """See ``protocol.Generation`` and ``protocol.Embedding``.

    ``number`` is the request's own within its model. For the keeper: ``sent``: to a child; ``begun``: that child computes
    it; ``resends``: how many children have died before they came to it; ``cancel_by``: when the patience with a cancel ends.
    ``fingerprint`` is the same for two requests that ask for the same.
    """

    def __init__(
        self,
        number: int,
        request: GenerateRequest | EmbedRequest,
        cancel: Callable[[Hosted[Any]], None],
    ) -> None:
        self.number = number
        self.request = request
        self.sent = False
        self.begun = False
        self.resends = 0
        self.cancel_by: float | None = None
        self._items: queue.SimpleQueue[Piece | Usage | Exception | _Place] = queue.SimpleQueue()
        self._cancel = cancel
        self._cancelled = False
        self._over = False
        self._lock = threading.Lock()
        self._position: int | None = None  # guarded by the lock, as the next one
        self._told = True  # whether the reader knows it

    def __iter__(self) -> Iterator[Piece | Usage]:
        return self

    def __next__(self) -> Piece | Usage:
        while True:
            item = self._take(None)
            if item is not None and not isinstance(item, Queued):
                return item

    def poll(self, timeout_s: float) -> Piece | Queued | Usage | None:
        return self._take(timeout_s)

    def _take(self, timeout_s: float | None) -> Piece | Queued | Usage | None:
        if self._over:
            raise StopIteration
        until = None if timeout_s is None else monotonic() + timeout_s
        while True:
            try:
                item = self._items.get(timeout=None if until is None else max(0.0, until - monotonic()))
            except queue.Empty:
                return None
            if not isinstance(item, _Place):
                break
            with self._lock:
                self._told = True
                if self._position is not None:
                    return Queued(self._position)
        self._over = isinstance(item, Usage | Exception)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        if not self._cancelled and not self._over:
            self._cancelled = True
            self._cancel(self)

    # ------------------------------------------------------------ for the keeper

    @cached_property
    def fingerprint(self) -> bytes:
        asked = json.dumps(self.request.to_map(), sort_keys=True)
        return hashlib.sha256(f"{type(self.request).__name__} {asked}".encode()).digest()

    def put(self, item: Piece | Usage | Exception) -> None:
        """The next item; the last one is a Usage or an error."""
        self._items.put(item)

    def place(self, position: int | None) -> None:
        """Where it stands among those that wait; None: it does not wait any more."""
        with self._lock:
            if position == self._position:
                return
            self._position = position
            tell = self._told and position is not None
            self._told = self._told and not tell
        if tell:
            self._items.put(_PLACE)


class HostedGeneration(Hosted[Chunk]):
    """A text on its way."""


class HostedEmbedding(Hosted[Vector]):
    """Vectors on their way."""
