"""``rigbus logs``: what a task has written, from the log file itself; ``-f`` goes on until the task has ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

import click

from ..bus.errors import NotFound
from .common import config_option, print_json, shared_option, state_option, talk
from .files import Folder
from .reach import Reach, reach
from .render import clean_lines
from .requests import LOOK_S, pause
from .rows import TASK_ENDED
from .task import task_of

_CHUNK: Final = 64 << 10
_EVENT_S: Final = 0.2  #: a growing file tells nobody, so it is looked at so often


@click.command()
@state_option
@shared_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout (not with -f).")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="This attempt (default: the last).")
@click.option(
    "--raw", is_flag=True, help="The bytes as they are; else control characters are shown as escapes."
)
@click.argument("task_id", metavar="TASK")
def logs(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    follow: bool,
    attempt: int | None,
    raw: bool,
    task_id: str,
) -> int:
    """What a task has written (stdout and stderr in the order in which they came)."""
    if as_json and follow:
        raise click.UsageError("--json and -f exclude each other")
    with reach(state, shared, config) as rig:
        log = _Log(rig, task_of(rig, task_id), attempt)
        if as_json:
            return _print_json(log)
        if follow:
            return _follow(log, raw)
        file = log.open()
        if file is None:
            return _no_log(log)
        with file:
            while data := file.read(_CHUNK):
                write(data, raw)
    return 0


class _Log:
    """The log of one attempt of a task, wherever it lies."""

    def __init__(self, rig: Reach, task: dict[str, Any], attempt: int | None) -> None:
        self.rig = rig
        self.task = task
        self.wanted = attempt

    @property
    def attempts(self) -> list[int]:
        """Numbers of the attempts that are known."""
        return sorted(a["n"] for a in self.task["attempts"])

    def place(self) -> tuple[int, Path] | None:
        """The attempt and its file; None when there is none (yet)."""
        if self.rig.client is None:
            found = Folder(self.rig.paths.shared).logs(self.task)
        else:
            from ..bus.paths import log_path

            numbers = [self.wanted] if self.wanted is not None else self.attempts
            paths = {
                n: log_path(self.rig.paths.logs, self.task["batch"], self.task["name"], n) for n in numbers
            }
            found = {n: path for n, path in paths.items() if path.exists()}
        number = self.wanted if self.wanted is not None else max(found, default=0)
        return (number, found[number]) if number in found else None

    def open(self) -> IO[bytes] | None:
        found = self.place()
        if found is None:
            return None
        if len(self.attempts) > 1:
            talk(f"attempt {found[0]} of {self.attempts[-1]}")
        return found[1].open("rb")

    def again(self) -> None:
        """Look at the task anew."""
        self.task = task_of(self.rig, self.task["id"])


def write(data: bytes, raw: bool) -> None:
    """Bytes of a task to stdout."""
    if raw:
        sys.stdout.buffer.write(data)
    else:
        click.echo(clean_lines(data.decode("utf-8", "backslashreplace")), nl=False)
    sys.stdout.flush()


def _print_json(log: _Log) -> int:
    found = log.place()
    text = found[1].read_bytes().decode("utf-8", "backslashreplace") if found else _recorded(log.task)
    out = {
        "schema": "rigbus.logs/1",
        "task_id": log.task["id"],
        "attempt": found[0] if found else None,
        "file": str(found[1]) if found else None,
        "text": text,
    }
    print_json(out)
    return 0


def _recorded(task: dict[str, Any]) -> str | None:
    result = task["result"]
    output = result.get("output") if isinstance(result, dict) else None
    return output if isinstance(output, str) else None


def _no_log(log: _Log) -> int:
    """No file: the output in the result, if there is one; otherwise say why."""
    task = log.task
    if log.wanted is None and (output := _recorded(task)):
        talk("the log file is not here; this is what the result holds of it")
        write(output.encode("utf-8", "replace"), raw=False)
        return 0
    if log.wanted is not None:
        raise NotFound(
            f"task {task['name']} has no log of attempt {log.wanted}; `rigbus task show {task['id'][:8]}`"
        )
    if task["state"] in TASK_ENDED:
        talk(
            f"{task['name']} is {task['state']} and has written nothing; `rigbus task show {task['id'][:8]}`"
        )
    else:
        talk(f"{task['name']} is {task['state']} and has written nothing yet; -f waits for it")
    return 0


def _follow(log: _Log, raw: bool) -> int:
    """Every attempt's output as it comes, until the task has ended."""
    waits, close = _waiter(log)
    try:
        shown = 0
        file: IO[bytes] | None = None
        while True:
            ended = log.task["state"] in TASK_ENDED
            found = log.place()
            if found is not None and found[0] != shown:
                if file is not None:
                    _rest(file, raw)
                    file.close()
                shown, file = found[0], found[1].open("rb")
                if shown > 1:
                    talk(f"attempt {shown}")
            if file is not None:
                _rest(file, raw)
            if ended:
                break
            waits()
    finally:
        close()
    if file is None:
        return _no_log(log)
    file.close()
    talk(f"{log.task['name']}: {log.task['state']}")
    return 0


def _rest(file: IO[bytes], raw: bool) -> None:
    while data := file.read(_CHUNK):
        write(data, raw)


def _waiter(log: _Log) -> tuple[Callable[[], None], Callable[[], None]]:
    """(wait a moment and look at the task again where something happened, end that)."""
    if log.rig.client is None:

        def look() -> None:
            pause(2 * LOOK_S)
            log.again()

        return look, lambda: None
    events = log.rig.bus.events(f"task.{log.task['type']}.*")

    def wait() -> None:
        news = False
        event = events.poll(_EVENT_S)
        while event is not None:
            news = news or event.id == log.task["id"] or event.topic == "rig.resnapshot"
            event = events.poll(0)
        if news:
            log.again()

    log.again()  # what happened before the subscription
    return wait, events.close
