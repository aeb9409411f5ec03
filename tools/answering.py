"""An answer to an escalation: made, checked, written once, and the rig's receipt of it.

The rig checks it again by the same model; here it is checked first, so that whoever answers learns at once what is wrong.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ..bridge.folder.contract.receipts import digest_of
from ..bus.errors import ConfigError, PlanError, Refused, WaitTimeout
from . import plan_source
from .escalation_rows import Escalations, Fields, actions_of, as_object, read_object, source_of
from .files import is_silent
from .plan_files import private_folder, problems_of_names, staged_copy, write_files
from .requests import LOOK_S, pause, problem_line

if TYPE_CHECKING:
    from ..bus.escalation import Answer

MAX_BYTES: Final = 1 << 20
#: What a share without hard links answers.
NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_PROBLEMS: Final = 8
_SCHEMA: Final = "`rigbus planner schema` prints what an answer is"


@dataclass(frozen=True, slots=True)
class Written:
    """An answer that stands in the share. ``before``: the receipt that stood there already, of another one."""

    id: str
    file: Path
    receipt: Path
    digest: str
    before: bytes | None


def checked(value: Any, fields: Mapping[str, Any]) -> Answer:
    """The answer, by the model that the rig checks it with, and by what the escalation allows now.

    Raises:
        ConfigError: with every field that is wrong.
    """
    from pydantic import ValidationError

    from ..bus.escalation import Answer

    try:
        answer = Answer.model_validate(value)
    except ValidationError as e:
        lines = [
            f"{'.'.join(str(part)[:80] for part in one['loc']) or 'the answer'}: "
            f"{str(one['msg']).removeprefix('Value error, ')[:300]}"
            for one in e.errors()[:_PROBLEMS]
        ]
        raise ConfigError(f"{'; '.join(lines)}; {_SCHEMA}") from None
    except RecursionError:
        raise ConfigError(f"the answer is nested too deeply; {_SCHEMA}") from None
    id_ = str(fields["escalation_id"])
    if answer.escalation_id != id_:
        raise ConfigError(f"escalation_id: {answer.escalation_id[:80]!r} is another one; write {id_!r}")
    allowed = actions_of(fields)
    if answer.action not in allowed:
        words = ", ".join(allowed) or "none, it is " + str(fields.get("status"))
        raise ConfigError(f"action: {answer.action!r} is not to be had; of this escalation: {words}")
    problems = problems_of_names(answer.files)
    if problems:
        raise ConfigError("; ".join(problems[:_PROBLEMS]))
    data_of(answer)
    return answer


def value_of(answer: Answer) -> Fields:
    """What stands in its file: what is at its default is left out."""
    value = answer.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {"schema": "rigbus.answer/1", **value}


def data_of(answer: Answer) -> bytes:
    """Its file.

    Raises:
        ConfigError: too long, or a value that JSON cannot carry.
    """
    try:
        json.dumps(answer.config, allow_nan=False)  # the model would write null for what is no number
        data = json.dumps(value_of(answer), indent=1, allow_nan=False).encode() + b"\n"
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"config: {e}; give values that JSON has") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"the answer has {len(data)} bytes, at most {MAX_BYTES}; send fewer or smaller files"
        )
    return data


def lint_patched(found: Escalations, fields: Mapping[str, Any], answer: Answer) -> tuple[list[str], bool]:
    """``(errors, sure)`` of the plan as it would be with the answer. Not sure: the plan in this share is not the
    revision that failed, so only the rig can know.
    """
    folder = found.plan_folder(fields)
    if answer.action not in ("patch", "config") or folder is None:
        return [], False
    config = source_of(fields).get("config")
    with private_folder() as scratch:
        try:
            copy, sha256 = staged_copy(folder, scratch, folder.name)
        except PlanError:
            return [], False  # the rig has the copy that ran
        sure = fields.get("plan_sha256") in (None, sha256)
        try:
            write_files(copy, answer.files)
            plan_source.check(copy, {**(config if isinstance(config, dict) else {}), **answer.config})
        except PlanError as e:
            return [line.replace(f"{copy}/", "") for line in e.problems], sure
        except OSError as e:
            return [f"files: {e.strerror or e}; is a path a file here and a folder there?"], sure
    return [], sure


def write(found: Escalations, answer: Answer) -> Written:
    """Put the answer where the rig looks for it, whole. Replaced is only one that the rig has refused, and one that
    has handed the matter to people.

    Raises:
        Refused: an answer stands there; nothing was written.  OSError: the share refuses.
    """
    plan_source.require_share(found.shared)
    id_, data = answer.escalation_id, data_of(answer)
    target = found.answer_file(id_)
    state, before = found.answered(id_), found.receipt_bytes(id_)
    if state == "waiting":
        raise Refused(f"{target} is there already, and the rig has not answered it; wait, or remove it first")
    over = state == "accepted" and (read_object(target) or {}).get("action") == "human"
    if state == "accepted" and not over:
        raise Refused(f"{id_} was answered before, and the rig has accepted it: {target}")
    made = Written(
        id_, target, found.folder / f"{id_}.answer.receipt.json", digest_of(as_object(data)), before
    )
    temp = target.with_name(f".{id_}.{uuid4().hex[:8]}.tmp")
    try:
        with temp.open("xb") as out:
            out.write(data)
            os.fchmod(out.fileno(), 0o664)
            out.flush()
            os.fsync(out.fileno())
        if state != "none":
            os.replace(temp, target)
        else:
            _put_new(temp, target)
    finally:
        temp.unlink(missing_ok=True)
    return made


def _put_new(temp: Path, target: Path) -> None:
    """Give the file its name unless somebody else has: a link fails where a rename would replace."""
    try:
        os.link(temp, target)
    except FileExistsError:
        raise Refused(f"{target} is there already: somebody else has answered") from None
    except OSError as e:
        if e.errno not in NO_LINKS:
            raise
        if os.path.lexists(target):  # a share without hard links: nothing better is to be had there
            raise Refused(f"{target} is there already: somebody else has answered") from None
        os.rename(temp, target)


def receipt_of(made: Written) -> Fields | None:
    """The rig's receipt of just this answer, None while there is none."""
    try:
        os.listdir(made.receipt.parent)
        data = made.receipt.read_bytes()
    except OSError:
        return None
    value = as_object(data)
    if value is None or data == made.before or value.get("answer", made.digest) != made.digest:
        return None
    return value


def wait_receipt(made: Written, answer_s: float, shared: Path) -> Fields | None:
    """The receipt; None where nobody can answer now, or nobody shall be waited for.

    Raises:
        Refused: the rig refuses it; with what, where and the fix.  WaitTimeout: a rig that is there does not answer.
    """
    if not answer_s or is_silent(shared):
        return None
    until = time.monotonic() + answer_s
    while True:
        receipt = receipt_of(made)
        if receipt is not None:
            if receipt.get("state") == "refused":
                raise Refused("; ".join(problems_in(receipt)))
            if receipt.get("state") == "accepted":
                return receipt
        left = until - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"no answer within {answer_s:g} s; it will be {made.receipt}")
        pause(min(LOOK_S, left))


def problems_in(receipt: Mapping[str, Any]) -> Sequence[str]:
    """Why a receipt refuses, a line each."""
    given = receipt.get("problems")
    lines = [problem_line(one) for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    return lines or [str(receipt.get("note") or "the rig refused it without a reason")]
