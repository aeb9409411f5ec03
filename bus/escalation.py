"""What the rig could not settle by itself, and what may be answered: `brain/escalations/*.json` and its answers.

The ladder is worker -> brain -> planner -> human; each level mends its own faults only. An escalation is the step from
the brain to the planner: a file with the evidence, which anybody who reads the share can answer with a file beside it.
The field names of the earlier system come first (its readers know them); what was added has the schema's name. Inside a
major version fields are only added, so unknown ones in an escalation are allowed; in an answer, which acts, they are
errors.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .shapes import Open

FOLDER: Final = (
    "brain/escalations"  #: in the share; `<YYYYmmdd_HHMMSS>_<8hex>.json`, named by the escalation's id
)
ANSWER_SUFFIX: Final = ".answer.json"  #: `<id>.answer.json` beside it, written by temp+rename
RECEIPT_SUFFIX: Final = ".answer.receipt.json"  #: accepted or refused, with what, where and the fix
MAX_ANSWER_BYTES: Final = 1 << 20
MAX_FILES: Final = 64

Kind = Literal["execute_plan_failure", "verification_failure", "infrastructure_failure"]
State = Literal["pending", "answered", "applied", "human", "closed"]
Action = Literal["retry", "patch", "config", "abandon", "human"]


class SourceTask(Open):
    """The task that it is about, as the earlier system names it."""

    task_id: str | None = None
    type: str | None = None
    name: str | None = None
    batch_id: str | None = None
    plan_path: str | None = None
    config: dict[str, Any] | None = None


class Attempt(Open):
    """One run of the task: where, how it ended, and the last lines that it wrote."""

    attempt: int = Field(ge=1)
    worker: str | None = None
    started_at: str | None = Field(default=None, description="naive local ISO-8601, as all times here")
    ended_at: str | None = None
    error_class: str | None = Field(default=None, description="task, crash, infra, definition, quality")
    error: str | None = None
    log: str | None = Field(
        default=None, description="path in the share of what it wrote, when it was copied"
    )
    log_tail: list[str] | None = Field(default=None, description="its last lines")


class Escalation(Open):
    """One file of `brain/escalations/`."""

    schema_: Literal["rigbus.escalation/1"] = Field(default="rigbus.escalation/1", alias="schema")
    escalation_id: str
    created_at: str
    status: State = Field(
        description="pending: nobody has answered; answered: an answer is being applied; applied, closed: over; "
        "human: the planner gave it to a person"
    )
    target: str = Field(default="cloud_brain", description="who is asked next")
    source: str = "local_brain"
    brain_name: str | None = None
    hostname: str | None = None
    type: Kind
    title: str
    details: dict[str, Any] = Field(
        default_factory=dict, description="`context` has what belongs to the type"
    )
    recommended_action: str = "diagnose_and_resubmit_plan"
    source_task: SourceTask | None = None
    cause: str = Field(
        default="", description="plan_fault, repeated_failures, unfixable_definition or workers_unhealthy"
    )
    tried: list[str] = Field(default_factory=list, description="what the rig has done about it, in order")
    attempts: list[Attempt] = Field(default_factory=list)
    plan_sha256: str | None = Field(
        default=None, description="the revision that failed; an answer may name it"
    )
    plan: str | None = None
    revision: int = Field(default=1, ge=1, description="of the batch's plan")
    actions: list[Action] = Field(default_factory=list, description="which answers would be taken now")
    answer_to: str = Field(default="", description="path in the share of the file to write")
    answers_left: int | None = Field(
        default=None, ge=0, description="of this batch, before only people may answer"
    )


def _plain_path(path: str) -> str:
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ValueError("a path inside the plan's folder, with /, without control characters")
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts) or len(path.encode()) > 255:
        raise ValueError("no part of a path may be empty, start with a dot, or leave the plan's folder")
    return path


PlanPath = Annotated[str, AfterValidator(_plain_path)]
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f/]{1,200}\Z")


class Answer(BaseModel):
    """What a planner or a person says to one escalation. It acts, so what is unknown in it is an error.

    ``retry``: the failed tasks (or ``tasks``, by name) run again, as they are. ``patch``: ``files`` replace or add files of the
    plan's folder (a ``plan.md`` among them, or a script), as a new revision; what is done stays done. ``config``: the plan again
    with these values beside its own. ``abandon``: the batch ends as it is. ``human``: the one who answers cannot; a person shall.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: Literal["rigbus.answer/1"] = Field(default="rigbus.answer/1", alias="schema")
    escalation_id: str
    action: Action
    tasks: list[str] = Field(default_factory=list, max_length=1000)
    files: dict[PlanPath, str] = Field(default_factory=dict, max_length=MAX_FILES)
    config: dict[str, Any] = Field(default_factory=dict)
    plan_sha256: str | None = Field(
        default=None, description="the revision that it was made for; another one by then refuses it"
    )
    note: str = Field(default="", max_length=4000, description="the diagnosis, for people")
    by: str = Field(default="", max_length=100, description="who says so")

    @model_validator(mode="after")
    def _belongs_together(self) -> Answer:
        if self.action == "patch" and not self.files:
            raise ValueError('`patch` has `files`: {"scripts/x.py": "the whole new text", …}')
        if self.action != "patch" and self.files:
            raise ValueError(f"`files` belongs to `patch`, not to `{self.action}`")
        if self.action == "config" and not self.config:
            raise ValueError('`config` has `config`: {"KEY": "value", …}')
        if self.action not in ("config", "patch") and self.config:
            raise ValueError(f"`config` belongs to `config` or `patch`, not to `{self.action}`")
        if self.action != "retry" and self.tasks:
            raise ValueError(f"`tasks` belongs to `retry`, not to `{self.action}`")
        if any(not _NAME.match(name) for name in self.tasks):
            raise ValueError("`tasks` has names of the plan's tasks, of 1 to 200 characters")
        return self


def answer_path(escalation_id: str) -> str:
    """Where in the share the answer to it is written."""
    return f"{FOLDER}/{escalation_id}{ANSWER_SUFFIX}"
