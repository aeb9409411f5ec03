"""The plan as data: what the parser makes, what the brain runs.

Field names are those of the plan file. ``None`` means "not said": the default is the reader's. Models are
frozen: a plan never changes after it was parsed.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import PlanFault

Executor = Literal["worker", "brain"]
TaskClass = Literal["cpu", "script", "llm", "brain", "meta"]
OnFailure = Literal["abort", "continue"]
Priority = Literal["low", "normal", "high", "urgent"]

#: The numbers that the task files carry for the four words.
PRIORITY_LEVELS: Final[dict[str, int]] = {"low": 3, "normal": 5, "high": 8, "urgent": 10}
#: How long an attempt may run where neither the task nor the plan says.
DEFAULT_TIMEOUT_S: Final = 1800.0


#: MiB of a card that a task of class ``script`` takes where its plan gives no estimate, as in the earlier system.
DEFAULT_VRAM_MB: Final = 1024
#: 16 TiB: more is a slip of the pen.
MAX_VRAM_MB: Final = 2**24


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Frozen):
    """One line of ``## Inputs``. ``default`` is plain text; it may name the built-in variables."""

    name: str
    text: str = ""
    default: str | None = None
    line: int = 0


class Settings(_Frozen):
    """What holds for every task of the plan that does not say otherwise."""

    on_failure: OnFailure | None = None
    priority: Priority | None = None
    timeout_s: float | None = None
    max_attempts: int | None = None


class Foreach(_Frozen):
    """``source:json_path``: one task for each element of a list in a JSON file."""

    source: str
    json_path: str


class ItemDependency(_Frozen):
    """``template_{ITEM.path}`` in depends_on: the task that ``template`` made for the same item.

    ``path`` is the dotted field of the item, empty for ``{ITEM}`` itself.
    """

    template: str
    path: str = ""


class PlanTask(_Frozen):
    """One ``### id`` of ``## Tasks``, or one step of a ``## Workflow``.

    ``line`` is that of the heading; ``lines`` gives the line where each written field's text starts. Exactly one
    of ``command`` and ``argv`` is set for the type ``shell``. Durations are seconds.
    """

    id: str
    line: int = 0
    lines: dict[str, int] = Field(default_factory=dict, exclude=True, repr=False)
    type: str = "shell"
    executor: Executor = "worker"
    task_class: TaskClass = "cpu"
    task_class_inferred: bool = False
    #: Its command does not tell its class for sure: who reads what it starts may know better than the rule.
    task_class_unsure: bool = False
    #: Who said its class in the end, in words; the brain fills it in.
    task_class_fix: str = ""
    command: str | None = None
    argv: list[str] | None = None
    depends_on: list[str] = Field(default_factory=list)
    item_depends_on: list[ItemDependency] = Field(default_factory=list)
    foreach: Foreach | None = None
    batch_size: int = 1
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    no_progress_s: float | None = None
    max_attempts: int | None = None
    backoff_s: float | None = None
    on_failure: OnFailure | None = None
    #: True, or the criteria in words.
    evaluate: bool | str = False
    requires: list[str] = Field(default_factory=list)
    produces: list[str] = Field(default_factory=list)
    pool: str | None = None
    needs: list[str] = Field(default_factory=list)
    priority: Priority | None = None
    llm_model: str | None = None
    llm_min_tier: int | None = None
    llm_placement: Literal["single_gpu", "split_gpu"] | None = None
    vram_policy: Literal["default", "infer", "fixed"] | None = None
    vram_estimate_mb: int | None = None
    prompt: str | None = None
    #: The schema itself, or the path of a JSON file that holds it.
    json_schema: dict[str, Any] | str | None = None
    output: str | None = None
    #: What `parse` and `embed` read: the text itself, or (any of a model's types) the path of a text file.
    text: str | None = None
    input: str | None = None
    #: What `decide` chooses from.
    choices: list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    #: The answer ends before the first of these texts.
    stop: list[str] | None = None

    @property
    def vram_mb(self) -> int | None:
        """MiB of a card's memory that it is taken to need: its estimate, else the default; None for other classes.

        A worker without a card asks nobody for this. ``vram_policy: infer`` is answered by the default as well.
        """
        return (self.vram_estimate_mb or DEFAULT_VRAM_MB) if self.task_class == "script" else None

    def line_of(self, field: str) -> int:
        """The line where ``field`` was written, else that of the task's heading."""
        return self.lines.get(field, self.line)

    def texts(self) -> list[tuple[str, str]]:
        """(field, text) of everything in which a variable may stand."""
        names = ("command", "prompt", "text", "input", "output", "llm_model")
        found = [(name, getattr(self, name)) for name in names]
        found += [("choices", choice) for choice in self.choices or []]
        found += [("argv", word) for word in self.argv or []]
        found += [("requires", path) for path in self.requires]
        found += [("produces", path) for path in self.produces]
        if self.foreach is not None:
            found.append(("foreach", self.foreach.source))
        if isinstance(self.json_schema, str):
            found.append(("json_schema", self.json_schema))
        return [(field, text) for field, text in found if text is not None]


class Plan(_Frozen):
    """A parsed plan. ``name`` is its folder's; ``title`` what ``# Plan:`` says; tasks stand in file order."""

    name: str
    title: str = ""
    file: str = "plan.md"
    goal: str = ""
    inputs: dict[str, InputSpec] = Field(default_factory=dict)
    tasks: list[PlanTask]
    settings: Settings = Field(default_factory=Settings)
    warnings: list[PlanFault] = Field(default_factory=list)
    #: The lines of the plan file, for messages.
    source: list[str] = Field(default_factory=list, exclude=True, repr=False)

    def by_id(self) -> dict[str, PlanTask]:
        """The tasks by their id."""
        return {task.id: task for task in self.tasks}

    def timeout_s(self, task: PlanTask) -> float:
        """Seconds that one attempt of ``task`` may run: the task's, else the plan's, else 1800."""
        return task.timeout_s or self.settings.timeout_s or DEFAULT_TIMEOUT_S

    def priority_of(self, task: PlanTask) -> Priority:
        """The task's priority, else the plan's, else normal."""
        return task.priority or self.settings.priority or "normal"
