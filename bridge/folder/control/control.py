"""The door for commands by edited files: a batch taken out of ``brain/state.json``, a task's file moved back to the queue.

What is taken in is in the journal before anything is done and before its file is drawn over. What is no command is put
aside by the mirror or here, and answered in the inbox. See `core` for what counts as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ....bus.errors import NotFound, RigbusError
from ....bus.wire import Verb
from ..contract.layout import QUEUE, STATE_FILE
from ..contract.ownership import rule_of
from ..contract.receipts import Problem, Receipt, problem_from, receipt_stem
from ..intake.moves import KIND
from ..intake.taking import INBOX, Taker
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ShareAway, ask, share
from ..mirror.findings import Findings
from ..share.ops import Entry, Result, aside, read, shown, stat, unlink
from ..share.port import FolderPort
from ..share.seal import MAX_BYTES, sealed
from .books import ControlBooks, Deed
from .core import Half, Kill, Refused, Reset, mark_of, read_state, read_stray
from .signals import rows_of, run_again

log = logging.getLogger(__name__)

NAME: Final = "control"
LOOK_S: Final = 1.0
AGAIN_S: Final = 2.0
HALF_S: Final = 10.0  #: for an edit that is not whole (yet)
ASKED: Final = 100
TOLD: Final = 20  #: names in one answer
WITHHOLD_S: Final = 600.0  #: after a claim ready tasks are not shown where they would be claimed


class Control:
    """See the module. ``poke`` lets the mirror draw at once."""

    def __init__(
        self,
        port: FolderPort,
        books: ControlBooks,
        findings: Findings,
        taker: Taker,
        clock: Clock,
        poke: Callable[[], None] = lambda: None,
    ) -> None:
        self._port, self._books, self._findings = port, books, findings
        self._taker, self._clock, self._poke = taker, clock, poke
        self._clean: list[int] | None = None  #: the state.json that was read and is the mirror's own
        self._halves: dict[str, tuple[list[int], float]] = {}

    def run(self) -> Flow[None]:
        """Look, for ever."""
        while True:
            if not self._port.state.available:
                yield Idle()
                continue
            try:
                for mark, deed in list(self._books.begin().items()):
                    yield from self._go_on(mark, deed)
                yield from self._look_at_state()
                yield from self._look_at_strays()
                yield from self._tell_kept()
                yield Idle(LOOK_S)
            except ShareAway as e:
                log.warning("edited files are not looked at: %s; again when the share answers", e)
                yield Idle(AGAIN_S)
            except (RigbusError, OSError) as e:
                log.warning("commands by edited files wait: %s", e)
                yield Idle(AGAIN_S)

    # -- brain/state.json ------------------------------------------------------------------------------------

    def _look_at_state(self) -> Flow[None]:
        (found,) = yield from share(KIND, [stat(STATE_FILE)])
        if not found["ok"] or found["entry"] is None:
            return  # gone is no command: it is drawn again
        entry = Entry(*found["entry"])
        was = entry.was
        if (
            entry.type != "file"
            or was == self._clean
            or self._findings.known(STATE_FILE) == (entry.size, entry.mtime_ns)
        ):
            return
        (got,) = yield from share(KIND, [read(STATE_FILE, MAX_BYTES + 1)])
        if not got["ok"]:
            if got["errno"] != "ENOENT" and self._is_over(STATE_FILE, was):
                yield from self._refuse("state", (_unreadable(got, STATE_FILE),))
                self._state_taken_in(was)
            return
        data, was = bytes(got["data"]), _read(got)
        if sealed(data):
            self._clean = was
            return
        # An edit that is in the journal is not judged again: what it meant was decided when it was first seen.
        mark = mark_of(STATE_FILE, data, was)
        if mark in self._books.begin():
            self._findings.taken_in(was)
            return
        asked = read_state(data, self._findings.listing, self._clock.now())
        if isinstance(asked, Kill):
            deed = {"verb": "kill", "batches": list(asked.batches), "spared": list(asked.spared), "was": was}
            self._books.enter(mark, deed)
            self._state_taken_in(was)
            yield from self._go_on(mark, deed)
            return
        if isinstance(asked, Half) and not self._is_over(STATE_FILE, was):
            return
        yield from self._refuse("state", (asked.problem,))
        self._state_taken_in(was)

    def _state_taken_in(self, was: list[int]) -> None:
        self._halves.pop(STATE_FILE, None)
        self._findings.taken_in(was)
        self._poke()

    def _is_over(self, path: str, was: list[int]) -> bool:
        """Half a file has not changed for :data:`HALF_S`."""
        old = self._halves.get(path)
        if old is None or old[0] != was:
            self._halves[path] = (was, self._clock.now())
            return False
        return self._clock.now() - old[1] >= HALF_S

    # -- files of tasks where they do not stand --------------------------------------------------------------

    def _look_at_strays(self) -> Flow[None]:
        some = list(self._findings.strays.items())[:ASKED]
        if not some:
            return
        results = yield from share(KIND, [read(path, MAX_BYTES + 1) for path, _ in some])
        rows = yield from rows_of([task for _, (task, _) in some])
        resets: list[tuple[str, Reset, list[int]]] = []
        held = self._held()
        for (path, (task, batch)), got in zip(some, results, strict=True):
            if not got["ok"]:
                if got["errno"] in ("EACCES", "EPERM"):
                    yield from self._put_unread_back(path, got)
                self._done_with(path)  # gone, or no file: the mirror finds it again
                continue
            data, was = bytes(got["data"]), _read(got)
            asked: Reset | Refused | Half | None = None
            if (path, was) in held:
                yield from self._aside(path, was)
            elif not sealed(data):
                asked = read_stray(path, data, rows.get(task))
            if asked is None:  # a copy of ours, one that is being done already, or not for us
                yield from share(KIND, [unlink(path, only_sealed=True, was=was)])
            elif isinstance(asked, Reset):
                resets.append((path, asked, was))
                continue
            elif isinstance(asked, Half) and not self._is_over(path, was):
                continue
            else:
                yield from self._put_back(path, was, asked)
            self._done_with(path)
            if task:
                self._findings.redraw[task] = batch
        if resets:
            yield from self._reset(resets)
        self._poke()

    def _put_back(self, path: str, was: list[int], asked: Refused | Half) -> Flow[None]:
        """Answer it and put it aside. A claim also makes ready tasks unclaimable for a while."""
        claimer = asked.claimer if isinstance(asked, Refused) else ""
        if claimer:
            self._findings.withheld_until = self._clock.now() + WITHHOLD_S
        yield from self._aside(path, was)
        stem = path.rpartition("/")[2].removesuffix(".json")
        yield from self._refuse(f"{'claim' if claimer else 'edit'}-{stem}", (asked.problem,))

    def _put_unread_back(self, path: str, got: Result) -> Flow[None]:
        """A file that the rig's user may not read says nothing, and must not hold its place for ever."""
        (found,) = yield from share(KIND, [stat(path)])
        if found["ok"] and found["entry"] is not None:
            was = Entry(*found["entry"]).was
            yield from self._put_back(path, was, Refused(_unreadable(got, path)))

    def _reset(self, found: Sequence[tuple[str, Reset, list[int]]]) -> Flow[None]:
        tasks = [[reset.task, reset.seq] for _, reset, _ in found]
        mark = mark_of("reset", repr(sorted(tasks)).encode(), ())
        files = [[path, was] for path, _, was in found]
        if mark not in self._books.begin():
            self._books.enter(mark, {"verb": "reset", "tasks": tasks, "files": files})
        for path, _, was in found:
            yield from self._aside(path, was)
            self._done_with(path)
        yield from self._go_on(mark, self._books.begin()[mark])

    def _held(self) -> list[tuple[str, list[int]]]:
        """The files that became a deed which is not done."""
        deeds = [deed for deed in self._books.begin().values() if deed.get("verb") == "reset"]
        return [(path, was) for deed in deeds for path, was in deed["files"]]

    def _done_with(self, path: str) -> None:
        self._findings.strays.pop(path, None)
        self._halves.pop(path, None)

    def _aside(self, path: str, was: list[int]) -> Flow[None]:
        (moved,) = yield from share(KIND, [aside(path, was)])
        if moved["ok"]:
            self._findings.lines += moved["kept"]

    # -- doing -----------------------------------------------------------------------------------------------

    def _go_on(self, mark: str, deed: Deed) -> Flow[None]:
        """From the journal on: each step may be repeated."""
        try:
            if deed["verb"] == "kill":
                yield from self._kill(mark, deed)
            else:
                yield from self._reset_on(mark, deed)
        except (KeyError, TypeError, ValueError) as e:
            log.warning("the journal's entry %s is unusable (%r)", mark, e)
            self._books.leave(mark)

    def _kill(self, mark: str, deed: Deed) -> Flow[None]:
        if "answer" not in deed:
            said = yield from self._cancel(deed["batches"])
            if deed["spared"]:
                spared = ", ".join(deed["spared"][:TOLD])
                said.append(f"Not {spared}: the file was made before they were shown.")
            only = deed["batches"][0] if len(deed["batches"]) == 1 else ""
            deed = self._answered_with(
                mark,
                deed,
                name=f"kill-{deed['batches'][0]}",
                note=" ".join(["state.json:", *said]),
                batch_id=only,
                next=f"rigbus retry {only}" if only else "",
            )
        if not deed.get("done"):
            yield from self._answer(_receipt(deed["answer"], self._clock.wall()))
            deed = {**deed, "done": True}
            self._books.enter(mark, deed)
        (found,) = yield from share(KIND, [stat(STATE_FILE)])
        if found["ok"] and (found["entry"] is None or Entry(*found["entry"]).was != deed["was"]):
            self._books.leave(mark)
        else:
            self._state_taken_in(deed["was"])

    def _cancel(self, batches: Sequence[str]) -> Flow[list[str]]:
        """Cancel them; what is to be said of it."""
        said = []
        for batch in batches:
            reason = f"taken out of active_batches in {STATE_FILE}"
            try:
                answer = (yield from ask(Verb.CANCEL, {"batch": batch, "reason": reason})).header
                row = (yield from ask(Verb.QUERY, {"what": "batch", "id": batch})).header
            except NotFound:
                continue
            if row["state"] in ("complete", "failed"):  # while the edit was made
                said.append(f"{batch} had ended by then ({row['state']}): nothing of it was cancelled.")
                continue
            unrun, ending = answer.get("cancelled", 0), answer.get("ending", 0)
            said.append(f"{batch} is cancelled: {unrun} tasks did not run, {ending} are being ended.")
        log.info("an edit of %s cancels %s", STATE_FILE, ", ".join(batches[:TOLD]))
        self._findings.cancelled(batches)
        return said[:TOLD] + [f"And {len(said) - TOLD} more."] * (len(said) > TOLD)

    def _reset_on(self, mark: str, deed: Deed) -> Flow[None]:
        """End the run and let the task run again, in one step: its batch does not end in between. Never a later run than
        the one that was meant."""
        meant = {str(task): int(seq) for task, seq in deed["tasks"]}
        ids = list(meant)
        if "runs" not in deed:
            rows = yield from rows_of(ids)
            deed = {**deed, "runs": {i: row["token"] for i, row in rows.items() if _goes_on(row, meant[i])}}
            self._books.enter(mark, deed)
        if "answer" not in deed:
            deed = yield from self._run_again(mark, deed, ids)
        for path, was in deed["files"]:
            yield from self._aside(path, was)
        yield from self._answer(_receipt(deed["answer"], self._clock.wall()))
        self._findings.redraw |= dict.fromkeys(ids, "")
        self._books.leave(mark)

    def _run_again(self, mark: str, deed: Deed, ids: Sequence[str]) -> Flow[Deed]:
        again: list[str] = []
        problem = ""
        try:
            again = yield from run_again(deed["runs"], "moved back to the queue")
        except RigbusError as e:
            problem = f"the rig refuses it: {e}"
        note = _reset_note(ids, again, (yield from rows_of(ids)))
        log.info("a file was moved back to the queue: %s", problem or note)
        return self._answered_with(mark, deed, name=f"reset-{ids[0]}", note=note, problem=problem)

    # -- answering -------------------------------------------------------------------------------------------

    def _answered_with(self, mark: str, deed: Deed, **answer: str) -> Deed:
        """It is done, durably: from here on only its answer is written, however long the share is away."""
        deed = {**deed, "answer": answer}
        self._books.enter(mark, deed)
        return deed

    def _tell_kept(self) -> Flow[None]:
        """The mirror has put edits aside: one answer for each file that was edited, of few or of many."""
        kept = list(self._findings.kept)
        if not kept:
            return
        problems = []
        for to in kept[:TOLD]:
            path = to.partition(".conflict-")[0]
            rule = rule_of(path)
            what = (
                f"{rule.owner if rule else 'the bridge'} writes this file; what somebody else wrote is {to}"
            )
            problems.append(
                Problem(what, path, "use a command, a request file, a signal or a new file in the queue")
            )
        stem = kept[0].partition(".conflict-")[0].rpartition("/")[2].removesuffix(".json")
        note = (
            f"{len(kept)} files were restored; the newest few that were put aside are kept."
            if len(kept) > 1
            else ""
        )
        yield from self._refuse(f"conflict-{stem}", tuple(problems), note)
        del self._findings.kept[: len(kept)]  # not before: the share may go away while it is said

    def _refuse(self, name: str, problems: tuple[Problem, ...], note: str = "") -> Flow[None]:
        log.warning("%s: %s", shown(problems[0].where), problems[0].what)
        yield from self._answer(Receipt(name, "refused", self._clock.wall(), problems=problems, note=note))

    def _answer(self, receipt: Receipt) -> Flow[None]:
        if not (yield from self._taker.answer(receipt)):
            return
        for old in self._books.answered(receipt_stem(receipt.name)):
            yield from share(KIND, [unlink(f"{INBOX}/{old}.receipt.{end}") for end in ("json", "md")])


def _receipt(answer: Mapping[str, str], at: float) -> Receipt:
    problem = answer.get("problem")
    return Receipt(
        answer["name"],
        "refused" if problem else "accepted",
        at,
        batch_id=answer.get("batch_id", ""),
        next=answer.get("next", ""),
        note=answer["note"],
        problems=(problem_from(problem, QUEUE),) if problem else (),
    )


def _unreadable(got: Result, path: str) -> Problem:
    fix = "make it readable for the rig's user, or leave it to the rig, which draws it itself"
    return Problem(str(got["what"]), path, fix)


def _reset_note(ids: Sequence[str], again: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    said = [f"{i} was ended and runs again" for i in again[:TOLD]]
    for i in [i for i in ids if i not in again][:TOLD]:
        said.append(f"{i} is {rows[i]['state'] if i in rows else 'gone'} by now and was left so")
    return "; ".join(said) + "."


def _goes_on(row: Mapping[str, Any], seq: int) -> bool:
    """It is the run that was meant: between the edit and its cancel the share may have been away for hours."""
    return row["state"] in ("leased", "review") and row["seq"] == seq


def _read(result: Result) -> list[int]:
    return [result["inode"], result["size"], result["mtime_ns"]]
