"""The command ``rigbus bench``: options of each bench, and how its figures are said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ..common import json_option, print_json, talk
from .figures import SCHEMA
from .recovery import PARTS

if TYPE_CHECKING:
    from .figures import Outcome

F = TypeVar("F", bound=Callable[..., Any])
_PROFILE: Final = click.option(
    "--profile",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Profile each process into DIR and print where its time goes; the rates are lower then.",
)

_INTO_PAGE: Final = click.option(
    "--write",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Put the figures into this page of `bench all`.",
)


def _number(name: str, low: int, high: int, default: int, text: str) -> Callable[[F], F]:
    return click.option(name, type=click.IntRange(low, high), default=default, show_default=True, help=text)


def _rounds(function: F) -> F:
    return _number("--repeats", 1, 100, 5, "Rounds after the warm-up.")(function)


def _workers(function: F) -> F:
    return _number("--workers", 1, 64, 2, "Worker processes.")(function)


@click.group()
def bench() -> None:
    """Figures of this machine; each rig is a private one in a temporary folder, with full durability."""


def _folder(given: Path | None) -> Path | None:
    """Where the processes' profiles go, made if need be: an absolute path."""
    if given is None:
        return None
    given.mkdir(parents=True, exist_ok=True)
    return given.resolve()


def _tell(outcome: Outcome, as_json: bool, profiles: Path | None = None) -> int:
    from .figures import lines_of

    if profiles is not None:
        from .profiled import tops

        found = tops(profiles)
        outcome.more["profiles"] = {name: [row._asdict() for row in rows] for name, rows in found.items()}
    if as_json:
        print_json(outcome.as_json())
        return 0
    click.echo("\n".join(lines_of(outcome)))
    if profiles is not None:
        from .profiled import lines_of_tops

        click.echo("\n".join(["", *lines_of_tops(found, profiles)]))
    return 0


@bench.command()
@json_option
@_number("--tasks", 100, 100_000, 5000, "Tasks of a round.")
@_rounds
@_workers
@_number("--slots", 1, 64, 1, "Tasks at once a worker.")
@_number("--payload", 0, 200_000, 200, "Bytes of a payload.")
@_number("--singles", 10, 10_000, 200, "Calls one at a time, in each round.")
@click.option("--durability", type=click.Choice(("full", "normal")), default="full", show_default=True)
@_PROFILE
def bus(
    as_json: bool,
    tasks: int,
    repeats: int,
    workers: int,
    slots: int,
    payload: int,
    singles: int,
    durability: str,
    profile: Path | None,
) -> int:
    """No-op tasks through broker, workers and client: tasks a second, latency, CPU a task."""
    from . import bus as it

    options = it.Options(tasks, repeats, workers, slots, payload, singles, durability, _folder(profile))
    return _tell(it.measure(options, talk), as_json, options.profile)


@bench.command()
@json_option
@_number("--tasks", 10, 50_000, 3000, "Tasks of a round.")
@_rounds
@_workers
@_number("--slots", 1, 64, 1, "Tasks at once a worker.")
@_PROFILE
def shell(as_json: bool, tasks: int, repeats: int, workers: int, slots: int, profile: Path | None) -> int:
    """A plan of `true` commands, beside a bare loop of `bash -c true`: tasks a second of both."""
    from . import shell as it

    options = it.Options(tasks, repeats, workers, slots, profile=_folder(profile))
    return _tell(it.measure(options, talk), as_json, options.profile)


@bench.command()
@json_option
@_number("--chain", 10, 10_000, 1000, "Tasks in a row.")
@_number("--fan", 10, 20_000, 2000, "Tasks side by side between two.")
@_number("--items", 10, 90_000, 20_000, "Items of the plan's list.")
@_rounds
@_workers
def dag(as_json: bool, chain: int, fan: int, items: int, repeats: int, workers: int) -> int:
    """Dependencies: a chain, a fan, and a long list whose expansion must not stall the broker."""
    from . import dag as it

    return _tell(it.measure(it.Options(chain, fan, items, repeats, workers), talk), as_json)


@bench.command()
@json_option
@_number("--tasks", 100, 100_000, 100_000, "Tasks in the long queue.")
@_number("--small", 10, 10_000, 1000, "Tasks in the short queue.")
@_number("--part", 10, 20_000, 5000, "Tasks drained in each round.")
@_rounds
@_workers
@_number("--payload", 0, 200_000, 200, "Bytes of a payload.")
def scale(as_json: bool, tasks: int, small: int, part: int, repeats: int, workers: int, payload: int) -> int:
    """A long queue: the broker's memory, what a lease costs with it, a restart with it."""
    from . import scale as it

    if part * repeats > tasks:
        raise click.UsageError(
            f"--part {part} × --repeats {repeats} are more than --tasks {tasks}; drain less, or queue more"
        )
    return _tell(it.measure(it.Options(tasks, small, part, repeats, workers, payload), talk), as_json)


@bench.command()
@json_option
@_number("--rate", 1, 2000, 200, "Tasks a second.")
@click.option(
    "--for",
    "for_s",
    type=click.IntRange(1, 600),
    default=10,
    show_default=True,
    metavar="S",
    help="Seconds of a round.",
)
@_rounds
@_workers
def mirror(as_json: bool, rate: int, for_s: int, repeats: int, workers: int) -> int:
    """How long after a task's end a reader of the shared folder sees it, at a steady rate."""
    from . import mirror as it

    return _tell(it.measure(it.Options(rate, for_s, repeats, workers), talk), as_json)


@bench.command()
@json_option
@click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The GGUF. Our targets are for models of at least 10 ms a token.",
)
@_number("--tokens", 8, 2000, 96, "Tokens of each answer.")
@_number("--ctx", 1024, 131_072, 4096, "Context of the model, for its eight requests together.")
@_INTO_PAGE
@_rounds
def llm(as_json: bool, model: Path, tokens: int, ctx: int, write: Path | None, repeats: int) -> int:
    """A model: tokens a second of one request and of eight, beside llama.cpp alone and through the bus."""
    from . import llm as it

    return _tell_apart(it.measure(it.Options(model.absolute(), tokens, repeats, ctx), talk), as_json, write)


def _tell_apart(outcome: Outcome, as_json: bool, write: Path | None) -> int:
    """Say it, and put it into the page if wanted."""
    if write is not None:
        from .series import write_apart

        write_apart(write, outcome)
        talk(f"written: {write}")
    return _tell(outcome, as_json)


@bench.command()
@json_option
@click.option("--quick", is_flag=True, help="Small: whether it works at all; nothing is held to a target.")
@click.option(
    "--only",
    type=click.Choice(PARTS),
    multiple=True,
    help="Only this part; may be given several times.",
)
@_INTO_PAGE
def recovery(as_json: bool, quick: bool, only: tuple[str, ...], write: Path | None) -> int:
    """Faults done to real processes, and how long they are felt (about ten minutes)."""
    from .recovery.parts import measure

    if write is not None and (quick or only):
        raise click.UsageError("--write takes the figures of a whole run, without --quick and --only")
    return _tell_apart(measure(talk, quick=quick, only=only), as_json, write)


@bench.command()
@json_option
@_number("--tasks", 1000, 100_000_000, 1_000_000, "Tasks in all; our targets are for a million.")
@_number("--part", 100, 50_000, 5000, "Tasks of a round.")
@_INTO_PAGE
def soak(as_json: bool, tasks: int, part: int, write: Path | None) -> int:
    """Very many no-op tasks on a rig with little history: does anything of it grow?"""
    from . import soak as it

    return _tell_apart(it.measure(it.Options(tasks, part), talk), as_json, write)


@bench.command("all")
@json_option
@click.option(
    "--write",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the page of figures here; what people wrote between its markers stays.",
)
@_rounds
def everything(as_json: bool, write: Path | None, repeats: int) -> int:
    """Every bench in turn, a few minutes; `make bench` writes docs/benchmarks.md so."""
    from .figures import lines_of
    from .series import run, write_page

    outcomes, took_s = run(repeats, talk)
    if write is not None:
        write_page(write, outcomes, took_s)
        talk(f"written: {write}")
    if as_json:
        print_json(
            {"schema": SCHEMA, "bench": "all", "took_s": took_s, "benches": [o.as_json() for o in outcomes]}
        )
    else:
        for outcome in outcomes:
            click.echo("\n".join([f"-- {outcome.bench}", *lines_of(outcome), ""]))
    return 0
