"""The contract of the shared folder, row by row: what the earlier system's two generations of scripts need of each file."""

from __future__ import annotations

import json
import os
import re
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from folders import UUID, Share, batch, task
from worlds import AT, BATCH, Drawn, event, raw_task

from rigbus.bridge.folder.contract import layout, rows
from rigbus.bridge.folder.logs.decisions import decision_line, task_decision
from rigbus.bus.wire import pack

T = 1_770_576_370.123456
SAID: dict[str, Any] = {
    "executor": "worker",
    "depends_on": ["scan"],
    "command": "python3 measure.py",
    "prompt": "sum it up",
    "context": "a list",
    "foreach": "{BATCH_PATH}/list.json:items",
    "fix_applied": "inferred task_class='cpu' from command",
    "batch_size": 4,
    "item_ids": ["a", "b"],
    "llm_model": "m.gguf",
    "llm_min_tier": 2,
    "llm_placement": "single_gpu",
    "timeout_s": 12.5,
}


def shown(state: str = "dead", **changes: Any) -> dict[str, Any]:
    """A task's file as it is drawn from a row of the broker."""
    raw = raw_task(7, state, attempt=2, worker="worker-1", created_at=T, started_at=T + 1, ended_at=T + 2)
    raw |= {"meta": SAID, "error": "exit 3"} | changes
    row = rows.task_row(raw, pack({"exit": 3, "output": "out", "duration_s": 1.0}), batch(state="running"))
    file = layout.task_file(row, 0.0)
    assert file is not None
    fields: dict[str, Any] = json.loads(file.data)
    return fields


@pytest.fixture
def drawn(share: Share, tmp_path: Path) -> Drawn:
    """A mirror of one task in each lane, with a worker."""
    made = Drawn(share, tmp_path)
    states = ("waiting", "ready", "leased", "done", "dead")
    for n, state in enumerate(states, 1):
        ended = {"ended_at": AT + n} if state in ("done", "dead") else {}
        made.world.put(raw_task(n, state, started=state == "leased", started_at=AT, worker="w", **ended))
    made.world.workers = [{"id": "w", "state": "busy", "classes": ["cpu"]}]
    made.beats = [("w", {"state": "busy", "pid": 7, "running": [{"id": "x", "name": "one"}]})]
    made.pass_time(1.0)
    id_ = raw_task(2)["id"]
    made.mirror.event(event(1, "task.shell.started", id_, worker="w"))
    made.pass_time(1.0)
    return made


def files_of(drawn: Drawn) -> list[Path]:
    found = [p for p in drawn.share.root.rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert len(found) > 8
    return found


# -- 1.0 -------------------------------------------------------------------------------------------------------


def _naive(drawn: Drawn) -> None:
    iso = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?\Z")
    for path in files_of(drawn):
        for found in re.findall(r'"(\d{4}-\d\d-\d\dT[^"]*)"', path.read_text()):
            assert iso.match(found), (path, found)
            datetime.now() - datetime.fromisoformat(found)


def _whole_seconds(drawn: Drawn) -> None:
    for line in (drawn.share.root / layout.DECISIONS_LOG).read_text().splitlines():
        assert re.fullmatch(r"\d\d:\d\d:\d\d", json.loads(line)["timestamp"][-8:])


def _the_rigs_clock(drawn: Drawn) -> None:
    beat = drawn.read("workers/w/heartbeat.json")
    assert datetime.fromisoformat(beat["last_updated"]) == datetime.fromisoformat(beat["as_of"])


def _names(drawn: Drawn) -> None:
    for lane in layout.LANES:
        for name in drawn.files(lane):
            assert drawn.read(f"{lane}/{name}")["task_id"] + ".json" == name


def _temp_names(drawn: Drawn) -> None:
    # A directory where a file belongs keeps the temporary file from being renamed: what is left over would show.
    for path in drawn.share.root.rglob("*~"):
        raise AssertionError(f"left over: {path}")
    from rigbus.bridge.folder.share.beneath import temp_name

    for name in (f"{UUID}.json", "x" * 250 + ".json"):
        assert not temp_name(name).endswith((".json", ".lock"))
        assert temp_name(name).startswith(".")


def _no_null(drawn: Drawn) -> None:
    for path in files_of(drawn):
        assert "null" not in path.read_text(), path


def _task_id(drawn: Drawn) -> None:
    for lane in layout.LANES:
        assert len(drawn.files(lane)) >= (lane != layout.QUEUE)
        assert all(drawn.read(f"{lane}/{name}")["task_id"] for name in drawn.files(lane))


def _error(drawn: Drawn) -> None:
    (name,) = drawn.files(layout.FAILED)
    assert drawn.read(f"{layout.FAILED}/{name}")["result"]["error"]


def _mtimes(drawn: Drawn) -> None:
    for lane, n in ((layout.COMPLETE, 4), (layout.FAILED, 5)):
        path = drawn.share.root / lane / f"{raw_task(n)['id']}.json"
        assert path.stat().st_mtime == AT + n
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in files_of(drawn) if "tasks/" in str(p)}
    for n in range(2, 6):
        drawn.mirror.event(event(n, "task.shell.ready", raw_task(n)["id"]))
    drawn.pass_time(15.0)
    again = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in before}
    ended = [p for p in before if "complete" in str(p) or "failed" in str(p)]
    assert all(before[p] == again[p] for p in ended)


def _folders(drawn: Drawn) -> None:
    for folder in (*layout.LANES, "logs", "signals", "inbox", "workers", "plans"):
        assert (drawn.share.root / folder).is_dir()


def _little_churn(drawn: Drawn) -> None:
    """A file that moves is written where it goes before it leaves where it was, and only then."""
    before = drawn.mirror.counts()
    drawn.pass_time(5.0)
    after = drawn.mirror.counts()
    assert after["removes"] == before["removes"]
    assert after["changes"] == before["changes"]


def _modes(drawn: Drawn) -> None:
    for path in drawn.share.root.rglob("*"):
        if path.name.startswith("."):
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o775 if path.is_dir() else 0o664), (path, oct(mode))


RULES = [
    ("Timestamps: naive local ISO-8601", _naive),
    ("In brain_decisions.log use seconds precision", _whole_seconds),
    ("RPi and rig clocks must agree", _the_rigs_clock),
    ("Task file name = <task_id>.json", _names),
    ("Bridge temp files must not match *.json nor *.lock", _temp_names),
    ("Never write null", _no_null),
    ("task_id is mandatory in every task file", _task_id),
    ("Write result.error (string) on failure", _error),
    ("Preserve mtimes", _mtimes),
    ("Create all dirs before the RPi scripts run", _folders),
    ("A file vanishing between glob and stat: keep file churn low", _little_churn),
    ("Files and dirs group-writable (0664/0775)", _modes),
]


@pytest.mark.parametrize("rule", [r for _, r in RULES], ids=[name for name, _ in RULES])
def test_each_rule_for_every_file(drawn: Drawn, rule: Any) -> None:
    rule(drawn)


# -- 1.1 -------------------------------------------------------------------------------------------------------

LANES = [
    ("tasks/queue", "ready", "pending"),
    ("tasks/processing", "leased", "processing"),
    ("tasks/complete", "done", "complete"),
    ("tasks/failed", "dead", "failed"),
    ("tasks/failed", "cancelled", "abandoned"),
    ("brain/private_tasks", "waiting", "pending"),
]


@pytest.mark.parametrize(("lane", "state", "status"), LANES, ids=[f"{a}: {c}" for a, _, c in LANES])
def test_each_lane_has_its_status(lane: str, state: str, status: str) -> None:
    row = rows.task_row(raw_task(1, state, started=state == "leased"), b"", None)
    file = layout.task_file(row, 0.0)
    assert file is not None
    assert (file.path.rpartition("/")[0], json.loads(file.data)["status"]) == (lane, status)


FIRST = [
    ("task_id", r"00000000-0000-0000-0000-000000000007"),
    ("type", "shell"),
    ("command", "python3 measure.py"),
    ("prompt", "sum it up"),
    ("context", "a list"),
    ("batch_id", BATCH),
    ("name", "t7"),
    ("priority", 5),
    ("task_class", "cpu"),
    ("depends_on", ["scan"]),
    ("executor", "worker"),
    ("status", "failed"),
    ("created_at", "2026-02-08T18:46:10.123456"),
    ("created_by", "brain"),
    ("retry_count", 1),
    ("assigned_to", "worker-1"),
    ("started_at", "2026-02-08T18:46:11.123456"),
    ("completed_at", "2026-02-08T18:46:12.123456"),
    ("result", dict),
    ("foreach", "{BATCH_PATH}/list.json:items"),
    ("fix_applied", SAID["fix_applied"]),
    ("plan_path", "/rig/views/b"),
]
G2 = [
    ("attempts", 2),
    ("workers_attempted", ["worker-1"]),
    ("first_attempted_at", "2026-02-08T18:46:11.123456"),
    ("last_attempt_at", "2026-02-08T18:46:11.123456"),
    ("batch_priority", "normal"),
    ("preemptible", False),
    ("batch_size", 4),
    ("item_ids", ["a", "b"]),
    ("llm_min_tier", 2),
    ("llm_model", "m.gguf"),
    ("llm_placement", "single_gpu"),
    ("batch_path", "/share/plans/census/batches/b"),
    ("timeout_seconds", 13),
]
OURS = [("mirrored_by", "rigbus"), ("seq", 7), ("as_of", "2026-02-08T18:46:12.123456")]


@pytest.mark.parametrize(("field", "value"), FIRST + G2 + OURS, ids=lambda v: v if isinstance(v, str) else "")
def test_each_field_of_a_task(field: str, value: Any) -> None:
    found = shown()[field]
    assert found == value if value is not dict else isinstance(found, dict)


@pytest.mark.parametrize("field", ["definition_error", "error_type"])
def test_each_field_of_a_definition_error(field: str) -> None:
    row = rows.task_row(raw_task(1, "dead", error="no such field"), b"", None) | {"error_class": "definition"}
    file = layout.task_file(row, 0.0)
    assert file is not None
    assert json.loads(file.data)[field] in ("definition", "no such field")


def test_a_task_of_one_item_names_it() -> None:
    fields = shown(meta={"item_id": "i7", "command": "true"})
    assert (fields["batch_size"], fields["item_ids"]) == (1, ["i7"])


def test_an_order_for_a_model_is_a_command_with_its_target() -> None:
    fields = shown(type="load_llm", meta={"model": "m-7b", "executor": "brain"})
    assert (fields["command"], fields["target_model"]) == ("load_llm", "m-7b")


@pytest.mark.parametrize("earlier", [None, 7, [], [None, 7, {}], [{"n": "x"}]])
def test_odd_attempts_are_no_harm(earlier: Any) -> None:
    fields = shown(earlier=earlier)
    assert fields["workers_attempted"] == ["worker-1"]
    assert "requeued_at" not in fields


def test_prompt_and_context_are_left_out_of_what_is_no_model_s_task() -> None:
    fields = shown(meta={"command": "true"})
    assert not {"prompt", "context", "llm_model", "item_ids", "foreach"} & fields.keys()


@pytest.mark.parametrize("meta", [None, 7, {"prompt": 3, "context": [], "command": {}, "file_id": "../x"}])
def test_odd_metadata_is_no_harm(meta: Any) -> None:
    fields = shown(meta=meta)
    assert fields["task_id"] == raw_task(7)["id"]
    assert not {"prompt", "context", "command"} & fields.keys()


def test_a_task_from_a_file_keeps_the_id_that_its_author_gave_it() -> None:
    fields = shown(meta={"file_id": UUID, "created_by": "submit"})
    assert (fields["task_id"], fields["created_by"]) == (UUID, "submit")


# -- 1.2 -------------------------------------------------------------------------------------------------------


def result(state: str, value: Any, **changes: Any) -> dict[str, Any]:
    row = task(state=state, worker="worker-1", attempt=1, result=value) | changes
    found: dict[str, Any] = layout.result_object(row)
    return {k: v for k, v in found.items() if v is not None}


SHELL = {"exit": 0, "output": "hello\n", "duration_s": 1.5}
PRODUCERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "worker shell",
        result("done", SHELL),
        {"success": True, "output": "hello\n", "action": "allowed", "worker": "worker-1"},
    ),
    (
        "worker shell, rc != 0",
        result("dead", {"exit": 3, "output": "out\n[stderr: oh]"}, error="exit 3"),
        {"success": False, "output": "out\n[stderr: oh]", "reason": "exit 3", "error": "exit 3"},
    ),
    (
        "worker shell, timed out",
        result("dead", {"exit": None, "output": ""}, error="Command timed out (5s)"),
        {"success": False, "reason": "Command timed out (5s)"},
    ),
    (
        "worker LLM",
        result("done", {"text": "so", "tokens": 9, "model": "m", "duration_s": 2.0}, type="generate"),
        {"success": True, "output": "so", "tokens": 9, "duration_seconds": 2.0, "model": "m"},
    ),
    (
        "worker LLM, as our models answer",
        result(
            "done",
            {
                "text": "so",
                "model": "m",
                "usage": {"completion_tokens": 9},
                "timings": {"prefill_s": 0.5, "decode_s": 2.0},
            },
            type="generate",
        ),
        {"success": True, "output": "so", "tokens": 9, "duration_seconds": 2.5, "model": "m"},
    ),
    (
        "worker shell, as our worker says that its time is over",
        result(
            "dead", {"exit": None, "output": ""}, error="timed out after 5 s: last line", error_class="task"
        ),
        {"action": "allowed", "reason": "Command timed out (5s)", "error": "timed out after 5 s: last line"},
    ),
    (
        "worker shell, never run",
        result("dead", None, error="no field x", error_class="definition"),
        {"action": "blocked", "reason": "no field x", "error_type": "definition"},
    ),
    (
        "worker resource, loaded",
        result("done", None, type="load_llm"),
        {"success": True, "model_loaded": True, "worker": "worker-1"},
    ),
    (
        "worker resource, unloaded",
        result("done", None, type="unload_llm"),
        {"success": True, "model_loaded": False},
    ),
    (
        "worker LLM, failed",
        result("dead", None, type="generate", error="the model host died"),
        {"success": False, "error": "the model host died", "worker": "worker-1"},
    ),
    (
        "brain shell",
        result("done", SHELL, executor="brain"),
        {"success": True, "return_code": 0, "handler": "brain", "elapsed_seconds": 1.5},
    ),
    (
        "brain shell, failed",
        result("dead", {"exit": 4}, executor="brain", error="exit 4", error_class="task"),
        {"error": "exit 4", "error_type": "task", "handler": "brain"},
    ),
    (
        "definition error",
        result("dead", None, error="no field x", error_class="definition"),
        {"success": False, "error": "no field x", "error_type": "definition"},
    ),
    (
        "G2 others: batch_aborted",
        result("cancelled", None, error="the batch was cancelled"),
        {"success": False, "error": "the batch was cancelled", "error_type": "cancelled"},
    ),
]


@pytest.mark.parametrize(("found", "wanted"), [p[1:] for p in PRODUCERS], ids=[p[0] for p in PRODUCERS])
def test_each_producer_s_result(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found | wanted == found
    assert isinstance(found["output"], str)


# -- state, heartbeats, log --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    ["plan", "display_name", "plan_dir", "started_at", "total_tasks", "config", "priority", "preemptible"],
)
def test_each_field_of_an_active_batch(drawn: Drawn, field: str) -> None:
    drawn.world.batches[0]["spec"]["config"] = {"LIMIT": 3}
    drawn.pass_time(12.0)
    assert field in drawn.read("brain/state.json")["active_batches"][BATCH]


def test_an_active_batch_without_a_plan_has_them_too_for_readers_take_them_for_granted(drawn: Drawn) -> None:
    """Tasks that somebody wrote into the queue are a batch that has no plan."""
    drawn.world.batches[0] |= {"kind": "client", "mirror": True, "spec": None}
    drawn.pass_time(12.0)
    found = drawn.read("brain/state.json")["active_batches"][BATCH]
    assert {"plan", "display_name", "plan_dir", "batch_dir", "config"} <= found.keys()
    assert None not in found.values()


@pytest.mark.parametrize("file", ["brain/state.json", "workers/w/heartbeat.json", "workers/w/status.json"])
def test_each_snapshot_says_how_old_it_is_and_may_become(drawn: Drawn, file: str) -> None:
    found = drawn.read(file)
    assert found["mirrored_by"] == "rigbus"
    assert isinstance(found["seq"], int)
    assert datetime.fromisoformat(found["as_of"]).timestamp() - os.stat(drawn.share.root / file).st_mtime < 1
    assert found["stale_after_s"] == layout.STALE_AFTER_S
    first = found["as_of"]
    for _ in range(4):
        drawn.beats = [("w", {"state": "busy", "pid": 7, "running": []})]
        drawn.pass_time(layout.STALE_AFTER_S / 3 + 1)
        later = drawn.read(file)["as_of"]
        assert later > first, "a reader would take the bridge for dead"
        first = later


def test_the_batch_s_file_has_its_stamps_and_none_to_grow_old_by_when_it_has_ended() -> None:
    live, over = (
        layout.batch_file(batch(), 0.0, T),
        layout.batch_file(batch(ended_at=T, state="complete"), 0.0),
    )
    assert live is not None
    assert over is not None
    assert json.loads(live.data)["stale_after_s"] == layout.BATCH_STALE_S
    assert "stale_after_s" not in json.loads(over.data)
    assert json.loads(over.data)["seq"] == 40


def test_the_log_s_line_is_json_with_what_watch_prints() -> None:
    decision = task_decision(None, task())
    assert decision is not None
    line = json.loads(decision_line(T, decision, 0.0, 12))
    assert {"timestamp", "type", "message", "details"} <= line.keys()
    assert line["seq"] == 12
    assert "seq" not in line["details"], "watch prints whatever stands there"
