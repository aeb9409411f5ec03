"""``signals/``: stop, abort and kill by a file, each honoured once and answered beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from flowing import Killed, drive
from folders import Share
from turning import Rig, Turning

from rigbus.bridge.folder.contract.receipts import Invalid, Problem
from rigbus.bridge.folder.control.signals import Signals
from rigbus.bridge.folder.control.signals_core import Signal, Wish, signal_of, wish_of
from rigbus.bridge.folder.intake.journal import Journal
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.share.ops import Entry
from rigbus.bus.wire import Verb


def entry(name: str, type_: str = "file") -> Entry:
    return Entry(name, type_, 0, 0, 1, 0o644)


class TestWhatAFileAsksFor:
    @pytest.mark.parametrize("verb", ["stop", "abort", "kill"])
    def test_the_three_signals(self, verb: str) -> None:
        assert signal_of(entry(f"worker-1.{verb}")) == Signal(f"worker-1.{verb}", "worker-1", verb)

    def test_a_workers_name_may_hold_dots(self) -> None:
        assert signal_of(entry("gpu.0.stop")) == Signal("gpu.0.stop", "gpu.0", "stop")

    @pytest.mark.parametrize(
        "name",
        [
            "worker-1.stop.receipt.json",
            ".worker-1.stop",
            "worker-1.stop~",
            "worker-1.stop.tmp",
            "model_load.global.json",
            "gpu0.recovery_fallback.json",
            "launch.lock",
            "notes.txt",
            "README",
        ],
    )
    def test_what_others_keep_there_is_left_alone(self, name: str) -> None:
        assert signal_of(entry(name)) is None

    def test_folders_of_others_are_left_alone(self) -> None:
        assert signal_of(entry("split_llm.stop", "dir")) is None

    @pytest.mark.parametrize(
        ("name", "type_", "what"),
        [
            ("worker-1.pause", "file", "'pause' is unknown"),
            ("worker-1.stop", "link", "it is a link"),
            ("worker-1.kill", "fifo", "it is a fifo"),
            ("a b.stop", "file", "names no worker"),
            ("\x1b[2J.stop", "file", "names no worker"),
            ("..stop", "file", ""),
        ],
    )
    def test_what_cannot_be_a_signal_is_refused(self, name: str, type_: str, what: str) -> None:
        found = signal_of(entry(name, type_))
        if what:
            assert isinstance(found, Problem)
            assert what in found.what
        else:
            assert not isinstance(found, Signal)

    def test_a_text_says_why(self) -> None:
        assert wish_of(b"2026-02-08T18:46:10\n", "x") == Wish(reason="2026-02-08T18:46:10")

    def test_an_object_may_name_a_task(self) -> None:
        data = b'{"task_id": "t", "timestamp": 1, "reason": "stuck", "requeue": true}'
        assert wish_of(data, "x") == Wish("t", "stuck", True)

    @pytest.mark.parametrize("data", [b"", b"\0\0", b"\xef\xbb\xbf", b"\xff"])
    def test_nothing_and_rubbish_ask_for_the_whole_worker(self, data: bytes) -> None:
        found = wish_of(data, "x")
        assert found is not None
        assert found.task_id == ""

    @pytest.mark.parametrize("data", [b"{", b'{"task_id": "abc', b'{"task_id": "a",'])
    def test_half_an_object_is_not_judged(self, data: bytes) -> None:
        assert wish_of(data, "x") is None  # it may name one task: never all of them instead

    @pytest.mark.parametrize("data", [b'{"task_id": 5}', b'{"requeue": "yes"}', b'{"a":' * 90_000])
    def test_wrong_types_are_refused(self, data: bytes) -> None:
        with pytest.raises(Invalid) as caught:
            wish_of(data, "x")
        assert caught.value.problems[0].fix


class Door:
    def __init__(self, share: Share, state: Path) -> None:
        self.share, self.state, self.rig = share, state, Rig()
        self.folder = share.root / "signals"
        self.folder.mkdir(parents=True)
        self.rig.workers = [self._worker(n) for n in (1, 2)]
        self.begin()

    def _worker(self, n: int) -> dict[str, Any]:
        task = {"id": f"task-{n}", "state": "leased", "started": True, "batch": "b", "ending": False}
        waiting = {"id": f"next-{n}", "state": "leased", "started": False, "batch": "b", "ending": False}
        task["token"], waiting["token"] = [1, n], [1, 10 + n]
        self.rig.tasks |= {task["id"]: task, waiting["id"]: waiting}  # type: ignore[dict-item]
        return {"id": f"worker-{n}", "session": f"{n}" * 32, "pid": n, "tasks": [task["id"], waiting["id"]]}

    def begin(self) -> None:
        self.share.port.call("intake", [])
        self.turning = Turning(self.share.port, self.rig)
        self.signals = Signals(
            self.share.port, Journal(self.state / "signals"), self.turning.clock, {"mine": "task-1"}.get
        )
        self.turning.start(signals=self.signals.run)

    def put(self, name: str, data: str = "") -> Path:
        file = self.folder / name
        file.write_text(data)
        return file

    def receipt(self, name: str) -> dict[str, Any]:
        file = self.folder / f"{name}.receipt.json"
        self.turning.until(file.exists)
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def asked(self, verb: Verb) -> list[dict[str, Any]]:
        return [a.header for a in self.rig.asked if a.verb is verb]


@pytest.fixture
def door(share: Share, tmp_path: Path) -> Door:
    return Door(share, tmp_path / "state")


class TestTheDoor:
    def test_stop_drains_the_worker(self, door: Door) -> None:
        file = door.put("worker-1.stop")
        said = door.receipt("worker-1.stop")
        assert said["state"] == "accepted"
        assert "rigbus resume worker-1" in said["note"]
        assert door.asked(Verb.DRAIN) == [{"worker": "worker-1"}]
        door.turning.until(lambda: not file.exists())

    def test_abort_cancels_what_runs_there_and_nothing_else(self, door: Door) -> None:
        door.put("worker-1.abort", "too slow")
        assert "rigbus retry" in door.receipt("worker-1.abort")["note"]
        (cancel,) = door.asked(Verb.CANCEL)
        assert cancel == {"ids": ["task-1"], "reason": "signal worker-1.abort: too slow"}

    @pytest.mark.parametrize("name", ["task-1", "mine"])
    def test_abort_of_one_task_by_either_id(self, door: Door, name: str) -> None:
        door.put("all.abort", json.dumps({"task_id": name}))
        door.receipt("all.abort")
        assert door.asked(Verb.CANCEL)[0]["ids"] == ["task-1"]

    def test_abort_of_a_task_that_does_not_run_there_is_refused(self, door: Door) -> None:
        door.put("worker-2.abort", '{"task_id": "task-1"}')
        assert "does not run" in door.receipt("worker-2.abort")["problems"][0]["what"]
        assert not door.asked(Verb.CANCEL)

    def test_abort_and_run_again(self, door: Door) -> None:
        door.put("worker-1.abort", '{"requeue": true}')
        assert "1 ended, to run again" in door.receipt("worker-1.abort")["note"]
        assert door.asked(Verb.CANCEL) == [{"again": {"task-1": [1, 1]}, "reason": "signal worker-1.abort"}]

    def test_what_is_not_to_run_again_is_aborted_all_the_same_unless_it_is_to_end(self, door: Door) -> None:
        """What judges, and what was to end with its batch already."""
        door.rig.left |= {"task-1", "task-2"}
        door.rig.tasks["task-2"]["ending"] = True
        door.put("all.abort", '{"requeue": true}')
        note = door.receipt("all.abort")["note"]
        assert "0 ended, to run again; 1 only ended; 1 over by now" in note
        assert [asked.get("ids") for asked in door.asked(Verb.CANCEL)] == [None, ["task-1"]]

    def test_what_is_written_over_a_signal_that_is_being_done_is_a_signal_of_its_own(
        self, door: Door
    ) -> None:
        file = door.folder / "all.abort"
        door.rig.on_cancel = lambda: file.write_text('{"task_id": "task-2"}')  # in place: the same number
        door.put("all.abort", '{"task_id": "task-1", "requeue": true}')
        door.turning.until(lambda: len(door.asked(Verb.CANCEL)) == 2 and not file.exists())
        first, second = door.asked(Verb.CANCEL)
        assert (first["again"], second["ids"]) == ({"task-1": [1, 1]}, ["task-2"])

    def test_kill_hits_the_process_that_was_there(self, door: Door) -> None:
        door.put("worker-2.kill")
        assert "pid 2" in door.receipt("worker-2.kill")["note"]
        want = {"action": "kill", "worker": "worker-2", "session": "2" * 32}
        assert door.asked(Verb.CONTROL) == [want]

    def test_a_batch_can_be_aborted_but_not_stopped(self, door: Door) -> None:
        door.rig.batches["k"] = {"id": "20260101_000000_abcdef"}
        door.put("20260101_000000_abcdef.abort")
        assert "is cancelled" in door.receipt("20260101_000000_abcdef.abort")["note"]
        door.put("20260101_000000_abcdef.stop")
        assert ".abort cancels it" in door.receipt("20260101_000000_abcdef.stop")["problems"][0]["fix"]

    def test_an_unknown_worker_is_answered_with_the_list(self, door: Door) -> None:
        file = door.put("gpu7.stop")
        assert "worker-1, worker-2" in door.receipt("gpu7.stop")["problems"][0]["fix"]
        door.turning.until(lambda: not file.exists())

    def test_links_and_pipes_are_refused_and_never_opened(self, door: Door) -> None:
        (door.folder / "worker-1.kill").symlink_to("/etc/passwd")
        os.mkfifo(door.folder / "worker-2.kill")
        assert "link" in door.receipt("worker-1.kill")["problems"][0]["what"]
        assert "fifo" in door.receipt("worker-2.kill")["problems"][0]["what"]
        assert not door.asked(Verb.CONTROL)

    def test_an_unknown_signal_is_said_once_and_left(self, door: Door) -> None:
        file = door.put("worker-1.pause")
        at = door.receipt("worker-1.pause")["at"]
        door.turning.looks(3, ["scan"])
        assert door.receipt("worker-1.pause")["at"] == at
        assert file.exists()

    def test_an_old_signal_is_honoured_once(self, door: Door) -> None:
        file = door.put("worker-1.abort")
        os.utime(file, (0, 0))
        door.receipt("worker-1.abort")
        door.turning.until(lambda: not file.exists())
        door.begin()
        door.turning.looks(3, ["scan"])
        assert len(door.asked(Verb.CANCEL)) == 1


class TestKilledAtEveryStep:
    @pytest.mark.parametrize("step", range(1, 12))
    def test_it_hits_what_ran_then_and_nothing_that_came_since(self, door: Door, step: int) -> None:
        file = door.put("worker-2.kill")
        signals = Signals(door.share.port, Journal(door.state / "signals"), Clock())
        run = signals.run()
        try:
            drive(run, door.share.port, door.rig, die_at=step + 1)
        except Killed:
            pass
        run.close()
        was_asked = bool(door.asked(Verb.CONTROL))
        door.rig.workers[1]["tasks"] = []
        door.begin()
        door.receipt("worker-2.kill")
        door.turning.until(lambda: not file.exists())
        door.turning.until(lambda: not list((door.state / "signals").glob("signal-*")))
        sessions = {asked["session"] for asked in door.asked(Verb.CONTROL)}
        assert sessions == {"2" * 32}
        assert was_asked or len(door.asked(Verb.CONTROL)) == 1
