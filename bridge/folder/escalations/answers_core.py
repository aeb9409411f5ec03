"""What an answer file says, whether it may be done now, and by which verb. Pure.

The record in the broker is the truth: which answer it was given, and whether that is done.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ....bus.wire import Verb
from ..contract.receipts import PLAIN_NAME, Invalid, Problem
from ..intake.core import parse_object
from ..share.ops import Entry, shown
from . import files

if TYPE_CHECKING:
    from ....bus.escalation import Answer

MAX_BYTES: Final = 1 << 20
MAX_PROBLEMS: Final = 20
NEAR_OF, NEAR_AMONG = 3, 500  #: of so many names the nearest is looked for, among so many
_FIX: Final = "schemas/rigbus.answer.v1.json says what an answer is"
_BAD: Final = ("dead", "expired", "cancelled")
_LIVE: Final = frozenset({"planning", "running"})


def answered_id(entry: Entry) -> str | None:
    """The id of the escalation that a folder's entry answers; None for what is no answer."""
    name = entry.path
    stem = name.removesuffix(files.ANSWER)
    return stem if stem != name and PLAIN_NAME.match(stem) else None


def parse(data: bytes, where: str) -> dict[str, Any] | None:
    """The object in the file; None while it is not whole.

    Raises:
        Invalid: it will never be one, or says what the bus could not carry.
    """
    text = data.decode("utf-8", "surrogateescape").lstrip("\ufeff")
    try:
        value = json.loads(text)
    except RecursionError:
        raise Invalid(Problem("it is nested too deeply", where, _FIX)) from None
    except ValueError:
        return None
    if not isinstance(value, dict):
        raise Invalid(Problem(f"it is a {type(value).__name__}, not an object", where, _FIX))
    found = parse_object(data, where, MAX_BYTES)
    if isinstance(found, Problem):
        raise Invalid(found)
    return found


def checked(value: Mapping[str, Any], id_: str, where: str) -> Answer:
    """The answer, every field checked.

    Raises:
        Invalid: with what is wrong, by field.
    """
    from pydantic import ValidationError

    from ....bus.escalation import Answer

    try:
        answer = Answer.model_validate(value)
    except ValidationError as e:
        raise Invalid(*(_problem(error, where) for error in e.errors()[:MAX_PROBLEMS])) from None
    if answer.escalation_id != id_:
        what = f"it answers {shown(answer.escalation_id)[:80]!r}, and lies beside {id_}"
        raise Invalid(
            Problem(
                what,
                f"{where}: escalation_id",
                f"write it as {shown(answer.escalation_id)[:80]}{files.ANSWER}",
            )
        )
    return answer


def _problem(error: Any, where: str) -> Problem:
    place = ".".join(shown(str(part))[:80] for part in error["loc"])
    what = str(error["msg"]).removeprefix("Value error, ")
    return Problem(shown(what)[:500], f"{where}: {place}" if place else where, _FIX)


def judge(record: Mapping[str, Any], digest: str, answer: Answer, where: str) -> bool:
    """Whether it is done already.

    Raises:
        Invalid: the record's state does not allow it; the state is named.
    """
    if record["answer"] == digest:
        return bool(record["status"] != "answered")
    by = f" by {shown(str(record['by']))}" if record.get("by") else ""
    if record["status"] == "answered":
        what = f"another answer{by} is being applied"
        raise Invalid(Problem(what, where, "wait for its receipt; if it fails, answer again"))
    allowed = files.actions(record)
    if not allowed:
        note = f" ({shown(str(record['note']))})" if record.get("note") else ""
        what = f"the escalation is {record['status']}{by}{note}"
        raise Invalid(Problem(what, where, "nothing is to be done; `rigbus why` says how the batch is"))
    if answer.action not in allowed:
        fix = f"of this escalation: {', '.join(allowed)}"
        raise Invalid(Problem(f"{answer.action!r} is not to be had", f"{where}: action", fix))
    return False


def require_revision(answer: Answer, spec: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        Invalid: it was made for another revision of the plan than the batch has.
    """
    wanted, has = answer.plan_sha256, str(spec.get("sha256"))
    if wanted is not None and wanted != has:
        what = f"it was made for the revision {shown(wanted)[:12]}…, and the batch has {has[:12]}… by now"
        raise Invalid(Problem(what, f"{where}: plan_sha256", "look at the plan as it is, and answer again"))


def named(names: Iterable[str], rows: Iterable[Mapping[str, Any]], where: str) -> list[str]:
    """The ids of tasks that ended badly, by name.

    Raises:
        Invalid: a name is none of them; the nearest is named.
    """
    ids = {str(row["key"]): str(row["id"]) for row in rows}
    names = list(names)
    problems: list[Problem] = []
    for name in names:
        if name not in ids and len(problems) < MAX_PROBLEMS:
            # of the first few only: to compare two names takes up to a millisecond, and nothing else goes on meanwhile
            some = list(ids)[:NEAR_AMONG] if len(problems) < NEAR_OF else []
            near = difflib.get_close_matches(name[:100], some, n=1)
            fix = (
                f"did you mean {near[0]!r}?"
                if near
                else f"these ended badly: {', '.join(list(ids)[:10]) or 'none'}"
            )
            problems.append(Problem(f"no task {shown(name)[:80]!r} ended badly", f"{where}: tasks", fix))
    if problems:
        raise Invalid(*problems)
    return [ids[name] for name in names]


def states_of_bad() -> list[str]:
    """The states that REQUEUE brings back."""
    return list(_BAD)


def verb_of(
    answer: Answer, record: Mapping[str, Any], batch: Mapping[str, Any] | None, digest: str, ids: list[str]
) -> tuple[Verb | None, dict[str, Any], str]:
    """(the verb, its header, the record's state afterwards). A revision's ``plan`` is still to be put in."""
    mark = {"escalation": record["id"], "answer": digest}
    reason = _reason(answer, record)
    if answer.action == "human":
        return None, {}, "human"
    if batch is None:
        return None, {}, "closed"
    if answer.action == "retry":
        return Verb.REQUEUE, {**({"ids": ids} if ids else {"batch": batch["id"]}), **mark}, "applied"
    if answer.action == "abandon":
        if batch["state"] not in _LIVE:
            return None, {}, "closed"
        return Verb.CANCEL, {"batch": batch["id"], "reason": reason, **mark}, "closed"
    key = f"{record['id']}/{digest[:32]}"
    return Verb.REVISE, {"batch": batch["id"], "key": key, "reason": reason}, "applied"


def _reason(answer: Answer, record: Mapping[str, Any]) -> str:
    by = f" of {answer.by}" if answer.by else ""
    note = f": {answer.note}" if answer.note else ""
    return shown(f"answer{by} to {record['id']}{note}")[:500]


def done_words(action: str, batch: str, answer: Mapping[str, Any]) -> str:
    """What was done, in a sentence for the receipt; ``answer`` is the header of the verb's OK."""
    if action == "human":
        return "It is a person's matter now."
    if action == "abandon":
        return f"It is closed; batch {batch} ends as it is." if batch else "It is closed."
    if answer.get("already"):
        return "It was done before."
    if action == "retry":
        n, more = int(answer.get("requeued") or 0), int(answer.get("revived") or 0)
        return f"{n} task{'s' if n != 1 else ''} run again, {more} that waited for them come after."
    return f"Batch {batch} goes on with revision {answer.get('revision', '?')} of its plan; what is done stays done."
