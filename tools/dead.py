"""``rigbus dead list|retry|drop``: the dead letters of all batches, what they died of, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ..bus.errors import RigbusError
from ..bus.wire import Verb
from . import render
from .common import config_option, json_option, print_json, state_option, talk
from .reach import reach_bus

if TYPE_CHECKING:
    from ..bus.client.client import Client

SHOWN: Final = 100
_AT_ONCE: Final = 500  #: ids in one question
_TAIL_BYTES: Final = 4096
_TAIL_LINES: Final = 5
_TAILS: Final = 3  #: attempts whose last lines are shown
_KEPT: Final = 10
_batch_option = click.option("--batch", metavar="ID", help="The dead tasks of this batch.")
F = TypeVar("F", bound=Callable[..., Any])


def _chosen(function: F) -> F:
    """The options of a verb that does something to dead tasks, and the tasks: of a batch, all, or named."""
    everything = click.option("--all", "everything", is_flag=True, help="All dead tasks.")
    ids = click.argument("ids", metavar="[TASK]...", nargs=-1)
    return state_option(config_option(json_option(_batch_option(everything(ids(function))))))


@click.group()
def dead() -> None:
    """Tasks that ended `dead`: their attempts are used up, or they could never run."""


@dead.command("list")
@state_option
@config_option
@json_option
@_batch_option
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=SHOWN, show_default=True, help="At most so many."
)
def list_(state: Path | None, config: Path | None, as_json: bool, batch: str | None, limit: int) -> int:
    """Dead tasks of all batches, oldest first: error class, attempts, last error, the ends of the last three logs."""
    with reach_bus(state, config) as rig:
        batch = rig.bus.query("batch", id=batch)["id"] if batch else None
        rows = list(islice(_dead_rows(rig.bus, batch), limit + 1))
        shown = [_letter(rig.bus, rig.paths.logs, row, result) for row, result in rows[:limit]]
    more = len(rows) > limit
    if as_json:
        print_json({"schema": "rigbus.dead/1", "tasks": shown, "more": more})
    elif shown:
        click.echo("\n".join(line for letter in shown for line in _lines(letter)))
    else:
        click.echo("nothing is dead")
    if more:
        talk(f"there are more: --limit, or --batch ID (shown: {limit})")
    return 0


@dead.command()
@_chosen
def retry(
    state: Path | None,
    config: Path | None,
    as_json: bool,
    batch: str | None,
    everything: bool,
    ids: tuple[str, ...],
) -> int:
    """Run dead tasks again, with fresh attempts; what was skipped for them waits again."""
    _one_of(batch, everything, ids)
    done = {"requeued": 0, "revived": 0}
    with reach_bus(state, config) as rig:
        for part in _parts(_named(rig.bus, batch, everything, ids)):
            answer = rig.bus.requeue(part)
            done = {key: n + answer[key] for key, n in done.items()}
    if as_json:
        print_json({"schema": "rigbus.dead.retry/1", **done})
    if ids and not done["requeued"]:
        raise RigbusError("nothing to run again: none of these ended badly; `rigbus dead list` shows what is")
    if not as_json:
        click.echo(f"{_some(done['requeued'])} again; {done['revived']} that were skipped wait again")
    return 0


@dead.command()
@_chosen
def drop(
    state: Path | None,
    config: Path | None,
    as_json: bool,
    batch: str | None,
    everything: bool,
    ids: tuple[str, ...],
) -> int:
    """Forget dead tasks, and what was skipped for them. Nobody can retry them then; their logs stay.

    What somebody still waits for is kept, and of a plan that still runs everything is.
    """
    _one_of(batch, everything, ids)
    forgotten, kept, left = 0, [], 0
    with reach_bus(state, config) as rig:
        for part in _parts(_named(rig.bus, batch, everything, ids)):
            answer = rig.bus.request(Verb.CONTROL, {"action": "forget", "ids": part}).header
            forgotten += answer["forgotten"]
            left += answer["kept_total"]
            kept += answer["kept"]
    if as_json:
        out = {"schema": "rigbus.dead.drop/1", "forgotten": forgotten, "kept": kept, "kept_total": left}
        print_json(out)
    else:
        click.echo(f"{forgotten} {'task' if forgotten == 1 else 'tasks'} dropped")
        for task in kept[:_KEPT]:
            talk(render.clean(f"kept: {task['key']} ({task['id'][:8]}): {task['why']}"))
    if left and not forgotten:
        raise RigbusError(f"nothing was dropped, {left} kept: {render.clean(kept[0]['why'])}")
    return 0


# -- which ---------------------------------------------------------------------------------------------------


def _one_of(batch: str | None, everything: bool, ids: Sequence[str]) -> None:
    if bool(batch) + everything + bool(ids) != 1:
        raise click.UsageError("name tasks, or --batch ID, or --all: exactly one of these")


def _named(bus: Client, batch: str | None, everything: bool, ids: Sequence[str]) -> list[str]:
    """Full ids of the tasks that are meant."""
    if ids:
        from . import ask

        return [str(ask.find_task(bus, ref)["rows"][0]["id"]) for ref in ids]
    full = None if everything else bus.query("batch", id=batch)["id"]
    return [str(row["id"]) for row, _ in _dead_rows(bus, full, full=False)]


def _dead_rows(bus: Client, batch: str | None, *, full: bool = True) -> Iterator[tuple[dict[str, Any], Any]]:
    from . import ask

    return ask.task_rows(bus, batch, ("dead",), full=full, calls=True)


def _parts(ids: list[str]) -> Iterator[list[str]]:
    for i in range(0, len(ids), _AT_ONCE):
        yield ids[i : i + _AT_ONCE]


# -- one of them ---------------------------------------------------------------------------------------------


def _letter(bus: Client, logs: Path, row: dict[str, Any], result: Any) -> dict[str, Any]:
    """A dead task as ``--json`` has it. ``class`` is that of its last attempt, None where it never began."""
    from .rows import task_object

    shown = task_object(row, result, bus.query("task", id=row["id"]).get("attempts") or ())
    failed = [a for a in shown["attempts"] if a["outcome"] != "dead"]
    keys = ("id", "batch", "name", "type", "worker", "ended_at", "error", "command", "attempts")
    letter = {key: shown[key] for key in keys}
    letter["class"] = failed[-1]["outcome"] if failed else None
    letter["log_tails"] = tails = _tails(logs, shown)
    letter["log_tail"] = tails[-1]["lines"] if tails else _said(shown["result"])
    return letter


def _tails(logs: Path, task: dict[str, Any]) -> list[dict[str, Any]]:
    """The last lines of its last attempts that wrote any, ``{attempt, lines}``, oldest first; of logs that are here."""
    from ..bus.paths import log_path

    found: list[dict[str, Any]] = []
    for number in sorted({a["n"] for a in task["attempts"]}, reverse=True):
        try:
            with log_path(logs, task["batch"], task["name"], number).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _TAIL_BYTES))
                text = file.read().decode("utf-8", "backslashreplace")
        except OSError:  # no such attempt here, or its log is gone: an earlier one may be there
            continue
        if lines := text.splitlines():
            found.append({"attempt": number, "lines": lines[-_TAIL_LINES:]})
        if len(found) == _TAILS:
            break
    return found[::-1]


def _said(result: Any) -> list[str]:
    """The last lines of a result that has an output; empty where it has none."""
    output = result.get("output") if isinstance(result, dict) else None
    return output.splitlines()[-_TAIL_LINES:] if isinstance(output, str) else []


def _lines(letter: dict[str, Any]) -> list[str]:
    """One dead task for people."""
    n = len(letter["attempts"])
    head = f"{letter['id'][:8]}  {letter['batch']}/{letter['name']}"
    what = f"{letter['class'] or 'never ran'}, {n} {'attempt' if n == 1 else 'attempts'}"
    worker = f", last on {letter['worker']}" if letter["worker"] else ""
    lines = [render.clean(f"{head}  {what}{worker}")]
    lines += render.wrap(f"    {render.clean(str(letter['error'] or 'no reason given'))}", render.width(), 4)
    for tail in letter["log_tails"][:-1]:
        lines.append(f"    attempt {tail['attempt']}:")
        lines += [f"    | {render.clean_lines(line)}" for line in tail["lines"]]
    if len(letter["log_tails"]) > 1:
        lines.append(f"    attempt {letter['log_tails'][-1]['attempt']}:")
    return lines + [f"    | {render.clean_lines(line)}" for line in letter["log_tail"]]


def _some(n: int) -> str:
    return "1 task runs" if n == 1 else f"{n} tasks run"
