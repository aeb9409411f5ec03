"""The harness of the core on a real database, for what happens to its files."""

from __future__ import annotations

from pathlib import Path

from harness import STATE_ID, WALL, Harness

from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Effects
from rigbus.bus.store.store import Store


class Kept(Harness):
    """A harness on the database of a state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.store = Store(state / "rigbus.db")
        incarnation = self.store.next_incarnation()
        core = Core(incarnation=incarnation, state_id=STATE_ID, epoch=int(self.store.meta("epoch") or 0))
        batches, tasks, edges, facts, core.seq, core.channel_seq = self.store.load(1000.0, WALL)
        core.load(batches, tasks, edges, facts, 1000.0, WALL)
        super().__init__(core, now=1000.0, wall=WALL)

    def settle(self) -> Effects:
        fx = super().settle()
        if fx.changes:
            self.store.commit(fx.changes, self.now, self.wall)
        return fx


def names(state: Path) -> list[str]:
    return sorted(p.name for p in state.iterdir())
