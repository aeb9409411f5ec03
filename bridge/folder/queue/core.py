"""What a file in ``tasks/queue`` asks for. Pure: bytes in, an order (or what is wrong with it) out.

The earlier system's scripts write these files in place, so what is no JSON yet is looked at again; what is whole is
judged once. ``null`` counts as left out, as their readers do not know it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ....bus.tags import MODEL_TYPES
from ....bus.wire import MAX_META_BYTES, MAX_PAYLOAD_BYTES, pack
from ....plans.classes import guess_class
from ..contract.layout import priority_word
from ..contract.receipts import PLAIN_NAME, Invalid, Problem
from ..intake.core import Settings, parse_object
from ..share.ops import shown
from ..share.seal import MIRRORED_BY

QUEUE: Final = "tasks/queue"
MAX_TASK_BYTES: Final = 1 << 20
SHELL_TIMEOUT_S: Final = 1800.0  #: as for the tasks of a plan
MAX_DEPENDENCIES: Final = 1000
#: It names files of the lanes, so no dots: readers cut at the first one.
TASK_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
WORDS: Final = ("low", "normal", "high", "urgent")
#: Prompts go to a model. `decide` is the brain's model's where there is one; `parse` needs a schema to be more than a prompt.
LLM_TYPES: Final = frozenset({"generate", "decide", "parse", "transform"})
CLASSES: Final = frozenset({"cpu", "script", "llm", "brain"})
_PLACEMENTS: Final = frozenset({"load_llm", "unload_llm"})
_LOAD_TYPES: Final = frozenset({"resource", "meta", "system"})
_MODEL_COMMANDS: Final = frozenset(
    {"load_llm", "unload_llm", "load_split_llm", "unload_split_llm", "cleanup_split_runtime"}
    | {"reset_gpu_runtime", "reset_split_runtime", "orchestrator_full_reset"}
)
_G1_SUBMIT_PRIORITY: Final = 10  #: what `submit` writes into every file; it says nothing about the plan
_RESET: Final = frozenset(
    {"result", "assigned_to", "started_at", "completed_at", "status", "retry_count", "attempts", "as_of"}
    | {"workers_attempted", "first_attempted_at", "last_attempt_at", "mirrored_by", "seq", "check"}
)


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """``execute_plan``. ``resume`` names a batch to go on with; ``want_id`` the id that the new one is to have."""

    task_id: str
    plan_path: Any
    settings: Settings
    fields: dict[str, Any]
    resume: str = ""
    want_id: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class TaskOrder:
    """One task. ``spec`` is that of the SUBMIT but for its key and edges; ``waits_for`` are names in ``batch``."""

    task_id: str
    name: str
    batch: str
    spec: dict[str, Any]
    payload: dict[str, Any]
    fields: dict[str, Any]
    waits_for: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Product:
    """The mirror wrote it: not an order at all."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Half:
    """No whole JSON object (yet); ``problem`` says what is wrong should it stay so."""

    problem: Problem


Order = PlanOrder | TaskOrder


def read_order(name: str, data: bytes, *, ours: bool = False) -> Order | Product | Half:
    """What the file ``name`` with these bytes asks for. ``ours``: its name looks like one that the mirror makes.

    Raises:
        Invalid: it is whole, and cannot be done; every problem has its fix.
    """
    where = f"{QUEUE}/{shown(name)}"
    if not data.strip(b"\0 \t\r\n"):
        return Half(Problem("it is empty", where, "write the task into it, as JSON"))
    found = parse_object(data, where, MAX_TASK_BYTES)
    if isinstance(found, Problem):
        if _is_half(data):
            return Half(found)
        raise Invalid(found)
    fields = {key: value for key, value in found.items() if value is not None}
    if fields.get("mirrored_by") == MIRRORED_BY or (ours and fields.get("created_by") == "brain"):
        return Product(str(fields.get("task_id") or ""))
    task_id = _task_id(fields, name)
    type_ = _text(fields, "type", 100)
    if type_ == "execute_plan":
        return _plan_order(task_id, fields)
    return _task_order(task_id, type_, fields)


def author_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What its author said of a task, without what only a rig says."""
    return {key: value for key, value in fields.items() if key not in _RESET}


def digest(value: Any) -> str:
    """Names a content; for telling a file that is there again from another one with its task id."""
    whole = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()


def _is_half(data: bytes) -> bool:
    try:
        json.loads(data.decode("utf-8-sig"))
    except (UnicodeError, json.JSONDecodeError):
        return True
    except (ValueError, RecursionError):
        return False
    return False


# -- execute_plan ------------------------------------------------------------------------------------------------


def _plan_order(task_id: str, fields: dict[str, Any]) -> PlanOrder:
    given = fields.get("config", {})
    if not isinstance(given, dict):
        raise _wrong("config", given, 'an object: {"KEY": "value"}')
    config = dict(given)
    notes: list[str] = []
    priority = _plan_priority(config, fields)
    want_id = config.pop("BATCH_ID", None)
    if want_id is not None and not (
        isinstance(want_id, str) and PLAIN_NAME.match(want_id) and len(want_id) >= 6
    ):
        raise _wrong("config.BATCH_ID", want_id, "6 to 64 letters, digits, . _ - (or leave it out)")
    resume = _resume(config, notes)
    if resume and want_id not in (None, resume):
        fix = "leave out BATCH_ID, or write RUN_MODE fresh"
        raise Invalid(
            Problem("RUN_MODE resume goes on with RESUME_BATCH_ID, not with a new BATCH_ID", "config", fix)
        )
    return PlanOrder(
        task_id,
        fields.get("plan_path"),
        Settings(config, priority),
        author_fields(fields),
        resume,
        "" if resume else str(want_id or ""),
        " ".join(notes),
    )


def _plan_priority(config: Mapping[str, Any], fields: Mapping[str, Any]) -> str | None:
    """The word for it: ``config.PRIORITY``, else the file's, but for the one that `submit` writes into every file."""
    if config.get("PRIORITY") is not None:
        return priority_word(_priority(config["PRIORITY"], "config.PRIORITY"))
    given = _priority(fields.get("priority", _G1_SUBMIT_PRIORITY), "priority")
    return None if given == _G1_SUBMIT_PRIORITY else priority_word(given)


def _resume(config: Mapping[str, Any], notes: list[str]) -> str:
    mode = config.get("RUN_MODE")
    if mode is None:
        return ""
    word = mode.strip().lower() if isinstance(mode, str) else mode
    if word == "fresh":
        notes.append(
            "RUN_MODE fresh: this is a new batch; older batches of the plan go on (`rigbus cancel ID` ends one)."
        )
        return ""
    if word != "resume":
        raise _wrong("config.RUN_MODE", mode, "fresh or resume")
    batch = config.get("RESUME_BATCH_ID")
    if not isinstance(batch, str) or not PLAIN_NAME.match(batch):
        fix = "add RESUME_BATCH_ID with the id of the batch (`rigbus batch list` has them)"
        raise Invalid(Problem("RUN_MODE resume does not say which batch", "config.RESUME_BATCH_ID", fix))
    return batch


# -- other tasks -------------------------------------------------------------------------------------------------


def _task_order(task_id: str, type_: str, fields: dict[str, Any]) -> TaskOrder:
    command = fields.get("command")
    class_ = _text(fields, "task_class", 40, "").lower()
    models = type_ in _LOAD_TYPES or class_ in ("resource", "meta")
    op = next((word for word in (type_, str(command).strip()) if word in _PLACEMENTS), None)
    # what their kill_plan writes is meant for workers that it has just restarted: ours load by themselves
    if op is not None and fields.get("created_by") != "kill_plan":
        return _placement_order(task_id, op, fields)
    if op or models or (isinstance(command, str) and command.strip() in _MODEL_COMMANDS):
        what = f"{shown(str(command or type_))[:60]}: not done by task files; the rig does it"
        fix = "leave it out; `rigbus up --model FILE` serves a model, and tasks of class llm wait for one by themselves"
        raise Invalid(Problem(what, "type", fix))
    if fields.get("foreach") is not None:
        fix = "put it into a plan: a task file is one task"
        raise Invalid(Problem("foreach in a task file", "foreach", fix))
    notes: list[str] = []
    if type_ in LLM_TYPES:
        spec, payload = _llm_task(type_, fields, notes)
    elif type_ in ("shell", "execute"):
        spec, payload = _shell_task(fields, class_, notes)
    else:
        known = ", ".join(["execute_plan", "shell", *sorted(LLM_TYPES)])
        raise Invalid(Problem(f"the type {shown(type_)[:60]!r} is unknown", "type", f"one of {known}"))
    name = _text(fields, "name", 200, "") or task_id
    batch = _text(fields, "batch_id", 200, "")
    spec |= {"priority": _priority(fields.get("priority", 5), "priority"), "name": name}
    executor = "brain" if spec["class"] == "brain" else "worker"
    spec["meta"] = {
        "file_id": task_id,
        "executor": executor,
        "created_by": _text(fields, "created_by", 100, "file"),
    }
    if spec["class"] != "brain" and spec["type"] == "shell" and not _text(fields, "task_class", 40, ""):
        spec["meta"]["fix_applied"] = f"inferred task_class={spec['class']!r} from command"
    for key, text in (("command", payload.get("command")), ("prompt", fields.get("prompt"))):
        if isinstance(text, str) and len(text.encode()) < MAX_META_BYTES // 4:
            spec["meta"][key] = text
    if names := _names(fields, batch):
        spec["meta"]["depends_on"] = list(names)
    _check_bytes(payload)
    return TaskOrder(task_id, name, batch, spec, payload, author_fields(fields), names, " ".join(notes))


def _placement_order(task_id: str, op: str, fields: dict[str, Any]) -> TaskOrder:
    """A model to be loaded or unloaded; which one, and where, may be left to the rig."""
    model = _text(fields, "llm_model", 200, "") or _text(fields, "model", 200, "")
    worker = _text(fields, "worker", 200, "") or _text(fields, "target_worker", 200, "")
    name = _text(fields, "name", 200, "") or task_id
    meta = {
        "file_id": task_id,
        "executor": "brain",
        "created_by": _text(fields, "created_by", 100, "file"),
        "model": model,
        "worker": worker,
    }
    priority = _priority(fields.get("priority", 5), "priority")
    spec = {"type": op, "class": "meta", "name": name, "priority": priority, "meta": meta}
    return TaskOrder(task_id, name, _text(fields, "batch_id", 200, ""), spec, {}, author_fields(fields))


def _shell_task(
    fields: dict[str, Any], class_: str, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    command = _text(fields, "command", MAX_PAYLOAD_BYTES)
    if "\0" in command:
        raise Invalid(Problem("command holds a NUL", "command", "remove it"))
    if class_ and class_ not in CLASSES:
        raise _wrong("task_class", class_, f"one of {', '.join(sorted(CLASSES))}")
    brain = fields.get("executor") == "brain" or class_ == "brain"
    if not class_ and not brain:
        # by the rule alone: a file is one task that runs at once, no model is asked about it
        guess = guess_class(command)
        class_ = guess.task_class
        notes.append(f"task_class was left out: taken as {class_} ({guess.reason}).")
    timeout_s = _seconds(fields, "timeout_seconds") or SHELL_TIMEOUT_S
    spec = {"type": "shell", "class": "brain" if brain else class_, "timeout_s": timeout_s}
    return spec, {"command": command}


def _llm_task(type_: str, fields: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    prompt = _text(fields, "prompt", MAX_PAYLOAD_BYTES)
    context = fields.get("context", "")
    if not isinstance(context, str):
        context = json.dumps(context, ensure_ascii=False)
    whole = f"{context}\n\n{prompt}" if context.strip() else prompt
    payload: dict[str, Any] = {"prompt": whole}
    schema = fields.get("json_schema")
    if schema is not None:
        if not isinstance(schema, dict):
            raise _wrong("json_schema", schema, 'an object: {"type": "object", …}')
        payload["json_schema"] = schema
    if type_ not in MODEL_TYPES or (type_ == "parse" and schema is None):
        notes.append(f"{type_} is a prompt like any other here: the handler `generate` answers it.")
        type_ = "generate"
    spec: dict[str, Any] = {"type": type_, "class": "llm"}
    timeout_s = _seconds(fields, "timeout_seconds")
    if timeout_s:
        spec["timeout_s"] = timeout_s
    return spec, payload


def _names(fields: Mapping[str, Any], batch: str) -> tuple[str, ...]:
    """The names in ``depends_on``: a list, a text with commas, or "none"."""
    given = fields.get("depends_on", [])
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",") if part.strip()]
    if not isinstance(given, list) or not all(isinstance(one, str) and one for one in given):
        raise _wrong("depends_on", given, 'a list of names: ["first"]')
    names = tuple(dict.fromkeys(one for one in given if one.lower() != "none"))
    if len(names) > MAX_DEPENDENCIES:
        raise Invalid(
            Problem(f"{len(names)} dependencies, at most {MAX_DEPENDENCIES}", "depends_on", "use a plan")
        )
    if names and not batch:
        fix = "give this file and those that it names the same batch_id, or put them into a plan"
        raise Invalid(
            Problem("depends_on names tasks, but batch_id does not say of which batch", "batch_id", fix)
        )
    return names


# -- fields ------------------------------------------------------------------------------------------------------


def _task_id(fields: Mapping[str, Any], name: str) -> str:
    """The author's id; a file without one is called by its name."""
    found = fields.get("task_id", name.removesuffix(".json"))
    if not isinstance(found, str) or not TASK_ID.match(found):
        raise _wrong("task_id", found, "a uuid4, or up to 64 letters, digits, _ -")
    return found


def _text(fields: Mapping[str, Any], key: str, limit: int, default: str | None = None) -> str:
    found = fields.get(key, default)
    if found is None:
        raise Invalid(Problem(f"{key} is missing", key, f'add "{key}"'))
    if not isinstance(found, str) or (default is None and not found.strip()):
        raise _wrong(key, found, "a text")
    if len(found) > limit:
        raise Invalid(
            Problem(f"{key} has {len(found)} characters, at most {limit}", key, "put it into a file")
        )
    return found


def _priority(given: Any, key: str) -> int:
    """0 to 10, or one of the four words."""
    if isinstance(given, str):
        word = given.strip().lower()
        if word in WORDS:
            return (3, 5, 8, 10)[WORDS.index(word)]
        given = int(word) if word.isascii() and word.isdigit() and len(word) < 4 else given
    number = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
    if not number or not 0 <= given <= 10 or given != int(given):
        raise _wrong(key, given, "3, 5, 8 or 10 (low, normal, high, urgent)")
    return int(given)


def _seconds(fields: Mapping[str, Any], key: str) -> float | None:
    given = fields.get(key)
    if given is None:
        return None
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not 0 < given <= 1e7:
        raise _wrong(key, given, "a number of seconds above 0")
    return float(given)


def _check_bytes(payload: Mapping[str, Any]) -> None:
    size = len(pack(dict(payload)))
    if size > MAX_PAYLOAD_BYTES:
        what = f"its command or prompt has {size} bytes, at most {MAX_PAYLOAD_BYTES}"
        raise Invalid(Problem(what, "", "put it into a file of the share, and name that"))


def _wrong(key: str, value: Any, fix: str) -> Invalid:
    said = shown(json.dumps(value, ensure_ascii=False, default=str))[:80]
    return Invalid(Problem(f"{key} is {said}", key, f"write {fix}"))
