"""Backup and restore: a copy of one moment, whole or refused; the restored rig repeats no number."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from harness import spec
from kept import Kept, names

from rigbus.bus.errors import NotFound, Refused
from rigbus.bus.paths import RigPaths, rig_paths
from rigbus.bus.states import TaskState
from rigbus.bus.store.backup import MANIFEST, backup, restore
from rigbus.bus.store.repairing import LEAP

SHA = "cd" * 32


@pytest.fixture
def paths(tmp_path: Path) -> RigPaths:
    (tmp_path / "state").mkdir()
    return rig_paths(tmp_path / "state", None)


def used(paths: RigPaths) -> Kept:
    """A rig that has worked: a result, a large one in a file, a lease."""
    (paths.state / "id").write_text("5" * 32 + "\n")
    (paths.state / "staged" / "abc").mkdir(parents=True)
    (paths.state / "staged" / "abc" / "plan.md").write_text("# a plan")
    (paths.results / "cd").mkdir(parents=True)
    (paths.results / "cd" / SHA).write_bytes(b"large")
    rig = Kept(paths.state)
    worker, client = rig.worker(credit=3, slots=3), rig.client()
    client.submit(spec("small"), spec("large"), spec("runs"), key="k")
    small, large, _runs = worker.leases()
    worker.result(small, {"v": 1})
    worker.result(large, ref={"sha256": SHA, "bytes": 5})
    return rig


def test_a_rig_that_works_is_copied_and_the_copy_goes_on_past_its_numbers(
    paths: RigPaths, tmp_path: Path
) -> None:
    rig = used(paths)
    target = tmp_path / "copy"
    manifest = backup(paths, target)  # its store is open: as beside a broker
    assert manifest["missing_results"] == [] and manifest["tail"]["commits"] == rig.store.tail.commits
    rig.client().submit(spec("later"), key="later")
    last, incarnation = rig.core.seq, rig.core.incarnation
    rig.store.close()

    new = rig_paths(tmp_path / "new", None)
    done = restore(target, new)
    assert done["kept"]["tasks"] == 3 and done["leases_back"] == 1
    assert (new.results / "cd" / SHA).read_bytes() == b"large"
    assert (new.state / "staged" / "abc" / "plan.md").read_text() == "# a plan"
    again = Kept(new.state)
    assert set(again.core.batch_keys) == {"k"}
    states = {t.key: t.state for t in again.core.tasks.values()}
    assert states == {"small": TaskState.DONE, "large": TaskState.DONE, "runs": TaskState.READY}
    assert again.core.incarnation == incarnation + LEAP + 1 == done["incarnation"]
    assert again.core.seq >= last + LEAP // 2 and again.store.events(last, None, 5)[1] > last
    again.check()
    again.store.close()
    assert names(new.state.parent) == ["copy", "new", "state"]


def test_the_ratings_of_samples_are_in_it_also_those_of_this_moment(paths: RigPaths, tmp_path: Path) -> None:
    used(paths).store.close()
    with closing(sqlite3.connect(paths.state / "samples.db", isolation_level=None)) as book:
        book.execute("PRAGMA journal_mode = WAL")
        book.execute("CREATE TABLE samples (id TEXT, human_rating INTEGER)")
        book.execute("INSERT INTO samples VALUES ('s1', 5)")  # in the write-ahead log, as beside a bridge
        assert backup(paths, tmp_path / "copy")["samples"] is None
    new = rig_paths(tmp_path / "new", None)
    restore(tmp_path / "copy", new)
    with closing(sqlite3.connect(new.state / "samples.db")) as again:
        assert again.execute("SELECT * FROM samples").fetchall() == [("s1", 5)]


def test_a_damaged_book_of_samples_is_named_and_left_out(paths: RigPaths, tmp_path: Path) -> None:
    used(paths).store.close()
    (paths.state / "samples.db").write_bytes(b"no database" * 1000)
    manifest = backup(paths, tmp_path / "copy")
    assert "not a database" in manifest["samples"] and "samples.db" not in manifest["files"]
    restore(tmp_path / "copy", rig_paths(tmp_path / "new", None))


def test_a_backup_that_is_not_whole_is_refused_and_nothing_is_made(paths: RigPaths, tmp_path: Path) -> None:
    used(paths).store.close()
    target = tmp_path / "copy"
    manifest = backup(paths, target)
    new = rig_paths(tmp_path / "new", None)
    data = (target / "rigbus.db").read_bytes()
    (target / "rigbus.db").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Refused, match=r"rigbus\.db is damaged; use another backup"):
        restore(target, new)
    (target / "rigbus.db").write_bytes(data)
    (target / "results" / "cd" / SHA).unlink()
    with pytest.raises(Refused, match="No such file"):
        restore(target, new)
    (target / MANIFEST).write_text(json.dumps({**manifest, "files": {"../id": {"sha256": ""}}}))
    with pytest.raises(Refused, match="outside of the backup"):
        restore(target, new)
    (target / MANIFEST).write_text("{")
    with pytest.raises(Refused, match="cannot be used"):
        restore(target, new)
    (target / MANIFEST).unlink()
    with pytest.raises(NotFound, match="not a backup"):
        restore(target, new)
    assert not new.state.exists() and names(tmp_path) == ["copy", "state"]


def test_neither_writes_over_anything(paths: RigPaths, tmp_path: Path) -> None:
    used(paths).store.close()
    target = tmp_path / "copy"
    backup(paths, target)
    with pytest.raises(Refused, match="not empty"):
        backup(paths, target)
    with pytest.raises(Refused, match="choose another --state"):
        restore(target, paths)
    with pytest.raises(NotFound, match="no rig's state"):
        backup(rig_paths(tmp_path / "nowhere", None), tmp_path / "other")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert restore(target, rig_paths(empty, None))["kept"]["tasks"] == 3


def test_a_result_that_is_not_there_is_named(paths: RigPaths, tmp_path: Path) -> None:
    used(paths).store.close()
    (paths.results / "cd" / SHA).unlink()
    assert backup(paths, tmp_path / "copy")["missing_results"] == [SHA]


@pytest.mark.parametrize(
    "wrong",
    [
        {"files": {"id": None}},
        {"files": {"id": {"sha256": 5}}},
        {"files": ["id"]},
        {"tail": None},
        {"tail": {"commits": 1, "seq": 1, "incarnation": 1}},
        {"tail": {"commits": "1", "seq": 1, "incarnation": 1, "chain": "00" * 16}},
        {"tail": {"commits": 1, "seq": -1, "incarnation": 1, "chain": "00" * 16}},
        {"tail": {"commits": 1, "seq": 1, "incarnation": 1, "chain": "00"}},
        {"made_at": None},
        {"schema": "rigbus.backup/2"},
    ],
)
def test_a_manifest_that_somebody_has_changed_is_refused(
    paths: RigPaths, tmp_path: Path, wrong: dict[str, object]
) -> None:
    used(paths).store.close()
    target = tmp_path / "copy"
    manifest = backup(paths, target)
    (target / MANIFEST).write_text(json.dumps({**manifest, **wrong}))
    new = rig_paths(tmp_path / "new", None)
    with pytest.raises(Refused, match=r"not of schema .* this backup cannot be used"):
        restore(target, new)
    assert not new.state.exists()


SMALL = """
import resource, sys
from pathlib import Path
from rigbus.bus.errors import StoreError
from rigbus.bus.paths import rig_paths
from rigbus.bus.store.backup import backup
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    backup(rig_paths(Path(sys.argv[1]), None), Path(sys.argv[2]))
except StoreError as e:
    print(e)
"""


def test_a_disk_that_does_not_take_the_copy_is_not_called_a_damage_of_the_rig(
    paths: RigPaths, tmp_path: Path
) -> None:
    used(paths).store.close()
    target = tmp_path / "copy"
    words = [sys.executable, "-c", SMALL, str(paths.state), str(target)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.startswith(f"{target}: not finished") and "choose another disk" in said
    assert "damaged" not in said and "`rigbus repair`" not in said
