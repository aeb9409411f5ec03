"""What a database has lost is noticed at the next start; what only looks like a loss is not. Files as after a kill -9."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from harness import WALL

from rigbus.bus.core.model import Changes, Fact
from rigbus.bus.errors import StoreError
from rigbus.bus.store import checkpoints
from rigbus.bus.store.examining import examine
from rigbus.bus.store.pages import FRAME_BYTES, WAL_HEADER_BYTES, PageSums
from rigbus.bus.store.store import Store
from rigbus.bus.store.tail import Tail, TailFile, read_tail, tail_path

#: `make corruptions` asks for more.
CORRUPTIONS = int(os.environ.get("RIGBUS_TEST_CORRUPTIONS", "200"))
#: Of kill -9.
ROUNDS = 5
#: A log that is full after a few commits: checkpoints happen while a test looks.
SMALL_LOG = 40
SUFFIXES = ("db", "db-wal", "tail", "sums")


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "WAL_FRAMES", SMALL_LOG)
    monkeypatch.setattr(checkpoints, "_WAL_BYTES", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rig.db"


def work(store: Store, rounds: int, seed: int = 0) -> None:
    """Commits of events and values, of one page and of many."""
    chance, seq = random.Random(seed), store.last_seq()
    for n in range(rounds):
        seq += 1
        value = chance.randbytes(chance.choice([10, 300, 9000]))
        store.commit(
            Changes(
                events=[[seq, seq - 1, WALL, "p", "t", "", "", {"n": n}]],
                facts={("s", f"k{n % 50}"): Fact(n + 1, 0, value)},
            ),
            0.0,
            WALL,
        )


def copy_rig(path: Path, folder: Path) -> Path:
    """The files as a kill -9 at this moment would leave them."""
    folder.mkdir()
    for suffix in SUFFIXES:
        file = path.with_suffix(f".{suffix}")
        if file.exists():
            shutil.copy(file, folder / file.name)
    return folder / path.name


def content(path: Path) -> list[str]:
    """Everything that the tables hold."""
    db = sqlite3.connect(path)
    try:
        return list(db.iterdump())
    finally:
        db.close()


def used_bytes(path: Path) -> int:
    """Length of the write-ahead log without what is reserved."""
    wal = path.with_suffix(".db-wal").read_bytes()
    frames = 0
    while wal[WAL_HEADER_BYTES + frames * FRAME_BYTES + 8 :][:8] == wal[16:24]:
        frames += 1
    return WAL_HEADER_BYTES + frames * FRAME_BYTES


@pytest.fixture
def killed(path: Path, tmp_path: Path, small_log: None) -> Path:
    """A rig that was killed: some of it is in the database, the rest in the log."""
    store = Store(path)
    store.next_incarnation()
    work(store, 120)
    copy = copy_rig(path, tmp_path / "killed")
    store.close()
    os.truncate(copy.with_suffix(".db-wal"), used_bytes(copy))
    assert copy.stat().st_size > 100_000 and used_bytes(copy) > 30_000
    return copy


# -- a tail ------------------------------------------------------------------------------------------------------


def test_a_tail_is_read_back_and_anything_else_is_none() -> None:
    tail = Tail().after(b"x", 7, 3).after(b"")
    assert (tail.commits, tail.seq, tail.incarnation) == (2, 7, 3)
    assert Tail.unpack(tail.pack()) == tail
    packed = tail.pack()
    for at in range(len(packed)):
        assert Tail.unpack(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :]) is None
    assert Tail.unpack(b"") is None and Tail.unpack(packed[:-1]) is None


def test_the_chain_tells_two_lives_apart() -> None:
    assert Tail().after(b"a").after(b"b").chain != Tail().after(b"b").after(b"a").chain
    assert Tail().after(b"").after(b"").chain != Tail().after(b"").chain


def test_a_write_of_the_tail_that_was_torn_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "rig.tail"
    TailFile.make(file, Tail())
    tails = [Tail()]
    out = TailFile(file)
    for n in range(5):
        tails.append(tails[-1].after(b"x", n))
        out.write(tails[-1])
        assert read_tail(file) == tails[-1]
        data = bytearray(file.read_bytes())
        at = 4096 * (tails[-1].commits & 1)
        data[at + 20] ^= 255
        (tmp_path / "torn").write_bytes(data)
        assert read_tail(tmp_path / "torn") == tails[-2]
    out.close()
    out.close()
    assert read_tail(tmp_path / "nothing") is None


# -- corruption ---------------------------------------------------------------------------------------------------


def _flip(data: bytearray, at: int) -> None:
    data[at] ^= 1 << (at % 8)


def _garbage(data: bytearray, at: int) -> None:
    data[at : at + 300] = b"\xa5" * len(data[at : at + 300])


def _zeros(data: bytearray, at: int) -> None:
    start = at // 512 * 512
    data[start : start + 512] = bytes(len(data[start : start + 512]))


def _cut(data: bytearray, at: int) -> None:
    del data[at:]


DAMAGES: list[Callable[[bytearray, int], None]] = [_flip, _flip, _flip, _garbage, _zeros, _cut]


def refused(path: Path) -> str:
    """Why a store does not open, empty when it does."""
    try:
        Store(path).close()
    except StoreError as e:
        return str(e)
    return ""


def test_corruption_at_a_random_place_is_noticed_or_changes_nothing(killed: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance, outcome = random.Random(seed), Counter[str]()
    whole = copy_rig(killed, tmp_path / "whole")
    Store(whole).close()
    wanted = content(whole)
    for n in range(CORRUPTIONS):
        copy = copy_rig(killed, tmp_path / f"copy{n}")
        suffix = ("db", "db-wal")[n % 2]
        file = copy.with_suffix(f".{suffix}")
        data = bytearray(file.read_bytes())
        at, damage = chance.randrange(len(data)), chance.choice(DAMAGES)
        damage(data, at)
        file.write_bytes(data)
        where = f"seed {seed}: {damage.__name__} at {at} of {suffix}"
        said = refused(copy)
        if said:
            assert file.read_bytes() == data, f"{where}: a refused file was changed"
            assert "rigbus repair" in said or "no rigbus database" in said, where
        else:
            assert content(copy) == wanted, f"{where}: other content, and nothing was said"
        outcome["detected" if said else "equal"] += 1
        shutil.rmtree(copy.parent)
    print(f"\nseed {seed}: {CORRUPTIONS} corruptions of db and wal: {dict(outcome)}, 0 unnoticed")
    assert outcome["detected"] > CORRUPTIONS // 2


# -- a tail that is gone ------------------------------------------------------------------------------------------


def _delete_wal(path: Path) -> None:
    path.with_suffix(".db-wal").unlink()


def _cut_wal(path: Path) -> None:
    os.truncate(path.with_suffix(".db-wal"), used_bytes(path) - FRAME_BYTES)


def _flip_wal(path: Path) -> None:
    file = path.with_suffix(".db-wal")
    data = bytearray(file.read_bytes())
    data[WAL_HEADER_BYTES + FRAME_BYTES + 500] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("lose", [_delete_wal, _cut_wal, _flip_wal])
def test_commits_that_the_log_has_lost_are_counted_and_nothing_is_changed(
    killed: Path, lose: Callable[[Path], None]
) -> None:
    lose(killed)
    before = {f.name: f.read_bytes() for f in killed.parent.iterdir()}
    with pytest.raises(StoreError, match=r"the last \d+ commits? (are )?.*gone.*rigbus repair") as e:
        Store(killed)
    assert "rig.tail counts 121 (event 120)" in str(e.value) and e.value.exit_code == 8
    assert {n: (killed.parent / n).read_bytes() for n in before} == before


def test_an_old_copy_of_the_database_is_not_taken_for_the_new_one(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    work(store, 5)
    store.close()
    old = path.read_bytes()
    store = Store(path)
    work(store, 3)
    store.close()
    path.write_bytes(old)
    with pytest.raises(StoreError, match=r"the last 3 commits are gone"):
        Store(path)


def test_another_rigs_database_with_as_many_commits_is_not_taken(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    for n, file in enumerate((path, other)):
        store = Store(file)
        work(store, 5, seed=n)
        store.commit(Changes(events=[[9, 5, WALL, "p", "t", "", "", {"rig": n}]]), 0, WALL)
        store.close()
    shutil.copy(other, path)
    shutil.copy(other.with_suffix(".sums"), path.with_suffix(".sums"))
    with pytest.raises(StoreError, match="not of one rig's life"):
        Store(path)


def test_a_database_that_is_gone_is_not_begun_anew(path: Path) -> None:
    store = Store(path)
    work(store, 2)
    store.close()
    path.unlink()
    with pytest.raises(StoreError, match="the database is gone, 2 commits with it"):
        Store(path)
    assert not path.exists()


def test_without_the_tail_file_nobody_knows(path: Path) -> None:
    Store(path).close()
    tail_path(path).unlink()
    with pytest.raises(StoreError, match=r"rig\.tail is missing or damaged.*rigbus repair"):
        Store(path)


def test_without_the_sums_they_are_made_again(path: Path) -> None:
    store = Store(path)
    work(store, 20)
    store.close()
    sums = path.with_suffix(".sums")
    before = sums.read_bytes()
    sums.unlink()
    Store(path).close()
    assert sums.read_bytes() == before


def test_a_flip_in_a_value_is_found_that_sqlite_does_not_see(path: Path) -> None:
    store = Store(path)
    store.commit(Changes(facts={("s", "k"): Fact(1, 0, "precious" * 2000)}), 0, WALL)
    store.close()
    data = bytearray(path.read_bytes())
    data[data.index(b"preciousprecious") + 5000] ^= 1
    path.write_bytes(data)
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    with pytest.raises(StoreError, match=r"damaged: 1 page \(\d+\) is not what was written there"):
        Store(path)


# -- what is no loss ----------------------------------------------------------------------------------------------


def test_no_step_of_a_commit_or_a_checkpoint_looks_like_a_loss_when_it_is_the_last(
    path: Path, tmp_path: Path, small_log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files taken before and after each write beside the database; power may also take writes that were not synced."""
    moments: list[Path] = []
    firsts = Counter[str]()

    def before(cls: Any, name: str) -> None:
        real = getattr(cls, name)

        def step(self: Any, *given: Any) -> Any:
            firsts[name] += 1
            if firsts[name] in (1, 2, 3, 20, 40, 41):
                moments.append(copy_rig(path, tmp_path / f"{name}-{firsts[name]}-before"))
            out = real(self, *given)
            if firsts[name] in (1, 2, 3, 20, 40, 41):
                moments.append(copy_rig(path, tmp_path / f"{name}-{firsts[name]}-after"))
            return out

        monkeypatch.setattr(cls, name, step)

    before(TailFile, "write")
    before(TailFile, "sync")
    before(PageSums, "update")
    before(checkpoints.Checkpoints, "run")
    store = Store(path)
    store.next_incarnation()
    first = copy_rig(path, tmp_path / "first")
    work(store, 60)
    store.close()
    assert len(moments) > 25 and firsts["update"] > 3
    for moment in moments:
        assert examine(moment).problems == [], moment.parent.name
        unsynced = copy_rig(moment, moment.parent / "unsynced")
        shutil.copy(tail_path(first), tail_path(unsynced))  # the kernel had not written it yet
        if "update" in moment.parent.name and moment.parent.name.endswith("before"):
            assert read_tail(tail_path(unsynced)) == read_tail(tail_path(first))
        Store(unsynced).close()
        Store(moment).close()


def test_half_new_sums_are_right_while_the_log_holds_their_pages(
    path: Path, tmp_path: Path, small_log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power is lost while the sums are written: any part of them may be on the disk."""
    taken: list[tuple[Path, bytes]] = []
    real = PageSums.update

    def update(self: PageSums, pages: dict[int, int]) -> None:
        copy = copy_rig(path, tmp_path / f"copy{len(taken)}")
        real(self, pages)
        taken.append((copy, self.path.read_bytes()))

    monkeypatch.setattr(PageSums, "update", update)
    store = Store(path)
    work(store, 40)
    store.close()
    monkeypatch.undo()
    chance = random.Random(1)
    assert len(taken) > 2
    for copy, new in taken:
        old = copy.with_suffix(".sums").read_bytes().ljust(len(new), b"\0")
        cut = chance.randrange(8, len(new), 4)
        for mixed in (old, new[:cut] + old[cut:], old[:cut] + new[cut:]):
            copy.with_suffix(".sums").write_bytes(mixed)
            assert examine(copy).problems == []


WRITER = """\
import sys
from pathlib import Path
from rigbus.bus.store import checkpoints
from rigbus.bus.core.model import Changes, Fact
from rigbus.bus.store.store import Store
checkpoints.WAL_FRAMES = 40
store = Store(Path(sys.argv[1]), durability=sys.argv[2])
store.next_incarnation()
seq = store.last_seq()
while True:
    seq += 1
    event = [seq, seq - 1, 0.0, "p", "t", "", "", {}]
    store.commit(Changes(events=[event], facts={("s", str(seq % 30)): Fact(seq, 0, "x" * (seq % 7 * 900))}), 0.0, 0.0)
    print(seq, flush=True)
"""


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_kill_9_at_any_moment_is_no_loss(path: Path, durability: str) -> None:
    chance = random.Random()
    said = 0
    for _ in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), durability], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(chance.randrange(1, 120)):
            said = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")[:-1]  # what was said whole
        said = int(rest[-1]) if rest else said
        child.wait()
        child.stdout.close()
        found = examine(path)
        assert found.problems == [] and found.lost == 0
        assert found.tail.seq >= said
    store = Store(path)
    assert store.last_seq() >= said and store.meta("incarnation") == ROUNDS
    store.close()


def test_a_connection_that_is_dropped_and_not_closed_is_no_damage(path: Path) -> None:
    store = Store(path)
    work(store, 10)
    del store
    assert examine(path).problems == []


# -- durability normal --------------------------------------------------------------------------------------------


def test_with_normal_the_loss_is_said_and_no_number_comes_twice(
    killed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _delete_wal(killed)
    with caplog.at_level(logging.WARNING):
        store = Store(killed, durability="normal")
    assert "commits lost" in caplog.text
    # an event that nobody has seen, and none before it: whoever stands in what was lost takes a snapshot
    (event,), oldest, _ = store.events(121, None, 10)
    assert event[:2] == [122, 121] and event[4] == "rig.lost" and event[7]["commits"] > 0 and oldest is None
    for since in (0, 50, 119, 120):
        assert store.events(since, None, 10)[1] == 122
    assert store.next_incarnation() == 2
    loaded = store.load(0.0, WALL)
    assert loaded[4:] == (122, {"p": 122, "c": 121, "a": 121})
    work(store, 3)
    store.close()
    again = Store(killed)
    assert again.last_seq() == 125 and again.next_incarnation() == 3
    again.close()


def test_with_normal_a_damaged_page_is_refused_all_the_same(killed: Path) -> None:
    _delete_wal(killed)
    data = bytearray(killed.read_bytes())
    data[-2000] ^= 1
    killed.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        Store(killed, durability="normal")


# -- checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(path: Path) -> Iterator[Callable[[], sqlite3.Connection]]:
    opened = []

    def open_() -> sqlite3.Connection:
        db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM events").fetchone()
        opened.append(db)
        return db

    yield open_
    for db in opened:
        db.close()


def test_a_log_of_its_real_length_is_begun_anew_by_us_alone(path: Path, tmp_path: Path) -> None:
    """More than one round of the log, so that SQLite's own checkpoints, were they on, would have come between."""
    store = Store(path, durability="normal")  # as full, and no fsync to wait for
    work(store, 2500)
    wal = path.with_suffix(".db-wal").stat().st_size
    assert 16_000_000 < wal < 18_000_000 and path.stat().st_size > 100_000
    copy = copy_rig(path, tmp_path / "killed")
    assert examine(copy).problems == []
    store.close()
    assert examine(path).problems == []


def test_the_log_is_begun_anew_when_it_is_full(path: Path, small_log: None) -> None:
    store = Store(path)
    work(store, 300)
    assert path.with_suffix(".db-wal").stat().st_size < 3 * SMALL_LOG * FRAME_BYTES
    store.close()
    assert examine(path).problems == []


def test_a_reader_keeps_the_log_and_is_named_until_it_leaves(
    path: Path,
    small_log: None,
    reader: Callable[[], sqlite3.Connection],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoints, "_AGAIN_FRAMES", 20)
    store = Store(path)
    work(store, 5)
    other = reader()
    work(store, 60)
    assert "a reader holds the write-ahead log" in caplog.text
    grown = path.with_suffix(".db-wal").stat().st_size
    assert grown > 2 * SMALL_LOG * FRAME_BYTES
    other.close()
    work(store, 200)
    assert path.with_suffix(".db-wal").stat().st_size < grown + 3 * SMALL_LOG * FRAME_BYTES
    store.close()
    assert examine(path).problems == []


def test_a_reader_of_a_log_that_was_copied_does_not_make_every_commit_a_checkpoint(
    path: Path, small_log: None, reader: Callable[[], sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    real = checkpoints.Checkpoints.run
    monkeypatch.setattr(checkpoints.Checkpoints, "run", lambda self: runs.append(real(self)) or runs[-1])
    store = Store(path)
    work(store, 5)
    reader()  # of the newest content, in the log
    assert store._checkpoints.run()
    work(store, 100)
    assert len(runs) == 1, "1000 more frames before the next"
    store.close()
    assert examine(path).problems == []


def test_a_reader_that_stays_longer_than_the_broker_is_no_damage(
    path: Path, small_log: None, reader: Callable[[], sqlite3.Connection]
) -> None:
    store = Store(path)
    work(store, 5)
    reader()
    work(store, 10)
    store.close()
    assert examine(path).problems == []
    again = Store(path)
    work(again, 100)
    again.close()
    assert examine(path).problems == []


def test_sums_that_cannot_be_written_are_made_again_and_accuse_nobody(
    path: Path, small_log: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store = Store(path)
    with monkeypatch.context() as patch:
        patch.setattr(PageSums, "update", full)
        work(store, 60)
    assert "No space left" in caplog.text and not path.with_suffix(".sums").exists()
    store.close()
    Store(path).close()
    assert path.with_suffix(".sums").exists() and examine(path).problems == []


def test_a_tail_that_cannot_be_written_costs_no_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    store = Store(path)
    with monkeypatch.context() as patch:
        patch.setattr(TailFile, "write", full)
        work(store, 5)
    assert caplog.text.count("might not be noticed") == 1
    work(store, 1)
    store.close()
    again = Store(path)
    assert again.last_seq() == 6 and msgpack.unpackb(
        again.db.execute("SELECT blob FROM events WHERE seq_first=5").fetchone()[0]
    )
    again.close()
