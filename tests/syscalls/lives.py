"""Scenes for fail-at-N over state folders: what is run while a call fails, and how it stands when the disk is well again."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from harness import STATE_ID, WALL, Harness, spec

from rigbus.agents.attempts.output import OutputLog
from rigbus.agents.worker.spool import Spool
from rigbus.bus.broker.premises import lock, make_state, open_store
from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Changes, Effects, Fact
from rigbus.bus.errors import RigbusError
from rigbus.bus.paths import rig_paths
from rigbus.bus.states import TaskState
from rigbus.bus.store import backup
from rigbus.bus.store.ballast import Disk
from rigbus.bus.store.examining import examine
from rigbus.bus.store.repairing import repair
from rigbus.bus.store.store import Store
from rigbus.bus.wire import Verb

from .prefixes import Say, value_of


class Life:
    """What runs while a call fails. ``errors`` are the ones that it may end with: ours, that name the fix."""

    errors: tuple[type[Exception], ...] = (RigbusError,)

    def prepare(self, folder: Path) -> None:
        """What is there before."""

    def run(self, folder: Path, say: Say) -> None:
        """What is run; ``say(what, value)`` is an answer to somebody."""
        raise NotImplementedError

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        """The disk is well again.

        Raises:
            AssertionError, RigbusError: what was promised does not hold.
        """
        raise NotImplementedError

    def require_words(self, words: str, folder: Path) -> None:
        """An error names the place and says what to do."""
        assert str(folder) in words, f"where? {words}"
        assert ";" in words or "tried again" in words, f"no fix: {words}"

    def clear(self, folder: Path) -> None:
        """Remove it, read-only folders too."""
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o700)
        shutil.rmtree(folder)


# -- a broker's state folder -----------------------------------------------------------------------------------


class Stored(Harness):
    """The core on its state folder, opened as the broker opens it; every round is committed before it is answered."""

    def __init__(self, state: Path) -> None:
        make_state(state)
        self.lock = lock(state / "broker.lock")
        self.disk = Disk(state, low_mb=1, ballast_mb=1)
        opened = open_store(rig_paths(state), self.disk, "full", 1000.0, WALL)
        self.store = opened.store
        self.store.make_room = self.disk.give_up
        core = Core(
            incarnation=opened.incarnation, state_id=STATE_ID, epoch=int(self.store.meta("epoch") or 0)
        )
        batches, tasks, edges, facts, core.seq, core.channel_seq = opened.loaded
        core.load(batches, tasks, edges, facts, 1000.0, WALL)
        self.disk.look()
        super().__init__(core, now=1000.0, wall=WALL)

    def settle(self) -> Effects:
        self.core.tick(self.now, self.wall)
        self.core.match()
        fx = self.core.take_effects()
        if fx.changes:
            self.store.commit(fx.changes, self.now, self.wall)
        for send in fx.sends:
            self.inboxes[send.peer].append(send)
        return fx

    def close(self) -> None:
        self.store.close()
        os.close(self.lock)


class Brokers(Life):
    """A restart over a log that was not closed, then submit, lease, start, failure, retry, result, cancel, checkpoints, end."""

    def prepare(self, folder: Path) -> None:
        rig = Stored(folder / "state")
        client, worker = rig.client(), rig.worker(name="w0", credit=2, slots=2)
        client.submit(spec("a"), spec("b"), key="k0")
        first, second = worker.leases()
        worker.started(first, second)
        worker.result(first, "kept")
        kept = {p: p.read_bytes() for p in rig.store.path.parent.iterdir() if not p.name.endswith("-shm")}
        rig.close()
        for path in rig.store.path.parent.iterdir():
            path.unlink()
        for path, data in kept.items():  # as a kill -9 leaves them: the log is not copied
            path.write_bytes(data)

    def run(self, folder: Path, say: Say) -> None:
        rig = Stored(folder / "state")
        self._drive(rig, say, set())
        rig.disk.look()
        rig.close()

    def _drive(self, rig: Stored, say: Say, recorded: set[str]) -> None:
        """Everything that is to be done, as often as it takes: whoever gets no answer asks again."""
        client = rig.client()
        for key, specs in (
            ("k1", [spec("c", policy={"task": 3, "backoff_s": 0}), spec("d", "c")]),
            ("k2", [spec("x", type="nobody")]),
        ):
            answer = client.submit(*specs, key=key)
            assert answer.verb is Verb.ACCEPTED, answer.header
            say("accepted", answer.header["ids"])
        say("cancelled", client.ask(Verb.CANCEL, {"batch": answer.header["batch"]}).header.get("cancelled"))
        worker = rig.worker(name="w1", credit=1)
        while (lease := worker.next_lease()) is not None:
            assert lease["id"] not in recorded, f"{lease['key']} was recorded and is leased again"
            worker.started(lease)
            if lease["key"] == "c" and lease["attempt"] == 1:
                worker.fail(lease)
                continue
            assert worker.result(lease, "done").verb is Verb.RECORDED
            say("recorded", lease["id"])

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        state = folder / "state"
        accepted = {i for what, ids in said if what == "accepted" for i in ids}
        recorded = {i for what, i in said if what == "recorded"}
        rig = Stored(state)
        try:
            missing = accepted - set(rig.core.ids)
            assert not missing, f"accepted and gone: {missing}"
            for id_ in recorded:
                assert rig.core.ids[id_].state is TaskState.DONE, f"{id_} was recorded"
            self._drive(rig, lambda *_: None, recorded)
            rig.check()
            self._require_ends(rig.core.tasks.values(), rig.store)
        finally:
            rig.close()
        found = examine(state / "rigbus.db")
        assert not found.problems, found.problems
        left = sorted(p.name for p in state.iterdir() if p.name.endswith((".tmp", ".new")))
        assert len(left) <= 1 and not "".join(left).endswith("new"), f"left behind: {left}"

    def _require_ends(self, tasks: Any, store: Store) -> None:
        states = {task.key: task.state.name for task in tasks}
        wanted = {"a": "DONE", "b": "DONE", "c": "DONE", "d": "DONE", "x": "CANCELLED"}
        assert states == wanted, states
        ends: Counter[str] = Counter()
        last = 0
        for (blob,) in store.db.execute("SELECT blob FROM events ORDER BY seq_first"):
            for seq, _, _, channel, topic, id_, _, _ in msgpack.unpackb(blob):
                assert seq > last, f"event {seq} behind {last}"
                last = seq
                state = topic.rpartition(".")[2]
                if channel != "a" and topic.startswith("task.") and state.upper() in wanted.values():
                    ends[id_] += 1
        assert set(ends.values()) == {1} and len(ends) == len(wanted), f"ends: {ends}"


class Examines(Brokers):
    """A database is looked at before it is opened: what the disk does not give just now is never called damage."""

    errors = (RigbusError, OSError, sqlite3.Error)

    def run(self, folder: Path, say: Say) -> None:
        found = examine(folder / "state/rigbus.db")
        if found.problems:
            raise found.refusal()

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        assert examine(folder / "state/rigbus.db").problems == []

    def require_words(self, words: str, folder: Path) -> None:
        assert "damaged" not in words and "`rigbus repair`" not in words, words


class FirstStart(Brokers):
    """A state folder is made."""

    def prepare(self, folder: Path) -> None:
        pass

    def run(self, folder: Path, say: Say) -> None:
        rig = Stored(folder / "state")
        say("accepted", rig.client().submit(spec("a"), spec("b"), key="k0").header["ids"])
        rig.close()

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        rig = Stored(folder / "state")
        rig.client().submit(spec("a"), spec("b"), key="k0")
        rig.close()
        super().judge(folder, said)


def _some_rig(state: Path, rounds: int = 4) -> None:
    state.mkdir(parents=True)
    store = Store(state / "rigbus.db")
    store.next_incarnation()
    for n in range(1, rounds + 1):
        event = [n, n - 1, WALL, "p", "t", "", "", {"n": n}]
        store.commit(Changes(events=[event], facts={("s", f"k{n}"): Fact(n, 0, value_of(n + 1))}), 0.0, WALL)
    store.close()
    (state / "id").write_text("5" * 32)


def _facts(state: Path) -> int:
    store = Store(state / "rigbus.db")
    try:
        return int(store.db.execute("SELECT count(*) FROM facts").fetchone()[0])
    finally:
        store.close()


class Backups(Life):
    """A backup, and a rig made of it."""

    def prepare(self, folder: Path) -> None:
        _some_rig(folder / "state")

    def run(self, folder: Path, say: Say) -> None:
        backup.backup(rig_paths(folder / "state"), folder / "copy")
        say("backed up", 1)
        backup.restore(folder / "copy", rig_paths(folder / "new"))
        say("restored", 1)

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        done = {what for what, _ in said}
        if "backed up" not in done:
            assert not (folder / "new").exists()
            backup.backup(rig_paths(folder / "state"), folder / "copy2")
            backup.restore(folder / "copy2", rig_paths(folder / "new"))
        elif "restored" not in done and not (folder / "new").exists():
            backup.restore(folder / "copy", rig_paths(folder / "new"))
        assert _facts(folder / "state") == _facts(folder / "new") == 4


class Repairs(Life):
    """A damaged database is repaired."""

    def prepare(self, folder: Path) -> None:
        _some_rig(folder / "state")
        db = folder / "state/rigbus.db"
        data = bytearray(db.read_bytes())
        data[data.index(value_of(5)[4500:4600])] ^= 1  # fact k4
        db.write_bytes(data)

    def run(self, folder: Path, say: Say) -> None:
        state = folder / "state"
        say("repaired", repair(state, state / "rigbus.db")["repaired"])

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        state = folder / "state"
        if examine(state / "rigbus.db").problems:
            assert not any(what == "repaired" for what, _ in said)
            assert repair(state, state / "rigbus.db")["repaired"]
        assert _facts(state) == 3, _facts(state)
        assert list(state.glob("rigbus.db.damaged-*")), "the damaged database was not kept"


# -- a worker's disk ---------------------------------------------------------------------------------------------


class Spools(Life):
    """What a worker owes is kept, read by its heir, and settled; its output goes to a log."""

    errors = ()

    def prepare(self, folder: Path) -> None:
        (folder / "state").mkdir()
        Spool(folder / "state", "w", "s0").write([{"token": (1, 1), "ok": True}], [b"old"])

    def run(self, folder: Path, say: Say) -> None:
        spool = Spool(folder / "state", "w", "s1")
        say("read", [left.body[0].decode() for left in spool.former()])
        for n in (2, 3):
            if spool.keep([{"token": (1, n), "ok": True}], [b"%d" % n]):
                say("kept", n)
        say("settling", 2)
        spool.settle([(1, 2)])
        log = OutputLog(folder / "state/logs/t.log")
        log.write(b"hello")
        said = log.close()
        assert said.head == b"hello" and (said.log_error or said.discarded_bytes == 0)

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        spool = Spool(folder / "state", "w", "s2")
        found = {left.tokens[0][1]: left.body[0] for left in spool.former()}
        wanted = {1} | {n for what, n in said if what == "kept"} - {2}
        assert wanted <= set(found), f"owed and gone: {wanted - set(found)}"
        assert all(body == (b"old" if n == 1 else b"%d" % n) for n, body in found.items())
        spool.settle([(1, n) for n in found])
        assert not Spool(folder / "state", "w", "s3").former()
