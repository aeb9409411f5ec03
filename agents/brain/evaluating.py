"""Results that are to be judged: a model is asked by a task of its own, whose end becomes the verdict.

The brain runs no model and waits for none. It declares the judging task (PROTOCOL §5, ``judges``), and its end is an
event; whatever is asked twice has the same key. So a brain that dies at any moment finds in the rows how far it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from ...bus.core.model import task_id
from ...bus.errors import NotFound
from ...bus.wire import MAX_KEY_BYTES
from ...plans.model import Plan
from .core import Judge
from .judgement import (
    ANSWER_TOKENS,
    OUTPUT_CHARS,
    SCHEMA,
    Subject,
    messages_of,
    output_text,
    read_judgement,
    sample_of,
)
from .messages import Message, Run, Unplannable
from .placing import Entry

log = logging.getLogger(__name__)

TYPE: Final = "generate"
CLASS: Final = "llm"
#: Seconds that one judgement may take once a model has begun it; it may wait for one as long as there is one.
TIMEOUT_S: Final = 600.0
NO_MODEL: Final = (
    "accepted unjudged: no model is configured and no worker offers one; `rigbus up --model FILE.gguf` does"
)
_KEY_ROOM: Final = 40  #: bytes of a judge's key beside that of what it judges
_ENDED: Final = frozenset({"done", "dead", "cancelled", "expired", "skipped"})


class Bus(Protocol):
    """What the brain's process offers to this part of it."""

    def tell(
        self, header: dict[str, Any], message: Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        """One atomic BRAIN message; the broker's answer."""

    def batch_row(self, batch_id: str) -> dict[str, Any]:
        """A batch as QUERY shows it."""

    def rows(self, ids: list[str]) -> list[dict[str, Any]]:
        """Tasks as QUERY shows them."""

    def workers(self) -> list[dict[str, Any]]:
        """The workers as QUERY shows them."""

    def value(self, task: str) -> Any:
        """A recorded result."""

    def run_of(self, row: dict[str, Any]) -> tuple[Run, Plan]:
        """The run and the plan of a batch."""


def judge_keys(row: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of the tasks that may judge the result of a row: the first, and the one that is shown less of it."""
    stem = row["key"] if len(row["key"].encode()) <= MAX_KEY_BYTES - _KEY_ROOM else row["id"]
    first = f"{stem}:judge.{row['attempt']}"
    return first, f"{first}.again"


@dataclass(frozen=True, slots=True)
class Judging:
    """Who judges. ``expected``: the configuration names a model, so a judgement may wait until it is there.

    ``needs`` are what its worker offers: the brain's own model, where the catalogue has one.
    """

    expected: bool = False
    needs: tuple[str, ...] = ()


NO_MODELS: Final = Judging()


def judging_of(models: Iterable[Entry]) -> Judging:
    """Who judges on a rig with these models in its catalogue."""
    roles = [entry.role for entry in models]
    return Judging(bool(roles), ("role:brain",) if "brain" in roles else ())


class Evaluating:
    """Verdicts."""

    def __init__(self, bus: Bus, judging: Judging = NO_MODELS) -> None:
        self._bus = bus
        self._judging = judging

    def step(self, work: Judge) -> None:
        """Bring one task in REVIEW or FAILED further: ask for a judgement, or give the verdict that follows from it."""
        if work.state == "failed":
            verdict = {"id": work.task, "verdict": "dead", "note": "its attempts are used up"}
            self._bus.tell({"verdicts": [verdict]})
            return
        rows = self._bus.rows([work.task])
        if not rows or rows[0]["state"] != "review":
            return  # its verdict deadline, or a person, was first
        row = rows[0]
        try:
            value = self._bus.value(work.task)
        except Unplannable as e:
            self._unjudged(row, f"its result cannot be read: {e}")
            return
        self._judge(row, value)

    def _judge(self, row: Mapping[str, Any], value: Any) -> None:
        keys = judge_keys(row)
        found = {r["key"]: r for r in self._bus.rows([task_id(row["batch"], key) for key in keys])}
        why = ""
        for key, output_chars in zip(keys, OUTPUT_CHARS, strict=True):
            judge = found.get(key)
            if judge is None:
                self._ask(row, value, key, output_chars)
                return
            if not judge["aside"]:
                why = f"a task of its batch has the key {key!r}, which its judge needs"
                break
            if judge["state"] not in _ENDED:
                return  # its end will be told
            if judge["state"] == "done":
                verdict = self._verdict(row, value, judge)
                if verdict is not None:
                    self._say(row, verdict)
                    return
                why = f"what {key} answered is no judgement"
            else:
                why = f"{key} ended {judge['state']} ({judge.get('error') or 'no reason given'})"
            if judge["state"] not in ("done", "dead"):
                break  # nobody could or should judge it: asking once more changes nothing
        self._unjudged(row, why)

    def _ask(self, row: Mapping[str, Any], value: Any, key: str, output_chars: int) -> None:
        """Declare the task that judges a result; without any model the result is accepted."""
        if not (self._judging.expected or self._is_offered()):
            self._say(row, {"verdict": "accept", "note": NO_MODEL})
            return
        message = Message()
        spec = {
            "key": key,
            "type": TYPE,
            "class": CLASS,
            "needs": list(self._judging.needs),
            "judges": row["key"],
            "priority": row["priority"],
            "timeout_s": TIMEOUT_S,
            "policy": {"task": 1},  # the second try is a task of its own, with a shorter prompt
            "meta": {
                "executor": "brain",
                "name": key,
                "judges": row["key"],
                "judged_attempt": row["attempt"],
            },
        }
        payload = {
            "messages": messages_of(self._subject(row, value), output_chars),
            "json_schema": SCHEMA,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0.0,
        }
        message.add(spec, payload)
        self._bus.tell({}, message, row["batch"])
        log.info("%s of %s: attempt %d is judged by %s", row["key"], row["batch"], row["attempt"], key)

    def _is_offered(self) -> bool:
        return any(TYPE in w["types"] and CLASS in w["classes"] for w in self._bus.workers())

    def _verdict(self, row: Mapping[str, Any], value: Any, judge: Mapping[str, Any]) -> dict[str, Any] | None:
        """The verdict that a judge's answer gives; None where it gave none."""
        try:
            judgement = read_judgement(self._bus.value(judge["id"]))
        except Unplannable as e:
            log.warning("the answer of %s cannot be read: %s", judge["key"], e)
            return None
        if judgement is None:
            return None
        log.info("%s of %s, attempt %d: %s", row["key"], row["batch"], row["attempt"], judgement.note)
        subject = replace(self._subject(row, value), name=row["key"])
        return judgement.verdict(row["id"], judge, sample_of(subject, value))

    def _subject(self, row: Mapping[str, Any], value: Any) -> Subject:
        meta = row.get("meta") or {}
        asked = meta.get("prompt") or meta.get("command") or ""
        items = meta.get("item_ids") or ([meta["item_id"]] if meta.get("item_id") is not None else [])
        name = row["key"] + (f" (for {', '.join(map(str, items))})" if items else "")
        goal, criteria = self._of_plan(row["batch"], str(meta.get("template") or row["key"]))
        return Subject(name, output_text(value), asked=str(asked), goal=goal, criteria=criteria)

    def _of_plan(self, batch_id: str, template: str) -> tuple[str, str]:
        """What the plan says of its goal, and of how a task is to be judged; empty where there is no plan to ask."""
        batch = self._bus.batch_row(batch_id)
        if batch["kind"] != "plan":
            return "", ""
        try:
            _, plan = self._bus.run_of(batch)
        except Unplannable as e:
            log.warning("%s is judged without its plan: %s", template, e)
            return "", ""
        task = plan.by_id().get(template)
        criteria = task.evaluate if task is not None and isinstance(task.evaluate, str) else ""
        return plan.goal or plan.title, criteria

    def _unjudged(self, row: Mapping[str, Any], why: str) -> None:
        log.warning("%s of %s is accepted unjudged: %s", row["key"], row["batch"], why)
        self._say(row, {"verdict": "accept", "note": f"accepted unjudged: {why}"})

    def _say(self, row: Mapping[str, Any], verdict: Mapping[str, Any]) -> None:
        try:
            self._bus.tell({"verdicts": [{"id": row["id"], "attempt": row["attempt"], **verdict}]})
        except NotFound as e:
            log.info("no verdict is wanted any more: %s", e)
