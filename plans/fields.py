"""The fields of a task and how each value is read; the names are those of INTERFACE, in one table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Final, get_args

from .keys import is_plain_name
from .markdown import Field, code_span, unquote, without_remark
from .model import MAX_VRAM_MB, ItemDependency, OnFailure, Priority, TaskClass

MAX_COMMAND_BYTES: Final = 64 * 1024
_NOTHING: Final = ("", "none", "null", "nothing", "-", "[]", "n/a")


class FieldError(ValueError):
    """A value that cannot be read; ``what`` and ``fix`` are for people."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.what = what
        self.fix = fix


def read_word(field: Field) -> str:
    """A short text without backticks or quotes."""
    text = unquote(field.text)
    if not text:
        raise FieldError(
            f"{field.written} is empty", f"write a value after **{field.written}**: or drop the line"
        )
    return text


def read_plain_name(field: Field) -> str:
    """A plain name, as for task types and pools."""
    text = read_word(field)
    if not is_plain_name(text):
        raise FieldError(
            f"{field.written} {text[:60]!r} is no plain name", "use letters, digits, . _ - (at most 64)"
        )
    return text


def read_integer(field: Field) -> int:
    """A whole number from 1."""
    text = unquote(field.text).replace("_", "")
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise FieldError(
            f"{field.written} is {text[:40]!r}, not a whole number from 1", f"write e.g. `{field.name}: 4`"
        )
    return int(text)


def read_megabytes(field: Field) -> int:
    """MiB of a card's memory."""
    megabytes = read_integer(field)
    if megabytes > MAX_VRAM_MB:
        raise FieldError(
            f"{field.written} is {megabytes} MiB, more than any card has",
            f"write MiB, e.g. `{field.name}: 2048`",
        )
    return megabytes


_UNITS: Final = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def read_seconds(field: Field) -> float:
    """A time above 0, in seconds; ``90``, ``1.5``, ``90 s``, ``10 min`` and ``2 h`` are understood."""
    text = unquote(field.text).lower()
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([a-z]*)", text)
    seconds = float(match.group(1)) * _UNITS[match.group(2)] if match and match.group(2) in _UNITS else 0.0
    seconds = round(seconds, 6)
    if not 0 < seconds < math.inf:
        raise FieldError(
            f"{field.written} is {text[:40]!r}, not a time above 0",
            f"write seconds, e.g. `{field.name}: 600`",
        )
    return seconds


def read_choice(field: Field, choices: tuple[str, ...]) -> str:
    """One of ``choices``, in any case."""
    text = unquote(field.text).lower()
    if text not in choices:
        near = get_close_matches(text, choices, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise FieldError(f"{field.written} is {text[:40]!r}", f"{hint}write one of: {', '.join(choices)}")
    return text


def read_priority(field: Field) -> str:
    """low, normal, high, urgent, or the earlier system's number from 1 to 10."""
    text = unquote(field.text)
    if re.fullmatch(r"[0-9]{1,2}", text):
        level = int(text)
        return "low" if level <= 3 else "normal" if level <= 5 else "high" if level <= 8 else "urgent"
    return read_choice(field, get_args(Priority))


def read_list(field: Field) -> list[str]:
    """``a, b``, ``["a", "b"]``, `` `a`, `b` ``, nested bullets; ``none`` and ``[]`` are the empty list."""
    text = ", ".join(field.items) if field.items else field.text
    text = without_remark(text)
    if text.strip("`\"' ").lower() in _NOTHING:
        return []
    # Brackets go only as the pair around the whole: a path may hold its own.
    text = text.strip("` \t")
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    names = (part.strip(" \t`\"'") for part in text.split(","))
    return list(dict.fromkeys(re.sub(r"\\([_*])", r"\1", name) for name in names if name))


_PER_ITEM = re.compile(r"(.+)_\{ITEM((?:\.[A-Za-z0-9_]+)*)\}")


def read_dependencies(field: Field) -> tuple[list[str], list[ItemDependency]]:
    """The plain ids, and the ``template_{ITEM.field}`` ones."""
    plain: list[str] = []
    per_item: list[ItemDependency] = []
    for name in read_list(field):
        match = _PER_ITEM.fullmatch(name)
        if match is not None:
            per_item.append(ItemDependency(template=match.group(1), path=match.group(2).lstrip(".")))
        else:
            plain.append(name)
    return plain, per_item


def read_foreach(field: Field) -> tuple[str, str]:
    """(source, JSON path), split at the last colon."""
    text = unquote(field.text)
    source, colon, path = text.rpartition(":")
    if not colon or not source.strip() or "{" in path or "/" in path:
        raise FieldError(
            f"foreach {text[:80]!r} has no JSON path behind a colon",
            "write path:jsonpath, e.g. {BATCH_PATH}/manifest.json:items",
        )
    return source.strip(), path.strip()


def read_command(field: Field) -> str:
    """The command: a fence below, the text from the first to the last backtick, or the rest of the line."""
    if field.fence is not None:
        command = field.fence.rstrip()
    elif "`" in field.text:
        command = _command_in_backticks(field)
    elif field.more and not field.value.endswith("\\"):
        raise FieldError(
            "the command goes over several lines without backticks",
            "put it into a fenced block below **command**:",
        )
    else:
        command = field.text
    if not command.strip():
        raise FieldError("the command is empty", "write it in backticks after **command**:")
    if len(command.encode("utf-8", "replace")) > MAX_COMMAND_BYTES:
        raise FieldError(
            f"the command is longer than {MAX_COMMAND_BYTES} bytes", "move it into a file below scripts/"
        )
    return command


def _command_in_backticks(field: Field) -> str:
    try:
        span = code_span(field.text)
    except ValueError:
        span = None
    if span is None:
        raise FieldError(
            "the command's backtick is never closed (is the file half written?)",
            "close it, or put the command into a fenced block",
        )
    return span[1]


def read_argv(field: Field) -> list[str]:
    """A JSON list of texts, or one nested bullet a word."""
    if field.items:
        return [unquote(item) for item in field.items]
    text = field.text
    if text.startswith("`"):
        text = text.strip("`").strip()
    fix = 'write a JSON list of texts, e.g. ["python3", "{PLAN_PATH}/x.py", "{ITEM.id}"]'
    try:
        words = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError("argv is no JSON list", fix) from error
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise FieldError("argv is no list of texts", fix)
    if not words[0]:
        raise FieldError("argv starts with an empty word", fix)
    return [str(word) for word in words]


def read_evaluate(field: Field) -> bool | str:
    """yes/no, or the criteria in words."""
    text = unquote(field.text)
    if text.lower() in ("yes", "true", "on", "1"):
        return True
    return False if text.lower() in (*_NOTHING, "no", "false", "off", "0") else text


def read_schema(field: Field) -> dict[str, Any] | str:
    """A JSON object, or the path of a .json file."""
    text = field.text
    if text.startswith("`"):
        text = text.strip("`").strip()
    if text.endswith(".json") and "\n" not in text:
        return text
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise FieldError("json_schema is no JSON object", "write the schema, or the path of a .json file")
    return schema


def read_prose(field: Field) -> str:
    """Running text: a fence below, or the line and its continuation."""
    if field.fence is not None and field.fence.strip():
        return field.fence.strip("\n")
    text = field.text or "\n".join(field.items)
    span = unquote(text) if text.startswith("`") and text.endswith("`") else text
    if not span:
        raise FieldError(f"{field.written} is empty", "write the text behind it or in a fence below")
    return span


MAX_TEMPERATURE: Final = 100.0
MAX_MODEL_CHARS: Final = 200
MAX_SEED: Final = 2**32 - 2  #: llama.cpp's seed has 32 bits, and its largest value means "any"


def read_temperature(field: Field) -> float:
    """A number from 0 to 100."""
    text = unquote(field.text)
    number = float(text) if re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{1,6})?", text) else -1.0
    if not 0 <= number <= MAX_TEMPERATURE:
        raise FieldError(
            f"{field.written} is {text[:40]!r}, not a number from 0 to {MAX_TEMPERATURE:g}",
            f"write e.g. `{field.name}: 0.7` (0: always the likeliest)",
        )
    return number


def read_seed(field: Field) -> int:
    """A whole number of 32 bits."""
    text = unquote(field.text)
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > MAX_SEED:
        raise FieldError(
            f"{field.written} is {text[:40]!r}, not a whole number from 0 to {MAX_SEED}",
            f"write e.g. `{field.name}: 1`, or drop the line for any",
        )
    return int(text)


def read_texts(field: Field) -> list[str]:
    """Texts as they stand: a JSON list, nested bullets, or one text alone. Unlike in names, commas part nothing."""
    if field.items:
        return [unquote(item) for item in field.items]
    text = field.text
    inner = text.strip("`").strip() if text.startswith("`") else text
    if not inner.startswith("["):
        return [read_word(field)]
    try:
        texts = json.loads(inner)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one for one in texts):
        raise FieldError(f"{field.written} is no list of texts", 'write a JSON list, e.g. ["yes", "no"]')
    return [str(one) for one in texts]


def read_model_name(field: Field) -> str:
    """The name of a model in the catalogue, or a variable that holds it; not one of an item."""
    text = read_word(field)
    if "{ITEM" in text:
        raise FieldError(
            f"{field.written} names {{ITEM…}}", "all tasks of a template have one model: write its name"
        )
    if len(text) > MAX_MODEL_CHARS:
        raise FieldError(
            f"{field.written} has {len(text)} characters, at most {MAX_MODEL_CHARS}", "write a model's name"
        )
    return text


#: Field → its reader, for those whose value goes into the model as it is read.
READERS: Final[dict[str, Callable[[Field], Any]]] = {
    "type": read_plain_name,
    "command": read_command,
    "argv": read_argv,
    "batch_size": read_integer,
    "timeout_s": read_seconds,
    "queue_timeout_s": read_seconds,
    "no_progress_s": read_seconds,
    "backoff_s": read_seconds,
    "max_attempts": read_integer,
    "on_failure": lambda field: read_choice(field, get_args(OnFailure)),
    "evaluate": read_evaluate,
    "requires": read_list,
    "produces": read_list,
    "pool": read_plain_name,
    "needs": read_list,
    "priority": read_priority,
    "llm_model": read_model_name,
    "llm_min_tier": read_integer,
    "llm_placement": lambda field: read_choice(field, ("single_gpu", "split_gpu")),
    "vram_policy": lambda field: read_choice(field, ("default", "infer", "fixed")),
    "vram_estimate_mb": read_megabytes,
    "prompt": read_prose,
    "json_schema": read_schema,
    "output": read_word,
    "text": read_prose,
    "input": read_word,
    "choices": read_texts,
    "max_tokens": read_integer,
    "temperature": read_temperature,
    "seed": read_seed,
    "stop": read_texts,
}
#: Fields that the parser reads by hand, because they set more than one thing or depend on another.
SPECIAL: Final = ("executor", "task_class", "depends_on", "foreach")
TASK_FIELDS: Final = frozenset(READERS) | frozenset(SPECIAL)
SETTING_FIELDS: Final = frozenset({"on_failure", "priority", "timeout_s", "max_attempts"})

_CLASS_ALIASES: Final = {"resource": "meta"}


def known_class(text: str) -> TaskClass | None:
    """The class named by ``text``, in any case; ``None`` where there is none."""
    name = _CLASS_ALIASES.get(text.lower(), text.lower())
    return next((one for one in get_args(TaskClass) if one == name), None)
