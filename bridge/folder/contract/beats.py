"""Workers -> their heartbeats and status files, and the brain's heartbeat. Pure; the laws are those of `layout`.

Readers take a heartbeat of 60 s for stale and drop one of 600 s, by their own clock: the mirror's rhythm keeps them fresh.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from .layout import STALE_AFTER_S, File, Row, iso, stamped

BRAIN: Final = ("brain/heartbeat.json", "heartbeats/brain.json")  #: the second is looked for first
#: Top folder -> where a worker's heartbeat lies. Those of the later generation are drawn where the share has the folder.
HEARTBEATS: Final = {
    "workers": "workers/{name}/heartbeat.json",
    "gpus": "gpus/gpu_{card}/heartbeat.json",
    "cpus": "cpus/{name}/heartbeat.json",
}

_PHASES: Final = {
    "cold": "cold",
    "asking": "cold",
    "loading": "loading_single",
    "hot": "ready_single",
    "emptying": "unloading",
    "unloading": "unloading",
    "failed": "error_recoverable",
}


class Scene(NamedTuple):
    """When and where something is drawn: unix seconds, and the last event that was read."""

    host: str
    at: float
    utc_offset_s: float
    seq: int = 0


def heartbeat_file(
    worker: Row, utc_offset_s: float, names: Mapping[str, str] | None = None, seq: int = 0
) -> File:
    """``workers/<id>/heartbeat.json``, readable for both generations of scripts. ``names``: task id -> its
    name.

    Written as the caller's rhythm wills (readers call 60 s stale); a worker that is gone is not written
    again.
    """
    gpu = worker.get("gpu") or {}
    tasks = list(worker.get("tasks") or ())
    seen = iso(worker["seen_at"], utc_offset_s)
    model = worker.get("model")
    hot = "running" if tasks else ("hot" if model else "idle")
    state = worker["state"] if worker["state"] not in ("idle", "busy") else hot
    thermal = gpu.get("thermal_reasons")
    fields = {
        "worker_id": worker["id"],
        "name": worker["id"],
        "timestamp": seen,
        "last_updated": seen,
        "worker": worker["id"],
        "state": state,
        "runtime_state": _PHASES.get(str(worker.get("phase"))) or ("ready_single" if model else "cold"),
        "hostname": worker.get("host"),
        "pid": worker.get("pid"),
        "model_loaded": bool(model),
        "model": model,
        "loaded_model": model,
        "active_workers": len(tasks),
        "active_task_id": tasks[0] if tasks else None,
        "active_tasks": [{"task_id": t, "task_name": (names or {}).get(t, t)} for t in tasks],
        "gpu_id": gpu.get("id", gpu.get("index")),
        "temperature_c": gpu.get("temperature_c"),
        "gpu_util_percent": gpu.get("util_percent"),
        "power_draw_w": gpu.get("power_w"),
        "vram_used_mb": gpu.get("vram_used_mb"),
        "vram_total_mb": gpu.get("vram_total_mb"),
        "thermal_reasons": thermal,
        # Agents of old wrote `event`, readers ask for `type`.
        "last_thermal_event": {"type": "thermal", "event": "thermal", "reasons": thermal}
        if thermal
        else None,
        "gpus": gpu.get("gpus"),
    }
    stale = None if worker["state"] == "gone" else STALE_AFTER_S
    path = HEARTBEATS["workers"].format(name=worker["id"])
    return stamped(path, fields, worker["seen_at"], utc_offset_s, seq, stale)


def later_heartbeat(file: File, worker: Row, folders: Collection[str]) -> File | None:
    """The same heartbeat where the later generation's readers look: by its card, or by name where it has none."""
    card = (worker.get("gpu") or {}).get("index")
    top = "gpus" if card is not None else "cpus"
    if top not in folders:
        return None
    path = HEARTBEATS[top].format(name=worker["id"], card=card)
    return file._replace(path=path, yields=True)


def status_file(
    worker: Row, utc_offset_s: float, changed_at: float, now: float | None = None, seq: int = 0
) -> File:
    """``workers/<id>/status.json``: what changes seldom (since ``changed_at``), as it was at ``now``.

    A worker that is ``gone`` stays so; its file never goes stale.
    """
    fields = {
        "schema": "rigbus.worker/1",
        "worker_id": worker["id"],
        "state": worker["state"],
        "since": iso(changed_at, utc_offset_s),
        "classes": list(worker.get("classes") or ()),
        "model": worker.get("model"),
        "tasks": list(worker.get("tasks") or ()),
        "pid": worker.get("pid"),
        "hostname": worker.get("host"),
    }
    stale = None if worker["state"] == "gone" else STALE_AFTER_S
    at = changed_at if now is None else now
    return stamped(f"workers/{worker['id']}/status.json", fields, at, utc_offset_s, seq, stale)


def brain_files(
    workers: Iterable[Row], scene: Scene, *, active_batches: int, state: str = "active"
) -> list[File]:
    """The brain's heartbeat, at the two places where it is looked for.

    ``workers`` are rows of :func:`.rows.worker_row`; of them the brain's own run its model. ``brain_gpus`` is a dict by
    the card's index: a list shows nothing.
    """
    own = [worker for worker in workers if worker.get("role") == "brain"]
    cards: dict[str, Any] = {}
    for worker in own:
        cards |= (worker.get("gpu") or {}).get("gpus") or {}
    models = [worker["model"] for worker in own if worker.get("model")]
    now = iso(scene.at, scene.utc_offset_s)
    fields = {
        "worker_type": "brain",
        "name": "brain",
        "host": scene.host,
        "hostname": scene.host,
        "state": state,
        "timestamp": now,
        "last_updated": now,
        "loaded_model": models[0] if models else None,
        "loaded_models": models,
        "model_loaded": bool(models),
        "brain_gpus": cards,
        "active_batches": active_batches,
        "brain_pids": {worker["id"]: worker.get("pid") for worker in own},
    }
    stamps = (scene.at, scene.utc_offset_s, scene.seq, STALE_AFTER_S)
    return [stamped(path, fields, *stamps) for path in BRAIN]
