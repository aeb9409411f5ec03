"""What `parse` and `decide` ask of a model, and what is made of its answer. Pure.

A grammar makes the answer JSON of the right types. Bounds, patterns and whatever else the grammar leaves open is checked
here; an answer that fails is asked for once more, with the fault named, and then it fails for good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, NoReturn

from ....bus.errors import DefinitionError, RigbusError
from ..protocol import GenerateRequest, GenerateResult
from .validation import Schema

TEXT_TOKENS: Final = 256  #: `max_tokens` of generate where nobody says
ANSWER_TOKENS: Final = 512  #: `max_tokens` of parse where nobody says
#: `max_tokens` of decide, and the characters of its parts: at four tokens a character, the worst that a vocabulary of
#: bytes can do, a decision is still not cut off.
DECISION_TOKENS: Final = 1024
REASON_CHARS: Final = 180
DECISION_CHARS: Final = 60
MAX_CHOICES: Final = 100
MAX_CHOICE_CHARS: Final = 200
PARSE_TASK: Final = "Give what the following text says as JSON."
#: A longer schema only constrains the answer: it would take more of the context than it explains.
SHOWN_SCHEMA_CHARS: Final = 4000
_SHOWN_ANSWER_CHARS: Final = 4000
Messages = Sequence[Mapping[str, str]]


class AnswerInvalid(RigbusError):
    """The model's answer is not of its schema, after one repair. Another attempt may succeed: class ``task``."""

    error_class: ClassVar[str] = "task"


def add_parts(
    prompt: str | None, messages: Messages | None, parts: Sequence[str | None]
) -> tuple[str | None, Messages | None]:
    """The prompt, or else the last message of the user, with further paragraphs behind it."""
    text = "\n\n".join(part for part in parts if part)
    if not text or (prompt is not None and messages is not None) or messages == []:
        return prompt, messages  # what is wrong with them, the request says
    if messages is None:
        return (f"{prompt}\n\n{text}" if prompt else text), None
    if messages[-1].get("role") == "user":
        last = {"role": "user", "content": f"{messages[-1].get('content', '')}\n\n{text}"}
        return None, [*messages[:-1], last]
    return None, [*messages, {"role": "user", "content": text}]


def shown_schema(schema: Mapping[str, Any]) -> str | None:
    """The paragraph that tells the model what its answer is to look like; None for a schema that is long."""
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return f"Answer with JSON of this schema: {text}" if len(text) <= SHOWN_SCHEMA_CHARS else None


def shown_choices(choices: Sequence[str] | None) -> str:
    """The paragraph that lists what may be decided."""
    if choices is None:
        return "Give the reason first, then the decision."
    lines = "\n".join(f"- {choice}" for choice in choices)
    return f"Choose one of:\n{lines}\nGive the reason first, then the decision."


def decision_schema(choices: Sequence[str] | None) -> dict[str, Any]:
    """The schema of a decision. The reason stands first: a model that writes it after the decision only defends it.

    Raises:
        DefinitionError: no choices, one twice, an empty one, or too many.
    """
    if choices is not None:
        if not 1 <= len(choices) <= MAX_CHOICES:
            raise DefinitionError(
                f'decide: field "choices" has {len(choices)} texts; give 1 to {MAX_CHOICES}'
            )
        for i, choice in enumerate(choices):
            if not 1 <= len(choice.strip()) <= MAX_CHOICE_CHARS:
                raise DefinitionError(
                    f'decide: field "choices": number {i + 1} has {len(choice)} characters; 1 to {MAX_CHOICE_CHARS}'
                )
            if choice in choices[:i]:
                raise DefinitionError(f'decide: field "choices" has {choice!r} twice; drop one')
    text = {"type": "string"}
    decision = text | {"maxLength": DECISION_CHARS} if choices is None else {"enum": [*choices]}
    return {
        "type": "object",
        "properties": {"reason": text | {"maxLength": REASON_CHARS}, "decision": decision},
        "required": ["reason", "decision"],
        "additionalProperties": False,
    }


def checked_decision(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The part of :func:`decision_schema` that makes an answer wrong: how long its texts are only saves tokens."""
    free = {
        name: {key: value for key, value in one.items() if key != "maxLength"}
        for name, one in schema["properties"].items()
    }
    return {**schema, "properties": free}


def shortened(result: GenerateResult, max_tokens: int) -> str:
    """What is to be said of an answer that ended before its ``max_tokens`` for want of room; "" of any other.

    Of a server that counts no tokens nothing is known.
    """
    usage = result.usage
    if usage.finish != "length" or not usage.prompt_tokens or usage.completion_tokens >= max_tokens:
        return ""
    return (
        f"it was cut off after {usage.completion_tokens} of {max_tokens} tokens: the context of model {result.model} was full "
        f"(its prompt has {usage.prompt_tokens} tokens); shorten the prompt, or give the model a larger ctx"
    )


def read_answer(result: GenerateResult, schema: Schema, max_tokens: int) -> tuple[Any, str]:
    """(the value, what is wrong with it: empty for a good one). ``max_tokens``: what was asked for.

    Raises:
        DefinitionError: the schema cannot be checked (see ``Schema.faults``).
    """
    try:
        value = json.loads(result.text, parse_constant=_no_number)
    except RecursionError:
        return None, "it is nested too deeply"
    except ValueError as e:
        if result.usage.finish == "length":
            limit = f"it was cut off at max_tokens ({max_tokens}), before its end: it must be shorter, or may have more"
            return None, shortened(result, max_tokens) or limit
        return None, f"it is no JSON ({e})"
    return value, "; ".join(str(fault) for fault in schema.faults(value))


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def repair_request(request: GenerateRequest, answer: str, fault: str) -> GenerateRequest:
    """The same question once more, with the first answer and what is wrong with it."""
    answer = answer[:_SHOWN_ANSWER_CHARS]
    told = f"That answer is not valid: {fault}.\nGive the whole answer again, corrected."
    if request.messages is not None:
        more = [{"role": "assistant", "content": answer}, {"role": "user", "content": told}]
        return replace(request, messages=[*request.messages, *more])
    return replace(request, prompt=f"{request.prompt}\n\nAn earlier answer was:\n{answer}\n\n{told}")


def answer_map(results: Sequence[GenerateResult], value: Any) -> dict[str, Any]:
    """The value of a `parse` task: that of `generate` for the last of ``results``, with what all of them took.

    ``repaired``: the first answer was not valid.
    """
    maps = [result.to_map() for result in results]
    last = maps[-1]
    for part in ("usage", "timings"):
        last[part] = {name: sum(one[part][name] for one in maps) for name in last[part]}
    last["timings"]["load_s"] = results[-1].usage.load_s  # the model was loaded once
    return {**last, "json": value, "repaired": len(maps) > 1}


def decision_map(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The value of a `decide` task: ``decision`` and ``reason`` beside the answer, as far as its schema has them."""
    value = answer["json"]
    if not isinstance(value, dict):
        return {"decision": value, "reason": None, **answer}
    return {"decision": value.get("decision"), "reason": value.get("reason"), **answer}
