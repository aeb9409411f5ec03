"""The ballast, and a store on a disk that is really full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smallfs import SmallDisk, small_disk

from rigbus.bus.broker.premises import open_store
from rigbus.bus.core.model import Changes
from rigbus.bus.errors import DiskFull, StoreError
from rigbus.bus.paths import RigPaths, rig_paths
from rigbus.bus.store.ballast import NAME, Disk, is_full
from rigbus.bus.store.room import MIB, Level
from rigbus.bus.store.store import Store

WALL = 1_700_000_000.0


def some(n: int, bytes_: int = 8_000) -> Changes:
    """A commit that wants about ``bytes_`` bytes of room."""
    return Changes(meta={f"k{n}": b"x" * bytes_})


def opened(paths: RigPaths, disk: Disk, durability: str = "full") -> tuple[Store, int]:
    """The store as a broker opens it, and its incarnation."""
    found = open_store(paths, disk, durability, 0.0, WALL)
    return found.store, found.incarnation


def until_full(store: Store, n: int) -> int:
    """Commit numbers ``n`` and up until the disk takes no more; the one that it refused."""
    while True:
        try:
            store.commit(some(n), 0, WALL)
        except DiskFull:
            return n
        n += 1


@pytest.fixture
def small(rig_dir: Path) -> Iterator[SmallDisk]:
    with small_disk(rig_dir / "disk", 16) as disk:
        yield disk


# -- the file ------------------------------------------------------------------------------------------------


def test_the_ballast_has_real_blocks_and_is_made_once(tmp_path: Path) -> None:
    disk = Disk(tmp_path, low_mb=1, ballast_mb=1)
    room = disk.look()
    file = tmp_path / NAME
    assert (room.level, room.ballast_bytes) == (Level.AMPLE, MIB)
    assert file.stat().st_blocks * 512 >= MIB and file.stat().st_mode & 0o777 == 0o600
    made = file.stat().st_ino
    assert Disk(tmp_path, low_mb=1, ballast_mb=1).look() and file.stat().st_ino == made


def test_it_is_given_up_once_and_made_again_by_the_next_look(tmp_path: Path) -> None:
    disk = Disk(tmp_path, low_mb=1, ballast_mb=1)
    assert not disk.give_up()
    disk.look()
    assert disk.give_up() and not (tmp_path / NAME).exists()
    assert disk.room.level is Level.FULL and disk.room.ballast_bytes == 0
    assert not disk.give_up()
    assert disk.look().level is Level.AMPLE and (tmp_path / NAME).stat().st_size == MIB


def test_a_ballast_with_holes_is_none(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"")
    with (tmp_path / NAME).open("r+b") as f:
        f.truncate(MIB)
    disk = Disk(tmp_path, low_mb=1, ballast_mb=1)
    disk.look()
    assert (tmp_path / NAME).stat().st_blocks * 512 >= MIB


def test_without_fallocate_blocks_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    assert Disk(tmp_path, low_mb=1, ballast_mb=1).look().ballast_bytes == MIB


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    (tmp_path / NAME).symlink_to(other)
    disk = Disk(tmp_path, low_mb=1, ballast_mb=1)
    assert disk.look().level is Level.AMPLE  # there is room, though none is kept
    assert disk.room.ballast_bytes == 0 and not disk.give_up()
    assert other.read_bytes() == b"precious"


def test_none_is_kept_where_the_settings_say_so(tmp_path: Path) -> None:
    disk = Disk(tmp_path, low_mb=0, ballast_mb=0)
    assert disk.look().level is Level.AMPLE and not (tmp_path / NAME).exists() and not disk.give_up()


def test_a_folder_that_was_taken_away_leaves_the_last_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    disk = Disk(folder, low_mb=1, ballast_mb=0)
    before = disk.look()
    folder.rmdir()
    assert disk.look() == disk.look() == before and not disk.give_up()
    assert caplog.text.count("cannot be looked at") == 1


def test_a_disk_with_room_is_not_full_and_the_probe_leaves_nothing(tmp_path: Path) -> None:
    assert not is_full(tmp_path) and list(tmp_path.iterdir()) == []


# -- the store, without a full disk --------------------------------------------------------------------------


def bounded(path: Path) -> Store:
    """A store whose database may grow no more: SQLite answers as it does on a full disk."""
    store = Store(path)
    store.commit(some(0), 0, WALL)
    store.db.execute(f"PRAGMA max_page_count={store.db.execute('PRAGMA page_count').fetchone()[0]}")
    return store


def test_the_very_commit_that_found_no_room_is_repeated_when_some_was_made(tmp_path: Path) -> None:
    store = bounded(tmp_path / "db")
    asked = []

    def make_room() -> bool:
        asked.append(1)
        store.db.execute("PRAGMA max_page_count=100000")
        return True

    store.make_room = make_room
    store.commit(some(1), 0, WALL)
    assert store.meta("k1") and asked == [1]
    store.close()


@pytest.mark.parametrize("answer", [True, False])
def test_a_commit_without_room_is_said_and_asked_for_once(tmp_path: Path, answer: bool) -> None:
    store = bounded(tmp_path / "db")
    asked = []
    store.make_room = lambda: bool(asked.append(1)) or answer
    with pytest.raises(DiskFull, match=r"full.*nothing accepted is lost.*Free some space") as caught:
        store.commit(some(1), 0, WALL)
    assert asked == [1] and caught.value.exit_code == 74
    assert not store.db.in_transaction and store.meta("k1") is None
    store.close()


def test_a_commit_that_fails_for_another_reason_asks_for_no_room(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.make_room = lambda: pytest.fail("no room was wanted")
    with pytest.raises(StoreError) as caught:
        store.commit(Changes(attempts=[(1, 1, None, 0.0, 0.0, "no class", None)]), 0, WALL)
    assert not isinstance(caught.value, DiskFull) and caught.value.exit_code == 8
    store.close()


# -- the store, on a full disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_what_was_committed_stays_and_the_ballast_takes_the_next_ones(
    small: SmallDisk, durability: str
) -> None:
    paths = rig_paths(small.point / "state")
    paths.state.mkdir()
    disk = Disk(paths.state, low_mb=2, ballast_mb=2)
    store, incarnation = opened(paths, disk, durability)
    disk.look()
    store.make_room = disk.give_up
    for n in range(20):
        store.commit(some(n), 0, WALL)
    small.fill()
    done = until_full(store, 20)
    assert done > 60 and not (paths.state / NAME).exists()  # a good part of the two MiB were of use
    assert not store.db.in_transaction
    small.free()
    assert disk.look().level is Level.AMPLE and disk.room.ballast_bytes == 2 * MIB
    store.commit(some(done), 0, WALL)
    store.close()
    again, newer = opened(paths, disk, durability)
    kept = {key for (key,) in again.db.execute("SELECT key FROM meta")}
    assert {f"k{n}" for n in range(done + 1)} <= kept and newer == incarnation + 1
    assert again.db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    again.close()


def test_a_start_on_a_full_disk_has_the_room_of_the_ballast(small: SmallDisk) -> None:
    paths = rig_paths(small.point / "state")
    paths.state.mkdir()
    disk = Disk(paths.state, low_mb=1, ballast_mb=1)
    store, incarnation = opened(paths, disk)
    disk.look()
    store.close()
    small.fill()
    store, newer = opened(paths, disk)
    assert newer == incarnation + 1 and not (paths.state / NAME).exists()
    store.close()
    small.fill()
    with pytest.raises(DiskFull, match="the disk is full"):
        opened(paths, disk)
    small.free()
    store, newest = opened(paths, disk)
    assert newest > newer
    store.close()


def test_a_damaged_database_on_a_disk_with_room_is_no_full_disk(tmp_path: Path) -> None:
    paths = rig_paths(tmp_path / "state")
    paths.state.mkdir()
    paths.db.write_bytes(b"no database" * 500)
    with pytest.raises(StoreError) as caught:
        opened(paths, Disk(paths.state))
    assert caught.value.exit_code == 8


def test_a_full_disk_is_told_from_other_errors_of_input_and_output(small: SmallDisk) -> None:
    assert not is_full(small.point)
    small.fill()
    assert is_full(small.point) and sorted(p.name for p in small.point.iterdir()) == ["filler"]
