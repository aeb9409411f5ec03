"""``rigbus load`` and ``rigbus unload``: which worker holds which model, by a person's word."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from .common import config_option, json_option, print_json, state_option, talk
from .reach import reach_bus

if TYPE_CHECKING:
    from ..bus.client.client import Client
    from ..bus.client.work import Result, Task

_CANCEL_S: Final = 5.0
F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="S",
    help="How long to wait for it.",
)
_WORKER = click.option(
    "--worker", metavar="NAME", default="", help="This model worker; else the rig chooses."
)


def _options(verb: F) -> F:
    """Those of both verbs."""
    for option in (
        click.argument("model", default=""),
        _WORKER,
        _TIMEOUT,
        json_option,
        config_option,
        state_option,
    ):
        verb = option(verb)
    return verb


@click.command()
@_options
def load(
    state: Path | None, config: Path | None, as_json: bool, timeout_s: float, worker: str, model: str
) -> int:
    """Load MODEL of the catalogue (the default one when left out) and wait until it answers.

    A cold worker takes it, else the one whose model has been idle for the longest time. Ctrl-C takes it back.
    """
    return _ask("load_llm", model, worker, state, config, as_json, timeout_s)


@click.command()
@_options
def unload(
    state: Path | None, config: Path | None, as_json: bool, timeout_s: float, worker: str, model: str
) -> int:
    """Unload MODEL, or what --worker holds, when nothing uses it any more; its memory is free then."""
    if not (model or worker):
        raise click.UsageError("name a model, or --worker NAME (rigbus status has both)")
    return _ask("unload_llm", model, worker, state, config, as_json, timeout_s)


def _ask(
    op: str, model: str, worker: str, state: Path | None, config: Path | None, as_json: bool, timeout_s: float
) -> int:
    from ..bus.client.work import Task
    from ..bus.errors import TaskFailed

    for text in (model, worker):
        if not text.isprintable() or len(text) > 200:
            raise click.UsageError(f"{text[:40]!r} is no name of a model or a worker")

    with reach_bus(state, config) as rig:
        meta = {"model": model, "worker": worker}
        key = ":".join(word for word in (op, model, worker) if word)
        ask, batch = Task(type=op, cls="meta", key=key, meta=meta), str(uuid.uuid4())
        try:
            ids = rig.bus.submit([ask], batch=batch)
            if not as_json:
                talk(f"asked for; `rigbus why {ids[0][:12]}` says how far it is")
            result = _heard(rig.bus, ids, timeout_s)
        except KeyboardInterrupt:
            _take_back(rig.bus, ask, batch)
            raise
    if as_json:
        said = {"task": result.id, "state": result.state, "error": result.error, "note": _note(result.value)}
        print_json({"schema": "rigbus.placement/1", "op": op, "model": model, "worker": worker, **said})
    if not result.ok:
        raise TaskFailed(result.error or f"{op} ended {result.state}")
    if not as_json:
        click.echo(_note(result.value))
    return 0


def _heard(bus: Client, ids: list[str], timeout_s: float) -> Result:
    """The ask's end; after ``timeout_s`` it goes on.

    Raises:
        WaitTimeout: it has not ended in time; the text says how to end it.
    """
    from ..bus.errors import WaitTimeout

    try:
        (result,) = bus.results(ids, timeout_s=timeout_s)
    except WaitTimeout as e:
        short = ids[0][:12]
        raise WaitTimeout(
            f"it is not done after {timeout_s:g} s, and goes on; `rigbus why {short}` says what it waits for, "
            f"`rigbus cancel {short}` ends it",
            ids=e.ids,
        ) from None
    return result


def _take_back(bus: Client, ask: Task, batch: str) -> None:
    """Cancel it. Ctrl-C may have come while the broker was taking it: the same batch asked for again says as what."""
    from ..bus.errors import RigbusError

    try:
        ids = bus.submit([ask], batch=batch, timeout_s=_CANCEL_S)
        bus.cancel(ids, reason="its asker has stopped waiting", timeout_s=_CANCEL_S)
    except RigbusError as e:
        way = (
            f"`rigbus cancel {ask.id[:12]}` ends it"
            if ask.id
            else "`rigbus status` shows whether it was accepted"
        )
        talk(f"it may go on, for it could not be cancelled: {e}; {way}")


def _note(value: object) -> str:
    return str(value.get("note") or "") if isinstance(value, dict) else ""
