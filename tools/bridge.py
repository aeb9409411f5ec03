"""``rigbus bridge``: the bridge alone, in the foreground; ``rebuild`` and ``take`` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..bus.errors import Refused
from ..bus.paths import RigPaths
from .common import Place, json_option, place_options, print_json, process_log, settings_of


@click.group(invoke_without_command=True)
@place_options
@click.pass_context
def bridge(ctx: click.Context, place: Place) -> int | None:
    """Run the bridge alone: it takes plans from the shared folder and mirrors the rig into it."""
    if ctx.invoked_subcommand is not None:
        return None
    from ..bridge.folder.service import main

    settings = settings_of(place.config)
    folder = settings["bridge"]
    process_log("bridge", settings["logs"]["level"])
    return main(
        place.paths(),
        settle_s=settings["settle_s"],
        path_map=folder["path_map"],
        reconcile_s=folder["reconcile_s"],
        archive_keep=folder["archive_keep"],
        archive_after_s=folder["archive_after_s"],
        models=_model_names(settings),
        alerting=settings["alerts"],
    )


@bridge.command()
@place_options
@json_option
@click.option(
    "--from-files", is_flag=True, help="From what the shared folder still says: there is no other source."
)
@click.option("--dry-run", is_flag=True, help="Say what would come of it; change nothing.")
@click.pass_context
def rebuild(
    ctx: click.Context,
    place: Place,
    as_json: bool,
    from_files: bool,
    dry_run: bool,
) -> int:
    """Make a new state folder for a rig whose disk died, from its shared folder.

    Batches that had ended stay ended. Those that had not go on: what is known to be done is not run again, all else is.
    The state folder must be new or empty, the rig stopped: its folder is watched for 8 s. With a backup, `rigbus restore`
    gives back more.
    """
    if not from_files:
        raise click.UsageError("say --from-files: a rebuild knows only what the shared folder says")
    from ..bridge.folder.rebuilding.rebuild import rebuild as run

    paths = _paths(ctx, place)
    report = run(paths, dry_run=dry_run)
    if as_json:
        print_json(report)
    else:
        click.echo("\n".join(_lines(report)))
    return 0


@bridge.command()
@place_options
@json_option
@click.pass_context
def take(ctx: click.Context, place: Place, as_json: bool) -> int:
    """Give the shared folder to this rig, whichever has it. The bridge of the other one stops touching it.

    Only where you know better: a rig that was stopped leaves its folder free, one that died is found out after a minute.
    """
    from ..bridge.folder.rebuilding.taking_over import take_over

    before = take_over(paths := _paths(ctx, place))
    if as_json:
        print_json({"schema": "rigbus.take/1", "shared": str(paths.shared), "before": before})
    else:
        click.echo(f"{paths.shared} is this rig's now; {_whose(before, paths)}")
    return 0


def _whose(before: dict[str, Any] | None, paths: RigPaths) -> str:
    from ..bridge.folder.share.owner import whose
    from ..bus.store.store import state_id

    if before is None:
        return "it was nobody's"
    return (
        "it was before, too" if before["rig"] == state_id(paths.state) else f"it was that of {whose(before)}"
    )


def _model_names(settings: Mapping[str, Any]) -> list[str]:
    """Every name that means a model of the configuration."""
    from ..agents.models.catalogue.catalogue import Catalogue

    if not settings.get("models") and not settings.get("model"):
        return []
    catalogue = Catalogue.from_settings(settings)
    return [name for entry in catalogue for name in (entry.name, *catalogue.also(entry))]


def _paths(ctx: click.Context, place: Place) -> RigPaths:
    """The rig; options may stand before the word or after it."""
    given = ctx.parent.params if ctx.parent is not None else {}
    paths = Place(
        place.state or given.get("state"),
        place.shared or given.get("shared"),
        place.config or given.get("config"),
    ).paths()
    if paths.state.exists() and not paths.state.is_dir():
        raise Refused(f"{paths.state} is no folder; choose another --state")
    return paths


def _lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    from .render import clean, table

    if report["before"]:
        return [f"{report['state']}: was rebuilt from {report['shared']} before; nothing was changed"]
    rows = [
        [
            clean(row["id"]),
            clean(row["plan"]),
            row["was"],
            row["becomes"],
            str(row["done"]),
            str(sum(row["again"].values())) if row["becomes"] == "goes on" else "",
        ]
        for row in report["batches"]
    ]
    lines = (
        table(["batch", "plan", "was", "now", "done", "run again"], rows) if rows else ["no batch is known"]
    )
    lines += [f"{clean(row['id'])}: {clean(row['why'])}" for row in report["batches"] if row["why"]]
    cut = sum(row["cut_results"] for row in report["batches"])
    if cut:
        lines.append(f"{cut} results are there in part only")
    lines += _rest(report)
    lines += ["", "what the share never had:", *(f"- {text}" for text in report["never"])]
    if report["rebuilt"]:
        lines += [
            "",
            f"rebuilt: {report['state']} ({report['state']}/rebuild.json says this again); `rigbus up` goes on",
        ]
    else:
        lines += ["", "nothing was changed (--dry-run)"]
    return lines


def _rest(report: dict[str, Any]) -> list[str]:
    """What is no batch of a plan."""
    from .render import clean, counted

    lines = []
    if report["drops"]:
        names = ", ".join(clean(name) for name in report["drops"][:5])
        lines.append(f"taken in from the inbox: {counted(len(report['drops']), 'drop')} ({names})")
    if report["orders"]:
        lines.append(f"taken in from tasks/queue: {counted(len(report['orders']), 'file')}")
    for one in report["accepted_only"]:
        lines.append(
            f"{clean(one['batch'])} of {clean(one['plan'])} was accepted, and nothing else of it is in the share: "
            f"`rigbus submit plans/{clean(one['plan'])}` runs it"
        )
    for one in report["without_a_batch"]:
        if one["lost"]:
            lines.append(
                f"{clean(one['batch'])}: {one['lost']} tasks that had not ended are lost (their commands were on the lost "
                "disk); submit them again"
            )
    if report["not_believed_count"]:
        first = report["not_believed"][0]
        lines.append(
            f"{report['not_believed_count']} files are not believed, so what they tell of runs again: "
            f"{clean(first['path'])} ({clean(first['why'])})"
        )
    return lines
