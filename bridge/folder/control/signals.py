"""The door ``signals/``: stop, abort and kill by a file, each honoured once, with a receipt beside it.

A signal is entered in the journal with what it hits (task ids, a process's session) before anything is done: killed in
between, the bridge goes on with the same, and never with what has come since.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ....bus.errors import NotFound, RigbusError
from ....bus.wire import Verb
from ..contract.receipts import Invalid, Problem, Receipt, problem_from, receipt_json
from ..intake.journal import Journal
from ..intake.moves import KIND
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ShareAway, ask, share
from ..share.ops import Entry, entries, read, scan, shown, unlink, write
from ..share.port import FolderPort
from .signals_core import ALL, FOLDER, MAX_BYTES, Signal, Wish, mark_of, nobody, signal_of, wish_of

log = logging.getLogger(__name__)

NAME: Final = "signals"
LOOK_S: Final = 0.5
MAX_LOOK_S: Final = 5.0
PAGE: Final = 2000
AGAIN_S: Final = 2.0
HALF_S: Final = 10.0  #: for a JSON object that is not whole
KILL_S: Final = 20.0
MAX_TOLD: Final = 1000
ASKED: Final = 100  #: rows in one question

Deed = dict[str, Any]


class Signals:
    """See the module. ``alias`` gives the public id for a task_id that the author of a task file chose."""

    def __init__(
        self,
        port: FolderPort,
        journal: Journal,
        clock: Clock,
        alias: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._port, self._journal, self._clock, self._alias = port, journal, clock, alias
        self._open: dict[str, Deed] | None = None
        self._seen: dict[str, tuple[Entry, float]] = {}
        self._told: dict[str, Entry] = {}

    def run(self) -> Flow[None]:
        """Look at the folder, for ever."""
        while True:
            if not self._port.state.available:
                yield Idle()
                continue
            try:
                if self._open is None:
                    self._journal.open()
                    self._open = self._journal.entries()
                for mark in list(self._open):
                    yield from self._go_on(mark, self._open[mark])
                took = yield from self._look()
                yield Idle(max(LOOK_S, min(30 * took, MAX_LOOK_S)))
            except ShareAway as e:
                log.warning("signals are not looked at: %s; again when the share answers", e)
                yield Idle(AGAIN_S)
            except (RigbusError, OSError) as e:
                log.warning("signals wait: %s", e)
                yield Idle(AGAIN_S)

    # -- looking ---------------------------------------------------------------------------------------------

    def _look(self) -> Flow[float]:
        found: list[Entry] = []
        after: str = ""
        took: float = 0.0
        while True:
            (result,) = yield from share(KIND, [scan(FOLDER, budget=PAGE, after=after)])
            if not result["ok"]:
                return took
            took += float(result["took_s"])
            found += entries(result)
            after = result["next"]
            if not after:
                break
        before, self._seen = self._seen, {}
        self._told = {name: e for name, e in self._told.items() if any(f.path == name for f in found)}
        for entry in found:
            signal = signal_of(entry)
            if signal is None or self._told.get(entry.path) == entry:
                continue
            old = before.get(entry.path)
            since = old[1] if old is not None and old[0] == entry else self._clock.now()
            self._seen[entry.path] = (entry, since)
            if old is None or old[0] != entry:
                continue  # somebody may be writing it: it counts when two looks are equal
            yield from self._attend(entry, signal, since)
        return took

    def _attend(self, entry: Entry, signal: Signal | Problem, since: float) -> Flow[None]:
        where = f"{FOLDER}/{shown(entry.path)}"
        try:
            if isinstance(signal, Problem):
                raise Invalid(signal)
            deed = yield from self._deed(entry, signal, since, where)
        except Invalid as e:
            yield from self._answer(entry.path, "refused", problems=e.problems)
            if isinstance(signal, Problem) or (yield from self._gone(entry)):
                self._tell_once(entry)
            return
        if deed is None or self._open is None:
            return
        mark = mark_of(entry)
        if mark not in self._open:
            self._journal.enter(mark, deed)
            self._open[mark] = deed
            yield from self._go_on(mark, deed)

    def _deed(self, entry: Entry, signal: Signal, since: float, where: str) -> Flow[Deed | None]:
        """What it hits, now; None while it is not whole.

        Raises:
            Invalid: nothing there, or not to be done.
        """
        (got,) = yield from share(KIND, [read(f"{FOLDER}/{entry.path}", MAX_BYTES)])
        if not got["ok"]:
            if got["errno"] == "ENOENT":
                return None
            raise Invalid(
                Problem(str(got["what"]), where, "make it readable for the rig's user, or write it again")
            )
        if [got["inode"], got["size"], got["mtime_ns"]] != entry.was:
            return None  # written anew since it was listed: the next look takes that one
        wish = wish_of(bytes(got["data"]), where)
        if wish is None:
            if self._clock.now() - since < HALF_S:
                return None
            raise Invalid(
                Problem(
                    "it holds a JSON object that is not whole", where, "write it again, or leave it empty"
                )
            )
        workers = (yield from ask(Verb.QUERY, {"what": "workers"})).header["workers"]
        hit = [w for w in workers if signal.target in (ALL, w["id"])]
        base = {"drop_id": mark_of(entry), "name": entry.path, "was": entry.was, "verb": signal.verb}
        if hit:
            return {**base, **(yield from self._on_workers(signal, wish, hit, where))}
        try:
            batch = (yield from ask(Verb.QUERY, {"what": "batch", "id": signal.target})).header
        except NotFound:
            raise Invalid(nobody(signal.target, where, workers)) from None
        if signal.verb == "stop":
            fix = f"{signal.target}.abort cancels it; <worker>.stop stops a worker"
            raise Invalid(Problem("a batch cannot be stopped and go on", where, fix))
        return {**base, "batch": batch["id"], "reason": _reason(signal, wish)}

    def _on_workers(self, signal: Signal, wish: Wish, hit: list[Mapping[str, Any]], where: str) -> Flow[Deed]:
        if signal.verb == "stop":
            return {"workers": [w["id"] for w in hit]}
        if signal.verb == "kill":
            return {"kill": [[w["id"], w["session"], w.get("pid")] for w in hit]}
        held = [id_ for w in hit for id_ in w["tasks"]]
        rows = yield from rows_of(held)
        ids = [i for i, row in rows.items() if row["state"] == "leased" and row.get("started")]
        if wish.task_id:
            wanted = self._alias(wish.task_id) or wish.task_id
            if wanted not in ids:
                what = f"task {shown(wish.task_id)[:80]} does not run on {signal.target}"
                raise Invalid(
                    Problem(what, where, f"`rigbus task show {shown(wish.task_id)[:80]}` says where it is")
                )
            ids = [wanted]
        runs = {"runs": {id_: rows[id_]["token"] for id_ in ids}} if wish.requeue else {}
        return {"ids": ids, "reason": _reason(signal, wish), **runs}

    # -- doing -----------------------------------------------------------------------------------------------

    def _go_on(self, mark: str, deed: Deed) -> Flow[None]:
        """From the journal on: each step may be repeated."""
        name = str(deed.get("name"))
        if not deed.get("done"):
            try:
                if "note" not in deed:
                    # Kept before it is told: done again after the share was away it would hit what has come since.
                    deed = self._kept(mark, {**deed, "note": (yield from self._do(deed))})
                yield from self._answer(name, "accepted", note=str(deed["note"]))
                log.info("signal %s: %s", shown(name), deed["note"])
            except RigbusError as e:
                problem = problem_from(f"the rig refuses it: {e}", f"{FOLDER}/{shown(name)}")
                yield from self._answer(name, "refused", problems=(problem,))
            except (KeyError, TypeError, ValueError) as e:
                log.warning("the journal's entry of signal %s is unusable (%r)", shown(name), e)
            deed = self._kept(mark, {**deed, "done": True})
        if (yield from self._removed(name, deed.get("was"))):
            self._journal.leave(mark)
            if self._open is not None:
                self._open.pop(mark, None)

    def _kept(self, mark: str, deed: Deed) -> Deed:
        self._journal.enter(mark, deed)
        if self._open is not None:
            self._open[mark] = deed
        return deed

    def _do(self, deed: Deed) -> Flow[str]:
        if "workers" in deed:
            return (yield from self._stop(deed))
        if "kill" in deed:
            return (yield from self._kill(deed))
        if "batch" in deed:
            header = {"batch": deed["batch"], "reason": deed["reason"]}
            answer = (yield from ask(Verb.CANCEL, header)).header
            return (
                f"batch {deed['batch']} is cancelled: {answer['cancelled']} tasks did not run, "
                f"{answer['ending']} are being ended."
            )
        return (yield from self._abort(deed))

    def _stop(self, deed: Deed) -> Flow[str]:
        running = 0
        for worker in deed["workers"]:
            running += int((yield from ask(Verb.DRAIN, {"worker": worker})).header.get("running") or 0)
        names = ", ".join(deed["workers"])
        return (
            f"{names}: nothing new is given out; what runs there now ({running}) is finished. "
            f"`rigbus resume {deed['workers'][0] if len(deed['workers']) == 1 else ALL}` gives work again."
        )

    def _abort(self, deed: Deed) -> Flow[str]:
        ids = list(deed["ids"])
        if not ids:
            return "nothing runs there; nothing was aborted."
        if "runs" not in deed:
            yield from ask(Verb.CANCEL, {"ids": ids, "reason": deed["reason"]})
            return f"{_many(ids)} cancelled: {', '.join(ids[:5])}. `rigbus retry ID` runs one again."
        again = yield from run_again(deed["runs"], deed["reason"])
        # what judges, say, has no use for a second run: it is aborted all the same
        rows = yield from rows_of([id_ for id_ in ids if id_ not in again])
        left = [id_ for id_, row in rows.items() if row["token"] == deed["runs"][id_] and not row["ending"]]
        if left:
            yield from ask(Verb.CANCEL, {"ids": left, "reason": deed["reason"]})
        said = f"{_many(ids)}: {len(again)} ended, to run again"
        said += f"; {len(left)} only ended" if left else ""
        over = len(ids) - len(again) - len(left)
        return f"{said}; {over} over by now, or to end with its batch." if over else f"{said}."

    def _kill(self, deed: Deed) -> Flow[str]:
        for worker, session, _ in deed["kill"]:
            try:
                yield from ask(Verb.CONTROL, {"action": "kill", "worker": worker, "session": session})
            except NotFound:
                continue  # it has gone by itself
        sessions = {session for _, session, _ in deed["kill"]}
        until = self._clock.now() + KILL_S
        while True:
            workers = (yield from ask(Verb.QUERY, {"what": "workers"})).header["workers"]
            left = [w["id"] for w in workers if w["session"] in sessions]
            if not left or self._clock.now() >= until:
                break
            yield Idle(0.2)
        named = ", ".join(f"{worker} (pid {pid})" for worker, _, pid in deed["kill"])
        if left:
            return (
                f"{named}: asked for, but {', '.join(left)} still runs; no supervisor of this rig started it."
            )
        return f"{named}: ended with its tree; its supervisor starts it again, what it ran goes back to the queue."

    # -- answering -------------------------------------------------------------------------------------------

    def _answer(
        self, name: str, state: Any, *, note: str = "", problems: tuple[Problem, ...] = ()
    ) -> Flow[None]:
        if problems:
            log.warning("signal %s refused: %s", shown(name), problems[0].what)
        receipt = Receipt(name, state, self._clock.wall(), note=note, problems=problems)
        data = receipt_json(receipt, self._clock.utc_offset_s(receipt.at))
        (result,) = yield from share(KIND, [write(f"{FOLDER}/{name}.receipt.json", data, fsync=True)])
        if not result["ok"]:
            log.warning("no receipt for signal %s: %s", shown(name), result["what"])

    def _removed(self, name: str, was: Any) -> Flow[bool]:
        """The signal's file is away; one that was written meanwhile under its name stays."""
        (result,) = yield from share(KIND, [unlink(f"{FOLDER}/{name}", was=was)])
        return bool(result["ok"])

    def _gone(self, entry: Entry) -> Flow[bool]:
        """Remove a refused signal; True when it cannot be removed."""
        return not (yield from self._removed(entry.path, entry.was))

    def _tell_once(self, entry: Entry) -> None:
        if len(self._told) < MAX_TOLD:
            self._told[entry.path] = entry


def rows_of(ids: Sequence[str]) -> Flow[dict[str, dict[str, Any]]]:
    """The broker's rows of these tasks, by id; without those that it has forgotten."""
    found: dict[str, dict[str, Any]] = {}
    left = list(dict.fromkeys(ids))
    while left:
        part, left = left[:ASKED], left[ASKED:]
        answer = (yield from ask(Verb.QUERY, {"what": "rows", "ids": part})).header
        found |= {row["id"]: row for row in answer["rows"]}
        if answer.get("cursor") is not None and answer["rows"]:  # large rows: the rest of these once more
            left = [i for i in part if i not in found] + left
    return found


def run_again(runs: Mapping[str, Any], reason: str) -> Flow[list[str]]:
    """End these runs, task -> token, and let their tasks run again; which do. To be repeated after a kill: what has come
    back since is another run, and stays."""
    known = (yield from rows_of(list(runs))) if runs else {}
    runs = {id_: token for id_, token in runs.items() if id_ in known}
    if not runs:
        return []
    said = (yield from ask(Verb.CANCEL, {"again": runs, "reason": reason})).header
    rows = yield from rows_of(said["left"])
    return [*said["again"], *(id_ for id_, row in rows.items() if _is_back(row, runs[id_]))]


def _is_back(row: Mapping[str, Any], token: Any) -> bool:
    """It runs again, or waits for that, without this word."""
    return row["state"] in ("ready", "waiting") or (row["token"] is not None and row["token"] != token)


def _reason(signal: Signal, wish: Wish) -> str:
    return f"signal {signal.name}" + (f": {wish.reason}" if wish.reason else "")


def _many(ids: list[str]) -> str:
    return f"{len(ids)} running task{'s' if len(ids) != 1 else ''}"
