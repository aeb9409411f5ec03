"""A history, sorted by what it tells of. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Final

from rigbus.bus.client.work import task_id

from .history import Record

Token = tuple[int, int]
ENDS: Final = frozenset({"done", "dead", "cancelled", "expired", "skipped"})
BATCH_ENDS: Final = frozenset({"complete", "failed", "cancelled"})
NO_TOKEN: Final = (0, 0)
_OF_EVENT: Final = ("seq", "prev", "at", "ch", "topic", "id")


def token_of(text: str | None) -> Token:
    """``(incarnation, seq)`` of a RIGBUS_TOKEN, ``<state>:<session>:<incarnation>.<seq>``; zeros of anything else."""
    incarnation, _, seq = (text or "").rpartition(":")[2].partition(".")
    return (int(incarnation), int(seq)) if incarnation.isdecimal() and seq.isdecimal() else NO_TOKEN


@dataclass(frozen=True, slots=True)
class Line:
    """What a command said of itself. ``at``: its place in the history."""

    at: int
    t: float
    task: str
    token: Token
    ppid: int


@dataclass(slots=True)
class Seen:
    """Everything, by what it is about. Tasks and batches by their ids, jobs by their names."""

    campaign: Record = field(default_factory=dict)
    jobs: dict[str, Record] = field(default_factory=dict)
    submitted_at: dict[str, float] = field(default_factory=dict)
    answers: dict[str, list[Record]] = field(default_factory=dict)
    refused: list[Record] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)  #: tasks and batches
    rounds: list[Record] = field(default_factory=list)
    starts: dict[str, list[Line]] = field(default_factory=dict)
    ends: dict[Token, Line] = field(default_factory=dict)
    events: list[Record] = field(default_factory=list)
    task_ends: dict[str, list[Record]] = field(default_factory=dict)
    batches: dict[str, Record] = field(default_factory=dict)
    tasks: dict[str, Record] = field(default_factory=dict)
    of_kind: dict[str, list[Record]] = field(default_factory=dict)  #: the other records
    first_t: float = 0.0
    last_t: float = 0.0

    def all(self, kind: str) -> list[Record]:
        """The records of a kind that has no field of its own."""
        return self.of_kind.get(kind, [])

    @property
    def lines(self) -> list[Line]:
        """All starts."""
        return [line for lines in self.starts.values() for line in lines]

    def spec_of(self) -> dict[str, tuple[str, list[tuple[str, bool]]]]:
        """Of each task that a job names: its fate, and the ids that it waits for, True where any end will do."""
        found = {}
        for name, job in self.jobs.items():
            for batch in self.batches_of(name):
                for key, after in job["tasks"]:
                    edges = [(task_id(batch, k), bool(any_end)) for k, any_end in after]
                    found[task_id(batch, key)] = (key.rpartition("-")[2], edges)
        return found

    def batches_of(self, job: str) -> list[str]:
        """The ids of the batches that came of a job: one, if all is well."""
        return [id_ for id_, batch in self.batches.items() if batch["name"] == job]


def sort(records: Iterable[Record]) -> Seen:
    """Read a history."""
    seen = Seen()
    for at, r in enumerate(records):
        if "t" in r:
            seen.first_t = seen.first_t or r["t"]
            seen.last_t = max(seen.last_t, r["t"])
        _take(seen, at, r)
    return seen


def _take(seen: Seen, at: int, r: Record) -> None:
    match r["k"]:
        case "campaign":
            seen.campaign = r
        case "submit" | "drop":
            seen.jobs[r["job"]["name"]] = r["job"]
            seen.submitted_at[r["job"]["name"]] = r["t"]
        case "accepted":
            seen.answers.setdefault(r["job"], []).append(r)
        case "refused":
            seen.refused.append(r)
        case "cancel":
            seen.cancelled.update(r["ids"] or [r["batch"]])
        case "round":
            seen.rounds.append(r)
        case "start":
            line = _line(at, r)
            seen.starts.setdefault(line.task, []).append(line)
        case "end":
            line = _line(at, r)
            seen.ends[line.token] = line
        case "event":
            r = {name: r[name] for name in _OF_EVENT}  # there are many, and nobody asks for more
            r["topic"], r["id"] = intern(r["topic"]), intern(r["id"] or "")
            seen.events.append(r)
            if r["topic"].startswith("task.") and r["topic"].rpartition(".")[2] in ENDS and r["ch"] != "a":
                seen.task_ends.setdefault(r["id"], []).append(r)
        case "batch":
            seen.batches[r["id"]] = r
        case "task":
            seen.tasks[r["id"]] = r
        case kind:
            seen.of_kind.setdefault(kind, []).append(r)


def _line(at: int, r: dict[str, Any]) -> Line:
    return Line(at, r["t"], r["task"], token_of(r["tok"]), r["ppid"])
