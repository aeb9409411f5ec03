"""The two threads beside the killer: one submits and cancels, one follows the event log. Each has a client of its own,
and outlives the death of everything that it talks to."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from rigbus import Client
from rigbus.bus.client.follow import EventStream
from rigbus.bus.client.work import task_id
from rigbus.bus.errors import RigbusError, Unreachable
from rigbus.tools import plan_source

from .history import History
from .rig import ChaosRig
from .seen import BATCH_ENDS, ENDS
from .work import Job, job, plan_files, tasks_of

ANSWER_S: Final = 1.0  #: then a submit counts as unanswered, and is said again with the same keys
CALMER: Final = 20  #: so much less room a calm job has
_PAUSE_S: Final = 0.05


class Books:
    """What both threads and the campaign know together: jobs that have not ended, tasks submitted, tasks ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._closed: set[str] = set()
        self.submitted = 0  #: tasks of jobs that were begun
        self.ends = 0  #: terminal events seen
        self.seq = 0  #: of the last event seen
        self.to_trust: queue.SimpleQueue[str] = queue.SimpleQueue()

    def begun(self, name: str, total: int) -> None:
        """A job is submitted now."""
        with self._lock:
            self.submitted += total
            if name not in self._closed:
                self._open[name] = total

    def over(self, name: str) -> None:
        """Its batch has ended."""
        with self._lock:
            self._closed.add(name)
            self._open.pop(name, None)

    @property
    def backlog(self) -> int:
        """Tasks of jobs that have not ended."""
        with self._lock:
            return sum(self._open.values())

    @property
    def open(self) -> list[str]:
        """Jobs that have not ended."""
        with self._lock:
            return sorted(self._open)


class _Thread(threading.Thread):
    """A thread with a client that is made anew when it fails. What else it raises is kept in ``failure``."""

    def __init__(self, rig: ChaosRig, history: History, books: Books, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.rig, self.history, self.books = rig, history, books
        self.failure: BaseException | None = None
        self._over = threading.Event()

    def end(self) -> None:
        """Ask it to end."""
        self._over.set()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                try:
                    with Client(self.rig.endpoint, self.rig.paths.state, timeout_s=2.0) as client:
                        self._serve(client)
                except Unreachable:
                    self._over.wait(_PAUSE_S)
        except BaseException as e:
            self.failure = e
            raise

    def _serve(self, client: Client) -> None:
        raise NotImplementedError


class Follower(_Thread):
    """Writes each event of the log into the history, from number ``books.seq`` on."""

    def __init__(self, rig: ChaosRig, history: History, books: Books) -> None:
        super().__init__(rig, history, books, "follower")

    def _serve(self, client: Client) -> None:
        stream = client.events("*", since=self.books.seq)
        while not self._over.is_set():
            self._take(stream)

    def _take(self, stream: EventStream) -> None:
        event = stream.poll(0.2)
        if event is None:
            return
        self.history.add(
            "event",
            seq=event.seq,
            prev=event.prev,
            at=event.at,
            ch=event.channel,
            topic=event.topic,
            id=event.id,
            batch=event.batch,
            data={k: str(v)[:200] if isinstance(v, (dict, list)) else v for k, v in event.data.items()},
        )
        self.books.seq = event.seq
        kind, _, rest = event.topic.partition(".")
        last = rest.rpartition(".")[2]
        if kind == "task" and last in ENDS:
            self.books.ends += 1
        elif kind == "batch" and last in BATCH_ENDS:
            self.books.over(str(event.data.get("name")))
        elif kind == "worker" and last == "quarantined":
            self.books.to_trust.put(rest.rpartition(".")[0])


class Submitter(_Thread):
    """Submits job after job while fewer than ``room`` tasks are open, until ``wanted`` tasks were submitted and it is told to
    stop; repeats what was not answered; cancels; trusts quarantined workers again. ``known``: jobs of an earlier run of this
    campaign, True where they were answered."""

    def __init__(
        self, rig: ChaosRig, history: History, books: Books, seed: int, room: int, known: dict[str, bool]
    ) -> None:
        super().__init__(rig, history, books, "submitter")
        self._seed, self._room, self._known = seed, room, known
        self._n = 0
        self._script = rig.folder / "act.sh"
        self._due: list[tuple[float, int, Callable[[Client], None]]] = []
        self._count = 0
        self._batches: dict[str, str] = {}
        self._present: Job | None = None
        self._begun = ""
        self.enough = threading.Event()  #: no more jobs
        self.idle = threading.Event()  #: nothing is left to say

    def _serve(self, client: Client) -> None:
        while not self._over.is_set():
            self._do_due(client)
            if self._present is None and not self.enough.is_set():
                self._present = self._next()
            if self._present is not None and self._may_begin(self._present):
                self._submit(client, self._present)
                self._present = None
                continue
            if self.enough.is_set() and not self._due:
                self.idle.set()
            client.tend(_PAUSE_S)

    def _next(self) -> Job | None:
        """The next job; None for one that an earlier run of the campaign has had answered."""
        made = job(self._seed, self._n)
        self._n += 1
        if not self._known.get(made.name):
            return made
        self.books.begun(made.name, made.total)
        return None

    def _may_begin(self, given: Job) -> bool:
        """Whether there is room for a job; then it begins, which the history tells once."""
        if given.name == self._begun:
            return True  # a client failed in the middle of it
        if self.enough.is_set() or self.books.backlog >= self._room / (CALMER if given.calm else 1):
            return False
        self._begun = given.name
        self.books.begun(given.name, given.total)
        if given.name not in self._known:
            self.history.add("submit" if given.kind != "drop" else "drop", job=given.shown())
        return True

    def _later(self, after_s: float, do: Callable[[Client], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (time.monotonic() + after_s, self._count, do))

    def _do_due(self, client: Client) -> None:
        while not self.books.to_trust.empty():
            worker = self.books.to_trust.get()
            client.control("resume", worker)
            self.history.add("trust", worker=worker)
        while self._due and self._due[0][0] <= time.monotonic():
            self._due[0][2](client)
            heapq.heappop(self._due)  # not before: what was not answered is done again by the next client

    # -- one job ---------------------------------------------------------------------------------------------

    def _submit(self, client: Client, given: Job) -> None:
        if given.kind == "drop":
            self._drop(given)
            return
        plan = self._staged(given) if given.kind == "plan" else None
        self._say(client, given, plan)
        if given.again:
            self._later(given.cancel_s, lambda c: self._say(c, given, plan))
        if given.cancel is not None:
            self._later(given.cancel_s, lambda c: self._cancel(c, given))

    def _say(self, client: Client, given: Job, plan: dict[str, Any] | None) -> None:
        """Until it is answered, each time with the same keys."""
        while not self._over.is_set():
            try:
                if plan is not None:
                    batch, ids = client.submit_plan(plan, given.name, timeout_s=ANSWER_S), None
                else:
                    tasks = tasks_of(given.commands, self._script)
                    said = client.submit(tasks, batch=given.name, name=given.name, timeout_s=ANSWER_S)
                    batch, ids = said.batch, list(said)
            except Unreachable as e:
                self.history.add("unanswered", job=given.name, why=str(e)[:200])
                continue
            except RigbusError as e:
                self.history.add("refused", job=given.name, why=f"{type(e).__name__}: {e}"[:500])
                return
            self._batches[given.name] = batch
            self.history.add("accepted", job=given.name, batch=batch, ids=ids)
            return

    def _cancel(self, client: Client, given: Job) -> None:
        batch = self._batches.get(given.name)
        if batch is None:
            return  # it was refused, and the judge says so
        ids = [task_id(batch, key) for key in given.cancel or ()]
        self.history.add("cancel", job=given.name, batch=batch, ids=ids)
        answer = client.cancel(ids=ids) if ids else client.cancel(batch=batch)
        self.history.add("cancelled", job=given.name, batch=batch, ids=ids, answer=answer)

    # -- plans -----------------------------------------------------------------------------------------------

    def _drop(self, given: Job) -> None:
        """Into the inbox, READY last; what lies there already is the same."""
        folder = self.rig.paths.shared / "inbox" / given.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in plan_files(given, self._script).items():
            (folder / name).write_text(text)
        (folder / "READY").write_text("{}")

    def _staged(self, given: Job) -> dict[str, Any]:
        """Checked, copied and staged as `rigbus submit` does."""
        source = self.rig.folder / "plans" / given.name
        source.mkdir(parents=True, exist_ok=True)
        for name, text in plan_files(given, self._script).items():
            (source / name).write_text(text)
        folder = plan_source.into_plans(source, given.name, self.rig.paths.shared)
        return {
            "name": given.name,
            "sha256": plan_source.stage(source, self.rig.paths.staged),
            "path": str(folder),
            "batch_root": str(folder / "batches"),
            "config": {},
            "source": "chaos",
        }


def known_jobs(records: list[dict[str, Any]]) -> dict[str, bool]:
    """Jobs of a history that goes on: name -> whether they were answered (a drop needs no answer)."""
    known: dict[str, bool] = {}
    for r in records:
        if r["k"] in ("submit", "drop"):
            known[r["job"]["name"]] = r["k"] == "drop"
        elif r["k"] in ("accepted", "refused"):
            known[r["job"]] = True
    return known
