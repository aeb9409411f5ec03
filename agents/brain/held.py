"""What holds placements up, as the fact that `why` reads it from (PROTOCOL, scope ``placement``, key ""). Pure.

    {"ask": id | "type", "class", "needs", "model", "text", "fix", "until_at", "workers": [[name, text, until_at], …]}

``until_at`` (wall clock, seconds; 0: nobody knows) is when what ``text`` says is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from .placing_view import Ask
from .placing_why import HeldUp

_ROWS: Final = 20
_WORKERS: Final = 8
_TEXT: Final = 300  #: all in all below the 64 KiB of a fact
_NEEDS: Final = 8
_CLOCK_S: Final = 2.0  #: times that are nearer to each other are the same


def held_map(found: Iterable[HeldUp], wall: float) -> list[dict[str, Any]]:
    """As plain data, the first rows of it. ``wall``: now, for people, in seconds."""
    return [_row(one, wall) for one in list(found)[:_ROWS]]


def _row(one: HeldUp, wall: float) -> dict[str, Any]:
    of: dict[str, Any]
    if isinstance(one.of, Ask):
        of = {"ask": one.of.id}
    else:
        of = {"type": one.of.type, "class": one.of.cls, "needs": sorted(one.of.needs)[:_NEEDS]}
    return of | {
        "model": one.model,
        "text": one.text[:_TEXT],
        "fix": one.fix[:_TEXT],
        "until_at": _until(one.left_s, wall),
        "workers": [[w.worker, w.text[:_TEXT], _until(w.left_s, wall)] for w in one.workers[:_WORKERS]],
    }


def _until(left_s: float | None, wall: float) -> float:
    return 0.0 if left_s is None else wall + left_s


def same(one: Any, other: Any) -> bool:
    """Do two of them say the same? A fact is not written anew because a clock has trembled."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < _CLOCK_S
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
