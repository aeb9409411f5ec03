"""Requests of the OpenAI HTTP API as the payloads of our tasks `generate` and `embed`. Pure.

A request's JSON becomes a ``TextCall`` or an ``EmbedCall``; ``answers.py`` shapes what is said back, and
``client.py`` is the other end. What we cannot do and what would change the answer is refused by its name (tools,
images, log probabilities, n > 1, …); a field that only tunes it (``top_p``, penalties, ``user``, …), or that nobody knows,
is passed over, as other servers do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, Literal

from ..errors import RigbusError

DEFAULT_MAX_TOKENS: Final = (
    1024  #: where a request names none. A reservation in the model's context, so not "all of it"
)
MAX_TOKENS: Final = 2**31 - 1
SEEDS: Final = 2**32 - 1  #: our seeds are 0 to 2^32-2, theirs have 64 bits
MAX_TEXTS: Final = 2048  #: of one request for embeddings, as OpenAI's
ROLES: Final = ("system", "user", "assistant", "tool")

Kind = Literal["chat", "completion"]


class ApiError(RigbusError):
    """A request that is refused, as the API says it: ``status``, and ``to_map`` for the body.

    ``param`` is the field's path in the request; ``retry_after_s`` is set where another try may help.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def to_map(self) -> dict[str, Any]:
        """The body of the answer: ``{"error": {"message", "type", "param", "code"}}``."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def unavailable(message: str, *, status: int = 503, code: str = "model_unavailable") -> ApiError:
    """Not the request's fault; the same request may succeed later."""
    return ApiError(message, status=status, kind="server_error", code=code, retry_after_s=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCall:
    """A request for a text. ``payload``: the fields of a `generate` task, without ``model``."""

    kind: Kind
    payload: dict[str, Any]
    model: str | None
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedCall:
    """A request for the vectors of ``texts``; ``base64``: each as the base64 of little-endian float32."""

    texts: list[str]
    model: str | None
    base64: bool


# ------------------------------------------------------------ requests


def read_json(data: bytes) -> dict[str, Any]:
    """The object in a request's body.

    Raises:
        ApiError: no JSON, no object, nested too deep, or text that is no Unicode (lone surrogates).
    """
    try:
        value = json.loads(data.decode(), parse_constant=_no_number, parse_float=_finite)
        if rb"\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ApiError("the body is nested too deep", code="invalid_json") from None
    except UnicodeError as e:
        raise ApiError(f"the body is no Unicode text: {e}; send UTF-8", code="invalid_json") from None
    except ValueError as e:
        raise ApiError(f"the body is no JSON: {str(e)[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(f"the body is {_kind_of(value)}; send a JSON object", code="invalid_json")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits[:40]} is too large a number")
    return value


def chat_call(body: Mapping[str, Any], max_tokens: int = DEFAULT_MAX_TOKENS) -> TextCall:
    """A request of /v1/chat/completions; ``max_tokens`` where it names none.

    Raises:
        ApiError: a field is wrong, or asks for what we cannot do.
    """
    _refuse(body, "tools", "functions", "logit_bias", "audio", "web_search_options")
    _refuse(body, "logprobs", "top_logprobs")
    if body.get("tool_choice") not in (None, "none", "auto"):
        raise _unsupported("tool_choice")
    for at, modality in enumerate(_list(body, "modalities")):
        if modality != "text":
            raise _unsupported(f"modalities[{at}]", repr(modality))
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    payload = {
        "messages": read_messages(body.get("messages")),
        **_sampling(body, limit, max_tokens),
        "json_schema": _schema(body.get("response_format")),
    }
    return _text_call("chat", body, payload)


def completion_call(body: Mapping[str, Any], max_tokens: int = DEFAULT_MAX_TOKENS) -> TextCall:
    """A request of /v1/completions: one prompt. A model with a chat template answers it as one user message.

    Raises:
        ApiError: as ``chat_call``.
    """
    _refuse(body, "logit_bias", "logprobs", "suffix", "echo")
    if body.get("best_of") not in (None, 1):
        raise _unsupported("best_of", "more than 1")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise _unsupported("prompt", "several prompts, or tokens,")
    if not isinstance(prompt, str):
        raise wrong("prompt", prompt, "a string")
    payload = {
        "prompt": prompt,
        **_sampling(body, "max_tokens", max_tokens),
        "json_schema": _schema(body.get("response_format")),
    }
    return _text_call("completion", body, payload)


def _text_call(kind: Kind, body: Mapping[str, Any], payload: dict[str, Any]) -> TextCall:
    if body.get("n") not in (None, 1):
        raise _unsupported("n", "more than one answer")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise wrong("stream_options", options, "an object")
    return TextCall(
        kind=kind,
        payload={name: value for name, value in payload.items() if value is not None},
        model=model_of(body),
        stream=flag(body, "stream"),
        include_usage=flag(options, "include_usage", "stream_options."),
    )


def embed_call(body: Mapping[str, Any]) -> EmbedCall:
    """A request of /v1/embeddings.

    Raises:
        ApiError: as ``chat_call``.
    """
    _refuse(body, "dimensions")
    value = body.get("input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise wrong("input", value, "a string, or a list of strings")
    if len(texts) > MAX_TEXTS:
        raise ApiError(f'field "input" has {len(texts)} texts; at most {MAX_TEXTS}', param="input")
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong(f"input[{at}]", text, "a string (tokens are not taken)")
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise wrong("encoding_format", encoding, '"float" or "base64"')
    return EmbedCall(texts=texts, model=model_of(body), base64=encoding == "base64")


def read_messages(value: object) -> list[dict[str, str]]:
    """``messages`` as a `generate` task takes them: ``{"role", "content"}`` each, the text parts of one joined with LF."""
    if not isinstance(value, list) or not value:
        raise wrong("messages", value, "a list of at least one message")
    return [_message(message, f"messages[{at}]") for at, message in enumerate(value)]


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise wrong(where, message, 'an object with "role" and "content"')
    role = message.get("role")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise wrong(f"{where}.role", role, f"one of {', '.join(ROLES)}, developer")
    for name in ("tool_calls", "function_call", "audio", "images"):
        if message.get(name):
            raise _unsupported(f"{where}.{name}")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}.content[{at}]") for at, part in enumerate(content))
    if not isinstance(content, str):
        raise wrong(f"{where}.content", content, "a string, or a list of text parts")
    return {"role": role, "content": content}


def _part(part: object, where: str) -> str:
    if not isinstance(part, dict):
        raise wrong(where, part, 'an object with "type" and "text"')
    if part.get("type") != "text":
        raise _unsupported(f"{where}.type", repr(part.get("type")))
    text = part.get("text")
    if not isinstance(text, str):
        raise wrong(f"{where}.text", text, "a string")
    return text


def _schema(value: object) -> dict[str, Any] | None:
    """``response_format`` as our ``json_schema``."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong("response_format", value, "an object")
    schema: object
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            where, schema = "response_format.schema", value.get("schema", {"type": "object"})
        case "json_schema":
            inner = value.get("json_schema")
            where, schema = (
                "response_format.json_schema.schema",
                inner.get("schema") if isinstance(inner, dict) else None,
            )
        case other:
            raise wrong("response_format.type", other, '"text", "json_object" or "json_schema"')
    if not isinstance(schema, dict):
        raise wrong(where, schema, "an object: the JSON Schema")
    return schema


def _sampling(body: Mapping[str, Any], limit: str, max_tokens: int) -> dict[str, Any]:
    """The fields that `generate` and theirs have in common."""
    stop = body.get("stop")
    if isinstance(stop, str):
        stop = [stop]
    if stop is not None and not (isinstance(stop, list) and all(isinstance(s, str) for s in stop)):
        raise wrong("stop", stop, "a string, or a list of strings")
    return {
        "max_tokens": tokens(body, limit, max_tokens),
        "temperature": number(body, "temperature"),
        "seed": seed(body),
        "stop": stop or None,
    }


# ------------------------------------------------------------ fields (ollama.py reads with them, too)


def tokens(body: Mapping[str, Any], name: str, default: int, where: str = "") -> int:
    """A number of tokens; -1, as llama.cpp and Ollama say "no limit", counts as not given."""
    value = body.get(name)
    if value is None or value == -1:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise wrong(where + name, value, "a whole number of at least 1")
    return min(value, MAX_TOKENS)


def number(body: Mapping[str, Any], name: str, where: str = "") -> float | None:
    """A number, None where it is not given."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_TOKENS:
        raise wrong(where + name, value, "a number")
    return float(value)


def seed(body: Mapping[str, Any], where: str = "") -> int | None:
    """A seed of any size as one of ours; -1 is llama.cpp's "any"."""
    value = body.get("seed")
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(where + "seed", value, "a whole number")
    return value % SEEDS


def flag(body: Mapping[str, Any], name: str, where: str = "", default: bool = False) -> bool:
    """True or false; ``default`` where it is not given."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(where + name, value, "true or false")
    return value


def model_of(body: Mapping[str, Any]) -> str | None:
    """The model that is asked for; None: whichever there is."""
    value = body.get("model")
    if value is not None and not isinstance(value, str):
        raise wrong("model", value, "a string")
    return value or None


def wrong(param: str, value: object, need: str) -> ApiError:
    """A field that has not the right value."""
    said = "missing" if value is None else _kind_of(value)
    return ApiError(f'field "{param}" is {said}; give {need}', param=param)


def _unsupported(param: str, what: str = "") -> ApiError:
    said = f'field "{param}"' + (f": {what}" if what else "")
    return ApiError(f"{said} is not supported here; leave it out", param=param, code="unsupported_parameter")


def _refuse(body: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if body.get(name):
            raise _unsupported(name)


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, list):
        raise wrong(name, value, "a list")
    return value or []


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case dict():
            return "an object"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return repr(value)[:80]
