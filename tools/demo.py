"""``rigbus demo``: a private rig, the example plan, a worker killed half-way, and what became of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..bus.errors import ConfigError, RigbusError, TaskFailed, WaitTimeout
from .common import json_option, print_json, talk

if TYPE_CHECKING:
    from ..bus.client.client import Client
    from .demo_rig import DemoRig
    from .demo_story import Story
    from .demo_view import View

KILL_AT: Final = 0.5  #: of the plan's tasks; a little later when no worker holds anything just then
LOOK_S: Final = 0.2
WHOLE_S: Final = 300.0
PROMPT: Final = "In one short sentence: what is a standard library good for?"


@click.command()
@json_option
@click.option("--stay", is_flag=True, help="Leave the rig running and print how to talk to it.")
@click.option(
    "--model",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A GGUF file: the model adds one generated line to the report.",
)
def demo(as_json: bool, stay: bool, model: Path | None) -> int:
    """Show the whole thing in half a minute: no GPU, no model, no network, nothing of yours is touched."""
    from .demo_rig import DemoRig
    from .demo_view import View

    if model is not None and not model.is_file():
        raise ConfigError(f"--model {model}: no such file; give the path of a GGUF file")
    if os.geteuid() == 0:
        talk("a warning: this runs as root, and so does every command of the plan")
    view = View(sys.stderr if as_json else sys.stdout)
    rig = DemoRig(model=model, stay=stay)
    with _signals_as_interrupt():
        try:
            told = _tell(rig, view, model)
        except BaseException:
            rig.stop()
            rig.clear()
            raise
    if stay:
        _leave(rig, view)
    else:
        rig.stop()
        rig.clear()
        view.line("the rig is stopped")
    if as_json:
        print_json(told)
    if not told["ok"]:
        raise TaskFailed(
            f"the demo's plan ended {told['state']}: {told['tasks']}; the report is not what it should be"
        )
    return 0


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: with its rig."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    former = {n: signal.signal(n, interrupt) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _tell(rig: DemoRig, view: View, model: Path | None) -> dict[str, Any]:
    from ..bus.client.client import Client
    from .demo_rig import EXAMPLE
    from .demo_story import Story
    from .demo_tap import Tap

    began = time.monotonic()
    view.line(f"a private rig in {rig.folder}")
    run = rig.start()
    view.line(f"ready after {time.monotonic() - began:.1f} s: {', '.join(run['pids'])}")
    story = Story()
    with Client(state=rig.state) as bus, Tap(run["endpoints"]["events"]) as tap:
        events = bus.events("*", since=0)
        rig.drop(EXAMPLE, {})
        view.line(f"dropped the plan {EXAMPLE.name} into {rig.shared / 'inbox'}")
        batch = _follow(rig, bus, events, story, view, tap, model)
        life = tap.life(story.remarkable())
    told = _summary(rig, batch, story, time.monotonic() - began)
    told["life"] = life
    _show(told, story, view, life)
    return told


def _follow(
    rig: DemoRig, bus: Client, events: Any, story: Story, view: View, tap: Any, model: Path | None
) -> dict[str, Any]:
    """Until the plan has ended; half-way a worker is killed. The batch, as the broker shows it at the end."""
    batch_id, generated = "", model is None
    batch: dict[str, Any] = {}
    look_at = 0.0
    deadline = time.monotonic() + WHOLE_S
    with view.progress() as bar:
        while time.monotonic() < deadline:
            event = events.poll(LOOK_S)
            if event is not None:
                story.take(event)
                if event.topic.startswith("batch.plan.") and event.batch and not batch_id:
                    batch_id = event.batch
            tap.take()
            now = time.monotonic()
            if not batch_id or (now < look_at and not (event and event.topic.startswith("batch."))):
                continue
            look_at = now + LOOK_S
            batch = bus.query("batch", id=batch_id)
            bar.show(batch)
            if batch["state"] in ("complete", "failed", "cancelled"):
                _drain(events, story, tap)
                return batch
            folder = rig.shared / "plans" / batch["plan"] / "batches" / batch_id
            if not generated and folder.is_dir():  # the first task makes it
                generated = True
                _generate(bus, folder, bar)
            if story.kill is None and batch["total"] > 8 and batch["progress"] >= KILL_AT:
                _kill_one(rig, story, bar)
    raise WaitTimeout(f"the plan has not ended after {WHOLE_S:g} s; the rig said: {rig.last_words()}")


def _drain(events: Any, story: Story, tap: Any) -> None:
    """What has come meanwhile, so that the count is whole."""
    while (event := events.poll(LOOK_S)) is not None:
        story.take(event)
    tap.take()


def _kill_one(rig: DemoRig, story: Story, bar: Any) -> None:
    pids = {name: pid for name, pid in rig.run["pids"].items() if name.startswith("worker-")}
    name = story.busiest(pids)
    if name is None:
        return
    story.killed(name, pids[name], time.time())
    os.kill(pids[name], signal.SIGKILL)
    bar.line(f"half-way: kill -9 of {name} (pid {pids[name]}), in the middle of its work")


def _generate(bus: Client, batch_folder: Path, bar: Any) -> None:
    """One generated line for the report; without it the report is the same but for that line."""
    try:
        answer = bus.call("generate", {"prompt": PROMPT, "max_tokens": 40}, timeout_s=60)
    except RigbusError as e:
        bar.line(f"the model gave no line: {e}")
        return
    text = " ".join(str(answer.get("text", "")).split())
    (batch_folder / "generated.txt").write_text(text + "\n", encoding="utf-8")
    bar.line(f"the model wrote: {text[:100]}")


def _summary(rig: DemoRig, batch: dict[str, Any], story: Story, took_s: float) -> dict[str, Any]:
    """The demo as data (``rigbus.demo/1``); the report is copied to the folder's top."""
    folder = rig.shared / "plans" / batch["plan"] / "batches" / batch["id"]
    report: dict[str, str] = {}
    for name in ("report.html", "report.json"):
        if (folder / name).is_file():
            report[name.partition(".")[2]] = str(shutil.copyfile(folder / name, rig.folder / name))
    counts = {state: n for state, n in batch["tasks"].items() if n}
    kill = story.kill
    lost = story.lost(counts)
    return {
        "schema": "rigbus.demo/1",
        "ok": batch["state"] == "complete" and not lost and not story.twice and "json" in report,
        "state": batch["state"],
        "batch_id": batch["id"],
        "tasks": counts,
        "took_s": round(took_s, 2),
        "report": report,
        "killed": None
        if kill is None
        else {
            "worker": kill.worker,
            "pid": kill.pid,
            "leases_back": len(kill.back_at),
            "back_s": round(kill.back_s, 3),
            "rerun": len(kill.rerun),
            "supervisor": rig.said(kill.worker),
        },
        "lost": lost,
        "recorded_twice": story.twice,
    }


def _show(told: dict[str, Any], story: Story, view: View, life: list[str]) -> None:
    view.line(story.kill_line(told["tasks"]))
    if told["killed"]:
        for line in told["killed"]["supervisor"]:
            view.line(f"  the supervisor: {line}")
    view.heading("Summary")
    shown = ", ".join(f"{number} {state}" for state, number in told["tasks"].items())
    view.line(f"plan code_census {told['state']} in {told['took_s']:.1f} s: {shown}")
    if "json" in told["report"]:
        totals = json.loads(Path(told["report"]["json"]).read_text("utf-8"))["totals"]
        view.line(
            f"measured {totals['files']} files: {totals['lines']:,} lines, {totals['functions']:,} functions, "
            f"{totals['doc_percent']:g} % of what can have a docstring has one"
        )
    for path in told["report"].values():
        view.line(f"  report: {path}")
    view.heading("The life of one task, as the sniffer saw it")
    for line in life:
        view.line(line)


def _leave(rig: DemoRig, view: View) -> None:
    rig.leave()
    view.heading("The rig stays up. Paste:")
    for line in (
        f"export RIGBUS_STATE={rig.state} RIGBUS_SHARED={rig.shared}",
        "rigbus status; rigbus sniff -n 20",
        f"rigbus down && chmod -R u+w {rig.folder} && rm -rf {rig.folder}",
    ):
        view.line(line)
