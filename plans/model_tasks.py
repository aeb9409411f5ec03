"""The tasks that a model answers — `generate`, `parse`, `decide`, `embed` — and what each of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .errors import FaultList
from .markdown import Field, unquote

MODEL_TYPES: Final = ("generate", "parse", "decide", "embed")
#: Which model is loaded where is asked for by these; the rig does it, no worker runs them.
PLACEMENT_TYPES: Final = ("load_llm", "unload_llm")
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_CHOICES: Final = 100
MAX_CHOICE_CHARS: Final = 200
_SAMPLING: Final = frozenset({"max_tokens", "temperature", "seed", "stop"})
#: The fields that a model's task may have beside those of every task.
TAKES: Final[Mapping[str, frozenset[str]]] = {
    "generate": frozenset({"prompt", "input", "json_schema", "output"}) | _SAMPLING,
    "parse": frozenset({"prompt", "text", "input", "json_schema", "output"}) | _SAMPLING,
    "decide": frozenset({"prompt", "input", "choices", "json_schema", "output"}) | _SAMPLING,
    "embed": frozenset({"text", "input", "output"}),
}
MODEL_FIELDS: Final = frozenset().union(*TAKES.values())


def check_model_task(values: dict[str, Any], fields: Mapping[str, Field], faults: FaultList) -> None:
    """What a task of a model lacks, has twice, or has without effect. Types of one's own may take any of these fields."""
    kind = values.get("type", "shell")
    if kind in TAKES:
        _check_needed(kind, values["id"], values["line"], fields, faults)
        _check_texts(values, fields, faults)
    elif kind != "shell":
        return
    for name in sorted(MODEL_FIELDS & set(fields)):
        if name not in TAKES.get(kind, ()):
            users = ", ".join(one for one in MODEL_TYPES if name in TAKES[one])
            faults.warning(
                fields[name].line,
                f"{name} has no effect on the type {kind}",
                f"drop it, or use a type that takes it: {users}",
                mark=fields[name].written,
            )


def _check_needed(kind: str, name: str, line: int, fields: Mapping[str, Field], faults: FaultList) -> None:
    if kind in ("generate", "decide") and "prompt" not in fields:
        faults.error(line, f"task {name!r} of type {kind} has no prompt", "add `- **prompt**: …`")
    elif kind == "parse" and not {"text", "input", "prompt"} & set(fields):
        fix = "add `- **text**: …`, or `- **input**:` with the path of a text file"
        faults.error(line, f"task {name!r} of type parse has nothing to read", fix)
    elif kind == "embed" and not {"text", "input"} & set(fields):
        fix = "add `- **text**: …`, or `- **input**:` with the path of a text file"
        faults.error(line, f"task {name!r} of type embed has no text", fix)
    if kind == "parse" and "json_schema" not in fields:
        fix = "add `- **json_schema**:` with a schema or the path of a .json file"
        faults.error(line, f"task {name!r} of type parse has no json_schema", fix)
    for one, other in (("text", "input"), ("choices", "json_schema")):
        if one in TAKES[kind] and one in fields and other in fields:
            faults.error(
                fields[other].line,
                f"task {name!r} has both {one} and {other}",
                "keep one of them",
                mark=fields[other].written,
            )


def _check_texts(values: Mapping[str, Any], fields: Mapping[str, Field], faults: FaultList) -> None:
    """Bounds of the lists of texts."""
    for name, most, chars in (
        ("stop", MAX_STOPS, MAX_STOP_CHARS),
        ("choices", MAX_CHOICES, MAX_CHOICE_CHARS),
    ):
        texts = values.get(name) or []
        if len(texts) > most:
            faults.error(fields[name].line, f"{name} has {len(texts)} texts", f"write at most {most}")
        for text in texts:
            if len(text) > chars or not text.strip(" \t") or (name == "choices" and texts.count(text) > 1):
                why = "stands twice" if texts.count(text) > 1 else f"has {len(text)} characters, 1 to {chars}"
                faults.error(fields[name].line, f"{name}: {text[:40]!r} {why}", "correct it", mark=text[:40])
                break


def settle_model_class(values: dict[str, Any], fields: Mapping[str, Field], faults: FaultList) -> None:
    """A model's task is of class ``llm``, whatever is written: no other worker has a model."""
    written = fields.get("task_class")
    values.update(executor="worker", task_class="llm", task_class_inferred=written is None)
    if written is not None and unquote(written.text).lower() != "llm":
        faults.warning(
            written.line,
            f"a task of type {values['type']} is of class llm, not {written.value[:40]!r}",
            "write `- **task_class**: llm`, or drop the line",
            mark=written.value[:40],
        )
