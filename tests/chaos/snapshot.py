"""What the database of a rig holds when no broker runs: its rows for the history."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from rigbus.bus.client.work import task_id
from rigbus.bus.states import BATCH_STATE_NAMES, STATE_NAMES

Row = tuple[str, dict[str, Any]]


def rows_of(db: Path) -> Iterator[Row]:
    """(kind, fields) of each record: batches, tasks with the attempts that failed."""
    connection = sqlite3.connect(f"file:{db}?mode=ro", uri=True)
    try:
        yield from _batches(connection)
        yield from _tasks(connection)
    finally:
        connection.close()


def _batches(db: sqlite3.Connection) -> Iterator[Row]:
    names = ("id", "key", "kind", "name", "state", "cancelled", "error")
    for row in db.execute(f"SELECT {', '.join(names)} FROM batches ORDER BY no"):
        batch = dict(zip(names, row, strict=True))
        yield "batch", {**batch, "state": BATCH_STATE_NAMES[batch["state"]]}


def _tasks(db: sqlite3.Connection) -> Iterator[Row]:
    failed: dict[int, list[list[Any]]] = {}
    for no, n, class_, error in db.execute("SELECT task, n, class, error FROM attempts ORDER BY task, n"):
        failed.setdefault(no, []).append([n, class_, (error or "")[:300]])
    names = (
        "t.no",
        "b.id",
        "t.key",
        "t.state",
        "attempt",
        "inc",
        "tok",
        "worker",
        "t.error",
        "spec",
        "result",
    )
    question = f"SELECT {', '.join(names)} FROM tasks t JOIN batches b ON b.no = t.batch ORDER BY t.no"
    for no, batch, key, state, attempt, inc, tok, worker, error, spec, result in db.execute(question):
        told = msgpack.unpackb(msgpack.unpackb(spec, raw=False)[0], raw=False)
        yield (
            "task",
            {
                "id": task_id(batch, key),
                "batch": batch,
                "key": key,
                "type": told.get("type"),
                "state": STATE_NAMES[state],
                "attempt": attempt,
                "token": [inc, tok],
                "value_token": _token_in(result),
                "worker": worker,
                "error": error and error[:500],
                "failed": failed.get(no, []),
            },
        )


def _token_in(result: bytes | None) -> str | None:
    """RIGBUS_TOKEN as the command that made this result printed it, in its first line."""
    value = msgpack.unpackb(result, raw=False) if result else None
    output = value.get("output") if isinstance(value, dict) else None
    return output.partition("\n")[0] if isinstance(output, str) else None
