"""The simulator's rows in memory and the real store give the same answers to the same history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulator.disk import Disk
from simulator.history import History

from rigbus.bus.core.model import Changes
from rigbus.bus.store.store import Store


class Both(Disk):
    """Every commit goes to both; what is read must be equal."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.real = Store(path, durability="normal")

    def next_incarnation(self) -> int:
        number = super().next_incarnation()
        assert self.real.next_incarnation() == number
        return number

    def commit(self, changes: Changes, now: float, wall: float) -> None:
        super().commit(changes, now, wall)
        self.real.commit(changes, now, wall)

    def load(self, now: float, wall: float) -> Any:
        mine, theirs = super().load(now, wall), self.real.load(now, wall)
        assert [_plain(b) for b in mine[0]] == [_plain(b) for b in theirs[0]]
        assert [_plain(t) for t in mine[1]] == [_plain(t) for t in theirs[1]]
        assert mine[2:] == theirs[2:]
        return mine

    def payloads(self, nos: Any) -> Any:
        nos = list(nos)
        return _same(super().payloads(nos), self.real.payloads(nos))

    def details(self, nos: Any) -> Any:
        nos = list(nos)
        return _same(super().details(nos), self.real.details(nos))

    def attempts(self, no: int) -> Any:
        return _same(super().attempts(no), self.real.attempts(no))

    def evaluations(self, no: int) -> Any:
        return _same(super().evaluations(no), self.real.evaluations(no))

    def last_evaluations(self, nos: Any) -> Any:
        nos = list(nos)
        return _same(super().last_evaluations(nos), self.real.last_evaluations(nos))

    def events(self, since: int, channel: str | None, limit: int) -> Any:
        return _same(super().events(since, channel, limit), self.real.events(since, channel, limit))

    def meta(self, key: str) -> Any:
        return _same(super().meta(key), self.real.meta(key))


def _same(mine: Any, theirs: Any) -> Any:
    assert mine == theirs
    return mine


def _plain(record: Any) -> dict[str, Any]:
    """A batch or a task without what points to others."""
    names = [
        n for n in type(record).__slots__ if n not in ("batch", "dependents", "children", "keys", "waiters")
    ]
    return {n: getattr(record, n) for n in names}


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_whole_history_on_both(seed: int, tmp_path: Path) -> None:
    disk = Both(tmp_path / "rig.db")
    history = History(seed, disk=disk)
    verdict = history.run()
    assert not verdict.wrong
    disk.load(history.world.now, history.world.wall())
    tasks = list(disk.tables["tasks"])
    assert len(disk.details(tasks)) == len(disk.payloads(tasks)) == verdict.tasks
    for no in tasks:
        disk.attempts(no)
        disk.evaluations(no)
    for channel in ("p", "c", "a", None):
        disk.events(0, channel, 100_000)
    assert disk.events(0, None, 100_000)[0]
    disk.real.close()


def test_a_power_loss_takes_the_last_commits_that_were_not_synced() -> None:
    disk = Disk(syncs=False)
    for epoch in range(4):
        disk.commit(Changes(meta={"epoch": epoch}), 0.0, 0.0)
        if epoch == 1:
            disk.sync()
    assert disk.unsynced == 2
    disk.power_loss(1)
    assert disk.meta("epoch") == 2
    disk.power_loss(9)
    assert disk.meta("epoch") == 1
