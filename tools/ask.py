"""Questions to the broker that several verbs ask, answered in the shapes of :mod:`.rows`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..bus.client.work import decode_value, task_id
from ..bus.errors import NotFound, RigbusError
from .rows import plain, task_object

if TYPE_CHECKING:
    from ..bus.client.client import Client

PAGE: Final = 500


def status(bus: Client) -> dict[str, Any]:
    """QUERY `status`."""
    return bus.query("status")


def find(bus: Client, ref: str) -> tuple[str, dict[str, Any]]:
    """``("task", row)`` or ``("batch", row)`` for an id, the start of one (6 characters), or ``BATCH/NAME``.

    Raises:
        NotFound: neither.
    """
    try:
        return "task", find_task(bus, ref)["rows"][0]
    except NotFound as e:
        if "fits" in str(e):
            raise
    try:
        return "batch", bus.query("batch", id=ref)
    except NotFound as e:
        if "fits" in str(e):
            raise
    raise NotFound(f"no task or batch {ref!r}; `rigbus batch list` and `rigbus task list` show them")


def find_task(bus: Client, ref: str) -> dict[str, Any]:
    """QUERY `task`: ``rows`` (one), ``attempts`` and ``body`` (its result).

    Raises:
        NotFound: no such task, or the start of its id fits several.
    """
    batch, slash, name = ref.partition("/")
    if slash:
        ref = task_id(bus.query("batch", id=batch)["id"], name)
    return bus.query("task", id=ref)


def task(bus: Client, ref: str) -> dict[str, Any]:
    """One task with its attempts and its result."""
    answer = find_task(bus, ref)
    return task_object(answer["rows"][0], _result(answer.get("body"), 0), answer.get("attempts") or ())


def task_rows(
    bus: Client,
    batch: str | None = None,
    states: tuple[str, ...] = (),
    *,
    full: bool = False,
    calls: bool = False,
) -> Iterator[tuple[dict[str, Any], Any]]:
    """(row, result) of every task, page by page; results only with ``full``, ended calls of all only with ``calls``."""
    cursor: int | None = 0
    while cursor is not None:
        fields: dict[str, Any] = {"cursor": cursor, "limit": PAGE, "full": full, "calls": calls}
        if batch is not None:
            fields["batch"] = batch
        if states:
            fields["states"] = list(states)
        answer = bus.query("tasks", **fields)
        for i, row in enumerate(answer["rows"]):
            yield row, _result(answer.get("body"), i)
        cursor = answer["cursor"]


def batch_tasks(bus: Client, batch: str) -> list[dict[str, Any]]:
    """The tasks of a batch, each with its attempts and its result."""
    out = []
    for row, result in task_rows(bus, batch, full=True):
        failed: list[dict[str, Any]] = []
        if row["attempt"] > 1 or row["state"] in {"dead", "expired", "cancelled"}:
            failed = bus.query("task", id=row["id"]).get("attempts") or []
        out.append(task_object(row, result, failed))
    return out


def _result(body: list[bytes] | None, i: int) -> Any:
    if not body or i >= len(body) or not body[i]:
        return None
    try:
        return plain(decode_value(body[i]))
    except RigbusError as e:
        return {"unreadable": str(e)}
