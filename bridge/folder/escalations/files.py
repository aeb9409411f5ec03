"""Records of escalations -> the files of ``brain/escalations``, by the names of the earlier system. Pure.

``<id>.json`` for programs, ``HUMAN_<id>.md`` for people while it is theirs. Evidence is what had been so when it was raised:
attempts up to that one, so the same record is the same file whenever it is drawn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..contract.layout import File, Row, iso, stamped
from ..share.ops import shown

FOLDER: Final = "brain/escalations"
ARCHIVE: Final = f"{FOLDER}/archive"  #: of records that the rig has forgotten with their batch
HUMAN: Final = "HUMAN_"
ANSWER: Final = ".answer.json"
RECEIPT: Final = ".answer.receipt.json"
MAX_TASKS: Final = 5  #: of which attempts are told; the others are named
MAX_ATTEMPTS: Final = 5  #: the last ones of each
TAIL_BYTES: Final = 8192
TAIL_LINES: Final = 20
_LINE_CHARS: Final = 300
_ERROR_CHARS: Final = 1000
_RECOMMENDED: Final = {
    "plan_fault": "correct_plan_and_answer",
    "workers_unhealthy": "look_at_the_rig",
}
_MARK: Final = "\n<!-- rigbus "
_ID: Final = "[0-9]{8}_[0-9]{6}_[0-9a-f]{8}"
_NAME: Final = re.compile(
    rf"(?P<id>{_ID})(\.answer|\.answer\.receipt)?\.json(\.conflict-[0-9]+\.json)?|HUMAN_(?P<page>{_ID})\.md"
)


class Seen(NamedTuple):
    """An attempt with the last lines of its log, None where there is no log."""

    task: str
    attempt: Row
    tail: list[str] | None
    log: str | None = None  #: its copy, as a path in the share


def id_in(name: str) -> str:
    """The id of the record that a file of the folder belongs to, by its name; empty for other files."""
    found = _NAME.fullmatch(name)
    return found["id"] or found["page"] if found else ""


def actions(record: Row) -> list[str]:
    """Which answers would be taken now."""
    if record["status"] not in ("pending", "human"):
        return []
    words = ["abandon"] if record["status"] == "human" else ["abandon", "human"]
    if not record["batch"]:
        return words
    return [*(["retry"] if record["tasks"] else []), "patch", "config", *words]


def escalation_file(record: Row, seen: Sequence[Seen], host: str, utc_offset_s: float) -> File:
    """``<id>.json``."""
    plan = record.get("plan") or {}
    first = (record.get("tasks") or [None])[0]
    status, path = str(record["status"]), f"{FOLDER}/{record['id']}"
    fields: dict[str, Any] = {
        "schema": "rigbus.escalation/1",
        "escalation_id": record["id"],
        "created_at": iso(record["created_at"], utc_offset_s),
        "status": status,
        "target": "human" if status == "human" else "cloud_brain",
        "source": "local_brain",
        "brain_name": "brain",
        "hostname": host,
        "type": record["type"],
        "title": _line(record["title"]),
        "details": {**(record.get("details") or {}), "context": _context(record)},
        "recommended_action": _RECOMMENDED.get(str(record["cause"]), "diagnose_and_resubmit_plan"),
        "cause": record["cause"],
        "source_task": {
            "task_id": first["id"] if first else None,
            "type": "shell" if first else ("execute_plan" if record["batch"] else None),
            "name": first["key"] if first else None,
            "batch_id": record["batch"] or None,
            "plan_path": plan.get("path"),
            "config": plan.get("config"),
        },
        "tried": tried(record, seen),
        "attempts": [_attempt(one, utc_offset_s) for one in seen],
        "plan": plan.get("name"),
        "plan_sha256": plan.get("sha256"),
        "revision": record["revision"],
        "actions": actions(record),
        "answer_to": f"{path}{ANSWER}",
        "answers_left": record.get("left"),
        "changed_at": iso(record["changed_at"], utc_offset_s),
        "answer": record.get("answer") or None,
        "answered_by": _line(record["by"]) if record.get("by") else None,
        "note": _line(record["note"]) if record.get("note") else None,
    }
    return stamped(f"{path}.json", fields, record["changed_at"], utc_offset_s, record.get("seq"))


def tried(record: Row, seen: Sequence[Seen]) -> list[str]:
    """What the rig has done about it, in order."""
    out = []
    for task in dict.fromkeys(one.task for one in seen):
        mine = [one.attempt for one in seen if one.task == task]
        workers = ", ".join(sorted({str(a["worker"]) for a in mine if a.get("worker")})) or "no worker"
        n = int(mine[-1]["n"])
        out.append(
            f"ran {_line(task)} {n} time{'s' if n != 1 else ''}, last on {_line(workers)}; its policy allows no more"
        )
    more = len(record.get("tasks") or ()) - len(out)
    if more > 0 and out:
        out.append(f"{more} more tasks failed of the same cause")
    if record["cause"] == "plan_fault":
        out.append("read and checked the plan as it was submitted")
    if record["cause"] == "workers_unhealthy":
        out.append("waited for a worker to be in order again")
    if record.get("why"):
        out.append(f"asked no planner: {_line(record['why'])}")
    return out


def _context(record: Row) -> dict[str, Any]:
    """What belongs to the type, by the earlier system's names."""
    plan, batch = record.get("plan") or {}, record["batch"]
    if not batch:
        return {}
    path = plan.get("path")
    return {
        "requested_plan_path": path,
        "existing_plan_md": f"{path}/plan.md" if path else None,
        "resume_batch_id": batch,
        "failed_tasks": [_line(task["key"]) for task in record.get("tasks") or ()],
    }


def _attempt(one: Seen, utc_offset_s: float) -> dict[str, Any]:
    a = one.attempt
    return {
        "task": _line(one.task),
        "attempt": a["n"],
        "worker": a.get("worker"),
        "started_at": iso(a["started_at"], utc_offset_s) if a.get("started_at") else None,
        "ended_at": iso(a["ended_at"], utc_offset_s) if a.get("ended_at") else None,
        "error_class": a.get("class"),
        "error": _line(str(a.get("error") or ""), _ERROR_CHARS) or None,
        "log": one.log,
        "log_tail": one.tail,
    }


def tail_lines(data: bytes, *, whole: bool) -> list[str]:
    """The last lines of a log as anybody may see them; ``whole`` False: ``data`` begins in the midst of a line."""
    lines = data.decode("utf-8", "replace").splitlines()
    if not whole:
        lines = lines[1:]
    return [_line(line) for line in lines[-TAIL_LINES:]]


def _line(text: Any, most: int = _LINE_CHARS) -> str:
    """Printable, on one line, and not long."""
    clean = shown(str(text)[: most + 1])
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


# -- for people ----------------------------------------------------------------------------------------------


def human_page(record: Row, seen: Sequence[Seen], utc_offset_s: float) -> bytes:
    """``HUMAN_<id>.md``. Its last line is a mark: a page that somebody has written into is his."""
    at = iso(record["created_at"], utc_offset_s, whole_seconds=True).replace("T", " ")
    answer = f"{FOLDER}/{record['id']}{ANSWER}"
    out = [f"# {_md(record['title'])}", "", f"{at}, {record['cause']}. Nobody but a person is asked."]
    if record.get("why"):
        out += ["", f"No planner was asked: {_md(record['why'])}."]
    if record.get("note"):
        out += ["", f"{_md(record.get('by') or 'somebody')} says: {_md(record['note'])}"]
    if record["batch"]:
        out += [
            "",
            f"Batch `{record['batch']}` of the plan {_md((record.get('plan') or {}).get('name') or '?')}.",
        ]
    out += ["", *[f"- {_md(text)}" for text in tried(record, seen)]]
    for one in seen[-1:]:
        out += ["", f"The end of the last log of {_md(one.task)}:", ""]
        out += [f"    {line}" for line in one.tail or ["(there is none)"]]
    out += ["", f"To answer, write `{answer}`, such as", ""]
    word = "retry" if record["tasks"] else "abandon"
    out += [f'    {{"escalation_id": "{record["id"]}", "action": "{word}", "by": "your name"}}', ""]
    out += ["or settle it by hand (`rigbus retry`, `rigbus cancel`): docs/escalations.md says how."]
    text = "\n".join(out).encode("utf-8", "replace")
    return text + _MARK.encode() + _check(text) + b" -->\n"


def is_ours(page: bytes) -> bool:
    """Nobody has changed a byte of the page."""
    text, mark, tail = page.rpartition(_MARK.encode())
    return bool(mark) and tail == _check(text) + b" -->\n"


def _check(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()


def _md(text: Any) -> str:
    """As text in Markdown: nothing of it is markup of theirs."""
    out = _line(text)
    for char in "\\`*_[]<>#|":
        out = out.replace(char, f"\\{char}")
    return out
