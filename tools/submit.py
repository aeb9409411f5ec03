"""``rigbus submit``: check a plan, hand it over, and wait for its end where that is wished."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import click

from ..bus.errors import NotFound, TaskFailed, WaitTimeout
from . import plan_source, render, revising, submit_batch
from .common import json_option, print_json, say, shared_option, state_option, talk
from .files import Folder, is_silent
from .keyvalue import json_object, pairs
from .operate import ANSWER_S
from .reach import Reach, reach, rig_folders
from .requests import LOOK_S, pause, receipt_of, wait_receipt, write_request
from .rows import ENDED, batch_object

_FAULTS_SHOWN: Final = 5
_ASK_S: Final = 5.0
_WORDS: Final = ("low", "normal", "high", "urgent")


@click.command()
@state_option
@shared_option
@json_option
@click.option(
    "--rig-config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="This configuration file of the rig (`--config` of the other verbs).",
)
@click.option(
    "--set", "sets", multiple=True, metavar="K=V", help="A variable of the plan; JSON where V is JSON."
)
@click.option("--config", "config_json", metavar="JSON", help="Variables of the plan as one JSON object.")
@click.option("--priority", type=click.Choice(_WORDS), help="Of all its tasks that name none.")
@click.option(
    "--revise",
    metavar="BATCH",
    help="As a new revision of this batch: what is done stays done, the rest is what the plan says now.",
)
@click.option("--reason", default="", metavar="TEXT", help="With --revise: why, for people.")
@click.option("--dry-run", is_flag=True, help="Check it and print what would run.")
@click.option("--wait", is_flag=True, help="Wait for its end: 0 all ended well, 6 not, 7 timeout.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="With --wait: how long; in file mode also for the rig's answer.",
)
@click.argument("plan")
def submit(
    state: Path | None,
    shared: Path | None,
    as_json: bool,
    rig_config: Path | None,
    sets: tuple[str, ...],
    config_json: str | None,
    priority: str | None,
    revise: str | None,
    reason: str,
    dry_run: bool,
    wait: bool,
    timeout_s: float | None,
    plan: str,
) -> int:
    """Run a plan: a folder with a plan.md, a plan.md, or the name of a plan in the shared folder.

    A config.json in its folder counts, as it does for a dropped plan; --set and --config go before it.

    Or a NAME.jsonl of OpenAI Batch lines: its results come to stand beside it in the inbox, NAME.results.jsonl and
    NAME.errors.jsonl. Its priority is low where none is given.
    """
    if submit_batch.is_batch_file(plan):
        if sets or config_json is not None:
            raise click.UsageError("a batch file has no variables: leave --set and --config out")
        places = (state, shared, rig_config)
        return _submit_batch(places, as_json, priority, dry_run, wait, _until(timeout_s), plan)
    config = (json_object(config_json, "--config") if config_json is not None else {}) | pairs(sets, "--set")
    if revise is not None:
        with reach(state, shared, rig_config) as rig:
            new = revising.new_plan(rig, plan, config, priority, revise, reason)
            _warn(new.checked)
            if dry_run:
                return revising.show(rig, new, as_json)
            return _run(_Run(rig, new.checked, _until(timeout_s), new), wait, as_json)
    if dry_run:
        folders = rig_folders(state, shared, rig_config)
        checked = plan_source.check(plan_source.find_plan(plan, folders.shared), config, priority)
        _warn(checked)
        return _show_dry_run(checked, as_json)
    # The plan's faults come first, and need no rig; its name may need the folder that a rig serves.
    checked = plan_source.check(
        plan_source.find_plan(plan, rig_folders(state, shared, rig_config).shared), config, priority
    )
    _warn(checked)
    with reach(state, shared, rig_config) as rig:
        return _run(_Run(rig, checked, _until(timeout_s)), wait, as_json)


def _until(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _run(run: _Run, wait: bool, as_json: bool) -> int:
    run.hand_over(wait)
    try:
        return run.wait() if wait else 0
    finally:
        run.tell(as_json)


def _submit_batch(
    folders: tuple[Path | None, Path | None, Path | None],
    as_json: bool,
    priority: str | None,
    dry_run: bool,
    wait: bool,
    until: float | None,
    given: str,
) -> int:
    checked = submit_batch.check(given)
    submit_batch.warn(checked)
    if dry_run:
        return submit_batch.dry_run(checked, as_json)
    with reach(*folders) as rig:
        run = submit_batch.BatchSubmit(rig, checked, priority, until)
        run.hand_over(wait)
        try:
            return run.wait() if wait else 0
        finally:
            run.tell(as_json)


class _Run:
    """One submit: ``batch_id`` is empty until the rig has accepted it, ``row`` is the last that was seen of it."""

    def __init__(
        self,
        rig: Reach,
        checked: plan_source.Checked,
        until: float | None,
        new: revising.NewPlan | None = None,
    ) -> None:
        self.rig = rig
        self.new = new
        self.revision: int | None = None
        self.checked = checked
        self.config = checked.config
        self.priority = checked.priority
        self.until = until
        self.batch_id = ""
        self.request: Path | None = None
        self.row: dict[str, Any] | None = None
        self.seq = 0

    def hand_over(self, wait: bool) -> None:
        """Over the bus when there is one, else by a request file."""
        if self.rig.client is not None:
            self._by_bus()
        else:
            self._by_file()
            if not wait:
                self._hear_answer()
        if self.batch_id:
            number = render.counted(len(self.checked.plan.tasks), "task")
            done = f"revision {self.revision} of" if self.revision else "submitted"
            talk(f"{done} {self.batch_id}: {self.checked.plan.name}, {number}")
            if not wait:
                talk(f"follow it with `rigbus watch {self.batch_id}`")
        elif self.request is not None:
            talk(f"written: {self.request}; the rig's answer will be {receipt_of(self.request)}")

    def _by_bus(self) -> None:
        bus, paths, plan = self.rig.bus, self.rig.paths, self.checked.plan
        sha256 = plan_source.stage(self.checked.source, paths.staged)
        folder = plan_source.into_plans(self.checked.source, plan.name, paths.shared)
        spec: dict[str, Any] = {
            "name": plan.name,
            "sha256": sha256,
            "path": str(folder),
            "batch_root": str(folder / "batches"),
            "config": self.config,
            "source": "cli",
        }
        level = _level(self.priority)
        if level is not None:
            spec["priority"] = level
        self.seq = int(bus.welcome.get("seq") or 0)
        if self.new is None:
            self.batch_id = bus.submit_plan(spec, str(uuid4()), level)
            return
        done = bus.revise(self.new.batch, spec, str(uuid4()), reason=self.new.reason, priority=level)
        self.batch_id, self.revision = str(done["batch"]), int(done["revision"])

    def _by_file(self) -> None:
        shared, plan = self.rig.paths.shared, self.checked.plan
        id_ = str(uuid4())
        args: dict[str, Any] = {"plan": plan.name, "config": self.config}
        if self.priority is not None:
            args["priority"] = self.priority
        if os.path.realpath(self.checked.source) != os.path.realpath(shared / "plans" / plan.name):
            incoming = shared / "inbox" / f".incoming-{id_}"
            unfinished = incoming.with_name(f"{incoming.name}.part")
            # Links mean nothing on another machine, so what they point to goes along.
            try:
                plan_source.copy_plan(self.checked.source, unfinished, keep_links=False)
                os.rename(unfinished, incoming)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        if self.new is None:
            self.request = write_request(shared, "submit", args, id_=id_)
            return
        args["reason"] = self.new.reason
        self.request = write_request(shared, "revise", args, self.new.batch, id_=id_)

    def _hear_answer(self) -> None:
        """The rig's answer, where it is there and answers soon: who asked may be gone when it comes later.

        Raises:
            PlanError, Refused: the rig refused it.
        """
        if self.request is None or is_silent(self.rig.paths.shared):
            return
        until = time.monotonic() + ANSWER_S
        receipt = wait_receipt(self.request, until if self.until is None else min(until, self.until))
        if receipt is not None:
            self._accepted(receipt)

    def _accepted(self, receipt: dict[str, Any]) -> None:
        self.batch_id = str(receipt.get("batch_id") or "")
        if self.new is not None:
            self.revision = int(receipt.get("revision") or 0) or None

    # -- waiting ---------------------------------------------------------------------------------------------

    def wait(self) -> int:
        """Until the batch has ended.

        Raises:
            TaskFailed: not well.  WaitTimeout: not in time.
        """
        self.row = self._wait_bus() if self.rig.client is not None else self._wait_files()
        if self.row["state"] == "complete":
            return 0
        for line in self._faults():
            talk(line)
        why = f": {self.row['error']}" if self.row.get("error") else ""
        raise TaskFailed(
            f"batch {self.batch_id} ended {self.row['state']}{render.clean(why)}; `rigbus batch show {self.batch_id}`",
            state=self.row["state"],
        )

    def _wait_bus(self) -> dict[str, Any]:
        with self.rig.bus.events("batch.plan.*", since=self.seq) as events:
            while True:
                self.row = self.rig.bus.query("batch", id=self.batch_id)
                if self.row["state"] in ENDED:
                    return self.row
                look_at = time.monotonic() + _ASK_S  # the event is the sign, the question the truth
                while (left := min(look_at - time.monotonic(), self._left())) > 0:
                    event = events.poll(left)
                    if event is not None and event.batch == self.batch_id:
                        break
                if self._left() <= 0:
                    raise self._too_late()

    def _wait_files(self) -> dict[str, Any]:
        if self.request is not None and not self.batch_id:
            receipt = wait_receipt(self.request, self.until)
            if receipt is None:
                raise WaitTimeout(f"the rig has not answered {self.request}; is it up (`rigbus status`)?")
            self._accepted(receipt)
            talk(f"accepted as {self.batch_id}")
        folder = Folder(self.rig.paths.shared)
        while True:
            try:
                row = self.row = folder.batch(self.batch_id)
            except NotFound:  # the mirror has not drawn it yet
                row = None
            # The file may still show how the batch ended before it was revised.
            if (
                row is not None
                and row["state"] in ENDED
                and (row.get("revision") or 1) >= (self.revision or 1)
            ):
                return row
            if self._left() <= 0:
                raise self._too_late()
            pause(min(2 * LOOK_S, self._left()))

    def _left(self) -> float:
        return float("inf") if self.until is None else self.until - time.monotonic()

    def _too_late(self) -> WaitTimeout:
        return WaitTimeout(
            f"batch {self.batch_id} still runs; it goes on. `rigbus watch {self.batch_id}`, or `rigbus why {self.batch_id}`"
        )

    def _faults(self) -> list[str]:
        """The first tasks that ended badly, and how to see more of each."""
        if self.rig.client is not None:
            from . import ask

            rows = [row for row, _ in ask.task_rows(self.rig.client, self.batch_id, ("dead", "expired"))]
        else:
            tasks = Folder(self.rig.paths.shared).tasks(self.batch_id)
            rows = [{**t, "key": t["name"]} for t in tasks if t["state"] in ("dead", "expired")]
        lines = [
            render.clean(
                f"{r['key']} {r['state']}: {r['error'] or 'no reason was recorded'}; `rigbus logs {r['id'][:8]}`"
            )
            for r in rows[:_FAULTS_SHOWN]
        ]
        more = len(rows) - _FAULTS_SHOWN
        return lines + ([f"and {more} more"] if more > 0 else [])

    # -- saying ----------------------------------------------------------------------------------------------

    def tell(self, as_json: bool) -> None:
        """The answer on stdout."""
        plan = self.checked.plan
        if not as_json:
            if self.batch_id:
                state = f"  {self.row['state']}, {render.counts(self.row['tasks'])}" if self.row else ""
                say(f"{self.batch_id}{state}")
            return
        out: dict[str, Any] = {
            "schema": "rigbus.submit/1",
            "batch_id": self.batch_id or None,
            "plan": plan.name,
            "tasks": len(plan.tasks),
        }
        if self.revision is not None:
            out["revision"] = self.revision
        if self.request is not None:
            out |= {"request": str(self.request), "receipt": str(receipt_of(self.request))}
        if self.row is not None:
            seen = batch_object(self.row)
            out |= {"state": seen["state"], "counts": seen["tasks"], "error": seen["error"]}
        print_json(out)


def _level(word: str | None) -> int | None:
    if word is None:
        return None
    from ..plans.model import PRIORITY_LEVELS

    return next(level for name, level in PRIORITY_LEVELS.items() if name == word)


def _warn(checked: plan_source.Checked) -> None:
    for warning in checked.warnings:
        talk(f"warning: {render.clean(warning)}")


def _show_dry_run(checked: plan_source.Checked, as_json: bool) -> int:
    plan = checked.plan
    rows: list[dict[str, Any]] = [
        {
            "name": t.id,
            "type": t.type,
            "class": "brain" if t.executor == "brain" else t.task_class,
            "depends_on": [*t.depends_on, *(d.template for d in t.item_depends_on)],
            "foreach": f"{t.foreach.source}:{t.foreach.json_path}" if t.foreach else None,
            "command": shlex.join(t.argv)
            if t.argv is not None
            else t.command or t.prompt or t.text or t.input,
        }
        for t in plan.tasks
    ]
    if as_json:
        head = {
            "schema": "rigbus.submit/1",
            "batch_id": None,
            "plan": plan.name,
            "tasks": len(rows),
            "dry_run": True,
        }
        print_json({**head, "values": checked.values, "would_run": rows})
        return 0
    click.echo(f"{plan.name}: {render.counted(len(rows), 'task')} would run; nothing was written")
    head_row = ("TASK", "CLASS", "AFTER", "FOREACH", "COMMAND")
    cells = [(r["name"], r["class"], ", ".join(r["depends_on"]), r["foreach"], r["command"]) for r in rows]
    click.echo("\n".join(render.table(head_row, cells)))
    for name, value in sorted(checked.values.items()):
        click.echo(render.clean(f"  {name} = {value}"))
    return 0
