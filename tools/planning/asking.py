"""What a planner is asked, and how its words become one JSON object. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from ...bus.errors import RigbusError

MAX_ANSWER_BYTES: Final = 4 << 20
_FENCE: Final = re.compile(r"```[A-Za-z]*[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL)
_TRIES: Final = 40  #: places of a text where an object may begin


class AskFailed(RigbusError):
    """The planner gave no answer at all: it died, hung, or its server did not answer. Another time may do."""


class NoObject(ValueError):
    """What it said is not one JSON object; the text says what it is."""


@dataclass(frozen=True, slots=True)
class Question:
    """``document`` is the JSON for a program, ``system`` and ``user`` are the words for a model; ``schema`` is what the
    answer must be. ``names`` are variables for a program's environment.
    """

    kind: Literal["answer", "plan"]
    document: Mapping[str, Any]
    system: str
    user: str
    schema: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)


class Planner(Protocol):
    """Whoever is asked: a command, or a model behind HTTP."""

    name: str  #: for people, and for `by` of an answer

    def ask(self, question: Question) -> str:
        """Its answer as it came, at most MAX_ANSWER_BYTES.

        Raises:
            AskFailed: none came.  ConfigError: it can never answer as it is configured.
        """
        ...


def object_in(text: str) -> dict[str, Any]:
    """The object that an answer is: alone, in a fence, behind words, or as the result in what `claude -p` prints.

    Raises:
        NoObject: there is none, or it was cut off.
    """
    value = _object(text.strip().lstrip("\ufeff"))
    if value.get("type") == "result" and ("result" in value or "structured_output" in value):
        return _unwrapped(value)
    return value


def _unwrapped(envelope: Mapping[str, Any]) -> dict[str, Any]:
    structured = envelope.get("structured_output")
    if isinstance(structured, dict):
        return structured
    said = envelope.get("result")
    if envelope.get("is_error"):
        raise NoObject(f"the program reports an error: {str(said)[:300]}")
    if isinstance(said, dict):
        return said
    if not isinstance(said, str):
        raise NoObject("its `result` is no text")
    return _object(said.strip())


def _object(text: str) -> dict[str, Any]:
    if not text:
        raise NoObject("it said nothing")
    for candidate in (text, *_FENCE.findall(text)):
        value = _loaded(candidate)
        if value is not None:
            return value
    decoder = json.JSONDecoder()
    at = -1
    for _ in range(_TRIES):
        at = text.find("{", at + 1)
        if at < 0:
            break
        try:
            value, _end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value:
            return value
    raise NoObject(f"no JSON object is in it; it begins {text[:120]!r}")


def _loaded(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
