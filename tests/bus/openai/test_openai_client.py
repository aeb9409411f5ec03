"""The client's end: our payloads as bodies, and answers of every kind of server, cut anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bus.errors import DefinitionError
from rigbus.bus.openai.answers import Answer, embedding_list
from rigbus.bus.openai.client import (
    AnswerReader,
    BadAnswer,
    chat_body,
    embeddings_body,
    error_words,
    read_models,
    read_vectors,
)
from rigbus.bus.openai.requests import chat_call, embed_call

FULL = {
    "prompt": None,
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 5,
    "temperature": 0.5,
    "seed": 3,
    "stop": ["x"],
    "json_schema": {"type": "object"},
}
RESULT = {
    "text": "one two",
    "finish": "length",
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 3},
}


def streamed(data: bytes, step: int = 10_000) -> tuple[str, AnswerReader]:
    reader = AnswerReader(streamed=True)
    texts = [t for at in range(0, len(data), step) for t in reader.feed(data[at : at + step])]
    texts += reader.end()
    return "".join(texts), reader


def whole(value: object) -> tuple[str, AnswerReader]:
    reader = AnswerReader(streamed=False)
    assert reader.feed(json.dumps(value).encode()) == []
    return "".join(reader.end()), reader


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def test_what_we_ask_is_what_our_server_reads() -> None:
    call = chat_call(chat_body(FULL, "m"))
    assert call.payload == {name: value for name, value in FULL.items() if value is not None}
    assert (call.model, call.stream, call.include_usage) == ("m", True, True)
    assert embed_call(embeddings_body(["a", "b"], "m")).texts == ["a", "b"]


def test_a_prompt_is_one_user_message_and_what_is_not_given_is_not_sent() -> None:
    body = chat_body({"prompt": "hi", "stop": []}, "m", stream=False)
    assert body == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}


def test_a_cloud_may_want_the_limit_under_another_name() -> None:
    body = chat_body(FULL, "m", limit_field="max_completion_tokens")
    assert body["max_completion_tokens"] == 5
    assert "max_tokens" not in body


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5),
    st.integers(1, 40),
)
def test_a_stream_of_ours_is_read_whatever_the_cuts(texts: list[str], step: int) -> None:
    shape = Answer(kind="chat", number="1", created=0, model="m", include_usage=True)
    data = shape.first() + b"".join(shape.piece(t) + shape.idle() for t in texts) + shape.last(RESULT)
    text, reader = streamed(data, step)
    assert text == "".join(texts)
    assert (reader.finish, reader.done, reader.pieces) == ("length", True, len(texts))
    assert reader.usage == RESULT["usage"]


def test_a_server_that_does_not_stream_is_read_as_well() -> None:
    text, reader = whole(Answer(kind="chat", number="1", created=0, model="m").whole(RESULT))
    assert (text, reader.finish, reader.usage) == ("one two", "length", RESULT["usage"])


def test_streams_of_other_servers() -> None:
    data = (
        b"event: message\r\ndata: "
        + json.dumps({"choices": [{"delta": {"role": "assistant", "content": None}}]}).encode()
        + b"\r\n\r\n"
        + event({"choices": [{"delta": {"reasoning_content": "hm"}}], "usage": None})
        + event({"choices": [{"delta": {"content": "yes"}, "finish_reason": None}]})
        + event({"choices": [{"delta": None, "finish_reason": "stop"}]})
        + event({"choices": None, "usage": {"prompt_tokens": 4, "completion_tokens": "x"}})
    )
    text, reader = streamed(data)  # and no [DONE]
    assert (text, reader.finish, reader.done) == ("yes", "stop", False)
    assert reader.usage == {"prompt_tokens": 4, "completion_tokens": 0, "cached_tokens": 0}


def test_what_follows_done_is_not_read() -> None:
    data = (
        event({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]})
        + b"data: [DONE]\n\ndata: ??\n\n"
    )
    assert streamed(data)[0] == "a"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>hello</html>",
        b": ping\n\n",
        event({"choices": [{"delta": {"content": "half"}}]}),
        event({"choices": [{"delta": {"content": "half"}}]}) + b"data: [DONE]\n\n",
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: " + b"[" * 200_000 + b"\n\n",
        b"data: \xff\xfe\n\n",
        event({"choices": {"a": 1}}),
        event({"choices": [5]}),
        event({"choices": [{"delta": "text"}]}),
        event({"choices": [{"delta": {"content": ["a"]}, "finish_reason": "stop"}]}),
        event({"error": {"message": "out of memory", "type": "server_error"}}),
        event({"error": "out of memory"}),
        b"data: " + b"x" * (1 << 21),
    ],
)
def test_a_stream_that_is_none_is_a_bad_answer(data: bytes) -> None:
    with pytest.raises(BadAnswer) as bad:
        streamed(data, 64 * 1024)
    assert bad.value.error_class == "infra"
    assert len(str(bad.value)) < 700


def test_a_request_that_is_refused_in_its_stream_is_not_tried_again() -> None:
    with pytest.raises(DefinitionError, match="too long"):
        streamed(event({"error": {"message": "too long", "type": "invalid_request_error"}}))
    with pytest.raises(DefinitionError, match="filter"):
        streamed(event({"choices": [{"delta": {}, "finish_reason": "content_filter"}]}))


@pytest.mark.parametrize(
    "value", [None, [], {}, {"choices": []}, {"choices": [{"message": 5}]}, {"error": "no"}]
)
def test_an_answer_that_is_none_is_a_bad_answer(value: Any) -> None:
    with pytest.raises(BadAnswer):
        whole(value)


# ------------------------------------------------------------ vectors, models, errors


def test_vectors_come_back_in_the_order_of_the_texts() -> None:
    value = embedding_list([[0.5, 1.0], [2.0, 3.0]], "m", 7, base64=False)
    value["data"].reverse()
    assert read_vectors(json.dumps(value).encode(), 2) == ([[0.5, 1.0], [2.0, 3.0]], 7)


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        [{"embedding": [1.0]}],
        [{"embedding": [1.0]}, 5],
        [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}],
        [{"embedding": [1.0]}, {"embedding": []}],
        [{"embedding": [1.0]}, {"embedding": "AAAA"}],
        [{"embedding": [1.0]}, {"embedding": [10**400]}],
        [{"embedding": [1.0]}, {"embedding": [None]}],
        [{"embedding": [1.0]}, {"embedding": [float("nan")]}],
    ],
)
def test_vectors_that_are_none_are_a_bad_answer(rows: Any) -> None:
    with pytest.raises(BadAnswer):
        read_vectors(json.dumps({"data": rows}).encode(), 2)


def test_the_names_of_models() -> None:
    assert read_models(b'{"data": [{"id": "a"}, {"id": 5}, 7, {"id": "b"}]}') == ["a", "b"]
    for body in (b"<html>", b"[]", b"{}", b'{"data": 5}'):
        with pytest.raises(BadAnswer):
            read_models(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "no  such\\nmodel"}}', "no such model"),
        (b'{"error": "gone"}', "gone"),
        (b'{"message": "gone"}', "gone"),
        (b'{"detail": [{"msg": "x"}]}', "[{'msg': 'x'}]"),
        (b"<h1>502</h1>", "<h1>502</h1>"),
        (b"", ""),
        (b"\xff" * 5000, "\ufffd" * 300),
    ],
)
def test_what_a_server_says_of_its_error(body: bytes, words: str) -> None:
    assert error_words(body) == words
