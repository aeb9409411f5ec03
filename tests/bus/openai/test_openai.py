"""The OpenAI shapes as a server reads and writes them."""

from __future__ import annotations

import json
from base64 import b64decode
from struct import unpack
from typing import Any

import pytest

from rigbus.bus.openai.answers import DONE, Answer, embedding_list, finish_reason, model_list, usage_map
from rigbus.bus.openai.requests import ApiError, chat_call, completion_call, embed_call, read_json
from rigbus.bus.openai.sse import EventReader

HI = [{"role": "user", "content": "hi"}]
RESULT = {
    "text": "good day",
    "finish": "length",
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 3},
    "timings": {},
}


def chat(**fields: Any) -> dict[str, Any]:
    return chat_call({"messages": HI, **fields}).payload


# ------------------------------------------------------------ requests


def test_a_plain_chat_asks_for_a_text() -> None:
    call = chat_call({"model": "m", "messages": HI}, max_tokens=77)
    assert call.payload == {"messages": HI, "max_tokens": 77}
    assert (call.kind, call.model, call.stream, call.include_usage) == ("chat", "m", False, False)


def test_every_field_that_generate_knows_is_taken() -> None:
    payload = chat(max_tokens=9, temperature=0, seed=4, stop=["a", "b"], top_p=0.5, user="me", colour="red")
    assert payload == {"messages": HI, "max_tokens": 9, "temperature": 0.0, "seed": 4, "stop": ["a", "b"]}


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        ({"stop": "END"}, "stop", ["END"]),
        ({"max_completion_tokens": 5, "max_tokens": 9}, "max_tokens", 5),
        ({"max_tokens": 2**80}, "max_tokens", 2**31 - 1),
        ({"max_tokens": -1}, "max_tokens", 1024),
        ({"seed": 2**40 + 5}, "seed", (2**40 + 5) % (2**32 - 1)),
        ({"seed": -7}, "seed", 2**32 - 8),
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
        ({"response_format": {"type": "json_object", "schema": {"a": 1}}}, "json_schema", {"a": 1}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"b": 2}}}},
            "json_schema",
            {"b": 2},
        ),
    ],
)
def test_a_field_becomes_ours(fields: dict[str, Any], key: str, value: object) -> None:
    assert chat(**fields)[key] == value


@pytest.mark.parametrize(
    "fields", [{"seed": -1}, {"seed": None}, {"stop": None}, {"response_format": {"type": "text"}}]
)
def test_a_field_that_says_nothing_is_left_out(fields: dict[str, Any]) -> None:
    assert chat(**fields) == {"messages": HI, "max_tokens": 1024}


def test_text_parts_become_one_text_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    said = [{"role": "developer", "content": "be brief", "name": "x"}, {"role": "user", "content": parts}]
    assert chat(messages=said)["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
    ]


def test_streaming_is_asked_for_with_or_without_the_usage() -> None:
    assert chat_call({"messages": HI, "stream": True}).stream
    call = chat_call({"messages": HI, "stream": True, "stream_options": {"include_usage": True}})
    assert call.include_usage


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"n": 2}, "n"),
        ({"n": [1]}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    ],
)
def test_what_we_cannot_do_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert (refused.value.param, refused.value.code, refused.value.status) == (
        param,
        "unsupported_parameter",
        400,
    )


@pytest.mark.parametrize(
    "fields", [{"tools": []}, {"tool_choice": "none"}, {"logprobs": False}, {"n": 1}, {"n": None}]
)
def test_what_asks_for_nothing_is_not_refused(fields: dict[str, Any]) -> None:
    chat(**fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": [1]}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"model": 5}, "model"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": ["x"]}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": 5}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat_call({"messages": HI, **fields})
    assert refused.value.param == param
    assert refused.value.to_map()["error"] == {
        "message": str(refused.value),
        "type": "invalid_request_error",
        "param": param,
        "code": None,
    }


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no Unicode"),
        (b'{"a": "\xed\xa0\x80"}', "no Unicode"),
        ('{"a": 1}'.encode("utf-16"), "no Unicode"),
        (b"[1]", "a list"),
        (b"null", "null"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"a": "\\ud800"}', "no Unicode"),
        (b'{"\\uDfff": 1}', "no Unicode"),
        (b'{"a":' * 100_000, "nested too deep"),
    ],
)
def test_a_body_that_is_no_request_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(ApiError, match=word) as refused:
        read_json(data)
    assert len(str(refused.value)) < 400


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert read_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}


def test_a_completion_takes_one_prompt() -> None:
    assert completion_call({"prompt": "a"}).payload["prompt"] == "a"
    assert completion_call({"prompt": ["a"]}).payload["prompt"] == "a"
    for prompt in (["a", "b"], [1, 2], [[1]], 5, None):
        with pytest.raises(ApiError) as refused:
            completion_call({"prompt": prompt})
        assert refused.value.param == "prompt"
    for field in ("suffix", "echo", "logprobs", "best_of"):
        with pytest.raises(ApiError, match=field):
            completion_call({"prompt": "a", field: 5})


def test_embeddings_take_strings_only() -> None:
    assert embed_call({"input": "a"}).texts == ["a"]
    call = embed_call({"input": ["a", "b"], "encoding_format": "base64"})
    assert (call.texts, call.base64) == (["a", "b"], True)
    for fields in ({}, {"input": []}, {"input": [1, 2]}, {"input": ["a"] * 3000}, {"input": {"a": 1}}):
        with pytest.raises(ApiError, match="input"):
            embed_call(fields)
    for field, value in (("dimensions", 5), ("encoding_format", "hex"), ("encoding_format", ["float"])):
        with pytest.raises(ApiError, match=field):
            embed_call({"input": "a", field: value})


# ------------------------------------------------------------ answers


def answer(kind: Any = "chat", include_usage: bool = False) -> Answer:
    return Answer(kind=kind, number="7", created=99, model="m", include_usage=include_usage)


def chunks(data: bytes) -> list[Any]:
    *events, done = EventReader().feed(data)
    assert done == "[DONE]"
    return [json.loads(e) for e in events]


def test_a_whole_chat_answer() -> None:
    assert answer().whole(RESULT) == {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 99,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "good day", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


def test_a_whole_completion() -> None:
    value = answer("completion").whole(RESULT)
    assert (value["id"], value["object"]) == ("cmpl-7", "text_completion")
    assert value["choices"] == [{"index": 0, "text": "good day", "logprobs": None, "finish_reason": "length"}]


def test_a_streamed_chat_says_its_role_first_and_why_it_ended_last() -> None:
    shape = answer()
    read = chunks(
        shape.first() + shape.piece("good\n") + shape.idle() + shape.piece(" day") + shape.last(RESULT)
    )
    assert {c["object"] for c in read} == {"chat.completion.chunk"}
    assert [c["choices"][0]["delta"] for c in read] == [
        {"role": "assistant", "content": ""},
        {"content": "good\n"},
        {"content": " day"},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in read] == [None, None, None, "length"]
    assert not any("usage" in c for c in read)


def test_a_streamed_completion_ends_with_the_usage_where_it_was_asked_for() -> None:
    shape = answer("completion", include_usage=True)
    read = chunks(shape.first() + shape.piece("good") + shape.last(RESULT))
    assert [c["choices"][0]["text"] for c in read[:-1]] == ["good", ""]
    assert [c["usage"] for c in read[:-1]] == [None, None]
    assert read[-1]["choices"] == []
    assert read[-1]["usage"] == usage_map(RESULT["usage"])  # type: ignore[arg-type]


def test_a_stream_that_fails_has_no_done() -> None:
    data = answer().failed(ApiError("gone", status=500, kind="server_error"))
    assert DONE not in data
    assert json.loads(EventReader().feed(data)[0])["error"]["message"] == "gone"


def test_a_cancelled_text_is_not_called_whole() -> None:
    assert [finish_reason(f) for f in ("stop", "length", "cancelled")] == ["stop", "length", "length"]


def test_vectors_are_given_as_numbers_or_as_bytes() -> None:
    vectors = [[0.5, -1.0], [0.25, 2.0]]
    plain = embedding_list(vectors, "m", 9, base64=False)
    assert [row["embedding"] for row in plain["data"]] == vectors
    assert [row["index"] for row in plain["data"]] == [0, 1]
    assert plain["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    packed = embedding_list(vectors, "m", 9, base64=True)
    assert [list(unpack("<2f", b64decode(row["embedding"]))) for row in packed["data"]] == vectors


def test_the_list_of_models() -> None:
    value = model_list(["a", "b"], 5)
    assert value["object"] == "list"
    assert [(m["id"], m["object"], m["created"]) for m in value["data"]] == [
        ("a", "model", 5),
        ("b", "model", 5),
    ]
