"""``rigbus watch``: bars of the batches, the workers, the last decisions; plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..bus.errors import TaskFailed
from . import render
from .common import print_json, rig_options
from .files import Folder
from .reach import Reach, reach
from .requests import pause
from .rows import ENDED, batch_object, worker_object
from .status import worker_table

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN: Final = 8  #: decisions
_LOOK_BACK: Final = 200  #: events looked at for them
_REFRESH_S: Final = 0.5
_IDLE_S: Final = 2.0
_QUIET: Final = frozenset({"ready", "waiting", "leased"})
Frame = dict[str, Any]


@click.command()
@rig_options
@click.option("--once", is_flag=True, help="Print it once and end.")
@click.argument("batch", required=False)
def watch(
    state: Path | None, shared: Path | None, config: Path | None, as_json: bool, once: bool, batch: str | None
) -> int:
    """Bars of the batches, the workers, the last decisions.

    With BATCH it ends with the batch: 0 when all ended well, 6 when not. Without, Ctrl-C ends it.
    """
    with reach(state, shared, config) as rig:
        id_ = _full_id(rig, batch) if batch is not None else None
        if once:
            frame = look(rig, id_)
            if as_json:
                print_json(frame)
            else:
                click.echo("\n".join(lines_of(frame)))
            return 0
        last = _follow(rig, id_, as_json)
    if last["state"] == "complete":
        return 0
    raise TaskFailed(
        f"batch {last['id']} ended {last['state']}; `rigbus batch show {last['id']}`", state=last["state"]
    )


def _full_id(rig: Reach, ref: str) -> str:
    if rig.client is None:
        return str(Folder(rig.paths.shared).batch(ref)["id"])
    return str(rig.client.query("batch", id=ref)["id"])


# --- looking ----------------------------------------------------------------------------------------------------


def look(rig: Reach, batch: str | None) -> Frame:
    """One look: ``rigbus.watch/1``."""
    now = time.time()
    if rig.client is None:
        folder = Folder(rig.paths.shared)
        rows = folder.batches() if batch is None else [folder.batch(batch)]
        workers, decisions = folder.workers(now), [_decision(d) for d in folder.decisions(_SHOWN)]
        running = [t for t in folder.tasks(batch) if t["state"] == "leased"] if batch else []
        names = [(t["name"], t["worker"], t["started_at"]) for t in running]
    else:
        answer = rig.client.query("status")
        rows = answer["batches"] if batch is None else [rig.client.query("batch", id=batch)]
        workers, decisions = answer["workers"], _decisions(rig, int(answer["seq"]), batch)
        leased = rig.client.query("tasks", batch=batch, states=["leased"], limit=50)["rows"] if batch else []
        names = [(t["key"], t["worker"], t["started_at"]) for t in leased]
    return {
        "schema": "rigbus.watch/1",
        "at": now,
        "batches": [batch_object(row) for row in rows],
        "workers": [worker_object(w) for w in workers],
        "running": [{"name": n, "worker": w, "started_at": at} for n, w, at in names],
        "decisions": decisions,
    }


def _decisions(rig: Reach, seq: int, batch: str | None) -> list[dict[str, Any]]:
    """What the rig decided lately, from its numbered log."""
    from ..bus.follow import event_of
    from ..bus.wire import Verb

    answer = rig.bus.request(Verb.EVENTS, {"since": max(0, seq - _LOOK_BACK), "limit": _LOOK_BACK + 1})
    out = []
    for event in map(event_of, answer.header.get("events") or ()):
        word = event.topic.rpartition(".")[2]
        if event.channel == "a" or word in _QUIET or (batch is not None and event.batch != batch):
            continue
        data = event.data
        name = data.get("key") or data.get("name") or data.get("worker") or event.id or ""
        why = data.get("error") or data.get("reason") or ""
        out.append({"at": event.at, "what": event.topic, "about": str(name), "why": str(why)})
    return out[-_SHOWN:]


def _decision(line: dict[str, Any]) -> dict[str, Any]:
    """A line of ``brain_decisions.log``."""
    at = str(line.get("timestamp", ""))
    return {"at": at, "what": str(line.get("type", "")), "about": str(line.get("message", "")), "why": ""}


# --- following --------------------------------------------------------------------------------------------------


def _follow(rig: Reach, batch: str | None, as_json: bool) -> dict[str, Any]:
    """Until the batch has ended: its last row."""
    wait, close = _waiter(rig)
    try:
        if sys.stdout.isatty() and not as_json:
            return _live(rig, batch, wait)
        return _plain(rig, batch, wait, as_json)
    finally:
        close()


def _ended(frame: Frame, batch: str | None) -> dict[str, Any] | None:
    for row in frame["batches"]:
        if row["id"] == batch and row["state"] in ENDED:
            return dict(row)
    return None


def _live(rig: Reach, batch: str | None, wait: Callable[[], None]) -> dict[str, Any]:
    from rich.live import Live

    frame = look(rig, batch)
    with Live(picture(frame), auto_refresh=False) as live:
        while (last := _ended(frame, batch)) is None:
            wait()
            frame = look(rig, batch)
            live.update(picture(frame), refresh=True)
    return last


def _plain(rig: Reach, batch: str | None, wait: Callable[[], None], as_json: bool) -> dict[str, Any]:
    """A line a batch whenever it has changed."""
    seen: dict[str, str] = {}
    while True:
        frame = look(rig, batch)
        for row in frame["batches"]:
            line = _batch_line(row)
            if seen.get(row["id"]) != line:
                seen[row["id"]] = line
                if as_json:
                    print_json({"schema": "rigbus.watch.batch/1", "at": frame["at"], **row})
                else:
                    click.echo(f"{render.clock(frame['at'])} {line}")
                sys.stdout.flush()
        last = _ended(frame, batch)
        if last is not None:
            return last
        wait()


def _waiter(rig: Reach) -> tuple[Callable[[], None], Callable[[], None]]:
    """(wait for news, end that): on the bus until something has happened, in a folder for a moment."""
    if rig.client is None:
        return lambda: pause(_IDLE_S), lambda: None
    events = rig.client.events("*")

    def wait() -> None:
        began = time.monotonic()
        if events.poll(_IDLE_S) is None:
            return
        # A burst of events is one refresh.
        while (left := began + _REFRESH_S - time.monotonic()) > 0:
            events.poll(left)

    return wait, events.close


# --- showing ----------------------------------------------------------------------------------------------------


def lines_of(frame: Frame) -> list[str]:
    """The frame as plain lines."""
    lines = [_batch_line(row) for row in frame["batches"]] or ["no batches: `rigbus submit PLAN`"]
    lines += [f"  {_running_line(task, frame['at'])}" for task in frame["running"]]
    if frame["workers"]:
        lines += ["", *worker_table(frame["workers"])]
    if frame["decisions"]:
        lines += ["", "last decisions:", *(f"  {_decision_line(d)}" for d in frame["decisions"])]
    return lines


def _batch_line(row: dict[str, Any]) -> str:
    name = render.clean(str(row["plan"] or row["name"]))
    return (
        f"{row['id']} {name:<20.20} {render.bar(row['progress'])} {row['progress']:>4.0%} "
        f"{render.colour(row['state'])} · {render.counts(row['tasks'])}"
    )


def _running_line(task: dict[str, Any], now: float) -> str:
    return render.clean(f"{task['name']} on {task['worker']} for {render.age(task['started_at'], now)}")


def _decision_line(d: dict[str, Any]) -> str:
    at = d["at"] if isinstance(d["at"], str) else render.clock(d["at"])
    why = f": {d['why'][:120]}" if d["why"] else ""
    return render.clean(f"{at[-8:]} {d['what']} {d['about']}{why}")


def picture(frame: Frame) -> RenderableType:
    """The frame for a terminal. Data is Text, never markup."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    batches = Table(expand=True, box=None, header_style="dim")
    for head, ratio in (
        ("batch", None),
        ("plan", None),
        ("", 1),
        ("", None),
        ("state", None),
        ("tasks", None),
    ):
        batches.add_column(head, ratio=ratio, no_wrap=True)
    for row in frame["batches"][-15:]:
        batches.add_row(
            Text(row["id"]),
            Text(render.clean(str(row["plan"] or row["name"]))),
            ProgressBar(total=1.0, completed=row["progress"]),
            Text(f"{row['progress']:.0%}"),
            Text(row["state"], style=_STYLE.get(row["state"], "")),
            Text(render.counts(row["tasks"])),
        )
    running = [Text(f"  {_running_line(task, frame['at'])}") for task in frame["running"]]
    workers = [Text.from_ansi(line) for line in worker_table(frame["workers"])] if frame["workers"] else []
    decisions = [Text(_decision_line(d), style="dim") for d in frame["decisions"]]
    return Group(batches, *running, Text(""), *workers, Text(""), *decisions)


_STYLE: Final = {
    "complete": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "planning": "cyan",
}
