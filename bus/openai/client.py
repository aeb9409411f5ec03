"""The client's end of the OpenAI HTTP API: our payloads as request bodies, a server's answers as text. Pure.

What a server sends is checked field by field: ``BadAnswer`` (class ``infra``: another try, or another server, may help)
says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from ..errors import DefinitionError, RigbusError
from .sse import BadStream, EventReader

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
#: Theirs -> our ``finish``. None: none yet. Tools were not offered; a text that ends in them has ended.
_FINISH: Final = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "function_call": "stop",
    "eos": "stop",
}
_WORDS: Final = 300  # characters of a server's own words in a message of ours
MAX_NUMBER: Final = 1e30  #: of a vector; a float32 holds more, no embedding does


class BadAnswer(RigbusError):
    """The server's answer is not one: half of it is missing, or it is of another form."""

    error_class: ClassVar[str] = "infra"


def chat_body(
    payload: Mapping[str, Any], model: str, *, limit_field: str = "max_tokens", stream: bool = True
) -> dict[str, Any]:
    """The fields of a `generate` task as a request of /v1/chat/completions; a prompt is one user message."""
    messages = payload.get("messages") or [{"role": "user", "content": payload.get("prompt") or ""}]
    body: dict[str, Any] = {"model": model, "messages": [dict(m) for m in messages], "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if payload.get("max_tokens") is not None:
        body[limit_field] = payload["max_tokens"]
    for name in ("temperature", "seed"):
        if payload.get(name) is not None:
            body[name] = payload[name]
    if payload.get("stop"):
        body["stop"] = list(payload["stop"])
    if payload.get("json_schema") is not None:
        # strict: a server that cannot hold the schema shall say so, not answer something else.
        schema = {"name": "answer", "schema": payload["json_schema"], "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def embeddings_body(texts: Sequence[str], model: str) -> dict[str, Any]:
    """A request of /v1/embeddings."""
    return {"model": model, "input": list(texts), "encoding_format": "float"}


class AnswerReader:
    """Takes the body of an answer in any pieces, streamed (``text/event-stream``) or whole; gives its text.

    ``finish`` and ``usage`` are known at the end at the latest; ``usage`` stays None where the server says none, and
    ``pieces`` counts what came, which is then the best guess at tokens. ``done``: nothing more is needed.
    """

    def __init__(self, *, streamed: bool) -> None:
        self.finish: str | None = None
        self.usage: dict[str, int] | None = None
        self.pieces = 0
        self.done = False
        self._events = EventReader() if streamed else None
        self._body: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[str]:
        """The pieces of text that ``data`` completes.

        Raises:
            BadAnswer: it is no such answer. DefinitionError: the server refuses the request in its stream.
        """
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            raise BadAnswer(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
        if self._events is None:
            self._body.append(data)
            return []
        try:
            events = self._events.feed(data)
        except BadStream as e:
            raise BadAnswer(str(e)) from e
        return [text for said in events if (text := self._event(said))]

    def end(self) -> list[str]:
        """The server has closed the answer: its text, where it did not stream.

        Raises:
            BadAnswer: it ended in the middle.
        """
        texts = []
        if self._events is None:
            text = self._take(_object(b"".join(self._body)), "message")
            self.done, texts = True, [text] if text else []
        if self.finish is None:
            raise BadAnswer(f"the answer ended in the middle, after {self.pieces} pieces of text")
        return texts

    def _event(self, data: str) -> str:
        if self.done:
            return ""
        if data.strip() == "[DONE]":
            self.done = True
            return ""
        return self._take(_object(data.encode("utf-8", "replace")), "delta")

    def _take(self, value: dict[str, Any], part: str) -> str:
        if value.get("error"):
            raise _said_error(value["error"])
        usage = value.get("usage")
        if isinstance(usage, dict):
            self.usage = _usage(usage)
        choices = value.get("choices")
        if not choices:
            return ""  # the chunk of the usage has none
        choice = choices[0] if isinstance(choices, list) else None
        said = choice.get(part) if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(said or {}, dict):
            raise BadAnswer(f'"choices" is not of the form of an answer: {str(choices)[:_WORDS]}')
        if choice.get("finish_reason") is not None:
            self._finished(choice["finish_reason"])
        text = (said or {}).get("content") or ""
        if not isinstance(text, str):
            raise BadAnswer(f"the text is no text: {str(text)[:_WORDS]}")
        self.pieces += bool(text)
        return text

    def _finished(self, reason: object) -> None:
        if reason == "content_filter":
            raise DefinitionError("the server's content filter ended the text; word the prompt differently")
        self.finish = _FINISH.get(str(reason), "stop")


def _said_error(error: object) -> RigbusError:
    fields = error if isinstance(error, dict) else {"message": error}
    message = f"the server ended the text: {str(fields.get('message'))[:_WORDS]}"
    refused = fields.get("type") == "invalid_request_error"
    return DefinitionError(message) if refused else BadAnswer(message)


def _usage(usage: Mapping[str, Any]) -> dict[str, int]:
    details = usage.get("prompt_tokens_details")
    return {
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")),
        "cached_tokens": _count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    }


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def read_vectors(body: bytes, count: int) -> tuple[list[list[float]], int]:
    """The vectors of an answer of /v1/embeddings, in the order of the ``count`` texts, and the tokens that it took.

    Raises:
        BadAnswer: it is no such answer, or one of other texts.
    """
    value = _object(body)
    rows = value.get("data")
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, dict) for row in rows):
        raise BadAnswer(f"the answer does not hold one vector for each of {count} texts")
    if all(isinstance(row.get("index"), int) for row in rows):
        rows = sorted(rows, key=lambda row: int(row["index"]))
    vectors = [_vector(row.get("embedding"), at) for at, row in enumerate(rows)]
    if len({len(v) for v in vectors}) > 1:
        raise BadAnswer("the vectors of one answer have different lengths")
    usage = value.get("usage")
    return vectors, _count(usage.get("prompt_tokens")) if isinstance(usage, dict) else 0


def _vector(value: object, at: int) -> list[float]:
    numbers = value if isinstance(value, list) else []
    if numbers and all(isinstance(x, int | float) and abs(x) < MAX_NUMBER for x in numbers):
        return [float(x) for x in numbers]
    raise BadAnswer(f"data[{at}].embedding is no list of numbers")


def read_models(body: bytes) -> list[str]:
    """The names in an answer of /v1/models.

    Raises:
        BadAnswer: it is no such answer.
    """
    rows = _object(body).get("data")
    if not isinstance(rows, list):
        raise BadAnswer('no "data" in the list of models; is this the URL of an OpenAI-compatible server?')
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def error_words(body: bytes) -> str:
    """What a server says in the body of an error, on one line and short; "" where it says nothing."""
    text = body[:4096].decode("utf-8", "replace")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        error = value.get("error")
        inner = error.get("message") if isinstance(error, dict) else error
        text = str(inner or value.get("message") or value.get("detail") or text)
    return " ".join(text.split())[:_WORDS]


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        shown = data[:80].decode("utf-8", "replace")
        raise BadAnswer(f"not JSON ({str(e)[:80]}): {shown!r}") from e
    if not isinstance(value, dict):
        raise BadAnswer(f"no JSON object: {data[:80].decode('utf-8', 'replace')!r}")
    return value
