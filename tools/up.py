"""``rigbus up``: the whole rig, in the foreground or detached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..bus.errors import ConfigError, RigbusError
from ..bus.paths import default_state
from .common import HANDED_ON, attempt_words, print_json, rig_options, settings_of, talk, thermal_text, where

if TYPE_CHECKING:
    from ..agents.supervisor.cards import Seats
    from ..agents.supervisor.core import ChildSpec
    from ..bus.paths import RigPaths


@click.command()
@rig_options
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    metavar="N",
    help="Workers for commands (default: one per NVIDIA card that is not the brain's, else 2).",
)
@click.option(
    "--model",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A GGUF file: an agent serves it (`rigbus call generate prompt=…`).",
)
@click.option(
    "-d", "--detach", is_flag=True, help="Return as soon as the rig is ready; it goes on by itself."
)
def up(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    workers: int | None,
    model: Path | None,
    detach: bool,
) -> int:
    """Start the rig: broker, brain, bridge and workers, until Ctrl-C or `rigbus down`."""
    paths = where(state, shared, config)
    if detach:
        return _detached(paths, config, workers, model, as_json)
    return _foreground(paths, config, workers, model, as_json)


def _foreground(
    paths: RigPaths, config: Path | None, workers: int | None, model: Path | None, as_json: bool
) -> int:
    from ..agents.supervisor import folder as rigfolder
    from ..agents.supervisor.supervisor import Supervisor

    began = time.monotonic()
    settings = settings_of(config, workers=workers, model=model)
    specs = specs_of(settings)
    lock = rigfolder.prepare(paths)

    def ready(run: dict[str, Any], status: dict[str, Any]) -> None:
        offered = {c for w in status["workers"] for c in w["classes"]}
        if any(w.get("placement") for w in status["workers"]):
            offered.add("llm")  # a model is on its way there, or will be when work waits for it
        for line in rigfolder.idle_class_lines(offered):
            _say(line)
        text = (
            f"ready in {time.monotonic() - began:.1f} s: {len(run['pids'])} processes, shared folder {paths.shared}; "
            "try `rigbus status`, stop with Ctrl-C or `rigbus down`"
        )
        _say(json.dumps(ready_json(run)) if as_json else text, err=False)

    try:
        for line in (
            rigfolder.trust_line(paths.shared),
            rigfolder.root_line(),
            rigfolder.mount_line(paths.shared),
            _share_line(paths),
            _moved_line(paths),
            *_model_lines(settings, paths.state),
        ):
            if line:
                _say(line)
        env = {HANDED_ON: json.dumps(settings)}
        return Supervisor(paths, specs, lease_s=settings["lease_s"], say=_say, on_ready=ready, env=env).run()
    finally:
        lock.release()


def _share_line(paths: RigPaths) -> str:
    """A word where the shared folder is missing; without `--shared` the bridge makes it."""
    if paths.shared == paths.state / "shared" or paths.shared.is_dir():
        return ""
    return f"the shared folder {paths.shared} is not there: mount it, or `mkdir -p` it; the rig waits for it"


def _moved_line(paths: RigPaths) -> str:
    """A word where the rig has served another folder before: what is dropped there would lie unseen."""
    try:
        served = json.loads((paths.state / "share.json").read_bytes())
    except (OSError, ValueError):
        return ""
    if not isinstance(served, dict) or str(paths.shared) in served:
        return ""
    for former in served:
        if Path(former).is_dir():
            return f"until now this rig served {former}; to go on there: `rigbus up --shared {former}`"
    return ""


def _model_lines(settings: dict[str, Any], state: Path) -> list[str]:
    """What is wrong with the files of the models: the rig starts all the same, for they may be replaced."""
    from ..agents.models.catalogue.catalogue import Catalogue

    probed = Catalogue.from_settings(settings).probed(state)
    return [f"warning: {entry.problem}" for entry in probed if entry.problem]


def specs_of(settings: dict[str, Any]) -> list[ChildSpec]:
    """What this `up` runs: the rig's own processes, the agents of the configuration, the model.

    Raises:
        ConfigError: two of them have one name, or the model's file is not there.
    """
    from ..agents.supervisor.cards import card_uuids, present_cards, seats
    from ..agents.supervisor.children import agent_spec, rig_specs

    uuids = card_uuids()
    seated = seats(settings, present_cards(), uuids)
    for note in seated.notes:
        _say(note)
    extra = []
    for entry in settings["agents"]:
        base = entry["name"] or entry["spec"].rpartition(":")[2].rpartition(".")[2].lower()
        for n in range(1, entry["count"] + 1):
            name = base if entry["count"] == 1 else f"{base}-{n}"
            extra.append(agent_spec(name, entry["spec"], cwd=Path.cwd(), slots=entry["slots"]))
    extra += _model_workers(settings, seated, uuids)
    specs = rig_specs(seated.workers, slots=settings["slots"], brain_cards=seated.brain, extra=extra)
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"[[agents]]: two processes are named {name!r}; give each entry a name of its own"
            )
    return specs


def _model_workers(settings: dict[str, Any], seated: Seats, uuids: dict[str, str]) -> list[ChildSpec]:
    """Where models are held.

    Raises:
        ConfigError: --model names no file.
    """
    from ..agents.supervisor.cards import model_seats
    from ..agents.supervisor.children import model_worker_spec

    model = settings["model"]
    if model is not None and not Path(model).is_file():
        if os.environ.get("RIGBUS_MODEL") == model:
            raise ConfigError(
                f"RIGBUS_MODEL={model!r} is no file: for a rig it is the path of a GGUF file, only for a command of class "
                "llm the name of a model; correct or unset it, or give --model FILE"
            )
        raise ConfigError(f"the model {model} is no file; give the path of a GGUF file with --model")
    return [
        model_worker_spec(
            seat,
            env_pass=settings["env_pass"],
            thermal=thermal_text(settings),
            bounds=attempt_words(settings),
        )
        for seat in model_seats(settings, seated, uuids)
    ]


def _say(text: str, *, err: bool = True) -> None:
    """A line for people, or the answer (``err`` False). That nobody reads any more must not end the rig."""
    try:
        click.echo(text, err=err)
    except OSError:
        pass


def ready_json(run: dict[str, Any]) -> dict[str, Any]:
    """The object of INTERFACE: who runs under which pid, and where it is reached."""
    keys = ("endpoints", "pids", "pid", "state", "shared", "version", "started_at")
    return {"schema": "rigbus.up/1", "ready": True, **{key: run[key] for key in keys}}


def _detached(
    paths: RigPaths, config: Path | None, workers: int | None, model: Path | None, as_json: bool
) -> int:
    """Start the same command in a session of its own and wait for its word that it is ready."""
    from ..agents.supervisor.folder import last_line, rotate_log, said_since

    paths.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_file = paths.logs / "up.log"
    rotate_log(log_file)
    words = [
        sys.executable,
        "-P",
        "-m",
        "rigbus",
        "up",
        "--json",
        "--state",
        str(paths.state),
        "--shared",
        str(paths.shared),
    ]
    words += ["--config", str(config.absolute())] if config is not None else []
    words += ["--workers", str(workers)] if workers is not None else []
    words += ["--model", str(model.absolute())] if model is not None else []
    with log_file.open("ab") as log:
        log_from = log.tell()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    if process.stdout is None:
        raise RigbusError("the rig's process has no output to wait for")
    line = process.stdout.readline()
    if not line:
        code = process.wait()
        talk(last_line(log_file, log_from) or f"rigbus: the rig did not start; see {log_file}")
        return code or 1
    run = json.loads(line)
    for said in said_since(log_file, log_from):
        talk(said)
    if as_json:
        print_json(run)
        return 0
    stop = "rigbus down" if paths.state == default_state() else f"rigbus down --state {paths.state}"
    click.echo(f"ready: shared folder {run['shared']}; try `rigbus status`, stop with `{stop}`")
    click.echo(f"  its log is {log_file}; the processes:")
    for name, pid in run["pids"].items():
        click.echo(f"  {name:<14} {pid}")
    process.stdout.close()
    process.returncode = 0  # it goes on, and that is no oversight: Popen would warn at our exit
    return 0
