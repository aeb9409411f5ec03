"""The door ``tasks/queue``: files of the earlier system's scripts and of people become batches, each exactly once.

Polled, since no notification tells what another machine wrote. A look lists names and looks closer only at those that
the mirror has not written; at most ``AT_ONCE`` orders are on their way at a time, and a look reads only as many.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, Final

from ....bus.errors import RigbusError
from ....bus.wire import Verb
from ..contract.receipts import Invalid, Problem
from ..intake.moves import KIND, Later
from ..loop.clock import Clock
from ..loop.flows import Flow, Flows, Idle, ShareAway, ask, share
from ..share.ops import Entry, newcomers, read, shown, unlink
from ..share.port import FolderPort
from .core import MAX_TASK_BYTES, QUEUE, Half, Order, Product, read_order
from .orders import NotYet, Orders, Was
from .watch import Watch

log = logging.getLogger(__name__)

NAME: Final = "queue"
TENDING: Final = "queue ends"
LOOK_S: Final = (0.25, 0.5)  #: between two looks: something waits there, or not
MAX_LOOK_S: Final = 5.0
LOOK_AGAIN_S: Final = 1.0  #: at what was read and is no order yet
PAGE: Final = 500
AT_ONCE: Final = 16
DOUBTS: Final = 1000
DOUBT_S: Final = 2.0
ASKED: Final = 200
MAX_KNOWN: Final = 200_000
AGAIN_S: Final = 2.0
STUCK_S: Final = 5.0
GROWING_S: Final = 5.0  #: a file that is too large may still be one that is being written anew
STALE_S: Final = 5.0
TEND_S: Final = 0.5


class QueueFiles:
    """See the module. ``drawn`` says whether the mirror keeps a file at a path of the share."""

    def __init__(
        self,
        port: FolderPort,
        flows: Flows,
        orders: Orders,
        clock: Clock,
        drawn: Callable[[str], bool],
        *,
        patience_s: float = 60.0,
        doubt_s: float = DOUBT_S,
    ) -> None:
        self._port, self._flows, self._orders, self._clock, self._drawn = port, flows, orders, clock, drawn
        again_s = min(LOOK_AGAIN_S, patience_s / 6)
        self._watch, self._doubted = Watch(patience_s, again_s), Watch(patience_s, again_s)
        self._doubt_s = doubt_s
        self._active: set[str] = set()  #: file names that a flow is at
        self._opened = False
        self._after = self._doubts_after = ""
        self._doubt_at = 0.0
        self._doubts: dict[str, int] = {}  #: name -> inode, of names like ours that somebody must explain
        self._known: dict[str, int] = {}  #: name -> inode of files that are tasks of the broker

    def run(self) -> Flow[None]:
        """Look at the queue, for ever."""
        while True:
            if not self._port.state.available:
                yield Idle()
                continue
            try:
                if not self._opened:
                    self._orders.books.begin()
                    self._opened = True
                while self._port.state.available:
                    for entry in self._orders.books.unsent():
                        self._start(str(entry["source"]), self._go_on(entry))
                    took = yield from self._look()
                    pause = 0.0 if self._after else LOOK_S[not self._watch.waits()]
                    yield Idle(max(pause, min(30 * took, MAX_LOOK_S)))
            except ShareAway as e:
                log.warning("the queue is not looked at: %s; again when the share answers", e)
                yield Idle(AGAIN_S)
            except OSError as e:
                log.warning("the queue waits: the state folder refuses: %s; make room there", e)
                yield Idle(AGAIN_S)

    def tend(self) -> Flow[None]:
        """Follow what is on its way, for ever."""
        while True:
            open_ = len(self._orders.books.open) if self._opened and self._port.state.available else 0
            yield Idle(TEND_S + open_ / 1000)
            if not open_:
                continue
            try:
                yield from self._orders.tend()
            except (ShareAway, RigbusError, OSError) as e:
                log.warning("task files are not followed: %s; again in %.0f s", e, AGAIN_S)
                yield Idle(AGAIN_S)

    # -- looking ---------------------------------------------------------------------------------------------

    def _look(self) -> Flow[float]:
        """One page of what is new; the seconds that the share took for it."""
        doubting = self._clock.now() >= self._doubt_at
        op = newcomers(
            QUEUE,
            after=self._after,
            budget=PAGE,
            doubts_after=self._doubts_after,
            doubts=DOUBTS if doubting else 0,
        )
        (result,) = yield from share(KIND, [op])
        if not result["ok"]:
            self._after = ""
            if result["errno"] != "ENOENT":
                log.warning("the queue cannot be read: %s", result["what"])
                yield Idle(AGAIN_S)
            return 0.0
        yield from self._attend([Entry(*row) for row in result["entries"]], ours=False)
        self._after = str(result["next"])
        if not self._after:
            self._watch.end_round()
        if doubting:
            yield from self._doubt([Entry(*row) for row in result["doubtful"]], str(result["doubts_next"]))
        return float(result["took_s"])

    def _attend(self, entries: list[Entry], *, ours: bool) -> Flow[None]:
        """Read those that are due, as many at once as there is room for."""
        due = [e for e in entries if self._is_due(e)]
        while due:
            room = AT_ONCE - len(self._active)
            if room <= 0:
                yield Idle(0.02)
                continue
            some, due = due[:room], due[room:]
            files = [e for e in some if self._may_read(e)]
            ops = [read(f"{QUEUE}/{e.path}", MAX_TASK_BYTES + 1) for e in files]
            results = yield from share(KIND, ops)
            for entry, result in zip(files, results, strict=True):
                self._judge(entry, result, ours=ours)

    def _of(self, name: str) -> Watch:
        """The watch that a file is in: names like ours are shown in rounds of their own."""
        return self._doubted if name in self._doubts else self._watch

    def _is_due(self, entry: Entry) -> bool:
        was = (entry.inode, entry.size, entry.mtime_ns)
        if entry.path in self._active or self._orders.books.holds(entry.path, was):
            self._of(entry.path).touch(entry.path)
            return False
        return not self._drawn(f"{QUEUE}/{entry.path}") and self._of(entry.path).due(
            entry.path, entry, self._clock.now()
        )

    def _may_read(self, entry: Entry) -> bool:
        """A regular file of a sane size; what is not is said once."""
        name = entry.path
        if entry.type != "file":
            if self._of(name).settle(name):
                problem = Problem(f"it is a {entry.type}, not a file", f"{QUEUE}/{shown(name)}", "remove it")
                self._start(name, self._orders.tell(name, problem))
            return False
        if entry.size > MAX_TASK_BYTES:
            self._of(name).was_read(name, self._clock.now())
            if self._of(name).unchanged_s(name, self._clock.now()) >= min(GROWING_S, self._watch.patience_s):
                what = f"it has {entry.size} bytes, at most {MAX_TASK_BYTES}"
                fix = "put data into a file of the plan, and name that"
                self._refuse(name, None, (Problem(what, f"{QUEUE}/{shown(name)}", fix),))
            return False
        return True

    def _judge(self, entry: Entry, result: dict[str, Any], *, ours: bool) -> None:
        name, now = entry.path, self._clock.now()
        self._of(name).was_read(name, now)
        if not result["ok"]:
            self._unreadable(name, result)
            return
        data = bytes(result["data"])
        was = _was(result)
        try:
            order = read_order(name, data, ours=ours)
        except Invalid as e:
            self._refuse(name, data, e.problems, was)
            return
        if isinstance(order, Half):
            if self._of(name).is_over(name, now):
                what = f"{order.problem.what}; nothing was written to it for {self._watch.patience_s:g} s"
                problem = Problem(
                    what,
                    order.problem.where,
                    "write it whole, once more",
                    order.problem.line,
                    order.problem.text,
                )
                self._refuse(name, data, (problem,), was)
        elif isinstance(order, Product):
            if self._of(name).unchanged_s(name, now) >= min(STALE_S, self._watch.patience_s):
                log.info("%s was drawn by a mirror, and its task is gone: removed, not run", shown(name))
                self._start(name, _remove(name, was))
        else:
            self._start(name, self._take(name, was, order, data))

    def _unreadable(self, name: str, result: dict[str, Any]) -> None:
        if result["errno"] == "ENOENT":
            self._of(name).forget(name)
        elif result["errno"] in ("EACCES", "EPERM", "ENOTSUP") and self._of(name).settle(name):
            fix = "make it readable for the rig's user: chmod g+r"
            problem = Problem(str(result["what"]), f"{QUEUE}/{shown(name)}", fix)
            self._start(name, self._orders.tell(name, problem))

    # -- names that look like the mirror's ------------------------------------------------------------------

    def _doubt(self, entries: list[Entry], following: str) -> Flow[None]:
        """Of names like ours, those that stand for long, that the mirror does not keep and the broker does not know."""
        strange: list[Entry] = []
        for entry in entries:
            name = entry.path
            if self._drawn(f"{QUEUE}/{name}") or self._known.get(name) == entry.inode:
                continue
            if self._doubts.get(name) == entry.inode and self._orders.books.holder(name) is None:
                strange.append(entry)
            self._doubts[name] = entry.inode
        for i in range(0, len(strange), ASKED):
            some = strange[i : i + ASKED]
            ids = [e.path.removesuffix(".json") for e in some]
            answer = yield from ask(Verb.QUERY, {"what": "rows", "ids": ids})
            there = {row["id"] for row in answer.header["rows"]}
            if answer.header.get("cursor") is not None:
                break  # large rows: the others next time
            self._known |= {e.path: e.inode for e, id_ in zip(some, ids, strict=True) if id_ in there}
            unknown = [e for e, id_ in zip(some, ids, strict=True) if id_ not in there]
            yield from self._attend(unknown, ours=True)
        self._doubts_after = following
        if not following:
            self._doubted.end_round()
            self._doubt_at = self._clock.now() + self._doubt_s
            if len(self._doubts) > MAX_KNOWN or len(self._known) > MAX_KNOWN:
                self._doubts.clear()
                self._known.clear()

    # -- what is started -------------------------------------------------------------------------------------

    def _start(self, name: str, flow: Flow[Any]) -> None:
        if name in self._active:
            flow.close()
            return
        self._active.add(name)
        self._flows.start(f"queue file {shown(name)}", self._marked(name, flow))

    def _marked(self, name: str, flow: Flow[Any]) -> Flow[None]:
        try:
            yield from flow
        except ShareAway as e:
            log.warning("%s waits: %s", shown(name), e)
            self._of(name).forget(name)
        except (Later, OSError) as e:
            log.warning("%s waits: %s", shown(name), e)
            yield Idle(AGAIN_S)
            self._of(name).forget(name)
        finally:
            self._active.discard(name)

    def _take(self, name: str, was: Was, order: Order, data: bytes) -> Flow[None]:
        try:
            yield from self._orders.take(name, was, order)
            self._of(name).forget(name)
        except NotYet as e:
            patience_s = self._watch.patience_s if e.patience_s is None else e.patience_s
            if self._of(name).unchanged_s(name, self._clock.now()) >= min(patience_s, self._watch.patience_s):
                yield from self._orders.refuse(name, data, (e.problem,), was)
                self._of(name).forget(name)
        except Invalid as e:
            yield from self._refused(name, data, e.problems, was)
        except RigbusError as e:
            log.warning("%s waits: %s", shown(name), e)

    def _go_on(self, entry: dict[str, Any]) -> Flow[None]:
        try:
            yield from self._orders.go_on(entry)
        except Invalid as e:
            # It was read before a restart: what stands there now may be another file.
            data = json.dumps(entry["fields"]).encode()
            yield from self._refused(str(entry["source"]), data, e.problems, entry["was"])

    def _refuse(
        self, name: str, data: bytes | None, problems: tuple[Problem, ...], was: Was | None = None
    ) -> None:
        self._start(name, self._refused(name, data, problems, was))

    def _refused(
        self, name: str, data: bytes | None, problems: tuple[Problem, ...], was: Was | None = None
    ) -> Flow[None]:
        if not (yield from self._orders.refuse(name, data, problems, was)):
            yield Idle(STUCK_S)  # the share refuses everything for now
        self._of(name).forget(name)


def _was(result: dict[str, Any]) -> Was:
    """Which file was read: its author may put another one in its place at any time."""
    return (result["inode"], result["size"], result["mtime_ns"])


def _remove(name: str, was: Was) -> Flow[None]:
    yield from share(KIND, [unlink(f"{QUEUE}/{name}", was=was)])
