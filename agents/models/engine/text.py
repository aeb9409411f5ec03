"""What a model reads and writes as text: messages without a template, whole characters, no stop string. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Final

_SPEAKERS: Final = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def plain_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as one text, for a model without a chat template: it was trained to go on with texts.

    A single message of the user is the text. Of several each stands below its speaker's name, and ``Assistant:`` is left
    open for the answer, or what the assistant has begun to say.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    parts = [f"{_SPEAKERS[m['role']]}:\n{m['content']}" for m in messages]
    if messages[-1]["role"] != "assistant":
        parts.append("Assistant:\n")
    return "\n\n".join(parts)


class TextStream:
    """Takes the bytes of one token after the other, gives the text that is certain.

    A character that is split between tokens waits for its rest; bytes that are no UTF-8 become U+FFFD. Text that
    may still turn out to be the beginning of a stop string is held back. ``stopped`` is set when one is complete.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The text that ``data`` makes certain, maybe none. After ``stopped`` always none."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data)
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when no more will come. The beginning of an unfinished character is dropped."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that is a beginning of ``stop`` (and not all of it)."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
