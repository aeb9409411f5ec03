"""The lines of the output have OpenAI's shape, and say which line of the input they answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bridge.batchfile.answers import (
    Asked,
    NotAnAnswer,
    answered,
    bad_line,
    ended_badly,
    failed,
    line_of,
)
from rigbus.bridge.batchfile.requests import BadLine

MARK = "0123456789ab"
TEXT = {
    "text": "four",
    "model": "small",
    "finish": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1},
}
VECTORS = {"vectors": [[0.5, -1.0]], "model": "small", "usage": {"prompt_tokens": 4}}


def said(data: bytes) -> dict[str, Any]:
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    value: dict[str, Any] = json.loads(data)
    return value


class TestAnswered:
    def test_a_chat(self) -> None:
        out = said(answered(Asked(MARK, 3, "a"), TEXT, 1_770_576_370))
        assert out == {
            "id": f"batch_req_{MARK}_3",
            "custom_id": "a",
            "response": {
                "status_code": 200,
                "request_id": f"req_{MARK}_3",
                "body": {
                    "id": f"chatcmpl-{MARK}_3",
                    "object": "chat.completion",
                    "created": 1_770_576_370,
                    "model": "small",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "four", "refusal": None},
                            "logprobs": None,
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": {
                        "prompt_tokens": 3,
                        "completion_tokens": 2,
                        "total_tokens": 5,
                        "prompt_tokens_details": {"cached_tokens": 1},
                    },
                },
            },
            "error": None,
        }

    def test_a_completion(self) -> None:
        body = said(answered(Asked(MARK, 3, "a", "completion"), TEXT, 1))["response"]["body"]
        assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "four")

    @pytest.mark.parametrize(
        ("shape", "vector"), [("embedding", [0.5, -1.0]), ("embedding-base64", "AAAAPwAAgL8=")]
    )
    def test_vectors(self, shape: Any, vector: object) -> None:
        body = said(answered(Asked(MARK, 3, "a", shape), VECTORS, 1))["response"]["body"]
        assert body["data"] == [{"object": "embedding", "index": 0, "embedding": vector}]
        assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}

    @pytest.mark.parametrize(
        "value", [None, "four", 4, [], {}, {**TEXT, "text": None}, {**TEXT, "usage": None}, VECTORS]
    )
    def test_what_is_no_answer_of_a_model_is_told_from_one(self, value: object) -> None:
        with pytest.raises(NotAnAnswer):
            answered(Asked(MARK, 3, "a"), value, 1)

    @given(st.text(), st.text())
    def test_any_text_is_one_line(self, custom_id: str, text: str) -> None:
        out = said(answered(Asked(MARK, 3, custom_id), {**TEXT, "text": text}, 1))
        assert out["custom_id"] == custom_id
        assert out["response"]["body"]["choices"][0]["message"]["content"] == text


class TestErrors:
    def test_a_refused_request_has_the_answer_that_a_server_would_give(self) -> None:
        out = said(bad_line(MARK, BadLine(9, "a", "unsupported_parameter", "no", "tools", 400)))
        assert (out["line"], out["error"], out["response"]["status_code"]) == (9, None, 400)
        wanted = {
            "message": "no",
            "type": "invalid_request_error",
            "param": "tools",
            "code": "unsupported_parameter",
        }
        assert out["response"]["body"] == {"error": wanted}

    def test_a_line_that_is_no_request_has_an_error_and_no_response(self) -> None:
        out = said(bad_line(MARK, BadLine(9, None, "invalid_json_line", "no")))
        assert (out["line"], out["custom_id"], out["response"]) == (9, None, None)
        assert out["error"] == {"code": "invalid_json_line", "message": "no", "param": None}

    @pytest.mark.parametrize(
        ("state", "attempts", "code"),
        [
            ("cancelled", {"task": 0}, "batch_cancelled"),
            ("expired", {"task": 0}, "batch_expired"),
            ("dead", {"task": 3, "crash": 0, "infra": 0}, "request_failed"),
            ("skipped", {"task": 0}, "request_failed"),
        ],
    )
    def test_a_task_that_ended_badly(self, state: str, attempts: dict[str, int], code: str) -> None:
        out = said(ended_badly(Asked(MARK, 2, "a"), {"state": state, "error": "why", "attempts": attempts}))
        assert (out["response"], out["error"]["code"], out["error"]["message"]) == (None, code, "why")

    def test_a_request_that_can_never_run_is_refused_as_a_server_would(self) -> None:
        row = {"state": "dead", "error": "too long", "attempts": {"task": 0, "crash": 0, "infra": 0}}
        out = said(ended_badly(Asked(MARK, 2, "a"), row))
        assert (out["error"], out["response"]["status_code"]) == (None, 400)
        assert out["response"]["body"]["error"]["message"] == "too long"


class TestReadingBack:
    def test_every_line_says_which_it_answers(self) -> None:
        asked = Asked(MARK, 100_000, "a")
        for data in (answered(asked, TEXT, 1), failed(asked, "x", "y")):
            assert line_of(data, MARK) == 100_000
            assert line_of(data, "ba9876543210") is None

    @given(st.binary(max_size=60))
    def test_others_lines_say_nothing(self, data: bytes) -> None:
        assert line_of(data, MARK) is None
