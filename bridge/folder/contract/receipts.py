"""What the folder answers to whoever dropped something: one JSON for programs, one page for people. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..share.ops import shown
from .layout import iso

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
ReceiptState = Literal["settling", "waiting", "accepted", "refused"]
_HEADLINE = {
    "settling": "seen, settling",
    "waiting": "seen, waiting",
    "accepted": "accepted",
    "refused": "refused",
}


@dataclass(frozen=True)
class Problem:
    """One reason for a refusal. ``line`` counts from 1 (0: none), ``text`` is that line itself."""

    what: str
    where: str = ""
    fix: str = ""
    line: int = 0
    text: str = ""


class Invalid(Exception):
    """What was asked for cannot be done; ``problems`` says why, each with place and fix."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(problem.what for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class Receipt:
    """``name`` as it was dropped; ``at`` unix seconds; ``next`` the command to type; ``note`` one sentence;
    ``exit_code`` that of a command which would have been refused so over the bus.
    """

    name: str
    state: ReceiptState
    at: float
    batch_id: str = ""
    plan: str = ""
    drop_id: str = ""
    tasks: int | None = None
    next: str = ""
    note: str = ""
    problems: tuple[Problem, ...] = ()
    exit_code: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)  #: fields of one kind of drop


def digest_of(answer: Any) -> str:
    """Names what an answer to an escalation says, however it is written down: its receipt has it as ``answer``."""
    text = json.dumps(answer, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def problem_from(text: str, where: str = "") -> Problem:
    """A parser's ``file:line: what; fix`` as a Problem; other texts stay whole."""
    found = re.match(r"(?P<file>[^:\n]+):(?P<line>\d+): (?P<rest>.*)\Z", text, re.DOTALL)
    file, line, rest = (found["file"], int(found["line"]), found["rest"]) if found else (where, 0, text)
    what, _, fix = rest.partition("; ")
    return Problem(what=what, where=file, fix=fix, line=line)


def receipt_stem(name: str) -> str:
    """``<name>`` of ``<name>.receipt.json``: the plan's name, or for a name that is no file name of ours a
    slug.
    """
    stem = name.removesuffix(".md")
    if PLAIN_NAME.match(stem):
        return stem
    slug = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40] or "entry"
    return f"{slug}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def receipt_json(receipt: Receipt, utc_offset_s: float) -> bytes:
    """``rigbus.receipt/1``; empty fields are left out."""
    fields: dict[str, Any] = {
        "schema": "rigbus.receipt/1",
        "name": shown(receipt.name),
        "state": receipt.state,
        "at": iso(receipt.at, utc_offset_s),
        "batch_id": receipt.batch_id,
        "plan": receipt.plan,
        "drop_id": receipt.drop_id,
        "tasks": receipt.tasks,
        "next": receipt.next,
        "note": receipt.note,
        "exit_code": receipt.exit_code,
        **receipt.more,
        "problems": [
            {
                key: value
                for key, value in (
                    ("file", p.where),
                    ("line", p.line),
                    ("text", p.text),
                    ("what", p.what),
                    ("fix", p.fix),
                )
                if value
            }
            for p in receipt.problems
        ],
    }
    return json.dumps({k: v for k, v in fields.items() if v not in ("", None, [])}, indent=2).encode() + b"\n"


def receipt_md(receipt: Receipt, utc_offset_s: float) -> bytes:
    """The same for people, as Markdown that also reads well in a terminal; nothing of it is markup of
    theirs.
    """
    out = [f"# {_inline(receipt.name)}: {_HEADLINE[receipt.state]}", ""]
    out += [iso(receipt.at, utc_offset_s, whole_seconds=True).replace("T", " "), ""]
    if receipt.note:
        out += [shown(receipt.note), ""]
    if receipt.batch_id:
        many = "" if receipt.tasks == 1 else "s"
        count = "" if receipt.tasks is None else f", {receipt.tasks} task{many}"
        out += [f"Batch `{receipt.batch_id}`{count}.", ""]
    for problem in receipt.problems:
        place = problem.where + (f":{problem.line}" if problem.line else "")
        out += [f"- **{_inline(place)}** {_inline(problem.what)}" if place else f"- {_inline(problem.what)}"]
        if problem.text:
            out += ["", f"      {shown(problem.text)}", ""]
        if problem.fix:
            out += [f"  Fix: {_inline(problem.fix)}"]
    if receipt.problems:
        out += [""]
    if receipt.next:
        out += ["Next:", "", f"    {shown(receipt.next)}", ""]
    return "\n".join(out).encode("utf-8", "backslashreplace")


def _inline(text: str) -> str:
    """Printable, and with the characters escaped that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", shown(text))
