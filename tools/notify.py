"""``rigbus notify``: alerts to lamps, phones and webhooks, from a machine that has nothing but the shared folder."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..bus.errors import NotFound, Refused, RigbusError, WaitTimeout
from ..bus.paths import write_atomic
from .common import (
    Place,
    config_option,
    json_option,
    place_options,
    print_json,
    process_log,
    say,
    seconds_option,
    settings_of,
    talk,
)

if TYPE_CHECKING:
    from ..bridge.pi.deadman import Signs
    from ..bridge.pi.service import Read
    from ..bridge.pi.tending import Sink
    from ..bus.alerting.core import Alert

PRESS_S: Final = 60.0
_notify_state = click.option(
    "--notify-state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="What was delivered, and the scenes of lamps (default: ~/.local/state/rigbus-notify).",
)


@click.group(invoke_without_command=True)
@place_options
@json_option
@_notify_state
@click.option(
    "--once", is_flag=True, help="Look once, deliver what is owed, end; 1 where something was not delivered."
)
@click.option("--dry-run", is_flag=True, help="Say what would be delivered; deliver and change nothing.")
@click.pass_context
def notify(
    ctx: click.Context,
    place: Place,
    as_json: bool,
    notify_state: Path | None,
    once: bool,
    dry_run: bool,
) -> int | None:
    """Carry the alerts of a shared folder to the sinks of [notify], until Ctrl-C. It only reads the folder."""
    if ctx.invoked_subcommand is not None:
        return None
    from ..bridge.pi import service
    from ..bus.alerting.rules import Policy

    settings = settings_of(place.config)
    folder = state_folder(notify_state)
    if not dry_run:
        process_log("notify", settings["logs"]["level"])
        held = service.lock(folder)
    table = settings["notify"]
    sinks = sinks_of(table, folder)
    read = reader(place.paths().shared)
    policy = Policy.of(settings["alerts"])
    if dry_run:
        return _dry_run(read, sinks, as_json)
    notices = service.Notices(folder, table["grace_s"], table["mount_grace_s"], policy)
    try:
        if once:
            left = service.once(read, notices, sinks)
            if as_json:
                print_json({"schema": "rigbus.notify/1", "delivered": not left, "undelivered": left})
            elif left:
                talk(
                    f"not everything is delivered to {', '.join(left)}: the log says why; the next run goes on"
                )
            return 1 if left else 0
        ending = _on_signals()
        talk(f"notify: {len(sinks)} sink{'' if len(sinks) == 1 else 's'}; state in {folder}")
        service.run(read, notices, sinks, table["poll_s"], ending)
    finally:
        os.close(held)
    return 0


@notify.command()
@config_option
@json_option
@click.argument("sink", required=False)
@seconds_option("--for", "for_s", high=60.0, default=3.0, help="So long a lamp is amber.")
def test(config: Path | None, as_json: bool, sink: str | None, for_s: float) -> int:
    """Send a test through SINK, or through all of them: nothing of it is kept, a lamp gets back what it showed."""
    from tempfile import TemporaryDirectory

    settings = settings_of(config)["notify"]
    names = [sink] if sink else list(settings["sinks"])
    if sink and sink not in settings["sinks"]:
        raise NotFound(
            f"no sink {sink!r} in [notify.sinks]; there are {', '.join(settings['sinks']) or 'none'}"
        )
    results: dict[str, str] = {}
    with TemporaryDirectory(prefix="rigbus-notify-") as scratch:
        for name in names:
            try:
                one = sinks_of({**settings, "sinks": {name: settings["sinks"][name]}}, Path(scratch))[name]
                results[name] = _try(one, settings["sinks"][name]["type"], for_s)
            except RigbusError as e:
                results[name] = str(e)
    if as_json:
        rows = {name: {"ok": not said, "error": said or None} for name, said in results.items()}
        print_json({"schema": "rigbus.notify.test/1", "sinks": rows})
    else:
        say("\n".join(f"{name}: {said or 'it has arrived'}" for name, said in results.items()) or "no sinks")
    return 1 if any(results.values()) or not results else 0


@notify.command()
@json_option
@click.option(
    "--bridge", "address", required=True, metavar="ADDRESS", help="The bridge's own address, as 192.168.1.20."
)
@click.option(
    "--key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Where the key goes (0600).",
)
@click.option("--fingerprint", metavar="SHA256", help="Refuse any other certificate than this one.")
@seconds_option("--timeout", "press_s", default=PRESS_S, help="Wait so long for the button.")
def pair(as_json: bool, address: str, key_file: Path, fingerprint: str | None, press_s: float) -> int:
    """Pair with a Philips Hue bridge: compare what it shows, press its button, and the key lies in FILE.

    From then on only the bridge with this certificate is spoken to.
    """
    from ..bridge.pi import hue
    from ..bridge.pi.web import WebError

    if key_file.exists():
        raise Refused(f"{key_file} is there already; remove it, or give another --key-file")
    try:
        found, id_ = hue.look(address)
        wanted = (fingerprint or "").lower().removeprefix("sha256:").replace(":", "")
        if wanted and wanted != found:
            raise RigbusError(f"{address} shows the certificate {found}, not {wanted}: nothing was paired")
        talk(f"bridge {id_ or '(it does not say its id)'} shows the certificate SHA-256 {_pairs(found)}")
        talk("compare the id with the one on the bridge's back, then press its round button")
        until = time.monotonic() + press_s
        while (key := hue.pair(address, found)) is None:
            if time.monotonic() >= until:
                raise WaitTimeout(f"nobody pressed the button within {press_s:g} s; try again")
            threading.Event().wait(1.0)
    except WebError as e:
        raise RigbusError(str(e)) from None
    key_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(key_file, key.encode() + b"\n", mode=0o600)
    if as_json:
        said = {"bridge": address, "bridge_id": id_, "fingerprint": found, "key_file": str(key_file)}
        print_json({"schema": "rigbus.notify.pair/1", **said})
        return 0
    lines = [
        "[notify.sinks.room]",
        'type = "hue"',
        f"bridge = {json.dumps(address)}",
        f'fingerprint = "{found}"',
    ]
    lines += [f"key_file = {json.dumps(str(key_file.absolute()))}", 'group = "…the name of a room or zone…"']
    click.echo("\n".join(lines))
    return 0


@notify.command()
@_notify_state
@click.argument("key")
def ack(notify_state: Path | None, key: str) -> int:
    """Say that somebody has seen KEY, one of notify's own alerts (rig-silent, mount-away, clocks-apart)."""
    from ..bridge.pi.service import ACKS
    from ..bus.alerting.rules import READERS

    if key not in READERS:
        raise NotFound(
            f"{key[:60]!r} is none of {', '.join(sorted(READERS))}; of the rig's own: `rigbus alerts ack`"
        )
    folder = state_folder(notify_state) / ACKS
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(folder / key, b"")
    click.echo(f"{key}: acked as soon as notify looks")
    return 0


def state_folder(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Where notify keeps what it has done."""
    if given is not None:
        return given
    if systemd := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(systemd)
    xdg = environ.get("XDG_STATE_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else Path.home() / ".local" / "state"
    return base / "rigbus-notify"


def sinks_of(
    table: Mapping[str, Any], folder: Path, environ: Mapping[str, str] = os.environ
) -> dict[str, Sink]:
    """The sinks of ``[notify]``.

    Raises:
        ConfigError: a secret of one is not there, or an address is none.
    """
    from ..bridge.pi import sinks
    from ..bridge.pi.hue import HueBridge
    from ..bridge.pi.outbox import Wants
    from ..bridge.pi.secrets import secret_of
    from ..bridge.pi.tending import Kept, Lights, Messages
    from ..bus.alerting.core import State
    from ..bus.alerting.rules import Severity

    out: dict[str, Sink] = {}
    for name, of in table["sinks"].items():
        states = sinks.STATES.get(of["type"], frozenset(State))
        rules, not_rules = frozenset(of["rules"]), frozenset(of["not_rules"])
        wants = Wants(Severity(of["min_severity"]), rules, not_rules, states)
        kept = Kept(folder / f"sink-{name}.json")
        if of["type"] == "hue":
            key = secret_of(name, of, "key", environ)
            bridge = HueBridge(of["bridge"], key, of["fingerprint"], of["timeout_s"])
            out[name] = Lights(name, wants, bridge, of["group"], of["brightness"], kept)
        else:
            build = sinks.builder(name, of, environ)
            out[name] = Messages(name, wants, build, partial(sinks.send, timeout_s=of["timeout_s"]), kept)
    return out


def reader(root: Path) -> Read:
    """What reads the folder once: its alerts, and the signs of its rig."""
    from .alert_rows import of_share
    from .files import Folder
    from .reach import is_share

    folder = Folder(root)

    def read() -> tuple[list[Alert], Signs] | None:
        if not is_share(root):
            return None
        return of_share(root), signs(folder)

    return read


def signs(folder: Any) -> Signs:
    """By ``brain/state.json`` and the workers' heartbeats."""
    from ..bridge.pi.deadman import Signs

    stamps = folder.stamps()
    mark = blake2b(repr(stamps).encode(), digest_size=12).hexdigest()
    newest = max((at for at, _ in stamps), default=None)
    limit_s = max((limit for _, limit in stamps), default=0.0)
    return Signs(folder.state().get("status") == "stopped", newest, limit_s, mark)


def _dry_run(read: Read, sinks: Mapping[str, Sink], as_json: bool) -> int:
    found = read()
    alerts = found[0] if found else []
    plan = {name: sink.owed(alerts) for name, sink in sinks.items()}
    if as_json:
        print_json({"schema": "rigbus.notify.plan/1", "share": found is not None, "sinks": plan})
        return 0
    if found is None:
        talk("the shared folder is not there")
    for name, lines in plan.items():
        say("\n".join(f"{name}: {line}" for line in lines) or f"{name}: nothing is owed")
    return 0


def _try(sink: Sink, kind: str, for_s: float) -> str:
    """What went wrong; empty when it has arrived."""
    from ..bus.alerting.core import Alert, State
    from ..bus.alerting.rules import Severity

    at = time.time()
    alert = Alert(
        "test", "test", Severity.INFO, State.RAISED, "a test of rigbus notify: nothing is wrong", raised_at=at
    )
    rest = threading.Event()
    for alerts, wait_s in (([alert], for_s), ([], 0.0)) if kind == "hue" else (([alert], 0.0),):
        for _ in range(200):
            pause = sink.tend(alerts)
            if sink.settled():
                break
            if pause is None or pause >= 1.5:  # a pause after a failure
                return "it has not arrived; the line above says why"
            rest.wait(pause)
        else:
            return "it does not come to an end"
        rest.wait(wait_s)
    return ""


def _on_signals() -> threading.Event:
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    return ending


def _pairs(fingerprint: str) -> str:
    return ":".join(fingerprint[i : i + 2] for i in range(0, len(fingerprint), 2)).upper()
