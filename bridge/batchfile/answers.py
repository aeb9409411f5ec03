"""The lines of the output: OpenAI's, one for each ``custom_id``. Pure.

    {"id", "custom_id", "response": {"status_code", "request_id", "body"} | null, "error": {"code", "message", "param"} | null}

A line of the errors file has ``line``, too: where in the input it stands. The id of an output line is made of its file's
mark and the number of its line: whoever reads it back knows which line of the input it answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...bus.openai.answers import Answer, embedding_list, to_json
from .requests import BadLine, Shape

_MARKED: Final = re.compile(rb'\{"id":"batch_req_([0-9a-f]{1,64})_(\d{1,12})"')

#: Bad ends that are none of the request's doing -> OpenAI's word for them.
_CODES: Final[Mapping[str, str]] = {"cancelled": "batch_cancelled", "expired": "batch_expired"}


class NotAnAnswer(ValueError):
    """What a task returned is not what a model's task returns."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line asked for, as far as its answer needs it. ``mark`` is its file's, in hex digits."""

    mark: str
    line: int
    custom_id: str | None
    shape: Shape = "chat"

    @property
    def number(self) -> str:
        """The same for each attempt and each reading: it names what is said about this line."""
        return f"{self.mark}_{self.line}"


def answered(asked: Asked, value: object, created: int) -> bytes:
    """The line of a task that is done; ``created`` is Unix seconds.

    Raises:
        NotAnAnswer: whatever ran was no model.
    """
    try:
        body = _body(asked, value, created)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as e:
        raise NotAnAnswer(
            f"what ran for this line gave no answer of a model ({type(e).__name__}: {e})"
        ) from None
    return _line(asked, {"status_code": 200, "request_id": f"req_{asked.number}", "body": body}, None)


def bad_line(mark: str, bad: BadLine) -> bytes:
    """The line of an input line that no task came of."""
    asked = Asked(mark, bad.line, bad.custom_id)
    if not bad.status:
        return failed(asked, bad.code, bad.message, bad.param)
    kind = "invalid_request_error" if bad.status < 500 else "server_error"
    return _refused(asked, bad.status, kind, bad.code, bad.message, bad.param)


def ended_badly(asked: Asked, row: Mapping[str, Any]) -> bytes:
    """The line of a task that is dead, cancelled, expired or skipped; ``row`` as QUERY `tasks` has it."""
    state, message = str(row.get("state")), str(row.get("error") or f"the task ended {row.get('state')}")
    counts = row.get("attempts")
    tried = any(counts.values()) if isinstance(counts, Mapping) else True
    if state == "dead" and not tried:  # no attempt failed: the request itself is at fault
        return _refused(asked, 400, "invalid_request_error", "invalid_request", message, None)
    return failed(asked, _CODES.get(state, "request_failed"), message)


def failed(asked: Asked, code: str, message: str, param: str | None = None) -> bytes:
    """The line of a request that has no response."""
    return _line(asked, None, {"code": code, "message": message, "param": param})


def line_of(data: bytes, mark: str) -> int | None:
    """Which line of the input an output line of this file answers, by its beginning; None: it is none of ours."""
    found = _MARKED.match(data)
    return int(found[2]) if found is not None and found[1] == mark.encode() else None


def _refused(asked: Asked, status: int, kind: str, code: str, message: str, param: str | None) -> bytes:
    error = {"message": message, "type": kind, "param": param, "code": code}
    body = {"error": error}
    response = {"status_code": status, "request_id": f"req_{asked.number}", "body": body}
    return _line(asked, response, None, refused=True)


def _line(
    asked: Asked, response: dict[str, Any] | None, error: dict[str, Any] | None, *, refused: bool = False
) -> bytes:
    fields: dict[str, Any] = {"id": f"batch_req_{asked.number}", "custom_id": asked.custom_id}
    if error is not None or refused:
        fields["line"] = asked.line
    return to_json({**fields, "response": response, "error": error}).encode("utf-8", "replace") + b"\n"


def _body(asked: Asked, value: Any, created: int) -> dict[str, Any]:
    model, usage = str(value["model"]), value["usage"]
    if asked.shape in ("chat", "completion"):
        if not isinstance(value["text"], str):
            raise TypeError("text is no text")
        return Answer(kind=asked.shape, number=asked.number, created=created, model=model).whole(value)
    tokens = int(usage["prompt_tokens"])
    return embedding_list(value["vectors"], model, tokens, base64=asked.shape == "embedding-base64")
