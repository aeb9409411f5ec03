"""The next attempt at a text whose last one was rejected: the model is told why. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_REQUEST = "\n\nAn earlier answer to this was not good enough. {feedback}\nAnswer again, and do better."


def with_feedback(
    prompt: str | None, messages: Sequence[Mapping[str, str]] | None, feedback: str
) -> tuple[str | None, list[dict[str, str]] | None]:
    """``prompt`` or ``messages`` with ``feedback`` in words at the end; as they are where there is none.

    It joins the last message of the user: many chat templates refuse two messages of one role in a row.
    """
    told = [dict(m) for m in messages] if messages is not None else None
    if not feedback:
        return prompt, told
    text = _REQUEST.format(feedback=feedback)
    if told is None:
        return (prompt + text if prompt is not None else None), None
    last = told[-1] if told else {}
    if last.get("role") == "user" and isinstance(last.get("content"), str):
        last["content"] += text
    else:
        told.append({"role": "user", "content": text.strip()})
    return prompt, told
