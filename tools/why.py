"""``rigbus why``: what does not move, the scheduler's own tests in its order, and what would change them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from ..bus.errors import NotFound, RigbusError
from . import render
from .common import print_json, rig_options
from .files import Folder
from .operate import answer_option, answered, only_asked
from .reach import Reach, reach
from .rows import evaluation_text

Answer = Mapping[str, Any]
_ALONE: Final = "waits for 1 of 1 tasks"  #: the summary has said which one
_WORKERS: Final = 8  #: whose first failing test is shown besides the sum of all


@click.command()
@rig_options
@answer_option
@click.argument("id_", metavar="[ID]", required=False)
def why(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    answer_s: float,
    id_: str | None,
) -> int:
    """Why a task, a batch or a worker is not moving, and which command would change it.

    ID is a task's or batch's id (the start of one is enough), BATCH/TASK or a worker's name. Without it, or with
    `all`: everything that does not move.
    """
    with reach(state, shared, config) as rig:
        if rig.client is None:
            if id_ is not None and "/" in id_:
                id_ = str(Folder(rig.paths.shared).task(id_)["id"])
            # Only the rig knows: the folder shows what is, not what each test of the scheduler says.
            folder = Folder(rig.paths.shared)
            folder.must_be_fresh(folder.now())
            found, places = answered(rig, "why", {"id": id_}, None, answer_s)
            if found is None:
                return only_asked("why", places, as_json)
            answer: dict[str, Any] = found
            _require_whole(answer, places)
        else:
            answer = _asked(rig, id_)
    if as_json:
        print_json({"schema": "rigbus.why/1", **answer})
    else:
        click.echo("\n".join(lines_of(answer, render.width())))
    return 0


def _require_whole(answer: Answer, places: Mapping[str, str]) -> None:
    """
    Raises:
        RigbusError: what the file says is no answer of a rig, or of one of another version.
    """
    try:
        lines_of(answer)
    except (LookupError, TypeError, AttributeError):
        raise RigbusError(
            f"{places['receipt']} is no answer that this version understands; compare `rigbus version` here and on the rig"
        ) from None


def _asked(rig: Reach, id_: str | None) -> dict[str, Any]:
    """The broker's answer.

    Raises:
        NotFound: nothing has this id.
    """
    from . import ask

    if id_ is not None and "/" in id_:
        id_ = ask.find_task(rig.bus, id_)["rows"][0]["id"]
    try:
        answer = rig.bus.query("why", id=id_)
    except NotFound as e:
        if "fits" in str(e):
            raise
        workers = ", ".join(sorted(str(w["id"]) for w in rig.bus.query("workers")["workers"])) or "none"
        raise NotFound(
            f"no task, batch or worker {id_!r}; `rigbus task list` and `rigbus batch list` show the former, "
            f"the workers are: {workers}"
        ) from None
    if answer["kind"] == "task":
        for row in rig.bus.query("rows", ids=[answer["id"]])["rows"]:
            answer |= {"evaluation": row["evaluation"]} if row.get("evaluation") else {}
    return answer


def lines_of(answer: Answer, width: int = 100) -> list[str]:
    """The answer for people: a line that sums it up, then reasons and tests, none longer than ``width``."""
    parts = {"task": _task, "batch": _batch, "rig": _rig}
    name = render.clean(str(answer.get("name") or answer.get("id")))
    head = f"{answer['kind']} {name}" if answer["kind"] != "rig" else name
    summary = render.clean(str(answer["summary"]))
    state = (
        f" is {render.colour(answer['state'])}" if answer["kind"] != "worker" else ""
    )  # its summary says it
    lines = render.wrap(f"{head}{state}: {summary}", width)
    for text in parts.get(answer["kind"], _worker)(answer, width):
        lines.append(text)
    return lines


def _task(answer: Answer, width: int) -> Iterator[str]:
    summary = answer["summary"]
    for reason in answer["reasons"]:
        if reason not in summary and reason.partition(":")[0] != _ALONE:
            yield from _item(reason, width)
    if answer.get("evaluation"):
        yield from _item(evaluation_text(answer["evaluation"]), width)
    yield from _tests(answer["predicates"], width)
    if answer["state"] in ("dead", "expired"):
        if not str(answer.get("name") or "").endswith(":expand"):  # which writes nothing
            yield f"  -> rigbus logs {answer['id'][:8]}"
        yield f"  -> rigbus retry {answer['id'][:8]}"
    rows = answer.get("workers") or ()
    failing = [(w, next((p for p in w["predicates"] if not p["ok"]), None)) for w in rows]
    if len(rows) > 1:
        for worker, test in failing[:_WORKERS]:
            text = "can take it" if test is None else f"{test['name']}: {test['value']}"
            yield from render.wrap(f"  {render.clean(worker['worker'])}: {render.clean(text)}", width, 6)


def _batch(answer: Answer, width: int) -> Iterator[str]:
    for reason in answer["reasons"]:
        yield from _item(reason, width)
    yield from _tests([p for p in answer["predicates"] if not p["ok"]], width)
    failed = answer.get("failed") or ()
    for task in failed:
        error = render.clean(str(task["error"] or task["state"]))
        name = f"{render.clean(task['name'])} {render.colour(task['state'])}"
        yield from render.wrap(f"  {name}: {error}", width, 4)
    if failed:
        yield f"  -> rigbus logs {answer['id']}/{render.clean(failed[0]['name'])}"
        yield from render.wrap(
            f"  -> rigbus retry {answer['id']}   runs them again, and what was skipped for them", width, 5
        )


def _worker(answer: Answer, width: int) -> Iterator[str]:
    for reason in answer["reasons"]:
        if reason != answer["summary"]:
            yield from _item(reason, width)
    yield from _tests(answer["predicates"], width)


def _rig(answer: Answer, width: int) -> Iterator[str]:
    yield from _tests(answer["predicates"], width)
    for row in answer.get("stuck") or ():
        name = row["id"] if row["kind"] != "batch" else f"{row['id']} {row['name']}"
        text = f"  {row['kind']} {render.clean(name)}: {render.clean(row['summary'])}"
        yield from _with_fix(render.wrap(text, width, 4), row, width, 4)


def _item(reason: str, width: int) -> list[str]:
    return render.wrap(f"  {render.clean(reason)}", width, 4)


def _tests(tests: list[Answer], width: int) -> Iterator[str]:
    good, bad = render.marks()
    for p in tests:
        mark = good if p["ok"] else bad
        text = f"{render.clean(p['name'])}: {render.clean(str(p['value']))}"
        lines = render.wrap(f"  {mark} {text}", width, 6)
        first, *rest = lines if p["ok"] else _with_fix(lines, p, width, 6)
        yield render.colour("done" if p["ok"] else "dead", first) if render.colourful() else first
        yield from rest


def _with_fix(lines: list[str], row: Answer, width: int, indent: int) -> list[str]:
    """The lines and ``-> fix`` behind them, on a line of its own where the last has no room: it is to be pasted."""
    if not row.get("fix"):
        return lines
    fix = f"-> {render.clean(row['fix'])}"
    if len(lines[-1]) + 1 + len(fix) <= width:
        return [*lines[:-1], f"{lines[-1]} {fix}"]
    return lines + render.wrap(" " * indent + fix, width, indent + 3)
