"""``rigbus why``: the scheduler's own tests, one by one, with what would change them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from . import render
from .common import config_option, json_option, print_json, state_option
from .reach import reach_bus
from .rows import ENDED

if TYPE_CHECKING:
    from ..bus.client import Client

_READY_SHOWN: Final = 2
_FAILED_SHOWN: Final = 5


@click.command()
@state_option
@config_option
@json_option
@click.argument("id_", metavar="ID")
def why(state: Path | None, config: Path | None, as_json: bool, id_: str) -> int:
    """Why a task, a batch or a worker is not moving, and which command would change it."""
    with reach_bus(state, config) as rig:
        from ..bus.errors import NotFound
        from . import ask

        if "/" in id_:
            id_ = ask.find_task(rig.bus, id_)["rows"][0]["id"]
        try:
            answer = rig.bus.query("why", id=id_)
        except NotFound:
            workers = ", ".join(sorted(str(w["id"]) for w in rig.bus.query("workers")["workers"])) or "none"
            raise NotFound(
                f"no task, batch or worker {id_!r}; `rigbus task list` and `rigbus batch list` show the former, "
                f"the workers are: {workers}"
            ) from None
        if answer["kind"] == "batch":
            answer["ready"] = _ready(rig.bus, answer["id"])
            answer["failed"] = _failed(rig.bus, answer["id"])
    if as_json:
        print_json({"schema": "rigbus.why/1", **answer})
    else:
        click.echo("\n".join(lines_of(answer)))
    return 0


def _ready(bus: Client, batch: str) -> list[dict[str, Any]]:
    """The same for the first tasks of a batch that could run now but do not."""
    rows = bus.query("tasks", batch=batch, states=["ready"], limit=_READY_SHOWN)["rows"]
    return [bus.query("why", id=row["id"]) for row in rows]


def _failed(bus: Client, batch: str) -> list[dict[str, Any]]:
    """The first tasks of a batch that ended badly by themselves."""
    rows = bus.query("tasks", batch=batch, states=["dead", "expired"], limit=_FAILED_SHOWN)["rows"]
    return [
        {"id": row["id"], "name": row["key"], "state": row["state"], "error": row.get("error")}
        for row in rows
    ]


def lines_of(answer: Mapping[str, Any], *, brief: bool = False) -> list[str]:
    """The answer for people: reasons, then every worker's tests in the scheduler's order; of a batch's tasks those
    tests only that fail, and none where some worker can take the task."""
    name = answer.get("name") or answer["id"]
    lines = [f"{answer['kind']} {render.clean(str(name))}: {render.colour(answer['state'])}"]
    lines += [f"  {render.clean(str(reason))}" for reason in answer["reasons"]]
    workers = answer.get("workers") or []
    if answer.get("position"):
        ahead = answer["position"] - 1
        lines.append(
            f"  {ahead} ready {'task' if ahead == 1 else 'tasks'} of its kind before it"
            if ahead
            else "  it is the next of its kind"
        )
    can = [w["worker"] for w in workers if all(p["ok"] for p in w["predicates"])]
    if workers and not can:
        lines.append("  no worker can take it:" if brief else "  no worker can take it")
    if brief and can:
        lines.append(f"  {render.clean(', '.join(sorted(can)))} can take it")
        workers = []
    for worker in sorted(workers, key=lambda w: str(w["worker"])):
        tests = [p for p in worker["predicates"] if not (brief and p["ok"])]
        fits = worker["worker"] in can
        said = f"  {render.clean(worker['worker'])}: " + ("can take it now" if fits else "cannot take it now")
        lines += [said] if brief else ["", said]
        for p in tests:
            fix = f" -> {p['fix']}" if p["fix"] and not p["ok"] else ""
            lines.append(f"    {'✓' if p['ok'] else '✗'} {p['name']}: {render.clean(p['value'] + fix)}")
    for task in answer.get("ready") or ():
        lines += ["", *lines_of(task, brief=True)]
    if not answer["reasons"] and not workers:
        ended = answer["kind"] == "batch" and answer["state"] in ENDED
        lines.append("  it has ended" if ended else "  nothing holds it up")
    failed = answer.get("failed") or ()
    for task in failed:
        why = render.clean(str(task["error"] or task["state"]))
        lines.append(f"  {render.clean(task['name'])} {render.colour(task['state'])}: {why}")
    if failed:
        lines.append(f"  -> rigbus logs {answer['id']}/{render.clean(failed[0]['name'])}")
        lines.append(f"  -> rigbus retry {answer['id']}   runs them again, and what was skipped for them")
    return lines
