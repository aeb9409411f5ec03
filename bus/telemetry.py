"""What processes publish about themselves, as pydantic models with JSON Schema 2020-12.

The broker never decodes these (heartbeats are hints), so nothing in its loop needs this file; it is for readers:
the page, the mirror, other people's programs. Inside a major version fields are only added, so unknown ones are allowed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from .escalation import Answer, Escalation
from .shapes import Open

SCHEMA_BASE: Final = "https://rigbus.invalid/schemas/"
FOLDER: Final = Path(__file__).parent / "schemas"


class GpuProcess(Open):
    """A process that computes on a card, and what it takes of its memory."""

    pid: int
    vram_used_mb: int = Field(ge=0)


class GpuReading(Open):
    """One GPU as its driver reports it; a field that the driver does not know is null."""

    index: int | None = None
    uuid: str | None = None
    name: str | None = None
    vram_used_mb: float | None = Field(default=None, ge=0)
    vram_total_mb: float | None = Field(default=None, ge=0)
    utilization_pct: float | None = Field(default=None, ge=0, le=100)
    temperature_c: float | None = None
    power_w: float | None = Field(default=None, ge=0)
    power_limit_w: float | None = Field(default=None, ge=0)
    clock_mhz: float | None = Field(default=None, ge=0)
    fan_pct: float | None = None
    throttle: list[str] | None = Field(default=None, description="reasons why the clock is lowered now")
    pcie_group: str | None = None
    pci_bus: str | None = None
    pids: list[int] | None = Field(default=None, description="processes that compute on it")
    processes: list[GpuProcess] | None = Field(
        default=None, description="those of pids whose memory the driver tells"
    )
    error: str | None = Field(
        default=None, description="why there are no readings; the numbers are then missing"
    )


class WorkerGpu(GpuReading):
    """A worker's first card, and all of its cards in ``cards``."""

    cards: list[GpuReading] | None = None
    source: str | None = Field(default=None, description="nvml, nvidia-smi, synthetic, file")
    age_s: float | None = Field(default=None, ge=0, description="since the cards were read")
    stale: bool | None = Field(
        default=None, description="true: the driver has not answered for three intervals"
    )


class RunningTask(Open):
    """A task that a worker runs."""

    id: str
    name: str = ""
    elapsed_s: float = Field(default=0.0, ge=0)


class PlacementReading(Open):
    """Which model a model worker holds, or how far it is on its way there."""

    generation: int = Field(default=0, ge=0, description="of the last placement that it has heard of")
    phase: str = Field(default="cold", description="cold, asking, loading, hot, emptying, unloading, failed")
    model: str | None = None
    share: float = Field(default=0.0, ge=0, le=1, description="of the loading")
    since_s: float = Field(default=0.0, ge=0)
    message: str = ""
    vram_mb: int | None = Field(
        default=None, ge=1, description="the most MiB that the hot model was measured to take of its cards"
    )
    freed_mb: int | None = Field(
        default=None, ge=1, description="MiB that were measured to be back when the last model went"
    )


class WorkerTelemetry(Open):
    """A worker's heartbeat, once a second on ``hb.<worker>``."""

    schema_: Literal["rigbus.telemetry/1"] = Field(default="rigbus.telemetry/1", alias="schema")
    worker: str
    pid: int
    host: str = ""
    at: float = Field(description="Unix seconds of the worker's clock")
    uptime_s: float = Field(default=0.0, ge=0)
    state: str = Field(default="idle", description="idle, busy, draining, paused, held, starting")
    held: str | None = Field(default=None, description="why it takes no work at present: a hot card")
    slots: int = Field(default=1, ge=0)
    credit: int = Field(default=0, ge=0)
    running: list[RunningTask] = Field(default_factory=list)
    model: str | None = None
    load: float | None = Field(default=None, ge=0, description="1 minute load average of the machine")
    rss_bytes: int | None = Field(default=None, ge=0)
    gpu: WorkerGpu | None = None
    placement: PlacementReading | None = None


class TaskCounts(Open):
    """Tasks by state."""

    waiting: int = 0
    ready: int = 0
    leased: int = 0
    review: int = 0
    failed: int = 0
    done: int = 0
    dead: int = 0
    cancelled: int = 0
    expired: int = 0
    skipped: int = 0


class WorkerQuarantine(Open):
    """Why a worker gets no work for a while. Times are Unix seconds."""

    why: str
    since_at: float
    until_at: float
    tasks: list[str] = Field(default_factory=list, description="ids of the tasks that crashed there")


class WorkerStatus(Open):
    """A worker as the broker sees it."""

    id: str
    state: str
    held: str | None = Field(default=None, description="why it takes no work at present: a hot card")
    quarantine: WorkerQuarantine | None = Field(
        default=None, description="after crashes of different tasks; null: none"
    )
    unkillable: list[str] = Field(
        default_factory=list, description="processes that hang in the kernel and keep its slots"
    )
    vram_mb: int | None = Field(
        default=None, ge=0, description="MiB that its tasks may take; null: not limited"
    )
    vram_leased_mb: int = Field(default=0, ge=0, description="MiB that the tasks it holds may take")
    classes: list[str] = Field(default_factory=list)
    model: str | None = None
    heartbeat_age_s: float | None = None
    tasks: list[str] = Field(default_factory=list, description="ids of the tasks it holds")
    gpu: WorkerGpu | None = None
    placement: PlacementReading | None = None


class BatchStatus(Open):
    """A batch with the counts of its tasks."""

    id: str
    plan: str | None = None
    state: Literal["planning", "running", "complete", "failed", "cancelled"]
    tasks: TaskCounts
    progress: float = Field(ge=0, le=1)
    escalations: int = Field(default=0, ge=0, description="that nobody has answered yet")
    revision: int | None = Field(default=None, ge=1, description="of its plan; null where that is not known")


class DiskStatus(Open):
    """Room for the rig's state. Bytes."""

    level: Literal["ample", "low", "full"] = Field(
        description="low: no new tasks are taken; full: nor are accepted ones started; results are always recorded"
    )
    free_bytes: int = Field(ge=0)
    low_bytes: int = Field(ge=0, description="wanted free before new tasks are taken")
    ballast_bytes: int = Field(default=0, ge=0, description="kept for results; 0 while it is given up")
    folder: str = ""


class LimitStatus(Open):
    """A bound and how far it is reached."""

    used: int = Field(ge=0)
    bound: int = Field(ge=0)


class RefusalStatus(Open):
    """A peer that was turned away or cut off of late."""

    kind: str = Field(description="version, flood or connections")
    who: str
    why: str
    fix: str = ""
    since_at: float = 0.0
    last_at: float = 0.0
    times: int = 1


class AlertCounts(Open):
    """Alerts that are not over, by state, and the raised ones by severity."""

    raised: int = 0
    acked: int = 0
    info: int = 0
    warning: int = 0
    critical: int = 0


class AlertFile(Open):
    """One file of `alerts/` in the shared folder, and a row of `rigbus alerts list`. Times are naive local ISO-8601."""

    schema_: Literal["rigbus.alert/1"] = Field(default="rigbus.alert/1", alias="schema")
    key: str = Field(description="the rule and what it is about; the file's name")
    rule: str
    severity: Literal["info", "warning", "critical"]
    state: Literal["raised", "acked", "cleared"]
    title: str
    subject: str | None = Field(default=None, description="worker, batch or card that it is about")
    fix: str | None = Field(default=None, description="what to type, or to look at")
    details: dict[str, Any] = Field(default_factory=dict)
    times: int = Field(default=1, ge=1, description="how often it was raised")
    first_at: str | None = None
    raised_at: str | None = None
    acked_at: str | None = None
    cleared_at: str | None = None
    by: str | None = Field(default=None, description="who acked it")
    note: str | None = None
    why: str | None = Field(default=None, description="of its end")


class RigStatus(Open):
    """``rigbus status --json``."""

    schema_: Literal["rigbus.status/1"] = Field(default="rigbus.status/1", alias="schema")
    as_of: float | str | None = None
    seq: int = 0
    broker: dict[str, Any] = Field(default_factory=dict)
    brain: dict[str, Any] = Field(default_factory=dict)
    bridge: dict[str, Any] = Field(default_factory=dict)
    workers: list[WorkerStatus] = Field(default_factory=list)
    tasks: TaskCounts = Field(default_factory=TaskCounts)
    batches: list[BatchStatus] = Field(default_factory=list)
    disk: DiskStatus | None = Field(default=None, description="of the state folder; null in file mode")
    limits: dict[str, LimitStatus] = Field(default_factory=dict, description="what may fill up, by name")
    alerts: AlertCounts | None = Field(default=None, description="null: no bridge has said any yet")
    refused: list[RefusalStatus] = Field(
        default_factory=list, description="peers that were turned away in the last two minutes"
    )


class GpuTask(Open):
    """A task that may be what loads a card."""

    id: str
    name: str = ""
    worker: str = ""
    elapsed_s: float | None = Field(default=None, ge=0)


class GpuCard(GpuReading):
    """A card in a sample; ``workers`` and ``tasks`` only where a rig answered."""

    workers: list[str] | None = None
    tasks: list[GpuTask] | None = None


class GpuSample(Open):
    """All cards at one moment: a line of ``rigbus gpu --json`` and of ``--log``."""

    schema_: Literal["rigbus.gpu/1"] = Field(default="rigbus.gpu/1", alias="schema")
    at: float = Field(description="Unix seconds when the cards were read")
    host: str = ""
    source: str = Field(
        default="", description="nvml, nvidia-smi, synthetic, file, or rig: by its workers' heartbeats"
    )
    stale: bool = False
    cards: list[GpuCard] = Field(default_factory=list)


class TapRecord(Open):
    """One line of ``rigbus sniff --json``."""

    ts: str = Field(description="RFC 3339, UTC, milliseconds")
    seq: int | None = None
    dir: str = Field(description="in: to the broker, out: from it, event: published by it")
    peer: str = ""
    verb: str = ""
    topic: str = ""
    task_id: str | None = None
    batch_id: str | None = None
    bytes: int = 0
    latency_ms: float | None = None
    dropped: int | None = Field(default=None, description="messages lost before this one")


#: By the name that the payload's ``schema`` key has, or would have.
MODELS: Final[dict[str, type[BaseModel]]] = {
    "rigbus.telemetry/1": WorkerTelemetry,
    "rigbus.status/1": RigStatus,
    "rigbus.sniff/1": TapRecord,
    "rigbus.gpu/1": GpuSample,
    "rigbus.escalation/1": Escalation,
    "rigbus.answer/1": Answer,
    "rigbus.alert/1": AlertFile,
}


def export_schemas() -> dict[str, dict[str, Any]]:
    """``{name: JSON Schema 2020-12}``; each with its ``$id``, which has the major version."""
    out = {}
    for name, model in MODELS.items():
        body = model.model_json_schema(by_alias=True, mode="serialization")
        head = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"{SCHEMA_BASE}{file_name(name)}",
        }
        out[name] = {**head, **body}
    return out


def file_name(name: str) -> str:
    """``rigbus.status/1`` -> ``rigbus.status.v1.json``."""
    base, _, major = name.partition("/")
    return f"{base}.v{major}.json"


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema into ``folder``; the files written. ``python -m rigbus.bus.telemetry`` renews the committed ones."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, schema in export_schemas().items():
        file = folder / file_name(name)
        file.write_text(
            json.dumps(schema, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
        written.append(file)
    return written


if __name__ == "__main__":
    for path in write_schemas(FOLDER):
        print(path)
