"""The mirror when people, scripts and faults get at its files: healed, kept aside, archived, never lost in silence."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from folders import UUID, Share
from worlds import AT, BATCH, Drawn, event, raw_batch, raw_task

from rigbus.bridge.folder.contract import layout, rows
from rigbus.bridge.folder.logs import telling
from rigbus.bridge.folder.logs.copies import LogCopies
from rigbus.bridge.folder.logs.said import Said
from rigbus.bridge.folder.logs.telling import Telling
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.loop.flows import Ops
from rigbus.bridge.folder.mirror import mirror
from rigbus.bridge.folder.mirror.counting import Counts
from rigbus.bridge.folder.mirror.drawing import Drawing
from rigbus.bridge.folder.mirror.lanes import Lanes
from rigbus.bridge.folder.share.ops import unlink, write
from rigbus.bridge.folder.share.port import Reply
from rigbus.bridge.folder.share.seal import seal, sealed

NAME = f"{raw_task(1)['id']}.json"


def asides(path: Path) -> list[Path]:
    """What was put aside for a file, the oldest first."""
    return sorted(path.parent.glob(f"{path.name}.conflict-*"))


def make(share: Share, tmp_path: Path, **how: Any) -> Drawn:
    return Drawn(share, tmp_path, reconcile_s=2.0, **how)


@pytest.fixture
def drawn(share: Share, tmp_path: Path) -> Drawn:
    made = make(share, tmp_path)
    made.world.put(raw_task(1, "ready"), raw_task(2, "done", ended_at=AT, attempt=1))
    made.pass_time(1.0)
    return made


def lines(drawn: Drawn) -> list[dict[str, Any]]:
    try:
        text = (drawn.share.root / layout.DECISIONS_LOG).read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


class TestHealing:
    def test_a_file_that_somebody_edited_is_restored_kept_aside_and_said(self, drawn: Drawn) -> None:
        path = drawn.share.root / layout.QUEUE / NAME
        whole, at = path.read_bytes(), path.stat().st_mtime_ns
        path.write_bytes(whole.replace(b'"priority": 5', b'"priority": 10'))
        drawn.pass_time(4.0)
        assert path.read_bytes() == whole
        assert path.stat().st_mtime_ns == at
        (kept,) = asides(path)
        assert b'"priority": 10' in kept.read_bytes()
        assert kept.suffix != ".json", "every reader of the lane would take it for a task"
        assert [line["type"] for line in lines(drawn)] == ["MIRROR_CONFLICT"]
        assert drawn.mirror.counts()["conflicts"] == 1
        path.write_text("mine")
        drawn.pass_time(4.0)
        assert asides(path)[1].read_text() == "mine"

    def test_an_edit_is_kept_even_when_the_task_moves_before_anybody_looks(self, drawn: Drawn) -> None:
        path = drawn.share.root / layout.QUEUE / NAME
        path.write_text("mine")
        drawn.world.put(raw_task(1, "done", ended_at=AT + 1))
        drawn.mirror.event(event(1, "task.shell.done", raw_task(1)["id"]))
        drawn.pass_time(0.5)
        assert not path.exists()
        assert [kept.read_text() for kept in asides(path)] == ["mine"]
        assert NAME in drawn.files(layout.COMPLETE)

    def test_an_edit_of_a_time_without_a_bridge_is_kept_too(
        self, drawn: Drawn, share: Share, tmp_path: Path
    ) -> None:
        path = drawn.share.root / layout.QUEUE / NAME
        path.write_text("mine")
        second = make(share, tmp_path)
        second.world = drawn.world
        second.pass_time(1.0)
        assert json.loads(path.read_text())["status"] == "pending"
        assert [kept.read_text() for kept in asides(path)] == ["mine"]

    def test_a_touched_file_gets_its_time_back_and_is_no_conflict(self, drawn: Drawn) -> None:
        path = drawn.share.root / layout.COMPLETE / f"{raw_task(2)['id']}.json"
        os.utime(path, (AT + 500, AT + 500))
        drawn.pass_time(4.0)
        assert path.stat().st_mtime == AT
        assert not list(path.parent.glob("*.conflict*"))

    @pytest.mark.parametrize("file", ["brain/state.json", f"plans/census/batches/{BATCH}/batch.json"])
    def test_other_files_are_healed_as_well(self, drawn: Drawn, file: str) -> None:
        path = drawn.share.root / file
        path.write_text("{}")
        drawn.pass_time(4.0)
        assert drawn.read(file)["mirrored_by"] == "rigbus"
        (kept,) = asides(path)
        assert kept.read_text() == "{}"
        assert kept.suffix == ".json"
        path.unlink()
        drawn.pass_time(4.0)
        assert path.exists()

    def test_copies_of_ours_in_a_wrong_lane_go_and_files_of_others_stay(self, drawn: Drawn) -> None:
        root = drawn.share.root
        copy = root / layout.PROCESSING / NAME
        copy.write_bytes((root / layout.QUEUE / NAME).read_bytes())
        strangers = [root / lane / "3f2b8a52-0000-4c1c-9d0b-0a5a2c6f7e11.json" for lane in layout.LANES]
        edited = root / layout.FAILED / NAME
        edited.write_text('{"task_id": "mine"}')
        for path in strangers:
            path.write_text("{}")
        drawn.pass_time(4.0)
        assert not copy.exists()
        assert edited.exists()
        assert all(path.read_text() == "{}" for path in strangers)

    def test_a_folder_in_the_place_of_a_file_is_put_aside(self, share: Share, tmp_path: Path) -> None:
        (share.root / layout.QUEUE / NAME).mkdir(parents=True)
        drawn = make(share, tmp_path)
        drawn.world.put(raw_task(1, "ready"))
        drawn.pass_time(1.0)
        assert (share.root / layout.QUEUE / NAME).is_file()
        (kept,) = asides(share.root / layout.QUEUE / NAME)
        assert kept.is_dir()

    def test_a_link_in_the_place_of_a_lane_is_not_followed_and_the_others_go_on(
        self, share: Share, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (share.root / "tasks").mkdir()
        (share.root / layout.QUEUE).symlink_to(outside)
        drawn = make(share, tmp_path)
        drawn.world.put(raw_task(1, "ready"), raw_task(2, "done", ended_at=AT))
        drawn.pass_time(3.0)
        assert os.listdir(outside) == []
        assert len(drawn.files(layout.COMPLETE)) == 1
        (share.root / layout.QUEUE).unlink()
        drawn.pass_time(15.0)
        assert drawn.files(layout.QUEUE) == [NAME]

    def test_a_removed_log_is_copied_again(self, drawn: Drawn) -> None:
        log = drawn.paths.logs / BATCH / "t2.1.log"
        log.parent.mkdir(parents=True)
        log.write_text("all of it\n")
        done = raw_task(2, "done", ended_at=AT + 1, attempt=1)
        drawn.world.put(done)
        drawn.mirror.event(event(1, "task.shell.done", done["id"], attempt=1))
        drawn.pass_time(0.5)
        copy = drawn.share.root / f"plans/census/batches/{BATCH}/logs/t2.1.log"
        copy.unlink()
        drawn.pass_time(6.0)
        assert copy.read_text() == "all of it\n"

    def test_a_log_removed_while_there_was_no_bridge_is_copied_again(
        self, drawn: Drawn, share: Share, tmp_path: Path
    ) -> None:
        log = drawn.paths.logs / BATCH / "t2.1.log"
        log.parent.mkdir(parents=True)
        log.write_text("all of it\n")
        second = make(share, tmp_path)
        second.world = drawn.world
        second.pass_time(6.0)
        assert (share.root / f"plans/census/batches/{BATCH}/logs/t2.1.log").read_text() == "all of it\n"

    def test_a_wall_clock_that_goes_back_stops_nothing(self, drawn: Drawn) -> None:
        drawn.world.workers = [{"id": "w", "state": "busy", "classes": ["cpu"]}]
        drawn.mirror.event(event(1, "worker.w.joined", None))
        wall = {"back": 0.0}
        old = drawn.mirror._clock.wall
        object.__setattr__(drawn.mirror._clock, "wall", lambda: old() - wall["back"])
        for back, pid in ((0.0, 1), (86_400.0, 2)):
            wall["back"] = back
            drawn.beats = [("w", {"state": "busy", "pid": pid, "running": []})]
            drawn.pass_time(8.0)
            assert drawn.read("workers/w/heartbeat.json")["pid"] == pid
        before = drawn.read("brain/state.json")["as_of"]
        drawn.pass_time(12.0)
        assert drawn.read("brain/state.json")["as_of"] > before

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_a_plan_with_an_accent_is_shown_under_its_batch_and_makes_no_folder(
        self, share: Share, tmp_path: Path, form: Any
    ) -> None:
        drawn = make(share, tmp_path)
        drawn.world.batches = [raw_batch(plan=unicodedata.normalize(form, "caf\u00e9"))]
        drawn.world.put(raw_task(1, "ready"))
        drawn.pass_time(1.0)
        assert drawn.read("brain/state.json")["active_batches"][BATCH]["display_name"] == BATCH
        assert os.listdir(share.root / "plans") == []
        assert drawn.files(layout.QUEUE) == [NAME]


def authored(no: int, state: str, **changes: Any) -> dict[str, Any]:
    """A task that came from a file of the queue."""
    return raw_task(no, state, meta={"file_id": UUID}, **changes)


class TestFilesOfAuthors:
    """The mirror draws a task in the place of the file that its author wrote."""

    FILE = f"{layout.QUEUE}/{UUID}.json"

    def put(self, share: Share, text: str = '{"type": "shell"}') -> tuple[int, int]:
        path = share.root / self.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path.stat().st_size, path.stat().st_mtime_ns

    @pytest.mark.parametrize("state", ["ready", "done"])
    @pytest.mark.parametrize("restarted", [False, True])
    def test_it_is_replaced_and_no_conflict_also_by_a_bridge_that_has_just_begun(
        self, share: Share, tmp_path: Path, state: str, restarted: bool
    ) -> None:
        left = self.put(share)
        author = {self.FILE: left}.get
        drawn = make(share, tmp_path, author=author)
        if not restarted:
            drawn.pass_time(1.0)
        drawn.world.put(authored(1, state, ended_at=AT))
        if not restarted:
            drawn.mirror.event(event(1, f"task.shell.{state}", raw_task(1)["id"]))
        drawn.pass_time(1.0)
        assert not list((share.root / layout.QUEUE).glob("*.conflict*"))
        lane = layout.COMPLETE if state == "done" else layout.QUEUE
        assert drawn.read(f"{lane}/{UUID}.json")["mirrored_by"] == "rigbus"
        assert (share.root / self.FILE).exists() == (state == "ready")

    @pytest.mark.parametrize("state", ["ready", "done"])
    def test_what_he_has_put_there_since_is_kept_aside(
        self, share: Share, tmp_path: Path, state: str
    ) -> None:
        drawn = make(share, tmp_path, author={self.FILE: (5, 5)}.get)
        drawn.pass_time(1.0)
        self.put(share, "another order")
        drawn.world.put(authored(1, state, ended_at=AT))
        drawn.mirror.event(event(1, f"task.shell.{state}", raw_task(1)["id"]))
        drawn.pass_time(1.0)
        (kept,) = asides(share.root / self.FILE)
        assert kept.read_text() == "another order"

    def test_a_folder_in_the_place_of_its_end_is_put_aside(self, share: Share, tmp_path: Path) -> None:
        drawn = make(share, tmp_path, author={self.FILE: self.put(share)}.get)
        (share.root / layout.COMPLETE / f"{UUID}.json").mkdir(parents=True)
        drawn.world.put(authored(1, "done", ended_at=AT))
        drawn.pass_time(1.0)
        assert drawn.read(f"{layout.COMPLETE}/{UUID}.json")["status"] == "complete"
        (kept,) = asides(share.root / layout.COMPLETE / f"{UUID}.json")
        assert kept.is_dir()


class TestAnEarlierRigsFiles:
    def test_what_waits_or_runs_nowhere_leaves_its_lane_and_what_ended_stays(
        self, drawn: Drawn, share: Share, tmp_path: Path
    ) -> None:
        drawn.world.put(raw_task(3, "leased", started=True), raw_task(4, "waiting"))
        for no in (3, 4):
            drawn.mirror.event(event(no - 2, "task.shell.leased", raw_task(no)["id"]))
        drawn.pass_time(1.0)
        assert drawn.files(layout.PROCESSING)
        assert drawn.files(layout.PRIVATE)
        theirs = share.root / layout.PROCESSING / "of_a_person.json"
        theirs.write_text('{"task_id": "of_a_person"}')
        second = make(share, tmp_path)  # the broker's database was removed
        second.pass_time(1.0)
        assert second.files(layout.QUEUE) == []
        assert second.files(layout.PRIVATE) == []
        assert second.files(layout.PROCESSING) == ["of_a_person.json"]
        assert second.files(layout.COMPLETE) == [f"{raw_task(2)['id']}.json"]


class TestArchive:
    def ended(self, n: int, at: float) -> dict[str, Any]:
        return raw_task(n, "done" if n % 2 else "dead", ended_at=at, error="no")

    def archive(self, drawn: Drawn) -> list[str]:
        root = drawn.share.root / layout.ARCHIVE
        return sorted(str(p.relative_to(root)) for p in root.rglob("*.json"))

    def test_old_tasks_move_out_of_their_lanes_with_their_times(self, share: Share, tmp_path: Path) -> None:
        drawn = make(share, tmp_path, kept_s=3600.0)
        drawn.world.put(self.ended(1, AT + 990), self.ended(2, AT + 990))
        drawn.pass_time(3.0)
        assert self.archive(drawn) == []
        drawn.time += 3600
        drawn.pass_time(3.0)
        names = [f"{raw_task(n)['id']}.json" for n in (1, 2)]
        assert self.archive(drawn) == [f"{BATCH}/complete/{names[0]}", f"{BATCH}/failed/{names[1]}"]
        assert (share.root / layout.ARCHIVE / BATCH / "complete" / names[0]).stat().st_mtime == AT + 990
        assert drawn.files(layout.COMPLETE) == drawn.files(layout.FAILED) == []
        drawn.pass_time(6.0)
        second = make(share, tmp_path, kept_s=3600.0)
        second.world, second.time = drawn.world, drawn.time
        second.pass_time(6.0)
        assert len(self.archive(second)) == 2
        assert second.files(layout.COMPLETE) == [], "a comparison undid it"

    def test_what_a_persons_script_archived_stays_there(
        self, drawn: Drawn, share: Share, tmp_path: Path
    ) -> None:
        name = f"{raw_task(2)['id']}.json"
        place = share.root / layout.ARCHIVE / BATCH / "complete"
        place.mkdir(parents=True)
        (share.root / layout.COMPLETE / name).rename(place / name)
        drawn.pass_time(6.0)
        assert drawn.files(layout.COMPLETE) == []
        second = make(share, tmp_path)
        second.world = drawn.world
        second.pass_time(6.0)
        assert second.files(layout.COMPLETE) == []
        assert (place / name).exists()

    def test_what_is_only_deleted_comes_back(self, drawn: Drawn) -> None:
        (drawn.share.root / layout.COMPLETE / f"{raw_task(2)['id']}.json").unlink()
        drawn.pass_time(4.0)
        assert len(drawn.files(layout.COMPLETE)) == 1

    def test_a_task_that_runs_again_leaves_the_archive_s_file_and_replaces_it_later(
        self, share: Share, tmp_path: Path
    ) -> None:
        drawn = make(share, tmp_path, kept_s=60.0)
        drawn.world.put(self.ended(1, AT + 990))
        drawn.pass_time(2.0)
        drawn.time += 60
        drawn.pass_time(3.0)
        drawn.world.put(raw_task(1, "ready"))
        drawn.mirror.event(event(1, "task.shell.ready", raw_task(1)["id"], requeued=True))
        drawn.pass_time(1.0)
        assert drawn.files(layout.QUEUE) == [NAME]
        drawn.world.put(raw_task(1, "done", ended_at=AT + drawn.time))
        drawn.mirror.event(event(2, "task.shell.done", raw_task(1)["id"]))
        drawn.pass_time(1.0)
        drawn.time += 60
        drawn.pass_time(3.0)
        file = share.root / layout.ARCHIVE / BATCH / "complete" / NAME
        assert file.stat().st_mtime > AT + 1000
        assert drawn.files(layout.COMPLETE) == []

    def test_the_longest_ended_go_first(self) -> None:
        lanes = Lanes(kept=3)
        for n in range(200):
            lanes.adopt(f"{layout.COMPLETE}/{n:03}.json", (1, n * 10**9), "b", f"{n:03}")
        ops = lanes.over(200 * 10**9)
        assert [op["op"] for op in ops] == ["rename"] * 197
        assert ops[0]["to"] == "tasks/archive/b/complete/000.json"
        assert ops[-1]["path"] == f"{layout.COMPLETE}/196.json"


class TestTheLog:
    def test_lines_of_a_time_without_a_bridge_are_made_up_for_and_none_is_told_twice(
        self, drawn: Drawn, share: Share, tmp_path: Path
    ) -> None:
        id_ = raw_task(1)["id"]
        drawn.mirror.event(drawn.world.happen("task.shell.started", id_, worker="w", attempt=1))
        drawn.pass_time(2.0)
        drawn.mirror.event(drawn.world.happen("task.shell.retry", id_, error="exit 1", attempt=1))
        drawn.pass_time(0.3)  # it is told, and the memory of it is not on the disk
        told = [line["type"] for line in lines(drawn)]
        assert told == ["SHELL_EXECUTE", "RETRY"]
        drawn.world.happen("task.shell.started", id_, worker="w", attempt=2)
        drawn.world.put(raw_task(1, "done", ended_at=AT + 9, attempt=2))
        drawn.world.happen("task.shell.done", id_, worker="w", attempt=2)
        drawn.world.happen("batch.plan.complete", None, name="census", total=2)
        second = make(share, tmp_path)
        second.world = drawn.world
        second.pass_time(3.0)
        told += ["SHELL_EXECUTE", "SHELL_COMPLETE", "BATCH_COMPLETE"]
        assert [line["type"] for line in lines(second)] == told
        third = make(share, tmp_path)
        third.world = drawn.world
        third.pass_time(3.0)
        assert [line["type"] for line in lines(third)] == told

    def test_events_of_tasks_that_were_archived_are_told_and_do_not_bring_them_back(
        self, drawn: Drawn, share: Share, tmp_path: Path
    ) -> None:
        id_ = raw_task(2)["id"]
        drawn.mirror.event(drawn.world.happen("task.shell.ready", raw_task(1)["id"]))
        drawn.pass_time(2.0)
        drawn.world.happen("task.shell.done", id_, worker="w", attempt=1)
        place = share.root / layout.ARCHIVE / BATCH / "complete"
        place.mkdir(parents=True)
        (share.root / layout.COMPLETE / f"{id_}.json").rename(place / f"{id_}.json")
        second = make(share, tmp_path)
        second.world = drawn.world
        second.pass_time(3.0)
        assert lines(second)[-1]["type"] == "SHELL_COMPLETE"
        assert second.files(layout.COMPLETE) == []

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"seq": "x", "batches": {}}', '{"seq": true, "batches": {}}']
    )
    def test_a_damaged_memory_costs_lines_only(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "mirror.json"
        file.write_text(text)
        assert Said(file).load() == (None, {})

    def test_numbers_of_another_rig_are_not_gone_on_from(self, share: Share, tmp_path: Path) -> None:
        drawn = make(share, tmp_path)
        (drawn.paths.state / "mirror.json").write_text('{"seq": 500, "batches": {}}')
        drawn.pass_time(1.0)
        drawn.world.put(raw_task(1, "ready"))
        drawn.mirror.event(drawn.world.happen("task.shell.ready", raw_task(1)["id"], created=True))
        drawn.pass_time(1.0)
        assert [line["type"] for line in lines(drawn)] == ["TASK_CREATED"]
        assert drawn.files(layout.QUEUE) == [NAME]


class TestWorkers:
    def test_one_that_went_while_nobody_looked_is_gone_not_stale(
        self, drawn: Drawn, share: Share, tmp_path: Path
    ) -> None:
        drawn.world.workers = [{"id": "w", "state": "busy", "classes": ["cpu"]}]
        drawn.mirror.event(event(1, "worker.w.joined", None))
        drawn.pass_time(6.0)
        assert drawn.read("workers/w/status.json")["state"] == "busy"
        second = make(share, tmp_path)
        second.pass_time(6.0)
        found = second.read("workers/w/status.json")
        assert found["state"] == "gone"
        assert "stale_after_s" not in found


class TestCounts:
    def test_steps_between_two_looks_are_one_change_and_a_healed_file_is_none(self, drawn: Drawn) -> None:
        before = drawn.mirror.counts()
        id_ = raw_task(1)["id"]
        drawn.world.put(raw_task(1, "done", ended_at=AT + drawn.time))
        for n, word in enumerate(("started", "done"), 1):
            drawn.mirror.event(event(n, f"task.shell.{word}", id_))
        drawn.pass_time(0.5)
        after = drawn.mirror.counts()
        assert after["changes"] - before["changes"] == 1
        assert after["removes"] - before["removes"] == 1
        (drawn.share.root / layout.COMPLETE / NAME).unlink()
        drawn.pass_time(4.0)
        healed = drawn.mirror.counts()
        assert healed["changes"] == after["changes"]
        assert healed["writes"] > after["writes"]
        assert 0 < healed["lag_p50_s"] <= healed["lag_p99_s"]

    def test_only_what_was_done_counts(self) -> None:
        counts = Counts()
        ops = [write("a", b"", replaces="b"), write("c", b""), unlink("d")]
        counts.done(ops, [{"ok": True, "kept": []}, {"ok": False}, {"ok": True, "was": False}])
        assert {k: v for k, v in counts.shown().items() if v} == {"writes": 1, "removes": 1}


class TestLargeMirrors:
    def test_a_comparison_of_very_many_files_is_many_short_slices(self) -> None:
        lanes = Lanes()
        names = [f"{layout.QUEUE}/{n:06}.json" for n in range(100_000)]
        for path in names:
            lanes.adopt(path, (5, 10**9), "b", path[12:18])
        expected = lanes.names(layout.QUEUE)
        there = dict.fromkeys(names[20_000:30_000], (5, 10**9))
        del there[names[20_007]]
        there[names[20_009]] = (6, 10**9)
        page = lanes.compare(expected, names[19_999], names[29_999], there)
        assert (page.lost, page.altered, page.strays) == ([names[20_007]], [names[20_009]], [])

    def test_events_are_drawn_between_two_slices(
        self, share: Share, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("rigbus.bridge.folder.mirror.sweep.PAGE", 3)
        drawn = make(share, tmp_path)
        drawn.world.put(*(raw_task(n, "ready") for n in range(1, 31)))
        drawn.pass_time(2.0)
        drawn.world.put(raw_task(31, "ready"))
        (share.root / layout.QUEUE / NAME).unlink()
        drawn.time += 2.0
        drawn.turn(0.0)
        drawn.mirror.event(event(31, "task.shell.ready", raw_task(31)["id"], prev=0, created=True))
        drawn.turn(0.09)
        assert f"{raw_task(31)['id']}.json" in drawn.files(layout.QUEUE)
        drawn.pass_time(4.0, 0.06)
        assert len(drawn.files(layout.QUEUE)) == 31


class TestBounds:
    def test_rows_of_old_batches_are_forgotten_and_asked_for_again(
        self, share: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mirror, "MAX_BATCHES", 10)
        drawn = make(share, tmp_path)
        drawn.world.batches += [raw_batch(id=f"20260208_184610_{n:06x}", plan=None) for n in range(50)]
        drawn.pass_time(1.0)
        assert len(drawn.mirror._batches) <= 10
        drawn.world.put(raw_task(1, "done", ended_at=AT))
        drawn.mirror.event(event(1, "task.shell.done", raw_task(1)["id"]))
        drawn.pass_time(1.0)
        assert drawn.read(f"{layout.COMPLETE}/{NAME}")["batch_id"] == BATCH

    def test_states_of_batches_that_ended_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(telling, "MAX_STATES", 10)
        made = Telling(lambda _: 0.0)
        made.begin({f"b{n}": "complete" for n in range(50)} | {"b": "running"})
        made.batch(event(1, "batch.plan.running", None, name="census", tasks={}, total=1))
        assert made.states() == {"b": "running", BATCH: "running"}
        assert len(made._states) == 2


class TestTrouble:
    """A share that refuses everything for long, and takes it again."""

    def refused(self, made: Drawing, clock: list[float], code: str) -> None:
        flow = made.write({UUID: self.file()}, [], {UUID: AT})
        step = next(flow)
        assert isinstance(step, Ops)
        results = [{"ok": False, "errno": code, "what": "no"} for _ in step.ops]
        with pytest.raises(StopIteration):
            flow.send(Reply(1, "mirror", results))
        clock[0] = max(clock[0], made.not_before)

    def file(self) -> layout.File:
        return layout.File(f"{layout.QUEUE}/{UUID}.json", b"{}", 0, "same", BATCH)

    @pytest.mark.parametrize("code", ["EROFS", "ENOSPC", "EACCES", "EIO"])
    def test_the_wait_is_bounded_and_the_first_success_tries_all_again(self, code: str) -> None:
        now = [0.0]
        clock = Clock(lambda: now[0], lambda: AT, lambda _: 0.0)
        telling = Telling(lambda _: 0.0)
        telling.kept_aside(AT, ["x.conflict"])
        made = Drawing(Lanes(), LogCopies("/l"), telling, clock)
        for _ in range(20):
            before = now[0]
            self.refused(made, now, code)
            assert now[0] - before <= 10.0
        assert made.failed == {UUID}
        assert not made.retry
        made.others.want(layout.File("brain/state.json", b"{}", 0, "s"), now[0])
        flow = made.write({}, [], {})
        step = next(flow)
        assert isinstance(step, Ops)
        good = {"ok": True, "size": 2, "mtime_ns": 0, "kept": []}
        with pytest.raises(StopIteration):
            flow.send(Reply(2, "mirror", [good for _ in step.ops]))
        assert made.retry
        assert not telling.waiting(), "the log's line was not tried again"

    def test_two_lasting_troubles_are_told_seldom(self, caplog: pytest.LogCaptureFixture) -> None:
        now = [0.0]
        clock = Clock(lambda: now[0], lambda: AT, lambda _: 0.0)
        drawing = Drawing(Lanes(), LogCopies("/l"), Telling(lambda _: 0.0), clock)
        for n in range(240):
            now[0] = n / 2
            answer = {"ok": False, "errno": ("EISDIR", "ENOTSUP")[n % 2], "what": "w"}
            drawing.others.want(layout.File(f"brain/{n}", b"{}", 0, "s"), now[0])
            flow = drawing.write({UUID: self.file()}, [], {})
            next(flow)
            good = {"ok": True, "size": 2, "mtime_ns": 0, "kept": []}
            with pytest.raises(StopIteration):
                flow.send(Reply(1, "mirror", [answer, good]))
        assert len(caplog.records) == 4  # each once a minute

    def test_one_bad_file_makes_nothing_wait(self) -> None:
        made = Drawing(
            Lanes(), LogCopies("/l"), Telling(lambda _: 0.0), Clock(lambda: 0.0, lambda: AT, lambda _: 0.0)
        )
        made.others.want(layout.File("brain/state.json", b"{}", 0, "s"), 0.0)
        flow = made.write({UUID: self.file()}, [], {})
        step = next(flow)
        assert isinstance(step, Ops)
        results: list[dict[str, Any]] = [{"ok": False, "errno": "EPERM", "what": "another's"}]
        with pytest.raises(StopIteration):
            flow.send(Reply(1, "mirror", [*results, {"ok": True, "size": 2, "mtime_ns": 0, "kept": []}]))
        assert made.not_before == 0.0
        assert made.failed == {UUID}


class TestSeal:
    def test_every_changed_byte_breaks_it(self) -> None:
        data = seal(b'{\n  "a": "b"\n}')
        assert sealed(data)
        assert json.loads(data)["a"] == "b"
        for n in range(len(data)):
            assert not sealed(data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :])
        assert not sealed(data[:-1])
        assert not sealed(b"")


def test_a_row_without_a_known_state_is_drawn_nowhere() -> None:
    assert layout.task_file(rows.task_row(raw_task(1, "unheard of"), b"", None), 0.0) is None
