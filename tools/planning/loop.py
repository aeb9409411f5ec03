"""The planner's loop over the escalations of a folder: look, ask, check, write once, hear the rig's receipt.

What may be done twice is asking; answering is not: the seat is looked at before an answer is written, and an answer takes
its name only where none stands. A killed planner finds its own answer there when it starts again.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...bus.errors import ConfigError, NotFound, PlanError, Refused, Unreachable, WaitTimeout
from .. import answering
from ..escalation_rows import Escalations, Fields
from ..plan_files import Texts, private_folder, staged_copy, texts_of
from ..requests import pause
from . import prompts
from .asking import AskFailed, NoObject, Planner, Question, object_in
from .book import MAX_INVALID, Book
from .seat import Seat

if TYPE_CHECKING:
    from ...bus.escalation import Answer

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
MAX_LOOK_S: Final = 30.0
RECEIPT_S: Final = 30.0
FORMAT: Final = Path(__file__).resolve().parents[2] / "plans" / "PLAN_FORMAT.md"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one escalation: ``answered``, ``invalid``, ``failed``, ``human``, ``refused``,
    ``dry-run``, ``late`` or ``lost``."""

    id: str
    what: str
    note: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)


class Loop:
    """``said`` hears each outcome. ``seat`` None: nothing is ever written (``dry_run``)."""

    def __init__(
        self,
        found: Escalations,
        planner: Planner,
        book: Book,
        seat: Seat | None,
        said: Callable[[Outcome], None],
        *,
        without: tuple[str, ...] = (),
        receipt_s: float = RECEIPT_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._found, self._planner, self._book, self._seat = found, planner, book, seat
        self._said, self._without, self._receipt_s, self._now = said, without, receipt_s, now
        self._held = ""

    def once(self) -> list[Outcome]:
        """One look: each escalation that waits for a planner is asked about once, and once more where its answer was bad."""
        outcomes: list[Outcome] = []
        if self._seat is not None and not self._seat.is_ours():
            return outcomes  # a question costs money, and its answer could not be written
        for fields in self._pending():
            while True:
                held = self._held_by()
                if held:
                    if held != self._held:
                        log.info("%s", held)
                    self._held = held
                    return outcomes
                self._held = ""
                outcome = self._attend(fields)
                outcomes.append(outcome)
                self._said(outcome)
                if outcome.what != "invalid":
                    break
            if outcome.what == "lost":
                return outcomes
        return outcomes

    def forever(self, look_s: float = LOOK_S) -> None:
        """Look again and again: soon after something happened, seldom where nothing does."""
        rest_s = look_s
        while True:
            try:
                outcomes = self.once()
            except (OSError, Unreachable) as e:  # a disk that is full, a mount that is away: they come back
                log.warning("%s; looked at again", e)
                outcomes = []
            if self._seat is not None and self._seat.state() == "lost":
                raise Refused("another planner has taken this folder over; this one ends")
            rest_s = look_s if outcomes else min(max(MAX_LOOK_S, look_s), rest_s * 1.5)
            pause(rest_s)

    # -- which -----------------------------------------------------------------------------------------------

    def _pending(self) -> list[Fields]:
        every = self._found.all()
        if self._found.folder.is_dir() and every:
            self._book.keep_only(str(fields["escalation_id"]) for fields in every)
        return [fields for fields in every if self._is_ours_to_answer(fields)]

    def _is_ours_to_answer(self, fields: Fields) -> bool:
        return fields.get("status") == "pending" and self._found.answered(str(fields["escalation_id"])) in (
            "none",
            "refused",
        )

    def _held_by(self) -> str:
        """Why nothing is asked now; empty where something may be."""
        now_at = self._now()
        wait_s = self._book.wait_s(now_at)
        if wait_s > 0:
            return f"the planner gave no answer; asked again in {wait_s:.0f} s"
        return self._spent() if self._book.left_today(now_at) == 0 else ""

    def _spent(self) -> str:
        return f"today's {self._book.per_day} questions are asked; the rest waits for tomorrow (UTC), or for people"

    # -- one of them -----------------------------------------------------------------------------------------

    def _attend(self, fields: Fields) -> Outcome:
        id_ = str(fields["escalation_id"])
        tries, problems, previous = self._book.problems_of(id_)
        if tries >= MAX_INVALID:
            return self._to_people(fields, problems)
        question = self._question(fields, problems, previous)
        if not self._book.asks(self._now()):  # another planner of this book was quicker
            return Outcome(id_, "failed", self._spent())
        try:
            text = self._planner.ask(question)
        except AskFailed as e:
            pause_s = self._book.failed(self._now())
            return Outcome(id_, "failed", f"{e}; again in {pause_s:.0f} s")
        outcome = self._judged(text, fields)
        if outcome.what != "failed":
            self._book.came()
        return outcome

    def _judged(self, text: str, fields: Fields) -> Outcome:
        """What becomes of what the planner said."""
        try:
            answer = self._checked(text, fields)
        except (ConfigError, NoObject) as e:
            return self._not_taken(fields, [str(e)], text)
        except PlanError as e:
            return self._not_taken(fields, e.problems, text)
        if self._seat is None:
            return Outcome(answer.escalation_id, "dry-run", answer=answering.value_of(answer))
        return self._written(fields, answer, text)

    def _question(self, fields: Fields, problems: list[str], previous: str) -> Question:
        from ...bus.escalation import Answer

        mark = f"data-{secrets.token_hex(8)}"
        schema = Answer.model_json_schema(by_alias=True)
        sent = prompts.evidence(fields, self._without)
        folder = self._found.plan_folder(fields)
        texts = None
        if "files" not in self._without and folder is not None:
            texts = self._texts(folder)
        words = prompts.about_escalation(
            mark, sent, texts, FORMAT.read_text("utf-8"), problems, previous, schema
        )
        document = dict(sent)
        if problems:
            document["previous"] = {"problems": problems, "answer": previous[: prompts.PREVIOUS_CHARS]}
        id_ = str(fields["escalation_id"])
        names = {
            "RIGBUS_SHARED": str(self._found.shared),
            "RIGBUS_PLAN_PATH": str(folder or ""),
            "RIGBUS_PLAN_FORMAT": str(FORMAT),
            "RIGBUS_ESCALATION_ID": id_,
            "RIGBUS_ESCALATION": str(self._found.folder / f"{id_}.json"),
        }
        return Question("answer", document, prompts.system(mark), words, schema, names)

    def _texts(self, folder: Path) -> Texts:
        with private_folder() as scratch:
            try:
                copy, _ = staged_copy(folder, scratch, "plan")
            except PlanError as e:
                log.warning("the plan's files are not sent: %s", e)
                return Texts()
            return texts_of(copy, each=prompts.FILE_BYTES, total=prompts.FILES_BYTES)

    def _checked(self, text: str, fields: Fields) -> Answer:
        """The answer, checked by the model, by the escalation, and as the plan that it makes.

        Raises:
            NoObject, ConfigError, PlanError: it cannot be taken.
        """
        value = object_in(text)
        id_ = str(fields["escalation_id"])
        value.setdefault("escalation_id", id_)
        value["by"] = _by(value.get("by"), self._planner.name)
        if value.get("action") in ("patch", "config") and fields.get("plan_sha256"):
            value.setdefault("plan_sha256", fields["plan_sha256"])
        answer = answering.checked(value, fields)
        errors, sure = answering.lint_patched(self._found, fields, answer)
        if errors and sure:
            raise PlanError("the plan would be invalid", errors)
        return answer

    def _not_taken(self, fields: Fields, problems: list[str], text: str) -> Outcome:
        """Remember it: its author hears of it once. Then it is for people."""
        n = self._book.invalid(str(fields["escalation_id"]), problems, text)
        if n < MAX_INVALID:
            return Outcome(str(fields["escalation_id"]), "invalid", "; ".join(problems[:5]))
        return self._to_people(fields, problems)

    def _to_people(self, fields: Fields, problems: list[str]) -> Outcome:
        """Say `human`, where that may be said, so that the rig tells people."""
        id_ = str(fields["escalation_id"])
        note = f"the planner's answers could not be taken: {'; '.join(problems[:3])}"[:1000]
        value = {"escalation_id": id_, "action": "human", "note": note, "by": self._planner.name}
        try:
            answer = answering.checked(value, fields)
        except ConfigError as e:
            return Outcome(id_, "human", f"{note}; it stays as it is ({e})")
        if self._seat is None:
            return Outcome(id_, "human", note, answering.value_of(answer))
        done = self._written(fields, answer, json.dumps(value))
        return Outcome(id_, "human", note, done.answer) if done.what == "answered" else done

    def _written(self, fields: Fields, answer: Answer, text: str) -> Outcome:
        """Write it, if it is still to be written, and hear what the rig says."""
        id_ = answer.escalation_id
        if self._seat is None or not self._seat.is_ours():
            return Outcome(id_, "lost", "another planner has taken this folder over; nothing was written")
        try:
            if not self._is_ours_to_answer(self._found.find(id_)):
                raise Refused("it was answered meanwhile")
            written = answering.write(self._found, answer)
        except (Refused, NotFound) as e:
            return Outcome(id_, "late", str(e))
        except (OSError, Unreachable) as e:  # a share that is full or away: each new question would cost, too
            pause_s = self._book.failed(self._now())
            return Outcome(
                id_, "failed", f"the answer cannot be written: {e}; asked again in {pause_s:.0f} s"
            )
        value = answering.value_of(answer)
        try:
            receipt = answering.wait_receipt(written, self._receipt_s, self._found.shared)
        except Refused as e:
            if answer.action == "human":
                return Outcome(id_, "refused", str(e), value)
            return self._not_taken(fields, [f"the rig refuses it: {e}"], text)
        except WaitTimeout as e:
            return Outcome(id_, "answered", str(e), value)
        note = (
            str(receipt.get("note") or "")
            if receipt
            else "the rig is off; it reads the answer when it is back"
        )
        return Outcome(id_, "answered", note, value)


def _by(claimed: Any, name: str) -> str:
    """Whose answer it is: a planner may say more of itself, but not that it is somebody else."""
    return (f"{str(claimed)[:60]}, by {name}" if claimed and claimed != name else name)[:100]
