"""What a request may be, and what is left of it at the end: no process, no llama.cpp."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rigbus.agents.models.protocol import (
    Chunk,
    EmbedRequest,
    GenerateRequest,
    LoadOptions,
    Queued,
    Usage,
    collect,
)
from rigbus.bus.errors import DefinitionError


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"prompt": 5}, '"prompt" is int'),
        ({"prompt": "ab\ud800"}, r"character 2 is a lone surrogate \(U\+D800\)"),
        ({"messages": 5}, '"messages" is int'),
        ({"messages": [5]}, r"messages\[0\] is int"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"role \['user'\]"),
        ({"messages": [{"role": "user", "content": 5}]}, "its content is int"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "surrogate"),
        ({"messages": [{1: "user", "content": "x"}]}, "has the fields 'content', 1"),
        ({"prompt": "a", "max_tokens": True}, '"max_tokens" is bool'),
        ({"prompt": "a", "max_tokens": 2.0}, '"max_tokens" is float'),
        ({"prompt": "a", "max_tokens": 2**31}, "give 1 to 2147483647"),
        ({"prompt": "a", "max_tokens": 10**5000}, "more than 64 bits"),
        ({"prompt": "a", "temperature": "hot"}, '"temperature" is str'),
        ({"prompt": "a", "temperature": True}, '"temperature" is bool'),
        ({"prompt": "a", "temperature": 10**400}, "out of range"),
        ({"prompt": "a", "seed": 1.5}, '"seed" is float'),
        ({"prompt": "a", "seed": True}, '"seed" is bool'),
        ({"prompt": "a", "stop": [5]}, r'"stop"\[0\] is int'),
        ({"prompt": "a", "stop": b"end"}, '"stop" must be a list'),
        ({"prompt": "a", "stop": ["\ud800"]}, "surrogate"),
        ({"prompt": "a", "json_schema": {"const": 2**64}}, "more than 64 bits"),
        ({"prompt": "a", "json_schema": {"const": float("inf")}}, "no JSON"),
        ({"prompt": "a", "json_schema": {"const": "\ud800"}}, "no JSON"),
        ({"prompt": "a", "json_schema": nested(100_000)}, "no JSON"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(DefinitionError, match=word):
        GenerateRequest(**fields)


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        ("one text", "give a list"),
        ([], "0 strings"),
        (["x"] * 1025, "1025 strings; 1 to 1024"),
        (["a", ""], r"texts\[1\] is empty"),
        (["a", None], r"texts\[1\] is null"),
        (["a", "\ud800"], r"texts\[1\]: character 0"),
        (["x" * 600_000] * 2, "1200000 characters in all"),
    ],
)
def test_texts_that_cannot_be_embedded_are_named(texts: Any, word: str) -> None:
    with pytest.raises(DefinitionError, match=word):
        EmbedRequest(texts=texts)


def test_a_schema_is_kept_as_json_knows_it() -> None:
    schema: dict[Any, Any] = {"properties": {1: {"enum": (1, 2)}}}
    request = GenerateRequest(prompt="x", json_schema=schema)
    schema["properties"][1] = {}
    assert request.json_schema == {"properties": {"1": {"enum": [1, 2]}}}


@pytest.mark.parametrize("options", [{"path": "/\udc80"}, {"name": "\udc80"}, {"queue": -1}, {"queue": 5000}])
def test_options_that_no_child_could_take_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=next(iter(options))):
        LoadOptions(**{"path": "x", "name": "x", **options})


class Said:
    """A generation that says these items."""

    def __init__(self, *items: Chunk | Queued | Usage | None) -> None:
        self._items = iter(items)
        self.cancelled = False

    def __iter__(self) -> Any:
        raise AssertionError("collect polls")

    def __next__(self) -> Any:
        raise AssertionError("collect polls")

    def poll(self, timeout_s: float) -> Chunk | Queued | Usage | None:
        return next(self._items)

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.parametrize(("finish", "value"), [("stop", [1]), ("length", None), ("cancelled", None)])
def test_only_a_text_that_ended_by_itself_has_a_value(finish: Any, value: Any) -> None:
    """A number that is cut off is JSON, too, and another number."""
    result = collect(Said(Chunk("[1]"), Usage(finish=finish)), "m", as_json=True)
    assert result.json == value


@pytest.mark.parametrize("text", ["[1", "[" * 100_000, "\ud800"])
def test_a_text_that_is_no_json_has_no_value(text: str) -> None:
    assert collect(Said(Chunk(text), Usage()), "m", as_json=True).json is None


def test_who_collects_hears_its_place_and_of_each_wait() -> None:
    heard: list[Any] = []
    said = Said(Queued(2), None, Queued(0), Chunk(json.dumps(1)), Usage())
    result = collect(said, "m", on_queue=heard.append, on_wait=lambda: heard.append("silence"))
    assert (heard, result.text, said.cancelled) == ([2, "silence", 0], "1", True)
