"""A new plan from a goal: asked for, linted by our own parser, given back with its errors, dropped only when clean."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ...bus.errors import ConfigError, PlanError, Refused, WaitTimeout
from ..escalation_rows import as_object, read_bytes
from ..files import is_silent
from ..plan_files import errors_of, lint_files, problems_of_names, write_files
from ..plan_source import require_share
from ..requests import LOOK_S, pause, problem_line
from . import prompts
from .asking import NoObject, Planner, Question, object_in
from .book import Book
from .loop import FORMAT

if TYPE_CHECKING:
    from ..plan_lint import Linted

ROUNDS: Final = 3  #: of mending, after the first draft
NOTE_CHARS: Final = 4000
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "files"],
    "properties": {
        "name": {"type": "string", "description": "the plan's folder: 1 to 64 of A-Z a-z 0-9 . _ -"},
        "files": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "path in the plan's folder to the whole text; plan.md is one of them",
        },
        "note": {"type": "string", "description": "what it does and needs, for people"},
    },
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan that lints without an error. ``rounds``: how often it was mended."""

    name: str
    files: dict[str, str]
    note: str
    linted: Linted
    rounds: int


def draft(
    planner: Planner, goal: str, name: str, shared: Path, book: Book, said: Callable[[str], None]
) -> Draft:
    """Ask until the plan is clean, at most ROUNDS times more; each question is counted in ``book`` before it is asked.

    Raises:
        PlanError: the last draft still has errors.  AskFailed: no answer came.  Refused: today's questions are asked.
    """
    problems: list[str] = []
    previous = ""
    for n in range(ROUNDS + 1):
        question = _question(goal, name, shared, problems, previous)
        if not book.asks(time.time()):
            last = f"; the last draft has this error: {problems[0][:300]}" if problems else ""
            raise Refused(
                f"today's {book.per_day} questions are asked{last}; wait for tomorrow (UTC), or give more: --per-day N"
            )
        text = planner.ask(question)
        try:
            made = object_in(text)
            found, files, note = _plan_of(made, name)
            linted = lint_files(found, files, {})
            problems = errors_of(linted.faults)
        except (NoObject, ConfigError) as e:
            problems = [str(e)]
        else:
            if not problems:
                return Draft(found, files, note, linted, n)
        previous = text
        said(
            f"draft {n + 1} has {len(problems)} error{'s' if len(problems) != 1 else ''}: {problems[0][:200]}"
        )
    raise PlanError("no draft was clean", problems)


def _question(goal: str, name: str, shared: Path, problems: list[str], previous: str) -> Question:
    mark = f"data-{secrets.token_hex(8)}"
    words = prompts.about_goal(mark, goal, name, FORMAT.read_text("utf-8"), problems, previous, SCHEMA)
    document: dict[str, Any] = {"schema": "rigbus.planner.goal/1", "goal": goal, "name": name or None}
    if problems:
        document["previous"] = {"problems": problems, "answer": previous[: prompts.PREVIOUS_CHARS]}
    names = {"RIGBUS_SHARED": str(shared), "RIGBUS_PLAN_FORMAT": str(FORMAT), "RIGBUS_PLAN_PATH": ""}
    return Question("plan", document, prompts.system(mark), words, SCHEMA, names)


def _plan_of(made: Mapping[str, Any], name: str) -> tuple[str, dict[str, str], str]:
    """Name, files and note of an answer.

    Raises:
        ConfigError: with what is wrong.
    """
    files = made.get("files")
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise ConfigError('files: it is no map of paths to texts: {"plan.md": "the whole text", …}')
    problems = problems_of_names(files)
    if problems:
        raise ConfigError("; ".join(problems[:5]))
    called = name or made.get("name")
    if not isinstance(called, str) or not called:
        raise ConfigError("name: the plan has none; give 1 to 64 of A-Z a-z 0-9 . _ -")
    return called, files, str(made.get("note") or "")[:NOTE_CHARS]


# -- dropping it ---------------------------------------------------------------------------------------------


def drop(shared: Path, name: str, files: Mapping[str, str], settings: str = "") -> tuple[Path, bytes | None]:
    """Put a new plan into the inbox, whole and with READY in it; its folder, and the receipt that stood there before.

    Raises:
        Refused: a plan of this name is there already; nothing was written.
    """
    require_share(shared)
    require_free(shared, name)
    inbox = shared / "inbox"
    target = inbox / name
    before = _receipt(shared, name)
    inbox.mkdir(exist_ok=True)
    work = inbox / f".{name}.{uuid4().hex[:8]}.tmp"
    work.mkdir(mode=0o775)
    try:
        work.chmod(0o775)
        write_files(work, files, shared=True)
        (work / "READY").write_text(settings, encoding="utf-8")
        (work / "READY").chmod(0o664)
        try:
            os.rename(work, target)
        except OSError as e:
            if e.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise Refused(f"{target} is there already; give the plan another name") from None
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target, before


def require_free(shared: Path, name: str) -> None:
    """
    Raises:
        Refused: a plan, or a drop, of this name is there already.
    """
    for there in (shared / "inbox" / name, shared / "inbox" / f"{name}.md", shared / "plans" / name):
        if os.path.lexists(there):
            raise Refused(f"{there} is there already; give the plan another name")


def receipt_file(shared: Path, name: str) -> Path:
    """Where the rig answers a drop."""
    return shared / "inbox" / f"{name}.receipt.json"


def _receipt(shared: Path, name: str) -> bytes | None:
    return read_bytes(receipt_file(shared, name))


def wait_drop(shared: Path, name: str, before: bytes | None, answer_s: float) -> dict[str, Any] | None:
    """The rig's receipt of a drop; None where it is not there to answer.

    Raises:
        PlanError, Refused: the rig refuses it.  WaitTimeout: it does not answer in time.
    """
    if not answer_s or is_silent(shared):
        return None
    until = time.monotonic() + answer_s
    while True:
        data = _receipt(shared, name)
        receipt = as_object(data) if data != before else None
        if receipt is not None and receipt.get("state") == "accepted":
            return receipt
        if receipt is not None and receipt.get("state") == "refused":
            given = receipt.get("problems")
            lines = [problem_line(p) for p in given or () if isinstance(p, dict)]
            raise Refused("; ".join(lines) or str(receipt.get("note") or "the rig refused the plan"))
        left = until - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"no answer within {answer_s:g} s; it will be {receipt_file(shared, name)}")
        pause(min(LOOK_S, left))
