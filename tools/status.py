"""``rigbus status``: processes, workers, batches and tasks at a glance."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from . import gpu_view, render
from .common import print_json, rig_options
from .files import Folder
from .reach import reach
from .rows import model_words, status_object

NEAR: Final = 0.9
#: Bounds that are there to be reached: the oldest goes, or the next waits.
_TURNING: Final = frozenset({"ended_tasks", "batch_tasks", "worker_leases"})


@click.command()
@rig_options
def status(state: Path | None, shared: Path | None, config: Path | None, as_json: bool) -> int:
    """Processes, workers, batches and tasks at a glance.

    Without a broker it shows what the shared folder has; news older than a minute ends with exit code 4.
    """
    with reach(state, shared, config) as rig:
        now = time.time()
        if rig.client is not None:
            from . import ask

            shown = status_object(ask.status(rig.client), "bus")
        else:
            folder = Folder(rig.paths.shared)
            now = folder.now()
            shown = status_object(folder.status(now), "file")
        if as_json:
            print_json(shown)
        else:
            for line in lines_of(shown, now):
                click.echo(line)
        if rig.client is None:
            Folder(rig.paths.shared).must_be_fresh(now)
    return 0


def lines_of(shown: Mapping[str, Any], now: float) -> list[str]:
    """The status for people."""
    broker, brain, bridge = shown["broker"], shown["brain"], shown["bridge"]
    lines = []
    if shown["mode"] == "bus":
        paused = ", paused (rigbus resume all)" if broker.get("paused") else ""
        risk = ", durability normal" if broker.get("durability") == "normal" else ""
        lines.append(f"broker up, incarnation {broker.get('incarnation')}{risk}{paused}")
    else:
        lines.append(f"broker {broker.get('state')}, last sign {render.age(shown['as_of'], now)} ago")
    lines[0] += f" · brain {brain.get('state')} · bridge {bridge.get('state')}"
    lines += [render.clean(line) for line in bound_lines(shown)]
    lines += _alert_line(shown.get("alerts") or {})
    lines += [render.clean(f"refused: {r['why']}; {r['fix']}") for r in shown.get("refused") or ()]
    share = bridge.get("share") or {}
    for pid in bridge.get("standby") or []:
        lines.append(f"a second bridge (pid {pid}) waits: one serves this rig already; end one of the two")
    if share.get("available") is False:
        lines.append(f"share unavailable: {render.clean(str(share.get('reason')))}")
    lines.append(f"tasks: {render.counts(shown['tasks'])}")
    if shown["workers"]:
        lines += ["", *worker_table(shown["workers"])]
        for w in shown["workers"]:
            lines += [render.clean(f"{w['id']} is held: {w['held']}")] if w.get("held") else []
            lines += [
                render.clean(f"{w['id']}: {text}")
                for text in w["unkillable"]
                if text not in (w["held"] or "")
            ]
            lines += [_quarantine_line(w, now)] if w.get("quarantine") else []
    else:
        lines.append("no worker is attached: `rigbus up`, or `rigbus worker`")
    if shown["batches"]:
        lines += ["", *batch_table(shown["batches"], now)]
        lines += [
            f"{render.clean(b['id'])} is escalated: `rigbus why {render.clean(b['id'])}` names the file to answer"
            for b in shown["batches"]
            if b.get("escalations")
        ]
    for shape in shown["unrunnable"]:
        what = ", ".join(f"{key} {value}" for key, value in shape.items() if value)
        lines.append(f"nobody can run ready tasks of {render.clean(what)}: `rigbus why` says more")
    return lines


def _alert_line(count: Mapping[str, Any]) -> list[str]:
    """How many alerts are raised; none where none is."""
    raised = count.get("raised") or 0
    if not raised:
        return []
    critical = f", {count['critical']} of them critical" if count.get("critical") else ""
    return [f"{raised} alert{'s are' if raised > 1 else ' is'} raised{critical}: `rigbus alerts list`"]


def bound_lines(shown: Mapping[str, Any]) -> list[str]:
    """A line for a disk without room, and one for each bound that is nearly reached; none where all is well."""
    lines = []
    disk = shown.get("disk") or {}
    if disk.get("level", "ample") != "ample":
        kept = "no new tasks are taken" + (", none is started" if disk["level"] == "full" else "")
        lines.append(
            f"disk {disk['level']}: {disk['free_bytes'] >> 20:,} MiB free in {disk['folder']}, "
            f"{disk['low_bytes'] >> 20:,} MiB are wanted: {kept}; free some space, it goes on by itself"
        )
    for name, of in (shown.get("limits") or {}).items():
        if name not in _TURNING and of["used"] >= NEAR * of["bound"]:
            lines.append(f"{name}: {of['used']:,} of {of['bound']:,} (limits in `rigbus config show`)")
    return lines


def _quarantine_line(worker: Any, now: float) -> str:
    """Why a worker gets no work for a while, and what changes that."""
    quarantine = worker["quarantine"]
    left = render.duration(max(0.0, quarantine["until_at"] - now))
    return render.clean(
        f"{worker['id']} is quarantined for {left} more: {quarantine['why']}; `rigbus resume {worker['id']}` trusts it"
    )


def worker_table(workers: list[Any]) -> list[str]:
    """One line a worker."""
    head: tuple[str, ...] = ("WORKER", "STATE", "TASKS", "CLASSES", "MODEL", "HEARD")
    rows: list[tuple[Any, ...]] = [
        (
            w["id"],
            w["state"],
            f"{len(w['tasks'])}" + (f"/{w['slots']}" if w.get("slots") else ""),
            ",".join(w["classes"] or ()),
            model_words(w),
            render.duration(w["heartbeat_age_s"]) + " ago" if w["heartbeat_age_s"] is not None else None,
        )
        for w in workers
    ]
    cards = [gpu_view.short(w.get("gpu")) for w in workers]
    if any(cards):
        head = (*head, "GPU")
        rows = [(*row, card) for row, card in zip(rows, cards, strict=True)]
    return render.table(head, rows, state=1)


def batch_table(batches: list[Any], now: float) -> list[str]:
    """One line a batch."""
    head = ("BATCH", "PLAN", "STATE", "PROGRESS", "TASKS", "TOOK")
    rows = []
    for b in batches:
        ended = (
            b["ended_at"] if b.get("kind") == "calls" else b["ended_at"] or now
        )  # calls have no end of their own
        took = ended - b["created_at"] if b["created_at"] and ended else None
        name = b["plan"] or f"({b['kind']})"
        eta = b.get("eta_s")
        rows.append(
            (
                b["id"],
                name,
                b["state"],
                f"{b['progress']:.0%}",
                render.counts(b["tasks"]),
                render.duration(took) + (f", {render.duration(eta)} left" if eta is not None else ""),
            )
        )
    return render.table(head, rows, state=2)
