"""Commands by edited files: taken in once, whatever is killed meanwhile; and what is no command, kept and answered."""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controlled import STATE, Controlled
from flowing import Killed
from folders import UUID, Share
from pi_scripts import CpuAgent, delete_files, kill_plan_1, read_state, reset, write_state
from worlds import AT, BATCH, raw_batch, raw_task

from rigbus.bridge.folder.contract import layout
from rigbus.bridge.folder.control import control
from rigbus.bridge.folder.control.books import RECEIPTS
from rigbus.bridge.folder.loop.flows import ShareAway
from rigbus.bridge.folder.share import asides
from rigbus.bridge.folder.share import share as helper_share
from rigbus.bridge.folder.share.beneath import OpError
from rigbus.bridge.folder.share.ops import aside, read, write
from rigbus.bridge.folder.share.port import Fault
from rigbus.bridge.folder.share.seal import seal, sealed
from rigbus.bus.wire import Envelope, Verb

ID = raw_task(1)["id"]


@pytest.fixture
def both(share: Share, tmp_path: Path) -> Controlled:
    """Two batches of one task each, drawn."""
    made = Controlled(share, tmp_path)
    made.world.batches = []
    made.batch("one", 1)
    made.batch("two", 2)
    made.pass_time(2)
    assert set(made.state()["active_batches"]) == {"one", "two"}
    return made


def refuse_to_read(both: Controlled, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """As for a user who is not root: the door may not read this file, while it is not the mirror's own."""
    whole = both.share.port.call

    def call(kind: str, ops: Any, deadline_s: float) -> Any:
        refused = [op["op"] == "read" and op["path"] == path for op in ops]
        reply = whole(kind, ops, deadline_s)
        if any(refused) and not sealed((both.share.root / path).read_bytes()):
            no = {"ok": False, "errno": "EACCES", "what": f"{path} may not be read"}
            shown = [no if r else one for r, one in zip(refused, reply.results, strict=True)]
            reply = replace(reply, results=shown)
        return reply

    monkeypatch.setattr(both.share.port, "call", call)


class TestABatchTakenOutOfTheState:
    def test_is_cancelled_answered_and_the_state_drawn_again(self, both: Controlled) -> None:
        kill_plan_1(both.share.root, "one")
        both.pass_time(4)
        assert both.cancels == ["one"]
        assert list(both.state()["active_batches"]) == ["two"]
        assert sealed((both.share.root / STATE).read_bytes())
        said = both.said("kill-one")
        assert (said["state"], said["batch_id"], said["next"]) == ("accepted", "one", "rigbus retry one")
        (kept,) = both.asides(STATE)
        assert list(json.loads(kept.read_text())["active_batches"]) == ["two"]
        assert not (both.share.root / "inbox/conflict-state.receipt.json").exists(), "answered twice"
        assert both.drawn.files(layout.QUEUE) == [f"{raw_task(2)['id']}.json"], "the other's file again"

    @pytest.mark.parametrize("steps", range(1, 12))
    def test_killed_after_any_step_it_is_cancelled_once(self, both: Controlled, steps: int) -> None:
        kill_plan_1(both.share.root, "one")
        try:
            both.look(die_at=steps)
        except Killed:
            both.begin()
        both.pass_time(4)
        assert set(both.cancels) == {"one"}
        assert list(both.state()["active_batches"]) == ["two"]
        assert both.said("kill-one")["state"] == "accepted"
        before = list(both.cancels)
        both.batch("one", 1)  # a person lets it run again
        both.begin()
        both.pass_time(4)
        assert both.cancels == before, "the same edit was taken in twice"

    def test_while_it_cannot_be_drawn_over_it_is_taken_in_once(self, both: Controlled) -> None:
        kill_plan_1(both.share.root, "one")
        for _ in range(3):
            both.look()
        both.begin()
        both.look()
        assert both.cancels == ["one"]
        both.pass_time(3)
        assert both.cancels == ["one"]
        assert both.drawn.paths.state.joinpath("doors/control").is_dir()
        assert list((both.drawn.paths.state / "doors/control").glob("*.json")) == []

    def test_while_its_answer_cannot_be_written_a_later_run_is_not_hit(
        self, both: Controlled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuses(*_: Any) -> Any:
            raise ShareAway(Fault("UNAVAILABLE", "away"))
            yield

        with monkeypatch.context() as away:
            away.setattr(both.control, "_answer", refuses)
            kill_plan_1(both.share.root, "one")
            both.look()
        assert both.cancels == ["one"]
        both.batch("one", 1)  # a person lets it run again
        both.begin()
        both.pass_time(4)
        assert both.cancels == ["one"]
        assert both.said("kill-one")["state"] == "accepted"

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
    def test_what_is_no_file_in_its_place_is_put_aside(self, both: Controlled, make: Any) -> None:
        (both.share.root / STATE).unlink()
        make(both.share.root / STATE)
        both.pass_time(4)
        assert both.cancels == []
        assert set(both.state()["active_batches"]) == {"one", "two"}
        assert len(both.asides(STATE)) == 1

    def test_one_that_the_rig_may_not_read_does_not_hold_the_place_for_ever(
        self, both: Controlled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse_to_read(both, monkeypatch, STATE)
        both.edit({"active_batches": {}})
        for _ in range(9):
            both.look()
        assert both.asides(STATE) == [], "it may be a matter of seconds"
        both.pass_time(14)
        assert both.cancels == [] and len(both.asides(STATE)) == 1
        monkeypatch.undo()
        assert set(both.state()["active_batches"]) == {"one", "two"}
        assert "may not be read" in both.said("state")["problems"][0]["what"]

    def test_while_no_bridge_ran_too(self, both: Controlled) -> None:
        kill_plan_1(both.share.root, "one")
        both.begin()
        both.pass_time(3)
        assert both.cancels == ["one"]

    def test_one_that_came_after_the_state_that_was_read_is_spared(self, both: Controlled) -> None:
        known = read_state(both.share.root)
        both.batch("three", 3)
        both.pass_time(2)
        write_state(both.share.root, known)
        both.pass_time(3)
        assert both.cancels == ["one", "two"]
        assert list(both.state()["active_batches"]) == ["three"]
        assert "Not three" in both.said("kill-one")["note"]

    def test_one_that_ended_while_it_was_edited_is_not_said_to_be_cancelled(
        self, both: Controlled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_late(header: dict[str, Any]) -> Envelope:
            next(b for b in both.world.batches if b["id"] == header["batch"])["state"] = "complete"
            return Envelope(Verb.OK, {"cancelled": 0, "ending": 0, "already": 1})

        monkeypatch.setattr(both, "_cancel", too_late)
        kill_plan_1(both.share.root, "one")
        both.pass_time(4)
        assert "one had ended by then (complete)" in both.said("kill-one")["note"]

    @pytest.mark.parametrize("at", [0, AT - 10 * 365 * 86400, AT + 10 * 365 * 86400])
    def test_whatever_the_clock_of_the_other_machine_says(self, both: Controlled, at: float) -> None:
        kill_plan_1(both.share.root, "one")
        os.utime(both.share.root / STATE, (at, at))
        both.pass_time(3)
        assert both.cancels == ["one"]
        both.drawn.pass_time(60.0, step_s=5.0)
        both.edit({"active_batches": {}})
        os.utime(both.share.root / STATE, (at, at))
        both.pass_time(3)
        assert both.cancels == ["one", "two"]

    def test_a_newer_write_of_the_mirror_does_not_hide_it(self, both: Controlled) -> None:
        kill_plan_1(both.share.root, "one")
        edited = (both.share.root / STATE).read_bytes()
        both.drawn.pass_time(30.0)  # the door is not asked, as while the broker is away
        assert (both.share.root / STATE).read_bytes() == edited
        both.pass_time(3)
        assert both.cancels == ["one"]

    def test_vanished_files_an_empty_folder_and_older_files_ask_for_nothing(self, both: Controlled) -> None:
        root = both.share.root
        old = (root / STATE).read_bytes()
        delete_files(root)
        both.pass_time(4)
        (root / STATE).unlink()
        both.pass_time(2)
        both.batch("three", 3)
        both.pass_time(4)
        (root / STATE).write_bytes(old)  # restored from a copy: ours, and older
        both.pass_time(3)
        for place in ("tasks", "brain"):
            shutil.rmtree(root / place)
        both.pass_time(4)
        assert both.cancels == []
        assert len(both.drawn.files(layout.QUEUE)) == 3
        assert len(both.state()["active_batches"]) == 3

    @pytest.mark.parametrize(
        "data",
        [b"", b"{", b'{"active_batches": {', b"\0" * 100, b"[]", b'"x"', b'{"active_batches": {}, "x": NaN}'],
    )
    def test_half_a_file_is_waited_for_then_kept_and_answered(self, both: Controlled, data: bytes) -> None:
        path = both.share.root / STATE
        path.write_bytes(data)
        both.pass_time(int(control.HALF_S) - 4)
        assert path.read_bytes() == data, "somebody may still be writing it"
        both.pass_time(8)
        assert both.cancels == []
        assert both.said("state")["state"] == "refused"
        assert both.asides(STATE)[0].read_bytes() == data
        assert sealed(path.read_bytes())

    def test_what_is_whole_in_the_end_counts(self, both: Controlled) -> None:
        known = read_state(both.share.root)
        (both.share.root / STATE).write_bytes(b"")
        both.pass_time(3)
        write_state(both.share.root, known, "two")
        both.pass_time(3)
        assert both.cancels == ["two"]

    @pytest.mark.parametrize("edit", [{"active_batches": {}}, {}])
    def test_a_state_of_nothing_else_means_what_was_shown_for_a_minute(
        self, both: Controlled, edit: dict[str, Any]
    ) -> None:
        both.drawn.pass_time(60.0, step_s=5.0)
        both.batch("three", 3)
        both.pass_time(2)
        both.edit(edit)
        both.pass_time(3)
        assert both.cancels == ["one", "two"]
        assert list(both.state()["active_batches"]) == ["three"]

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"pid": 1}, "takes no batch out"),
            ({"active_batches": None}, "is not an object"),
            ({"active_batches": ["one"]}, "is not an object"),
            ({"active_batches": {}, "listing": "deadbeef-1"}, "this rig has not written"),
            ({"active_batches": {}, "listing": 7}, "this rig has not written"),
        ],
    )
    def test_other_edits_are_kept_answered_and_undone(
        self, both: Controlled, change: dict[str, Any], what: str
    ) -> None:
        both.edit({**both.state(), **change})
        both.pass_time(3)
        assert both.cancels == []
        assert what in both.said("state")["problems"][0]["what"]
        assert len(both.asides(STATE)) == 1
        assert sealed((both.share.root / STATE).read_bytes())

    def test_many_edits_leave_few_files_and_few_answers(self, both: Controlled) -> None:
        for n in range(12):
            both.edit({**both.state(), "pid": n})
            both.pass_time(2)
        kept = both.asides(STATE)
        assert [json.loads(path.read_text())["pid"] for path in kept] == list(range(12))[
            -asides.KEPT_OF_NAME :
        ]
        assert len(list((both.share.root / "inbox").glob("state*.receipt.json"))) == 1

    def test_the_newest_answers_stay_in_the_inbox(self, both: Controlled) -> None:
        for n in range(RECEIPTS + 3):
            both.findings.kept = [f"{layout.QUEUE}/x{n:03}.json.conflict-20260101000000000"]
            both.look()
        names = sorted(path.name for path in (both.share.root / "inbox").glob("conflict-*.json"))
        assert len(names) == RECEIPTS
        assert names[0] == "conflict-x003.receipt.json"


class TestWritingOverAnEdit:
    """The operation of the helper that looks before it writes."""

    OURS = seal(b'{\n  "n": 1\n}')

    def test_what_is_not_sealed_stays_and_the_one_that_was_read_is_put_aside(self, share: Share) -> None:
        path = share.root / "s.json"
        share.one(write("s.json", self.OURS, over=[]))
        path.write_bytes(b"{}")
        refused = share.one(write("s.json", self.OURS, over=[]))
        assert (refused["ok"], refused["errno"], path.read_bytes()) == (False, "EEDITED", b"{}")
        was = [(got := share.one(read("s.json", 10)))["inode"], got["size"], got["mtime_ns"]]
        path.write_bytes(b"{ }")
        assert share.one(write("s.json", self.OURS, over=was, keep={"s.json": None}))["errno"] == "EEDITED"
        was = [(got := share.one(read("s.json", 10)))["inode"], got["size"], got["mtime_ns"]]
        done = share.one(write("s.json", self.OURS, over=was, keep={"s.json": None}))
        assert (share.root / done["kept"][0]).read_bytes() == b"{ }"
        assert path.read_bytes() == self.OURS

    def test_who_had_it_open_before_it_was_replaced_is_not_lost(self, share: Share) -> None:
        """As seen by the helper: the former file, which still has its second name, has changed since."""
        path, former = share.root / "s.json", share.root / ".s.json.former~"
        share.one(write("s.json", self.OURS, over=[]))
        former.write_bytes(b'{"theirs": 1}')
        assert share.one(write("s.json", self.OURS, over=[]))["errno"] == "EEDITED"
        assert path.read_bytes() == b'{"theirs": 1}'
        assert not former.exists()

    def test_nothing_is_left_behind(self, share: Share) -> None:
        for n in range(3):
            assert share.one(write("s.json", seal(b'{\n  "n": %d\n}' % n), over=[]))["ok"]
        assert [name for name in os.listdir(share.root) if "s.json" in name] == ["s.json"]

    def test_another_file_than_the_one_that_was_read_is_not_put_aside(self, share: Share) -> None:
        (share.root / "x.json").write_text("new")
        assert share.one(aside("x.json", [1, 2, 3])) == {"ok": True, "kept": []}
        assert share.one(aside("gone/x.json", [1, 2, 3]))["kept"] == []


class TestNamesOfWhatWasPutAside:
    def test_they_grow_though_the_clock_goes_back(self) -> None:
        first = asides.aside_name("brain/state.json", [], AT)
        second = asides.aside_name("brain/state.json", [first], AT - 3600)
        assert second > first
        assert first.endswith(".json")

    @pytest.mark.parametrize("lane", layout.LANES)
    def test_in_a_lane_no_reader_takes_them_for_a_task(self, lane: str) -> None:
        assert not asides.aside_name(f"{lane}/x.json", [], AT).endswith(".json")

    @pytest.mark.parametrize("number", ["9" * 17, "89999999999999999"])
    def test_a_number_that_somebody_has_made_up_ends_nothing(self, share: Share, number: str) -> None:
        (share.root / f"x.json.conflict-{number}.json").touch()
        for n in range(4):
            (share.root / "x.json").write_text(str(n))
            (kept,) = share.one(write("x.json", seal(b'{"a": 1'), keep={"x.json": None}))["kept"]
            assert (share.root / kept).read_text() == str(n)
        assert len(list(share.root.glob("x.json.conflict-*"))) == asides.KEPT_OF_NAME

    def test_of_many_names_the_newest_of_the_folder_stay(self) -> None:
        names: list[str] = []
        for n in range(asides.KEPT_OF_FOLDER + 1):
            names.append(asides.aside_name(f"tasks/queue/{n}.json", names, AT))
        assert asides.surplus("x.json", names) == [names[0]]

    def test_a_folder_is_never_removed_as_too_many(self, share: Share) -> None:
        names: list[str] = []
        fd = os.open(share.root, os.O_RDONLY)
        for n in range(asides.KEPT_OF_NAME + 2):
            (share.root / "d.json").mkdir()
            (share.root / "d.json" / str(n)).touch()
            asides.put_aside(fd, "d.json", "d.json", names)
        os.close(fd)
        assert len(list(share.root.glob("d.json.conflict-*"))) == asides.KEPT_OF_NAME + 2


def a_run(share: Share, tmp_path: Path, **task: Any) -> Controlled:
    """One task that runs for the second time."""
    made = Controlled(share, tmp_path)
    made.world.batches = [raw_batch()]
    made.world.put(raw_task(1, "ready", **task))
    made.change(ID, state="leased", started=True, worker="w", attempt=2)
    made.pass_time(2)
    return made


@pytest.fixture
def running(share: Share, tmp_path: Path) -> Controlled:
    made = a_run(share, tmp_path)
    assert made.drawn.files(layout.PROCESSING) == [f"{ID}.json"]
    return made


class TestAFileMovedBackToTheQueue:
    def test_ends_the_run_and_begins_another(self, running: Controlled) -> None:
        assert reset(running.share.root) == [ID]
        running.pass_time(6)
        assert (running.cancels, running.agains) == ([], [ID])
        said = running.said(f"reset-{ID}")
        assert (said["state"], "runs again" in said["note"]) == ("accepted", True)
        assert running.drawn.read(f"{layout.QUEUE}/{ID}.json")["status"] == "pending"
        assert sealed((running.share.root / layout.QUEUE / f"{ID}.json").read_bytes())
        assert running.drawn.files(layout.PROCESSING) == []

    @pytest.mark.parametrize("steps", range(1, 14))
    def test_killed_after_any_step_it_runs_again_once(self, running: Controlled, steps: int) -> None:
        reset(running.share.root)
        running.drawn.pass_time(3.0)  # it is found
        try:
            running.look(die_at=steps)
        except Killed:
            if running.agains:
                running.change(ID, state="leased", started=True, worker="w", attempt=3)
            running.begin()
        running.pass_time(6)
        assert running.agains == [ID]
        assert "was ended and runs again" in running.said(f"reset-{ID}")["note"]
        running.change(ID, state="leased", started=True, worker="w", attempt=3)
        running.begin()
        running.pass_time(4)
        assert running.agains == [ID], "it ended a later run"

    @pytest.mark.parametrize("steps", range(1, 14))
    def test_killed_after_any_step_it_never_ends_a_run_that_began_meanwhile(
        self, running: Controlled, steps: int
    ) -> None:
        reset(running.share.root)
        running.drawn.pass_time(3.0)
        try:
            running.look(die_at=steps)
        except Killed:
            running.begin()
        asked = list(running.agains)
        running.change(
            ID, state="leased", started=True, worker="w", attempt=2
        )  # given back, and leased again
        running.pass_time(6)
        assert running.agains == asked

    @pytest.mark.parametrize("meta", [None, {"file_id": UUID}])
    def test_while_no_bridge_ran_too(self, share: Share, tmp_path: Path, meta: Any) -> None:
        running = a_run(share, tmp_path, meta=meta)
        assert reset(share.root) == [ID if meta is None else UUID]
        running.begin()
        running.pass_time(4)
        assert running.agains == [ID]

    def test_an_author_s_own_file_of_a_task_that_runs_by_now_is_none(
        self, share: Share, tmp_path: Path
    ) -> None:
        path = f"{layout.QUEUE}/{UUID}.json"
        (share.root / path).parent.mkdir(parents=True)
        (share.root / path).write_text(json.dumps({"task_id": UUID, "type": "shell", "command": "true"}))
        info = (share.root / path).stat()
        running = Controlled(share, tmp_path, author={path: (info.st_size, info.st_mtime_ns)}.get)
        running.world.batches = [raw_batch()]
        meta = {"file_id": UUID}
        running.world.put(raw_task(1, "leased", started=True, attempt=1, meta=meta))
        running.pass_time(4)
        assert running.drawn.files(layout.PROCESSING) == [f"{UUID}.json"]
        assert os.listdir(share.root / layout.QUEUE) == []
        assert not list((share.root / "inbox").glob("*.receipt.json"))
        (share.root / path).write_text(json.dumps({"task_id": UUID, "type": "shell", "command": "false"}))
        running.pass_time(6)
        assert "false" in (share.root / path).read_text(), (
            "an order of its own, which the queue's door judges"
        )
        assert not list((share.root / "inbox").glob("*.receipt.json"))

    def test_of_a_run_that_is_over_nothing_is_ended(self, running: Controlled) -> None:
        stale = json.loads((running.share.root / layout.PROCESSING / f"{ID}.json").read_text())
        running.change(ID, state="leased", started=True, worker="w", attempt=3)
        running.pass_time(2)
        stale = {key: value for key, value in stale.items() if key not in ("assigned_to", "started_at")}
        (running.share.root / layout.QUEUE / f"{ID}.json").write_text(json.dumps(stale))
        running.pass_time(6)
        assert running.cancels == []
        assert "not the present one" in running.said(f"edit-{ID}")["problems"][0]["what"]
        assert len(running.asides(f"{layout.QUEUE}/{ID}.json")) == 1
        assert running.drawn.files(layout.PROCESSING) == [f"{ID}.json"]

    def test_a_run_that_began_while_the_share_was_away_is_not_ended(
        self, running: Controlled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuses(*_: Any) -> Any:
            raise ShareAway(Fault("UNAVAILABLE", "away"))
            yield

        reset(running.share.root)
        with monkeypatch.context() as away:
            away.setattr(running.control, "_aside", refuses)
            running.drawn.pass_time(3.0)
            running.look()
        running.change(ID, state="leased", started=True, worker="w", attempt=3)
        running.begin()
        running.pass_time(4)
        assert (running.cancels, running.agains) == ([], [])
        assert "is leased by now and was left so" in running.said(f"reset-{ID}")["note"]

    def test_one_that_only_vanished_is_drawn_again(self, running: Controlled) -> None:
        (running.share.root / layout.PROCESSING / f"{ID}.json").unlink()
        running.pass_time(5)
        assert running.cancels == []
        assert running.drawn.files(layout.PROCESSING) == [f"{ID}.json"]

    @pytest.mark.parametrize(
        ("row", "said"),
        [({"state": "done", "ended_at": AT + 5}, "is done by now"), ({"ending": True}, "is leased by now")],
    )
    def test_what_the_broker_leaves_is_told(
        self, running: Controlled, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], said: str
    ) -> None:
        """It has ended meanwhile, or is to end with its batch."""

        def leaves(runs: dict[str, Any]) -> Envelope:
            running.change(ID, **row)
            return Envelope(Verb.OK, {"again": [], "left": list(runs)})

        monkeypatch.setattr(running, "_again", leaves)
        reset(running.share.root)
        running.pass_time(8)
        assert f"{said} and was left so" in running.said(f"reset-{ID}")["note"]
        lane = layout.COMPLETE if "state" in row else layout.PROCESSING
        assert running.drawn.files(lane) == [f"{ID}.json"]

    def test_half_of_it_is_waited_for(self, running: Controlled) -> None:
        path = running.share.root / layout.QUEUE / f"{ID}.json"
        path.write_text('{"task_id": ')
        running.pass_time(6)
        assert path.exists()
        running.pass_time(12)
        assert not path.exists()
        assert len(running.asides(f"{layout.QUEUE}/{ID}.json")) == 1


class TestAClaimByFile:
    @pytest.fixture
    def ready(self, share: Share, tmp_path: Path) -> Controlled:
        made = Controlled(share, tmp_path)
        made.world.batches = [raw_batch()]
        made.world.put(raw_task(1, "ready"), raw_task(2, "ready"))
        made.pass_time(2)
        return made

    def test_is_refused_and_nothing_is_claimable_for_a_while(self, ready: Controlled) -> None:
        assert CpuAgent(ready.share.root).claim(ID)
        ready.pass_time(6)
        assert "pi-cpu has taken" in ready.said(f"claim-{ID}")["problems"][0]["what"]
        assert len(ready.asides(f"{layout.PROCESSING}/{ID}.json")) == 1
        assert ready.drawn.files(layout.QUEUE) == []
        assert len(ready.drawn.files(layout.PRIVATE)) == 2
        assert ready.drawn.read(f"{layout.PRIVATE}/{ID}.json")["status"] == "pending"
        ready.drawn.time += control.WITHHOLD_S
        ready.pass_time(3)
        assert len(ready.drawn.files(layout.QUEUE)) == 2
        assert ready.drawn.files(layout.PRIVATE) == []
        assert (ready.cancels, ready.agains) == ([], [])

    def test_is_found_by_the_comparison_that_misses_it_in_the_queue(self, ready: Controlled) -> None:
        CpuAgent(ready.share.root).claim(ID)
        ready.drawn.pass_time(3.0)
        assert list(ready.findings.strays) == [f"{layout.PROCESSING}/{ID}.json"]

    def test_a_bridge_that_comes_after_it_shows_the_queue_and_refuses_the_next_one_alike(
        self, ready: Controlled
    ) -> None:
        pi = CpuAgent(ready.share.root)
        assert pi.claim(ID)
        ready.pass_time(6)
        assert ready.drawn.files(layout.QUEUE) == []
        ready.begin()
        ready.pass_time(3)
        assert len(ready.drawn.files(layout.QUEUE)) == 2, "what was withheld is not kept over a restart"
        again = pi.claim(ID)
        assert again is not None
        pi.finish(again, "of the Pi")
        ready.pass_time(6)
        assert ready.drawn.files(layout.QUEUE) == [] and len(ready.drawn.files(layout.PRIVATE)) == 2
        assert len(ready.asides(f"{layout.COMPLETE}/{ID}.json")) == 1, "its result counts for nothing, again"
        assert ready.world.tasks[ID]["state"] == "ready"
        assert (ready.cancels, ready.agains) == ([], [])

    def test_its_sidecar_and_lock_are_left_alone(self, ready: Controlled) -> None:
        CpuAgent(ready.share.root).claim(ID)
        ready.pass_time(6)
        assert (ready.share.root / layout.PROCESSING / f"{ID}.heartbeat.json").exists()
        assert (ready.share.root / layout.QUEUE / f"{ID}.json.lock").exists()

    @pytest.mark.parametrize("ended", [False, True])
    def test_its_result_is_put_aside_and_changes_nothing(self, ready: Controlled, ended: bool) -> None:
        pi = CpuAgent(ready.share.root)
        task = pi.claim(ID)
        assert task is not None
        if ended:
            ready.change(ID, state="done", ended_at=AT + 9, worker="w", attempt=1)
            ready.pass_time(2)
        pi.finish(task, "of the Pi")
        ready.pass_time(6)
        (kept,) = ready.asides(f"{layout.COMPLETE}/{ID}.json")
        assert json.loads(kept.read_text())["result"]["output"] == "of the Pi"
        assert (f"{ID}.json" in ready.drawn.files(layout.COMPLETE)) is ended
        name = f"conflict-{ID}" if ended else f"claim-{ID}"
        assert ready.said(name)["state"] == "refused"
        assert (ready.cancels, ready.agains) == ([], [])

    def test_a_late_save_of_the_rigs_own_words_is_no_claim(self, ready: Controlled) -> None:
        ready.change(ID, state="done", ended_at=AT + 9, worker="w", attempt=1)
        ready.pass_time(2)
        late = {"task_id": ID, "assigned_to": "w", "status": "processing"}
        (ready.share.root / layout.PROCESSING / f"{ID}.json").write_text(json.dumps(late))
        ready.pass_time(5)
        assert ready.said(f"edit-{ID}")["state"] == "refused"
        assert ready.drawn.files(layout.QUEUE), "ready tasks were withheld"

    def test_a_task_of_nobody_of_ours_stays_where_its_owner_put_it(self, ready: Controlled) -> None:
        theirs = ready.share.root / layout.PROCESSING / "3f2b8a52-6f0e-4c1c-9d0b-0a5a2c6f7e11.json"
        theirs.write_text('{"task_id": "x", "assigned_to": "pi-cpu"}')
        ready.pass_time(6)
        assert theirs.exists()


def test_an_edit_of_a_batch_s_file_is_answered_too(both: Controlled) -> None:
    path = f"plans/census/batches/{BATCH}/batch.json"
    both.world.batches.append(raw_batch())
    both.drawn.mirror._news.batches_changed = True
    both.pass_time(2)
    (both.share.root / path).write_text("mine")
    both.pass_time(4)
    assert both.asides(path)[0].read_text() == "mine"
    said = both.said("conflict-batch")
    assert said["problems"][0]["file"] == path


def test_an_edit_that_was_put_aside_is_answered_though_the_share_goes_away_meanwhile(
    both: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> Any:
        raise ShareAway(Fault("UNAVAILABLE", "away"))
        yield

    (path,) = both.drawn.files(layout.QUEUE)[:1]
    (both.share.root / layout.QUEUE / path).write_text('{"mine": true}')
    with monkeypatch.context() as away:
        away.setattr(both.control, "_answer", refuses)
        both.drawn.pass_time(6.0)
        both.look()
    assert not list((both.share.root / "inbox").glob("*.receipt.json"))
    both.pass_time(3)
    assert list((both.share.root / "inbox").glob("*.receipt.json"))


@pytest.mark.parametrize("over", [None, []])
def test_what_may_not_be_read_is_somebody_s_and_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: list[int] | None
) -> None:
    def refuses(*_: Any) -> Any:
        raise PermissionError(13, "no")

    (tmp_path / "x.json").write_text("mine")
    monkeypatch.setattr(helper_share, "open_regular", refuses)
    root = os.open(tmp_path, os.O_RDONLY)
    folder = helper_share.Share(root, float("inf"))
    if over is not None:
        with pytest.raises(OpError, match="changed by somebody"):
            folder.write("x.json", b"{}", keep={"x.json": None}, over=over)
        assert (tmp_path / "x.json").read_text() == "mine"
    else:
        (kept,) = folder.write("x.json", b"{}", keep={"x.json": None})["kept"]
        assert ((tmp_path / "x.json").read_text(), (tmp_path / kept).read_text()) == ("{}", "mine")
    os.close(root)


def test_a_reader_never_misses_the_state_while_edits_are_put_aside(share: Share) -> None:
    ours = TestWritingOverAnEdit.OURS
    path = share.root / "s.json"
    path.write_bytes(b"{}")
    missed, over = [], threading.Event()

    def read_on() -> None:
        while not over.is_set():
            try:
                path.read_bytes()
            except FileNotFoundError:
                missed.append(1)

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        for n in range(60):
            path.write_bytes(b"{%d}" % n)
            info = path.stat()
            was = [info.st_ino, info.st_size, info.st_mtime_ns]
            done = share.one(write("s.json", ours, over=was, keep={"s.json": None}))
            assert (share.root / done["kept"][0]).read_bytes() == b"{%d}" % n
    finally:
        over.set()
        reader.join()
    assert missed == []
