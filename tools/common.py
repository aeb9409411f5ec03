"""What the verbs share: the options that find the rig, and how they speak. Standard library and click only."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ..bus.paths import RigPaths, locate

F = TypeVar("F", bound=Callable[..., Any])

#: The settings that `up` has read, for its processes: all have the same, and none pays for reading them again.
HANDED_ON: Final = "RIGBUS_UP_SETTINGS"

#: Of one entry in a process' log, a traceback included.
LOG_CHARS: Final = 16 << 10
#: A word with the blanks before it; backticks keep their words together.
_WORD: Final = re.compile(r"\s*(?:`[^`]*`|[^\s`]|`)+")

#: Characters beyond ASCII's controls that do something instead of being shown.
_ACTS: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


def state_option(function: F) -> F:
    """``--state DIR`` as ``state: Path | None``."""
    return click.option(
        "--state",
        type=_FOLDER,
        metavar="DIR",
        help="The rig's private local folder (RIGBUS_STATE; default: ~/.local/state/rigbus).",
    )(function)


def shared_option(function: F) -> F:
    """``--shared DIR`` as ``shared: Path | None``."""
    return click.option(
        "--shared",
        type=_FOLDER,
        metavar="DIR",
        help="The shared folder (RIGBUS_SHARED; default: <state>/shared).",
    )(function)


def config_option(function: F) -> F:
    """``--config FILE`` as ``config: Path | None``."""
    return click.option(
        "--config",
        type=_FILE,
        metavar="FILE",
        help="This configuration file (default: ./rigbus.toml, ~/.config/rigbus/config.toml, /etc/rigbus/config.toml).",
    )(function)


def json_option(function: F) -> F:
    """``--json`` as ``as_json: bool``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(function)


def rig_options(function: F) -> F:
    """The four that most verbs take: ``state``, ``shared``, ``config`` and ``as_json``."""
    return state_option(shared_option(config_option(json_option(function))))


def seconds_option(
    *names: str, default: float, help: str, low: float = 0.0, high: float | None = None
) -> Callable[[F], F]:
    """An option that is a time in seconds, with its bounds."""
    return click.option(
        *names,
        type=click.FloatRange(low, high),
        default=default,
        show_default=True,
        metavar="S",
        help=help,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Which rig is meant, as the options say."""

    state: Path | None
    shared: Path | None
    config: Path | None

    def paths(self) -> RigPaths:
        """See :func:`where`."""
        return where(self.state, self.shared, self.config)


def place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--state``, ``--shared`` and ``--config`` as one ``place: Place``."""

    @wraps(function)
    def placed(*args: Any, state: Path | None, shared: Path | None, config: Path | None, **more: Any) -> Any:
        return function(*args, place=Place(state, shared, config), **more)

    return state_option(shared_option(config_option(placed)))


def where(state: Path | None, shared: Path | None, config: Path | None) -> RigPaths:
    """The rig's paths from the three options, by the one order (flags, RIGBUS_*, files, defaults)."""
    return locate(state, shared, config)


def settings_of(config: Path | None, **flags: Any) -> dict[str, Any]:
    """Every setting as plain data (the fields of ``bus.config.Settings``); flags that are None are left out.

    Raises:
        ConfigError: a file, a variable or a flag is wrong; the message names it and the fix.
    """
    handed = os.environ.get(HANDED_ON)
    if handed and config is None and not any(flags.values()):
        settings: dict[str, Any] = json.loads(handed)
        return settings
    from ..bus.config.settings import load

    loaded = load(flags, config)
    for warning in loaded.warnings:
        talk(f"warning: {warning}")
    return loaded.settings.model_dump(mode="json")


def thermal_text(settings: dict[str, Any]) -> str:
    """The limits of a card's heat as a worker's command line has them."""
    t = settings["thermal"]
    return f"{t['warn_c']:g}:{t['critical_c']:g}:{t['hysteresis_c']:g}"


def attempt_words(settings: dict[str, Any]) -> list[str]:
    """What bounds one attempt, as a worker's command line has it."""
    logs = settings["logs"]
    return [
        *("--kill-grace", f"{settings['kill_grace_s']:g}"),
        *("--log-bytes", str(logs["task_bytes"])),
        *("--tail-bytes", str(logs["tail_bytes"])),
    ]


def process_log(name: str, level: str = "info") -> None:
    """Log lines of a process of the rig go to stderr, which `up` sends to ``<state>/logs/<name>.log``."""
    import logging

    from .render import clean_lines

    class Bounded(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            # It may quote a peer, a file or a program, and stderr may be a terminal: no escape of theirs reaches it.
            line = clean_lines(super().format(record))
            cut = len(line) - LOG_CHARS
            return line if cut <= 0 else f"{line[:LOG_CHARS]} [{cut} characters more]"

    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(Bounded(f"%(asctime)s {name} %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[to_stderr])


def print_json(value: Any, *, pretty: bool = False) -> None:
    """One JSON value on stdout: a line, or indented."""
    text = json.dumps(value, ensure_ascii=False, default=str, indent=1 if pretty else None)
    text = escaped(text)
    # A byte of a file's name that is no UTF-8 is a lone surrogate here; inside a JSON string \udcXX is the escape for it.
    click.echo(text.encode("utf-8", "backslashreplace").decode())


def escaped(text: str) -> str:
    """JSON or TOML without what those leave as it is and a terminal may obey: C1 controls, and marks that turn the
    direction of a line. They can stand in strings only, where both know this escape."""
    return _ACTS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str) -> None:
    """Text for people on stdout, which may quote a file or a peer: controls are shown as escapes."""
    from .render import clean_lines

    click.echo(clean_lines(text))


def talk(text: str) -> None:
    """What is for people and not the answer: stderr, controls as escapes. Long lines are folded in a terminal; a pipe gets
    them whole."""
    from .render import WIDEST, clean_lines

    text = clean_lines(text)
    if sys.stderr.isatty():
        columns = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
        text = "\n".join("\n".join(fold(line, columns)) for line in text.split("\n"))
    click.echo(text, err=True)


def fold(text: str, columns: int, indent: int = 2) -> list[str]:
    """Lines of at most so many columns where that can be, the later ones indented.

    What stands in backticks is to be pasted and stays whole, so does a word that is longer than a line. The fix behind
    a semicolon begins a line where that saves one from being cut.
    """
    if len(text) <= columns:
        return [text]
    pad = " " * indent
    head, semicolon, fix = text.partition("; ")
    if semicolon and len(head) < columns and len(pad + fix) <= columns:
        return [f"{head};", pad + fix]
    lines = [""]
    for word in _WORD.findall(text):
        line = f"{lines[-1]}{word}"
        if len(line.rstrip()) > columns and lines[-1].strip():
            lines[-1] = lines[-1].rstrip()
            line = pad + word.lstrip()
            lines.append(line)
        lines[-1] = line
    return lines
