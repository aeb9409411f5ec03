"""What ``rigbus sniff`` shows: filters over records, lines for people, the life of one task. Pure."""

from __future__ import annotations

import fnmatch
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ..errors import ConfigError
from ..wire import Verb
from .records import Recent, Record, printable

_TERMINAL: Final = frozenset({"done", "dead", "cancelled", "expired", "skipped"})

# --- filters ----------------------------------------------------------------------------------------------------

_KEYS: Final = ("verb", "task", "batch", "worker", "dir", "min_bytes", "min_ms")


class Filter:
    """Which records to show: ``NAME=VALUE`` or globs over topics. The same name again widens, another one narrows.

    ``verb=LEASE,RESULT`` · ``task=ID`` and ``batch=ID`` (also shortened) · ``worker=GLOB`` · ``dir=in|out|event`` ·
    ``min_bytes=N`` · ``min_ms=N``; a word that is a verb means ``verb=``; everything else is a topic: ``task.*.dead``.

    Raises:
        ConfigError: an expression is none; the message names it and the known ones.
    """

    def __init__(self, expressions: Iterable[str] = ()) -> None:
        self.topics: list[str] = []
        self._wanted: dict[str, list[str]] = {}
        self._least: dict[str, float] = {}
        for text in expressions:
            self._add(text)

    def _add(self, text: str) -> None:
        name, equals, value = text.partition("=")
        if not equals:
            if text.upper() in Verb.__members__:
                self._wanted.setdefault("verb", []).append(text.upper())
            elif text:
                self.topics.append(text)
            return
        if name not in _KEYS or not value:
            raise ConfigError(
                f"filter {printable(text)!r}: known are {', '.join(f'{k}=' for k in _KEYS)} and topics"
            )
        if name.startswith("min_"):
            try:
                self._least[name] = float(value)
            except ValueError:
                raise ConfigError(
                    f"filter {printable(text)!r}: {name} is a number, such as {name}=100"
                ) from None
            return
        values = [v.upper() if name == "verb" else v for v in value.split(",") if v]
        self._wanted.setdefault(name, []).extend(values)

    def subscriptions(self) -> list[bytes]:
        """What to subscribe to on the events socket, so that no more is sent than can match."""
        if not self.topics:
            return [b"tap."]
        wanted: set[bytes] = set()
        for glob in self.topics:
            head = glob.partition(".")[0]
            if head in {"tap", "hb", "progress"}:
                wanted.add(f"{head}.".encode())
            else:
                wanted |= {b"p.", b"c."}
                if any(c in head for c in "*?["):
                    wanted |= {b"tap.", b"hb.", b"progress."}
        return sorted(wanted)

    def __call__(self, record: Record) -> bool:
        if self.topics and not any(fnmatch.fnmatchcase(record.topic, glob) for glob in self.topics):
            return False
        if record.bytes < self._least.get("min_bytes", 0):
            return False
        if "min_ms" in self._least and (record.latency_ms or 0.0) < self._least["min_ms"]:
            return False
        return all(self._one(name, values, record) for name, values in self._wanted.items())

    @staticmethod
    def _one(name: str, values: list[str], record: Record) -> bool:
        if name == "verb":
            return record.verb in values
        if name == "dir":
            return record.dir in values
        if name == "task":
            return any(i.startswith(v) for i in record.task_ids for v in values)
        if name == "batch":
            return any((record.batch_id or "").startswith(v) for v in values)
        return any(fnmatch.fnmatchcase(record.peer, v) for v in values)


# --- for people -------------------------------------------------------------------------------------------------

_ARROWS: Final = {"in": "->", "out": "<-", "event": " *"}


def line(record: Record) -> str:
    """One line for people. Text of peers is made :func:`printable`."""
    clock = datetime.fromtimestamp(record.ts).strftime("%H:%M:%S.%f")[:-3]
    what = record.verb if record.dir != "event" or record.verb != "EVENT" else record.topic
    who = record.task_ids[0][:8] if record.task_ids else ""
    if len(record.task_ids) > 1:
        who += f"+{len(record.task_ids) - 1}"
    took = f"{record.latency_ms:9.1f} ms" if record.latency_ms is not None else " " * 12
    if record.dir == "event" and record.verb == "EVENT":  # no peer, no bytes: its topic needs the room
        return printable(f"{clock}  * {what:<26} {who:<12} {record.detail[:160]}".rstrip() + _lost(record))
    text = (
        f"{clock} {_ARROWS.get(record.dir, '??')} {record.peer[:14]:<14} {what:<12} {who:<12} {record.bytes:>8} B {took} "
        f"{record.detail[:160]}"
    )
    return printable(text.rstrip() + _lost(record))


def _lost(record: Record) -> str:
    return f"  [{record.dropped} lost before this]" if record.dropped else ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step in a task's life: what happened, after how long, and what that time was spent on."""

    record: Record
    after_s: float
    why: str


FOLLOW_TOPICS: Final = (b"tap.", b"p.", b"c.", b"progress.")


class Follow:
    """The life of one task (an id, or the start of one), in order, with the time between the steps explained.

    Subscribe to :data:`FOLLOW_TOPICS`. A broker's turn publishes what it read, what it answered, then its events, which
    bear the time at which the turn began. So records are held back for ``hold_s`` of the broker's clock, and an event
    is put behind the message that caused it and before the answers.
    """

    def __init__(self, task: str, hold_s: float = 0.05) -> None:
        self._task = task
        self._hold_s = hold_s
        self._heap: list[tuple[float, int, Record]] = []
        self._n = 0
        self._last: Record | None = None
        self._heard_at = 0.0  #: time of the last message to the broker about the task
        self._tapped = False
        self._submits: Recent[tuple[str, str], Record] = Recent(1000)
        self.ended = False

    def take(self, record: Record) -> list[Step]:
        """Give it a record; the steps that are certain now."""
        if record.verb == Verb.SUBMIT and record.cause is not None and not self._about(record):
            # Which tasks it makes is known with the answer.
            self._submits.put(record.cause, record)
            return []
        echo = record.verb == Verb.PROGRESS and record.dir == "event" and self._tapped
        if self._about(record) and record.verb not in {Verb.RENEW, Verb.RENEWED} and not echo:
            if record.verb == Verb.ACCEPTED and record.cause is not None:
                submit = self._submits.pop(record.cause)
                if submit is not None:
                    self._push(submit)
            self._push(record)
        return self._pop(record.ts - self._hold_s)

    def flush(self) -> list[Step]:
        """What is still held back."""
        return self._pop(float("inf"))

    def _about(self, record: Record) -> bool:
        return any(i.startswith(self._task) for i in record.task_ids)

    def _push(self, record: Record) -> None:
        self._n += 1
        at = record.ts
        if record.dir == "in":
            self._heard_at = max(self._heard_at, at)
        elif record.dir == "event":
            at = max(at, self._heard_at)
        self._tapped = self._tapped or record.dir != "event"
        heapq.heappush(self._heap, (at, self._n, record))

    def _pop(self, until: float) -> list[Step]:
        out = []
        while self._heap and self._heap[0][0] <= until:
            record = heapq.heappop(self._heap)[2]
            before, self._last = self._last, record
            after_s = max(0.0, record.ts - before.ts) if before is not None else 0.0
            out.append(Step(record, after_s, _why(before, record)))
            tail = record.topic.rpartition(".")[2]
            if record.verb == Verb.ENDED or (record.verb == "EVENT" and tail in _TERMINAL):
                self.ended = True
        return out


def _why(before: Record | None, record: Record) -> str:
    """What the time before a step was spent on."""
    if record.dropped:
        return f"{record.dropped} messages were lost here: steps may be missing"
    if before is None:
        return "" if record.verb in {Verb.SUBMIT, Verb.BRAIN} else "what came before was not seen"
    spent = {
        "ACCEPTED": "the broker wrote it to disk",
        "LEASE": f"waited for a worker; {record.peer} has it",
        "STARTED": f"on its way to {record.peer}",
        "PROGRESS": "it runs",
        "RESULT": f"{record.peer} ran it",
        "RETURN": f"{record.peer} gave it back",
        "RECORDED": "the result was written to disk",
        "STALE": "another attempt holds the task: this result does not count",
        "ENDED": "its submitter is told",
        "CANCEL": f"{record.peer} asked for its end",
    }
    if record.verb in spent:
        return spent[record.verb]
    if record.verb == "EVENT":
        state = record.topic.rpartition(".")[2]
        words = {
            "waiting": "it waits for tasks before it",
            "ready": "it may run now",
            "leased": "a worker has it",
            "started": "it runs",
            "retry": "it failed and will run again",
            "ending": "its end was asked for",
        }
        return words.get(state, f"it is {state}")
    return ""


def step_line(step: Step) -> str:
    """A step for people. The task is known: an event shows what it means, then its details."""
    record = step.record
    gap = f"+{step.after_s:8.3f} s" if step.after_s else " " * 11
    if record.dir != "event" or record.verb != "EVENT":
        return f"{gap}  {line(record)}" + (f"  ({printable(step.why)})" if step.why else "")
    clock = datetime.fromtimestamp(record.ts).strftime("%H:%M:%S.%f")[:-3]
    detail = "" if not record.detail else f" · {record.detail[:160]}"
    return printable(f"{gap}  {clock}  * {record.topic:<22} {step.why}{detail}" + _lost(record))
