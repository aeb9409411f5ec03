"""What the demo tells, counted from the rig's own events. Pure: events in, numbers and lines out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

#: A task's words that end its lease without ending the task.
BACK: Final = frozenset({"retry", "returned", "ready"})
ENDS: Final = frozenset({"done", "dead", "cancelled", "expired", "skipped"})


class EventLike(Protocol):
    """What is needed of an event (``bus.follow.Event``)."""

    @property
    def topic(self) -> str: ...
    @property
    def id(self) -> str | None: ...
    @property
    def at(self) -> float: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class TaskSeen:
    """One task, as the events showed it. ``runs``: the workers of its leases, in order."""

    key: str = ""
    type: str = ""
    state: str = ""
    runs: list[str] = field(default_factory=list)
    recorded: int = 0


@dataclass(slots=True)
class Kill:
    """A worker that was killed, and what became of the leases that it held. ``at`` is wall time, as in events."""

    worker: str
    pid: int
    at: float
    held: frozenset[str]
    back_at: dict[str, float] = field(default_factory=dict)
    rerun: dict[str, str] = field(default_factory=dict)

    @property
    def back_s(self) -> float:
        """Seconds from the kill until the last of the leases was back."""
        return max((at - self.at for at in self.back_at.values()), default=0.0)


class Story:
    """Feed it every event of one batch; it knows who holds what."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskSeen] = {}
        self.holding: dict[str, set[str]] = {}
        self.kill: Kill | None = None

    def take(self, event: EventLike) -> None:
        """One event; those that are not about a task change nothing."""
        parts = event.topic.split(".")
        if parts[0] != "task" or len(parts) < 3 or not event.id:
            return
        word = parts[-1]
        task = self.tasks.setdefault(event.id, TaskSeen())
        task.type = ".".join(parts[1:-1])
        task.key = str(event.data.get("key") or task.key)
        task.state = word
        if word == "leased":
            worker = str(event.data.get("worker") or "?")
            task.runs.append(worker)
            self.holding.setdefault(worker, set()).add(event.id)
        elif word in BACK or word in ENDS:
            for held in self.holding.values():
                held.discard(event.id)
        if word == "done":
            task.recorded += 1
        self._about_the_kill(event, word, task)

    def _about_the_kill(self, event: EventLike, word: str, task: TaskSeen) -> None:
        kill = self.kill
        if kill is None or event.id is None or event.id not in kill.held:
            return
        if word in BACK and event.id not in kill.back_at:
            kill.back_at[event.id] = event.at
        elif word == "done" and event.id in kill.back_at:
            kill.rerun[event.id] = task.runs[-1] if task.runs else "?"

    def killed(self, worker: str, pid: int, at: float) -> Kill:
        """Say that ``worker`` is killed now; what comes back is counted from here on."""
        self.kill = Kill(worker, pid, at, frozenset(self.holding.get(worker, ())))
        return self.kill

    def busiest(self, workers: Mapping[str, int]) -> str | None:
        """The worker (of those that may be killed) that holds most; None when none holds anything."""
        held = {name: len(self.holding.get(name, ())) for name in workers}
        best = max(held, key=lambda name: (held[name], name), default=None)
        return best if best is not None and held[best] else None

    @property
    def twice(self) -> int:
        """Tasks whose result was recorded more than once."""
        return sum(task.recorded > 1 for task in self.tasks.values())

    def lost(self, counts: Mapping[str, int]) -> int:
        """Tasks that did not get to their result, by the broker's counts of the ended batch."""
        return sum(number for state, number in counts.items() if state != "done")

    def kill_line(self, counts: Mapping[str, int]) -> str:
        """``worker-2 killed → 4 leases back in 0.4 s → rerun → 0 lost, 0 recorded twice``."""
        kill = self.kill
        if kill is None:
            return "no worker was killed: the plan was over before"
        leases = len(kill.back_at)
        word = "lease" if leases == 1 else "leases"
        took = f"{kill.back_s:.1f}" if kill.back_s >= 0.1 else f"{kill.back_s:.2f}"
        return (
            f"{kill.worker} killed → {leases} {word} back in {took} s → rerun → "
            f"{self.lost(counts)} lost, {self.twice} recorded twice"
        )

    def remarkable(self) -> str | None:
        """The id of the task whose life is most worth a look: one that was run again, else a finished one."""
        if self.kill is not None and self.kill.rerun:
            return min(self.kill.rerun, key=lambda id_: self.tasks[id_].key)
        done = [id_ for id_, task in self.tasks.items() if task.state == "done" and task.type == "shell"]
        return done[-1] if done else None
