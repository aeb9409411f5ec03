"""The few shapes of Ollama's own HTTP API that older scripts speak: /api/generate, /api/chat, /api/embed, /api/tags. Pure.

Requests become the calls of ``openai.py``; what is refused there is refused here. Streams are lines of JSON; durations
are in nanoseconds, as Ollama's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from .answers import finish_reason, to_json
from .requests import (
    DEFAULT_MAX_TOKENS,
    ApiError,
    EmbedCall,
    Kind,
    TextCall,
    embed_call,
    flag,
    model_of,
    number,
    read_messages,
    seed,
    tokens,
    wrong,
)

#: What scripts ask for to see that a server is there; no promise of Ollama's later features.
VERSION: Final = "0.5.0"


def generate_call(body: Mapping[str, Any], max_tokens: int = DEFAULT_MAX_TOKENS) -> TextCall:
    """A request of /api/generate.

    Raises:
        ApiError: a field is wrong, or asks for what we cannot do.
    """
    for name in ("images", "suffix", "raw", "context", "template"):
        _refuse(body, name)
    prompt, system = body.get("prompt"), body.get("system")
    if not isinstance(prompt, str):
        raise wrong("prompt", prompt, "a string")
    if system is not None and not isinstance(system, str):
        raise wrong("system", system, "a string")
    asked: dict[str, Any] = {"prompt": prompt}
    if system:
        asked = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": prompt}]}
    return _call("completion", body, asked, max_tokens)


def chat_call(body: Mapping[str, Any], max_tokens: int = DEFAULT_MAX_TOKENS) -> TextCall:
    """A request of /api/chat.

    Raises:
        ApiError: as ``generate_call``.
    """
    _refuse(body, "tools")
    return _call("chat", body, {"messages": read_messages(body.get("messages"))}, max_tokens)


def _call(kind: Kind, body: Mapping[str, Any], asked: dict[str, Any], max_tokens: int) -> TextCall:
    options = body.get("options") or {}
    if not isinstance(options, dict):
        raise wrong("options", options, "an object")
    stop = options.get("stop")
    stop = [stop] if isinstance(stop, str) else stop
    if stop is not None and not (isinstance(stop, list) and all(isinstance(s, str) for s in stop)):
        raise wrong("options.stop", stop, "a list of strings")
    limit = -1 if options.get("num_predict") == -2 else options.get("num_predict")  # both mean "no limit"
    payload = {
        **asked,
        "max_tokens": tokens({"num_predict": limit}, "num_predict", max_tokens, "options."),
        "temperature": number(options, "temperature", "options."),
        "seed": seed(options, "options."),
        "stop": stop or None,
        "json_schema": _schema(body.get("format")),
    }
    return TextCall(
        kind=kind,
        payload={name: value for name, value in payload.items() if value is not None},
        model=model_named(body),
        stream=flag(body, "stream", default=True),
        include_usage=True,
    )


def embedding_call(body: Mapping[str, Any]) -> EmbedCall:
    """A request of /api/embed (``input``) or the older /api/embeddings (``prompt``).

    Raises:
        ApiError: as ``generate_call``.
    """
    value = body.get("input", body.get("prompt"))
    return embed_call({"model": model_named(body), "input": value, "dimensions": body.get("dimensions")})


def model_named(body: Mapping[str, Any]) -> str | None:
    """The model that is asked for; ``:latest``, which Ollama puts behind a name without a tag, is dropped."""
    name = model_of(body)
    return name.removesuffix(":latest") if name else None


def _schema(value: object) -> dict[str, Any] | None:
    if value in (None, ""):
        return None
    if value == "json":
        return {"type": "object"}
    if not isinstance(value, dict):
        raise wrong("format", value, '"json", or a JSON Schema')
    return value


def _refuse(body: Mapping[str, Any], name: str) -> None:
    if body.get(name):
        raise ApiError(
            f'field "{name}" is not supported here; leave it out', param=name, code="unsupported_parameter"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Ollama's form of ``answers.TextAnswer``: lines of JSON. ``created``: wall-clock time in seconds."""

    kind: Kind
    created: float
    model: str
    content_type: str = "application/x-ndjson"

    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        usage = result["usage"]
        ns = {name: round(seconds * 1e9) for name, seconds in result["timings"].items()}
        return self._map(result["text"]) | {
            "done": True,
            "done_reason": finish_reason(result["finish"]),
            "total_duration": sum(ns.get(name, 0) for name in ("queued_s", "prefill_s", "decode_s")),
            "load_duration": 0,  # once for the model, not for this request
            "prompt_eval_count": usage.get("prompt_tokens", 0),
            "prompt_eval_duration": ns.get("prefill_s", 0),
            "eval_count": usage.get("completion_tokens", 0),
            "eval_duration": ns.get("decode_s", 0),
        }

    def first(self) -> bytes:
        return b""

    def piece(self, text: str) -> bytes:
        return line(self._map(text) | {"done": False})

    def last(self, result: Mapping[str, Any]) -> bytes:
        return line(self.whole({**result, "text": ""}))

    def failed(self, error: ApiError) -> bytes:
        return line(error_map(error))

    def idle(self) -> bytes:
        return b""

    def _map(self, text: str) -> dict[str, Any]:
        said = (
            {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"response": text}
        )
        return {"model": self.model, "created_at": _stamp(self.created), **said}


def line(value: Mapping[str, Any]) -> bytes:
    """One line of a stream."""
    return to_json(value).encode() + b"\n"


def error_map(error: ApiError) -> dict[str, Any]:
    """An error as Ollama's clients read it."""
    return {"error": str(error)}


def embedding_map(
    vectors: Sequence[Sequence[float]], model: str, prompt_tokens: int, *, single: bool
) -> dict[str, Any]:
    """The answer of /api/embed; ``single``: of /api/embeddings."""
    if single:
        return {"embedding": list(vectors[0])}
    return {"model": model, "embeddings": [list(v) for v in vectors], "prompt_eval_count": prompt_tokens}


def tag_list(names: Sequence[str], created: float) -> dict[str, Any]:
    """The answer of /api/tags."""
    return {
        "models": [
            {
                "name": name,
                "model": name,
                "modified_at": _stamp(created),
                "size": 0,
                "digest": "",
                "details": {},
            }
            for name in names
        ]
    }


def _stamp(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
