"""``ModelTasks``: the task types that a model answers, as handlers: `generate`, `parse`, `decide`, `embed`.

Who opens the model, and what it offers, is said by the agent that inherits them (``llm.py``). What is asked of a model
and made of its answer is in ``models/answers.py``, which is pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..bus.errors import DefinitionError
from .base import Agent, handler
from .models.files import read_schema
from .models.protocol import EmbedRequest, GenerateRequest, GenerateResult, Model, collect, gather
from .models.tasks.answers import (
    ANSWER_TOKENS,
    DECISION_TOKENS,
    PARSE_TASK,
    TEXT_TOKENS,
    AnswerInvalid,
    Messages,
    add_parts,
    answer_map,
    checked_decision,
    decision_map,
    decision_schema,
    read_answer,
    repair_request,
    shortened,
    shown_choices,
    shown_schema,
)
from .models.tasks.feedback import with_feedback
from .models.tasks.keeping import keep_text
from .models.tasks.reading import read_input
from .models.tasks.validation import Schema

MAX_TEXTS: Final = 1024  #: of one `embed`
SIGNS: Final = 20  #: of life that an answer gives on its way to max_tokens


class ModelTasks(Agent):
    """Answers with ``model``, which a subclass sets in its ``on_start``.

    ``max_tokens`` of an answer, where a request names no number; None: by the type of the task. ``also``: other names that
    mean the model.
    """

    model: Model
    max_tokens: int | None = None
    also: Sequence[str] = ()

    @handler("generate", cls="llm")
    def generate(
        self,
        prompt: str | None = None,
        messages: list[dict[str, str]] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        json_schema: dict[str, Any] | str | None = None,
        model: str | None = None,
        output: str | None = None,
        input: str | None = None,
        plan: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """One text (see ``GenerateRequest``): ``{"text", "json", "model", "finish", "usage", "timings"}``.

        ``json`` is what the text says, where a ``json_schema`` (or the path of its file on this machine) was given and the
        text is whole. ``input``: a text file of the ``plan`` whose text stands behind the prompt. ``output``: a file that
        gets the text, too.
        """
        self._check_model("generate", model)
        prompt, asked = add_parts(prompt, messages, [self._material("generate", None, input, plan)])
        prompt, asked = with_feedback(prompt, asked, self.task.feedback)
        most = self._most(max_tokens, TEXT_TOKENS)
        request = _request("generate", prompt, asked, most, temperature, seed, stop, _schema(json_schema))
        as_json = json_schema is not None
        result = self._collect(request, lambda text: self.task.progress(data=text), as_json=as_json)
        if output is not None and result.usage.finish != "cancelled":
            keep_text(Path(output), result.text)
        return result.to_map()

    @handler("parse", cls="llm")
    def parse(
        self,
        json_schema: dict[str, Any] | str,
        text: str | None = None,
        input: str | None = None,
        prompt: str | None = None,
        messages: list[dict[str, str]] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        model: str | None = None,
        output: str | None = None,
        plan: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """What a text says, as JSON of a schema: the map of `generate`, and ``repaired``.

        ``text`` (or ``input``, a text file of the ``plan``) is what is read; ``prompt`` or ``messages`` say how. The answer
        is checked against the whole schema; one that is not of it is asked for once more with the fault named, and then
        fails as class ``task``. ``output``: a file that gets the JSON.
        """
        self._check_model("parse", model)
        schema = _schema(json_schema)
        material = self._material("parse", text, input, plan)
        if prompt is None and messages is None:
            if material is None:
                raise DefinitionError(
                    'parse: there is nothing to read; give "text", "input", "prompt" or "messages"'
                )
            prompt = PARSE_TASK
        prompt, asked = add_parts(prompt, messages, [material, shown_schema(schema or {})])
        prompt, asked = with_feedback(prompt, asked, self.task.feedback)
        most = self._most(max_tokens, ANSWER_TOKENS)
        request = _request("parse", prompt, asked, most, temperature, seed, stop, schema)
        return self._keep(self._answer("parse", request, Schema(schema or {})), output)

    @handler("decide", cls="llm")
    def decide(
        self,
        prompt: str | None = None,
        messages: list[dict[str, str]] | None = None,
        choices: list[str] | None = None,
        json_schema: dict[str, Any] | str | None = None,
        input: str | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        model: str | None = None,
        output: str | None = None,
        plan: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """One of ``choices``, or what the question leads to, with its reason: the map of `parse`, ``decision``, ``reason``.

        A ``json_schema`` of one's own takes the place of choices; ``decision`` and ``reason`` are then its properties of
        these names. Checked and repaired as in `parse`.
        """
        self._check_model("decide", model)
        if choices is not None and json_schema is not None:
            raise DefinitionError(
                'decide: both "choices" and "json_schema" are given; put the choices into the schema'
            )
        schema = _schema(json_schema)
        told = shown_choices(choices) if schema is None else shown_schema(schema)
        material = self._material("decide", None, input, plan)
        asked: Messages | None = messages
        if prompt is not None or messages is not None:  # else the request says that the question is missing
            prompt, asked = add_parts(prompt, messages, [material, told])
        prompt, asked = with_feedback(prompt, asked, self.task.feedback)
        wanted = decision_schema(choices) if schema is None else schema
        most = self._most(max_tokens, DECISION_TOKENS)
        request = _request("decide", prompt, asked, most, temperature, seed, stop, wanted)
        checked = Schema(checked_decision(wanted) if schema is None else wanted)
        return decision_map(self._keep(self._answer("decide", request, checked), output))

    @handler("embed", cls="llm")
    def embed(
        self,
        texts: list[str] | None = None,
        text: str | None = None,
        input: str | None = None,
        model: str | None = None,
        output: str | None = None,
        plan: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Vectors of texts: ``{"vectors", "model", "usage"}``, one list of floats a text, in their order.

        ``text``, or ``input`` (a text file of the ``plan``), is a list of one. ``output``: a file that gets the map as JSON.
        """
        self._check_model("embed", model)
        if texts is None:
            material = self._material("embed", text, input, plan)
            texts = [] if material is None else [material]
        elif text is not None or input is not None:
            raise DefinitionError('embed: "texts" is given beside "text" or "input"; give one of them')
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise DefinitionError(
                f'embed: {len(texts)} texts; give 1 to {MAX_TEXTS} in "texts", or one "text" or "input"'
            )
        for i, one in enumerate(texts):
            if not one.strip():
                raise DefinitionError(f'embed: field "texts": number {i + 1} is empty; leave it out')
        embedding = self.model.embedding(EmbedRequest(texts=texts))
        self.task.when_cancelled(embedding.cancel)
        made = gather(embedding, self.model.name, on_wait=self._tell_state, on_queue=self._tell_place)
        value = made.to_map()
        if output is not None and not self.task.cancelled:
            keep_text(Path(output), json.dumps(value) + "\n")
        return value

    # -- what they share

    def _most(self, asked: int | None, usual: int) -> int:
        """Tokens that an answer may have: what the request says, else the model's entry, else the task's type."""
        return next(number for number in (asked, self.max_tokens, usual) if number is not None)

    def _check_model(self, kind: str, model: str | None) -> None:
        if model is not None and model not in (self.model.name, *self.also):
            raise DefinitionError(
                f'{kind}: field "model": there is no {model!r} here; leave it out, or name {self.model.name!r}'
            )

    def _material(
        self, kind: str, text: str | None, input: str | None, plan: Mapping[str, str] | None
    ) -> str | None:
        """The text that a task is about: given, or read from a file of its plan."""
        if text is not None and input is not None:
            raise DefinitionError(f'{kind}: both "text" and "input" are given; give one of them')
        if text is not None and not text.strip():
            raise DefinitionError(f'{kind}: field "text" is empty; a model would invent what it says')
        return text if input is None else read_input(input, plan)

    def _collect(
        self, request: GenerateRequest, on_text: Callable[[str], None], *, as_json: bool = False
    ) -> GenerateResult:
        """The answer to one request. A cancel of the task ends it."""
        generation = self.model.generate(request)
        self.task.when_cancelled(generation.cancel)
        result = collect(
            generation,
            self.model.name,
            as_json=as_json,
            on_text=on_text,
            on_wait=self._tell_state,
            on_queue=self._tell_place,
        )
        if cut := shortened(result, request.max_tokens):
            # A shorter text is an answer, too; but whoever reads it must be able to learn why.
            self.task.log(f"the answer is shorter than it might be: {cut}")
            self.task.progress(note=f"the answer is shorter than it might be: {cut}")
        return result

    def _tell_place(self, position: int) -> None:
        """Where a request stands among those that wait for the model."""
        before = {0: "this request is the next one", 1: "1 request before this one"}
        self.task.progress(note=before.get(position, f"{position} requests before this one"))

    def _answer(self, kind: str, request: GenerateRequest, schema: Schema) -> dict[str, Any]:
        """The answer to a request, checked by a schema, and asked for once more where it is not valid.

        Its text is not streamed: a first answer that is not valid is no beginning of the second. What is streamed is how
        far it is.

        Raises:
            AnswerInvalid: the second answer is not valid either.
        """
        first = self._collect(request, self._tell_share(request))
        value, fault = read_answer(first, schema, request.max_tokens)
        if not fault or first.usage.finish == "cancelled":
            return answer_map([first], value)
        self.task.progress(0.0, note=f"the answer is not valid, it is asked for once more: {fault}")
        self.task.log(f"{kind}: the first answer is not valid: {fault}\n{first.text}")
        try:
            second = self._collect(repair_request(request, first.text, fault), self._tell_share(request))
        except DefinitionError as e:
            raise AnswerInvalid(
                f"the answer is not valid: {fault}; it could not be asked for once more: {e}"
            ) from e
        value, again = read_answer(second, schema, request.max_tokens)
        if again and second.usage.finish != "cancelled":
            self.task.log(f"{kind}: the second answer is not valid: {again}\n{second.text}")
            raise AnswerInvalid(f"the answer is not valid: {again} (the first one: {fault})")
        return answer_map([first, second], value)

    def _tell_share(self, request: GenerateRequest) -> Callable[[str], None]:
        """A sign of life now and then: how much of ``max_tokens`` is used."""
        count = 0

        def tell(text: str) -> None:
            nonlocal count
            count += 1
            if count * SIGNS // request.max_tokens > (count - 1) * SIGNS // request.max_tokens:
                self.task.progress(count / request.max_tokens)

        return tell

    def _keep(self, answer: dict[str, Any], output: str | None) -> dict[str, Any]:
        if output is not None and answer["finish"] != "cancelled":
            keep_text(Path(output), json.dumps(answer["json"], ensure_ascii=False, indent=2) + "\n")
        return answer

    def _tell_state(self) -> None:
        """A sign of life for whoever waits while the model loads; a model that is ready and silent gives none."""
        state = self.model.state
        if state.phase == "loading":
            self.task.progress(note=f"the model is loading: {state.share:.0%}")
        elif state.phase == "restarting":
            self.task.progress(note=state.message)


def _schema(given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """The schema of a payload: itself, or in a file of this machine."""
    return read_schema(Path(given)) if isinstance(given, str) else given


def _request(
    kind: str,
    prompt: str | None,
    messages: Sequence[Mapping[str, str]] | None,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    stop: str | list[str] | None,
    json_schema: Mapping[str, Any] | None,
) -> GenerateRequest:
    """The request of a task; what is wrong with it is said in the words of the task's own type."""
    try:
        return GenerateRequest(
            prompt=prompt,
            messages=messages,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop=[stop] if isinstance(stop, str) else stop or (),
            json_schema=json_schema,
        )
    except DefinitionError as e:
        raise DefinitionError(f"{kind}: {str(e).removeprefix('generate: ')}") from None
