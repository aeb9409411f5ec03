"""The command ``rigbus``: a table of verbs, each loaded only when it is used.

``--help`` must be quick on a Pi and must not need what a verb needs, so this file and the table import click and the
standard library only. How a verb ends is decided here, once: errors go to stderr as ``rigbus: what; fix`` and the exit
code is the error's own (INTERFACE, "Exit codes").
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Final, NamedTuple, NoReturn

import click

from ..bus.errors import PlanError, RigbusError


class VerbEntry(NamedTuple):
    """Where a verb is: ``module`` below ``rigbus.tools`` and the click command in it; its group and line of help."""

    module: str
    attribute: str
    group: str
    help: str


GROUPS: Final = ("Start", "Plans", "Look", "Operate", "Processes")

VERBS: Final[dict[str, VerbEntry]] = {
    "up": VerbEntry("up", "up", "Start", "Start the rig: broker, brain, bridge and workers"),
    "down": VerbEntry("down", "down", "Start", "Stop the rig; running tasks get up to 20 s"),
    "demo": VerbEntry("demo", "demo", "Start", "A private rig, a plan, a killed worker, a report"),
    "submit": VerbEntry("submit", "submit", "Plans", "Run a plan: a folder, a plan.md, or a plan's name"),
    "plan": VerbEntry("plan", "plan", "Plans", "Check a plan, draw it, begin a new one"),
    "call": VerbEntry("call", "call", "Plans", "One request to an agent, its answer streamed"),
    "batch": VerbEntry("batch", "batch", "Plans", "List batches, show one"),
    "task": VerbEntry("task", "task", "Plans", "List tasks, show one with its attempts"),
    "logs": VerbEntry("logs", "logs", "Plans", "What a task has written"),
    "status": VerbEntry("status", "status", "Look", "Processes, workers, batches and tasks at a glance"),
    "watch": VerbEntry("watch", "watch", "Look", "Bars of the batches, workers, the last decisions"),
    "why": VerbEntry("why", "why", "Look", "Why a task, batch or worker is not moving"),
    "alerts": VerbEntry("alerts", "alerts", "Look", "What needs a person, and the word that one has seen it"),
    "gpu": VerbEntry("gpu", "gpu", "Look", "The cards: heat, load, memory, and which task heats them"),
    "sniff": VerbEntry("sniff", "sniff", "Look", "Every message on the bus, as it passes"),
    "config": VerbEntry("config", "config", "Look", "The settings, and where each comes from"),
    "schema": VerbEntry("schema", "schema", "Look", "The JSON Schemas of what the rig writes"),
    "bench": VerbEntry("bench.verbs", "bench", "Look", "Tasks per second on this machine"),
    "doctor": VerbEntry("doctor", "doctor", "Look", "What is wrong with this machine, each with its fix"),
    "version": VerbEntry("version", "version", "Look", "The version of rigbus and of what it runs on"),
    "completion": VerbEntry("completion", "completion", "Look", "The completion script of your shell"),
    "cancel": VerbEntry("cancel", "cancel", "Operate", "End a task or a batch"),
    "retry": VerbEntry("retry", "retry", "Operate", "Run again what has ended badly"),
    "dead": VerbEntry("dead", "dead", "Operate", "What has failed for good: list it, retry it, drop it"),
    "escalations": VerbEntry(
        "escalations", "escalations", "Operate", "What the rig could not settle: list, show, answer"
    ),
    "load": VerbEntry("load", "load", "Operate", "Load a model, and wait until it answers"),
    "unload": VerbEntry("load", "unload", "Operate", "Unload a model when nothing uses it any more"),
    "pause": VerbEntry("pause", "pause", "Operate", "Give a worker no new work, until resume"),
    "resume": VerbEntry("resume", "resume", "Operate", "Give a worker work again"),
    "drain": VerbEntry("drain", "drain", "Operate", "No new work for a worker; what runs is finished"),
    "repair": VerbEntry(
        "repair", "repair", "Operate", "A damaged database: what is lost, and one to go on with"
    ),
    "backup": VerbEntry("backup", "backup", "Operate", "Copy the rig's state to a new folder"),
    "restore": VerbEntry("backup", "restore", "Operate", "A rig's state from a backup"),
    "planner": VerbEntry("planner", "planner", "Operate", "A model or program that answers and plans"),
    "mcp": VerbEntry("mcp", "mcp", "Operate", "An MCP server on the shared folder, over stdio"),
    "broker": VerbEntry("broker", "broker", "Processes", "The broker alone: it owns all durable state"),
    "brain": VerbEntry("brain", "brain", "Processes", "The brain alone: it turns plans into tasks"),
    "worker": VerbEntry("worker", "worker", "Processes", "One worker alone, or one agent of yours"),
    "bridge": VerbEntry("bridge", "bridge", "Processes", "The bridge alone: it serves the shared folder"),
    "notify": VerbEntry("notify", "notify", "Processes", "On the Pi: alerts to lamps, phones and webhooks"),
}


class RigbusGroup(click.Group):
    """The top command: verbs from the table, help in groups, a hint for a mistyped verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = VERBS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(f".{entry.module}", __package__), entry.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"rigbus.tools.{entry.module}.{entry.attribute} is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = get_close_matches(name, VERBS, n=1)
            hint = f"did you mean `rigbus {near[0]}`?" if near else "`rigbus --help` lists them"
            ctx.fail(f"no verb {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in GROUPS:
            rows = [(name, entry.help) for name, entry in VERBS.items() if entry.group == group]
            with formatter.section(group):
                formatter.write_dl(rows, col_max=14)


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from .. import __version__

        click.echo(f"rigbus {__version__}")
        ctx.exit(0)


@click.group(
    cls=RigbusGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each verb has --help, and --json for programs. The rig is found by --state, RIGBUS_STATE, or the default.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def cli() -> None:
    """rigbus: a message bus for agents on a GPU rig. Try `rigbus demo`."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; what goes wrong is said on stderr."""
    try:
        result = cli.main(
            args=list(argv) if argv is not None else None, prog_name="rigbus", standalone_mode=False
        )
        sys.stdout.flush()
    except click.exceptions.Exit as e:
        return e.exit_code
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return 130
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except RigbusError as e:
        for problem in e.problems if isinstance(e, PlanError) else [str(e)]:
            complain(problem)
        return e.exit_code
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted: quietly, as click does. Nor must the interpreter complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        complain(f"{where}{e.strerror or e}; check the path, its permissions and the free space")
        return 1
    return result if isinstance(result, int) else 0


def complain(text: str) -> None:
    """One line on stderr, marked as ours; in a terminal a long one is folded."""
    from .common import talk

    talk(f"rigbus: {text}")


def main() -> NoReturn:
    """The entry point of the command."""
    sys.exit(run())
