"""What the rig cannot settle: raised by the brain, moved on by who answers, closed with its batch. Pure.

The decisions are those of :mod:`.escalations`; here they meet messages, batches, facts and events (PROTOCOL §8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from ..errors import DefinitionError, NotFound, Refused
from ..states import BatchState, TaskState
from ..wire import MAX_KEY_BYTES, pack
from .checks import MAX_INT, maps, whole
from .checks import text as text_of
from .escalations import MOVES, OVER, SCOPE, SPENT, STATES, Escalations, Raised, Record
from .model import Batch, Session
from .revising import Revising

TYPES: Final = ("execute_plan_failure", "verification_failure", "infrastructure_failure")
MAX_TITLE: Final = 300
MAX_DETAILS_BYTES: Final = 8 << 10
MAX_CONFIG_BYTES: Final = 8 << 10  #: of a plan's configuration in a record
MAX_AT_ONCE: Final = 20
MAX_NOTE: Final = 1000
_ANSWERS_BYTES: Final = 512 << 10
_CAUSE: Final = re.compile(r"[a-z_]{1,40}\Z")
_ANSWER: Final = re.compile(r"[\x21-\x7e]{1,128}\Z")
_DONE: Final = {BatchState.COMPLETE: "its batch is complete", BatchState.CANCELLED: "its batch was cancelled"}


class Escalating(Revising):
    """Escalations and their consequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.escalations = Escalations()

    def load_escalations(self) -> None:
        """Take over what the facts say, after a start; batches are loaded."""
        spent = self.facts.get((SPENT, "day"))
        kept = [fact.value for (scope, _), fact in self.facts.items() if scope == SCOPE]
        self.escalations.load(kept, spent.value if spent else ())

    # -- BRAIN -----------------------------------------------------------------------------------------------

    def check_escalate(self, header: dict[str, Any]) -> list[Raised]:
        """``escalate`` of a BRAIN message.

        Raises:
            DefinitionError, NotFound: a part is wrong; nothing was entered.
        """
        given = maps(header, "escalate")
        if len(given) > MAX_AT_ONCE:
            raise DefinitionError(f"{len(given)} escalations in one message; at most {MAX_AT_ONCE}")
        return [self._check_raised(one) for one in given]

    def _check_raised(self, one: dict[str, Any]) -> Raised:
        key, cause, title = text_of(one, "key", MAX_KEY_BYTES), one.get("cause"), one.get("title")
        if not key:
            raise DefinitionError("an escalation has a key")
        if not isinstance(cause, str) or not _CAUSE.match(cause):
            raise DefinitionError(f"escalation {key!r:.80}: cause {cause!r:.60}: 1 to 40 of a-z _")
        if one.get("type") not in TYPES:
            raise DefinitionError(f"escalation {key!r:.80}: type is one of {', '.join(TYPES)}")
        if not isinstance(title, str) or not 0 < len(title) <= MAX_TITLE:
            raise DefinitionError(f"escalation {key!r:.80}: title is a text of 1 to {MAX_TITLE} characters")
        details = one.get("details", {})
        if not isinstance(details, dict) or len(pack(details)) > MAX_DETAILS_BYTES:
            raise DefinitionError(
                f"escalation {key!r:.80}: details is a map of at most {MAX_DETAILS_BYTES} bytes"
            )
        batch = self.find_batch(one["batch"]).id if one.get("batch") else ""
        raised = Raised(key, cause, str(one["type"]), title, batch, details=details)
        if not one.get("task"):
            return raised
        task = self.find_task(one["task"])
        return Raised(key, cause, raised.type, title, batch, task.id, task.key, task.attempt, details)

    def apply_escalate(self, raised: Iterable[Raised]) -> None:
        """Enter what was checked. A key that is known changes nothing."""
        for one in raised:
            batch = self.batch_ids.get(one.batch)
            before = len(self.escalations.records)
            plan = _plan_of(batch) if batch is not None else {}
            record = self.escalations.raise_(one, plan, revision_of(batch), self.wall)
            if record is None:
                continue
            if len(self.escalations.records) > before:
                self.set_fact(SPENT, "day", self.escalations.spent)
                self._announce_record(record, record.status, new=True)
            elif record.tasks and record.tasks[-1]["id"] == one.task:
                self._announce_record(record, "joined")
            self._keep_record(record)

    def check_settle(self, header: dict[str, Any]) -> list[tuple[Record, str]]:
        """``settle`` of a BRAIN message."""
        return [
            (self.find_escalation(s.get("id")), str(s.get("note") or "")[:MAX_NOTE])
            for s in maps(header, "settle")
        ]

    def settle_escalations(self, settled: Iterable[tuple[Record, str]]) -> None:
        """Close those that are not so any more; an answer that is being applied goes on."""
        for record, note in settled:
            if record.open:
                self._move_record(record, "closed", note=note)

    # -- answers ---------------------------------------------------------------------------------------------

    def find_escalation(self, id_: Any) -> Record:
        """By its whole id.

        Raises:
            NotFound: unknown, or gone with its batch.
        """
        record = self.escalations.records.get(id_) if isinstance(id_, str) else None
        if record is None:
            raise NotFound(f"no escalation {id_!r:.80}; brain/escalations in the shared folder has them")
        return record

    def control_escalation(self, session: Session, header: dict[str, Any]) -> dict[str, Any]:
        """CONTROL ``escalation``: ``{id, status, answer}`` afterwards. What was done already is done.

        Raises:
            Refused: it cannot be moved so; its state is named.  DefinitionError, NotFound.
        """
        record, state = self.find_escalation(header.get("id")), header.get("state")
        answer = header.get("answer") or ""
        if state not in STATES:
            raise DefinitionError(f"escalation state {state!r:.40}: one of {', '.join(sorted(STATES))}")
        if not isinstance(answer, str) or (answer and not _ANSWER.match(answer)):
            raise DefinitionError("answer names the answer: 1 to 128 printable characters without spaces")
        if state == "answered" and not answer:
            raise DefinitionError("a state of answered names its answer")
        same = not answer or answer == record.answer
        done = state == record.status or (state == "answered" and record.status in OVER)
        if not (same and done):
            if (record.status, state) not in MOVES or not (same or record.open):
                raise Refused(f"escalation {record.id} is {_words(record)}")
            by = str(header.get("by") or ("" if record.answer else session.name))[:100]
            note = str(header.get("note") or "")[:MAX_NOTE]
            self._move_record(record, str(state), answer=answer, by=by, note=note)
        return {"id": record.id, "status": record.status, "answer": record.answer}

    def answers_escalation(self, header: dict[str, Any]) -> Record | None:
        """The escalation that a REQUEUE or CANCEL answers, None where it names none; it may be over already.

        Raises:
            Refused: it was not answered so.  NotFound.
        """
        if not header.get("escalation"):
            return None
        record = self.find_escalation(header["escalation"])
        if record.answer != header.get("answer") or record.open:
            raise Refused(f"escalation {record.id} is {_words(record)}")
        return record

    def end_escalation(self, record: Record | None, state: str) -> None:
        """What it was answered with is done, in this commit."""
        if record is not None:
            self._move_record(record, state)

    # -- with the batch --------------------------------------------------------------------------------------

    def touch_batch(self, batch: Batch) -> None:
        """A batch that has come to a good end, or was given up, has no open question."""
        super().touch_batch(batch)
        if batch.id in self.escalations.of_batch and batch.state in _DONE:
            for record in self.escalations.open_of(batch.id):
                self._move_record(record, "closed", note=_DONE[batch.state])

    def forget_escalations(self, batch: str) -> None:
        """The batch leaves the database."""
        for record in list(self.escalations.of_batch.get(batch, ())):
            self._drop_record(record)

    def unraised(self, batch: Batch) -> bool:
        """A plan has failed with dead tasks, and nothing was raised since: its brain died, or was away."""
        if batch.kind != "plan" or batch.state is not BatchState.FAILED or not batch.counts[TaskState.DEAD]:
            return False
        mine = self.escalations.of_batch.get(batch.id, ())
        if any(record.open or record.changed_at >= batch.ended_at for record in mine):
            return False
        return batch.ended_at >= self.escalations.since

    # -- asking ----------------------------------------------------------------------------------------------

    def open_escalations(self, batch: str) -> int:
        """How many of a batch nobody has answered."""
        return len(self.escalations.open_of(batch)) if batch in self.escalations.of_batch else 0

    def escalation_rows(self, header: dict[str, Any]) -> dict[str, Any]:
        """QUERY ``escalations``: a page of records by number."""
        after = whole(header, "cursor", 0, MAX_INT, 0)
        if header.get("id"):
            return {"escalations": [self._row_of(self.find_escalation(header["id"]))], "cursor": None}
        since = whole(header, "since", 0, MAX_INT, 0)
        book, batch = self.escalations, header.get("batch")
        source: Iterable[Record] = book.records.values()
        if batch is not None:  # empty: about the rig as a whole
            source = book.of_batch.get(batch and self.find_batch(batch).id, ())
        rows: list[dict[str, Any]] = []
        room = _ANSWERS_BYTES
        for record in source:
            if record.no <= after or record.seq <= since or (header.get("open") and record.status in OVER):
                continue
            row = self._row_of(record)
            room -= len(pack(row))
            if rows and room < 0:
                return {"escalations": rows, "cursor": rows[-1]["no"]}
            rows.append(row)
        return {"escalations": rows, "cursor": None}

    def _row_of(self, record: Record) -> dict[str, Any]:
        return record.row() | {"left": self.escalations.left(record.batch, self.wall)}

    # -- inside ----------------------------------------------------------------------------------------------

    def _move_record(
        self, record: Record, state: str, *, answer: str = "", by: str = "", note: str = ""
    ) -> None:
        if state == "answered":
            record.was, record.answer = record.status, answer
        elif state == "pending":
            state, record.answer = record.was, ""
        record.status, record.changed_at = state, self.wall
        record.by, record.note = by or record.by, note or record.note
        self._announce_record(record, record.status)
        self._keep_record(record)
        for old in self.escalations.surplus(record.batch):
            if old is not record:
                self._drop_record(old)

    def _keep_record(self, record: Record) -> None:
        self.set_fact(SCOPE, record.id, record.value())

    def _drop_record(self, record: Record) -> None:
        self.escalations.forget(record)
        self.drop_fact(SCOPE, record.id)

    def _announce_record(self, record: Record, what: str, *, new: bool = False) -> None:
        data = {
            name: getattr(record, name) for name in ("cause", "type", "title", "task", "why", "by", "note")
        }
        if new:
            data["new"] = True
        record.seq = self.emit("p", f"escalation.{record.id}.{what}", "", record.batch, data)


def revision_of(batch: Batch | None) -> int:
    """Of a batch's plan."""
    return batch.revision if batch is not None else 1


def _plan_of(batch: Batch) -> dict[str, Any]:
    """What a record keeps of the plan that failed: a later revision must not change what is read there."""
    plan = batch.plan or {}
    kept = {name: plan[name] for name in ("name", "sha256", "path") if isinstance(plan.get(name), str)}
    config = plan.get("config")
    if isinstance(config, dict) and len(pack(config)) <= MAX_CONFIG_BYTES:
        kept["config"] = config
    return kept


def _words(record: Record) -> str:
    by = f" by {record.by}" if record.by else ""
    answer = f" (answer {record.answer[:12]}{by})" if record.answer else ""
    return f"{record.status}{answer}" + (f": {record.note}" if record.note else "")
