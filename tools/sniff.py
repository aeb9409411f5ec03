"""``rigbus sniff``: what passes on the bus, as it passes; or what has passed, from the numbered log or a file."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click

from ..bus.errors import ConfigError, NotFound
from .common import config_option, json_option, state_option, talk
from .reach import reach_bus
from .rows import TASK_ENDED

if TYPE_CHECKING:
    from ..bus.client.client import Client
    from ..bus.sniff.records import Record
    from ..bus.sniff.view import Filter, Step

_QUIET_S: Final = 0.2  #: after so long without a message nothing is held back any more
_PAGE: Final = 2000
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_NO_END: Final = float("inf")
#: Who looks at a task is no part of its life.
_LOOKS: Final = frozenset({"QUERY", "OK", "SNAPSHOT", "EVENTS"})


@click.command(
    epilog="FILTER: verb=LEASE,RESULT · task=ID · batch=ID · worker=GLOB · dir=in|out|event · min_bytes=N · min_ms=N · "
    "a verb's name · a topic such as 'task.*.dead', 'hb.*', 'progress.*' or '*'."
)
@state_option
@config_option
@json_option
@click.option("-n", "count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option("--for", "for_s", metavar="S", help="End after S seconds (or 30s, 5m, 2h).")
@click.option("--follow", metavar="TASK", help="The life of one task, past and present, until it has ended.")
@click.option(
    "--since", metavar="T", help="First the events after number T of the log, or of the last 10m, 2h, 1d."
)
@click.option(
    "--write", "to", type=click.Path(dir_okay=False, path_type=Path), metavar="F", help="Also write to F."
)
@click.option(
    "--read",
    "from_",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    metavar="F",
    help="What --write wrote, instead of the bus.",
)
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
def sniff(
    state: Path | None,
    config: Path | None,
    as_json: bool,
    count: int | None,
    for_s: str | None,
    follow: str | None,
    since: str | None,
    to: Path | None,
    from_: Path | None,
    filters: tuple[str, ...],
) -> int:
    """Every message on the bus, as it passes. One JSON object a line when piped."""
    from ..bus.sniff.view import Filter

    wanted = Filter(filters)
    until = _NO_END if for_s is None else time.monotonic() + _seconds(for_s, "--for")
    with ExitStack() as stack:
        file = stack.enter_context(to.open("w", encoding="utf-8")) if to is not None else None
        printer = _Printer(as_json or not sys.stdout.isatty(), file, count)
        if from_ is not None:
            records: Iterator[Record | None] = _from_file(from_)
        else:
            rig = stack.enter_context(reach_bus(state, config))
            if follow is not None:
                from . import ask

                follow = str(ask.find_task(rig.bus, follow)["rows"][0]["id"])
            records = _from_bus(rig.bus, wanted, since, follow, until)
        if follow is not None:
            _life(records, follow, printer)
        else:
            for record in records:
                if record is not None and wanted(record) and not printer.record(record):
                    break
        printer.end()
    return 0


class _Printer:
    """Prints records, and counts those that were lost. Its methods are False when enough was shown."""

    def __init__(self, as_json: bool, file: IO[str] | None, count: int | None) -> None:
        self._json = as_json
        self._file = file
        self._left = count
        self._dropped = 0

    def record(self, record: Record) -> bool:
        """One message."""
        from ..bus.sniff.view import line

        return self._put(record, {}, line(record))

    def step(self, step: Step) -> bool:
        """One step of a task's life."""
        from ..bus.sniff.view import step_line

        return self._put(step.record, {"after_s": round(step.after_s, 6), "why": step.why}, step_line(step))

    def _put(self, record: Record, more: dict[str, Any], text: str) -> bool:
        self._dropped += record.dropped
        data = json.dumps({**record.to_json(), **more}, ensure_ascii=False, default=str)
        click.echo(data if self._json else text)
        if self._file is not None:
            self._file.write(data + "\n")
        if self._left is not None:
            self._left -= 1
        return self._left is None or self._left > 0

    def end(self) -> None:
        """Say what was lost."""
        if self._dropped:
            talk(
                f"{self._dropped} messages were lost: this reader was slower than the bus; narrow it with a FILTER"
            )


def _life(records: Iterator[Record | None], task: str, printer: _Printer) -> None:
    """The life of a task until its end; a None among the records is a moment of silence."""
    from ..bus.sniff.view import Follow

    follow = Follow(task)
    seen = ended = False
    for record in records:
        if record is not None and record.verb in _LOOKS:
            continue
        for step in follow.flush() if record is None else follow.take(record):
            seen, ended = True, _over(step.record, ended)
            if not printer.step(step):
                return
        if record is None and ended:
            return
    for step in follow.flush():
        seen = True
        if not printer.step(step):
            return
    if not seen:
        raise NotFound(f"nothing is known of task {task}; its events are no longer in the log")


def _over(record: Record, before: bool) -> bool:
    """Whether the task has ended; one that is retried lives again."""
    if record.verb == "ENDED":
        return True
    return record.topic.rpartition(".")[2] in TASK_ENDED if record.verb == "EVENT" else before


# --- where records come from ------------------------------------------------------------------------------------


def _from_file(file: Path) -> Iterator[Record]:
    from ..bus.sniff.records import record_of

    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, text in enumerate(lines, 1):
            try:
                value = json.loads(text)
                record = record_of(value)
            except (ValueError, ConfigError, RecursionError) as e:
                raise ConfigError(f"{file}:{number}: not a line of `rigbus sniff --write`: {e}") from None
            yield record


def _from_bus(
    bus: Client, wanted: Filter, since: str | None, follow: str | None, until: float
) -> Iterator[Record | None]:
    """History where it is asked for, then what passes; None after a moment of silence. Ends at ``until``."""
    import zmq

    from ..bus.errors import BadFrame
    from ..bus.sniff.records import Sniffer

    topics = wanted.subscriptions()
    if since is not None or follow is not None:
        topics = [*topics, b"p.", b"c."]
    if follow is not None:
        topics = [b"tap.", b"p.", b"c.", b"progress." + follow.encode()]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    try:
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 100_000)
        for topic in dict.fromkeys(topics):
            socket.subscribe(topic)
        socket.connect(str(bus.welcome["events"]))
        sniffer, seen = Sniffer(), 0
        if since is not None or follow is not None:
            # Subscribed first, so that nothing falls between the log and the present.
            start = _start(bus, since) if since is not None else _before(bus, follow or "")
            for row in _history(bus, start):
                seen = int(row[0])
                yield sniffer.event(row)
            yield None
        while (left := until - time.monotonic()) > 0:
            bus.tend()
            if not socket.poll(max(1, int(min(left, _QUIET_S) * 1000))):
                yield None
                continue
            try:
                record = sniffer.frames(socket.recv_multipart(zmq.DONTWAIT), time.time())
            except (BadFrame, zmq.Again):
                continue
            if record is not None and not (record.verb == "EVENT" and record.seq <= seen):
                yield record
    finally:
        context.destroy(0)


def _history(bus: Client, since: int) -> Iterator[list[Any]]:
    """Events of the log after ``since``, without the brain's copies; from the oldest where that is trimmed."""
    from ..bus.wire import Verb

    while True:
        answer = bus.request(Verb.EVENTS, {"since": since, "limit": _PAGE})
        if answer.verb is Verb.RESNAPSHOT:
            oldest = int(answer.header.get("oldest") or 0)
            if oldest - 1 <= since:
                return
            talk(f"the log begins with event {oldest}; what was before is gone")
            since = oldest - 1
            continue
        rows = answer.header.get("events") or []
        yield from (row for row in rows if row[3] != "a")
        if not answer.header.get("more") or not rows:
            return
        since = int(rows[-1][0])


def _start(bus: Client, since: str) -> int:
    """The event number after which to begin: ``T`` itself, or found by its time."""
    if since.isdecimal():
        return int(since)
    return _number_at(bus, time.time() - _seconds(since, "--since"))


def _before(bus: Client, task: str) -> int:
    """The event number just before a task was made."""
    return _number_at(bus, float(bus.query("task", id=task)["rows"][0]["created_at"]) - 1.0)


def _number_at(bus: Client, at: float) -> int:
    """The last event before ``at`` (Unix seconds of the broker's clock), found by bisection."""
    from ..bus.wire import Verb

    def first_after(number: int) -> Any:
        answer = bus.request(Verb.EVENTS, {"since": number, "limit": 1})
        rows = answer.header.get("events") or []
        return rows[0] if rows else None

    low, high = 0, int(bus.query("status")["seq"])
    while low < high:
        middle = (low + high) // 2
        event = first_after(middle)
        # No event: it is trimmed, and so older than what is there.
        if event is None or float(event[2]) < at:
            low = middle + 1
        else:
            high = middle
    return low


def _seconds(text: str, option: str) -> float:
    """``30``, ``30s``, ``5m``, ``2h``, ``1d`` as seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if found is None or (found[2] and found[2] not in _UNITS):
        raise ConfigError(f"{option} {text!r}: write a number of seconds, or 30s, 5m, 2h, 1d")
    return float(found[1]) * _UNITS.get(found[2] or "s", 1)
