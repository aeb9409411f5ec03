"""Ollama's own shapes, as far as older scripts use them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rigbus.bus.openai.ollama import (
    Answer,
    chat_call,
    embedding_call,
    embedding_map,
    error_map,
    generate_call,
    tag_list,
)
from rigbus.bus.openai.requests import ApiError

RESULT = {
    "text": "good day",
    "finish": "stop",
    "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    "timings": {"queued_s": 0.5, "prefill_s": 1.0, "decode_s": 2.0, "load_s": 9.0},
}


def test_a_prompt_with_its_options() -> None:
    options = {"num_predict": 7, "temperature": 0.1, "seed": 3, "stop": ["x"], "num_ctx": 4096}
    call = generate_call(
        {"model": "m:latest", "prompt": "a", "options": options, "format": "json", "keep_alive": "5m"}
    )
    assert call.payload == {
        "prompt": "a",
        "max_tokens": 7,
        "temperature": 0.1,
        "seed": 3,
        "stop": ["x"],
        "json_schema": {"type": "object"},
    }
    assert call.model == "m"
    assert call.stream, "Ollama streams where nothing is said"


def test_a_system_text_makes_two_messages() -> None:
    call = generate_call({"prompt": "a", "system": "be brief", "stream": False})
    assert call.payload["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
    ]
    assert not call.stream


def test_a_chat_with_a_schema() -> None:
    call = chat_call({"messages": [{"role": "user", "content": "a"}], "format": {"type": "array"}})
    assert call.payload["json_schema"] == {"type": "array"}


@pytest.mark.parametrize("limit", [-1, -2, None])
def test_no_limit_is_our_own(limit: int | None) -> None:
    assert generate_call({"prompt": "a", "options": {"num_predict": limit}}, 55).payload["max_tokens"] == 55


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "images": ["x"]}, "images"),
        ({"prompt": "a", "raw": True}, "raw"),
        ({"prompt": "a", "context": [1]}, "context"),
        ({"prompt": "a", "system": 5}, "system"),
        ({"prompt": "a", "options": [1]}, "options"),
        ({"prompt": "a", "options": {"stop": 5}}, "options.stop"),
        ({"prompt": "a", "options": {"seed": "x"}}, "options.seed"),
        ({"prompt": "a", "options": {"num_predict": 0}}, "options.num_predict"),
        ({"prompt": "a", "format": "xml"}, "format"),
        ({"prompt": "a", "stream": "no"}, "stream"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        generate_call(fields)
    assert refused.value.param == param
    assert param in str(error_map(refused.value)["error"])


def test_an_answer_comes_whole_or_by_lines() -> None:
    shape = Answer(kind="completion", created=0, model="m")
    whole = shape.whole(RESULT)
    assert (whole["response"], whole["done"], whole["done_reason"]) == ("good day", True, "stop")
    assert (whole["prompt_eval_count"], whole["eval_count"]) == (5, 2)
    assert (whole["total_duration"], whole["eval_duration"]) == (3_500_000_000, 2_000_000_000)
    assert whole["created_at"] == "1970-01-01T00:00:00Z"
    data = shape.first() + shape.piece("good\n") + shape.idle() + shape.last(RESULT)
    lines = [json.loads(line) for line in data.splitlines()]
    assert [line["response"] for line in lines] == ["good\n", ""]
    assert [line["done"] for line in lines] == [False, True]


def test_a_chat_answers_with_a_message() -> None:
    shape = Answer(kind="chat", created=0, model="m")
    assert shape.whole(RESULT)["message"] == {"role": "assistant", "content": "good day"}


def test_embeddings_old_and_new() -> None:
    assert embedding_call({"prompt": "a"}).texts == ["a"]
    assert embedding_call({"input": ["a", "b"], "model": "m:latest"}).model == "m"
    assert embedding_map([[1.0]], "m", 3, single=True) == {"embedding": [1.0]}
    assert embedding_map([[1.0]], "m", 3, single=False) == {
        "model": "m",
        "embeddings": [[1.0]],
        "prompt_eval_count": 3,
    }


def test_the_models_that_are_there() -> None:
    assert [m["name"] for m in tag_list(["a"], 0)["models"]] == ["a"]
