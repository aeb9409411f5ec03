"""A state folder from the files of a share: what is believed, what becomes of it, and what evil or half files change."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from folders import batch, task

from rigbus.bridge.folder.contract import layout
from rigbus.bridge.folder.intake.drafts import examine
from rigbus.bridge.folder.queue.books import Books
from rigbus.bridge.folder.rebuilding.rebuild import REPORT, rebuild
from rigbus.bridge.folder.rebuilding.remains import NotBelieved, batch_of, task_of
from rigbus.bridge.folder.share.ops import Op
from rigbus.bridge.folder.share.owner import OWNER, SCHEMA
from rigbus.bridge.folder.share.port import Fault, FolderPort, Reply
from rigbus.bridge.folder.share.seal import seal
from rigbus.bus.core.model import task_id
from rigbus.bus.errors import NotFound, Refused
from rigbus.bus.paths import RigPaths, rig_paths
from rigbus.bus.states import BatchState, TaskState
from rigbus.bus.store.repairing import LEAP
from rigbus.bus.store.store import Store

PLAN = """# Plan: census

## Tasks

### scan

- **command**: `echo scan`

### report

- **command**: `echo report`
- **depends_on**: scan
"""
ENDED = 1_770_576_400.0


class Share:
    """A share as a rig's mirror leaves it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in layout.FOLDERS:
            (root / folder).mkdir(parents=True)
        self.plan("census")

    def plan(self, name: str, text: str = PLAN) -> str:
        folder = self.root / "plans" / name
        folder.mkdir(exist_ok=True)
        (folder / "plan.md").write_text(text)
        staged = self.root.parent / f"staged-{name}"
        return examine(folder, staged).sha256

    def file(self, file: layout.File | None) -> Path:
        assert file is not None
        path = self.root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
        return path

    def batch(self, id_: str, state: str, plan: str = "census", **changes: Any) -> Path:
        row = batch(
            id=id_,
            plan=plan,
            state=state,
            key=f"drop-{id_}",
            plan_path=f"/old/share/plans/{plan}",
            batch_path=f"/old/share/plans/{plan}/batches/{id_}",
            ended_at=None if state in ("planning", "running") else ENDED,
        )
        return self.file(layout.batch_file({**row, **changes}, 0.0, ENDED))

    def task(self, id_: str, key: str, state: str, **changes: Any) -> Path:
        row = task(
            id=task_id(id_, key), batch=id_, key=key, state=state, changed_at=ENDED, attempt=1, after=[]
        )
        if state == "done":
            row |= {"result": {"exit": 0, "output": f"{key}\n"}, "worker": "w-1", "ended_at": ENDED}
        return self.file(layout.task_file({**row, **changes}, 0.0))


@pytest.fixture
def share(tmp_path: Path) -> Share:
    return Share(tmp_path / "share")


@pytest.fixture
def paths(share: Share, tmp_path: Path) -> RigPaths:
    return rig_paths(tmp_path / "state", share.root)


class Db:
    """What the rebuilt database holds."""

    def __init__(self, paths: RigPaths) -> None:
        store = Store(paths.db)
        try:
            batches, tasks, _, _, self.seq, _ = store.load(time.monotonic(), time.time())
            self.incarnation = store.next_incarnation()
            self.results = {t.id: store.details([t.no])[t.no][1] for t in tasks}
        finally:
            store.close()
        self.batches = {b.id: b for b in batches}
        self.tasks = {(t.batch.id, t.key): t for t in tasks}


def build(paths: RigPaths, **how: Any) -> dict[str, Any]:
    return rebuild(paths, watch_s=0.0, **how)


def failing_copies(monkeypatch: pytest.MonkeyPatch, how: str, times: int) -> list[float]:
    """The first copies of a plan fail with this errno, or as a share that hangs does; the deadlines that were given."""
    asked: list[float] = []
    real = FolderPort.call

    def call(self: FolderPort, kind: str, ops: Sequence[Op], deadline_s: float = 10.0) -> Reply:
        if ops and ops[0]["op"] == "copy_in":
            asked.append(deadline_s)
            if len(asked) <= times and how == "HUNG":
                return Reply(0, kind, [], Fault("HUNG", f"{self.root} gave no answer"))
            if len(asked) <= times:
                return Reply(0, kind, [{"ok": False, "errno": how, "what": "plan.md: no"}])
        return real(self, kind, ops, deadline_s)

    monkeypatch.setattr(FolderPort, "call", call)
    return asked


def row_of(report: dict[str, Any], id_: str) -> dict[str, Any]:
    return next(row for row in report["batches"] if row["id"] == id_)


class TestWhatComesBack:
    def test_a_batch_that_had_ended_is_ended_with_its_tasks_and_results(
        self, share: Share, paths: RigPaths
    ) -> None:
        for state, number in (
            ("complete", BatchState.COMPLETE),
            ("failed", BatchState.FAILED),
            ("cancelled", BatchState.CANCELLED),
        ):
            share.batch(f"{state}-1", state)
            share.task(f"{state}-1", "scan", "done")
            share.task(f"{state}-1", "x", "dead", error="exit 3")
            share.task(f"{state}-1", "y", "skipped")
            share.task(f"{state}-1", "z", "expired")
            share.task(f"{state}-1", "c", "cancelled")
            report = build(paths)
            assert row_of(report, f"{state}-1")["becomes"] == "ended"
            db = Db(paths)
            assert db.batches[f"{state}-1"].state is number
            states = {key: t.state for (b, key), t in db.tasks.items() if b == f"{state}-1"}
            assert states == {
                "scan": TaskState.DONE,
                "x": TaskState.DEAD,
                "y": TaskState.SKIPPED,
                "z": TaskState.EXPIRED,
                "c": TaskState.CANCELLED,
            }
            assert b"scan\n" in (db.results[task_id(f"{state}-1", "scan")] or b"")
            assert db.tasks[f"{state}-1", "x"].error == "exit 3"
            shutil.rmtree(paths.state)

    def test_a_batch_that_had_not_ended_goes_on_with_what_is_known_to_be_done(
        self, share: Share, paths: RigPaths
    ) -> None:
        share.batch("half-1", "running", plan_sha256=share.plan("census"))
        share.task("half-1", "scan", "done")
        share.task("half-1", "report", "leased", started=True)
        share.task("half-1", "other", "dead", error="exit 3")
        report = build(paths)
        row = row_of(report, "half-1")
        assert (row["becomes"], row["done"]) == ("goes on", 1)
        assert row["again"] == {"processing": 1, "failed": 1}
        db = Db(paths)
        found = db.batches["half-1"]
        assert (found.state, found.closed, found.key) == (BatchState.RUNNING, False, "drop-half-1")
        assert found.plan is not None and found.plan["path"] == str(share.root / "plans/census")
        assert (paths.staged / found.plan["sha256"] / "plan.md").read_text() == PLAN
        assert list(db.tasks) == [("half-1", "scan")]

    def test_a_plan_that_changes_under_the_copy_is_copied_again(
        self, share: Share, paths: RigPaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        share.batch("half-1", "running")
        asked = failing_copies(monkeypatch, "EBUSY", times=2)
        assert row_of(build(paths), "half-1")["becomes"] == "goes on"
        assert len(asked) == 3

    @pytest.mark.parametrize("path", ["/nowhere/census", "/a\0b/census", "plans/../census"])
    def test_a_plan_whose_place_is_none_fails_its_batch_and_no_other(
        self, share: Share, paths: RigPaths, path: str
    ) -> None:
        share.batch("half-1", "running", plan_path=path)
        share.batch("half-2", "running")
        report = build(paths)
        assert row_of(report, "half-1")["becomes"] == "failed" and row_of(report, "half-1")["why"]
        assert row_of(report, "half-2")["becomes"] == "goes on"

    def test_it_goes_on_with_the_configuration_and_priority_that_it_had(
        self, share: Share, paths: RigPaths
    ) -> None:
        share.batch("half-1", "running", config={"LIMIT": 7}, plan_priority=8, priority=8)
        share.batch("half-2", "running")
        build(paths)
        found = Db(paths).batches
        assert found["half-1"].plan is not None and found["half-2"].plan is not None
        assert (found["half-1"].plan["config"], found["half-1"].plan["priority"]) == ({"LIMIT": 7}, 8)
        assert (found["half-1"].priority, found["half-2"].priority) == (8, 5)
        assert found["half-2"].plan["priority"] is None

    def test_lists_joins_and_loaded_models_are_made_anew(self, share: Share, paths: RigPaths) -> None:
        share.batch("half-1", "running")
        share.task("half-1", "items:expand", "done", type="expand")
        share.task("half-1", "items", "done", foreach="list.json:items")
        share.task("half-1", "warm", "done", type="load_llm")
        share.task("half-1", "items_a", "done", item_ids=["a"])
        build(paths)
        assert list(Db(paths).tasks) == [("half-1", "items_a")]

    def test_a_batch_whose_plan_was_changed_meanwhile_does_not_go_on_by_another_plan(
        self, share: Share, paths: RigPaths
    ) -> None:
        share.batch("half-1", "running", plan_sha256=share.plan("census"))
        share.plan("census", PLAN.replace("echo scan", "echo other"))
        row = row_of(build(paths), "half-1")
        assert row["becomes"] == "failed" and "rigbus submit plans/census" in row["why"]
        found = Db(paths).batches["half-1"]
        assert found.state is BatchState.FAILED and found.ended_at and found.error == row["why"]

    @pytest.mark.parametrize("text", [None, "# no plan\n", "\x00\xff"])
    def test_a_batch_whose_plan_cannot_run_any_more_fails_and_the_others_go_on(
        self, share: Share, paths: RigPaths, text: str | None
    ) -> None:
        share.batch("half-1", "running", plan="lost")
        share.batch("half-2", "running")
        (share.root / "plans/lost").mkdir(exist_ok=True)
        if text is not None:
            (share.root / "plans/lost/plan.md").write_text(text)
        report = build(paths)
        assert row_of(report, "half-1")["becomes"] == "failed"
        assert row_of(report, "half-2")["becomes"] == "goes on"

    def test_a_result_that_the_share_has_in_part_is_counted(self, share: Share, paths: RigPaths) -> None:
        share.batch("b-long", "complete")
        share.task("b-long", "scan", "done", result={"exit": 0, "output": "x" * 200_000})
        assert row_of(build(paths), "b-long")["cut_results"] == 1
        assert len(Db(paths).results[task_id("b-long", "scan")] or b"") > 50_000

    def test_tasks_in_the_archive_count_as_those_in_the_lanes(self, share: Share, paths: RigPaths) -> None:
        share.batch("b-old1", "running")
        file = share.task("b-old1", "scan", "done")
        there = share.root / "tasks/archive/b-old1/complete"
        there.mkdir(parents=True)
        file.rename(there / file.name)
        assert row_of(build(paths), "b-old1")["done"] == 1

    def test_an_order_whose_file_shows_it_running_is_followed_to_its_end(
        self, share: Share, paths: RigPaths
    ) -> None:
        uid = "3f2b8a52-6f0e-4c1c-9d0b-0a5a2c6f7e11"
        share.batch("half-1", "running", key=f"queue:{uid}")
        fields = {
            "task_id": uid,
            "type": "execute_plan",
            "plan_path": "/pi/plans/census",
            "mirrored_by": "rigbus",
        }
        (share.root / f"tasks/processing/{uid}.json").write_text(json.dumps(fields))
        build(paths)
        books = Books(paths.state / "doors/queue")
        books.begin()
        (entry,) = books.plans()
        assert (entry["batch"], entry["stem"], entry["fields"]["plan_path"]) == (
            "half-1",
            uid,
            "/pi/plans/census",
        )

    def test_drops_orders_and_what_is_lost_are_said(self, share: Share, paths: RigPaths) -> None:
        (share.root / "inbox/fresh").mkdir()
        (share.root / "tasks/queue/order.json").write_text('{"type": "execute_plan"}')
        share.task("client-1", "a", "ready")
        share.task("client-1", "b", "done")
        receipt = {"state": "accepted", "batch_id": "gone-1", "plan": "census"}
        (share.root / "inbox/census.receipt.json").write_text(json.dumps(receipt))
        report = build(paths)
        assert report["drops"] == ["fresh"]
        assert report["orders"] == ["tasks/queue/order.json"]
        assert report["without_a_batch"] == [{"batch": "client-1", "ended": 1, "lost": 1}]
        assert report["accepted_only"] == [{"batch": "gone-1", "plan": "census"}]
        assert report["plans"] == ["census"]


class TestNumbers:
    def test_no_token_and_no_event_number_of_the_lost_rig_comes_again(
        self, share: Share, paths: RigPaths
    ) -> None:
        share.batch("b-done", "complete", seq=77)
        share.task("b-done", "scan", "done", seq=99)
        owner = {"schema": SCHEMA, "rig": "lost", "bridge": "x", "beat": 4, "incarnation": 12}
        (share.root / OWNER).write_text(json.dumps(owner))
        report = build(paths)
        db = Db(paths)
        assert db.incarnation == report["incarnation"] == 12 + LEAP + 1
        assert db.seq > 99 + LEAP
        record = json.loads((share.root / OWNER).read_text())
        assert record["rig"] == (paths.state / "id").read_text().strip()
        assert record["incarnation"] == 12, "a rebuild that was interrupted here must count from it again"

    @pytest.mark.parametrize("said", [-1, 1 << 60, True, "7", None])
    def test_an_incarnation_that_makes_no_sense_is_not_believed(
        self, share: Share, paths: RigPaths, said: object
    ) -> None:
        (share.root / OWNER).write_text(json.dumps({"rig": "lost", "incarnation": said}))
        assert build(paths)["incarnation"] in (LEAP + 1, LEAP + 2)


class TestEvilFiles:
    """None of them is believed, none ends the rebuild, and what is whole beside them comes back."""

    @pytest.fixture(autouse=True)
    def half(self, share: Share) -> None:
        share.batch("half-1", "running")
        share.task("half-1", "report", "done")

    def check(self, paths: RigPaths, *, doubted: int) -> None:
        report = build(paths)
        assert report["not_believed_count"] == doubted, report["not_believed"]
        assert list(Db(paths).tasks) == [("half-1", "report")]

    def test_a_result_that_somebody_has_edited(self, share: Share, paths: RigPaths) -> None:
        file = share.task("half-1", "scan", "done")
        file.write_bytes(file.read_bytes().replace(b"scan", b"SCAN"))
        self.check(paths, doubted=1)

    def test_a_file_that_was_cut(self, share: Share, paths: RigPaths) -> None:
        for n, bytes_kept in enumerate((0, 1, 50, -5)):
            file = share.task("half-1", f"scan-{n}", "done")
            file.write_bytes(file.read_bytes()[:bytes_kept])
        self.check(paths, doubted=0)

    def test_bytes_of_any_kind_in_a_lane_and_in_a_batch_folder(self, share: Share, paths: RigPaths) -> None:
        kinds = [b"", b"\0" * 5000, b"[" * 20000, b'{"a":' * 5000, b"\xff\xfe", b'"text"', b"{}"]
        for n, data in enumerate(kinds):
            (share.root / f"tasks/complete/x{n}.json").write_bytes(data)
            folder = share.root / f"plans/census/batches/other-{n}"
            folder.mkdir(parents=True)
            (folder / "batch.json").write_bytes(data)
        self.check(paths, doubted=len(kinds))

    def test_a_sealed_file_that_was_copied_to_another_batch(self, share: Share, paths: RigPaths) -> None:
        there = share.root / "plans/census/batches/copied"
        there.mkdir()
        shutil.copy(share.root / "plans/census/batches/half-1/batch.json", there)
        self.check(paths, doubted=1)

    def test_a_file_far_too_large(self, share: Share, paths: RigPaths) -> None:
        with (share.root / "tasks/complete/big.json").open("wb") as file:
            file.truncate(1 << 33)
        with (share.root / "plans/census/batches/half-1/other.json").open("wb") as file:
            file.truncate(1 << 33)
        self.check(paths, doubted=0)

    def test_fifos_links_and_folders_where_files_should_be(self, share: Share, paths: RigPaths) -> None:
        lane = share.root / "tasks/complete"
        os.mkfifo(lane / "fifo.json")
        (lane / "link.json").symlink_to("/etc/passwd")
        (lane / "folder.json").mkdir()
        (share.root / "plans/loop").symlink_to(share.root / "plans")
        os.mkfifo(share.root / "plans/census/batches/fifo")
        self.check(paths, doubted=0)

    def test_of_two_files_of_a_task_the_later_one_is_right(self, share: Share, paths: RigPaths) -> None:
        share.task("half-1", "scan", "done", seq=50)
        share.task("half-1", "scan", "ready", seq=60)  # a person ran it again, and the rig died in the move
        self.check(paths, doubted=0)

    def test_names_that_are_none(self, share: Share, paths: RigPaths) -> None:
        share.file(layout.task_file(task(id="x", batch="../../etc", key="k", state="done"), 0.0))
        share.file(layout.task_file(task(id="y", batch="half-1", key="k" * 900, state="done"), 0.0))
        self.check(paths, doubted=2)

    @pytest.mark.parametrize("what", ["\ud800", 10**400, ["\udfff"], {"\ud800": 1}], ids=repr)
    @pytest.mark.parametrize("field", ["name", "command", "result", "config", "key", "plan_path", "error"])
    def test_sealed_by_somebody_with_what_no_rig_can_have_written(
        self, share: Share, paths: RigPaths, field: str, what: Any
    ) -> None:
        share.batch("other", "complete")
        for file in (share.batch("evil", "complete"), share.task("half-1", "scan", "done")):
            fields = json.loads(file.read_bytes())
            del fields["check"]
            file.write_bytes(seal(json.dumps(fields | {field: what}, indent=2).encode()))
        self.check(paths, doubted=2)

    def test_only_what_the_mirror_wrote_is_a_witness(self) -> None:
        with pytest.raises(NotBelieved):
            batch_of("plans/p/batches/b/batch.json", b'{"batch_id": "b"}', 17)
        assert task_of("tasks/complete/a.json", b'{"task_id": "a", "status": "complete"}', 38, 0) is None


class TestRefused:
    def test_a_state_folder_with_anything_in_it(self, share: Share, paths: RigPaths) -> None:
        paths.state.mkdir()
        (paths.state / "note").touch()
        with pytest.raises(Refused, match="not empty"):
            build(paths)
        paths.db.touch()
        with pytest.raises(Refused, match="has a database"):
            build(paths)

    def test_a_share_that_is_not_there_or_never_was_a_rigs(self, paths: RigPaths, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="mount the shared folder"):
            build(rig_paths(paths.state, tmp_path / "nowhere"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(NotFound, match="nothing of a rig"):
            build(rig_paths(paths.state, tmp_path / "empty"))
        assert not list((tmp_path / "empty").iterdir())
        with pytest.raises(NotFound, match="--shared"):
            build(rig_paths(paths.state))
        assert not paths.state.exists()

    def test_a_state_folder_that_nothing_can_be_renamed_to(self, share: Share, paths: RigPaths) -> None:
        (paths.state.parent / "disk").mkdir()
        paths.state.symlink_to("disk")
        with pytest.raises(Refused, match=rf"name a folder in it: --state {paths.state}/state"):
            build(paths)
        assert not (share.root / OWNER).exists()
        assert build(rig_paths(paths.state / "state", share.root))["rebuilt"]

    def test_while_the_rig_that_has_the_folder_lives(self, share: Share, paths: RigPaths) -> None:
        owner, over = share.root / OWNER, threading.Event()
        record = {"rig": "alive-and-well", "bridge": "x", "beat": 1, "host": "pi"}
        owner.write_text(json.dumps(record))

        def serve() -> None:
            for beat in itertools.count(2):
                new = owner.with_suffix(".new")
                new.write_text(json.dumps({**record, "beat": beat}))
                new.rename(owner)
                if over.wait(0.05):
                    return

        rig = threading.Thread(target=serve)
        rig.start()
        try:
            with pytest.raises(Refused, match=r"rig alive-an \(on pi\) still serves"):
                rebuild(paths, watch_s=20.0)
        finally:
            over.set()
            rig.join()
        assert not paths.state.exists()

    @pytest.mark.parametrize("how", ["HUNG", "EIO", "ENOSPC"])
    def test_while_the_share_fails_no_batch_is_given_up(
        self, share: Share, paths: RigPaths, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        share.batch("half-1", "running")
        asked = failing_copies(monkeypatch, how, times=10)
        with pytest.raises(Refused, match="nothing was rebuilt"):
            build(paths)
        assert len(asked) == {"HUNG": 1, "EIO": 3, "ENOSPC": 1}[how]
        assert not paths.state.exists() and not (share.root / OWNER).exists()

    def test_a_second_rebuild_beside_the_first(self, share: Share, paths: RigPaths) -> None:
        import fcntl

        fd = os.open(paths.state.parent, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with pytest.raises(Refused, match="another rebuild"):
                build(paths)
        finally:
            os.close(fd)


class TestAgain:
    def test_a_dry_run_changes_nothing(self, share: Share, paths: RigPaths) -> None:
        share.batch("half-1", "running")
        before = sorted(p.relative_to(share.root) for p in share.root.rglob("*"))
        report = build(paths, dry_run=True)
        assert not report["rebuilt"] and row_of(report, "half-1")["becomes"] == "goes on"
        after = sorted(p.relative_to(share.root) for p in share.root.rglob("*"))
        assert after == before
        assert not paths.state.exists() and not paths.state.with_name("state.rebuilding").exists()

    def test_a_second_call_changes_nothing_and_says_the_same(self, share: Share, paths: RigPaths) -> None:
        share.batch("b-done", "complete")
        first = build(paths)
        files = {p: p.stat().st_mtime_ns for p in paths.state.rglob("*")}
        again = build(paths)
        assert again["before"] and again["batches"] == first["batches"]
        assert {p: p.stat().st_mtime_ns for p in paths.state.rglob("*")} == files
        assert json.loads((paths.state / REPORT).read_text())["rebuilt"]

    @pytest.mark.parametrize("at", ["fill", "_own", "sync_folder"])
    def test_killed_in_the_middle_the_next_call_begins_anew(
        self, share: Share, paths: RigPaths, at: str
    ) -> None:
        share.batch("half-1", "running")
        share.task("half-1", "scan", "done")
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from rigbus.bridge.folder.rebuilding import rebuild\nfrom rigbus.bus.paths import rig_paths\n"
            f"rebuild.{at} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
            "rebuild.rebuild(rig_paths(Path(sys.argv[1]), Path(sys.argv[2])), watch_s=0.0)\n"
        )
        words = [sys.executable, "-c", code, str(paths.state), str(paths.shared)]
        assert subprocess.run(words, timeout=60, check=False).returncode == -signal.SIGKILL
        report = build(paths)
        assert report["rebuilt"] or report["before"]
        assert list(Db(paths).tasks) == [("half-1", "scan")]
        assert not paths.state.with_name("state.rebuilding").exists()
