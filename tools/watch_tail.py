"""``rigbus watch --tail`` and ``--brain``: a line for each task that ends, or for each decision, from now on."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from typing import Any, Final

import click

from .common import print_json
from .files import Folder
from .reach import Reach
from .requests import pause
from .rows import ENDED, TASK_ENDED
from .watch_view import decision_line, decision_of, logged_decision

_REST_S: Final = 2.0  #: after the end of a batch, for the events of its end
_DECISIONS: Final = 500  #: of a log's last lines that are looked at
Line = dict[str, Any]


def follow_lines(
    rig: Reach, batch: str | None, *, brain: bool, as_json: bool, every: float
) -> dict[str, Any]:
    """Print them until the batch has ended: its last row. Without a batch it ends by Ctrl-C only."""
    source = (
        _from_bus(rig, batch, brain, every)
        if rig.client is not None
        else _from_folder(rig, batch, brain, every)
    )
    while True:
        try:
            line = next(source)
        except StopIteration as end:
            return dict(end.value)
        if as_json:
            print_json({"schema": f"rigbus.watch.{'decision' if brain else 'task'}/1", **line})
        else:
            click.echo(decision_line(line))
        sys.stdout.flush()


def _row(rig: Reach, batch: str | None) -> dict[str, Any] | None:
    """The batch's row when it has ended."""
    if batch is None:
        return None
    row = Folder(rig.paths.shared).batch(batch) if rig.client is None else rig.client.query("batch", id=batch)
    return row if row["state"] in ENDED else None


def _from_bus(
    rig: Reach, batch: str | None, brain: bool, every: float
) -> Generator[Line, None, dict[str, Any]]:
    events = rig.bus.events("*")
    heard = 0
    try:
        last = _row(rig, batch)  # asked after the subscription: an end in between is seen here or there
        if last is not None:
            return last
        until: float | None = None
        while True:
            event = events.poll(max(every, 0.1))
            while event is not None:
                heard = max(heard, event.seq)
                word = event.topic.rpartition(".")[2]
                is_end = event.topic.startswith("task.") and word in TASK_ENDED
                line = decision_of(event, batch)
                if line is not None and (brain or is_end):
                    yield line
                event = events.poll(0)
            last = _row(rig, batch)
            if last is None:
                continue
            # The answer may be here before the events of the end are.
            until = until or time.monotonic() + _REST_S
            if heard >= last["seq"] or time.monotonic() > until:
                return last
    finally:
        events.close()


def _from_folder(
    rig: Reach, batch: str | None, brain: bool, every: float
) -> Generator[Line, None, dict[str, Any]]:
    folder = Folder(rig.paths.shared)
    seen = {_key(line) for line in _lines(folder, batch, brain)}
    while True:
        last = _row(rig, batch)  # before the look, so that nothing that ended before it is missed
        for line in _lines(folder, batch, brain):
            if _key(line) not in seen:
                seen.add(_key(line))
                yield line
        if last is not None:
            return last
        pause(every)


def _lines(folder: Folder, batch: str | None, brain: bool) -> list[Line]:
    if brain:
        return [logged_decision(d) for d in folder.decisions(_DECISIONS)]
    return [
        {
            "at": t["ended_at"],
            "what": f"task.{t['type']}.{t['state']}",
            "about": t["name"],
            "why": t["error"] or "",
            "id": t["id"],
        }
        for t in folder.tasks(batch)
        if t["state"] in TASK_ENDED
    ]


def _key(line: Line) -> str:
    return str(line.get("id") or f"{line['at']} {line['what']} {line['about']}")
