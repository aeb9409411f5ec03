"""Backup and restore: a copy of one moment, whole or refused; the restored rig repeats no number."""

from __future__ import annotations

import json
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


def test_a_backup_that_is_not_whole_is_refused_and_nothing_is_made(paths: RigPaths, tmp_path: Path) -> None:
    used(paths).store.close()
    target = tmp_path / "copy"
    backup(paths, target)
    new = rig_paths(tmp_path / "new", None)
    data = (target / "rigbus.db").read_bytes()
    (target / "rigbus.db").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Refused, match=r"rigbus\.db is damaged; use another backup"):
        restore(target, new)
    (target / "rigbus.db").write_bytes(data)
    (target / "results" / "cd" / SHA).unlink()
    with pytest.raises(Refused, match="No such file"):
        restore(target, new)
    (target / MANIFEST).write_text(
        json.dumps({"schema": "rigbus.backup/1", "files": {"../id": {"sha256": ""}}})
    )
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
