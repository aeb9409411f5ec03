"""A ``.jsonl`` in the inbox: one batch, each line answered once beside it, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batchbroker import BatchBroker
from folders import Share
from turning import Turning

from rigbus.bridge.folder.batchfiles import files as batch_files
from rigbus.bridge.folder.batchfiles import run as batch_run
from rigbus.bridge.folder.batchfiles import shown as batch_shown
from rigbus.bridge.folder.batchfiles.files import BatchFiles
from rigbus.bridge.folder.batchfiles.spool import Spool
from rigbus.bridge.folder.intake import intake
from rigbus.bridge.folder.intake.intake import Intake
from rigbus.bridge.folder.intake.taking import Taker
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bus.paths import RigPaths, rig_paths


class World:
    """The door and the intake on a real share, again and again on one state."""

    def __init__(self, share: Share, paths: RigPaths) -> None:
        self.share, self.paths = share, paths
        self.broker = BatchBroker()
        self.inbox = share.root / "inbox"
        self.inbox.mkdir(exist_ok=True)
        self.dead: list[object] = []  # a killed process runs no `finally`: nothing of it may be collected
        self.how: dict[str, Any] = {}

    def start(self) -> Turning:
        self.share.do()  # the port has looked at the share
        self.turning = turning = Turning(self.share.port, self.broker)  # type: ignore[arg-type]
        clock = Clock()
        taker = Taker(self.paths, clock)
        door = BatchFiles(self.share.port, turning.flows, taker, self.paths, clock, settle_s=0.0, **self.how)
        intake = Intake(
            self.share.port, turning.flows, taker, lambda _: iter(()), clock, settle_s=60.0, told=door.told
        )  # type: ignore[arg-type]
        turning.flows.start(batch_files.NAME, door.run())
        turning.flows.start("intake", intake.run())
        self.dead.append(turning)
        return turning

    def drop(self, *lines: Any, name: str = "x.jsonl", ready: str | None = "") -> Path:
        path = self.inbox / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        whole = path.with_name(f".{name}.part")
        whole.write_text("".join(text + "\n" for text in texts))
        if ready is not None:
            path.with_name(f"{name}.READY").write_text(ready)
        os.replace(whole, path)
        return path

    def lines(self, kind: str = "results", name: str = "x") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.inbox / f"{name}.{kind}.jsonl").read_text().splitlines()]

    def receipt(self, name: str = "x.jsonl") -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((self.inbox / f"{name}.receipt.json").read_text())
        except (OSError, ValueError):
            return {}
        return value

    def until(self, condition: Callable[[], Any]) -> Any:
        return self.turning.until(condition, timeout_s=30.0)

    def status(self, *words: str) -> dict[str, Any]:
        """Until the receipt says one of these."""
        self.until(lambda: self.receipt().get("status") in words)
        return self.receipt()

    def part(self) -> list[str]:
        """The custom ids that have a result so far."""
        try:
            text = (self.inbox / "x.results.jsonl.part").read_text()
        except OSError:
            return []
        return [json.loads(line)["custom_id"] for line in text.split("\n")[:-1]]


def ask(custom_id: str, content: str = "", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content or custom_id}]
    url = "/v1/chat/completions"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"messages": messages, **body}}


@pytest.fixture
def world(share: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for module, name in (
        (intake, "DEEP_S"),
        (batch_run, "LOOK_S"),
        (batch_shown, "SHOW_S"),
        (batch_files, "AGAIN_S"),
        (batch_run, "AGAIN_S"),
    ):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr(intake, "LOOK_S", (0.02, 0.02))
    state = tmp_path / "state"
    state.mkdir()
    made = World(share, rig_paths(state, share.root))
    yield made
    for turning in made.dead:
        assert isinstance(turning, Turning)
        turning.flows.close()


def ids(lines: list[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


class TestOneFile:
    def test_each_line_is_answered_beside_it(self, world: World) -> None:
        world.broker.auto = True
        embed = {"custom_id": "v", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}
        world.drop(ask("a", "hi"), "rubbish", embed, "", ask("b", stream=True))
        world.start()
        said = world.status("complete")
        assert said["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
        assert (said["state"], said["tasks"]) == ("accepted", 2)
        (batch,) = world.broker.batches.values()
        assert said["batch_id"] == batch["id"]
        assert (batch["head"]["name"], batch["head"]["priority"], batch["head"]["kind"]) == (
            "x.jsonl",
            3,
            "client",
        )
        a, v = sorted(world.lines(), key=lambda line: line["custom_id"])
        assert a["response"]["body"]["choices"][0]["message"]["content"] == "echo hi"
        assert a["response"]["body"]["usage"]["total_tokens"] == 5
        assert v["response"]["body"]["data"][0]["embedding"] == [1.0, 0.0]
        assert [(e["line"], e["custom_id"]) for e in world.lines("errors")] == [(2, None), (5, "b")]
        left = ["x.errors.jsonl", "x.jsonl", "x.jsonl.receipt.json", "x.jsonl.receipt.md", "x.results.jsonl"]
        assert [n for n in sorted(os.listdir(world.inbox)) if n[0] != "."] == left
        (run,) = (world.paths.state / "doors/batches").iterdir()
        world.until(lambda: os.listdir(run) == ["run.json"])

    def test_its_tasks_say_what_they_need(self, world: World) -> None:
        world.broker.models = ["m"]
        world.drop(ask("a", model="m"), ask("b", model="other"), ready='{"priority": "high"}')
        world.start()
        world.until(world.broker.ready)
        (task,) = world.broker.tasks.values()
        assert (task["type"], task["class"], task["needs"], task["key"]) == (
            "generate",
            "llm",
            ["model:m"],
            "1",
        )
        assert [b["head"]["priority"] for b in world.broker.batches.values()] == [8]

    def test_results_come_in_the_order_of_their_ends_and_under_the_final_name_when_all_are_there(
        self, world: World
    ) -> None:
        world.drop(*(ask(c) for c in "abc"))
        world.start()
        world.until(lambda: world.broker.ready() == ["a", "b", "c"])
        world.broker.end("c")
        world.until(lambda: world.part() == ["c"])
        assert not (world.inbox / "x.results.jsonl").exists()
        said = world.status("running")
        world.until(lambda: world.receipt()["request_counts"] == {"total": 3, "completed": 1, "failed": 0})
        assert said["results"] == "inbox/x.results.jsonl"
        world.broker.end("a")
        world.broker.end("b")
        world.status("complete")
        assert ids(world.lines()) == ["c", "a", "b"]
        assert world.lines("errors") == []

    def test_what_ended_badly_is_an_error_of_its_kind(self, world: World) -> None:
        world.drop(*(ask(c) for c in "abcd"))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 4)
        world.broker.end("a", "dead", "it failed thrice")
        world.broker.end("b", "expired", "too late")
        world.broker.end("c", value={"no": "answer of a model"})
        world.broker.end("d")
        world.status("failed")
        assert ids(world.lines()) == ["d"]
        codes = {e["custom_id"]: e["error"]["code"] for e in world.lines("errors")}
        assert codes == {"a": "request_failed", "b": "batch_expired", "c": "not_an_answer"}

    def test_without_ready_it_settles_and_a_folder_of_that_name_stays_a_plan(self, world: World) -> None:
        world.broker.auto = True
        (world.inbox / "y.jsonl").mkdir()
        world.drop(ask("a"), ready=None)
        world.start()
        world.status("complete")
        world.until(lambda: world.receipt("y.jsonl").get("state") == "waiting")  # for its plan.md

    def test_a_large_result_is_read_piece_by_piece(self, world: World) -> None:
        world.broker.auto = True
        world.broker.by_reference = {"a"}
        world.drop(ask("a", "long " * 50))
        world.start()
        world.status("complete")
        assert (
            world.lines()[0]["response"]["body"]["choices"][0]["message"]["content"] == "echo " + "long " * 50
        )

    def test_a_large_file_is_told_of_at_once(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.broker.auto = True
        monkeypatch.setattr(batch_files, "LARGE_BYTES", 10)
        notes = []
        request = world.share.port.request

        def watching(kind: str, batch: Any, deadline_s: float = 10.0) -> int:
            notes.extend(op["data"] for op in batch if op["op"] == "write" and op["path"].endswith(".json"))
            return request(kind, batch, deadline_s)

        monkeypatch.setattr(world.share.port, "request", watching)
        world.drop(ask("a"))
        world.start()
        world.status("complete")
        assert b"it is being read" in notes[0]

    def test_a_trimmed_log_loses_nothing(self, world: World) -> None:
        world.drop(*(ask(str(n)) for n in range(9)))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 9)
        world.broker.end("0")
        world.until(lambda: world.part() == ["0"])
        for n in range(1, 9):
            world.broker.end(str(n))
        world.broker.oldest = 7
        world.status("complete")
        assert sorted(ids(world.lines())) == [str(n) for n in range(9)]

    def test_a_full_broker_is_asked_again_and_only_a_window_is_with_it(self, world: World) -> None:
        world.how["window"], world.broker.page = 1, 500
        world.broker.busy = 3
        world.drop(*(ask(str(n)) for n in range(700)))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 500)
        world.turning.looks(3, ["scan"])
        assert len(world.broker.ready()) == 500
        world.broker.auto = True
        for c in world.broker.ready():
            world.broker.end(c)
        assert world.status("complete")["request_counts"]["completed"] == 700
        assert len(world.lines()) == 700

    def test_of_many_files_so_many_run_at_once(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batch_files, "MAX_ACTIVE", 2)
        for n in range(5):
            world.drop(ask(f"r{n}"), name=f"x{n}.jsonl")
        world.start()
        world.until(lambda: len(world.broker.ready()) == 2)
        world.turning.looks(3, ["scan"])
        assert len(world.broker.batches) == 2
        world.broker.auto = True
        for custom_id in world.broker.ready():
            world.broker.end(custom_id)
        world.until(lambda: len(list(world.inbox.glob("*.results.jsonl"))) == 5)
        assert sorted(world.broker.ran) == [f"r{n}" for n in range(5)]


class TestTrouble:
    @pytest.mark.parametrize("step", range(1, 25))
    def test_killed_at_any_step_each_line_is_answered_once(self, world: World, step: int) -> None:
        world.broker.auto = True
        world.drop(*(ask(str(n)) for n in range(7)), "rubbish")
        turning = world.start()
        steps = 0
        request, asked = world.share.port.request, turning.ask

        class Killed(BaseException):
            pass

        def count() -> None:
            nonlocal steps
            steps += 1
            if steps > step:
                raise Killed

        def counted_request(kind: str, batch: Any, deadline_s: float = 10.0) -> int:
            if any(op["op"] not in ("scan", "mkdirs") for op in batch):
                count()
            return request(kind, batch, deadline_s)

        def counted_ask(*args: Any) -> bytes:
            count()
            return asked(*args)

        world.share.port.request = counted_request  # type: ignore[method-assign]
        turning.ask = counted_ask  # type: ignore[method-assign]
        try:
            turning.until(lambda: world.receipt().get("status") == "complete")
        except Killed:
            pass
        world.share.port.request = request  # type: ignore[method-assign]
        world.start()
        world.status("complete")
        assert sorted(ids(world.lines())) == [str(n) for n in range(7)]
        assert [e["line"] for e in world.lines("errors")] == [8]
        assert sorted(world.broker.ran) == [str(n) for n in range(7)]
        assert len(world.broker.batches) == 1

    def test_a_torn_last_line_is_mended_and_what_is_done_is_not_run_again(self, world: World) -> None:
        world.drop(*(ask(c) for c in "abc"))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 3)
        world.broker.end("b")
        world.broker.end("a")
        world.until(lambda: sorted(world.part()) == ["a", "b"])
        (spool,) = (world.paths.state / "doors/batches").glob("*/results.jsonl")
        os.truncate(spool, spool.stat().st_size - 7)  # a power cut
        world.start()
        world.broker.end("c")
        world.status("complete")
        assert sorted(ids(world.lines())) == ["a", "b", "c"]
        assert sorted(world.broker.ran) == ["a", "b", "c"]

    def test_of_a_cancelled_batch_what_was_done_stays_and_the_others_are_errors(self, world: World) -> None:
        world.how["window"], world.broker.page = 1, 500
        world.drop(*(ask(str(n)) for n in range(502)))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 500)
        world.broker.end("7")
        world.until(lambda: world.part() == ["7"])
        world.broker.cancel()
        said = world.status("cancelled")
        assert said["request_counts"] == {"total": 502, "completed": 1, "failed": 501}
        assert ids(world.lines()) == ["7"]
        errors = world.lines("errors")
        assert {e["error"]["code"] for e in errors} == {"batch_cancelled"}
        assert sorted(map(int, ids(errors))) == [n for n in range(502) if n != 7]
        assert len(world.broker.ran) == 500

    def test_a_batch_that_the_broker_has_forgotten_goes_on_with_what_has_no_result(
        self, world: World
    ) -> None:
        world.drop(*(ask(c) for c in "abc"))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 3)
        world.broker.end("b")
        world.until(lambda: world.part() == ["b"])
        world.broker.forget()
        world.broker.auto = True
        world.start()
        world.status("complete")
        assert sorted(ids(world.lines())) == ["a", "b", "c"]
        assert sorted(world.broker.ran) == ["a", "a", "b", "c", "c"]

    def test_results_that_somebody_removes_or_spoils_are_written_again(self, world: World) -> None:
        world.drop(*(ask(c) for c in "abc"))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 3)
        world.broker.end("a")
        world.until(lambda: world.part() == ["a"])
        (world.inbox / "x.results.jsonl.part").write_text("spoilt " * 10_000)
        world.broker.end("b")
        world.broker.end("c")
        world.status("complete")
        assert ids(world.lines()) == ["a", "b", "c"]

    def test_a_share_that_refuses_writes_costs_waiting_only(self, world: World) -> None:
        world.drop(ask("a"), ask("b"))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 2)
        (world.inbox / "x.results.jsonl.part").unlink(missing_ok=True)
        (world.inbox / "x.results.jsonl.part").mkdir()
        world.broker.end("a")
        world.broker.end("b")
        world.turning.looks(3, ["copy_out"])
        assert not (world.inbox / "x.results.jsonl").exists()
        said = world.until(lambda: "wait" in world.receipt().get("note", "") and world.receipt()["note"])
        assert "x.results.jsonl.part" in said
        (world.inbox / "x.results.jsonl.part").rmdir()
        world.status("complete")
        assert ids(world.lines()) == ["a", "b"]

    def test_ready_again_while_it_runs_changes_nothing(self, world: World) -> None:
        world.drop(ask("a"))
        world.start()
        world.until(world.broker.ready)
        (world.inbox / "x.jsonl.READY").touch()
        world.until(lambda: not (world.inbox / "x.jsonl.READY").exists())
        world.broker.end("a")
        world.status("complete")
        assert world.broker.ran == ["a"]

    def test_the_file_may_go_while_it_runs(self, world: World) -> None:
        path = world.drop(ask("a"))
        world.start()
        world.until(world.broker.ready)
        path.unlink()
        world.broker.end("a")
        world.status("complete")
        assert ids(world.lines()) == ["a"]
        world.until(lambda: not list((world.paths.state / "doors/batches").iterdir()))


class TestAgain:
    def test_the_same_file_is_the_same_batch_and_a_revived_line_comes_right(self, world: World) -> None:
        world.drop(ask("a"), ask("b"))
        world.start()
        world.until(lambda: len(world.broker.ready()) == 2)
        world.broker.end("a")
        world.broker.end("b", "dead", "no")
        first = world.status("failed")
        world.broker.revive("b")
        world.broker.end("b")
        world.drop(ask("a"), ask("b"))
        second = world.status("complete")
        assert second["batch_id"] == first["batch_id"]
        assert sorted(ids(world.lines())) == ["a", "b"]
        assert world.lines("errors") == []
        assert world.broker.ran == ["a", "b"]

    def test_a_copy_under_another_name_is_answered_by_the_same_batch(self, world: World) -> None:
        world.broker.auto = True
        world.drop(ask("a"))
        world.start()
        world.status("complete")
        world.drop(ask("a"), name="y.jsonl")
        world.until((world.inbox / "y.results.jsonl").exists)
        assert world.lines(name="y") == world.lines()
        assert world.broker.ran == ["a"]

    def test_after_its_batch_is_forgotten_results_that_stand_are_left(self, world: World) -> None:
        world.broker.auto = True
        world.drop(ask("a"))
        world.start()
        first = world.status("complete")
        world.broker.forget()
        world.drop(ask("a"))
        world.until(lambda: "before" in world.receipt().get("note", ""))
        assert world.receipt()["batch_id"] == first["batch_id"]
        assert world.broker.ran == ["a"]

    def test_a_restart_leaves_what_was_answered(self, world: World) -> None:
        world.broker.auto = True
        world.drop(ask("a"))
        world.start()
        world.status("complete")
        asked = len(world.broker.asked)
        world.start()
        world.turning.looks(3, ["scan"])
        assert len(world.broker.asked) == asked

    @pytest.mark.parametrize("names", ["ab", "ba"])
    def test_killed_when_the_next_content_was_accepted_it_goes_on_with_that_one(
        self, world: World, names: str
    ) -> None:
        old, new = names
        world.broker.auto = True
        world.drop(ask(old))
        world.start()
        mine = world.status("complete")["drop_id"]
        books = world.paths.state / "doors/batches"
        (done,) = books.iterdir()
        shutil.copytree(done, world.paths.state / "old")
        world.broker.auto = False
        world.drop(ask(new))
        world.until(lambda: world.broker.ready() == [new])
        shutil.copytree(world.paths.state / "old", done)
        world.start()
        world.broker.end(new)
        world.until(
            lambda: world.receipt().get("status") == "complete" and world.receipt()["drop_id"] != mine
        )
        assert ids(world.lines()) == [new]
        assert world.broker.ran == [old, new] and done not in list(books.iterdir())

    def test_what_the_disk_does_not_give_now_is_not_thrown_away(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = world.drop(ask("a"))
        world.start()
        world.until(world.broker.ready)
        path.unlink()  # what was accepted lives from the spool

        def refuses(_: Any) -> bytes:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as broken:
            broken.setattr(Path, "read_bytes", refuses)
            with pytest.raises(OSError, match="Input/output"):
                Spool(world.paths.state / "doors/batches").open()
        world.start()
        world.broker.end("a")
        world.status("complete")
        assert ids(world.lines()) == ["a"]

    def test_what_a_rig_before_this_one_has_answered_is_not_run_again(self, world: World) -> None:
        world.broker.auto = True
        world.drop(ask("a"))
        world.start()
        world.status("complete")
        shutil.rmtree(world.paths.state / "doors")
        world.broker.forget()
        world.start()
        world.until(lambda: list((world.paths.state / "doors/batches").glob("*/run.json")))
        world.turning.looks(3, ["scan"])
        assert world.broker.ran == ["a"]
        (world.inbox / "x.results.jsonl").unlink()
        world.drop(ask("a"))
        world.until((world.inbox / "x.results.jsonl").exists)
        assert world.broker.ran == ["a", "a"]

    def test_another_content_of_the_name_is_another_batch_and_the_former_results_are_put_aside(
        self, world: World
    ) -> None:
        world.broker.auto = True
        world.drop(ask("a"))
        world.start()
        first = world.status("complete")
        world.drop(ask("b"), "rubbish")
        world.until(
            lambda: (
                world.receipt()["batch_id"] != first["batch_id"] and world.receipt()["status"] == "complete"
            )
        )
        assert ids(world.lines()) == ["b"]
        old = [json.loads(line) for line in (world.inbox / "x.results.jsonl.1").read_text().splitlines()]
        assert ids(old) == ["a"]
        assert "x.results.jsonl.1" in world.receipt()["note"]


class TestRefused:
    @pytest.mark.parametrize("text", ["", "\n\n", "rubbish\n[1]\n", '{"custom_id": "a"}\n'])
    def test_nothing_to_run_is_refused_with_its_lines(self, world: World, text: str) -> None:
        (world.inbox / "x.jsonl").write_text(text)
        world.start()
        world.until(lambda: world.receipt().get("state") == "refused")
        problems = world.receipt()["problems"]
        assert "custom_id" in problems[0]["fix"]
        assert [p.get("line") for p in problems[1:]] == [n + 1 for n, t in enumerate(text.split("\n")) if t]
        world.until((world.inbox / ".refused/x.jsonl").exists)
        assert world.broker.batches == {}

    def test_a_bad_ready_is_refused_with_the_fix(self, world: World) -> None:
        world.drop(ask("a"), ready='{"priority": "at once"}')
        world.start()
        world.until(lambda: world.receipt().get("state") == "refused")
        assert "low, normal, high or urgent" in world.receipt()["problems"][0]["fix"]

    def test_links_and_fifos_are_refused(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text(json.dumps(ask("a")) + "\n")
        (world.inbox / "x.jsonl").symlink_to(tmp_path / "secret")
        os.mkfifo(world.inbox / "y.jsonl")
        world.start()
        for name in ("x.jsonl", "y.jsonl"):
            world.until(lambda name=name: world.receipt(name).get("state") == "refused")  # type: ignore[misc]
        assert world.broker.batches == {}

    def test_one_that_is_still_written_is_read_when_it_is_whole(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.broker.auto = True
        path = world.drop(ask("a"))
        grown = False
        request = world.share.port.request

        def growing(kind: str, batch: Any, deadline_s: float = 10.0) -> int:
            nonlocal grown
            if not grown and any(op["op"] == "read" and op["path"].endswith("x.jsonl") for op in batch):
                grown = True
                with path.open("a") as file:
                    file.write(json.dumps(ask("b")) + "\n")
            return request(kind, batch, deadline_s)

        monkeypatch.setattr(world.share.port, "request", growing)
        world.start()
        world.status("complete")
        assert sorted(ids(world.lines())) == ["a", "b"]

    def test_a_file_of_rubbish_without_end_is_refused(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batch_files, "MAX_BAD", 50)
        world.drop(ask("a"), *["x"] * 51)
        world.start()
        world.until(lambda: world.receipt().get("state") == "refused")
        assert "over 50 of its lines" in world.receipt()["problems"][0]["what"]
