"""Crash prefixes: a run of real code is recorded, and from behind every operation the files are taken up again.

A program of its own: ``python -m syscalls.prefixes store|normal|repair|backup|restore|spool [ROUNDS]``; the last line is
its figures. What a crash may leave says :mod:`.disk`; what must hold then say the classes here.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from harness import WALL

from rigbus.agents.worker.spool import Spool
from rigbus.bus.broker.premises import make_state, open_store
from rigbus.bus.core.model import Changes, Fact
from rigbus.bus.errors import NotFound
from rigbus.bus.paths import rig_paths
from rigbus.bus.store import backup, checkpoints
from rigbus.bus.store.ballast import Disk as StateDisk
from rigbus.bus.store.examining import examine
from rigbus.bus.store.repairing import repair
from rigbus.bus.store.store import Store
from rigbus.bus.store.tail import Tail, read_tail

from .disk import Crash, Disk, State, files_below
from .tracing import Recorder, traced

#: Checkpoints, a log begun anew and a log grown past what is reserved, all of it within a few commits.
SMALL_LOG: Final = 24
RESERVED_FRAMES: Final = 30

Say = Callable[[str, Any], None]


class Scene:
    """Code to be recorded, and what must hold whenever it is cut off."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def prepare(self, folder: Path) -> None:
        """What is there before."""

    def run(self, folder: Path, say: Say) -> None:
        """What is recorded; ``say(what, value)`` is an answer to somebody."""

    def judge(self, folder: Path, crash: Crash, said: list[tuple[str, Any]]) -> None:
        """Take the files up again.

        Raises:
            AssertionError, RigbusError: what was promised does not hold.
        """
        raise NotImplementedError


def value_of(n: int) -> bytes:
    """What commit ``n`` writes: one page or many, the same in every process."""
    chance = random.Random(n)
    return chance.randbytes(chance.choice([10, 300, 9000, 14000]))


class Commits(Scene):
    """Three lives of a store: made, closed and opened again, left without a close."""

    durability = "full"

    def run(self, folder: Path, say: Say) -> None:
        for life in range(3):
            store = self._open(folder, say)
            first = store.last_seq() + 1
            for n in range(first, first + self.rounds):
                event = [n, n - 1, WALL, "p", "t", "", "", {"n": n}]
                facts: dict[tuple[str, str], Fact | None] = {("s", f"k{n % 7}"): Fact(n, 0, value_of(n))}
                store.commit(Changes(events=[event], facts=facts), 0.0, WALL)
                say("commit", n)
            if life < 2:
                store.close()

    def _open(self, folder: Path, say: Say | None = None) -> Store:
        paths = rig_paths(folder / "state")
        make_state(paths.state)
        disk = StateDisk(paths.state, low_mb=1, ballast_mb=0)
        opened = open_store(paths, disk, self.durability, 0.0, WALL)
        if say is not None:
            say("incarnation", opened.incarnation)
            say("id", opened.state_id)
        self.opened = opened
        return opened.store

    def judge(self, folder: Path, crash: Crash, said: list[tuple[str, Any]]) -> None:
        done = max((v for what, v in said if what == "commit"), default=0)
        incarnation = max((v for what, v in said if what == "incarnation"), default=0)
        ids = {v for what, v in said if what == "id"}
        witness = read_tail(folder / "state/rigbus.tail") or Tail()
        store = self._open(folder)
        try:
            last = self._last(store)
            if self.durability == "full" or crash.how == "killed":
                assert done <= last <= done + 1, f"{done} commits were answered, the database holds {last}"
            else:
                assert last <= done + 1
                assert store.last_seq() >= witness.seq, "a number that is known comes twice"
            wanted = {f"k{n % 7}": value_of(n) for n in range(1, last + 1)}
            held = {key: fact.value for (_, key), fact in self.opened.loaded[3].items()}
            assert held == wanted, f"commit {last} is half there"
            assert self.opened.incarnation > incarnation, "an incarnation comes twice"
            assert len(self.opened.state_id) == 32, f"the rig's id is {self.opened.state_id!r}"
            assert ids <= {self.opened.state_id}, f"the rig's id was {ids}"
            self._work_on(store)
        finally:
            store.close()

    def _last(self, store: Store) -> int:
        """The last commit of the scene's that is there."""
        row = store.db.execute("SELECT max(rev) FROM facts").fetchone()
        return int(row[0] or 0)

    def _work_on(self, store: Store) -> None:
        n = store.last_seq() + 1
        store.commit(Changes(events=[[n, n - 1, WALL, "p", "t", "", "", {}]]), 0.0, WALL)


class CommitsNormal(Commits):
    """The same with ``durability = "normal"``: a power loss may take commits, and takes them from the end."""

    durability = "normal"


class Repairs(Scene):
    """A database with a damaged page is repaired, its files are swapped."""

    def prepare(self, folder: Path) -> None:
        state = folder / "state"
        state.mkdir()
        store = Store(state / "rigbus.db")
        store.next_incarnation()
        for n in range(1, self.rounds + 1):
            event = [n, n - 1, WALL, "p", "t", "", "", {"n": n}]
            store.commit(Changes(events=[event], facts={("s", f"k{n}"): Fact(n, 0, value_of(n))}), 0.0, WALL)
        store.close()
        data = bytearray((state / "rigbus.db").read_bytes())
        large = next(v for v in map(value_of, range(1, self.rounds + 1)) if len(v) > 5000)
        data[data.index(large[4500:4600])] ^= 1
        (state / "rigbus.db").write_bytes(data)
        (state / "id").write_text("5" * 32)

    def run(self, folder: Path, say: Say) -> None:
        state = folder / "state"
        report = repair(state, state / "rigbus.db")
        say("repaired", report["damaged"])

    def judge(self, folder: Path, crash: Crash, said: list[tuple[str, Any]]) -> None:
        state = folder / "state"
        db = state / "rigbus.db"
        found = examine(db)
        assert not (said and found.problems), f"repaired, and yet {found.problems}"
        if found.problems:
            report = repair(state, db)
            assert report["repaired"], report
        else:
            assert list(state.glob("rigbus.db.damaged-*")), "usable, and nothing was repaired"
        store = Store(db)
        try:
            assert store.next_incarnation() > 1
            held = store.db.execute("SELECT count(*) FROM facts").fetchone()[0]
            assert held == self.rounds - 1, f"{held} of {self.rounds} facts are left"
        finally:
            store.close()
        assert list(state.glob("rigbus.db.damaged-*")), "the damaged database was not kept"


class Backups(Scene):
    """A rig is copied: a backup is whole, or is none."""

    def prepare(self, folder: Path) -> None:
        paths = rig_paths(folder / "state")
        paths.state.mkdir()
        store = Store(paths.db)
        store.next_incarnation()
        for n in range(1, self.rounds + 1):
            event = [n, n - 1, WALL, "p", "t", "", "", {"n": n}]
            store.commit(Changes(events=[event], facts={("s", f"k{n}"): Fact(n, 0, value_of(n))}), 0.0, WALL)
        store.close()
        (paths.state / "id").write_text("5" * 32)
        staged = paths.staged / ("a" * 64)
        staged.mkdir(parents=True)
        (staged / "plan.md").write_text("# Plan: p\n")

    def run(self, folder: Path, say: Say) -> None:
        backup.backup(rig_paths(folder / "state"), folder / "copy")
        say("backed up", 1)

    def judge(self, folder: Path, crash: Crash, said: list[tuple[str, Any]]) -> None:
        new = rig_paths(folder / "new")
        try:
            backup.restore(folder / "copy", new)
        except NotFound:
            assert not said, "the backup was made, and is none"
            return
        self._require_all(new.state)

    def _require_all(self, state: Path) -> None:
        store = Store(state / "rigbus.db")
        try:
            held = store.db.execute("SELECT count(*) FROM facts").fetchone()[0]
            assert held == self.rounds, f"{held} of {self.rounds} facts"
            assert store.tail.incarnation > 1_000_000 and store.last_seq() > 1_000_000
        finally:
            store.close()
        assert (state / "staged" / ("a" * 64) / "plan.md").read_text() == "# Plan: p\n"
        assert (state / "id").read_text().strip() == "5" * 32


class Restores(Backups):
    """A rig is made of a backup: it is there whole, or not yet."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        backup.backup(rig_paths(folder / "state"), folder / "copy")
        shutil.rmtree(folder / "state")

    def run(self, folder: Path, say: Say) -> None:
        backup.restore(folder / "copy", rig_paths(folder / "state"))
        say("restored", 1)

    def judge(self, folder: Path, crash: Crash, said: list[tuple[str, Any]]) -> None:
        paths = rig_paths(folder / "state")
        if not paths.state.exists():
            assert not said, "the rig was restored, and is not there"
            backup.restore(folder / "copy", paths)
        self._require_all(paths.state)


class Spools(Scene):
    """What a worker owes: said to be kept, it is there; what is there is whole."""

    def run(self, folder: Path, say: Say) -> None:
        (folder / "state").mkdir()
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        spool = Spool(folder / "state", "w1", "s1")
        for n in range(self.rounds):
            rows = [{"token": (1, 2 * n + i), "ok": True} for i in range(2)]
            spool.write(rows, [value_of(n), b""])
            say("kept", n)
            if n % 2:
                say("settling", n - 1)
                spool.settle([(1, 2 * (n - 1)), (1, 2 * (n - 1) + 1)])

    def judge(self, folder: Path, crash: Crash, said: list[tuple[str, Any]]) -> None:
        wanted = {n for what, n in said if what == "kept"} - {n for what, n in said if what == "settling"}
        found = {}
        for left in Spool(folder / "state", "w1", "s2").former():
            n = int(left.path.name.rpartition(".")[2]) - 1
            found[n] = left
            assert left.body == [value_of(n), b""] and left.tokens == [(1, 2 * n), (1, 2 * n + 1)]
        assert wanted <= set(found), f"kept and not there: {wanted - set(found)}"


def answer_early() -> None:
    """A defect: commits that are not synced, and answered."""
    real = Store._configure

    def configure(self: Store, version: int) -> None:
        real(self, version)
        self.db.execute("PRAGMA synchronous=NORMAL")

    Store._configure = configure  # type: ignore[method-assign]
    Store.next_incarnation = lambda self: int(self.meta("incarnation") or 0) + 1  # type: ignore[method-assign]


def say_early() -> None:
    """A defect: the tail says that a commit was made before it is."""
    real = Store._transact

    def transact(self: Store, changes: Changes, offset: float) -> None:
        self._checkpoints._tail.write(self.tail.after(b""))
        real(self, changes, offset)

    Store._transact = transact  # type: ignore[method-assign]


DEFECTS: Final[dict[str, Callable[[], None]]] = {"sync": answer_early, "order": say_early}
SCENES: Final[dict[str, type[Scene]]] = {
    "store": Commits,
    "normal": CommitsNormal,
    "repair": Repairs,
    "backup": Backups,
    "restore": Restores,
    "spool": Spools,
}


def scene_of(name: str, rounds: int) -> Scene:
    """The scene of this name; a drop has the one of fail-at-N."""
    if name != "drop":
        return SCENES[name](rounds)
    from .plans import CutDrops

    return CutDrops(rounds)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small rigs are written into it."""
    base = Path("/dev/shm")
    made = tempfile.mkdtemp(prefix="rigbus-", dir=base if os.access(base, os.W_OK) else None)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def record(scene: Scene, folder: Path) -> tuple[State, Recorder]:
    """Run it once; the files before, and what happened to them."""
    rig, says = folder / "rig", folder / "says"
    rig.mkdir()
    scene.prepare(rig)
    before = files_below(rig)

    def run() -> None:
        fd = os.open(says, os.O_WRONLY | os.O_CREAT, 0o600)
        scene.run(rig, lambda what, value: void(os.write(fd, json.dumps([what, value]).encode() + b"\n")))

    recorder = Recorder(rig, says)
    code = traced(run, recorder)
    assert code == 0, f"the scene itself failed with {code}"
    return before, recorder


def void(_: int) -> None:
    """Nobody asks how many bytes."""


def main(name: str, rounds: str = "8", defect: str = "") -> dict[str, Any]:
    """Record the scene ``name``, take up every state; figures and failures."""
    logging.disable()  # a thousand times the same words
    checkpoints.WAL_FRAMES, checkpoints._WAL_BYTES = SMALL_LOG, 32 + RESERVED_FRAMES * 4120  # type: ignore[misc]
    if defect:
        DEFECTS[defect]()
    scene = scene_of(name, int(rounds))
    hows: Counter[str] = Counter()
    failures: list[str] = []
    with memory_folder() as folder:
        before, recorder = record(scene, folder)
        was = folder / "rig"
        for crash in Disk(before).crashes(recorder.ops):
            said = [tuple(json.loads(line)) for line in crash.said]
            hows[crash.how.split(" at ")[0]] += 1
            again = folder / "again"
            crash.write(again, was)
            again.mkdir(exist_ok=True)
            try:
                scene.judge(again, crash, said)
            except Exception as e:
                op = recorder.ops[crash.n - 1]
                where = (
                    f"{crash.how} behind {crash.n} of {len(recorder.ops)} ({op.kind} {Path(op.path).name})"
                )
                failures.append(f"{where}: {type(e).__name__}: {e}"[:400])
            shutil.rmtree(again)
    return {
        "operations": len(recorder.ops),
        "syncs": sum(op.kind == "sync" for op in recorder.ops),
        "states": sum(hows.values()),
        "by": dict(hows),
        "failures": len(failures),
        "first": failures[:10],
    }


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        print(json.dumps(main(*sys.argv[1:])))
