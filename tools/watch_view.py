"""What `watch` shows of a frame: plain lines, and a picture for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from . import gpu_view, render
from .rows import ENDED, model_words

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

Frame = dict[str, Any]
Row = dict[str, Any]

_COLUMNS: Final = 80  #: of plain lines
_FIXED: Final = 48  #: of them for a batch's id, state and progress
_NAME: Final = (6, 14)  #: the least and the most for its name
_STYLES: Final = {
    "complete": "green",
    "done": "green",
    "failed": "red",
    "dead": "red",
    "expired": "red",
    "suspect": "red",
    "stale": "red",
    "absent": "red",
    "stopped": "yellow",
    "unknown": "yellow",
    "cancelled": "yellow",
    "skipped": "yellow",
    "paused": "yellow",
    "held": "yellow",
    "quarantined": "red",
    "fenced": "red",
    "draining": "yellow",
    "running": "cyan",
    "planning": "cyan",
    "busy": "cyan",
    "attached": "green",
    "seated": "green",
}
_WIDE: Final = 96  #: columns from which a batch's whole id is shown
_WHY: Final = 150  #: characters of a reason
#: Topics that say no more than the counts do.
_QUIET: Final = frozenset({"ready", "waiting", "leased", "started"})
_BAD: Final = ("dead", "expired", "failed")
_LEFT_OUT: Final = ("cancelled", "skipped")
_FRAME_ROWS: Final = 9  #: lines of the picture that are neither batches nor workers nor decisions


def done_of(row: Row) -> tuple[int, int]:
    """(tasks that ended, all tasks)."""
    tasks = row["tasks"]
    total = int(row.get("total") or sum(tasks.values()))
    live = sum(tasks[s] for s in ("waiting", "ready", "leased", "review", "failed"))
    return total - live, total


def notes_of(row: Row) -> str:
    """``2 run, 3 failed, 12 skipped``: what the bar does not show."""
    tasks = row["tasks"]
    parts = [f"{tasks['leased']} run"] if tasks["leased"] else []
    if tasks["review"]:
        parts.append(f"{tasks['review']} in review")
    if bad := sum(tasks[s] for s in _BAD):
        parts.append(f"{bad} failed")
    parts += [f"{tasks[s]} {s}" for s in _LEFT_OUT if tasks[s]]
    return ", ".join(parts)


# -- plain -------------------------------------------------------------------------------------------------------


def lines_of(frame: Frame) -> list[str]:
    """The frame as plain lines."""
    lines = []
    for row in frame["batches"]:
        lines.append(batch_line(row))
        if row.get("why"):
            lines += render.wrap(f"  {render.clean(row['why'])}", _COLUMNS, 4)
    lines = lines or ["no batches: `rigbus submit PLAN`"]
    lines += ["", *(_worker_line(w, frame) for w in frame["workers"])] if frame["workers"] else []
    if frame["decisions"]:
        lines += ["", "last decisions:", *(f"  {decision_line(d)}"[:_COLUMNS] for d in frame["decisions"])]
    return lines


def batch_line(row: Row) -> str:
    """``20261121_105102_ab12cd census         running    14/40  35%  2 run, eta 12 s``."""
    done, total = done_of(row)
    name = render.clean(str(row["plan"] or row["name"]))
    notes = notes_of(row)
    if row.get("eta_s") is not None and row["state"] not in ENDED:
        notes += f"{', ' if notes else ''}eta {render.duration(row['eta_s'])}"
    state = render.colour(row["state"], f"{row['state']:<9}")
    room = max(_NAME[0], min(_NAME[1], _COLUMNS - _FIXED - len(notes)))  # the name gives way
    parts = (
        row["id"],
        f"{name:<{room}.{room}}",
        state,
        f"{f'{done}/{total}':>7}",
        f"{row['progress']:>4.0%} ",
        notes,
    )
    return " ".join(parts).rstrip()


def _worker_line(worker: Row, frame: Frame) -> str:
    state = str(worker["state"])
    text = f"{render.clean(str(worker['id'])):<16.16} {render.colour(state, f'{state:<9}')}"
    runs = "  ".join(word for word in (gpu_view.short(worker.get("gpu")), _runs(worker, frame)) if word)
    line = f"{text} {render.clean(runs)}"
    return line if render.colourful() else line[:_COLUMNS].rstrip()


def _runs(worker: Row, frame: Frame) -> str:
    """What a worker runs and for how long."""
    mine = [t for t in frame["running"] if t["worker"] == worker["id"]]
    shown = ", ".join(f"{t['name']} {render.age(t['started_at'], frame['at'])}" for t in mine[:3])
    shown += f", {len(mine) - 3} more" if len(mine) > 3 else ""
    held = str(worker.get("held") or "")
    crashed = str((worker.get("quarantine") or {}).get("why") or "")
    return "; ".join(text for text in (held, crashed, shown) if text)


def decision_of(event: Any, batch: str | None) -> dict[str, Any] | None:
    """An event as a decision ``{at, what, about, why}``; None for what is none, or of another batch."""
    word = event.topic.rpartition(".")[2]
    if event.channel == "a" or word in _QUIET or (batch is not None and event.batch != batch):
        return None
    data: Mapping[str, Any] = event.data
    name = data.get("key") or data.get("name") or data.get("worker") or event.id or ""
    why = data.get("error") or data.get("reason") or ""
    return {"at": event.at, "what": event.topic, "about": str(name), "why": str(why)}


def logged_decision(line: dict[str, Any]) -> dict[str, Any]:
    """A line of ``brain_decisions.log``."""
    at = str(line.get("timestamp", ""))
    return {"at": at, "what": str(line.get("type", "")), "about": str(line.get("message", "")), "why": ""}


def decision_line(d: Row) -> str:
    """``10:51:02 task.shell.done measure_a``."""
    at = d["at"] if isinstance(d["at"], str) else render.clock(d["at"])
    why = f": {d['why'][:120]}" if d["why"] else ""
    return render.clean(f"{at[-8:]} {d['what']} {d['about']}{why}")


# -- a picture ---------------------------------------------------------------------------------------------------


def picture(frame: Frame) -> RenderableType:
    """The frame for a terminal, as large as the terminal is at that moment. Data is Text, never markup."""
    return _Picture(frame)


class _Picture:
    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        frame, width = self.frame, options.max_width
        height = options.max_height if console.is_terminal else 50
        room = max(6, height - _FRAME_ROWS)
        workers = frame["workers"][: max(2, room // 3)]
        batches = _chosen(frame["batches"], max(1, (room - len(workers)) // 3))
        shown = _batches(batches, width)
        still = [b for b in batches if b.get("why")]
        left = room - len(workers) - len(batches) - 2 * len(still)
        decisions = frame["decisions"][-max(1, left) :] if left > 0 else []
        yield _head(frame)
        empty = Text("no batches: rigbus submit PLAN", style="dim")
        body = Group(shown, *map(_still, still)) if batches else empty
        yield Panel(body, title="batches", title_align="left", border_style="blue")
        if workers:
            yield Panel(_workers(workers, frame), title="workers", title_align="left", border_style="blue")
        if decisions:
            text = Text("\n").join(_decided(d) for d in decisions)
            text.no_wrap, text.overflow = True, "ellipsis"
            yield Panel(text, title="last decisions", title_align="left", border_style="blue")


def _head(frame: Frame) -> Text:
    from rich.text import Text

    head = Text(" rigbus", style="bold", no_wrap=True, overflow="ellipsis")
    for part in ("broker", "brain", "bridge"):
        if part in frame:
            word = str(frame[part].get("state") or "up")
            paused = part == "broker" and frame[part].get("paused")
            style = "yellow" if paused else _STYLES.get(word, "green")
            head.append("   ●", style=f"not bold {style}").append(f" {part}", style="not bold")
            if paused:
                head.append(" paused: rigbus resume all", style="not bold yellow")
    head.append(f"   {render.clock(frame['at'])}", style="not bold dim")
    return head


def _chosen(batches: list[Row], most: int) -> list[Row]:
    """The live ones first, then the newest that ended, in their order."""
    live = [b for b in batches if b["state"] not in ENDED][-most:]
    ended = [b for b in batches if b["state"] in ENDED]
    keep = {b["id"] for b in live} | {
        b["id"] for b in (ended[-(most - len(live)) :] if most > len(live) else [])
    }
    return [b for b in batches if b["id"] in keep]


def _batches(batches: list[Row], width: int) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, max_width=max(10, width // 5), overflow="ellipsis")
    table.add_column(ratio=1, min_width=6)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, max_width=max(12, width // 4), overflow="ellipsis")
    table.add_column(no_wrap=True, justify="right")
    for row in batches:
        done, total = done_of(row)
        style = _STYLES.get(row["state"], "cyan")
        bad = any(row["tasks"][s] for s in _BAD)
        bar = ProgressBar(
            total=1.0,
            completed=row["progress"],
            complete_style="red" if bad else "cyan",
            finished_style="red" if bad else "green",
        )
        over = row["state"] in ENDED
        eta = (
            row["state"]
            if over
            else (f"~{render.duration(row['eta_s'])}" if row.get("eta_s") is not None else "")
        )
        notes = Text(notes_of(row), style="red" if bad else "dim")
        name = Text(render.clean(str(row["plan"] or row["name"])), style="bold" if not over else "")
        id_ = row["id"] if width >= _WIDE else render.clock(row["created_at"])[-8:]
        table.add_row(
            Text("●", style=style),
            Text(id_),
            name,
            bar,
            Text(f"{done}/{total}"),
            notes,
            Text(eta, style=style),
        )
    return table


def _still(row: Row) -> Padding:
    """Why nothing of a batch runs."""
    from rich.padding import Padding
    from rich.text import Text

    text = Text(f"{render.clean(str(row['plan'] or row['name']))}: ", style="yellow")
    why = render.clean(row["why"])
    return Padding(text.append(why if len(why) <= _WHY else f"{why[: _WHY - 1]}…"), (0, 0, 0, 2))


def _workers(workers: list[Row], frame: Frame) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, max_width=18, overflow="ellipsis")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
    table.add_column(no_wrap=True, justify="right", style="dim")
    table.add_column(no_wrap=True, justify="right", style="dim")
    for worker in workers:
        state = str(worker["state"])
        style = _STYLES.get(state, "dim")
        model = render.clean(model_words(worker))[:20]
        runs = Text(render.clean(_runs(worker, frame)))
        table.add_row(
            Text("●", style=style),
            render.clean(str(worker["id"])),
            Text(state, style=style),
            runs,
            Text(model),
            Text(render.clean(gpu_view.short(worker.get("gpu")))),
        )
    return table


def _decided(d: Row) -> Text:
    from rich.text import Text

    at = d["at"] if isinstance(d["at"], str) else render.clock(d["at"])
    what = str(d["what"])
    style = _STYLES.get(what.rpartition(".")[2], "")
    text = Text(f"{render.clean(at)[-8:]} ", style="dim").append(render.clean(what), style=f"not dim {style}")
    text.append(f" {render.clean(str(d['about']))}", style="not dim")
    return text.append(f"  {render.clean(d['why'])[:200]}" if d["why"] else "", style="dim")
