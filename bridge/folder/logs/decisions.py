"""The lines of ``logs/brain_decisions.log``: what changed, in the words that the earlier system's scripts
know. Pure.

They colour a line by ASSIGN, COMPLETE, SUCCESS, FAIL, ERROR in its type and print ``timestamp[-8:]``, hence
whole seconds. The log is appended in place: readers keep their descriptor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ....bus.client.follow import Event
from ..contract.layout import Row, error_text, iso

_MODEL_TYPES: Final = frozenset({"load_llm", "unload_llm"})
_WORKER_WORDS: Final = {
    "left": "WORKER_MISSING",
    "quarantined": "GPU_UNHEALTHY",
    "trusted": "GPU_RECOVERED",
}
STOPPED: Final = "closed"  #: what a worker that ends by itself gives as its reason


class Decision(NamedTuple):
    """One line's content."""

    type: str
    message: str
    details: dict[str, Any]


def decision_line(at: float, decision: Decision, utc_offset_s: float, seq: int | None = None) -> bytes:
    """One JSON object and a newline. ``seq`` is the event that it tells: a bridge that comes back finds it there."""
    fields: dict[str, Any] = {
        "timestamp": iso(at, utc_offset_s, whole_seconds=True),
        "type": decision.type,
        "message": decision.message,
        "details": {k: v for k, v in decision.details.items() if v is not None},
    }
    if seq is not None:
        fields["seq"] = seq
    return json.dumps(fields, default=str).encode("ascii") + b"\n"


def task_decision(before: Row | None, task: Row) -> Decision | None:
    """The line for a task that was ``before`` (None: new) and is now ``task``; None when nothing is worth
    one.
    """
    was = before["state"] if before else None
    state, name, shell = task["state"], task["key"], task["type"] == "shell"
    started = bool(task.get("started")) and not (before and before.get("started") and was == "leased")
    if was == state and not (state == "leased" and started):
        return None
    word, text = "", ""
    if state == "leased" and started:
        word, text = ("SHELL_EXECUTE" if shell else "TASK_ASSIGNED"), f"{name} on {task.get('worker')}"
    elif state in ("waiting", "ready") and was is None:
        inferred = f", {task['fix_applied']}" if task.get("fix_applied") else ""
        word, text = "TASK_CREATED", f"{name} ({task.get('class')}){inferred}"
        if task["type"] in _MODEL_TYPES:
            word, text = "RESOURCE_TASK", f"{name} ({task['type']})"
    elif state == "ready" and was == "waiting":
        word, text = "TASK_RELEASED", name
    elif state == "ready" and was in ("leased", "failed", "review"):
        word, text = "RETRY", f"{name}, attempt {int(task.get('attempt') or 0) + 1}: {error_text(task)}"
    elif state == "ready":
        word, text = "RETRY", f"{name}, asked for by a person"
    elif state == "done":
        word, text = _done(task, name, shell)
        text += f", {task['note']}" if task.get("note") else ""
    elif state in ("failed", "dead", "expired"):
        word, text = _bad(task, state, shell), f"{name}: {error_text(task)}"
    elif state in ("cancelled", "skipped"):
        word, text = "ABANDON", f"{name} {state}: {error_text(task)}"
    return Decision(word, text, _task_details(task)) if word else None


def ending_decision(event: Event) -> Decision:
    """The line for a running task that is told to end: cancelled, or its time is over."""
    data = event.data
    details = {
        "task_id": str(event.id)[:8],
        "name": data.get("key"),
        "batch_id": event.batch,
        "worker": data.get("worker"),
        "attempt": data.get("attempt"),
    }
    text = f"{data.get('key')} on {data.get('worker')}: {data.get('reason')}"
    return Decision("ABORT_SIGNAL", text, details)


def worker_decision(event: Event) -> Decision | None:
    """The line for what became of a worker; None for what the log does not tell."""
    worker, _, what = event.topic.partition(".")[2].rpartition(".")
    why = str(event.data.get("why") or "")
    word = _WORKER_WORDS.get(what)
    if what == "left" and why == STOPPED:
        word = "WORKER_STOP"
    return Decision(word, f"{worker}: {why}", {"worker": worker}) if word else None


def batch_decision(before: Row | None, batch: Row) -> Decision | None:
    """The line for a batch's change of state."""
    was, state, plan = (before["state"] if before else None), batch["state"], batch.get("plan") or "client"
    if was == state:
        return None
    details = {"batch_id": batch["id"], "plan": batch.get("plan"), "tasks": batch["total"]}
    if state == "revised":
        why = f": {batch['reason']}" if batch.get("reason") else ""
        details["revision"] = batch.get("revision")
        return Decision(
            "PLAN_REVISED", f"{plan} ({batch['id']}), revision {batch.get('revision')}{why}", details
        )
    if state == "planning":
        return Decision("PLAN_READ", plan, details)
    if state == "running":
        return Decision("PLAN_PARSED", f"{plan}: {batch['total']} tasks", details)
    if state == "complete":
        return Decision("BATCH_COMPLETE", f"{plan} ({batch['id']})", details)
    why = f": {batch['error']}" if batch.get("error") else ""
    return Decision("BATCH_ABORTED", f"{plan} ({batch['id']}) {state}{why}", details)


def escalation_decision(event: Event) -> Decision | None:
    """The line for an event ``escalation.<id>.<state>``; None for one that only adds to it."""
    _, id_, state = event.topic.split(".", 2)
    data = event.data
    if state == "joined":
        return None
    details = {
        "escalation_id": id_,
        "batch_id": event.batch or None,
        "cause": data.get("cause"),
        "status": state,
    }
    details |= {"by": data.get("by") or None, "why": data.get("why") or None}
    if data.get("new"):
        return Decision("ESCALATION", str(data.get("title")), details)
    note = f": {data['note']}" if data.get("note") else ""
    return Decision("ESCALATION_ANSWERED", f"{id_} is {state}{note}", details)


def _done(task: Row, name: str, shell: bool) -> tuple[str, str]:
    if task["type"] == "expand":
        return "FOREACH_EXPAND", name
    if task["type"] == "unload_llm":
        return "MODEL_UNLOADED", name
    given = task.get("result")
    if task["type"] == "decide":
        said = given.get("decision") if isinstance(given, Mapping) else None
        return "DECIDE", name if said is None else f"{name}: {said}"
    took = given.get("duration_s") if isinstance(given, Mapping) else None
    text = name if took is None else f"{name} in {took:.1f} s"
    return ("SHELL_COMPLETE" if shell else "TASK_COMPLETE"), text


def _bad(task: Row, state: str, shell: bool) -> str:
    if task.get("error_class") == "definition":
        return "TASK_DEFINITION_ERROR"
    if state == "failed":
        return "SHELL_FAILED" if shell else "TASK_FAILED"
    return "ABANDON"


def _task_details(task: Row) -> dict[str, Any]:
    given = task.get("evaluation")
    judged: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    return {
        "task_id": str(task["id"])[:8],
        "name": task["key"],
        "batch_id": task["batch"],
        "worker": task.get("worker"),
        "attempt": task.get("attempt"),
        "score": judged.get("score"),
        "tokens": judged.get("tokens"),
        "seconds": judged.get("seconds"),
    }
