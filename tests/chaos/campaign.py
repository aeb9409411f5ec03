"""The rounds of a campaign, the healing after them, and the end: everything that happens goes into the history."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from helpers import processes_of

from . import rig as processes
from .clients import Books, Follower, Submitter, known_jobs
from .history import History, read
from .rig import ChaosRig
from .schedule import Round, plan_round
from .seen import BATCH_ENDS
from .snapshot import rows_of
from .work import SCRIPT

ROOM: Final = 1200  #: open tasks past which nothing new is submitted: work must flow, not pile up
HEAL_S: Final = 120.0  #: after the last fault everything must have ended within this,
HEAL_TASKS_A_S: Final = 20  #: and a second more for so many open tasks
LOOK_S: Final = 5.0  #: between two measurements
STALLED_S: Final = 20.0  #: without a single end after a fault, the next one comes all the same
BEHIND_S: Final = 0.7  #: more between two rounds, while there are fewer tasks for each than wanted
_TURN_S: Final = 0.02
_GONE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """What a campaign is to reach, at least."""

    seed: int
    rounds: int
    tasks: int
    folder: Path
    workers: int = 3
    slots: int = 4
    room: int = ROOM


class Broken(Exception):
    """The campaign itself cannot go on: a thread of it has failed, or the rig does not come up."""


class Campaign:
    """One campaign in a folder. What an interrupted one has written there is gone on with."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self.options, self._say = options, say
        self.path = options.folder / "history.jsonl"
        before = list(read(self.path)) if self.path.exists() else []
        self.history = History(self.path)
        self.books = Books()
        self.rounds = 0  #: of them only those that killed: a stop is one more fault beside
        self._number = 0
        self._hit: set[str] = set()  #: tasks of which a process was killed
        self._victims: Counter[str] = Counter()
        self._stopped: list[tuple[float, int, str]] = []  #: when to go on, pid, which process exactly
        self._look_at = 0.0
        for r in before:
            if r["k"] == "event":
                self.books.seq = max(self.books.seq, r["seq"])
                if r["topic"].startswith("batch.") and r["topic"].rpartition(".")[2] in BATCH_ENDS:
                    self.books.over(str(r["data"].get("name")))
            elif r["k"] == "round":
                self._number = max(self._number, r["n"] + 1)
                self.rounds += r["deed"] == "kill"
                if r["task"]:
                    self._hit.add(r["task"])
        if not before:
            self.history.add("campaign", seed=options.seed, rounds=options.rounds, tasks=options.tasks)
        self.rig = ChaosRig(options.folder, workers=options.workers, slots=options.slots)
        (options.folder / "act.sh").write_text(SCRIPT.replace("@HISTORY@", str(self.path)))
        self._follower = Follower(self.rig, self.history, self.books)
        self._submitter = Submitter(
            self.rig, self.history, self.books, options.seed, options.room, known_jobs(before)
        )

    # -- all of it -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play it to its end; the history is whole then.

        Raises:
            Broken: it cannot go on; nothing of it runs any more.
        """
        try:
            self._begin_rig()
            self._follower.start()
            self._submitter.start()
            self._storm()
            self._calm()
            self._finish()
        finally:
            for thread in (self._follower, self._submitter):
                thread.end()
            self.rig.end()
            for thread in (self._follower, self._submitter):
                if thread.is_alive():
                    thread.join(10)
        for kind, fields in rows_of(self.rig.paths.db):
            self.history.add(kind, **fields)
        self.history.add("over")
        self.history.close()

    def _storm(self) -> None:
        """Rounds, until there were enough of them and enough tasks."""
        said_at = 0.0
        while self.rounds < self.options.rounds or self.books.submitted < self.options.tasks:
            self._round(plan_round(self.options.seed, self._number))
            self._number += 1
            if time.monotonic() >= said_at:
                said_at = time.monotonic() + 15.0
                self._say(
                    f"round {self.rounds}, {self.books.submitted} tasks submitted, {self.books.backlog} open; "
                    + ", ".join(f"{n} {v}" for v, n in self._victims.most_common())
                )

    def _calm(self) -> None:
        """No more faults; within HEAL_S everything ends."""
        while self._stopped:
            self._go_on(float("inf"))
        self._submitter.enough.set()
        self.history.add("calm")
        began = time.monotonic()
        self._say(f"calm after {self.rounds} rounds; {self.books.backlog} tasks are open")
        within_s = HEAL_S + self.books.backlog / HEAL_TASKS_A_S
        ended = self._wait(lambda: self._submitter.idle.is_set() and not self.books.open, within_s)
        took_s = time.monotonic() - began
        self.history.add("settled", ok=ended, took_s=round(took_s, 3), open=self.books.open)

    def _finish(self) -> None:
        """Nothing of an attempt may live now; then the rig stops, and nothing at all may live."""
        gone = self._wait(lambda: not self.rig.attempts(), _GONE_S)
        left = [] if gone else self.rig.attempts()
        self.history.add("left", when="idle", processes=[list(found) for found in left])
        self._measure()
        for thread in (self._follower, self._submitter):
            thread.end()
            thread.join(10)
        code = self.rig.stop()
        deadline = time.monotonic() + _GONE_S
        while (rest := processes_of(self.rig.folder)) and time.monotonic() < deadline:
            _TURN.wait(_TURN_S)
        self.history.add("left", when="stopped", exit=code, processes=[[p, w, ""] for p, w in rest.items()])

    # -- one round -------------------------------------------------------------------------------------------

    def _round(self, planned: Round) -> None:
        """Wait for the rig to have done something since the last fault (a burst does not), then hurt somebody."""
        wanted = self.options
        late = self.books.submitted * wanted.rounds < self.rounds * wanted.tasks
        ends = self.books.ends
        self._wait(lambda: False, planned.after_s + (BEHIND_S if late and not planned.burst else 0.0))
        if not planned.burst:
            self._wait(lambda: self.books.ends > ends, STALLED_S)
        target = self._target(planned)
        if target is None:
            return
        victim, pid, task = target
        which = processes.started_at(pid)
        number = signal.SIGSTOP if planned.stop_s else signal.SIGKILL
        fields = {"n": planned.n, "victim": victim, "pid": pid, "task": task}
        self.history.add("round", deed="stop" if planned.stop_s else "kill", stop_s=planned.stop_s, **fields)
        if not processes.hurt(pid, number):
            self.history.add("missed", **fields)
            return
        self.rounds += not planned.stop_s
        self._victims[victim.rstrip("-123456789")] += 1
        if planned.stop_s:
            self._stopped.append((time.monotonic() + planned.stop_s, pid, which))
        elif task:
            self._hit.add(task)
        elif victim == "up":
            self._again()

    def _target(self, planned: Round) -> tuple[str, int, str] | None:
        """(name, pid, task) of the victim; None when nobody of that kind is there now."""
        pids = self.rig.pids()
        workers = [name for name in self.rig.workers if name in pids]
        if planned.victim == "worker":
            name = _pick(workers, planned.pick)
            return (name, pids[name], "") if name else None
        if planned.victim == "helper":
            found = [p for p in processes.children(pids.get("bridge", 0)) if _is_helper(p)]
            return ("helper", found[int(planned.pick * len(found))], "") if found else None
        if planned.victim == "command":
            running = [p for name in workers for p in processes.children(pids[name])]
            tasks = [(p, processes.variable(p, "RIGBUS_TASK_ID")) for p in running]
            fresh = [(p, task) for p, task in tasks if task and task not in self._hit]
            return ("command", *fresh[int(planned.pick * len(fresh))]) if fresh else None
        pid = pids.get(planned.victim)
        return (planned.victim, pid, "") if pid else None

    # -- the rig ---------------------------------------------------------------------------------------------

    def _begin_rig(self) -> None:
        self.rig.begin()
        began = time.monotonic()
        if not self._wait(lambda: self.rig.ready() or self.rig.ended is not None, processes.READY_S):
            raise Broken(f"the rig is not ready after {processes.READY_S:g} s; see {self.rig.folder}/up.log")
        if self.rig.ended is not None:
            raise Broken(f"`up` ended with {self.rig.ended} at its start; see {self.rig.folder}/up.log")
        self.history.add("up", took_s=round(time.monotonic() - began, 3))

    def _again(self) -> None:
        """`up` was killed: another one."""
        if self.rig.up is not None:
            self.rig.up.wait(10)
        self._begin_rig()

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Until ``condition`` holds, while everything that is due is done; False when it did not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                return False
            self._tend()
            _TURN.wait(_TURN_S)
        return True

    def _tend(self) -> None:
        """Let the stopped go on, measure, look after `up` and the threads."""
        self._go_on(time.monotonic())
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            self._measure()
        for thread in (self._follower, self._submitter):
            if thread.failure is not None:
                raise Broken(f"the {thread.name} has failed: {thread.failure!r}") from thread.failure
        code = self.rig.ended
        if code is not None and self.rig.ready():
            self.history.add("down", exit=code)
            self._begin_rig()

    def _go_on(self, now: float) -> None:
        for entry in [s for s in self._stopped if s[0] <= now]:
            self._stopped.remove(entry)
            _, pid, which = entry
            alive = bool(which) and processes.started_at(pid) == which and processes.hurt(pid, signal.SIGCONT)
            self.history.add("cont", pid=pid, alive=alive)

    def _measure(self) -> None:
        """Memory and descriptors of each process, bytes of the database, and what runs of attempts."""
        sizes = {name: processes.size(pid) for name, pid in self.rig.pids().items()}
        db = self.rig.paths.db
        wal = db.with_name(db.name + "-wal")
        files = {f.name: f.stat().st_size for f in (db, wal) if f.exists()}
        self.history.add(
            "size",
            rss_kib={n: s[0] for n, s in sizes.items()},
            fds={n: s[1] for n, s in sizes.items()},
            bytes=files,
        )
        self.history.add("bearers", processes=[list(found) for found in self.rig.attempts()])


_TURN: Final = threading.Event()  #: nobody sets it: a turn of the loop has a length


def _pick(names: list[str], at: float) -> str:
    return names[int(at * len(names))] if names else ""


def _is_helper(pid: int) -> bool:
    return not processes.variable(pid, "RIGBUS_TASK_ID")
