"""What a model says as answers of the OpenAI HTTP API. Pure.

A text is given whole or as a stream of events; the requests are read by ``openai.py``.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import pack
from typing import Any, Final, Protocol

from .requests import ApiError, Kind
from .sse import comment, event

DONE: Final = event("[DONE]")


def finish_reason(finish: str) -> str:
    """Our ``finish`` as theirs. A cancelled text is not whole, and "length" is the one reason that says so."""
    return "stop" if finish == "stop" else "length"


def usage_map(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The ``usage`` of a `generate` result as theirs."""
    prompt, completion = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
    }


class TextAnswer(Protocol):
    """Shapes one text: ``whole`` at once, or as a stream: ``first``, ``piece``…, then ``last`` or ``failed``.

    ``result`` is the value of a `generate` task: ``{"text", "finish", "usage", "timings", …}``. ``idle``: a sign of life in a
    stream, b"" where the form knows none.
    """

    @property
    def content_type(self) -> str: ...  # of a stream
    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]: ...
    def first(self) -> bytes: ...
    def piece(self, text: str) -> bytes: ...
    def last(self, result: Mapping[str, Any]) -> bytes: ...
    def failed(self, error: ApiError) -> bytes: ...
    def idle(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The OpenAI form of ``TextAnswer``. ``number`` makes its id; ``created`` is wall-clock time in seconds."""

    kind: Kind
    number: str
    created: int
    model: str
    include_usage: bool = False
    content_type: str = "text/event-stream"

    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": result["text"], "refusal": None}
        else:
            choice["text"] = result["text"]
        choice |= {"logprobs": None, "finish_reason": finish_reason(result["finish"])}
        return self._map([choice], streamed=False) | {"usage": usage_map(result["usage"])}

    def first(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""}) if self.kind == "chat" else b""

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text} if self.kind == "chat" else {"text": text})

    def last(self, result: Mapping[str, Any]) -> bytes:
        """Why it ended, what it took where that was asked for, and ``[DONE]``."""
        end = self._chunk({} if self.kind == "chat" else {"text": ""}, finish_reason(result["finish"]))
        if self.include_usage:
            chunk = self._map([], streamed=True) | {"usage": usage_map(result["usage"])}
            end += event(to_json(chunk))
        return end + DONE

    def failed(self, error: ApiError) -> bytes:
        """No ``[DONE]`` follows: the text is not whole."""
        return event(to_json(error.to_map()))

    def idle(self) -> bytes:
        return comment("the model has not begun")

    def _chunk(self, said: dict[str, Any], finish: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        choice |= {"delta": said} if self.kind == "chat" else said
        chunk = self._map([choice], streamed=True)
        return event(to_json(chunk | {"usage": None} if self.include_usage else chunk))

    def _map(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        if self.kind == "chat":
            name, prefix = "chat.completion.chunk" if streamed else "chat.completion", "chatcmpl-"
        else:
            name, prefix = "text_completion", "cmpl-"
        return {
            "id": prefix + self.number,
            "object": name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def to_json(value: object) -> str:
    """Compact, on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def embedding_list(
    vectors: Sequence[Sequence[float]], model: str, prompt_tokens: int, *, base64: bool
) -> dict[str, Any]:
    """The answer of /v1/embeddings."""
    data = [
        {
            "object": "embedding",
            "index": n,
            "embedding": b64encode(pack(f"<{len(v)}f", *v)).decode() if base64 else list(v),
        }
        for n, v in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def model_map(name: str, created: int) -> dict[str, Any]:
    """One model, as /v1/models/NAME gives it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "rigbus"}


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    """The answer of /v1/models."""
    return {"object": "list", "data": [model_map(name, created) for name in names]}
