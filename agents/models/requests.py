"""What a model can be asked: a text to generate, texts to embed. Each field is checked here, once. Pure.

The values come from other people's programs: nothing here trusts a type, and each check's DefinitionError names the field
and the fix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...bus.errors import DefinitionError

MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_TOKENS: Final = 2**31 - 1  #: llama.cpp counts positions in 32 bits
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_SEED: Final = 2**32 - 2  #: llama.cpp's seed has 32 bits, and its largest value means "any"
MAX_TEMPERATURE: Final = 100
MAX_TEXTS: Final = 1024
MAX_PROMPT_CHARS: Final = 1 << 20
INTEGERS: Final = range(-(2**63), 2**64)  #: that the pipe to the model's process carries
ROLES: Final = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One text to generate.

    Give ``prompt`` or ``messages`` (``{"role", "content"}`` each), not both. A prompt counts as one user message
    where the model has a chat template; a model without one continues the prompt as it is, and reads several messages as a
    text in which each stands below its speaker's name. ``temperature`` 0 takes
    the likeliest token each time; the same ``seed`` (0 to 2^32-2) gives the same text again (alone; in the company of
    other requests llama.cpp computes in larger batches, which round differently), None is any seed. ``stop``: the text
    ends before the first of these strings. ``json_schema``: the text is JSON of the schema, but for the keywords
    that ``grammar.unchecked`` lists, as long as ``max_tokens`` does not end it before. The
    request keeps a copy of it in JSON's own types.

    Raises:
        DefinitionError: a field is wrong; the message names it and the fix.
    """

    prompt: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    max_tokens: int = 256
    temperature: float = 0.8
    seed: int | None = None
    stop: Sequence[str] = ()
    json_schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.prompt is None and self.messages is None:
            raise DefinitionError('generate: neither "prompt" nor "messages" is given; give one of them')
        if self.prompt is not None and self.messages is not None:
            raise DefinitionError('generate: both "prompt" and "messages" are given; give one of them')
        if self.prompt is not None:
            check_text('generate: field "prompt"', self.prompt)
        if self.messages is not None:
            _check_messages(self.messages)
        _check_whole("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _check_temperature(self.temperature)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, MAX_SEED)
        _check_stops(self.stop)
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _plain_schema(self.json_schema))

    def to_map(self) -> dict[str, Any]:
        """As plain data, for the pipe; ``GenerateRequest(**map)`` is the way back."""
        return {
            "prompt": self.prompt,
            "messages": None if self.messages is None else [dict(m) for m in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop": list(self.stop),
            "json_schema": self.json_schema,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts of which each becomes a vector of the model's width: none empty, 1 MiB of characters in all.

    Raises:
        DefinitionError: a text is no text, or there are too many; the message names its index.
    """

    texts: Sequence[str]

    def __post_init__(self) -> None:
        _check_texts(self.texts)

    def to_map(self) -> dict[str, Any]:
        """As plain data, for the pipe; ``EmbedRequest(**map)`` is the way back."""
        return {"texts": list(self.texts)}


def check_text(where: str, text: object) -> None:
    """Any string that can be written down: a half of a surrogate pair is no character of any encoding."""
    if not isinstance(text, str):
        raise DefinitionError(f"{where} is {_kind(text)}; give a string")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DefinitionError(
            f"{where}: character {e.start} is a lone surrogate (U+{ord(text[e.start]):04X}), no text; remove it"
        ) from None


def _check_whole(field: str, value: object, least: int, most: int) -> None:
    """A whole number in its range."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise DefinitionError(f'generate: field "{field}" is {_kind(value)}; give a whole number')
    if not least <= value <= most:
        shown = value if -(2**64) < value < 2**65 else "a number of more than 64 bits"
        raise DefinitionError(f'generate: field "{field}" is {shown}; give {least} to {most}')


def _check_temperature(value: object) -> None:
    """A number from 0 to 100; NaN is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DefinitionError(f'generate: field "temperature" is {_kind(value)}; give a number')
    if not 0 <= value <= MAX_TEMPERATURE:
        raise DefinitionError(f'generate: field "temperature" is out of range; give 0 to {MAX_TEMPERATURE}')


def _check_messages(messages: object) -> None:
    """A list of ``{"role", "content"}``."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise DefinitionError(f'generate: field "messages" is {_kind(messages)}; give a list')
    if not messages:
        raise DefinitionError('generate: field "messages" is empty; give at least one {"role", "content"}')
    for i, message in enumerate(messages):
        where = f"generate: messages[{i}]"
        if not isinstance(message, Mapping):
            raise DefinitionError(f'{where} is {_kind(message)}; give {{"role", "content"}}')
        if set(message) != {"role", "content"}:
            fields = ", ".join(sorted(map(repr, message)))
            raise DefinitionError(f'{where} has the fields {fields:.200}; it takes "role" and "content"')
        if message["role"] not in ROLES:
            raise DefinitionError(f"{where}: role {message['role']!r:.40}; one of {', '.join(ROLES)}")
        check_text(f"{where}: its content", message["content"])


def _check_stops(stops: object) -> None:
    """A list of at most 16 strings."""
    if not isinstance(stops, Sequence) or isinstance(stops, str | bytes):
        raise DefinitionError(f'generate: field "stop" must be a list of strings; it is {_kind(stops)}')
    if len(stops) > MAX_STOPS:
        raise DefinitionError(f'generate: field "stop" has {len(stops)} strings; at most {MAX_STOPS}')
    for i, stop in enumerate(stops):
        check_text(f'generate: field "stop"[{i}]', stop)
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            raise DefinitionError(
                f'generate: field "stop": {stop[:20]!r} has {len(stop)} characters; 1 to {MAX_STOP_CHARS}'
            )


def _plain_schema(schema: object) -> dict[str, Any]:
    """A copy of the schema as JSON knows it: keys are strings, numbers are finite and have at most 64 bits."""
    if not isinstance(schema, Mapping):
        raise DefinitionError(f'generate: field "json_schema" is {_kind(schema)}; give an object')
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
        if size > MAX_SCHEMA_BYTES:
            raise DefinitionError(
                f'generate: field "json_schema" has {size} bytes; at most {MAX_SCHEMA_BYTES}'
            )
        plain: dict[str, Any] = json.loads(text, parse_int=_int_of_json)
    except (TypeError, ValueError, RecursionError) as e:
        raise DefinitionError(f'generate: field "json_schema" is no JSON: {e!s:.200}') from e
    return plain


def _check_texts(texts: object) -> None:
    """What is to be embedded: strings, none empty, all together as long as one prompt may be."""
    if not isinstance(texts, Sequence) or isinstance(texts, str | bytes):
        raise DefinitionError(f'embed: field "texts" is {_kind(texts)}; give a list of strings')
    if not 0 < len(texts) <= MAX_TEXTS:
        raise DefinitionError(f'embed: field "texts" has {len(texts)} strings; 1 to {MAX_TEXTS}')
    for i, text in enumerate(texts):
        check_text(f"embed: texts[{i}]", text)
        if not text:
            raise DefinitionError(f"embed: texts[{i}] is empty; give some text, or leave it out")
    if (size := sum(map(len, texts))) > MAX_PROMPT_CHARS:
        raise DefinitionError(
            f'embed: field "texts" has {size} characters in all; at most {MAX_PROMPT_CHARS}, so ask several times'
        )


def _int_of_json(text: str) -> int:
    value = int(text)
    if value not in INTEGERS:
        raise ValueError(f"the number {text[:20]}… has more than 64 bits")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
