"""``rigbus planner run|new|schema``: whoever answers escalations and writes plans, where the network is. Files only."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..bus.errors import ConfigError
from . import render
from .common import Place, json_option, place_options, print_json, process_log, say, seconds_option, talk
from .escalation_rows import Escalations
from .operate import answer_option
from .reach import rig_folders, shared_folder

if TYPE_CHECKING:
    from ..bus.paths import RigPaths
    from .planning.asking import Planner
    from .planning.book import Book
    from .planning.loop import Outcome

_PROVIDERS: Final = ("anthropic", "openai")
_GOOD: Final = frozenset({"answered", "dry-run", "late"})


@click.group()
def planner() -> None:
    """A program or a model that answers escalations and writes plans, with nothing but the shared folder.

    docs/planner.md says what leaves the air gap, and how to send less of it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who is asked, and how often: what `_asked` adds to a verb."""

    command: str
    stdin: str
    provider: str | None
    model: str
    base_url: str
    key_env: str | None
    key_file: Path | None
    ask_s: float
    per_day: int

    def planner(self) -> Planner:
        """
        Raises:
            click.UsageError: nobody is named, or two.  ConfigError: a key or URL that cannot be used.
        """
        if bool(self.command.strip()) == bool(self.provider):
            raise click.UsageError("name who is asked: --cmd 'COMMAND', or --provider with --model")
        if self.command:
            from .planning.command import CommandPlanner

            return CommandPlanner(self.command, timeout_s=self.ask_s, prompt=self.stdin == "prompt")
        if not self.model:
            raise click.UsageError("--provider needs --model NAME")
        from .planning.provider import HttpPlanner, Patience

        shape: Any = self.provider
        return HttpPlanner(
            shape,
            self.model,
            base_url=self.base_url,
            key_env=self.key_env,
            key_file=self.key_file,
            patience=Patience(total_s=self.ask_s, silent_s=min(self.ask_s, 300.0)),
        )

    def book(self, paths: RigPaths, *, trial: bool = False) -> Book:
        """The book of this folder, which all that ask have in common; open."""
        from .planning.book import Book, book_file

        book = Book(book_file(paths.state, paths.shared), self.per_day, trial=trial)
        book.open()
        return book


_ASKED: Final = (
    click.option(
        "--cmd",
        "command",
        default="",
        metavar="COMMAND",
        help="A line for /bin/sh; its stdout is the answer.",
    ),
    click.option(
        "--stdin",
        type=click.Choice(["json", "prompt"]),
        default="json",
        show_default=True,
        help="What --cmd reads: the question as JSON, or a whole prompt for a model.",
    ),
    click.option("--provider", type=click.Choice(_PROVIDERS), help="A model behind HTTP, in this shape."),
    click.option("--model", default="", metavar="NAME", help="The provider's name for the model."),
    click.option(
        "--base-url", default="", metavar="URL", help="Another server of that shape: http://HOST:PORT/v1."
    ),
    click.option(
        "--key-env", metavar="NAME", help="The variable with the key (default: the provider's own)."
    ),
    click.option(
        "--key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="The key is the first line of this file, which nobody else may read.",
    ),
    seconds_option(
        "--timeout-ask", "ask_s", low=1.0, high=86_400.0, default=600.0, help="One question's time, at most."
    ),
    click.option(
        "--per-day",
        type=click.IntRange(1),
        default=50,
        show_default=True,
        metavar="N",
        help="Questions a day (UTC) about this folder, at most; `run` and `new` count together.",
    ),
)


def _asked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say who is asked, as one ``asked: Asked``."""

    @wraps(function)
    def asking(*args: Any, **given: Any) -> Any:
        asked = Asked(**{one.name: given.pop(one.name) for one in fields(Asked)})
        return function(*args, asked=asked, **given)

    made: Callable[..., Any] = asking
    for option in reversed(_ASKED):
        made = option(made)
    return made


def _folders(place: Place) -> RigPaths:
    return shared_folder(rig_folders(place.state, place.shared, place.config))


@planner.command()
@place_options
@json_option
@_asked
@click.option("--once", is_flag=True, help="One look at the folder, then end: 0 all is answered, 1 not.")
@click.option("--dry-run", is_flag=True, help="With one look: ask, check, print the answers; write none.")
@click.option(
    "--without",
    type=click.Choice(["files", "logs", "config"]),
    multiple=True,
    help="Do not send the plan's files, log lines and errors, or the values of the run.",
)
@seconds_option(
    "--look",
    "look_s",
    low=0.1,
    high=3600.0,
    default=2.0,
    help="Between two looks; longer while nothing happens.",
)
def run(
    place: Place,
    as_json: bool,
    asked: Asked,
    once: bool,
    dry_run: bool,
    without: tuple[str, ...],
    look_s: float,
) -> int:
    """Answer escalations as they come: each is asked about, the answer checked, written once, the rig's receipt heard.

    A bad answer is given back with its error once, then the escalation is people's. Ends on SIGINT or SIGTERM.
    """
    who = asked.planner()
    paths = _folders(place)
    from .planning.loop import Loop
    from .planning.seat import Seat

    process_log("planner")
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    found = Escalations(paths.shared)

    def said(outcome: Outcome) -> None:
        _say(outcome, as_json)

    try:
        if dry_run:
            book = asked.book(paths, trial=True)
            return _ended(Loop(found, who, book, None, said, without=without).once(), found)
        found.folder.mkdir(parents=True, exist_ok=True)
        book = asked.book(paths)
        with Seat(paths.shared, book.file.with_suffix(".lock")) as seat:
            seat.take(wait=not once)
            loop = Loop(found, who, book, seat, said, without=without)
            if once:
                return _ended(loop.once(), found)
            talk(
                f"{who.name} answers the escalations of {paths.shared}; {asked.per_day} questions a day at most"
            )
            loop.forever(look_s)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _end(_number: int, _frame: Any) -> None:
    raise SystemExit(0)


def _ended(outcomes: list[Outcome], found: Escalations) -> int:
    last = {outcome.id: outcome.what for outcome in outcomes}
    waiting = [
        fields["escalation_id"]
        for fields in found.all()
        if fields.get("status") == "pending" and found.answered(str(fields["escalation_id"])) == "none"
    ]
    open_ = [id_ for id_ in waiting if last.get(id_) not in _GOOD]
    return 1 if open_ or any(what not in _GOOD for what in last.values()) else 0


def _say(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        out = {"schema": "rigbus.planner.run/1", "at": round(time.time(), 3), "escalation_id": outcome.id}
        print_json(
            {**out, "outcome": outcome.what, "note": outcome.note, "answer": dict(outcome.answer) or None}
        )
    else:
        action = f" ({outcome.answer['action']})" if outcome.answer else ""
        say(
            render.clean(f"{outcome.id}: {outcome.what}{action}{f': {outcome.note}' if outcome.note else ''}")
        )
        if outcome.what == "dry-run":
            print_json(dict(outcome.answer), pretty=True)
    sys.stdout.flush()


@planner.command()
@place_options
@json_option
@answer_option
@_asked
@click.option(
    "--name", default="", metavar="NAME", help="The plan's name (default: the planner chooses one)."
)
@click.option("--dry-run", is_flag=True, help="Print the plan; drop nothing.")
@click.argument("goal")
def new(
    place: Place, as_json: bool, answer_s: float, asked: Asked, name: str, dry_run: bool, goal: str
) -> int:
    """Have a plan written for GOAL, linted, mended up to three times, and dropped into the inbox when it is clean."""
    who = asked.planner()
    paths = _folders(place)
    from .planning import drafting

    if name:
        _require_name(name)
        if not dry_run:
            drafting.require_free(paths.shared, name)  # before the questions cost something
    if not goal.strip():
        raise ConfigError("the goal is empty; say what the plan is for")
    made = drafting.draft(who, goal, name, paths.shared, asked.book(paths), talk)
    out: dict[str, Any] = {"schema": "rigbus.planner.new/1", "plan": made.name, "tasks": made.linted.tasks}
    out |= {"rounds": made.rounds, "note": made.note, "warnings": made.linted.count("warning")}
    if dry_run:
        if as_json:
            print_json({**out, "dry_run": True, "files": made.files})
        else:
            for path, text in made.files.items():
                say(f"--- {made.name}/{path}\n{text}")
            _note(made.note)
        return 0
    target, before = drafting.drop(paths.shared, made.name, made.files)
    out |= {"path": str(target), "receipt": str(drafting.receipt_file(paths.shared, made.name))}
    talk(f"dropped: {target}, {render.counted(made.linted.tasks, 'task')}")
    _note(made.note)
    receipt = drafting.wait_drop(paths.shared, made.name, before, answer_s)
    out["batch_id"] = receipt.get("batch_id") if receipt else None
    if as_json:
        print_json(out)
    elif receipt is not None:
        say(str(receipt.get("batch_id")))
    else:
        talk(f"the rig's answer will be {out['receipt']}")
    return 0


def _note(note: str) -> None:
    if note:
        talk(note)


def _require_name(name: str) -> None:
    from ..plans.keys import BadName, plan_name

    try:
        plan_name(name)
    except BadName as e:
        raise ConfigError(f"--name: {e}") from None


@planner.command()
@click.argument("what", type=click.Choice(["answer", "escalation", "plan"]), default="answer")
def schema(what: str) -> int:
    """Print the JSON Schema of an answer, an escalation, or what `planner new` expects."""
    if what == "plan":
        from .planning.drafting import SCHEMA

        print_json(SCHEMA, pretty=True)
        return 0
    from ..bus.escalation import Answer, Escalation

    print_json((Answer if what == "answer" else Escalation).model_json_schema(by_alias=True), pretty=True)
    return 0
