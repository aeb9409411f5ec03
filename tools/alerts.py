"""``rigbus alerts list|ack|test``: what needs a person, and the word that one has seen it."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import click

from ..bridge.folder.alerts.files import ORDERS, alert_fields
from ..bus.alerting.core import Alert, State
from ..bus.alerting.rules import Severity, is_key
from ..bus.errors import NotFound, WaitTimeout
from ..bus.paths import write_atomic
from . import render
from .alert_rows import counts, of_journal, of_share, ordered
from .common import print_json, rig_options, say, talk
from .operate import answer_option, answered, only_asked
from .reach import Reach, reach
from .requests import pause

LOOK_S: Final = 0.1


@click.group()
def alerts() -> None:
    """What needs a person: the alerts of the rig, and the word that one has seen them."""


@alerts.command("list")
@rig_options
@click.option("--all", "everything", is_flag=True, help="Those that are over, too.")
def list_(
    state: Path | None, shared: Path | None, config: Path | None, as_json: bool, everything: bool
) -> int:
    """The alerts that are not over, the gravest first."""
    with reach(state, shared, config) as rig:
        found = ordered(_alerts(rig))
        now = time.time()
    shown = [a for a in found if everything or a.live]
    if as_json:
        rows = [alert_fields(a, _offset_s(now)) for a in shown]
        print_json({"schema": "rigbus.alerts/1", "counts": counts(found), "alerts": rows})
        return 0
    if not shown:
        click.echo("no alert is raised")
        return 0
    table = [
        (a.severity.value, a.state.value, a.key, render.age(a.changed_at, now), _title(a)) for a in shown
    ]
    click.echo("\n".join(render.table(("SEVERITY", "STATE", "KEY", "SINCE", "WHAT"), table)))
    return 0


@alerts.command()
@rig_options
@click.argument("key")
@click.option("--note", default="", metavar="TEXT", help="A word for the others.")
@answer_option
def ack(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    key: str,
    note: str,
    answer_s: float,
) -> int:
    """Say that somebody has seen KEY: lamps go back to what they were, nobody is told again.

    What has happened (a failed batch, a dead task) is cleared by it; what is still so stays, acked, until it is over.
    """
    if not is_key(key):
        raise NotFound(f"{key[:100]!r} is no key of an alert; `rigbus alerts list` shows them")
    args = {"key": key, "by": _me(), "note": note}
    with reach(state, shared, config) as rig:
        if not any(a.key == key for a in _alerts(rig)):
            raise NotFound(f"there is no alert {key}; `rigbus alerts list --all` shows them")
        if rig.client is None:
            answer, places = answered(rig, "ack", args, None, answer_s)
            if answer is None:
                return only_asked("ack", places, as_json)
            word = str(answer.get("state") or "acked")
        else:
            _order(rig.paths.state, "ack", args)
            word = _await(rig, key, lambda a: a.state is not State.RAISED, answer_s).state.value
    if as_json:
        print_json({"schema": "rigbus.ack/1", "key": key, "state": word})
    else:
        say(f"{key}: {word}")
    return 0


@alerts.command()
@rig_options
@click.option("--severity", type=click.Choice([s.value for s in Severity]), default="info", show_default=True)
@answer_option
def test(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    severity: str,
    answer_s: float,
) -> int:
    """Raise an alert `test`, to see where it arrives; `rigbus alerts ack test` ends it."""
    args = {"by": _me(), "severity": severity}
    with reach(state, shared, config) as rig:
        if rig.client is None:
            answer, places = answered(rig, "alert-test", args, None, answer_s)
            if answer is None:
                return only_asked("alert-test", places, as_json)
        else:
            since = time.time()
            _order(rig.paths.state, "alert-test", args)
            _await(rig, "test", lambda a: a.live and a.changed_at >= since, answer_s)
    if as_json:
        print_json({"schema": "rigbus.alert.test/1", "key": "test", "severity": severity})
    else:
        click.echo("test: raised; `rigbus alerts ack test` ends it")
    return 0


def _alerts(rig: Reach) -> list[Alert]:
    """By the rig's own journal beside it, which knows them also while the share is away; else by the share's files."""
    if rig.client is not None:
        kept = of_journal(rig.paths.state)
        if kept is not None:
            return kept
    return of_share(rig.paths.shared)


def _order(state: Path, verb: str, args: dict[str, Any]) -> None:
    folder = state / ORDERS
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(folder / f"{uuid4()}.json", json.dumps({"verb": verb, "args": args}).encode())


def _await(rig: Reach, key: str, done: Callable[[Alert], bool], answer_s: float) -> Alert:
    """The alert, when the bridge has done what was asked.

    Raises:
        WaitTimeout: it has not yet; it will, when it is there.
    """
    until = time.monotonic() + answer_s
    while True:
        for alert in of_journal(rig.paths.state) or ():
            if alert.key == key and done(alert):
                return alert
        if time.monotonic() >= until:
            talk("is the bridge up? `rigbus status` says it")
            raise WaitTimeout(f"no answer within {answer_s:g} s; the bridge does it when it is there")
        pause(LOOK_S)


def _title(alert: Alert) -> str:
    again = f" ({alert.times} times)" if alert.times > 1 else ""
    return render.clean(f"{alert.title}{again}" + (f"; {alert.fix}" if alert.fix and alert.live else ""))


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return ""


def _offset_s(at: float) -> float:
    return float(time.localtime(at).tm_gmtoff)
