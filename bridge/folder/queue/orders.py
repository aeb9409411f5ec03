"""One order of ``tasks/queue`` on its way: journal -> SUBMIT under its task_id -> receipt and lane -> its end.

Each step may be repeated after a crash: the SUBMIT bears the task_id as its key, and files are written whole. A plan's
file stays in processing until its batch has ended; a single task is drawn by the mirror, under its author's task_id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ....bus.core.model import task_id as public_id
from ....bus.errors import NotFound, RigbusError
from ....bus.paths import RigPaths
from ....bus.wire import Verb, pack
from ..contract.layout import FAILED, File
from ..contract.receipts import Invalid, Problem, Receipt, problem_from
from ..intake.core import parse_object
from ..intake.moves import KIND
from ..intake.taking import Taker, submit_whole
from ..loop.clock import Clock
from ..loop.flows import Flow, ask, share
from ..share.ops import Op, rename, shown, stat, unlink, write
from .books import Books, Entry, batch_key
from .core import MAX_TASK_BYTES, QUEUE, Order, PlanOrder, TaskOrder, digest
from .mapping import choose, guesses
from .resting import Rest
from .view import elsewhere, plan_view, refused_view, stem_of

log = logging.getLogger(__name__)

ROWS: Final = 200
LIVE: Final = ("planning", "running")
ENDED: Final = frozenset({"done", "dead", "cancelled", "expired", "skipped"})
MAX_ASIDE: Final = 100
MISSING_S: Final = 5.0  #: for a plan's folder that is not there (yet)


#: Inode, size and mtime_ns of the file that was read.
Was = Sequence[int]


class NotYet(Exception):
    """The order waits for something that may still come; ``problem`` says what should it not, for ``patience_s`` (None:
    as long as for half a file)."""

    def __init__(self, problem: Problem, patience_s: float | None = None) -> None:
        super().__init__(problem.what)
        self.problem, self.patience_s = problem, patience_s


class Orders:
    """Takes orders and follows them. ``path_map`` is the setting; a plan as new as its order rests ``settle_s`` first."""

    def __init__(
        self,
        books: Books,
        taker: Taker,
        paths: RigPaths,
        clock: Clock,
        path_map: Sequence[str] = (),
        settle_s: float = 0.0,
    ) -> None:
        self.books = books
        self._taker, self._paths, self._clock = taker, paths, clock
        self._path_map = tuple(path_map)
        self._rest = Rest(clock, settle_s)
        self._taking: set[str] = set()  #: task_ids that a flow is at
        self._shown: dict[str, tuple[Any, ...]] = {}  #: what of a plan's file stands, by task_id
        self._showing: set[str] = set()  #: task_ids whose file a flow is at

    # -- taking ----------------------------------------------------------------------------------------------

    def take(self, name: str, was: Was, order: Order) -> Flow[None]:
        """From the file ``name`` to a batch that is known to it.

        Raises:
            Invalid: it cannot run.  NotYet, Later, ShareAway, OSError: not now.
        """
        holder = self.books.open.get(order.task_id)
        if holder is not None:
            yield from self._again(name, was, holder, order)
            return
        if order.task_id in self._taking:
            return  # a second file with its task_id: judged when the first is in the journal
        self._taking.add(order.task_id)
        try:
            if isinstance(order, PlanOrder):
                entry = yield from self._plan_entry(name, was, order)
            else:
                entry = yield from self._task_entry(name, was, order)
            self.books.enter(entry)
        finally:
            self._taking.discard(order.task_id)
        yield from self.go_on(entry)

    def go_on(self, entry: Entry) -> Flow[None]:
        """From the journal on.

        Raises:
            Invalid: the broker refuses it.  ShareAway.  OSError.
        """
        task_id = str(entry["task_id"])
        try:
            if entry["kind"] == "plan":
                yield from self._send_plan(entry)
            else:
                yield from self._send_task(entry)
        except RigbusError as e:
            self.books.leave(task_id)
            where = f"{QUEUE}/{shown(str(entry['source']))}"
            raise Invalid(problem_from(f"the broker refuses it: {e}", where)) from None
        except Invalid:
            self.books.leave(task_id)
            raise

    def _again(self, name: str, was: Was, holder: Entry, order: Order) -> Flow[None]:
        """A second file with the task_id of one that is on its way."""
        if digest(order.fields) != digest(holder["fields"]):
            raise Invalid(
                Problem(
                    f"task_id {order.task_id} is that of {QUEUE}/{shown(str(holder['source']))}, which is on its way",
                    f"{QUEUE}/{shown(name)}",
                    "give this file a task_id of its own (a uuid4)",
                )
            )
        log.info("%s is %s once more: removed, it runs once", shown(name), order.task_id)
        yield from share(KIND, [unlink(f"{QUEUE}/{name}", was=was)])

    def _entry(self, kind: str, name: str, was: Was, order: Order, header: dict[str, Any]) -> Entry:
        # A newer order of the same file name is shown under its own id: each keeps its answer.
        taken = self.books.holder(name) is not None
        stem = stem_of(name, order.task_id) if kind == "plan" and not taken else order.task_id
        return {
            "kind": kind,
            "task_id": order.task_id,
            "source": name,
            "stem": stem,
            "was": list(was),
            "at": self._clock.wall(),
            "fields": order.fields,
            "header": header,
            "batch": "",
            "id": "",
            "note": order.note,
        }

    # -- plans -----------------------------------------------------------------------------------------------

    def _plan_entry(self, name: str, was: Was, order: PlanOrder) -> Flow[Entry]:
        if order.resume:
            return self._entry("plan", name, was, order, {"resume": order.resume})
        shared = str(self._paths.shared)
        found = guesses(order.plan_path, shared, self._path_map)
        places = list(dict.fromkeys(place for guess in found for place in guess.places))
        results = yield from share(KIND, [stat(f"{place}/plan.md") for place in places])
        there = {
            place: int(result["entry"][4])
            for place, result in zip(places, results, strict=True)
            if result["ok"] and result["entry"] and result["entry"][1] == "file"
        }
        try:
            place, how = choose(order.plan_path, found, there)
        except Invalid as e:
            if there or not places:
                raise
            raise NotYet(e.problems[0], MISSING_S) from None  # it may be on its way
        if not (yield from self._rest.at_rest(place, was[2])):
            raise NotYet(
                Problem(f"{place} is still being written", "plan_path", "copy it first, then order it")
            )
        plan = place.rpartition("/")[2]
        mark = f"queue-{digest(order.task_id)[:16]}"
        _, draft = yield from self._taker.prepare(place, plan, True, mark, order.settings)
        key = batch_key(order.task_id)
        header = draft.header(key, f"{shared}/{place}", f"{shared}/{place}/batches", "queue")
        if "/" in (folder := place.removeprefix("plans/")):
            header["batch"]["plan"]["folder"] = folder
        if order.want_id:
            header["batch"]["want_id"] = order.want_id
        entry = self._entry("plan", name, was, order, header)
        entry["note"] = " ".join(text for text in (how, order.note, draft.warnings) if text)
        return {**entry, "tasks": draft.tasks}

    def _send_plan(self, entry: Entry) -> Flow[None]:
        header = entry["header"]
        if "resume" in header:
            row, note = yield from self._resumed(entry, str(header["resume"]))
        else:
            batch = str((yield from submit_whole(header))["batch"])
            row = (yield from ask(Verb.QUERY, {"what": "batch", "id": batch})).header
            _same_plan(header, row, entry)
            note = str(entry["note"])
        batch = str(row["id"])
        log.info("%s is batch %s of %s", shown(str(entry["source"])), batch, row.get("name"))
        receipt = Receipt(
            str(entry["stem"]),
            "accepted",
            self._clock.wall(),
            batch_id=batch,
            plan=str(row.get("plan") or row.get("name") or ""),
            tasks=entry.get("tasks"),
            next=f"rigbus watch {batch}",
            note=note,
        )
        yield from self._taker.answer(receipt)
        entry = {**entry, "batch": batch, "note": note}
        self.books.enter(entry)
        yield from self._show_plan(entry, row)

    def _resumed(self, entry: Entry, batch: str) -> Flow[tuple[Mapping[str, Any], str]]:
        """RUN_MODE resume: a batch that goes on is taken as it is; of one that ended badly what failed runs again."""
        fix = "write RUN_MODE fresh: what the earlier system ran cannot be gone on with, its results stay where they are"
        try:
            row = (yield from ask(Verb.QUERY, {"what": "batch", "id": batch})).header
        except NotFound:
            what = f"RESUME_BATCH_ID {batch} is no batch of this rig"
            raise Invalid(Problem(what, "config.RESUME_BATCH_ID", fix)) from None
        if row["kind"] != "plan":
            raise Invalid(Problem(f"{batch} is no batch of a plan", "config.RESUME_BATCH_ID", fix))
        if "requeued" in entry:  # before a kill, or before the share went away
            return row, _runs_again(int(entry["requeued"]), row)
        if row["state"] in LIVE:
            return row, f"RUN_MODE resume: batch {row['id']} still runs, and is followed."
        if row["state"] == "complete":
            return row, f"RUN_MODE resume: batch {row['id']} is complete; there is nothing to run again."
        answer = (yield from ask(Verb.REQUEUE, {"batch": row["id"]})).header
        again = int(answer.get("requeued") or 0)
        if not again:
            what = f"batch {row['id']} has no task that could run again"
            raise Invalid(Problem(what, "config.RESUME_BATCH_ID", "write RUN_MODE fresh"))
        self.books.enter({**entry, "requeued": again})
        row = (yield from ask(Verb.QUERY, {"what": "batch", "id": batch})).header
        return row, _runs_again(again, row)

    def _show_plan(self, entry: Entry, row: Mapping[str, Any]) -> Flow[bool]:
        """Draw its file; True when it stands. One flow at a time: a file is written and then removed from the other lanes,
        so two of them would each take away what the other has written."""
        task_id = str(entry["task_id"])
        if task_id in self._showing:
            return False
        offset = self._clock.utc_offset_s(float(entry["at"]))
        file = plan_view(entry, row, offset)
        state = (file.path, row["state"])
        if self._shown.get(task_id) == state:
            return True
        self._showing.add(task_id)
        try:
            stands = yield from self._put(file, str(entry["source"]), entry["was"])
        finally:
            self._showing.discard(task_id)
        if stands:
            self._shown[task_id] = state
        return stands

    # -- tasks -----------------------------------------------------------------------------------------------

    def _task_entry(self, name: str, was: Was, order: TaskOrder) -> Flow[Entry]:
        after: list[str] = []
        for wanted in order.waits_for:
            after.append((yield from self._named(order, wanted)))
        spec = {**order.spec, "key": order.name[:200], **({"after": after} if after else {})}
        head = {
            "key": batch_key(order.task_id),
            "kind": "client",
            "name": order.name[:100],
            "priority": spec["priority"],
            "mirror": True,
        }
        entry = self._entry("task", name, was, order, {"batch": head, "tasks": [spec]})
        return {**entry, "payload": order.payload, "author": [order.batch, order.name]}

    def _named(self, order: TaskOrder, name: str) -> Flow[str]:
        """The public id of the task that its author calls so: of another file, or of a batch of this rig."""
        known = self.books.named(order.batch, name)
        if known is not None and name != order.name:
            return known
        id_ = public_id(order.batch, name)
        try:
            yield from ask(Verb.QUERY, {"what": "task", "id": id_})
        except NotFound:
            what = f"depends_on names {shown(name)[:80]!r}, which no task file with batch_id {shown(order.batch)[:80]!r} has"
            fix = "write the file of that name too, or correct depends_on"
            raise NotYet(Problem(what, "depends_on", fix)) from None
        return id_

    def _send_task(self, entry: Entry) -> Flow[None]:
        accepted = yield from submit_whole(entry["header"], [pack(entry["payload"])])
        entry = {**entry, "batch": str(accepted["batch"]), "id": str(accepted["ids"][0])}
        author, name = entry.get("author") or ("", "")
        if author:
            self.books.name(str(author), str(name), entry["id"])
        self.books.enter(entry)
        log.info("%s is task %s of batch %s", shown(str(entry["source"])), entry["id"], entry["batch"])
        if entry["source"] != f"{entry['task_id']}.json":
            # The mirror draws <task_id>.json in the place of a file of that name, and knows of no other.
            yield from share(KIND, [unlink(f"{QUEUE}/{entry['source']}", was=entry["was"])])

    # -- following -------------------------------------------------------------------------------------------

    def tend(self) -> Flow[None]:
        """Look once at everything open, and let go what has ended.

        Raises:
            ShareAway, RigbusError, OSError.
        """
        for entry in list(self.books.plans()):
            try:
                row = (yield from ask(Verb.QUERY, {"what": "batch", "id": entry["batch"]})).header
            except NotFound:
                row = {"state": "gone", "ended_at": self._clock.wall()}
            if (yield from self._show_plan(entry, row)) and row["state"] not in LIVE:
                self._shown.pop(str(entry["task_id"]), None)
                self.books.leave(str(entry["task_id"]))
        tasks = list(self.books.tasks())
        for i in range(0, len(tasks), ROWS):
            yield from self._tend_tasks(tasks[i : i + ROWS])

    def _tend_tasks(self, entries: Sequence[Entry]) -> Flow[None]:
        answer = (yield from ask(Verb.QUERY, {"what": "rows", "ids": [e["id"] for e in entries]})).header
        states = {row["id"]: row["state"] for row in answer["rows"]}
        cut = answer.get("cursor") is not None
        over = [e for e in entries if states.get(e["id"], "" if cut else "done") in ENDED]
        # The author's own file, where the mirror could not replace it.
        yield from share(KIND, [unlink(f"{QUEUE}/{e['source']}", was=e["was"]) for e in over])
        for entry in over:
            self.books.leave(str(entry["task_id"]))

    # -- refusing --------------------------------------------------------------------------------------------

    def refuse(
        self, name: str, data: bytes | None, problems: Sequence[Problem], was: Was | None = None
    ) -> Flow[bool]:
        """Say it in a receipt, and put the file where its author looks for failures; False where that cannot be done.

        What is no JSON object is kept beside it as ``<name>.refused``. ``data`` None: the file was not read. One that
        its author has put in the place of ``was`` stays.
        """
        log.warning("refused %s/%s: %s", QUEUE, shown(name), "; ".join(p.what for p in problems[:5]))
        at = self._clock.wall()
        whole = parse_object(data, name, MAX_TASK_BYTES) if data is not None else None
        fields = whole if isinstance(whole, dict) else {}
        fields = {key: value for key, value in fields.items() if value is not None}
        file = refused_view(name, fields, problems, at, self._clock.utc_offset_s(at))
        note = ""
        if not fields:
            aside = yield from self._aside(name, was)
            if not aside:
                return False
            note = f"It is kept as {aside}: mend it, and move it back to {QUEUE}/."
        receipt = Receipt(name.removesuffix(".json"), "refused", at, problems=tuple(problems), note=note)
        yield from self._taker.answer(receipt)
        lanes = [path for path in (file.path, *elsewhere(file.path)) if not path.startswith(f"{QUEUE}/")]
        found = yield from share(KIND, [stat(path) for path in lanes])
        if any(result["ok"] and result["entry"] for result in found):  # a task or an answer has this name
            file = file._replace(path=f"{file.path.removesuffix('.json')}-refused.json")
        return (yield from self._put(file, name, was, refusal=True))

    def tell(self, name: str, problem: Problem) -> Flow[None]:
        """A refusal of something that is left where it is."""
        log.warning("%s/%s: %s", QUEUE, shown(name), problem.what)
        receipt = Receipt(name.removesuffix(".json"), "refused", self._clock.wall(), problems=(problem,))
        yield from self._taker.answer(receipt)

    def _aside(self, name: str, was: Was | None) -> Flow[str]:
        for n in range(1, MAX_ASIDE):
            to = f"{FAILED}/{name}.refused" + (f"-{n}" if n > 1 else "")
            (moved,) = yield from share(KIND, [rename(f"{QUEUE}/{name}", to, was=was)])
            if moved["ok"]:
                return to
            if moved["errno"] != "EEXIST":
                break
        return ""

    def _put(self, file: File, source: str, was: Was | None, *, refusal: bool = False) -> Flow[bool]:
        """Write a lane file, then remove the one it came from; but for a refusal also those in other lanes."""
        places = [f"{QUEUE}/{source}", *([] if refusal else elsewhere(file.path))]
        old = [path for path in dict.fromkeys(places) if path != file.path]
        ops: list[Op] = [write(file.path, file.data, mtime_ns=file.mtime_ns, replaces=old[0], was=was)]
        results = yield from share(KIND, ops)
        if not results[0]["ok"]:
            log.warning("%s cannot be written: %s", file.path, results[0]["what"])
            return False
        yield from share(KIND, [unlink(path) for path in old[1:]])
        return True


def _runs_again(again: int, row: Mapping[str, Any]) -> str:
    return f"RUN_MODE resume: {again} tasks of batch {row['id']} run again, with the plan as it was then."


def _same_plan(header: Mapping[str, Any], row: Mapping[str, Any], entry: Entry) -> None:
    """The batch under a task_id that was used before must be of the same plan and configuration.

    Raises:
        Invalid: it is another one.
    """
    given: Mapping[str, Any] = row.get("spec") or {}
    asked = header["batch"]["plan"]
    other = [key for key in ("path", "config") if given and given.get(key) != asked[key]]
    if other:
        what = f"task_id {entry['task_id']} was used before, for batch {row['id']} with another {' and '.join(other)}"
        raise Invalid(Problem(what, "task_id", "write a new file with a task_id of its own (a uuid4)"))
