"""What `why` says of work that waits for a model: sentences of what the brain has left in the fact ``placement/``. Pure.

The brain writes which ask, or which kind of tasks, waits for what (PROTOCOL, scope ``placement``); times are counted here, so
that a clock alone changes no fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from ..core.model import Fact, Session, Shape, Task
from ..tags import MODEL
from .reasons import Verdicts, seconds

MODEL_TESTS: Final = frozenset(
    {"type", "class", "needs"}
)  #: the tests that a model would pass when it is loaded


def row_of_ask(fact: Fact | None, task: Task) -> Mapping[str, Any] | None:
    """What holds up a task that asks for a model; None where the brain has said nothing."""
    return next((row for row in _rows(fact) if row.get("ask") == task.id), None)


def row_of_shape(fact: Fact | None, shape: Shape) -> Mapping[str, Any] | None:
    """What holds up tasks of this shape."""
    wanted = (shape.type, shape.cls, sorted(shape.needs))
    return next((r for r in _rows(fact) if (r.get("type"), r.get("class"), r.get("needs")) == wanted), None)


def _rows(fact: Fact | None) -> Iterable[Mapping[str, Any]]:
    value = fact.value if fact is not None else None
    rows = value.get("held") if isinstance(value, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def words(row: Mapping[str, Any], wall: float) -> str:
    """One line of it. ``wall``: now, in seconds."""
    parts = [_timed(str(row.get("text") or ""), row.get("until_at"), wall)]
    for worker, text, until_at in row.get("workers") or ():
        parts.append(_timed(f"{worker} {text}", until_at, wall))
    return "; ".join(part for part in parts if part)


def _timed(text: str, until_at: Any, wall: float) -> str:
    left_s = float(until_at or 0.0) - wall
    return f"{text} in {seconds(left_s)}" if text and left_s > 0 else text


def with_fix(verdicts: Verdicts, fix: str) -> Verdicts:
    """The verdicts with what would change those of a model that is not loaded."""
    return [
        (w, [replace(p, fix=fix) if not p.ok and p.name in MODEL_TESTS else p for p in tests])
        for w, tests in verdicts
    ]


def load_fix(row: Mapping[str, Any] | None, shape: Shape, workers: Iterable[Session]) -> str:
    """What gives the rig a worker with the model that tasks of this shape want; "" where the rig has no model workers."""
    if row is not None and row.get("fix"):
        return str(row["fix"])
    if not any(w.info.get("seat") for w in workers):
        return ""
    named = next((need.removeprefix(MODEL) for need in shape.needs if need.startswith(MODEL)), "")
    model = str(row.get("model") or "") if row is not None else named
    return f"rigbus load {model}".strip()
