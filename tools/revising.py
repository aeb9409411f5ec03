"""``rigbus submit PLAN --revise BATCH``: the new plan beside the batch that it is for, and what would become of its tasks."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..bus.errors import Refused, Unreachable
from ..bus.paths import view_name
from . import plan_source, render
from .common import print_json
from .file_rows import ended_row
from .files import Folder
from .reach import Reach


@dataclass(frozen=True, slots=True)
class NewPlan:
    """A plan that was checked for a batch. ``row``: the batch as the broker has it; empty in file mode."""

    checked: plan_source.Checked
    batch: str
    reason: str
    row: Mapping[str, Any] = field(default_factory=dict)


def new_plan(
    rig: Reach, plan: str, config: Mapping[str, Any], priority: str | None, batch: str, reason: str
) -> NewPlan:
    """Check a plan as the next revision of a batch; its configuration holds where nothing else is given.

    Raises:
        NotFound: no such plan or batch.  PlanError: with its faults.  Refused: the batch is of another plan.
    """
    row = (
        rig.client.query("batch", id=batch) if rig.client is not None else _mirrored(rig.paths.shared, batch)
    )
    name = row.get("plan")
    if row.get("kind", "plan") != "plan" or not name:
        raise Refused(
            f"batch {row['id']} is of kind {row.get('kind')}: only the run of a plan can be revised"
        )
    given = (row.get("spec") or {}).get("config") or row.get("config") or {}
    path = plan_source.find_plan(plan, rig.paths.shared)
    checked = plan_source.check(path, config, priority, given)
    if checked.plan.name != name:
        raise Refused(
            f"batch {row['id']} is a run of the plan {render.clean(str(name))}, not of {checked.plan.name}: give that plan, "
            f"or `rigbus submit {checked.plan.name}`"
        )
    return NewPlan(checked, str(row["id"]), reason, row if rig.client is not None else {})


def _mirrored(shared: Path, batch: str) -> dict[str, Any]:
    """A batch as its batch.json has it."""
    row = Folder(shared).batch(batch)
    folder = shared / "plans" / str(row.get("plan")) / "batches" / str(row["id"])
    return ended_row(str(row["id"]), folder) or row


def show(rig: Reach, new: NewPlan, as_json: bool) -> int:
    """What would become of each task; nothing is written.

    Raises:
        Unreachable: without a broker nobody knows the tasks.
    """
    if rig.client is None:
        raise Unreachable(
            "--dry-run with --revise: no folder says how each task was defined when it ran, so only the broker knows what a "
            "revision keeps; run it on the rig, or check the plan alone without --revise"
        )
    rows = _outcomes(rig, new)
    counts = Counter(row["becomes"] for row in rows)
    revision = int(new.row["revision"]) + 1
    if as_json:
        print_json(
            {
                "schema": "rigbus.submit/1",
                "batch_id": new.batch,
                "plan": new.checked.plan.name,
                "tasks": len(new.checked.plan.tasks),
                "dry_run": True,
                "revision": revision,
                "counts": dict(counts),
                "would_become": rows,
            }
        )
        return 0
    said = ", ".join(f"{n} {word}" for word, n in counts.items())
    click.echo(f"revision {revision} of {new.batch} would be: {said}; nothing was written")
    cells = [(row["name"], row["state"] or "-", row["becomes"]) for row in rows]
    click.echo("\n".join(render.table(("TASK", "STATE", "BECOMES"), cells)))
    return 0


def _outcomes(rig: Reach, new: NewPlan) -> list[dict[str, Any]]:
    from ..agents.brain.messages import Run
    from ..agents.brain.planning import SCOPE, settled_by
    from ..agents.brain.revision import kept_lists, outcomes, specs_of
    from ..plans.stage import hash_beside_plan, remove_tree, stage_plan
    from . import ask

    bus, row, plan = rig.bus, new.row, new.checked.plan
    spec = row.get("spec") or {}
    folder = Path(tempfile.mkdtemp(prefix="rigbus-revise-"))
    try:
        files = hash_beside_plan(stage_plan(new.checked.source, folder).path)
    finally:
        remove_tree(folder)
    revision = int(row["revision"]) + 1
    run = Run(
        batch=new.batch,
        name=plan.name,
        state_id=str(bus.welcome["state_id"]),
        sha256="",
        staged="",
        original=str(spec.get("path")),
        view=str(rig.paths.views / view_name(new.batch, revision)),
        batch_path=f"{spec.get('batch_root')}/{new.batch}",
        config=new.checked.config,
        priority=spec.get("priority"),
        revision=revision,
        files=files,
    )
    facts = bus.query("facts", scope=SCOPE, key=new.batch)["facts"]
    plan = settled_by(plan, facts[0]["value"] if facts else None)
    specs = specs_of(plan, run)
    rows = {str(task["key"]): task for task, _ in ask.task_rows(bus, new.batch)}
    items: dict[str, list[Any]] = {}
    for name in kept_lists(plan, specs, rows):
        result = ask.task(bus, rows[f"{name}:expand"]["id"])["result"]
        if isinstance(result, dict) and isinstance(result.get("items"), list):
            items[name] = result["items"]
    return [
        {"name": key, "state": rows[key]["state"] if key in rows else None, "becomes": word}
        for key, word in outcomes(plan, run, specs, rows, items)
    ]
