"""Files of forgotten batches go, others stay, and nothing that is taken up again is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from busparts import Ref, SmallWorker
from helpers import wait_for

from rigbus import Client, Task
from rigbus.agents.attempts.values import store_result
from rigbus.bus.broker import housekeeping
from rigbus.bus.broker.broker import Broker, Options
from rigbus.bus.broker.housekeeping import Housekeeper
from rigbus.bus.broker.leftovers import Gone, Holdings
from rigbus.bus.core.model import Batch, Changes
from rigbus.bus.errors import NotFound
from rigbus.bus.paths import RigPaths, log_path, rig_paths
from rigbus.plans.stage import stage_plan

A = "a" * 64
OLD_S = 3 * 86_400
BATCH = "20260101_000001_abcdef"
OTHER = "20260101_000002_abcdef"


@pytest.fixture
def paths(tmp_path: Path) -> RigPaths:
    paths = rig_paths(tmp_path / "state")
    for folder in (paths.logs, paths.views, paths.staged, paths.results):
        folder.mkdir(parents=True)
    return paths


def batches(*ids: str, sha: str = "") -> list[Batch]:
    made = []
    for n, id_ in enumerate(ids):
        batch = Batch(n, id_, id_, "plan", "p", 0.0)
        batch.plan = {"sha256": sha}
        made.append(batch)
    return made


def keeper(paths: RigPaths, held: Holdings | None = None, **options: float) -> Housekeeper:
    return Housekeeper(paths, held or Holdings([], []), **options)


def old(path: Path, age_s: float = OLD_S) -> Path:
    at = time.time() - age_s
    os.utime(path, (at, at), follow_symlinks=False)
    return path


def result(paths: RigPaths, body: bytes = b"a result") -> Path:
    sha = store_result(body, paths.results)["sha256"]
    return paths.results / sha[:2] / sha


def lines(paths: RigPaths, batch: str, key: str = "a", n: int = 1) -> Path:
    path = log_path(paths.logs, batch, key, n)
    path.parent.mkdir(exist_ok=True)
    path.write_text("a line\n")
    return path


# -- what a commit left --------------------------------------------------------------------------------------


def test_folders_of_a_forgotten_batch_go_and_its_neighbours_stay(paths: RigPaths) -> None:
    for batch in (BATCH, OTHER):
        lines(paths, batch)
        view = paths.views / batch
        view.mkdir()
        (view / "data").symlink_to(paths.state)
        (view / "sealed").mkdir()
        (view / "sealed" / "file").write_text("x")
        (view / "sealed").chmod(0o555)
    own = paths.logs / "broker.log"
    own.write_text("lines of a process\n")
    keeper(paths).remove(Gone(folders=[BATCH], views=[BATCH]))
    assert sorted(p.name for p in paths.logs.iterdir()) == [OTHER, "broker.log"]
    assert [p.name for p in paths.views.iterdir()] == [OTHER]
    assert paths.state.is_dir()


def test_a_link_in_the_place_of_a_folder_goes_alone(paths: RigPaths, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (paths.logs / BATCH).symlink_to(precious)
    keeper(paths).remove(Gone(folders=[BATCH], views=[]))
    assert not (paths.logs / BATCH).is_symlink() and (precious / "file").exists()


def test_of_calls_only_the_logs_of_the_forgotten_tasks_go(paths: RigPaths) -> None:
    gone = [lines(paths, BATCH, "call/1", n) for n in (1, 2)]
    stays = lines(paths, BATCH, "call/2")
    keeper(paths).remove(Gone(logs=[(BATCH, "call/1", 3)]))
    assert not any(p.exists() for p in gone) and stays.exists()


def test_a_result_file_rests_before_it_goes(paths: RigPaths) -> None:
    fresh, rested = result(paths, b"fresh"), old(result(paths, b"rested"))
    held = Holdings([], [])
    house = keeper(paths, held, rest_s=3600)
    house.start()
    house.take(Gone(results=[fresh.name, rested.name]))
    wait_for(lambda: not rested.exists(), what="the rested one to go")
    assert fresh.exists()
    house.close()


def test_what_is_held_again_stays(paths: RigPaths) -> None:
    path = old(result(paths))
    held = Holdings([], [(1, path.name)])
    house = keeper(paths, held, rest_s=0)
    house._forget(path, lambda: held.has_result(path.name), 0)
    assert path.exists()
    held.committed(Changes(purge_tasks=[1]))
    house._forget(path, lambda: held.has_result(path.name), 0)
    assert not path.exists()


def test_what_a_worker_takes_up_at_the_last_moment_is_put_back(
    paths: RigPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the file, and the housekeeper moves it away before the RESULT is recorded."""
    body = b"the same again"
    path = old(result(paths, body))
    real = os.rename

    def rename(source: Path, to: Path) -> None:
        monkeypatch.setattr(housekeeping.os, "rename", real)
        store_result(body, paths.results)  # its look came just before
        real(source, to)

    monkeypatch.setattr(housekeeping.os, "rename", rename)
    keeper(paths)._forget(path, lambda: False, 600)
    assert path.read_bytes() == body and [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_a_worker_wrote_anew_meanwhile_is_not_touched(
    paths: RigPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"the same again"
    path = old(result(paths, body))
    real = os.rename

    def rename(source: Path, to: Path) -> None:
        monkeypatch.setattr(housekeeping.os, "rename", real)
        real(source, to)
        store_result(body, paths.results)

    monkeypatch.setattr(housekeeping.os, "rename", rename)
    keeper(paths)._forget(path, lambda: False, 600)
    assert path.read_bytes() == body and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_plan_that_is_staged_again_stays(paths: RigPaths, tmp_path: Path) -> None:
    source = tmp_path / "plan.md"
    source.write_text("# Plan\n")
    staged = stage_plan(tmp_path, paths.staged)
    old(staged.path)
    assert stage_plan(tmp_path, paths.staged).path == staged.path
    house = keeper(paths)
    house._forget(staged.path, lambda: False, 600)
    assert staged.path.is_dir()
    old(staged.path)
    house._forget(staged.path, lambda: False, 600)
    assert list(paths.staged.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../../etc", "A" * 64, "a" * 63])
def test_a_name_that_is_no_hash_touches_nothing(paths: RigPaths, name: str) -> None:
    before = sorted(paths.state.rglob("*"))
    house = keeper(paths, rest_s=0)
    house.remove(Gone(results=[name], plans=[name]))
    assert not house._later and sorted(paths.state.rglob("*")) == before


# -- at a start ----------------------------------------------------------------------------------------------


def test_a_start_finds_what_an_earlier_broker_did_not_get_to(paths: RigPaths) -> None:
    known = result(paths, b"known")
    orphan, new = old(result(paths, b"orphan")), result(paths, b"new")
    cut = paths.results / "ab"
    cut.mkdir(exist_ok=True)
    half = old(_touch(cut / ".tmp-x"))
    for batch, age in ((BATCH, OLD_S), (OTHER, OLD_S), ("20260101_000003_abcdef", 0)):
        lines(paths, batch)
        old(paths.logs / batch, age)
        (paths.views / batch).mkdir()
        old(paths.views / batch, age)
    for sha in (A, "b" * 64):
        (paths.staged / sha).mkdir()
        old(paths.staged / sha)
    (paths.staged / f".gone-{'c' * 64}").mkdir()
    held = Holdings(batches(OTHER, sha=A), [(1, known.name)])
    old(known)
    keeper(paths, held).sweep()
    assert [p.exists() for p in (known, orphan, new, half)] == [True, False, True, False]
    stay = [OTHER, "20260101_000003_abcdef"]
    assert sorted(p.name for p in paths.logs.iterdir()) == stay
    assert sorted(p.name for p in paths.views.iterdir()) == stay
    assert [p.name for p in paths.staged.iterdir()] == [A]


def test_a_state_folder_without_these_folders_is_no_matter(tmp_path: Path) -> None:
    house = keeper(rig_paths(tmp_path / "none"))
    house.sweep()
    house.remove(Gone(folders=[BATCH], views=[BATCH], logs=[(BATCH, "a", 1)], results=[A], plans=[A]))
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_go_does_not_keep_the_others(
    paths: RigPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for batch in (BATCH, OTHER):
        lines(paths, batch)
    real = housekeeping.shutil.rmtree

    def rmtree(path: Path) -> None:
        if path.name == BATCH:
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(housekeeping.shutil, "rmtree", rmtree)
    keeper(paths).remove(Gone(folders=[BATCH, OTHER], views=[]))
    assert [p.name for p in paths.logs.iterdir()] == [BATCH] and "left where it is" in caplog.text


def test_it_ends_when_it_is_asked_to(paths: RigPaths) -> None:
    house = keeper(paths)
    house.start()
    house.close()
    assert not house._thread.is_alive()
    keeper(paths).close()  # one that was never started


def test_a_broker_hands_over_what_it_forgets(rig_dir: Path) -> None:
    """The whole way: a purge of the core, its commit, the thread, the files."""
    paths = rig_paths(rig_dir / "state")
    for folder in (paths.logs, paths.views, paths.results):
        folder.mkdir(parents=True)
    with serving(paths, Options(retain_tasks=1)) as endpoint:
        file = old(result(paths))
        ref = {"sha256": file.name, "bytes": file.stat().st_size}
        shown = threading.Event()

        def make(*_: object) -> Ref:
            shown.wait(20)  # what they leave behind has to be there when they end
            return Ref(ref)

        worker = SmallWorker(endpoint, ["make"], make)
        with Client(endpoint=endpoint) as client:
            first = client.submit([Task(type="make", key="a"), Task(type="make", key="b")])
            batch = first.batch
            made = [lines(paths, batch), paths.views / batch]
            made[1].mkdir()
            shown.set()
            assert len(list(client.results(first, timeout_s=10))) == 2
            wait_for(lambda: not any(p.exists() for p in (*made, file)), what="the files to go")
            with pytest.raises(NotFound):
                client.query("batch", id=batch)
        worker.stop()


@contextmanager
def serving(paths: RigPaths, options: Options) -> Iterator[str]:
    """The real broker in a thread."""
    ready: list[Broker] = []

    def run() -> None:
        broker = Broker(paths, options)
        ready.append(broker)
        broker.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    broker = wait_for(lambda: ready, what="the broker")[0]
    try:
        yield broker.addresses["commands"]
    finally:
        broker.stop()
        thread.join(10)
        assert not thread.is_alive()


def _touch(path: Path) -> Path:
    path.write_bytes(b"half")
    return path
