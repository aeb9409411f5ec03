"""The lines of ``logs/training_samples.jsonl``: a result that a model has judged, a line each. Pure.

The earlier system's scripts read them: ``audit`` shows what was judged, ``review_training`` asks a person for a rating of
his own and writes the whole file anew. So a line is appended, never written at a place, and is known again by its ``id``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from .layout import iso
from .rows import Transition

MAX_LINES: Final = 2000
MAX_APPEND: Final = 256 << 10
#: The part of the file that is read to know what stands: more than is ever appended at once.
TAIL_BYTES: Final = 2 * MAX_APPEND


def sample_id(task: str, attempt: int) -> str:
    """Names the judgement of one attempt."""
    return f"{task}.{attempt}"


class Samples:
    """Lines that are to be appended, in the order of their events; each once, whoever was killed meanwhile."""

    def __init__(self, utc_offset_s: Callable[[float], float] = lambda _: 0.0) -> None:
        self._utc_offset_s = utc_offset_s
        self._lines: list[tuple[int, str, bytes]] = []  #: event, id, line
        self._stand: set[str] = set()
        self._torn = False
        #: Whether it is unknown what stands: at the start, and after an append without an answer.
        self.in_doubt = True

    def waiting(self) -> bool:
        """There is something to append."""
        return bool(self._lines)

    def untold(self) -> int | None:
        """The first event whose line has not been appended; None when there is none."""
        return min((seq for seq, _, _ in self._lines), default=None)

    def stands(self, tail: bytes) -> None:
        """The end of the file, as it is now."""
        self.in_doubt = False
        self._torn = bool(tail) and not tail.endswith(b"\n")
        for line in tail.split(b"\n"):
            try:
                found = json.loads(line)["id"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(found, str):
                self._stand.add(found)
        self._lines = [one for one in self._lines if one[1] not in self._stand]

    def judged(self, task: str, batch: str, step: Transition, evaluation: Mapping[str, Any]) -> None:
        """A judgement was heard of; ``evaluation`` is the broker's record of it, with its sample."""
        name = sample_id(task, step.attempt)
        if name in self._stand or any(name == known for _, known, _ in self._lines):
            return
        self._lines.append((step.seq, name, self._line(name, task, batch, step, evaluation)))
        if len(self._lines) > MAX_LINES:  # the share is away for long
            del self._lines[: len(self._lines) - MAX_LINES]

    def some(self) -> tuple[bytes, int]:
        """The lines of one append, and their number."""
        total = count = 0
        for _, _, line in self._lines:
            if count and total + len(line) > MAX_APPEND:
                break
            total, count = total + len(line), count + 1
        head = b"\n" if self._torn and count else b""
        return head + b"".join(line for _, _, line in self._lines[:count]), count

    def written(self, count: int) -> None:
        """The first ``count`` lines stand in the file."""
        self._torn = False
        del self._lines[:count]

    def _line(
        self, name: str, task: str, batch: str, step: Transition, evaluation: Mapping[str, Any]
    ) -> bytes:
        given = evaluation.get("sample")
        sample: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        fields = {
            "id": name,
            "timestamp": iso(step.at, self._utc_offset_s(step.at)),
            "sample_type": "worker_evaluation",
            "model": _text(sample.get("model")),
            "prompt": _text(sample.get("prompt")),
            "context": _text(sample.get("context")),
            "response": _text(sample.get("response")),
            "outcome": "good" if evaluation.get("verdict") == "accept" else "bad",
            "human_rating": None,
            "metadata": {
                "brain_rating": evaluation.get("score"),
                "brain_feedback": _text(evaluation.get("feedback")),
                "issues": [_text(issue) for issue in evaluation.get("issues") or ()],
                "worker": _text(step.worker),
                "task": step.key,
                "task_id": task,
                "batch_id": batch,
                "attempt": step.attempt,
                "judge_model": _text(evaluation.get("model")),
                "tokens": evaluation.get("tokens") or 0,
                "seconds": evaluation.get("seconds") or 0.0,
            },
        }
        return json.dumps(fields, default=str).encode("ascii") + b"\n"


def _text(value: Any) -> str:
    """Readers slice what they find: never null."""
    return value if isinstance(value, str) else ""
