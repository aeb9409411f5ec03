"""How long attempts take, learned from those that ended well. Pure, bounded, one small update a task.

A task of a plan is learned under (plan, its template or key), any other under the type of its handler. What is known
is a mean and a spread, both moving, so that a plan that became slower is believed after a few runs and one odd run
changes little. At most :data:`MAX_KEYS` names are kept, the least recently seen go first.

The core keeps them as facts of the scope ``durations``, one fact a plan and one for all types (docs/adr/0009).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from ..core.model import Batch, Fact, Task
from ..wire import MAX_FACT_BYTES, pack

SCOPE: Final = "durations"
MAX_KEYS: Final = 4096
KEEP_S: Final = 10.0  #: between two writes of what was learned; a crash costs at most so much of it
ENDED_KEEP_S: Final = 1.0  #: the same where a batch has ended since
_TYPES: Final = "types"
_PLAN: Final = "plan:"
_NAME: Final = 200  #: characters of a plan's or task's name that count
_WEIGHT: Final = 0.2  #: of a new run, once five are known
_ODD: Final = 4.0  #: spreads; a run further away counts as if it were as far as this
_TINY_S: Final = 0.01  #: no run is odd for so little
_NO_PLAN: Final[dict[str, Any]] = {}
#: These types run whatever they are given: only the name of a plan's task says how long one takes.
_ANYTHING: Final = frozenset({"shell", "expand"})

Key = tuple[str, str]  #: (group: ``plan:<name>`` or ``types``, name)


class Timing:
    """One name's durations, in seconds."""

    __slots__ = ("mean", "n", "spread")

    def __init__(self, mean: float, spread: float = 0.0, n: int = 1) -> None:
        self.mean = mean
        self.spread = spread  #: mean absolute deviation
        self.n = n

    def add(self, seconds: float) -> None:
        """One more run."""
        n = self.n = self.n + 1
        mean = self.mean
        if n > 5:
            most = 1.5 * mean + _ODD * self.spread + _TINY_S
            if seconds > most:  # noqa: PLR1730 - this is on the broker's hot path
                seconds = most
            weight = _WEIGHT
        else:
            weight = 1.0 / n
        off = seconds - mean
        self.mean = mean + weight * off
        self.spread += weight * ((off if off > 0.0 else -off) - self.spread)


class Durations:
    """What is known, by name. O(1) a run."""

    def __init__(self, most: int = MAX_KEYS) -> None:
        self.most = most
        self.known: OrderedDict[Key, Timing] = OrderedDict()
        self.dirty: set[str] = set()  #: groups that changed since they were last kept

    def learn(self, task: Task, seconds: float | None) -> None:
        """An attempt ended well after ``seconds``, as its worker measured; None, less than 0 or over 1e9 is ignored."""
        if seconds is None or not 0.0 <= seconds < 1e9:
            return
        key = name_of(task)
        known = self.known
        timing = known.get(key)
        if timing is None:
            known[key] = Timing(float(seconds))
            if len(known) > self.most:
                (group, _), _ = known.popitem(last=False)
                self.dirty.add(group)
        else:
            timing.add(seconds)
            known.move_to_end(key)
        self.dirty.add(key[0])

    def of(self, task: Task) -> Timing | None:
        """What is known of a task's kind; None when no run of it has been timed."""
        key = name_of(task)
        found = self.known.get(key)
        if found is None and key[0] != _TYPES and task.shape.type not in _ANYTHING:
            found = self.known.get((_TYPES, task.shape.type))
        return found

    # -- keeping ---------------------------------------------------------------------------------------------

    def take_changed(self) -> dict[str, dict[str, Any] | None]:
        """The value of each group's fact that changed since the last call; None where a group is empty now.

        A value has at most :data:`~.wire.MAX_FACT_BYTES`; of what does not fit the newest stays.
        """
        groups: dict[str, dict[str, Any] | None] = dict.fromkeys(sorted(self.dirty))
        for (group, name), t in self.known.items():
            if group in groups:
                value = groups[group]
                if value is None:
                    value = groups[group] = {}
                value[name] = [round(t.mean, 6), round(t.spread, 6), t.n]
        self.dirty.clear()
        return {group: _fitting(value) if value else None for group, value in groups.items()}

    def load(self, facts: Mapping[tuple[str, str], Fact]) -> None:
        """Take over what the facts hold; what is not as we write it is left out."""
        for (scope, group), fact in facts.items():
            if scope != SCOPE or not isinstance(fact.value, dict):
                continue
            for name, row in fact.value.items():
                if isinstance(name, str) and (timing := _timing(row)) is not None:
                    self.known[group, name] = timing
        while len(self.known) > self.most:
            self.known.popitem(last=False)


def name_of(task: Task) -> Key:
    """What a task's durations are learned under."""
    batch = task.batch
    if batch.plan is None:
        return _TYPES, task.shape.type
    return plan_group(batch), template_of(task)[:_NAME]


def plan_group(batch: Batch) -> str:
    """The group of a plan's tasks."""
    name = (batch.plan or _NO_PLAN).get("name")
    return _group(name if isinstance(name, str) and name else batch.name)


@lru_cache(maxsize=1024)
def _group(name: str) -> str:
    return f"{_PLAN}{name}"[:_NAME]


def template_of(task: Task) -> str:
    """The name that a plan has for a task: its foreach's, or its own key.

    The children of a foreach feed its join; their keys begin with its own (the join's edge is their first).
    """
    key = task.key
    for other, _ in task.dependents or ():
        if (
            other.join
            and other.batch is task.batch
            and key.startswith(other.key)
            and key[len(other.key) : len(other.key) + 1] == "_"
        ):
            return other.key
    return key


def _timing(row: Any) -> Timing | None:
    if not isinstance(row, (list, tuple)) or len(row) != 3:
        return None
    if not all(isinstance(x, (int, float)) and math.isfinite(x) and x >= 0 for x in row):
        return None
    return Timing(float(row[0]), float(row[1]), int(row[2]))


def _fitting(value: dict[str, Any]) -> dict[str, Any]:
    """The last entries that one fact can carry."""
    while value and len(pack(value)) > MAX_FACT_BYTES:
        value = dict(_last_half(value.items()))
    return value


def _last_half(items: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    rows = list(items)
    return rows[(len(rows) + 1) // 2 :]
