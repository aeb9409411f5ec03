"""The mirror: rows in, files out; only what changed, nothing that it does not know, and back again when deleted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flowing import drive
from folders import UUID, Share
from folders import task as task_row
from worlds import AT, BATCH, Drawn, World, event, raw_batch, raw_task

from rigbus.bridge.folder.contract import layout, rows
from rigbus.bridge.folder.logs.copies import LogCopies
from rigbus.bridge.folder.logs.telling import Telling
from rigbus.bridge.folder.loop.flows import Flow
from rigbus.bridge.folder.mirror.lanes import Lanes, lane_files
from rigbus.bridge.folder.mirror.survey import scan_lanes, survey
from rigbus.bridge.folder.mirror.workers import Workers
from rigbus.bridge.folder.share.ops import Entry, Op, Result
from rigbus.bridge.folder.share.seal import seal
from rigbus.bus.wire import pack


@pytest.fixture
def drawn(share: Share, tmp_path: Path) -> Drawn:
    return Drawn(share, tmp_path)


class TestDrawing:
    def test_a_snapshot_becomes_files_in_their_lanes(self, drawn: Drawn) -> None:
        drawn.world.put(
            raw_task(1, "waiting"),
            raw_task(2, "ready"),
            raw_task(3, "leased", started=True, worker="w", started_at=AT + 5, attempt=1),
            raw_task(4, "done", ended_at=AT + 9, worker="w", attempt=1),
            raw_task(5, "dead", ended_at=AT + 9, error="exit 3", attempt=3),
        )
        drawn.turn()
        drawn.turn()
        assert [len(drawn.files(lane)) for lane in layout.LANES] == [1, 1, 1, 1, 1]
        task = drawn.read(f"{layout.FAILED}/{raw_task(5)['id']}.json")
        assert task["result"]["error"] == "exit 3"
        assert list(drawn.read("brain/state.json")["active_batches"]) == [BATCH]
        assert drawn.read(f"plans/census/batches/{BATCH}/batch.json")["status"] == "running"

    def test_an_event_moves_a_task_to_its_lane(self, drawn: Drawn) -> None:
        drawn.world.put(raw_task(1, "ready"))
        drawn.turn()
        drawn.turn()
        id_ = raw_task(1)["id"]
        drawn.world.put(raw_task(1, "done", ended_at=AT + 3, worker="w", attempt=1))
        drawn.world.results[id_] = pack({"exit": 0, "output": "hello", "duration_s": 0.5})
        drawn.mirror.event(event(1, "task.shell.done", id_, attempt=1, worker="w"))
        drawn.turn()
        drawn.turn()
        assert drawn.files(layout.QUEUE) == []
        assert drawn.read(f"{layout.COMPLETE}/{id_}.json")["result"]["output"] == "hello"
        line = json.loads((drawn.share.root / layout.DECISIONS_LOG).read_text().splitlines()[-1])
        assert (line["type"], line["message"]) == ("SHELL_COMPLETE", "one in 0.5 s")

    def test_what_is_unchanged_is_not_written_again(self, drawn: Drawn) -> None:
        drawn.world.put(raw_task(1, "ready"))
        drawn.turn()
        drawn.turn()
        path = drawn.share.root / layout.QUEUE / f"{raw_task(1)['id']}.json"
        before = path.stat()
        drawn.mirror.event(event(1, "task.shell.ready", raw_task(1)["id"]))
        drawn.turn()
        drawn.turn()
        after = path.stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_a_new_bridge_adopts_what_stands_and_rewrites_nothing(
        self, share: Share, tmp_path: Path, drawn: Drawn
    ) -> None:
        drawn.world.put(*(raw_task(n, "done", ended_at=AT + n) for n in range(1, 20)))
        drawn.turn()
        drawn.turn()
        inodes = {p.name: p.stat().st_ino for p in (share.root / layout.COMPLETE).iterdir()}
        second = Drawn(share, tmp_path)
        second.world = drawn.world
        second.turn()
        second.turn()
        assert {p.name: p.stat().st_ino for p in (share.root / layout.COMPLETE).iterdir()} == inodes
        assert len(inodes) == 19

    def test_a_task_in_two_lanes_after_a_crash_is_in_one(
        self, share: Share, tmp_path: Path, drawn: Drawn
    ) -> None:
        name = f"{raw_task(1)['id']}.json"
        for lane in (layout.QUEUE, layout.PROCESSING):
            (share.root / lane).mkdir(parents=True)
            (share.root / lane / name).write_bytes(seal(b'{\n  "task_id": "x"\n}'))
        drawn.world.put(raw_task(1, "done", ended_at=AT + 1))
        drawn.turn()
        drawn.turn()
        assert [drawn.files(lane) for lane in layout.LANES] == [[], [], [], [name], []]

    def test_a_deleted_mirror_comes_back_and_foreign_files_stay(self, share: Share, tmp_path: Path) -> None:
        drawn = Drawn(share, tmp_path, reconcile_s=5.0)
        drawn.world.put(raw_task(1, "ready"), raw_task(2, "done", ended_at=AT))
        drawn.turn()
        drawn.turn()
        for path in [*(share.root / "tasks").rglob("*.json"), share.root / "brain/state.json"]:
            path.unlink()
        foreign = share.root / layout.QUEUE / "3f2b8a52-6f0e-4c1c-9d0b-0a5a2c6f7e11.json"
        foreign.write_text("{}")
        drawn.pass_time(8.0)
        assert drawn.files(layout.QUEUE) == sorted([f"{raw_task(1)['id']}.json", foreign.name])
        assert drawn.files(layout.COMPLETE) == [f"{raw_task(2)['id']}.json"]
        assert (share.root / "brain/state.json").exists()

    def test_ended_tasks_are_kept_up_to_a_bound(self, share: Share, tmp_path: Path) -> None:
        drawn = Drawn(share, tmp_path, kept=50)
        drawn.world.put(*(raw_task(n, "done", ended_at=AT + n) for n in range(1, 151)))
        drawn.turn()
        drawn.turn()
        assert len(drawn.files(layout.COMPLETE)) == 50
        for n in range(151, 260):
            drawn.world.put(raw_task(n, "done", ended_at=AT + n))
            drawn.mirror.event(event(n, "task.shell.done", raw_task(n)["id"], prev=0))
        drawn.turn()
        drawn.mirror.event(event(260, "task.shell.done", raw_task(259)["id"], prev=0))
        drawn.pass_time(3.0)
        left = drawn.files(layout.COMPLETE)
        assert 50 <= len(left) <= 150
        assert f"{raw_task(259)['id']}.json" in left

    def test_missed_events_are_read_from_the_log(self, drawn: Drawn) -> None:
        drawn.turn()
        drawn.turn()
        drawn.world.put(raw_task(1, "ready"))
        drawn.world.seq = 3
        drawn.world.events = [[2, 0, AT, "p", "task.shell.ready", raw_task(1)["id"], BATCH, {"key": "t1"}]]
        drawn.mirror.tick({"p": 2, "c": 0})
        drawn.turn()
        drawn.turn()
        assert drawn.files(layout.QUEUE) == [f"{raw_task(1)['id']}.json"]

    def test_one_file_that_cannot_be_written_does_not_stop_the_others(self, drawn: Drawn) -> None:
        (drawn.share.root / layout.QUEUE / f"{raw_task(1)['id']}.json").mkdir(parents=True)
        drawn.world.put(raw_task(1, "ready"), raw_task(2, "ready"))
        drawn.turn()
        drawn.turn()
        assert (drawn.share.root / layout.QUEUE / f"{raw_task(2)['id']}.json").is_file()

    def test_a_log_is_copied_while_its_task_runs_and_to_its_end(self, drawn: Drawn) -> None:
        log = drawn.paths.logs / BATCH / "t1.1.log"
        log.parent.mkdir(parents=True)
        log.write_text("first\n")
        running = raw_task(1, "leased", started=True, worker="w", started_at=AT, attempt=1)
        drawn.world.put(running)
        drawn.turn()
        drawn.turn(3.0)
        copy = drawn.share.root / f"plans/census/batches/{BATCH}/logs/t1.1.log"
        assert copy.read_text() == "first\n"
        log.write_text("first\nlast\n")
        drawn.world.put(raw_task(1, "done", ended_at=AT + 1, attempt=1, worker="w"))
        drawn.mirror.event(event(1, "task.shell.done", running["id"], attempt=1))
        drawn.turn()
        drawn.turn()
        assert copy.read_text() == "first\nlast\n"

    def test_a_workers_heartbeat_and_its_end_are_shown(self, drawn: Drawn) -> None:
        drawn.world.workers = [{"id": "w1", "state": "busy", "classes": ["cpu"]}]
        drawn.beats = [("w1", {"state": "busy", "pid": 7, "running": [{"id": "x", "name": "one"}]})]
        drawn.turn()
        drawn.turn(6.0)
        beat = drawn.read("workers/w1/heartbeat.json")
        assert (beat["active_tasks"], beat["pid"]) == ([{"task_id": "x", "task_name": "one"}], 7)
        drawn.world.workers, drawn.beats = [], []
        drawn.mirror.event(event(1, "worker.w1.left", None))
        drawn.turn(6.0)
        drawn.turn(6.0)
        assert drawn.read("workers/w1/status.json")["state"] == "gone"

    def test_client_batches_are_counts(self, drawn: Drawn) -> None:
        drawn.world.batches = [
            raw_batch(kind="client", plan=None, spec=None, mirror=False, tasks={"ready": 7}, total=7)
        ]
        drawn.turn()
        drawn.turn(2.0)
        state = drawn.read("brain/state.json")
        assert state["active_batches"] == {}
        assert state["client_batches"][BATCH]["tasks"] == {"ready": 7}


class TestLanes:
    def file(self, lane: str, text: str = "{}", at: float = AT) -> layout.File:
        return layout.File(f"{lane}/{UUID}.json", text.encode(), layout.mtime_ns(at), text, BATCH)

    def done(self, lanes: Lanes, ops: list[Op]) -> None:
        results: list[Result] = [{"ok": True, "size": 2, "mtime_ns": 5} for _ in ops]
        assert lanes.done(ops, results) == []

    def test_a_move_is_one_operation_that_writes_before_it_removes(self) -> None:
        lanes = Lanes()
        self.done(lanes, lanes.ops({UUID: self.file(layout.QUEUE)}))
        (op,) = lanes.ops({UUID: self.file(layout.COMPLETE)})
        assert (op["op"], op["replaces"]) == ("write", f"{layout.QUEUE}/{UUID}.json")
        self.done(lanes, [op])
        assert lanes.paths(UUID) == [f"{layout.COMPLETE}/{UUID}.json"]

    def test_the_same_content_is_no_operation(self) -> None:
        lanes = Lanes()
        self.done(lanes, lanes.ops({UUID: self.file(layout.QUEUE)}))
        assert lanes.ops({UUID: self.file(layout.QUEUE)}) == []

    def test_what_failed_is_named_and_asked_for_again(self) -> None:
        lanes = Lanes()
        ops = lanes.ops({UUID: self.file(layout.QUEUE)})
        path = f"{layout.QUEUE}/{UUID}.json"
        assert lanes.done(ops, [{"ok": False, "errno": "ENOSPC", "what": "full"}]) == [path]
        assert lanes.ops({UUID: self.file(layout.QUEUE)}) == ops

    def test_listings_leave_out_what_is_no_task(self) -> None:
        names = ["a.json", "a.json.lock", ".a.json.tmp~", "a.heartbeat.json", "notes.txt"]
        found = lane_files("tasks/queue", [Entry(n, "file", 1, 5, 1, 0o644) for n in names])
        assert found == {"tasks/queue/a.json": (1, 5)}


class TestLogCopies:
    def row(self, **changes: Any) -> dict[str, Any]:
        return task_row(batch="b", key="k", attempt=1, **changes)

    def step(self, attempt: int, state: str) -> rows.Transition:
        return rows.Transition(1, AT, "leased", state, False, "k", "shell", attempt, "w", None, None)

    def test_each_attempt_that_ended_is_copied(self) -> None:
        copies = LogCopies("/l")
        steps = [self.step(1, "ready"), self.step(2, "done")]
        ops = copies.task(UUID, self.row(state="done") | {"attempt": 2}, steps, "p")
        assert [op["source"] for op in ops] == ["/l/b/k.1.log", "/l/b/k.2.log"]
        assert ops[0]["path"] == "plans/p/batches/b/logs/k.1.log"

    def test_a_large_log_is_finished_in_pieces(self) -> None:
        copies = LogCopies("/l")
        ops = copies.task(UUID, self.row(state="done"), [self.step(1, "done")], "p")
        copies.done(ops, [{"ok": True, "offset": 8, "more": True}])
        (rest,) = copies.ops()
        assert rest["offset"] == 8
        copies.done([rest], [{"ok": True, "offset": 9, "more": False}])
        assert not copies.waiting()

    @pytest.mark.parametrize("log", ["/etc/shadow", "/l/../etc/shadow", "/logs/b/k.1.log", 7])
    def test_a_result_cannot_name_another_file_of_the_rig(self, log: Any) -> None:
        row = self.row(state="done", result={"exit": 0, "log": log})
        for op in LogCopies("/l").task(UUID, row, [self.step(1, "done")], "p"):
            assert op["source"] == "/l/b/k.1.log"

    def test_without_a_plan_there_is_no_folder_to_copy_to(self) -> None:
        assert LogCopies("/l").task(UUID, self.row(state="done"), [self.step(1, "done")], None) == []


class TestRows:
    def test_a_result_by_reference_says_so(self) -> None:
        row = rows.task_row(raw_task(1, "done", ref={"sha256": "x", "bytes": 9}), b"", None)
        assert "9 bytes" in row["result"]["output"]

    def test_a_result_that_is_no_msgpack_does_no_harm(self) -> None:
        row = rows.task_row(raw_task(1, "done"), b"\xc1\xff", None)
        assert layout.task_file(row, 0.0) is not None

    @pytest.mark.parametrize("name", ["../x", "a//b", "a/../b", "/a", "", ".hidden", None, 3, "x" * 65])
    def test_a_plans_name_never_leads_out_of_the_plans(self, name: Any) -> None:
        assert rows.batch_row(raw_batch(plan=name))["plan"] is None
        assert name is None or not isinstance(name, str) or not rows.worker_folder(name)

    @pytest.mark.parametrize(
        ("topic", "data", "before", "state"),
        [
            ("task.shell.waiting", {"created": True}, None, "waiting"),
            ("task.shell.ready", {}, "waiting", "ready"),
            ("task.shell.ready", {"requeued": True}, "dead", "ready"),
            ("task.shell.started", {}, "leased", "leased"),
            ("task.shell.retry", {}, "leased", "ready"),
            ("task.a.b.done", {}, "ready", "done"),
        ],
    )
    def test_topics_say_what_moved(
        self, topic: str, data: Mapping[str, Any], before: str | None, state: str
    ) -> None:
        step = rows.transition(event(1, topic, **data))
        assert step is not None
        assert (step.before, step.state) == (before, state)

    def test_what_moves_nothing_is_left_out(self) -> None:
        assert rows.transition(event(1, "task.shell.ending")) is None
        assert rows.transition(event(1, "batch.plan.running")) is None


class TestTelling:
    def test_lines_stand_in_the_order_of_their_events(self) -> None:
        telling = Telling(lambda _: 0.0)
        telling.batch(event(5, "batch.plan.complete", None, name="census", total=1))
        steps = [
            rows.transition(event(n, t, worker="w"))
            for n, t in ((3, "task.shell.started"), (4, "task.shell.done"))
        ]
        telling.tasks({UUID: (BATCH, [s for s in steps if s])}, {UUID: task_row(state="done")})
        data, count = telling.some()
        types = [json.loads(line)["type"] for line in data.splitlines()]
        assert (types, count) == (["SHELL_EXECUTE", "SHELL_COMPLETE", "BATCH_COMPLETE"], 3)
        telling.written(count)
        assert not telling.waiting()

    def test_a_lease_handed_back_is_not_worth_a_line(self) -> None:
        telling = Telling(lambda _: 0.0)
        step = rows.transition(event(1, "task.shell.returned", reason="worker busy"))
        assert step is not None
        telling.tasks({UUID: (BATCH, [step])}, {})
        assert not telling.waiting()


def test_workers_with_evil_names_get_no_folder() -> None:
    workers = Workers()
    workers.heard([("../../x", {}), ("ok", {})], AT)
    workers.told([{"id": "a/b", "state": "idle"}, {"id": "ok", "state": "idle"}])
    assert {file.path.split("/")[1] for file in workers.files(AT, 0.0)} == {"ok"}


def test_a_survey_asks_for_files_of_older_tasks_by_their_name(share: Share) -> None:
    world = World()
    world.batches = []
    world.put(raw_task(1, "done", ended_at=AT))
    lane = share.root / layout.COMPLETE
    lane.mkdir(parents=True)
    (lane / f"{raw_task(1)['id']}.json").write_text("{}")
    (lane / "somebodys.json").write_text("{}")

    def both() -> Flow[Any]:
        found = yield from scan_lanes()
        return (yield from survey(found, 10))

    seen = drive(both(), share.port, world)
    assert list(seen.known) == [f"{layout.COMPLETE}/{raw_task(1)['id']}.json"]


@pytest.mark.parametrize(
    "last", [b'{"status": "applied"}', b'{"status": "pending"}'], ids=["newer", "as before"]
)
def test_what_is_wanted_while_a_file_is_being_written_is_written_after_it(
    drawn: Drawn, share: Share, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    """Escalations are drawn by another flow, which does not wait for the mirror."""
    path = "brain/escalations/20261122_081500_0a1b2c3d.json"

    def file(data: bytes) -> layout.File:
        return layout.File(path, data, 10**18, data.decode())

    call = share.port.call

    def slow(kind: Any, ops: list[Op], deadline_s: float) -> Any:
        results = call(kind, ops, deadline_s)
        if any(op.get("data") == b'{"status": "answered"}' for op in ops):
            drawn.mirror.want(file(last))
        return results

    drawn.mirror.want(file(b'{"status": "pending"}'))
    drawn.pass_time(1.0)
    monkeypatch.setattr(share.port, "call", slow)
    drawn.mirror.want(file(b'{"status": "answered"}'))
    drawn.pass_time(2.0)
    assert (share.root / path).read_bytes() == last
