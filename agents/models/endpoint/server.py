"""A worker's model as an OpenAI-compatible server on 127.0.0.1, for the commands that the worker runs.

It goes straight to the ``Model``: no lease, no bus. Each attempt gets a secret of its own, which ends with it. The
OpenAI API is there (``/v1/…``, also without ``/v1``), and of Ollama's what older scripts use (``/api/…``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count
from time import time
from typing import Final, Protocol, runtime_checkable

from ....bus.errors import DefinitionError, RigbusError
from ....bus.openai import ollama
from ....bus.openai.answers import Answer, TextAnswer, embedding_list, model_list, model_map
from ....bus.openai.requests import (
    DEFAULT_MAX_TOKENS,
    ApiError,
    EmbedCall,
    TextCall,
    chat_call,
    completion_call,
    embed_call,
    read_json,
    unavailable,
)
from ..protocol import (
    Chunk,
    Embedding,
    EmbedRequest,
    EmbedResult,
    GenerateRequest,
    GenerateResult,
    Generation,
    Model,
    Usage,
    Vector,
    collect,
)
from .exchange import LOOPBACK, Exchange, Limits
from .grants import Grants
from .loopback import LoopbackServer

__all__ = ["Embedder", "Endpoint", "Limits", "environment"]

log = logging.getLogger(__name__)

IDLE_S: Final = 10.0  #: without a token, then a stream shows a sign of life
_PATH_OF_GRANT: Final = "/attempt/"
Route = Callable[["Endpoint", Exchange], None]


@runtime_checkable
class Embedder(Protocol):
    """A model that makes vectors."""

    def embedding(self, request: EmbedRequest) -> Embedding:
        """Ask for vectors; returns at once."""


class Endpoint:
    """Serves ``model`` from ``start`` to ``close``. ``model`` may be set anew at any time; None: nothing is loaded (503).

    ``max_tokens``: where a request names none; may be set anew, too, and is 1024 where it is None. Every method may be called
    from any thread.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        max_tokens: int | None = None,
        limits: Limits | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self._idle_s = idle_s
        self._server = LoopbackServer(self._serve, limits)
        self._grants = Grants()
        self._numbers = count(1)
        self._began_at = int(time())

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``; ``/v1`` follows for clients of OpenAI."""
        return f"http://{LOOPBACK}:{self._server.port}"

    def start(self) -> None:
        """Listen. Once."""
        self._server.start()

    def close(self) -> None:
        """End every request and stop listening. The model goes on. Harmless twice."""
        self._server.close()

    def grant(self, token_id: str) -> str:
        """A new secret for the attempt ``token_id``, of 43 characters that need no quoting in a URL or a shell."""
        return self._grants.grant(token_id)

    def revoke(self, secret: str) -> None:
        """The attempt has ended: its open requests end now, later ones get 401. Harmless twice."""
        self._grants.revoke(secret)

    # ------------------------------------------------------------ who asks

    def _serve(self, exchange: Exchange) -> None:
        path = exchange.route
        if path.startswith(_PATH_OF_GRANT):
            secret, _, rest = path.removeprefix(_PATH_OF_GRANT).partition("/")
            path = f"/{rest}"
        else:
            kind, _, words = exchange.headers.get("Authorization", "").partition(" ")
            secret = words.strip() if kind.lower() == "bearer" else ""
        try:
            # Ended like a client that goes: the watch of what it waits for sees the connection's end.
            with self._grants.admitted(secret, exchange.abort):
                exchange.know(True)
                self._route(exchange, path.rstrip("/") or "/")
        except ApiError as e:
            if e.status == 401:
                exchange.know(False)  # its task may have ended meanwhile
            exchange.refuse(e, ollama.error_map(e) if path.startswith("/api/") else None)

    def _route(self, exchange: Exchange, path: str) -> None:
        below = path.removeprefix("/v1")
        if below.startswith("/models/"):
            self._named(exchange, below.removeprefix("/models/"))
            return
        methods = _ROUTES.get(below)
        if methods is None:
            raise ApiError(f"there is no {path[:200]} here", status=404, code="unknown_url")
        route = methods.get(exchange.command)
        if route is None:
            raise ApiError(f"{path} takes {', '.join(methods)}", status=405, code="method_not_allowed")
        try:
            route(self, exchange)
        except RigbusError as e:
            raise _api_error(e) from e
        except OSError:
            raise  # the client's connection
        except Exception as e:
            log.exception("the model's endpoint failed in %s", path)
            raise ApiError("a fault of rigbus; see the worker's log", status=500, kind="server_error") from e

    # ------------------------------------------------------------ models

    def _loaded(self) -> Model:
        model = self.model
        if model is None:
            raise unavailable("no model is loaded on this worker; try again later", code="no_model")
        return model

    def _asked(self, name: str | None) -> Model:
        model = self._loaded()
        if name not in (None, model.name):
            raise ApiError(
                f"there is no model {name!r:.100} here; name {model.name!r} (RIGBUS_MODEL), or leave it out",
                status=404,
                param="model",
                code="model_not_found",
            )
        return model

    def _models(self, exchange: Exchange) -> None:
        names = [self.model.name] if self.model is not None else []
        exchange.send_json(model_list(names, self._began_at))

    def _named(self, exchange: Exchange, name: str) -> None:
        exchange.send_json(model_map(self._asked(name).name, self._began_at))

    def _tags(self, exchange: Exchange) -> None:
        names = [self.model.name] if self.model is not None else []
        exchange.send_json(ollama.tag_list(names, self._began_at))

    def _version(self, exchange: Exchange) -> None:
        exchange.send_json({"version": ollama.VERSION})

    # ------------------------------------------------------------ texts

    def _most(self) -> int:
        """Tokens of an answer for which a request names no number."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def _chat(self, exchange: Exchange) -> None:
        self._openai_text(exchange, chat_call(read_json(exchange.body()), self._most()))

    def _completion(self, exchange: Exchange) -> None:
        self._openai_text(exchange, completion_call(read_json(exchange.body()), self._most()))

    def _openai_text(self, exchange: Exchange, call: TextCall) -> None:
        model = self._asked(call.model)
        answer = Answer(
            kind=call.kind,
            number=f"{self._began_at:x}-{next(self._numbers)}",
            created=int(time()),
            model=model.name,
            include_usage=call.include_usage,
        )
        self._text(exchange, call, model, answer)

    def _ollama_generate(self, exchange: Exchange) -> None:
        self._ollama_text(exchange, ollama.generate_call(read_json(exchange.body()), self._most()))

    def _ollama_chat(self, exchange: Exchange) -> None:
        self._ollama_text(exchange, ollama.chat_call(read_json(exchange.body()), self._most()))

    def _ollama_text(self, exchange: Exchange, call: TextCall) -> None:
        model = self._asked(call.model)
        self._text(exchange, call, model, ollama.Answer(kind=call.kind, created=time(), model=model.name))

    def _text(self, exchange: Exchange, call: TextCall, model: Model, answer: TextAnswer) -> None:
        generation = model.generate(GenerateRequest(**call.payload))
        try:
            with exchange.watch(generation.cancel):
                if call.stream:
                    self._stream(exchange, generation, model.name, answer)
                else:
                    result = collect(generation, model.name)
                    if not _cancelled(exchange, result.usage):
                        exchange.send_json(answer.whole(result.to_map()))
        finally:
            generation.cancel()

    def _stream(self, exchange: Exchange, generation: Generation, model: str, answer: TextAnswer) -> None:
        """The head waits for the first token, a while: what cannot be generated still gets its status then."""

        def say(data: bytes) -> None:
            if not exchange.begun:
                exchange.begin_stream(answer.content_type)
                exchange.write(answer.first())
            exchange.write(data)

        try:
            while True:
                match generation.poll(self._idle_s):
                    case Chunk(text):
                        say(answer.piece(text))
                    case None:
                        say(answer.idle())
                    case Usage() as usage:
                        if not _cancelled(exchange, usage):
                            say(answer.last(GenerateResult(text="", model=model, usage=usage).to_map()))
                            exchange.end_stream()
                        return
        except RigbusError as e:
            if not exchange.begun:
                raise
            exchange.write(answer.failed(_api_error(e)))
            exchange.end_stream()

    # ------------------------------------------------------------ vectors

    def _embed(self, exchange: Exchange) -> None:
        call = embed_call(read_json(exchange.body()))
        result = self._vectors(exchange, call)
        if result is not None:
            exchange.send_json(
                embedding_list(result.vectors, result.model, result.usage.prompt_tokens, base64=call.base64)
            )

    def _ollama_embed(self, exchange: Exchange) -> None:
        single = exchange.route.endswith("/embeddings")
        result = self._vectors(exchange, ollama.embedding_call(read_json(exchange.body())))
        if result is not None:
            tokens = result.usage.prompt_tokens
            exchange.send_json(ollama.embedding_map(result.vectors, result.model, tokens, single=single))

    def _vectors(self, exchange: Exchange, call: EmbedCall) -> EmbedResult | None:
        """None: the client has gone."""
        model = self._asked(call.model)
        if not isinstance(model, Embedder):
            raise ApiError(f"model {model.name} makes no embeddings", code="unsupported_model")
        embedding = model.embedding(EmbedRequest(texts=call.texts))
        vectors: dict[int, list[float]] = {}
        try:
            with exchange.watch(embedding.cancel):
                while True:
                    item = embedding.poll(self._idle_s)
                    if isinstance(item, Vector):
                        vectors[item.index] = item.values
                    elif isinstance(item, Usage):
                        break
        finally:
            embedding.cancel()
        if _cancelled(exchange, item):
            return None
        return EmbedResult(vectors=[vectors[i] for i in sorted(vectors)], model=model.name, usage=item)


_ROUTES: Final[dict[str, dict[str, Route]]] = {
    "/models": {"GET": Endpoint._models, "HEAD": Endpoint._models},
    "/chat/completions": {"POST": Endpoint._chat},
    "/completions": {"POST": Endpoint._completion},
    "/embeddings": {"POST": Endpoint._embed},
    "/api/generate": {"POST": Endpoint._ollama_generate},
    "/api/chat": {"POST": Endpoint._ollama_chat},
    "/api/tags": {"GET": Endpoint._tags},
    "/api/version": {"GET": Endpoint._version},
    "/api/embed": {"POST": Endpoint._ollama_embed},
    "/api/embeddings": {"POST": Endpoint._ollama_embed},
}


def environment(endpoint: Endpoint, secret: str, model_name: str) -> dict[str, str]:
    """The variables by which a command finds its worker's model.

    Clients of OpenAI read the first ones. The other names are an earlier system's, whose scripts send no key: their URL
    carries the secret as ``/attempt/SECRET``, and both ``/v1/chat/completions`` and ``/chat/completions``, or
    ``/api/generate``, may follow it.
    """
    bare = f"{endpoint.url}{_PATH_OF_GRANT}{secret}"
    return {
        "OPENAI_BASE_URL": f"{endpoint.url}/v1",
        "OPENAI_API_BASE": f"{endpoint.url}/v1",
        "OPENAI_API_KEY": secret,
        "RIGBUS_MODEL": model_name,
        "WORKER_API_BASE": bare,
        "WORKER_MODEL": model_name,
        "BRAIN_API_BASE": bare,
        "BRAIN_MODEL": model_name,
        "WORKER_OLLAMA_URL": bare,
    }


def _cancelled(exchange: Exchange, usage: Usage) -> bool:
    """Nobody is left to read; whoever may be sees the connection end, never a text that is not whole."""
    if usage.finish == "cancelled":
        exchange.close_connection = True
        return True
    return False


def _api_error(error: RigbusError) -> ApiError:
    """A model's error as the API's: the request's fault, or one that may pass."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DefinitionError):
        return ApiError(str(error))
    if getattr(error, "error_class", "") == "infra":
        return unavailable(str(error))
    return ApiError(str(error), status=500, kind="server_error", code="model_failed")
