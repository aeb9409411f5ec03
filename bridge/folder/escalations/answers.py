"""The inward side of escalations: answer files become one verb each, with a receipt beside them.

An answer is entered in the journal with all that it will do, before anything is done; the broker is told which one it is;
then the verb, then the record's end. Killed anywhere, the bridge goes on with the same: each step may be repeated.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

from ....bus.errors import Busy, NotFound, RigbusError
from ....bus.paths import RigPaths
from ....bus.wire import Verb
from ..contract.receipts import Invalid, Problem, Receipt, digest_of, problem_from, receipt_json
from ..intake.journal import Journal
from ..intake.moves import KIND, Later
from ..intake.taking import Taker
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ShareAway, ask, share
from ..share.ops import Entry, entries, read, scan, shown, write
from ..share.port import FolderPort
from . import answers_core as core
from .answers_core import MAX_BYTES
from .files import FOLDER, RECEIPT
from .putting import put_into_share
from .revising import plan_of

if TYPE_CHECKING:
    from ....bus.escalation import Answer

log = logging.getLogger(__name__)

NAME: Final = "answers"
LOOK_S: Final = 1.0
MAX_LOOK_S: Final = 15.0
PAGE: Final = 2000
AGAIN_S: Final = 2.0
HALF_S: Final = 10.0  #: for a file that is no JSON (yet) and does not change
END_S: Final = 120.0  #: for what is being ended, before it is asked to run again all the same
MAX_TOLD: Final = 50_000
_FIX: Final = "write the answer again"

Deed = dict[str, Any]
Row = dict[str, Any]


class Answers:
    """See the module."""

    def __init__(
        self, port: FolderPort, taker: Taker, paths: RigPaths, clock: Clock, *, half_s: float = HALF_S
    ) -> None:
        self._port, self._taker, self._paths, self._clock = port, taker, paths, clock
        self._half_s = half_s
        self._journal: Journal = taker.journal
        self._open: dict[str, Deed] | None = None
        self._since: dict[
            str, tuple[Entry, float]
        ] = {}  #: files that are not whole, and since when they do not change
        self._told: dict[str, Entry] = {}  #: files that have their receipt
        self._begun: dict[str, float] = {}

    def run(self) -> Flow[None]:
        """Look at the folder, for ever."""
        while True:
            if not self._port.state.available:
                yield Idle()
                continue
            pause = AGAIN_S
            try:
                if self._open is None:
                    self._journal.open()
                    self._open = self._journal.entries()
                for mark in list(self._open):
                    yield from self._go_on(mark)
                took = yield from self._look()
                pause = max(LOOK_S, min(30 * took, MAX_LOOK_S))
            except ShareAway as e:
                log.warning("answers are not looked at: %s; again when the share answers", e)
            except (RigbusError, Later, OSError) as e:
                log.warning("answers wait: %s", e)
            yield Idle(pause)

    # -- looking ---------------------------------------------------------------------------------------------

    def _look(self) -> Flow[float]:
        found: list[Entry] = []
        after: str = ""
        took = 0.0
        while True:
            (result,) = yield from share(KIND, [scan(FOLDER, budget=PAGE, after=after)])
            if not result["ok"]:
                return took
            took += float(result["took_s"])
            found += [e for e in entries(result) if core.answered_id(e) is not None]
            after = result["next"]
            if not after:
                break
        names = {entry.path for entry in found}
        self._told = {name: entry for name, entry in self._told.items() if name in names}
        self._since = {name: seen for name, seen in self._since.items() if name in names}
        for entry in sorted(found, key=lambda e: -e.mtime_ns):  # the new ones first: old ones have been done
            if self._told.get(entry.path) != entry:
                yield from self._attend(entry)
        return took

    def _attend(self, entry: Entry) -> Flow[None]:
        """A file that is new, or another one, or that was not whole."""
        id_, where = core.answered_id(entry) or "", f"{FOLDER}/{shown(entry.path)}"
        value: dict[str, Any] | None = None
        try:
            value = yield from self._whole(entry, where)
            if value is None:
                return
            if not (yield from self._is_told(entry, id_, value)):
                yield from self._take(entry, id_, value, where)
        except Invalid as e:
            digest = digest_of(value) if value is not None else ""
            yield from self._refuse(id_, digest, entry.was, e.problems)
        except Later as e:
            log.info("answer %s waits: %s", shown(entry.path), e)
            return
        self._since.pop(entry.path, None)
        if len(self._told) < MAX_TOLD:
            self._told[entry.path] = entry

    def _whole(self, entry: Entry, where: str) -> Flow[dict[str, Any] | None]:
        """What stands in the file; None while somebody may still be writing it, or when it has gone.

        Raises:
            Invalid: it is nothing that can be read, or does not become whole.
        """
        if entry.type != "file":
            raise Invalid(
                Problem(f"it is a {entry.type}, not a file", where, "write a plain file of that name")
            )
        (got,) = yield from share(KIND, [read(f"{FOLDER}/{entry.path}", MAX_BYTES + 1)])
        if not got["ok"]:
            if got["errno"] == "ENOENT":
                return None
            raise Invalid(
                Problem(str(got["what"]), where, "make it readable for the rig's user, or write it again")
            )
        if got["size"] > MAX_BYTES:
            raise Invalid(
                Problem(f"it has {got['size']} bytes, at most {MAX_BYTES}", where, "answer with less")
            )
        value = core.parse(bytes(got["data"]), where)
        if value is not None:
            return value
        now = self._clock.now()
        old = self._since.get(entry.path)
        if old is None or old[0] != entry:
            self._since[entry.path] = (entry, now)
        elif now - old[1] >= self._half_s:
            raise Invalid(Problem("it is no JSON, and does not change any more", where, _FIX))
        return None

    def _is_told(self, entry: Entry, id_: str, value: dict[str, Any]) -> Flow[bool]:
        """Whether a bridge before this one has written the receipt of this very file."""
        (got,) = yield from share(KIND, [read(f"{FOLDER}/{id_}{RECEIPT}", 64 << 10)])
        if not got["ok"]:
            return False
        try:
            said = json.loads(got["data"])
        except (ValueError, RecursionError):
            return False
        if not isinstance(said, dict):
            return False
        return said.get("answer") == digest_of(value) and said.get("of") == entry.was

    # -- taking ----------------------------------------------------------------------------------------------

    def _take(self, entry: Entry, id_: str, value: dict[str, Any], where: str) -> Flow[None]:
        """Check it, enter it, do it.

        Raises:
            Invalid: it is not to be done; nothing was changed.
        """
        answer = core.checked(value, id_, where)
        digest = digest_of(value)
        record = yield from self._record(id_, where)
        deed: Deed = {
            "drop_id": f"{id_}.{digest[:16]}",
            "id": id_,
            "answer": digest,
            "action": answer.action,
            "by": answer.by or "an answer in the shared folder",
            "note": answer.note,
            "batch": record["batch"],
            "was": entry.was,
        }
        if core.judge(record, digest, answer, where):
            yield from self._accept(deed, "It was done before.")
            return
        deed |= yield from self._deed(answer, record, digest, where)
        mark = str(deed["drop_id"])
        self._journal.enter(mark, deed)
        if self._open is not None:
            self._open[mark] = deed
        log.info("answer to %s: %s (%s)", id_, answer.action, shown(str(deed["by"])))
        yield from self._go_on(mark)

    def _record(self, id_: str, where: str) -> Flow[Row]:
        try:
            answer = yield from ask(Verb.QUERY, {"what": "escalations", "id": id_})
        except NotFound:
            fix = f"{FOLDER}/ has those that there are; those of a batch go with it"
            raise Invalid(Problem(f"there is no escalation {id_}", where, fix)) from None
        row: Row = answer.header["escalations"][0]
        return row

    def _deed(self, answer: Answer, record: Row, digest: str, where: str) -> Flow[Deed]:
        """What it will do: the verb with its header, and for a revision the plan that is staged.

        Raises:
            Invalid: with file, line and fix where that is the plan's fault.  Later: the rig's own disk refuses.
        """
        batch: Row | None = None
        if record["batch"]:
            try:
                batch = (yield from ask(Verb.QUERY, {"what": "batch", "id": record["batch"]})).header
            except NotFound:
                raise Invalid(
                    Problem(f"batch {record['batch']} is gone", where, "submit the plan anew")
                ) from None
            core.require_revision(answer, batch.get("spec") or {}, where)
        ids = (yield from self._ids(answer, batch, where)) if answer.tasks and batch is not None else []
        verb, header, state = core.verb_of(answer, record, batch, digest, ids)
        deed: Deed = {"verb": verb.value if verb is not None else "", "header": header, "state": state}
        if verb is Verb.REVISE and batch is not None:
            spec = batch["spec"]
            made = plan_of(self._taker, self._paths, answer, spec, f"{record['id']}.{digest[:8]}", where)
            header["plan"] = {**spec, "sha256": made.sha256, "config": made.config}
            deed |= {"files": dict(answer.files), "base": spec["sha256"], "path": spec.get("path")}
            deed["warnings"] = made.warnings
        return deed

    def _ids(self, answer: Answer, batch: Row, where: str) -> Flow[list[str]]:
        rows = yield from _tasks(batch["id"], core.states_of_bad())
        return core.named(answer.tasks, rows, where)

    # -- doing -----------------------------------------------------------------------------------------------

    def _go_on(self, mark: str) -> Flow[None]:
        """From the journal on."""
        deed = (self._open or {})[mark]
        try:
            done = yield from self._do(deed)
        except Busy as e:
            log.info("answer %s: the broker is full: %s", mark, e)
            return
        except Later as e:
            log.info("answer %s waits: %s", mark, e)
            return
        except Invalid as e:
            yield from self._refuse(str(deed.get("id")), str(deed.get("answer")), deed.get("was"), e.problems)
        except (KeyError, TypeError, ValueError) as e:
            log.warning("the journal's entry %s is unusable (%r); answer again", mark, e)
        else:
            if not (yield from self._accept(deed, done)):
                return  # its receipt is written when the share can be
        self._journal.leave(mark)
        self._begun.pop(mark, None)
        if self._open is not None:
            self._open.pop(mark, None)

    def _do(self, deed: Deed) -> Flow[str]:
        """The steps; each may be repeated. What was done, in words.

        Raises:
            Invalid: the broker refuses it.  Busy, Later: not now.
        """
        where = f"{FOLDER}/{deed['id']}.answer.json"
        record = yield from self._record(deed["id"], where)
        told = {"action": "escalation", "id": deed["id"], "answer": deed["answer"]}
        said: dict[str, Any] = {"already": True}
        if record["answer"] != deed["answer"] or record["status"] == "answered":
            try:
                yield from ask(
                    Verb.CONTROL, {**told, "state": "answered", "by": deed["by"], "note": deed["note"]}
                )
            except Busy:
                raise
            except RigbusError as e:
                raise Invalid(problem_from(f"the rig refuses it: {e}", where)) from None
            if deed["verb"]:
                said = yield from self._say(deed, told, where)
            yield from self._move(told, deed["state"])
        left = ""
        if deed.get("files"):
            left = yield from put_into_share(deed, self._paths)
        words = core.done_words(deed["action"], deed["batch"], said)
        return " ".join(text for text in (words, left, deed.get("warnings")) if text)

    def _say(self, deed: Deed, told: dict[str, Any], where: str) -> Flow[dict[str, Any]]:
        """The verb. One that is refused leaves the escalation open, as it was.

        Raises:
            Invalid, Busy, Later.
        """
        verb = Verb(deed["verb"])
        if verb is Verb.REQUEUE:
            yield from self._wait_for_ends(deed)
        try:
            return (yield from ask(verb, deed["header"])).header
        except Busy:
            raise
        except RigbusError as e:
            note = f"the answer could not be applied: {e}"[:1000]
            yield from self._move(told, "pending", by=deed["by"], note=note)
            raise Invalid(problem_from(f"the rig refuses it: {e}", where)) from None

    def _move(self, told: dict[str, Any], state: str, **more: Any) -> Flow[None]:
        """Move the record on; somebody else may have done so, or forgotten its batch, and that is as good."""
        try:
            yield from ask(Verb.CONTROL, {**told, "state": state, **more})
        except Busy:
            raise
        except RigbusError as e:
            log.warning("escalation %s is not moved to %s: %s", told["id"], state, e)

    def _wait_for_ends(self, deed: Deed) -> Flow[None]:
        """What is still being ended would take down with it what comes back.

        Raises:
            Later: something is; after a while the broker is asked all the same, and says what it is.
        """
        rows = yield from _tasks(deed["batch"], ["leased"])
        now = self._clock.now()
        begun = self._begun.setdefault(str(deed["drop_id"]), now)
        if any(row.get("ending") for row in rows) and now - begun < END_S:
            raise Later(f"tasks of batch {deed['batch']} are still being ended")

    # -- answering -------------------------------------------------------------------------------------------

    def _accept(self, deed: Deed, note: str) -> Flow[bool]:
        receipt = Receipt(
            f"{deed['id']}.answer.json", "accepted", self._clock.wall(), batch_id=deed["batch"], note=note
        )
        if deed["batch"]:
            next_ = f"rigbus watch {deed['batch']}" if deed["action"] not in ("human", "abandon") else ""
            receipt = Receipt(
                receipt.name, "accepted", receipt.at, batch_id=deed["batch"], note=note, next=next_
            )
        log.info("answer to %s: %s", deed["id"], note)
        return (yield from self._receipt(receipt, deed["id"], deed["answer"], deed["was"]))

    def _refuse(self, id_: str, digest: str, was: Any, problems: tuple[Problem, ...]) -> Flow[None]:
        log.warning("answer to %s refused: %s", id_, "; ".join(p.what for p in problems[:5]))
        receipt = Receipt(f"{id_}.answer.json", "refused", self._clock.wall(), problems=problems)
        yield from self._receipt(receipt, id_, digest, was)

    def _receipt(self, receipt: Receipt, id_: str, digest: str, was: Any) -> Flow[bool]:
        fields = json.loads(receipt_json(receipt, self._clock.utc_offset_s(receipt.at)))
        fields |= {"escalation_id": id_, "answer": digest, "of": was}
        data = json.dumps(fields, indent=2).encode() + b"\n"
        (result,) = yield from share(KIND, [write(f"{FOLDER}/{id_}{RECEIPT}", data, fsync=True)])
        if not result["ok"]:
            log.warning("no receipt for the answer to %s: %s", id_, result["what"])
        return bool(result["ok"])


def _tasks(batch: str, states: list[str]) -> Flow[list[Row]]:
    """The rows of a batch's tasks in these states, however many pages they are."""
    rows: list[Row] = []
    cursor: int | None = None
    while True:
        question = {"what": "tasks", "batch": batch, "states": states, "cursor": cursor}
        page = (yield from ask(Verb.QUERY, question)).header
        rows += page["rows"]
        cursor = page["cursor"]
        if cursor is None:
            return rows
