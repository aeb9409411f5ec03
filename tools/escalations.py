"""``rigbus escalations list|show|answer``: what the rig could not settle by itself, and what is said to it.

It always goes over the shared folder, which a rig has too: the same files that a planner reads and writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..bus.errors import ConfigError, PlanError
from . import render
from .common import print_json, rig_options, talk
from .escalation_rows import OPEN, Escalations, Fields, read_bytes, row, source_of
from .keyvalue import pairs
from .operate import answer_option
from .reach import rig_folders, shared_folder

if TYPE_CHECKING:
    from ..bus.escalation import Answer

_TAIL: Final = 20
_TASKS: Final = 10


@click.group()
def escalations() -> None:
    """What the rig could not settle by itself: list it, look at the evidence, answer it."""


def folder_of(state: Path | None, shared: Path | None, config: Path | None) -> Escalations:
    """The escalations of the shared folder.

    Raises:
        Unreachable: the folder is not there, or is none of a rig.
    """
    return Escalations(shared_folder(rig_folders(state, shared, config)).shared)


@escalations.command("list")
@rig_options
@click.option("--all", "everything", is_flag=True, help="Those that are over, too.")
def list_(
    state: Path | None, shared: Path | None, config: Path | None, as_json: bool, everything: bool
) -> int:
    """Open escalations, oldest first: age, batch, plan, cause, title, state, answers left."""
    found = folder_of(state, shared, config)
    rows = [row(found, fields, time.time()) for fields in found.all()]
    shown = rows if everything else [one for one in rows if one["status"] in OPEN]
    if as_json:
        print_json({"schema": "rigbus.escalations/1", "escalations": shown})
        return 0
    if not shown:
        click.echo("nothing is escalated" + (f"; {len(rows)} over before (--all)" if rows else ""))
        return 0
    head = ("ESCALATION", "AGE", "STATE", "BATCH", "PLAN", "CAUSE", "LEFT", "TITLE")
    cells = [
        (
            one["id"],
            render.duration(one["age_s"]) if one["age_s"] is not None else None,
            one["status"] if one["answer"] == "none" else f"{one['status']}, answer {one['answer']}",
            one["batch"],
            one["plan"],
            one["cause"],
            one["answers_left"],
            one["title"],
        )
        for one in shown
    ]
    click.echo("\n".join(render.table(head, cells, state=2)))
    return 0


@escalations.command()
@rig_options
@click.argument("id_", metavar="ID")
def show(state: Path | None, shared: Path | None, config: Path | None, as_json: bool, id_: str) -> int:
    """One escalation with its evidence: what was tried, the attempts, the last lines that they wrote."""
    found = folder_of(state, shared, config)
    fields = found.find(id_)
    if as_json:
        about = row(found, fields, time.time())
        keys = ("age_s", "answer")
        print_json({**fields, **{key: about[key] for key in keys}})
    else:
        click.echo("\n".join(lines_of(found, fields, time.time())))
    return 0


def lines_of(found: Escalations, fields: Fields, now: float) -> list[str]:
    """One escalation for people; nothing of a log reaches the terminal as it is."""
    about = row(found, fields, now)
    source = source_of(fields)
    age = f", {render.duration(about['age_s'])} old" if about["age_s"] is not None else ""
    lines = [
        f"{about['id']}: {fields.get('title')}",
        f"  {about['status']}{age}, {about['cause'] or about['type']}",
    ]
    if about["batch"]:
        lines.append(f"  batch {about['batch']}, plan {about['plan']}, revision {fields.get('revision', 1)}")
    if source.get("name"):
        lines.append(f"  task {source['name']} ({str(source.get('task_id'))[:8]})")
    lines += [f"  tried: {text}" for text in _texts(fields.get("tried"))]
    for attempt in _dicts(fields.get("attempts")):
        where = f" on {attempt['worker']}" if attempt.get("worker") else ""
        task = f"{attempt['task']}, " if attempt.get("task") else ""
        kind = attempt.get("error_class") or "ended"
        lines.append(f"  {task}attempt {attempt.get('attempt')}{where}: {kind}: {attempt.get('error') or ''}")
        lines += [f"    | {text}" for text in _texts(attempt.get("log_tail"))[-_TAIL:]]
        if attempt.get("log"):
            lines.append(f"    {attempt['log']}")
    failed = (
        _texts((fields.get("details") or {}).get("context", {}).get("failed_tasks"))
        if _has_context(fields)
        else []
    )
    if failed:
        more = f" and {len(failed) - _TASKS} more" if len(failed) > _TASKS else ""
        lines.append(f"  failed: {', '.join(failed[:_TASKS])}{more}")
    if fields.get("note"):
        lines.append(f"  {fields.get('answered_by') or 'somebody'} says: {fields['note']}")
    lines.append(f"  answer: {about['answer']}")
    if about["actions"]:
        words = " | ".join(f"--{word}" if word != "config" else "--set K=V" for word in about["actions"])
        left = f", {about['answers_left']} answers left" if about["answers_left"] is not None else ""
        lines.append(f"  -> rigbus escalations answer {about['id']} {words}{left}")
    return [render.clean(line) for line in lines]


def _has_context(fields: Fields) -> bool:
    details = fields.get("details")
    return isinstance(details, dict) and isinstance(details.get("context"), dict)


def _texts(given: Any) -> list[str]:
    return [str(one) for one in given] if isinstance(given, list) else []


def _dicts(given: Any) -> list[dict[str, Any]]:
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


# -- answering -----------------------------------------------------------------------------------------------


@escalations.command()
@rig_options
@answer_option
@click.option("--retry", is_flag=True, help="Run what failed again as it is: TASK..., or all of it.")
@click.option("--abandon", is_flag=True, help="The batch ends as it is.")
@click.option("--patch", is_flag=True, help="Go on with changed files: a folder DIR of the plan, or FILE...")
@click.option("--human", is_flag=True, help="No planner is to answer: it is a person's matter.")
@click.option(
    "--set", "sets", multiple=True, metavar="K=V", help="Go on with this value; JSON where V is JSON."
)
@click.option("--note", default="", metavar="TEXT", help="The diagnosis, for people.")
@click.option("--by", default="", metavar="NAME", help="Who says so (default: the user's name).")
@click.option(
    "--file",
    "given",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The whole answer as JSON.",
)
@click.option("--dry-run", is_flag=True, help="Check it and print it; write nothing.")
@click.argument("id_", metavar="ID")
@click.argument("what", nargs=-1, metavar="[TASK|DIR|FILE]...")
def answer(
    state: Path | None,
    shared: Path | None,
    config: Path | None,
    as_json: bool,
    answer_s: float,
    retry: bool,
    abandon: bool,
    patch: bool,
    human: bool,
    sets: tuple[str, ...],
    note: str,
    by: str,
    given: Path | None,
    dry_run: bool,
    id_: str,
    what: tuple[str, ...],
) -> int:
    """Answer an escalation: exactly one of --retry, --patch, --set, --abandon, --human, --file.

    --patch may have --set beside it. With --patch DIR the files that differ from the plan in the shared folder are sent,
    with FILE... those, by their place below the folder that has the plan.md. 8: the rig refuses it.
    """
    words = [word for word, on in _chosen(retry, patch, abandon, human).items() if on]
    chosen = words or (["config"] if sets else [])
    if len(chosen) + bool(given) != 1:
        raise click.UsageError("one of --retry, --patch, --set K=V, --abandon, --human or --file FILE")
    found = folder_of(state, shared, config)
    fields = found.find(id_)
    from . import answering

    if given is not None:
        if what or sets:
            raise click.UsageError("--file has the whole answer: no TASK, DIR, FILE or --set beside it")
        made = answering.checked(_read(given), fields)
    else:
        action = chosen[0]
        if what and action not in ("retry", "patch"):
            raise click.UsageError(f"{what[0]!r} belongs to --retry or --patch")
        value: Fields = {"escalation_id": str(fields["escalation_id"]), "action": action, "note": note}
        value |= {"by": by or _user(), "config": pairs(sets, "--set")}
        if action == "retry":
            value["tasks"] = list(what)
        if action == "patch":
            value["files"] = changed_files(found, fields, [Path(one) for one in what])
        if action in ("patch", "config") and fields.get("plan_sha256"):
            value["plan_sha256"] = fields["plan_sha256"]
        made = answering.checked(value, fields)
    _lint(found, fields, made)
    if dry_run:
        print_json({**answering.value_of(made), "dry_run": True}, pretty=not as_json)
        return 0
    written = answering.write(found, made)
    receipt = answering.wait_receipt(written, answer_s, found.shared)
    return _tell(written.file, written.receipt, made.action, receipt, as_json)


def _chosen(retry: bool, patch: bool, abandon: bool, human: bool) -> dict[str, bool]:
    return {"retry": retry, "patch": patch, "abandon": abandon, "human": human}


def _user() -> str:
    return (os.environ.get("USER") or os.environ.get("LOGNAME") or "a person")[:100]


def _read(file: Path) -> Any:
    import json

    from .answering import MAX_BYTES

    data = read_bytes(Path(os.path.realpath(file)), MAX_BYTES)
    if data is None:
        raise ConfigError(f"{file}: no regular file of at most {MAX_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{file}: no JSON ({str(e)[:200]}); correct it") from None


def _lint(found: Escalations, fields: Fields, made: Answer) -> None:
    """The plan as the answer makes it has no errors.

    Raises:
        PlanError: it has. Where the plan in the share is not the one that failed, only the rig can say.
    """
    from . import answering

    errors, sure = answering.lint_patched(found, fields, made)
    if errors and sure:
        raise PlanError("the plan would be invalid", [render.clean(line) for line in errors])
    if made.action in ("patch", "config") and not sure:
        talk(
            "the plan in the shared folder is not the revision that failed: the rig checks the answer against that one"
        )
    for line in errors:
        talk(f"warning: {render.clean(line)}")


def _tell(
    file: Path, receipt_file: Path, action: str, receipt: Mapping[str, Any] | None, as_json: bool
) -> int:
    if as_json:
        out: Fields = {"schema": "rigbus.escalations.answer/1", "action": action}
        out |= {"answer": str(file), "receipt": str(receipt_file), "accepted": receipt is not None}
        if receipt is not None:
            out |= {
                "batch_id": receipt.get("batch_id"),
                "note": receipt.get("note"),
                "next": receipt.get("next"),
            }
        print_json(out)
    elif receipt is None:
        talk(f"written: {file}; the rig's answer will be {receipt_file}")
    else:
        click.echo(render.clean(f"{action}: {receipt.get('note') or 'accepted'}"))
        if receipt.get("next"):
            talk(f"follow it with `{receipt['next']}`")
    return 0


def changed_files(found: Escalations, fields: Fields, given: list[Path]) -> dict[str, str]:
    """What ``--patch`` sends: path in the plan's folder -> the whole new text.

    Raises:
        ConfigError: nothing is given or differs, or a file is none of a plan.  PlanError: the folder cannot be copied.
    """
    from .plan_files import MAX_BYTES, private_folder, staged_copy, texts_of

    if not given:
        raise ConfigError("--patch: give the changed plan's folder, or files of it")
    files: dict[str, str] = {}
    for path in given:
        if not path.is_dir():
            name, text = _one_file(path)
            files[name] = text
            continue
        plan = found.plan_folder(fields)
        with private_folder() as scratch:
            new = texts_of(staged_copy(path, scratch, "new")[0], each=MAX_BYTES, total=8 * MAX_BYTES)
            old = (
                texts_of(staged_copy(plan, scratch, "old")[0], each=MAX_BYTES, total=8 * MAX_BYTES).files
                if plan is not None
                else {}
            )
        for name in new.left_out:
            talk(f"warning: {name} is no text and is not sent")
        for name in sorted(set(old) - set(new.files)):
            talk(f"warning: {name} is not in {path}; an answer replaces and adds files, it removes none")
        files |= {name: text for name, text in new.files.items() if old.get(name) != text}
    if not files:
        raise ConfigError(
            "--patch: nothing differs from the plan in the shared folder; change a copy of it, or name the FILES"
        )
    return files


def _one_file(path: Path) -> tuple[str, str]:
    """A file's place in its plan, and its text."""
    from ..plans.stage import COPIED_FOLDERS

    data = read_bytes(Path(os.path.realpath(path)), 1 << 20)
    if data is None:
        raise ConfigError(f"--patch: {path}: no regular file of at most 1 MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(
            f"--patch: {path}: no UTF-8 text; write data into the plan's folder itself"
        ) from None
    full = path.absolute()
    for folder in full.parents:
        if (folder / "plan.md").is_file():
            return full.relative_to(folder).as_posix(), text
    if not path.is_absolute() and (len(path.parts) == 1 or path.parts[0] in COPIED_FOLDERS):
        return path.as_posix(), text
    raise ConfigError(f"--patch: {path}: no folder above it has a plan.md; call it by its path in the plan")
