"""``tasks/queue``: what the earlier system's scripts and people write there runs once, or is refused with its fix."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flowing import Killed, drive
from folders import Share
from turning import Rig, Turning

from rigbus.bridge.folder.contract.receipts import Invalid, Problem
from rigbus.bridge.folder.doors import doors
from rigbus.bridge.folder.intake.taking import Taker
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.queue import books as queue_books
from rigbus.bridge.folder.queue.books import Books
from rigbus.bridge.folder.queue.core import Half, PlanOrder, Product, TaskOrder, read_order
from rigbus.bridge.folder.queue.mapping import choose, guesses
from rigbus.bridge.folder.queue.orders import Orders
from rigbus.bridge.folder.queue.resting import Rest
from rigbus.bridge.folder.queue.view import naive, refused_view
from rigbus.bridge.folder.share.ops import newcomers, unlink
from rigbus.bridge.folder.share.seal import sealed
from rigbus.bus.config.settings import load
from rigbus.bus.errors import ConfigError
from rigbus.bus.paths import RigPaths, rig_paths

ID = "3f2b8a52-6f0e-4c1c-9d0b-0a5a2c6f7e11"
OURS = "3f2b8a52-6f0e-5c1c-9d0b-0a5a2c6f7e11"
PLAN = (
    "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo {WORD}`\n- **task_class**: cpu\n\n"
    "## Inputs\n\n- **WORD**: what (default: `hi`)\n"
)
SUBMITTED = {
    "task_id": ID,
    "type": "execute_plan",
    "executor": "brain",
    "plan_path": "/home/pi/shared/plans/p",
    "config": {},
    "priority": 10,
    "status": "pending",
    "created_at": "2026-02-08T18:46:10.123456",
    "created_by": "submit",
}
SHELL = {"task_id": ID, "type": "shell", "command": "echo hi", "task_class": "cpu"}


def order(**fields: Any) -> Any:
    base = SUBMITTED if fields.get("type", "execute_plan") == "execute_plan" else {}
    return read_order(f"{ID}.json", json.dumps({**base, **fields}).encode())


def problem(fields: dict[str, Any]) -> Problem:
    with pytest.raises(Invalid) as caught:
        read_order(f"{ID}.json", json.dumps(fields).encode())
    return caught.value.problems[0]


class TestWhatAFileAsksFor:
    def test_the_file_that_submit_writes(self) -> None:
        found = order()
        assert isinstance(found, PlanOrder)
        assert (found.task_id, found.plan_path) == (ID, SUBMITTED["plan_path"])
        assert (found.settings.config, found.settings.priority) == ({}, None)
        assert "status" not in found.fields

    @pytest.mark.parametrize(
        ("given", "word"),
        [
            ({"priority": 10}, None),  # submit writes 10 into every file: it says nothing
            ({"priority": 3}, "low"),
            ({"priority": 5}, "normal"),
            ({"priority": 8}, "high"),
            ({"priority": 10, "config": {"PRIORITY": "urgent"}}, "urgent"),
            ({"priority": 10, "config": {"PRIORITY": "Low"}}, "low"),
            ({"priority": 10, "config": {"PRIORITY": 8}}, "high"),
            ({"priority": None}, None),
        ],
    )
    def test_priority(self, given: dict[str, Any], word: str | None) -> None:
        assert order(**given).settings.priority == word

    def test_control_keys_are_taken_and_all_others_are_variables(self) -> None:
        config = {"RUN_MODE": "fresh", "BATCH_ID": "nightly_1", "LIMIT": 3, "PREEMPTIBLE": False, "X": None}
        found = order(config=config)
        assert found.want_id == "nightly_1"
        assert found.settings.config == {"RUN_MODE": "fresh", "LIMIT": 3, "PREEMPTIBLE": False, "X": None}
        assert "new batch" in found.note

    def test_resume_names_its_batch(self) -> None:
        found = order(config={"RUN_MODE": "resume", "RESUME_BATCH_ID": "20260208_184610_a1b2c3"})
        assert (found.resume, found.want_id) == ("20260208_184610_a1b2c3", "")

    def test_a_hand_written_shell_task(self) -> None:
        found = order(type="shell", task_id=ID, command="echo 'a b'", timeout_seconds=7, priority="high")
        assert isinstance(found, TaskOrder)
        assert found.payload == {"command": "echo 'a b'"}
        assert (found.spec["class"], found.spec["timeout_s"], found.spec["priority"]) == ("cpu", 7.0, 8)
        assert found.spec["meta"]["file_id"] == ID

    @pytest.mark.parametrize(
        ("command", "wanted", "why"),
        [
            ("whisper a.wav", "script", "its command holds 'whisper'"),
            ("ls", "cpu", "it starts only ls"),
            ("python3 x.py", "cpu", "the default"),
        ],
    )
    def test_a_class_that_is_left_out_is_inferred_by_the_rule_and_said(
        self, command: str, wanted: str, why: str
    ) -> None:
        found = order(type="shell", task_id=ID, command=command, task_class=None)
        assert found.spec["class"] == wanted
        assert found.spec["meta"]["fix_applied"] == f"inferred task_class={wanted!r} from command"
        assert f"task_class was left out: taken as {wanted} ({why})." in found.note
        assert "fix_applied" not in order(**{**SHELL, "command": command}).spec["meta"]
        brains = order(type="shell", task_id=ID, command=command, executor="brain")
        assert (brains.spec["class"], "fix_applied" in brains.spec["meta"]) == ("brain", False)

    @pytest.mark.parametrize(
        ("type_", "handler"),
        [("generate", "generate"), ("decide", "decide"), ("parse", "generate"), ("transform", "generate")],
    )
    def test_prompts_go_to_a_model(self, type_: str, handler: str) -> None:
        found = order(type=type_, task_id=ID, prompt="why?", context="rain")
        assert (found.spec["type"], found.spec["class"]) == (handler, "llm")
        assert found.payload == {"prompt": "rain\n\nwhy?"}
        assert ("a prompt like any other" in found.note) is (type_ != handler)

    def test_a_parse_with_a_schema_is_one(self) -> None:
        found = order(type="parse", task_id=ID, prompt="when?", json_schema={"type": "integer"})
        assert found.spec["type"] == "parse"
        assert found.payload["json_schema"] == {"type": "integer"}
        assert found.note == ""

    @pytest.mark.parametrize(
        ("given", "names"),
        [("a, b", ("a", "b")), (["a", "a"], ("a",)), ("none", ()), ([], ()), (None, ())],
    )
    def test_depends_on(self, given: Any, names: tuple[str, ...]) -> None:
        assert order(**{**SHELL, "batch_id": "B", "depends_on": given}).waits_for == names

    def test_a_file_without_a_task_id_is_called_by_its_name(self) -> None:
        assert read_order("my_task.json", b'{"type": "shell", "command": "true"}').task_id == "my_task"  # type: ignore[union-attr]

    def test_a_bom_and_nulls_are_taken(self) -> None:
        data = b"\xef\xbb\xbf" + json.dumps({**SHELL, "name": None, "prompt": None}).encode()
        assert isinstance(read_order("x.json", data), TaskOrder)

    @pytest.mark.parametrize(
        "data",
        [b"", b"\0" * 40, b"  \n", b"{", b'{"task_id": "', json.dumps(SHELL).encode()[:-1], b'{"a": "\xc3'],
    )
    def test_what_is_half_written_is_not_judged(self, data: bytes) -> None:
        assert isinstance(read_order("x.json", data), Half)

    @pytest.mark.parametrize("n", range(1, 60, 7))
    def test_every_beginning_of_a_file_is_half(self, n: int) -> None:
        assert isinstance(read_order("x.json", json.dumps(SUBMITTED).encode()[:n]), Half)

    @pytest.mark.parametrize(
        ("fields", "what", "fix"),
        [
            ({**SHELL, "command": ""}, "command", "a text"),
            ({**SHELL, "command": None}, "command is missing", "add"),
            ({**SHELL, "command": "a\0b"}, "NUL", "remove"),
            ({**SHELL, "command": ["ls"]}, "command is", "a text"),
            ({**SHELL, "command": "x" * 300_000}, "at most", "file"),
            ({**SHELL, "priority": 11}, "priority is 11", "3, 5, 8 or 10"),
            ({**SHELL, "priority": True}, "priority is true", "3, 5, 8 or 10"),
            ({**SHELL, "timeout_seconds": -1}, "timeout_seconds", "above 0"),
            ({**SHELL, "timeout_seconds": "10"}, "timeout_seconds", "above 0"),
            ({**SHELL, "task_class": "gpu"}, "task_class", "cpu"),
            ({**SHELL, "task_id": "../../etc/passwd"}, "task_id", "uuid4"),
            ({**SHELL, "task_id": 5}, "task_id is 5", "uuid4"),
            ({**SHELL, "task_id": ""}, "task_id", "uuid4"),
            ({**SHELL, "depends_on": ["a"]}, "batch_id", "same batch_id"),
            ({**SHELL, "batch_id": "B", "depends_on": {"a": 1}}, "depends_on", "list"),
            ({**SHELL, "foreach": "m.json:items"}, "foreach", "plan"),
            ({**SHELL, "type": "conjure"}, "'conjure' is unknown", "shell"),
            ({**SHELL, "type": None}, "type is missing", "add"),
            ({"type": "meta", "command": "load_llm", "created_by": "kill_plan"}, "load_llm", "--model"),
            ({"type": "resource", "command": "load_split_llm"}, "load_split_llm", "--model"),
            ({"type": "system", "command": "orchestrator_full_reset"}, "orchestrator", "--model"),
            ({"type": "generate"}, "prompt is missing", "add"),
            ({"type": "parse", "prompt": "x", "json_schema": "s"}, "json_schema is", "an object"),
            ({**SUBMITTED, "config": []}, "config is []", "object"),
            ({**SUBMITTED, "config": {"BATCH_ID": "../x"}}, "BATCH_ID", "letters"),
            ({**SUBMITTED, "config": {"BATCH_ID": 7}}, "BATCH_ID", "letters"),
            ({**SUBMITTED, "config": {"PRIORITY": "now"}}, "PRIORITY", "low"),
            ({**SUBMITTED, "config": {"RUN_MODE": "again"}}, "RUN_MODE", "fresh or resume"),
            ({**SUBMITTED, "config": {"RUN_MODE": "resume"}}, "which batch", "RESUME_BATCH_ID"),
        ],
        ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
    )
    def test_what_cannot_be_done_is_named_with_its_fix(
        self, fields: dict[str, Any], what: str, fix: str
    ) -> None:
        found = problem(fields)
        assert what in found.what
        assert fix in found.fix

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b'{"a": NaN}', "Out of range"),
            (b"[1]", "object"),
            (b'"text"', "object"),
            (b'{"a": ' + b"9" * 5000 + b"}", ""),
            (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
            (b'{"a": "\\ud800"}', "UTF-8"),
            (b"{" + b" " * (1 << 20) + b"}", "larger"),
        ],
    )
    def test_whole_rubbish_is_refused_at_once(self, data: bytes, what: str) -> None:
        with pytest.raises(Invalid) as caught:
            read_order("x.json", data)
        assert what in caught.value.problems[0].what

    def test_what_the_mirror_wrote_is_no_order(self) -> None:
        assert isinstance(order(**SHELL, mirrored_by="rigbus"), Product)
        old = json.dumps({**SHELL, "created_by": "brain"}).encode()
        assert isinstance(read_order(f"{OURS}.json", old, ours=True), Product)
        assert isinstance(read_order(f"{ID}.json", old), TaskOrder)


class TestPathsOfThePi:
    SHARED = "/srv/share"

    def find(self, path: Any, *there: str, path_map: tuple[str, ...] = ()) -> tuple[str, str]:
        found = guesses(path, self.SHARED, path_map)
        return choose(path, found, {place: n for n, place in enumerate(there)})

    @pytest.mark.parametrize(
        ("path", "place"),
        [
            ("/home/pi/shared/plans/x", "plans/x"),
            ("/home/pi/shared/plans/x/", "plans/x"),
            ("/home/pi/shared/plans/x/plan.md", "plans/x"),
            ("/home/pi/../pi/shared//plans/x", "plans/x"),
            ("/srv/share/plans/x", "plans/x"),
            ("/mnt/share/plans/x", "plans/x"),
            ("/media/usb/plans/x", "plans/x"),
            ("/mnt/shared/plans/arms/x", "plans/arms/x"),
            ("//nas/shared/plans/x", "plans/x"),
            ("plans/x", "plans/x"),
            ("x", "plans/x"),
        ],
    )
    def test_known_forms(self, path: str, place: str) -> None:
        assert self.find(path, place) == (place, "")

    def test_the_longest_end_that_exists_wins(self) -> None:
        assert self.find("/pi/plans/arms/x", "plans/x", "plans/arms/x")[0] == "plans/arms/x"

    def test_the_last_name_alone_is_taken_and_said(self) -> None:
        place, said = self.find("/home/pi/drafts/x", "plans/x")
        assert place == "plans/x"
        assert "path_map" in said

    def test_the_setting_comes_first_and_its_longest_pair_wins(self) -> None:
        pairs = ("/home/pi=/srv/share/plans", "/home/pi/work=/srv/share/plans/deep")
        assert self.find("/home/pi/work/x", "plans/deep/x", "plans/x", path_map=pairs)[0] == "plans/deep/x"
        assert self.find("/home/pi/x", "plans/x", path_map=pairs)[0] == "plans/x"
        assert self.find("/home/pike/x", "plans/x", path_map=pairs)[0] == "plans/x"

    @pytest.mark.parametrize(
        ("path", "there", "pairs", "what"),
        [
            ("/home/pi/shared/plans/none", ("plans/x",), (), "leads to no plan"),
            ("/a/shared/plans/x", ("plans/x", "plans/plans/x"), (), "may mean"),
            ("/home/pi/x", ("plans/x",), ("/home/pi=/elsewhere",), "not below plans/"),
            ("/home/pi/x", ("inbox/x",), ("/home/pi=/srv/share/inbox",), "not below plans/"),
            ("/home/pi/gone", ("plans/x",), ("/home/pi=/srv/share/plans",), "leads to no plan"),
            ("/home/pi/shared/plans/bad name", ("plans/bad name",), (), "cannot name a plan"),
            ("../plans/x", ("plans/x",), (), "leads out"),
            ("", (), (), "missing"),
            (None, (), (), "missing"),
            (["a"], (), (), "missing"),
            ("/a\0b", (), (), "no path"),
            ("/" + "a/" * 4000, (), (), "no path"),
            ("C:\\plans\\x", ("plans/x",), (), "leads to no plan"),
            ("/srv/share/inbox/x", ("plans/x",), (), "leads to no plan"),
            ("/x/plans/.rigbus-1/x", ("plans/.rigbus-1/x",), (), "leads to no plan"),
        ],
    )
    def test_what_has_no_place_is_refused(
        self, path: Any, there: tuple[str, ...], pairs: tuple[str, ...], what: str
    ) -> None:
        with pytest.raises(Invalid) as caught:
            self.find(path, *there, path_map=pairs)
        assert what in caught.value.problems[0].what

    def test_a_refusal_names_the_setting(self) -> None:
        with pytest.raises(Invalid) as caught:
            self.find("/home/pi/none")
        assert "path_map" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('path_map = ["/home/pi=/srv/share/plans"]', ""),
        ('path_map = ["home=/srv"]', "not FROM=TO with an absolute FROM"),
        ('path_map = ["/home"]', "not FROM=TO"),
        ("path_maps = []", "did you mean 'path_map'"),
    ],
)
def test_the_setting_is_checked_where_it_is_read(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "rigbus.toml"
    file.write_text(f"[bridge]\n{text}\n")
    if not said:
        assert load(config=file).settings.bridge.path_map == ["/home/pi=/srv/share/plans"]
        return
    with pytest.raises(ConfigError, match=said):
        load(config=file)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("2026-02-08T18:46:10.123456", "2026-02-08T18:46:10.123456"),
        ("2026-02-08T18:46:10+00:00", "2026-02-08T19:46:10.000000"),
        ("2026-02-08T18:46:10Z", "2026-02-08T19:46:10.000000"),
        ("yesterday", "1970-01-01T01:00:00.000000"),
        (17, "1970-01-01T01:00:00.000000"),
        (None, "1970-01-01T01:00:00.000000"),
    ],
)
def test_timestamps_leave_as_readers_can_subtract_them(given: Any, shown: str) -> None:
    assert naive(given, 0.0, 3600.0) == shown


def test_a_refused_file_shows_no_null_and_only_texts_where_readers_slice() -> None:
    fields = {
        "prompt": 5,
        "name": ["x"],
        "type": "shell",
        "task_id": {"a": 1},
        "created_at": "2026-01-01T00:00:00Z",
    }
    file = refused_view("odd name.json", fields, [Problem("what", "where", "fix")], 0.0, 0.0)
    said = json.loads(file.data)
    assert all(isinstance(said[key], str) for key in ("prompt", "name", "task_id"))
    assert said["created_at"] == "2026-01-01T00:00:00.000000"
    assert said["result"]["error"] == "what; fix"
    assert file.path.startswith("tasks/failed/odd-name-")


def was(file: Path) -> tuple[int, int, int]:
    """Which file this is."""
    info = file.stat()
    return info.st_ino, info.st_size, info.st_mtime_ns


class Door:
    """The queue's door on a real share."""

    def __init__(self, share: Share, paths: RigPaths, rig: Rig, patience_s: float) -> None:
        self.share, self.paths, self.rig = share, paths, rig
        self.root = share.root
        self.drawn: set[str] = set()
        self._patience_s = patience_s
        self.begin()

    def begin(self) -> None:
        """As a bridge that has just been started."""
        self.turning = Turning(self.share.port, self.rig)
        found = doors(
            self.share.port,
            self.turning.flows,
            self.paths,
            self.turning.clock,
            self.drawn.__contains__,
            patience_s=self._patience_s,
            doubt_s=0.2,
        )
        self.turning.start(**{name.replace(" ", "_"): run for name, run in found.items()})

    def put(self, name: str, data: Any, *, lane: str = "queue") -> Path:
        file = self.root / "tasks" / lane / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return file

    def read(self, lane: str, name: str = ID) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.root / "tasks" / lane / f"{name}.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def names(self, lane: str) -> list[str]:
        return sorted(os.listdir(self.root / "tasks" / lane))

    def until(self, condition: Callable[[], Any], **how: Any) -> Any:
        return self.turning.until(condition, **how)

    def receipt(self, name: str = ID) -> dict[str, Any]:
        file = self.root / f"inbox/{name}.receipt.json"
        self.until(file.exists)
        found: dict[str, Any] = json.loads(file.read_text())
        return found


@pytest.fixture
def paths(share: Share, tmp_path: Path) -> RigPaths:
    state = tmp_path / "state"
    state.mkdir()
    for lane in ("queue", "processing", "complete", "failed"):
        (share.root / "tasks" / lane).mkdir(parents=True)
    return rig_paths(state, share.root)


@pytest.fixture
def door(share: Share, paths: RigPaths) -> Door:
    plan = share.root / "plans/p"
    plan.mkdir(parents=True)
    (plan / "plan.md").write_text(PLAN)
    share.port.call("intake", [])
    return Door(share, paths, Rig(), 0.6)


class TestTheDoor:
    def test_a_plan_goes_from_queue_over_processing_to_complete(self, door: Door) -> None:
        door.put(f"{ID}.json", {**SUBMITTED, "config": {"WORD": "zz"}})
        running = door.until(lambda: door.read("processing"))
        assert (running["status"], running["assigned_to"]) == ("processing", "brain")
        assert running["plan_path"] == SUBMITTED["plan_path"]
        assert door.receipt()["batch_id"] == "20260101_000000_000000"
        (plan,) = door.rig.submits("plan")
        assert plan["batch"]["plan"]["path"] == f"{door.root}/plans/p"
        assert plan["batch"]["plan"]["config"] == {"WORD": "zz"}
        assert door.names("queue") == []
        door.rig.end()
        done = door.until(lambda: door.read("complete"))
        assert done["result"] == {
            "success": True,
            "batch_id": "20260101_000000_000000",
            "handler": "brain",
            "output": "1 task: 1 done",
        }
        door.until(lambda: not door.names("processing"))

    def test_a_plan_that_fails_lies_in_complete_with_status_failed(self, door: Door) -> None:
        door.put(f"{ID}.json", SUBMITTED)
        door.until(lambda: door.read("processing"))
        door.rig.end("failed")
        done = door.until(lambda: door.read("complete"))
        assert (done["status"], done["result"]["success"]) == ("failed", False)
        assert "batch show" in done["result"]["error"]

    def test_an_invalid_plan_is_refused_with_its_line(self, door: Door) -> None:
        (door.root / "plans/p/plan.md").write_text(PLAN.replace("{WORD}", "{WORDS}"))
        door.put(f"{ID}.json", SUBMITTED)
        said = door.until(lambda: door.read("complete"))
        assert said["status"] == "failed"
        assert "WORDS" in said["result"]["error"]
        assert door.receipt()["problems"][0]["line"] == 7
        assert door.rig.submits("plan") == []

    def test_half_a_file_waits_for_its_other_half(self, door: Door) -> None:
        data = json.dumps(SUBMITTED).encode()
        file = door.put(f"{ID}.json", data[:50])
        door.turning.looks(3, ["newcomers"])
        assert not door.rig.asked
        with file.open("ab") as out:
            out.write(data[50:])
        assert door.until(lambda: door.read("processing"))

    def test_half_a_file_that_stays_so_is_refused_and_kept(self, door: Door) -> None:
        door.put(f"{ID}.json", b'{"task_id": "x",\n "type": ')
        said = door.until(lambda: door.read("failed"))
        assert "no valid JSON" in said["result"]["error"]
        assert door.receipt()["problems"][0]["line"] == 2
        kept = door.root / f"tasks/failed/{ID}.json.refused"
        assert kept.read_bytes() == b'{"task_id": "x",\n "type": '

    def test_a_shell_task_is_submitted_for_the_mirror_to_draw(self, door: Door) -> None:
        file = door.put(f"{ID}.json", SHELL)
        door.until(lambda: door.rig.submits("client"))
        (sent,) = door.rig.submits("client")
        assert sent["batch"]["mirror"] is True
        assert sent["tasks"][0]["meta"]["file_id"] == ID
        assert door.rig.payloads == [{"command": "echo hi"}]
        assert file.exists()  # it is the mirror's to replace
        door.rig.end()
        door.until(lambda: not file.exists())  # here nobody did

    def test_a_task_waits_for_the_file_that_it_names(self, door: Door) -> None:
        second = {**SHELL, "task_id": "second", "name": "b", "batch_id": "B", "depends_on": ["a"]}
        door.put("second.json", second)
        door.turning.looks(2, ["newcomers"])
        assert door.rig.submits("client") == []
        door.put("first.json", {**SHELL, "task_id": "first", "name": "a", "batch_id": "B"})
        door.until(lambda: len(door.rig.submits("client")) == 2, timeout_s=15)
        first, then = door.rig.submits("client")
        assert then["tasks"][0]["after"] == [next(iter(door.rig.tasks))]
        assert first["tasks"][0]["key"] == "a"

    def test_a_dependency_that_never_comes_is_refused(self, door: Door) -> None:
        door.put("second.json", {**SHELL, "task_id": "second", "batch_id": "B", "depends_on": ["a"]})
        said = door.until(lambda: door.read("failed", "second"))
        assert "'a'" in said["result"]["error"]

    def test_what_loads_models_is_refused_and_leaves_no_litter(self, door: Door) -> None:
        for n in range(5):
            task = {"type": "meta", "command": "load_llm", "batch_id": "system", "created_by": "kill_plan"}
            door.put(f"m{n}.json", {**task, "task_id": f"m{n}"})
        door.until(lambda: len(door.names("failed")) == 5)
        door.until(lambda: door.names("queue") == [])
        assert "--model" in door.receipt("m3")["problems"][0]["fix"]

    def test_the_same_file_again_is_not_run_again(self, door: Door) -> None:
        door.put(f"{ID}.json", SUBMITTED)
        door.until(lambda: door.read("processing"))
        door.put("copy.json", SUBMITTED)
        door.until(lambda: door.names("queue") == [])
        door.rig.end()
        door.until(lambda: door.read("complete"))
        door.put(f"{ID}.json", SUBMITTED)
        door.until(lambda: door.names("queue") == [])
        assert len(door.rig.batches) == 1

    def test_another_order_under_a_used_task_id_is_refused(self, door: Door) -> None:
        door.put(f"{ID}.json", SUBMITTED)
        door.until(lambda: door.read("processing"))
        door.put("other.json", {**SUBMITTED, "config": {"WORD": "other"}})
        assert "on its way" in door.until(lambda: door.read("complete", "other"))["result"]["error"]
        door.rig.end()
        done = door.until(lambda: door.read("complete"))
        door.put(f"{ID}.json", {**SUBMITTED, "config": {"WORD": "other"}})
        said = door.until(lambda: door.read("complete", f"{ID}-refused"))
        assert "used before" in said["result"]["error"]
        assert door.read("complete") == done

    def test_products_of_the_mirror_are_never_run(self, door: Door) -> None:
        door.drawn.add("tasks/queue/drawn.json")
        door.put("drawn.json", SHELL)
        door.put(f"{ID}.json", {**SHELL, "mirrored_by": "rigbus"})
        door.put(f"{OURS}.json", {**SHELL, "task_id": OURS, "mirrored_by": "rigbus"})
        door.put(f"{ID}.heartbeat.json", SHELL)
        door.put(f"{ID}.json.lock", b"")
        door.put(f".{ID}.json.tmp~", SHELL)
        door.until(lambda: len(door.names("queue")) == 4, timeout_s=15)
        assert not door.rig.submits("client")
        assert "drawn.json" in door.names("queue")

    def test_a_task_that_the_broker_knows_is_left_to_the_mirror(self, door: Door) -> None:
        door.rig.tasks[OURS] = {"id": OURS, "state": "ready", "started": False}
        door.put(f"{OURS}.json", {**SHELL, "task_id": OURS})
        door.until(lambda: any(a.header.get("what") == "rows" for a in door.rig.asked))
        door.turning.looks(3, ["newcomers"])
        assert door.names("queue") == [f"{OURS}.json"]
        assert not door.rig.submits("client")

    def test_a_file_with_a_name_like_ours_that_nobody_knows_is_run(self, door: Door) -> None:
        door.put(f"{OURS}.json", {**SHELL, "task_id": OURS})
        door.until(lambda: door.rig.submits("client"), timeout_s=15)

    def test_what_is_no_file_is_said_once_and_left(self, door: Door) -> None:
        queue = door.root / "tasks/queue"
        (queue / "folder.json").mkdir()
        (queue / "link.json").symlink_to("/etc/passwd")
        os.mkfifo(queue / "pipe.json")
        for name, kind in (("folder", "dir"), ("link", "link"), ("pipe", "fifo")):
            assert kind in door.receipt(name)["problems"][0]["what"]
        at = door.receipt("pipe")["at"]
        door.turning.looks(4, ["newcomers"])
        assert door.receipt("pipe")["at"] == at
        assert len(door.names("queue")) == 3

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_file_is_said_once_and_taken_when_it_can_be_read(self, door: Door) -> None:
        file = door.put(f"{ID}.json", SHELL)
        file.chmod(0)
        assert "chmod" in door.receipt()["problems"][0]["fix"]
        file.chmod(0o644)
        door.until(lambda: door.rig.submits("client"))

    def test_a_huge_file_is_refused_unread(self, door: Door) -> None:
        door.put("huge.json", b"[" + b" " * (2 << 20))
        assert "at most" in door.until(lambda: door.read("failed", "huge"))["result"]["error"]
        assert "huge.json.refused" in door.names("failed")

    @pytest.mark.parametrize(
        "name", ["ta\u0302che.json", "t\u00e2che.json", "a b.json", b"\xff\xfe.json", "-rf.json"]
    )
    def test_odd_names_run_under_their_task_id(self, door: Door, name: str | bytes) -> None:
        queue = os.fsencode(door.root / "tasks/queue")
        path = queue + b"/" + (name if isinstance(name, bytes) else name.encode())
        with open(path, "wb") as file:
            file.write(json.dumps(SUBMITTED).encode())
        assert door.until(lambda: door.read("processing"))
        assert door.names("queue") == []

    def test_an_odd_name_without_a_task_id_is_refused(self, door: Door) -> None:
        door.put("a b.json", {"type": "shell", "command": "true"})
        door.until(lambda: door.names("failed"))
        assert door.names("queue") == []

    def test_resume_goes_on_with_a_batch_that_ended_badly(self, door: Door) -> None:
        door.put(f"{ID}.json", SUBMITTED)
        door.until(lambda: door.read("processing"))
        door.rig.end("failed")
        door.until(lambda: door.read("complete"))
        config = {"RUN_MODE": "resume", "RESUME_BATCH_ID": "20260101_000000_000000"}
        door.put("again.json", {**SUBMITTED, "task_id": "again", "config": config})
        door.until(lambda: door.read("processing", "again"))
        assert "run again" in door.receipt("again")["note"]
        door.rig.end()
        assert door.until(lambda: door.read("complete", "again"))["result"]["success"] is True
        assert len(door.rig.batches) == 1

    def test_resume_of_the_earlier_systems_batch_is_refused(self, door: Door) -> None:
        config = {"RUN_MODE": "resume", "RESUME_BATCH_ID": "20250101_101010"}
        door.put(f"{ID}.json", {**SUBMITTED, "config": config})
        assert "no batch of this rig" in door.until(lambda: door.read("complete"))["result"]["error"]

    def test_many_files_at_once(self, door: Door) -> None:
        for n in range(60):
            door.put(f"t{n}.json", {**SHELL, "task_id": f"t{n}"})
        door.until(lambda: len(door.rig.batches) == 60, timeout_s=20)


class TestFilesThatAreReplaced:
    """Scripts write one name again and again: what stands there now may be another order than the one that was read."""

    def test_the_same_name_with_another_order_does_not_wait_for_the_first_to_end(self, door: Door) -> None:
        door.put("job.json", {**SHELL, "task_id": "first"})
        door.until(lambda: door.rig.submits("client") and door.names("queue") == [])
        door.put("job.json", {**SHELL, "task_id": "second"})
        door.until(lambda: len(door.rig.submits("client")) == 2)
        door.until(lambda: door.names("queue") == [])

    def test_the_end_of_the_first_removes_no_newer_file_of_its_name(self, door: Door) -> None:
        """Also where the file system gives the new file the number of the old one."""
        orders, first = self._orders(door), door.put("job.json", {**SHELL, "task_id": "first"})
        drive(orders.take(first.name, was(first), self._order(first)), door.share.port, door.rig)
        door.rig.end()
        number = was(first)[0] if first.exists() else 0
        door.put("job.json", {**SHELL, "task_id": "second", "number": number})
        drive(orders.tend(), door.share.port, door.rig)
        assert not orders.books.open
        assert json.loads(first.read_text())["task_id"] == "second"

    @pytest.mark.parametrize("kind", ["plan", "task", "once more", "refused", "removed"])
    def test_what_came_while_the_first_was_read_stays(self, door: Door, kind: str) -> None:
        orders = self._orders(door)
        fields = SUBMITTED if kind == "plan" else SHELL
        file = door.put("job.json", fields)
        read_as, found = was(file), self._order(file)
        if kind == "once more":
            drive(orders.take("copy.json", read_as, found), door.share.port, door.rig)
        file.write_text("the next")  # in place: the same number
        if kind == "refused":
            problems = (Problem("what", "where", "fix"),)
            drive(orders.refuse(file.name, json.dumps(fields).encode(), problems, read_as), door.share.port)
            assert door.read("failed", "job")["result"]["error"]
        elif kind == "removed":
            door.share.one(unlink("tasks/queue/job.json", was=read_as))
        else:
            drive(orders.take(file.name, read_as, found), door.share.port, door.rig)
            assert len(door.rig.batches) == 1
        assert file.read_text() == "the next"

    def test_a_file_that_stands_as_its_author_left_it_is_told_to_the_mirror(self, door: Door) -> None:
        orders, file = self._orders(door), door.put(f"{ID}.json", SHELL)
        drive(orders.take(file.name, was(file), self._order(file)), door.share.port, door.rig)
        assert orders.books.author(f"tasks/queue/{ID}.json") == was(file)[1:]
        assert orders.books.author(f"tasks/complete/{ID}.json") is None
        door.rig.end()
        drive(orders.tend(), door.share.port, door.rig)
        assert orders.books.author(f"tasks/queue/{ID}.json") is None

    def _orders(self, door: Door) -> Orders:
        books = Books(door.paths.state / "doors/alone")
        books.begin()
        return Orders(books, Taker(door.paths, Clock(), books.journal), door.paths, Clock())

    def _order(self, file: Path) -> PlanOrder | TaskOrder:
        found = read_order(file.name, file.read_bytes())
        assert isinstance(found, PlanOrder | TaskOrder)
        return found


class TestPlansThatAreStillBeingCopied:
    """The order comes before its plan, or while it is written: a share that is synchronized knows no order of files."""

    @pytest.fixture
    def door(self, share: Share, paths: RigPaths) -> Door:
        (share.root / "plans/p").mkdir(parents=True)
        share.port.call("intake", [])
        return Door(share, paths, Rig(), 3.6)  # so a plan rests 0.6 s, longer than a look takes

    @pytest.fixture
    def plan(self, door: Door) -> Path:
        file = door.root / "plans/p/plan.md"
        file.write_text(PLAN)
        return file

    def test_an_order_waits_for_its_plan(self, door: Door, plan: Path) -> None:
        plan.rename(plan.with_name("later"))
        door.put(f"{ID}.json", SUBMITTED)
        door.turning.looks(4, ["newcomers"])
        plan.with_name("later").rename(plan)
        assert door.until(lambda: door.read("processing"))

    def test_a_valid_beginning_of_a_plan_is_not_run(self, door: Door, plan: Path) -> None:
        text = PLAN.replace("## Inputs", "### two\n\n- **command**: `true`\n\n## Inputs").encode()
        begun = text.index(b"### two")
        plan.write_bytes(text[:begun].replace(b"{WORD}", b"w"))
        file = door.put(f"{ID}.json", SUBMITTED)
        os.utime(plan, ns=(file.stat().st_mtime_ns,) * 2)
        door.turning.looks(2, ["newcomers"])
        assert not door.rig.asked
        plan.write_bytes(text)
        assert door.until(lambda: door.read("processing"))
        assert door.receipt()["tasks"] == 2

    def test_a_script_that_is_still_written_is_waited_for(self, door: Door, plan: Path) -> None:
        os.utime(plan, (1.0, 1.0))
        script = plan.parent / "scripts/go.sh"
        script.parent.mkdir()
        script.write_text("echo half")
        door.put(f"{ID}.json", SUBMITTED)
        door.turning.looks(1, ["newcomers"])
        for n in range(3):
            script.write_text("echo half" * (n + 2))
            door.turning.looks(1, ["newcomers"])
            assert not door.rig.asked
        assert door.until(lambda: door.rig.submits("plan"))

    def test_many_orders_of_a_new_plan_wait_once(self, door: Door, plan: Path) -> None:
        now = [0.0]
        rest = Rest(Clock(lambda: now[0], lambda: 0.0, lambda _: 0.0), 1.0)
        ordered = plan.stat().st_mtime_ns
        said = []
        for now[0] in (0.0, 0.5, 1.0, 1.1, 1.2):
            said.append(drive(rest.at_rest("plans/p", ordered), door.share.port))
        assert said == [False, False, True, True, True]

    def test_one_that_was_there_before_is_not_waited_for(self, door: Door, plan: Path) -> None:
        rest = Rest(Clock(), 60.0)
        os.utime(plan, (1.0, 1.0))
        assert drive(rest.at_rest("plans/p", 10**10), door.share.port) is True
        os.utime(plan, (9.0, 9.0))
        assert drive(rest.at_rest("plans/p", 10**10), door.share.port) is False
        assert drive(rest.at_rest("plans/p", 10**10), door.share.port) is False


class TestOneTaskIdTwice:
    def test_two_files_at_once_are_one_order_and_a_refusal(self, door: Door) -> None:
        door.put("a.json", SUBMITTED)
        door.put("b.json", {**SUBMITTED, "config": {"WORD": "other"}})
        door.until(lambda: door.read("processing", "a") or door.read("processing", "b"))
        refused = door.until(lambda: door.read("complete", "a") or door.read("complete", "b"))
        assert "on its way" in refused["result"]["error"]
        assert len(door.rig.batches) == 1

    def test_a_refusal_stands_beside_the_task_of_that_name(self, door: Door) -> None:
        door.put(f"{ID}.json", {"task_id": ID, "mirrored_by": "rigbus"}, lane="complete")
        door.put(f"{ID}.json", {**SHELL, "command": ""})
        door.until(lambda: door.read("failed", f"{ID}-refused"))
        assert door.names("failed") == [f"{ID}-refused.json"]

    def test_a_refusal_is_sealed_so_that_it_goes_when_the_mended_task_is_drawn(self) -> None:
        assert sealed(refused_view(f"{ID}.json", SHELL, [Problem("what", "", "fix")], 0.0, 0.0).data)


class TestNames:
    def test_they_outlive_the_bridge_and_a_half_written_line(self, tmp_path: Path) -> None:
        books = Books(tmp_path)
        books.begin()
        books.name("B", "a", "id-1")
        books.name("B", "b", "id-2")
        with (tmp_path / "names.map").open("ab") as file:
            file.write(b'["B\\nc", "id')
        again = Books(tmp_path)
        again.begin()
        again.name("B", "d", "id-4")
        third = Books(tmp_path)
        third.begin()
        assert [third.named("B", name) for name in "abcd"] == ["id-1", "id-2", None, "id-4"]

    def test_the_file_of_names_stays_short(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queue_books, "MAX_NAMES", 10)
        books = Books(tmp_path)
        books.begin()
        for n in range(55):
            books.name("B", f"t{n}", f"id-{n}")
        assert len((tmp_path / "names.map").read_bytes().splitlines()) <= 20
        again = Books(tmp_path)
        again.begin()
        assert again.named("B", "t54") == "id-54"
        assert again.named("B", "t45") == "id-45"
        assert again.named("B", "t44") is None

    def test_a_batch_of_many_thousand_files_keeps_the_name_of_its_first(self) -> None:
        assert queue_books.MAX_NAMES >= 20_000


class TestKilledAtEveryStep:
    @pytest.mark.parametrize("step", range(1, 14))
    @pytest.mark.parametrize("kind", ["plan", "task"])
    def test_it_runs_exactly_once(self, share: Share, paths: RigPaths, kind: str, step: int) -> None:
        plan = share.root / "plans/p"
        plan.mkdir(parents=True)
        (plan / "plan.md").write_text(PLAN)
        fields = SUBMITTED if kind == "plan" else SHELL
        file = share.root / f"tasks/queue/{ID}.json"
        file.write_text(json.dumps(fields))
        rig = Rig()

        def orders() -> Orders:
            books = Books(paths.state / "doors/queue")
            books.begin()
            return Orders(books, Taker(paths, Clock(), books.journal), paths, Clock())

        first, found = orders(), read_order(file.name, file.read_bytes())
        assert isinstance(found, PlanOrder | TaskOrder)
        try:
            drive(first.take(file.name, was(file), found), share.port, rig, die_at=step)
        except Killed:
            pass
        second = orders()
        for entry in second.books.unsent():
            drive(second.go_on(entry), share.port, rig)
        if file.exists() and second.books.holder(file.name) is None:
            drive(second.take(file.name, was(file), found), share.port, rig)
        drive(second.tend(), share.port, rig)
        assert len(rig.batches) == 1
        assert (share.root / f"tasks/processing/{ID}.json").exists() == (kind == "plan")
        rig.end()
        drive(second.tend(), share.port, rig)
        assert not second.books.open
        assert not file.exists()
        if kind == "plan":
            assert json.loads((share.root / f"tasks/complete/{ID}.json").read_text())["result"]["success"]


class TestAPlanThatEndsWhileItIsBegun:
    @pytest.mark.parametrize("step", range(1, 14))
    def test_the_file_of_its_end_stays(self, share: Share, paths: RigPaths, step: int) -> None:
        """Its batch may be over before its file has come to processing: many others are before it."""
        plan = share.root / "plans/p"
        plan.mkdir(parents=True)
        (plan / "plan.md").write_text(PLAN)
        file = share.root / f"tasks/queue/{ID}.json"
        file.write_text(json.dumps(SUBMITTED))
        rig = Rig()
        books = Books(paths.state / "doors/queue")
        books.begin()
        orders = Orders(books, Taker(paths, Clock(), books.journal), paths, Clock())
        found = read_order(file.name, file.read_bytes())
        assert isinstance(found, PlanOrder)

        def look(n: int) -> None:
            if n == step:
                rig.end()
                drive(orders.tend(), share.port, rig)

        drive(orders.take(file.name, was(file), found), share.port, rig, between=look)
        rig.end()
        drive(orders.tend(), share.port, rig)
        assert not books.open
        lanes = {
            lane: os.listdir(share.root / "tasks" / lane) for lane in ("queue", "processing", "complete")
        }
        assert lanes == {"queue": [], "processing": [], "complete": [file.name]}


class TestALargeQueue:
    def test_a_look_shows_a_bounded_part_in_bounded_time(self, share: Share) -> None:
        queue = share.root / "tasks/queue"
        queue.mkdir(parents=True)
        for _ in range(3_000):
            name = str(uuid.uuid4())
            os.close(os.open(queue / f"{name[:14]}5{name[15:]}.json", os.O_CREAT))
        for n in range(700):
            os.close(os.open(queue / f"t{n:04}.json", os.O_CREAT))
        page = share.one(newcomers("tasks/queue", budget=500, doubts=100))
        assert (len(page["entries"]), len(page["doubtful"])) == (500, 100)
        rest = share.one(
            newcomers("tasks/queue", after=page["next"], doubts_after=page["doubts_next"], doubts=100)
        )
        assert [row[0] for row in rest["entries"]] == [f"t{n:04}.json" for n in range(500, 700)]
        assert rest["next"] == ""
        assert rest["doubtful"][0][0] > page["doubtful"][-1][0]
        assert page["took_s"] < 2.0
