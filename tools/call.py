"""``rigbus call``: one request over the bus, its answer as it comes."""

from __future__ import annotations

import json
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..bus.errors import TaskFailed
from .common import config_option, json_option, print_json, state_option, talk
from .keyvalue import pairs
from .reach import reach_bus
from .render import clean, clean_lines
from .rows import plain

if TYPE_CHECKING:
    from ..bus.client.client import Client, Progress, Result


@click.command()
@state_option
@config_option
@json_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    metavar="S",
    help="How long to wait; the task is cancelled then.",
)
@click.option(
    "--need", "needs", multiple=True, metavar="NEED", help="Only an agent that has this capability."
)
@click.option(
    "--attempts", type=click.IntRange(1, 100), metavar="N", help="Try so often if it fails (default: 3)."
)
@click.option("--pool", metavar="POOL", help="Only an agent of this pool.")
@click.argument("type_", metavar="TYPE")
@click.argument("fields", metavar="[K=V]...", nargs=-1)
def call(
    state: Path | None,
    config: Path | None,
    as_json: bool,
    timeout_s: float,
    attempts: int | None,
    needs: tuple[str, ...],
    pool: str | None,
    type_: str,
    fields: tuple[str, ...],
) -> int:
    """One request to whoever handles TYPE; text is printed as it comes, then the value.

    V is JSON where it is JSON for a number, a truth value, a list or an object; otherwise it is text.
    """
    payload = pairs(fields, "call")
    with reach_bus(state, config) as rig:
        from ..bus.client.work import Result

        _say_if_nobody_runs(rig.bus, type_)
        shower = _Shower(quiet=as_json)
        options: dict[str, Any] = {"needs": needs, "pool": pool, "max_attempts": attempts}
        for news in rig.bus.stream(type_, payload, timeout_s=timeout_s, **options):
            if isinstance(news, Result):
                return shower.end(news, type_, as_json)
            shower.show(news)
    raise TaskFailed(f"{type_}: its end was not heard")


def _say_if_nobody_runs(bus: Client, type_: str) -> None:
    workers = bus.query("workers")["workers"]
    known = sorted({str(t) for w in workers for t in w["types"]})
    if type_ not in known:
        near = get_close_matches(type_, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        talk(
            clean(
                f"no agent handles {type_!r} now (there are: {', '.join(known) or 'none'}); {hint}waiting for one"
            )
        )


class _Shower:
    """Shows progress as it comes. ``text``: whether some of it was text."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.text = False
        self._attempt = 1
        self._next = 0
        self._open = False  #: the line is not finished

    def show(self, news: Progress) -> None:
        """One progress message."""
        if news.attempt != self._attempt:
            self._attempt, self._next = news.attempt, 0
            self._newline()
            talk(f"attempt {news.attempt}: it begins anew")
        if news.n > self._next:
            self._newline()
            talk(f"{news.n - self._next} pieces of progress were lost here; the value below is whole")
        self._next = news.n + 1
        if news.note or news.pct is not None:
            share = f"{news.pct:.0%} " if news.pct is not None else ""
            self._newline()
            talk(clean(f"{share}{news.note or ''}".strip()))
        for chunk in news.data:
            if isinstance(chunk, str) and not self.quiet:
                self.text = True
                self._open = not chunk.endswith("\n") if chunk else self._open
                click.echo(clean_lines(chunk), nl=False)
                sys.stdout.flush()

    def _newline(self) -> None:
        if self._open:
            click.echo()
            self._open = False

    def end(self, result: Result, type_: str, as_json: bool) -> int:
        """The end: the value, unless its text was shown already.

        Raises:
            TaskFailed: it ended badly.
        """
        self._newline()
        if as_json:
            print_json(
                {
                    "schema": "rigbus.call/1",
                    "task_id": result.id,
                    "ok": result.ok,
                    "state": result.state,
                    "attempts": result.attempts,
                    "value": plain(result.value),
                    "error": result.error,
                }
            )
        if not result.ok:
            why = result.error or "no reason was given"
            raise TaskFailed(
                f"{type_} (task {result.id}) ended {result.state}: {clean_lines(why)}",
                task_id=result.id,
                state=result.state,
            )
        if not as_json and not self.text:
            click.echo(
                clean_lines(json.dumps(plain(result.value), ensure_ascii=False, indent=1, default=str))
            )
        return 0
