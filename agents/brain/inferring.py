"""Classes that a plan leaves open and no rule tells: a model is asked by a task of the plan's own batch (docs/adr/0018).

The brain waits for nobody: it declares the question (PROTOCOL §5, ``aside``), and its end, or the passing of its deadline, is an
event that brings the batch back here. A brain that dies meanwhile leaves the question and its answer with the broker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ...bus.core.model import task_id
from ...plans.model import Plan
from .class_questions import (
    ASKED_AT_ONCE,
    MAX_ASKS,
    SCRIPT_BYTES,
    Answer,
    Classes,
    Question,
    asks_of,
    by_rule,
    payload_of,
    questions_of,
    read_answers,
)
from .messages import Message, Run, Unplannable

log = logging.getLogger(__name__)

TYPE: Final = "decide"
CLASS: Final = "llm"
#: No task of a plan has a colon in its id.
_KEY: Final = "plan:classes.{0}"
_KEY_OF_REVISION: Final = "plan:classes@{1}.{0}"
NO_MODEL: Final = "no model is configured, and no worker offers one"
OFF: Final = "[brain] infer_wait_s is 0"
MORE: Final = f"{ASKED_AT_ONCE * MAX_ASKS} other commands of the plan were asked about"
_ENDED: Final = frozenset({"done", "dead", "cancelled", "expired", "skipped"})


class Bus(Protocol):
    """What the brain's process offers to this part of it."""

    def tell(
        self, header: dict[str, Any], message: Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        """One atomic BRAIN message; the broker's answer."""

    def rows(self, ids: list[str]) -> list[dict[str, Any]]:
        """Tasks as QUERY shows them."""

    def workers(self) -> list[dict[str, Any]]:
        """The workers as QUERY shows them."""

    def value(self, task: str) -> Any:
        """A recorded result."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Whether a model is asked. ``expected``: the configuration names one, so it may be waited for until it is there;
    ``wait_s``: how long a plan waits for its answer, 0 for not at all."""

    expected: bool = False
    wait_s: float = 30.0


class Inferring:
    """Asks for the classes of a plan before its tasks are declared."""

    def __init__(self, bus: Bus, asking: Asking | None = None) -> None:
        self._bus = bus
        self._asking = asking or Asking()

    def step(self, batch: Mapping[str, Any], run: Run, plan: Plan) -> Classes | None:
        """What holds for the commands of ``plan`` whose class is not sure; None while a model is asked.

        The same rows give the same answer, so whoever asks again gets it again.
        """
        questions = questions_of(plan)
        if not questions:
            return Classes({})
        if not self._asking.wait_s:
            return Classes({}, OFF)
        key_of = _KEY if run.revision == 1 else _KEY_OF_REVISION
        asks = {
            key_of.format(number, run.revision): asked for number, asked in enumerate(asks_of(questions), 1)
        }
        found = {row["key"]: row for row in self._bus.rows([task_id(run.batch, key) for key in asks])}
        missing = {key: asked for key, asked in asks.items() if key not in found}
        if missing and not (self._asking.expected or self._is_offered()):
            if not found:
                return Classes({}, NO_MODEL)
            missing = {}  # whoever answered the others is gone
        if missing:
            self._ask(batch, run, plan, missing)
            return None
        if any(row["state"] not in _ENDED and not row["ending"] for row in found.values()):
            return None
        answers = self._answers(found.values(), questions)
        rest = MORE if len(questions) > ASKED_AT_ONCE * MAX_ASKS else NO_MODEL
        return Classes(answers, rest)

    def _is_offered(self) -> bool:
        return any(TYPE in w["types"] and CLASS in w["classes"] for w in self._bus.workers())

    def _ask(
        self, batch: Mapping[str, Any], run: Run, plan: Plan, asks: Mapping[str, Sequence[Question]]
    ) -> None:
        message = Message()
        staged = Path(run.staged)
        for key, questions in asks.items():
            spec = {
                "key": key,
                "type": TYPE,
                "class": CLASS,
                "aside": True,
                "priority": batch["priority"],
                "deadline_s": self._asking.wait_s,
                "policy": {"task": 1},
                "meta": {"executor": "brain", "name": key, "questions": [one.key for one in questions]},
            }
            payload = payload_of(plan, questions, lambda name: script_head(staged, name))
            message.add(spec, payload)
        self._bus.tell({}, message, run.batch)
        log.info(
            "%s waits for a model to say the classes of %d commands", run.batch, sum(map(len, asks.values()))
        )

    def _answers(self, rows: Iterable[Mapping[str, Any]], questions: Sequence[Question]) -> dict[str, Answer]:
        """The answer to each question that was asked: the model's, or why it is the rule's."""
        by_key = {question.key: question for question in questions}
        answers: dict[str, Answer] = {}
        for row in rows:
            # what it was asked, whatever this build would ask
            asked = [str(key) for key in (row.get("meta") or {}).get("questions") or ()]
            said, why = self._said(row, asked)
            for key in asked:
                if key in said:
                    answers[key] = said[key]
                elif key in by_key:
                    answers[key] = by_rule(by_key[key], why)
        return answers

    def _said(self, row: Mapping[str, Any], asked: Sequence[str]) -> tuple[dict[str, Answer], str]:
        """(the answers that a question got by their keys, why there are no others)."""
        if row["state"] == "done":
            try:
                value = self._bus.value(row["id"])
            except Unplannable as e:
                return {}, f"the model's answer cannot be read: {e}"
            return read_answers(value, asked), "what the model answered is no class"
        if row["state"] == "expired" or row["ending"]:
            return {}, f"no model answered in {self._asking.wait_s:g} s"
        return {}, f"the question to the model ended {row['state']} ({row.get('error') or 'no reason given'})"


def script_head(staged: Path, name: str) -> str:
    """The beginning of a text file of a staged plan; empty where there is none, or it is no text."""
    try:
        root, path = staged.resolve(), (staged / name).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return ""
        with path.open("rb") as file:
            data = file.read(SCRIPT_BYTES)
    except OSError:
        return ""
    return "" if b"\0" in data else data.decode("utf-8", "replace")
