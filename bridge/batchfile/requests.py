"""A line of a batch file -> the task that it asks for, or what is wrong with it. Pure.

What a request may say is said in one place for files and for HTTP: ``bus/openai``. A line that cannot be used costs
nothing but itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Literal

from ...bus.openai.requests import (
    ApiError,
    EmbedCall,
    TextCall,
    chat_call,
    completion_call,
    embed_call,
    read_json,
)
from ...bus.wire import MAX_PAYLOAD_BYTES, pack
from .lines import MAX_LINE_BYTES, Line

MAX_REQUESTS: Final = 100_000  #: of one file: a batch of the broker has no more tasks
MAX_TOTAL_BYTES: Final = 1 << 30  #: of the requests of one file, as they travel
MAX_ID_CHARS: Final = 256
MAX_TEXTS: Final = 1024  #: of one `embed` task
_SHOWN: Final = 80

Shape = Literal["chat", "completion", "embedding", "embedding-base64"]
_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], TextCall | EmbedCall]]] = {
    "/v1/chat/completions": chat_call,
    "/v1/completions": completion_call,
    "/v1/embeddings": embed_call,
}


@dataclass(frozen=True, slots=True)
class Request:
    """One task: its line, its type, and its payload as it travels. ``shape``: how its answer is to look."""

    line: int
    custom_id: str
    type: Literal["generate", "embed"]
    shape: Shape
    model: str | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that no task comes of. ``status``: as an HTTP server would answer its request; 0: it is no request."""

    line: int
    custom_id: str | None
    code: str
    message: str
    param: str | None = None
    status: int = 0


class _Bad(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


class Reader:
    """Reads the lines of one file in order; ``requests`` and ``bad`` count what came of them.

    ``models``: the names that a line may ask for; empty: nobody knows, and any may come.
    """

    def __init__(
        self,
        models: Collection[str] = (),
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        self.requests = 0
        self.bad = 0
        self._models = models
        self._max, self._room = max_requests, max_bytes
        self._seen: set[bytes] = set()  # digests: 100,000 ids of 256 characters would be 30 MB

    def read(self, line: Line) -> Request | BadLine | None:
        """None: an empty line."""
        if line.data is not None and not line.data.strip():
            return None
        custom_id: str | None = None
        try:
            given = _object(line)
            custom_id = _custom_id(given)
            self._take(custom_id)
            request = self._request(line.number, custom_id, given)
        except _Bad as e:
            self.bad += 1
            return BadLine(line.number, custom_id, e.code, str(e), e.param)
        except ApiError as e:
            self.bad += 1
            return BadLine(line.number, custom_id, e.code or e.kind, str(e), e.param, e.status)
        self.requests += 1
        return request

    def _take(self, custom_id: str) -> None:
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            said = f"custom_id {custom_id[:_SHOWN]!r} stands in an earlier line; only that one counts"
            raise _Bad("duplicate_custom_id", said, "custom_id")
        self._seen.add(digest)

    def _request(self, number: int, custom_id: str, given: Mapping[str, Any]) -> Request:
        if given.get("method") != "POST":
            raise _Bad("invalid_method", f'method is {_short(given.get("method"))}; give "POST"', "method")
        url, body = given.get("url"), given.get("body")
        read = _READERS.get(url) if isinstance(url, str) else None
        if read is None:
            raise _Bad("invalid_url", f"url is {_short(url)}; give one of {', '.join(_READERS)}", "url")
        if not isinstance(body, dict):
            raise _Bad("invalid_body", "body is no object; give the request's own JSON", "body")
        if self.requests >= self._max:
            said = f"a file has at most {self._max:,} requests; put the rest into another one"
            raise _Bad("too_many_requests", said)
        call = read(body)
        self._check_model(call.model)
        request = _task(number, custom_id, call)
        if len(request.payload) > self._room:
            raise _Bad(
                "too_many_requests", "the requests of the file have over 1 GiB; put the rest into another one"
            )
        self._room -= len(request.payload)
        return request

    def _check_model(self, model: str | None) -> None:
        if model is None or not self._models or model in self._models:
            return
        near = get_close_matches(model[:_SHOWN], self._models, n=1)
        there = ", ".join(sorted(self._models)[:10])
        hint = f"did you mean {near[0]!r}?" if near else "leave it out for any"
        said = f"there is no model {model[:_SHOWN]!r} here, but {there}; {hint}"
        raise ApiError(said, status=404, param="model", code="model_not_found")


def _object(line: Line) -> dict[str, Any]:
    """The JSON object of a line."""
    if line.data is None:
        said = f"the line has {line.size:,} bytes; at most {MAX_LINE_BYTES:,}: split its text over several"
        raise _Bad("line_too_large", said)
    try:
        return read_json(line.data)
    except ApiError as e:
        raise _Bad("invalid_json_line", str(e).replace("the body", "the line", 1)) from None


def _custom_id(given: Mapping[str, Any]) -> str:
    value = given.get("custom_id")
    if not isinstance(value, str) or not value:
        raise _Bad("missing_custom_id", "custom_id is missing: give each line its own text", "custom_id")
    if len(value) > MAX_ID_CHARS:
        said = f"custom_id has {len(value)} characters; at most {MAX_ID_CHARS}"
        raise _Bad("invalid_custom_id", said, "custom_id")
    return value


def _task(number: int, custom_id: str, call: TextCall | EmbedCall) -> Request:
    named = {} if call.model is None else {"model": call.model}
    if isinstance(call, TextCall):
        if call.stream:
            said = 'field "stream": a file is answered whole; leave it out'
            raise ApiError(said, param="stream", code="unsupported_parameter")
        data = _packed({**call.payload, **named})
        return Request(number, custom_id, "generate", call.kind, call.model, data)
    if len(call.texts) > MAX_TEXTS:
        said = f'field "input" has {len(call.texts)} texts; at most {MAX_TEXTS} a line'
        raise ApiError(said, param="input")
    shape: Shape = "embedding-base64" if call.base64 else "embedding"
    return Request(number, custom_id, "embed", shape, call.model, _packed({"texts": call.texts, **named}))


def _packed(payload: Mapping[str, Any]) -> bytes:
    try:
        data = pack(dict(payload))
    except (ValueError, OverflowError, RecursionError, TypeError) as e:
        raise ApiError(f"the body cannot be sent on: {e}", param="body") from None
    if len(data) > MAX_PAYLOAD_BYTES:
        said = (
            f"the request has {len(data):,} bytes; at most {MAX_PAYLOAD_BYTES:,}: split its text over several"
        )
        raise ApiError(said, status=413, param="body", code="request_too_large")
    return data


def _short(value: object) -> str:
    return "missing" if value is None else repr(value)[:_SHOWN]
