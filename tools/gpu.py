"""``rigbus gpu``: the cards of this machine, what slows them, and which task heats them."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Final

import click

from ..agents.gpu.cards import row_of
from ..agents.gpu.sources import VARIABLE, chosen
from ..agents.gpu.watch import GpuWatch, Sample
from ..bus.errors import ConfigError, NotFound, RigbusError
from . import gpu_view
from .common import print_json, rig_options
from .gpu_rig import RigEye
from .requests import pause

INTERVAL_S: Final = 2.0
WARN_C: Final = 75.0
FIRST_S: Final = 15.0  #: for a driver that wakes up
_LINE_BYTES: Final = 1 << 20

_LOG = click.Path(dir_okay=False, path_type=Path)


@click.command("gpu")
@rig_options
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=INTERVAL_S,
    metavar="S",
    help="Seconds between two samples (default: 2).",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N samples; 1 prints a table.")
@click.option("--log", type=_LOG, metavar="FILE", help="Append each sample to FILE, as a line of JSON.")
@click.option(
    "--summary", type=_LOG, metavar="FILE", help="What such a log says: min/median/max, time too hot."
)
@click.option(
    "--warn",
    "warn_c",
    type=click.FloatRange(0, 200),
    default=WARN_C,
    metavar="C",
    help="Degrees from which a card is too hot (default: 75).",
)
def gpu(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    interval: float,
    count: int | None,
    log: Path | None,
    summary: Path | None,
    warn_c: float,
) -> int:
    """The cards of this machine, what slows them, and which task heats them.

    It goes on until Ctrl-C, or for --count samples; piped, it prints a line a card and sample. On a machine without
    cards it shows those that the rig's workers report. RIGBUS_GPU_SOURCE chooses where readings come from.
    """
    if summary is not None:
        if log is not None or count is not None:
            raise click.UsageError("--summary reads a log and samples nothing: leave --log and --count out")
        _summarise(summary, warn_c, as_json)
        return 0
    with ExitStack() as stack:
        samples = stack.enter_context(_samples(state, shared, config, interval))
        out = stack.enter_context(_appended(log)) if log is not None else None
        show = stack.enter_context(_shown(as_json, count, warn_c))
        for number, sample in enumerate(samples, 1):
            if out is not None:
                out.write(json.dumps(sample, ensure_ascii=False).encode() + b"\n")
            show(sample)
            if number == count:
                break
    return 0


# -- samples ---------------------------------------------------------------------------------------------------------


@contextmanager
def _samples(
    state: Path | None, shared: Path | None, config: Path | None, interval_s: float
) -> Iterator[Iterator[dict[str, Any]]]:
    """Samples (``rigbus.gpu/1``) of this machine's cards, else of those that the rig's workers report.

    Raises:
        NotFound: no card anywhere; the message says what was tried.  RigbusError: the driver does not answer.
    """
    choice = chosen()
    watch = GpuWatch(choice.open, interval_s)
    watch.start()
    try:
        first = watch.wait(0, FIRST_S)
        if first.number == 0 and not first.error:
            raise RigbusError(
                f"the driver gives no answer in {FIRST_S:g} s; a card may have fallen off the bus: dmesg | grep -i xid"
            )
        if first.number == 0 and choice.kind in ("synthetic", "file"):
            raise ConfigError(first.error)  # who plays readings does not want the rig's
        here = first.number > 0
        with RigEye(state, shared, config, folder=not here) as eye:
            yield _of_here(watch, eye) if here else _of_rig(eye, interval_s, first.error)
    finally:
        watch.close()


def _of_here(watch: GpuWatch, eye: RigEye) -> Iterator[dict[str, Any]]:
    """This machine's cards. A driver that hangs gives its last readings again, as stale."""
    number = 0
    while True:
        sample = watch.wait(number, 2 * watch.interval_s)
        number = sample.number
        now = eye.look()
        cards = [row_of(reading) for reading in sample.readings]
        if now is not None:
            cards = gpu_view.with_tasks(cards, now.workers, now.running, now.worker_of)
        yield _object(sample.source, cards, sample)


def _of_rig(eye: RigEye, interval_s: float, tried: str) -> Iterator[dict[str, Any]]:
    """The cards that the rig's workers report; ``tried`` is why there are none here."""
    first = True
    while True:
        now = eye.look()
        cards = gpu_view.cards_of(now.workers) if now is not None else []
        if first and not cards:
            rig = "no worker of the rig reports a card" if now is not None else eye.why_not
            raise NotFound(
                f"no GPU here: {tried}; nor elsewhere: {rig}; the driver and `pip install 'rigbus[gpu]'` give readings, "
                f"{VARIABLE}=synthetic:2 plays them"
            )
        first = False
        if now is not None:
            # Their processes are on another machine: a pid of it says nothing here.
            theirs = {"pids", "processes"}
            cards = [{key: value for key, value in card.items() if key not in theirs} for card in cards]
            cards = gpu_view.with_tasks(cards, now.workers, now.running, lambda pid: None)
        yield _object("rig", cards, Sample(age_s=0.0, stale=now is None))
        pause(interval_s)


def _object(source: str, cards: list[dict[str, Any]], sample: Sample) -> dict[str, Any]:
    return {
        "schema": "rigbus.gpu/1",
        "at": round(time.time() - (sample.age_s or 0.0), 3),
        "host": socket.gethostname(),
        "source": source,
        "stale": sample.stale,
        "cards": cards,
    }


# -- where they go ---------------------------------------------------------------------------------------------------


@contextmanager
def _shown(as_json: bool, count: int | None, warn_c: float) -> Iterator[Any]:
    """What is called with each sample: JSON lines, a table, a picture that renews itself, or lines for a pipe."""
    if as_json:
        yield lambda sample: _print(json.dumps(sample, ensure_ascii=False))
    elif count == 1:
        yield lambda sample: _print("\n".join(gpu_view.table(sample)))
    elif sys.stdout.isatty():
        from rich.live import Live

        with Live(auto_refresh=False, vertical_overflow="crop") as live:
            yield lambda sample: live.update(gpu_view.picture(sample, warn_c), refresh=True)
    else:
        yield lambda sample: _print("\n".join(gpu_view.lines(sample)))


def _print(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()  # a pipe's reader wants it now


@contextmanager
def _appended(file: Path) -> Iterator[FileIO]:
    """``file`` for whole lines at its end; a line that a crash has left half-written is closed first."""
    with file.open("ab", buffering=0) as out:
        if out.tell() > 0:
            with file.open("rb") as old:
                old.seek(-1, os.SEEK_END)
                if old.read(1) != b"\n":
                    out.write(b"\n")
        yield out


# -- a log's summary -------------------------------------------------------------------------------------------------


def _summarise(file: Path, warn_c: float, as_json: bool) -> None:
    from ..agents.gpu.summary import summarise

    good, skipped = [], 0
    with file.open("rb") as log:
        while line := log.readline(_LINE_BYTES):
            if not line.strip():
                continue
            value = _sample_in(line)
            if value is None:
                skipped += 1
            else:
                good.append(value)
    if not good:
        raise NotFound(
            f"{file}: no line of it is a sample of cards; `rigbus gpu --log FILE` writes such a file"
        )
    cards = summarise(good, warn_c)
    found = {
        "schema": "rigbus.gpu.summary/1",
        "file": str(file),
        "warn_c": warn_c,
        "skipped": skipped,
        "cards": cards,
    }
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(gpu_view.summary_lines(found)))


def _sample_in(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(value, dict) and isinstance(value.get("cards"), list) and value["cards"]
    return value if good else None
