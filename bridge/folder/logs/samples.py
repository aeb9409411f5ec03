"""The lines of ``logs/training_samples.jsonl``: a result that a model has judged, a line each. Pure but for its book.

The earlier system's scripts read them: ``audit`` shows what was judged, ``review_training`` asks a person for a rating of
his own and writes the whole file anew. So a line is appended, never written at a place, and is known again by its ``id``;
what he says is taken into the book (`samplebook`), and what his writing has lost is appended again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..contract.layout import iso
from ..contract.rows import Transition
from .samplebook import Rating, SampleBook, rating_of

TYPE: Final = "worker_evaluation"
MAX_LINES: Final = 2000  #: that wait for the book
MAX_LINE: Final = 1 << 20  #: a longer one is no sample
_MAX_ID: Final = 300


def sample_id(task: str, attempt: int) -> str:
    """Names the judgement of one attempt."""
    return f"{task}.{attempt}"


class Samples:
    """Judgements on their way into the book, from where they are written; each once, whoever was killed meanwhile."""

    def __init__(
        self, utc_offset_s: Callable[[float], float] = lambda _: 0.0, book: SampleBook | None = None
    ) -> None:
        self._utc_offset_s = utc_offset_s
        self.book = book or SampleBook()
        self._fresh: dict[str, tuple[int, bytes]] = {}  #: id -> event, line: not in the book yet

    def waiting(self) -> bool:
        """There is something for the book."""
        return bool(self._fresh)

    def untold(self) -> int | None:
        """The first event whose line could be lost; None when there is none."""
        return min((seq for seq, _ in self._fresh.values()), default=None)

    def judged(self, task: str, batch: str, step: Transition, evaluation: Mapping[str, Any]) -> None:
        """A judgement was heard of; ``evaluation`` is the broker's record of it, with its sample."""
        name = sample_id(task, step.attempt)
        self._fresh.setdefault(name, (step.seq, self._line(name, task, batch, step, evaluation)))
        while len(self._fresh) > MAX_LINES:  # the disk is full for long
            del self._fresh[next(iter(self._fresh))]

    def keep(self) -> None:
        """Enter what has come into the book. Raises what the book raises; then it is tried again."""
        if self._fresh:
            self.book.keep([(name, line) for name, (_, line) in self._fresh.items()])
            self._fresh.clear()

    def _line(
        self, name: str, task: str, batch: str, step: Transition, evaluation: Mapping[str, Any]
    ) -> bytes:
        given = evaluation.get("sample")
        sample: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        fields = {
            "id": name,
            "timestamp": iso(step.at, self._utc_offset_s(step.at)),
            "sample_type": TYPE,
            "model": _text(sample.get("model")),
            "prompt": _text(sample.get("prompt")),
            "context": _text(sample.get("context")),
            "response": _text(sample.get("response")),
            "outcome": "good" if evaluation.get("verdict") == "accept" else "bad",
            "worker": _text(step.worker),
            "task_type": step.type,
            "task_id": task,
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
            **Rating()._asdict(),
        }
        return json.dumps(fields, default=str).encode("ascii") + b"\n"


class Reading:
    """The file, piece by piece. What is no sample is counted and left as it is."""

    def __init__(self) -> None:
        self._carry = b""
        self._skips = False  #: the rest of a line that is too long
        self._number = 0
        self.size = 0  #: bytes so far
        self.bad = self.first_bad = 0  #: lines that are no samples; the number of the first
        self.odd = 0  #: samples with a rating that is none
        self.torn = False  #: the last line has no end

    def piece(self, data: bytes) -> list[tuple[str, bytes | None, Rating]]:
        """(id, the line where it is one of the rig's, rating) of each whole line up to here."""
        self.size += len(data)
        *lines, self._carry = (self._carry + data).split(b"\n")
        self.torn = bool(self._carry) or self._skips
        out = []
        for line in lines:
            self._number += 1
            skipped, self._skips = self._skips, False
            if line.strip() or skipped:
                out += [] if skipped else self._take(line)
                if skipped:
                    self._count_bad()
        if len(self._carry) > MAX_LINE:
            self._carry, self._skips = b"", True
        return out

    def end(self) -> list[tuple[str, bytes | None, Rating]]:
        """The last line, where it lacks its end but is whole nevertheless: rewritten files often lack it."""
        self._number += 1
        if self._skips:
            self._count_bad()
            return []
        return self._take(self._carry) if self._carry.strip() else []

    def _take(self, line: bytes) -> list[tuple[str, bytes | None, Rating]]:
        found = _fields(line)
        if found is None:
            self._count_bad()
            return []
        rating = rating_of(found)
        self.odd += rating is None
        metadata = found.get("metadata")
        ours = found.get("sample_type") == TYPE and isinstance(metadata, dict) and "batch_id" in metadata
        return [(found["id"], line + b"\n" if ours else None, rating or Rating())]

    def _count_bad(self) -> None:
        self.bad += 1
        self.first_bad = self.first_bad or self._number


def _fields(line: bytes) -> dict[str, Any] | None:
    """A sample; None for what is none."""
    try:
        found = json.loads(line) if len(line) <= MAX_LINE else None
        name = found["id"].encode() if isinstance(found, dict) else b""
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None
    return found if 0 < len(name) <= _MAX_ID else None


def _text(value: Any) -> str:
    """Readers slice what they find: never null."""
    return value if isinstance(value, str) else ""
