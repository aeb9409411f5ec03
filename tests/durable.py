"""A broker's core on a real database: every round is committed, and it can be killed and started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import STATE_ID, WALL, Harness

from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Effects
from rigbus.bus.store.store import Store


class Durable(Harness):
    """A harness whose rounds are committed, and that can be started again from the database."""

    def __init__(
        self,
        path: Path,
        now: float = 1000.0,
        wall: float = WALL,
        *,
        durability: str = "full",
        **options: Any,
    ) -> None:
        self.store = Store(path, durability=durability)
        self.options = options
        core = Core(
            incarnation=self.store.next_incarnation(),
            state_id=STATE_ID,
            epoch=int(self.store.meta("epoch") or 0),
            **options,
        )
        batches, tasks, edges, facts, core.seq, core.channel_seq = self.store.load(now, wall)
        core.load(batches, tasks, edges, facts, now, wall)
        super().__init__(core, now=now, wall=wall)

    def settle(self) -> Effects:
        fx = super().settle()
        if fx.changes:
            self.store.commit(fx.changes, self.now, self.wall)
        return fx

    def restart(self, away_s: float = 0.0) -> Durable:
        """As after a kill -9: a new core of a new incarnation, on what was committed."""
        self.store.close()
        # monotonic time may begin anywhere after a reboot
        again = Durable(
            self.store.path,
            self.now + 17.0,
            self.wall + away_s,
            durability=self.store.durability,
            **self.options,
        )
        again.numbers = self.numbers  # no session has the id of an earlier one
        return again
