"""The mirror's files, read as the earlier system's scripts read them."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import product
from typing import Any

import pytest
from folders import UUID, batch, task
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bridge.folder.contract import beats, layout, rows
from rigbus.bridge.folder.contract.layout import File
from rigbus.bridge.folder.logs.decisions import batch_decision, decision_line, task_decision

STATES = "waiting ready leased review failed done dead cancelled expired skipped".split()  # noqa: SIM905
T = 1_770_576_370.25  # 2026-02-08 18:46:10.25 UTC


def content(file: File | None) -> dict[str, Any]:
    assert file is not None
    parsed: dict[str, Any] = json.loads(file.data)
    return parsed


def holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(holds_null(v) for v in value.values())
    if isinstance(value, list):
        return any(holds_null(v) for v in value)
    return value is None


@pytest.mark.parametrize(
    ("state", "started", "lane", "status"),
    [
        ("waiting", False, "brain/private_tasks", "pending"),
        ("ready", False, "tasks/queue", "pending"),
        ("leased", False, "tasks/queue", "pending"),
        ("leased", True, "tasks/processing", "processing"),
        ("review", True, "tasks/processing", "processing"),
        ("done", True, "tasks/complete", "complete"),
        ("failed", True, "tasks/failed", "failed"),
        ("dead", True, "tasks/failed", "failed"),
        ("expired", False, "tasks/failed", "failed"),
        ("cancelled", False, "tasks/failed", "abandoned"),
        ("skipped", False, "tasks/failed", "abandoned"),
    ],
)
def test_each_state_has_its_lane_and_status(state: str, started: bool, lane: str, status: str) -> None:
    file = layout.task_file(task(state=state, started=started), 0)
    assert file is not None
    assert file.path == f"{lane}/{UUID}.json"
    assert content(file)["status"] == status


def test_a_state_without_a_lane_has_no_file() -> None:
    assert layout.task_file(task(state="unheard of"), 0) is None


@pytest.mark.parametrize(
    ("state", "result"), list(product(STATES, (None, {"exit": 3, "output": None}, [1, None])))
)
def test_no_file_ever_holds_a_null(state: str, result: Any) -> None:
    row = task(state=state, started=True, result=result, command=None, worker=None)
    row["class"] = None
    fields = content(layout.task_file(row, 3600))
    assert not holds_null({k: v for k, v in fields.items() if k != "result"})
    assert not any(v is None for v in fields.get("result", {}).values())
    assert fields["task_id"] == UUID
    assert "prompt" not in fields


@pytest.mark.parametrize("state", ["failed", "dead", "expired", "cancelled", "skipped"])
@pytest.mark.parametrize("error", [None, "", "exit 2: no such file"])
def test_a_bad_end_always_says_why(state: str, error: str | None) -> None:
    fields = content(layout.task_file(task(state=state, error=error), 0))
    assert isinstance(fields["result"]["error"], str)
    assert fields["result"]["error"] == (error or fields["result"]["error"]) != ""
    assert fields["result"]["success"] is False
    assert isinstance(fields["result"]["output"], str)


def test_timestamps_are_naive_local_time_in_the_readers_own_form() -> None:
    row = task(state="done", created_at=T, started_at=T + 1, ended_at=T + 2, changed_at=T + 2)
    file = layout.task_file(row, 3600)
    fields = content(file)
    assert fields["created_at"] == "2026-02-08T19:46:10.250000"
    for key in ("created_at", "started_at", "completed_at"):
        assert datetime.fromisoformat(fields[key]).tzinfo is None
    assert file is not None
    assert file.mtime_ns == 1_770_576_372_250_000_000


def test_a_shell_result_reads_as_the_earlier_workers_wrote_it() -> None:
    result = {"exit": 0, "output": "hello\n", "log": "logs/x.log", "duration_s": 1.5}
    fields = content(layout.task_file(task(state="done", worker="worker-1", attempt=2, result=result), 0))
    assert fields["result"] == {
        "success": True,
        "output": "hello\n",
        "action": "allowed",
        "return_code": 0,
        "log": "logs/x.log",
        "elapsed_seconds": 1.5,
        "duration_seconds": 1.5,
        "worker": "worker-1",
    }
    assert (fields["attempts"], fields["retry_count"], fields["timeout_seconds"]) == (2, 1, 1800)
    assert fields["depends_on"] == ["scan"]


def test_a_failed_shell_task_without_a_message_names_its_exit_code() -> None:
    fields = content(layout.task_file(task(state="dead", result={"exit": 7, "output": ""}), 0))
    assert fields["result"]["error"] == "exit 7"


def test_a_requeued_task_shows_nothing_of_its_last_attempt() -> None:
    row = task(state="ready", worker="worker-1", started_at=T, result={"exit": 1}, error="exit 1", attempt=1)
    fields = content(layout.task_file(row, 0))
    assert not {"assigned_to", "started_at", "completed_at", "result"} & set(fields)


def test_a_long_output_keeps_its_end() -> None:
    text = "x" * 100_000 + "THE END"
    out = content(layout.task_file(task(state="done", result={"exit": 0, "output": text}), 0))["result"][
        "output"
    ]
    assert out.endswith("THE END")
    assert len(out) < 70_000


def test_a_handler_s_value_becomes_text() -> None:
    row = task(state="done", type="translate", result={"words": ["ä", float("nan")]})
    assert content(layout.task_file(row, 0))["result"]["output"] == '{"words": ["ä", null]}'


@given(
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.floats() | st.text() | st.binary() | st.none()),
)
def test_any_name_and_value_give_valid_utf8_json(name: str, value: dict[str, Any]) -> None:
    row = task(key=name + "\udcff", state="done", type="handler", result=value)
    assert content(layout.task_file(row, 0))["name"] == name + "\udcff"


def test_state_json_holds_what_runs_and_client_batches_as_counts() -> None:
    file = layout.state_file(
        [
            batch(),
            batch(id="ended", state="complete"),
            batch(id="calls", kind="client", plan=None, plan_path=None),
            batch(id="shown", kind="client", plan=None, mirror=True),
        ],
        pid=1,
        host="rig",
        started_at=T,
        changed_at=T,
        utc_offset_s=0,
    )
    fields = content(file)
    assert list(fields["active_batches"]) == ["20260208_184610_a1b2c3", "shown"]
    assert fields["active_batches"]["20260208_184610_a1b2c3"]["total_tasks"] == 4
    assert fields["client_batches"] == {"calls": {"tasks": {"done": 3, "ready": 1}, "total_tasks": 4}}
    assert not holds_null(fields)


def test_a_batch_without_a_plan_has_no_folder() -> None:
    assert layout.batch_file(batch(plan=None), 0) is None
    file = layout.batch_file(batch(), 0)
    assert file is not None
    assert file.path == "plans/census/batches/20260208_184610_a1b2c3/batch.json"
    assert content(file)["progress"] == 0.75


def worker(**changes: Any) -> dict[str, Any]:
    row = {"id": "worker-1", "state": "busy", "classes": ["cpu"], "model": None, "heartbeat_age_s": 0.2}
    row |= {"tasks": [UUID], "gpu": None, "pid": 4, "host": "rig", "seen_at": T}
    return {**row, **changes}


def test_a_heartbeat_serves_both_generations_of_scripts() -> None:
    fields = content(beats.heartbeat_file(worker(), 0, {UUID: "measure_003"}))
    assert fields["timestamp"] == fields["last_updated"] == "2026-02-08T18:46:10.250000"
    assert fields["worker_id"] == fields["name"] == "worker-1"
    assert fields["state"] == "running"
    assert fields["model_loaded"] is False
    assert fields["active_tasks"] == [{"task_id": UUID, "task_name": "measure_003"}]
    assert "model" not in fields


PAIR = {
    "index": 3,
    "temperature_c": 61.0,
    "utilization_pct": 87.0,
    "power_w": 101.5,
    "vram_used_mb": 5120,
    "vram_total_mb": 6144,
    "cards": [
        {"index": 3, "temperature_c": 61.0, "utilization_pct": 87.0, "throttle": ["power cap"]},
        {
            "index": 0,
            "uuid": "GPU-0",
            "temperature_c": 79.5,
            "power_w": 99.0,
            "throttle": ["thermal", "power cap"],
        },
    ],
}


def test_a_heartbeat_has_the_readings_of_the_workers_cards_under_the_names_that_scripts_know() -> None:
    row = rows.worker_row("worker-1", {"state": "busy", "gpu": PAIR}, None, T)
    fields = content(beats.heartbeat_file(row, 0))
    known = {
        name: fields[name]
        for name in ("gpu_id", "gpu_util_percent", "power_draw_w", "vram_used_mb", "vram_total_mb")
    }
    assert known == {
        "gpu_id": 3,
        "gpu_util_percent": 87.0,
        "power_draw_w": 101.5,
        "vram_used_mb": 5120,
        "vram_total_mb": 6144,
    }
    assert fields["temperature_c"] == 79.5, "alarms go by the hottest of a pair"
    assert fields["thermal_reasons"] == ["thermal"]
    assert set(fields["gpus"]) == {"3", "0"}
    assert (fields["gpus"]["0"]["gpu_temp_c"], fields["gpus"]["0"]["power_w"]) == (79.5, 99.0)


@pytest.mark.parametrize(
    "gpu",
    [
        *(None, 7, "hot", [], {}, {"cards": 3}, {"cards": [None, 7]}, [{"index": 1, "temperature_c": "x"}]),
        {"throttle": 5, "temperature_c": None},
        {"throttle": [None, 7, {}], "cards": [{"throttle": "thermal"}]},
    ],
)
def test_a_heartbeat_that_says_odd_things_of_its_gpu_is_drawn_nevertheless(gpu: Any) -> None:
    row = rows.worker_row("worker-1", {"state": "idle", "gpu": gpu}, None, T)
    fields = content(beats.heartbeat_file(row, 0))
    assert fields["worker_id"] == "worker-1"
    assert "temperature_c" not in fields


def test_a_status_changes_only_with_the_worker_not_with_each_heartbeat() -> None:
    one = beats.status_file(worker(seen_at=T, heartbeat_age_s=0.1), 0, changed_at=T)
    two = beats.status_file(worker(seen_at=T + 9, heartbeat_age_s=0.7), 0, changed_at=T)
    assert one == two


def test_a_decision_line_shows_its_time_in_the_last_eight_characters() -> None:
    decision = task_decision(None, task())
    assert decision is not None
    line = json.loads(decision_line(T, decision, 0))
    assert line["timestamp"][-8:] == "18:46:10"
    assert line["details"]["task_id"] == UUID[:8]
    assert not holds_null(line)


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (None, {}, "TASK_CREATED"),
        ({"state": "waiting"}, {}, "TASK_RELEASED"),
        ({}, {"state": "leased", "started": True}, "SHELL_EXECUTE"),
        ({"state": "leased"}, {"state": "leased", "started": True}, "SHELL_EXECUTE"),
        ({}, {"state": "leased"}, None),
        ({"state": "leased", "started": True}, {"state": "leased", "started": True}, None),
        ({"state": "leased", "started": True}, {"state": "done"}, "SHELL_COMPLETE"),
        ({"state": "leased", "started": True}, {"state": "ready", "error": "exit 1"}, "RETRY"),
        ({"state": "leased", "started": True}, {"state": "dead"}, "ABANDON"),
        ({"state": "leased"}, {"state": "failed"}, "SHELL_FAILED"),
        ({"state": "leased"}, {"state": "dead", "error_class": "definition"}, "TASK_DEFINITION_ERROR"),
        ({"state": "waiting"}, {"state": "skipped"}, "ABANDON"),
        ({"state": "leased"}, {"state": "done", "type": "expand"}, "FOREACH_EXPAND"),
    ],
)
def test_a_change_has_the_word_that_the_scripts_know(before: Any, after: Any, word: str | None) -> None:
    decision = task_decision(None if before is None else task(**before), task(**after))
    assert (decision and decision.type) == word


def test_the_line_of_a_new_task_says_how_its_class_was_inferred() -> None:
    said = "inferred task_class='script' by the model judge: it trains"
    decision = task_decision(None, task(**{"class": "script", "fix_applied": said}))
    assert decision is not None
    assert decision.message.endswith(f" (script), {said}")


@pytest.mark.parametrize(("before", "after"), list(product([None, *STATES], STATES)))
def test_every_pair_of_states_gives_a_line_or_none(before: str | None, after: str) -> None:
    was = None if before is None else task(state=before, started=True)
    decision = task_decision(was, task(state=after, started=True))
    assert decision is None or decision_line(T, decision, 0).endswith(b"}\n")


def test_a_batch_s_end_is_one_line() -> None:
    end = batch_decision(batch(), batch(state="complete"))
    assert end is not None
    assert end.type == "BATCH_COMPLETE"
    assert batch_decision(batch(state="complete"), batch(state="complete")) is None
    new = batch_decision(batch(state="complete"), batch(state="revised", revision=2, reason="a typing error"))
    assert new is not None and new.type == "PLAN_REVISED" and "revision 2: a typing error" in new.message
