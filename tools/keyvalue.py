"""``K=V`` on the command line, and JSON objects: how words become values. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..bus.errors import ConfigError


def value_of(text: str) -> Any:
    """A number, a truth value, a list or an object where ``text`` is JSON for one; otherwise the text itself."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return text  # the wire has no larger ones
    return value if isinstance(value, (bool, int, float, list, dict)) else text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def pairs(words: Iterable[str], option: str) -> dict[str, Any]:
    """``{K: value}`` of ``K=V`` words; the last one of a name counts.

    Raises:
        ConfigError: a word has no ``=`` or no name; ``option`` says where it stood.
    """
    out: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {word!r}: write it as NAME=VALUE")
        out[name] = value_of(text)
    return out


def json_object(text: str, option: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConfigError: it is none; ``option`` says where it stood.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise ConfigError(
            f'{option}: no JSON ({e}); write an object, such as \'{{"KEY": "value"}}\''
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(f'{option}: not an object; write \'{{"KEY": "value"}}\'')
    return value
