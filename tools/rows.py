"""What the verbs print, from the broker's rows: plain data whose keys are the contract of ``--json``. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..bus.states import STATE_NAMES, TERMINAL

Row = Mapping[str, Any]

ENDED: Final = frozenset({"complete", "failed", "cancelled"})
STATES: Final = STATE_NAMES
TASK_ENDED: Final = frozenset(STATE_NAMES[state] for state in TERMINAL)


def status_object(answer: Row, mode: str) -> dict[str, Any]:
    """``rigbus.status/1`` of a QUERY `status` (or of what a shared folder shows)."""
    return {
        "schema": "rigbus.status/1",
        "mode": mode,
        "as_of": answer["as_of"],
        "seq": answer["seq"],
        "broker": answer["broker"],
        "brain": answer["brain"],
        "bridge": answer["bridge"],
        "workers": [worker_object(w) for w in answer["workers"]],
        "tasks": {state: answer["tasks"].get(state, 0) for state in STATES},
        "batches": [batch_object(b) for b in answer["batches"]],
        "unrunnable": list(answer.get("unrunnable") or ()),
        "disk": answer.get("disk"),
        "limits": dict(answer.get("limits") or {}),
        "refused": list(answer.get("refused") or ()),
        "alerts": answer.get("alerts") or (answer["bridge"] or {}).get("alerts"),
    }


def worker_object(row: Row) -> dict[str, Any]:
    """A worker of a status."""
    keys = ["id", "state", "classes", "model", "heartbeat_age_s", "tasks", "gpu", "placement"]
    keys += ["pid", "slots", "types", "held", "quarantine", "vram_mb", "vram_leased_mb"]
    return {key: row.get(key) for key in keys} | {"unkillable": list(row.get("unkillable") or ())}


def model_words(worker: Row) -> str:
    """The model of a worker's row, and how far it is where it is not hot."""
    placement = worker.get("placement") or {}
    phase = placement.get("phase")
    if phase in (None, "hot"):
        return str(worker.get("model") or "").rpartition("/")[2]
    share = f" {placement.get('share') or 0.0:.0%}" if phase == "loading" else ""
    return " ".join(word for word in (str(placement.get("model") or ""), f"{phase}{share}") if word)


def batch_object(row: Row) -> dict[str, Any]:
    """A batch of a status or a list; ``tasks`` are counts by state."""
    keys = ("id", "plan", "name", "kind", "state", "priority", "created_at", "ended_at", "total", "error")
    out: dict[str, Any] = {key: row.get(key) for key in keys}
    out["ended_at"] = out["ended_at"] or None
    out["escalations"] = int(row.get("escalations") or 0)
    out["revision"] = row.get("revision")
    out["tasks"] = {state: row["tasks"].get(state, 0) for state in STATES}
    out["progress"] = round(float(row.get("progress") or 0.0), 4)
    eta = row.get("eta_s")
    out["eta_s"] = None if eta is None else round(float(eta), 1)
    return out


def task_object(row: Row, result: Any, attempts: Sequence[Row] = ()) -> dict[str, Any]:
    """A task with its attempts and result. ``attempts`` are those that did not end well; the present one is added."""
    meta = row.get("meta") or {}
    keys = ("id", "batch", "type", "class", "pool", "priority", "state", "worker", "error", "reason", "join")
    out: dict[str, Any] = {key: row.get(key) for key in keys}
    out["name"] = row["key"]
    out["created_at"] = row.get("created_at")
    out["started_at"] = row.get("started_at") or None
    out["ended_at"] = row.get("ended_at") or None
    out["command"] = meta.get("command")
    out["fix_applied"] = meta.get("fix_applied")
    out["depends_on"] = list(meta.get("depends_on") or ())
    out["attempts"] = attempt_list(row, attempts)
    out["result"] = result
    if row.get("ref"):
        out["ref"] = row["ref"]
    if row.get("aside"):
        out["aside"] = True
        out["judges"] = meta.get("judges")
    if row.get("evaluation"):
        out["evaluation"] = row["evaluation"]
    return out


def evaluation_text(evaluation: Row) -> str:
    """What a judge found of the last result, and what it cost; or why nobody judged it."""
    if evaluation.get("score") is None:
        return str(evaluation.get("note") or "not judged")
    cost = [f"attempt {evaluation.get('attempt')}", f"{evaluation.get('tokens') or 0} tokens"]
    cost.append(f"{float(evaluation.get('seconds') or 0.0):.1f} s")
    if evaluation.get("model"):
        cost.append(f"model {evaluation['model']}")
    issues = "; ".join(str(issue) for issue in evaluation.get("issues") or ())
    said = [text for text in (evaluation.get("feedback"), issues) if text]
    words = f": {' — '.join(map(str, said))}" if said else ""
    return f"judged {evaluation['score']} of 5 ({', '.join(cost)}){words}"


def attempt_list(row: Row, failed: Sequence[Row]) -> list[dict[str, Any]]:
    """Every attempt, oldest first: ``{n, worker, started_at, ended_at, outcome, error}``."""
    out = [
        {
            "n": a["n"],
            "worker": a["worker"],
            "started_at": a["started_at"],
            "ended_at": a["ended_at"],
            "outcome": a["class"],
            "error": a["error"] or None,
        }
        for a in failed
    ]
    number, state = int(row.get("attempt") or 0), row["state"]
    if number and all(a["n"] != number for a in out) and state in ("leased", "review", "done", *TASK_ENDED):
        out.append(
            {
                "n": number,
                "worker": row.get("worker"),
                "started_at": row.get("started_at") or None,
                "ended_at": row.get("ended_at") or None,
                "outcome": "running" if state == "leased" else state,
                "error": row.get("error") or None,
            }
        )
    return out


def plain(value: Any) -> Any:
    """A value as JSON can carry it: bytes as text, keys as text, no NaN, no half of a character."""
    if isinstance(value, Mapping):
        return {str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
