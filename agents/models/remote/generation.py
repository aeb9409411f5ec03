"""A request on its way to a model's server and back: a thread puts in, its reader takes out."""

from __future__ import annotations

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Generic, Protocol, TypeVar, cast

from ....bus.errors import RigbusError
from ....bus.openai.client import MAX_ANSWER_BYTES, AnswerReader, read_vectors
from ..protocol import Chunk, Finish, Usage, Vector
from .httpcall import BadServer, Call, RemoteFailed, ServerRefused

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item", Chunk, Vector)


class Retrying(Protocol):
    """Runs ``once``, again after a failure that may pass, as long as ``may_retry`` and until ``stopped``."""

    def __call__(
        self, once: Callable[[], T], stopped: threading.Event, may_retry: Callable[[], bool]
    ) -> T: ...


class Remote(ABC, Generic[Item]):
    """Items, then one ``Usage`` or an error. A cancel closes the connection and is answered at once."""

    def __init__(self, name: str, call: Callable[[], Call], retrying: Retrying) -> None:
        self.stopped = threading.Event()
        self._name, self._make_call, self._retrying = name, call, retrying
        self._items: queue.SimpleQueue[Item | Usage | Exception] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False  # its last item is in the queue
        self._over = False  # and was taken
        self._call: Call | None = None
        self._put_in = 0
        self._asked_s = monotonic()
        self._sent_s = self._first_s = 0.0

    def __iter__(self) -> Iterator[Item | Usage]:
        return self

    def __next__(self) -> Item | Usage:
        item = self._take(None)
        if item is None:
            raise StopIteration
        return item

    def poll(self, timeout_s: float) -> Item | Usage | None:
        """The next item, or None when none has come within ``timeout_s``. See ``protocol.Generation``."""
        return self._take(timeout_s)

    def _take(self, timeout_s: float | None) -> Item | Usage | None:
        if self._over:
            raise StopIteration
        try:
            item = self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._over = isinstance(item, Usage | Exception)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        """Its ``Usage`` is there when this returns; the connection ends."""
        self.stop(self._usage("cancelled"))

    def stop(self, item: Usage | Exception) -> None:
        """End it with ``item``, from any thread. What it does afterwards is not heard."""
        self._put(item)
        self.stopped.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()

    def run(self) -> None:
        """The whole of it, in a thread of the model's."""
        self._sent_s = monotonic()
        try:
            self._put(self._retrying(self._once, self.stopped, lambda: self._put_in == 0))
        except RigbusError as e:
            self._put(e)
        except Exception as e:
            log.exception("model %s: a request failed", self._name)
            self._put(RemoteFailed(f"model {self._name}: a fault of rigbus: {e!r}; see the log"))

    def _once(self) -> Usage:
        with self._make_call() as call:
            with self._lock:
                self._call = call
            if self.stopped.is_set():
                call.cancel()
            try:
                call.open()
                return self._read(call)
            finally:
                with self._lock:
                    self._call = None

    @abstractmethod
    def _read(self, call: Call) -> Usage:
        """Put in the items of the answer."""

    def _put(self, item: Item | Usage | Exception) -> None:
        with self._lock:
            if self._ended:
                return
            if isinstance(item, Usage | Exception):
                self._ended = True
            else:
                self._put_in += 1
                self._first_s = self._first_s or monotonic()
            self._items.put(item)

    def _usage(self, finish: Finish, counted: dict[str, int] | None = None) -> Usage:
        now_s = monotonic()
        sent_s = self._sent_s or now_s
        first_s = self._first_s or now_s
        return Usage(
            **(counted or {}),
            queued_s=sent_s - self._asked_s,
            prefill_s=first_s - sent_s,
            decode_s=now_s - first_s,
            finish=finish,
        )


class RemoteGeneration(Remote[Chunk]):
    """One running answer. Tokens as the server counts them, else the pieces of text: with most servers one a token."""

    def _read(self, call: Call) -> Usage:
        reader = AnswerReader(streamed=call.streamed)
        while not reader.done and (data := call.read()):
            self._said(reader.feed(data))
        self._said(reader.end())
        return self._usage(cast(Finish, reader.finish), reader.usage)

    def _said(self, texts: list[str]) -> None:
        for text in texts:
            self._put(Chunk(text))

    def _usage(self, finish: Finish, counted: dict[str, int] | None = None) -> Usage:
        return super()._usage(finish, counted or {"completion_tokens": self._put_in})


class RemoteEmbedding(Remote[Vector]):
    """``texts`` vectors on their way; they come all at once."""

    def __init__(self, name: str, call: Callable[[], Call], retrying: Retrying, texts: int) -> None:
        super().__init__(name, call, retrying)
        self._texts = texts

    def _once(self) -> Usage:
        try:
            return super()._once()
        except BadServer as e:
            if e.status != 404:
                raise
            # Not the model's end: it may well generate.
            raise ServerRefused(f"embed: {e}; does this server make embeddings?", e.status) from e

    def _read(self, call: Call) -> Usage:
        vectors, tokens = read_vectors(call.read_all(MAX_ANSWER_BYTES), self._texts)
        for index, values in enumerate(vectors):
            self._put(Vector(index, values))
        return self._usage("stop", {"prompt_tokens": tokens})
