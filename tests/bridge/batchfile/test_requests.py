"""Lines become tasks of our types; each that cannot says why, and costs nothing but itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bridge.batchfile.answers import bad_line
from rigbus.bridge.batchfile.lines import Line
from rigbus.bridge.batchfile.requests import BadLine, Reader, Request
from rigbus.bus.wire import unpack

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def line(body: Any = None, number: int = 1, **changes: Any) -> Line:
    fields = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": CHAT if body is None else body,
    }
    return raw(json.dumps({**fields, **changes}).encode(), number)


def raw(data: bytes, number: int = 1) -> Line:
    return Line(number, data, len(data))


def read(given: Line, **how: Any) -> Request:
    found = Reader(**how).read(given)
    assert isinstance(found, Request), found
    return found


def refused(given: Line, **how: Any) -> BadLine:
    found = Reader(**how).read(given)
    assert isinstance(found, BadLine), found
    return found


class TestGood:
    def test_a_chat_becomes_generate(self) -> None:
        schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        found = read(line({**CHAT, "max_tokens": 5, "model": "m", "response_format": form, "top_p": 0.5}))
        assert (found.type, found.shape, found.model, found.custom_id) == ("generate", "chat", "m", "a")
        assert unpack(found.payload) == {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 5,
            "json_schema": schema,
            "model": "m",
        }

    def test_a_prompt_becomes_generate(self) -> None:
        found = read(line({"prompt": "once"}, url="/v1/completions"))
        assert (found.type, found.shape, found.model) == ("generate", "completion", None)
        assert unpack(found.payload)["prompt"] == "once"

    def test_texts_become_embed(self) -> None:
        found = read(line({"input": ["a", "b"]}, url="/v1/embeddings"))
        assert (found.type, found.shape, unpack(found.payload)) == (
            "embed",
            "embedding",
            {"texts": ["a", "b"]},
        )
        coded = read(line({"input": "a", "encoding_format": "base64"}, url="/v1/embeddings"))
        assert coded.shape == "embedding-base64"

    @pytest.mark.parametrize("blank", [b"", b"  ", b"\r", b"\t\r"])
    def test_an_empty_line_is_none(self, blank: bytes) -> None:
        reader = Reader()
        assert reader.read(raw(blank)) is None
        assert (reader.requests, reader.bad) == (0, 0)

    def test_the_same_line_is_always_the_same_task(self) -> None:
        given = line({**CHAT, "seed": 3, "stop": ["x"], "temperature": 0.5})
        assert read(given) == read(given)


BAD: dict[str, tuple[Line, str]] = {
    "no JSON": (raw(b"rubbish"), "invalid_json_line"),
    "half a line": (raw(b'{"custom_id": "a", "met'), "invalid_json_line"),
    "a list": (raw(b"[1]"), "invalid_json_line"),
    "no UTF-8": (raw(b'{"custom_id": "\xff"}'), "invalid_json_line"),
    "zeros": (raw(bytes(40)), "invalid_json_line"),
    "a lone surrogate": (raw(rb'{"custom_id": "\ud800"}'), "invalid_json_line"),
    "not a number": (raw(b'{"custom_id": NaN}'), "invalid_json_line"),
    "nested too deep": (raw(b"[" * 100_000), "invalid_json_line"),
    "too long": (Line(1, None, 2 << 30), "line_too_large"),
    "no custom_id": (line(custom_id=None), "missing_custom_id"),
    "an empty custom_id": (line(custom_id=""), "missing_custom_id"),
    "a custom_id that is a number": (line(custom_id=7), "missing_custom_id"),
    "a long custom_id": (line(custom_id="x" * 257), "invalid_custom_id"),
    "GET": (line(method="GET"), "invalid_method"),
    "no method": (line(method=None), "invalid_method"),
    "an unknown url": (line(url="/v1/images"), "invalid_url"),
    "a url that is a list": (line(url=["/v1/completions"]), "invalid_url"),
    "no body": (line("text"), "invalid_body"),
    "stream": (line({**CHAT, "stream": True}), "unsupported_parameter"),
    "tools": (line({**CHAT, "tools": [1]}), "unsupported_parameter"),
    "no messages": (line({"prompt": "x"}), "invalid_request_error"),
    "too large": (line({"messages": [{"role": "user", "content": "x" * 300_000}]}), "request_too_large"),
    "too many texts": (line({"input": ["x"] * 1025}, url="/v1/embeddings"), "invalid_request_error"),
    "a number beyond 64 bits": (
        line({**CHAT, "response_format": {"type": "json_object", "schema": {"maximum": 1 << 70}}}),
        "invalid_request_error",
    ),
}


class TestBad:
    @pytest.mark.parametrize("what", BAD)
    def test_a_bad_line_is_an_error_with_its_number_and_nothing_else(self, what: str) -> None:
        given, code = BAD[what]
        found = refused(Line(7, given.data, given.size))
        assert (found.line, found.code) == (7, code)
        assert found.message
        said = json.loads(bad_line("00ff", found))
        assert said["line"] == 7
        assert (said["error"] is None) == bool(found.status)

    def test_the_second_of_one_custom_id_is_refused_also_where_the_first_was_bad(self) -> None:
        reader = Reader()
        assert isinstance(reader.read(line(custom_id="x", method="GET")), BadLine)
        again = reader.read(line(custom_id="x", number=2))
        assert isinstance(again, BadLine)
        assert (again.code, again.custom_id, again.line) == ("duplicate_custom_id", "x", 2)

    def test_a_model_that_nobody_has_is_named_with_the_nearest(self) -> None:
        found = refused(line({**CHAT, "model": "smal"}), models={"small", "large"})
        assert (found.status, found.code) == (404, "model_not_found")
        assert "did you mean 'small'" in found.message
        assert isinstance(Reader({"small"}).read(line({**CHAT, "model": "small"})), Request)
        assert isinstance(Reader().read(line({**CHAT, "model": "any"})), Request)  # nobody knows yet

    def test_a_file_has_so_many_requests_and_the_rest_are_errors(self) -> None:
        reader = Reader(max_requests=2)
        found = [reader.read(line(custom_id=str(n), number=n)) for n in range(1, 5)]
        assert [type(one) for one in found] == [Request, Request, BadLine, BadLine]
        assert (reader.requests, reader.bad) == (2, 2)
        assert isinstance(found[3], BadLine) and found[3].code == "too_many_requests"

    def test_the_requests_of_a_file_have_so_many_bytes(self) -> None:
        reader = Reader(max_bytes=100)
        found = [reader.read(line(custom_id=str(n), number=n)) for n in range(1, 9)]
        good = [one for one in found if isinstance(one, Request)]
        assert 0 < sum(len(one.payload) for one in good) <= 100
        assert isinstance(found[-1], BadLine) and found[-1].code == "too_many_requests"

    @given(st.binary(max_size=200))
    def test_no_bytes_break_the_reader(self, data: bytes) -> None:
        reader = Reader()
        found = reader.read(raw(data.replace(b"\n", b"")))
        assert found is None or isinstance(found, BadLine)

    JSONISH = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
    FIELDS = st.sampled_from(
        [
            "messages",
            "prompt",
            "input",
            "model",
            "max_tokens",
            "stop",
            "seed",
            "response_format",
            "n",
            "stream",
        ]
    )

    @given(
        st.dictionaries(FIELDS, JSONISH), st.sampled_from(["chat/completions", "completions", "embeddings"])
    )
    def test_no_body_breaks_the_reader(self, body: dict[str, Any], path: str) -> None:
        found = Reader().read(line(body, url=f"/v1/{path}"))
        if isinstance(found, BadLine):
            assert json.loads(bad_line("00ff", found))["custom_id"] in ("a", None)
