"""``rigbus watch``: bars of the batches, the workers, the last decisions; plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from ..bus.errors import TaskFailed
from . import render
from .common import print_json, rig_options
from .files import Folder
from .reach import Reach, reach
from .requests import pause
from .rows import ENDED, batch_object, worker_object
from .watch_view import Frame, batch_line, decision_of, lines_of, logged_decision, picture

_SHOWN: Final = 8  #: decisions
_LOOK_BACK: Final = 200  #: events looked at for them
_RUNNING: Final = 200  #: running tasks whose names are asked for
_STILL: Final = 3  #: batches that do not move and are asked why
_REFRESH_S: Final = 0.5
_FOLDER_S: Final = 2.0


@click.command()
@rig_options
@click.option("--once", is_flag=True, help="Print it once and end.")
@click.option("--tail", is_flag=True, help="A line for each task that ends, from now on.")
@click.option("--brain", is_flag=True, help="A line for each decision, from now on.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    metavar="S",
    help="Seconds between two looks (default: 0.5, on a shared folder 2).",
)
@click.argument("batch", required=False)
def watch(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    once: bool,
    tail: bool,
    brain: bool,
    interval: float | None,
    batch: str | None,
) -> int:
    """Bars of the batches, the workers, the last decisions.

    With BATCH it ends with the batch: 0 when all ended well, 6 when not. Without, Ctrl-C ends it.
    """
    if once + tail + brain > 1:
        raise click.UsageError("one of --once, --tail and --brain")
    with reach(state, shared, config) as rig:
        id_ = _full_id(rig, batch) if batch is not None else None
        every = interval or (_REFRESH_S if rig.client is not None else _FOLDER_S)
        if once:
            frame = look(rig, id_)
            if as_json:
                print_json(frame)
            else:
                click.echo("\n".join(lines_of(frame)))
            return 0
        if tail or brain:
            from .watch_tail import follow_lines

            last = follow_lines(rig, id_, brain=brain, as_json=as_json, every=every)
        else:
            last = _follow(rig, id_, as_json, every)
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
        now = folder.now()
        rows = folder.batches() if batch is None else [folder.batch(batch)]
        workers, decisions = folder.workers(now), [logged_decision(d) for d in folder.decisions(_SHOWN)]
        running = [t for t in folder.tasks(batch) if t["state"] == "leased"]
        names = [_running(t["id"], t["name"], t["worker"], t["started_at"], t["batch"]) for t in running]
        parts: dict[str, Any] = folder.processes(now)
    else:
        answer = rig.client.query("status")
        rows = answer["batches"] if batch is None else [rig.client.query("batch", id=batch)]
        workers, decisions = answer["workers"], _decisions(rig, int(answer["seq"]), batch)
        ids = [id_ for w in workers for id_ in w["tasks"][: w["slots"] + 1]][:_RUNNING]
        leased = rig.client.query("rows", ids=ids)["rows"] if ids else []
        names = [
            _running(t["id"], t["key"], t["worker"], t["started_at"], t["batch"])
            for t in leased
            if t["started"] and batch in (None, t["batch"])
        ]
        parts = {part: answer[part] for part in ("broker", "brain", "bridge")}
    frame = {
        "schema": "rigbus.watch/1",
        "at": now,
        **parts,
        "batches": [batch_object(row) for row in rows],
        "workers": [worker_object(w) for w in workers],
        "running": names,
        "decisions": decisions,
    }
    if rig.client is not None:
        _ask_why(rig, frame)
    return frame


def _running(id_: str, name: str, worker: str | None, at: float | None, batch: str) -> dict[str, Any]:
    return {"id": id_, "name": name, "worker": worker, "started_at": at, "batch": batch}


def _ask_why(rig: Reach, frame: Frame) -> None:
    """Of batches in which nothing runs: the first reason, as ``why`` of the batch."""
    still = [b for b in frame["batches"] if b["state"] not in ENDED and not b["tasks"]["leased"]]
    for batch in still[-_STILL:]:
        answer = rig.bus.query("why", id=batch["id"])
        batch["why"] = (answer["reasons"] or [answer["summary"]])[0]


def _decisions(rig: Reach, seq: int, batch: str | None) -> list[dict[str, Any]]:
    """What the rig decided lately, from its numbered log."""
    from ..bus.client.follow import event_of
    from ..bus.wire import Verb

    answer = rig.bus.request(Verb.EVENTS, {"since": max(0, seq - _LOOK_BACK), "limit": _LOOK_BACK + 1})
    events = map(event_of, answer.header.get("events") or ())
    return [found for e in events if (found := decision_of(e, batch)) is not None][-_SHOWN:]


# --- following --------------------------------------------------------------------------------------------------


def _follow(rig: Reach, batch: str | None, as_json: bool, every: float) -> dict[str, Any]:
    """Until the batch has ended: its last row."""
    wait, close = _waiter(rig, every)
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
    with Live(picture(frame), auto_refresh=False, vertical_overflow="crop") as live:
        while (last := _ended(frame, batch)) is None:
            wait()
            frame = look(rig, batch)
            live.update(picture(frame), refresh=True)
    return last


def _plain(rig: Reach, batch: str | None, wait: Callable[[], None], as_json: bool) -> dict[str, Any]:
    """A line a batch whenever its counts have changed; the estimate alone is no news."""
    seen: dict[str, str] = {}
    while True:
        frame = look(rig, batch)
        for row in frame["batches"]:
            line = batch_line(row | {"eta_s": None})
            if seen.get(row["id"]) != line:
                seen[row["id"]] = line
                if as_json:
                    print_json({"schema": "rigbus.watch.batch/1", "at": frame["at"], **row})
                else:
                    click.echo(f"{render.clock(frame['at'])} {batch_line(row)}")
                sys.stdout.flush()
        last = _ended(frame, batch)
        if last is not None:
            return last
        wait()


def _waiter(rig: Reach, every: float) -> tuple[Callable[[], None], Callable[[], None]]:
    """(wait for the next look, end that): on the bus at once when a batch ends, in a folder for a moment."""
    if rig.client is None:
        return lambda: pause(every), lambda: None
    events = rig.client.events("*")

    def wait() -> None:
        began = time.monotonic()
        # What happens meanwhile is one refresh; the running times go on without any event.
        while (left := began + every - time.monotonic()) > 0:
            event = events.poll(left)
            if (
                event is not None
                and event.topic.startswith("batch.")
                and event.topic.rpartition(".")[2] in ENDED
            ):
                return

    return wait, events.close
