"""How much of what has ended is kept, whatever the rate at which tasks end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from rigbus.bus.core.retaining import STEP_S, Retention

BOUND = 2000


@dataclass
class Kept:
    """Batches by number with how many ended tasks each has; ``needed`` ones cannot go."""

    tasks: dict[int, int] = field(default_factory=dict)
    needed: set[int] = field(default_factory=set)
    largest: int = 0  #: that one step forgot

    def purge(self, batch: Any, most: int) -> int:
        if batch in self.needed:
            return 0
        gone = min(self.tasks.get(batch, 0), most)
        self.tasks[batch] = self.tasks.get(batch, 0) - gone
        if not self.tasks[batch]:
            del self.tasks[batch]
        return gone

    def step(self, retention: Retention) -> None:
        before = self.total
        retention.step(BOUND, before, lambda: list(self.tasks), float, self.purge)
        self.largest = max(self.largest, before - self.total)

    @property
    def total(self) -> int:
        return sum(self.tasks.values())


@pytest.mark.parametrize("rate", [100, 1000, 6000, 15_000])
def test_what_is_kept_is_never_more_than_the_bound_and_what_ends_in_a_second(rate: int) -> None:
    kept, retention = Kept(), Retention()
    most = 0
    for n in range(300):
        kept.tasks[n] = int(rate * STEP_S)
        kept.step(retention)
        most = max(most, kept.total)
    assert most <= BOUND + 1.1 * rate
    assert kept.largest <= 2000, "a commit that deletes more would hold up the others"
    assert min(kept.tasks) > 0, "the oldest went first"


def test_past_the_bound_a_twentieth_is_made_free_and_then_it_rests() -> None:
    kept, retention = Kept(dict.fromkeys(range(10), 200)), Retention()
    kept.step(retention)
    assert (kept.total, retention.purging) == (BOUND, False)
    kept.tasks[10] = 1
    kept.step(retention)
    assert (kept.total, retention.purging) == (1900, False)
    assert kept.tasks[0] == 99


def test_where_all_that_is_left_is_needed_it_rests_until_it_is_asked_again() -> None:
    kept, retention = Kept(dict.fromkeys(range(30), 100), needed=set(range(29))), Retention()
    kept.step(retention)
    assert kept.total == 2900 and retention.purging  # the next pass will find nothing
    kept.step(retention)
    assert kept.total == 2900 and not retention.purging
    kept.needed.clear()
    while kept.total > 1900:
        kept.step(retention)
    assert not retention.purging
