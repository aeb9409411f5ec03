"""What a client says and hears: Task, Result, Progress, and the SUBMIT messages of many tasks. Pure.

A retried submit must be the same tasks, so everything here is decided once, before the first message is sent.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from ..errors import BadFrame, DefinitionError
from ..tags import MODEL_TYPES, smaller_payload_fix
from ..wire import MAX_BATCH, MAX_DEPTH, MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, pack

RIGBUS: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "rigbus")
MESSAGE_BYTES: Final = 4 << 20  #: payloads of one SUBMIT
HEADER_BYTES: Final = 768 << 10  #: specs of one SUBMIT; the header frame may have 1 MiB
_TIMES: Final = ("timeout_s", "queue_timeout_s", "no_progress_s", "deadline_s")
_PLAIN_FIELDS: Final = ("name", "pool", "priority", "vram_mb", *_TIMES)


@dataclass(eq=False, kw_only=True)
class Task:
    """One task to submit: ``type`` names the handler (or ``shell``), ``payload`` is plain data of at most 256 KiB.

    Durations are seconds. ``after`` holds tasks of the same submit, or ids or keys of others; ``(task, "end")`` waits
    for any end, otherwise only for a good one. ``max_attempts`` caps failures of the class *task*; ``policy`` says more
    (PROTOCOL §5). ``id`` is filled in when the task has been accepted.
    """

    type: str
    payload: Any = None
    key: str | None = None
    after: Sequence[Any] = ()
    cls: str | None = None  #: the class a worker must offer (``cpu``, ``llm``); None: whoever runs the type
    priority: int | None = None  #: 0..10, larger first; None: the batch's
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    no_progress_s: float | None = None
    deadline_s: float | None = None
    max_attempts: int | None = None
    backoff_s: float | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    needs: Sequence[str] = ()
    pool: str | None = None
    vram_mb: int | None = (
        None  #: MiB of a card's memory that it takes while it runs; workers without a card ignore it
    )
    meta: Mapping[str, Any] = field(default_factory=dict)
    review: bool = False
    escalate: bool = False
    orphan: str | None = None
    id: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """How a task ended. ``value`` is what it returned; of a failed one, what is known (a command's exit and output)."""

    id: str
    ok: bool
    value: Any
    error: str | None
    state: str  #: done, dead, cancelled, expired or skipped
    attempts: int
    task: Task | None = None  #: as it was submitted by this client, while the caller keeps it
    error_class: str | None = None  #: task, crash, infra or definition
    worker: str | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A sign of life of a running task. ``n`` counts from 0 in each attempt: a hole means that some were lost."""

    id: str
    n: int
    pct: float | None = None
    note: str | None = None
    data: tuple[Any, ...] = ()  #: the chunks that came with it, in order
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Item:
    """One task as SUBMIT carries it."""

    spec: dict[str, Any]
    payload: bytes
    size: int  #: bytes of the spec, packed


def task_id(batch: str, key: str) -> str:
    """The public id (PROTOCOL §2)."""
    return str(uuid.uuid5(RIGBUS, f"{batch}/{key}"))


def child_key(parent_key: str, n: int | str) -> str:
    """The key of a handler's n-th call: the same in a rerun, so that it gets the recorded answer (DESIGN §3)."""
    key = f"{parent_key}/{n}"
    if len(key.encode()) <= MAX_KEY_BYTES:
        return key
    return f"~{hashlib.sha256(parent_key.encode()).hexdigest()[:40]}/{n}"


def _reference(ref: Any, keys: Mapping[int, str]) -> str:
    if isinstance(ref, Task):
        found = keys.get(id(ref)) or ref.id
        if not found:
            raise DefinitionError(
                f"`after` names a task of type {ref.type!r} that is neither in this submit nor accepted before; "
                "submit it first, or together"
            )
        return found
    if not isinstance(ref, str) or not ref:
        raise DefinitionError(f"`after` holds tasks, keys and ids, not {ref!r:.60}")
    return ref


def _edge(ref: Any, keys: Mapping[int, str]) -> Any:
    if isinstance(ref, (tuple, list)):
        if len(ref) != 2 or ref[1] not in {"success", "end"}:
            raise DefinitionError(f'an edge is a task or (task, "end"), not {ref!r:.60}')
        target = _reference(ref[0], keys)
        return [target, "end"] if ref[1] == "end" else target
    return _reference(ref, keys)


def _model_named(task: Task) -> list[str]:
    """A request that names its model goes to a worker that holds it: the broker does not read payloads."""
    model = task.payload.get("model") if isinstance(task.payload, Mapping) else None
    return [f"model:{model}"] if task.type in MODEL_TYPES and isinstance(model, str) and model else []


def _spec(task: Task, key: str, keys: Mapping[int, str], orphan: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"key": key, "type": task.type}
    if task.cls is not None:
        spec["class"] = task.cls
    for name in _PLAIN_FIELDS:
        value = getattr(task, name)
        if value is not None and value != "":
            spec[name] = value
    policy = dict(task.policy)
    if task.max_attempts is not None:
        policy["task"] = task.max_attempts
    if task.backoff_s is not None:
        policy["backoff_s"] = task.backoff_s
    if policy:
        spec["policy"] = policy
    needs = list(dict.fromkeys([*task.needs, *_model_named(task)]))
    if needs:
        spec["needs"] = needs
    if task.after:
        spec["after"] = [_edge(ref, keys) for ref in task.after]
    if task.meta:
        spec["meta"] = dict(task.meta)
    for flag in ("review", "escalate"):
        if getattr(task, flag):
            spec[flag] = True
    if (task.orphan or orphan) == "cancel":
        spec["orphan"] = "cancel"
    return spec


def _payload(task: Task, key: str) -> bytes:
    try:
        packed = pack(task.payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise DefinitionError(
            f"task {key!r} ({task.type}): its payload is not plain data: {e}; use None, bool, int, float, str, bytes, "
            "list and dict"
        ) from None
    if len(packed) > MAX_PAYLOAD_BYTES:
        raise DefinitionError(
            f"task {key!r} ({task.type}): its payload has {len(packed)} bytes, {MAX_PAYLOAD_BYTES} are allowed; "
            f"{smaller_payload_fix(task.type)}"
        )
    return packed


def build(
    tasks: Iterable[Task],
    *,
    auto_key: str = "",
    orphan: str = "keep",
    parent: Mapping[str, Any] | None = None,
    first: int = 0,
) -> list[Item]:
    """The items of one submit, in order. Tasks without a key get ``<auto_key><number>``, counted from ``first``.

    With ``parent`` (a handler's own task) every key is put under the parent's key.

    Raises:
        DefinitionError: a task is no Task, a key is given twice or too long, a payload is too big or no plain data.
    """
    listed = list(tasks)
    keys: dict[int, str] = {}
    taken = {t.key for t in listed if isinstance(t, Task) and t.key}
    for n, task in enumerate(listed):
        if not isinstance(task, Task) or not isinstance(task.type, str) or not task.type:
            raise DefinitionError(f"submit takes Task(type=…) objects, number {n} is {task!r:.60}")
        if id(task) in keys:
            raise DefinitionError(f"the same Task object is given twice (number {n}); make a new one")
        key = task.key or f"{auto_key}{first + n}"
        while not task.key and key in taken:
            key = f"_{key}"
        keys[id(task)] = key
    if parent is not None:
        keys = {i: child_key(str(parent["key"]), key) for i, key in keys.items()}
    items = []
    local = {t.key: keys[id(t)] for t in listed if t.key}
    seen: set[str] = set()
    for task in listed:
        key = keys[id(task)]
        if key in seen or len(key.encode()) > MAX_KEY_BYTES:
            fault = "is given twice" if key in seen else f"is over {MAX_KEY_BYTES} bytes"
            raise DefinitionError(f"the task key {key!r:.80} {fault}; choose another")
        seen.add(key)
        spec = _spec(task, key, keys, orphan if parent is None else "keep")
        if parent is not None:
            spec["parent"] = {"id": parent["id"], "token": list(parent["token"])}
            spec["after"] = [_own(edge, local) for edge in spec.get("after", ())]
            if not spec["after"]:
                del spec["after"]
        items.append(Item(spec, _payload(task, key), len(pack(spec))))
    return items


def _own(edge: Any, local: Mapping[str, str]) -> Any:
    """An edge to a key of this submit, under the parent's key."""
    if isinstance(edge, list):
        return [local.get(edge[0], edge[0]), edge[1]]
    return local.get(edge, edge)


def _targets(item: Item) -> list[str]:
    return [e[0] if isinstance(e, list) else e for e in item.spec.get("after", ())]


def in_order(items: Sequence[Item]) -> list[Item]:
    """The items with every task behind those it waits for; otherwise as they stand.

    Raises:
        DefinitionError: they wait for each other.
    """
    at = {item.spec["key"]: n for n, item in enumerate(items)}
    waits = [[at[t] for t in _targets(item) if t in at] for item in items]
    placed = [0] * len(items)  # 1: being placed, 2: placed
    out: list[Item] = []
    for root in range(len(items)):
        stack = [root]
        while stack:
            n = stack[-1]
            if placed[n] == 2:
                stack.pop()
                continue
            placed[n] = 1
            due = [m for m in waits[n] if placed[m] != 2]
            if any(placed[m] == 1 for m in due):
                key = items[n].spec["key"]
                raise DefinitionError(f"task {key!r} waits for itself, over others; break that cycle")
            if due:
                stack.extend(reversed(due))
            else:
                placed[n] = 2
                out.append(items[n])
                stack.pop()
    return out


def messages(items: Sequence[Item]) -> list[list[Item]]:
    """Split into messages within PROTOCOL §9; more than one are put :func:`in_order` first.

    Raises:
        DefinitionError: several messages are needed and the tasks wait for each other.
    """
    whole = _split(items)
    return whole if len(whole) <= 1 else _split(in_order(items))


def _split(items: Sequence[Item]) -> list[list[Item]]:
    out: list[list[Item]] = []
    header = body = 0
    for item in items:
        header += item.size
        body += len(item.payload)
        if not out or len(out[-1]) >= MAX_BATCH or header > HEADER_BYTES or body > MESSAGE_BYTES:
            out.append([])
            header, body = item.size, len(item.payload)
        out[-1].append(item)
    return out


def decode_value(data: bytes) -> Any:
    """A task's value from its msgpack; empty is None.

    Raises:
        BadFrame: it is no msgpack, or deeper than PROTOCOL §9 allows.
    """
    if not data:
        return None
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=len(data),
            max_map_len=len(data),
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as e:
        raise BadFrame(f"a value of {len(data)} bytes is not msgpack: {e}", rule="§4") from None
    if _deeper(value, MAX_DEPTH):
        raise BadFrame(f"a value is nested over {MAX_DEPTH} deep", rule="§9")
    return value


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    if levels == 0:
        return True
    inner = value.values() if isinstance(value, dict) else value
    return any(_deeper(v, levels - 1) for v in inner if isinstance(v, (dict, list)))


def decode_chunk(data: bytes) -> Any:
    """A chunk of PROGRESS: its msgpack, or the bytes themselves where they are none."""
    try:
        return decode_value(data)
    except BadFrame:
        return data
