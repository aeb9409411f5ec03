"""Texts become vectors, in a context of their own beside the one that generates. Child process only.

That context gives a vector for each token of a text, of which one is made here: their mean, or the one that the model's file
says. So a text may be read in pieces, and holds up those who generate no longer than a prompt does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import Any, Final

import numpy as np  # llama-cpp-python has it

from ....bus.errors import DefinitionError
from ..protocol import Begun, EmbedRequest, Finish, Usage, Vector
from .batching import ALONE_S, FIRST_ROWS, MIN_ROWS, Batcher, Row
from .context import EngineBroken
from .llama import Llama

PACE_SHARE: Final = 0.5  #: of the newest measure in the pace at which texts are read


@dataclass(slots=True)
class Text:
    """One text of a request; ``total`` is the pooled vector so far."""

    request: int
    index: int
    length: int
    total: Any = 0.0


@dataclass(slots=True)
class Texts:
    """One request. Times are monotonic seconds; 0 for what has not happened."""

    texts: set[int]  #: of the batcher's numbers, those that are not done
    tokens: int
    asked_at: float
    begun_at: float = 0.0
    cancelled: bool = False


class Embedder:
    """The second context of a model.

    Raises:
        DefinitionError: the model makes no vectors, or there is no memory for the context.
    """

    def __init__(self, llama: Llama, sequences: int) -> None:
        self._llama = llama
        self._pooling = llama.pooling()
        self._context = llama.embedding_context()
        self._batcher = Batcher(
            min(sequences, self._context.batch), self._context.ctx, self._context.batch, reuse=False
        )
        self._rows_per_s = FIRST_ROWS / ALONE_S
        self._requests: dict[int, Texts] = {}
        self._texts: dict[int, Text] = {}
        self._numbers = count()

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    @property
    def waiting(self) -> list[int]:
        """Requests of which nothing has been read yet, in order."""
        return [number for number, request in self._requests.items() if not request.begun_at]

    def ask(self, number: int, request: EmbedRequest) -> None:
        """Take a request; its items come out of :meth:`step`.

        Raises:
            DefinitionError: a text is longer than the context.
        """
        all_tokens = [self._llama.words(text) for text in request.texts]
        for index, tokens in enumerate(all_tokens):
            if not 0 < len(tokens) < self._context.ctx:
                raise DefinitionError(
                    f"embed: texts[{index}] has {len(tokens)} tokens; 1 to {self._context.ctx - 1} go into one vector of "
                    f"model {self._llama.name}; cut it into pieces"
                )
        numbers = [next(self._numbers) for _ in all_tokens]
        for index, (text, tokens) in enumerate(zip(numbers, all_tokens, strict=True)):
            self._batcher.ask(text, tokens, 1)
            self._texts[text] = Text(number, index, len(tokens))
        self._requests[number] = Texts(set(numbers), sum(map(len, all_tokens)), monotonic())

    def cancel(self, number: int) -> None:
        """End a request before the next step. Unknown numbers are ignored."""
        if (request := self._requests.get(number)) is not None:
            request.cancelled = True

    def step(self, *, company: bool, load_s: float) -> Iterator[tuple[int, Begun | Vector | Usage]]:
        """One step; what it brings, by request. ``company``: others generate and wait for it.

        Raises:
            EngineBroken: llama.cpp failed.
        """
        for number in [n for n, request in self._requests.items() if request.cancelled]:
            for text in self._requests[number].texts:
                self._end_text(text)
            yield self._end(number, "cancelled", load_s)
        step = self._batcher.step(company=company)
        now = monotonic()
        for text in step.begun:
            number = self._texts[text].request
            if not self._requests[number].begun_at:
                self._requests[number].begun_at = now
                yield number, Begun()
        if not step.rows:
            return
        self._context.remember(step.memory)
        try:
            self._context.decode(step.rows)
        except EngineBroken as e:
            raise EngineBroken(str(e), {self._texts[text].request for text in e.by}) from None
        if len(step.rows) >= MIN_ROWS:
            self._rows_per_s += PACE_SHARE * (len(step.rows) / (monotonic() - now) - self._rows_per_s)
            self._batcher.pace(self._rows_per_s)
        for at, row in enumerate(step.rows):
            self._add(at, row)
            if row.logits:
                yield from self._done(row.number, load_s)

    def _add(self, at: int, row: Row) -> None:
        text = self._texts[row.number]
        if self._pooling == "mean":
            text.total = text.total + self._row(at)
        elif row.position == (0 if self._pooling == "cls" else text.length - 1):
            text.total = self._row(at)

    def _row(self, at: int) -> Any:
        pointer = self._llama.api.llama_get_embeddings_ith(self._context.pointer, at)
        if not pointer:
            raise EngineBroken(f"it gave no vector for row {at}")
        return np.ctypeslib.as_array(pointer, (self._llama.width,)).astype(np.float64)

    def _done(self, number: int, load_s: float) -> Iterator[tuple[int, Vector | Usage]]:
        text = self._texts[number]
        request = self._requests[text.request]
        self._end_text(number)
        request.texts.discard(number)
        length = float(np.linalg.norm(text.total))
        if not np.isfinite(length):
            raise EngineBroken(
                "its vectors are no numbers (NaN): the file is damaged, or the device computes wrongly",
                {text.request, *(self._texts[other].request for other in self._batcher.running)},
            )
        yield text.request, Vector(text.index, (text.total / (length or 1.0)).tolist())
        if not request.texts:
            yield self._end(text.request, "stop", load_s)

    def _end_text(self, number: int) -> None:
        self._batcher.end(number)
        del self._texts[number]

    def _end(self, number: int, finish: Finish, load_s: float) -> tuple[int, Usage]:
        request = self._requests.pop(number)
        now = monotonic()
        begun_at = request.begun_at or now
        return number, Usage(
            prompt_tokens=request.tokens,
            queued_s=begun_at - request.asked_at,
            prefill_s=now - begun_at,
            load_s=load_s,
            finish=finish,
        )
