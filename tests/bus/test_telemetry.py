"""Telemetry models and their committed schemas."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from rigbus.bus.telemetry import FOLDER, RigStatus, WorkerTelemetry, export_schemas, file_name, write_schemas


@pytest.mark.parametrize("name", sorted(export_schemas()))
def test_the_committed_schema_is_the_models(name: str) -> None:
    committed = json.loads((FOLDER / file_name(name)).read_text(encoding="utf-8"))
    assert committed == export_schemas()[name], "renew it: python -m rigbus.bus.telemetry"


def test_no_schema_file_is_left_over() -> None:
    assert {p.name for p in FOLDER.iterdir()} == {file_name(n) for n in export_schemas()}


def test_schemas_have_an_id_with_the_major_version() -> None:
    for name, schema in export_schemas().items():
        assert schema["$schema"].endswith("2020-12/schema")
        assert f".v{name.partition('/')[2]}." in schema["$id"]


def test_written_schemas_are_json(tmp_path: Path) -> None:
    files = write_schemas(tmp_path / "out")
    assert [json.loads(f.read_text())["title"] for f in files] == [
        "WorkerTelemetry",
        "RigStatus",
        "TapRecord",
        "GpuSample",
        "Escalation",
        "Answer",
        "AlertFile",
    ]


def test_a_heartbeat_needs_little_and_keeps_what_it_does_not_know() -> None:
    beat = WorkerTelemetry.model_validate(
        {"schema": "rigbus.telemetry/1", "worker": "w", "pid": os.getpid(), "at": time.time(), "new_field": 1}
    )
    assert beat.gpu is None
    assert beat.model_dump(by_alias=True)["new_field"] == 1
    assert beat.model_dump(by_alias=True)["schema"] == "rigbus.telemetry/1"


def test_a_gpu_that_tells_nothing_is_valid() -> None:
    beat = WorkerTelemetry.model_validate({"worker": "w", "pid": 1, "at": 0.0, "gpu": {}})
    assert beat.gpu is not None
    assert beat.gpu.vram_used_mb is None


def test_another_major_version_is_refused() -> None:
    with pytest.raises(ValidationError):
        WorkerTelemetry.model_validate({"schema": "rigbus.telemetry/2", "worker": "w", "pid": 1, "at": 0.0})


def test_an_empty_rig_has_a_status() -> None:
    status = RigStatus().model_dump(by_alias=True)
    assert status["schema"] == "rigbus.status/1"
    assert set(status["tasks"]) == {
        *("waiting", "ready", "leased", "review", "failed"),
        *("done", "dead", "cancelled", "expired", "skipped"),
    }
