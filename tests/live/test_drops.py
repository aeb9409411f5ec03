"""Very many drops while the bridge is killed and the share goes and comes: each runs once, none is lost.

``make drops`` plays a thousand; ``RIGBUS_TEST_DROPS`` says how many, ``RIGBUS_TEST_SEED`` by which dice.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bridgerig import Rig
from helpers import Processes, wait_for

from rigbus.bus.states import BatchState

DROPS = int(os.environ.get("RIGBUS_TEST_DROPS", "24"))
SEED = int(os.environ.get("RIGBUS_TEST_SEED", "1"))
AHEAD = 40  #: drops that are written and not answered, at most
STEP_S = 0.02  #: a slow writer's pause between two pieces, in the middle

PLAN = (
    "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo ran >> {runs}/{name}`\n- **max_attempts**: 50\n"
)


class Disk:
    """What the share is on: the rig sees it at the mount point, or an empty folder there; its writers always see it."""

    def __init__(self, point: Path) -> None:
        self.point, self.elsewhere = point, point.with_name("elsewhere")
        self.away = False

    @property
    def root(self) -> Path:
        return self.elsewhere if self.away else self.point

    def go(self) -> None:
        self.point.rename(self.elsewhere)
        self.point.mkdir()
        self.away = True

    def come(self) -> None:
        self.point.rmdir()  # fails if anything was written into the empty mount point
        self.elsewhere.rename(self.point)
        self.away = False


def slowly(disk: Disk, name: str, plan: bytes, pieces: int) -> Iterator[None]:
    """A folder that grows: its plan piece by piece, READY last."""
    (disk.root / "inbox" / name).mkdir(parents=True)
    for n in range(pieces):
        with (disk.root / "inbox" / name / "plan.md").open("ab") as file:
            file.write(plan[n * len(plan) // pieces : (n + 1) * len(plan) // pieces])
        yield
    (disk.root / "inbox" / name / "READY").touch()


def at_once(disk: Disk, name: str, plan: bytes, ready: bool) -> Iterator[None]:
    """A folder that was made beside the inbox and comes by one rename, with READY or without."""
    made = disk.root / f"made-{name}"
    made.mkdir()
    yield
    made = disk.root / f"made-{name}"
    (made / "plan.md").write_bytes(plan)
    if ready:
        (made / "READY").touch()
    yield
    (disk.root / f"made-{name}").rename(disk.root / "inbox" / name)


def writer_of(dice: random.Random, disk: Disk, name: str, plan: bytes) -> Iterator[None]:
    if dice.random() < 0.5:
        return slowly(disk, name, plan, dice.randrange(1, 6))
    return at_once(disk, name, plan, ready=dice.random() < 0.7)


class Campaign:
    """Everything in one thread: the writers' pieces, kills, the share's absences, in an order by the seed."""

    def __init__(self, rig: Rig, runs: Path) -> None:
        self.rig, self.runs, self.dice = rig, runs, random.Random(SEED)
        self.disk = Disk(rig.share)
        self.bridge: subprocess.Popen[bytes] = rig.bridge()
        self.names = [f"drop{n}" for n in range(DROPS)]
        self.kills = self.absences = 0

    def write_all(self) -> None:
        """Until every drop is written; the bridge dies and the share goes every few drops."""
        dice, coming = self.dice, list(reversed(self.names))
        writing: list[Iterator[None]] = []
        next_kill, next_absence = 3, 10
        while coming or writing:
            written = len(self.names) - len(coming)
            if coming and len(writing) < 4 and written - self.answered() < AHEAD:
                name = coming.pop()
                plan = PLAN.format(runs=self.runs, name=name).encode()
                writing.append(writer_of(dice, self.disk, name, plan))
            if writing:
                one = dice.choice(writing)
                if next(one, self) is self:
                    writing.remove(one)
            if written >= next_kill:
                next_kill += dice.randrange(3, 16)
                self.rig.processes.kill(self.bridge)
                self.bridge = self.rig.bridge()
                self.kills += 1
            if written >= next_absence:
                next_absence += dice.randrange(10, 60)
                (self.disk.come if self.disk.away else self.disk.go)()
                self.absences += self.disk.away
            elif self.disk.away and (not coming or dice.random() < 0.05):
                self.disk.come()
            time.sleep(dice.random() * STEP_S * 2)  # when things happen is the story
        if self.disk.away:
            self.disk.come()

    def answered(self) -> int:
        """Drops that have their receipt, or wait for a share that comes back."""
        inbox = self.disk.root / "inbox"
        return sum(name.endswith(".receipt.json") for name in os.listdir(inbox))

    def accepted(self) -> dict[str, str]:
        """Batches by drop, of those that were accepted."""
        found = {}
        for name in self.names:
            try:
                said = json.loads((self.rig.inbox / f"{name}.receipt.json").read_text())
            except (OSError, ValueError):
                continue
            assert said["state"] != "refused", said
            if said["state"] == "accepted":
                found[name] = said["batch_id"]
        return found


def test_each_of_many_drops_runs_once_whatever_happens_to_bridge_and_share(
    rig_dir: Path, processes: Processes, tmp_path: Path
) -> None:
    rig = Rig(rig_dir / "s", processes)
    rig.state.mkdir()
    rig.start("broker", "brain", "worker")
    campaign = Campaign(rig, tmp_path)
    wait_for(rig.inbox.is_dir, timeout_s=30, what="the inbox")
    began = time.monotonic()
    campaign.write_all()
    patience_s = 60 + 0.5 * DROPS
    wait_for(lambda: len(campaign.accepted()) == DROPS, timeout_s=patience_s, what="every receipt")
    batches = campaign.accepted()

    def ended() -> dict[str, str] | None:
        with closing(sqlite3.connect(rig.paths.db)) as db:  # QUERY shows the newest of them only
            rows = db.execute("SELECT id, state FROM batches WHERE kind = 'plan'").fetchall()
        found = {id_: BatchState(state).name for id_, state in rows}
        return None if {"PLANNING", "RUNNING"} & set(found.values()) else found

    found = wait_for(ended, timeout_s=patience_s, poll_s=0.2, what="the end of every batch")
    assert found is not None
    assert found.keys() == set(batches.values()), "a batch that no receipt names, or twice"
    assert set(found.values()) == {"COMPLETE"}
    ran = {name: (tmp_path / name).read_text().count("ran") for name in campaign.names}
    assert ran == dict.fromkeys(campaign.names, 1)
    assert os.listdir(rig.state / "incoming") == []
    print(
        f"{DROPS} drops, {campaign.kills} kills of the bridge, {campaign.absences} absences of the share, seed {SEED}: each ran "
        f"once, after {time.monotonic() - began:.1f} s"
    )
