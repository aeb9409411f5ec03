"""A model behind any OpenAI-compatible URL (Ollama, llama-server, vLLM, a cloud), as a ``Model``.

A request has a thread while it runs, at most ``parallel`` of them; who asked reads a queue. Nothing is loaded or unloaded
here: ready means that the server has the model and answers.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Final, Literal, TypeVar

from ....bus.errors import DefinitionError, RigbusError, WaitTimeout
from ....bus.openai.client import (
    MAX_ANSWER_BYTES,
    BadAnswer,
    chat_body,
    embeddings_body,
    read_models,
)
from ..protocol import (
    PARALLEL,
    EmbedRequest,
    EmbedResult,
    GenerateRequest,
    ModelClosed,
    ModelInfo,
    ModelState,
    gather,
)
from .generation import RemoteEmbedding, RemoteGeneration
from .httpcall import ApiKey, BadServer, Call, RemoteFailed, Server, ServerRefused

__all__ = ["BadServer", "RemoteFailed", "RemoteModel", "RemotePatience", "ServerRefused"]

log = logging.getLogger(__name__)

LimitField = Literal["max_tokens", "max_completion_tokens"]
Request = RemoteGeneration | RemoteEmbedding
T = TypeVar("T")
_SHOWN_MODELS: Final = 8
_JOIN_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePatience:
    """How long, in seconds, and how often.

    ``connect_s``: for a connection; ``silent_s``: without a byte from the server, while it reads the prompt, too;
    ``retries``: of one request, before its first token only, ``backoff_s`` doubled each time (or as the server asks).
    """

    connect_s: float = 10.0
    silent_s: float = 120.0
    retries: int = 4
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0

    def delay_s(self, failures: int) -> float:
        """After so many failures in a row, at least one."""
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** min(failures - 1, 16))


class RemoteModel:
    """The model ``model`` of the server at ``url`` (``…/v1``; without a path, ``/v1`` is meant). See ``protocol.Model``.

    ``name``: ours for it, by default the server's. ``ctx``: tokens that it holds, where they are known. ``parallel``:
    requests at once, the others wait here. ``limit_field``: a few clouds take only ``max_completion_tokens``. A schema is
    asked for as ``response_format``: whether it holds is the server's word.

    Raises:
        BadServer: the URL is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        name: str = "",
        key_env: str = "",
        key_file: Path | None = None,
        ctx: int = 0,
        parallel: int = PARALLEL,
        limit_field: LimitField = "max_tokens",
        patience: RemotePatience | None = None,
    ) -> None:
        self.name = name or model
        self.remote_name = model
        self._patience = patience or RemotePatience()
        self._server = Server(
            url,
            ApiKey(key_env, key_file),
            connect_s=self._patience.connect_s,
            silent_s=self._patience.silent_s,
        )
        self._ctx, self._parallel, self._limit_field = ctx, parallel, limit_field
        self._changed = threading.Condition()
        self._state = ModelState("new")
        self._info: ModelInfo | None = None
        self._error: RigbusError | None = None  # why it is not ready
        self._failures = 0  # of the probe, ever
        self._probing: threading.Thread | None = None
        self._closing = threading.Event()
        self._waiting: deque[Request] = deque()
        self._running: set[Request] = set()
        self._threads: set[threading.Thread] = set()
        self._calls: set[Call] = set()  # of the probe

    @property
    def ready(self) -> bool:
        return self._state.phase == "ready"

    @property
    def state(self) -> ModelState:
        return self._state

    # ------------------------------------------------------------ is it there

    def start(self) -> None:
        with self._changed:
            if self._state.phase in ("new", "failed"):
                self._state = ModelState("loading")
                self._probe_soon()

    def load(self, timeout_s: float | None = None) -> ModelInfo:
        """Wait until the server has answered for the model.

        Raises:
            BadServer, RemoteFailed (it is asked again meanwhile), WaitTimeout, ModelClosed.
        """
        with self._changed:
            former = self._failures
        self.start()
        with self._changed:
            settled = self._changed.wait_for(
                lambda: self._state.phase in ("ready", "failed", "closed") or self._failures > former,
                timeout_s,
            )
            if not settled:
                raise WaitTimeout(f"model {self.name}: no word from {self._server.url} within {timeout_s} s")
            if self._state.phase == "ready" and self._info is not None:
                return self._info
            raise self._closed() if self._state.phase == "closed" else self._error or self._closed()

    def _probe_soon(self) -> None:
        """With the lock held."""
        if self._probing is None and not self._closing.is_set():
            self._probing = threading.Thread(target=self._probe, name=f"probe-{self.name}", daemon=True)
            self._probing.start()

    def _probe(self) -> None:
        began_s = monotonic()
        for failures in count(1):
            error: RigbusError | None = None
            try:
                self._ask_for_it()
            except RigbusError as e:
                error = e
            if error is None:
                self._is_ready(monotonic() - began_s)
            elif isinstance(error, DefinitionError):
                self._has_failed(error)
            else:
                self._is_away(error, self._patience.delay_s(failures))
            with self._changed:
                if self._state.phase != "restarting" or self._closing.is_set():
                    self._probing = None
                    return
            self._closing.wait(self._patience.delay_s(failures))

    def _ask_for_it(self) -> None:
        """The server's list names the model; where there is no such list, or not this name, one token proves it."""
        try:
            names = read_models(self._fetch("GET", "/models"))
        except ServerRefused as e:
            if e.status not in (404, 405):
                raise
            names = []  # it has no list
        if self.remote_name in names or f"{self.remote_name}:latest" in names:
            return
        probe = GenerateRequest(prompt="Hi", max_tokens=1, temperature=0.0)
        try:
            self._fetch(
                "POST", "/chat/completions", chat_body(probe.to_map(), self.remote_name, stream=False)
            )
        except BadServer as e:
            listed = ", ".join(names[:_SHOWN_MODELS])
            raise BadServer(f"{e}; it lists {listed}" if listed else str(e)) from e

    def _is_ready(self, load_s: float) -> None:
        with self._changed:
            if self._state.phase == "closed":
                return
            if self._info is None:
                self._info = ModelInfo(
                    name=self.name,
                    ctx=self._ctx,
                    parallel=self._parallel,
                    description=f"{self.remote_name} at {self._server.url}",
                    load_s=load_s,
                )
            self._error = None
            self._state = ModelState("ready", 1.0, self._info.description)
            self._changed.notify_all()

    def _has_failed(self, error: DefinitionError) -> None:
        with self._changed:
            if self._state.phase != "closed":
                log.error("model %s: %s", self.name, error)
                self._error = error
                self._state = ModelState("failed", 0.0, str(error))
                self._changed.notify_all()

    def _is_away(self, error: RigbusError, delay_s: float) -> None:
        with self._changed:
            if self._state.phase != "closed":
                log.warning("model %s: %s; asked again in %g s", self.name, error, delay_s)
                self._error = error
                self._failures += 1
                self._state = ModelState("restarting", 0.0, f"{error}; asked again in {delay_s:g} s")
                self._changed.notify_all()

    # ------------------------------------------------------------ requests

    def generate(self, request: GenerateRequest) -> RemoteGeneration:
        body = chat_body(request.to_map(), self.remote_name, limit_field=self._limit_field)
        generation = RemoteGeneration(
            self.name, lambda: self._server.call("POST", "/chat/completions", body), self._retrying
        )
        self._take(generation)
        return generation

    def embedding(self, request: EmbedRequest) -> RemoteEmbedding:
        """Ask for vectors; returns at once, as ``generate``."""
        body = embeddings_body(request.texts, self.remote_name)
        embedding = RemoteEmbedding(
            self.name,
            lambda: self._server.call("POST", "/embeddings", body),
            self._retrying,
            len(request.texts),
        )
        self._take(embedding)
        return embedding

    def embed(self, texts: Sequence[str]) -> EmbedResult:
        """``embedding``, read to its end.

        Raises:
            DefinitionError: refused as it is. RemoteFailed, ModelClosed.
        """
        return gather(self.embedding(EmbedRequest(texts=texts)), self.name)

    def _take(self, request: Request) -> None:
        """Into the queue, with a thread where there may be another one."""
        with self._changed:
            if self._state.phase == "closed":
                request.stop(self._closed())
                return
            if self._state.phase == "new":
                self._state = ModelState("loading")
                self._probe_soon()
            self._waiting.append(request)
            if len(self._threads) < self._parallel:
                thread = threading.Thread(target=self._work, name=f"remote-{self.name}", daemon=True)
                self._threads.add(thread)
                thread.start()

    def _work(self) -> None:
        """Requests one after the other, until none waits."""
        while True:
            with self._changed:
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                request = self._waiting.popleft()
                self._running.add(request)
            if not request.stopped.is_set():
                request.run()
            with self._changed:
                self._running.discard(request)

    def _fetch(self, method: str, path: str, body: dict[str, object] | None = None) -> bytes:
        """The whole answer; ended by ``close``."""
        with self._server.call(method, path, body) as call:
            with self._changed:
                self._calls.add(call)
            try:
                if self._closing.is_set():
                    raise self._closed()
                call.open()
                return call.read_all(MAX_ANSWER_BYTES)
            finally:
                with self._changed:
                    self._calls.discard(call)

    def _retrying(self, once: Callable[[], T], stopped: threading.Event, may_retry: Callable[[], bool]) -> T:
        """``once``, again after a failure that may pass, as long as ``may_retry``; keeps the state by what is heard.

        Raises:
            RemoteFailed, BadAnswer: it went on failing. DefinitionError. ModelClosed: the model was closed meanwhile.
        """
        for failures in count(1):
            try:
                value = once()
            except RemoteFailed as e:
                if self._closing.is_set():
                    raise self._closed() from e
                self._missed(e)
                delay_s = e.retry_after_s if e.retry_after_s is not None else self._patience.delay_s(failures)
                again = e.retry and may_retry() and failures <= self._patience.retries
                if not again or stopped.wait(delay_s):
                    raise
            except BadServer as e:
                self._has_failed(e)
                raise
            except BadAnswer as e:
                raise RemoteFailed(f"model {self.name} at {self._server.url}: {e}") from e
            else:
                self._is_ready(0.0)
                return value
        raise AssertionError("count() ends")

    def _missed(self, error: RemoteFailed) -> None:
        """A server that was there and cannot be reached is asked for until it is back."""
        if error.away and self.ready:
            self._is_away(error, self._patience.delay_s(1))
            with self._changed:
                self._probe_soon()

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Nothing is unloaded at the server; every connection to it is closed, what runs ends with ModelClosed."""
        with self._changed:
            self._state = ModelState("closed")
            self._closing.set()
            requests = [*self._waiting, *self._running]
            self._waiting.clear()
            calls = list(self._calls)
            threads = [t for t in (*self._threads, self._probing) if t is not None]
            self._changed.notify_all()
        for request in requests:
            request.stop(self._closed())
        for call in calls:
            call.cancel()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)  # one that still connects ends by itself, at connect_s

    def _closed(self) -> ModelClosed:
        return ModelClosed(f"model {self.name} was closed; make another one")
