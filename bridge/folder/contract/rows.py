"""The broker's rows and events -> the rows that `layout` and `decisions` draw. Pure.

The broker keeps what it schedules by; what a plan said about a task travels in ``meta``. Times of a row are unix
seconds, 0 where a thing has not happened; here None.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ....bus.client.follow import Event
from ....bus.errors import BadFrame
from ....bus.wire import unpack
from .layout import Row, priority_word
from .receipts import PLAIN_NAME

MAX_COMMAND_CHARS: Final = 4000
_FILE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
BRAINS_OWN: Final = "role:brain"  #: what the worker of the brain's model offers
_BATCH_ENDED: Final = frozenset({"complete", "failed", "cancelled"})
ENDED: Final = frozenset({"done", "dead", "cancelled", "expired", "skipped"})


@dataclass(frozen=True, slots=True)
class Transition:
    """What one event says about a task. ``before`` is the state it left (None: it is new)."""

    seq: int
    at: float
    before: str | None
    state: str
    started: bool
    key: str
    type: str
    attempt: int
    worker: str | None
    error: str | None
    error_class: str | None
    note: str | None = None  #: of a verdict
    evaluation: Mapping[str, Any] | None = None  #: the judgement that a verdict followed from

    @property
    def judged(self) -> bool:
        """Whether a model has given it a score."""
        return self.evaluation is not None and self.evaluation.get("score") is not None


def transition(event: Event) -> Transition | None:
    """The transition in an event of topic ``task.<type>.<what>``; None for one that moves nothing (``ending``)."""
    kind, _, rest = event.topic.partition(".")
    type_, _, what = rest.rpartition(".")
    if kind != "task" or event.id is None or what == "ending":
        return None
    data = event.data
    before: str | None = "ready"
    state, started = what, False
    if what == "returned":
        state = "ready"  # not run, only handed back: nothing that people would follow
    elif what in ("retry", "rework"):
        before, state = ("review" if what == "rework" else "leased"), "ready"
    elif what == "started":
        before, state, started = "leased", "leased", True
    elif data.get("created"):
        before = None
    elif data.get("revised"):
        before = what
    elif data.get("requeued") or data.get("revived"):
        before = "dead"
    elif what == "ready":
        before = "waiting"
    error = data.get("error") or data.get("reason") or (data.get("note") if what == "rework" else None)
    evaluation = data.get("evaluation")
    return Transition(
        event.seq,
        event.at,
        before,
        state,
        started,
        str(data.get("key") or event.id),
        type_,
        _int(data.get("attempt")),
        data.get("worker"),
        str(error) if error else None,
        data.get("class"),
        _text(data.get("note")),
        evaluation if isinstance(evaluation, Mapping) else None,
    )


def row_then(step: Transition, event_id: str, batch: str, now: Row | None) -> dict[str, Any]:
    """The task's row as it was after ``step``; ``now`` is its present one, None when it is gone."""
    row = dict(now) if now is not None else {}
    shown = {
        "id": event_id,
        "batch": batch,
        "key": step.key,
        "type": step.type,
        "state": step.state,
        "started": step.started,
        "attempt": step.attempt,
        "worker": step.worker,
        "error": step.error,
        "error_class": step.error_class,
        "note": step.note,
        "evaluation": step.evaluation,
    }
    if step.state not in ENDED:
        row.pop("result", None)
    return {**row, **shown}


def task_row(
    raw: Mapping[str, Any], body: bytes, batch: Mapping[str, Any] | None, last: Transition | None = None
) -> dict[str, Any]:
    """A task for `layout.task_file`. ``body`` is its recorded result, ``batch`` its batch's row of :func:`batch_row`.

    ``last`` is the newest event heard of it: it knows when a state without a time of its own began, and the error's
    class.
    """
    meta = raw.get("meta")
    said: Mapping[str, Any] = meta if isinstance(meta, Mapping) else {}
    state, ended = raw["state"], raw["state"] in ENDED
    changed = (raw.get("ended_at") if ended else None) or (last.at if last else None)
    if not changed:
        changed = raw.get("started_at") if state == "leased" else None
    command, item = said.get("command"), said.get("item_id")
    return {
        "id": raw["id"],
        "file_id": file_id(raw),
        "no": raw["no"],
        "batch": raw["batch"],
        "key": raw["key"],
        # the template of a foreach is a join to the broker; readers know it as the task that it is in the plan
        "type": "shell" if raw["type"] == "join" else raw["type"],
        "class": raw.get("class") or "cpu",
        "executor": said.get("executor") or "worker",
        "priority": raw.get("priority"),
        "state": state,
        "started": bool(raw.get("started")),
        "attempt": _int(raw.get("attempt")),
        "worker": raw.get("worker"),
        "created_at": raw.get("created_at") or None,
        "started_at": raw.get("started_at") or None,
        "ended_at": (raw.get("ended_at") or None) if ended else None,
        "changed_at": changed or raw.get("created_at") or 0.0,
        "after": [str(name) for name in said.get("depends_on") or ()],
        "command": command[:MAX_COMMAND_CHARS] if isinstance(command, str) else None,
        "created_by": _text(said.get("created_by")),
        "prompt": _text(said.get("prompt")),
        "context": _text(said.get("context")),
        "llm_model": _text(said.get("llm_model")),
        "llm_min_tier": said.get("llm_min_tier"),
        "llm_placement": _text(said.get("llm_placement")),
        "vram_estimate_mb": said.get("vram_estimate_mb"),
        "vram_estimate_source": _text(said.get("vram_estimate_source")),
        "batch_size": said.get("batch_size") or (None if item is None else 1),
        "item_ids": said.get("item_ids") or (None if item is None else [str(item)]),
        "target_model": _text(said.get("model")),
        "batch_priority": priority_word(batch["priority"]) if batch else None,
        "foreach": said.get("foreach"),
        "fix_applied": said.get("fix_applied"),
        "timeout_s": said.get("timeout_s"),
        "error": raw.get("error"),
        "error_class": last.error_class if last and last.state == state else None,
        "evaluation": _evaluation(raw.get("evaluation")),
        "earlier": _earlier(raw.get("earlier")),
        "result": result_value(raw, body) if ended or state in ("review", "failed") else None,
        "plan_path": batch.get("plan_path") if batch else None,
        "batch_path": batch.get("batch_path") if batch else None,
        "seq": max(_int(raw.get("seq")), last.seq if last else 0),
    }


def _earlier(raw: Any) -> list[dict[str, Any]]:
    """The attempts that did not end well, oldest first."""
    names = ("n", "worker", "started_at", "ended_at", "error")
    return [{name: one.get(name) for name in names} for one in _maps(raw) if isinstance(one.get("n"), int)]


def _evaluation(raw: Any) -> dict[str, Any] | None:
    """The newest judgement of a task, as people see it; None where its results are not judged."""
    if not isinstance(raw, Mapping):
        return None
    names = ("score", "feedback", "issues", "model", "tokens", "seconds", "attempt", "verdict", "note")
    return {name: raw[name] for name in names if name in raw}


def file_id(raw: Mapping[str, Any]) -> str:
    """The name of the task's file, without ``.json``: its id, or the one that its author gave a file in the queue.

    ``meta.file_id`` is set by the door that took the file in (the author finds his answer under his own task id); the
    mirror then owns that file and replaces it where it stands.
    """
    meta = raw.get("meta")
    given = meta.get("file_id") if isinstance(meta, Mapping) else None
    return given if isinstance(given, str) and _FILE_ID.match(given) else str(raw["id"])


def result_value(raw: Mapping[str, Any], body: bytes) -> Any:
    """The recorded value; a word about it where it is a file, or is not msgpack."""
    ref = raw.get("ref")
    if ref:
        return {"output": f"[{ref.get('bytes')} bytes; `rigbus task show {raw['id']}` has them]"}
    if not body:
        return None
    try:
        return unpack(body)
    except BadFrame:
        return {"output": f"[{len(body)} bytes that are not msgpack]"}


def batch_row(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A batch for `layout.batch_file` and `layout.state_file`; ``plan`` only where it can name a folder."""
    given = raw.get("spec")
    spec: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    root, config = spec.get("batch_root"), spec.get("config")
    return {
        "id": raw["id"],
        "plan": plan_folder(spec.get("folder") or raw.get("plan")),
        "name": raw.get("name"),
        "kind": raw["kind"],
        "state": raw["state"],
        "priority": raw.get("priority") or 0,
        "created_at": raw.get("created_at") or 0.0,
        "ended_at": raw.get("ended_at") or None,
        "counts": dict(raw.get("tasks") or {}),
        "total": _int(raw.get("total")),
        "config": dict(config) if isinstance(config, Mapping) else {},
        "error": raw.get("error"),
        "key": _text(raw.get("key")),
        "plan_sha256": _text(spec.get("sha256")),
        "revision": _int(raw.get("revision")) or 1,
        "plan_priority": spec.get("priority") if isinstance(spec.get("priority"), int) else None,
        "plan_path": spec.get("path") if isinstance(spec.get("path"), str) else None,
        "batch_path": f"{root}/{raw['id']}" if isinstance(root, str) else None,
        "mirror": bool(raw.get("mirror")),
        "seq": raw.get("seq"),
    }


def batch_ended(row: Row) -> bool:
    """Its state is final."""
    return row["state"] in _BATCH_ENDED


def batch_told(event: Event) -> tuple[str, dict[str, Any]] | None:
    """(state, a row for `decisions.batch_decision`) from ``batch.<kind>.<state>`` of a plan; None for other events."""
    kind, _, rest = event.topic.partition(".")
    sort, _, state = rest.partition(".")
    if kind != "batch" or sort != "plan" or event.batch is None:
        return None
    data = event.data
    row = {
        "id": event.batch,
        "state": state,
        "plan": data.get("name"),
        "total": _int(data.get("total")),
        "error": data.get("error"),
        "revision": data.get("revision"),
        "reason": _text(data.get("reason")),
    }
    return state, row


def plan_folder(name: Any) -> str | None:
    """``name`` where it can be a folder below ``plans/``, else None: a client writes what it likes into a SUBMIT.

    A plan that runs where it lies, deeper down, has a name with slashes (``arms/x``).
    """
    return name if isinstance(name, str) and all(PLAIN_NAME.match(part) for part in name.split("/")) else None


def worker_row(
    name: str, beat: Mapping[str, Any], known: Mapping[str, Any] | None, seen_at: float
) -> dict[str, Any]:
    """A worker for `beats.heartbeat_file`: its last heartbeat, what the broker says of it (``known``), and when it
    was heard (our clock: readers compare with files of the same share)."""
    known = known or {}
    state = str(beat.get("state") or known.get("state") or "idle")
    if known.get("state") in ("paused", "draining", "held", "suspect", "quarantined", "fenced"):
        state = str(known["state"])
    return {
        "id": name,
        "state": state,
        "classes": list(known.get("classes") or ()),
        "model": beat.get("model") or known.get("model"),
        "role": "brain" if BRAINS_OWN in _list(known.get("needs")) else "worker",
        "phase": _phase(beat.get("placement")),
        "tasks": [str(r.get("id")) for r in _maps(beat.get("running"))],
        "gpu": _gpu(beat.get("gpu")),
        "pid": beat.get("pid") or known.get("pid"),
        "host": beat.get("host"),
        "seen_at": seen_at,
    }


def running_names(beat: Mapping[str, Any]) -> dict[str, str]:
    """Task id -> its name, of what a heartbeat says to run."""
    return {str(r.get("id")): str(r.get("name") or r.get("id")) for r in _maps(beat.get("running"))}


def worker_folder(name: str) -> bool:
    """Whether a worker's name can be a folder below ``workers/``."""
    return PLAIN_NAME.match(name) is not None


def log_name(logs: str, row: Row, attempt: int) -> str | None:
    """The local log of an attempt, as a path below the folder ``logs``; None where there cannot be one.

    A result names its log itself. It is believed only below the rig's own log folder: else any handler's result could
    have any file of the rig copied into the share.
    """
    given = row.get("result")
    named = given.get("log") if isinstance(given, Mapping) else None
    if isinstance(named, str) and attempt == row.get("attempt"):
        inside = os.path.normpath(named)
        return inside[len(logs) + 1 :] if inside.startswith(f"{logs}/") else None
    key = str(row["key"])
    if _PLAIN_KEY.match(key) is None:
        return None
    return f"{row['batch']}/{key}.{attempt}.log"


def _gpu(given: Any) -> dict[str, Any] | None:
    """A worker's first card, with ``gpus`` for all; the temperature is that of its hottest, which alarms go by."""
    first = given[0] if isinstance(given, list) and given else given
    if not isinstance(first, Mapping):
        return None
    cards = _maps(given if isinstance(given, list) else first.get("cards")) or [first]
    heats = [heat for card in cards if isinstance(heat := card.get("temperature_c"), (int, float))]
    said = [reason for card in cards for reason in _list(card.get("throttle")) if isinstance(reason, str)]
    return {
        **first,
        "util_percent": first.get("utilization_pct", first.get("util_percent")),
        "temperature_c": max(heats, default=None),
        "thermal_reasons": list(dict.fromkeys(reason for reason in said if "thermal" in reason)),
        "gpus": {str(card.get("index")): _card(card) for card in cards},
    }


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card under the names that readers of a brain's cards know; what these have no name for keeps its own."""
    own = ("uuid", "name", "power_limit_w", "throttle", "error")
    return {
        "gpu_temp_c": card.get("temperature_c"),
        "gpu_util": card.get("utilization_pct"),
        "power_w": card.get("power_w"),
        "vram_used_mb": card.get("vram_used_mb"),
        "vram_total_mb": card.get("vram_total_mb"),
        **{key: card[key] for key in own if card.get(key)},
    }


def _phase(placement: Any) -> str | None:
    return _text(placement.get("phase")) if isinstance(placement, Mapping) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in _list(value) if isinstance(one, Mapping)]


def _text(value: Any) -> str | None:
    return value[:MAX_COMMAND_CHARS] if isinstance(value, str) and value else None


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0
