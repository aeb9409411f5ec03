"""Escalations as the shared folder shows them: the rig's files, the answers beside them and the rig's receipts.

Everything is read anew at each look; what is half-written, a link or no JSON is left out. No pydantic, no zmq.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..bridge.folder.contract.receipts import digest_of
from ..bus.errors import NotFound
from ..plans.keys import is_plain_name
from .file_rows import unix, word

FOLDER: Final = "brain/escalations"
ANSWER: Final = ".answer.json"
RECEIPT: Final = ".answer.receipt.json"
MAX_BYTES: Final = 4 << 20
MIN_PREFIX: Final = 4
UNANSWERED: Final = frozenset({"pending", "human"})
OPEN: Final = UNANSWERED | {"answered"}
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Fields = dict[str, Any]


class Escalations:
    """Those of one shared folder. ``fields`` below are a file's object, as the rig wrote it; ``status`` is a word."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        self.folder = shared / FOLDER

    def all(self) -> list[Fields]:
        """Every one that can be read, oldest first."""
        try:
            names = os.listdir(
                self.folder
            )  # over NFS a new file is seen only after the folder was read again
        except OSError:
            return []
        found = []
        for name in sorted(names):
            stem = name.removesuffix(".json")
            if stem == name or name.endswith((ANSWER, RECEIPT)) or not is_plain_name(stem):
                continue
            fields = read_object(self.folder / name)
            if fields is not None and fields.get("escalation_id") == stem:
                found.append({**fields, "status": word(fields.get("status"), "unknown")})
        return found

    def find(self, ref: str) -> Fields:
        """The one with this id, or whose id begins with it or ends with it.

        Raises:
            NotFound: none, or several.
        """
        rows = {str(fields["escalation_id"]): fields for fields in self.all()}
        hits = [ref] if ref in rows else []
        if not hits and len(ref) >= MIN_PREFIX:
            hits = [id_ for id_ in rows if id_.startswith(ref) or id_.endswith(ref)]
        if len(hits) > 1:
            raise NotFound(f"escalation {ref!r} fits {len(hits)}: give more characters")
        if not hits:
            raise NotFound(
                f"no escalation {ref!r} in {self.folder}; `rigbus escalations list --all` shows them"
            )
        return rows[hits[0]]

    def answer_file(self, id_: str) -> Path:
        """Where the answer to it stands or would stand."""
        return self.folder / f"{id_}{ANSWER}"

    def receipt_bytes(self, id_: str) -> bytes | None:
        """The rig's receipt of an answer as it stands; None where there is none."""
        return read_bytes(self.folder / f"{id_}{RECEIPT}")

    def answered(self, id_: str) -> str:
        """``none``: no answer; ``waiting``: one that the rig has not answered; else ``accepted`` or ``refused``."""
        data = read_bytes(self.answer_file(id_))
        if data is None:
            return "waiting" if os.path.lexists(self.answer_file(id_)) else "none"
        receipt = as_object(self.receipt_bytes(id_))
        if receipt is None:
            return "waiting"
        digest = receipt.get("answer")
        value = as_object(data)
        if digest and (value is None or digest != digest_of(value)):
            return "waiting"
        return "refused" if receipt.get("state") == "refused" else "accepted"

    def plan_folder(self, fields: Mapping[str, Any]) -> Path | None:
        """The plan that it is about, as it lies in this share; None where it does not (any more)."""
        return plan_in(self.shared, fields.get("plan"))


def plan_in(shared: Path, name: Any) -> Path | None:
    """The folder of a plan by its name (``arms/x`` lies deeper), None where there is none, or it leads out of the share."""
    if not isinstance(name, str) or not all(is_plain_name(part) for part in name.split("/")):
        return None
    folder = shared / "plans" / name
    inside = os.path.realpath(folder).startswith(os.path.realpath(shared) + os.sep)
    return folder if inside and (folder / "plan.md").is_file() else None


def source_of(fields: Mapping[str, Any]) -> Fields:
    """``source_task``, empty where it is none."""
    given = fields.get("source_task")
    return given if isinstance(given, dict) else {}


def actions_of(fields: Mapping[str, Any]) -> list[str]:
    """Which answers would be taken now."""
    given = fields.get("actions")
    return [word for word in given if isinstance(word, str)] if isinstance(given, list) else []


def row(found: Escalations, fields: Mapping[str, Any], now: float) -> Fields:
    """One line of a list; ``now`` is Unix seconds, ``age_s`` null where the file does not say when it was raised."""
    id_, at = str(fields["escalation_id"]), unix(fields.get("created_at"))
    return {
        "id": id_,
        "status": fields["status"],
        "created_at": at,
        "age_s": None if at is None else round(max(0.0, now - at), 1),
        "batch": source_of(fields).get("batch_id"),
        "plan": fields.get("plan"),
        "cause": fields.get("cause") or None,
        "type": fields.get("type"),
        "title": fields.get("title"),
        "actions": actions_of(fields),
        "answers_left": fields.get("answers_left"),
        "answer": found.answered(id_),
        "answer_to": str(found.answer_file(id_)),
    }


def read_bytes(file: Path, most: int = MAX_BYTES) -> bytes | None:
    """A regular file of at most ``most`` bytes; None for whatever is none. No link is followed, no FIFO waited for."""
    try:
        handle = os.open(file, _FLAGS)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as opened:
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            data = opened.read(most + 1)
        except OSError:
            return None
    return data if len(data) <= most else None


def as_object(data: bytes | None) -> Fields | None:
    """The JSON object in these bytes; None where they are none."""
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_object(file: Path, most: int = MAX_BYTES) -> Fields | None:
    """The JSON object of a regular file; None for whatever is none."""
    return as_object(read_bytes(file, most))
